"""Channel identities: a union-find over slots, and values whose elements are labelled with slots.

A *slot* is one channel as some parameter sees it, for example row 3 of ``conv1.weight``. Operations tie slots
together (``conv1``'s row 3, its BatchNorm's entry 3, column 3 of every consumer); tied slots form one *class*,
which is removed as a whole or kept. Slot 0 stands for everything that must stay.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

PINNED = 0


class Slots:
    """Union-find over channel slots; the class of slot 0 is never removed.

    Beside the classes it knows their *sums*: what is tied otherwise than by a product of activations. A gate's channels
    go together with those that it multiplies, but they are no part of the same sum.

    Example:
        >>> slots = Slots()
        >>> rows = slots.new(2)
        >>> slots.unite(rows[:1], rows[1:])
        >>> slots.roots(rows).tolist()
        [1, 1]
    """

    def __init__(self) -> None:
        self._parent = np.array([PINNED])  # with room for more
        self._sums: np.ndarray | None = None  # the same without products; None while there has been no product
        self._count = 1

    def __len__(self) -> int:
        return self._count

    def new(self, count: int) -> Tensor:
        """``count`` fresh slots, int64 ``[count]``."""
        first, self._count = self._count, self._count + count
        if self._count > len(self._parent):
            room = np.arange(len(self._parent), 2 * self._count)
            self._parent = np.concatenate([self._parent, room])
            if self._sums is not None:
                self._sums = np.concatenate([self._sums, room])
        return torch.arange(first, self._count, device="cpu")

    def find(self, slot: int) -> int:
        """The representative of the slot's class: its smallest member."""
        return int(_find(self._parent, np.array([slot]))[0])

    def unite(self, left: Tensor, right: Tensor, *, product: bool = False) -> None:
        """Tie ``left[i]`` to ``right[i]`` for every i (any shapes that broadcast).

        Args:
            left: slots.
            right: slots.
            product: they meet as factors of a product, so that they stay apart in :meth:`sums`.
        """
        left, right = torch.broadcast_tensors(left, right)
        pairs = np.unique(left.reshape(-1).numpy() * self._count + right.reshape(-1).numpy())
        if product and self._sums is None:
            self._sums = self._parent.copy()
        for parent in [self._parent] if product or self._sums is None else [self._parent, self._sums]:
            _unite(parent, *np.divmod(pairs, self._count))

    def pin(self, labels: Tensor) -> None:
        """Mark every slot in ``labels`` as one that must stay."""
        self._parent[_find(self._parent, np.unique(labels.numpy()))] = PINNED

    def roots(self, labels: Tensor | None = None) -> np.ndarray:
        """The class of each slot in ``labels`` (of all slots without it), int64."""
        return _find(self._parent, np.arange(self._count) if labels is None else labels.reshape(-1).numpy())

    def sums(self, labels: Tensor | None = None) -> np.ndarray:
        """The sum of each slot in ``labels`` (of all slots without it), by its smallest member, int64.

        Example:
            >>> slots = Slots()
            >>> rows = slots.new(3)
            >>> slots.unite(rows[:1], rows[1:2], product=True)
            >>> slots.unite(rows[:1], rows[2:])
            >>> slots.roots(rows).tolist(), slots.sums(rows).tolist()
            ([1, 1, 1], [1, 2, 1])
        """
        parent = self._parent if self._sums is None else self._sums
        return _find(parent, np.arange(self._count) if labels is None else labels.reshape(-1).numpy())


