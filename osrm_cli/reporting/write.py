"""The folder ``report/``: Markdown, HTML, pictures, and the numbers as JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from osrm_cli.plotting.figure import Picture, png
from osrm_cli.reporting import contents
from osrm_cli.reporting.comparison import Comparison
from osrm_cli.reporting.html import html
from osrm_cli.reporting.markdown import Block, markdown
from osrm_cli.storage import provenance


def facts(comparison: Comparison, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the tables say, as JSON has it; files are named below the folder that they share."""
    labels = [arm.label for arm in comparison.arms]
    told = {
        "baseline": None if comparison.baseline is None else labels[comparison.baseline],
        "tasks": list(comparison.study.tasks),
        "arms": {arm.label: {task: dict(own) for task, own in arm.settings.items()} for arm in comparison.arms},
        "rows": [row.facts(labels[row.arm]) for row in comparison.rows],
        "summary": contents.summary(comparison),
        "notes": contents.notes(comparison),
    }
    inputs = [{"path": file.name, "sha256": file.sha256} for file in comparison.study.files]
    inputs += [{"path": name, "sha256": about["sha256"]} for name, about in comparison.diagnoses.items()]
    return {**provenance.make_record("report", settings), "inputs": inputs, **told}


def write(folder: Path, blocks: Sequence[Block], told: Mapping[str, Any]) -> None:
    """Write ``report.md`` with its pictures, ``report.html`` and ``report.json``."""
    for block in blocks:
        if isinstance(block, Picture):
            (folder / f"{block.name}.png").write_bytes(png(block))
    (folder / "report.md").write_text(markdown(blocks), encoding="utf-8")
    (folder / "report.html").write_text(html(blocks), encoding="utf-8")
    (folder / "report.json").write_text(provenance.to_json(told), encoding="utf-8")
