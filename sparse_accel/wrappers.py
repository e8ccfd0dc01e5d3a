"""Models in wrappers: what has a model inside is unwrapped, what hides the weights is refused, in the same words by
every function that takes a model."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from sparse_accel.mapped import mapped_copies

__all__ = ["bare_model", "copy_model"]

# Wrappers that share their parameters with the module inside, by the name of the class, and where that is.
_INSIDE = {"OptimizedModule": "_orig_mod", "DistributedDataParallel": "module", "DataParallel": "module"}
_FORWARD, _ORIGINAL = "forward", "_original_forward"  # accelerate's autocast around the second takes the first's place


def bare_model(model: Any, error: type[Exception] = ValueError, *, sharded: bool = False) -> nn.Module:
    """The module inside ``torch.compile``, ``DistributedDataParallel``, ``DataParallel`` and accelerate's autocast.

    Args:
        model: as the user has it; it stays as it is.
        error: raised where it cannot be used.
        sharded: whether DTensors (FSDP2, tensor parallelism) will do.

    Returns:
        A module with the same parameters; ``model`` itself where nothing is around it.

    Raises:
        TypeError: it is no module.
        ValueError: a wrapper around a part of it, flat or sharded parameters, a scripted module, or a weight that a
            hook computes: the message names the module and says what to do.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> bare_model(nn.DataParallel(net)) is net
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    while type(model).__name__ in _INSIDE and _INSIDE[type(model).__name__] in model._modules:
        model = model.get_submodule(_INSIDE[type(model).__name__])
    for name, module in model.named_modules():
        reason = _wrapped(module) or _flat(module) or (not sharded and _sharded(module)) or _computed(module)
        if reason:
            raise error(f"{name or 'model'} ({type(module).__name__}): {reason}")
    if _ORIGINAL in vars(model):
        original = vars(model)[_ORIGINAL]
        model = copy.copy(model)  # the same parameters and submodules
        del model.__dict__[_FORWARD], model.__dict__[_ORIGINAL]
        if getattr(original, "__func__", None) is not type(model).forward:
            model.__dict__[_FORWARD] = original
    return model


def _wrapped(module: nn.Module) -> str | None:
    kind = type(module).__name__
    if kind in _INSIDE:
        return f"wraps a part of the model: pass a model with the module inside in its place (.{_INSIDE[kind]})"
    if isinstance(module, torch.jit.ScriptModule):
        return "a scripted module cannot be followed; pass the original"
    return None


def _flat(module: nn.Module) -> str | None:
    if type(module).__name__ == "FullyShardedDataParallel":
        return (
            "its parameters are flat: gather them (StateDictType.FULL_STATE_DICT) and load them into a model that is "
            "not wrapped"
        )
    return None


def _sharded(module: nn.Module) -> str | None:
    for key, parameter in module._parameters.items():
        if type(parameter).__name__ == "DTensor":
            return f"{key} is a DTensor: gather it (full_tensor()) and load it into a model that is not sharded"
    return None


def _computed(module: nn.Module) -> str | None:
    """The old way to compute a weight, by hooks that set an attribute; parametrizations are no such case."""
    for hook in module._forward_pre_hooks.values():
        kind, where = type(hook).__name__, type(hook).__module__
        if isinstance(hook, BasePruningMethod):
            name, advice = hook._tensor_name, "torch.nn.utils.prune.remove(module, {!r})"
        elif where in ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm"):
            name, advice = (
                getattr(hook, "name", "weight"),
                f"torch.nn.utils.remove_{where.rpartition('.')[2]}(module, {{!r}})",
            )
        else:
            continue
        return f"its {name} is computed by a hook ({kind}): make it a parameter again by {advice.format(name)}"
    return None


def copy_model(model: nn.Module, error: type[Exception] = ValueError, *, empty: bool = False) -> nn.Module:
    """A deep copy.

    Args:
        model: of :func:`bare_model`.
        error: raised where it cannot be copied.
        empty: whether its tensors may be without values, as they will be replaced.

    Raises:
        ValueError: the model cannot be copied, or its copy would run the original; the message names the module and
            what is in the way.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> twin = copy_model(net)
        >>> twin is net, torch.equal(twin.weight, net.weight)
        (False, True)
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta and not empty:
            raise error(
                f"{name}: it has no values (it is on the meta device: never loaded, or offloaded by accelerate): "
                "sa.map_weights(model, folder) takes them from safetensors files, and leaves them on the disk"
            )
    try:
        new = copy.deepcopy(model, mapped_copies(model))
    except Exception as reason:
        raise error(f"{_uncopied(model)} cannot be copied: copy.deepcopy: {reason}") from reason
    own = {id(module) for module in model.modules()}
    for name, module in new.named_modules():
        forward = vars(module).get(_FORWARD)
        if forward is not None and any(id(part) in own for part in _held(forward)):
            raise error(
                f"{name or 'model'} ({type(module).__name__}): its forward was replaced by one that holds the "
                "module: a copy would run the original; put it back first (del module.forward)"
            )
    return new


def _uncopied(model: nn.Module) -> str:
    """The attribute that deepcopy stumbles over."""
    modules = {id(module): module for module in model.modules()}
    for name, module in model.named_modules():
        where = f"{name or 'model'} ({type(module).__name__})"
        plain = {key: item for key, item in vars(module).items() if key != "_modules"}
        for key, item in {**plain.pop("_parameters"), **plain.pop("_buffers"), **plain}.items():
            if isinstance(item, Tensor) and item.grad_fn is not None:
                return f"{where}: {key}, a result of other tensors (a hook's?),"
            try:
                copy.deepcopy(item, dict(modules))
            except Exception:
                return f"{where}: {key} ({type(item).__name__})"
    return "the model"


def _held(item: Any, depth: int = 5) -> Iterator[Any]:
    """What a callable holds on to: its object, closure, the function it wraps."""
    yield item
    if depth == 0 or isinstance(item, (nn.Module, Tensor, type)):
        return
    inside = [getattr(item, key, None) for key in ("__self__", "__func__", "__wrapped__", "func", "model_forward")]
    if getattr(item, "__closure__", None):
        inside += inspect.getclosurevars(item).nonlocals.values()
    for part in inside:
        if part is not None:
            yield from _held(part, depth - 1)