def _find(parent: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """The roots of some slots, whose paths are cut short."""
    while True:
        roots = parent[slots]
        above = parent[roots]
        if np.array_equal(above, roots):
            return roots
        parent[slots] = above


def _unite(parent: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Tie pairs of slots: the smaller of two roots is that of both."""
    while True:
        left, right = _find(parent, left), _find(parent, right)
        apart = left != right
        if not apart.any():
            return
        left, right = left[apart], right[apart]
        low, high = np.minimum(left, right), np.maximum(left, right)
        # A root that is to hang from several gets the smallest, which is written last; the next round ties the others.
        order = np.argsort(-low, kind="stable")
        parent[high[order]] = low[order]


def shrink(core: Tensor) -> Tensor:
    """The tensor with every dimension along which it does not vary cut to size 1.

    Example:
        >>> shrink(torch.tensor([[1, 2], [1, 2]])).tolist()
        [[1, 2]]
    """
    for dim, (size, stride) in enumerate(zip(core.shape, core.stride(), strict=True)):
        if size > 1 and stride == 0:
            core = core.narrow(dim, 0, 1)
    for dim, size in enumerate(core.shape):
        if size > 1:
            head = core.narrow(dim, 0, 1)
            if bool((core == head).all()):
                core = head
    return core


def tie_along(slots: Slots, labels: Tensor, dim: int) -> Tensor:
    """Tie all slots along one dimension: they go together. The labels, that dimension cut to size 1.

    Example:
        >>> slots = Slots()
        >>> labels = slots.new(4).reshape(2, 2)
        >>> tie_along(slots, labels, 1).tolist(), slots.roots(labels).tolist()
        ([[1], [3]], [1, 1, 3, 3])
    """
    first = labels.narrow(dim, 0, 1)
    slots.unite(first, labels)
    return first


def along(vector: Tensor, dim: int, ndim: int) -> Tensor:
    """``vector`` [n] as a tensor of ``ndim`` dimensions that varies along ``dim`` alone."""
    shape = [1] * ndim
    shape[dim] = vector.numel()
    return vector.reshape(shape)


@dataclass
class Value:
    """What is known of one tensor of the forward pass.

    Attributes:
        shape: the tensor's shape.
        labels: slot of every element, int64; size 1 in dimensions along which it does not vary.
        const: whether an element is the same for every input of the model, bool, shaped likewise.
        matrix: set when the tensor is a 2-D parameter or its transpose: (its name, transposed).
        source: index of the :class:`~sparse_accel.channels.graph.Read` that computed the tensor.
        uses: number of operations that took the tensor.
    """

    shape: torch.Size
    labels: Tensor
    const: Tensor
    matrix: tuple[str, bool] | None = None
    source: int | None = None
    uses: int = field(default=0, compare=False)

    @classmethod
    def opaque(cls, shape: Sequence[int], const: bool = False) -> Value:
        """A tensor none of whose channels may go."""
        ones = [1] * len(shape)
        return cls(
            torch.Size(shape), torch.zeros(ones, dtype=torch.int64, device="cpu"), torch.full(ones, const, device="cpu")
        )

    def varying(self) -> set[int]:
        """The dimensions along which the labels vary: those that hold channels."""
        return {dim for dim, size in enumerate(self.labels.shape) if size > 1}

    def full_labels(self) -> Tensor:
        """The labels, expanded to the tensor's shape."""
        return self.labels.expand(self.shape)

    def full_const(self) -> Tensor:
        """The constant mask, expanded to the tensor's shape."""
        return self.const.expand(self.shape)

    def is_pinned(self) -> bool:
        """Whether no element belongs to a channel that could go."""
        return self.labels.numel() == 1 and int(self.labels) == PINNED


def reduce_all(mask: Tensor, dims: Iterable[int]) -> Tensor:
    """``mask.all`` over several dimensions, which stay with size 1."""
    for dim in dims:
        mask = mask.all(dim, keepdim=True)
    return mask


def by_group(weight: Tensor, groups: int) -> Tensor:
    """A weight [first, second, ...] as [groups, first / groups, second, kernel], of any number of kernel dimensions."""
    first, second, *kernel = weight.shape
    return weight.reshape(groups, first // groups, second, math.prod(kernel))


def channel_rows(core: Tensor, dim: int, size: int) -> Tensor:
    """The tensor as [size, rest], ``dim`` first and expanded to ``size``."""
    rest = math.prod(core.shape) // core.shape[dim]
    return core.movedim(dim, 0).reshape(core.shape[dim], rest).expand(size, rest)
