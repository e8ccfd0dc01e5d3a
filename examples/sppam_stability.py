"""Where GD, GDM, PPA and PPAM converge: the (lr, momentum) map of a quadratic, p = 100, condition number 10.

    python examples/sppam_stability.py [--cells 101] [--out out/sppam_stability]

100 iterations from a random point, lr and momentum in [-5, 5], as in Kim, Toulis and Kyrillidis, L4DC 2022
(arXiv 2111.06171): "converged" where the error has shrunk. The law beside it: all eigenvalues inside the unit circle.
The map runs in the eigenbasis, where each coordinate is a recursion of its own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

import sparse_accel as sa
from sparse_accel.progress import over

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ITERATIONS, DIMENSION, CONDITION = 100, 100, 10.0
METHODS = ("GD", "GDM", "PPA", "PPAM")


def errors(method: str, lr: Tensor, momentum: Tensor, eigenvalues: Tensor) -> Tensor:
    """Error after the iterations over that at the start, ``[cells, cells]``."""
    step = lr[:, None, None] * eigenvalues
    beta = momentum[None, :, None] if method.endswith("M") else torch.zeros(1, momentum.numel(), 1, dtype=lr.dtype)
    start = torch.randn(DIMENSION, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = start.expand(lr.numel(), momentum.numel(), -1)
    last = x
    for _ in range(ITERATIONS):
        z = x + beta * (x - last)
        x, last = (z - step * x if method.startswith("GD") else z / (1 + step)), x
        x = x.clamp(-1e100, 1e100)
    return x.norm(dim=-1) / start.norm()


def law(method: str, lr: Tensor, momentum: Tensor, eigenvalues: Tensor) -> Tensor:
    """Whether all eigenvalues are stable, ``[cells, cells]``."""
    lr, momentum = lr[:, None, None], momentum[None, :, None]
    if not method.endswith("M"):
        momentum = torch.zeros_like(momentum)
    if method.startswith("PPA"):
        stable = sa.sppam.is_stable(lr, momentum, eigenvalues)
    else:  # heavy ball: |beta| < 1 and 0 < lr * eigenvalue < 2 + 2 beta
        step = lr * eigenvalues
        stable = (momentum.abs() < 1) & (step > 0) & (step < 2 + 2 * momentum)
    return torch.as_tensor(stable).all(-1).expand(lr.shape[0], momentum.shape[1])


def plot(maps: dict[str, tuple[Tensor, Tensor]], file: Path) -> None:
    """Converged cells above, the law below."""
    figure, axes = plt.subplots(2, 4, figsize=(13, 6.4), sharex=True, sharey=True, constrained_layout=True)
    for (method, pair), column in zip(maps.items(), axes.T, strict=True):
        for axis, values in zip(column, pair, strict=True):
            axis.imshow(values.numpy(), origin="lower", extent=(-5, 5, -5, 5), cmap="Blues", vmin=0, vmax=1.4)
            axis.set_xlabel("momentum")
        column[0].set_title(f"{method}: {ITERATIONS} iterations")
        column[1].set_title("the law")
    for axis in axes[:, 0]:
        axis.set_ylabel("lr")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main() -> int:
    """Run, plot, and say how many cells away from the border differ from the law."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", type=int, default=101, help="of each axis (101)")
    parser.add_argument("--out", type=Path, default=Path("out/sppam_stability"), help="folder of the PNG")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    axis = torch.linspace(-5, 5, args.cells, dtype=torch.float64)
    eigenvalues = torch.linspace(1 / CONDITION, 1, DIMENSION, dtype=torch.float64)
    maps = {}
    for method in over(METHODS, "maps", not args.no_progress):
        found = torch.cat([errors(method, row[None], axis, eigenvalues) for row in axis]) < 1
        maps[method] = found, law(method, axis, axis, eigenvalues)
        differ = int((found != maps[method][1]).sum())
        print(f"{method:5s} converged in {100 * found.double().mean():5.1f} % of the cells, differs from the law in "
              f"{100 * differ / found.numel():.1f} % (slow cells at the border)")  # fmt: skip
    file = args.out / "sppam_stability.png"
    plot(maps, file)
    print(f"written: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
