"""``sparse-accel sparsify``: single weights, n of m, rows or groups of them become zero, by curvature IHT."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

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
from sparse_accel.prune.layerwise.solve import DEFAULTS
from sparse_accel.prune.layerwise.targets import BlockSparsity, GroupSparsity, Rows
from sparse_accel.prune.unstructured.pruner import CurvatureIHT
from sparse_accel.prune.unstructured.selection import select_layers, shares_of
from sparse_accel.report import format_table, percent

PANEL = "What becomes zero"
BY = ("element", "row", "input", "output", "kernel")
HERE = {
    "sparsity": "--sparsity",
    "targets": "--only",
    "skip": "--skip",
    "method": "--method",
    "allocation": "--allocation",
    "iterations": "--iterations",
    "max_memory": "--max-memory",
    "calibration": "--calibration",
    "refine": "--refine",
    "resume_dir": "--resume",
}


def target_of(text: str, by: str) -> Any:
    """What a sparsity means.

    Args:
        text: a share of zeros, or n:m.
        by: what becomes zero as a whole.

    Raises:
        UserError: it means nothing.

    Example:
        >>> target_of("2:4", "element"), target_of(".5", "input"), target_of(".5", "element")
        (BlockSparsity(n=2, m=4, along='input'), GroupSparsity(sparsity=0.5, by='input'), 0.5)
    """
    with library_errors(options={"sparsity": "--sparsity"}):
        if ":" in text:
            if by != "element":
                raise UserError(f"--by: n:m is of single weights, got {by!r} and {text!r}")
            return BlockSparsity.read(text)
        share = options.number("--sparsity", text)
        if by == "row":
            return Rows(share)
        found = GroupSparsity(share, by=by)
        return share if by == "element" else found


def targets_of(sparsity: list[str], only: list[str], by: str) -> tuple[Any, Any]:
    """The sparsity of all layers, and what :class:`CurvatureIHT` takes as ``targets``.

    Raises:
        UserError: see :func:`target_of`.

    Example:
        >>> targets_of([".5", "lm_*=2:4"], [], "element")
        (0.5, {'*': 0.5, 'lm_*': BlockSparsity(n=2, m=4, along='input')})
    """
    every: str | None = None
    some: dict[str, Any] = {}
    for item in sparsity:
        pattern, equals, text = item.rpartition("=")
        if not equals and every is not None:
            raise UserError(f"--sparsity: expected one for all layers, got {every} and {item}")
        if not equals:
            every = item
        elif not pattern.strip():
            raise UserError(f"--sparsity: expected PATTERN=SPARSITY, got {item!r}")
        else:
            some[pattern.strip()] = target_of(text.strip(), by)
    general = target_of(every or ".5", by)
    if some and every is None and not only:
        return general, some
    if not some:
        return general, only or None
    return general, dict.fromkeys(only or ["*"], general) | some


def sparsify(
    model: options.Model,
    calibration: options.Calibrate = None,
    weights: options.Weights = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = None,
    trust_remote_code: options.Trust = False,
    sparsity: Annotated[
        list[str] | None,
        typer.Option(
            help="Share of zeros of every layer (.5, the default) or n:m such as 2:4; PATTERN=.7 for some layers. "
            "May be repeated.",
            metavar="SHARE|N:M",
            rich_help_panel=PANEL,
        ),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            help=f"What is zero as a whole: {', '.join(BY)} (row: the same share of every row).",
            metavar="NAME",
            autocompletion=lambda: list(BY),
            rich_help_panel=PANEL,
        ),
    ] = "element",
    only: Annotated[
        list[str] | None,
        typer.Option(help="Patterns of layers: layer.0, *.attention.*.", metavar="PATTERN", rich_help_panel=PANEL),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            help="Patterns of layers to leave dense.  [default: lm_head, classifier]",
            metavar="PATTERN",
            rich_help_panel=PANEL,
        ),
    ] = None,
    allocation: Annotated[
        str,
        typer.Option(
            help="uniform, or global: layers that lose less get more zeros.",
            metavar="uniform|global",
            rich_help_panel=PANEL,
        ),
    ] = "uniform",
    method: Annotated[
        str,
        typer.Option(
            help=f"Solver of a layer: {', '.join(DEFAULTS)}.",
            metavar="NAME",
            autocompletion=lambda: list(DEFAULTS),
            rich_help_panel=PANEL,
        ),
    ] = "iht",
    iterations: Annotated[int, typer.Option(help="Of the solver.", min=1, metavar="N", rich_help_panel=PANEL)] = 20,
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
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Folder for finished layers: the same command goes on there after an interruption.",
            metavar="DIR",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    max_memory: options.MaxMemory = None,
    force: options.Force = False,
    verify: options.Verify = True,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Set weights of a trained model to zero, by second-order information on unlabelled inputs.

    Every layer is solved against the second moments of its inputs (curvature IHT); the kept weights make up for the
    others. The folder that is written opens with sparse_accel.load, which stores the kept weights alone; that of a
    Hugging Face model with from_pretrained, too.

    \b
    Half of the weights of a Hugging Face model:
      sparse-accel sparsify -m my-bert/ -c text.txt --sparsity .5 --out sparse/
    Two of four, the first layer dense:
      sparse-accel sparsify -m my-llama/ -c text.txt --sparsity 2:4 \\
        --skip layers.0 --out sparse/
    """
    output = Output(as_json=as_json, quiet=quiet)
    if by not in BY:
        raise UserError(f"--by: expected one of {', '.join(BY)}, got {by!r}")
    general, targets = targets_of(sparsity or [], only or [], by)
    if method not in DEFAULTS:
        raise UserError(f"--method: expected one of {', '.join(DEFAULTS)}, got {method!r}")
    calibration = required(calibration)
    target = None if dry_run else check_target(out, [model, weights, calibration, tokenizer, resume], force=force)
    memory = options.nbytes("--max-memory", max_memory)
    where = ModelOptions(weights, options.device(device), options.dtype(dtype), trust_remote_code)
    images = ImageOptions.of(image_size, image_mean, image_std)
    what = DataOptions(samples, sequence_length, batch_size, seed, tokenizer, images)
    source, data = opened(model, calibration, where, what, output)
    with library_errors(options=HERE), output.listening():
        pruner = CurvatureIHT(
            source.model,
            general,
            targets=targets,
            skip=("lm_head", "classifier") if skip is None else skip,
            allocation=allocation,
            method=method,
            iterations=iterations,
            refine=refine_settings(refine, refine_steps, seed) or 0,
            seed=seed,
            max_memory=memory,
            resume_dir=None if dry_run else resume,
            progress=output.progress,
        )
        if dry_run:
            _dry_run(pruner, source, data, output)
            return
    with library_errors(options=HERE), output.listening():
        result = pruner.run(data.batches)
    assert target is not None
    record = write_result(
        target,
        result,
        source,
        data.example,
        output,
        command="sparsify",
        arguments={"sparsity": sparsity, "by": by, "only": only, "skip": skip, "allocation": allocation}
        | {"method": method, "iterations": iterations, "refine": refine, "samples": samples, "seed": seed},
        calibration=data.what,
        verify=verify,
    )
    text = "\n".join([as_text(result.report), next_steps(target, record, result.model)])
    output.result("sparsify", text, record | {"out": str(target), "report": as_plain(result.report)})


