"""Training to structured sparsity as in Huang & Lee: Dense, ProxSGD, ProxSSI, RMDA, RAMDA, beside the paper's numbers.

    python examples/training/structured_sparsity.py --data-dir DIR --dataset fashion-mnist [--epochs 60] [--seeds 3]
    python examples/training/structured_sparsity.py --data-dir DIR --model vgg19 --data cifar10 [--epochs 300]

DIR holds the four idx files of MNIST or Fashion-MNIST (plain or gzipped), or CIFAR in its binary version (for CIFAR-10
data_batch_1.bin to data_batch_5.bin and test_batch.bin, as many batches as there are; for CIFAR-100 train.bin and
test.bin). LeNet5 (20-50-500-10), VGG19 or ResNet50 under group lasso by input channel, in five stages with the learning
rate divided by 10 between them (ICLR 2022, arXiv 2112.02612; ProxSSI is ``sa.ProxAdamW``). The numbers of the paper are
those of 500 epochs. ``--target .67`` asks for a share of zero groups in place of a strength. After every epoch the run
is saved; the same command goes on where it was, and keeps what is done. The table has accuracy and zero groups at the
proximal iterate, mean and spread of the seeds; a PNG shows both over the epochs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparse_accel as sa
from sparse_accel.demo.training import Images, accuracy, at_proximal_iterate, stage_ends
from sparse_accel.progress import meter
from sparse_accel.report import format_table

BATCH, STAGES = 128, 5
DENSE = "Dense"
COLORS = {DENSE: "black", "ProxSGD": "#1971c2", "ProxSSI": "#868e96", "RMDA": "#e8590c", "RAMDA": "#2b8a3e"}
STRENGTHS = {"ProxSGD": 1e-3, "ProxSSI": 1e-3, "RMDA": 4e-5, "RAMDA": 4e-5}  # for tens of epochs
NORMS = {"mnist": (0.1307, 0.3081), "fashion-mnist": (0.2860, 0.3530)}
COLOR_NORM = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
PAPER = {  # accuracy and zero groups, %
    "mnist": {DENSE: (99.4, None), "ProxSGD": (99.1, 76.6), "ProxSSI": (99.1, 77.8), "RMDA": (99.1, 79.8)},
    "fashion-mnist": {DENSE: (92.0, None), "ProxSGD": (91.0, 50.5), "ProxSSI": (90.9, 60.5), "RMDA": (91.4, 66.2)},
}


def vgg19(classes: int) -> nn.Module:
    """Sixteen convolutions with BatchNorm and one linear layer, for images of 32 x 32."""
    layers: list[nn.Module] = []
    inputs = 3
    for width, count in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(count):
            layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, classes))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions around a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        sizes = ((inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, k, s, k // 2, bias=False) for a, b, k, s in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b, _, _ in sizes)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != 4 * width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps to maps."""
        y = x
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y))
            y = F.relu(y) if index < 2 else y
        return F.relu(y + self.shortcut(x))


def resnet50(classes: int) -> nn.Module:
    """ResNet-50 for images of 32 x 32: a 3 x 3 stem without pooling."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    inputs = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(count):
            layers.append(Bottleneck(inputs, width, stride if index == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def sibling(name: str) -> Any:
    """An example of the folder above as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).resolve().parents[1] / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{name}.py is missing in the folder above {__file__}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_cifar(directory: Path, dataset: str, device: str) -> Images:
    """The binary files, normalized."""
    before = 2 if dataset == "cifar100" else 1  # bytes of labels, the last of which counts
    train = [directory / "train.bin"] if before == 2 else sorted(directory.glob("data_batch_*.bin"))
    test = directory / ("test.bin" if before == 2 else "test_batch.bin")
    parts = []
    for files in (train, [test]):
        if not files or not all(file.exists() for file in files):
            raise FileNotFoundError(f"{directory}: {dataset} in its binary version is missing")
        raw = torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8)
        if raw.numel() == 0 or raw.numel() % (before + 3072):
            raise ValueError(f"{files[0]}: expected records of {before + 3072} bytes, got {raw.numel()} bytes")
        rows = raw.view(-1, before + 3072).to(device)
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in COLOR_NORM)
        parts += [(rows[:, before:].reshape(-1, 3, 32, 32) / 255 - mean) / std, rows[:, before - 1].long()]
    return Images(*parts)


