"""Weights that stay on disk: a model's from its safetensors files, and copies of it that live in files.

A tensor of a memory-mapped file has its values read when they are needed, and the system takes the memory back when it
needs it for something else: what is in memory is what is being worked on.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor, nn

LEAST = 1 << 16  # bytes of a tensor that is worth a file of its own

_FOLDER: ContextVar[Path | None] = ContextVar("folder of copies", default=None)


@contextlib.contextmanager
def copies_in(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Copies of models made inside have their weights in memory-mapped files of a folder.

    The files have no names: their room on the disk is free again when nothing holds the tensors any more, and when the
    process ends. Tensors that are small, not on the CPU, or share memory with others, are copied as usual.

    Args:
        folder: made where it is missing; None copies as usual.

    Raises:
        OSError: it cannot be written to.
    """
    if folder is None:
        yield
        return
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    token = _FOLDER.set(path)
    try:
        yield
    finally:
        _FOLDER.reset(token)


def mapped_copies(model: nn.Module) -> dict[int, Tensor]:
    """Copies of a model's tensors in files, by the ids of the tensors; empty outside of :func:`copies_in`."""
    folder = _FOLDER.get()
    if folder is None:
        return {}
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    users = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    return {
        key: _mapped(tensor, folder)
        for key, tensor in tensors.items()
        if type(tensor) in (Tensor, nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and LEAST <= tensor.nbytes == tensor.untyped_storage().nbytes()
        and users[tensor.untyped_storage().data_ptr()] == 1
    }


def _mapped(tensor: Tensor, folder: Path) -> Tensor:
    """A copy of a tensor in a file of its own."""
    handle, name = tempfile.mkstemp(dir=folder, prefix="sparse_accel-", suffix=".weights")
    os.close(handle)
    try:
        os.truncate(name, tensor.nbytes)
        storage = torch.UntypedStorage.from_file(name, shared=True, nbytes=tensor.nbytes)
        new = torch.empty(0, dtype=tensor.dtype, device="cpu")
        new.set_(storage, 0, tensor.shape, tensor.stride())  # type: ignore[arg-type]
        new.copy_(tensor.detach())
    finally:
        with contextlib.suppress(PermissionError):  # systems that keep the name of an open file
            os.unlink(name)
    return nn.Parameter(new, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new


def map_weights(model: nn.Module, source: str | os.PathLike[str]) -> nn.Module:
    """Let a model's weights stay on disk: its tensors become views of memory-mapped safetensors files.

    For models larger than the memory, and for those whose weights accelerate has offloaded or that were built on the
    meta device: build one from its configuration under ``torch.device("meta")``, and map the folder that
    ``save_pretrained`` wrote. Values are read when they are used; changes stay in memory, the files never change.

    Args:
        model: its parameters and buffers are replaced, in place; their dtypes are those of the files.
        source: a ``.safetensors`` file, or a folder with ``model.safetensors`` or ``model.safetensors.index.json``.

    Returns:
        The model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a tensor of the model is neither in the files nor has values, or has another shape there; or the
            files have none of the model's tensors. The model is as it was.

    A warning names what keeps the values that it had, as the files do not have it.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, f"{folder}/model.safetensors")
        ...     net = map_weights(nn.Linear(3, 2, device="meta"), folder)
        >>> net(torch.ones(1, 3)).tolist()
        [[3.0, 3.0]]
    """
    from safetensors import safe_open

    files = _files(Path(source))
    found: dict[str, Tensor] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    places: dict[int, list[tuple[nn.Module, str, str]]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                places.setdefault(id(tensor), []).append((module, key, f"{prefix}.{key}" if prefix else key))
    new: list[tuple[nn.Module, str, Tensor]] = []
    kept: list[str] = []
    for own in places.values():
        module, key, name = own[0]
        old = getattr(module, key)
        values = next((found[one] for _, _, one in own if one in found), None)
        if values is None:
            if old.is_meta:
                values = _computed(module, key, old)
            if old.is_meta and values is None:
                raise ValueError(f"source: expected {name}, which has no values yet, in {', '.join(map(str, files))}")
            if values is None:
                if key not in module._non_persistent_buffers_set:
                    kept.append(name)
                continue
        if values.shape != old.shape:
            raise ValueError(f"source: {name}: expected shape {[*old.shape]}, got {[*values.shape]}")
        learns = old.requires_grad and values.is_floating_point()
        made = nn.Parameter(values, requires_grad=learns) if isinstance(old, nn.Parameter) else values
        new += [(owner, one, made) for owner, one, _ in own]
    if kept and not new:
        raise ValueError(
            f"source: expected tensors with the model's names, such as {kept[0]}; {', '.join(map(str, files))} has "
            f"none of them, but {', '.join(sorted(found)[:3]) or 'nothing'}"
        )
    if kept:
        warnings.warn(
            f"map_weights: {len(kept)} of {len(places)} tensors are not in the files and keep the values that they "
            f"had: {', '.join(kept[:5])}{', ...' if len(kept) > 5 else ''}",
            stacklevel=2,
        )
    for module, key, tensor in new:
        if isinstance(tensor, nn.Parameter):
            module._parameters[key] = tensor
        else:
            module._buffers[key] = tensor
    return model


def _computed(module: nn.Module, key: str, old: Tensor) -> Tensor | None:
    """A buffer that no file has because the module computes it (rotary embeddings), from a module made anew."""
    config = getattr(module, "config", None)
    if key not in module._non_persistent_buffers_set or config is None:
        return None
    try:
        with torch.device("cpu"):
            made = type(module)(config)._buffers.get(key)
    except Exception:  # anything that a class may raise: the caller names the buffer
        return None
    return made if made is not None and not made.is_meta and made.shape == old.shape else None


def _files(source: Path) -> list[Path]:
    if not source.is_dir():
        if not source.exists():
            raise FileNotFoundError(f"source: expected a safetensors file or a folder with them, got {source}")
        return [source]
    index = source / "model.safetensors.index.json"
    if index.exists():
        return sorted({source / name for name in json.loads(index.read_text())["weight_map"].values()})
    if not (source / "model.safetensors").exists():
        raise FileNotFoundError(f"source: expected model.safetensors or model.safetensors.index.json in {source}")
    return [source / "model.safetensors"]
