"""i-SpaSP on made data: the residual's energy against the number of units kept, for rows that decay at four rates.

    python examples/ispasp_synthetic.py [--outputs 100] [--trials 3] [--out out/ispasp_synthetic]

As in Wolfe and Kyrillidis, L4DC 2022 (arXiv 2112.04905): hidden activations H of 100 or 200 units and 100 samples,
whose rows are p-compressible (the i-th largest has norm i^(-1/p), p = .3, .5, .7, .9; directions random, not negative,
as after a ReLU), a consumer W from Kaiming's initialization, U = W H, T = 20. Plotted is ``|V_r|^2 = |U - W_S H_S|^2``
over ``|U|^2`` for every s. The dotted line is the rate of the rows' own tail, s^(1 - 2/p); the dashed one is Gram-OBS
with its refit on the same data.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from sparse_accel.progress import over
from sparse_accel.prune import gram_obs, ispasp_select, refit

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RATES = (0.3, 0.5, 0.7, 0.9)
HIDDEN = (100, 200)
SAMPLES, ITERATIONS = 100, 20
RIDGE = 1e-11  # the rows' energies span 13 decades
SHOWN = (0.05, 0.1, 0.2, 0.5)  # shares of the units in the printed table


def made_data(units: int, outputs: int, rate: float, seed: int) -> tuple[Tensor, Tensor]:
    """H ``[units, SAMPLES]`` with p-compressible rows in random order, and W ``[outputs, units]``; float64."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(units, SAMPLES, generator=generator, dtype=torch.float64).relu()
    norms = torch.arange(1, units + 1, dtype=torch.float64) ** (-1 / rate)
    order = torch.randperm(units, generator=generator)
    hidden = hidden / hidden.norm(dim=1, keepdim=True) * norms[order][:, None]
    weight = torch.randn(outputs, units, generator=generator, dtype=torch.float64) * (2 / units) ** 0.5
    return hidden, weight


def residuals(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """``|V_r|^2 / |U|^2`` for s = 1 ... units, of i-SpaSP and of Gram-OBS with refit."""
    target = weight @ hidden
    gram, cross = hidden @ hidden.T, target @ hidden.T
    order = gram_obs(gram, cross, weight, keep=1, ridge=RIDGE)
    plain, fitted = [], []
    for keep in range(1, len(hidden) + 1):
        kept = ispasp_select(hidden.sum(1), weight, keep, ITERATIONS).kept
        plain.append((target - weight[:, kept] @ hidden[kept]).square().sum())
        kept = order.at(keep)
        fitted.append((target - refit(gram, cross, weight, kept, ridge=RIDGE) @ hidden[kept]).square().sum())
    return torch.stack(plain) / target.square().sum(), torch.stack(fitted) / target.square().sum()


def plot(curves: dict[tuple[int, float], tuple[Tensor, Tensor]], file: Path) -> None:
    """One panel for each number of units, one colour for each rate."""
    figure, axes = plt.subplots(1, len(HIDDEN), figsize=(12, 4.6), sharey=True, constrained_layout=True)
    for axis, units in zip(axes, HIDDEN, strict=True):
        s = torch.arange(1, units, dtype=torch.float64)
        for rate, colour in zip(RATES, ("C0", "C1", "C2", "C3"), strict=True):
            plain, fitted = curves[units, rate]
            tail = s ** (1 - 2 / rate) * float(plain[0])
            axis.loglog(s, plain[:-1].clamp(min=1e-20), colour, label=f"p = {rate}")
            axis.loglog(s, fitted[:-1].clamp(min=1e-20), colour + "--", linewidth=0.9)
            axis.loglog(s, tail, colour + ":", linewidth=0.9)
        axis.set_title(f"{units} units")
        axis.set_xlabel("units kept, s")
        axis.set_ylim(1e-14, 3)
    axes[0].set_ylabel("$\\|V_r\\|_F^2$ / $\\|U\\|_F^2$")
    axes[1].legend(title="i-SpaSP (dashed: Gram-OBS, refit)")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main() -> int:
    """Run, print a few numbers, plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--outputs", type=int, default=100, help="of the consumer (100)")
    parser.add_argument("--trials", type=int, default=3, help="seeds whose geometric mean is shown (3)")
    parser.add_argument("--out", type=Path, default=Path("out/ispasp_synthetic"), help="folder of the PNG")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    curves: dict[tuple[int, float], tuple[Tensor, Tensor]] = {}
    cells = [(units, rate) for units in HIDDEN for rate in RATES]
    for units, rate in over(cells, "runs", not args.no_progress):
        runs = [residuals(*made_data(units, args.outputs, rate, seed)) for seed in range(args.trials)]
        plain, fitted = (
            torch.stack(column).clamp(min=1e-300).log().mean(0).exp() for column in zip(*runs, strict=True)
        )
        curves[units, rate] = plain, fitted
        shown = [max(1, round(share * units)) for share in SHOWN]
        numbers = "  ".join(f"s {s:3d}: {float(plain[s - 1]):.1e} ({float(fitted[s - 1]):.1e})" for s in shown)
        print(f"{units} units, p = {rate}: |Vr|^2 / |U|^2, i-SpaSP (Gram-OBS, refit)  {numbers}")
    file = args.out / "ispasp_synthetic.png"
    plot(curves, file)
    print(f"written: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