def _dry_run(pruner: CurvatureIHT, source: Source, data: Data, output: Output) -> None:
    """What would become zero."""
    selection = select_layers(source.model, pruner.targets, pruner.skip, pruner.sparsity)
    layers = selection.layers
    rows: list[list[Any]] = [
        [layer.name, layer.kind, "×".join(map(str, layer.weight.shape)), layer.weight.numel(), _words(layer.target)]
        for layer in layers
    ]
    shares, total = shares_of(source.model, selection.left)
    covered = sum(layer.weight.numel() for layer in layers)
    memory = estimates.sparsify_memory(pruner, layers)
    seconds = estimates.sparsify_seconds(source.model, data.batches, layers, pruner.options.iterations)
    lines = [
        format_table(["layer", "kind", "shape", "weights", "sparsity"], rows),
        f"these layers hold {percent(covered, total)} of the model's {total:,} weights",
        *(f"left dense: {name}: {why} ({percent(shares[name], 1)})" for name, why in selection.left.items()),
        f"memory beside model and data: up to {estimates.size(memory)}",
        f"time: about {estimates.duration(seconds)}" + (", and the steps of --refine" if pruner.refine else ""),
        "nothing was written (--dry-run)",
    ]
    plain = {
        "layers": [
            {"name": layer.name, "shape": list(layer.weight.shape), "sparsity": _words(layer.target)}
            for layer in layers
        ],
        "left": selection.left,
        "memory": memory,
        "seconds": seconds,
        "notes": output.notes,
        "calibration": data.what,
    }
    output.result("sparsify", "\n".join(lines), {"dry_run": True, **plain})


def _words(target: Any) -> str:
    if isinstance(target, BlockSparsity):
        return f"{target.n}:{target.m}"
    if isinstance(target, Rows):
        return f"{target.sparsity:g} of each row"
    return f"{target.sparsity:g} by {target.by}" if isinstance(target, GroupSparsity) else f"{target:g}"
