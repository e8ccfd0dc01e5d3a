"""A pretrained ResNet-34, pruned by the ImageNet protocol of i-SpaSP, given a folder of images.

    python examples/imagenet/imagenet_resnet34.py --data-dir DIR --weights FILE [--keep 0.4]
        [--stage-keep layer1=0.5 layer4=0.3] [--tune-steps 200] [--epochs 0] [--method ispasp]

DIR holds train/CLASS/*.JPEG and val/CLASS/*.JPEG (or .jpg, .png), classes in alphabetical order. FILE is a state dict
with the names of torchvision's resnet34. Wolfe and Kyrillidis, L4DC 2022 (arXiv 2112.04905), prune the channels inside
the blocks front to back, keep 40 %, take 20 iterations on 1,280 images in fresh batches, fine-tune after each block
and the whole at the end:

- --keep, --stage-keep: shares of channels, for all blocks and for single stages;
- --samples images per iteration, other ones each time (--same-batches: one set for all);
- --tune-steps steps of SGD after each block, --epochs over the training images at the end (cosine schedule).

--method gram_obs prunes by second moments and refits instead: fine-tuning matters much less then.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparse_accel as sa

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ENDINGS = (".jpeg", ".jpg", ".png")


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut, with torchvision's names."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """ResNet of basic blocks; 3, 4, 6, 3 of them and width 64 make ResNet-34."""

    def __init__(self, blocks: list[int], width: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, count in enumerate(blocks):
            outputs = width << stage
            parts = [BasicBlock(inputs, outputs, 2 if stage else 1)]
            parts += [BasicBlock(outputs, outputs, 1) for _ in range(count - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*parts))
            inputs = outputs
        self.stages = len(blocks)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))


class Images:
    """Image files by class.

    Args:
        directory: with one folder per class.
        size: side of the square images made of them.
        train: crop and flip at random; else the middle.
        seed: of the order and the crops.
    """

    def __init__(self, directory: Path, size: int, *, train: bool, seed: int = 0) -> None:
        self.classes = sorted(path.name for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []
        self.files = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((directory / name).iterdir())
            if path.suffix.lower() in ENDINGS
        ]
        if not self.files:
            raise SystemExit(f"{directory}: expected folders of images, one for each class")
        self.size = size
        self.train = train
        self.random = random.Random(seed)

    def read(self, path: Path) -> Tensor:
        """One image, normalized, ``[3, size, size]``."""
        from PIL import Image

        with Image.open(path) as opened:
            image = opened.convert("RGB")
        width, height = image.size
        side = min(width, height) * self.size / round(self.size * 256 / 224)
        left, top = (width - side) / 2, (height - side) / 2
        if self.train:
            side = min(width, height) * self.random.uniform(0.4, 1.0) ** 0.5
            left, top = self.random.uniform(0, width - side), self.random.uniform(0, height - side)
        box = (left, top, left + side, top + side)
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        if self.train and self.random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        return (pixels - mean) / std

    def batches(self, batch_size: int, *, shuffle: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over all images."""
        order = list(self.files)
        if shuffle:
            self.random.shuffle(order)
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            yield torch.stack([self.read(path) for path, _ in part]), torch.tensor([label for _, label in part])

    def sample(self, count: int, batch_size: int) -> Iterator[Tensor]:
        """Images drawn without replacement, without labels."""
        chosen = self.random.sample(self.files, min(count, len(self.files)))
        for start in range(0, len(chosen), batch_size):
            yield torch.stack([self.read(path) for path, _ in chosen[start : start + batch_size]])


class Tuner:
    """SGD on the training images, block after block."""

    def __init__(self, images: Images, steps: int, lr: float, batch_size: int, device: str) -> None:
        self.images, self.steps, self.lr, self.batch_size, self.device = images, steps, lr, batch_size, device
        self.stream: Iterator[tuple[Tensor, Tensor]] = iter(())

    def batch(self) -> tuple[Tensor, Tensor]:
        """The next batch, over and over."""
        found = next(self.stream, None)
        if found is None:
            self.stream = self.images.batches(self.batch_size, shuffle=True)
            found = next(self.stream)
        return found

    def train(self, model: nn.Module, steps: int) -> float:
        """Cosine schedule over some steps; the last loss."""
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), self.lr, momentum=0.9, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
        loss = torch.zeros(())
        for _ in range(steps):
            x, y = (tensor.to(self.device) for tensor in self.batch())
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        return float(loss.detach())

    def __call__(self, model: nn.Module, name: str) -> None:
        loss = self.train(model, self.steps)
        print(f"{name}: {self.steps} steps of fine-tuning, loss {loss:.3f}", flush=True)


