"""``sparse-accel prune``: channels, neurons and heads go, by ISpaSP."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sparse_accel.channels.widths import Width
from sparse_accel.cli import estimates, options
from sparse_accel.cli.commands.shared import opened, refine_settings, required
from sparse_accel.cli.errors import UserError, library_errors
from sparse_accel.cli.output import Output
from sparse_accel.cli.render import as_plain, as_text
from sparse_accel.cli.results.target import check_target
from sparse_accel.cli.results.writing import next_steps, write_result
from sparse_accel.cli.sources.calibration import Data
from sparse_accel.cli.sources.images import ImageOptions
from sparse_accel.cli.sources.models import ModelOptions, Source
from sparse_accel.cli.sources.settings import DataOptions
from sparse_accel.prune.structured.choose import METHODS
from sparse_accel.prune.structured.network.sizes import agreed, alike, same_count
from sparse_accel.prune.structured.pruner import ISpaSP
from sparse_accel.prune.structured.request import REFITS
from sparse_accel.removal.configs import RELOAD
from sparse_accel.removal.remove import find_widths, remove_units
from sparse_accel.report import count_macs, format_table, percent

PANEL = "What goes"
HERE = {
    "keep": "--keep",
    "keep_per_layer": "--keep",
    "only": "--only",
    "skip": "--skip",
    "method": "--method",
    "refit": "--refit",
    "scope": "--scope",
    "round_to": "--round-to",
    "iterations": "--iterations",
    "max_memory": "--max-memory",
    "calibration": "--calibration",
    "refine": "--refine",
}


def prune(
    model: options.Model,
    calibration: options.Calibrate = None,
    weights: options.Weights = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = None,
    trust_remote_code: options.Trust = False,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="Share of the units of every layer to keep (.5, the default); PATTERN=.5 or PATTERN=64 (a number of "
            "units) for some. May be repeated.",
            metavar="SHARE",
            rich_help_panel=PANEL,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Instead of --keep: share to keep of the whole model's flops, params or units, or "
            "latency_ms=MILLISECONDS; spread over the layers by what each loses.",
            metavar="flops=.5",
            rich_help_panel=PANEL,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Patterns of the widths to prune: a name (encoder.layer.0.*), a kind (heads, channels, experts).",
            metavar="PATTERN",
            rich_help_panel=PANEL,
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(help="Patterns of widths to leave.", metavar="PATTERN", rich_help_panel=PANEL),
    ] = None,
    scope: Annotated[
        str, typer.Option(help="inner, or all: residual streams too.", metavar="inner|all", rich_help_panel=PANEL)
    ] = "inner",
    round_to: Annotated[
        int, typer.Option(help="Sizes are rounded up to a multiple.", min=1, metavar="N", rich_help_panel=PANEL)
    ] = 1,
    uniform: Annotated[
        bool,
        typer.Option(
            "--uniform", help="Layers of one size stay of one size, as from_pretrained needs.", rich_help_panel=PANEL
        ),
    ] = False,
    method: Annotated[
        str,
        typer.Option(
            help=f"How units are chosen: {', '.join(METHODS)}.",
            metavar="NAME",
            autocompletion=lambda: list(METHODS),
            rich_help_panel=PANEL,
        ),
    ] = "gram_obs",
    refit: Annotated[
        str,
        typer.Option(
            help="Least squares of what reads the units: auto, local, dense, skip, bias or none.",
            metavar="NAME",
            rich_help_panel=PANEL,
        ),
    ] = "auto",
    refine: Annotated[
        bool,
        typer.Option("--refine", help="Then fit the whole model to the dense one by gradients.", rich_help_panel=PANEL),
    ] = False,
    refine_steps: Annotated[
        int | None, typer.Option(help="Steps of --refine.", min=1, metavar="N", rich_help_panel=PANEL)
    ] = None,
    samples: options.Samples = 128,
    sequence_length: options.Length = None,
    batch_size: options.Batch = 16,
    seed: options.Seed = 0,
    tokenizer: options.Tokenizer = None,
    image_size: options.ImageSize = None,
    image_mean: options.ImageMean = None,
    image_std: options.ImageStd = None,
    out: options.Out = None,
    max_memory: options.MaxMemory = None,
    force: options.Force = False,
    verify: options.Verify = True,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Remove channels, neurons and attention heads of a trained model, and refit the rest on unlabelled inputs.

    No fine-tuning and no labels: what reads the removed units is refit by least squares (ISpaSP). The folder that is
    written opens with sparse_accel.load and, where one configuration can describe all layers, with from_pretrained.

    \b
    Half of the feed-forward neurons of a Hugging Face model:
      sparse-accel prune -m my-bert/ -c text.txt --only channels --out half/
    What would go, and how long it takes:
      sparse-accel prune -m my-bert/ -c text.txt --dry-run
    Half of the multiplications of a model of your own:
      sparse-accel prune -m nets:make --weights net.pt -c images/ \\
        --image-size 32 --budget flops=.5 --out half/
    """
    output = Output(as_json=as_json, quiet=quiet)
    every, some = options.shares("--keep", keep or [])
    if budget is not None and every is not None:
        raise UserError("--budget: expected in place of --keep, got both")
    spread = options.budget(budget)
    if method not in METHODS:
        raise UserError(f"--method: expected one of {', '.join(METHODS)}, got {method!r}")
    names = ["none" if name is None else name for name in REFITS]
    if refit not in names:
        raise UserError(f"--refit: expected one of {', '.join(names)}, got {refit!r}")
    calibration = required(calibration)
    target = None if dry_run else check_target(out, [model, weights, calibration, tokenizer], force=force)
    memory = options.nbytes("--max-memory", max_memory)
    where = ModelOptions(weights, options.device(device), options.dtype(dtype), trust_remote_code)
    images = ImageOptions.of(image_size, image_mean, image_std)
    what = DataOptions(samples, sequence_length, batch_size, seed, tokenizer, images)
    source, data = opened(model, calibration, where, what, output)
    with library_errors(options=HERE):
        pruner = ISpaSP(
            source.model,
            data.example,
            0.5 if every is None else every,
            method=method,
            refit=None if refit == "none" else refit,
            scope=scope,
            budget=spread,
            keep_per_layer=some,
            round_to=round_to,
            uniform=uniform,
            only=only or None,
            skip=skip or (),
            max_memory=memory,
            refine=refine_settings(refine, refine_steps, seed),
            progress=output.progress,
            seed=seed,
        )
        notes: list[str] = []
        found = find_widths(source.model, data.example)
        widths = pruner.request.chosen(list(found), notes)
        if uniform and dry_run:
            widths = agreed(pruner.request, found, widths, source.model, data.example, notes)
        if widths and dry_run:
            _dry_run(pruner, widths, notes, source, data, output)
            return
        with output.listening():
            result = pruner.run(data.batches)
    if not result.kept:
        raise UserError(
            "nothing was pruned: " + ("; ".join(result.report.notes) or "every width keeps all of its units")
        )
    assert target is not None
    record = write_result(
        target,
        result,
        source,
        data.example,
        output,
        command="prune",
        arguments={"keep": keep, "budget": budget, "only": only, "skip": skip, "scope": scope, "method": method}
        | {"refit": refit, "round_to": round_to, "uniform": uniform, "refine": refine, "samples": samples}
        | {"seed": seed},
        calibration=data.what,
        verify=verify,
    )
    text = "\n".join([as_text(result.report), next_steps(target, record, result.model)])
    output.result("prune", text, record | {"out": str(target), "report": as_plain(result.report)})


