"""How the ops of ``torch.ops.sparse_accel`` work on sharded tensors (DTensor): on the parts, where groups or rows lie
on one process each, by sums of small results, or not at all. No weight is gathered.

``enable`` registers a rule for each op with ``torch.library``; it imports ``torch.distributed.tensor``, which takes its
time, and is called when that is there.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .sharding import is_sharded

__all__ = ["enable", "local_layout", "ready"]

# Steps and operators on lists: how many of the first arguments are lists of the parameters' shape; the layouts' place.
_ON_PARTS = {
    "prox_": (1, 1),
    "prox_sgd_step_": (3, 4),
    "rmda_step_": (4, 6),
    "ramda_step_": (5, 7),
    "prox_adamw_step_": (4, 5),
}
_enabled: set[str] = set()


def ready() -> bool:
    """Whether there may be sharded tensors."""
    return "torch.distributed.tensor" in sys.modules


def enable(library: torch.library.Library, names: Sequence[str]) -> None:
    """Register the rules of these ops; twice is once.

    Args:
        library: that defines them.
        names: of the ops.
    """
    from torch.distributed.tensor import DTensor

    for name in names:
        if name not in _enabled:
            _enabled.add(name)
            library._register_torch_dispatch_rule(name, DTensor, functools.partial(_dispatch, name))


def _dispatch(name: str, mode: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    names = [argument.name for argument in func._schema.arguments]
    arguments = [*args, *((kwargs or {}).get(key) for key in names[len(args) :])]  # a default of an op is None
    sharded = [value for value in _tensors(arguments) if is_sharded(value)]
    meshes = {value.device_mesh for value in sharded}
    if len(meshes) > 1:
        raise RuntimeError(f"{name}: expected tensors on one mesh, got {len(meshes)}")
    mesh = meshes.pop()
    if any(placement.is_partial() for value in sharded for placement in value.placements):
        raise RuntimeError(f"{name}: a tensor is a partial sum: redistribute it first")
    if all(placement.is_replicate() for value in sharded for placement in value.placements):
        return _wrapped(func(*_local(arguments)), mesh, arguments)
    if name in _ON_PARTS:
        return _on_parts(name, func, arguments, mesh)
    if name == "group_score":
        return _scores(func, *arguments, mesh=mesh)
    if name == "topk_threshold_":
        return _threshold(func, *arguments)
    raise RuntimeError(
        f"{name}: expected replicated tensors, got a DTensor of shape {tuple(sharded[0].shape)} sharded as "
        f"{sharded[0].placements}: the op needs all of it: redistribute it to Replicate()"
    )


def _tensors(values: Any) -> list[Any]:
    return [leaf for value in values for leaf in (value if isinstance(value, (list, tuple)) else [value])]


def _local(values: Sequence[Any]) -> list[Any]:
    def one(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [one(item) for item in value]
        return value.to_local() if is_sharded(value) else value

    return [one(value) for value in values]


def _wrapped(result: Any, mesh: Any, arguments: Sequence[Any]) -> Any:
    """Results of replicated tensors, which are replicated."""
    from torch.distributed.tensor import DTensor, Replicate

    if isinstance(result, (list, tuple)):
        return type(result)(_wrapped(item, mesh, arguments) for item in result)
    if isinstance(result, Tensor):
        return DTensor.from_local(result, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return result


def local_layout(
    layout: Sequence[int],
    shape: Sequence[int],
    stride: Sequence[int],
    part: Sequence[int],
    part_stride: Sequence[int],
    sharded: set[int],
) -> tuple[tuple[int, int, int, int], set[int]] | None:
    """The layout of a part of a tensor, and the sharded dimensions that run inside groups, so that these lie across
    processes; None where there is none: a sharded dimension runs over groups and inside them, or the part's memory has
    no such view.

    Args:
        layout: outer, groups, inner, blocks of the tensor's memory.
        shape: of the tensor.
        stride: of the tensor.
        part: shape of the part.
        part_stride: of the part.
        sharded: dimensions along which it is one.

    Example:
        >>> local_layout((8, 4, 9, 1), (8, 4, 3, 3), (36, 9, 3, 1), (8, 2, 3, 3), (18, 9, 3, 1), {1})
        ((8, 2, 9, 1), set())
        >>> local_layout((8, 4, 9, 1), (8, 4, 3, 3), (36, 9, 3, 1), (5, 4, 3, 3), (36, 9, 3, 1), {0})
        ((5, 4, 9, 1), {0})
    """
    if _single(layout):
        return (1, math.prod(part), 1, 1), set()
    roles = _roles(layout, shape, stride)
    if roles is None:
        return None
    across = {dim for dim in sharded if shape[dim] != 1 and any(not own for own, _ in roles[dim])}
    if any(len(roles[dim]) > 1 for dim in sharded if shape[dim] != 1):
        return None
    runs: list[tuple[bool, int]] = []  # (numbers groups, product of the sizes), neighbours in memory merged
    numbers = []
    for dim in sorted((dim for dim in range(len(shape)) if part[dim] > 1), key=lambda dim: -part_stride[dim]):
        for own, size in roles[dim]:
            size = part[dim] if len(roles[dim]) == 1 else size
            if own:
                numbers.append(dim)
            runs = [*runs[:-1], (own, runs[-1][1] * size)] if runs and runs[-1][0] == own else [*runs, (own, size)]
    if list(dict.fromkeys(numbers)) != [dim for dim in _numbering(roles, shape, stride) if part[dim] > 1]:
        return None
    ends = (False, True, False, True)  # inner, groups, outer, blocks
    inner, groups, outer, blocks = (runs.pop()[1] if runs and runs[-1][0] == own else 1 for own in ends)
    return None if runs else ((outer, groups, inner, blocks), across)


def _single(layout: Sequence[int]) -> bool:
    """Whether every weight is a group."""
    return (layout[0], layout[2], layout[3]) == (1, 1, 1)


Roles = dict[int, list[tuple[bool, int]]]


def _roles(layout: Sequence[int], shape: Sequence[int], stride: Sequence[int]) -> Roles | None:
    """Of each dimension of a tensor, whether it numbers groups, and its size; in two or more parts, where it does so in
    part (the output channels of a grouped convolution). None where the layout is not that of the memory."""
    outer, groups, inner, blocks = layout
    left, segment = [blocks, outer, groups, inner], 0
    roles: Roles = {dim: [] for dim in range(len(shape))}
    for dim in sorted((dim for dim in range(len(shape)) if shape[dim] != 1), key=lambda dim: -stride[dim]):
        rest = shape[dim]
        while rest > 1:
            while segment < 4 and left[segment] == 1:
                segment += 1
            step = math.gcd(rest, left[segment]) if segment < 4 else 1
            if step == 1:
                return None
            left[segment] //= step
            rest //= step
            roles[dim].append((segment in (0, 2), step))
    return roles


def _numbering(roles: Roles, shape: Sequence[int], stride: Sequence[int]) -> list[int]:
    """The dimensions that number groups, at least in part, as they lie in memory."""
    order = sorted((dim for dim in range(len(shape)) if shape[dim] != 1), key=lambda dim: -stride[dim])
    return [dim for dim in order if any(own for own, _ in roles[dim])]


def _sharded_dims(value: Any) -> set[int]:
    return {placement.dim % value.dim() for placement in value.placements if not placement.is_replicate()}


def _part_layout(name: str, value: Any, layout: Sequence[int], within: bool) -> tuple[int, int, int, int]:
    """The layout of the part here; RuntimeError where there is none, or groups lie across processes if ``within``."""
    part = value.to_local()
    found = local_layout(layout, value.shape, value.stride(), part.shape, part.stride(), _sharded_dims(value))
    if found is None or (within and found[1]):
        raise RuntimeError(
            f"{name}: groups of the DTensor of shape {tuple(value.shape)}, layout {tuple(layout)}, sharded as "
            f"{value.placements}, lie across processes: shard it along another dimension, or replicate it"
        )
    return found[0] if part.numel() else (1, 0, 1, 1)


def _on_parts(name: str, func: Any, arguments: list[Any], mesh: Any) -> Any:
    lists, place = _ON_PARTS[name]
    params, layouts = arguments[0], list(arguments[place])
    written = [argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments]
    here: list[int] = []
    for i, param in enumerate(params):
        if not is_sharded(param):
            raise RuntimeError(f"{name}: expected DTensors alone among sharded ones, got a plain tensor")
        here += _part_layout(name, param, layouts[4 * i : 4 * i + 4], within=True)
        for number in range(1, lists):
            value = arguments[number][i]
            if not is_sharded(value) or (value.placements != param.placements and written[number]):
                raise RuntimeError(
                    f"{name}: {func._schema.arguments[number].name}: expected DTensors sharded as their parameters"
                )
            if value.placements != param.placements:
                arguments[number] = list(arguments[number])
                arguments[number][i] = value.redistribute(mesh, param.placements)
    result = func(*_local([*arguments[:place], here, *arguments[place + 1 :]]))
    if name != "prox_" or not arguments[-1]:
        return result
    values = [_summed(result[i].clone(), param) for i, param in enumerate(params)]  # the penalty of all parts
    return _wrapped(torch.stack(values), mesh, arguments)


def _summed(value: Tensor, like: Any, operation: Any = None) -> Tensor:
    """All-reduced over the processes among which a tensor is sharded."""
    operation = torch.distributed.ReduceOp.SUM if operation is None else operation
    for place, placement in enumerate(like.placements):
        if not placement.is_replicate():
            torch.distributed.all_reduce(value, operation, group=like.device_mesh.get_group(place))
    return value


def _scores(func: Any, tensors: list[Any], layouts: list[int], kind: str, coupled: bool, *, mesh: Any) -> Any:
    """Scores of all groups, on every process: of those here, put in their places and reduced."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if coupled:
        raise RuntimeError("group_score: coupled=True: expected replicated tensors, got sharded ones")
    taken = "l2sq" if kind == "l2" else kind
    scores = []
    for i, value in enumerate(tensors):
        if not is_sharded(value):
            raise RuntimeError("group_score: expected DTensors alone among sharded ones, got a plain tensor")
        layout, part = layouts[4 * i : 4 * i + 4], value.to_local()
        here = _part_layout("group_score", value, layout, within=False)
        full = torch.zeros(layout[1] * layout[3], dtype=_score_type(part), device=part.device)
        if part.numel():
            (found,) = func([part], list(here), taken, False)
            shape, offset = compute_local_shape_and_global_offset(value.shape, mesh, value.placements)
            grid = torch.arange(len(full), device=part.device)
            dims = _group_dims(layout, value.shape, value.stride())
            for axis, dim in enumerate(dims):
                grid = grid.view([value.shape[one] for one in dims]) if axis == 0 else grid
                grid = grid.narrow(axis, offset[dim], shape[dim])
            if _single(layout) and dims:  # in the order of the part's memory
                grid = grid.permute(sorted(range(len(dims)), key=lambda axis: -part.stride()[dims[axis]]))
            if grid.numel() != found.numel() or any(type(p).__name__ == "_StridedShard" for p in value.placements):
                raise RuntimeError(
                    f"group_score: which groups of the DTensor of shape {tuple(value.shape)}, sharded as "
                    f"{value.placements}, are here is not known: redistribute it"
                )
            full[grid.reshape(-1)] = found
        _summed(full, value, torch.distributed.ReduceOp.MAX if kind == "amax" else None)
        scores.append(full.sqrt() if kind == "l2" else full)
    return _wrapped(scores, mesh, tensors)


