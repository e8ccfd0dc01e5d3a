"""Which parameters go with each unit of a model, for penalties that take them as one group."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparse_accel._modes import outside_inference_mode
from sparse_accel.channels.graph import GROUPED, ChannelGraph, Stack, UnsupportedModelError
from sparse_accel.channels.runs import Examples, Method
from sparse_accel.channels.width_search import widths_of
from sparse_accel.channels.widths import ExpertWidth, Width
from sparse_accel.groups.coupled import CoupledGroups, CoupledWidth, Member
from sparse_accel.removal.remove import followed
from sparse_accel.wrappers import bare_model

__all__ = ["coupled_groups"]


@outside_inference_mode
def coupled_groups(
    model: nn.Module,
    example: Any,
    *,
    only: Sequence[str] | None = None,
    methods: Sequence[Method] | None = None,
    unvisited: str | None = None,
) -> CoupledGroups:
    """Groups of all weights that go with a unit: a neuron, a channel, an attention head, a neuron of an expert.

    The group of a unit has the filters or rows that make it (gate and up projection; queries, keys and values), its
    bias, its entries of the norms on the way, and the weights of every layer that reads it. Where query heads share
    keys and values, a key-value head with all its query heads is one group. Under ``GroupLasso`` the optimizers shrink
    what belongs to a unit together (one norm, one threshold or scalar root), so that it becomes zero as a whole, and
    :func:`sparse_accel.compact` removes it.

    A weight that makes units of one width and reads those of another (the second of three convolutions) belongs to
    the units that it reads: a reader of zeros is what makes a unit removable. So the groups never overlap, and the
    proximal step is exact.

    Names stay where a model is sharded afterwards (``fully_shard``, ``parallelize_module``), and so do the groups: find
    them first, on the whole model, and give them to ``param_groups`` of the sharded one.

    A unit that is zero throughout gets no gradient any more: where the weights themselves are zero (ProxSGD,
    ProxAdamW, momentum 1) it stays so. RMDA and RAMDA with a momentum below 1 train on weights that only decay.

    Args:
        model: in train or eval mode; neither it nor its mode changes.
        example: its input: a tensor, a tuple of positional inputs, a dict of keyword inputs, a list of such tuples and
            dicts or :class:`sparse_accel.Examples`, on the model's device.
        only: patterns of widths' names (shell wildcards), such as ``["*mlp*"]``; others are left out.
        methods, unvisited: as for :func:`sparse_accel.prune.find_widths`, which says what is found.

    Returns:
        The groups, for ``param_groups(model, penalty, coupled=groups)`` and ``sparsity(model, groups)``. ``refused``
        has the reasons why layers have none: they are read by a grouped convolution, by a frozen weight, or appear in
        an output.

    Raises:
        UnsupportedModelError: the forward pass cannot be followed; the message names the module.
        ValueError: a pattern of ``only`` fits no width.

    Example:
        >>> import sparse_accel as sa
        >>> net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> groups = sa.coupled_groups(net, torch.zeros(1, 4))
        >>> print(groups)
        width  kind      units  weights each  members
        0      channels  6      7             0.weight, 0.bias, 2.weight
        2: (Linear): its outputs must stay
        >>> opt = sa.RMDA(sa.param_groups(net, sa.GroupLasso(1e-3), coupled=groups), lr=0.1)
    """
    model = bare_model(model, UnsupportedModelError)
    graph, _ = followed(model, Examples.of(example, methods, unvisited))
    widths = widths_of(graph, model)
    refused = {name: reason.removeprefix(name).strip() for name, reason in widths.refused.items()}
    chosen: list[Width] = []
    for width in widths:
        if only is None or any(fnmatchcase(width.name, pattern) for pattern in only):
            chosen.append(width)
        else:
            refused[width.name] = "only= leaves it out"
    for pattern in only or ():
        if not any(fnmatchcase(width.name, pattern) for width in widths):
            raise ValueError(f"only: no width fits {pattern!r}: there are {[width.name for width in widths]}")
    places = _places(graph, model, widths)
    found = []
    for width in chosen:
        own = _of_stack(width.stack, model) if isinstance(width, ExpertWidth) else places.get(width.name, [])
        reason = _obstacle(graph, model, width, own)
        if reason:
            refused[width.name] = reason
        else:
            found.append(_coupled(width, own, model))
    return CoupledGroups(found, refused)


def _places(graph: ChannelGraph, model: nn.Module, widths: Sequence[Width]) -> dict[str, list[Member]]:
    """The entries of parameters that belong to each width, by its name: of each parameter along one dimension."""
    roots = graph.slots.roots()
    owner = np.full(len(roots), -1, dtype=np.int64)
    unit = np.full(len(roots), -1, dtype=np.int64)
    for number, width in enumerate(widths):
        owner[width.classes] = number
        unit[width.classes] = np.arange(len(width.classes))
    reading = {(read.weight, 0 if read.transposed else 1) for read in graph.reads}
    dims: dict[str, list[int]] = {}
    for name, dim in graph.axes:
        if dim != GROUPED and (owner[roots[graph.axes[name, dim].numpy()]] >= 0).any():
            dims.setdefault(name, []).append(dim)
    parameters = dict(model.named_parameters())
    found: dict[str, list[Member]] = {}
    for name, parameter in parameters.items():
        if not parameter.requires_grad or name not in dims:
            continue
        dim = min(dims[name], key=lambda dim: ((name, dim) not in reading, dim))
        slots = roots[graph.axes[name, dim].numpy()]
        for number in np.unique(owner[slots]):
            if number >= 0:
                width = widths[number]
                units = np.where(owner[slots] == number, unit[slots], -1)
                found.setdefault(width.name, []).append(_member(name, dim, units, width.units))
    return found


def _member(name: str, dim: int, units: np.ndarray, count: int) -> Member:
    """The member with these units along a dimension; -1 for entries of none."""
    order = np.argsort(units, kind="stable")[int((units < 0).sum()) :]
    whole = len(order) == len(units) and bool((order == np.arange(len(order))).all())
    return Member(name, dim, len(order) // count, None if whole else tuple(order.tolist()))


def _of_stack(stack: Stack, model: nn.Module) -> list[Member]:
    found = []
    for name, (dim, table) in stack.axes.items():
        if model.get_parameter(name).requires_grad:
            flat = table.reshape(-1)
            whole = torch.equal(flat, torch.arange(model.get_parameter(name).shape[dim], device="cpu"))
            found.append(
                Member(name, dim, table.shape[1], None if whole else tuple(flat.tolist()), experts=stack.experts)
            )
    return found


def _obstacle(graph: ChannelGraph, model: nn.Module, width: Width, own: Sequence[Member]) -> str:
    """Why the units of a width would not be removable once their group is zero; empty if they are."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    members = {(member.parameter, member.dim) for member in own}
    if isinstance(width, ExpertWidth):
        reader = width.stack.reader
        return "" if (reader, width.stack.axes[reader][0]) in members else f"{reader}, which reads it, is frozen"
    for consumer in width.consumers:
        if consumer.groups > 1:
            return f"{consumer.module}, which reads it, is a grouped convolution"
        if consumer.weight not in trained:
            return f"{consumer.weight}, which reads it, is frozen"
        if (consumer.weight, 0 if consumer.transposed else 1) not in members:
            return f"{consumer.weight} reads units along both of its dimensions"
    return ""


def _coupled(width: Width, own: Sequence[Member], model: nn.Module) -> CoupledWidth:
    units = width.stack.experts * width.units if isinstance(width, ExpertWidth) else width.units
    size = 0
    for member in own:
        parameter: Tensor = model.get_parameter(str(member.parameter))
        length = parameter.shape[member.dim] * max(1, member.experts)
        size += member.each * (parameter.numel() // length)
    return CoupledWidth(width.name, width.kind, units, size, tuple(own))
