"""``report.json``: what a command did, in words that people and programs read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sparse_accel._build_info import version
from sparse_accel.cli.errors import UserError
from sparse_accel.cli.output import finite
from sparse_accel.cli.results.target import RECORD
from sparse_accel.prune.refinement.options import RefineReport
from sparse_accel.prune.structured.report import StructuredReport, WidthChange
from sparse_accel.prune.unstructured.report import CurvatureIHTReport
from sparse_accel.removal.fields import CheckpointError, Field
from sparse_accel.report import CompactReport, LayerChange

FORMAT = "sparse_accel.report"


def write_record(folder: Path, command: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Write it.

    Args:
        folder: of the result.
        command: that made it.
        entries: plain data.

    Returns:
        What was written.
    """
    record = {
        "format": FORMAT,
        "version": 1,
        "command": command,
        "sparse_accel": version,
        "torch": torch.__version__,
        **entries,
    }
    text = json.dumps(finite(record), indent=1, allow_nan=False)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")
    return record


def read_record(folder: Path) -> dict[str, Any]:
    """Read it.

    Raises:
        UserError: there is none, or it is not one.
    """
    path = folder / RECORD
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if not path.is_file():
        raise UserError(f"{folder}: expected a folder that prune, sparsify or compact wrote: it has no {RECORD}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") != 1:
        raise UserError(f"{path}: expected the format {FORMAT!r}, version 1, got another file")
    return record


def report_of(record: Mapping[str, Any], path: Path) -> Any:
    """The report in a record, as the command printed it.

    Args:
        record: see :func:`read_record`.
        path: of its file, for messages.

    Raises:
        UserError: it is damaged.
    """
    read = {"compact": _compact, "prune": _structured, "sparsify": _sparse}.get(record.get("command", ""))
    if read is None:
        raise UserError(f"{path}: expected the report of compact, prune or sparsify, got {record.get('command')!r}")
    try:
        return read(record["report"], path)
    except (KeyError, TypeError, ValueError, CheckpointError) as error:
        raise UserError(f"{path}: damaged: {type(error).__name__}: {error}") from error


def _compact(plain: Mapping[str, Any], path: Path) -> CompactReport:
    layers = [LayerChange(**{key: _tuple(value) for key, value in layer.items()}) for layer in plain["layers"]]
    numbers = {key: _tuple(value) for key, value in plain.items() if key not in ("layers", "max_abs_diff")}
    difference = plain["max_abs_diff"]
    return CompactReport(layers=layers, max_abs_diff=float("nan") if difference is None else difference, **numbers)


def _structured(plain: Mapping[str, Any], path: Path) -> StructuredReport:
    refinement = plain.get("refinement")
    return StructuredReport(
        widths=[WidthChange(**{key: _tuple(value) for key, value in width.items()}) for width in plain["widths"]],
        totals=_compact(plain["totals"], path),
        seconds=plain["seconds"],
        nbytes=plain["nbytes"],
        notes=list(plain["notes"]),
        refinement=None if refinement is None else RefineReport.from_field(Field(refinement, path)),
    )


def _sparse(plain: Mapping[str, Any], path: Path) -> CurvatureIHTReport:
    return CurvatureIHTReport.from_field(Field(dict(plain), path))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
