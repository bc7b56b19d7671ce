"""Adapters of other base models, which a merge by distillation takes as teachers.

Their updates mean nothing on the merge's base model; what they say of a text does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.layers import AdapterLayer
from osrm_cli.adapters.trained_rows import TrainedRows
from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.models.base_model import find_base_model
from osrm_cli.storage.provenance import short_model_name
from osrm_cli.storage.records import BaseModelId


@dataclass(frozen=True)
class ForeignAdapter(Adapter):
    """An adapter of another base model, in a merge that learns from it.

    On the merge's base model it changes nothing. It has layers only where no other adapter says which there are.

    Attributes:
        teacher: The adapter on its own base model.
        head: The task's head on the merge's base model, by the names there; empty until it is learned.
    """

    teacher: Adapter = field(kw_only=True)
    head: Mapping[str, torch.Tensor] = field(default_factory=dict, kw_only=True)

    @property
    def teacher_base(self) -> str:
        """The name of the teacher's base model."""
        return (self.teacher.base.name if self.teacher.base else self.teacher.config.base_model) or "unknown"

    @property
    def rank(self) -> int:
        """The rank that a merge of updates would have for it: the largest of the teacher's."""
        return max(layer.rank for layer in self.teacher.layers.values())

    def lora_factors(
        self, layer: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> LowRank:
        """Factors of rank zero."""
        shape, empty = self.layers[layer], torch.zeros(0, dtype=dtype, device=device)
        return LowRank(empty.reshape(shape.d_out, 0), empty.reshape(0, shape.d_in))

    def head_tensors(self) -> dict[str, torch.Tensor]:
        """The head that was learned."""
        return dict(self.head)

    def module_tensors(self) -> dict[str, torch.Tensor]:
        """None: those of the teacher's base model stay there."""
        return {}

    def trained_rows(self) -> dict[str, TrainedRows]:
        """None."""
        return {}

    def base_copies(self) -> dict[str, torch.Tensor]:
        """None."""
        return {}

    def with_head(self, head: Mapping[str, torch.Tensor], modules: Sequence[str]) -> "ForeignAdapter":
        """With a head that was learned.

        Args:
            head: By the names in the merge's base model.
            modules: The modules that it belongs to.
        """
        return replace(self, head=head, config=replace(self.config, modules_to_save=tuple(modules)))


def teacher_of(adapter: Adapter) -> Adapter:
    """The adapter that knows a task: of a foreign one the teacher."""
    return adapter.teacher if isinstance(adapter, ForeignAdapter) else adapter


def separate_foreign_adapters(adapters: Sequence[Adapter], base: BaseModelId) -> list[Adapter]:
    """Adapters for a merge on a base model; those of other base models as ``ForeignAdapter``.

    Args:
        adapters: The adapters.
        base: The merge's base model.

    Raises:
        OsrmError: If a foreign one has trained base-model modules as a whole, or, where all are foreign, the base model
            has no default target layers.
    """
    foreign = [adapter for adapter in adapters if not _belongs_to_merge_base(adapter, base)]
    layers: Mapping[str, AdapterLayer] = {}
    turned = False
    if foreign and len(foreign) == len(adapters):
        from osrm_cli.models.target_modules import describe_target_layers  # it imports transformers

        folder = find_base_model(base.name, base.revision)
        layers, turned = describe_target_layers(folder, adapters[0].is_text)
    return [
        _as_foreign_adapter(adapter, base, layers, turned) if adapter in foreign else adapter for adapter in adapters
    ]


def _belongs_to_merge_base(adapter: Adapter, base: BaseModelId) -> bool:
    if adapter.base:
        return adapter.base.sha256 == base.sha256
    name = adapter.config.base_model
    return name is None or short_model_name(name) == short_model_name(base.name)


def _as_foreign_adapter(
    adapter: Adapter, base: BaseModelId, layers: Mapping[str, AdapterLayer], turned: bool
) -> ForeignAdapter:
    if modules := [*adapter.module_tensors(), *adapter.trained_rows()]:
        raise OsrmError(
            f"{adapter.source} trained {min(modules)} or rows of it as a whole, which cannot be learned on another "
            "base model",
            f"leave it out, or choose its own base model, {adapter.config.base_model}, with --base",
        )
    config = replace(
        adapter.config,
        base_model=base.name,
        revision=base.revision,
        modules_to_save=(),
        token_indices=(),
        target_modules=(),
        target_parameters=(),
        fan_in_fan_out=turned,
    )
    values = {each.name: getattr(adapter, each.name) for each in fields(adapter) if each.init}
    return ForeignAdapter(**{**values, "config": config, "layers": layers, "base": base}, teacher=adapter)
