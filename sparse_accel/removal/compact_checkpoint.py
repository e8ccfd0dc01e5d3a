"""Checkpoints of models that lost channels: what is written, and every check on the way back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.channels.graph import tensors_of
from sparse_accel.removal.checkpoint import Contents, Source, fresh_copy, refuse_extra_state, register
from sparse_accel.removal.files import CheckpointError, Field, checksum, dtype_name
from sparse_accel.removal.surgery import apply_plan, attribute, cut, in_order, memory_order
from sparse_accel.wrappers import bare_model

FORMAT = "sparse_accel.compact"


def _fits(result: Any) -> bool:
    keys = ("model", "plan", "max_abs_diff", "optimizer")
    return all(hasattr(result, key) for key in keys) and isinstance(result.plan, dict)


def _contents(result: Any) -> Contents:
    model = bare_model(result.model, CheckpointError)
    refuse_extra_state(model)
    tensors = persistent(model)
    for name, entry in result.plan["tensors"].items():
        if name in tensors and list(tensors[name].shape) != entry["shape"]:
            came = list(tensors[name].shape)
            raise CheckpointError(f"{name}: expected the plan's shape {entry['shape']}, got {came}")
    flat = {name: t.detach().permute(memory_order(t)).contiguous().cpu() for name, t in tensors.items()}
    plan = {
        "max_abs_diff": result.max_abs_diff,
        **result.plan,
        "saved": {name: {**_describe(t), "crc32": checksum(flat[name])} for name, t in tensors.items()},
        "aliases": _aliases(model),
    }
    return Contents(model, flat, plan, result.optimizer)


def persistent(model: nn.Module) -> dict[str, Tensor]:
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
    return {"shape": list(tensor.shape), "dtype": dtype_name(tensor), "order": memory_order(tensor)}


def _read(source: Source, model: nn.Module) -> nn.Module:
    plan = source.plan
    tensors = _check(source, model)
    new = fresh_copy(model, source)
    for name, tensor in tensors_of(new).items():
        if name in plan["tensors"] and name not in tensors:  # a buffer that state_dict leaves out
            tensors[name] = cut(tensor, plan["tensors"][name].value)
    try:
        apply_plan(new, plan.value, tensors)
    except Exception as error:  # a setter of the user's module
        raise CheckpointError(f"{plan.path}: cannot be applied to the model: {error}") from error
    for path, attributes in plan["attributes"].items():
        for key, value in attributes.items():
            expected = _counted(new.get_submodule(path), key)
            if expected is not None and expected != value.value[1]:
                raise CheckpointError(f"{value.where}: expected {expected} as the weights have, got {value.value[1]}")
    return new


def _check(source: Source, model: nn.Module) -> dict[str, Tensor]:
    """The saved tensors; raise CheckpointError unless files and model belong together and every value is possible."""
    plan, stored, hint, dense = source.plan, source.stored, source.hint(model), tensors_of(model)
    for name, entry in plan["tensors"].items():
        if name not in dense:
            raise CheckpointError(f"{name}: expected in the model, it has no such tensor {hint}")
        _check_cut(name, entry, list(dense[name].shape), hint)
    created = _check_created(plan["created"], model, hint)
    saved = dict(plan["saved"].items())
    if set(stored.tensors) != set(saved):
        odd = sorted(set(stored.tensors) ^ set(saved))[0]
        raise CheckpointError(
            f"{stored.path.name} and {plan.path.name} do not belong together: {odd} is only in one of them"
        )
    device = next((t.device for t in dense.values() if t.device.type != "meta"), torch.device("cpu"))
    tensors: dict[str, Tensor] = {}
    for name, entry in saved.items():
        shape = entry["shape"].sizes()
        if name in created:
            expected = created[name]
        elif name not in dense:
            raise CheckpointError(f"{name}: expected in the model, it has no such tensor {hint}")
        elif name in plan["tensors"]:
            expected = plan["tensors"][name]["shape"].value
        else:
            expected = list(dense[name].shape)
            if shape != expected:
                raise CheckpointError(f"{name}: expected the dense shape {shape}, got {expected} {hint}")
        if shape != expected:
            raise entry["shape"].wrong(f"the shape {expected}")
        entry["dtype"].text()
        order = entry["order"].order(len(shape))
        tensor = stored.take(name, entry, [shape[dim] for dim in order])
        same_kind(tensor, dense.get(name), f"{stored.path}: {name}")
        tensors[name] = in_order(tensor.to(device), order)
    for name in persistent(model):
        if name not in tensors:
            raise CheckpointError(f"{name}: the model has this tensor, the checkpoint does not {hint}")
    for name in created:
        if name not in tensors:
            raise CheckpointError(f"{plan['created'].where}: {name} is not among the saved tensors")
    aliases = {name: entry.text() for name, entry in plan["aliases"].items()}
    if _aliases(model) != aliases:
        alias, first = sorted(set(_aliases(model).items()) ^ set(aliases.items()))[0]
        raise CheckpointError(f"{alias}: tied to {first} in only one of the checkpoint and the model {hint}")
    _check_attributes(plan["attributes"], model, hint)
    return tensors


def same_kind(tensor: Tensor, like: Tensor | None, where: str) -> None:
    """Raise CheckpointError unless both are floating-point, complex or neither, as a parameter's kind decides."""
    known = torch.empty(0, device="cpu") if like is None else like
    if (tensor.is_floating_point(), tensor.is_complex()) != (known.is_floating_point(), known.is_complex()):
        raise CheckpointError(f"{where}: expected a tensor such as the model's of {known.dtype}, got {tensor.dtype}")


