"""The initialization problem of one layer: the input of an objective."""

from dataclasses import dataclass

import torch

from osrm_cli.errors import OsrmError
from osrm_cli.linalg.second_moment import SecondMoment


@dataclass(frozen=True)
class LayerProblem:
    """One layer of one task, for which A is to be chosen.

    Attributes:
        rank: Rows of A.
        d_in: Width of the layer's inputs.
        layer: Name of the layer: a key of its random draws.
        task: Name of the task: the other key.
        seed: The user's seed.
        d_out: Width of the layer's outputs.
        others: ``C_out``, the second moment of the other tasks' inputs, ``(d_in, d_in)``, or their rows ``(n, d_in)``.
        own: ``C_in``, the second moment of the task's own inputs, or its rows.
        others_sketch_error: Largest share of the other tasks' energy that one direction may hold unseen; 0 unless
            sketched.
        gradient: ``dL/dW`` of the task's own loss, ``(d_out, d_in)``.
        eps: Weight of the identity in ``M = C_out + eps (tr C_out / d_in) I``.
    """

    rank: int
    d_in: int
    layer: str
    task: str
    seed: int
    d_out: int | None = None
    others: SecondMoment | None = None
    own: SecondMoment | None = None
    others_sketch_error: float = 0.0
    gradient: torch.Tensor | None = None
    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.rank <= self.d_in:
            raise OsrmError(
                f"rank {self.rank} does not fit {self.layer}, expected 1 to {self.d_in} (its input width)",
                "choose a smaller --rank",
            )

    def require_others(self, objective: str) -> SecondMoment:
        """``C_out``, for an objective that cannot do without.

        Raises:
            OsrmError: If there is none.
        """
        if self.others is None:
            raise OsrmError(f"objective '{objective}' needs features of other tasks for {self.layer}")
        return self.others

    def require_own(self, objective: str) -> SecondMoment:
        """``C_in``, for an objective that cannot do without.

        Raises:
            OsrmError: If there is none.
        """
        if self.own is None:
            raise OsrmError(f"objective '{objective}' needs features of its own task for {self.layer}")
        return self.own

    def own_energy_share(self, A: torch.Tensor) -> torch.Tensor:
        """Share of the task's own energy that each row of A ``(r, d_in)`` captures, ``(r,)``.

        Raises:
            OsrmError: If there are no features of the task itself.
        """
        return self._energy_shares(self.own, A, "its own task")

    def others_energy_share(self, A: torch.Tensor) -> torch.Tensor:
        """Share of the other tasks' energy that each row of A ``(r, d_in)`` captures, ``(r,)``.

        Raises:
            OsrmError: If there are no features of other tasks.
        """
        return self._energy_shares(self.others, A, "other tasks")

    def gradient_energy_share(self, A: torch.Tensor) -> torch.Tensor:
        """Share of the gradient's energy that each row of A ``(r, d_in)`` captures, ``(r,)``.

        Raises:
            OsrmError: If there is no gradient.
        """
        gradient = None if self.gradient is None else SecondMoment(self.gradient, factored=True)
        return self._energy_shares(gradient, A, "the loss's gradient")

    def _energy_shares(self, moment: SecondMoment | None, A: torch.Tensor, whose: str) -> torch.Tensor:
        if moment is None:
            raise OsrmError(
                f"there are no features of {whose} for {self.layer}",
                "collect them with 'osrm collect', or choose what needs none",
            )
        return moment.energy_shares(A)
