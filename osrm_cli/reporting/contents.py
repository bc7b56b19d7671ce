"""What a report says, in the order in which it says it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from osrm_cli.plotting.figure import Plot
from osrm_cli.reporting.bootstrap import PAIRS, Difference
from osrm_cli.reporting.comparison import Comparison, ComparisonRow, MeanStd
from osrm_cli.reporting.curves import Curves
from osrm_cli.reporting.inputs import Diagnosis
from osrm_cli.reporting.markdown import Block, Heading, Items, Paragraph, Strong, TableBlock
from osrm_cli.reporting.runs import ScoreKind


def make_report_contents(
    comparison: Comparison,
    curves: Sequence[Curves],
    plots: Sequence[Plot],
    missing: Sequence[str],
    diagnoses: Mapping[str, Diagnosis],
) -> list[Block]:
    """The whole report.

    Args:
        comparison: All numbers.
        curves: Averages against a number, over lambda first.
        plots: All plots.
        missing: What the plots need that cannot be drawn.
        diagnoses: By name of the file.
    """
    blocks: list[Block] = [
        Heading("Merged adapters: report", 1),
        Paragraph(_describe_report_scope(comparison)),
        *_summary_section(comparison),
    ]
    blocks += _averages_section(comparison)
    blocks += _differences_section(comparison)
    if plots:
        blocks += [Heading("Pictures"), *plots]
    blocks += [*_lambda_section(comparison, curves[0]), *_tasks_section(comparison), *_choices_section(comparison)]
    blocks += _arms_section(comparison, diagnoses)
    if missing:
        blocks += [Paragraph(f"Pictures left out, with what they need: {'; '.join(missing)}.")]
    return blocks


def list_report_notes(comparison: Comparison) -> list[str]:
    """What a reader should know before trusting the numbers."""
    table, notes = comparison.table, list[str]()
    if comparison.baseline is None:
        notes.append("No arm is the baseline, so nothing is compared; name one with --baseline.")
    notes += _list_mixed_settings(comparison)
    fewer = len(table.files) - len(table.main_files)
    if fewer:
        notes.append(
            f"{_format_count(fewer, 'file')} with other tasks than the tables': used for the number of tasks alone."
        )
    resampled = {row.difference.over for row in comparison.rows if row.difference}
    if PAIRS in resampled:
        notes.append(
            "Intervals marked * resample pairs of seed and task, not examples: their files hold no predictions; "
            "osrm eval and osrm sweep write them with --predictions."
        )
    if "examples" in resampled:
        notes.append("With a single seed in common, the interval covers the choice of examples, not training.")
    if any(kind.calibrated for kind in table.kinds):
        notes.append("Rows marked calibrated used unlabelled examples after merging; compare them with each other.")
    return notes


def _list_mixed_settings(comparison: Comparison) -> Iterator[str]:
    """Settings that differ between the tasks of an arm, arms with the same ones together."""
    arms, arms_with = comparison.table.arms.arms, dict[str, list[str]]()
    for arm, mixture in zip(arms, comparison.table.arms.mixtures, strict=True):
        if mixture:
            arms_with.setdefault(mixture, []).append(arm.label)
    for mixture, labels in arms_with.items():
        whose = "every arm" if 1 < len(labels) == len(arms) else "; ".join(labels)
        yield f"The adapters of {whose} are not all made alike: {mixture}."


def summarize_compared_methods(comparison: Comparison) -> list[str]:
    """In plain words, for each way of merging: the best arm and its gain."""
    lines = []
    for kind in _merged_score_kinds(comparison):
        rows = comparison.rows_of[kind]
        best = max(rows, key=lambda row: row.average.mean)
        lines.append(f"{kind.label}: {_compare_best_arm(comparison, rows, best)}")
    return lines


def _merged_score_kinds(comparison: Comparison) -> list[ScoreKind]:
    return [kind for kind in comparison.table.kinds if kind.method]


def _describe_report_scope(comparison: Comparison) -> str:
    table = comparison.table
    split = ", ".join(sorted({file.split for file in table.files}))
    seeds = sorted({run.seed for cell in table.cells.values() for run in cell.values()} - {""})
    arms, tasks = _format_count(len(table.arms.arms), "arm"), _format_count(len(table.tasks), "task")
    return (
        f"{arms} on {tasks} ({', '.join(table.tasks)}), "
        f"seeds {', '.join(seeds) or 'not told'}, split {split}. Scores in percent."
    )


def _summary_section(comparison: Comparison) -> Iterator[Block]:
    yield Heading("Summary")
    yield Items(summarize_compared_methods(comparison) or ["No merged model was scored."])
    notes = list_report_notes(comparison)
    if len(comparison.table.arms.arms) > 2 and comparison.baseline is not None:
        notes.append("The best arm is picked after the fact; its interval does not account for that.")
    if notes:
        yield Paragraph("To keep in mind:")
        yield Items(notes)


def _compare_best_arm(comparison: Comparison, rows: Sequence[ComparisonRow], best: ComparisonRow) -> str:
    label, average = comparison.table.arms.arms[best.arm].label, f"{best.average.mean:.1f}"
    if comparison.baseline is None:
        return f"the best arm is {label} with {average}."
    against = comparison.table.arms.arms[comparison.baseline].label
    if best.arm == comparison.baseline:
        return f"no arm is above {against} ({average})." if len(rows) > 1 else f"{against} has {average}."
    if best.difference is None:
        return f"the best arm is {label} with {average}; nothing in common with {against} to compare."
    gain = f"{abs(best.difference.mean):.1f} points {'above' if best.difference.mean >= 0 else 'below'} {against}"
    if best.difference.low is None:
        return f"the best arm is {label} with {average}, {gain}; too few results for an interval."
    verdict = "excludes zero" if best.difference.excludes_zero else "includes zero"
    return (
        f"the best arm is {label} with {average}, {gain} (95% interval {_format_interval(best.difference)}, {verdict})."
    )


def _averages_section(comparison: Comparison) -> Iterator[Block]:
    """Arms down, ways of merging across; merges with calibrated heads in tables of their own."""
    yield Heading("Averages over the tasks")
    yield Paragraph("Mean ± standard deviation over seeds (number of seeds); the best arm of a column is bold.")
    best = [max(comparison.rows_of[kind], key=lambda row: row.average.mean) for kind in comparison.table.kinds]

    def average(row: ComparisonRow) -> str:
        text = f"{row.average.text} ({row.average.n})"
        return Strong(text) if any(row is one for one in best) and len(comparison.rows_of[row.kind]) > 1 else text

    yield from _tables_by_arm(comparison, "Averages over the tasks", comparison.table.kinds, average)
    if any(row.share for row in comparison.rows):
        yield Paragraph("Normalised: the share of the single adapter's score in percent, averaged over the tasks.")
        yield from _tables_by_arm(
            comparison, "Normalised averages", _merged_score_kinds(comparison), lambda row: _format_mean_std(row.share)
        )


def _tables_by_arm(
    comparison: Comparison, title: str, kinds: Sequence[ScoreKind], cell: Callable[[ComparisonRow], str]
) -> Iterator[TableBlock]:
    """A row for each arm that has one, a column for each kind; two tables where some are calibrated."""
    for calibrated in (False, True):
        wanted = [kind for kind in kinds if kind.calibrated is calibrated]
        rows = {(row.arm, row.kind): cell(row) for row in comparison.rows if row.kind in wanted}
        lines = [
            [arm.label, *(rows.get((place, kind), "-") for kind in wanted)]
            for place, arm in enumerate(comparison.table.arms.arms)
            if any((place, kind) in rows for kind in wanted)
        ]
        if lines:
            yield TableBlock(
                f"{title}, calibrated" if calibrated else title, ["arm", *(kind.label for kind in wanted)], lines
            )


def _differences_section(comparison: Comparison) -> Iterator[Block]:
    if comparison.baseline is None or not any(row.difference for row in comparison.rows):
        return
    title = f"Difference from {comparison.table.arms.arms[comparison.baseline].label}"
    yield Heading(title)
    yield Paragraph(
        f"In points, averaged over the tasks, with paired bootstrap 95% intervals: {comparison.resamples:,} resamples, "
        "the same for both arms; bold where the interval excludes zero. With few seeds such intervals are rather too "
        "narrow."
    )

    def difference(row: ComparisonRow) -> str:
        if row.difference is None:
            return "-"
        mark = "*" if row.difference.over == PAIRS else ""
        text = f"{row.difference.mean:+.1f} ({_format_interval(row.difference)}){mark}"
        return Strong(text) if row.difference.excludes_zero else text

    others = replace(comparison, rows=tuple(row for row in comparison.rows if row.arm != comparison.baseline))
    yield from _tables_by_arm(others, title, comparison.table.kinds, difference)


def _lambda_section(comparison: Comparison, curves: Curves) -> Iterator[Block]:
    """Every way of merging at every lambda that was scored."""
    if not curves.panels:
        return
    yield Heading("Over lambda")
    for label, by_arm in curves.panels.items():
        scales = sorted({scale for line in by_arm.values() for scale in line})
        lines = [
            [comparison.table.arms.arms[arm].label, *(_format_mean_std(line.get(scale)) for scale in scales)]
            for arm, line in by_arm.items()
        ]
        yield Heading(label, 3)
        yield TableBlock(label, ["arm", *(f"{scale:g}" for scale in scales)], lines)


def _tasks_section(comparison: Comparison) -> Iterator[Block]:
    yield Heading("Every task")
    for kind in comparison.table.kinds:
        rows = [
            [
                comparison.table.arms.arms[row.arm].label,
                *(row.tasks[task].text for task in comparison.table.tasks),
                row.average.text,
                *([_format_mean_std(row.share)] if kind.method else []),
                str(row.average.n),
            ]
            for row in comparison.rows_of[kind]
        ]
        shares = ["of single, %"] if kind.method else []
        yield Heading(kind.label, 3)
        yield TableBlock(kind.label, ["arm", *comparison.table.tasks, "average", *shares, "n"], rows)


def _choices_section(comparison: Comparison) -> Iterator[Block]:
    """What a sweep chose on validation."""
    chosen = [kind for kind in comparison.table.kinds if kind.chosen]
    if chosen:
        yield Heading("Chosen on validation")
        yield Paragraph(
            "The options of the best average on validation (that average); one for each seed where they differ. "
            "All other tables are about test."
        )
        yield from _tables_by_arm(
            comparison,
            "Options chosen on validation",
            chosen,
            lambda row: f"{'; '.join(dict.fromkeys(row.chosen.values()))} ({_format_mean_std(row.validation)})",
        )


def _arms_section(comparison: Comparison, diagnoses: Mapping[str, Diagnosis]) -> Iterator[Block]:
    """How the arms were made, and from which files all this comes."""
    table, arms = comparison.table, comparison.table.arms
    yield Heading("What was compared")
    columns = ["arm", "objective", *(key.replace("_", " ") for key in arms.differing)]
    rows = [[arm.label, *texts] for arm, texts in zip(arms.arms, arms.descriptions, strict=True)]
    yield TableBlock("How the arms were made", columns, rows, len(columns))
    if arms.shared:
        shared = (f"{key.replace('_', ' ')} {text}" for key, text in arms.shared.items())
        yield Paragraph(f"In all arms: {', '.join(shared)}.")
    files = [
        [file.name, arms.arms[arms.arm_of[file.name]].label, arms.seed_of[file.name], file.sha256[:12]]
        for file in table.files
    ]
    files += [[name, "-", "-", found["sha256"][:12]] for name, found in diagnoses.items()]
    yield TableBlock("Files", ["file", "arm", "seed", "SHA-256"], files, 4)


def _format_mean_std(value: MeanStd | None) -> str:
    return "-" if value is None else value.text


def _format_interval(found: Difference) -> str:
    return "-" if found.low is None or found.high is None else f"{found.low:+.1f} to {found.high:+.1f}"


def _format_count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
