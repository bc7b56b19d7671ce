"""Convert an adapter from the files of one program to those of another."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.formats.components import COMPONENTS, shorten_names, split_component
from osrm_cli.adapters.formats.contents import AdapterOutput, make_adapter_config
from osrm_cli.adapters.formats.metadata import read_adapter_metadata
from osrm_cli.adapters.formats.table import AdapterFormat, find_adapter_format
from osrm_cli.adapters.layers import PREFIX, plain_alpha
from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.conversion.lycoris import find_lycoris, open_lycoris
from osrm_cli.conversion.plain_lora import (
    find_convertible_kind,
    open_convertible_kind,
    open_plain_lora,
    write_plain_lora,
)
from osrm_cli.errors import OsrmError, check_number
from osrm_cli.progress import Progress, no_progress
from osrm_cli.storage import atomic, hub, input_files, provenance, records
from osrm_cli.storage.records import Record

_FILE_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ConvertedAdapter:
    """What ``convert_adapter`` did.

    Attributes:
        path: The folder or file that was written, or would be.
        source_format: Format of the adapter that was read.
        source_kind: ``LoRA``, ``LoHa``, ``LoKr``, ``LoCon`` (with a third factor), ``DoRA``,
            ``LoRA with trained tokens``.
        format: Format that was written.
        layers: Number of layers.
        ranks: Smallest and largest rank of a layer.
        dtype: Type of the factors.
        kept_energy: Smallest share of a layer's energy that is left at a lower rank; 1 where nothing was cut.
        left_out: Keys of the old header that do not go on: digests of the old bytes, and descriptions of the training
            data.
    """

    path: Path
    source_format: str
    source_kind: str
    format: str
    layers: int
    ranks: tuple[int, int]
    dtype: str
    kept_energy: float = 1.0
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _SourceAdapter:
    """The adapter to convert.

    Attributes:
        adapter: Plain LoRA: the adapter itself, or what was made of it in a temporary folder.
        format: Its own format.
        kind: Its own kind.
        digest: Its own digest.
        kept_energy: See ``ConvertedAdapter``.
    """

    adapter: Adapter
    format: str
    kind: str
    digest: str
    kept_energy: float = 1.0


def convert_adapter(
    adapter: Path | str,
    out: Path | str,
    format: str = "peft",
    *,
    component: str | None = None,
    rank: int | None = None,
    energy: float | None = None,
    model: str | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> ConvertedAdapter:
    """Write an adapter in another format; its update stays what it is, but for ``rank`` and ``energy``.

    Adapters of other kinds (LoHa, LoKr, DoRA, trained tokens) become plain LoRA, of the rank that holds their update.

    Args:
        adapter: A folder or file of any format that is known, or a hub id.
        out: The folder to write; of a format whose adapters are one file, a name that ends in ``.safetensors``.
        format: ``peft``, ``diffusers``, ``kohya`` or ``mlx``.
        component: Part of a pipeline: the one to take of an adapter that changes several, or the one that an adapter
            belongs to whose layers do not tell it.
        rank: Cut every layer to this rank, with the least error.
        energy: Cut every layer to the rank that keeps this share of its energy.
        model: The base model, which DoRA and trained tokens need, if it is not where the adapter says.
        revision: Its revision on the hub.
        dtype: Type of the factors: ``auto`` keeps it, or ``float32``, ``bfloat16`` or ``float16``.
        overwrite: Replace the output if it exists.
        dry_run: Check everything and write nothing.
        progress: Draws a bar.

    Raises:
        OsrmError: If the adapter cannot be read, or the format cannot hold it as it is.

    Example:
        >>> from osrm_cli import convert_adapter
        >>> convert_adapter("merged", "merged.safetensors", "diffusers", component="text_encoder").layers
        12
    """
    path, row = Path(out), find_adapter_format(format)
    _check_converted_name(path, row)
    atomic.refuse_existing(path, overwrite)
    if component is not None and component not in COMPONENTS:
        raise OsrmError(f"unknown component '{component}', expected one of: {', '.join(COMPONENTS)}")
    if rank is not None:
        check_number("rank", rank, 1)
    if energy is not None:
        check_number("energy", energy, 0, 1)
    with tempfile.TemporaryDirectory() as scratch:
        opened = _open_as_plain_lora(str(adapter), Path(scratch), (model, revision), (rank, energy), progress)
        chosen = _select_component_to_convert(opened.adapter, component) if component else opened.adapter
        kept, left_out = read_adapter_metadata(next(iter(opened.adapter.tensors.values())).path)
        kind = chosen.dtype if dtype == "auto" else getattr(torch, dtype)
        ranks = [layer.rank for layer in chosen.layers.values()]
        result = ConvertedAdapter(
            path,
            opened.format,
            opened.kind,
            row.name,
            len(ranks),
            (min(ranks), max(ranks)),
            str(kind).removeprefix("torch."),
            opened.kept_energy,
            left_out,
        )
        if dry_run:
            return result
        settings = {"component": component, "rank": rank, "energy": energy, "dtype": dtype}
        record = _make_conversion_record(opened, row, settings)
        _write_converted_adapter(
            path, row, AdapterOutput(chosen, kind, dtype != "auto", component, kept), record, overwrite
        )
    return result


def _write_converted_adapter(
    path: Path, row: AdapterFormat, output: AdapterOutput, record: Record, overwrite: bool
) -> None:
    """Write the output, whole or not at all, with its record."""
    if row.is_folder:
        with atomic.write_folder(path, overwrite) as stage:
            row.load().write(stage, output)
            provenance.write_record(stage, record)
            provenance.write_digests(stage)
    else:
        header = json.dumps(record, sort_keys=True, allow_nan=False)
        with atomic.write_file(path, overwrite) as stage:
            row.load().write(stage, replace(output, metadata={**output.metadata, "osrm": header}))


def _check_converted_name(path: Path, row: AdapterFormat) -> None:
    """Check that a file is to be written to a name for a file, and a folder to one for a folder."""
    if row.is_folder == (path.suffix == _FILE_SUFFIX):
        expected = "a folder" if row.is_folder else f"a file whose name ends in {_FILE_SUFFIX}"
        hint = "use --format diffusers or --format kohya for a file" if row.is_folder else f"write {path}{_FILE_SUFFIX}"
        raise OsrmError(f"{path} cannot be the output: the format {row.name} is {expected}", hint)


def _open_as_plain_lora(
    source: str,
    scratch: Path,
    base: tuple[str | None, str | None],
    limits: tuple[int | None, float | None],
    progress: Progress,
) -> _SourceAdapter:
    """Open an adapter; one of another kind, or one that is to be cut, is written to a temporary folder as plain LoRA.

    Args:
        source: The adapter, as the user gave it.
        scratch: An empty folder.
        base: The base model and its revision, if the user gave them.
        limits: Rank and energy.
        progress: Draws a bar.
    """
    location = hub.locate_adapter(source)
    kind, lycoris = find_convertible_kind(location), find_lycoris(location)
    if lycoris:
        updates, name, own_format = open_lycoris(location), hub.short_source_name(source), "kohya"
        digest = input_files.sha256(location)
    elif kind is None:
        plain = open_adapter(source)
        if limits == (None, None):
            return _SourceAdapter(plain, plain.format, "LoRA", plain.sha256())
        updates, name, own_format, digest = open_plain_lora(plain), plain.name, plain.format, plain.sha256()
    else:
        updates, name, own_format = open_convertible_kind(location, kind, *base), hub.short_source_name(source), "peft"
        digest = input_files.sha256(location)
    kept = write_plain_lora(scratch, updates, *limits, progress)
    record = records.read_record(location) if location.is_dir() else {}
    made = replace(open_adapter(scratch), name=name, source=source, record=record)
    return _SourceAdapter(made, own_format, lycoris or (kind.name if kind else "LoRA"), digest, min(kept.values()))


def _select_component_to_convert(adapter: Adapter, component: str) -> Adapter:
    """One component of an adapter that changes several; an adapter whose layers name none stays as it is.

    Raises:
        OsrmError: If it does not change that component.
    """
    components = {layer: split_component(layer)[0] for layer in adapter.layers}
    if None in components.values():
        return adapter
    layers = [layer for layer, own in components.items() if own == component]
    if not layers:
        found = ", ".join(sorted({own for own in components.values() if own}))
        raise OsrmError(f"{adapter.source} does not adapt {component}", f"it adapts {found}")
    names = shorten_names(layers)
    ranks = {names[layer]: adapter.layers[layer].rank for layer in layers}
    alphas = {names[layer]: plain_alpha(adapter.config, layer, adapter.layers[layer].rank) for layer in layers}
    config = replace(
        make_adapter_config(ranks, alphas), base_model=adapter.config.base_model, revision=adapter.config.revision
    )
    start = f"{PREFIX}{component}."
    tensors = {name: place for name, place in adapter.tensors.items() if name.startswith(start)}
    shapes = {layer: adapter.layers[layer] for layer in layers}
    return replace(adapter, config=config, layers=shapes, tensors=tensors).with_layer_names(names)


def _make_conversion_record(opened: _SourceAdapter, row: AdapterFormat, settings: Mapping[str, Any]) -> Record:
    """The record of the result, with the task and the data of an adapter that this program has trained."""
    adapter = opened.adapter
    origin = {key: value for key, value in adapter.origin().items() if key in ("start", "train") and value}
    own = {key: adapter.record[key] for key in ("task", "data", "template") if adapter.record.get(key)}
    conversion = {"from": opened.format, "kind": opened.kind, "format": row.name, "max_length": adapter.max_length}
    record = provenance.make_artifact_record("convert", {**conversion, **settings}, base=adapter.base)
    source = {"path": adapter.source, "commit": adapter.commit, "sha256": opened.digest}
    return {**record, **own, **origin, "inputs": [source], "kept_energy": opened.kept_energy}
