"""Compute the merges of a grid, each family once; models and examples for data statistics are loaded once."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from osrm_cli.linalg.row_stream import RowStream
from osrm_cli.merging.from_data import samples
from osrm_cli.merging.from_data.gather import gather_layer_data, load_task_models
from osrm_cli.merging.layer_data import LayerData
from osrm_cli.merging.merged_layer import merge_layers
from osrm_cli.merging.plan import MergedModules, MergePlan
from osrm_cli.progress import Progress
from osrm_cli.sweep.grid import MergeFamily, SweptDelta

if TYPE_CHECKING:
    from osrm_cli.adapters.task_data import AdapterTaskSample
    from osrm_cli.merging.from_data.task_models import TaskModel


class SweepMerges:
    """The merges of a grid.

    Args:
        families: The families to merge.
        base_dir: Folder of the base model.
        device: Device of the computation.

    Raises:
        OsrmError: If a method needs data, labels or a head that are missing.
    """

    def __init__(self, families: Sequence[MergeFamily], base_dir: Path, device: torch.device) -> None:
        self._base_dir, self._device = base_dir, device
        self._samples: dict[tuple[Any, ...], list[AdapterTaskSample]] = {}
        reads_data = any(family.plan.method.data_statistic for family in families)
        self._saved = families[0].plan.read_saved_modules() if reads_data else MergedModules({})
        for family in families:
            if family.plan.method.data_statistic and _grid_sample_key(family.plan) not in self._samples:
                self._samples[_grid_sample_key(family.plan)] = samples.draw_merge_samples(
                    family.plan, self._saved.heads
                )
        self._models: dict[tuple[Any, ...], list[TaskModel]] = {}

    def merge(self, family: MergeFamily, scratch: Path, progress: Progress) -> list[tuple[dict[str, Any], SweptDelta]]:
        """Merge once; return every point's options and update.

        Args:
            family: One of the families.
            scratch: A folder for data too large for memory.
            progress: Shows a progress bar of the data statistics.
        """
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            plan, layer_data = self._gather_layer_data(family, Path(folder), progress)
            layers = merge_layers(plan, layer_data, plan.layers, device=self._device)
            # Held: every point and every task forms the rows again.
            results = {
                layer.name: RowStream.of(layer.result.dense()) if isinstance(layer.result, RowStream) else layer.result
                for layer in layers
            }
        return [(options, SweptDelta(results, factor, plan.dtype)) for options, factor in family.points()]

    def _gather_layer_data(self, family: MergeFamily, folder: Path, progress: Progress) -> tuple[MergePlan, LayerData]:
        plan = family.plan
        if not plan.method.data_statistic:
            return plan, family.layer_data
        key = _grid_sample_key(plan)
        if key not in self._models:
            self._models[key] = load_task_models(
                plan, self._samples[key], self._saved, self._base_dir, self._device, progress
            )
        return gather_layer_data(plan, self._models[key], folder, progress)


def _grid_sample_key(plan: MergePlan) -> tuple[Any, ...]:
    """The settings that determine a plan's examples and how they are checked."""
    options = plan.recipe.options
    return plan.method.name, options["samples"], options["seed"], options.get("completions")
