"""Extract a LoRA adapter from a fully fine-tuned model: base model, fine-tuned model -> ``extracted/<name>/``."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osrm_cli.adapters.config import TEXT_TASK_TYPES
from osrm_cli.adapters.rank_limits import parse_rank_limit
from osrm_cli.adapters.tokenizer_files import TOKENIZER_FILES
from osrm_cli.adapters.writer import write_adapter_stream
from osrm_cli.errors import OsrmError
from osrm_cli.extraction.energy import KindEnergy, energy_by_kind
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.row_stream import truncate_rank
from osrm_cli.models.base_model import find_base_model, identify_base_model
from osrm_cli.models.devices import device_with_float64, pick_device
from osrm_cli.models.full.fine_tuned import KINDS, FineTunedModel, FineTunedPair
from osrm_cli.progress import Advance, Progress, no_progress
from osrm_cli.storage import atomic, hub, input_files, provenance
from osrm_cli.storage.records import BaseModelId
from osrm_cli.storage.safetensors_writer import TYPES, write_safetensors

DEFAULT_RANK = 32
_LOSSY = 0.95  # a share of the energy below this is worth a warning


@dataclass(frozen=True)
class ExtractedAdapter:
    """What ``extract_adapter`` did.

    Attributes:
        path: The folder that was written, or would be.
        layers: The layers that it adapts, or would: those that differ.
        kinds: By kind of tensor, its part in the energy of the difference; under ``dry_run`` ``lost`` is what no rank
            can hold.
        ranks: By layer; empty under ``dry_run``.
        kept: By layer, the share of its own energy that its factors hold; empty under ``dry_run``.
        heads: Modules that are stored as a whole: the task's head, and what the base model does not have.
        labels: Names of the head's classes, where they have any.
        added_rows: Rows beyond those of the base model, by tensor: no adapter can hold them.
        notes: What else was found.
        warnings: Reasons to doubt the result.
    """

    path: Path
    layers: Sequence[str]
    kinds: Mapping[str, KindEnergy]
    ranks: Mapping[str, int] = field(default_factory=dict)
    kept: Mapping[str, float] = field(default_factory=dict)
    heads: Sequence[str] = ()
    labels: Sequence[str] = ()
    added_rows: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()

    @property
    def held(self) -> float:
        """The share of the whole difference's energy that the adapter holds."""
        return 1 - sum(kind.lost for kind in self.kinds.values())


