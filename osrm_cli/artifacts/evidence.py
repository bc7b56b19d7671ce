"""What a merging rule is told of a layer beyond the updates: from features files, or from passes over the model."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import torch

from osrm_cli.artifacts import provenance
from osrm_cli.artifacts.features import Features, Reader

if TYPE_CHECKING:
    from osrm_cli.artifacts.plan import MergedLayer

SECOND_MOMENT = "second-moment"
Fields = Mapping[str, tuple[torch.Tensor, ...]]


class Evidence:
    """Nothing: enough for the rules that need the updates alone.

    Used as a context manager while a merge runs.

    Attributes:
        sequence: Layers in the order in which they have to be merged, each after those that it depends on; empty where
            any order will do.
    """

    sequence: tuple[str, ...] = ()

    def of(self, layer: str) -> Fields:
        """Fields of ``LayerUpdates``, in each of them one tensor per adapter, in the order of the adapters' names."""
        return {}

    def merged(self, layer: "MergedLayer") -> None:
        """Take note of a layer's result; called after each layer of ``sequence``."""

    def facts(self) -> Mapping[str, Any]:
        """What ``osrm.json`` says of it."""
        return {"features": []}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close what was opened."""


class Moments(Evidence):
    """Second moments of the base model's features, as ``osrm collect`` wrote them.

    Args:
        features: One file per adapter, in the order of the adapters' names.
    """

    def __init__(self, features: list[Features]) -> None:
        self.features = features
        self._stack = ExitStack()
        self._readers: list[Reader] = []

    def of(self, layer: str) -> Fields:
        """``C_t`` of the base model's inputs, ``(d_in, d_in)``."""
        return {"second_moments": tuple(reader.read(layer, SECOND_MOMENT) for reader in self._readers)}

    def facts(self) -> Mapping[str, Any]:
        """The files with their digests."""
        paths = [path for features in self.features for path in features.files]
        return {"features": [{"path": path.as_posix(), "sha256": provenance.sha256(path)} for path in paths]}

    def __enter__(self) -> Self:
        self._readers = [self._stack.enter_context(features.reader()) for features in self.features]
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self._stack.close()