def _check_cut(name: str, entry: Field, dense: list[int], hint: str) -> None:
    """One tensor's kept indices."""
    if entry["from"].sizes() != dense:
        raise CheckpointError(f"{name}: expected the dense shape {entry['from'].value}, got {dense} {hint}")
    shape = list(dense)
    keep = dict(entry["keep"].items())
    for dim, indices in keep.items():
        if dim not in [str(number) for number in range(len(dense))]:
            raise entry["keep"].wrong(f"dimensions of a tensor of shape {dense}")
        rows = indices.entries()
        if "0" not in keep and rows and isinstance(rows[0].value, list):  # a stack: one list per slice
            counts = [len(row.indices(dense[int(dim)])) for row in rows]
            if len(set(counts)) > 1 or len(rows) != dense[0]:
                raise indices.wrong(f"as many indices for each of {dense[0]} slices")
            shape[int(dim)] = counts[0]
        elif dim == "1" and rows and isinstance(rows[0].value, list):  # a grouped convolution: one list per kept group
            counts = [len(row.indices(dense[1])) for row in rows]
            if len(set(counts)) > 1 or "0" not in keep or len(keep["0"].entries()) % len(rows):
                raise indices.wrong("as many indices for each of the groups, which divide the kept rows")
            shape[1] = counts[0]
        else:
            shape[int(dim)] = len(indices.indices(dense[int(dim)]))
    if entry["shape"].sizes() != shape:
        raise entry["shape"].wrong(f"the shape {shape} of the indices kept")


def _check_created(created: Field, model: nn.Module, hint: str) -> dict[str, list[int]]:
    """Shapes of the parameters that the dense model does not have."""
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    shapes = {}
    for name, entry in created.items():
        path, _, key = name.rpartition(".")
        free = path in modules and getattr(modules[path], key, None) is None and key == "bias"
        if not free:
            raise CheckpointError(f"{entry.where}: expected a layer of the model that has no bias {hint}")
        if entry["like"].text() not in parameters:
            raise entry["like"].wrong(f"a parameter of the model {hint}")
        shapes[name] = entry["shape"].sizes()
        if len(shapes[name]) != 1:
            raise entry["shape"].wrong("one number")
    return shapes


def _check_attributes(attributes: Field, model: nn.Module, hint: str) -> None:
    modules = dict(model.named_modules())
    for path, keys in attributes.items():
        for key, value in keys.items():
            pair = value.entries()
            if len(pair) != 2:
                raise value.wrong("the old and the new number")
            try:
                came = attribute(modules[path], key) if path in modules else None
            except Exception as error:  # a property of the user's module
                raise CheckpointError(f"{value.where}: cannot be read from the model: {error}") from error
            old = pair[0].value
            if came != old or type(came) is not type(old) or type(old) not in (int, bool, type(None)):
                raise CheckpointError(f"{path or 'model'}: {key}: expected {old}, got {came} {hint}")
            if isinstance(old, bool):  # of a configuration: whether layers have a bias
                pair[1].flag()
            else:
                pair[1].integer(1, old)  # None: a configuration's default, a size from now on


def _counted(module: nn.Module, key: str) -> int | None:
    """What an attribute of one of torch's layers has to be, by its weight; None for others."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    if isinstance(module, nn.Linear):
        return {"out_features": weight.shape[0], "in_features": weight.shape[1]}.get(key)
    if isinstance(module, nn.modules.conv._ConvNd):
        rows, columns = weight.shape[0], weight.shape[1] * module.groups
        sizes = (columns, rows) if module.transposed else (rows, columns)
        return dict(zip(("out_channels", "in_channels"), sizes, strict=True)).get(key)
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return weight.shape[0] if key == "num_features" else None
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": weight.shape[0], "embedding_dim": weight.shape[1]}.get(key)
    return None


register(FORMAT, _fits, _contents, _read)
