"""What an objective is given: one layer of one task."""

from dataclasses import dataclass

import torch

from osrm_cli.errors import OsrmError


@dataclass(frozen=True)
class Request:
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
    gradient: torch.Tensor | None = None
    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.rank <= self.d_in:
            raise OsrmError(
                f"rank {self.rank} does not fit {self.layer}, expected 1 to {self.d_in} (its input width)",
                "choose a smaller --rank",
            )
