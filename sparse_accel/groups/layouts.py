"""Which weights form a group, and how a group lies in memory.

Every grouping is one view of a tensor's memory, ``[blocks, outer, groups, inner]``: group ``g`` of block ``b``
owns ``x[b, :, g, :]``. Kernels take that view as four numbers, so that no op needs gather indices or a
transposed copy. ``blocks`` is 1 except for grouped convolutions and for 2-D kernels in channels_last memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

BY = ("input", "output", "kernel", "element")


class GroupLayout(NamedTuple):
    """A dense tensor's memory, read as ``[blocks, outer, groups, inner]``.

    Example:
        >>> GroupLayout(outer=8, groups=3, inner=9).group_size
        72
    """

    outer: int
    groups: int
    inner: int
    blocks: int = 1

    @property
    def num_groups(self) -> int:
        """Number of groups in the tensor, ``blocks * groups``."""
        return self.blocks * self.groups

    @property
    def group_size(self) -> int:
        """Number of elements of each group, ``outer * inner``."""
        return self.outer * self.inner

    @property
    def numel(self) -> int:
        """Number of elements of the tensor."""
        return self.num_groups * self.group_size


class Grouping(NamedTuple):
    """How a weight is cut into groups: by what, and which of its dimensions are the channels.

    Args:
        by: ``"input"`` (all weights that read one input channel), ``"output"`` (one filter or row),
            ``"kernel"`` (one spatial kernel), ``"element"`` (every weight on its own).
        transposed: the weight is ``[in, out / conv_groups, ...]`` as in ``nn.ConvTranspose2d``,
            not ``[out, in / conv_groups, ...]``.
        conv_groups: the convolution's ``groups``.
        stacked: the weight is a stack of matrices, such as the experts of a mixture: ``[..., out, in]``, or
            ``[..., in, out]`` if ``transposed``; each matrix has its own groups.

    Raises:
        ValueError: ``by`` is not one of the four, ``conv_groups`` is not positive, or a stack has some.
    """

    by: str
    transposed: bool = False
    conv_groups: int = 1
    stacked: bool = False

    def check(self) -> Grouping:
        """Return self; raise ValueError if a field is out of its range."""
        if self.by not in BY:
            raise ValueError(f"by: expected one of {', '.join(map(repr, BY))}, got {self.by!r}")
        if self.conv_groups < 1:
            raise ValueError(f"conv_groups: expected a positive number, got {self.conv_groups}")
        if self.stacked and self.conv_groups > 1:
            raise ValueError(f"conv_groups: expected 1 for a stack of matrices, got {self.conv_groups}")
        return self

    def group_dims(self, dim: int) -> set[int]:
        """The dimensions of a weight of ``dim`` dimensions that run over groups, not inside one.

        With ``conv_groups`` and the second dimension, the first runs over some groups and inside others: it is none.

        Example:
            >>> Grouping("input").group_dims(4), Grouping("kernel").group_dims(4)
            ({1}, {0, 1})
        """
        if self.by == "element":
            return set(range(dim))
        lead = dim - 2 if self.stacked else 0
        by_first = (self.by == "output") != self.transposed
        own = {lead, lead + 1} if self.by == "kernel" else {lead if by_first else lead + 1}
        return {*range(lead), *own}

    def of_part(self, sharded: set[int]) -> Grouping:
        """How a process's part of a weight is cut that is sharded along these dimensions.

        Raises:
            ValueError: ``conv_groups`` cut the first dimension into groups, and so does the sharding.
        """
        if self.conv_groups == 1 or 0 not in sharded or self.by == "element":
            return self
        if 0 not in self.group_dims(2):
            raise ValueError(
                f"by={self.by!r}: groups of a convolution with {self.conv_groups} groups whose weight is sharded along "
                "its first dimension lie across its parts: shard it along another, or leave it out of the penalty"
            )
        return self._replace(conv_groups=1)  # every index of the first dimension is a group of its own

    def applies_to(self, tensor: Tensor) -> bool:
        """Whether the tensor has such groups: elements always, channels from two dimensions on."""
        return self.by == "element" or tensor.dim() >= 2


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one contiguous stretch of memory, in any order of the dimensions.

    Example:
        >>> import torch
        >>> is_dense(torch.zeros(2, 3).t()), is_dense(torch.zeros(4, 4)[:, :2])
        (True, False)
    """
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if size == 0:
            return True
        if stride != expected:
            return False
        expected *= size
    return True


