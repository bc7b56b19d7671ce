"""Base models that write: damaged settings of theirs are one line."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from osrm_cli.errors import OsrmError
from osrm_cli.models.classifier import load_tokenizer
from osrm_cli.models.text.language_model import load_language_model


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("generation_config.json", "[]"),
        ("config.json", "[]"),
        ("config.json", '{"model_type": "llama", "vocab_size": []}'),
    ],
)
def test_a_damaged_file_of_settings(
    tiny_writer: Callable[[str], Path], tmp_path: Path, file: str, content: str
) -> None:
    folder = Path(shutil.copytree(tiny_writer("llama"), tmp_path / "base"))
    tokenizer = load_tokenizer(folder)
    (folder / file).write_text(content)
    with pytest.raises(OsrmError, match=r"^.*base: the model cannot be loaded[^\n]*$"):
        load_language_model(folder, tokenizer, torch.float32)
