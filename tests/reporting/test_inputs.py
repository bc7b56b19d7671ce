"""What a report reads: files, folders, tables, names of arms and of files."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from osrm_cli.errors import OsrmError
from osrm_cli.reporting.inputs import read_report_inputs
from osrm_cli.reporting.results_table import read_results_table
from osrm_cli.reporting.write import write_report, write_report_table
from tests.reporting.factories import TASKS, scores, sweep
from tests.run_cli import listing, osrm


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Sweeps of two arms, one without predictions, scores of a merge, a diagnosis."""
    folder = tmp_path / "results"
    for seed in (0, 1):
        sweep(folder / f"sweeps/plain/{seed}/sweep.json", seed=seed, calibrated=True)
        sweep(folder / f"sweeps/ours/{seed}/sweep.json", "osrm", seed, 0.1, predictions=seed == 0)
    scores(folder / "merged/scores.json", predictions=True, method="tsv")
    matrix = {row: dict.fromkeys(TASKS, 0.01) for row in TASKS}
    (folder / "diagnosis.json").write_text(json.dumps({"command": "diagnose", "interference": matrix, "more": 1}))
    return folder


def test_a_table_holds_what_the_files_hold(results: Path) -> None:
    given = read_report_inputs([results])
    table = results / "results.parquet"
    assert write_report_table([results], table).files == len(given.files) == 5
    again = read_report_inputs([table])
    assert again.files == given.files
    assert list(again.diagnoses) == ["diagnosis.json"]
    assert again.diagnoses["diagnosis.json"]["sha256"] == given.diagnoses["diagnosis.json"]["sha256"]
    first = table.read_bytes()
    write_report_table([table], table, overwrite=True)
    assert table.read_bytes() == first


def test_a_table_takes_no_second_truth(results: Path, tmp_path: Path) -> None:
    path = results / "sweeps/plain/1/sweep.json"
    record = json.loads(path.read_text())
    record["labels"]["test"]["cola"].reverse()
    path.write_text(json.dumps(record))
    with pytest.raises(OsrmError, match=r"sweeps/plain/1/sweep\.json has other labels of 'cola'"):
        write_report_table([results], tmp_path / "t.parquet")
    assert not (tmp_path / "t.parquet").exists()


def test_a_report_from_a_table_is_the_report_from_the_files(results: Path, tmp_path: Path) -> None:
    sweeps = results / "sweeps"
    write_report_table([sweeps, results / "diagnosis.json"], tmp_path / "all.parquet")
    for name, given in (("files", [sweeps, results / "diagnosis.json"]), ("table", [tmp_path / "all.parquet"])):
        write_report(given, resamples=100, out=tmp_path / name)
    names = listing(tmp_path / "files")
    assert {"report.json", "report.md", "report.html", "gain.png", "interference.png"} <= names
    assert names == listing(tmp_path / "table")
    for name in names:
        assert (tmp_path / "files" / name).read_bytes() == (tmp_path / "table" / name).read_bytes(), name


def test_a_table_keeps_the_names_of_arms(results: Path, tmp_path: Path) -> None:
    arms = [("with OSRM", str(results / "sweeps/ours")), ("without", str(results / "sweeps/pl*"))]
    write_report_table([], tmp_path / "t.parquet", arms=arms)
    given = read_report_inputs([tmp_path / "t.parquet"])
    assert [(file.name, file.arm) for file in given.files] == [
        ("ours/0/sweep.json", "with OSRM"),
        ("ours/1/sweep.json", "with OSRM"),
        ("plain/0/sweep.json", "without"),
        ("plain/1/sweep.json", "without"),
    ]
    result = write_report([tmp_path / "t.parquet"], baseline="without", resamples=100, out=tmp_path / "r", dry_run=True)
    assert result.arms == ("with OSRM", "without")
    renamed = read_report_inputs([tmp_path / "t.parquet"], [("other", "ours")])
    assert [file.arm for file in renamed.files] == ["other", "other", "without", "without"]


