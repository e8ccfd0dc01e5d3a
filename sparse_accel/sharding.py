"""Sharded parameters (DTensors, of FSDP2 and tensor parallelism): the part of this process, and what has to be summed
over processes. Nothing here gathers a tensor."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "aligned",
    "all_parts",
    "all_sums",
    "is_flat",
    "is_sharded",
    "local_index",
    "local_part",
    "reshard",
    "shard_dims",
    "shard_groups",
    "sharded_as",
    "sharding_ranks",
]


_PLAIN = (torch.nn.Parameter, Tensor)  # most are: an optimizer asks of each in every step


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor.

    Example:
        >>> is_sharded(torch.zeros(2))
        False
    """
    if type(tensor) in _PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")  # without it there is none
    return module is not None and isinstance(tensor, module.DTensor)


def is_flat(param: Tensor) -> bool:
    """Whether it is, or is a part of, parameters that an engine has flattened into one (FSDP1, DeepSpeed ZeRO-3)."""
    return bool(
        getattr(param, "_fsdp_flattened", False) or type(param).__name__ == "FlatParameter" or hasattr(param, "ds_id")
    )


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds, sharing its memory; a tensor that is not sharded is returned as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def sharded_as(part: Tensor, param: Tensor) -> Tensor:
    """This process's part of a tensor that is sharded as ``param`` is: the DTensor of it; ``part`` where it is none."""
    if not is_sharded(param):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = param.device_mesh, param.placements  # type: ignore[attr-defined]
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=param.shape, stride=param.stride())


def reshard(params: Iterable[Tensor]) -> None:
    """Have FSDP2 drop what it has gathered, after parameters were written outside of a step: a root module keeps that
    beyond its forward pass, and would compute with the values from before. Nothing happens where none is sharded."""
    if not any(is_sharded(param) for param in params):
        return
    from torch.distributed._composable_state import _module_state_mapping
    from torch.distributed.fsdp import FSDPModule

    for module in list(_module_state_mapping):
        if isinstance(module, FSDPModule):
            module.reshard()


def aligned(name: str, tensor: Tensor, param: Tensor) -> Tensor:
    """A gradient or state tensor, sharded as its parameter is; a collective where it was sharded otherwise.

    Raises:
        RuntimeError: one of the two is sharded and the other is not.
    """
    if is_sharded(tensor) != is_sharded(param):
        kinds = ("a DTensor" if is_sharded(one) else "a plain tensor" for one in (tensor, param))
        raise RuntimeError(
            "{} of the parameter of shape {} is {}, the parameter {}: load states of sharded models by "
            "torch.distributed.checkpoint.state_dict".format(name, tuple(param.shape), *kinds)
        )
    if not is_sharded(param) or tensor.placements == param.placements:  # type: ignore[attr-defined]
        return tensor
    return tensor.redistribute(param.device_mesh, param.placements)  # type: ignore[attr-defined]


def shard_groups(param: Tensor, apart: Collection[int] = ()) -> tuple[Any, ...]:
    """The process groups over which parts of a sharded parameter have to be summed.

    Args:
        param: any tensor; where it is not sharded there are none.
        apart: dimensions along which parts are kept apart: sharding along them needs no sum.

    Raises:
        RuntimeError: the parameter is a partial sum.
    """
    if not is_sharded(param):
        return ()
    mesh = param.device_mesh  # type: ignore[attr-defined]
    found = []
    for place, placement in enumerate(param.placements):  # type: ignore[attr-defined]
        if placement.is_partial():
            raise RuntimeError(f"the parameter of shape {tuple(param.shape)} is a partial sum ({placement})")
        if not placement.is_replicate() and placement.dim % param.dim() not in apart and mesh.size(place) > 1:
            found.append(mesh.get_group(place))
    return tuple(found)


def shard_dims(param: Tensor) -> set[int]:
    """The dimensions along which it is sharded."""
    if not is_sharded(param):
        return set()
    placements = param.placements  # type: ignore[attr-defined]
    return {one.dim % param.dim() for one in placements if not one.is_replicate() and not one.is_partial()}


def sharding_ranks(tensor: Tensor) -> dict[tuple[int, ...], Any]:
    """The process groups over which the parts of a tensor lie, by their ranks; none where it is not sharded.

    Raises:
        RuntimeError: it is a partial sum.
    """
    groups = shard_groups(tensor)
    return {tuple(torch.distributed.get_process_group_ranks(group)): group for group in groups}


def local_index(tensor: Tensor, dim: int) -> Tensor:
    """The indices along a dimension that this process holds, int64; all of them where it is not sharded along it.

    Raises:
        RuntimeError: they are not those that the part here has.
    """
    index = torch.arange(tensor.shape[dim], device="cpu")
    if is_sharded(tensor):
        from torch.distributed.tensor import Replicate, Shard, distribute_tensor

        at: list[Any] = []
        for one in tensor.placements:  # type: ignore[attr-defined]
            if one.is_replicate() or one.dim % tensor.dim() != dim:
                at.append(Replicate())
            elif hasattr(one, "split_factor"):
                at.append(type(one)(0, split_factor=one.split_factor))
            else:
                at.append(Shard(0))
        mesh = tensor.device_mesh  # type: ignore[attr-defined]
        index = distribute_tensor(index, mesh, at, src_data_rank=None).to_local().cpu()
        here = local_part(tensor).shape[dim]
        if index.numel() != here:
            raise RuntimeError(
                f"the parameter of shape {tuple(tensor.shape)} has {here} entries along dimension {dim} here, its "
                f"placements {tensor.placements} say {index.numel()}"  # type: ignore[attr-defined]
            )
    return index


def all_parts(values: Tensor, param: Tensor, apart: Collection[int]) -> Tensor:
    """What is known of each group on this process, ``[groups here]``, of all processes together, in an order that is
    the same on all of them. The host waits.

    Args:
        values: other than -1, one for each group of the part of ``param`` here.
        param: where it is not sharded, ``values`` come back.
        apart: dimensions of ``param`` that run over groups.
    """
    for group in shard_groups(param, set(range(param.dim())) - set(apart)):
        longest = torch.tensor(values.numel(), device=values.device)
        torch.distributed.all_reduce(longest, torch.distributed.ReduceOp.MAX, group=group)
        padded = values.new_full((int(longest),), -1)
        padded[: values.numel()] = values
        parts = [torch.empty_like(padded) for _ in range(torch.distributed.get_world_size(group))]
        torch.distributed.all_gather(parts, padded, group=group)
        values = torch.cat(parts)
        values = values[values != -1]
    return values


def all_sums(tensors: Iterable[Tensor], groups: Iterable[Any]) -> list[Tensor]:
    """Tensors of one dtype and device, each summed over the processes of all groups, by one all-reduce per group."""
    tensors = list(tensors)
    groups = list(groups)
    if not groups or not tensors:
        return tensors
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    for group in groups:
        torch.distributed.all_reduce(flat, group=group)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
