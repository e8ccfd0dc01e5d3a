"""A wide two-layer net on MNIST, pruned to a few hundred hidden units in one shot: accuracy and seconds.

    python examples/ispasp_two_layer.py --data-dir DIR [--hidden 10000] [--keep 250 500 1000]

DIR holds the four idx files of MNIST (or of anything in its format), plain or gzipped. As in Wolfe and Kyrillidis, L4DC
2022 (arXiv 2112.04905): 10,000 hidden units, 512 samples to prune with, 250 to 1,000 units kept. The methods:

- i-SpaSP, on the sums of the activations;
- top-k: the units of the largest summed activation;
- greedy forward selection (Ye et al., ICML 2020): start from nothing, in each step add the unit, with repetition, that
  brings the average of those chosen nearest to the dense outputs on the samples;
- Gram-OBS: backward elimination on second moments, among the --candidates units of the largest energy.

"as it is": the second layer's own columns (greedy selection: its averages). "refit": those columns by least squares
on the same samples, with a ridge towards the old ones.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_accel.progress import over
from sparse_accel.prune import gram_obs, ispasp_select, refit
from sparse_accel.report import format_table

BATCH = 128
FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def read_idx(path: Path) -> Tensor:
    """An idx file of unsigned bytes, gzipped or not, as a uint8 tensor of its shape."""
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path}: expected an idx file of unsigned bytes")
    shape = [int.from_bytes(raw[4 * i : 4 * i + 4], "big") for i in range(1, raw[3] + 1)]
    return torch.frombuffer(bytearray(raw[4 * raw[3] + 4 :]), dtype=torch.uint8).view(shape)


def load(directory: Path) -> list[Tensor]:
    """Training images ``[N, pixels]`` in [0, 1] and labels, then those of the test."""
    tensors = []
    for name in FILES:
        paths = [path for path in (directory / f"{name}-ubyte", directory / f"{name}-ubyte.gz") if path.exists()]
        if not paths:
            raise FileNotFoundError(f"{directory / name}-ubyte[.gz] is missing")
        values = read_idx(paths[0])
        tensors.append(values.flatten(1).float() / 255 if values.dim() > 1 else values.long())
    return tensors


def train(model: nn.Sequential, images: Tensor, labels: Tensor, epochs: int, progress: bool) -> None:
    """Adam, cross entropy."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in over(range(epochs), "training", progress):
        for batch in torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()


