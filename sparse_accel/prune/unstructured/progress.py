"""The finished layers of a run on disk, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from sparse_accel.calibration.ranks import from_first, rank, together
from sparse_accel.prune.unstructured.report import LayerReport
from sparse_accel.removal.files import CheckpointError, read_json, read_tensors

FORMAT = "sparse_accel.curvature_iht.progress"
VERSION = 1
FILE = "progress.json"


class Progress:
    """A folder with ``progress.json`` and one safetensors file per finished step.

    Args:
        directory: created if need be; None for no record.
        settings: JSON-able; a record of other settings is refused.
        device: of the messages between ranks. Rank 0 alone reads and writes; the others hear from it.

    Raises:
        CheckpointError: the folder holds a damaged record, or one of another run.
    """

    def __init__(
        self, directory: str | os.PathLike[str] | None, settings: Mapping[str, Any], device: torch.device | None = None
    ) -> None:
        self.directory = None if directory is None or rank() else Path(directory)
        self.device = torch.device("cpu") if device is None else device
        self.plan: dict[str, Any] = {"format": FORMAT, "version": VERSION, "settings": dict(settings), "done": {}}
        with together(self.device):
            self._open(settings)

    def _open(self, settings: Mapping[str, Any]) -> None:
        if self.directory is None:
            return
        path = self.directory / FILE
        if path.exists():
            plan = read_json(path, FORMAT, VERSION)
            wanted = json.loads(json.dumps(settings))
            for key in sorted({*wanted, *plan["settings"]}):
                if plan["settings"].get(key) != wanted.get(key):
                    raise CheckpointError(
                        f"resume_dir: {path} is of another run: {key}: expected {_short(wanted.get(key))}, "
                        f"got {_short(plan['settings'].get(key))}; give an empty folder to start anew"
                    )
            self.plan = plan
        else:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._write()

    def get(self, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and notes of a finished step, or None.

        Raises:
            CheckpointError: its file is missing or damaged.
        """
        found = None
        with together(self.device):
            entry = self.plan["done"].get(key)
            if entry is not None and self.directory is not None:
                tensors = read_tensors(self.directory / entry["file"]) if entry["file"] else {}
                found = tensors, entry["notes"]
        return cast("tuple[dict[str, Tensor], dict[str, Any]] | None", from_first(found))

    def put(self, key: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Record a finished step; what was there before stays valid until this is whole."""
        if self.directory is None:
            return
        from safetensors.torch import save_file

        file = f"{key}.safetensors" if tensors else ""
        if tensors:
            flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(flat, self.directory / (file + ".tmp"))
            os.replace(self.directory / (file + ".tmp"), self.directory / file)
        self.plan["done"][key] = {"file": file, "notes": dict(notes)}
        self._write()

    def _write(self) -> None:
        if self.directory is not None:
            unfinished = self.directory / (FILE + ".tmp")
            unfinished.write_text(json.dumps(self.plan, indent=1) + "\n", encoding="utf-8")
            os.replace(unfinished, self.directory / FILE)


def reports_of(notes: Mapping[str, Any]) -> list[LayerReport]:
    """The layer reports in a step's notes."""
    return [LayerReport.from_plain(plain) for plain in notes["layers"]]


def notes_of(reports: list[LayerReport]) -> dict[str, Any]:
    """The inverse of :func:`reports_of`."""
    return {"layers": [asdict(report) for report in reports]}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else text[:77] + "..."
