"""What lies beside adapters: tokenizers, chat templates, settings of generation, SentenceTransformer's modules."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.storage import input_files

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "qwen.tiktoken"),
)
"""Files of tokenizers and chat templates, beside models and adapters."""

_TOKENIZER = (
    *TOKENIZER_FILES,
    *("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"),
    *("additional_chat_templates/*.jinja", "[0-9]_*/*"),  # such as 1_Pooling/config.json
)
_VOCABULARIES = {"tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "qwen.tiktoken"}
_KINDS = {"tokenizers": _TOKENIZER, "settings of generation": ("generation_config.json",)}


def find_tokenizer_files(adapters: Sequence[Adapter]) -> tuple[dict[str, Path], list[str]]:
    """The tokenizer that the adapters carry, what SentenceTransformer puts around the model, and how they generate.

    Returns:
        The files by their path below the folder; none of a kind that no adapter has, or in which two differ. Where
        they differ, a warning.
    """
    files: dict[str, Path] = {}
    warnings = []
    for kind, patterns in _KINDS.items():
        # The tokenizer of a model with added rows would number tokens that the result does not have.
        found = {each.source: _tokenizer_files_in(each.folder, patterns) for each in adapters if not each.warnings}
        carried = {
            source: {name: input_files.sha256(path) for name, path in own.items()}
            for source, own in found.items()
            if own
        }
        if not carried:
            continue
        first, *others = carried
        different = next((other for other in others if carried[other] != carried[first]), None)
        if different is None:
            files |= found[first]
        else:
            warnings.append(f"{first} and {different} carry different {kind}: the result has none of them")
    return files, warnings


def copy_tokenizer_files(files: Mapping[str, Path], stage: Path) -> None:
    """Copy such files into a folder that is being staged, by their path below it.

    A tokenizer takes the place of the base model's as a whole: files that it lacks would change its special tokens.
    """
    if _VOCABULARIES & files.keys():
        for name in TOKENIZER_FILES:
            (stage / name).unlink(missing_ok=True)
    for name, file in files.items():
        (stage / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, stage / name)


def _tokenizer_files_in(folder: Path, patterns: Sequence[str]) -> Mapping[str, Path]:
    paths = [path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path for path in paths}
