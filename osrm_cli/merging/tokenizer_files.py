"""Tokenizers, chat templates and the modules of SentenceTransformer that trainers save beside adapters."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.models.base_model import TOKENIZER_FILES
from osrm_cli.storage import provenance

_FILES = (*TOKENIZER_FILES, "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")
_MODULES = "[0-9]_*/*"  # such as 1_Pooling/config.json


def find_tokenizer_files(adapters: Sequence[Adapter]) -> tuple[dict[str, Path], str | None]:
    """The tokenizer that the adapters carry, and what SentenceTransformer puts around the model.

    Returns:
        Its files by their path below the folder; none where no adapter has any, or they differ. Why there are none, if
        they differ.
    """
    found = {adapter.source: dict(_list_files(adapter.folder)) for adapter in adapters}
    carried = {
        source: {name: provenance.sha256(path) for name, path in files.items()}
        for source, files in found.items()
        if files
    }
    if not carried:
        return {}, None
    first, *others = carried
    for other in others:
        if carried[other] != carried[first]:
            return {}, f"{first} and {other} carry different tokenizers: the result has none of them"
    return found[first], None


def _list_files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in (*(folder / name for name in _FILES), *sorted(folder.glob(_MODULES))):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path