def extract_adapter(
    base: Path | str,
    finetuned: Path | str,
    *,
    rank: int | str | None = None,
    energy: float | None = None,
    target_modules: Sequence[str] = (),
    keep_rest: Path | str | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    out: Path | str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> ExtractedAdapter:
    """Approximate what full fine-tuning changed by a LoRA adapter: the truncated SVD of each linear layer's difference.

    One layer is in memory at a time. What is not a linear layer cannot be held, and its share of the energy is
    reported; a task's head is stored as a whole.

    Args:
        base: The base model: a folder, a hub id, ``minilm`` or ``smollm2``.
        finetuned: The fine-tuned model: a folder, a hub id, or ``owner/name@revision``.
        rank: Largest rank of a layer, or ``auto:0.95`` for the least that keeps 95 % of its energy; 32 where neither
            this nor ``energy`` is given.
        energy: Share of each layer's energy to keep; with both limits the smaller rank counts.
        target_modules: Layers to adapt, as PEFT names them; every linear layer by default.
        keep_rest: File for what the adapter does not hold, which a merge into a model adds back.
        revision: Revision of the base model on the hub.
        dtype: Type of the factors; ``auto`` is float32.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        out: Folder to write; ``extracted/<name of the fine-tuned model>`` by default.
        overwrite: Replace it if it exists.
        dry_run: Compare the models, and write nothing.
        progress: Draws bars.

    Raises:
        OsrmError: If a model is missing, damaged or quantized, they do not belong together or do not differ, or an
            option has no valid value.

    Example:
        >>> from osrm_cli import extract_adapter, merge_adapters
        >>> model = merge_adapters(["adapters/mini-mood"], form="model", out="mood-model").path
        >>> round(extract_adapter("minilm", model, rank=8).held, 4)
        1.0
    """
    source = str(finetuned)
    limits = _parse_extraction_limits(rank, energy)
    path = Path(out) if out else Path("extracted") / hub.short_source_name(source)
    rest = Path(keep_rest) if keep_rest else None
    for output in (path, rest) if rest else (path,):
        atomic.refuse_existing(output, overwrite)
    identity = identify_base_model(str(base), revision)
    tuned = FineTunedModel.open(source, find_base_model(str(base), revision), target_modules)
    with progress("compare", len(tuned.pairs), "tensors") as advance:
        energies = {}
        for name, pair in tuned.pairs.items():
            energies[name] = pair.energy()
            advance(1)
    # Wider tensors first, so that each starts at a multiple of its own width in the rest's file.
    changed = {name: pair for name, pair in sorted(tuned.pairs.items(), key=_extraction_order) if energies[name] > 0}
    pairs = {name: pair for name, pair in changed.items() if pair.layer}
    if not pairs:
        raise OsrmError(f"no linear layer of {source} differs from {base}", "give the models in this order: BASE TUNED")
    result = _describe_extraction(path, tuned, pairs, energies)
    if dry_run:
        return replace(result, kinds=_extracted_energy_by_kind(tuned, energies, dict.fromkeys(pairs, 1.0)))
    kind = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    job = _Extraction(tuned, changed, limits, identity, kind, device_with_float64(pick_device(device)))
    with ExitStack() as stack:
        stage = stack.enter_context(atomic.write_folder(path, overwrite))
        rest_stage = stack.enter_context(_stage_unextracted_rest(rest, path, stage, overwrite)) if rest else None
        with progress("extract", len(pairs), "layers") as advance:
            ranks, kept = job.write(stage, rest_stage, advance)
        shares = {str(pair.layer): kept[name] for name, pair in pairs.items()}
        result = replace(result, kinds=_extracted_energy_by_kind(tuned, energies, kept), ranks=ranks, kept=shares)
        settings = {**limits, "dtype": dtype, "target_modules": list(target_modules) or None}
        found: dict[str, str] = {}
        if rest and rest_stage:
            found = {"path": Path(os.path.relpath(rest, path)).as_posix(), "sha256": input_files.sha256(rest_stage)}
        _finish_extracted_folder(stage, tuned, settings, identity, result, found)
    return replace(result, warnings=[*result.warnings, *_warn_of_extraction_loss(result)])


@dataclass(frozen=True)
class _Extraction:
    """What is written, and how: the tensors that differ, wider types first, and the limits of their ranks."""

    tuned: FineTunedModel
    changed: Mapping[str, FineTunedPair]
    limits: Mapping[str, Any]
    base: BaseModelId
    dtype: torch.dtype
    device: torch.device

    def write(self, stage: Path, rest: Path | None, advance: Advance) -> tuple[dict[str, int], dict[str, float]]:
        """Write the adapter, and perhaps the rest, one tensor at a time.

        Args:
            stage: The folder of the adapter.
            rest: The file of the rest.
            advance: Called with 1 after each layer.

        Returns:
            Ranks by layer, and by name of the tensor the share of its energy that is kept.
        """
        names = {name: pair.layer or self.tuned.parameters.get(name, name) for name, pair in self.changed.items()}
        layers = [pair.layer for pair in self.changed.values() if pair.layer]
        settings = self.tuned.adapter_config(layers)
        config = replace(settings, base_model=self.base.name, revision=self.base.revision)
        kept: dict[str, float] = {}
        with ExitStack() as files:
            head = self.tuned.read_head()
            adapter = files.enter_context(write_adapter_stream(stage, layers, config, head, self.dtype))
            others = files.enter_context(write_safetensors(rest, list(names.values()))) if rest else None
            for name, pair in self.changed.items():
                if not (pair.layer or others):
                    continue
                difference, factors = pair.difference(), None
                if pair.layer:
                    factors, kept[name] = truncate_rank(difference.to(self.device), **self.limits)
                    adapter.add(pair.layer, factors)
                    advance(1)
                if others:
                    others.add(
                        names[name],
                        _subtract_extracted_factors(pair, difference, factors.to(self.dtype) if factors else None),
                    )
        return adapter.ranks, kept


def _parse_extraction_limits(rank: int | str | None, energy: float | None) -> dict[str, Any]:
    """Arguments of ``truncate_rank``."""
    limits: dict[str, Any] = parse_rank_limit(rank) if isinstance(rank, str) else {"rank": rank}
    if "energy" in limits and energy is not None:
        raise OsrmError("--rank auto and --energy are the same", "leave out one of them")
    limits = {"rank": limits.get("rank"), "energy": limits.get("energy", energy)}
    if limits["rank"] is None and limits["energy"] is None:
        limits["rank"] = DEFAULT_RANK
    if limits["rank"] is not None and limits["rank"] < 1:
        raise OsrmError(f"--rank is {limits['rank']}, expected 1 or more")
    if limits["energy"] is not None and not 0 < limits["energy"] <= 1:
        raise OsrmError(f"--energy is {limits['energy']:g}, expected a share above 0, at most 1")
    return limits


def _extraction_order(item: tuple[str, FineTunedPair]) -> int:
    """Sort key: the widest type first."""
    return -TYPES[item[1].tuned.dtype].itemsize


@contextmanager
def _stage_unextracted_rest(rest: Path, path: Path, stage: Path, overwrite: bool) -> Iterator[Path]:
    """Where to write the rest: beside its target, or in the folder that is being staged where it belongs there."""
    if rest.resolve().is_relative_to(path.resolve()):
        inside = stage / rest.resolve().relative_to(path.resolve())
        inside.parent.mkdir(parents=True, exist_ok=True)
        yield inside
    else:
        with atomic.write_file(rest, overwrite) as outside:
            yield outside


def _subtract_extracted_factors(pair: FineTunedPair, difference: Tensor, factors: LowRank | None) -> Tensor:
    """What the factors, as they are stored, leave of a difference: of the base model's shape, in the model's type."""
    left = difference - factors.dense().to(difference) if factors else difference
    if pair.added_rows < 0:
        left = torch.cat([left, left.new_zeros(-pair.added_rows, *left.shape[1:])])
    return left.to(TYPES[pair.tuned.dtype])


def _extracted_energy_by_kind(
    tuned: FineTunedModel, energies: Mapping[str, float], kept: Mapping[str, float]
) -> dict[str, KindEnergy]:
    kinds = {name: pair.kind for name, pair in tuned.pairs.items()}
    found = energy_by_kind(kinds, energies, kept)
    return {kind: found[kind] for kind in KINDS if kind in found}


def _describe_extraction(
    path: Path, tuned: FineTunedModel, pairs: Mapping[str, FineTunedPair], energies: Mapping[str, float]
) -> ExtractedAdapter:
    """What there is to extract, before anything is decomposed."""
    added = {name: pair.added_rows for name, pair in tuned.pairs.items() if pair.added_rows}
    notes, warnings = [], []
    if tuned.model.heads:
        notes.append(f"stored as a whole in the adapter: {', '.join(tuned.model.heads)}")
    if tuned.labels:
        notes.append(f"the head's classes, in their order: {', '.join(tuned.labels)}")
    if tuned.left_out:
        notes.append(f"the base model alone has {len(tuned.left_out)} tensors, such as {tuned.left_out[0]}")
    warnings += [
        f"{name} has {rows} rows that the base model does not have: no adapter can hold them"
        if rows > 0
        else f"{name} lacks {-rows} rows of the base model: these stay as they are"
        for name, rows in added.items()
    ]
    return ExtractedAdapter(
        path,
        [str(pair.layer) for pair in pairs.values()],
        _extracted_energy_by_kind(tuned, energies, {}),
        heads=tuned.model.heads,
        labels=tuned.labels,
        added_rows=added,
        notes=notes,
        warnings=warnings,
    )


def _warn_of_extraction_loss(result: ExtractedAdapter) -> list[str]:
    if result.held >= _LOSSY:
        return []
    parts = ", ".join(f"{kind} {row.lost:.1%}" for kind, row in result.kinds.items() if row.lost >= 0.001)
    return [f"the adapter does not hold {1 - result.held:.1%} of the difference's energy: {parts}"]


def _finish_extracted_folder(
    stage: Path,
    tuned: FineTunedModel,
    settings: Mapping[str, Any],
    base: BaseModelId,
    result: ExtractedAdapter,
    rest: Mapping[str, str],
) -> None:
    """Write the record, and for a model that writes text its tokenizer, as trainers do beside adapters."""
    if tuned.adapter_config(result.layers).task_type in TEXT_TASK_TYPES:
        for path in (tuned.folder / name for name in TOKENIZER_FILES):
            if path.is_file():
                shutil.copyfile(path, stage / path.name)
    origin = {
        "path": hub.pin_revision(tuned.source, tuned.folder),
        "commit": hub.snapshot_commit(tuned.folder),
        "sha256": input_files.sha256(tuned.folder),
    }
    record = provenance.make_artifact_record(
        "extract",
        settings,
        base=base,
        kept_energy=result.kept,
        energy={kind: vars(row) for kind, row in result.kinds.items()},
        labels=list(result.labels),
        added_rows=dict(result.added_rows),
    )
    provenance.write_record(stage, {**record, "inputs": [origin], **({"rest": rest} if rest else {})})
    provenance.write_digests(stage)
