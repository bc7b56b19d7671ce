"""Which features belong to which adapter, also to one that does not say its task."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from osrm_cli.adapters.adapter import Adapter, check_same_architecture, check_task_names, short_model_name
from osrm_cli.errors import OsrmError
from osrm_cli.features.features_file import FeaturesFile
from osrm_cli.features.statistics.table import SECOND_MOMENT
from osrm_cli.storage import provenance


def open_adapters(sources: Sequence[str], named: Sequence[str] = ()) -> list[Adapter]:
    """Open adapters in the order of their tasks' names.

    Args:
        sources: Folders or hub ids. The task is the one in ``osrm.json``, else the folder is named after it.
        named: ``TASK=SOURCE`` for adapters that are called otherwise.

    Raises:
        OsrmError: If one cannot be read, two are of one task, or a name is given to none of them.
    """
    tasks = dict(_split(text, sources) for text in named)
    opened = [Adapter.open(source) for source in sources]
    adapters = [replace(adapter, name=tasks.get(adapter.source, adapter.name)) for adapter in opened]
    check_task_names(adapters)
    check_same_architecture(adapters)
    return sorted(adapters, key=lambda adapter: adapter.name)


def _split(text: str, sources: Sequence[str]) -> tuple[str, str]:
    """The adapter that a ``TASK=SOURCE`` speaks of, and its task."""
    task, _, given = text.partition("=")
    for source in sources:
        if task and given and (source == given or Path(source) == Path(given)):
            return source, task
    raise OsrmError(
        f"--task {text}: expected TASK=ADAPTER with one of the adapters", f"the adapters are: {', '.join(sources)}"
    )


def check_features(adapters: Sequence[Adapter], files: Mapping[str, FeaturesFile]) -> None:
    """Check that there are features of every adapter's task, and of its layers in its base model.

    Raises:
        OsrmError: Naming the adapter, and what is missing.
    """
    for adapter in adapters:
        features = files.get(adapter.name)
        if features is None:
            raise OsrmError(
                f"{adapter.source} is of task '{adapter.name}', the features are of: {', '.join(files)}",
                f"osrm collect --task {adapter.name}, or say whose it is: --task TASK={adapter.source}",
            )
        _check_base(adapter, features)
        _check_layers(adapter, features)


def _check_base(adapter: Adapter, features: FeaturesFile) -> None:
    if adapter.base:
        provenance.check_same_base_model({adapter.folder: adapter.base, features.path: features.base})
    elif adapter.config.base_model and short_model_name(adapter.config.base_model) != short_model_name(
        features.base.name
    ):
        raise OsrmError(
            f"{adapter.source} belongs to base model {adapter.config.base_model}, "
            f"but {features.path} to {features.base.name}",
            "if they are the same, correct base_model_name_or_path in adapter_config.json",
        )


def _check_layers(adapter: Adapter, features: FeaturesFile) -> None:
    for name, layer in adapter.layers.items():
        if layer.embedding:
            raise OsrmError(f"{adapter.source} adapts the embedding {name}, expected linear layers only")
        held = features.layers.get(name)
        if held is None or (held.d_in, held.d_out) != (layer.d_in, layer.d_out):
            found = f"({held.d_in}, {held.d_out})" if held else "nothing"
            raise OsrmError(
                f"{features.path} has {found} for {name}, expected ({layer.d_in}, {layer.d_out}) (d_in, d_out)",
                f"osrm collect --task {features.task} --target-modules {name.rpartition('.')[2]} --overwrite",
            )


def check_second_moments(features: FeaturesFile, widths: Mapping[str, tuple[int, int]]) -> None:
    """Check that a features file holds second moments of every layer.

    Args:
        features: The file.
        widths: ``(d_in, d_out)`` by layer.

    Raises:
        OsrmError: Naming the file, and what is missing.
    """
    collect = f"osrm collect --task {features.task} --statistic {SECOND_MOMENT}"
    if SECOND_MOMENT not in features.statistics:
        raise OsrmError(f"{features.path} holds {', '.join(features.statistics)}, expected {SECOND_MOMENT}", collect)
    for name, expected in widths.items():
        held = features.layers.get(name)
        if held is None or (held.d_in, held.d_out) != expected:
            found = (held.d_in, held.d_out) if held else "nothing"
            raise OsrmError(
                f"{features.path} has {found} for {name}, expected {expected} (d_in, d_out)",
                f"{collect} --target-modules {name.rpartition('.')[2]}",
            )