def group_layout(tensor: Tensor, grouping: Grouping | str) -> GroupLayout:
    """The layout of a weight's memory under a grouping.

    Groups are numbered by channel (``"kernel"``: first weight dimension times second), whatever the strides. For
    a tensor that is not dense, or whose strides admit no such view, it is the layout of ``tensor.contiguous()``;
    :func:`layout_of` tells which.

    Args:
        tensor: a weight; two or more dimensions unless ``by="element"``.
        grouping: a :class:`Grouping`, or its ``by``.

    Raises:
        ValueError: the tensor has no such groups, or ``conv_groups`` does not divide its channels.

    Example:
        >>> import torch
        >>> group_layout(torch.zeros(16, 8, 3, 3), "input")
        GroupLayout(outer=16, groups=8, inner=9, blocks=1)
    """
    return layout_of(tensor, grouping)[0]


def layout_of(tensor: Tensor, grouping: Grouping | str) -> tuple[GroupLayout, bool]:
    """As :func:`group_layout`, with whether the layout is of the tensor's own memory (else of a contiguous copy).

    Example:
        >>> import torch
        >>> layout_of(torch.zeros(4, 6)[:, ::2], "input")
        (GroupLayout(outer=4, groups=3, inner=1, blocks=1), False)
    """
    if isinstance(grouping, str):
        grouping = Grouping(grouping)
    grouping.check()
    dense = is_dense(tensor)
    if grouping.by == "element":
        return GroupLayout(1, tensor.numel(), 1), dense
    if tensor.dim() < 2:
        raise ValueError(f"by={grouping.by!r}: expected a weight of two or more dimensions, got {tuple(tensor.shape)}")
    sizes, keys = _roles(tuple(tensor.shape), grouping)
    if tensor.numel() == 0:
        num_groups = _product(size for size, key in zip(sizes, keys, strict=True) if key is not None)
        return GroupLayout(tensor.numel() // num_groups if num_groups else 0, num_groups, 1), True
    if dense:
        layout = _layout_from_strides(sizes, keys, _split_strides(tensor, grouping))
        if layout is not None:
            return layout, True
    contiguous = _contiguous_strides(sizes)
    layout = _layout_from_strides(sizes, keys, contiguous)
    assert layout is not None  # the contiguous order of every grouping is a view
    return layout, False


def _roles(shape: tuple[int, ...], grouping: Grouping) -> tuple[list[int], list[int | None]]:
    """The weight's sizes with its first dimension split by ``conv_groups``, and beside each its place in the
    group's number (0 = most significant), or None where the dimension runs inside a group."""
    by_first = (grouping.by == "output") != grouping.transposed
    if grouping.stacked:
        lead = len(shape) - 2
        own = [lead, lead + 1] if grouping.by == "kernel" else [lead, None] if by_first else [None, lead]
        return list(shape), [*range(lead), *own]
    first, second, *kernel = shape
    if first % grouping.conv_groups:
        raise ValueError(f"conv_groups: expected a divisor of {first} (shape {shape}), got {grouping.conv_groups}")
    sizes = [grouping.conv_groups, first // grouping.conv_groups, second, *kernel]
    inside: list[int | None] = [None] * len(kernel)
    if grouping.by == "kernel":
        return sizes, [0, 1, 2, *inside]
    return sizes, [0, 1, None, *inside] if by_first else [0, None, 1, *inside]


def _split_strides(tensor: Tensor, grouping: Grouping) -> list[int]:
    first, *rest = tensor.stride()
    if grouping.stacked:
        return [first, *rest]
    return [first * (tensor.shape[0] // grouping.conv_groups), first, *rest]


def _contiguous_strides(sizes: list[int]) -> list[int]:
    strides = [1] * len(sizes)
    for i in range(len(sizes) - 2, -1, -1):
        strides[i] = strides[i + 1] * sizes[i + 1]
    return strides


def _layout_from_strides(sizes: list[int], keys: list[int | None], strides: list[int]) -> GroupLayout | None:
    """[blocks, outer, groups, inner] if memory order has that shape and numbers groups by channel, else None."""
    order = sorted((i for i in range(len(sizes)) if sizes[i] != 1), key=lambda i: -strides[i])
    numbers = [key for key in (keys[i] for i in order) if key is not None]
    if numbers != sorted(numbers):
        return None
    runs: list[tuple[bool, int]] = []  # (numbers groups, product of the sizes), neighbours merged
    for i in order:
        numbers_groups = keys[i] is not None
        if runs and runs[-1][0] == numbers_groups:
            runs[-1] = (numbers_groups, runs[-1][1] * sizes[i])
        else:
            runs.append((numbers_groups, sizes[i]))
    inner = runs.pop()[1] if runs and not runs[-1][0] else 1
    groups = runs.pop()[1] if runs else 1
    outer = runs.pop()[1] if runs else 1
    blocks = runs.pop()[1] if runs else 1
    return None if runs else GroupLayout(outer, groups, inner, blocks)


def _product(numbers: Iterator[int]) -> int:
    out = 1
    for number in numbers:
        out *= number
    return out
