"""The objectives by which ``osrm init`` chooses A. Importing this module does not import torch."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osrm_cli.errors import OsrmError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from osrm_cli.initialization.objectives.layer_problem import LayerProblem


@dataclass(frozen=True)
class Objective:
    """One row of the table.

    Attributes:
        name: What the user types.
        summary: One line for help and completion.
        function: ``module:function`` in ``initialization.objectives``.
        source: Where it comes from.
        statistics: Kinds of statistic that can serve it, the preferred one first; empty if it reads no features.
        needs_others: Whether it reads the other tasks' statistic.
        needs_own: Whether it reads the task's own statistic.
        needs_gradient: Whether it reads a gradient of the task's own loss.
        orthonormal: Whether the rows of its A are orthonormal.
    """

    name: str
    summary: str
    function: str
    source: str
    statistics: tuple[str, ...] = ()
    needs_others: bool = False
    needs_own: bool = False
    needs_gradient: bool = False
    orthonormal: bool = True

    def load(self) -> Callable[[LayerProblem], torch.Tensor]:
        """The function from a layer's problem to A; this imports torch."""
        module, _, name = self.function.partition(":")
        loaded: Callable[[LayerProblem], torch.Tensor] = getattr(
            importlib.import_module(f"osrm_cli.initialization.objectives.{module}"), name
        )
        return loaded

    def choose_statistic(self, available: tuple[str, ...], name: str | None = None) -> str | None:
        """The available statistic that serves this objective best; ``None`` if it reads no features.

        Args:
            available: Names such as ``("mean", "sketch:64")``.
            name: Take this one, by name or, as ``sketch``, by kind.

        Raises:
            OsrmError: If none of them can serve it, or the named one cannot.
        """
        if name:
            return self._find_statistic(available, name)
        if not self.statistics:
            return None
        for kind in self.statistics:
            for each in available:
                if each.partition(":")[0] == kind:
                    return each
        raise OsrmError(
            f"objective '{self.name}' needs one of: {', '.join(self.statistics)}; "
            f"the features hold: {', '.join(available)}",
            f"collect them again with --statistic {self.statistics[0]}",
        )

    def _find_statistic(self, available: tuple[str, ...], name: str) -> str:
        name = name.strip().replace("_", "-")
        if name.partition(":")[0] not in self.statistics:
            kinds = ", ".join(self.statistics) or "none, it reads no features"
            raise OsrmError(f"objective '{self.name}' cannot be chosen from '{name}', but from: {kinds}")
        for each in available:
            if name in (each, each.partition(":")[0]):
                return each
        raise OsrmError(
            f"the features hold no '{name}', they all hold: {', '.join(available)}",
            f"collect them again with --statistic {name}",
        )


OBJECTIVES = (
    Objective(
        "osrm",
        "orthogonal to the other tasks' activations",
        "osrm:osrm",
        "arXiv:2505.22934",
        ("mean", "samples", "second-moment", "sketch"),
        needs_others=True,
    ),
    Objective(
        "osrm-in",
        "the task's principal directions outside the others' principal subspace",
        "data_aware:osrm_in",
        "arXiv:2404.00228",
        ("second-moment", "sketch", "samples"),
        needs_others=True,
        needs_own=True,
    ),
    Objective(
        "gevd",
        "most energy of the own activations per unit of interference",
        "data_aware:gevd",
        "arXiv:2603.00191",
        ("second-moment", "sketch", "samples"),
        needs_others=True,
        needs_own=True,
    ),
    Objective(
        "eva",
        "the task's principal directions (control)",
        "data_aware:eva",
        "arXiv:2410.07170",
        ("second-moment", "sketch", "samples"),
        needs_own=True,
    ),
    Objective(
        "loss-aware",
        "steepest decrease of the task's loss per unit of interference",
        "data_aware:loss_aware",
        "generalised eigenproblem of gevd with the gradient in place of the features",
        ("second-moment", "sketch", "samples", "mean"),
        needs_others=True,
        needs_gradient=True,
    ),
    Objective(
        "official",
        "the published code's steps: last right singular vectors of the others' means",
        "osrm:official",
        "arXiv:2505.22934",
        ("mean",),
        needs_others=True,
    ),
    Objective(
        "random-orthonormal",
        "random orthonormal rows (control for scale)",
        "random_baselines:random_orthonormal",
        "control",
    ),
    Objective(
        "last-coordinates",
        "unit vectors of the last r inputs, for every task (control)",
        "random_baselines:last_coordinates",
        "control",
    ),
    Objective(
        "kaiming",
        "PEFT's default random initialization (baseline)",
        "random_baselines:kaiming",
        "arXiv:2106.09685",
        orthonormal=False,
    ),
    Objective(
        "gaussian",
        "PEFT's Gaussian random initialization (baseline)",
        "random_baselines:gaussian",
        "arXiv:2106.09685",
        orthonormal=False,
    ),
)

# The defaults of ``osrm init``: the best initialization of studies/glue-minilm, or the paper's where the features do
# not serve that one.
DEFAULT_OBJECTIVES = ("gevd", "osrm")


def find_objective(name: str) -> Objective:
    """Look an objective up by name.

    Raises:
        OsrmError: If the name is unknown.
    """
    spelled = name.strip().replace("_", "-")
    for row in OBJECTIVES:
        if row.name == spelled:
            return row
    names = [row.name for row in OBJECTIVES]
    near = difflib.get_close_matches(spelled, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else None
    raise OsrmError(f"unknown objective '{name}', expected one of: {', '.join(names)}", hint)
