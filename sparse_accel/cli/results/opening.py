"""What a folder or a file holds: its model, where something says how it is built, and its tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.cli.errors import UserError, library_errors
from sparse_accel.cli.results.pretrained import DENSE
from sparse_accel.cli.results.record import read_record
from sparse_accel.cli.results.target import RECORD
from sparse_accel.cli.sources.hugging_face import class_named, class_of, config_of, from_config, is_model_folder
from sparse_accel.cli.sources.imports import imported, is_import
from sparse_accel.cli.sources.models import ModelOptions, Source, built, open_source
from sparse_accel.cli.sources.weights import tensors_of_file, weight_files
from sparse_accel.prune.unstructured.masks import unpack
from sparse_accel.removal import checkpoint

RESULT = "result"  # kind of a model that is the result of an earlier command
PLANS = {"plan.json": "model.safetensors", "sparse_model.json": "sparse_model.safetensors"}


@dataclass
class Opened:
    """A model or a checkpoint.

    Attributes:
        spec: as the user named it.
        source: the model, in eval mode; None where nothing says how it is built.
        why: there is none.
    """

    spec: str
    source: Source | None
    why: str = ""


def open_any(spec: str, model: str | None, options: ModelOptions) -> Opened:
    """Open a result, a Hugging Face folder, a factory, or weights.

    Args:
        spec: the folder, file or ``module:factory``.
        model: what the user says of how it is built, for weights and for results without a record.
        options: device, dtype.

    Raises:
        UserError: there is nothing of the kind, or it is damaged.
    """
    path = Path(spec).expanduser()
    if path.is_file():
        if model is None:
            return Opened(spec, None, f"{spec} holds weights alone: --model says what of")
        return Opened(spec, open_source(model, replace(options, weights=path)))
    if not path.is_dir():
        if is_import(spec):
            return Opened(spec, open_source(spec, options))
        raise UserError(f"{spec}: no such file or folder")
    if plan_of(path) is None:
        if is_model_folder(path):
            return Opened(spec, open_source(spec, options))
        if not weight_files(path):
            raise UserError(f"{spec}: expected a model or a result in this folder, found no weights")
        if model is None:
            return Opened(spec, None, f"{spec} has no config.json: --model says what it is")
        return Opened(spec, open_source(model, replace(options, weights=path)))
    if model is not None:
        base = open_source(model, replace(options, weights=None))
    elif (path / RECORD).is_file():
        base = _dense_of(path, options)
    else:
        return Opened(spec, None, f"{spec} has no {RECORD}: --model says of which model it is")
    with library_errors(spec):
        small = checkpoint.load(path, base.model.to(options.device))
    if options.dtype is not None:
        small.to(options.dtype)
    folder = path if base.folder is not None else None
    return Opened(spec, Source(spec, small.eval(), base.build, folder, base.origin, []))


def open_start(spec: str, options: ModelOptions) -> Source:
    """What ``--model`` names, results that no configuration describes among them.

    What is made of such a result is opened by way of it: its folder is noted, and has to stay.

    Raises:
        UserError: see :func:`open_any` and :func:`~sparse_accel.cli.sources.models.open_source`.
    """
    path = Path(spec).expanduser()
    if not path.is_dir() or is_model_folder(path) or plan_of(path) is None:
        return open_source(spec, options)
    if options.weights is not None:
        raise UserError(f"--weights: {spec} is a result, which has its own")
    source = open_any(spec, None, options).source
    if source is None:
        raise UserError(f"--model: {spec} has no {RECORD}, which says of which model it is")
    dense = source.build

    def build() -> nn.Module:
        with library_errors(spec):
            return checkpoint.load(path, dense())

    origin = {"kind": RESULT, "class": type(source.model).__name__, "folder": str(path.resolve())}
    return Source(spec, source.model, build, source.folder, origin, source.notes)


def plan_of(folder: Path) -> dict[str, Any] | None:
    """The plan of a checkpoint of :func:`sparse_accel.save`, None if the folder holds none.

    Raises:
        UserError: it is damaged.
    """
    for name in PLANS:
        if (folder / name).is_file():
            try:
                plan = json.loads((folder / name).read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"{folder / name}: not JSON: {error}") from error
            if isinstance(plan, dict) and str(plan.get("format", "")).startswith("sparse_accel."):
                return {**plan, "tensors_file": PLANS[name]}
    return None


def _dense_of(folder: Path, options: ModelOptions) -> Source:
    """A model of the sizes that a result started from, whose values do not matter."""
    origin = read_record(folder).get("model")
    if not isinstance(origin, dict):
        raise UserError(f"{folder / RECORD}: damaged: expected 'model' in it")
    if origin.get("kind") == RESULT:
        start = Path(str(origin.get("folder")))
        if not start.is_dir():
            raise UserError(f"{folder}: was made of {start}, which is not there: --model says how it is built")
        source = open_any(str(start), None, ModelOptions(trust=options.trust)).source
        if source is None:
            raise UserError(f"{folder}: was made of {start}, which has no {RECORD}")
        return source
    if origin.get("kind") == "factory":
        spec = str(origin.get("spec"))
        found = imported(f"{folder / RECORD} (--model says otherwise)", spec)
        return Source(spec, built(spec, found), lambda: built(spec, found), None, origin, [])
    if not is_model_folder(folder / DENSE):
        raise UserError(f"{folder}: expected the dense configuration in {DENSE}/, found none: --model FOLDER")
    config = config_of(folder / DENSE, trust=options.trust)
    kind = class_named(str(origin.get("class")))
    if kind is None and options.trust:
        kind = class_of(config, trust=True)
    if kind is None:
        raise UserError(f"{folder / RECORD}: transformers has no class {origin.get('class')!r}: --model FOLDER")

    def build() -> nn.Module:
        return from_config(config, kind, trust=options.trust)

    return Source(str(folder), build(), build, folder, origin, [])


def files_of(spec: str) -> list[Path]:
    """The files in which a checkpoint's weights are."""
    path = Path(spec).expanduser()
    if path.is_file():
        return [path]
    plan = plan_of(path) if path.is_dir() else None
    if plan is not None:
        return [path / str(plan["tensors_file"])]
    return weight_files(path) if path.is_dir() else []


def tensors_in(spec: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint by name, masked ones of full size.

    Raises:
        UserError: a file is missing or damaged, or of a kind that only its model can read.
    """
    path = Path(spec).expanduser()
    files = files_of(spec)
    if not files:
        raise UserError(f"{spec}: " + ("no weights in this folder" if path.is_dir() else "no such file or folder"))
    plan = plan_of(path) if path.is_dir() else None
    if plan is None or plan["format"] == "sparse_accel.compact":
        for file in files:
            yield from tensors_of_file(file)
        return
    if plan["format"] != "sparse_accel.sparse_model":
        raise UserError(f"{spec}: a checkpoint of the format {plan['format']!r}, which --model alone can open")
    stored = dict(tensors_of_file(files[0]))
    try:
        for name, entry in plan["tensors"].items():
            if not entry["masked"]:
                yield name, stored[name]
                continue
            mask, kept = unpack(stored[f"{name}:mask"], entry["shape"]), stored[f"{name}:kept"]
            full = torch.zeros(entry["shape"], dtype=kept.dtype, device="cpu")
            full[mask] = kept
            yield name, full
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(f"{spec}: damaged: {type(error).__name__}: {error}") from error
