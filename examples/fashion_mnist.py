"""LeNet5 (20-50-500-10) on Fashion-MNIST: RMDA against ProxSGD under the same group lasso, then removal.

    python examples/fashion_mnist.py --data-dir DIR [--epochs 15] [--optimizers rmda proxsgd] [--out out/fashion_mnist]

DIR holds the four idx files of https://github.com/zalandoresearch/fashion-mnist, plain or gzipped. Five equal stages
with the learning rate divided by 10 between them, as in Huang & Lee, ICLR 2022 (arXiv 2112.02612), in a short budget.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparse_accel as sa
from sparse_accel.demo.progress import progress_bar
from sparse_accel.demo.summary import measure, plot, table
from sparse_accel.demo.training import Epoch, Images, fit, outputs, stage_ends

BATCH_SIZE = 128
STAGES = 5
MEAN, STD = 0.2860, 0.3530  # of the training images in [0, 1]
NAMES = {"rmda": "RMDA", "proxsgd": "ProxSGD", "sgd": "dense, SGD"}


class LeNet5(nn.Module):
    """Two convolutions without padding and two linear layers, 431,080 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, 1, 28, 28]`` to logits ``[N, 10]``."""
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def read_idx(path: Path) -> Tensor:
    """An idx file of unsigned bytes, gzipped or not, as a uint8 tensor of its shape."""
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path}: expected an idx file of unsigned bytes")
    dims = raw[3]
    shape = [int.from_bytes(raw[4 * i : 4 * i + 4], "big") for i in range(1, dims + 1)]
    values = torch.frombuffer(bytearray(raw[4 * dims + 4 :]), dtype=torch.uint8)
    if values.numel() != torch.Size(shape).numel():
        raise ValueError(f"{path}: expected {torch.Size(shape).numel()} bytes for {shape}, got {values.numel()}")
    return values.view(shape)


def load_images(directory: Path, device: str) -> Images:
    """The four files, normalized, on the device."""
    tensors = []
    for split in ("train", "t10k"):
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            stem = directory / f"{split}-{kind}"
            paths = [path for path in (stem, stem.with_name(stem.name + ".gz")) if path.exists()]
            if not paths:
                raise FileNotFoundError(f"{stem}[.gz] is missing")
            tensors.append(read_idx(paths[0]).to(device))
    train_x, train_y, test_x, test_y = tensors

    def normalize(x: Tensor) -> Tensor:
        return ((x.float() / 255 - MEAN) / STD).unsqueeze(1)

    return Images(normalize(train_x), train_y.long(), normalize(test_x), test_y.long())


def make_optimizer(name: str, model: nn.Module, strength: float) -> torch.optim.Optimizer:
    """RMDA and ProxSGD share the penalty; plain SGD is the dense control."""
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, dampening=0.9)
    params = sa.param_groups(model, sa.GroupLasso(strength, by="input"))
    return sa.RMDA(params, lr=1.0, momentum=0.1) if name == "rmda" else sa.ProxSGD(params, lr=0.1, rho=0.1)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the idx files")
    parser.add_argument("--epochs", type=int, default=15, help="shared by five stages (15)")
    parser.add_argument("--optimizers", nargs="+", choices=NAMES, default=["rmda", "proxsgd"])
    parser.add_argument("--strength", type=float, default=1e-4, help="of the penalty (1e-4)")
    parser.add_argument("--out", type=Path, default=Path("out/fashion_mnist"), help="figures, plot, checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-progress", action="store_true")
    return parser.parse_args()


def main() -> int:
    """Train, remove, compare; the exit status."""
    args = parse()
    torch.set_flush_denormal(True)  # weights of dying groups decay geometrically: denormals would slow the products
    try:
        images = load_images(args.data_dir, args.device)
    except (OSError, ValueError) as error:
        print(f"fashion_mnist.py: {error}", file=sys.stderr)
        return 2
    milestones = stage_ends(args.epochs, STAGES)
    models: dict[str, nn.Module] = {}
    compacts: dict[str, sa.CompactResult] = {}
    histories: dict[str, list[Epoch]] = {}
    with progress_bar(args.epochs * len(args.optimizers), not args.no_progress) as advance:
        for name in args.optimizers:
            label = NAMES[name]
            torch.manual_seed(args.seed)
            model = LeNet5().to(args.device)
            models[label] = model
            optimizer = make_optimizer(name, model, args.strength)
            histories[label] = fit(
                model,
                optimizer,
                images,
                epochs=args.epochs,
                batch_size=BATCH_SIZE,
                generator=torch.Generator().manual_seed(args.seed),
                scheduler=sa.lr_scheduler.MultiStageLR(optimizer, milestones, gamma=0.1, momentum="ramp"),
                on_epoch=partial(advance, label),
            )
            if not isinstance(optimizer, (sa.RMDA, sa.ProxSGD)):
                continue
            optimizer.finalize_()
            compacts[label] = small = sa.compact(model, images.test_x[:500], optimizer=optimizer)
            models[f"{label}, compact"] = small.model
            sa.save(small, args.out / name)
            restored = sa.load(args.out / name, LeNet5().to(args.device))
            assert torch.equal(outputs(restored, images.test_x), outputs(small.model, images.test_x))
    measured = measure(models, images)
    differences = {f"{label}, compact": small.max_abs_diff for label, small in compacts.items()}
    print(table(measured, differences))
    figures = {
        "settings": {**vars(args), "data_dir": args.data_dir.name, "out": str(args.out), "milestones": milestones},
        "models": {label: asdict(model) for label, model in measured.items()},
        "max_abs_diff": differences,
        "compact": {label: small.report.to_plain() for label, small in compacts.items()},
        "history": {label: [epoch._asdict() for epoch in history] for label, history in histories.items()},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "fashion_mnist.json").write_text(json.dumps(figures, indent=1) + "\n")
    if compacts:
        plot(
            args.out / "fashion_mnist.png",
            histories,
            next(iter(compacts.values())).report,
            milestones=milestones,
            title="LeNet5 on Fashion-MNIST",
        )
    print(f"written to {args.out}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
