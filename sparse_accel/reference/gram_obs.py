"""Plain-PyTorch twin of :mod:`sparse_accel.ops.gram_obs`, written from the formulas: the tests' oracle."""

from __future__ import annotations

import torch
from torch import Tensor


def gram_obs(inverse: Tensor, weight: Tensor, block: int, steps: int, sets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Twin of ``torch.ops.sparse_accel.gram_obs``: every downdate written out."""
    results = [_eliminate(q, w, block, steps, sets) for q, w in zip(inverse, weight, strict=True)]
    if not results:
        shape = (0, steps)
        return torch.empty(shape, dtype=torch.int64, device=inverse.device), inverse.new_empty(shape)
    order, damages = zip(*results, strict=True)
    return torch.stack(order), torch.stack(damages)


def _eliminate(inverse: Tensor, weight: Tensor, block: int, steps: int, sets: Tensor | None) -> tuple[Tensor, Tensor]:
    q, w = inverse.clone(), weight.clone()
    units = q.shape[0] // block
    every = torch.arange(units, device=q.device)
    alive = torch.ones(units, dtype=torch.bool, device=q.device)
    set_of = torch.zeros_like(every) if sets is None else sets
    removed = torch.zeros(int(set_of.max()) + 1 if units else 1, dtype=torch.int64, device=q.device)
    eye = torch.eye(block, dtype=q.dtype, device=q.device)
    order = torch.empty(steps, dtype=torch.int64, device=q.device)
    damages = q.new_empty(steps)
    for step in range(steps):
        own = q.view(units, block, units, block)[every, :, every]  # [units, block, block]
        own = torch.where(alive[:, None, None], own, eye)
        of_unit = w.view(-1, units, block).permute(1, 2, 0)  # [units, block, d]
        score = (of_unit * torch.cholesky_solve(of_unit, torch.linalg.cholesky(own))).sum((1, 2)).clamp(min=0)
        score[~alive | (removed[set_of] > removed.min())] = torch.inf
        chosen = int((score == score.min()).nonzero()[0])
        order[step], damages[step] = chosen, score[chosen]
        columns = slice(chosen * block, (chosen + 1) * block)
        change = torch.linalg.solve(own[chosen], q[columns])  # (Q_RR)^-1 Q_R:
        w -= w[:, columns] @ change
        q -= q[:, columns] @ change
        q = (q + q.T) / 2
        alive[chosen] = False
        removed[set_of[chosen]] += 1
    return order, damages
