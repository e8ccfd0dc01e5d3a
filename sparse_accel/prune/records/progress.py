"""Finished steps of a run on disk, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from sparse_accel.calibration.ranks import from_first, rank, together
from sparse_accel.removal.files import (
    CheckpointError,
    Field,
    check_seal,
    checksum,
    dtype_name,
    read_plan,
    read_tensors,
    seal,
    write_json,
    write_tensors,
)

FORMAT = "sparse_accel.{}.progress"
VERSION = 1
FILE = "progress.json"
Found = tuple[dict[str, Tensor], Any]


class Progress:
    """A folder with ``progress.json`` and one safetensors file per finished step.

    Args:
        directory: created if need be; None for no record.
        settings: JSON-able; a record of other settings is refused.
        device: of the messages between ranks. Rank 0 alone reads and writes; the others hear from it.
        kind: of the run.

    Raises:
        CheckpointError: the folder holds a damaged record, or one of another run.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None,
        settings: Mapping[str, Any],
        device: torch.device | None = None,
        kind: str = "curvature_iht",
    ) -> None:
        self.directory = None if directory is None or rank() else Path(directory)
        self.device = torch.device("cpu") if device is None else device
        self.format = FORMAT.format(kind)
        self.plan: dict[str, Any] = {"format": self.format, "version": VERSION, "settings": dict(settings), "done": {}}
        with together(self.device):
            self._open(settings)

    def _open(self, settings: Mapping[str, Any]) -> None:
        if self.directory is None:
            return
        path = self.directory / FILE
        if path.exists():
            plan = read_plan(path, self.format, VERSION)
            plan["done"].items()
            wanted, came = json.loads(json.dumps(settings)), dict(plan["settings"].items())
            for key in sorted({*wanted, *came}):
                if key not in wanted or key not in came or came[key].value != wanted[key]:
                    raise CheckpointError(
                        f"resume_dir: {path} is of another run: {key}: expected {_short(wanted.get(key))}, "
                        f"got {_short(came[key].value if key in came else None)}; give an empty folder to start anew"
                    )
            self.plan = plan.value
        else:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._write()

    def get(self, key: str, layers: Mapping[str, Tensor], check: Callable[[Field], Any]) -> Found | None:
        """A finished step, or None.

        Args:
            key: of the step.
            layers: tensors of the shapes and dtypes that it has to hold, by name.
            check: makes something of the notes; raises CheckpointError where it cannot.

        Returns:
            The step's tensors, and what ``check`` made.

        Raises:
            CheckpointError: its file or an entry is missing, damaged or of another step.
        """
        found = None
        with together(self.device):
            if self.directory is not None and key in self.plan["done"]:
                entry = Field(self.plan, self.directory / FILE)["done"][key]
                found = self._read(entry, key, layers), check(entry["notes"])
                check_seal(entry)
        return cast("Found | None", from_first(found))

    def _read(self, entry: Field, key: str, layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert self.directory is not None
        expected = _file_of(key) if layers else ""
        if entry["file"].text() != expected:
            raise entry["file"].wrong(repr(expected))
        if not layers:
            return {}
        stored = read_tensors(self.directory / expected, entry)
        if set(stored.tensors) != set(layers):
            odd = sorted(set(stored.tensors) ^ set(layers))[0]
            raise CheckpointError(f"{stored.path}: {odd}: only one of the file and the step has this layer")
        tensors = {}
        for name, like in layers.items():
            told = {"dtype": dtype_name(like)}
            if "crc32" in entry:
                told["crc32"] = entry["crc32"][name].value
            tensors[name] = stored.take(name, Field(told, entry.path, (*entry.keys, name)), list(like.shape))
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Record a finished step; what was there before stays valid until this is whole."""
        if self.directory is None:
            return
        file = _file_of(key) if tensors else ""
        flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        sums = {name: checksum(tensor) for name, tensor in flat.items()}
        entry = seal({"file": file, "notes": dict(notes), "crc32": sums})
        if flat:
            write_tensors(self.directory / file, flat, entry)
        self.plan["done"][key] = entry
        self._write()

    def _write(self) -> None:
        if self.directory is not None:
            write_json(self.directory / FILE, self.plan)


def _file_of(key: str) -> str:
    return f"{key}.safetensors"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else text[:77] + "..."
