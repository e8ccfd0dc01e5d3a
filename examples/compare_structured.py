"""Structured pruning beside the field: accuracy, MACs and seconds of one network, as a table and a plot.

    python examples/compare_structured.py [--data DIR] [--keep 0.75 0.5 0.3] [--rows WORD ...] [--out-dir out]

Rows, on the same calibration images, without fine-tuning, each with the same share of the channels inside the blocks:

- Torch-Pruning's magnitude importance, and its first-order Taylor importance, which alone sees the images' labels (pip
  install torch-pruning; both are left out with a line where it is not there);
- the paper's i-SpaSP, without refit and with the BatchNorms as they were;
- magnitude with a compensation as in GRAIL: what is removed is predicted from the channels that are kept, by ridge
  regression on the Gram matrix of the channels (one number for a channel of a map, not one per tap), and merged into
  the layer that reads them;
- ISpaSP as it is, and ISpaSP with refine.

With --data: the pretrained ResNet-20 on CIFAR-10 of resnet20_cifar.py, which says what DIR holds, on the first
--images images of data_batch_1. Without it, anywhere: a small residual network that is trained on scikit-learn's digits
first.

Seconds are wall time of pruning alone, with the processor's beside them; they count on an idle machine.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sparse_accel.prune import ISpaSP, refine, remove_units
from sparse_accel.report import format_table

Pruner = Callable[["Task", float], nn.Module]


class Task(NamedTuple):
    """A trained network with its data.

    Attributes:
        net: in eval mode.
        calibration: images to prune on.
        answers: their labels, for who asks for them.
        more: images to refine on.
        images, labels: to test on.
        block: class of the blocks, whose first convolution's outputs are pruned.
        augment: of the refinement; None for none.
        steps: of the refinement; None for its default.
    """

    net: nn.Module
    calibration: Tensor
    answers: Tensor
    more: Tensor
    images: Tensor
    labels: Tensor
    block: type[nn.Module]
    augment: Callable[[Tensor], Tensor] | None
    steps: int | None


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def resnet20(directory: Path, images: int, refine_images: int, augment: str, steps: int | None) -> Task:
    """The pretrained ResNet-20 on CIFAR-10."""
    example = load_example("resnet20_cifar")
    places = [directory / "resnet20-12fca82f.th", directory / "weights" / "resnet20-12fca82f.th"]
    weights = next((path for path in places if path.exists()), None)
    if weights is None:
        raise SystemExit(f"{places[0]} is missing: see resnet20_cifar.py")
    last = torch.channels_last  # faster on CPUs
    train, answers = example.read_batch(directory, "data_batch_1")
    train = train.to(memory_format=last)
    test, labels = example.read_batch(directory, "test_batch")
    change = {"none": None, "flip": flipped, "crop": cropped}[augment]
    net = example.load_net(weights)
    return Task(
        net, train[:images], answers[:images], train[:refine_images], test, labels, example.BasicBlock, change, steps
    )


def load_example(name: str) -> ModuleType:
    """Another script of this folder as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # copies of its classes are looked up there
    spec.loader.exec_module(module)
    return module


def digits(epochs: int, seed: int, steps: int | None) -> Task:
    """A residual network trained on scikit-learn's digits, 8 x 8."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.images))
    images = torch.tensor(data.images[order][:, None] / 8 - 1, dtype=torch.float32)
    labels = torch.tensor(data.target[order])
    count = 1200
    torch.manual_seed(seed)
    stem = nn.Sequential(nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
    blocks = nn.Sequential(Block(24), Block(24), Block(24))
    net = nn.Sequential(stem, blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(epochs):
        for part in torch.randperm(count).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(images[part]), labels[part]).backward()
            optimizer.step()
    return Task(
        net.eval(), images[:512], labels[:512], images[:count], images[count:], labels[count:], Block, None, steps
    )


def flipped(x: Tensor) -> Tensor:
    """Half of the images mirrored."""
    return torch.where((torch.rand(len(x), device=x.device) < 0.5)[:, None, None, None], x.flip(3), x)


def cropped(x: Tensor) -> Tensor:
    """Mirrored, and moved by up to 4 pixels."""
    wide = F.pad(flipped(x), (4, 4, 4, 4))
    height, width = x.shape[2:]
    places = torch.randint(0, 9, (len(x), 2)).tolist()
    parts = [wide[i, :, row : row + height, column : column + width] for i, (row, column) in enumerate(places)]
    return torch.stack(parts).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percent of the images whose label the model says."""
    hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True))
    return 100 * hits / len(labels)