def load(directory: Path, dataset: str, device: str) -> Images:
    """Training and test images of a data set."""
    if dataset.startswith("cifar"):
        return read_cifar(directory, dataset, device)
    own = sibling("fashion_mnist")
    own.MEAN, own.STD = NORMS[dataset]
    return own.load_images(directory, device)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Color images shifted by up to four pixels and mirrored, each its own way; others as they are."""
    if images.shape[1] == 1:
        return images
    count, _, height, width = images.shape
    shifts = torch.randint(9, (2, count), generator=generator).to(images.device)
    mirrored = torch.rand(count, generator=generator).to(images.device) < 0.5
    rows = shifts[0][:, None] + torch.arange(height, device=images.device)
    columns = shifts[1][:, None] + torch.arange(width, device=images.device)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    wide = F.pad(images, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    index = torch.arange(count, device=images.device)[:, None, None]
    return wide[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def make_optimizer(name: str, model: nn.Module, args: argparse.Namespace, stage: int) -> Any:
    """The optimizer of a row; a target is reached in the middle of the first stage, of so many steps."""
    if name == DENSE:
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, dampening=0.9)
    if args.target is None:
        penalty = sa.GroupLasso(STRENGTHS[name] if args.strength is None else args.strength, by="input")
    else:
        penalty = sa.GroupLasso(target=args.target, ramp=stage // 2, by="input")
    groups = sa.param_groups(model, penalty)
    if name == "ProxSGD":
        return sa.ProxSGD(groups, lr=0.1, rho=0.1)
    if name == "ProxSSI":
        return sa.ProxAdamW(groups, lr=1e-3, weight_decay=0.0)
    return sa.RMDA(groups, lr=1.0, momentum=0.1) if name == "RMDA" else sa.RAMDA(groups, lr=0.01, momentum=0.01)


def train(name: str, seed: int, images: Images, args: argparse.Namespace, done: Any) -> list[list[float]]:
    """One run: after each epoch accuracy, zero groups, the share of weights in them, the loss. From its checkpoint."""
    stem = args.out / f"{name.lower()}-{seed}"
    finished, saved = stem.with_suffix(".json"), stem.with_suffix(".pt")
    if finished.exists():
        done.advance(f"{name}, seed {seed}: done before", by=args.epochs)
        return json.loads(finished.read_text())
    torch.manual_seed(seed)
    # On a CPU a step takes two thirds of the time where channels lie side by side: max pooling is slow elsewhere.
    model = args.make().to(args.device, memory_format=torch.channels_last)
    ends = stage_ends(args.epochs, STAGES)
    opt = make_optimizer(name, model, args, ends[0] * max(1, len(images.train_x) // BATCH))
    schedule = sa.lr_scheduler.MultiStageLR(opt, ends, gamma=0.1, momentum="ramp")
    generator, history = torch.Generator().manual_seed(seed), []
    if saved.exists():
        state = torch.load(saved, weights_only=True, map_location=args.device)
        model.load_state_dict(state["model"])
        opt.load_state_dict(state["opt"])
        schedule.load_state_dict(state["schedule"])
        generator.set_state(state["generator"].cpu())
        history = state["history"]
        done.advance(f"{name}, seed {seed}: resumed", by=len(history))
    while len(history) < args.epochs:
        model.train()
        total = torch.zeros((), device=args.device)
        order = torch.randperm(len(images.train_x), generator=generator)
        batches = [batch.to(args.device) for batch in order.split(BATCH) if len(batch) == BATCH or len(order) < BATCH]
        for batch in batches:
            x = augmented(images.train_x[batch], generator).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(x), images.train_y[batch])
            opt.zero_grad()
            loss.backward()
            opt.step()
            total += loss.detach()
        schedule.step()
        with at_proximal_iterate(opt, model, images):
            counted = sa.sparsity(model, by="input")
            shares = [counted.group_sparsity, counted.weighted_group_sparsity]
            right = accuracy(model, images.test_x, images.test_y)
        history.append([right, *shares, float(total) / len(batches)])
        state = {"model": model.state_dict(), "opt": opt.state_dict(), "schedule": schedule.state_dict()}
        state |= {"generator": generator.get_state(), "history": history}
        torch.save(state, saved.with_suffix(".part"))
        saved.with_suffix(".part").replace(saved)
        done.advance(f"{name}, seed {seed}: {100 * right:.2f} %, zero {100 * shares[0]:.1f} %", error=1 - right)
    finished.write_text(json.dumps(history) + "\n")
    saved.unlink(missing_ok=True)
    return history


def plot(path: Path, runs: dict[str, list[list[list[float]]]], title: str, ends: list[int]) -> None:
    """Zero groups and accuracy over the epochs: the mean of the seeds and their range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, both = pyplot.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for name, own in runs.items():
        table = 100 * torch.tensor(own)[:, :, :2]  # [seeds, epochs, 2]
        epochs = range(1, table.shape[1] + 1)
        for axes, values in zip(both, (table[..., 1], table[..., 0]), strict=True):
            axes.plot(epochs, values.mean(0), color=COLORS[name], label=name)
            axes.fill_between(epochs, values.amin(0), values.amax(0), color=COLORS[name], alpha=0.2, linewidth=0)
    for axes, label in zip(both, ("zero groups, %", "test accuracy, %"), strict=True):
        for end in ends:
            axes.axvline(end + 0.5, color="#ced4da", linewidth=0.8, zorder=0)
        axes.set(xlabel="epoch", ylabel=label)
    both[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def spread(values: list[float]) -> str:
    """Mean and standard deviation, in percent."""
    own = [100 * value for value in values]
    return f"{statistics.mean(own):.2f}" + (f" ± {statistics.stdev(own):.2f}" if len(own) > 1 else "")


def main() -> int:
    """Train every row, tabulate, plot; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--dataset", "--data", choices=[*NORMS, "cifar10", "cifar100"], default="fashion-mnist")
    parser.add_argument("--model", choices=["lenet5", "vgg19", "resnet50"], help="lenet5 on MNIST, else vgg19")
    parser.add_argument("--epochs", type=int, default=60, help="shared by five stages (60)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--optimizers", nargs="+", choices=[*COLORS], default=[*COLORS])
    parser.add_argument("--strength", type=float, help=f"of the penalty, for all rows ({STRENGTHS})")
    parser.add_argument("--target", type=float, help="share of zero groups to be met in place of strengths")
    parser.add_argument("--out", type=Path, help="out/structured_sparsity/DATASET-MODEL")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-progress", action="store_true")
    args = parser.parse_args()
    color = args.dataset.startswith("cifar")
    args.model = args.model or ("vgg19" if color else "lenet5")
    args.out = args.out or Path("out/structured_sparsity") / f"{args.dataset}-{args.model}"
    settings = {key: getattr(args, key) for key in ("dataset", "model", "epochs", "strength", "target")}
    torch.set_flush_denormal(True)  # weights of dying groups decay geometrically
    try:
        if color != (args.model != "lenet5") or args.epochs < 1 or args.seeds < 1:
            raise ValueError("expected lenet5 for MNIST, vgg19 or resnet50 for CIFAR, and --epochs and --seeds >= 1")
        if args.target is not None and (args.strength is not None or not 0 <= args.target < 1):
            raise ValueError("--target: expected a share in [0, 1), and no --strength besides")
        images = load(args.data_dir, args.dataset, args.device)
        args.out.mkdir(parents=True, exist_ok=True)
        kept = args.out / "settings.json"
        if kept.exists() and json.loads(kept.read_text()) != settings:
            raise ValueError(f"{args.out} holds runs of other settings, {kept.read_text().strip()}: give another --out")
        kept.write_text(json.dumps(settings) + "\n")
    except (OSError, ValueError) as error:
        print(f"structured_sparsity.py: {error}", file=sys.stderr)
        return 2
    classes = 100 if args.dataset == "cifar100" else 10
    makers = {"lenet5": lambda: sibling("fashion_mnist").LeNet5()}
    args.make = makers.get(args.model, lambda: {"vgg19": vgg19, "resnet50": resnet50}[args.model](classes))
    with meter(not args.no_progress, "training", args.epochs * args.seeds * len(args.optimizers)) as done:
        runs = {name: [train(name, seed, images, args, done) for seed in range(args.seeds)] for name in args.optimizers}
    rows = []
    for name, own in runs.items():
        right, zero, weighted = ([run[-1][index] for run in own] for index in range(3))
        paper = PAPER.get(args.dataset, {}).get(name, (None, None))
        told = ["" if value is None else f"{value:.1f}" for value in paper]
        rows.append([name, spread(right), spread(zero), spread(weighted), *told])
    head = ["%", "accuracy", "zero groups", "zero groups, by size", "paper: accuracy", "paper: zero groups"]
    table = format_table(head, rows)
    (args.out / "table.txt").write_text(table + "\n")
    picture = args.out / "structured_sparsity.png"
    title = f"{args.model} on {args.dataset}, {args.epochs} epochs, {args.seeds} seeds"
    plot(picture, runs, title, stage_ends(args.epochs, STAGES))
    print(f"{title}\n{table}\nwritten: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
