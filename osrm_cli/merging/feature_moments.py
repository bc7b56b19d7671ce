"""Second moments of the features that ``osrm collect`` wrote, for methods that need them and for cuts to a rank."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.features import shards
from osrm_cli.features.adapter_match import check_feature_layers
from osrm_cli.features.feature_set import FeatureSet
from osrm_cli.features.features_file import FeaturesFile
from osrm_cli.features.statistics.table import SECOND_MOMENT
from osrm_cli.merging.layer_data import Fields, LayerData, NoLayerData
from osrm_cli.merging.methods.layer_updates import LayerResult
from osrm_cli.merging.plan import MergePlan
from osrm_cli.storage.provenance import check_base_provenance


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

    @cached_property
    def record(self) -> Mapping[str, Any]:  # type: ignore[override]  # hashing takes long: not before it is read
        """The files with their digests."""
        return {"features": [row for features in self.features for row in features.input_records()]}


def open_layer_data(plan: MergePlan) -> LayerData:
    """Open and check the features files that a merge reads, one per adapter; nothing where it reads none.

    Raises:
        OsrmError: If one is missing, has no second moments, or does not fit the adapters.
    """
    if not plan.reads_features:
        return NoLayerData()
    files: dict[str, FeaturesFile] = {}
    for adapter in plan.adapters:
        path = Path(plan.recipe.features or "features") / f"{adapter.name}.safetensors"
        if not path.is_file() and not shards.find_feature_shards(path):
            raise OsrmError(
                f"method {plan.method.name} needs second moments of every task's features, {path} is missing",
                f"osrm collect --task {adapter.name} --statistic {SECOND_MOMENT}",
            )
        files[adapter.name] = FeaturesFile.open(path)
        check_feature_layers(adapter, files[adapter.name], [each.name for each in plan.adapters])
    FeatureSet(files).select((SECOND_MOMENT,), f"method {plan.method.name}")
    check_base_provenance({**{file.path: file.base for file in files.values()}, **plan.bases})
    return FeatureMoments(list(files.values()))
