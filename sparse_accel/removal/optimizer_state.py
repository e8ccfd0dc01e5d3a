"""An optimizer that goes on with the kept part of the weights."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_accel.channels.graph import CompactError
from sparse_accel.groups import Grouping, group_layout
from sparse_accel.groups.coupled import ENTRY, cut_coupled
from sparse_accel.penalties import penalty_from_plain
from sparse_accel.removal.surgery import Plan, cut

PENALTY_SCALE = "penalty_scale"
AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)
_COPIES = ("anchor", "point", "iterate")  # state tensors that hold weights, which a folded constant moves


def bare_optimizer(optimizer: Any, error: type[Exception] = CompactError) -> Optimizer:
    """The optimizer inside the wrappers of accelerate, Lightning and :meth:`sparse_accel.prune.Masks.apply_to`.

    Args:
        optimizer: to unwrap.
        error: raised where that is not possible.

    Raises:
        CompactError: the state of a ``ZeroRedundancyOptimizer`` is spread over the ranks; or it is no optimizer.
    """
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    kind = type(optimizer).__name__
    if kind == "ZeroRedundancyOptimizer":
        raise error(f"optimizer ({kind}): its state is spread over the ranks; train the pruned model with a new one")
    if not isinstance(optimizer, Optimizer):
        raise error(f"optimizer: expected a torch.optim.Optimizer, got {kind}")
    return optimizer


def check_optimizer(optimizer: Any, model: nn.Module) -> Optimizer:
    """The optimizer inside its wrappers; CompactError unless it is the model's, its state tensors and plain values."""
    optimizer = bare_optimizer(optimizer)
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise CompactError(f"optimizer {type(optimizer).__name__}: expected the model's parameters, got none of them")
    for state in optimizer.state.values():
        for key, value in state.items():
            if not isinstance(value, (Tensor, int, float, bool, str, type(None))):
                raise CompactError(
                    f"optimizer {type(optimizer).__name__}: state {key!r}: expected a tensor or a number, "
                    f"got {type(value).__name__}; its state cannot be cut"
                )
    return optimizer


def compact_optimizer(optimizer: Optimizer, model: nn.Module, small: nn.Module, plan: Plan) -> Optimizer:
    """A new optimizer of the same class on the compact model's parameters.

    State tensors of a parameter's shape are cut like the parameter, others are copied. Group lasso weighs a group of
    n elements by sqrt(n) (the hard threshold by n): where a cut shrinks the groups of a penalized parameter,
    ``state["penalty_scale"]`` holds the factor by which its strength must be multiplied. The next steps are then those
    of the dense model with zeros in the place of what was removed. (Where it holds other numbers, in filters that
    nobody reads, these count in the dense norms of the groups they share with kept weights.) Coupled groups remember
    their size themselves. A penalty with a target keeps the strength found for it, and has no target any more.

    Args:
        optimizer: of the dense model; it stays as it is. Parameters that are not the model's are shared.
        model: the dense model.
        small: the compact model.
        plan: what was cut.

    Raises:
        CompactError: a state tensor of a cut parameter has another shape than the parameter; or units of a coupled
            width are cut in a part of its parameters alone.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups_of = _conv_groups(small)
    state: dict[nn.Parameter, dict[str, Any]] = {}
    param_groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        options = {key: copy.deepcopy(value) for key, value in group.items() if key not in ("params", "param_names")}
        _drop_target(options)
        coupled = options.get(ENTRY) is not None
        entries: list[Mapping[str, Any] | None] = []
        parts: dict[int | None, list[int]] = {}
        new_params: list[nn.Parameter] = []
        for index, old in enumerate(group["params"]):
            name = names.get(id(old))
            new = old if name is None else small.get_parameter(name)
            entry = None if name is None else plan["tensors"].get(name)
            state_now = _cut_state(optimizer, old, entry, name or "parameter")
            entries.append(entry)
            split = entry is not None and "conv_groups" in group and not coupled
            conv_groups = groups_of.get(id(new)) if split else None
            if entry is not None and group.get("penalty") is not None and not coupled:
                _rescale(state_now, options, old, new, conv_groups)
            if name in plan["shifted"]:
                _shift_copies(state_now, cut(old, entry), new)
            if state_now:
                state[new] = state_now
            new_params.append(new)
            parts.setdefault(conv_groups, []).append(index)
        if coupled:
            options[ENTRY] = cut_coupled(options[ENTRY], entries)
        for conv_groups, indices in (parts or {None: []}).items():
            part = {"params": [new_params[index] for index in indices], **copy.deepcopy(options)}
            if "param_names" in group:
                part["param_names"] = [group["param_names"][index] for index in indices]
            if conv_groups is not None:
                part["conv_groups"] = conv_groups
            param_groups.append(part)
    _add_created(param_groups, small, plan)
    plain = {
        key: value
        for key, value in vars(optimizer).items()
        if isinstance(value, (bool, int, float, str, type(None))) and not key.startswith("_")
    }
    return rebuild(type(optimizer), copy.deepcopy(optimizer.defaults), state, param_groups, plain)


def _drop_target(options: dict[str, Any]) -> None:
    """A share that was to be zero is reached by removal: the penalty keeps the strength that was found for it, or the
    same share of what is left would have to go, too."""
    penalty = penalty_from_plain(options.get("penalty"))
    if penalty is not None and getattr(penalty, "target", None) is not None:
        options["penalty"] = dataclasses.replace(penalty, target=None, of="groups").to_plain()  # type: ignore[call-arg]
        options.pop("costs", None)


def _conv_groups(model: nn.Module) -> dict[int, int]:
    """``groups`` of every convolution weight, by the parameter's id."""
    found: dict[int, int] = {}
    for module in model.modules():
        weight, groups = getattr(module, "weight", None), getattr(module, "groups", None)
        if isinstance(weight, Tensor) and isinstance(groups, int):
            found[id(weight)] = groups
    return found


