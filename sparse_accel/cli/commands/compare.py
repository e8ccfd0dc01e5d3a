"""``sparse-accel compare``: two models or checkpoints, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from sparse_accel.channels.containers import output_tensors
from sparse_accel.channels.runs import run_model
from sparse_accel.cli import estimates, options
from sparse_accel.cli.errors import UserError
from sparse_accel.cli.output import Output
from sparse_accel.cli.results.opening import Opened, files_of, open_any, tensors_in
from sparse_accel.cli.sources.calibration import Data, read_data
from sparse_accel.cli.sources.images import ImageOptions
from sparse_accel.cli.sources.models import ModelOptions
from sparse_accel.cli.sources.settings import DataOptions
from sparse_accel.report import count_macs, format_table, latencies_ms, percent


def compare(
    first: Annotated[str, typer.Argument(help="The reference.", metavar="A", show_default=False)],
    second: Annotated[str, typer.Argument(help="What is compared with it.", metavar="B", show_default=False)],
    calibration: options.Calibrate = None,
    model: options.OptionalModel = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = None,
    trust_remote_code: options.Trust = False,
    samples: options.Samples = 64,
    sequence_length: options.Length = None,
    batch_size: options.Batch = 16,
    seed: options.Seed = 0,
    tokenizer: options.Tokenizer = None,
    image_size: options.ImageSize = None,
    image_mean: options.ImageMean = None,
    image_std: options.ImageStd = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Compare two models: size, parameters, zeros; with inputs also multiplications, latency and outputs.

    A and B are Hugging Face folders, folders that this program wrote, module:factory, or files of weights (with
    --model to say of what).

    \b
      sparse-accel compare my-bert/ half/ --calibration test.txt
      sparse-accel compare dense.pt pruned.pt
    """
    output = Output(as_json=as_json, quiet=quiet)
    where = ModelOptions(None, options.device(device), options.dtype(dtype), trust_remote_code)
    images = ImageOptions.of(image_size, image_mean, image_std)
    pair = []
    for spec in (first, second):
        output.say(f"opening {spec}")
        pair.append(open_any(spec, model, where))
    sides = [_side(opened) for opened in pair]
    rows: list[list[Any]] = [
        ["weights on disk", *(None if side.nbytes is None else estimates.size(side.nbytes) for side in sides)],
        ["parameters", *(f"{side.params:,}" for side in sides)],
        ["zeros", *(percent(side.zeros, side.params) for side in sides)],
    ]
    plain: dict[str, Any] = {"a": vars(sides[0]), "b": vars(sides[1])}
    for opened in pair:
        if opened.source is None:
            output.note(opened.why)
            if calibration is not None:
                raise UserError(f"--calibration: outputs cannot be compared: {opened.why}")
        else:
            for note in opened.source.notes:
                output.note(note)
    sources = [opened.source for opened in pair if opened.source is not None]
    lines: list[str] = []
    if calibration is None:
        output.note("no --calibration: multiplications, latency and outputs are not compared")
    elif len(sources) == 2:
        reader = next((source for source in sources if source.folder is not None), sources[0])
        data = read_data(
            calibration, reader, DataOptions(samples, sequence_length, batch_size, seed, tokenizer, images)
        )
        for note in data.notes:
            output.note(note)
        output.say(f"running both on {data.what}")
        models = [source.model for source in sources]
        macs = [count_macs(one, data.example).get("", 0) for one in models]
        latency = latencies_ms(models, data.example)
        rows.append(["MACs on the example", *(f"{count:,}" for count in macs)])
        rows.append(["latency on the example", *(f"{ms:.3g} ms" for ms in latency)])
        differences = outputs_differ(models[0], models[1], data)
        lines = [f"outputs on {data.what}:", *_told(differences)]
        plain |= {"macs": macs, "latency_ms": latency, "outputs": differences, "calibration": data.what}
    names = [Path(spec).name or spec for spec in (first, second)]
    table = format_table(["", *(names if names[0] != names[1] else (first, second))], rows)
    output.result("compare", "\n".join([table, *lines]), plain | {"notes": output.notes})


@dataclass
class _Side:
    """What is counted of one of the two."""

    spec: str
    nbytes: int | None
    params: int
    zeros: int


def _side(opened: Opened) -> _Side:
    files = files_of(opened.spec) if Path(opened.spec).expanduser().exists() else []
    nbytes = sum(file.stat().st_size for file in files) if files else None
    if opened.source is None:
        tensors = [t for _, t in tensors_in(opened.spec) if t.is_floating_point()]
    else:
        tensors = list(opened.source.model.parameters())
    zeros = sum(int((tensor == 0).sum()) for tensor in tensors)
    return _Side(opened.spec, nbytes, sum(tensor.numel() for tensor in tensors), zeros)


def outputs_differ(one: nn.Module, other: nn.Module, data: Data) -> list[dict[str, Any]]:
    """How far the outputs of two models are apart, output by output, over all batches.

    Returns:
        For each floating-point output its shape but for the batch, the largest difference, the error relative to the
        first model's norm, the mean cosine along the last dimension, and how often the largest entry along it is at
        the same place.

    Raises:
        UserError: the models give different numbers or shapes of outputs.
    """
    sums: list[dict[str, float]] = []
    shapes: list[list[int]] = []
    for batch in data.batches:
        with torch.no_grad():
            pairs = [[t.double() for t in _outputs(model, batch)] for model in (one, other)]
        if [tuple(t.shape) for t in pairs[0]] != [tuple(t.shape) for t in pairs[1]]:
            came = [[tuple(t.shape) for t in side] for side in pairs]
            raise UserError(f"the outputs cannot be compared: shapes {came[0]} and {came[1]}")
        if not sums:
            sums = [dict.fromkeys(("largest", "error", "norm", "cosine", "same", "count"), 0.0) for _ in pairs[0]]
            shapes = [list(t.shape[1:]) for t in pairs[0]]
        for a, b, own in zip(*pairs, sums, strict=True):
            if not a.numel():
                continue
            own["largest"] = max(own["largest"], float((a - b).abs().max()))
            own["error"] += float((a - b).square().sum())
            own["norm"] += float(a.square().sum())
            rows, others = (t.reshape(-1, t.shape[-1] if t.dim() else 1) for t in (a, b))
            own["cosine"] += float(nn.functional.cosine_similarity(rows, others).sum())
            own["same"] += float((rows.argmax(1) == others.argmax(1)).sum())
            own["count"] += len(rows)
    return [
        {
            "shape": shape,
            "largest_difference": own["largest"],
            "relative_error": (own["error"] / own["norm"]) ** 0.5 if own["norm"] else own["error"] ** 0.5,
            "mean_cosine": own["cosine"] / own["count"] if own["count"] else 1.0,
            "same_largest_entry": own["same"] / own["count"] if own["count"] else 1.0,
        }
        for shape, own in zip(shapes, sums, strict=True)
    ]


def _outputs(model: nn.Module, batch: Any) -> list[Tensor]:
    found = {id(tensor): tensor for tensor in output_tensors(run_model(model, batch))}  # some come under two names
    return [tensor for tensor in found.values() if tensor.is_floating_point()]


def _told(differences: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            str(number),
            "×".join(map(str, own["shape"])),
            f"{own['largest_difference']:.3g}",
            f"{own['relative_error']:.4f}",
            f"{own['mean_cosine']:.4f}",
            percent(own["same_largest_entry"], 1),
        ]
        for number, own in enumerate(differences)
    ]
    headers = ["output", "shape", "largest difference", "relative error", "mean cosine", "same largest entry"]
    return [format_table(headers, rows)] if rows else ["no outputs of numbers"]
