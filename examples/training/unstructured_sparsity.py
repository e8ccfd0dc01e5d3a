"""Single weights at 95 and 98 % zeros: RMDA with L1, its strength found while training, against RigL and dense SGD.

    python examples/training/unstructured_sparsity.py [--dataset digits|mnist|fashion-mnist] [--data-dir DIR]
        [--epochs 30] [--sparsity .95 .98] [--seeds 1] [--out out/unstructured_sparsity]

The default data are scikit-learn's bundled digits; DIR holds the four idx files of MNIST or Fashion-MNIST, plain or
gzipped, or folders of these names that do. Every training writes its state after each epoch and goes on from there when
the command is given again. RMDA has five stages (Huang & Lee, ICLR 2022), RigL masks by Erdos-Renyi-Kernel (Evci et
al., ICML 2020) under SGD with momentum and a cosine schedule, as the dense control. A table, figures and a PNG.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sparse_accel as sa
from sparse_accel.demo.digits import DigitsNet, load_digits
from sparse_accel.demo.progress import progress_bar
from sparse_accel.demo.training import Epoch, Images, fit, stage_ends
from sparse_accel.report import format_table
from sparse_accel.report.contents import Lines
from sparse_accel.report.figure import draw

BATCH_SIZE = 64
STAGES = 5
RMDA_LR, SGD_LR = 0.3, 0.1


@dataclasses.dataclass(frozen=True)
class Row:
    """One training: a method, the share of zeros that it is given, and a seed."""

    method: str
    sparsity: float
    seed: int

    @property
    def label(self) -> str:
        """As the table has it."""
        return self.method if self.method == "dense" else f"{self.method} {100 * self.sparsity:g} %"

    @property
    def file(self) -> str:
        """Of its state."""
        return f"{self.method}_{self.sparsity:g}_{self.seed}.pt".lower()


def lenet5() -> nn.Module:
    """Two convolutions without padding and two linear layers (20-50-500-10), 431,080 parameters."""
    first = (nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.ReLU())
    second = (nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*first, *second, nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10))


def read_idx(path: Path) -> Tensor:
    """An idx file of unsigned bytes, gzipped or not, as a uint8 tensor of its shape."""
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path}: expected an idx file of unsigned bytes")
    shape = [int.from_bytes(raw[4 * i : 4 * i + 4], "big") for i in range(1, raw[3] + 1)]
    values = torch.frombuffer(bytearray(raw[4 * raw[3] + 4 :]), dtype=torch.uint8)
    if values.numel() != torch.Size(shape).numel():
        raise ValueError(f"{path}: expected {torch.Size(shape).numel()} bytes for {shape}, got {values.numel()}")
    return values.view(shape)


def load_images(dataset: str, directory: Path | None) -> Images:
    """Training and test images, normalized."""
    if dataset == "digits":
        return load_digits()
    if directory is None:
        raise FileNotFoundError(f"--data-dir: expected the folder of {dataset}'s idx files")
    folder = directory / dataset if (directory / dataset).is_dir() else directory
    found = []
    for split in ("train", "t10k"):
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            paths = [path for path in (folder / f"{split}-{kind}", folder / f"{split}-{kind}.gz") if path.exists()]
            if not paths:
                raise FileNotFoundError(f"{folder / f'{split}-{kind}'}[.gz] is missing")
            found.append(read_idx(paths[0]))
    train_x, train_y, test_x, test_y = found
    mean, std = (train_x.float() / 255).mean(), (train_x.float() / 255).std()
    train_x, test_x = (((x.float() / 255 - mean) / std).unsqueeze(1) for x in (train_x, test_x))
    return Images(train_x, train_y.long(), test_x, test_y.long())


class Training:
    """A row's model, optimizer and schedule, with what was measured so far; on disk after every epoch."""

    def __init__(self, row: Row, images: Images, dataset: str, epochs: int, folder: Path) -> None:
        torch.manual_seed(row.seed)
        self.row, self.images, self.epochs, self.path = row, images, epochs, folder / row.file
        self.model: nn.Module = DigitsNet() if dataset == "digits" else lenet5()
        self.history: list[Epoch] = []
        steps = epochs * (len(images.train_x) // BATCH_SIZE)
        if row.method == "RMDA":
            penalty = sa.GroupLasso(target=row.sparsity, by="element", ramp=steps // 3)
            self.optimizer: Any = sa.RMDA(sa.param_groups(self.model, penalty), lr=RMDA_LR, momentum=0.1)
            ends = stage_ends(epochs, STAGES)
            self.scheduler: Any = sa.lr_scheduler.MultiStageLR(self.optimizer, ends, gamma=0.1, momentum="ramp")
        else:
            self.optimizer = torch.optim.SGD(self.model.parameters(), SGD_LR, momentum=0.9, weight_decay=5e-4)
            self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, epochs)
        if row.method == "RigL":
            sa.RigL(self.model, self.optimizer, row.sparsity, total_steps=steps, every=20, seed=row.seed)
        self.resume()

    def resume(self) -> None:
        """Go on where the file was written, if there is one of the same training."""
        if not self.path.exists():
            return
        saved = torch.load(self.path, weights_only=True)
        if saved["epochs"] != self.epochs:
            raise ValueError(f"{self.path}: a training of {saved['epochs']} epochs: expected {self.epochs}, or --out")
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        self.history = [Epoch(**epoch) for epoch in saved["history"]]

    def run_epoch(self) -> Epoch:
        """Train for one epoch, evaluate at the proximal iterate, and write the state."""
        shuffled = torch.Generator().manual_seed(1000 * self.row.seed + len(self.history))
        self.history += fit(
            self.model,
            self.optimizer,
            self.images,
            epochs=1,
            batch_size=BATCH_SIZE,
            generator=shuffled,
            scheduler=self.scheduler,
            by="element",
        )
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "history": [epoch._asdict() for epoch in self.history],
            "epochs": self.epochs,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, self.path.with_suffix(".part"))
        os.replace(self.path.with_suffix(".part"), self.path)
        return self.history[-1]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=("digits", "mnist", "fashion-mnist"), default="digits")
    parser.add_argument("--data-dir", type=Path, help="folder of the idx files, or of folders named like the data")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.95, 0.98])
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each row (1)")
    parser.add_argument("--out", type=Path, default=Path("out/unstructured_sparsity"), help="states, figures, PNG")
    parser.add_argument("--no-progress", action="store_true")
    return parser.parse_args()


