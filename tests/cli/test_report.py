"""``osrm report`` from outside: what it writes, and what it refuses."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.reporting.factories import TASKS, scores, sweep
from tests.run_cli import Run, listing, osrm

GOLDEN = Path(__file__).parent / "report.md"
FAST = ("--resamples", "200")
PENALTY = {"interference_penalty": 3.0, "penalty_unit": "base"}


def report(*words: object, cwd: Path) -> Run:
    return osrm("report", *words, *FAST, cwd=cwd)


def facts(*words: object, cwd: Path) -> dict[str, Any]:
    run = report(*words, "--json", "--overwrite", cwd=cwd)
    assert run.code == 0, run
    found: dict[str, Any] = json.loads(run.stdout)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study: three arms, two seeds, calibrated and not, fewer tasks, a diagnosis; and its report."""
    folder = tmp_path_factory.mktemp("study")
    for seed in (0, 1):
        sweep(folder / f"results/kaiming-{seed}/sweep.json", seed=seed, calibrated=True)
        sweep(folder / f"results/osrm-{seed}/sweep.json", "osrm", seed, 0.05, calibrated=True)
        sweep(folder / f"results/penalty-{seed}/sweep.json", "osrm", seed, 0.2, calibrated=True, train=PENALTY)
    sweep(folder / "results/kaiming-two/sweep.json", tasks=("cola", "qqp"), gain=0.1)
    matrix = {row: {column: 0.01 * (1 + (row == column)) for column in TASKS} for row in TASKS}
    diagnosis = folder / "results/diagnosis.json"
    diagnosis.write_text(json.dumps({"command": "diagnose", "interference": matrix}))
    run = report("results", cwd=folder)
    assert run.code == 0, run
    (folder / "run.json").write_text(json.dumps(asdict(run)))
    return folder


def test_markdown_is_the_golden_one(made: Path, request: pytest.FixtureRequest) -> None:
    text = (made / "report/report.md").read_text(encoding="utf-8")
    text = re.sub(r"\| [0-9a-f]{12} \|", "| digest |", text)  # of scores to the last bit of the libraries' sums
    if request.config.getoption("--regen"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_every_picture_lies_beside_and_is_shown(made: Path) -> None:
    text = (made / "report/report.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\]\((.*?\.png)\)", text))
    assert shown == {
        f"{name}.png"
        for name in ("gain", "lambda", "tasks", "interference-penalty", "single-gap", "drift", "interference")
    }
    assert listing(made / "report") == shown | {"report.md", "report.html", "report.json"}
    for name in shown:
        assert (made / "report" / name).read_bytes().startswith(b"\x89PNG")
    assert text.rstrip().splitlines()[-1].startswith("Pictures left out")
    assert "sample size k (arms that differ in it alone); rank (" in text


def test_the_numbers_are_those_of_the_files(made: Path) -> None:
    found = json.loads((made / "report/report.json").read_text())
    assert found["tasks"] == sorted(TASKS)
    assert list(found["arms"]) == ["kaiming", "osrm", "osrm + penalty 3"]
    by_seed = []
    for seed in (0, 1):
        given = json.loads((made / f"results/penalty-{seed}/sweep.json").read_text())
        best = next(row for row in given["best"] if row["method"] == "ties" and row["calibrated"])
        by_seed.append((given["points"][best["point"]]["test"], given["single"]["test"]))
    row = _row(found, "ties, calibrated", "osrm + penalty 3")
    averages = [merged["average"] for merged, _ in by_seed]
    assert row["average"]["mean"] == pytest.approx(sum(averages) / 2, abs=1e-4)
    assert row["average"]["sd"] == pytest.approx(abs(averages[0] - averages[1]) / 2**0.5, abs=1e-4)
    assert row["average"]["n"] == 2
    shares = [merged["tasks"]["qqp"]["headline"] / single["tasks"]["qqp"]["headline"] for merged, single in by_seed]
    assert row["share_of_single"]["tasks"]["qqp"]["mean"] == pytest.approx(50 * sum(shares), abs=1e-4)
    base = _row(found, "ties, calibrated", "kaiming")
    assert base["difference"] is None
    assert row["difference"]["mean"] == pytest.approx(row["average"]["mean"] - base["average"]["mean"], abs=2e-4)
    low, high = row["difference"]["interval"]
    assert 0 < low < row["difference"]["mean"] < high
    assert row["difference"]["resampled"] == "examples and seeds"
    assert row["chosen"] == {"0": "lambda 0.5", "1": "lambda 0.5"}


