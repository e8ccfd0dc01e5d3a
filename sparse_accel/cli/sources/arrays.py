"""Inputs in .npy, .npz and safetensors files."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparse_accel.cli.errors import UserError
from sparse_accel.cli.sources.weights import tensors_of_file

SUFFIXES = (".npy", ".npz", ".safetensors")


def chosen(total: int, samples: int, seed: int) -> Tensor:
    """Which of the samples are used: all, or so many at random, in their order.

    Example:
        >>> chosen(3, 5, 0).tolist(), len(chosen(10, 4, 0))
        ([0, 1, 2], 4)
    """
    if total <= samples:
        return torch.arange(total, device="cpu")
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed), device="cpu")[:samples].sort().values


def read_arrays(path: Path, model: nn.Module, samples: int, seed: int) -> tuple[Any, str]:
    """Samples of a file.

    Args:
        path: an array, or several by name: the arguments of the model's ``forward``.
        model: that takes them.
        samples: at most so many rows.
        seed: of the choice.

    Returns:
        A tensor, or tensors by name; and what they are, in words.

    Raises:
        UserError: the file is damaged, its arrays have different lengths, or the model has no such arguments.
    """
    arrays = dict(tensors_of_file(path)) if path.suffix == ".safetensors" else _numpy(path)
    if not arrays:
        raise UserError(f"--calibration: {path}: expected arrays, found none")
    for name, array in arrays.items():
        if not array.dim():
            raise UserError(f"--calibration: {path}: {name}: expected an array of samples, got a single number")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"--calibration: {path}: expected as many samples of each array, got {lengths}")
    total = next(iter(lengths.values()))
    if not total:
        raise UserError(f"--calibration: {path}: expected at least one sample, got none")
    rows = chosen(total, samples, seed)
    parameters = inspect.signature(model.forward).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    what = f"{len(rows)} of {total} samples of {path.name}"
    if len(arrays) == 1 and next(iter(arrays)) not in parameters:
        return next(iter(arrays.values()))[rows], what
    unknown = [name for name in arrays if name not in parameters]
    if unknown and not anything:
        raise UserError(
            f"--calibration: {path}: {', '.join(unknown)}: {type(model).__name__}.forward has no such argument; "
            f"it takes {', '.join(parameters)}"
        )
    return {name: array[rows] for name, array in arrays.items()}, what


def _numpy(path: Path) -> dict[str, Tensor]:
    try:
        found = np.load(path, allow_pickle=False)
        arrays = {"": found} if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    except Exception as error:  # damaged, pickled, or of a dtype that torch does not have
        raise UserError(f"--calibration: {path}: expected arrays of numbers: {error}") from error
