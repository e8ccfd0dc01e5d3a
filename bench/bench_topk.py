"""``topk_threshold_``: half of a matrix kept, in place and with its mask; and ``masked_cg``, a refit of ten steps.

    python -m bench.bench_topk [--device cuda] [--dtype float64] [--json FILE]

Bytes are those that cannot be avoided: the scores read, which are x itself where none are given, then x read and
written and the mask written. All scores are read before the first write, as scores with NaN must leave x as it was. The
peer is ``torch.topk`` with a scatter into the mask and a masked fill. The matrices are layers that sparse solvers meet,
so ``--workloads`` has no say but for ``tiny``. By scaled magnitude x is its own score, ``|x| scale``, and half of it is
zero from the first call on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

import sparse_accel as sa
from sparse_accel import reference_topk

from . import harness

SHAPES = ((384, 384), (384, 1536), (1536, 384), (1024, 1024), (4096, 4096))
CG_SHAPES = ((1536, 384), (384, 1536))
STEPS = 10
PLAIN = 1 << 21  # elements up to which the twin, which sorts, is run


def cases(settings: harness.Settings) -> Iterator[harness.Case]:
    """Tensor, row, 2:4 and 4:8, by given scores and by scaled magnitude; then the refit."""
    tiny = tuple(settings.workloads) == ("tiny",)
    for shape in ((12, 16),) if tiny else SHAPES:
        generator = torch.Generator().manual_seed(0)
        x, noise = (torch.randn(shape, generator=generator) for _ in range(2))
        scale = (torch.rand(shape[1], generator=generator) + 0.5).to(settings.device)
        x, scores = x.to(settings.device, settings.torch_dtype), noise.abs().to(settings.device, settings.torch_dtype)
        name = "tiny" if tiny else f"{shape[0]} x {shape[1]}"
        for case, k, by in _targets(*shape):
            given = _rivals(x, scores, k, by)
            yield _case(f"{case}, scores", name, partial(sa.topk_threshold_, x, scores, k, by=by), x, given, scores)
        for case, k, by in _targets(*shape):
            run = partial(sa.topk_threshold_, x, None, k, by=by, scale=scale)
            yield _case(f"{case}, |x| scale", name, run, x, _rivals(x, None, k, by, scale))
    for shape in ((12, 16),) if tiny else CG_SHAPES:
        yield _refit(shape, "tiny" if tiny else f"{shape[0]} x {shape[1]}", settings)


def _targets(rows: int, columns: int) -> list[tuple[str, int | tuple[int, int], str]]:
    return [
        ("half", rows * columns // 2, "tensor"),
        ("half of rows", columns // 2, "row"),
        ("2:4", (2, 4), "row"),
        ("4:8", (4, 8), "row"),
    ]


def _case(
    name: str,
    workload: str,
    run: Callable[[], object],
    x: Tensor,
    rivals: tuple[Callable[[], object], Callable[[], object]],
    scores: Tensor | None = None,
) -> harness.Case:
    moved = x.numel() * (2 * x.element_size() + 1 + (x if scores is None else scores).element_size())
    twin, peer = rivals
    plain = twin if x.numel() <= PLAIN else None
    return harness.Case(name, workload, run, moved, twin=plain, peer=peer, peer_name="topk + scatter")


def _rivals(
    x: Tensor, scores: Tensor | None, k: int | tuple[int, int], by: str, scale: Tensor | None = None
) -> tuple[Callable[[], object], Callable[[], object]]:
    numbers = [k] if isinstance(k, int) else list(k)
    twin = partial(reference_topk.topk_threshold_, x, scores, numbers, by, [], scale)
    return twin, partial(_topk_scatter, x, scores, k, by, scale)


def _topk_scatter(x: Tensor, scores: Tensor | None, k: int | tuple[int, int], by: str, scale: Tensor | None) -> Tensor:
    values = scores if scores is not None else x.abs() if scale is None else x.abs() * scale
    if isinstance(k, tuple):
        values, number = values.view(-1, k[1]), k[0]
    else:
        values, number = (values.view(1, -1), k) if by == "tensor" else (values, k)
    chosen = torch.topk(values, number, dim=-1, sorted=False).indices
    mask = torch.zeros(values.shape, dtype=torch.bool, device=x.device).scatter_(-1, chosen, True).view(x.shape)
    x.masked_fill_(~mask, 0)
    return mask


def _refit(shape: tuple[int, int], workload: str, settings: harness.Settings) -> harness.Case:
    """Bytes: those of the vector parts, 7 accesses and a mask per element and step; the products come on top."""
    generator = torch.Generator().manual_seed(1)
    dtype = settings.torch_dtype if settings.torch_dtype == torch.float64 else torch.float32

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(settings.device, dtype)

    w, inputs = draw(*shape), draw(2 * shape[1], shape[1])
    mask, h = draw(*shape) > 0, inputs.T @ inputs / len(inputs)
    run = partial(sa.masked_cg, w, mask, h, STEPS)
    twin = partial(reference_topk.masked_cg, w, mask, h, STEPS, None)
    products = partial(_products, w, h)
    moved = STEPS * w.numel() * (7 * w.element_size() + 1)
    return harness.Case(f"masked_cg, {STEPS} steps", workload, run, moved, twin, products, "the products alone")


def _products(w: Tensor, h: Tensor) -> None:
    out = torch.empty_like(w)
    for _ in range(STEPS + 1):
        torch.mm(w, h, out=out)


def main(argv: Sequence[str] | None = None) -> int:
    """Run this bench alone."""
    return harness.bench_main({"topk": cases}, argv, __doc__ or "")[0]


if __name__ == "__main__":
    sys.exit(main())
