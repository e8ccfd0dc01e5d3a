"""Who finds the right zeros? Group-sparse logistic regression with a planted pattern.

    python examples/training/identification.py [--epochs 60] [--seeds 3] [--strength 0.03] [--out out/identification]

Labels come from a few groups of features. The optimum of the regularized problem (mean logistic loss and
``GroupLasso(strength)``) is computed first, by accelerated proximal gradient steps in float64 to a relative change of
1e-12; its zero groups are the *optimal pattern*. Then RMDA, RAMDA, ProxSGD and ProxAdamW train on batches with a
constant learning rate, and after each epoch the share of groups is counted that are zero where the optimum is zero and
not where it is not. Dual averages identify the pattern in finite time and keep it (Huang & Lee, ICLR 2022 and NeurIPS
2024); proximal steps on noisy gradients keep missing it. The table says when all was right for the first time and from
when on it stayed so; a PNG shows the shares. Finished runs are kept, and the same command goes on with the others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparse_accel as sa
from sparse_accel.progress import meter
from sparse_accel.report import format_table

ROWS, GROUPS, SIZE, PLANTED, BATCH = 1000, 50, 5, 8, 16
COLORS = {"RMDA": "#e8590c", "RAMDA": "#2b8a3e", "ProxSGD": "#1971c2", "ProxAdamW": "#868e96"}
LAST = 0.2  # share of the epochs over which the end is judged


def planted(seed: int) -> tuple[Tensor, Tensor]:
    """Features ``[rows, size, groups]`` and labels ``[rows]`` in {0, 1}, float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, SIZE, GROUPS, generator=generator, dtype=torch.float64)
    weight = torch.randn(SIZE, GROUPS, generator=generator, dtype=torch.float64)
    weight *= SIZE**0.5 / weight.norm(dim=0)  # groups far from the threshold: what the theorem asks for
    weight[:, torch.randperm(GROUPS, generator=generator)[PLANTED:]] = 0
    chances = torch.sigmoid(6 * (x * weight).sum((1, 2)) / (PLANTED * SIZE) ** 0.5)
    return x, torch.bernoulli(chances, generator=generator)


def optimum(x: Tensor, y: Tensor, penalty: sa.GroupLasso, most: int = 20000) -> Tensor:
    """The minimizer ``[size, groups]``, by FISTA with restarts.

    Raises:
        RuntimeError: it did not settle in ``most`` steps.
    """
    rows = x.flatten(1)
    step = 4 * len(y) / float(torch.linalg.matrix_norm(rows, 2)) ** 2  # 1 / Lipschitz constant of the gradient
    weight = torch.zeros(SIZE, GROUPS, dtype=torch.float64)
    ahead, momentum = weight.clone(), 1.0
    for _ in range(most):
        residual = torch.sigmoid(rows @ ahead.flatten()) - y
        new = ahead - step * (rows.T @ residual / len(y)).reshape(SIZE, GROUPS)
        penalty.prox_(new, step)
        move = new - weight
        if float(((ahead - new) * move).sum()) > 0:  # uphill: start the momentum again
            momentum = 1.0
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = new + (momentum - 1) / following * move
        weight, momentum = new, following
        if float(move.norm()) <= 1e-12 * max(1.0, float(weight.norm())):
            return weight
    raise RuntimeError(f"the optimum did not settle in {most} steps: give another --strength")


def make(name: str, weight: nn.Parameter, penalty: sa.GroupLasso) -> Any:
    """An optimizer with a constant learning rate."""
    if name == "RMDA":
        return sa.RMDA([weight], lr=0.05, momentum=0.1, penalty=penalty)
    if name == "RAMDA":
        return sa.RAMDA([weight], lr=0.005, momentum=0.1, penalty=penalty)
    if name == "ProxSGD":
        return sa.ProxSGD([weight], lr=0.1, rho=0.1, penalty=penalty)
    return sa.ProxAdamW([weight], lr=1e-3, weight_decay=0.0, penalty=penalty)


