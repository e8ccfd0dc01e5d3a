"""Which units of a width to keep, over all of its consumers at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_accel.channels.widths import Width
from sparse_accel.prune.select.gram import energy_select, gram_cosamp, gram_obs_kept
from sparse_accel.prune.structured.layer import Layer

METHODS = ("gram_obs", "ispasp", "gram_cosamp", "magnitude", "energy", "random")


def joint_problem(layers: Sequence[Layer], ridge: float) -> tuple[Tensor, Tensor, Tensor, int, float]:
    """One least-squares problem for all consumers, the columns of each unit side by side.

    The consumers read different columns, so the Gram matrix is block diagonal; each consumer counts relative to the
    energy of its own target. Columns that belong to no unit are solved for: what is left is the Schur complement.

    Returns:
        gram ``[n, n]``, cross and weight ``[rows, n]``, the columns of each unit, and the ridge still to add.
    """
    parts = [_own_problem(layer, ridge, alone=len(layers) == 1) for layer in layers]
    if len(parts) == 1:
        return parts[0]
    units = len(layers[0].columns)
    rows = sum(cross.shape[0] for _, cross, _, _, _ in parts)
    block = sum(own for _, _, _, own, _ in parts)
    gram = parts[0][0].new_zeros(units, block, units, block)
    cross = gram.new_zeros(rows, units, block)
    weight = torch.zeros_like(cross)
    row = start = 0
    for own_gram, own_cross, own_weight, size, _ in parts:
        at, below = slice(start, start + size), slice(row, row + own_cross.shape[0])
        gram[:, at, :, at] = own_gram.reshape(units, size, units, size)
        cross[below, :, at] = own_cross.reshape(-1, units, size)
        weight[below, :, at] = own_weight.reshape(-1, units, size)
        row, start = row + own_cross.shape[0], start + size
    return gram.flatten(2).flatten(0, 1), cross.flatten(1), weight.flatten(1), block, 0.0


def _own_problem(layer: Layer, ridge: float, *, alone: bool) -> tuple[Tensor, Tensor, Tensor, int, float]:
    at, block = layer.columns.flatten(), layer.columns.shape[1]
    if alone and layer.groups == 1 and not len(layer.fixed):
        if torch.equal(at, torch.arange(len(at), device=at.device)):  # as they are: no copies
            return layer.moments[0], layer.cross[0], layer.weight[0], block, ridge
        return layer.moments[0][at][:, at], layer.cross[0][:, at], layer.weight[0][:, at], block, ridge
    size = layer.groups * layer.features
    gram = torch.block_diag(*layer.moments)
    cross, weight = (torch.block_diag(*matrix) for matrix in (layer.cross, layer.weight))
    for group in range(layer.groups):  # each group has its own ridge
        own = slice(group * layer.features, (group + 1) * layer.features)
        mean = layer.moments[group].diagonal().mean()
        delta = ridge * mean if mean > 0 else torch.ones_like(mean)
        gram[own, own].diagonal().add_(delta)
        cross[:, own] += delta * weight[:, own]
    if len(layer.fixed):
        out = layer.fixed
        best = torch.linalg.solve(gram, cross.T).T[:, at]
        gram = gram[at][:, at] - gram[at][:, out] @ torch.linalg.solve(gram[out][:, out], gram[out][:, at])
        gram = (gram + gram.T) / 2
        cross, weight = best @ gram, best
    elif size:
        gram, cross, weight = gram[at][:, at], cross[:, at], weight[:, at]
    scale = layer.energy**-0.5 if layer.energy > 0 else 1.0
    return gram, cross * scale, weight * scale, block, 0.0


def choose(
    method: str,
    layers: Sequence[Layer],
    producers: Sequence[Tensor],
    keep: int,
    *,
    ridge: float,
    sets: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    """The units to keep, ascending.

    Args:
        method: one of :data:`METHODS` but ``"ispasp"``.
        layers: the consumers, with their moments unless the method needs none.
        producers: weights of the producers by unit, ``[units, ...]`` each, for ``"magnitude"``.
        keep: how many.
        ridge: of the least squares.
        sets: the set of each unit, of which as many are kept in each; or None.
        generator: for ``"random"``.
    """
    if method in ("magnitude", "random"):
        kept = choose_blindly(method, producers, len(layers[0].columns), keep, sets=sets, generator=generator)
        return kept.to(layers[0].columns.device)
    gram, cross, weight, block, rest = joint_problem(layers, ridge)
    if method == "gram_obs":
        return gram_obs_kept(gram, cross, weight, block=block, keep=keep, ridge=rest, balance=sets)
    solver = {"gram_cosamp": gram_cosamp, "energy": energy_select}[method]
    return solver(gram, cross, weight, block=block, keep=keep, ridge=rest, balance=sets).kept


def choose_blindly(
    method: str, producers: Sequence[Tensor], units: int, keep: int, *, sets: Tensor | None, generator: torch.Generator
) -> Tensor:
    """:func:`choose` by ``"magnitude"`` or at ``"random"``, which need no consumers; on the CPU."""
    if method == "random":
        score = torch.rand(units, generator=generator, dtype=torch.float64, device="cpu")
    else:
        score = sum(weight.detach().double().flatten(1).square().sum(1).cpu() for weight in producers)  # type: ignore[assignment]
    return largest(score, keep, sets)


def unit_sets(width: Width) -> Tensor | None:
    """The set of each unit, int64 ``[units]``, of which equally many are kept in each; None if any may go."""
    if width.balance is None:
        return None
    sets = torch.empty(width.units, dtype=torch.int64, device="cpu")
    for number, units in enumerate(width.balance):
        sets[units] = number
    return sets


def largest(score: Tensor, keep: int, sets: Tensor | None) -> Tensor:
    """The units of the largest scores, as many in each set; ties to the lowest.

    Example:
        >>> largest(torch.tensor([3.0, 2.0, 1.0, 1.0]), 2, torch.tensor([0, 0, 1, 1]))
        tensor([0, 2])
    """
    if sets is None:
        return score.argsort(descending=True, stable=True)[:keep].sort().values
    sets = sets.to(score.device)
    number = int(sets.max()) + 1
    members = [(sets == one).nonzero().flatten() for one in range(number)]
    return torch.cat([own[largest(score[own], keep // number, None)] for own in members]).sort().values