def greedy_forward(hidden: Tensor, weight: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Units ``[keep]`` and their columns ``[d, keep]``: each step adds C w_i h_i to an average that nears ``W H``.

    The steps end with ``keep`` different units, or after three times as many.
    """
    units, energy = len(hidden), weight.square().sum(0) * hidden.square().sum(1)  # of w_i h_i
    aim = (weight.T @ (weight @ hidden) * hidden).sum(1)  # <w_i h_i, W H>
    counts, drawn = torch.zeros(2, units, dtype=hidden.dtype)  # drawn: <w_i h_i, the sum of w_j h_j over the steps>
    for step in range(1, 3 * keep + 1):
        best = int((units**2 * energy / step**2 - 2 * units / step * (aim - units / step * drawn)).argmin())
        counts[best] += 1
        drawn += (weight.T @ weight[:, best]) * (hidden @ hidden[best])
        if int((counts > 0).sum()) == keep:
            break
    kept = counts.nonzero().flatten()
    return kept, weight[:, kept] * counts[kept] * units / counts.sum()


def methods(hidden: Tensor, weight: Tensor, candidates: int) -> dict[str, Callable[[int], tuple[Tensor, Tensor]]]:
    """Name to a function of the number kept that gives the units and their columns without a refit."""
    sums = hidden.sum(1)

    def plain(kept: Tensor) -> tuple[Tensor, Tensor]:
        return kept, weight[:, kept]

    def elimination(keep: int) -> tuple[Tensor, Tensor]:
        energy = weight.square().sum(0) * hidden.square().sum(1)
        best = energy.topk(min(len(energy), max(candidates, keep))).indices.sort().values
        part, own = hidden[best], weight[:, best]
        gram = part @ part.T
        return plain(best[gram_obs(gram, weight @ hidden @ part.T, own, keep=keep).kept])

    return {
        "i-SpaSP": lambda keep: plain(ispasp_select(sums, weight, keep).kept),
        "top-k": lambda keep: plain(sums.topk(keep).indices.sort().values),
        "greedy forward": lambda keep: greedy_forward(hidden, weight, keep),
        "Gram-OBS": elimination,
    }


def fitted(hidden: Tensor, weight: Tensor, kept: Tensor) -> Tensor:
    """The columns by least squares on the samples."""
    part = hidden[kept]
    return refit(part @ part.T, weight @ hidden @ part.T, weight[:, kept], torch.arange(len(kept)))


def accuracy(model: nn.Sequential, kept: Tensor, columns: Tensor, images: Tensor, labels: Tensor) -> float:
    """Percent right of the net of these units alone."""
    first, last = model[0], model[2]
    with torch.no_grad():
        hidden = F.relu(F.linear(images, first.weight[kept], first.bias[kept]))
        right = F.linear(hidden, columns.float(), last.bias).argmax(1) == labels
    return 100 * float(right.float().mean())


def main() -> int:
    """Train, prune by every method, print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the idx files")
    parser.add_argument("--hidden", type=int, default=10_000, help="hidden units (10000)")
    parser.add_argument("--keep", type=int, nargs="+", default=[250, 500, 1000], help="units kept (250 500 1000)")
    parser.add_argument("--samples", type=int, default=512, help="training images to prune with (512)")
    parser.add_argument("--candidates", type=int, default=2000, help="units that Gram-OBS starts from (2000)")
    parser.add_argument("--epochs", type=int, default=2, help="of training (2)")
    parser.add_argument("--out", type=Path, default=Path("out/ispasp_two_layer"), help="folder of the JSON file")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    args = parser.parse_args()
    try:
        images, labels, test_images, test_labels = load(args.data_dir)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if max(args.keep) > args.hidden:
        parser.error(f"--keep: expected at most --hidden, {args.hidden}, got {max(args.keep)}")
    torch.manual_seed(0)
    classes = int(labels.max()) + 1
    model = nn.Sequential(nn.Linear(images.shape[1], args.hidden), nn.ReLU(), nn.Linear(args.hidden, classes))
    train(model, images, labels, args.epochs, not args.no_progress)
    with torch.no_grad():
        hidden = model[1](model[0](images[: args.samples])).T.double()
        weight = model[2].weight.double()
    target, every = weight @ hidden, torch.arange(args.hidden)
    dense = accuracy(model, every, weight, test_images, test_labels)
    print(f"{args.hidden} hidden units: {dense:.2f} % of the test images right")
    rows, figures = [], []
    for keep in args.keep:
        for name, choose in methods(hidden, weight, args.candidates).items():
            begin = time.perf_counter()
            kept, columns = choose(keep)
            seconds = time.perf_counter() - begin
            figures.append({"keep": keep, "method": name, "seconds": seconds})
            numbers = []
            for kind, matrix in (("as_it_is", columns), ("refit", fitted(hidden, weight, kept))):
                right = accuracy(model, kept, matrix, test_images, test_labels)
                left = float((target - matrix @ hidden[kept]).norm() / target.norm())
                figures[-1] |= {f"{kind}_accuracy": right, f"{kind}_residual": left}
                numbers += [f"{right:.2f}", f"{left:.3f}"]
            rows.append([str(keep), name, *numbers, f"{seconds:.4f}"])
    print(format_table(["kept", "method", "as it is %", "|Vr|/|U|", "refit %", "|Vr|/|U|", "seconds"], rows))
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "ispasp_two_layer.json"
    file.write_text(json.dumps({"dense": dense, "hidden": args.hidden, "rows": figures}, indent=1) + "\n")
    print(f"written: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
