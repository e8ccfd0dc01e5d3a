"""Files of checkpoints: JSON and safetensors, no pickle; every fault is a CheckpointError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor


class CheckpointError(RuntimeError):
    """A checkpoint is missing or damaged, or does not belong to the model; the model is unchanged."""


def read_json(path: Path, expected: str, version: int) -> dict[str, Any]:
    """A JSON file of one of this package's formats.

    Raises:
        CheckpointError: it is missing, not JSON, or of another format or version.
    """
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(plan, dict) or plan.get("format") != expected or plan.get("version") != version:
        raise CheckpointError(f"{path}: expected the format {expected!r}, version {version}, got another file")
    return plan


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: {error}") from error
