"""Whether files belong together and each agrees with itself: values that no schema refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osrm_cli.errors import OsrmError
from osrm_cli.reporting.write import write_report
from tests.reporting.factories import sweep

Change = Callable[[dict[str, Any]], Any]


def _single(facts: dict[str, Any]) -> dict[str, Any]:
    return facts["single"]["test"]  # type: ignore[no-any-return]


WRONG: dict[str, tuple[Change, str]] = {
    "half a class": (lambda f: _single(f)["predictions"]["cola"].__setitem__(0, 0.5), "predictions of 'cola' hold 0.5"),
    "a class below zero": (
        lambda f: _single(f)["predictions"]["cola"].__setitem__(0, -1),
        "predictions of 'cola' hold -1",
    ),
    "a huge class": (lambda f: f["labels"]["test"]["cola"].__setitem__(0, 10**9), "labels of 'cola' hold 1e+09"),
    "metrics of both kinds": (
        lambda f: _single(f)["tasks"]["stsb"]["metrics"].update(accuracy=1.0),
        "the metrics of 'stsb' do not go together: pearson, spearman, accuracy",
    ),
    "unknown metrics": (
        lambda f: _single(f)["tasks"]["cola"].update(metrics={"bleu": 1.0}),
        "the metrics of 'cola' do not go together: bleu",
    ),
}  # fmt: skip


def _change(path: Path, change: Change) -> Path:
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))
    return path


@pytest.mark.parametrize("name", WRONG)
def test_values_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    change, message = WRONG[name]
    path = _change(sweep(tmp_path / "b.json", tasks=("cola", "stsb")), change)
    with pytest.raises(OsrmError) as error:
        write_report([path], out=tmp_path / "report", dry_run=True)
    assert str(error.value).startswith(f"b.json: {message}")


@pytest.mark.parametrize("seed", [10**400, "x", [1, 2], {"a": 1}, 0.5, True])
def test_any_seed_tells_repetitions_apart(seed: Any, tmp_path: Path) -> None:
    sweep(tmp_path / "a.json", tasks=("cola",))
    _change(
        sweep(tmp_path / "b.json", tasks=("cola",), gain=0.1),
        lambda facts: facts["adapters"]["cola"]["train"].update(seed=seed),
    )
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    result = write_report(files, resamples=100, out=tmp_path / "report", dry_run=True)
    assert len(result.arms) == 1
    assert {row["average"]["n"] for row in result.record["rows"]} == {2}
