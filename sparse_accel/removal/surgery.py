"""Cutting tensors and modules as a plan says.

A plan is plain data: for every tensor that is cut the kept indices of its dimensions, for every module the integer
attributes that follow (``"config.intermediate_size"`` for one of its configuration's), and the biases that did not
exist before. ``scaled`` names weights that are multiplied besides, so that a mean over fewer channels is made up for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.channels.graph import GROUPED, Read, tensors_of
from sparse_accel.channels.liveness import Decision
from sparse_accel.channels.slots import by_group

Plan = dict[str, Any]


def tensor_plan(decision: Decision, name: str) -> dict[str, Any] | None:
    """Kept indices of a tensor, ``{"from": shape, "shape": shape, "keep": {dimension: indices}}``; None if all stay.

    For the weight of a grouped convolution the indices of dimension 1 are one list per kept group, beside those of
    dimension 0. Lists without indices of dimension 0 are one for each of its slices: the experts of a stack.
    """
    graph = decision.graph
    shape = list(graph.tensors[name].shape)
    keep: dict[str, Any] = {}
    new_shape = list(shape)
    for dim in range(len(shape)):
        if (name, dim) in graph.axes and not (dim == 1 and (name, GROUPED) in graph.axes):
            kept = decision.keeps(graph.axes[name, dim])
            if not bool(kept.all()):
                keep[str(dim)] = kept.nonzero().reshape(-1).tolist()
                new_shape[dim] = len(keep[str(dim)])
    if (name, GROUPED) in graph.axes:
        kept = decision.keeps(graph.axes[name, GROUPED])
        if not bool(kept.all()) or keep:
            blocks = kept.reshape(graph.blocks[name], -1)
            lists = [row.nonzero().reshape(-1).tolist() for row in blocks if bool(row.any())]
            keep.setdefault("0", list(range(shape[0])))
            keep["1"] = lists
            new_shape[1] = len(lists[0])
    return {"from": shape, "shape": new_shape, "keep": keep} if keep else None


def cut(tensor: Tensor, entry: Mapping[str, Any] | None) -> Tensor:
    """A new tensor with the kept indices, in the same order of dimensions in memory.

    Args:
        tensor: the dense tensor, of shape ``entry["from"]``.
        entry: see :func:`tensor_plan`; None copies.
    """
    tensor = tensor.detach()
    order = memory_order(tensor)
    if entry is None:
        return tensor.clone()
    keep = entry["keep"]
    if is_grouped(keep):
        rows = torch.tensor(keep["0"], device=tensor.device)
        columns = torch.tensor(keep["1"], device=tensor.device)
        group = torch.arange(len(rows), device=tensor.device) // (len(rows) // len(columns))
        out = tensor[rows[:, None], columns[group]]
    else:
        out = tensor
        for dim, indices in keep.items():
            index = torch.tensor(indices, device=tensor.device)
            if index.dim() == 1:
                out = out.index_select(int(dim), index)
            else:  # each slice's own
                parts = zip(out, index, strict=True)
                out = torch.stack([part.index_select(int(dim) - 1, own) for part, own in parts])
    return as_ordered(out, order)


def is_grouped(keep: Mapping[str, Any]) -> bool:
    """Whether kept indices are those of a grouped convolution's weight: of each group its own.

    Example:
        >>> is_grouped({"0": [0, 1], "1": [[0], [2]]}), is_grouped({"1": [[0], [2]]}), is_grouped({"0": [1]})
        (True, False, False)
    """
    return "0" in keep and bool(keep.get("1")) and isinstance(keep["1"][0], list)


def memory_order(tensor: Tensor) -> list[int]:
    """The dimensions from the slowest to the fastest in memory."""
    strides = tensor.stride()
    return sorted(range(tensor.dim()), key=lambda dim: -strides[dim])


def as_ordered(tensor: Tensor, order: list[int]) -> Tensor:
    """The tensor, dense in memory with its dimensions in ``order`` (slowest first).

    Example:
        >>> as_ordered(torch.zeros(2, 3), [1, 0]).stride()
        (1, 2)
    """
    return in_order(tensor.permute(order).contiguous(), order)


def in_order(tensor: Tensor, order: list[int]) -> Tensor:
    """The way back from ``tensor.permute(order)``: a view."""
    return tensor.permute(sorted(range(len(order)), key=order.__getitem__))


def make_plan(decision: Decision, model: nn.Module) -> Plan:
    """The plan of a decision: tensors cut, attributes changed, biases created."""
    graph = decision.graph
    tensors = {name: tensor_plan(decision, name) for name in graph.tensors}
    plan: Plan = {
        "tensors": {name: entry for name, entry in tensors.items() if entry is not None},
        "attributes": {},
        "created": {},
        "folded": {},
        "shifted": [],
        "scaled": {},
        "notes": list(graph.notes),
    }
    for (module, attribute), slots in graph.attributes.items():
        old, new = getattr(model.get_submodule(module), attribute), int(decision.keeps(slots).sum())
        if old != new:
            plan["attributes"].setdefault(module, {})[attribute] = [old, new]
    for norm in graph.response_norms:
        left = int(decision.keeps(norm.slots).sum())
        if left < len(norm.slots) and norm.weight not in plan["scaled"]:
            plan["scaled"][norm.weight] = len(norm.slots) / left
            plan["notes"].append(
                f"{norm.module}: divides by the mean over {left} of {len(norm.slots)} channels: {norm.weight} is "
                f"multiplied by {len(norm.slots) / left:.4g}"
            )
    for read in graph.reads:
        live_groups = int((decision.keeps(read.input_blocks)).any(1).sum())
        if read.groups != live_groups:
            plan["attributes"].setdefault(read.module, {})["groups"] = [read.groups, live_groups]
        count = int(decision.folded(read).sum())
        if count:
            plan["folded"][read.module] = count
            if read.bias or read.norm:
                plan["shifted"].append(read.bias or read.norm)
            if read.bias is None and read.norm is None:
                name = f"{read.module}.bias" if read.module else "bias"
                plan["created"][name] = {"shape": [int(decision.keeps(read.outputs).sum())], "like": read.weight}
    return plan


def cut_tensors(decision: Decision, plan: Plan, model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the compact model that differ from the dense one's, constants folded in."""
    dense = tensors_of(model)
    out = {name: cut(dense[name], entry) for name, entry in plan["tensors"].items()}
    for name, factor in plan["scaled"].items():
        out[name] = out[name] * factor
    for read in decision.graph.reads:
        folded = decision.folded(read)
        if not bool(folded.any()):
            continue
        weight = dense[read.weight].detach()
        shift = _shift(weight, read, folded)[decision.keeps(read.outputs)]
        if read.bias is None and read.norm is None:
            name = f"{read.module}.bias" if read.module else "bias"
            out[name] = shift.to(weight.device, weight.dtype)
            continue
        name = read.bias or read.norm or ""
        target = out[name] if name in out else dense[name].detach().clone()
        sign = 1.0 if read.bias is not None else -1.0
        out[name] = (target.double() + sign * shift.to(target.device)).to(target.dtype)
    return out


