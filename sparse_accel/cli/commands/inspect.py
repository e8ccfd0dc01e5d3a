"""``sparse-accel sparsity`` and ``report``: what a checkpoint holds, and what was said when it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparse_accel.cli import options
from sparse_accel.cli.errors import UserError
from sparse_accel.cli.output import Output
from sparse_accel.cli.render import FORMATS, as_html, as_markdown, as_plain, as_text
from sparse_accel.cli.results.opening import open_any, plan_of, tensors_in
from sparse_accel.cli.results.record import read_record, record_of_plan, report_of
from sparse_accel.cli.results.target import RECORD
from sparse_accel.cli.results.writing import NONE
from sparse_accel.cli.sources.models import ModelOptions
from sparse_accel.diagnostics.sparsity import SparsityReport, TensorSparsity, tensor_sparsity
from sparse_accel.diagnostics.sparsity import sparsity as sparsity_of
from sparse_accel.groups import Grouping
from sparse_accel.groups.layouts import BY


def sparsity(
    checkpoint: Annotated[
        str, typer.Argument(help="A safetensors or .pt file, or a folder.", metavar="CHECKPOINT", show_default=False)
    ],
    by: Annotated[
        str, typer.Option(help=f"Groups: {', '.join(BY)}.", metavar="NAME", autocompletion=lambda: list(BY))
    ] = "input",
    model: options.OptionalModel = None,
    trust_remote_code: options.Trust = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Count the zero weights and the zero groups of every weight of a checkpoint.

    No model is needed: every tensor of two or more dimensions is taken as [outputs, inputs, ...]. With --model the
    layers say what they are (embeddings and norms are left out, transposed weights are read as they are meant).

    \b
      sparse-accel sparsity sparse/
      sparse-accel sparsity net.pt --by output --model nets:make
    """
    output = Output(as_json=as_json, quiet=quiet)
    if by not in BY:
        raise UserError(f"--by: expected one of {', '.join(BY)}, got {by!r}")
    if model is not None:
        opened = open_any(checkpoint, model, ModelOptions(trust=trust_remote_code))
        assert opened.source is not None
        for note in opened.source.notes:
            output.note(note)
        report = sparsity_of(opened.source.model, by)
    else:
        grouping, rows = Grouping(by), list[TensorSparsity]()
        for name, tensor in tensors_in(checkpoint):
            if tensor.dim() >= 2 and tensor.numel() and tensor.is_floating_point():
                rows.append(tensor_sparsity(name, tensor, grouping))
        if not rows:
            raise UserError(f"{checkpoint}: no weights of two or more dimensions in it")
        report = SparsityReport(by, rows)
        if by != "element":
            output.note("without --model every weight is taken as [outputs, inputs, ...], embeddings among them")
    output.result("sparsity", as_text(report), {"checkpoint": checkpoint, "notes": output.notes, **as_plain(report)})


def report(
    folder: Annotated[
        Path,
        typer.Argument(
            help="That prune, sparsify, compact or sparse_accel.save wrote.", metavar="RESULTDIR", show_default=False
        ),
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format", "-f", help=f"{', '.join(FORMATS)}.", metavar="NAME", autocompletion=lambda: list(FORMATS)
        ),
    ] = "table",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Show the report of a result again.

    \b
      sparse-accel report half/
      sparse-accel report half/ --format html > half.html
    """
    if form not in FORMATS:
        raise UserError(f"--format: expected one of {', '.join(FORMATS)}, got {form!r}")
    output = Output(as_json=as_json or form == "json", quiet=quiet)
    plan = None if (folder / RECORD).is_file() or not folder.is_dir() else plan_of(folder)
    record = read_record(folder) if plan is None else record_of_plan(plan, folder)
    found = report_of(record, folder / RECORD)
    title = f"sparse-accel {record['command']}: {folder.resolve().name}"
    notes = [str(note) for note in record.get("notes") or []]
    notes.append(f"model: {' '.join(map(str, (record.get('model') or {}).values()))}")
    if record.get("calibration"):
        notes.append(f"calibration: {record['calibration']}")
    if record.get("from_pretrained") not in (None, "", NONE):
        notes.append(f"from_pretrained does not open it: {record['from_pretrained']}")
    render = {"markdown": lambda: as_markdown(found, title, notes), "html": lambda: as_html(found, title, notes)}
    text = render.get(form, lambda: as_text(found, notes))()
    output.result("report", text, {"record": record})
