"""What a sparse weight has to look like: how many weights are kept, and which of a tensor of scores.

A target is given as a number (the share of weights to remove), ``"n:m"`` or :class:`BlockSparsity`, :class:`Rows` or
:class:`GroupSparsity`; :func:`parse` makes of it a :class:`Projection`, bound to the shape of one layer. All selections
are exact: so many are kept, not one more, and equal scores go to the lowest index.
"""

from __future__ import annotations

import dataclasses
import math
import re

import torch
from torch import Tensor

from sparse_accel.groups import BY, group_layout
from sparse_accel.ops import topk_threshold_
from sparse_accel.prune.layerwise.taps import tap_order

MAX_M = 32  # of n:m


def _check_sparsity(sparsity: float) -> float:
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity: expected a number in [0, 1], the share removed, got {sparsity!r}")
    return float(sparsity)


@dataclasses.dataclass(frozen=True)
class Rows:
    """The same share of every row (output) is removed.

    Args:
        sparsity: in [0, 1]; ``round(sparsity * C)`` of the C weights of each row go.

    Raises:
        ValueError: ``sparsity`` is not in [0, 1].

    Example:
        >>> parse(Rows(0.25), (2, 4)).kept
        6
    """

    sparsity: float

    def __post_init__(self) -> None:
        _check_sparsity(self.sparsity)


@dataclasses.dataclass(frozen=True)
class GroupSparsity:
    """Whole groups are removed: input channels, output channels or kernels.

    Args:
        sparsity: in [0, 1]; ``round(sparsity * groups)`` groups go.
        by: ``"input"``, ``"output"``, ``"kernel"`` or ``"element"``, as in :class:`sparse_accel.Grouping`.

    Raises:
        ValueError: ``sparsity`` is not in [0, 1], or ``by`` is not one of the four.

    Example:
        >>> parse(GroupSparsity(0.5, by="input"), (2, 8), (2, 4, 2)).kept
        8
    """

    sparsity: float
    by: str = "input"

    def __post_init__(self) -> None:
        _check_sparsity(self.sparsity)
        if self.by not in BY:
            raise ValueError(f"by: expected one of {', '.join(map(repr, BY))}, got {self.by!r}")


@dataclasses.dataclass(frozen=True)
class BlockSparsity:
    """n of every m neighbouring weights of an output are kept; ``"n:m"`` is short for it.

    Args:
        n: kept of every block.
        m: weights of a block, up to 32.
        along: what neighbours are in a convolution's weight ``[out, in, kh, kw]``. ``"input"``: input channels at the
            same tap, as sparse tensor cores want it (the order of channels_last memory, kh × kw × in); a last block of
            fewer than m channels keeps n, or all that it has, so that with n or fewer input channels (of a group: a
            depthwise convolution has one) nothing is removed. ``"row"``: the flattened (in, kh, kw). Linear layers and
            1 × 1 convolutions know no difference.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> parse(BlockSparsity(2, 4), (1, 54), (1, 6, 3, 3)).kept, parse("2:4", (1, 54)).kept
        (36, 28)
    """

    n: int
    m: int
    along: str = "input"

    def __post_init__(self) -> None:
        numbers = not any(isinstance(x, bool) or not isinstance(x, int) for x in (self.n, self.m))
        if not numbers or not 1 <= self.n < self.m <= MAX_M:
            raise ValueError(f'sparsity: expected "n:m" with 1 <= n < m <= {MAX_M}, got {self.n!r}:{self.m!r}')
        if self.along not in ("input", "row"):
            raise ValueError(f"along: expected 'input' or 'row', got {self.along!r}")

    @staticmethod
    def read(text: str) -> BlockSparsity:
        """``"n:m"``.

        Raises:
            ValueError: it is not that.
        """
        match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
        if not match or not 1 <= int(match[1]) < int(match[2]) <= MAX_M:
            raise ValueError(f'sparsity: expected "n:m" with 1 <= n < m <= {MAX_M}, got {text!r}')
        return BlockSparsity(int(match[1]), int(match[2]))


Sparsity = float | str | Rows | GroupSparsity | BlockSparsity


def parse(sparsity: Sparsity, shape: tuple[int, int], weight_shape: tuple[int, ...] | None = None) -> Projection:
    """The projection that a target asks for, on a weight of some shape.

    Args:
        sparsity: a number in [0, 1], the share to remove over the whole tensor; ``"n:m"`` or :class:`BlockSparsity`, n
            kept of every m neighbours; :class:`Rows`; :class:`GroupSparsity`.
        shape: ``(R, C)`` of the weight as a matrix, one row per output.
        weight_shape: ``(R, in, ...)`` of the weight that the matrix is a view of, where groups or blocks are of a
            convolution's channels or kernels; ``shape`` if None.

    Raises:
        ValueError: a target that cannot be read, or out of range; ``weight_shape`` is no view of ``shape``.

    Example:
        >>> parse("2:4", (3, 8)).kept, parse(0.9, (3, 10)).kept
        (12, 3)
    """
    weight_shape = shape if weight_shape is None else tuple(weight_shape)
    if len(weight_shape) < 2 or weight_shape[0] != shape[0] or math.prod(weight_shape) != math.prod(shape):
        raise ValueError(f"shape: expected ({shape[0]}, ...) with {math.prod(shape)} weights, got {weight_shape}")
    if isinstance(sparsity, Rows):
        return _Rows(shape, shape[1] - round(sparsity.sparsity * shape[1]))
    if isinstance(sparsity, GroupSparsity):
        if sparsity.by != "element":
            return _Groups(shape, weight_shape, sparsity)
        sparsity = sparsity.sparsity
    if isinstance(sparsity, str):
        sparsity = BlockSparsity.read(sparsity)
    if isinstance(sparsity, BlockSparsity):
        taps = math.prod(weight_shape[2:])
        if sparsity.along == "row" or taps == 1:
            return _OfEvery(shape, sparsity.n, sparsity.m)
        return _OfEveryChannels(shape, sparsity.n, sparsity.m, taps)
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float):
        raise ValueError(f'sparsity: expected a number, "n:m", BlockSparsity, Rows or GroupSparsity, got {sparsity!r}')
    total = math.prod(shape)
    return _Elements(shape, total - round(_check_sparsity(sparsity) * total))


