"""Checkpoints of optimizers by parameter name: safetensors and JSON, no pickle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_accel._modes import outside_inference_mode
from sparse_accel.removal.files import (
    CheckpointError,
    Field,
    Part,
    Stored,
    check_seal,
    checksum,
    dtype_name,
    read_json,
    read_plan,
    read_tensors,
    write_parts,
)
from sparse_accel.removal.optimizer_state import PENALTY_SCALE, bare_optimizer, rebuild
from sparse_accel.removal.surgery import in_order, memory_order
from sparse_accel.wrappers import bare_model

__all__ = ["load_optimizer", "optimizer_part", "save_optimizer"]

STATE_FILE, GROUPS_FILE, MODEL_PLAN = "optimizer.safetensors", "optimizer.json", "plan.json"
FORMAT = "sparse_accel.optimizer"
VERSION = 1
OF = "of"  # the id of the plan.json that was saved with it
AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


def save_optimizer(optimizer: Optimizer, model: nn.Module, directory: str | os.PathLike[str]) -> Path:
    """Write ``optimizer.safetensors`` and ``optimizer.json``: parameter groups and state, by parameter name.

    Args:
        optimizer: of the model's parameters.
        model: names them.
        directory: created if need be.

    Raises:
        CheckpointError: see :func:`optimizer_part`.
    """
    part = optimizer_part(optimizer, bare_model(model, CheckpointError))
    part.after = None
    return write_parts(directory, [part])


def optimizer_part(optimizer: Optimizer, model: nn.Module) -> Part:
    """The two files of an optimizer.

    Raises:
        CheckpointError: a parameter is not the model's, an option or state is neither a tensor nor plain, or a state
            tensor has neither its parameter's shape nor one element.
    """
    optimizer = bare_optimizer(optimizer, CheckpointError)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    store = _Store(type(optimizer).__name__)
    groups = []
    for number, group in enumerate(optimizer.param_groups):
        foreign = [parameter for parameter in group["params"] if id(parameter) not in names]
        if foreign:
            raise CheckpointError(
                f"optimizer {store.owner}: group {number} holds a parameter of shape {tuple(foreign[0].shape)} that is "
                "not the model's: it cannot be saved by name (save(..., optimizer=False) leaves the optimizer out)"
            )
        plain = {
            key: store.put(f"group.{number}.{key}", value)
            for key, value in group.items()
            if key not in ("params", "param_names")
        }
        groups.append({"options": plain, "names": [names[id(parameter)] for parameter in group["params"]]})
    state: dict[str, dict[str, Any]] = {}
    for parameter, values in optimizer.state.items():
        if id(parameter) in names:
            name = names[id(parameter)]
            for key, value in values.items():
                if isinstance(value, Tensor) and not _fits(value, parameter):
                    raise CheckpointError(
                        f"optimizer {store.owner}: {name}: state {key!r}: expected the parameter's shape "
                        f"{tuple(parameter.shape)} or a number, got {tuple(value.shape)}: it cannot be saved"
                    )
            state[name] = {key: store.put(f"state.{name}.{key}", value) for key, value in values.items()}
    plan = {
        "format": FORMAT,
        "version": VERSION,
        "torch": torch.__version__,
        "class": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}",
        "named": any("param_names" in group for group in optimizer.param_groups),
        "defaults": {key: store.put(f"default.{key}", value) for key, value in optimizer.defaults.items()},
        "groups": groups,
        "state": state,
    }
    return Part(STATE_FILE, GROUPS_FILE, store.tensors, plan, after=OF)


@outside_inference_mode
def load_optimizer(
    directory: str | os.PathLike[str], model: nn.Module, optimizer_class: type[AnyOptimizer]
) -> AnyOptimizer:
    """The saved optimizer on the parameters of a loaded model: it goes on with the same bits.

    Args:
        directory: of :func:`sparse_accel.save`.
        model: of :func:`sparse_accel.load`.
        optimizer_class: the class that was saved, such as ``sparse_accel.RMDA``.

    Raises:
        CheckpointError: a file is missing, damaged or of another save, the class is another one, or the model lacks a
            parameter.

    Example:
        >>> import sparse_accel as sa
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> opt = sa.RMDA(net.parameters(), lr=0.5)
        >>> _ = sa.save(sa.compact(net, torch.zeros(1, 4), opt), "with_optimizer")
        >>> load_optimizer("with_optimizer", sa.load("with_optimizer", net), sa.RMDA).param_groups[0]["lr"]
        0.5
    """
    with torch.inference_mode(False):  # what is loaded can be trained
        return _load(Path(directory), bare_model(model, CheckpointError), optimizer_class)


def _load(directory: Path, model: nn.Module, optimizer_class: type[AnyOptimizer]) -> AnyOptimizer:
    for name in (GROUPS_FILE, STATE_FILE):
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory}: expected {GROUPS_FILE} and {STATE_FILE}, {name} is missing")
    plan = read_plan(directory / GROUPS_FILE, FORMAT, VERSION)
    stored = read_tensors(directory / STATE_FILE, plan)
    _check_companion(directory, plan)
    if plan["class"].text().rpartition(".")[2] != optimizer_class.__name__:
        raise CheckpointError(
            f"{directory}: expected the class {plan['class'].value}, got {optimizer_class.__qualname__}"
        )
    parameters = dict(model.named_parameters())
    param_groups, state = _groups(plan, stored, parameters), _state(plan, stored, parameters)
    defaults = {key: _get(stored, value, None) for key, value in plan["defaults"].items()}
    _check_options(plan, param_groups, defaults)
    check_seal(plan)
    try:
        optimizer = rebuild(optimizer_class, defaults, state, param_groups)
    except Exception as error:  # values that the class cannot take
        raise CheckpointError(f"{plan.path}: {optimizer_class.__qualname__}: {error}") from error
    _check_ours(plan, optimizer, parameters)
    return optimizer


def _check_companion(directory: Path, plan: Field) -> None:
    """Refuse an optimizer that lies beside the model of another save."""
    model_plan = directory / MODEL_PLAN
    came = read_json(model_plan).value.get("id") if model_plan.is_file() else None
    expected = plan[OF].text() if OF in plan else None
    if expected != came and (expected is not None or "id" not in plan):
        raise CheckpointError(
            f"{plan.path} and {MODEL_PLAN} do not belong together: the optimizer is of the save {expected}, the model "
            f"of {came}"
        )


def _groups(plan: Field, stored: Stored, parameters: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = []
    seen: set[str] = set()
    for group in plan["groups"].entries():
        options = {key: _get(stored, value, None) for key, value in group["options"].items()}
        for field in group["names"].entries():
            _known(field.text(), parameters)
            if field.text() in seen:
                raise field.wrong("every parameter once")
            seen.add(field.text())
        if {"params", "param_names"} & options.keys():
            raise group["options"].wrong("options without parameters")
        names = list(group["names"].value)
        groups.append({"params": [parameters[name] for name in names], **options})
        if plan["named"].flag():
            groups[-1]["param_names"] = names
    for name, field in plan["state"].items():
        _known(name, parameters)
        if name not in seen:
            raise CheckpointError(f"{field.where}: expected a parameter of one of the groups")
    return groups


def _known(name: str, parameters: dict[str, nn.Parameter]) -> None:
    if name not in parameters:
        raise CheckpointError(f"{name}: the optimizer has this parameter, the model does not")


def _state(plan: Field, stored: Stored, parameters: dict[str, nn.Parameter]) -> dict[nn.Parameter, dict[str, Any]]:
    state: dict[nn.Parameter, dict[str, Any]] = {}
    for name, values in plan["state"].items():
        parameter = parameters[name]
        state[parameter] = {key: _get(stored, value, parameter.device) for key, value in values.items()}
        for key, value in state[parameter].items():
            if isinstance(value, Tensor) and not _fits(value, parameter):
                came = list(parameter.shape)
                raise CheckpointError(
                    f"{name}: state {key!r} has shape {list(value.shape)}, the model's parameter {came}"
                )
        if PENALTY_SCALE in values:
            values[PENALTY_SCALE].number(0)
    return state


def _fits(value: Tensor, parameter: Tensor) -> bool:
    """Whether a state tensor goes with a parameter: its shape, that of its real and imaginary parts, or a number."""
    shapes = [parameter.shape, (*parameter.shape, 2)] if parameter.is_complex() else [parameter.shape]
    return value.shape in shapes or (value.numel() == 1 and value.dim() <= 1)


def _check_options(plan: Field, groups: list[dict[str, Any]], defaults: dict[str, Any]) -> None:
    """Every group has every option, switches are switches."""
    for field, group in zip(plan["groups"].entries(), groups, strict=True):
        for key, default in defaults.items():
            _check_alike(field["options"][key], group[key], default)
        if group.get("momentum_ramp") is not None:
            field["options"]["momentum_ramp"].integer()


def _check_alike(field: Field, value: Any, default: Any) -> None:
    """A switch is a switch, a number a number, two numbers are two."""
    if isinstance(default, bool):
        field.flag()
    elif isinstance(default, (int, float)) and (isinstance(value, bool) or not isinstance(value, (int, float, Tensor))):
        raise field.wrong("a number")
    elif isinstance(default, (tuple, list)) and (type(value) is not type(default) or len(value) != len(default)):
        raise field.wrong(f"{len(default)} numbers")


def _check_ours(plan: Field, optimizer: Optimizer, parameters: dict[str, nn.Parameter]) -> None:
    """The options and states that our optimizers need."""
    check: Any = getattr(optimizer, "_check_group", lambda group: None)
    for field, group in zip(plan["groups"].entries(), optimizer.param_groups, strict=True):
        _check_group(field["options"], check, group)
    scalars: dict[str, torch.dtype] = getattr(optimizer, "_scalar_state", {})
    needed: list[str] = [*scalars, *getattr(optimizer, "_tensor_state", ())]
    for name, values in plan["state"].items():
        for key in needed if any(key in values for key in needed) else ():
            value, parameter = optimizer.state[parameters[name]].get(key), parameters[name]
            whole = (*parameter.shape, 2) if parameter.is_complex() else tuple(parameter.shape)
            shape = () if key in scalars else whole
            if not isinstance(value, Tensor) or value.shape != shape:
                raise CheckpointError(f"{plan['state'][name].where}: {key}: expected a tensor of shape {shape}")


def _check_group(field: Field, check: Any, group: dict[str, Any]) -> None:
    try:
        check(group)
    except Exception as error:
        raise CheckpointError(f"{field.where}: {error}") from error


class _Store:
    """Tensors set aside for a safetensors file; plain values pass."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.tensors: dict[str, Tensor] = {}

    def put(self, name: str, value: Any) -> Any:
        """The value as plain JSON, a tensor as ``{"tensor": name, ...}``."""
        if isinstance(value, Tensor):
            order = memory_order(value)
            flat = self.tensors[name] = value.detach().permute(order).contiguous().cpu().clone()
            about = {"order": order, "shape": list(value.shape), "device": value.device.type}
            return {"tensor": name, **about, "dtype": dtype_name(flat), "crc32": checksum(flat)}
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {"dict": {key: self.put(f"{name}.{key}", item) for key, item in value.items()}}
        if isinstance(value, (tuple, list)):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [self.put(f"{name}.{index}", item) for index, item in enumerate(value)]}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise CheckpointError(f"optimizer {self.owner}: {name}: expected a tensor or a plain value, got {value!r}")


def _get(stored: Stored, field: Field, device: torch.device | None) -> Any:
    """The way back from :meth:`_Store.put`; tensors that lay on the CPU stay there."""
    if field.value is None or isinstance(field.value, (bool, int, float, str)):
        return field.value
    if "tensor" in field:
        shape = field["shape"].sizes()
        order = field["order"].order(len(shape))
        tensor = stored.take(field["tensor"].text(), field, [shape[dim] for dim in order])
        tensor = in_order(tensor, order)
        return tensor if device is None or field["device"].text() == "cpu" else tensor.to(device)
    if "dict" in field:
        return {key: _get(stored, item, device) for key, item in field["dict"].items()}
    for kind in (tuple, list):
        if kind.__name__ in field:
            return kind(_get(stored, item, device) for item in field[kind.__name__].entries())
    raise field.wrong("a tensor or a plain value")
