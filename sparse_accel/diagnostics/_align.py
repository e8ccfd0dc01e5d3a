"""The units of one network in the order of another's: the best matching of their weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_accel.diagnostics._chain import Axis, Chain, State

SWEEPS = 50  # at most


def need_scipy() -> None:
    """Raise ImportError, in words, where SciPy is missing."""
    try:
        import scipy.optimize  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "the permutation-aligned line needs SciPy (pip install scipy), or leave it out with aligned=False"
        ) from error


def matching(chain: Chain, a: State, b: State) -> list[Tensor]:
    """Orders of b's units, by layer, in which they come closest to a's.

    Layer by layer, the sum of the inner products of matched units' weights is the largest possible (Hungarian method),
    given the orders of the layers beside it: front to back by the incoming weights, then by the outgoing ones too until
    nothing changes.

    Args:
        chain: of both networks.
        a, b: parameters.

    Returns:
        For each layer int64 [units]: unit ``order[i]`` of b belongs to unit i of a.
    """
    orders = [torch.arange(width.units, device="cpu") for width in chain.widths]
    alone = len(orders) == 1  # its match depends on no other layer's: once is enough
    for sweep in range(1 if alone else SWEEPS):
        changed = False
        for layer in range(len(orders)):
            likeness = _likeness(chain, a, b, layer, orders, outgoing=alone or sweep > 0)
            order = _assign(likeness)
            own = torch.arange(len(order), device="cpu")
            if float(likeness[own, order].sum()) > float(likeness[own, orders[layer]].sum()):
                changed |= not torch.equal(order, orders[layer])
                orders[layer] = order
        if sweep > 0 and not changed:
            break
    return orders


def _likeness(chain: Chain, a: State, b: State, layer: int, orders: Sequence[Tensor], *, outgoing: bool) -> Tensor:
    """Inner products of a's units with b's, float64 [units, units], on the CPU."""
    known = chain.permuted(
        b, [order if other != layer else torch.arange(len(order), device="cpu") for other, order in enumerate(orders)]
    )
    units = len(orders[layer])
    total = torch.zeros(units, units, dtype=torch.float64, device="cpu")
    for name, axis in [*chain.rows.items(), *(chain.columns.items() if outgoing else ())]:
        if axis.layer == layer and a[name].is_floating_point():
            total += (_flat(a[name], axis) @ _flat(known[name], axis).T).cpu()
    return total


def _flat(tensor: Tensor, axis: Axis) -> Tensor:
    """What each unit owns, float64 [units, ...]."""
    places = axis.entries(torch.arange(len(axis.table), device="cpu"), tensor)
    return tensor.double().index_select(axis.dim, places).movedim(axis.dim, 0).reshape(len(axis.table), -1)


def _assign(likeness: Tensor) -> Tensor:
    from scipy.optimize import linear_sum_assignment

    return torch.from_numpy(linear_sum_assignment(likeness.numpy(), maximize=True)[1]).long()
