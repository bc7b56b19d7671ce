"""What training programs write into the header of a LoRA file, and what of it goes on when the file is converted."""

import re
from pathlib import Path

from osrm_cli.storage.input_files import open_safetensors

# kohya's own keys, and those of Stability AI's specification of model metadata.
_KNOWN = ("ss_", "sshs_", "modelspec.")
# Digests of the tensors' bytes, which conversion changes; folders and captions of the training data, which are private.
_LEFT_OUT = re.compile(r"sshs_.*|modelspec\.hash_sha256|ss_.*dataset.*|ss_tag_frequency|ss_bucket_info")


def read_adapter_metadata(path: Path) -> tuple[dict[str, str], list[str]]:
    """What of a file's header goes on.

    Args:
        path: A safetensors file.

    Returns:
        Texts by key, and the keys of what is left out.

    Raises:
        OsrmError: If the file is damaged.
    """
    with open_safetensors(path) as file:
        known = {key: text for key, text in (file.metadata() or {}).items() if key.startswith(_KNOWN)}
    left_out = sorted(key for key in known if _LEFT_OUT.fullmatch(key))
    return {key: text for key, text in known.items() if key not in left_out}, left_out
