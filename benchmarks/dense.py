"""Merging rules as their papers have them, on dense updates of one matrix."""

from collections.abc import Callable

import torch


def updates(tasks: int, width: int, rank: int) -> list[torch.Tensor]:
    """Dense updates of one matrix, from the same factors as ``factors``."""
    return [b @ a for b, a in factors(tasks, width, rank)]


def factors(tasks: int, width: int, rank: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """``B`` and ``A`` of each task."""
    draw = torch.Generator().manual_seed(0)
    return [
        (0.01 * torch.randn(width, rank, generator=draw), width**-0.5 * torch.randn(rank, width, generator=draw))
        for _ in range(tasks)
    ]


def trimmed(part: torch.Tensor, density: float = 0.2) -> torch.Tensor:
    """The largest entries, the others zero."""
    low = part.abs().flatten().kthvalue(part.numel() - int(density * part.numel()) + 1).values
    return torch.where(part.abs() >= low, part, 0)


def knots_ties(dense: list[torch.Tensor]) -> torch.Tensor:
    """KnOTS (arXiv:2410.19735): thin SVD of the concatenated updates, then TIES on the parts of V."""
    width = dense[0].shape[1]
    u, s, vh = torch.linalg.svd(torch.cat(dense, 1), full_matrices=False)
    rank = int((s > 1e-5 * s[0]).sum())
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    parts = torch.stack([trimmed(s[:, None] * vh[:, i * width : (i + 1) * width]) for i in range(len(dense))])
    agree = (parts * parts.sum(0) > 0).to(parts.dtype)
    return u @ ((parts * agree).sum(0) / agree.sum(0).clamp(min=1))


def tsv(dense: list[torch.Tensor]) -> torch.Tensor:
    """TSV-M (arXiv:2412.00081): a full SVD per task and one of each stack."""
    keep = dense[0].shape[0] // len(dense)
    svds = [torch.linalg.svd(update, full_matrices=False) for update in dense]
    rank = min(keep, int((svds[0][1] > 1e-5 * svds[0][1][0]).sum()))
    u = torch.cat([x[0][:, :rank] for x in svds], 1)
    v = torch.cat([x[2][:rank] for x in svds])
    p, _, q = torch.linalg.svd(u, full_matrices=False)
    y, _, z = torch.linalg.svd(v, full_matrices=False)
    return p @ q @ torch.diag(torch.cat([x[1][:rank] for x in svds])) @ y @ z


def iso_c(dense: list[torch.Tensor]) -> torch.Tensor:
    """Iso-C (arXiv:2502.04959): one full SVD of the sum; the mean is over the directions that the sum has."""
    u, s, vh = torch.linalg.svd(torch.stack(dense).sum(0), full_matrices=False)
    rank = int((s > 1e-5 * s[0]).sum())
    flat: torch.Tensor = s[:rank].mean() * u[:, :rank] @ vh[:rank]
    return flat


RULES: dict[str, Callable[[list[torch.Tensor]], torch.Tensor]] = {"knots-ties": knots_ties, "tsv": tsv, "iso-c": iso_c}
