"""i-SpaSP on a residual block's hidden activations, 256 x 64 x 16 x 16, T = 20: autograd over all data against sums.

The peer is the way of the paper's code, written anew: in each of the T iterations the consumer (a 3 x 3 convolution and
its BatchNorm with fixed statistics) runs forward on all activations, dense and pruned, and backward for the
importance. Ours sums the activations over the samples, once, and selects on the sums; the time of both is that from
the hidden activations to the set. The twin is the same on sums in plain PyTorch, all T iterations by convolutions.
Before anything is timed, the sets of all iterations are compared, and the importances to 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_accel.bench.case import Case, Settings
from sparse_accel.prune import ISpaSPSelection, batchnorm_affine, ispasp_select

ITERATIONS, KEEP = 20, 0.4


class Block(NamedTuple):
    """Hidden activations [N, C, H, W] after the ReLU, and their consumer."""

    hidden: Tensor
    conv: nn.Conv2d
    norm: nn.BatchNorm2d

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.norm(self.conv(hidden))


def cases(settings: Settings) -> Iterator[Case]:
    """One block."""
    tiny = tuple(settings.workloads) == ("tiny",)
    shape, name = ((8, 6, 5, 5), "tiny") if tiny else ((256, 64, 16, 16), "256x64x16x16")
    dtype = settings.torch_dtype if settings.torch_dtype == torch.float64 else torch.float32
    block = make_block(shape, dtype, settings.device)
    compare(block)
    yield Case(
        f"i-SpaSP, T = {ITERATIONS}",
        name,
        partial(ours, block),
        block.hidden.numel() * block.hidden.element_size(),
        twin=partial(on_sums, block),
        peer=partial(by_autograd, block),
        peer_name="autograd over all data",
    )


def make_block(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> Block:
    """A block with random weights and statistics, and activations of uneven sizes."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64, device="cpu")

    channels = shape[1]
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False, dtype=dtype)
    norm = nn.BatchNorm2d(channels, dtype=dtype)
    with torch.no_grad():
        conv.weight.copy_(draw(*conv.weight.shape) / (9 * channels) ** 0.5)
        for name in ("weight", "running_var"):
            getattr(norm, name).copy_(draw(channels).abs() + 0.5)
        for name in ("bias", "running_mean"):
            getattr(norm, name).copy_(draw(channels) / 2)
    hidden = (draw(*shape) + draw(channels, 1, 1)).relu().to(dtype)
    for module in (conv, norm):
        module.requires_grad_(False).eval().to(device)
    return Block(hidden.to(device), conv, norm)


def ours(block: Block) -> ISpaSPSelection:
    """One pass over the data for the sums, then the loop on them."""
    scale, shift = batchnorm_affine(block.norm)
    return ispasp_select(
        block.hidden.sum(0),
        block.conv.weight,
        KEEP,
        ITERATIONS,
        padding=1,
        scale=scale,
        shift=shift,
        count=len(block.hidden),
    )


def by_autograd(block: Block) -> tuple[list[Tensor], list[Tensor]]:
    """The paper's code: residuals of all samples and their gradients, in every iteration."""
    sums = block.hidden.sum((0, 2, 3))

    def score(kept: Tensor) -> Tensor:
        hidden = block.hidden.detach().requires_grad_()
        dense = block(hidden)
        with torch.no_grad():
            residual = dense - block(block.hidden * kept.view(1, -1, 1, 1)) if kept.any() else dense
        (gradient,) = torch.autograd.grad(dense, hidden, residual.detach())
        return gradient.sum((0, 2, 3))

    return loop(score, sums)


def on_sums(block: Block) -> tuple[list[Tensor], list[Tensor]]:
    """The same on the map of sums."""
    scale, shift = (x.view(1, -1, 1, 1) for x in batchnorm_affine(block.norm))
    sums, weight = block.hidden.sum(0, keepdim=True).double(), block.conv.weight.double()

    def score(kept: Tensor) -> Tensor:
        residual = F.conv2d(sums * ~kept.view(1, -1, 1, 1), weight, padding=1) * scale
        if not kept.any():
            residual = residual + len(block.hidden) * shift
        return F.conv_transpose2d(residual * scale, weight, padding=1).sum((0, 2, 3))

    return loop(score, sums.sum((0, 2, 3)))


def loop(score: Callable[[Tensor], Tensor], sums: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """All T iterations: sets and importances."""
    keep = max(1, int(KEEP * sums.numel()))
    kept = torch.zeros(sums.shape, dtype=torch.bool, device=sums.device)
    sets, scores = [], []
    for _ in range(ITERATIONS):
        y = score(kept)
        candidates = kept.clone()
        candidates[y.topk(min(2 * keep, sums.numel())).indices] = True
        best = torch.where(candidates, sums, -torch.inf).topk(keep).indices
        kept = torch.zeros_like(kept)
        kept[best] = True
        scores.append(y)
        sets.append(best.sort().values)
    return sets, scores


def compare(block: Block) -> None:
    """The sets of every iteration are the same, and the importances to 1e-5 of the largest.

    Raises:
        RuntimeError: they are not.
    """
    found = ours(block)
    for other in (by_autograd, on_sums):
        sets, scores = other(block)
        last = len(found.history) - 1
        for t, (kept, score) in enumerate(zip(sets, scores, strict=True)):
            mine = found.importance[min(t, last)]
            error = float((mine - score).abs().max() / score.abs().max())
            if not torch.equal(found.history[min(t, last)], kept) or error > 1e-5:
                raise RuntimeError(f"{other.__name__}, iteration {t + 1}: other sets, or importances {error:.1e} apart")
