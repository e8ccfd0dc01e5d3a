"""``layerwise_solve``: relative output error and seconds of every method, on layers of several shapes, in one run.

    python -m bench.bench_layerwise [--shapes 1536x384 384x1536] [--sparsity 0.5 2:4 rows:0.5] [--hessian FILE]

By default on made layers: weights of uneven rows, inputs with a power-law spectrum and uneven scales. ``--hessian``
takes a file of real ones instead, written by ``torch.save({"weight": [R, C], "hessian": [C, C]}, FILE)`` or as
safetensors with those names. Methods take turns in each round; times are medians, without the error's own. Exact
greedy OBS runs once, on small layers only.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import sparse_accel as sa
from sparse_accel.bench.command import say
from sparse_accel.bench.facts import machine
from sparse_accel.prune import layerwise_solve

SHAPES = ("384x384", "1536x384", "384x1536", "1024x1024", "4096x1024", "1024x4096", "4096x4096")
MOST_OBS = 2.5e10  # R C^3 up to which exact greedy OBS takes part
# name -> arguments of layerwise_solve
METHODS: dict[str, dict[str, object]] = {
    "magnitude": {"method": "magnitude"},
    "magnitude + refit": {"method": "magnitude", "refit": 10},
    "SparseGPT": {"method": "sparsegpt"},
    "SparseGPT + refit": {"method": "sparsegpt", "refit": 10},
    "OBS, exact greedy": {"method": "obs"},
    "ADMM + CG": {"method": "admm"},
    "curvature IHT, T = 20": {"iterations": 20},
    "curvature IHT, T = 32": {"iterations": 32},
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A method on a layer."""

    shape: str
    sparsity: str
    method: str
    error: float
    seconds: float
    error_over_admm: float
    time_over_admm: float
    iterations: int
    refit: int
    damping: float
    rounds: int


def made_layer(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weight [R, C] and Hessian [C, C] of correlated inputs, float32."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    spectrum = torch.arange(1, columns + 1).float().pow(-0.5)
    mixed = (draw(2 * columns, columns) * spectrum) @ draw(columns, columns)
    inputs = (mixed + 0.3 * mixed.std() * draw(2 * columns, columns)) * (0.5 * draw(columns)).exp()
    weight = draw(rows, columns) * (0.3 * draw(rows, 1)).exp()
    return weight, inputs.T @ inputs / len(inputs)


def target_of(text: str) -> float | str | sa.Rows | sa.GroupSparsity:
    """``0.5``, ``2:4``, ``rows:0.5``, ``input:0.5``, ``output:0.5``."""
    kind, _, share = text.partition(":")
    if kind == "rows":
        return sa.Rows(float(share))
    if kind in ("input", "output"):
        return sa.GroupSparsity(float(share), kind)
    return text if share else float(text)


def measure(weight: Tensor, hessian: Tensor, sparsity: str, methods: Sequence[str], seconds: float) -> list[Row]:
    """All methods on a layer, in rounds until the time is up."""
    rows, columns = weight.shape
    target = target_of(sparsity)
    names = [name for name in methods if name != "OBS, exact greedy" or rows * columns**3 <= MOST_OBS]
    if isinstance(target, sa.GroupSparsity):
        names = [name for name in names if not name.startswith(("SparseGPT", "OBS"))]
    times: dict[str, list[float]] = {name: [] for name in names}
    infos = {}
    begin, rounds = time.perf_counter(), 0
    while not rounds or (rounds < 15 and time.perf_counter() - begin < seconds):
        for name in names[rounds % len(names) :] + names[: rounds % len(names)]:
            if rounds and name.startswith("OBS"):
                continue
            infos[name] = layerwise_solve(weight, hessian, target, **METHODS[name]).info
            times[name].append(infos[name].seconds)
        rounds += 1
    medians = {name: statistics.median(times[name]) for name in names}
    base = "ADMM + CG" if "ADMM + CG" in names else names[0]
    return [
        Row(
            shape=f"{rows}x{columns}",
            sparsity=sparsity,
            method=name,
            error=infos[name].error,
            seconds=medians[name],
            error_over_admm=infos[name].error / infos[base].error,
            time_over_admm=medians[name] / medians[base],
            iterations=infos[name].iterations,
            refit=infos[name].refit,
            damping=infos[name].damping,
            rounds=rounds,
        )
        for name in names
    ]


HEADINGS = ("shape", "sparsity", "method", "error", "seconds", "error / ADMM", "time / ADMM", "steps")


def format_line(cells: Sequence[str]) -> str:
    """Cells padded to the table's column widths."""
    widths = (10, 9, 22, 9, 9, 12, 11, 8)
    pairs = enumerate(zip(cells, widths, strict=True))
    return "  ".join(cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in pairs).rstrip()


def format_row(row: Row) -> str:
    """A row's line."""
    ratios = f"{row.error_over_admm:.3f}", f"{row.time_over_admm:.2f}"
    steps = f"{row.iterations}+{row.refit}"
    return format_line((row.shape, row.sparsity, row.method, f"{row.error:.5f}", f"{row.seconds:.3f}", *ratios, steps))


def load(path: Path) -> tuple[Tensor, Tensor]:
    """Weight and Hessian from a file."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        tensors = load_file(path)
    else:
        tensors = torch.load(path, weights_only=True)
    return tensors["weight"], tensors["hessian"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run this bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="RxC", help="of the made layers")
    parser.add_argument("--sparsity", nargs="+", default=["0.5", "0.7", "2:4"], metavar="S",
                        help="0.5, 2:4, rows:0.5, input:0.5, output:0.5")  # fmt: skip
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="NAME")
    parser.add_argument("--hessian", type=Path, metavar="FILE", help="a real layer instead of made ones")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, help="CPU threads (as PyTorch chooses)")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each layer and sparsity; a round at least (5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the machine there, too")
    args = parser.parse_args(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    facts = machine()
    say(f"{facts['gpu'] if args.device != 'cpu' else facts['cpu']}, {facts['threads']} threads; torch "
                f"{facts['torch']}. steps: iterations + conjugate gradients.")  # fmt: skip
    say(format_line(HEADINGS))
    rows: list[Row] = []
    for shape in [args.hessian] if args.hessian else args.shapes:
        layer = load(shape) if args.hessian else made_layer(*(int(size) for size in shape.split("x")))
        weight, hessian = (tensor.to(args.device) for tensor in layer)
        for sparsity in args.sparsity:
            measured = measure(weight, hessian, sparsity, args.methods, args.seconds)
            for row in measured:
                say(format_row(row))
            rows += measured
    if args.json is not None:
        content = {"machine": facts, "rows": [dataclasses.asdict(row) for row in rows]}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(content, indent=1) + "\n")
        say(f"\nwritten: {args.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
