"""What stochastic heavy ball leaves behind: dropout stability and connectivity against the width, on digits.

    python examples/heavy_ball_mean_field.py [--widths 50 ... 3200] [--quick] [--out out/heavy_ball_mean_field]

Two-layer networks ``f(x) = (1/N) sum_i a_i relu(w_i x)`` as in Wu, Kungurtsev and Mondelli, *Mean-field analysis for
heavy ball methods*: every unit follows ``theta_{k+1} = theta_k + (1 - gamma eps) (theta_k - theta_{k-1}) - eps^2 N
grad R`` on batches of scikit-learn's digits, two networks for each width that differ in start and order of the data;
beside it SGD with the same effective step size. Over the widths:

- how much the squared error changes when half of the units go and the rest is rescaled, or refitted;
- the barrier of the path between the two networks, beside the straight line, as they are and with units aligned;
- the distance of their outputs on held-out digits from the mean-field limit, for which a network of twice the largest
  width stands, trained on the same batches.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import matplotlib
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F

import sparse_accel as sa
from sparse_accel.report import format_table

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

EPS, GAMMA, BATCH = 0.02**0.5, 0.5**0.5, 100  # eps^2 = .02, momentum 1 - gamma eps = .9
SPREAD = 0.1  # of all parameters at the start
TRAINED = 1400  # digits; the others are held out
METHODS = {"SHB": (EPS**2, 1 - GAMMA * EPS), "SGD": (EPS / GAMMA, 0.0)}  # the same step size / (1 - momentum)
COLORS = {"SHB": "#e8590c", "SGD": "#1971c2"}
FLOOR = 1e-6  # of the plot
KINDS = ("rescaled", "refitted", "straight line", "aligned line")


class MeanField(nn.Module):
    """``f(x) = (1/N) sum_i a_i relu(w_i x)``, an average over the units.

    Args:
        inputs: with a constant one among them.
        width: N.
        seed: of the start.
    """

    def __init__(self, inputs: int, width: int, seed: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, width, bias=False)
        self.outer = nn.Linear(width, 10, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in (self.hidden.weight, self.outer.weight):
                weight.copy_(SPREAD * torch.randn(weight.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [batch, 10]."""
        return self.outer(torch.relu(self.hidden(x))) / self.outer.in_features


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch of ``|f(x) - e_y|^2``."""
    return (outputs - F.one_hot(labels, 10)).square().sum(1).mean()


def digits() -> tuple[Tensor, Tensor]:
    """All rows in random order, pixels in [0, 1] and a one; labels."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    rows = torch.cat([torch.tensor(pixels / 16, dtype=torch.float32), torch.ones(len(labels), 1)], 1)
    return rows[order], torch.tensor(labels)[order]


def train(width: int, method: str, seed: int, order: int, epochs: int, x: Tensor, y: Tensor) -> MeanField:
    """A network of this width; ``order`` is the seed of the batches."""
    net = MeanField(x.shape[1], width, seed)
    lr, momentum = METHODS[method]
    optimizer = torch.optim.SGD(net.parameters(), lr=lr * width, momentum=momentum)  # the gradient of a unit is ~ 1/N
    generator = torch.Generator().manual_seed(order)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            squared_error(net(x[batch]), y[batch]).backward()
            optimizer.step()
    return net


def outputs(net: MeanField, x: Tensor) -> Tensor:
    """Without gradients."""
    with torch.no_grad():
        return net(x)


def measure(nets: list[MeanField], limit: MeanField, x: Tensor, y: Tensor, held: Tensor, labels: Tensor) -> dict:
    """Everything about the two networks of one width."""
    data = (x, y)
    found: dict = {"accuracy": float((outputs(nets[0], held).argmax(1) == labels).double().mean())}
    for refit in (False, True):
        report = sa.diagnostics.dropout_stability(nets[0], squared_error, data, trials=5, refit=refit, batch_size=1400)
        path = sa.diagnostics.low_loss_path(
            *nets, squared_error, data, refit=refit, points=4, aligned=not refit, batch_size=1400
        )
        kind = "refitted" if refit else "rescaled"
        found["loss"] = report.loss
        found[f"dropout, {kind}"] = report.together.change
        found[f"barrier, {kind}"] = path.barrier
        if not refit:
            found["barrier, straight line"] = path.barrier_of("straight")
            found["barrier, aligned line"] = path.barrier_of("aligned")
    difference = outputs(nets[0], held) - outputs(limit, held)
    found["distance"] = float(difference.square().sum(1).mean() ** 0.5)
    return found