def _shift(weight: Tensor, read: Read, folded: Tensor) -> Tensor:
    """What the folded constants add to every output of a read, float64 [O] on the CPU.

    Args:
        weight: of the read.
        read: the linear map.
        folded: its input channels to fold, [C].
    """
    values = read.values * folded
    if read.groups == 1:  # the weight can be large
        few = folded.nonzero().reshape(-1)
        weight, values = weight.index_select(0 if read.transposed else 1, few.to(weight.device)), values[few]
    blocks = by_group(weight.double().cpu(), read.groups).sum(3)
    return ((blocks.transpose(1, 2) if read.transposed else blocks) @ values.reshape(read.groups, -1, 1)).reshape(-1)


def apply_plan(model: nn.Module, plan: Plan, tensors: Mapping[str, Tensor]) -> None:
    """Put new tensors and attributes into ``model``, in place.

    Args:
        model: of the dense structure.
        plan: see :func:`make_plan`.
        tensors: parameters and buffers to replace, by name.
    """
    dense = tensors_of(model)
    replaced: dict[int, Tensor] = {}
    for name, new in tensors.items():
        if name in dense:
            replaced[id(dense[name])] = _like(dense[name], new)
    for module in list(model.modules()):
        for table in (module._parameters, module._buffers):
            for key, tensor in list(table.items()):
                if tensor is not None and id(tensor) in replaced:
                    table[key] = replaced[id(tensor)]  # type: ignore[assignment]
    for name, entry in plan["created"].items():
        path, _, key = name.rpartition(".")
        trainable = model.get_parameter(entry["like"]).requires_grad
        model.get_submodule(path).register_parameter(key, nn.Parameter(tensors[name], requires_grad=trainable))
    for path, attributes in plan["attributes"].items():
        for key, (_, new_value) in attributes.items():
            owner, _, last = key.rpartition(".")
            setattr(attribute(model.get_submodule(path), owner), last, new_value)


def attribute(module: nn.Module, key: str) -> Any:
    """A module's attribute by a dotted path (``"config.intermediate_size"``), None where there is none."""
    found: Any = module
    for part in filter(None, key.split(".")):
        found = getattr(found, part, None)
    return found


def _like(old: Tensor, new: Tensor) -> Tensor:
    """``new`` as a parameter or buffer like ``old``."""
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def carry_gradients(model: nn.Module, small: nn.Module, plan: Plan) -> None:
    """Give the compact model's parameters the cut gradients of the dense one's."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            small.get_parameter(name).grad = cut(parameter.grad, plan["tensors"].get(name))
