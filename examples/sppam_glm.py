"""SPPA and SPPAM against SGD and SGDM on generalized linear models, made and real.

    python examples/sppam_glm.py [--trials 1] [--limit 10000] [--data-dir DIR] [--out out/sppam_glm]

Made data, as in Kim, Toulis and Kyrillidis, L4DC 2022 (arXiv 2111.06171): p = n = 100, batches of 10, momentum .9, step
sizes 1e-3 ... 1e3; iterations until the relative error is .01, linear with condition numbers 1, 5, 10 and Poisson with
1, 3, 5 (the targets of Poisson are the exact means: with counts the optimum of n = p rows lies at infinity).
With --data-dir that holds a9a, a9a.t and winequality-{red,white}.csv (LIBSVM, UCI), one pass of single-row steps with
the mean of the second half: test accuracy on a9a, error on wine quality.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

import sparse_accel as sa
from sparse_accel.progress import Meter, meter
from sparse_accel.reference import glm as reference_glm

matplotlib.use("Agg")
from matplotlib import pyplot as plt

METHODS = {"SGD": 0.0, "SGDM": 0.9, "SPPA": 0.0, "SPPAM": 0.9}
PROBLEMS = [("gaussian", 1), ("gaussian", 5), ("gaussian", 10), ("poisson", 1), ("poisson", 3), ("poisson", 5)]
TITLES = {"gaussian": "linear", "poisson": "Poisson"}
REAL_LRS = [10.0**k for k in range(-2, 4)]
SIZE, BATCH, TARGET = 100, 10, 0.01


def make_problem(family: str, condition: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features ``[p, p]`` with singular values from 1 / condition to 1, targets, and the truth."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    left, right = (torch.linalg.qr(draw(SIZE, SIZE))[0] for _ in range(2))
    features = left * torch.linspace(1 / condition, 1, SIZE, dtype=torch.float64) @ right
    truth = draw(SIZE)
    mean = features @ truth
    return features, (mean + 1e-3 * draw(SIZE)) if family == "gaussian" else mean.exp(), truth


def iterations(family: str, condition: float, method: str, lr: float, seed: int, limit: int) -> int:
    """Until the relative error is TARGET; ``limit`` if that is not reached."""
    features, targets, truth = make_problem(family, condition, seed)
    generator, beta = torch.Generator().manual_seed(seed), METHODS[method]
    x = last = torch.zeros(SIZE, dtype=torch.float64)
    goal = TARGET * float(truth.norm())
    for iteration in range(1, limit):
        batch = torch.randperm(SIZE, generator=generator)[:BATCH]
        rows, wanted = features[batch], targets[batch]
        z = x + beta * (x - last)
        last = x
        if method.startswith("SPPA"):
            x, _ = sa.glm_prox(z, rows, wanted, lr, family, "average")
        else:
            x = z - lr * rows.T @ reference_glm.slope(family, rows @ x, wanted) / BATCH
        error = float((x - truth).norm())
        if error < goal:
            return iteration
        if not error < 1e6:
            break
    return limit


def made(args: argparse.Namespace, done: Meter) -> None:
    """The six problems, one panel each."""
    lrs = torch.logspace(-3, 3, args.lrs, dtype=torch.float64).tolist()
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.5), sharex=True, sharey=True, constrained_layout=True)
    for (family, condition), axis in zip(PROBLEMS, axes.flat, strict=True):
        title = f"{TITLES[family]}, condition number {condition}"
        print(f"{title}: median iterations to relative error {TARGET} at lr " + " ".join(f"{lr:.3g}" for lr in lrs))
        for method in METHODS:
            counts = []
            for lr in lrs:
                trials = []
                for seed in range(args.trials):
                    trials.append(iterations(family, condition, method, lr, seed, args.limit))
                    done.advance()
                counts.append(sorted(trials)[len(trials) // 2])
            axis.loglog(lrs, counts, marker="o", markersize=3, label=method)
            print(f"  {method:5s} " + " ".join("-" if count == args.limit else str(count) for count in counts))
        axis.set_title(title)
    axes[0, 0].legend()
    for axis in axes[1]:
        axis.set_xlabel("lr")
    for axis in axes[:, 0]:
        axis.set_ylabel(f"iterations to {TARGET}")
    figure.savefig(args.out / "sppam_glm.png", dpi=120)
    plt.close(figure)
    print(f"written: {args.out / 'sppam_glm.png'}")


def read_libsvm(path: Path, columns: int) -> tuple[Tensor, Tensor]:
    """Rows with a column of ones at the end, and labels 0 or 1."""
    lines = path.read_text().splitlines()
    rows = torch.zeros(len(lines), columns + 1, dtype=torch.float64)
    rows[:, columns] = 1
    labels = torch.zeros(len(lines), dtype=torch.float64)
    for i, line in enumerate(lines):
        label, *entries = line.split()
        labels[i] = float(label) > 0
        for entry in entries:
            column, _, value = entry.partition(":")
            rows[i, int(column) - 1] = float(value)
    return rows, labels


def read_wine(folder: Path) -> tuple[Tensor, Tensor]:
    """Both kinds of wine in one, standardized, with a column of ones; quality."""
    table = []
    for name in ("red", "white"):
        for line in (folder / f"winequality-{name}.csv").read_text().splitlines():
            cells = line.replace(";", ",").split(",")
            if len(cells) == 12 and not cells[0].strip().strip('"')[:1].isalpha():
                table.append([float(cell) for cell in cells])
    values = torch.tensor(table, dtype=torch.float64)
    values = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))]
    rows = (values[:, :11] - values[:, :11].mean(0)) / values[:, :11].std(0)
    return torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], 1), values[:, 11]


def one_pass(rows: Tensor, targets: Tensor, lr: float, beta: float, family: str, method: str) -> tuple[Tensor, Tensor]:
    """The last iterate, and the mean of the second half."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    x, average = torch.zeros(rows.shape[1], dtype=torch.float64), torch.zeros(rows.shape[1], dtype=torch.float64)
    last, start = x.clone(), len(order) // 2
    if method == "SPPAM":
        sa.glm_epoch(x, last, rows, targets, order, lr, beta, family, average=average, average_start=start)
        return x, average
    for k, i in enumerate(order.tolist()):
        slope = reference_glm.slope(family, rows[i] @ x, targets[i])
        x, last = x + beta * (x - last) - lr * slope * rows[i], x
        if k >= start:
            average += x
    return x, average / (len(order) - start)


