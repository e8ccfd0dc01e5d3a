"""Checkpoints of optimizers by parameter name: safetensors and JSON, no pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_accel._modes import outside_inference_mode
from sparse_accel.removal.files import CheckpointError
from sparse_accel.removal.optimizer_state import rebuild
from sparse_accel.removal.surgery import in_order, memory_order

__all__ = ["load_optimizer", "save_optimizer"]

STATE_FILE, GROUPS_FILE = "optimizer.safetensors", "optimizer.json"
FORMAT = "sparse_accel.optimizer"
VERSION = 1
AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


def save_optimizer(optimizer: Optimizer, model: nn.Module, directory: str | os.PathLike[str]) -> Path:
    """Write ``optimizer.safetensors`` and ``optimizer.json``: parameter groups and state, by parameter name.

    Args:
        optimizer: of the model's parameters.
        model: names them.
        directory: created if need be.

    Raises:
        CheckpointError: a parameter is not the model's, or an option or state is neither a tensor nor plain.
    """
    from safetensors.torch import save_file

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
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(store.tensors, directory / (STATE_FILE + ".tmp"), metadata={"format": "pt"})
    (directory / (GROUPS_FILE + ".tmp")).write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    for name in (STATE_FILE, GROUPS_FILE):
        os.replace(directory / (name + ".tmp"), directory / name)
    return directory


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
        CheckpointError: a file is missing or damaged, the class is another one, or the model lacks a parameter.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    directory = Path(directory)
    for name in (GROUPS_FILE, STATE_FILE):
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory}: expected {GROUPS_FILE} and {STATE_FILE}, {name} is missing")
    try:
        plan = json.loads((directory / GROUPS_FILE).read_text(encoding="utf-8"))
        stored = load_file(directory / STATE_FILE)
    except (ValueError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{directory}: the optimizer cannot be read: {error}") from error
    if not isinstance(plan, dict) or plan.get("format") != FORMAT or plan.get("version") != VERSION:
        raise CheckpointError(f"{directory / GROUPS_FILE}: expected the format {FORMAT!r}, version {VERSION}")
    if plan["class"].rpartition(".")[2] != optimizer_class.__name__:
        raise CheckpointError(f"{directory}: expected the class {plan['class']}, got {optimizer_class.__qualname__}")
    parameters = dict(model.named_parameters())
    for name in [name for group in plan["groups"] for name in group["names"]] + list(plan["state"]):
        if name not in parameters:
            raise CheckpointError(f"{name}: the optimizer has this parameter, the model does not")

    def get(value: Any, device: torch.device | None = None) -> Any:
        return _get(stored, value, device)

    param_groups: list[dict[str, Any]] = []
    for group in plan["groups"]:
        options = {key: get(value) for key, value in group["options"].items()}
        param_groups.append({"params": [parameters[name] for name in group["names"]], **options})
        if plan["named"]:
            param_groups[-1]["param_names"] = list(group["names"])
    state: dict[nn.Parameter, dict[str, Any]] = {}
    for name, values in plan["state"].items():
        state[parameters[name]] = {key: get(value, parameters[name].device) for key, value in values.items()}
        for key, value in values.items():
            if isinstance(value, dict) and value.get("shape") and value["shape"] != list(parameters[name].shape):
                came = list(parameters[name].shape)
                raise CheckpointError(f"{name}: state {key!r} has shape {value['shape']}, the model's parameter {came}")
    return rebuild(optimizer_class, {k: get(v) for k, v in plan["defaults"].items()}, state, param_groups)


class _Store:
    """Tensors set aside for a safetensors file; plain values pass."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.tensors: dict[str, Tensor] = {}

    def put(self, name: str, value: Any) -> Any:
        """The value as plain JSON, a tensor as ``{"tensor": name, ...}``."""
        if isinstance(value, Tensor):
            order = memory_order(value)
            self.tensors[name] = value.detach().permute(order).contiguous().cpu().clone()
            return {"tensor": name, "order": order, "shape": list(value.shape), "device": value.device.type}
        if isinstance(value, dict):
            return {"dict": {key: self.put(f"{name}.{key}", item) for key, item in value.items()}}
        if isinstance(value, (tuple, list)):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [self.put(f"{name}.{index}", item) for index, item in enumerate(value)]}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise CheckpointError(f"optimizer {self.owner}: {name}: expected a tensor or a plain value, got {value!r}")


def _get(stored: dict[str, Tensor], value: Any, device: torch.device | None) -> Any:
    """The way back from :meth:`_Store.put`; tensors that lay on the CPU stay there."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        if value["tensor"] not in stored:
            raise CheckpointError(
                f"{STATE_FILE} and {GROUPS_FILE} do not belong together: {value['tensor']} is missing"
            )
        tensor = in_order(stored[value["tensor"]], value["order"])
        return tensor if device is None or value["device"] == "cpu" else tensor.to(device)
    if "dict" in value:
        return {key: _get(stored, item, device) for key, item in value["dict"].items()}
    kind = tuple if "tuple" in value else list
    return kind(_get(stored, item, device) for item in value[kind.__name__])
