"""Match features to adapters by task, base model and layers."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from osrm_cli.adapters.adapter import Adapter, check_adapter_names, check_adapters_share_base
from osrm_cli.errors import OsrmError
from osrm_cli.features.feature_set import FeatureSet
from osrm_cli.features.features_file import FeaturesFile
from osrm_cli.models.full.sources import open_adapter_or_full_model
from osrm_cli.storage.provenance import check_base_provenance, short_model_name
from osrm_cli.storage.records import BaseModelId


def open_adapters_for_features(
    sources: Sequence[str], named: Sequence[str] = (), base: BaseModelId | None = None
) -> list[Adapter]:
    """Open adapters in the order of their tasks' names.

    Args:
        sources: Folders or hub ids. The task is the one in ``osrm.json``, else the folder is named after it.
        named: ``TASK=SOURCE`` for adapters of another task than these say.
        base: The base model of full models, where these may stand among them.

    Raises:
        OsrmError: If one cannot be read, two are of one task, or ``named`` names another source.
    """
    tasks = dict(_match_features_task(text, sources) for text in named)
    opened = [open_adapter_or_full_model(source, base) for source in sources]
    adapters = [replace(adapter, name=tasks.get(adapter.source, adapter.name)) for adapter in opened]
    check_adapter_names(adapters)
    check_adapters_share_base(adapters)
    return sorted(adapters, key=lambda adapter: adapter.name)


def _match_features_task(text: str, sources: Sequence[str]) -> tuple[str, str]:
    """Source and task of a ``TASK=SOURCE``."""
    task, _, name = text.partition("=")
    for source in sources:
        if task and name and (source == name or Path(source) == Path(name)):
            return source, task
    raise OsrmError(
        f"--task {text}: expected TASK=ADAPTER with one of the adapters", f"the adapters are: {', '.join(sources)}"
    )


def check_features_match(adapters: Sequence[Adapter], features: FeatureSet) -> None:
    """Check that there are features of every adapter's task, of its base model and of its layers.

    Raises:
        OsrmError: Naming the adapter, and what is missing.
    """
    for adapter in adapters:
        file = features.files.get(adapter.name)
        if file is None:
            raise OsrmError(
                f"{adapter.source} is of task '{adapter.name}', the features are of: {', '.join(features.tasks)}",
                f"osrm collect --task {adapter.name}, or name its task: --task TASK={adapter.source}",
            )
        _check_features_base(adapter, file)
        check_feature_layers(adapter, file, features.tasks)


def _check_features_base(adapter: Adapter, file: FeaturesFile) -> None:
    if adapter.base:
        check_base_provenance({adapter.folder: adapter.base, file.path: file.base})
    elif adapter.config.base_model and short_model_name(adapter.config.base_model) != short_model_name(file.base.name):
        raise OsrmError(
            f"{adapter.source} belongs to base model {adapter.config.base_model}, but {file.path} to {file.base.name}",
            "if they are the same, correct base_model_name_or_path in adapter_config.json",
        )


def _collect_features_options(adapter: Adapter) -> str:
    """The options of ``osrm collect`` for an adapter's layers."""
    if adapter.is_dense:
        return "--target-modules all-linear"
    return " ".join(f"--target-modules {name}" for name in sorted({name.rpartition(".")[2] for name in adapter.layers}))


def check_feature_layers(adapter: Adapter, file: FeaturesFile, tasks: Collection[str]) -> None:
    """Check that a features file describes every layer of an adapter, with the same widths.

    Args:
        adapter: The adapter.
        file: The features of its task.
        tasks: All that there are features of: their layers have to be the same.

    Raises:
        OsrmError: If it does not, or the adapter adapts an embedding, which has no inputs to describe.
    """
    for name, layer in adapter.layers.items():
        if layer.is_tensor:
            continue
        if layer.embedding:
            raise OsrmError(f"{adapter.source} adapts the embedding {name}, expected linear layers only")
        known = file.layers.get(name)
        if known is None or (known.d_in, known.d_out) != (layer.d_in, layer.d_out):
            widths = f"({known.d_in}, {known.d_out})" if known else "nothing"
            raise OsrmError(
                f"{file.path} has {widths} for {name}, expected ({layer.d_in}, {layer.d_out}) (d_in, d_out)",
                f"osrm collect {' '.join(f'--task {task}' for task in tasks)} --overwrite "
                f"{_collect_features_options(adapter)}",
            )
