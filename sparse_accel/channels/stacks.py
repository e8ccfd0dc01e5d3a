"""Finds the experts of mixtures that are stacked in parameters, and the neurons between their matrices.

No module is called for an expert, and its matrices are used as slices, in batched or in grouped products, so that no
rule follows the neurons. They are found by trying: the module is run on inputs that it gets in the model with half of
each expert's neurons silent, and again without them. If both give the same, the entries that were taken off are those
neurons, all of them and no other; whatever the module's code looks like. The numbers in the parameters are made up for
that: a bias of zeros, or neurons that training has silenced, would not tell.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparse_accel.channels.attributes import known_sizes
from sparse_accel.channels.containers import output_tensors
from sparse_accel.channels.graph import Stack
from sparse_accel.channels.runs import Examples, run_model

_SIZES = "intermediate_size intermediate_dim moe_intermediate_size expert_dim ffn_dim d_ff mlp_dim inner_dim"
_TRIALS = 64  # of layouts of one module
_ROW = 16  # bytes

Axes = dict[str, tuple[int, Tensor]]  # by a parameter's own name


def find_stacks(model: nn.Module, examples: Examples, entered: Mapping[str, int]) -> list[Stack]:
    """The stacks of experts in a model, in the order in which they are called.

    A parameter that several modules share belongs to none; neither do modules that the examples do not reach.

    Args:
        model: in eval mode; it may be run, and holds what it held afterwards.
        examples: to run it on.
        entered: number of linear maps before each module's first call.
    """
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    candidates = {
        name: module
        for name, module in model.named_modules()
        if len(_matrices(module)) > 1 and all(uses[id(parameter)] == 1 for parameter in module._parameters.values())
    }
    found = []
    for name, inputs in _first_inputs(model, examples, candidates).items() if candidates else ():
        stack = _stack_of(candidates[name], name, inputs, entered.get(name, 0))
        if stack is not None:
            found.append(stack)
    return sorted(found, key=lambda stack: stack.position)


def _matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's own parameters ``[experts, .., ..]``, if all have as many experts, those that read last first."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return {}
    own = {
        key: parameter
        for key, parameter in module._parameters.items()
        if parameter is not None and parameter.dim() == 3 and parameter.is_floating_point() and len(parameter) > 1
    }
    if len({len(parameter) for parameter in own.values()}) != 1:
        return {}
    return dict(sorted(own.items(), key=lambda item: "down" not in item[0] and "out" not in item[0]))


def _first_inputs(model: nn.Module, examples: Examples, modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Positional and keyword inputs of the first call of each module, in the order of the calls."""
    inputs: dict[str, Any] = {}

    def hook_of(name: str) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            if name not in inputs:
                inputs[name] = _copied((args, kwargs))

        return hook

    handles = [m.register_forward_pre_hook(hook_of(name), with_kwargs=True) for name, m in modules.items()]
    try:
        with torch.no_grad():
            for example in examples.single():
                run_model(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return inputs


def _copied(tree: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), tree)


def outputs_with(module: nn.Module, inputs: Any, parameters: Mapping[str, Tensor], **attributes: int) -> list[Tensor]:
    """What a module makes of its inputs with other parameters and attributes; it is as before afterwards.

    Args:
        module: to run, in its mode, without gradients.
        inputs: positional and keyword ones.
        parameters: by their own names.
        attributes: integers.
    """
    args, kwargs = _copied(inputs)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _replaced(module, parameters, attributes):
        return [tensor.clone() for tensor in output_tensors(module(*args, **kwargs))]


@contextmanager
def _replaced(module: nn.Module, parameters: Mapping[str, Tensor], attributes: Mapping[str, int]) -> Iterator[None]:
    before = {key: module._parameters[key] for key in parameters}
    sizes = {key: getattr(module, key) for key in attributes}
    try:
        for key, tensor in parameters.items():
            module._parameters[key] = nn.Parameter(tensor, requires_grad=False)
        for key, size in attributes.items():
            setattr(module, key, size)
        yield
    finally:
        module._parameters.update(before)
        for key, size in sizes.items():
            setattr(module, key, size)


def _stack_of(module: nn.Module, name: str, inputs: Any, position: int) -> Stack | None:
    """The stack that a module's parameters are; None if no layout of them explains what it computes."""
    prefix = f"{name}." if name else ""
    numbers = _made_up(module, inputs)
    try:
        base = outputs_with(module, inputs, numbers)
    except Exception:  # such as an input that cannot be copied
        return None
    for reader, axes in itertools.islice(_layouts(module), _TRIALS):
        dim, table = axes[reader]
        weight = module._parameters[reader]
        assert weight is not None
        attributes = tuple(known_sizes(len(table), _SIZES, module))
        granule = _granule(len(table), weight)
        if not _explains(module, inputs, numbers, base, reader, axes, attributes, granule):
            continue
        bias = module._parameters.get(f"{reader}_bias")
        known = bias is not None and f"{reader}_bias" not in axes and bias.shape == (len(weight), weight.shape[3 - dim])
        return Stack(
            module=name,
            experts=len(weight),
            units=len(table),
            reader=prefix + reader,
            axes={prefix + key: axis for key, axis in axes.items()},
            bias=f"{prefix}{reader}_bias" if known else None,
            attributes=attributes,
            granule=granule,
            position=position,
            inputs=inputs,
        )
    return None