def shares(
    name: str, x: Tensor, y: Tensor, zero: Tensor, penalty: sa.GroupLasso, epochs: int, seed: int
) -> list[float]:
    """The share of the optimal pattern after each epoch, at the proximal iterate."""
    generator = torch.Generator().manual_seed(seed)
    x, y = x.float(), y.float()
    weight = nn.Parameter(torch.zeros(SIZE, GROUPS))
    opt = make(name, weight, penalty)
    found = []
    for _ in range(epochs):
        for batch in torch.randperm(len(y), generator=generator).split(BATCH):
            opt.zero_grad()
            F.binary_cross_entropy_with_logits((x[batch] * weight).sum((1, 2)), y[batch]).backward()
            opt.step()
        with opt.proximal_parameters():
            found.append(float(((weight.detach() == 0).all(0) == zero).double().mean()))
    return found


def judge(found: list[float]) -> tuple[int | None, int | None, float]:
    """The first epoch with the whole pattern, that from which on it stayed, and the mean share at the end."""
    whole = [share == 1.0 for share in found]
    first = whole.index(True) + 1 if any(whole) else None
    wrong = [index for index, right in enumerate(whole) if not right]
    kept = (wrong[-1] + 2 if wrong else 1) if whole[-1] else None
    return first, kept, statistics.mean(found[-max(1, round(LAST * len(found))) :])


def plot(path: Path, runs: dict[str, list[list[float]]]) -> None:
    """Shares over the epochs, the mean of the seeds and their range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), constrained_layout=True)
    for name, own in runs.items():
        table = 100 * torch.tensor(own)
        epochs = range(1, table.shape[1] + 1)
        axes.plot(epochs, table.mean(0), color=COLORS[name], label=name)
        axes.fill_between(epochs, table.amin(0), table.amax(0), color=COLORS[name], alpha=0.2, linewidth=0)
    axes.set(xlabel="epoch", ylabel="groups as in the optimum, %", title="Identification of the optimal pattern")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> int:
    """Find the optima, train, compare; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--strength", type=float, default=0.03)
    parser.add_argument("--optimizers", nargs="+", choices=[*COLORS], default=[*COLORS])
    parser.add_argument("--out", type=Path, default=Path("out/identification"))
    parser.add_argument("--no-progress", action="store_true")
    args = parser.parse_args()
    if args.epochs < 1 or args.seeds < 1:
        print("identification.py: expected --epochs and --seeds of at least 1", file=sys.stderr)
        return 2
    torch.set_flush_denormal(True)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "identification.json"
    settings = {"epochs": args.epochs, "strength": args.strength}
    known = json.loads(file.read_text()) if file.exists() else {"settings": settings, "runs": {}}
    if known["settings"] != settings:
        print(
            f"identification.py: {file} is of other settings {known['settings']}: give another --out", file=sys.stderr
        )
        return 2
    penalty = sa.GroupLasso(args.strength, by="input")
    zeros = 0
    with meter(not args.no_progress, "training", args.seeds * len(args.optimizers)) as done:
        for seed in range(args.seeds):
            x, y = planted(seed)
            zero = (optimum(x, y, penalty) == 0).all(0)
            zeros += int(zero.sum())
            for name in args.optimizers:
                key = f"{name} {seed}"
                if key not in known["runs"]:
                    known["runs"][key] = shares(name, x, y, zero, penalty, args.epochs, seed)
                    file.with_suffix(".part").write_text(json.dumps(known) + "\n")
                    file.with_suffix(".part").replace(file)
                done.advance(f"{key}: {100 * known['runs'][key][-1]:.1f} %")
    runs = {name: [known["runs"][f"{name} {seed}"] for seed in range(args.seeds)] for name in args.optimizers}

    def told(epochs: list[int | None]) -> str:
        return ", ".join("never" if epoch is None else str(epoch) for epoch in epochs)

    rows = []
    for name, own in runs.items():
        first, kept, ends = zip(*map(judge, own), strict=True)
        rows.append([name, told(list(first)), told(list(kept)), f"{100 * statistics.mean(ends):.2f} %"])
    table = format_table(["", "whole pattern first (epoch, by seed)", "kept from", "share, last fifth"], rows)
    head = f"optimum: {zeros / args.seeds:.0f} of {GROUPS} groups are zero (strength {args.strength:g})"
    (args.out / "table.txt").write_text(f"{head}\n{table}\n")
    picture = args.out / "identification.png"
    plot(picture, runs)
    print(f"{head}\n{table}\nwritten: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
