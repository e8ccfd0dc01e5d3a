"""A pretrained ResNet-20 on CIFAR-10, its inner channels pruned in one shot: test accuracy, MACs and seconds.

    python examples/resnet20_cifar.py --data-dir DIR [--weights FILE] [--keep 0.75 0.5 0.3] [--rows WORD ...]

DIR holds CIFAR-10 in its binary version (data_batch_1.bin and test_batch.bin, directly or in cifar-10-batches-bin), or
the same as data_batch_1.npz and test_batch.npz with images [N, 32, 32, 3] uint8 in "x" and labels in "y", or a module
datasets.py with cifar10_batch(name) that returns the two. FILE is the state dict of a ResNet-20 with shortcuts without
parameters (names as in akamaster's pytorch_resnet_cifar10); by default resnet20-12fca82f.th in DIR or DIR/weights.

Calibration: the first --images images of data_batch_1, without labels. No fine-tuning.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_accel.prune import ISpaSP
from sparse_accel.report import format_table

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ROWS: list[tuple[str, dict[str, Any]]] = [
    ("L2 magnitude", {"method": "magnitude", "refit": None}),
    ("i-SpaSP as in the paper", {"method": "ispasp", "refit": None}),
    ("i-SpaSP, BatchNorm recalibrated", {"method": "ispasp", "refit": None, "recalibrate": True}),
    ("i-SpaSP + refit (skip)", {"method": "ispasp", "refit": "skip"}),
    ("magnitude + refit (skip)", {"method": "magnitude", "refit": "skip"}),
    ("energy + refit (skip)", {"method": "energy", "refit": "skip"}),
    ("Gram-CoSaMP + refit (skip)", {"method": "gram_cosamp", "refit": "skip"}),
    ("Gram-OBS + refit (local)", {"refit": "local"}),
    ("Gram-OBS + refit (dense)", {"refit": "dense"}),
    ("Gram-OBS + refit (skip)", {"refit": "skip"}),
    ("Gram-OBS + refit (auto: skip, ReLU-aware, classifier)", {}),
    ("the same, MACs spent by budget", {"budget": True}),
]


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut that subsamples and pads with zero channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1 or self.pad:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + x)


class ResNet20(nn.Module):
    """Three stages of three blocks, 16, 32 and 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        for stage in (1, 2, 3):
            blocks = [BasicBlock(widths[stage - 1], widths[stage], 1 if stage == 1 else 2)]
            blocks += [BasicBlock(widths[stage], widths[stage], 1) for _ in range(2)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def read_batch(directory: Path, name: str) -> tuple[Tensor, Tensor]:
    """Normalized images ``[N, 3, 32, 32]`` and labels."""
    binary = (directory / f"{name}.bin", directory / "cifar-10-batches-bin" / f"{name}.bin")
    found = next((path for path in binary if path.exists()), None)
    if found is not None:
        records = np.frombuffer(found.read_bytes(), np.uint8).reshape(-1, 3073)
        y, x = records[:, 0], records[:, 1:].reshape(-1, 3, 32, 32)
    elif (directory / f"{name}.npz").exists():
        with np.load(directory / f"{name}.npz") as stored:
            x, y = stored["x"].transpose(0, 3, 1, 2), stored["y"]
    elif (directory / "datasets.py").exists():
        spec = importlib.util.spec_from_file_location("cifar_datasets", directory / "datasets.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        x, y = module.cifar10_batch(name)
        x = x.transpose(0, 3, 1, 2)
    else:
        raise SystemExit(f"{directory}: expected {name}.bin, {name}.npz or a datasets.py; see --help")
    images = torch.from_numpy(np.ascontiguousarray(x)).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (images - mean) / std, torch.from_numpy(y.astype(np.int64))


def load_net(path: Path) -> nn.Module:
    """The pretrained network, in eval mode."""
    stored = torch.load(path, weights_only=True, map_location="cpu")
    stored = stored.get("state_dict", stored)
    net = ResNet20()
    net.load_state_dict({name.removeprefix("module."): tensor for name, tensor in stored.items()})
    return net.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """In percent."""
    hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True))
    return 100 * hits / len(labels)


@torch.no_grad()
def recalibrated(model: nn.Module, images: Tensor) -> nn.Module:
    """The model with the statistics of its BatchNorms taken anew."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
            module.train()
    for part in images.split(128):
        model(part)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.75, 0.5, 0.3])
    parser.add_argument("--rows", nargs="+", metavar="WORD", help="only rows of the table that contain one of these")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    places = (args.data_dir, args.data_dir / "weights")
    found = [path / "resnet20-12fca82f.th" for path in places if (path / "resnet20-12fca82f.th").exists()]
    if args.weights is None and not found:
        raise SystemExit("--weights FILE: resnet20-12fca82f.th is not in --data-dir")
    net = load_net(args.weights or found[0]).to(args.device)
    calibration = read_batch(args.data_dir, "data_batch_1")[0][: args.images].to(args.device)
    images, labels = (tensor.to(args.device) for tensor in read_batch(args.data_dir, "test_batch"))
    chosen = [(name, how) for name, how in ROWS if not args.rows or any(word in name for word in args.rows)]
    if not chosen:
        raise SystemExit(f"--rows: expected words of {[name for name, _ in ROWS]}, got {args.rows}")
    print(f"dense: {accuracy(net, images, labels):.2f} %", flush=True)
    figures: list[dict[str, Any]] = []
    uniform: dict[float, float] = {}
    for keep in args.keep:
        for name, options in chosen:
            how = dict(options)
            recalibrate = how.pop("recalibrate", False)
            if how.get("budget"):  # as many MACs as uniform widths leave
                if keep not in uniform:
                    plain = ISpaSP(net, images[:1], keep=keep, method="random", refit=None).run(calibration)
                    uniform[keep] = plain.report.macs[1] / plain.report.macs[0]
                how["budget"] = {"flops": uniform[keep]}
            start = time.perf_counter()
            result = ISpaSP(net, images[:1], keep=keep, **how).run(calibration)
            model = recalibrated(result.model, calibration) if recalibrate else result.model
            seconds = time.perf_counter() - start
            correct = accuracy(model, images, labels)
            print(
                f"{keep:g} {name}: {correct:.2f} %, {result.report.macs[1] / 1e6:.2f} MMAC, {seconds:.1f} s", flush=True
            )
            figures.append(
                {"keep": keep, "method": name, "accuracy": correct, "seconds": seconds}
                | {"params": result.report.params, "macs": result.report.macs}
            )
    accuracies = {(row["method"], row["keep"]): row["accuracy"] for row in figures}
    rows = [[name, *(f"{accuracies[name, keep]:.2f}" for keep in args.keep)] for name, _ in chosen]
    print(format_table(["test accuracy (%)", *(f"{keep:g}" for keep in args.keep)], rows))
    print(result.report)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
