"""``<out>.unfinished/``: the finished files of a model that is being merged, so that an interrupted merge can go on."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from osrm_cli.errors import OsrmError
from osrm_cli.merging.plan import MergePlan
from osrm_cli.storage import atomic
from osrm_cli.storage.records import BaseModelId
from osrm_cli.version import __version__

_ABOUT = "merge.json"
_KEPT = "kept.jsonl"


@dataclass(frozen=True)
class UnfinishedMerge:
    """Files of a model that are whole.

    Attributes:
        folder: Where they are.
    """

    folder: Path

    @classmethod
    def open(cls, out: Path, plan: MergePlan, base: BaseModelId | None) -> "UnfinishedMerge":
        """The finished files of an earlier run of the same merge, if there was one.

        Args:
            out: The merged folder.
            plan: What is merged.
            base: The base model.

        Raises:
            OsrmError: If they are of another merge.
        """
        folder = unfinished_merge_folder(out)
        about = json.dumps(_describe_unfinished_merge(plan, base), sort_keys=True, indent=2, default=str) + "\n"
        if not folder.exists():
            with atomic.write_folder(folder) as stage:
                (stage / _ABOUT).write_text(about, encoding="utf-8")
        place = folder / _ABOUT
        if not place.is_file() or place.read_text(encoding="utf-8") != about:
            raise OsrmError(
                f"{folder} holds the files of another merge, or its inputs have changed", f"remove it: rm -r {folder}"
            )
        return cls(folder)

    def read_kept_energy(self) -> dict[str, float]:
        """Share of the energy that is left, by layer of the files."""
        place = self.folder / _KEPT
        lines = place.read_text(encoding="utf-8").splitlines() if place.is_file() else []
        return {name: kept for line in lines for name, kept in json.loads(line).items()}

    def add_kept_energy(self, kept: Mapping[str, float]) -> None:
        """Note the shares of a file's layers, before the file counts as finished."""
        with (self.folder / _KEPT).open("a", encoding="utf-8") as file:
            file.write(json.dumps(kept) + "\n")

    def remove(self) -> None:
        """Remove the folder: the model is whole, and lies elsewhere."""
        shutil.rmtree(self.folder)


def unfinished_merge_folder(out: Path) -> Path:
    """Where the finished files of a merged folder wait for the others."""
    return out.with_name(f"{out.name}.unfinished")


def _describe_unfinished_merge(plan: MergePlan, base: BaseModelId | None) -> dict[str, object]:
    """All that the files depend on; of the inputs, sizes and times instead of digests, which take minutes."""
    inputs = {}
    for adapter in plan.adapters:
        paths = sorted(adapter.folder.iterdir()) if adapter.folder.is_dir() else [adapter.folder]
        stats = {path.name: path.stat() for path in paths}
        inputs[str(adapter.folder)] = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    return {"version": __version__, "recipe": repr(plan.recipe), "base": base and base.sha256, "inputs": inputs}
