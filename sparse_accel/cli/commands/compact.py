"""``sparse-accel compact``: channels that became zero go, the outputs stay."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import typer

from sparse_accel.cli import estimates, options
from sparse_accel.cli.errors import UserError, library_errors
from sparse_accel.cli.output import Output
from sparse_accel.cli.render import as_plain, as_text
from sparse_accel.cli.results.opening import open_start
from sparse_accel.cli.results.target import check_target
from sparse_accel.cli.results.writing import next_steps, write_result
from sparse_accel.cli.sources.calibration import read_data
from sparse_accel.cli.sources.examples import made_up
from sparse_accel.cli.sources.images import ImageOptions
from sparse_accel.cli.sources.models import ModelOptions
from sparse_accel.cli.sources.settings import DataOptions
from sparse_accel.removal.compact import compact as remove
from sparse_accel.removal.configs import RELOAD

PANEL = "What goes"
HERE = {"round_to": "--round-to", "tolerance": "--tolerance", "example_inputs": "--calibration"}


def compact(
    model: options.Model,
    calibration: options.Calibrate = None,
    weights: options.Weights = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = None,
    trust_remote_code: options.Trust = False,
    input_shape: Annotated[
        str | None,
        typer.Option(
            help="Of random inputs instead of --calibration: 1,3,32,32 (with the batch).",
            metavar="N,C,H,W",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    round_to: Annotated[
        int, typer.Option(help="Layers keep a multiple of so many outputs.", min=1, metavar="N", rich_help_panel=PANEL)
    ] = 1,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest accepted difference of the outputs, relative; by default what rounding makes.",
            metavar="NUMBER",
            rich_help_panel=PANEL,
        ),
    ] = None,
    sequence_length: options.Length = None,
    seed: options.Seed = 0,
    tokenizer: options.Tokenizer = None,
    image_size: options.ImageSize = None,
    image_mean: options.ImageMean = None,
    image_std: options.ImageStd = None,
    out: options.Out = None,
    force: options.Force = False,
    verify: options.Verify = True,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Remove the channels that are zero, or that nobody reads; the outputs stay the same.

    For models trained with a group penalty, or with zeros by other means. Nothing is refit. The outputs are compared
    on --calibration; without it, on random inputs where the model is a Hugging Face folder or has an --input-shape.

    \b
    A network of your own, trained with RMDA:
      sparse-accel compact -m nets:make --weights trained.pt \\
        --input-shape 1,3,32,32 --out small/
    """
    output = Output(as_json=as_json, quiet=quiet)
    target = None if dry_run else check_target(out, [model, weights, calibration, tokenizer], force=force)
    where = ModelOptions(weights, options.device(device), options.dtype(dtype), trust_remote_code)
    images = ImageOptions.of(image_size, image_mean, image_std)
    if calibration is not None and input_shape is not None:
        raise UserError("--input-shape: expected in place of --calibration, got both")
    output.say(f"opening {model}")
    source = open_start(model, where)
    if calibration is not None:
        data = read_data(calibration, source, DataOptions(2, sequence_length, 2, seed, tokenizer, images))
    else:
        data = made_up(source, input_shape, seed)
    for note in (*source.notes, *data.notes):
        output.note(note)
    with library_errors(options=HERE), output.listening(), torch.no_grad():
        result = remove(source.model, data.example, round_to=round_to, tolerance=tolerance)
    notes: list[str] = list(result.plan["notes"])
    before, after = result.report.params
    if before == after:
        raise UserError("nothing is zero in whole channels: nothing to remove (see sparse-accel sparsity)")
    plain: dict[str, Any] = {"report": as_plain(result.report), "calibration": data.what}
    if dry_run:
        copies = 3 * estimates.model_bytes(source.model)
        text = as_text(result.report, [note for note in notes if note.startswith(RELOAD)])
        text += f"\nmemory beside the model: about {estimates.size(copies)}\nnothing was written (--dry-run)"
        output.result("compact", text, {"dry_run": True, "memory": copies, "notes": [*output.notes, *notes], **plain})
        return
    assert target is not None
    record = write_result(
        target,
        result,
        source,
        data.example,
        output,
        command="compact",
        arguments={"round_to": round_to, "tolerance": tolerance, "input_shape": input_shape, "seed": seed},
        calibration=data.what,
        verify=verify,
    )
    text = "\n".join([as_text(result.report), next_steps(target, record, result.model)])
    output.result("compact", text, record | {"out": str(target), **plain})
