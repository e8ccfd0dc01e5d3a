"""Neurons of stacked experts: what a plan says of them, which are silent, and readers that are blind to some."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparse_accel.channels.graph import Stack, tensors_of
from sparse_accel.channels.stacks import outputs_with
from sparse_accel.removal.surgery import Plan
from sparse_accel.report import percent


def plan_stacks(plan: Plan, stacks: Sequence[Stack], kept: Mapping[str, Tensor], model: nn.Module) -> None:
    """Add to a plan what becomes of the parameters and the attributes of stacks.

    Args:
        plan: gets ``tensors`` and ``attributes``.
        stacks: of the model.
        kept: neurons, int64 [experts, n], by the stack's module; others stay whole.
        model: the dense model.
    """
    tensors = tensors_of(model)
    for stack in stacks:
        if stack.module not in kept or kept[stack.module].shape[1] == stack.units:
            continue
        for name, (dim, _) in stack.axes.items():
            shape = list(tensors[name].shape)
            indices = stack.indices(name, kept[stack.module])
            small = [*shape[:dim], indices.shape[1], *shape[dim + 1 :]]
            plan["tensors"][name] = {"from": shape, "shape": small, "keep": {str(dim): indices.tolist()}}
        for key in stack.attributes:
            old = getattr(model.get_submodule(stack.module), key)
            plan["attributes"].setdefault(stack.module, {})[key] = [old, kept[stack.module].shape[1]]


def blind_readers(model: nn.Module, stacks: Sequence[Stack], kept: Mapping[str, Tensor]) -> None:
    """Zero, in place, what reads the neurons that are not kept."""
    for stack in stacks:
        if stack.module in kept:
            reader = model.get_parameter(stack.reader)
            silent = torch.ones(stack.experts, stack.units, dtype=torch.bool, device="cpu")
            silent.scatter_(1, kept[stack.module], False)
            fill(reader, stack, silent, 0.0)


def fill(tensor: Tensor, stack: Stack, neurons: Tensor, value: float | Tensor) -> None:
    """Overwrite the reader's entries of some neurons.

    Args:
        tensor: the reader, or one like it.
        stack: whose reader it is.
        neurons: bool [experts, units].
        value: to write.
    """
    mask = neurons.to(tensor.device).unsqueeze(3 - stack.axes[stack.reader][0]).expand(tensor.shape)
    with torch.no_grad():
        tensor.copy_(torch.where(mask, torch.as_tensor(value, device=tensor.device).to(tensor), tensor))


def silent_neurons(model: nn.Module, stack: Stack) -> Tensor:
    """Which neurons add nothing to what their expert computes, bool [experts, units].

    Those that the reader has zeros for; and those of which a row is zero in a matrix that makes them, if their
    activation is then zero. That is tried: every expert in turn takes the place of all, with a reader that would show
    what such neurons give.

    Args:
        model: with the stack, in eval mode; it holds what it held afterwards.
        stack: of it.
    """
    module, tensors = model.get_submodule(stack.module), tensors_of(model)
    reader = tensors[stack.reader].detach()
    dim = stack.axes[stack.reader][0]
    silent = (reader == 0).all(3 - dim).cpu()
    zero_rows = []
    for name, (own, table) in stack.axes.items():
        if name != stack.reader and tensors[name].dim() == 3:
            zeros = (tensors[name].detach() == 0).all(3 - own).cpu()
            zero_rows += list(zeros[:, table].unbind(2))  # [experts, units], one for each entry of a neuron
    kinds = torch.stack(zero_rows, 2)
    start = len(stack.module) + 1 if stack.module else 0
    for expert in range(stack.experts):
        open_ = kinds[expert].any(1) & ~silent[expert]
        if not bool(open_.any()):
            continue
        everywhere = {
            name[start:]: tensors[name].detach()[expert].expand_as(tensors[name]).clone()
            for name in [*stack.axes, *([stack.bias] if stack.bias else [])]
        }
        expected = outputs_with(module, stack.inputs, everywhere)
        for kind in torch.unique(kinds[expert][open_], dim=0):
            neurons = open_ & (kinds[expert] == kind).all(1)
            shown = everywhere[stack.reader[start:]].clone()
            fill(shown, stack, neurons.expand(stack.experts, -1), 1 + reader.abs().max())
            came = outputs_with(module, stack.inputs, {**everywhere, stack.reader[start:]: shown})
            if all(torch.equal(one, other) for one, other in zip(came, expected, strict=True)):
                silent[expert] |= neurons
    return silent


def without_silent(model: nn.Module, stacks: Sequence[Stack], round_to: int = 1) -> tuple[dict[str, Tensor], list[str]]:
    """The neurons that stay when as many silent ones as all experts of a stack have are removed.

    Args:
        model: with the stacks, in eval mode; it holds what it held afterwards.
        stacks: of it.
        round_to: every expert keeps a multiple of so many neurons, or all: of the silent ones those with the largest
            weights.

    Returns:
        Neurons kept, int64 [experts, n], by the stack's module, where any go; and a note for every stack that keeps
        silent ones.
    """
    kept: dict[str, Tensor] = {}
    notes = []
    for stack in stacks:
        silent = silent_neurons(model, stack)
        fewest = int(silent.sum(1).min())
        left = max(1, stack.units - fewest)
        multiple = math.lcm(stack.granule, round_to)
        left = min(stack.units, -(-left // multiple) * multiple)
        if left < stack.units:
            size = _sizes(model, stack).masked_fill(~silent, torch.inf)
            kept[stack.module] = size.argsort(dim=1, stable=True, descending=True)[:, :left].sort(1).values
        staying = int(silent.sum()) - stack.experts * (stack.units - left)
        if staying:
            share = 100 * staying / (stack.experts * left)
            least = int(silent.sum(1).argmin())
            notes.append(
                f"{stack.module or 'model'} ({type(model.get_submodule(stack.module)).__name__}): {staying} of "
                f"{stack.experts * left} neurons left add nothing ({share:.1f} %): every expert keeps equally many, in "
                f"multiples of {multiple}, and expert {least} has only {fewest} such"
            )
    return kept, notes


def _sizes(model: nn.Module, stack: Stack) -> Tensor:
    """Squared norms of all that the matrices hold of each neuron, float64 [experts, units]."""
    total = torch.zeros(stack.experts, stack.units, dtype=torch.float64, device="cpu")
    for name, (dim, table) in stack.axes.items():
        parameter = model.get_parameter(name).detach()
        if parameter.dim() == 3:
            total += parameter.double().square().sum(3 - dim).cpu()[:, table].sum(2)
    return total


def zeros_left(model: nn.Module, stacks: Sequence[Stack]) -> list[str]:
    """A note for every stack of matrices that holds rows or columns of zeros and is none of the stacks understood."""
    known = {name for stack in stacks for name in stack.axes}
    total = sum(parameter.numel() for parameter in model.parameters())
    notes = []
    for name, parameter in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        if parameter.dim() != 3 or len(parameter) < 2 or name in known or isinstance(module, nn.modules.conv._ConvNd):
            continue
        zero = parameter.detach() == 0
        lines = {"rows": int(zero.all(2).sum()), "columns": int(zero.all(1).sum())}
        if any(lines.values()):
            found = " and ".join(f"{count} {kind}" for kind, count in lines.items() if count)
            notes.append(
                f"{name} ({type(module).__name__}): {found} of zeros stay: what they are is not found: "
                f"{percent(parameter.numel(), total)} of the parameters"
            )
    return notes
