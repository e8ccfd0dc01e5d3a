"""Checkpoints of accelerated models: kept values and bits as they are, checked on the way back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparse_accel.acceleration.accelerate import AccelerateResult, put
from sparse_accel.acceleration.layers import BitmaskLayer, CSRLayer, SparseLayer, matrix_of
from sparse_accel.channels.graph import tensors_of
from sparse_accel.ops.bitmask import Bitmask
from sparse_accel.removal.checkpoint import Contents, Source, fresh_copy, refuse_extra_state, register
from sparse_accel.removal.compact_checkpoint import persistent, same_kind
from sparse_accel.removal.files import CheckpointError, Field, checksum, dtype_name
from sparse_accel.removal.surgery import apply_plan
from sparse_accel.wrappers import bare_model

FORMAT = "sparse_accel.accelerated"
PARTS = {"bitmask": ("values", "bits", "offsets", "scales"), "csr": ("values", "crow", "col")}


def _contents(result: AccelerateResult) -> Contents:
    model = bare_model(result.model, CheckpointError)
    refuse_extra_state(model)
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in persistent(model).items()}
    described = {
        name: {"shape": list(tensor.shape), "dtype": dtype_name(tensor), "crc32": checksum(tensor)}
        for name, tensor in stored.items()
    }
    layers = {
        name: {"form": module.form, "kind": module.kind, "shape": [module.rows, module.columns]}
        for name, module in model.named_modules()
        if isinstance(module, SparseLayer)
    }
    return Contents(model, stored, {"tensors": described, "layers": layers, "report": result.report.to_plain()})


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _read(source: Source, model: nn.Module) -> nn.Module:
    plan, stored, hint = source.plan, source.stored, source.hint(model)
    described, layers = dict(plan["tensors"].items()), dict(plan["layers"].items())
    modules, dense = dict(model.named_modules()), persistent(model)
    expected = set(dense)
    for name, entry in layers.items():
        form = entry["form"].text()
        if form not in PARTS:
            raise entry["form"].wrong(" or ".join(map(repr, PARTS)))
        _check_layer(name, entry, modules.get(name), hint)
        expected.discard(_joined(name, "weight"))
        own = {_joined(name, key) for key in PARTS[form]}
        expected |= {key for key in own if not key.endswith("scales") or key in described}
    if expected != set(described):
        odd = sorted(expected ^ set(described))[0]
        raise CheckpointError(f"{odd}: only one of the checkpoint and the model has this tensor {hint}")
    device = next((t.device for t in tensors_of(model).values() if t.device.type != "meta"), torch.device("cpu"))
    tensors: dict[str, Tensor] = {}
    for name, entry in described.items():
        tensor = stored.take(name, entry, entry["shape"].sizes())
        if name in dense:
            if list(dense[name].shape) != list(tensor.shape):
                raise CheckpointError(
                    f"{name}: expected the shape {list(tensor.shape)}, got {list(dense[name].shape)} {hint}"
                )
            same_kind(tensor, dense[name], f"{stored.path}: {name}")
        tensors[name] = tensor.to(device)
    parts = {name: _parts(name, entry, tensors) for name, entry in layers.items()}
    new = fresh_copy(model, source)
    apply_plan(new, {"created": {}, "attributes": {}}, tensors)
    made: dict[str, nn.Module] = {
        name: BitmaskLayer(new.get_submodule(name), part)
        if isinstance(part, Bitmask)
        else CSRLayer(new.get_submodule(name), part)
        for name, part in parts.items()
    }
    if "" in made:
        return made[""]
    put(new, made)
    return new


def _check_layer(name: str, entry: Field, module: nn.Module | None, hint: str) -> None:
    kind, shape = entry["kind"].text(), entry["shape"].sizes()
    matrix = None if module is None else matrix_of(module)
    if module is None or matrix is None or type(module).__name__ != kind:
        came = "none" if module is None else f"a {type(module).__name__}"
        raise CheckpointError(f"{name}: expected a {kind} in the model, got {came} {hint}")
    if list(matrix.shape) != shape:
        raise CheckpointError(f"{name}: expected outputs and inputs {shape}, got {list(matrix.shape)} {hint}")


def _parts(name: str, entry: Field, tensors: dict[str, Tensor]) -> Bitmask | tuple[Tensor, Tensor, Tensor]:
    """The layer's own tensors, taken out of all; every name was checked."""
    rows, columns = entry["shape"].sizes()
    form = entry["form"].text()
    parts = {key: tensors.pop(_joined(name, key)) for key in PARTS[form] if _joined(name, key) in tensors}
    try:
        if form == "bitmask":
            scales = parts.pop("scales", None)
            return Bitmask(**parts, scales=scales, rows=rows, columns=columns).check()
        crow, col, values = parts["crow"], parts["col"], parts["values"]
        torch.sparse_csr_tensor(crow, col, values, (rows, columns), device=values.device, check_invariants=True)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{entry.where}: {name}: {error}") from error
    return values, crow, col


register(FORMAT, lambda result: isinstance(result, AccelerateResult), _contents, _read)
