"""What a merging rule is told of a layer beyond the updates: from features files, or from passes over the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from osrm_cli.features.features_file import FeaturesFile
from osrm_cli.features.statistics.table import SECOND_MOMENT
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.merging.methods.layer_updates import MaskedDelta
from osrm_cli.storage import provenance

Fields = Mapping[str, tuple[torch.Tensor, ...]]


class LayerData:
    """Nothing: enough for the rules that need the updates alone.

    Attributes:
        sequence: Layers in the order in which they have to be merged, each after those that it depends on; empty where
            any order will do.
    """

    sequence: tuple[str, ...] = ()

    def for_layer(self, layer: str) -> Fields:
        """Fields of ``LayerUpdates``, in each of them one tensor per adapter, in the order of the adapters' names."""
        return {}

    def on_layer_merged(self, layer: "MergedLayer") -> None:
        """Take note of a layer's result; called after each layer of ``sequence``."""

    def record(self) -> Mapping[str, Any]:
        """What ``osrm.json`` says of it."""
        return {"features": []}


class FeatureMoments(LayerData):
    """Second moments of the base model's features, as ``osrm collect`` wrote them.

    Args:
        features: One file per adapter, in the order of the adapters' names.
    """

    def __init__(self, features: list[FeaturesFile]) -> None:
        self.features = features
        self._readers = [each.reader() for each in features]

    def for_layer(self, layer: str) -> Fields:
        """``C_t`` of the base model's inputs, ``(d_in, d_in)``."""
        return {"second_moments": tuple(reader.read(layer, SECOND_MOMENT) for reader in self._readers)}

    def record(self) -> Mapping[str, Any]:
        """The files with their digests."""
        paths = [path for features in self.features for path in features.files]
        return {"features": [{"path": path.as_posix(), "sha256": provenance.sha256(path)} for path in paths]}


LayerResult = LowRank | torch.Tensor | MaskedDelta


@dataclass(frozen=True)
class MergedLayer:
    """One layer's result.

    Attributes:
        name: Full name of the layer.
        result: Factors, a dense ``(d_out, d_in)``, or a unified update with masks.
        kept: Share of the energy that is left after recompression; 1 if there was none.
    """

    name: str
    result: LayerResult
    kept: float = 1.0