def plot(results: dict[str, dict[int, dict]], file: Path) -> None:
    """Dropout, barriers and distance over the width; what is below FLOOR is drawn there."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.8), sharex=True, constrained_layout=True)
    styles = dict(zip(KINDS, ("-", "--", ":", "-."), strict=True))
    widths = sorted(next(iter(results.values())))
    rate = [math.sqrt(math.log(width) / width) for width in widths]
    curves = {
        axes[0]: [("dropout, " + kind, styles[kind]) for kind in KINDS[:2]],
        axes[1]: [("barrier, " + kind, styles[kind]) for kind in KINDS],
        axes[2]: [("distance", "-")],
    }
    for axis, lines in curves.items():
        for method, rows in results.items():
            for key, style in lines:
                values = [max(rows[width][key], FLOOR) for width in widths]
                axis.loglog(widths, values, style, marker="o", markersize=4, color=COLORS[method])
        first = results["SHB"][widths[0]][lines[0][0]]
        reference = [first * value / rate[0] for value in rate]
        if axis is axes[2]:
            reference = [first * (widths[0] / width) ** 0.5 for width in widths]
        axis.loglog(widths, reference, color="0.6", linewidth=3, alpha=0.6, zorder=0)
        axis.set_xlabel("width M")
        axis.set_xticks(widths, [str(width) for width in widths])
        axis.xaxis.minorticks_off()
        axis.grid(color="0.92", which="both")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_title("Half of the units dropped: change of the loss")
    axes[1].set_title("Barrier between two networks")
    axes[2].set_title("Distance of the outputs to the mean-field limit")
    colors = [Line2D([], [], color=COLORS[method], marker="o", markersize=4, label=method) for method in results]
    kinds = [Line2D([], [], color="0.2", linestyle=styles[kind], label=kind) for kind in KINDS]
    law = Line2D([], [], color="0.6", linewidth=3, alpha=0.6, label="sqrt(log M / M)")
    axes[0].legend(handles=[*colors, *kinds[:2], law], frameon=False)
    axes[1].legend(handles=[*kinds, law], frameon=False, loc="lower left")
    axes[2].legend(
        handles=[*colors, Line2D([], [], color="0.6", linewidth=3, alpha=0.6, label="1 / sqrt(M)")], frameon=False
    )
    axes[2].yaxis.set_minor_formatter(NullFormatter())
    axes[2].set_yticks([0.01, 0.02, 0.05, 0.1, 0.2], ["0.01", "0.02", "0.05", "0.1", "0.2"])
    figure.savefig(file, dpi=100)
    plt.close(figure)


def table(results: dict[str, dict[int, dict]]) -> str:
    """One row for each method and width."""
    keys = ["loss", "dropout, rescaled", "dropout, refitted", *(f"barrier, {kind}" for kind in KINDS), "distance"]
    headers = [
        "",
        "width",
        "accuracy",
        "loss",
        "dropout",
        "refitted",
        "path",
        "refitted",
        "straight",
        "aligned",
        "distance",
    ]
    rows: list[list] = []
    for method, by_width in results.items():
        rows += [[None]] if rows else []
        rows += [
            [method, width, f"{100 * found['accuracy']:.1f} %", *(f"{found[key]:.2g}" for key in keys)]
            for width, found in by_width.items()
        ]
    return format_table(headers, rows)


def run(widths: list[int], epochs: int, out: Path, quiet: bool) -> None:
    """Train and measure all networks; print the table, write PNG and JSON."""
    start = time.perf_counter()
    rows, labels = digits()
    x, y = rows[:TRAINED], labels[:TRAINED]
    results: dict[str, dict[int, dict]] = {method: {} for method in METHODS}
    with Progress(console=Console(stderr=True), disable=quiet) as bar:
        # About as long as each takes: in units of the smallest network.
        task = bar.add_task("networks", total=len(METHODS) * (3 * sum(widths) + 2 * widths[-1]))
        for method, by_width in results.items():
            limit = train(2 * widths[-1], method, 10_000, 0, epochs, x, y)
            bar.advance(task, 2 * widths[-1])
            for width in widths:
                bar.update(task, description=f"{method}, width {width}")
                nets = [train(width, method, seed, seed, epochs, x, y) for seed in (0, 1)]
                by_width[width] = measure(nets, limit, x, y, rows[TRAINED:], labels[TRAINED:])
                bar.advance(task, 3 * width)
    print(table(results))
    print(
        "dropout: change of the squared error without half of the units; path, straight, aligned: barriers between two"
    )
    (out / "heavy_ball_mean_field.json").write_text(json.dumps({"epochs": epochs, "results": results}, indent=1))
    file = out / "heavy_ball_mean_field.png"
    plot(results, file)
    print(f"{time.perf_counter() - start:.0f} s; written: {file}")


def main() -> int:
    """Train, measure, print, plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[50, 100, 200, 400, 800, 1600, 3200])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="widths 50 and 200, 5 epochs: seconds")
    parser.add_argument("--threads", type=int, default=1, help="of torch (1: the products are small)")
    parser.add_argument("--out", type=Path, default=Path("out/heavy_ball_mean_field"), help="folder of PNG and JSON")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    args = parser.parse_args()
    widths, epochs = ([50, 200], 5) if args.quick else (sorted(set(args.widths)), args.epochs)
    if widths[0] < 2 or epochs < 1 or args.threads < 1:
        parser.error("expected widths of 2 at least, an epoch and a thread")
    args.out.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    try:
        run(widths, epochs, args.out, args.no_progress)
    finally:
        torch.set_num_threads(threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
