"""Folders of Hugging Face models: config.json and weights; nothing is downloaded, no code of theirs runs unasked."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparse_accel.cli.errors import UserError
from sparse_accel.cli.sources.weights import load_weights, weight_files

CONFIG = "config.json"


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds a configuration of transformers."""
    return (folder / CONFIG).is_file()


@contextmanager
def hushed() -> Iterator[Any]:
    """transformers without its own bars and warnings, as before afterwards; yields the package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError("Hugging Face models need transformers: pip install transformers") from error
    own: Any = transformers.utils.logging
    level, bars = own.get_verbosity(), own.is_progress_bar_enabled()
    own.set_verbosity(logging.CRITICAL)
    own.disable_progress_bar()
    try:
        yield transformers
    finally:
        own.set_verbosity(level)
        if bars:
            own.enable_progress_bar()


def config_of(folder: Path, *, trust: bool) -> Any:
    """The configuration in a folder.

    Raises:
        UserError: it cannot be read, or asks for code of its own without ``trust``.
    """
    path = folder / CONFIG
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(plain, dict) or "model_type" not in plain:
        raise UserError(f"{path}: expected a configuration of transformers with a model_type, got none")
    if plain.get("auto_map") and not trust:
        raise UserError(f"{path}: asks for Python code of its own; --trust-remote-code runs it, if you trust it")
    with hushed() as transformers:
        try:
            return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
        except Exception as error:  # whatever transformers has against it
            raise UserError(f"{path}: {error}") from error


def class_named(name: str) -> Any:
    """A model's class in transformers, None if it has no such."""
    with hushed() as transformers:
        found = getattr(transformers, name, None)
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None


def class_of(config: Any, *, trust: bool) -> Any:
    """The class that a configuration names, or that of its bare model."""
    with hushed() as transformers:
        for name in getattr(config, "architectures", None) or ():
            if class_named(name) is not None:
                return class_named(name)
        code = getattr(config, "auto_map", None) or {}
        autos = [key for key in code if key.startswith("AutoModel")] if trust else []
        return getattr(transformers, (autos or ["AutoModel"])[0])


def from_config(config: Any, kind: Any, *, trust: bool = False) -> nn.Module:
    """A model whose weights have no values that matter: those of a file follow."""
    with hushed():
        from transformers.initialization import no_init_weights
    with hushed(), torch.random.fork_rng(devices=[]), no_init_weights():
        own = copy.deepcopy(config)
        plain = getattr(kind, "_from_config", None)  # an AutoModel has none
        model: Any = plain(own) if plain is not None else kind.from_config(own, trust_remote_code=trust)
        if hasattr(model, "tie_weights"):
            model.tie_weights()  # which belongs to the initialization that is left out
    module: nn.Module = model
    return module.eval()


def open_model(folder: Path, weights: Path | None, notes: list[str], *, trust: bool) -> nn.Module:
    """The model of a folder, in eval mode, with the dtypes of its files.

    Args:
        folder: with a configuration.
        weights: to take instead of the folder's.
        notes: gets what was left over in the files.
        trust: run Python code of the folder's.

    Raises:
        UserError: weights are missing, or do not fit the configuration.
    """
    config = config_of(folder, trust=trust)
    kind = class_of(config, trust=trust)
    if weights is not None:
        model = from_config(config, kind, trust=trust)
        load_weights(model, weights)
        return model
    if not weight_files(folder):
        raise UserError(f"{folder}: expected model.safetensors or pytorch_model.bin beside {CONFIG}, or --weights FILE")
    with hushed():
        try:
            found: Any = kind.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                trust_remote_code=trust,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, all of them
                dtype="auto",
            )
        except Exception as error:  # whatever transformers has against the files
            raise UserError(f"{folder}: {type(error).__name__}: {error}") from error
    model, info = found
    faults = [f"{name} (expected {list(new)}, got {list(old)})" for name, old, new in info["mismatched_keys"]]
    for what, names in (("of another shape", faults), ("missing", sorted(info["missing_keys"]))):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise UserError(f"{folder}: weights of {kind.__name__} are {what}: {', '.join(names[:4])}{more}")
    if info["unexpected_keys"]:
        names = sorted(info["unexpected_keys"])
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        notes.append(f"{folder}: {kind.__name__} does not use {', '.join(names[:4])}{more} of the file")
    return model.eval()