def real(args: argparse.Namespace, done: Meter) -> None:
    """a9a (logistic) and wine quality (linear), one pass each."""
    train, labels = read_libsvm(args.data_dir / "a9a", 123)
    test, test_labels = read_libsvm(args.data_dir / "a9a.t", 123)
    wine, quality = read_wine(args.data_dir)
    held = len(wine) // 5
    lrs = REAL_LRS

    def accuracy(x: Tensor) -> float:
        return 100 * float(((test @ x > 0) == (test_labels > 0)).double().mean())

    def log_loss(x: Tensor) -> float:
        return float(reference_glm.loss("binomial", test @ x, test_labels).mean())

    def error(x: Tensor) -> float:
        return float((wine[:held] @ x - quality[:held]).square().mean() ** 0.5)

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for method in ("SPPAM", "SGDM"):
        for beta in (0.0, 0.5):
            pairs, wines = [], []
            for lr in lrs:
                pairs.append(one_pass(train, labels, lr, beta, "binomial", method))
                wines.append(error(one_pass(wine[held:], quality[held:], lr, beta, "gaussian", method)[1]))
                done.advance()
            name = f"{method}, momentum {beta:g}"
            means = [accuracy(pair[1]) for pair in pairs]
            print(f"{name}, lr " + " ".join(f"{lr:g}" for lr in lrs))
            print("  a9a accuracy, mean of the second half: " + " ".join(f"{value:.2f}" for value in means))
            print("  a9a accuracy, last iterate:            " + " ".join(f"{accuracy(pair[0]):.2f}" for pair in pairs))
            print("  a9a log-loss, mean:                    " + " ".join(f"{log_loss(pair[1]):.3f}" for pair in pairs))
            print("  wine root mean square error, mean:     " + " ".join(f"{value:.3g}" for value in wines))
            axes[0].semilogx(lrs, means, marker="o", label=name)
            axes[1].loglog(lrs, [value if value < 1e3 else float("nan") for value in wines], marker="o", label=name)
    axes[0].set_title("a9a, one pass: test accuracy of the mean, %")
    axes[1].set_title("wine quality, one pass: test error of the mean")
    for axis in axes:
        axis.set_xlabel("lr")
        axis.legend()
    figure.savefig(args.out / "sppam_real.png", dpi=120)
    plt.close(figure)
    print(f"written: {args.out / 'sppam_real.png'}")


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=1, help="of each setting (1; the paper: 5)")
    parser.add_argument("--limit", type=int, default=10_000, help="iterations after which a run is given up (10000)")
    parser.add_argument("--lrs", type=int, default=13, help="step sizes from 1e-3 to 1e3 (13)")
    parser.add_argument("--data-dir", type=Path, help="folder of a9a, a9a.t and the wine quality tables")
    parser.add_argument("--out", type=Path, default=Path("out/sppam_glm"), help="folder of the PNGs")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        with meter(not args.no_progress, "made data", len(PROBLEMS) * len(METHODS) * args.lrs * args.trials) as done:
            made(args, done)
        if args.data_dir is not None:
            with meter(not args.no_progress, "real data", 4 * len(REAL_LRS)) as done:
                real(args, done)
    except FileNotFoundError as error:
        print(f"{error.filename}: missing", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
