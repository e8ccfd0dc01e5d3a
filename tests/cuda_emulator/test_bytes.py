"""Bytes of global memory and launches of every op, counted under the emulator, against the least that it can move.

Counted is what kernels ask for, not what caches make of it: an array that is read twice counts twice. The floor is
every element of every array once; clock, sums and tables are what the allowance beyond it is for."""

from __future__ import annotations

import math
import subprocess

import pytest
from cuda_emulator import build

pytestmark = pytest.mark.slow

SIZE = {"f32": 4, "f64": 8, "bf16": 2, "f16": 2}
# outer, groups, inner, tensors, copies: a tensor has so many segments of one layout, one after another
ROWS, SHORT, LONG, ONES = (1, 300, 256, 1), (1, 8000, 9, 1), (1, 3, 20000, 1), (1, 70000, 1, 1)
COLUMNS, KERNELS, WIDE, MANY = (700, 100, 1, 1), (60, 60, 9, 1), (70, 12, 64, 1), (1, 40, 30, 30)
COPIES = (9, 64, 1, 1, 100)  # 2-D kernels in channels_last memory
LONGER = (1, 3, 30000, 1)  # more than two blocks of a multiprocessor can keep


def widths(dtype: str) -> tuple[int, int]:
    """Bytes of an element, and of a number that is computed."""
    return SIZE[dtype], max(4, SIZE[dtype])


def floor(op: str, dtype: str, numbers: tuple[int, ...]) -> float:
    """Bytes per element."""
    own, state = widths(dtype)
    if op == "rmda":
        return 3 * own + 3 * state
    if op == "sgd":
        return 3 * own + 2 * state
    if op == "ramda":
        return 3 * own + 5 * state
    if op == "adamw":
        return 3 * own + 4 * state
    if op in ("prox", "prox_value"):
        return 2 * own
    if op == "score":
        return own + state / (numbers[0] * numbers[2])
    if op == "group_topk":
        return own + 1
    if op == "topk":
        return own + 1 + own * (1 - numbers[2] / numbers[1])  # zeros where an element goes
    if op == "topk_blocks":
        return own + 1 + own * (1 - numbers[2] / numbers[3])
    assert op == "topk_groups"
    return 1 + own / 2  # every other group goes


def elements(op: str, numbers: tuple[int, ...]) -> int:
    if op == "group_topk":
        return numbers[0]
    if op.startswith("topk") and op != "topk_groups":
        return numbers[0] * numbers[1]
    return math.prod(numbers)


# op, dtypes, numbers, launches, the most times the floor
TABLE = [
    ("rmda", "f32 f64 bf16 f16", ROWS, 2, 1.01),
    ("rmda", "f32 bf16", SHORT, 2, 1.02),
    ("rmda", "f32 bf16", LONG, 2, 1.01),
    ("rmda", "f32", LONGER, 4, 1.17),  # X twice
    ("rmda", "bf16", LONGER, 4, 1.23),
    ("rmda", "f32 bf16", ONES, 2, 1.01),
    ("rmda", "f32", COLUMNS, 4, 1.20),
    ("rmda", "bf16", COLUMNS, 4, 1.27),
    ("rmda", "f32", KERNELS, 4, 1.19),
    ("rmda", "f32 bf16", WIDE, 2, 1.01),
    ("rmda", "f32", MANY, 2, 1.02),
    ("rmda", "f32", COPIES, 4, 1.41),
    ("sgd", "f32 bf16", ROWS, 2, 1.01),
    ("sgd", "f32 bf16", SHORT, 2, 1.02),
    ("sgd", "f32 bf16", LONG, 2, 1.01),
    ("sgd", "f32 bf16", LONGER, 4, 1.44),  # M and W twice
    ("sgd", "f32 bf16", ONES, 2, 1.01),
    ("sgd", "f32 bf16", COLUMNS, 4, 1.49),
    ("sgd", "f32", WIDE, 2, 1.01),
    ("sgd", "f32", COPIES, 4, 1.69),
    ("prox", "f32 f64 bf16 f16", ROWS, 1, 1.00),
    ("prox", "f32 bf16", SHORT, 1, 1.00),
    ("prox", "f32 bf16", LONG, 1, 1.00),
    ("prox", "f32 bf16", LONGER, 3, 1.51),
    ("prox", "f32 bf16", ONES, 1, 1.00),
    ("prox", "f32", COLUMNS, 3, 1.58),
    ("prox", "f32", KERNELS, 3, 1.55),
    ("prox", "f32 bf16", WIDE, 1, 1.00),
    ("prox", "f32", MANY, 1, 1.00),
    ("prox", "f32", COPIES, 3, 2.12),
    ("prox_value", "f32", ROWS, 2, 1.01),
    ("prox_value", "f32", ONES, 2, 1.01),
    ("prox_value", "f32", COLUMNS, 4, 1.58),
    ("score", "f32 f64 bf16 f16", ROWS, 1, 1.00),
    ("score", "f32 bf16", SHORT, 1, 1.00),
    ("score", "f32 bf16", LONG, 2, 1.01),
    ("score", "f32", COLUMNS, 2, 1.03),
    ("score", "f32", KERNELS, 2, 1.03),
    ("score", "f32 bf16", WIDE, 1, 1.00),
    ("score", "f32", COPIES, 1, 1.00),
    ("adamw", "f32 f64 bf16 f16", ONES, 2, 1.01),
    ("ramda", "f32 f64 bf16 f16", ONES, 2, 1.01),
    ("adamw", "f32 f64 bf16 f16", ROWS, 2, 1.02),  # every warp reads a step's numbers
    ("ramda", "f32 f64 bf16 f16", ROWS, 2, 1.02),
    ("adamw", "f32 bf16", SHORT, 2, 1.07),
    ("ramda", "f32 bf16", SHORT, 2, 1.06),
    ("adamw", "f32 bf16", LONG, 2, 1.01),
    ("ramda", "f32 bf16", LONG, 2, 1.01),
    ("adamw", "f32 bf16", WIDE, 2, 1.01),
    ("ramda", "f32 bf16", WIDE, 2, 1.01),
    ("adamw", "f32", MANY, 2, 1.04),
    ("ramda", "f32", MANY, 2, 1.03),
    ("adamw", "f32 bf16", COLUMNS, 2, 1.92),  # the state once more for each of Newton's steps, out of the caches
    ("ramda", "f32 bf16", COLUMNS, 2, 1.93),
    ("ramda", "f32", COPIES, 2, 2.08),
    ("group_topk", "f32 bf16", (10000, 3000), 1, 1.00),
    ("group_topk", "f32", (60000, 20000), 12, 5.15),
    ("group_topk", "bf16", (60000, 20000), 8, 3.21),
    ("topk", "f32", (60, 1000, 400), 3, 1.14),
    ("topk", "f32", (4, 16384, 8192), 3, 1.15),
    ("topk", "f32", (1, 70000, 35000), 11, 2.91),
    ("topk", "bf16", (60, 1000, 400), 3, 1.25),
    ("topk_blocks", "f32 f64 bf16", (60, 1000, 2, 4), 3, 1.26),
    ("topk_blocks", "f32", (60, 1000, 4, 8), 3, 1.15),
    ("topk_groups", "f32 bf16", ROWS, 1, 1.02),
    ("topk_groups", "f32 bf16", COLUMNS, 1, 1.50),  # a flag for every element
]


