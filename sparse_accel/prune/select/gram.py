"""Which units of a linear consumer to keep, and its refit weights, from second moments alone.

H ``[n, N]`` are the consumer's inputs over N positions, T ``[d, N]`` what its output should be. All that is needed is
the Gram matrix ``G = H H^T`` and ``M = T H^T``, centred (the means give the bias), as sums or as means. Unit i owns
the ``block`` neighbouring rows ``i block, ..., (i + 1) block - 1`` of H: 1 for a neuron, the taps of a kernel for a
channel of a convolution, the head's dimension for an attention head. With S the units kept, every function minimizes

    ``f_S(W) = |T - W H_S|^2 + delta |W - W0_S|^2``,  ``delta = ridge * mean diag G``

around the consumer's own weights W0, in float64. Grouped consumers have one problem per group: ``gram`` is then
``[groups, n, n]``, unit numbers run through the groups, and all groups keep equally many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_accel.ops import gram_obs as eliminate
from sparse_accel.prune.select.gram_problem import GramProblem


@dataclass(frozen=True)
class GramSelection:
    """Units kept, and the consumer's weights on them.

    Attributes:
        kept: their numbers, ascending, int64 ``[keep]``.
        weight: the minimizer on them, float64 ``[d, keep * block]``; ``[groups, d, keep / groups * block]`` for a
            grouped consumer.
        order: units in order of removal; empty where the method has none.
        damages: what the removal of each unit of ``order`` adds to the least error (Gram-OBS), or its score.
        explained: ``2 tr(M W^T) - tr(W G W^T)``: the target's energy ``|T|^2`` less the residual's.
        delta: the ridge used, one per group.
        units: number of units before.
    """

    kept: Tensor
    weight: Tensor
    order: Tensor
    damages: Tensor
    explained: float
    delta: tuple[float, ...]
    units: int

    def at(self, keep: int) -> Tensor:
        """The units left when ``keep`` are, ascending: any number down to where ``order`` ends.

        Raises:
            ValueError: ``order`` does not go that far.
        """
        last = self.units - len(self.order)
        if not last <= keep <= self.units:
            raise ValueError(f"keep: expected {last} to {self.units}, got {keep}")
        return _complement(self.order[: self.units - keep], self.units)


def gram_obs(
    gram: Tensor,
    cross: Tensor,
    weight: Tensor,
    *,
    block: int = 1,
    keep: int | float,
    ridge: float = 1e-3,
    until: int | None = None,
    balance: int | Tensor | None = None,
) -> GramSelection:
    """Backward elimination: remove the unit whose removal, with all others refit, raises the least error the least.

    Exact at every step (optimal brain surgeon on blocks, LeCun et al. 1990, Hassibi and Stork 1993): the damages add
    up to the rise of ``min f_S``. Ties go to the lowest number.

    Args:
        gram: G ``[n, n]``, or ``[groups, n, n]``.
        cross: M ``[d, n]``, or ``[groups, d, n]``.
        weight: W0, of the shape of ``cross``.
        block: columns of each unit.
        keep: number of units to keep, or a share in (0, 1) of them, rounded down.
        ridge: see the module.
        until: go on removing until so many are left, for ``order`` and ``damages``; ``keep`` if None.
        balance: keep equally many of every set: the number of sets of neighbouring units, or the set of each unit,
            int64 ``[units]``. Units are then removed in rounds of one per set.

    Raises:
        ValueError: shapes or numbers that do not fit.

    Example:
        >>> gram = torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
        >>> weight = torch.tensor([[1.0, 1.0, 1.0]], dtype=torch.float64)
        >>> chosen = gram_obs(gram, weight @ gram, weight, keep=2, ridge=0.0)
        >>> chosen.kept, chosen.damages
        (tensor([0, 1]), tensor([1.], dtype=torch.float64))
    """
    problem = GramProblem(gram, cross, weight, block, keep, ridge, balance)
    last = problem.keep if until is None else problem.count("until", until, 0)
    if last > problem.keep:
        raise ValueError(f"until: expected at most keep, {problem.keep}, got {until}")
    order, damages = _eliminated(problem, last)
    return _selection(problem, _complement(order[: problem.units - problem.keep], problem.units), order, damages.T)


def gram_obs_kept(
    gram: Tensor,
    cross: Tensor,
    weight: Tensor,
    *,
    block: int = 1,
    keep: int | float,
    ridge: float = 1e-3,
    balance: int | Tensor | None = None,
) -> Tensor:
    """The units that :func:`gram_obs` keeps, ascending, without their weights: for who refits with another target.

    Args:
        gram, cross, weight, block, keep, ridge, balance: as for :func:`gram_obs`.

    Raises:
        ValueError: shapes or numbers that do not fit.

    Example:
        >>> gram, weight = torch.diag(torch.tensor([1.0, 9.0, 4.0])), torch.tensor([[3.0, 1.0, 2.0]])
        >>> gram_obs_kept(gram, weight @ gram, weight, keep=1)
        tensor([2])
    """
    problem = GramProblem(gram, cross, weight, block, keep, ridge, balance)
    order, _ = _eliminated(problem, problem.keep)
    return _complement(order, problem.units)


def _eliminated(problem: GramProblem, last: int) -> tuple[Tensor, Tensor]:
    """Units in order of removal until ``last`` are left, and the cost of each, ``[groups, steps]``."""
    solution = problem.solution()
    inverse = problem.inverse()
    steps = (problem.units - last) // problem.groups
    order, damages = eliminate(inverse, solution, problem.block, steps, problem.sets)
    return problem.numbered(order).T.flatten(), damages


def gram_cosamp(
    gram: Tensor,
    cross: Tensor,
    weight: Tensor,
    *,
    block: int = 1,
    keep: int | float,
    ridge: float = 1e-3,
    iterations: int = 20,
    balance: int | Tensor | None = None,
) -> GramSelection:
    """CoSaMP on units: i-SpaSP's loop with energies in place of sums, and with its least squares.

    Each iteration scores the units by the energy ``tr(E_c (G_cc)^-1 E_c^T)`` that each could take out of the residual,
    E its correlation ``M - W G``; refits on the ``2 keep`` best and those kept before; and keeps those of the largest
    energy ``tr(W_c G_cc W_c^T)``. Ends when the set repeats; the set of the least error is taken.

    Args:
        iterations: at most.
        gram, cross, weight, block, keep, ridge, balance: as for :func:`gram_obs`.

    Raises:
        ValueError: shapes or numbers that do not fit.

    Example:
        >>> gram, weight = torch.eye(3, dtype=torch.float64), torch.tensor([[1.0, 3.0, 2.0]], dtype=torch.float64)
        >>> gram_cosamp(gram, weight @ gram, weight, keep=2).kept
        tensor([1, 2])
    """
    problem = GramProblem(gram, cross, weight, block, keep, ridge, balance)
    if iterations < 1:
        raise ValueError(f"iterations: expected at least 1, got {iterations}")
    own = problem.diagonal_blocks()
    factors = torch.linalg.cholesky(own + problem.delta[:, None, None, None] * problem.eye(block))
    kept = problem.unit_mask(())
    best, best_loss, seen = kept, math.inf, set()
    current = torch.zeros_like(problem.cross)
    for _ in range(iterations):
        residual = problem.by_unit(problem.cross - current @ problem.gram)  # [groups, units, block, d]
        score = torch.linalg.solve_triangular(factors, residual, upper=False).square().sum((2, 3))
        candidates = kept | problem.largest(score, 2 * problem.keep)
        fitted = problem.by_unit(problem.refit(candidates))
        energy = (fitted * (own @ fitted)).sum((2, 3))
        kept = problem.largest(energy.masked_fill(~candidates, -1.0), problem.keep)
        current = problem.refit(kept)
        loss = problem.loss(current)
        if loss < best_loss:
            best, best_loss = kept, loss
        key = tuple(kept.flatten().tolist())
        if key in seen:
            break
        seen.add(key)
    empty = problem.gram.new_empty(0)
    return _selection(problem, best.flatten().nonzero().flatten(), empty.long(), empty)


def energy_select(
    gram: Tensor,
    cross: Tensor,
    weight: Tensor,
    *,
    block: int = 1,
    keep: int | float,
    ridge: float = 1e-3,
    balance: int | Tensor | None = None,
) -> GramSelection:
    """Keep the units of the largest energy ``tr(W0_c G_cc W0_c^T)``, and refit: one pass, no elimination.

    ``order`` and ``damages`` hold the units removed by rising energy, and those energies.

    Args:
        gram, cross, weight, block, keep, ridge, balance: as for :func:`gram_obs`.

    Raises:
        ValueError: shapes or numbers that do not fit.

    Example:
        >>> gram, weight = torch.diag(torch.tensor([1.0, 9.0, 4.0])), torch.tensor([[3.0, 1.0, 2.0]])
        >>> energy_select(gram, weight @ gram, weight, keep=1).kept
        tensor([2])
    """
    problem = GramProblem(gram, cross, weight, block, keep, ridge, balance)
    own = problem.by_unit(problem.weight)
    energy = (own * (problem.diagonal_blocks() @ own)).sum((2, 3))
    kept = problem.largest(energy, problem.keep).flatten()
    removed = (~kept).nonzero().flatten().flip(0)
    ranks = energy.flatten()[removed].argsort(stable=True)
    return _selection(problem, kept.nonzero().flatten(), removed[ranks], energy.flatten()[removed[ranks]])


def refit(
    gram: Tensor,
    cross: Tensor,
    weight: Tensor,
    kept: Tensor,
    *,
    block: int = 1,
    ridge: float = 1e-3,
    semidefinite: bool = False,
) -> Tensor:
    """The minimizer of ``f_S``, ``(M_S + delta W0_S) (G_SS + delta I)^-1``: the consumer's weights on the units kept.

    Args:
        kept: numbers of the units kept, int64, ascending; as many in each group.
        gram, cross, weight, block, ridge: as for :func:`gram_obs`; delta is that of the whole G.
        semidefinite: the caller knows that G is (a sum of ``h h^T``): it is not factored as a whole to see.

    Returns:
        float64 ``[d, len(kept) * block]``; ``[groups, d, len(kept) / groups * block]`` for a grouped consumer.

    Raises:
        ValueError: shapes or numbers that do not fit.

    Example:
        >>> gram, weight = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([[1.0, 1.0]])
        >>> refit(gram, weight @ gram, weight, torch.tensor([0]), ridge=0.0)
        tensor([[1.5000]], dtype=torch.float64)
    """
    return Refit(gram, cross, weight, kept, block=block, ridge=ridge, semidefinite=semidefinite)(cross)


class Refit:
    """:func:`refit` for several M, checked and factored once: call it with each, for the same bits.

    Args:
        gram, cross, weight, kept, block, ridge, semidefinite: as for :func:`refit`; ``cross`` gives the shape.

    Raises:
        ValueError: shapes or numbers that do not fit.

    Example:
        >>> gram, weight = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([[1.0, 1.0]])
        >>> again = Refit(gram, weight @ gram, weight, torch.tensor([0]), ridge=0.0)
        >>> again(weight @ gram), again(2 * weight @ gram)
        (tensor([[1.5000]], dtype=torch.float64), tensor([[3.0000]], dtype=torch.float64))
    """

    def __init__(
        self,
        gram: Tensor,
        cross: Tensor,
        weight: Tensor,
        kept: Tensor,
        *,
        block: int = 1,
        ridge: float = 1e-3,
        semidefinite: bool = False,
    ) -> None:
        problem = GramProblem(gram, cross, weight, block, None, ridge, None, semidefinite=semidefinite)
        kept = torch.as_tensor(kept, device=problem.gram.device)
        if kept.dim() != 1 or kept.is_floating_point() or (kept.numel() and not bool((kept.diff() > 0).all())):
            raise ValueError(f"kept: expected ascending unit numbers [keep], got {tuple(kept.shape)}, {kept.dtype}")
        if kept.numel() and not (int(kept[0]) >= 0 and int(kept[-1]) < problem.units):
            raise ValueError(f"kept: expected numbers in [0, {problem.units}), got {int(kept[0])} to {int(kept[-1])}")
        mask = problem.unit_mask(kept)
        counts = mask.sum(1).tolist()
        if any(count * problem.groups != kept.numel() for count in counts):
            raise ValueError(f"kept: expected as many units in each of {problem.groups} groups, got {counts}")
        problem.hold(mask)
        self._problem, self._mask = problem, mask

    def __call__(self, cross: Tensor) -> Tensor:
        """The minimizer: see :func:`refit`."""
        problem, mask = self._problem, self._mask
        problem.take_cross(cross)
        return problem.shaped(problem.compact(problem.refit(mask), mask))


def _selection(problem: GramProblem, kept: Tensor, order: Tensor, damages: Tensor) -> GramSelection:
    mask = problem.unit_mask(kept)
    weight = problem.refit(mask)
    return GramSelection(
        kept=kept,
        weight=problem.shaped(problem.compact(weight, mask)),
        order=order,
        damages=problem.as_given(damages.flatten()),
        explained=float(problem.as_given(torch.tensor(problem.explained(weight), dtype=torch.float64, device="cpu"))),
        delta=tuple(problem.as_given(problem.delta).tolist()),
        units=problem.units,
    )


def _complement(removed: Tensor, units: int) -> Tensor:
    mask = torch.ones(units, dtype=torch.bool, device=removed.device)
    mask[removed] = False
    return mask.nonzero().flatten()