@torch.no_grad()
def accuracy(model: nn.Module, images: Images, batch_size: int, device: str) -> float:
    """Top-1, in percent."""
    hits = total = 0
    for x, y in images.batches(batch_size, shuffle=False):
        hits += int((model(x.to(device)).argmax(1).cpu() == y).sum())
        total += len(y)
    return 100 * hits / total


def stage_shares(words: list[str]) -> dict[str, float]:
    """``layer1=0.5`` as a pattern of widths with a share."""
    shares = {}
    for word in words:
        stage, _, share = word.partition("=")
        try:
            shares[f"{stage}.*"] = float(share)
        except ValueError:
            raise SystemExit(f"--stage-keep: expected layer1=0.5 and the like, got {word}") from None
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="state dict with torchvision's names; random without it")
    parser.add_argument("--out", type=Path, help="save the pruned model there")
    parser.add_argument("--method", default="ispasp")
    parser.add_argument("--refit", help="default: none for ispasp, auto for the others")
    parser.add_argument("--keep", type=float, default=0.4)
    parser.add_argument("--stage-keep", nargs="+", default=[], metavar="STAGE=SHARE")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--samples", type=int, default=1280)
    parser.add_argument("--same-batches", action="store_true")
    parser.add_argument("--tune-steps", type=int, default=0, help="after each block")
    parser.add_argument("--epochs", type=int, default=0, help="at the end")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--blocks", type=int, nargs="+", default=[3, 4, 6, 3])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    train = Images(args.data_dir / "train", args.size, train=True, seed=args.seed)
    calibration = Images(args.data_dir / "train", args.size, train=False, seed=args.seed + 1)
    test = Images(args.data_dir / "val", args.size, train=False)
    if test.classes != train.classes:
        raise SystemExit(f"{args.data_dir}: train and val have different classes")
    model = ResNet(args.blocks, args.width, len(train.classes))
    if args.weights:
        model.load_state_dict(torch.load(args.weights, weights_only=True, map_location="cpu"))
    model.to(args.device).eval()
    print(f"dense: {accuracy(model, test, args.batch_size, args.device):.2f} %", flush=True)

    def fresh() -> Iterator[Tensor]:
        return calibration.sample(args.samples, args.batch_size)

    tuner = Tuner(train, args.tune_steps, args.lr, args.batch_size, args.device)
    start = time.perf_counter()
    result = sa.prune.ISpaSP(
        model,
        torch.zeros(1, 3, args.size, args.size, device=args.device),
        keep=args.keep,
        keep_per_layer=stage_shares(args.stage_keep),
        method=args.method,
        refit=args.refit or (None if args.method == "ispasp" else "auto"),
        only=["layer*.conv1"],
        iterations=args.iterations,
        fresh_batches=not args.same_batches and args.method == "ispasp",
        fine_tune=tuner if args.tune_steps else None,
        seed=args.seed,
    ).run(list(fresh()) if args.same_batches else fresh)
    seconds = time.perf_counter() - start
    print(result.report)
    pruned = accuracy(result.model, test, args.batch_size, args.device)
    print(f"pruned: {pruned:.2f} %, {seconds:.1f} s", flush=True)
    if args.epochs:
        steps = args.epochs * -(-len(train.files) // args.batch_size)
        tuner.train(result.model, steps)
        print(f"after {args.epochs} epochs: {accuracy(result.model, test, args.batch_size, args.device):.2f} %")
    if args.out:
        sa.save(result, args.out)
    if args.json:
        figures = {"pruned": pruned, "seconds": seconds, "macs": result.report.macs, "params": result.report.params}
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
