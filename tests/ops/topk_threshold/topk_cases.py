"""Made inputs for topk_threshold_, compared with the plain twin. Run as a script, under one instruction set."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))  # as a script, it has not pytest's pythonpath
from op_cases import DTYPES
from torch import Tensor

import sparse_accel as sa
from sparse_accel import reference
from sparse_accel.groups import GroupLayout

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x,
    "ties": lambda x: (x * 2).round() / 2,
    "half zero": lambda x: x.relu(),
    "two values": lambda x: (x > 0.3).to(x.dtype),
    "equal": torch.ones_like,
    "infinite": lambda x: torch.where(x > 1, torch.inf, torch.where(x < -1, -torch.inf, x)),
    "heavy tails": lambda x: (x * 30).exp().clamp(max=3e38),
    "powers": lambda x: (x * 60).clamp(-120, 120).exp2() * x.sign(),
    "denormal": lambda x: x * 1e-42,
    "rising": lambda x: torch.arange(float(x.numel())).view_as(x),
}


def compare(
    x: Tensor, scores: Tensor | None, k: list[int], by: str, layout: GroupLayout | None, scale: Tensor | None
) -> None:
    """Same mask and same values as the twin."""
    found, expected = x.clone(), x.clone()
    number = k[0] if len(k) == 1 else (k[0], k[1])
    mask = sa.topk_threshold_(found, scores, number, by=by, layout=layout, scale=scale)
    twin = reference.topk_threshold_(expected, scores, k, by, list(layout or []), scale)
    what = (x.shape, x.dtype, scores is None, k, by, layout, scale is None)
    assert torch.equal(mask, twin), what
    assert torch.equal(found, expected), what


def made(choose: random.Random, shape: tuple[int, ...]) -> Tensor:
    """Numbers of some kind, in some dtype."""
    return KINDS[choose.choice(list(KINDS))](torch.randn(shape)).to(choose.choice(DTYPES))


def groups_case(choose: random.Random) -> None:
    """Groups that lie apart: blocks, rows of memory, groups and what lies together, all of any number."""
    while True:
        outer, groups = choose.choice([2, 3, 17, 64, 65, 300]), choose.choice([2, 3, 33, 64, 65, 130])
        layout = GroupLayout(outer, groups, choose.choice([1, 1, 2, 3, 9, 16, 25, 64, 70]), choose.choice([1, 1, 2]))
        if layout.numel <= 100_000:
            break
    x = made(choose, (layout.blocks * outer, groups * layout.inner))
    n = layout.group_size
    scores = choose.choice([None, x.clone(), made(choose, tuple(x.shape))])
    scale = torch.rand(x.shape[1]) + 0.1 if scores is None and choose.random() < 0.5 else None
    compare(x, scores, [choose.choice([1, n // 3, n // 2, n - 1, n])], "within", layout, scale)


def blocks_case(choose: random.Random) -> None:
    """n:m of any n and m, where m divides the columns or not."""
    m = choose.randint(2, 32)
    x = made(choose, (choose.choice([1, 5]), choose.choice([64 * m * 2, 70 * m + 1, 17, 1000])))
    scale = torch.rand(x.shape[1]) + 0.1 if choose.random() < 0.3 else None
    compare(x, None, [choose.randint(1, m - 1), m], "row", None, scale)


def rows_case(choose: random.Random) -> None:
    """Rows, and the tensor as a whole."""
    x = made(choose, (choose.choice([1, 7]), choose.choice([3, 64, 65, 700, 3000])))
    by = choose.choice(["row", "tensor"])
    k = choose.randint(0, x.shape[1] if by == "row" else x.numel())
    compare(x, None, [k], by, None, torch.rand(x.shape[1]) + 0.1 if choose.random() < 0.3 else None)


def main(number: int) -> None:
    """Some of each, the same ones every time."""
    torch.manual_seed(0)
    choose = random.Random(0)
    for _ in range(number):
        for case in (groups_case, blocks_case, rows_case):
            case(choose)


if __name__ == "__main__":
    main(int(sys.argv[1]))
