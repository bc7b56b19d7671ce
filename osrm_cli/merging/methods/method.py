"""One row of the table of merging methods."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from osrm_cli.merging.methods.layer_updates import LayerResult, LayerUpdates
    from osrm_cli.merging.methods.options import MethodOptions

    Rule = Callable[[LayerUpdates, MethodOptions], LayerResult]

Requirement = Literal["features", "data", "labels", "seed"]


DataStatistic = Literal[
    "second-moments",
    "single-moments",
    "cross-moments",
    "fisher",
    "weights",
    "simplex-weights",
    "matching-weights",
    "factors",
]


@dataclass(frozen=True)
class Method:
    """One way to merge.

    Attributes:
        name: Kebab-case.
        summary: One line for ``--list`` and the documentation.
        function: ``family:function`` below this package.
        space: ``low-rank``: the result is natively an adapter; ``element``: it is dense.
        needs: What must be there beyond the adapters.
        default_lambda: Scale on the result when the user gives none.
        options: Fields of ``MethodOptions`` that the method reads, beyond ``scale``.
        aliases: Other names.
        source: arXiv id, or nothing.
        wrappers: Functions of ``spaces`` that the rule is wrapped in, outermost first.
        data_statistic: The statistic of each task's data that the rule needs: a field of ``LayerUpdates``, or
            weights.
        is_task_aware: Whether the result is a ``MaskedDelta``, which needs the task's name at inference.
        takes_full_models: Whether the rule needs no factors.
        beyond_layers: ``family:function`` for tensors of full models that are not weights of linear layers, such as
            embeddings, norms and biases; ``None`` where the rule itself takes them.
    """

    name: str
    summary: str
    function: str
    space: Literal["low-rank", "element"] = "low-rank"
    needs: tuple[Requirement, ...] = ()
    default_lambda: float = 1.0
    options: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    source: str = ""
    wrappers: tuple[str, ...] = ()
    data_statistic: DataStatistic | None = None
    is_task_aware: bool = False
    takes_full_models: bool = True
    beyond_layers: str | None = None

    @property
    def learns_weights(self) -> bool:
        """Whether weights per task and layer are learned from data."""
        return self.data_statistic in ("weights", "simplex-weights", "matching-weights")

    @property
    def takes_any_base(self) -> bool:
        """Whether it learns from adapters of other base models than the result's."""
        return self.data_statistic == "factors"

    @property
    def exact(self) -> bool:
        """Whether the result is an adapter as it is, without recompression."""
        return self.space == "low-rank"

    @property
    def result(self) -> Literal["exact", "recompressed", "task-aware"]:
        """What the result is as an adapter, for ``--list``."""
        if self.is_task_aware:
            return "task-aware"
        return "exact" if self.exact and "rank" not in self.options else "recompressed"

    def load(self) -> Rule:
        """Import the method's function, wrapped in the spaces that its name says."""
        rule = _import_merging_rule(self.function)
        for space in reversed(self.wrappers):
            rule = getattr(importlib.import_module(f"{__package__}.spaces"), space)(rule)
        return rule

    def load_beyond_layers(self) -> Rule:
        """Import the function for tensors that are not weights of linear layers."""
        return _import_merging_rule(self.beyond_layers) if self.beyond_layers else self.load()


def _import_merging_rule(function: str) -> Rule:
    """The function of a row, ``family:function``."""
    family, name = function.split(":")
    return getattr(importlib.import_module(f"{__package__}.{family}"), name)  # type: ignore[no-any-return]
