"""Trained adapters of three tasks, as several tests of methods that read data need them."""

import pytest

from tests import trained_adapters


@pytest.fixture(scope="module", params=["bert", "gpt2", "t5"])
def made(request, tiny_model, text_tasks, tmp_path_factory):
    """The adapters' folder, and their base model."""
    root, base = tmp_path_factory.mktemp(request.param), tiny_model(request.param)
    for task in ("mood", "pair", "score"):
        trained_adapters.save(root / task, base, request.param, text_tasks)
    return root, base
