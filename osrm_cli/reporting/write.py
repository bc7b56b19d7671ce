"""``report/``: Markdown, HTML, pictures, and the numbers as JSON; or the scores as one table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osrm_cli.plotting.figure import render_png
from osrm_cli.reporting.arms import find_baseline_arm, group_arms
from osrm_cli.reporting.bootstrap import Difference
from osrm_cli.reporting.comparison import Comparison, ComparisonRow, MeanStd, compare_arms
from osrm_cli.reporting.consistency import check_files_comparable
from osrm_cli.reporting.contents import list_report_notes, make_report_contents, summarize_compared_methods
from osrm_cli.reporting.curves import trace_curves
from osrm_cli.reporting.html import render_html
from osrm_cli.reporting.inputs import ReportInputs, read_report_inputs
from osrm_cli.reporting.markdown import render_markdown
from osrm_cli.reporting.plots import make_report_plots
from osrm_cli.reporting.runs import tabulate_runs
from osrm_cli.storage import atomic, provenance


@dataclass(frozen=True)
class ReportResult:
    """What was written, or would be.

    Attributes:
        path: The folder, or the table.
        files: Number of files of scores.
        record: What ``report.json`` holds; empty for a table.
        arms: Names of the arms; empty for a table.
    """

    path: Path
    files: int
    record: Mapping[str, Any]
    arms: tuple[str, ...]


def write_report(
    paths: Sequence[Path | str],
    *,
    arms: Sequence[tuple[str, str]] = (),
    only: Sequence[str] = (),
    baseline: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
    out: Path | str = "report",
    overwrite: bool = False,
    dry_run: bool = False,
) -> ReportResult:
    """Compare the scores of many merges.

    Args:
        paths: Files of scores and diagnoses, folders that hold them, or tables of them.
        arms: Pairs of an arm's name and the file, folder or pattern of the files that belong to it. Of files without
            a name, those whose adapters were made alike are an arm.
        only: Patterns of the names of files to use; of all if there are none.
        baseline: Name or objective of the arm to compare with.
        resamples: Resamples of an interval.
        seed: Of the resampling.
        out: Folder to write.
        overwrite: Whether to replace it.
        dry_run: Whether to check and compare alone.

    Raises:
        OsrmError: If a file is damaged, or files do not belong together.

    Example:
        >>> from osrm_cli import write_report
        >>> write_report(["sweep"]).arms
        ('gevd',)
    """
    out = Path(out)
    atomic.refuse_existing(out, overwrite)
    inputs = read_report_inputs([Path(path) for path in paths], arms, only)
    check_files_comparable(inputs.files)
    table = tabulate_runs(inputs.files, group_arms(inputs.files, inputs.arms))
    comparison = compare_arms(table, find_baseline_arm(table.arms.arms, baseline), resamples, seed)
    settings = {"baseline": baseline, "resamples": resamples, "seed": seed}
    record = _make_report_record(comparison, inputs, settings)
    if not dry_run:
        curves = trace_curves(comparison)
        plots, missing = make_report_plots(comparison, curves, inputs.diagnoses)
        blocks = make_report_contents(comparison, curves, plots, missing, inputs.diagnoses)
        with atomic.write_folder(out, overwrite) as stage:
            for plot in plots:
                (stage / f"{plot.name}.png").write_bytes(render_png(plot))
            (stage / "report.md").write_text(render_markdown(blocks), encoding="utf-8")
            (stage / "report.html").write_text(render_html(blocks), encoding="utf-8")
            (stage / "report.json").write_text(provenance.to_json(record), encoding="utf-8")
    return ReportResult(out, len(inputs.files), record, tuple(arm.label for arm in table.arms.arms))


def write_report_table(
    paths: Sequence[Path | str],
    out: Path | str,
    *,
    arms: Sequence[tuple[str, str]] = (),
    only: Sequence[str] = (),
    overwrite: bool = False,
    dry_run: bool = False,
) -> ReportResult:
    """Write the scores of many files as one compressed table, which ``write_report`` reads like the files themselves.

    Args:
        paths: Files of scores and diagnoses, folders that hold them, or tables of them.
        out: The Parquet file to write.
        arms: Pairs of an arm's name and the files that belong to it, as ``write_report`` takes them; the table keeps
            the names.
        only: Patterns of the names of files to use; of all if there are none.
        overwrite: Whether to replace it.
        dry_run: Whether to check alone.

    Raises:
        OsrmError: If a file is damaged.

    Example:
        >>> from osrm_cli import write_report_table
        >>> write_report_table(["sweep"], "scores.parquet").files
        1
    """
    from osrm_cli.reporting.results_table import write_results_table

    out = Path(out)
    atomic.refuse_existing(out, overwrite)
    inputs = read_report_inputs([Path(path) for path in paths], arms, only)
    if not dry_run:
        with atomic.write_file(out, overwrite) as stage:
            write_results_table(stage, inputs.files, inputs.diagnoses)
    return ReportResult(out, len(inputs.files), {}, ())


def _make_report_record(comparison: Comparison, inputs: ReportInputs, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the tables say, as JSON has it; files are named below the folder that they share."""
    arms = comparison.table.arms.arms
    files = [{"path": file.name, "sha256": file.sha256} for file in inputs.files]
    files += [{"path": name, "sha256": found["sha256"]} for name, found in inputs.diagnoses.items()]
    return {
        **provenance.make_artifact_record("report", settings),
        "inputs": files,
        "baseline": None if comparison.baseline is None else arms[comparison.baseline].label,
        "tasks": list(comparison.table.tasks),
        "arms": {arm.label: {task: dict(own) for task, own in arm.settings.items()} for arm in arms},
        "rows": [_comparison_row_dict(row, arms[row.arm].label) for row in comparison.rows],
        "summary": summarize_compared_methods(comparison),
        "notes": list_report_notes(comparison),
    }


def _comparison_row_dict(row: ComparisonRow, arm: str) -> dict[str, Any]:
    return {
        "row": row.kind.label,
        "method": row.kind.method or None,
        "calibrated": row.kind.calibrated,
        "arm": arm,
        "seeds": list(row.seeds),
        "tasks": {task: _mean_std_dict(value) for task, value in row.tasks.items()},
        "average": _mean_std_dict(row.average),
        "share_of_single": {
            "tasks": {task: _mean_std_dict(value) for task, value in row.shares.items()},
            "average": _mean_std_dict(row.share),
        },
        "difference": _baseline_difference_dict(row.difference),
        "chosen": dict(row.chosen) or None,
        "validation": _mean_std_dict(row.validation),
    }


def _mean_std_dict(value: MeanStd | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {"mean": round(value.mean, 4), "sd": None if value.sd is None else round(value.sd, 4), "n": value.n}


def _baseline_difference_dict(found: Difference | None) -> dict[str, Any] | None:
    if found is None:
        return None
    interval = None if found.low is None or found.high is None else [round(found.low, 4), round(found.high, 4)]
    return {
        "mean": round(found.mean, 4),
        "interval": interval,
        "excludes_zero": found.excludes_zero,
        "resampled": found.over,
        "seeds": found.seeds,
    }
