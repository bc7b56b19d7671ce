"""Two parts of a task's examples: apart, complete, and always the same."""

import json
from pathlib import Path

import pytest

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.validation_split import TEST, VALIDATION, load_validation_split


def test_halves_are_disjoint_and_cover(text_tasks: Path) -> None:
    for limit, sizes in ((None, (12, 12)), (7, (3, 4)), (2, (1, 1))):
        found = load_validation_split("mood", str(text_tasks), "dev", None, limit, 0)
        validation, test = found.indices[VALIDATION], found.indices[TEST]
        assert (len(validation), len(test)) == sizes
        assert sorted(validation + test) == list(range(len(found.examples)))
        assert [*found.labels_of(VALIDATION), *found.labels_of(TEST)] == [found.labels[i] for i in validation + test]


def test_halves_depend_on_seed_and_task_and_follow_no_order(text_tasks: Path) -> None:
    first = load_validation_split("mood", str(text_tasks), "dev", None, None, 0).indices
    assert load_validation_split("mood", str(text_tasks), "dev", None, None, 0).indices == first
    assert load_validation_split("mood", str(text_tasks), "dev", None, None, 1).indices != first
    assert load_validation_split("pair", str(text_tasks), "dev", None, None, 0).indices != first
    assert first[VALIDATION] not in (tuple(range(12)), tuple(range(0, 24, 2)), tuple(range(1, 24, 2)))


def test_split_of_its_own(text_tasks: Path) -> None:
    found = load_validation_split("mood", str(text_tasks), "dev", "train", None, 0)
    assert (len(found.indices[VALIDATION]), len(found.indices[TEST])) == (48, 24)
    lines = (text_tasks / "mood/dev.jsonl").read_text().splitlines()
    assert [found.examples[row].texts[0] for row in found.indices[TEST]] == [json.loads(line)["text"] for line in lines]
    assert set(found.sha256) == {"train", "dev"}


def test_too_few_or_unlabelled(text_tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(OsrmError, match="has 1 example, two halves need two"):
        load_validation_split("mood", str(text_tasks), "dev", None, 1, 0)
    folder = tmp_path / "mood"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes((text_tasks / "mood/train.jsonl").read_bytes())
    (folder / "test.jsonl").write_text('{"text": "w1"}\n{"text": "w2"}\n')
    with pytest.raises(OsrmError, match="has no labels to score against"):
        load_validation_split("mood", str(tmp_path), "test", None, None, 0)
