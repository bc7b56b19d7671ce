"""The single adapters that a merged folder was made from: found by what the folder recorded of them."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.config import CONFIG_NAME
from osrm_cli.errors import OsrmError
from osrm_cli.evaluation.classifiers import TaskClassifier

_HINT = "say where they are now: --adapters FOLDER"


def find_single_adapters(tasks: Iterable[TaskClassifier], folder: Path | None = None) -> list[Adapter]:
    """The adapter of each task, with the weights that were merged, named after the task.

    Args:
        tasks: Of a merged folder.
        folder: Holds the adapters now, in folders of any name; by default they lie where they were merged from.

    Raises:
        OsrmError: If one is gone or has changed.
    """
    if folder is None:
        return [replace(_recorded(held), name=held.task) for held in tasks]
    there = [Adapter.open(path.parent) for path in sorted(folder.glob(f"*/{CONFIG_NAME}"))]
    by_digest = {adapter.sha256(): adapter for adapter in there}
    found = []
    for held in tasks:
        if held.single_adapter["sha256"] not in by_digest:
            raise OsrmError(
                f"none of the {len(there)} adapters in {folder} is the one that '{held.task}' was merged from",
                f"it was {held.single_adapter['path']}; merge again if it has changed",
            )
        found.append(replace(by_digest[held.single_adapter["sha256"]], name=held.task))
    return found


def _recorded(held: TaskClassifier) -> Adapter:
    source = held.single_adapter
    try:
        adapter = Adapter.open(source["path"])
    except OsrmError as error:
        raise OsrmError(f"the adapter that '{held.task}' was merged from is not at hand: {error}", _HINT) from None
    if adapter.sha256() != source["sha256"]:
        raise OsrmError(f"{adapter.source} has changed since '{held.task}' was merged from it", _HINT)
    return adapter
