"""What a report says, in the order in which it says it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from osrm_cli.reporting import arms as arms_of
from osrm_cli.reporting import curves
from osrm_cli.reporting.bootstrap import PAIRS, Difference
from osrm_cli.reporting.comparison import Comparison, Row, Spread
from osrm_cli.reporting.markdown import Block, Heading, Items, Paragraph, Strong, Table
from osrm_cli.reporting.plots import pictures
from osrm_cli.reporting.runs import Kind


def contents(comparison: Comparison, resamples: int) -> list[Block]:
    """The whole report."""
    drawn, missing = pictures(comparison)
    blocks: list[Block] = [Heading("Merged adapters: report", 1), Paragraph(_scope(comparison)), *_summary(comparison)]
    blocks += _averages(comparison)
    blocks += _differences(comparison, resamples)
    if drawn:
        blocks += [Heading("Pictures"), *drawn]
    blocks += [*_over_lambda(comparison), *_every_task(comparison), *_choices(comparison), *_compared(comparison)]
    if missing:
        blocks += [Paragraph(f"Pictures left out, with what they need: {'; '.join(missing)}.")]
    return blocks


def notes(comparison: Comparison) -> list[str]:
    """What a reader should know before trusting the numbers."""
    study, found = comparison.study, []
    if comparison.baseline is None:
        found.append("No arm is the baseline, so nothing is compared; name one with --baseline.")
    found += _mixtures(comparison)
    fewer = sum(not study.all_tasks(file) for file in study.files)
    if fewer:
        found.append(f"{_count(fewer, 'file')} with other tasks than the tables': used for the number of tasks alone.")
    resampled = {row.difference.over for row in comparison.rows if row.difference}
    if PAIRS in resampled:
        found.append(
            "Intervals marked * resample pairs of seed and task, not examples: their files hold no predictions; "
            "osrm eval and osrm sweep write them with --predictions."
        )
    if "examples" in resampled:
        found.append("With a single seed in common, the interval covers the choice of examples, not training.")
    if any(kind.calibrated for kind in study.kinds):
        found.append("Rows marked calibrated used unlabelled examples after merging; compare them with each other.")
    return found


def _mixtures(comparison: Comparison) -> Iterator[str]:
    """Settings that differ between the tasks of an arm, arms with the same ones together."""
    arms_with: dict[str, list[str]] = {}
    for arm in comparison.arms:
        mixed = [key for key in ["objective", *arms_of.keys([arm])] if isinstance(arm.value(key), arms_of.Mixed)]
        if mixed:
            told = "; ".join(f"{key.replace('_', ' ')} {arm.value(key)}" for key in mixed)
            arms_with.setdefault(told, []).append(arm.label)
    for told, labels in arms_with.items():
        whose = "every arm" if 1 < len(labels) == len(comparison.arms) else "; ".join(labels)
        yield f"The adapters of {whose} are not all made alike: {told}."


def summary(comparison: Comparison) -> list[str]:
    """In plain words, for each way of merging: the best arm and its gain."""
    found = []
    for kind in comparison.study.merging:
        rows = comparison.of(kind)
        best = max(rows, key=lambda row: row.average.mean)
        found.append(f"{kind.label}: {_sentence(comparison, rows, best)}")
    return found


def _scope(comparison: Comparison) -> str:
    study = comparison.study
    split = ", ".join(sorted({file.split for file in study.files}))
    seeds = sorted({run.seed for cell in study.cells.values() for run in cell.values()} - {""})
    return (
        f"{_count(len(study.arms), 'arm')} on {_count(len(study.tasks), 'task')} ({', '.join(study.tasks)}), "
        f"seeds {', '.join(seeds) or 'not told'}, split {split}. Scores in percent."
    )


def _summary(comparison: Comparison) -> Iterator[Block]:
    yield Heading("Summary")
    yield Items(summary(comparison) or ["No merged model was scored."])
    told = notes(comparison)
    if len(comparison.arms) > 2 and comparison.baseline is not None:
        told.append("The best arm is picked after the fact; its interval does not account for that.")
    if told:
        yield Paragraph("To keep in mind:")
        yield Items(told)


def _sentence(comparison: Comparison, rows: Sequence[Row], best: Row) -> str:
    label, average = comparison.arms[best.arm].label, f"{best.average.mean:.1f}"
    if comparison.baseline is None:
        return f"the best arm is {label} with {average}."
    against = comparison.arms[comparison.baseline].label
    if best.arm == comparison.baseline:
        return f"no arm is above {against} ({average})." if len(rows) > 1 else f"{against} has {average}."
    if best.difference is None:
        return f"the best arm is {label} with {average}; nothing in common with {against} to compare."
    gain = f"{abs(best.difference.mean):.1f} points {'above' if best.difference.mean >= 0 else 'below'} {against}"
    if best.difference.low is None:
        return f"the best arm is {label} with {average}, {gain}; too few results for an interval."
    verdict = "excludes zero" if best.difference.excludes_zero else "includes zero"
    return f"the best arm is {label} with {average}, {gain} (95% interval {_interval(best.difference)}, {verdict})."


def _averages(comparison: Comparison) -> Iterator[Block]:
    """Arms down, ways of merging across; merges with calibrated heads in tables of their own."""
    yield Heading("Averages over the tasks")
    yield Paragraph("Mean ± standard deviation over seeds (number of seeds); the best arm of a column is bold.")
    best = [max(comparison.of(kind), key=lambda row: row.average.mean) for kind in comparison.study.kinds]

    def average(row: Row) -> str:
        text = f"{row.average} ({row.average.n})"
        return Strong(text) if any(row is one for one in best) and len(comparison.of(row.kind)) > 1 else text

    yield from _by_arm(comparison, "Averages over the tasks", comparison.study.kinds, average)
    if any(row.share for row in comparison.rows):
        yield Paragraph("Normalised: the share of the single adapter's score in percent, averaged over the tasks.")
        yield from _by_arm(comparison, "Normalised averages", comparison.study.merging, lambda row: _spread(row.share))


def _by_arm(comparison: Comparison, title: str, kinds: Sequence[Kind], cell: Callable[[Row], str]) -> Iterator[Table]:
    """A row for each arm that has one, a column for each kind; two tables where some are calibrated."""
    for calibrated in (False, True):
        wanted = [kind for kind in kinds if kind.calibrated is calibrated]
        rows = {(row.arm, row.kind): cell(row) for row in comparison.rows if row.kind in wanted}
        lines = [
            [arm.label, *(rows.get((place, kind), "-") for kind in wanted)]
            for place, arm in enumerate(comparison.arms)
            if any((place, kind) in rows for kind in wanted)
        ]
        if lines:
            yield Table(
                f"{title}, calibrated" if calibrated else title, ["arm", *(kind.label for kind in wanted)], lines
            )


def _differences(comparison: Comparison, resamples: int) -> Iterator[Block]:
    if comparison.baseline is None or not any(row.difference for row in comparison.rows):
        return
    title = f"Difference from {comparison.arms[comparison.baseline].label}"
    yield Heading(title)
    yield Paragraph(
        f"In points, averaged over the tasks, with paired bootstrap 95% intervals: {resamples:,} resamples, the same "
        "for both arms; bold where the interval excludes zero. With few seeds such intervals are rather too narrow."
    )

    def difference(row: Row) -> str:
        if row.difference is None:
            return "-"
        mark = "*" if row.difference.over == PAIRS else ""
        text = f"{row.difference.mean:+.1f} ({_interval(row.difference)}){mark}"
        return Strong(text) if row.difference.excludes_zero else text

    others = replace(comparison, rows=[row for row in comparison.rows if row.arm != comparison.baseline])
    yield from _by_arm(others, title, comparison.study.kinds, difference)


def _over_lambda(comparison: Comparison) -> Iterator[Block]:
    """Every way of merging at every lambda that was scored."""
    known = curves.over_lambda(comparison)
    if not known:
        return
    yield Heading("Over lambda")
    for label, by_arm in known.items():
        scales = sorted({scale for curve in by_arm.values() for scale in curve})
        lines = [
            [comparison.arms[arm].label, *(_spread(Spread.of(curve.get(scale, []))) for scale in scales)]
            for arm, curve in sorted(by_arm.items())
        ]
        yield Heading(label, 3)
        yield Table(label, ["arm", *(f"{scale:g}" for scale in scales)], lines)


def _every_task(comparison: Comparison) -> Iterator[Block]:
    yield Heading("Every task")
    for kind in comparison.study.kinds:
        rows = [
            [
                comparison.arms[row.arm].label,
                *(str(row.tasks[task]) for task in comparison.study.tasks),
                str(row.average),
                *([_spread(row.share)] if kind.method else []),
                str(row.average.n),
            ]
            for row in comparison.of(kind)
        ]
        shares = ["of single, %"] if kind.method else []
        yield Heading(kind.label, 3)
        yield Table(kind.label, ["arm", *comparison.study.tasks, "average", *shares, "n"], rows)


def _choices(comparison: Comparison) -> Iterator[Block]:
    """What a sweep chose on validation."""
    chosen = [kind for kind in comparison.study.kinds if kind.chosen]
    if chosen:
        yield Heading("Chosen on validation")
        yield Paragraph(
            "The options of the best average on validation (that average); one for each seed where they differ. "
            "All other tables are about test."
        )
        yield from _by_arm(
            comparison,
            "Options chosen on validation",
            chosen,
            lambda row: f"{'; '.join(dict.fromkeys(row.chosen.values()))} ({_spread(row.validation)})",
        )


def _compared(comparison: Comparison) -> Iterator[Block]:
    """How the arms were made, and from which files all this comes."""
    arms = comparison.arms
    differing = arms_of.differing(arms)
    same = {key: arms[0].value(key) for key in arms_of.keys(arms) if key not in differing}
    yield Heading("What was compared")
    columns = ["arm", "objective", *(key.replace("_", " ") for key in differing)]
    rows = [[arm.label, *(arms_of.text(arm.value(key)) for key in ["objective", *differing])] for arm in arms]
    yield Table("How the arms were made", columns, rows, len(columns))
    if same:
        told = (f"{key.replace('_', ' ')} {arms_of.text(value)}" for key, value in same.items())
        yield Paragraph(f"In all arms: {', '.join(told)}.")
    files = [
        [file.name, arms[comparison.study.arm_of[file.name]].label, arms_of.seeds(file), file.sha256[:12]]
        for file in comparison.study.files
    ]
    files += [[name, "-", "-", facts["sha256"][:12]] for name, facts in comparison.diagnoses.items()]
    yield Table("Files", ["file", "arm", "seed", "SHA-256"], files, 4)


def _spread(value: Spread | None) -> str:
    return "-" if value is None else str(value)


def _interval(found: Difference) -> str:
    return "-" if found.low is None or found.high is None else f"{found.low:+.1f} to {found.high:+.1f}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
