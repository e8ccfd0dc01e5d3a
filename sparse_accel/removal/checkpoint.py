"""Checkpoints of results: one pair of functions for every kind, told apart by the ``format`` of ``plan.json``.

A kind of result says with :func:`register` what of it is written and how a model is made from that again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_accel import _build_info
from sparse_accel._modes import outside_inference_mode
from sparse_accel.removal.files import (
    CheckpointError,
    Field,
    Part,
    Stored,
    check_seal,
    read_json,
    read_plan,
    read_tensors,
    write_parts,
)
from sparse_accel.removal.optimizer_checkpoint import GROUPS_FILE, STATE_FILE, load_optimizer, optimizer_part
from sparse_accel.wrappers import bare_model, copy_model

__all__ = ["CheckpointError", "Contents", "Source", "load", "load_optimizer", "open_checkpoint", "register", "save"]

VERSION = 1
MODEL_FILE, PLAN_FILE = "model.safetensors", "plan.json"


@dataclass
class Contents:
    """What is written of a result.

    Attributes:
        model: whose class is noted, and which names the optimizer's parameters.
        tensors: for ``model.safetensors``.
        plan: plain data that describes them.
        optimizer: of the model's parameters, or None.
        stale: files that results of this kind had before, which this checkpoint replaces.
    """

    model: nn.Module
    tensors: Mapping[str, Tensor]
    plan: Mapping[str, Any]
    optimizer: Optimizer | None = None
    stale: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """An open checkpoint: its plan, its tensors, and how messages name the classes."""

    plan: Field
    stored: Stored

    def hint(self, model: nn.Module) -> str:
        """Of which class the checkpoint is, and of which the model."""
        return f"(the checkpoint is of {self.plan['class'].text()}, the model a {class_name(model)})"


Fits = Callable[[Any], bool]
Write = Callable[[Any], Contents]
Read = Callable[[Source, nn.Module], nn.Module]
_KINDS: dict[str, tuple[Fits, Write, Read]] = {}


def register(form: str, fits: Fits, write: Write, read: Read) -> None:
    """Make a kind of result known to :func:`save` and :func:`load`.

    Args:
        form: ``format`` of its ``plan.json``.
        fits: whether an object is such a result.
        write: what is written of it; raises CheckpointError where it cannot be.
        read: the model again, on a copy of the one given, after checking every value.
    """
    _KINDS[form] = (fits, write, read)


def save(result: Any, directory: str | os.PathLike[str], *, optimizer: bool = True) -> Path:
    """Write a result: ``model.safetensors`` and ``plan.json``, and the optimizer's two files if it has one.

    The tensors are the parameters and the persistent buffers, tied ones once; of masked weights only the kept ones and
    one bit for each. Later changes of ``result.model``, such as fine-tuning, are saved as they are.

    Args:
        result: of :func:`sparse_accel.compact`, :func:`sparse_accel.prune.remove_units`,
            :meth:`sparse_accel.prune.ISpaSP.run`, :meth:`sparse_accel.prune.CurvatureIHT.run` or
            :func:`sparse_accel.accelerate`.
        directory: created if need be; the files of a checkpoint that it holds are replaced or, such as those of another
            optimizer, removed. An interrupted save leaves the old checkpoint, or one that is refused.
        optimizer: save the result's optimizer too, for :func:`load_optimizer`.

    Raises:
        CheckpointError: the model has state besides tensors (``get_extra_state``), its shapes are not the plan's, or
            it holds weights where its masks have none. The files are then as they were.
        TypeError: ``result`` is none of these.

    Returns:
        The directory.

    Example:
        >>> import sparse_accel as sa
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> net[2].weight.data[:, 1] = 0
        >>> sorted(path.name for path in sa.save(sa.compact(net, torch.zeros(1, 4)), "small").iterdir())
        ['model.safetensors', 'plan.json']
    """
    form = next((form for form, (fits, _, _) in _KINDS.items() if fits(result)), None)
    if form is None:
        advice = ": call its own save()" if hasattr(result, "save") else ""
        raise TypeError(f"result: expected what compact() or a pruner returned, got {type(result).__name__}{advice}")
    contents = _KINDS[form][1](result)
    model = contents.model
    plan = {
        "format": form,
        "version": VERSION,
        "sparse_accel": _build_info.version,
        "torch": torch.__version__,
        "class": class_name(model),
        **contents.plan,
    }
    parts = [Part(MODEL_FILE, PLAN_FILE, contents.tensors, plan)]
    if optimizer and contents.optimizer is not None:
        parts.append(optimizer_part(contents.optimizer, model))
    return write_parts(directory, parts, [*contents.stale, STATE_FILE, GROUPS_FILE])


@outside_inference_mode
def load(directory: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Rebuild the saved model from a fresh instance of the dense one.

    Args:
        directory: written by :func:`save`.
        model: an instance of the original class with the original sizes; its values do not matter. It is not changed.

    Returns:
        A new model on the given one's device, in its mode, with the saved dtypes and the saved model's outputs.

    Raises:
        CheckpointError: a file is missing, damaged or of another save, or the model is not the plan's: the message
            names file and key, what was expected and what came.

    Example:
        >>> import sparse_accel as sa
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> net[2].weight.data[:, 1] = 0
        >>> _ = sa.save(sa.compact(net, torch.zeros(1, 4)), "small")
        >>> sa.load("small", nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))[2]
        Linear(in_features=2, out_features=2, bias=True)
    """
    with torch.inference_mode(False):  # what is loaded can be trained
        source, read = open_checkpoint(directory)
        return read(source, bare_model(model, CheckpointError))


