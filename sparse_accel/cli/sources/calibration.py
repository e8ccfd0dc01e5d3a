"""``--calibration``: unlabelled inputs from a text, a folder of images, arrays, or the user's own loader."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparse_accel.channels.runs import run_model
from sparse_accel.cli.errors import UserError
from sparse_accel.cli.sources.arrays import SUFFIXES, read_arrays
from sparse_accel.cli.sources.images import read_images
from sparse_accel.cli.sources.imports import imported, is_import
from sparse_accel.cli.sources.models import Source
from sparse_accel.cli.sources.settings import DataOptions
from sparse_accel.cli.sources.text import read_text

EXPECTED = f"expected a text file, a folder of images, {', '.join(SUFFIXES)} or module:loader"
EXAMPLE = 2  # samples of the example that models are analysed on


@dataclass
class Data:
    """Calibration inputs.

    Attributes:
        batches: the model's inputs, on its device.
        example: the first :data:`EXAMPLE` samples.
        what: they are, in words.
        notes: what was not as usual.
    """

    batches: list[Any]
    example: Any
    what: str
    notes: list[str] = field(default_factory=list)


def read_data(spec: str, source: Source, options: DataOptions) -> Data:
    """Read what ``--calibration`` names, and run the model on the first samples.

    Raises:
        UserError: it is nothing of the kind, does not fit the model, or the model does not run on it.
    """
    path, notes = Path(spec).expanduser(), list[str]()
    if path.is_dir():
        inputs, what = read_images(path, source, options.images, options.samples, options.seed)
    elif path.is_file() and path.suffix in SUFFIXES:
        inputs, what = read_arrays(path, source.model, options.samples, options.seed)
    elif path.is_file():
        inputs, what = read_text(path, source, options, notes)
    elif is_import(spec):
        return checked(Data(_from_loader(spec, options), None, f"{spec}", notes), source.model)
    else:
        raise UserError(f"--calibration: {EXPECTED}; there is no {spec!r}")
    return checked(Data(split(inputs, options.batch_size), None, what, notes), source.model)


def split(inputs: Any, size: int) -> list[Any]:
    """Batches of a tensor, or of a mapping of tensors of the same length (other values go into every batch).

    Example:
        >>> [tuple(batch.shape) for batch in split(torch.zeros(5, 3), 2)]
        [(2, 3), (2, 3), (1, 3)]
    """
    if isinstance(inputs, Tensor):
        return list(inputs.split(size))
    tensors = {key: value for key, value in inputs.items() if isinstance(value, Tensor)}
    count = len(next(iter(tensors.values())))
    return [
        {key: value[start : start + size] if key in tensors else value for key, value in inputs.items()}
        for start in range(0, count, size)
    ]


def _from_loader(spec: str, options: DataOptions) -> list[Any]:
    """The first batches of a loader, until there are enough samples."""
    found = imported("--calibration", spec)
    if isinstance(found, nn.Module) or not (callable(found) or isinstance(found, Iterable)):
        raise UserError(f"--calibration: expected {spec} to be batches or a function, got {type(found).__name__}")
    batches, count = [], 0
    try:
        items = found if isinstance(found, Iterable) else found()
        if isinstance(items, Tensor):
            items = items[: options.samples].split(options.batch_size)
        for item in (items,) if isinstance(items, Mapping) else items:
            if not isinstance(item, (Tensor, tuple, list, Mapping)):
                raise UserError(
                    f"--calibration: expected tensors, tuples or mappings from {spec}, got {type(item).__name__}"
                )
            batches.append(item)
            count += _rows(item)
            if count >= options.samples:
                break
    except UserError:
        raise
    except Exception as error:  # of the user's own code
        raise UserError(f"--calibration: {spec} fails: {type(error).__name__}: {error}") from error
    if not batches:
        raise UserError(f"--calibration: expected batches from {spec}, got none")
    return batches


def _rows(batch: Any) -> int:
    first = next((leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()), None)
    return 1 if first is None else len(first)


def checked(data: Data, model: nn.Module) -> Data:
    """The data on the model's device and in its dtype, with an example that the model runs on."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0, device="cpu"))

    def placed(tree: Any) -> Any:
        return pytree.tree_map_only(
            Tensor, lambda t: t.to(like.device, like.dtype if t.is_floating_point() else None), tree
        )

    data.batches = [placed(_leading(batch, model)) for batch in data.batches]
    rows = _rows(data.batches[0])
    data.example = pytree.tree_map_only(
        Tensor, lambda t: t[:EXAMPLE].clone() if t.dim() and len(t) == rows else t, data.batches[0]
    )
    try:
        with torch.no_grad():
            run_model(model, data.example)
    except Exception as error:
        shapes = [tuple(t.shape) for t in pytree.tree_leaves(data.example) if isinstance(t, Tensor)]
        raise UserError(
            f"--calibration: the model does not run on inputs of shape {', '.join(map(str, shapes))}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return data


def _leading(batch: Any, model: nn.Module) -> Any:
    """Of a tuple such as ``(images, labels)`` as many leading elements as the model has required arguments."""
    if not isinstance(batch, (tuple, list)):
        return batch
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        return tuple(batch)
    takes = sum(parameter.kind in kinds for parameter in parameters)
    return tuple(batch)[:takes]