def _dry_run(pruner: ISpaSP, widths: list[Width], notes: list[str], source: Source, data: Data, output: Output) -> None:
    """What would go."""
    spread = pruner.budget
    groups = alike(widths) if pruner.request.uniform else [[width] for width in widths]
    keeps = {width.name: same_count(pruner.request, group) for group in groups for width in group}
    rows: list[list[Any]] = []
    for width in widths:
        kept = "by the data" if spread else f"{keeps[width.name]:,}"
        rows.append([width.name, width.kind, f"{width.units:,}", kept])
    lines = [format_table(["width", "kind", "units", "kept"], rows)]
    plain: dict[str, Any] = {
        "widths": [
            {"name": w.name, "kind": w.kind, "units": w.units, "kept": None if spread else keeps[w.name]}
            for w in widths
        ],
        "budget": spread,
    }
    params = sum(parameter.numel() for parameter in source.model.parameters())
    if spread:
        name, value = next(iter(spread.items()))
        lines.append(f"budget: {name} = {value:g}, spread over these widths by what each loses on the data")
    else:
        units = {width.name: estimates.some_units(width, keeps[width.name]) for width in widths}
        removed = remove_units(source.model, data.example, units, verify=False)
        after = sum(parameter.numel() for parameter in removed.model.parameters())
        macs = [count_macs(one, data.example).get("", 0) for one in (source.model, removed.model)]
        lines.append(f"parameters: {params:,} → {after:,} ({percent(after, params)} kept)")
        lines.append(f"MACs on the example: {macs[0]:,} → {macs[1]:,} ({percent(macs[1], macs[0])} kept)")
        plain |= {"params": [params, after], "macs": macs}
        notes += [note for note in removed.plan["notes"] if note.startswith(RELOAD)]
        del removed
    memory = estimates.prune_memory(pruner, widths)
    seconds = estimates.prune_seconds(source.model, data.batches, widths)
    lines.append(f"memory beside model and data: up to {estimates.size(memory)}")
    lines.append(
        f"time: about {estimates.duration(seconds)}" + (", and the steps of --refine" if pruner.refine else "")
    )
    lines += [f"note: {note}" for note in notes]
    lines.append("nothing was written (--dry-run)")
    plain |= {"memory": memory, "seconds": seconds, "notes": [*output.notes, *notes], "calibration": data.what}
    output.result("prune", "\n".join(lines), {"dry_run": True, **plain})