def open_checkpoint(directory: str | os.PathLike[str], form: str | None = None) -> tuple[Source, Read]:
    """The plan and the tensors of a checkpoint, and what makes a model of them.

    Args:
        directory: that holds it.
        form: the format wanted; by default any.

    Raises:
        CheckpointError: a file is missing or damaged, or they are not of one save or of a known format.
    """
    directory = Path(directory)
    path = directory / PLAN_FILE
    came = read_json(path).value.get("format") if path.is_file() else None
    for old, plan_file, model_file in OLD_FILES:
        if (directory / plan_file).is_file() and (not path.is_file() or form == old != came):
            return _open(directory, old, plan_file, model_file)
    for name in (PLAN_FILE, MODEL_FILE):
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory}: expected {MODEL_FILE} and {PLAN_FILE}, {name} is missing")
    known = list(_KINDS) if form is None else [form]
    if not isinstance(came, str) or came not in known:
        raise CheckpointError(f"{path}: expected the format {' or '.join(map(repr, known))}, got another file")
    return _open(directory, came, PLAN_FILE, MODEL_FILE)


# Formats that had names of their own, before plan.json was that of all.
OLD_FILES = [("sparse_accel.sparse_model", "sparse_model.json", "sparse_model.safetensors")]


def _open(directory: Path, form: str, plan_file: str, model_file: str) -> tuple[Source, Read]:
    plan = read_plan(directory / plan_file, form, VERSION)
    for key in ("class", "torch"):
        plan[key].text()
    return Source(plan, read_tensors(directory / model_file, plan)), _KINDS[form][2]


def class_name(model: nn.Module) -> str:
    """``"module.Class"``."""
    return f"{type(model).__module__}.{type(model).__qualname__}"


def refuse_extra_state(model: nn.Module) -> None:
    """Raise CheckpointError where a module has state besides tensors."""
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise CheckpointError(f"{name or 'model'} ({type(module).__name__}): extra state cannot be saved")


def fresh_copy(model: nn.Module, source: Source) -> nn.Module:
    """A copy to put the tensors into, once every value has been checked."""
    check_seal(source.plan)
    return copy_model(model, CheckpointError, empty=True)
