"""Write ``diagnosis/``: ``diagnosis.json`` and its heat maps."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from osrm_cli.diagnosis.adapter_origin import InitializationTrace
from osrm_cli.diagnosis.feature_overlap import LayerGroup, mean_overlap_shares, task_outlooks
from osrm_cli.diagnosis.interference import InterferenceMatrix, Matrix
from osrm_cli.diagnosis.score_drops import ScoreDrops, correlate_score_drops, predict_disturbance
from osrm_cli.features.feature_set import READINGS, FeatureSet
from osrm_cli.plotting.figure import Panel, Plot, render_png
from osrm_cli.plotting.heatmap import draw_heatmap
from osrm_cli.storage import provenance

DIAGNOSIS_NAME = "diagnosis.json"


@dataclass(frozen=True)
class AdapterDiagnosis:
    """Findings about adapters.

    Attributes:
        interference: Of every update on every task's inputs.
        origins: By task, the adapter's initialization.
        merges: Scores of merges of these adapters.
    """

    interference: InterferenceMatrix
    origins: Mapping[str, InitializationTrace]
    merges: Sequence[ScoreDrops] = ()


def diagnosis_dict(
    features: FeatureSet, groups: Sequence[LayerGroup], trained: AdapterDiagnosis | None
) -> dict[str, Any]:
    """All findings, as ``diagnosis.json`` has them."""
    outlooks = {
        task: {
            "tokens": features.files[task].tokens,
            "examples": features.files[task].examples,
            **asdict(outlook),
            "least": dict(zip(("layer", "free"), outlook.least, strict=True)),
            "most": dict(zip(("layer", "free"), outlook.most, strict=True)),
        }
        for task, outlook in task_outlooks(groups, spread=features.kind != "mean").items()
    }
    findings: dict[str, Any] = {
        "statistic": dict(features.statistics),
        "speaks_of": READINGS[features.kind],
        "tasks": outlooks,
        "shares": mean_overlap_shares(groups),
        "groups": [asdict(group) for group in groups],
        "warnings": features.warnings(),
    }
    return findings | (_adapter_findings(trained) if trained else {})


def _adapter_findings(trained: AdapterDiagnosis) -> dict[str, Any]:
    matrix, origins = trained.interference, trained.origins
    adapters = {
        task: {"norm": matrix.norms[task], "relative_norm": matrix.relative_norms[task], **asdict(origins[task])}
        for task in origins
    }
    return {
        "adapters": adapters,
        "interference": matrix.relative,
        "interference_by_layer": dict(matrix.layers),
        "prediction": predict_interference(matrix.relative),
        "measured": correlate_score_drops(matrix.relative, trained.merges) if trained.merges else None,
    }


def predict_interference(matrix: Matrix) -> dict[str, Any]:
    """Which tasks a merge will hurt, and which update hurts them most, the worst first.

    An update's energy on a task's inputs counts in units of the energy of the task's own update there.
    """
    pairs = [
        {"update": t, "inputs": u, "relative": matrix[t][u], "to_own": _energy_ratio(matrix[t][u], matrix[u][u])}
        for t in matrix
        for u in matrix
        if t != u
    ]
    tasks = []
    for task in matrix:
        total = predict_disturbance(matrix, list(matrix), task)
        worst = max((other for other in matrix if other != task), key=lambda other: matrix[other][task], default=None)
        tasks.append(
            {"task": task, "disturbance": total, "to_own": _energy_ratio(total, matrix[task][task]), "worst": worst}
        )
    return {"tasks": sorted(tasks, key=_diagnosis_severity), "pairs": sorted(pairs, key=_diagnosis_severity)}


def _energy_ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _diagnosis_severity(row: Mapping[str, Any]) -> tuple[bool, float]:
    """The worst first; a task whose own update is zero comes before all."""
    return row["to_own"] is not None, -(row["to_own"] or 0.0)


def diagnosis_plots(findings: Mapping[str, Any], energy: float) -> list[Plot]:
    """The heat maps of a diagnosis."""
    tasks = list(findings["shares"])
    outside = [[1 - findings["shares"][row][column] for column in tasks] for row in tasks]
    note = f"Share of the energy of the task on the left outside the {energy:.0%} subspace of the task below."
    plots = [
        Plot(
            "overlap",
            "Overlap",
            note,
            [Panel("Energy outside the other's principal subspace", draw_heatmap(tasks, outside), len(tasks))],
        )
    ]
    if "interference" in findings:
        names = list(findings["interference"])
        values = [[findings["interference"][row][column] for column in names] for row in names]
        title = "Energy of the update (left) on inputs (below) over the base model's"
        plots.append(
            Plot("interference", "Interference matrix", title, [Panel(title, draw_heatmap(names, values), len(names))])
        )
    return plots


def write_diagnosis(folder: Path, findings: Mapping[str, Any], record: Mapping[str, Any], energy: float) -> None:
    """Write everything into a folder that is being staged."""
    (folder / DIAGNOSIS_NAME).write_text(provenance.to_json({**record, **findings}), encoding="utf-8")
    for plot in diagnosis_plots(findings, energy):
        (folder / f"{plot.name}.png").write_bytes(render_png(plot))
