"""Which layers may become sparse ones, and what they are given in a run of the example."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparse_accel.acceleration.layers import SparseLayer, matrix_of
from sparse_accel.channels.graph import is_conv1d_linear
from sparse_accel.channels.runs import run_as_is
from sparse_accel.ops.bitmask import VALUE_DTYPES

FEW_ZEROS = 0.05  # a share of zeros that nothing is gained by
_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


@dataclass
class Candidate:
    """A layer that may become a sparse one.

    Attributes:
        name: of the module.
        module: dense.
        sparsity: share of its weights that are zero.
        inputs: what it is given in a run of the example, one for each shape.
        counts: how often inputs of each shape come.
    """

    name: str
    module: nn.Module
    sparsity: float
    inputs: dict[Any, Tensor] = field(default_factory=dict)
    counts: Counter[Any] = field(default_factory=Counter)


def find_candidates(model: nn.Module) -> tuple[list[Candidate], dict[str, str]]:
    """Layers of a model, and the names of linear layers and convolutions that stay dense, with the reason."""
    found: list[Candidate] = []
    left: dict[str, str] = {}
    holders: Counter[int] = Counter()
    for module in model.modules():
        holders.update({id(parameter) for parameter in module._parameters.values() if parameter is not None})
    names: Counter[int] = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for name, module in model.named_modules():
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Bilinear)
        if isinstance(module, SparseLayer) or not (isinstance(module, kinds) or is_conv1d_linear(module)):
            continue
        reason = _why_not(module, holders, names)
        matrix = None if reason else matrix_of(module)
        if matrix is None:
            left[name] = reason or "a convolution of more than one tap, with padding or groups"
            continue
        zeros = 1 - int(torch.count_nonzero(matrix)) / max(1, matrix.numel())
        if zeros < FEW_ZEROS:
            left[name] = f"fewer than {100 * FEW_ZEROS:.0f} % of its weights are zero"
            continue
        found.append(Candidate(name, module, zeros))
    return found, left


def _why_not(module: nn.Module, holders: Counter[int], names: Counter[int]) -> str:
    weight = module._parameters.get("weight")
    if parametrize.is_parametrized(module):
        return "its weight is parametrized"
    if weight is None:
        return "it has no weight of its own"
    if type(module) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) and not is_conv1d_linear(module):
        return f"a {type(module).__name__}, which may do more than its base class"
    if type(weight) is not nn.Parameter or weight.layout != torch.strided:
        return f"its weight is a {type(weight).__name__} with {weight.layout}"
    if names[id(module)] > 1:
        return "the module is used under several names"
    if any(parameter is not None and holders[id(parameter)] > 1 for parameter in module._parameters.values()):
        return "its weight or bias is shared with another module"
    if set(module._parameters) - {"weight", "bias"} or module._buffers or module._modules:
        return "it has tensors or modules besides weight and bias"
    if any(getattr(module, hooks, None) for hooks in _HOOKS):
        return "it has hooks"
    if "forward" in vars(module):
        return "its forward was replaced"
    if weight.dtype not in VALUE_DTYPES:
        return f"its weight is {weight.dtype}"
    if weight.device.type not in ("cpu", "cuda"):
        return f"its weight is on {weight.device}"
    return ""


def record_inputs(model: nn.Module, candidates: list[Candidate], example_inputs: Any) -> Any:
    """Run the example once; the outputs. Every candidate's inputs are kept, one of each shape, as copies."""

    def keep(candidate: Candidate) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()), None)
            if not isinstance(x, Tensor) or type(x) not in (Tensor, nn.Parameter):
                candidate.counts[None] += 1
                return
            key = (tuple(x.shape), x.dtype, x.stride())
            candidate.counts[key] += 1
            if key not in candidate.inputs:
                candidate.inputs[key] = x.detach().clone(memory_format=torch.preserve_format)

        return hook

    with ExitStack() as stack, torch.no_grad():
        for candidate in candidates:
            handle = candidate.module.register_forward_pre_hook(keep(candidate), with_kwargs=True)
            stack.callback(handle.remove)
        return run_as_is(model, example_inputs)