@torch.no_grad()
def macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of one run (torch.utils.flop_counter, FLOPs / 2)."""
    with FlopCounterMode(display=False) as counter:
        model(example)
    return counter.get_total_flops() // 2


def torch_pruning_magnitude(task: Task, keep: float) -> nn.Module:
    """Torch-Pruning's group magnitude importance on the channels inside the blocks."""
    import torch_pruning as tp

    return torch_pruned(copy.deepcopy(task.net), tp.importance.GroupMagnitudeImportance(p=2), task, keep)


def torch_pruning_taylor(task: Task, keep: float) -> nn.Module:
    """Its first-order Taylor importance: weights times gradients of the cross-entropy on the labelled images."""
    import torch_pruning as tp

    net = copy.deepcopy(task.net)
    for x, y in zip(task.calibration.split(128), task.answers.split(128), strict=True):
        F.cross_entropy(net(x), y, reduction="sum").backward()
    return torch_pruned(net, tp.importance.GroupTaylorImportance(), task, keep)


def torch_pruned(net: nn.Module, importance: Any, task: Task, keep: float) -> nn.Module:
    """A network that Torch-Pruning has cut, in place."""
    import torch_pruning as tp

    inner = [module.conv1 for module in net.modules() if isinstance(module, task.block)]
    ratios = {conv: 1 - int(keep * conv.out_channels + 1e-9) / conv.out_channels for conv in inner}
    pruner = tp.pruner.BasePruner(
        net,
        task.calibration[:1].contiguous(),
        importance=importance,
        pruning_ratio=0.0,
        pruning_ratio_dict=ratios,
    )
    pruner.step()
    return net


def grail_like(task: Task, keep: float) -> nn.Module:
    """The largest filters, and what goes predicted from them by ridge regression on the channels' Gram matrix."""
    net, kept = copy.deepcopy(task.net), {}
    for name, block in net.named_modules():
        if not isinstance(block, task.block):
            continue
        size = block.conv1.out_channels
        left = block.conv1.weight.detach().flatten(1).norm(dim=1).topk(int(keep * size + 1e-9)).indices.sort().values
        seen: list[Tensor] = []

        def grab(_module: nn.Module, inputs: tuple[Tensor], seen: list[Tensor] = seen, size: int = size) -> None:
            columns = inputs[0].transpose(0, 1).reshape(size, -1).double()
            seen.append(columns @ columns.T)

        handle = block.conv2.register_forward_pre_hook(grab)
        with torch.no_grad():
            for part in task.calibration.split(128):
                net(part)
            handle.remove()
            gram = torch.stack(seen).sum(0)
            system = gram[left][:, left]
            system.diagonal().add_(1e-3 * gram.diagonal().mean())
            predict = torch.linalg.solve(system, gram[left]).to(task.images)  # [kept, channels]
            merged = torch.einsum("oc...,kc->ok...", block.conv2.weight, predict)
            block.conv2.weight.zero_()[:, left] = merged
        kept[f"{name}.conv1"] = left
    return remove_units(net, task.calibration[:1].contiguous(), kept).model


def ispasp_paper(task: Task, keep: float) -> nn.Module:
    """i-SpaSP as in the paper."""
    pruner = ISpaSP(task.net, task.calibration[:1].contiguous(), keep=keep, method="ispasp", refit=None)
    return pruner.run(task.calibration.contiguous()).model


def ispasp(task: Task, keep: float) -> nn.Module:
    """Our default."""
    return ISpaSP(task.net, task.calibration[:1].contiguous(), keep=keep).run(task.calibration.contiguous()).model


def ispasp_refined(task: Task, keep: float) -> nn.Module:
    """Our default, refined without labels."""
    return refine(ispasp(task, keep), task.net, task.more, augment=task.augment, steps=task.steps).model


