"""The demo's data and network: scikit-learn's bundled digits and a small conv net."""

from __future__ import annotations

import torch
from torch import nn

from .training import Images

TEST_IMAGES = 450


def load_digits() -> Images:
    """1,797 images 8×8 of handwritten digits in [0, 1]: 1,347 to train, 450 to test, always the same ones."""
    from sklearn.datasets import load_digits as load

    data = load()
    inputs = torch.tensor(data.images, dtype=torch.float32, device="cpu").unsqueeze(1) / 16
    labels = torch.tensor(data.target, dtype=torch.int64, device="cpu")
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0), device="cpu")
    train, test = order[TEST_IMAGES:], order[:TEST_IMAGES]
    return Images(inputs[train], labels[train], inputs[test], labels[test])


class DigitsNet(nn.Sequential):
    """Four blocks of convolution, BatchNorm and ReLU, average pooling and a linear layer: 131 thousand weights."""

    def __init__(self) -> None:
        super().__init__()
        channels = 1
        for index, width in enumerate((32, 64, 64, 128), start=1):
            self.add_module(f"conv{index}", nn.Conv2d(channels, width, 3, padding=1, bias=False))
            self.add_module(f"norm{index}", nn.BatchNorm2d(width))
            self.add_module(f"relu{index}", nn.ReLU())
            if index in (1, 3):
                self.add_module(f"pool{index}", nn.MaxPool2d(2))
            channels = width
        self.add_module("average", nn.AdaptiveAvgPool2d(1))
        self.add_module("flatten", nn.Flatten())
        self.add_module("linear", nn.Linear(channels, 10))