def _row(found: dict[str, Any], kind: str, arm: str) -> dict[str, Any]:
    (row,) = [row for row in found["rows"] if (row["row"], row["arm"]) == (kind, arm)]
    return dict(row)


def test_calibrated_and_uncalibrated_share_no_table(made: Path) -> None:
    text = (made / "report/report.md").read_text(encoding="utf-8")
    heads = [line for line in text.splitlines() if line.startswith("| arm |") and "ties" in line]
    assert len(heads) == 8  # averages, shares, differences, choices
    for head in heads:
        merged = [name for name in head.split(" | ")[1:] if "single" not in name]
        assert len({"calibrated" in name for name in merged}) == 1


def test_same_files_same_bytes_wherever_they_lie_and_in_any_order(made: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(made / "results", tmp_path / "elsewhere" / "results")
    files = sorted(moved.rglob("*.json"), reverse=True)
    run = report(*files, *files[:2], "--out", "again", cwd=tmp_path)
    assert run.code == 0, run
    names = listing(made / "report")
    assert names == listing(tmp_path / "again")
    for name in names:
        assert (made / "report" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    assert str(tmp_path) not in (tmp_path / "again/report.html").read_text()


def test_stdout_is_the_summary_or_json(made: Path) -> None:
    run = Run(**json.loads((made / "run.json").read_text()))
    lines = run.stdout.splitlines()
    assert lines[-1] == "report/report.html"
    assert re.fullmatch(
        r"ties: the best arm is osrm \+ penalty 3 with \d+\.\d, \d+\.\d points above kaiming "
        r"\(95% interval \+\d+\.\d to \+\d+\.\d, excludes zero\)\.",
        lines[0],
    )
    assert "1 file with other tasks" in run.stderr
    assert "calibrated used unlabelled examples" in run.stderr
    found = facts("results", cwd=made)
    held = json.loads((made / "report/report.json").read_text())
    assert found.pop("path") == "report"
    assert found == held
    assert found["summary"] == lines[:-1]


def test_another_baseline(made: Path, tmp_path: Path) -> None:
    found = facts(made / "results", "--baseline", "osrm + penalty 3", cwd=tmp_path)
    assert found["baseline"] == "osrm + penalty 3"
    assert _row(found, "ties", "osrm + penalty 3")["difference"] is None
    assert _row(found, "ties", "kaiming")["difference"]["mean"] < 0
    assert "ties: no arm is above osrm + penalty 3" in "\n".join(found["summary"])
    run = report(made / "results", "--baseline", "gevd", "--out", "x", cwd=tmp_path)
    assert run.code == 1
    assert run.error == "there is no arm 'gevd'"
    assert "hint: the arms are: kaiming; osrm; osrm + penalty 3" in run.stderr


def test_scores_without_predictions(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        for scale in (0.3, 0.7):
            scores(tmp_path / f"k{seed}{scale}.json", seed=seed, skill=scale, options={"lambda": scale})
            scores(tmp_path / f"o{seed}{scale}.json", "osrm", seed, 0.1 + scale, options={"lambda": scale})
    found = facts(*sorted(tmp_path.glob("*.json")), cwd=tmp_path)
    row = _row(found, "task-arith, lambda 0.7", "osrm")
    assert row["difference"]["resampled"] == "seeds and tasks"
    assert row["seeds"] == ["0", "1", "2"]
    assert any("marked *" in note for note in found["notes"])
    text = (tmp_path / "report/report.md").read_text()
    assert re.search(r"\(\+\d+\.\d to \+\d+\.\d\)\\\*", text)
    assert "lambda.png" in text
    cells = [_row(found, f"task-arith, lambda {scale}", "osrm")["average"] for scale in (0.3, 0.7)]
    line = " | ".join(f"{cell['mean']:.1f} ± {cell['sd']:.1f}" for cell in cells)
    assert "| arm | 0.3 | 0.7 |\n| --- | ---: | ---: |\n" in text
    assert f"| osrm | {line} |\n" in text.partition("## Over lambda")[2]


def test_arms_with_the_same_mixture_are_told_of_once(tmp_path: Path) -> None:
    for objective in ("kaiming", "osrm"):
        path = tmp_path / f"{objective}.json"
        scores(path, objective)
        held = json.loads(path.read_text())
        held["adapters"]["cola"]["train"]["limit"] = 9
        path.write_text(json.dumps(held))
    notes = facts(*sorted(tmp_path.glob("*.json")), cwd=tmp_path)["notes"]
    assert [note for note in notes if "alike" in note] == [
        next(note for note in notes if note.startswith("The adapters of every arm are not all made alike: limit"))
    ]


def test_an_eval_and_a_sweep_of_one_method_are_two_rows(tmp_path: Path) -> None:
    examples = {"settings": {"split": "dev", "validation_split": "train", "seed": 0}}
    path = sweep(tmp_path / "a.json", methods=("ties",))
    path.write_text(json.dumps(json.loads(path.read_text()) | examples))
    scores(tmp_path / "b.json", method="ties", options={"lambda": 0.3})
    found = facts("a.json", "b.json", cwd=tmp_path)
    assert [row["row"] for row in found["rows"]] == ["single", "ties", "ties, chosen on validation"]


def test_one_seed_is_said_to_be_one(tmp_path: Path) -> None:
    sweep(tmp_path / "a.json", methods=("emr", "ties", "task-arith"))
    sweep(tmp_path / "b.json", "osrm", gain=0.1)
    found = facts("a.json", "b.json", cwd=tmp_path)
    assert list(dict.fromkeys(row["row"] for row in found["rows"])) == ["single", "task-arith", "ties", "emr"]
    assert _row(found, "ties", "osrm")["average"]["sd"] is None
    assert _row(found, "ties", "osrm")["difference"]["resampled"] == "examples"
    assert any("single seed" in note for note in found["notes"])
    assert " ± " not in (tmp_path / "report/report.md").read_text().replace("Mean ± standard", "")


def test_merge_seeds_are_repetitions(tmp_path: Path) -> None:
    for draw in (0, 5):
        scores(tmp_path / f"{draw}.json", method="dare", options={"lambda": 0.3, "seed": draw}, skill=0.4 + draw / 50)
    found = facts("0.json", "5.json", cwd=tmp_path)
    assert _row(found, "dare", "kaiming")["seeds"] == ["0", "0, merge 5"]
    assert _row(found, "dare", "kaiming")["share_of_single"]["average"]["n"] == 2


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = '<b onclick="x">|*e*'
    sweep(tmp_path / "a.json")
    sweep(tmp_path / "b.json", start={"a_scale": evil})
    report("a.json", "b.json", cwd=tmp_path)
    page, text = ((tmp_path / f"report/report.{form}").read_text() for form in ("html", "md"))
    assert "<b " not in page
    assert "&lt;b onclick=" in page
    line = next(line for line in text.splitlines() if "onclick" in line)
    assert r"\<b onclick=" in line
    assert r"\|\*e\*" in line


def _edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        held = json.loads(path.read_text())
        change(held)
        path.write_text(json.dumps(held))

    return edit


ERRORS = {
    "missing": (lambda path: path.unlink(), "b.json is missing"),
    "no JSON": (lambda path: path.write_text("{"), "b.json cannot be read: Expecting"),
    "another file": (
        _edited(lambda held: held.update(command="merge")),
        "b.json is not a file of scores: 'osrm merge' wrote it",
    ),
    "no object": (
        lambda path: path.write_text("[1]"),
        "b.json is not a file of scores: it does not record which command wrote it",
    ),
    "an old file": (_edited(lambda held: held.pop("adapters")), "b.json cannot be read: adapters: field required"),
    "a damaged file": (_edited(lambda held: held.pop("points")), "b.json cannot be read: points: field required"),
    "fewer examples": (
        _edited(
            lambda held: [row["test"]["tasks"]["cola"].update(examples=9) for row in [held["single"], *held["points"]]]
        ),
        "b.json and a.json were scored on 9 and 60 examples of 'cola'",
    ),
    "other examples": (
        _edited(lambda held: held["data"]["cola"]["sha256"].update(dev="x")),
        "b.json and a.json were scored on different examples of 'cola'",
    ),
    "another half": (
        _edited(lambda held: held["settings"].update(seed=1)),
        "b.json and a.json were scored on different examples of 'cola'",
    ),
    "other labels": (
        _edited(lambda held: held["labels"]["test"]["cola"].reverse()),
        "b.json and a.json were scored on different examples of 'cola'",
    ),
    "wrong predictions": (
        _edited(lambda held: held["single"]["test"]["predictions"].update(qqp=[0] * 60)),
        "b.json: the predictions of 'qqp' give",
    ),
    "too few predictions": (
        _edited(lambda held: held["single"]["test"]["predictions"]["qqp"].pop()),
        "b.json has 59 predictions and 60 labels of 'qqp'",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_files_that_do_not_fit(name: str, tmp_path: Path) -> None:
    sweep(tmp_path / "a.json")
    sweep(tmp_path / "b.json", "osrm", gain=0.1)
    spoil, message = ERRORS[name]
    spoil(tmp_path / "b.json")
    run = report("a.json", "b.json", cwd=tmp_path)
    assert run.code == 1
    assert run.error.startswith(message)
    assert not (tmp_path / "report").exists()


def test_two_files_of_one_run_that_differ(tmp_path: Path) -> None:
    sweep(tmp_path / "a.json")
    sweep(tmp_path / "b.json", gain=0.1)
    run = report("a.json", "b.json", cwd=tmp_path)
    assert run.code == 1
    assert run.error.startswith("a.json and b.json differ on 'mnli' (single): ")
    assert run.error.endswith("with the same settings and seed")


def test_below_float32_two_files_may_differ_by_rounding(tmp_path: Path) -> None:
    sweep(tmp_path / "a.json", methods=("ties",), predictions=False, dtype="bfloat16")
    other = json.loads(sweep(tmp_path / "b.json", calibrated=True, predictions=False, dtype="bfloat16").read_text())
    for gap, code in ((1.0, 0), (3.0, 1)):
        told = json.loads(json.dumps(other))
        told["single"]["test"]["tasks"]["mnli"]["headline"] += gap
        (tmp_path / "b.json").write_text(json.dumps(told))
        run = report("a.json", "b.json", "--overwrite", cwd=tmp_path)
        assert run.code == code, run.error


def test_the_same_run_twice_counts_once(tmp_path: Path) -> None:
    sweep(tmp_path / "a.json", methods=("ties",))
    shutil.copy(tmp_path / "a.json", tmp_path / "b.json")
    assert _row(facts("a.json", "b.json", cwd=tmp_path), "ties", "kaiming")["average"]["n"] == 1


def test_an_empty_folder_and_a_lonely_diagnosis(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    run = report("x", cwd=tmp_path)
    assert run.error == "x holds no scores.json, sweep.json or diagnosis.json"
    (tmp_path / "x/diagnosis.json").write_text('{"command": "diagnose"}')
    assert report("x", cwd=tmp_path).error == "no scores were given, only diagnoses"


def test_dry_run_and_existing_output(made: Path, tmp_path: Path) -> None:
    run = report(made / "results", "--dry-run", cwd=tmp_path)
    assert run.stdout == "would write report: 7 files of scores, arms kaiming, osrm, osrm + penalty 3\n"
    assert listing(tmp_path) == set()
    (tmp_path / "report").mkdir()
    run = report("nothing.json", cwd=tmp_path)
    assert run.error == "report exists already"


def test_the_page_needs_nothing_beside_it(made: Path) -> None:
    page = (made / "report/report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page)
    assert not re.findall(r"url\((?!#)", page)
    assert not re.findall(r"@import|@font-face", page)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))  # the pictures' clip paths do not meet on the page


PROBE = """<script>addEventListener("load", () => { document.title = JSON.stringify({
  width: innerWidth, overflow: document.documentElement.scrollWidth - innerWidth,
  tables: document.querySelectorAll("table").length, svgs: document.querySelectorAll("svg").length,
  hidden: [...document.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().height == 0).length,
  small: [...document.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().height < 60).length,
  beyond: [...document.querySelectorAll("svg text")].filter(text => {
    const [own, frame] = [text, text.ownerSVGElement].map(shape => shape.getBoundingClientRect())
    return frame.height && (own.left < frame.left - 1 || own.right > frame.right + 1)
  }).length,
  requests: performance.getEntriesByType("resource").map(entry => entry.name).filter(n => !n.startsWith("data:"))
}) })</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_the_page(made: Path, width: int, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    page = (made / "report/report.html").read_text(encoding="utf-8")
    frame = tmp_path / "page.html"
    frame.write_text(page.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    # A window has a least width, a frame has not.
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<iframe id="f" src="page.html" style="width:{width}px;height:800px;border:0"></iframe><script>'
        'addEventListener("load", () => { document.body.innerText = f.contentDocument.title })</script>'
    )
    done = subprocess.run(
        [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000",
         "--dump-dom", outer.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = json.loads(re.search(r"\{.*\}", done.stdout)[0])  # type: ignore[index]
    assert found["width"] == width
    assert found["overflow"] <= 0
    assert found["tables"] == page.count("<table>") > 8
    assert found["svgs"] == page.count("<svg ") > 8
    assert found["hidden"] == {390: 1, 1200: 2}[width]  # all panels as one, or each by itself
    assert found["small"] == found["hidden"]
    assert found["beyond"] == 0
    assert found["requests"] == []
    assert "CONSOLE" not in done.stderr