ROWS: list[tuple[str, Pruner]] = [
    ("Torch-Pruning, magnitude", torch_pruning_magnitude),
    ("Torch-Pruning, Taylor (sees labels)", torch_pruning_taylor),
    ("i-SpaSP as in the paper", ispasp_paper),
    ("magnitude, compensated as in GRAIL", grail_like),
    ("ISpaSP", ispasp),
    ("ISpaSP, refine", ispasp_refined),
]


def plot(figures: list[dict[str, Any]], dense: tuple[float, int], path: Path) -> None:
    """Accuracy against MACs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name in dict.fromkeys(row["method"] for row in figures):
        points = sorted((row["macs"] / 1e6, row["accuracy"]) for row in figures if row["method"] == name)
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.axhline(dense[0], color="grey", linestyle=":", label="dense")
    axes.set(xlabel=f"million multiply-accumulates (dense {dense[1] / 1e6:.3g})", ylabel="test accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", "--data-dir", dest="data_dir", type=Path, help="CIFAR-10 and a ResNet-20; without it, digits"
    )
    parser.add_argument("--keep", type=float, nargs="+", default=[0.75, 0.5, 0.3])
    parser.add_argument("--rows", nargs="+", metavar="WORD", help="only rows of the table that contain one of these")
    parser.add_argument("--images", type=int, default=1024, help="to prune on")
    parser.add_argument("--refine-images", type=int, help="to refine on; by default those")
    parser.add_argument("--augment", choices=["none", "flip", "crop"], default="none", help="of the refinement")
    parser.add_argument("--steps", type=int, help="of the refinement")
    parser.add_argument("--epochs", type=int, default=8, help="of training on the digits")
    parser.add_argument("--seed", type=int, default=0, help="of the digits")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out-dir", type=Path, default=Path("out"), help="for compare_structured.png and .json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    chosen = [(name, how) for name, how in ROWS if not args.rows or any(word in name for word in args.rows)]
    if not chosen:
        raise SystemExit(f"--rows: expected words of {[name for name, _ in ROWS]}, got {args.rows}")
    if importlib.util.find_spec("torch_pruning") is None:
        print("Torch-Pruning is not installed: its rows are left out (pip install torch-pruning)")
        theirs = (torch_pruning_magnitude, torch_pruning_taylor)
        chosen = [(name, how) for name, how in chosen if how not in theirs]
    if args.data_dir is None:
        task = digits(args.epochs, args.seed, args.steps)
    else:
        task = resnet20(args.data_dir, args.images, args.refine_images or args.images, args.augment, args.steps)
    example = task.images[:1]
    dense = accuracy(task.net, task.images, task.labels), macs(task.net, example)
    print(f"dense: {dense[0]:.2f} %, {dense[1] / 1e6:.2f} MMAC", flush=True)
    figures: list[dict[str, Any]] = []
    for keep in args.keep:
        for name, prune in chosen:
            clocks = time.perf_counter(), time.process_time()
            model = prune(task, keep)
            wall, processor = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
            row = {"method": name, "keep": keep, "accuracy": accuracy(model, task.images, task.labels)}
            figures.append(row | {"macs": macs(model, example), "seconds": wall, "processor_seconds": processor})
            print(
                f"{keep:g} {name}: {row['accuracy']:.2f} %, {figures[-1]['macs'] / 1e6:.2f} MMAC, "
                f"{wall:.1f} s ({processor:.1f} s of processors)",
                flush=True,
            )
    found = {(row["method"], row["keep"]): row["accuracy"] for row in figures}
    rows = [[name, *(f"{found[name, keep]:.2f}" for keep in args.keep)] for name, _ in chosen]
    print(format_table(["test accuracy (%), kept", *(f"{keep:g}" for keep in args.keep)], rows))
    spent = {(row["method"], row["keep"]): row["processor_seconds"] for row in figures}
    rows = [[name, *(f"{spent[name, keep]:.1f}" for keep in args.keep)] for name, _ in chosen]
    print(format_table(["processor seconds, kept", *(f"{keep:g}" for keep in args.keep)], rows))
    args.out_dir.mkdir(parents=True, exist_ok=True)
    plot(figures, dense, args.out_dir / "compare_structured.png")
    path = args.out_dir / "compare_structured.json"
    path.write_text(json.dumps({"dense": dense, "rows": figures}, indent=1) + "\n")
    print(f"{args.out_dir / 'compare_structured.png'}, {path}")


if __name__ == "__main__":
    main()
