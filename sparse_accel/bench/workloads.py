"""Sizes that the benches run on: lists of weight shapes, written as block structure, and their tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

Shape = tuple[int, ...]


def resnet50() -> list[Shape]:
    """ResNet-50's 50 weights of the main path (the classic "50 layers", without the 4 shortcuts), 22.7 M elements."""
    shapes: list[Shape] = [(64, 3, 7, 7)]
    channels = 64
    for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for _ in range(depth):
            shapes += [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            channels = 4 * width
    return [*shapes, (1000, 2048)]


def vit_b() -> list[Shape]:
    """ViT-B/16: the patches' convolution, 12 blocks with their biases and norms, the head, 86.4 M elements."""
    block: list[Shape] = [(768,), (768,), (2304, 768), (2304,), (768, 768), (768,)]
    block += [(768,), (768,), (3072, 768), (3072,), (768, 3072), (768,)]
    return [(768, 3, 16, 16), (768,), *block * 12, (768,), (768,), (1000, 768), (1000,)]


def vit_b_block() -> list[Shape]:
    """One block of ViT-B/16: qkv, output projection, and both linear layers of its MLP, 7.1 M elements."""
    return [(3 * 768, 768), (768, 768), (4 * 768, 768), (768, 4 * 768)]


def large() -> list[Shape]:
    """A large Linear and a large convolution, 26.2 M elements: what memory allows."""
    return [(4096, 4096), (1024, 1024, 3, 3)]


def many_small() -> list[Shape]:
    """256 small weights, 0.3 M elements: what an op costs beside its arithmetic."""
    return [(16, 16, 3, 3), (32, 16, 1, 1), (64, 32), (32, 1, 3, 3)] * 64


def thousand_small() -> list[Shape]:
    """1,000 small weights, 0.26 M elements: what a long list costs."""
    return [(16, 16)] * 900 + [(16,)] * 50 + [(16, 4, 3, 3)] * 50


def one_gigabyte() -> list[Shape]:
    """One weight of 1 GiB in float32: for a card's memory."""
    return [(16384, 16384)]


def tiny() -> list[Shape]:
    """A few elements, to try a bench out."""
    return [(8, 4, 3, 3), (10, 8)]


WORKLOADS: dict[str, Callable[[], list[Shape]]] = {
    "resnet50": resnet50,
    "vit_b": vit_b,
    "vit_b_block": vit_b_block,
    "large": large,
    "many_small": many_small,
    "thousand_small": thousand_small,
    "one_gigabyte": one_gigabyte,
    "tiny": tiny,
}


def tensors(
    workload: str, dtype: torch.dtype, device: str, *, seed: int = 0, scale: float = 0.05, requires_grad: bool = False
) -> list[Tensor]:
    """Normally distributed tensors of a workload's shapes, the same for the same seed."""
    drawn = (x * scale for x in _drawn(workload, seed))
    return [x.to(device, dtype).requires_grad_(requires_grad) for x in drawn]


def weights_of(workload: str, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Those of them that have groups: no biases, no norms."""
    return [x for x in tensors(workload, dtype, device) if x.dim() > 1]


@functools.lru_cache(maxsize=4)  # a GPU would wait for the CPU to draw the same numbers again
def _drawn(workload: str, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, device="cpu") for shape in WORKLOADS[workload]()]


def compiles(workload: str) -> bool:
    """Whether ``torch.compile`` takes the list in seconds: a kernel for each tensor, each to be compiled."""
    return len(WORKLOADS[workload]()) <= 60


def numel(workload: str) -> int:
    """Number of elements in a workload."""
    return sum(torch.Size(shape).numel() for shape in WORKLOADS[workload]())
