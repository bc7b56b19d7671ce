"""All that a report tells, computed: results, their sums, and the baseline that they are compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from osrm_cli.plotting.figure import style
from osrm_cli.reporting import arms as arms_of
from osrm_cli.reporting import consistency as agreement
from osrm_cli.reporting.arms import Arm
from osrm_cli.reporting.intervals import Bootstrap
from osrm_cli.reporting.rows import Row, rows
from osrm_cli.reporting.runs import Kind, Study, study
from osrm_cli.reporting.score_files import Given


@dataclass(frozen=True)
class Comparison:
    """What tables and pictures are made from.

    Attributes:
        study: All results.
        rows: Their sums.
        baseline: Index of the baseline's arm; ``None`` without one.
        diagnoses: By name of the file.
    """

    study: Study
    rows: Sequence[Row]
    baseline: int | None
    diagnoses: Mapping[str, Mapping[str, Any]]

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms, in the report's order."""
        return self.study.arms

    def of(self, kind: Kind) -> list[Row]:
        """The rows of one kind."""
        return [row for row in self.rows if row.kind == kind]

    def look(self, arm: int) -> dict[str, Any]:
        """The style of an arm's lines."""
        return style(arm, arm == self.baseline)


def compare(given: Given, baseline: str | None = None, resamples: int = 2000, seed: int = 0) -> Comparison:
    """Sort, sum up and compare.

    Raises:
        OsrmError: If files were scored on different examples, contradict each other, or lack the baseline.
    """
    agreement.same_examples(given.files)
    for file in given.files:
        agreement.predictions_fit(file)
    found = study(given.files)
    against = arms_of.find(found.arms, baseline)
    return Comparison(found, rows(found, against, Bootstrap(found.labels, resamples, seed)), against, given.diagnoses)