def _granule(units: int, weight: Tensor) -> int:
    granule = max(1, _ROW // weight.element_size())
    return granule if units > granule and units % granule == 0 else 1


def _vectors(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's own parameters ``[experts, ..]``: biases of its experts, most likely."""
    experts = len(next(iter(_matrices(module).values())))
    own = {key: parameter for key, parameter in module._parameters.items() if parameter is not None}
    return {key: parameter for key, parameter in own.items() if parameter.dim() == 2 and len(parameter) == experts}


def _made_up(module: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """Numbers for the experts' parameters with which all of them matter."""
    tensors = [tensor for tensor in pytree.tree_leaves(inputs) if isinstance(tensor, Tensor)]
    largest = max((t for t in tensors if t.is_floating_point()), key=lambda t: t.numel(), default=None)
    size = 1.0 if largest is None or not largest.numel() else float(largest.double().square().mean().sqrt())
    generator = torch.Generator().manual_seed(1)
    made = {}
    for key, like in {**_matrices(module), **_vectors(module)}.items():
        scale = 0.5 if like.dim() == 2 else 1 / (max(like.shape[1:]) ** 0.5 * (size or 1.0))
        made[key] = (scale * torch.randn(like.shape, generator=generator, device="cpu")).to(like)
    return made


def _layouts(module: nn.Module) -> Iterator[tuple[str, Axes]]:
    """Possible readers, each with the dimensions that hold the neurons and their entries, the usual ones first."""
    matrices, vectors = _matrices(module), _vectors(module)
    for reader, weight in matrices.items():
        for dim in (2, 1):
            units = weight.shape[dim]
            if units < 2:
                continue
            choices: list[list[tuple[str, int, Tensor] | None]] = []
            for key, other in {**matrices, **vectors}.items():
                if key != reader:
                    fits = [
                        (key, own, table) for own in range(1, other.dim()) for table in _tables(other.shape[own], units)
                    ]
                    choices.append([*fits, None] if other.dim() == 2 else [*fits])
            for choice in itertools.product(*choices):
                axes: Axes = {reader: (dim, torch.arange(units, device="cpu")[:, None])}
                axes.update((one[0], one[1:]) for one in choice if one is not None)
                yield reader, axes


def _tables(size: int, units: int) -> list[Tensor]:
    """How neurons can own the entries of a dimension: one each, or two, side by side or a half apart."""
    entries = torch.arange(size, device="cpu")
    if size == units:
        return [entries[:, None]]
    return [entries.reshape(2, units).T, entries.reshape(units, 2)] if size == 2 * units else []


def _explains(
    module: nn.Module,
    inputs: Any,
    own: Mapping[str, Tensor],
    base: list[Tensor],
    reader: str,
    axes: Axes,
    attributes: tuple[str, ...],
    step: int,
) -> bool:
    """Whether the module without half of each expert's neurons computes what it does with the reader blind to them.

    What reads them is linear; a matrix that makes neurons can be blind to some with the same effect, but is not.

    Args:
        module: with the experts.
        inputs: of it.
        own: numbers for the experts' parameters.
        base: what the module makes of these.
        reader, axes, attributes, step: of the layout in question.
    """
    generator = torch.Generator().manual_seed(0)
    units, experts = len(axes[reader][1]), len(own[reader])
    count = max(1, units // 2 // step * step)
    order = torch.rand(experts, units, generator=generator, device="cpu").argsort(1)
    kept, gone = order[:, :count].sort(1).values, order[:, count:]
    blind = own[reader].clone()
    dim = axes[reader][0]
    blind.scatter_(dim, spread(gone, dim, blind), 0)
    small = {
        key: own[key].gather(dim, spread(table[kept].flatten(1).sort(1).values, dim, own[key]))
        for key, (dim, table) in axes.items()
    }
    try:
        expected = outputs_with(module, inputs, {**own, reader: blind})
        came = outputs_with(module, inputs, {**own, **small}, **dict.fromkeys(attributes, count))
        scaled = outputs_with(module, inputs, {**own, reader: -2 * own[reader]})
        without = outputs_with(module, inputs, {**own, reader: torch.zeros_like(own[reader])})
    except Exception:  # shapes that do not go together, in any operation
        return False
    if [t.shape for t in came] != [t.shape for t in expected]:
        return False
    tensors = [t for t in zip(base, expected, came, strict=True) if t[0].is_floating_point() and t[0].numel()]
    if not tensors:
        return False
    tolerance = max(1e-4, 16 * torch.finfo(own[reader].dtype).eps)
    changed = max(_difference(old, new) for old, new, _ in tensors)
    same = all(_difference(one, other) <= tolerance for _, one, other in tensors)
    linear = all(
        _difference(2 * (old - none), none - other) <= tolerance
        for old, none, other in zip(base, without, scaled, strict=True)
        if old.is_floating_point() and old.numel()
    )
    return changed > 2 * tolerance and same and linear


def spread(indices: Tensor, dim: int, like: Tensor) -> Tensor:
    """Indices [experts, n] of a dimension of each expert's slice, for ``gather`` and ``scatter``."""
    indices = indices.to(like.device)
    if like.dim() == 2:
        return indices
    shape = [len(indices), -1, -1]
    shape[3 - dim] = like.shape[3 - dim]
    return indices.unsqueeze(3 - dim).expand(shape)


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest element; infinite where it is no number."""
    size = max(float(one.abs().max()), float(other.abs().max()))
    found = float((one - other).abs().max()) / size if size else 0.0
    return found if found == found else float("inf")