def spread(values: list[float]) -> str:
    """Mean in percent, with the standard deviation of several."""
    mean = f"{100 * statistics.mean(values):.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f} %" if len(values) > 1 else f"{mean} %"


def main() -> int:
    """Train, compare; the exit status."""
    args = parse()
    torch.set_flush_denormal(True)
    kinds = [("dense", 0.0), *((method, share) for share in args.sparsity for method in ("RMDA", "RigL"))]
    rows = [Row(method, share, seed) for method, share in kinds for seed in range(args.seeds)]
    folder = args.out / args.dataset
    try:
        images = load_images(args.dataset, args.data_dir)
        with progress_bar(len(rows) * args.epochs, not args.no_progress) as advance:
            histories: dict[str, list[list[Epoch]]] = {}
            for row in rows:
                training = Training(row, images, args.dataset, args.epochs, folder)
                for epoch in training.history:
                    advance(row.label, epoch)
                while len(training.history) < args.epochs:
                    advance(row.label, training.run_epoch())
                histories.setdefault(row.label, []).append(training.history)
    except (OSError, ValueError) as error:
        print(f"unstructured_sparsity.py: {error}", file=sys.stderr)
        return 2
    last = {label: [history[-1] for history in several] for label, several in histories.items()}
    cells = [
        [label, spread([epoch.accuracy for epoch in ends]), spread([epoch.group_sparsity for epoch in ends])]
        for label, ends in last.items()
    ]
    print(format_table(["", "accuracy", "zero weights"], cells))
    figures = {
        "settings": {"dataset": args.dataset, "epochs": args.epochs, "seeds": args.seeds, "batch": BATCH_SIZE},
        "history": {label: [[e._asdict() for e in one] for one in several] for label, several in histories.items()},
    }
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    first = {label: several[0] for label, several in histories.items()}
    draw(
        folder / "unstructured_sparsity.png",
        [
            curves("Test accuracy", {label: [epoch.accuracy for epoch in epochs] for label, epochs in first.items()}),
            curves(
                "Zero weights", {label: [epoch.group_sparsity for epoch in epochs] for label, epochs in first.items()}
            ),
        ],
        title=f"{args.dataset}: single weights",
    )
    print(f"written to {folder}/")
    return 0


def curves(title: str, values: dict[str, list[float]]) -> Lines:
    """A chart over the epochs."""
    series = {label: [(epoch, 100 * y) for epoch, y in enumerate(ys, start=1)] for label, ys in values.items()}
    return Lines(title, "epoch", series, "%")


if __name__ == "__main__":
    sys.exit(main())