# On a device with clusters: strided groups in one pass, of rows that are whole packs in every dtype
STRIPS, KERNEL_STRIPS = (700, 104, 1, 1), (60, 64, 9, 1)
CLUSTERS = [
    ("rmda", "f32 f64 bf16 f16", STRIPS, 2, 1.01),
    ("rmda", "f32 bf16", KERNEL_STRIPS, 2, 1.01),
    ("rmda", "f32", COPIES, 2, 1.02),
    ("sgd", "f32 bf16", STRIPS, 2, 1.01),
    ("prox", "f32 f64 bf16 f16", STRIPS, 1, 1.00),
    ("prox", "f32", KERNEL_STRIPS, 1, 1.00),
    ("prox", "f32", COPIES, 1, 1.00),
    ("prox", "f32", ROWS, 1, 1.00),
    ("prox_value", "f32", STRIPS, 2, 1.01),
    ("adamw", "f32 f64 bf16 f16", STRIPS, 2, 1.02),
    ("ramda", "f32 f64 bf16 f16", STRIPS, 2, 1.02),
    ("adamw", "f32 bf16", KERNEL_STRIPS, 2, 1.02),
    ("ramda", "f32 bf16", KERNEL_STRIPS, 2, 1.02),
    ("adamw", "f32 bf16", COLUMNS, 2, 1.02),
    ("ramda", "f32 bf16", COLUMNS, 2, 1.02),
    ("adamw", "f32", COPIES, 2, 1.11),
    ("ramda", "f32", COPIES, 2, 1.09),
    ("score", "f32 f64 bf16 f16", STRIPS, 1, 1.00),
    ("rmda", "bf16", COLUMNS, 4, 1.27),  # 100 columns are 12.5 packs: the plain kernels
]


def name(case: tuple[str, str, tuple[int, ...]]) -> str:
    op, dtype, numbers = case
    return " ".join([op, dtype, *map(str, numbers)])


def test_bytes_and_launches() -> None:
    cases, arguments = [], []
    for table in (TABLE, CLUSTERS):
        arguments += ["clusters"] * (table is CLUSTERS)
        own = [(op, dtype, numbers, *allowed) for op, dtypes, numbers, *allowed in table for dtype in dtypes.split()]
        cases += own
        arguments += [name(case[:3]) for case in own]
    done = subprocess.run([build.build_counter(), *arguments], capture_output=True, text=True, timeout=500, check=True)
    wrong = []
    for (op, dtype, numbers, launches, most), line in zip(cases, done.stdout.splitlines(), strict=True):
        found, allocations, read, written = map(int, line.split())
        times = (read + written) / (elements(op, numbers) * floor(op, dtype, numbers))
        print(f"{name((op, dtype, numbers)):40} {found:3} launches {times:6.3f} times the floor")
        if allocations > 1:  # of one piece of scratch memory, whatever the number of parts
            wrong.append(f"{name((op, dtype, numbers))}: {allocations} allocations, expected 1")
        if found != launches or not 1 <= round(times, 2) <= most:
            wrong.append(f"{name((op, dtype, numbers))}: {found} launches, {times:.3f} times the floor; "
                         f"expected {launches}, at most {most}")  # fmt: skip
    assert not wrong, "\n".join(wrong)