def _score_type(part: Tensor) -> torch.dtype:
    return torch.float64 if part.dtype == torch.float64 else torch.float32


def _group_dims(layout: Sequence[int], shape: Sequence[int], stride: Sequence[int]) -> list[int]:
    """The dimensions that number the groups, in this order; none where one of them only does so in part."""
    if _single(layout):
        return sorted((dim for dim in range(len(shape)) if shape[dim] != 1), key=lambda dim: -stride[dim])
    roles = _roles(layout, shape, stride)
    dims = [] if roles is None else _numbering(roles, shape, stride)
    return dims if roles is not None and all(len(roles[dim]) == 1 for dim in dims) else []


def _threshold(func: Any, x: Any, scores: Any, k: list[int], by: str, layout: list[int], scale: Any) -> Any:
    """Rows, groups and blocks of neighbours that lie on one process each."""
    from torch.distributed.tensor import DTensor

    if not is_sharded(x):
        raise RuntimeError("topk_threshold_: x: expected a DTensor, as the scores are")
    dims, last = _sharded_dims(x), x.dim() - 1
    what = "blocks of n:m" if len(k) == 2 else {"row": "rows", "within": "groups"}.get(by, "")
    fits = (last not in dims) if len(k) == 2 else by == "row" and dims <= {0} and x.dim() > 1
    here = list(layout)
    if len(k) == 1 and by == "within" and layout:
        here, fits = list(_part_layout("topk_threshold_", x, layout, within=True)), True
    if not fits:
        raise RuntimeError(
            f"topk_threshold_: {what or f'by={by!r}: the largest of all'} of the DTensor of shape {tuple(x.shape)} "
            f"sharded as {x.placements} lie across processes: redistribute it"
        )
    if scale is not None and (last in dims or (is_sharded(scale) and _sharded_dims(scale))):
        raise RuntimeError("topk_threshold_: scale: expected all of it, and x not sharded along its columns")
    rest = []
    for name, value in (("scores", scores), ("scale", scale)):
        if value is not None and is_sharded(value):
            wanted = x.placements if name == "scores" else None
            if wanted is not None and value.placements != wanted:
                value = value.redistribute(x.device_mesh, wanted)
            value = value.to_local()
        elif value is not None and name == "scores":
            raise RuntimeError("topk_threshold_: scores: expected a DTensor, as x is")
        rest.append(value)
    kept = func(x.to_local(), rest[0], k, by, here, rest[1])
    return DTensor.from_local(kept, x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride())
