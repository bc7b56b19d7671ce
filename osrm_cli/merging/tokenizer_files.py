"""Tokenizers and chat templates that trainers save beside adapters."""

from collections.abc import Sequence
from pathlib import Path

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.storage import provenance

_NAMES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "qwen.tiktoken"),
)


def find_tokenizer_files(adapters: Sequence[Adapter]) -> tuple[list[Path], str | None]:
    """The tokenizer that the adapters carry.

    Returns:
        Its files; none where no adapter has one, or they differ. Why there are none, if they differ.
    """
    found = {
        adapter.source: [path for name in _NAMES if (path := adapter.folder / name).is_file()] for adapter in adapters
    }
    carried = {
        source: {path.name: provenance.sha256(path) for path in paths} for source, paths in found.items() if paths
    }
    if not carried:
        return [], None
    first, *others = carried
    for other in others:
        if carried[other] != carried[first]:
            return [], f"{first} and {other} carry different tokenizers: the result has none of them"
    return found[first], None