def test_only_some_files_are_used(results: Path) -> None:
    for patterns, names in (
        (["sweeps/plain"], ["0/sweep.json", "1/sweep.json"]),
        (["sweeps/*/0"], ["ours/0/sweep.json", "plain/0/sweep.json"]),
        (["merged/", "*/ours/1"], ["merged/scores.json", "sweeps/ours/1/sweep.json"]),
    ):
        assert [file.name for file in read_report_inputs([results], only=patterns).files] == names
    assert list(read_report_inputs([results], only=["merged", "diagnosis*"]).diagnoses) == ["diagnosis.json"]
    with pytest.raises(OsrmError, match="no file of scores fits 'swept'") as error:
        read_report_inputs([results], only=["sweeps", "swept"])
    assert error.value.hint is not None
    assert error.value.hint.startswith("they are called: diagnosis.json, merged/scores.json, ")


def test_a_file_has_one_arm(results: Path) -> None:
    pairs = [("one", str(results / "sweeps")), ("two", str(results / "sweeps/ours"))]
    with pytest.raises(OsrmError, match=r"sweep.json in .*ours/0 belongs to two arms: 'one' and 'two'"):
        read_report_inputs([], pairs)
    with pytest.raises(OsrmError, match="no file of scores fits 'nowhere'"):
        read_report_inputs([results], [("one", "nowhere")])


def test_the_command_names_arms_and_writes_a_table(results: Path, tmp_path: Path) -> None:
    run = osrm("report", "results", "--only", "sweeps", "--table", "t.parquet", cwd=tmp_path)
    assert (run.code, run.stdout) == (0, "t.parquet\n")
    run = osrm("report", "results", "--table", "t.parquet", cwd=tmp_path)
    assert run.error == "t.parquet exists already"
    words = (
        "--arm",
        "plain LoRA=results/sweeps/plain",
        "--arm",
        "ours=results/sweeps/ours",
        "--baseline",
        "plain LoRA",
    )
    run = osrm("report", *words, "--resamples", 100, "--json", cwd=tmp_path)
    assert run.code == 0, run
    record = json.loads(run.stdout)
    assert list(record["arms"]) == ["ours", "plain LoRA"]  # JSON sorts them
    assert record["baseline"] == "plain LoRA"
    text = (tmp_path / "report/report.md").read_text()
    assert text.index("| plain LoRA |") < text.index("| ours |")
    assert osrm("report", cwd=tmp_path).code == 2
    run = osrm("report", "results", "--arm", "ours", cwd=tmp_path)
    assert run.error == "--arm ours: expected NAME=PATH"


def _without(table: pa.Table, column: str) -> pa.Table:
    return table.drop_columns([column])


def _with(table: pa.Table, column: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(column), column, values)


DAMAGE = {
    "no column": (lambda t: _without(t, "headline"), "is not a table of 'osrm report --table'"),
    "no record": (lambda t: t.replace_schema_metadata({}), "is not a table of 'osrm report --table'"),
    "a broken record": (lambda t: t.replace_schema_metadata({"osrm": "{"}), "cannot be read: Invalid JSON"),
    "text for scores": (lambda t: _with(t, "headline", pa.array(["x"] * len(t))), "cannot be read: 0.headline: "),
    "no names": (lambda t: _with(t, "file", pa.array([None] * len(t), pa.string())), "cannot be read: 0.file: "),
    "infinite scores": (
        lambda t: _with(t, "headline", pa.array([float("inf")] * len(t))),
        "cannot be read: 0.headline",
    ),
    "other parts": (lambda t: _with(t, "part", pa.array(["dev"] * len(t))), "cannot be read: 0.part: "),
    "broken options": (lambda t: _with(t, "options", pa.array(["{"] * len(t))), "cannot be read: "),
    "no adapters": (lambda t: _with(t, "adapter", pa.array(["[]"] * len(t))), "cannot be read: "),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_tables_are_refused(name: str, results: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_report_table([results], path)
    change, message = DAMAGE[name]
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(OsrmError) as error:
        read_results_table(path)
    assert str(error.value).startswith(f"{path} {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(content)
    with pytest.raises(OsrmError, match="cannot be read"):
        read_results_table(path)
    with pytest.raises(OsrmError, match="is missing"):
        read_results_table(tmp_path / "u.parquet")
