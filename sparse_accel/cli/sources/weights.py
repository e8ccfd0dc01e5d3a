"""Tensors of checkpoint files: safetensors, or a state dict of torch.save; no code of the file ever runs."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.cli.errors import UserError

INSIDE = ("state_dict", "model_state_dict", "model")  # where training scripts put the state dict
COUNTER = (
    "num_batches_tracked"  # of BatchNorms: files of torch before 0.4.1 have none, and nothing computed depends on it
)
NAMED = 4  # keys that a message names


def tensors_of_file(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors of one file by name; of safetensors one at a time.

    Raises:
        UserError: the file is missing, damaged or holds something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise UserError(f"{path}: not a safetensors file: {error}") from error
        return
    yield from _state_of(path).items()


def tensors_of_folder(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a folder of weights: those of its index's files, or of its one file.

    Raises:
        UserError: there are no weights in it, or a file is missing or damaged.
    """
    for path in weight_files(folder):
        yield from tensors_of_file(path)


def weight_files(folder: Path) -> list[Path]:
    """The files of weights of a Hugging Face folder, empty if there are none.

    Raises:
        UserError: an index is damaged.
    """
    for single in ("model.safetensors", "pytorch_model.bin"):
        if (folder / single).is_file():
            return [folder / single]
        index = folder / f"{single}.index.json"
        if index.is_file():
            try:
                names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
                return [folder / name for name in dict.fromkeys(names)]
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise UserError(f"{index}: not an index of weights: {error}") from error
    return sorted(folder.glob("*.safetensors"))


def _state_of(path: Path) -> dict[str, Tensor]:
    """The state dict of a file of torch.save."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of foreign pickles, which are refused
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file leads to
        raise UserError(
            f"{path}: expected safetensors or a state dict saved by torch.save; it cannot be loaded without running "
            f"code that it holds, or is damaged: save model.state_dict() ({type(error).__name__})"
        ) from error
    for key in INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise UserError(f"{path}: expected a state dict (tensors by name), got {type(found).__name__} without tensors")
    if all(name.startswith("module.") for name in tensors):  # of DataParallel
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def load_weights(model: nn.Module, path: Path) -> None:
    """Put a file's tensors (or a folder's) into a model, which changes only if all of them fit.

    Args:
        model: to load into.
        path: a file, or a folder of weights.

    Raises:
        UserError: keys are missing, unexpected or of another shape; the message names them.
    """
    state = dict(tensors_of_folder(path) if path.is_dir() else tensors_of_file(path))
    if not state:
        raise UserError(f"{path}: expected model.safetensors or pytorch_model.bin in it, found neither")
    own = model.state_dict(keep_vars=True)
    tied: dict[int, list[str]] = {}
    for name, tensor in own.items():
        if isinstance(tensor, Tensor):
            tied.setdefault(id(tensor), []).append(name)
    given = {name for names in tied.values() if any(name in state for name in names) for name in names}
    faults = {
        "missing": [
            name
            for name, tensor in own.items()
            if isinstance(tensor, Tensor) and name not in given and not name.endswith(COUNTER)
        ],
        "unexpected": [name for name in state if name not in own and not _is_ignored(model, name)],
        "of another shape": [
            f"{name} (expected {list(own[name].shape)}, got {list(tensor.shape)})"
            for name, tensor in state.items()
            if name in own and own[name].shape != tensor.shape
        ],
    }
    listed = [f"{what}: {_named(names)}" for what, names in faults.items() if names]
    if listed:
        raise UserError(f"{path}: not the weights of this {type(model).__name__}: {'; '.join(listed)}")
    model.load_state_dict(state, strict=False)


def _is_ignored(model: nn.Module, name: str) -> bool:
    """Whether a class of transformers says that such a key of older files does not matter."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def _named(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
