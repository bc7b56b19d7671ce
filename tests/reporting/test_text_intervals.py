"""Intervals over the examples of text tasks, from what ``osrm eval`` and ``osrm sweep`` keep of each example."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from osrm_cli.errors import OsrmError
from osrm_cli.reporting.consistency import check_files_comparable
from osrm_cli.reporting.inputs import read_report_inputs
from osrm_cli.reporting.results_table import read_results_table
from tests.run_cli import osrm

ARMS = ("--arm", "plain=scored/plain", "--arm", "gentle=scored/gentle", "--baseline", "plain", "--resamples", 200)
METRICS = {"same": ["exact_match", "rouge_l"], "backwards": ["likelihood"]}


@pytest.fixture(scope="module")
def project(
    tiny_writer: Callable[[str], Path], completion_tasks: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two arms of adapters of two tasks, with the scores of a merge and of a sweep of each; never written to."""
    pytest.importorskip("rouge_score")
    folder = tmp_path_factory.mktemp("intervals")
    for task in ("same", "backwards"):
        (folder / "tasks" / task).mkdir(parents=True)
        for split in ("train", "dev"):
            rows = (completion_tasks / task / f"{split}.jsonl").read_bytes()
            (folder / "tasks" / task / f"{split}.jsonl").write_bytes(rows)
        (folder / "tasks" / task / "task.toml").write_text(f"metrics = {json.dumps(METRICS[task])}\n")
    words = f'model = "{tiny_writer("llama")}"\ndata = "{folder / "tasks"}"\ndtype = "float32"\nquiet = true\n'
    (folder / "osrm.toml").write_text(words)
    run(folder, "collect --samples 10")
    run(folder, "init --each --rank 2 --objective kaiming")
    for arm, rate in (("plain", 0.01), ("gentle", 0.003)):
        run(folder, f"train starts/same starts/backwards --epochs 1 --lr {rate} --out {arm}")
        adapters = f"{arm}/same {arm}/backwards"
        words = "--lambda 0.5,1 --validation-split train --generate-all --predictions"
        run(folder, f"sweep {adapters} {words} --out scored/{arm}/sweep")
        run(folder, f"merge {adapters} --method ties --lambda 0.5 --out merged")
        run(folder, f"eval merged --predictions --out scored/{arm}/scores.json")
        run(folder, f"eval merged --no-generate --out old/{arm}/scores.json")
        (folder / "merged").rename(folder / f"merged-{arm}")
    return folder


def run(folder: Path, words: str) -> None:
    done = osrm(*words.split(), cwd=folder)
    assert done.code == 0, done.stderr


def report(folder: Path, *words: object, out: Path) -> dict[str, Any]:
    done = osrm("report", *words, "--json", "--out", out, "--overwrite", cwd=folder)
    assert done.code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_report_of_two_arms_of_text_resamples_examples(project: Path, tmp_path: Path) -> None:
    rows = report(project, *ARMS, out=tmp_path / "report")["rows"]
    compared = {row["row"]: row["difference"] for row in rows if row["arm"] == "gentle"}
    assert {"task-arith", "ties"} <= {name.partition(",")[0] for name in compared}
    for name, difference in compared.items():
        if difference is not None:
            assert difference["resampled"] == "examples", name
            assert difference["interval"][0] <= difference["mean"] <= difference["interval"][1]
    assert any(difference is not None for difference in compared.values())


def test_a_table_keeps_what_each_example_scored(project: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    done = osrm("report", *ARMS[:4], "--table", table, cwd=project)
    assert done.code == 0, done.stderr
    files = report(project, *ARMS, out=tmp_path / "report")["rows"]
    rows = report(project, table, *ARMS[4:], out=tmp_path / "report")["rows"]
    assert sorted(rows, key=lambda row: (row["row"], row["arm"])) == sorted(
        files, key=lambda row: (row["row"], row["arm"])
    )
    whole = {file.name: file for file in read_results_table(table)[0]}
    older = pq.read_table(table).drop_columns(["per_example"])
    pq.write_table(older, tmp_path / "older.parquet")
    for file in read_results_table(tmp_path / "older.parquet")[0]:
        for merge, known in zip(file.merges, whole[file.name].merges, strict=True):
            assert [score.headline for score in merge.test.values()] == [s.headline for s in known.test.values()]
            assert not any(score.per_example for score in merge.test.values())


def test_files_without_scores_of_examples_are_compared_by_pairs(project: Path, tmp_path: Path) -> None:
    arms = ("--arm", "plain=old/plain", "--arm", "gentle=old/gentle", "--baseline", "plain")
    rows = report(project, *arms, out=tmp_path / "report")["rows"]
    assert {row["difference"]["resampled"] for row in rows if row["difference"]} == {"seeds and tasks"}


def test_what_each_example_scored_gives_the_primary_score(project: Path, tmp_path: Path) -> None:
    facts = json.loads((project / "scored/plain/scores.json").read_text())
    assert {task: sorted(row) for task, row in facts["per_example"].items()} == {
        "same": ["exact_match", "rouge_l"],
        "backwards": ["loss", "tokens"],
    }
    exact = [a.strip() == r.strip() for a, r in zip(facts["answers"]["same"], facts["references"]["same"], strict=True)]
    assert facts["per_example"]["same"]["exact_match"] == [100.0 * hit for hit in exact]
    assert facts["per_example"]["backwards"]["loss"] == facts["losses"]["backwards"]
    check_files_comparable(read_report_inputs([project / "scored"]).files)
    for change, message in (
        (lambda each: each["same"].update(rouge_l=[50.0] * 12), "the predictions of 'same' give"),
        (lambda each: each["same"]["rouge_l"].pop(), "has 11 values of 'rouge_l' for 12 examples of 'same'"),
        (lambda each: each["backwards"].update(tokens=[0] * 12), "'tokens' of 'backwards' holds 0, expected 1 or more"),
        (lambda each: each["backwards"].pop("tokens"), "'per_example' of 'backwards' is incomplete"),
    ):
        changed = json.loads(json.dumps(facts))
        change(changed["per_example"])
        (tmp_path / "scores.json").write_text(json.dumps(changed))
        with pytest.raises(OsrmError, match=message):
            check_files_comparable(read_report_inputs([tmp_path / "scores.json"]).files)


def test_likelihood_and_answers_are_not_compared(project: Path, tmp_path: Path) -> None:
    words = ("eval", project / "merged-plain", "--predictions", "--no-generate", "--out", tmp_path / "b/scores.json")
    assert osrm(*words, cwd=project).code == 0
    (tmp_path / "a").mkdir()
    (tmp_path / "a/scores.json").write_bytes((project / "scored/plain/scores.json").read_bytes())
    with pytest.raises(OsrmError, match="judge 'same' by loss and tokens and by exact_match and rouge_l"):
        check_files_comparable(read_report_inputs([tmp_path]).files)


def test_chrf_is_no_mean_over_examples(project: Path, tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    (tmp_path / "osrm.toml").write_bytes((project / "osrm.toml").read_bytes())
    for path in (project / "tasks/same").glob("*.jsonl"):
        (tmp_path / "tasks/same").mkdir(parents=True, exist_ok=True)
        (tmp_path / "tasks/same" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tasks/same/task.toml").write_text('metrics = ["chrf", "exact_match"]\n')
    run(tmp_path, f"eval {project / 'plain/same'} --data tasks --predictions --out scores.json")
    facts = json.loads((tmp_path / "scores.json").read_text())
    assert "chrf" in facts["tasks"]["same"]["metrics"]
    assert "per_example" not in facts
