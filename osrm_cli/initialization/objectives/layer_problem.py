"""What an objective is given: one layer of one task."""

from dataclasses import dataclass

import torch

from osrm_cli.errors import OsrmError


@dataclass(frozen=True)
class LayerProblem:
    """One layer's start that is asked for.

    Features come as rows or as a second moment; an objective takes either.

    Attributes:
        rank: Rows of A.
        d_in: Width of the layer's inputs.
        layer: Name of the layer: a key of its random draws.
        task: Name of the task: the other key.
        seed: The user's seed.
        d_out: Width of the layer's outputs.
        out_rows: The other tasks' means, samples or sketches, ``(n, d_in)``.
        out_moment: ``C_out``, the average of the other tasks' second moments, ``(d_in, d_in)``.
        own_rows: The task's own samples or sketch, ``(n, d_in)``.
        own_moment: ``C_in``, the task's own second moment, ``(d_in, d_in)``.
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
    out_rows: torch.Tensor | None = None
    out_moment: torch.Tensor | None = None
    own_rows: torch.Tensor | None = None
    own_moment: torch.Tensor | None = None
    others_sketch_error: float = 0.0
    gradient: torch.Tensor | None = None
    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.rank <= self.d_in:
            raise OsrmError(
                f"rank {self.rank} does not fit {self.layer}, expected 1 to {self.d_in} (its input width)",
                "choose a smaller --rank",
            )

    def own_energy_share(self, A: torch.Tensor) -> torch.Tensor:
        """Share of the task's own energy that each row of A ``(r, d_in)`` catches, ``a C_in a^T / tr C_in``, ``(r,)``.

        Raises:
            OsrmError: If the request holds no features of the task itself.
        """
        return self._energy_share(A, self.own_rows, self.own_moment, "its own task")

    def others_energy_share(self, A: torch.Tensor) -> torch.Tensor:
        """Share of the other tasks' energy that each row of A ``(r, d_in)`` catches, ``(r,)``.

        Raises:
            OsrmError: If the request holds no features of other tasks.
        """
        return self._energy_share(A, self.out_rows, self.out_moment, "other tasks")

    def gradient_energy_share(self, A: torch.Tensor) -> torch.Tensor:
        """Share of the gradient's energy that each row of A ``(r, d_in)`` catches, ``(r,)``.

        Raises:
            OsrmError: If the request holds no gradient.
        """
        return self._energy_share(A, self.gradient, None, "the loss's gradient")

    def _energy_share(
        self, A: torch.Tensor, rows: torch.Tensor | None, moment: torch.Tensor | None, whose: str
    ) -> torch.Tensor:
        if rows is not None:
            rows = rows.to(A.dtype)
            caught, total = (A @ rows.T).square().sum(dim=1), rows.square().sum()
        elif moment is not None:
            moment = moment.to(A.dtype)
            caught, total = ((A @ moment) * A).sum(dim=1), moment.trace()
        else:
            raise OsrmError(
                f"there are no features of {whose} for {self.layer}",
                "collect them with 'osrm collect', or choose what needs none",
            )
        return caught / total if total > 0 else torch.zeros_like(caught)