def _cut_state(optimizer: Optimizer, old: Tensor, entry: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for key, value in optimizer.state.get(old, {}).items():
        if not isinstance(value, Tensor):
            state[key] = value
        elif value.shape == old.shape:
            state[key] = cut(value, entry)
        elif value.numel() == 1 or entry is None:
            state[key] = value.detach().clone()
        else:
            raise CompactError(
                f"optimizer {type(optimizer).__name__}: {name}: state {key!r}: expected the parameter's shape "
                f"{tuple(old.shape)} or a number, got {tuple(value.shape)}; it cannot be cut"
            )
    return state


def _shift_copies(state: dict[str, Any], before: Tensor, after: Tensor) -> None:
    """A constant was added to a bias: state that is a copy of the bias moves along."""
    for key in _COPIES:
        if key in state:
            state[key] += (after.detach() - before).to(state[key].dtype)


def _rescale(state: dict[str, Any], options: dict[str, Any], old: Tensor, new: Tensor, conv_groups: int | None) -> None:
    """Keep the weight that the penalty gave the dense groups: sqrt(|g|), or |g| for the hard threshold."""
    penalty = penalty_from_plain(options["penalty"])
    if penalty is None:
        return
    transposed, groups = bool(options.get("transposed", False)), int(options.get("conv_groups", 1))
    grouping = Grouping(penalty.by, transposed, groups, bool(options.get("stacked", False)))
    if not grouping.applies_to(old):
        return
    before = group_layout(old, grouping).group_size
    after = group_layout(new, grouping._replace(conv_groups=conv_groups or groups)).group_size
    if before != after:
        factor = (before / after) ** penalty.size_power if penalty.size_power != 0.5 else math.sqrt(before / after)
        state[PENALTY_SCALE] = float(state.get(PENALTY_SCALE, 1.0)) * factor


def _add_created(param_groups: list[dict[str, Any]], small: nn.Module, plan: Plan) -> None:
    """New biases join their weight's group, or, where that one is penalized, a group of their own without penalty."""
    for name, entry in plan["created"].items():
        weight, bias = small.get_parameter(entry["like"]), small.get_parameter(name)
        for group in param_groups:
            if not any(parameter is weight for parameter in group["params"]):
                continue
            if group.get("penalty") is None:
                group["params"].append(bias)
                if "param_names" in group:
                    group["param_names"].append(name)
            else:
                extra = {key: value for key, value in group.items() if key not in ("params", "param_names")}
                extra["penalty"] = None
                if ENTRY in extra:
                    extra[ENTRY] = None
                extra["params"] = [bias]
                if "param_names" in group:
                    extra["param_names"] = [name]
                param_groups.append(extra)
            break


def rebuild(
    kind: type[AnyOptimizer],
    defaults: dict[str, Any],
    state: dict[nn.Parameter, dict[str, Any]],
    param_groups: list[dict[str, Any]],
    attributes: Mapping[str, Any] | None = None,
) -> AnyOptimizer:
    """An instance with this state, made the way unpickling makes one.

    Args:
        kind: the optimizer's class.
        defaults: its defaults.
        state: by parameter.
        param_groups: with the parameters themselves.
        attributes: further attributes.
    """
    new = kind.__new__(kind)
    vars(new).update(attributes or {})
    new.__setstate__({"defaults": defaults, "state": defaultdict(dict, state), "param_groups": param_groups})
    return new
