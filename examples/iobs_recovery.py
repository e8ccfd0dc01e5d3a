"""Sparse recovery by curvature: I-OBS against hard thresholding, on a Gaussian prior and on an image.

    python examples/iobs_recovery.py [--noise 0 .01] [--data-dir DIR] [--out out/iobs_recovery]

The two experiments of Wu et al., NeurIPS 2024 (arXiv 2408.17163), with gradient and Hessian of the same function: a
Gaussian prior (256 measurements of 128 unknowns, 16 nonzeros, 64 kept, 20 runs) and an image as prior (784 unknowns,
twice as many measurements, twice its nonzeros kept). Measurements: X with entries N(0, 1) / sqrt(n), plus noise. The
last row takes 2/n of each Newton step, which is what gradient and Hessian scaled differently amount to.
DIR holds train-images-idx3-ubyte (MNIST's format), plain or gzipped; without it a digit of scikit-learn's, enlarged,
or a ring where scikit-learn is missing.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from torch import Tensor
from torch.nn import functional as F

import sparse_accel as sa
from sparse_accel.progress import over
from sparse_accel.report import format_table

matplotlib.use("Agg")
from matplotlib import pyplot as plt

METHODS = {  # label: method, refit
    "k-IHT": ("iht", False),
    "k-IHT, refit at the end": ("iht", True),
    "normalized IHT": ("niht", False),
    "HTP": ("htp", True),
    "top-k I-OBS": ("topk_iobs", False),
    "top-k I-OBS, refit": ("topk_iobs", True),
    "I-OBS, no refit": ("iobs", False),
    "I-OBS": ("iobs", True),
    "I-OBS, 2/n of a Newton step": ("iobs", True),
}


@dataclass
class Setting:
    """Measurements ``A [B, n, d]``, ``b [B, n]`` of ``truth [B, d]``."""

    A: Tensor
    b: Tensor
    truth: Tensor


def measure(truth: Tensor, rows: int, noise: float, generator: torch.Generator) -> Setting:
    """Gaussian measurements of each row of ``truth [B, d]``."""
    count, size = truth.shape
    A = torch.randn(count, rows, size, generator=generator, dtype=torch.float64) / rows**0.5
    b = (A @ truth[..., None])[..., 0] + noise * torch.randn(count, rows, generator=generator, dtype=torch.float64)
    return Setting(A, b, truth)


def gaussian_prior(runs: int, size: int, nonzeros: int, generator: torch.Generator) -> Tensor:
    """``[runs, size]``, standard normal at random places."""
    places = torch.rand(runs, size, generator=generator).argsort(1)[:, :nonzeros]
    return torch.zeros(runs, size, dtype=torch.float64).scatter_(
        1, places, torch.randn(runs, nonzeros, generator=generator, dtype=torch.float64)
    )


def read_image(folder: Path, number: int) -> Tensor:
    """Image ``number`` of the training images, ``[height, width]`` in [0, 1]."""
    stem = folder / "train-images-idx3-ubyte"
    paths = [path for path in (stem, stem.with_name(stem.name + ".gz")) if path.exists()]
    if not paths:
        raise FileNotFoundError(f"{stem}[.gz] is missing")
    raw = paths[0].read_bytes()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    if raw[:4] != b"\x00\x00\x08\x03" or len(raw) < 16:
        raise ValueError(f"{paths[0]}: expected an idx file of images in unsigned bytes")
    count, height, width = (int.from_bytes(raw[4 * i : 4 * i + 4], "big") for i in (1, 2, 3))
    if len(raw) != 16 + count * height * width:
        raise ValueError(f"{paths[0]}: expected {16 + count * height * width} bytes, got {len(raw)}")
    if not 0 <= number < count:
        raise ValueError(f"--image: expected 0 to {count - 1}, got {number}")
    start = 16 + number * height * width
    pixels = torch.frombuffer(bytearray(raw[start : start + height * width]), dtype=torch.uint8)
    return pixels.view(height, width).double() / 255


def built_in_image(number: int, side: int) -> Tensor:
    """A digit of scikit-learn's with a margin, or a ring: ``[side, side]``."""
    inner = max(2, side * 5 // 7)
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        ticks = torch.linspace(-1, 1, inner, dtype=torch.float64)
        radius = (ticks[:, None].square() + ticks.square()).sqrt()
        image = (1 - 6 * (radius - 0.6).abs()).clamp(min=0)
    else:
        images = load_digits().images
        if not 0 <= number < len(images):
            raise ValueError(f"--image: expected 0 to {len(images) - 1}, got {number}") from None
        small = torch.from_numpy(images[number])[None, None] / 16
        image = F.interpolate(small, (inner, inner), mode="bilinear", align_corners=True)[0, 0]
    margin = (side - inner) // 2
    return F.pad(torch.where(image > 0.25, image, 0.0), (margin, side - inner - margin) * 2)


def run(
    setting: Setting, k: int, iterations: int, published: bool, progress: bool
) -> dict[str, sa.sparse_recovery.Recovery]:
    """Every method on one setting."""
    problem = sa.sparse_recovery.LeastSquares(setting.A, setting.b)
    results = {}
    names = [name for name in METHODS if published or "2/n" not in name]
    for name in over(names, "methods", progress, label=str):
        method, refit = METHODS[name]
        step = 2 / setting.A.shape[1] if "2/n" in name else None
        results[name] = sa.sparse_recovery.solve(problem, k, method, refit=refit, step=step, iterations=iterations)
    return results


def oracle(setting: Setting) -> Tensor:
    """Least squares on the true support: ``[B, d]``."""
    theta = torch.zeros_like(setting.truth)
    for A, b, truth, result in zip(setting.A, setting.b, setting.truth, theta, strict=True):
        places = truth.nonzero().flatten()
        result[places] = torch.linalg.lstsq(A[:, places], b[:, None]).solution[:, 0]
    return theta


def table(setting: Setting, results: dict[str, sa.sparse_recovery.Recovery], title: str) -> str:
    """Means over the runs."""
    problem = sa.sparse_recovery.LeastSquares(setting.A, setting.b)
    size = setting.truth.norm(dim=1)

    def row(name: str, theta: Tensor, support: Tensor, iterations: object, seconds: object) -> list[object]:
        error = float(((theta - setting.truth).norm(dim=1) / size).mean())
        true = setting.truth != 0
        found = float((support & true).sum()) / float(true.sum())
        loss = float(problem.loss(theta).mean())
        return [name, iterations, f"{loss:.3e}", f"{error:.3e}", f"{100 * found:.1f} %", seconds]

    rows = []
    for name, result in results.items():
        to_go = "" if result.converged else "+"
        seconds = f"{float(result.history.seconds[-1]):.3f}"
        rows.append(row(name, result.theta, result.support, f"{result.iterations}{to_go}", seconds))
    best = oracle(setting)
    rows.append(row("least squares on the true support", best, setting.truth != 0, "", ""))
    heads = ["method", "iterations", "loss", "relative error", "support found", "seconds"]
    return format_table(heads, rows, title)


def curves(axis: plt.Axes, results: dict[str, sa.sparse_recovery.Recovery], title: str) -> None:
    """The mean loss over the iterations, the last value carried on."""
    end = max(result.iterations for result in results.values())
    for i, (name, result) in enumerate(results.items()):
        if name == "k-IHT, refit at the end":
            continue
        loss = result.history.loss.flatten(1).mean(1).clamp(min=1e-33)
        steps = [*result.history.iteration.tolist(), end]
        style = {"marker": "o", "markersize": 3} if result.iterations < 10 else {}
        axis.loglog([step + 1 for step in steps], [*loss.tolist(), float(loss[-1])], label=name, color=f"C{i}", **style)
    axis.set_title(title)
    axis.set_xlabel("iterations + 1")


def gaussian(args: argparse.Namespace) -> None:
    """The first experiment, one panel for each noise level."""
    figure, axes = plt.subplots(1, len(args.noise), figsize=(6 * len(args.noise), 4.5), squeeze=False,
                                constrained_layout=True)  # fmt: skip
    for noise, axis in zip(args.noise, axes[0], strict=True):
        generator = torch.Generator().manual_seed(args.seed)
        truth = gaussian_prior(args.runs, args.size, args.nonzeros, generator)
        setting = measure(truth, 2 * args.size, noise, generator)
        title = f"Gaussian prior, noise {noise:g}"
        results = run(setting, args.keep, args.iterations, True, not args.no_progress)
        print(table(setting, results, f"{title}: n {2 * args.size}, d {args.size}, nonzeros {args.nonzeros}, "
                    f"kept {args.keep}, {args.runs} runs"), end="\n\n")  # fmt: skip
        curves(axis, results, title)
    axes[0, 0].set_ylabel("loss, mean of the runs")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(args.out / "iobs_gaussian.png", dpi=120)
    plt.close(figure)
    print(f"written: {args.out / 'iobs_gaussian.png'}\n")


def image(args: argparse.Namespace) -> None:
    """The second experiment: curves, and what some of the methods see."""
    picture = built_in_image(args.image, args.side) if args.data_dir is None else read_image(args.data_dir, args.image)
    truth = picture.reshape(1, -1)
    size, nonzeros = truth.numel(), int((truth != 0).sum())
    keep = min(size, 2 * nonzeros)
    shown = ["k-IHT", "top-k I-OBS", "I-OBS"]
    figure, axes = plt.subplots(len(args.noise), len(shown) + 2, figsize=(13, 3 * len(args.noise)), squeeze=False,
                                constrained_layout=True, width_ratios=[2.2, *[1] * (len(shown) + 1)])  # fmt: skip
    for noise, row in zip(args.noise, axes, strict=True):
        setting = measure(truth, 2 * size, noise, torch.Generator().manual_seed(args.seed))
        results = run(setting, keep, args.iterations, False, not args.no_progress)
        title = f"image, noise {noise:g}"
        print(table(setting, results, f"{title}: n {2 * size}, d {size}, nonzeros {nonzeros}, kept {keep}"), end="\n\n")
        curves(row[0], results, title)
        row[0].set_ylabel("loss")
        pictures = {"truth": truth, **{f"{name}, 1 iteration": first(setting, keep, name) for name in shown}}
        for axis, (name, pixels) in zip(row[1:], pictures.items(), strict=True):
            axis.imshow(pixels.view(picture.shape).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(name, fontsize=9)
            axis.set_axis_off()
    axes[0, 0].legend(fontsize=6)
    figure.savefig(args.out / "iobs_image.png", dpi=120)
    plt.close(figure)
    print(f"written: {args.out / 'iobs_image.png'}")


def first(setting: Setting, keep: int, name: str) -> Tensor:
    """The iterate after one iteration."""
    method, refit = METHODS[name]
    problem = sa.sparse_recovery.LeastSquares(setting.A, setting.b)
    return sa.sparse_recovery.solve(problem, keep, method, refit=refit, iterations=1).theta


def main() -> int:
    """Both experiments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="of the Gaussian prior (20)")
    parser.add_argument("--size", type=int, default=128, help="unknowns of the Gaussian prior; measured twice (128)")
    parser.add_argument("--nonzeros", type=int, default=16, help="of the Gaussian prior (16)")
    parser.add_argument("--keep", type=int, default=64, help="k of the Gaussian prior (64)")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.01], help="of the measurements (0 .01)")
    parser.add_argument("--iterations", type=int, default=100, help="at most (100)")
    parser.add_argument("--data-dir", type=Path, help="folder of train-images-idx3-ubyte[.gz]")
    parser.add_argument("--image", type=int, default=0, help="which one (0)")
    parser.add_argument("--side", type=int, default=28, help="of the built-in image (28)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/iobs_recovery"), help="folder of the PNGs")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        gaussian(args)
        image(args)
    except (OSError, ValueError) as error:
        print(f"iobs_recovery.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
