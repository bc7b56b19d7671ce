"""Second moments of the features that ``osrm collect`` wrote, for the methods that need them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.features import shards
from osrm_cli.features.adapter_match import check_second_moments
from osrm_cli.features.features_file import FeaturesFile, check_features_compatible
from osrm_cli.features.statistics.table import SECOND_MOMENT
from osrm_cli.merging.layer_data import Fields, LayerData
from osrm_cli.merging.methods.layer_updates import LayerResult
from osrm_cli.merging.plan import MergePlan


class FeatureMoments(LayerData):
    """Second moments of the base model's features, as ``osrm collect`` wrote them.

    Args:
        features: One file per adapter, in the order of the adapters' names.
    """

    def __init__(self, features: Sequence[FeaturesFile]) -> None:
        self.features = features
        self._readers = [each.reader() for each in features]

    def for_layer(self, layer: str, merged: Mapping[str, LayerResult]) -> Fields:
        """``C_t`` of the base model's inputs, ``(d_in, d_in)``."""
        return {"second_moments": tuple(reader.read(layer, SECOND_MOMENT) for reader in self._readers)}

    def record(self) -> Mapping[str, Any]:
        """The files with their digests."""
        return {"features": [row for features in self.features for row in features.input_records()]}


def open_layer_data(plan: MergePlan) -> LayerData:
    """Open and check the features files that a plan's method reads, one per adapter; nothing where it reads none.

    Raises:
        OsrmError: If one is missing, has no second moments, or does not fit the adapters.
    """
    if "features" not in plan.method.needs:
        return LayerData()
    opened: list[FeaturesFile] = []
    widths = {name: (layer.d_in, layer.d_out) for adapter in plan.adapters for name, layer in adapter.layers.items()}
    for adapter in plan.adapters:
        path = Path(plan.recipe.features or "features") / f"{adapter.name}.safetensors"
        if not path.is_file() and not shards.find_shards(path):
            raise OsrmError(
                f"method {plan.method.name} needs second moments of every task's features, {path} is missing",
                f"osrm collect --task {adapter.name} --statistic {SECOND_MOMENT}",
            )
        opened.append(FeaturesFile.open(path))
        check_second_moments(opened[-1], widths)
    check_features_compatible(opened, plan.bases)
    return FeatureMoments(opened)
