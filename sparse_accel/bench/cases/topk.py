"""``topk_threshold_``: part of a matrix kept, in place and with its mask; and ``masked_cg``, a refit of ten steps.

Bytes are those that cannot be avoided: the scores read, which are x itself where none are given, then x read and
written and the mask written. All scores are read before the first write, as scores with NaN must leave x as it was. The
peer is ``torch.topk`` with a scatter into the mask and a masked fill. The matrices are layers that sparse solvers meet,
so ``--workloads`` has no say but for ``tiny``. By scaled magnitude x is its own score, ``|x| scale``, and half of it is
zero from the first call on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sparse_accel import reference
from sparse_accel.bench.case import Case, Settings
from sparse_accel.groups import group_layout
from sparse_accel.ops import masked_cg, topk_threshold_

SHAPES = ((384, 384), (384, 1536), (1536, 384), (1024, 1024), (4096, 4096))
FEW_SHAPES = ((1536, 384), (4096, 4096))
CG_SHAPES = ((1536, 384), (384, 1536))
PATTERNS = ((2, 4), (4, 8), (16, 32), (3, 7))
STEPS = 10
PLAIN = 1 << 21  # elements up to which the twin, which sorts, is run


class Target(NamedTuple):
    """What is kept."""

    name: str
    k: int | tuple[int, int]
    by: str = "tensor"


def cases(settings: Settings) -> Iterator[Case]:
    """Every target on two shapes, by given scores and by scaled magnitude; then the refit."""
    yield from _cases(settings, FEW_SHAPES)


def every_case(settings: Settings) -> Iterator[Case]:
    """The same on all shapes."""
    yield from _cases(settings, SHAPES)


def _cases(settings: Settings, shapes: Sequence[tuple[int, int]]) -> Iterator[Case]:
    tiny = tuple(settings.workloads) == ("tiny",)
    for shape in ((12, 16),) if tiny else shapes:
        generator = torch.Generator().manual_seed(0)
        x, noise = (torch.randn(shape, generator=generator, device="cpu") for _ in range(2))
        scale = (torch.rand(shape[1], generator=generator, device="cpu") + 0.5).to(settings.device)
        x, scores = x.to(settings.device, settings.torch_dtype), noise.abs().to(settings.device, settings.torch_dtype)
        name = "tiny" if tiny else f"{shape[0]} x {shape[1]}"
        for target in _targets(*shape):
            yield _case(f"{target.name}, scores", name, target, x, scores, None)
        for target in _targets(*shape):
            yield _case(f"{target.name}, |x| scale", name, target, x, None, scale)
    for shape in ((12, 16),) if tiny else CG_SHAPES:
        yield _refit(shape, "tiny" if tiny else f"{shape[0]} x {shape[1]}", settings)


def _targets(rows: int, columns: int) -> list[Target]:
    return [
        Target("half", rows * columns // 2),
        Target("half of rows", columns // 2, "row"),
        Target("half of columns", rows // 2, "within"),
        Target("half the columns", columns // 2, "group"),
        *(Target(f"{n}:{m}", (n, m), "row") for n, m in PATTERNS),
    ]


def _case(name: str, workload: str, target: Target, x: Tensor, scores: Tensor | None, scale: Tensor | None) -> Case:
    layout = group_layout(x, "input") if target.by in ("within", "group") else None
    run = partial(topk_threshold_, x, scores, target.k, by=target.by, layout=layout, scale=scale)
    moved = x.numel() * (2 * x.element_size() + 1 + (x if scores is None else scores).element_size())
    k = [target.k] if isinstance(target.k, int) else list(target.k)
    twin = partial(reference.topk_threshold_, x, scores, k, target.by, list(layout or []), scale)
    plain = twin if x.numel() <= PLAIN else None
    peer = partial(_topk_scatter, x, scores, target, scale)
    return Case(name, workload, run, moved, twin=plain, peer=peer, peer_name="topk + scatter")


def _topk_scatter(x: Tensor, scores: Tensor | None, target: Target, scale: Tensor | None) -> Tensor:
    values = scores if scores is not None else x.abs() if scale is None else x.abs() * scale
    if isinstance(target.k, tuple):
        whole = x.shape[-1] // target.k[1] * target.k[1]  # what is left of a row stays
        mask = torch.ones(x.shape, dtype=torch.bool, device=x.device)
        blocks = values[:, :whole].reshape(-1, target.k[1])
        mask[:, :whole] = _chosen(blocks, target.k[0], -1).view(len(x), whole)
    elif target.by == "group":
        mask = _chosen(values.square().sum(0), target.k, 0).expand(x.shape).contiguous()
    elif target.by == "tensor":
        mask = _chosen(values.flatten(), target.k, 0).view(x.shape)
    else:
        mask = _chosen(values, target.k, -1 if target.by == "row" else 0)
    x.masked_fill_(~mask, 0)
    return mask


def _chosen(values: Tensor, k: int, dim: int) -> Tensor:
    places = torch.topk(values, k, dim=dim, sorted=False).indices
    return torch.zeros(values.shape, dtype=torch.bool, device=values.device).scatter_(dim, places, True)


def _refit(shape: tuple[int, int], workload: str, settings: Settings) -> Case:
    """Bytes: those of the vector parts, 7 accesses and a mask per element and step; the products come on top."""
    generator = torch.Generator().manual_seed(1)
    dtype = settings.torch_dtype if settings.torch_dtype == torch.float64 else torch.float32

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, device="cpu").to(settings.device, dtype)

    w, inputs = draw(*shape), draw(2 * shape[1], shape[1])
    mask, h = draw(*shape) > 0, inputs.T @ inputs / len(inputs)
    run = partial(masked_cg, w, mask, h, STEPS)
    twin = partial(reference.masked_cg, w, mask, h, STEPS, None)
    products = partial(_products, w, h)
    moved = STEPS * w.numel() * (7 * w.element_size() + 1)
    return Case(f"masked_cg, {STEPS} steps", workload, run, moved, twin, products, "the products alone")


def _products(w: Tensor, h: Tensor) -> None:
    out = torch.empty_like(w)
    for _ in range(STEPS + 1):
        torch.mm(w, h, out=out)
