"""Per-layer inputs of a merging rule beside the updates."""

from collections.abc import Mapping
from typing import Any

import torch

from osrm_cli.merging.methods.layer_updates import LayerResult

Fields = Mapping[str, tuple[torch.Tensor, ...]]


class LayerData:
    """Extra inputs of a merging method, layer by layer.

    Attributes:
        sequence: Layers in the order in which they have to be merged, each after those that it depends on; empty where
            any order will do.
        record: Keys of ``osrm.json`` that say what was read.
    """

    sequence: tuple[str, ...] = ()
    record: Mapping[str, Any]

    def for_layer(self, layer: str, merged: Mapping[str, LayerResult]) -> Fields:
        """Fields of ``LayerUpdates``: but for ``factors`` one tensor per adapter, in the order of the adapters' names.

        Args:
            layer: Full name.
            merged: Results of the layers that stand before this one in ``sequence``.
        """
        return {}


class NoLayerData(LayerData):
    """For the methods that need the updates alone."""

    record: Mapping[str, Any] = {"features": []}
