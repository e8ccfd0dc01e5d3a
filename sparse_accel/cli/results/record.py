"""``report.json``: what a command did, in words that people and programs read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
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
from sparse_accel.report import Column, CompactReport, Contents, LayerChange, Note, Report, Table, sizes

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


@dataclass(frozen=True)
class PlanReport(Report):
    """What the plan of a checkpoint says that was written without a report.

    Attributes:
        tensors: shapes before and after, by name, of those that were cut.
        notes: of the plan.
    """

    tensors: dict[str, tuple[list[int], list[int]]]
    notes: list[str]

    def to_plain(self) -> dict[str, Any]:
        """Everything as JSON-able data."""
        return {"tensors": {name: list(pair) for name, pair in self.tensors.items()}, "notes": self.notes}

    def contents(self) -> Contents:
        """See :class:`~sparse_accel.Report`."""
        columns = [Column("tensor", "tensor"), Column("before", "before", sizes), Column("after", "after", sizes)]
        rows = [[name, *pair] for name, pair in self.tensors.items()]
        return Contents("Removed channels", tables=[Table(columns, rows)], notes=[Note(note) for note in self.notes])


def record_of_plan(plan: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What stands in for a record where :func:`sparse_accel.save` alone wrote a folder.

    Args:
        plan: of the checkpoint.
        path: of its file, for messages.

    Raises:
        UserError: it is damaged, or of a kind that has no report.
    """
    form = plan.get("format")
    try:
        if form == "sparse_accel.sparse_model":
            return {"command": "sparsify", "model": {"class": plan["class"]}, "report": plan["report"]}
        if form == "sparse_accel.compact":
            cut = {name: [list(entry["from"]), list(entry["shape"])] for name, entry in plan["tensors"].items()}
            report = {"tensors": cut, "notes": list(plan["notes"])}
            return {"command": "plan", "model": {"class": plan["class"]}, "report": report}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged: {type(error).__name__}: {error}") from error
    raise UserError(f"{path}: a checkpoint of the format {form!r}, which has no report here")


def read_record(folder: Path) -> dict[str, Any]:
    """Read it.

    Raises:
        UserError: there is none, or it is not one.
    """
    path = folder / RECORD
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if not path.is_file():
        raise UserError(
            f"{folder}: expected a folder that prune, sparsify, compact or sparse_accel.save wrote: it has no {RECORD}"
        )
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
    read = {"compact": _compact, "prune": _structured, "sparsify": _sparse, "plan": _plan}.get(
        record.get("command", "")
    )
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


def _plan(plain: Mapping[str, Any], path: Path) -> PlanReport:
    return PlanReport({name: (pair[0], pair[1]) for name, pair in plain["tensors"].items()}, list(plain["notes"]))


def _sparse(plain: Mapping[str, Any], path: Path) -> CurvatureIHTReport:
    return CurvatureIHTReport.from_field(Field(dict(plain), path))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
