"""``--model``: a Hugging Face folder, ``module:factory``, or a folder that this program wrote."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparse_accel.cli.errors import UserError
from sparse_accel.cli.sources.hugging_face import from_config, is_model_folder, open_model
from sparse_accel.cli.sources.imports import imported, is_import
from sparse_accel.cli.sources.weights import load_weights

EXPECTED = "expected a Hugging Face folder (with config.json) or module:factory"


@dataclass(frozen=True)
class ModelOptions:
    """How models are opened.

    Attributes:
        weights: a state dict to load, or None.
        device: where the model goes.
        dtype: that floating-point weights are converted to, or None.
        trust: run Python code of a Hugging Face folder.
    """

    weights: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype | None = None
    trust: bool = False


@dataclass
class Source:
    """An opened model.

    Attributes:
        spec: as the user named it.
        model: in eval mode, with its weights.
        build: makes another of the same class and sizes, whose values do not matter.
        folder: of a Hugging Face model, with tokenizer and preprocessor; else None.
        origin: how it is built again, as plain data for a report.
        notes: what was not as usual.
    """

    spec: str
    model: nn.Module
    build: Callable[[], nn.Module]
    folder: Path | None
    origin: dict[str, Any]
    notes: list[str]


def open_source(spec: str, options: ModelOptions) -> Source:
    """Open what ``--model`` names.

    Raises:
        UserError: it is nothing of the kind, or weights do not fit.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        source = _folder(spec, path, options)
    elif is_import(spec):
        source = _factory(spec, options)
    elif path.exists():
        raise UserError(f"--model: {EXPECTED}, got the file {spec}; weights alone are for --weights")
    else:
        raise UserError(f"--model: {EXPECTED}; there is no folder {spec!r}")
    if options.dtype is not None:
        source.model.to(options.dtype)
        if hasattr(getattr(source.model, "config", None), "dtype"):
            source.model.config.dtype = options.dtype
    source.model.to(options.device).eval()
    return source


def _folder(spec: str, path: Path, options: ModelOptions) -> Source:
    if not is_model_folder(path):
        made = [name for name in ("plan.json", "sparse_model.json") if (path / name).is_file()]
        if made:
            raise UserError(
                f"--model: expected the model that results are made of, {spec} holds a result ({made[0]}) whose widths "
                "no config.json describes"
            )
        raise UserError(f"--model: {EXPECTED}; {spec} has no config.json")
    notes: list[str] = []
    model = open_model(path, options.weights, notes, trust=options.trust)
    config, kind = copy.deepcopy(model.config), type(model)
    origin = {"kind": "hugging_face", "class": kind.__name__}
    return Source(spec, model, lambda: from_config(config, kind), path, origin, notes)


def _factory(spec: str, options: ModelOptions) -> Source:
    found = imported("--model", spec)

    model = built(spec, found)
    if options.weights is not None:
        load_weights(model, options.weights)
    notes = [] if options.weights is not None else [f"{spec}: no --weights: the model is as the factory makes it"]
    if options.weights is None:
        repeated = _same_values(model, built(spec, found))
        if not repeated:
            notes = [f"{spec}: no --weights, and the factory makes other weights each time: they are random"]
    return Source(spec, model, lambda: built(spec, found), None, {"kind": "factory", "spec": spec}, notes)


def built(spec: str, found: Any) -> nn.Module:
    """A model of what ``module:factory`` names: made by a function, or a copy of a module.

    Raises:
        UserError: it is neither, or fails.
    """
    if isinstance(found, nn.Module):
        return copy.deepcopy(found)
    if not callable(found):
        raise UserError(f"--model: expected {spec} to be a function or an nn.Module, got {type(found).__name__}")
    try:
        made = found()
    except Exception as error:  # of the user's own code
        raise UserError(f"--model: {spec}() fails: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise UserError(f"--model: expected an nn.Module from {spec}(), got {type(made).__name__}")
    return made


def _same_values(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key])
        for key in a
        if isinstance(a[key], torch.Tensor) and isinstance(b[key], torch.Tensor)
    )
