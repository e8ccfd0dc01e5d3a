"""What a Hugging Face folder has besides weights: configuration, tokenizer, preprocessor."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from sparse_accel.cli.sources.hugging_face import CONFIG, hushed
from sparse_accel.cli.sources.models import Source
from sparse_accel.cli.sources.weights import weight_files
from sparse_accel.removal.configs import ADVICE, RELOAD

DENSE = "dense"  # folder of the dense model's configuration, from which sparse_accel.load starts
_PLAIN = (".json", ".txt", ".model", ".jinja", ".py")
_OWN = (CONFIG, "report.json", "plan.json", "sparse_model.json", DENSE)


def add_dense_config(folder: Path, source: Source) -> None:
    """The configuration of the model as it was."""
    config: Any = source.model.config
    (folder / DENSE).mkdir()
    with hushed():
        config.save_pretrained(folder / DENSE)


def add_pretrained(folder: Path, result: Any) -> str:
    """What makes ``from_pretrained`` open a folder that ``sparse_accel.save`` has written.

    A sparse model's weights are written once more, zeros included: its checkpoint has only those that are kept, and
    takes its other names, ``sparse_model.*``, beside them.

    Args:
        folder: with the checkpoint.
        result: of a pruner.

    Returns:
        Why it does not open it; empty if it does.
    """
    model: Any = result.model
    plan = getattr(result, "plan", None)
    if plan is None:
        for suffix, old in ((".json", "plan"), (".safetensors", "model")):
            os.replace(folder / f"{old}{suffix}", folder / f"sparse_model{suffix}")
        with hushed():
            model.save_pretrained(folder)
        return ""
    reasons = [
        note.removeprefix(RELOAD).removesuffix(f"; {ADVICE}") for note in plan["notes"] if note.startswith(RELOAD)
    ]
    if reasons:
        return "; ".join(reasons)
    with hushed():
        model.config.save_pretrained(folder)
        if getattr(model, "generation_config", None) is not None and model.can_generate():
            model.generation_config.save_pretrained(folder)
    return ""


def remove_pretrained(folder: Path) -> None:
    """Take back what :func:`add_pretrained` has added: it would not open, or mislead."""
    (folder / CONFIG).unlink()
    if (folder / "sparse_model.json").is_file():  # the weights with their zeros
        for path in (*weight_files(folder), *folder.glob("model.safetensors.index.json")):
            if path.name != "sparse_model.safetensors":
                path.unlink()


def copy_companions(origin: Path, folder: Path) -> list[str]:
    """Copy tokenizer, preprocessor, templates, licence: plain files but configuration, weights and model card.

    Returns:
        Their names.
    """
    copied = []
    for path in sorted(origin.iterdir()):
        name = path.name
        if name in _OWN or (folder / name).exists() or name.endswith(".index.json") or name.startswith("."):
            continue
        if path.is_file() and (path.suffix in _PLAIN or name.upper().startswith(("LICENSE", "LICENCE", "NOTICE"))):
            shutil.copyfile(path, folder / name)
        elif path.is_dir() and all(item.suffix == ".json" for item in path.iterdir()) and any(path.iterdir()):
            shutil.copytree(path, folder / name)  # modules of sentence-transformers
        else:
            continue
        copied.append(name)
    return copied
