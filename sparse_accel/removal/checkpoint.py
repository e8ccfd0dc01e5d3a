"""Checkpoints of compact models: safetensors and a JSON plan, no pickle."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel import _build_info
from sparse_accel._modes import outside_inference_mode
from sparse_accel.channels.graph import tensors_of
from sparse_accel.removal.compact import CompactResult
from sparse_accel.removal.files import CheckpointError
from sparse_accel.removal.optimizer_checkpoint import load_optimizer, save_optimizer
from sparse_accel.removal.remove import RemovalResult
from sparse_accel.removal.surgery import Plan, apply_plan, attribute, cut, in_order, memory_order

__all__ = ["CheckpointError", "load", "load_optimizer", "read_plan", "save"]

FORMAT = "sparse_accel.compact"
VERSION = 1
MODEL_FILE, PLAN_FILE = "model.safetensors", "plan.json"


def save(result: CompactResult | RemovalResult, directory: str | os.PathLike[str], *, optimizer: bool = True) -> Path:
    """Write ``model.safetensors`` and ``plan.json``, and the optimizer's two files if the result has one.

    The tensors are the parameters and the persistent buffers, tied ones once. Later changes of ``result.model``, such
    as fine-tuning, are saved as they are.

    Args:
        result: of :func:`sparse_accel.compact` or :func:`sparse_accel.prune.remove_units`.
        directory: created if need be; existing files of these names are replaced.
        optimizer: save the result's optimizer too, for :func:`load_optimizer`.

    Raises:
        CheckpointError: the model has state besides tensors (``get_extra_state``), or its shapes are not the plan's.
            The files are then as they were.

    Returns:
        The directory.
    """
    from safetensors.torch import save_file

    model, directory = result.model, Path(directory)
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise CheckpointError(f"{name or 'model'} ({type(module).__name__}): extra state cannot be saved")
    aliases = _aliases(model)
    tensors = _persistent(model)
    plan = {
        "format": FORMAT,
        "version": VERSION,
        "sparse_accel": _build_info.version,
        "torch": torch.__version__,
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "max_abs_diff": result.max_abs_diff,
        **result.plan,
        "saved": {name: _describe(tensor) for name, tensor in tensors.items()},
        "aliases": aliases,
    }
    for name, entry in result.plan["tensors"].items():
        if name in tensors and list(tensors[name].shape) != entry["shape"]:
            came = list(tensors[name].shape)
            raise CheckpointError(f"{name}: expected the plan's shape {entry['shape']}, got {came}")
    if optimizer and result.optimizer is not None:
        save_optimizer(result.optimizer, model, directory)
    directory.mkdir(parents=True, exist_ok=True)
    flat = {name: t.detach().permute(memory_order(t)).contiguous() for name, t in tensors.items()}
    unfinished = directory / (MODEL_FILE + ".tmp")
    save_file({name: tensor.cpu() for name, tensor in flat.items()}, unfinished, metadata={"format": "pt"})
    text = json.dumps(plan, indent=1)
    (directory / (PLAN_FILE + ".tmp")).write_text(text + "\n", encoding="utf-8")
    os.replace(unfinished, directory / MODEL_FILE)
    os.replace(directory / (PLAN_FILE + ".tmp"), directory / PLAN_FILE)
    return directory


def read_plan(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The plan of a checkpoint.

    Raises:
        CheckpointError: a file is missing, or is not a plan of a known version.
    """
    directory = Path(directory)
    for name in (PLAN_FILE, MODEL_FILE):
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory}: expected {MODEL_FILE} and {PLAN_FILE}, {name} is missing")
    try:
        plan = json.loads((directory / PLAN_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{directory / PLAN_FILE}: not JSON: {error}") from error
    if not isinstance(plan, dict) or plan.get("format") != FORMAT:
        raise CheckpointError(f"{directory / PLAN_FILE}: expected the format {FORMAT!r}, got another file")
    if plan.get("version") != VERSION:
        raise CheckpointError(f"{directory / PLAN_FILE}: expected version {VERSION}, got {plan.get('version')}")
    for key in ("class", "tensors", "attributes", "created", "saved", "aliases"):
        if not isinstance(plan.get(key), str if key == "class" else dict):
            raise CheckpointError(f"{directory / PLAN_FILE}: {key!r} is missing or damaged")
    return plan


@outside_inference_mode
def load(directory: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Rebuild a compact model from a fresh instance of the dense one.

    Args:
        directory: written by :func:`save`.
        model: an instance of the original class with the original sizes; its values do not matter. It is not changed.

    Returns:
        A new model on the given one's device, in its mode, with the saved dtypes and the saved model's outputs.

    Raises:
        CheckpointError: a file is missing or damaged, or the model is not the plan's: the message names the tensor or
            module, what was expected and what came.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    plan = read_plan(directory)
    try:
        stored = load_file(Path(directory) / MODEL_FILE)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{Path(directory) / MODEL_FILE}: {error}") from error
    _check(plan, stored, model)
    device = next((t.device for t in tensors_of(model).values() if t.device.type != "meta"), torch.device("cpu"))
    tensors: dict[str, Tensor] = {}
    for name, entry in plan["saved"].items():  # copies: aligned memory, so that kernels give the same bits as before
        tensors[name] = in_order(stored[name].to(device, copy=True), entry["order"])
    new = copy.deepcopy(model)
    for name, tensor in tensors_of(new).items():
        if name in plan["tensors"] and name not in tensors:  # a buffer that state_dict leaves out
            tensors[name] = cut(tensor, plan["tensors"][name])
    apply_plan(new, plan, tensors)
    return new


def _persistent(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, a tied one under its first name."""
    in_state = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in tensors_of(model).items() if name in in_state}


def _aliases(model: nn.Module) -> dict[str, str]:
    """Further names of tied tensors, each with its first name."""
    first = {id(tensor): name for name, tensor in tensors_of(model).items()}
    return {name: first[id(tensor)] for name, tensor in _all_names(model) if first[id(tensor)] != name}


def _all_names(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _describe(tensor: Tensor) -> dict[str, Any]:
    return {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "order": memory_order(tensor),
    }


def _check(plan: Plan, stored: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise CheckpointError unless file, plan and model belong together."""
    hint = f"(the checkpoint is of {plan['class']}, the model a {type(model).__module__}.{type(model).__qualname__})"
    dense = tensors_of(model)
    if set(stored) != set(plan["saved"]):
        odd = sorted(set(stored) ^ set(plan["saved"]))[0]
        raise CheckpointError(f"{MODEL_FILE} and {PLAN_FILE} do not belong together: {odd} is only in one of them")
    for name, entry in plan["saved"].items():
        order = entry["order"]
        if list(stored[name].shape) != [entry["shape"][dim] for dim in order]:
            raise CheckpointError(f"{MODEL_FILE}: {name}: expected {entry['shape']}, got {list(stored[name].shape)}")
        if name in plan["created"]:
            continue
        if name not in dense:
            raise CheckpointError(f"{name}: expected in the model, it has no such tensor {hint}")
        expected = plan["tensors"].get(name, {"from": entry["shape"]})["from"]
        if list(dense[name].shape) != expected:
            raise CheckpointError(f"{name}: expected the dense shape {expected}, got {list(dense[name].shape)} {hint}")
    for name in _persistent(model):
        if name not in plan["saved"]:
            raise CheckpointError(f"{name}: the model has this tensor, the checkpoint does not {hint}")
    if _aliases(model) != plan["aliases"]:
        odd = sorted(set(_aliases(model).items()) ^ set(plan["aliases"].items()))[0]
        raise CheckpointError(f"{odd[0]}: tied to {odd[1]} in only one of the checkpoint and the model {hint}")
    modules = dict(model.named_modules())
    for path, attributes in plan["attributes"].items():
        for key, (old, new) in attributes.items():
            came = attribute(modules[path], key) if path in modules else None
            if came != old or type(came) is not type(old) or type(new) not in (int, bool):
                raise CheckpointError(f"{path or 'model'}: {key}: expected {old}, got {came} {hint}")