class Projection:
    """Which weights of an ``[R, C]`` matrix to keep.

    Attributes:
        kept: number of weights kept.
        density: share of the weights kept.
        in_row: number kept in each row, where every row is chosen on its own; else None.
        run, in_run: m and n of n:m, else 0.
        by: what the groups are, else ``"element"``.
        groups, of_groups: number of groups kept and in all, else 0.
        order: of the columns, in which :meth:`keep_` wants them, see
            :func:`~sparse_accel.prune.layerwise.taps.tap_order`; None: as they are.
    """

    in_row: int | None = None
    run = in_run = groups = of_groups = 0
    by = "element"
    order: Tensor | None = None

    def __init__(self, shape: tuple[int, int], kept: int) -> None:
        self.shape = shape
        self.kept = kept
        total = shape[0] * shape[1]
        self.density = kept / total if total else 1.0

    def keep_(self, x: Tensor) -> Tensor:
        """Set all but ``kept`` weights to zero, in place: those of the largest magnitude (groups: norm) stay.

        Args:
            x: contiguous ``[R, C]``, no NaN.

        Returns:
            What stays, bool ``[R, C]``; ties go to the lowest index.
        """
        raise NotImplementedError

    def stretch(self, start: int, stop: int) -> Projection:
        """The same target on some neighbouring columns; stretches that cover all columns keep ``kept`` together.

        Raises:
            ValueError: the target ties columns that are far from each other.
        """
        raise ValueError("sparsity: expected no groups for a method that goes weight by weight, got GroupSparsity")


class _Elements(Projection):
    def __init__(self, shape: tuple[int, int], kept: int) -> None:
        super().__init__(shape, kept)

    def keep_(self, x: Tensor) -> Tensor:
        return topk_threshold_(x, None, self.kept)

    def stretch(self, start: int, stop: int) -> Projection:
        return _Elements((self.shape[0], stop - start), _share(self.kept, start, stop, self.shape[1]))


class _Rows(Projection):
    in_row: int

    def __init__(self, shape: tuple[int, int], in_row: int) -> None:
        self.in_row = in_row
        super().__init__(shape, shape[0] * in_row)

    def keep_(self, x: Tensor) -> Tensor:
        return topk_threshold_(x, None, self.in_row, by="row")

    def stretch(self, start: int, stop: int) -> Projection:
        return _Rows((self.shape[0], stop - start), _share(self.in_row, start, stop, self.shape[1]))


class _OfEvery(Projection):
    """n of every m neighbours; a last run shorter than m keeps n, or all that it has."""

    in_row: int

    def __init__(self, shape: tuple[int, int], n: int, m: int) -> None:
        self.run, self.in_run = m, n
        self.in_row = shape[1] // m * n + min(n, shape[1] % m)
        super().__init__(shape, shape[0] * self.in_row)

    def keep_(self, x: Tensor) -> Tensor:
        return topk_threshold_(x, None, (self.in_run, self.run))

    def stretch(self, start: int, stop: int) -> Projection:
        return _OfEvery((self.shape[0], stop - start), self.in_run, self.run)


class _OfEveryChannels(_OfEvery):
    """n of every m input channels at each tap of a convolution: runs of columns in the order of the taps."""

    def __init__(self, shape: tuple[int, int], n: int, m: int, taps: int) -> None:
        rows, columns = shape
        channels = columns // taps
        self.order = tap_order(channels, taps, m)
        super().__init__((rows, len(self.order)), n, m)
        self.shape = shape
        self.kept = rows * taps * (channels // m * n + min(n, channels % m))
        self.density = self.kept / (rows * columns) if rows * columns else 1.0
        if self.kept == rows * columns:  # nothing to choose, and fillers would count
            self.order = None


class _Groups(Projection):
    def __init__(self, shape: tuple[int, int], weight_shape: tuple[int, ...], target: GroupSparsity) -> None:
        self.by = target.by
        self.layout = group_layout(torch.empty(weight_shape, device="meta"), target.by)
        self.of_groups = self.layout.num_groups
        self.groups = self.of_groups - round(target.sparsity * self.of_groups)
        super().__init__(shape, self.groups * self.layout.group_size)

    def keep_(self, x: Tensor) -> Tensor:
        return topk_threshold_(x, None, self.groups, by="group", layout=self.layout)


def _share(kept: int, start: int, stop: int, columns: int) -> int:
    """What some columns keep of the whole, rounded so that all stretches add up."""
    return round(kept * stop / columns) - round(kept * start / columns)
