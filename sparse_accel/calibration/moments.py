"""Second moments of layer inputs, streamed: the Gram matrices of the columns that a linear map sees."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_accel.calibration.columns import column_chunks, column_count, columns
from sparse_accel.calibration.data import all_reduce_
from sparse_accel.calibration.powers import SAFE, magnitude, times_power
from sparse_accel.calibration.ranks import fewest

__all__ = ["Gram", "column_chunks", "column_count", "columns"]


PANEL_BYTES = 1 << 23  # of a large matrix that is worked on in panels
PANEL_ROWS = 256  # of a product that is symmetric


def _panels(matrix: Tensor) -> list[slice]:
    """Rows of ``[groups, rows, columns]`` in panels of about ``PANEL_BYTES``."""
    groups, rows, columns = matrix.shape
    step = max(1, PANEL_BYTES // max(1, groups * columns * matrix.element_size()))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def symmetrize_(matrix: Tensor) -> Tensor:
    """``(A + A^T) / 2`` in the place of A, ``[n, n]``, in panels.

    Example:
        >>> symmetrize_(torch.tensor([[1.0, 2.0], [4.0, 3.0]])).tolist()
        [[1.0, 3.0], [3.0, 3.0]]
    """
    for rows in _panels(matrix[None]):
        half = matrix[rows, rows.start :].add(matrix[rows.start :, rows].mT).div_(2)
        matrix[rows, rows.start :] = half
        matrix[rows.start :, rows] = half.mT
    return matrix


class Gram:
    """Streamed first and second moments of columns ``H`` and, if asked for, their products with targets ``T``.

    Products are taken in the columns' precision (float32 at least) and summed in ``dtype``. With ``centred`` the
    columns are shifted by their first batch's mean before the product, so that a large mean costs no digits. Columns
    and targets whose squares would leave the range of float32 are divided by a power of two first, which is exact.

    Args:
        groups: independent sets of columns (of a grouped convolution).
        features: rows of the columns, D.
        targets: rows of the targets, T; 0 for none.
        centred: moments about the means, or about zero.
        dtype: of the sums.
        device: of the sums.

    Attributes:
        count: columns seen.

    Example:
        >>> gram = Gram(1, 2, centred=False)
        >>> gram.update(torch.tensor([[[1.0, 2.0], [0.0, 1.0]]]))
        >>> gram.gram[0].tolist()
        [[5.0, 2.0], [2.0, 1.0]]
    """

    def __init__(
        self,
        groups: int,
        features: int,
        targets: int = 0,
        *,
        centred: bool = True,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        self.centred = centred
        self.count = 0
        self._shift: Tensor | None = None  # [g, D + T, 1]
        self._features = features
        # What all sums are taken of: columns / 2^power, targets / 2^power; None until one is not zero.
        self._powers: list[int | None] = [None, None]
        self._sum = torch.zeros(groups, features + targets, dtype=dtype, device=device)
        self._products = torch.zeros(groups, features + targets, features, dtype=dtype, device=device)

    @staticmethod
    def bytes_needed(groups: int, features: int, targets: int = 0, dtype: torch.dtype = torch.float64) -> int:
        """Bytes that the sums of such a Gram take."""
        return groups * (features + targets) * (features + 1) * dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the sums."""
        return self._sum.nbytes + self._products.nbytes

    def update(self, columns: Tensor, targets: Tensor | None = None) -> None:
        """Add columns.

        Args:
            columns: [groups, D, N]
            targets: [groups, T, N]
        """
        rows = columns if targets is None else torch.cat([columns, targets.to(columns.dtype)], 1)
        if rows.dtype not in (torch.float32, torch.float64):
            rows = rows.float()
        expected = (*self._sum.shape, columns.shape[2])
        if rows.shape != expected:
            raise ValueError(f"columns and targets: expected shape {list(expected)} together, got {list(rows.shape)}")
        if not rows.shape[2]:
            return
        rows = self._in_range(rows)
        if self.centred:
            if self._shift is None:
                self._shift = rows.mean(2, keepdim=True)
            rows = rows - self._shift.to(rows.dtype)
        self._sum += rows.sum(2, dtype=self._sum.dtype).to(self._sum.device)
        with torch.autocast(rows.device.type, enabled=False):
            self._add_products(rows)
        self.count += rows.shape[2]

    def _add_products(self, rows: Tensor) -> None:
        """Products of all rows with the columns; of many columns with each other, each only once."""
        features = self._features
        if features < 2 * PANEL_ROWS:
            self._products += (rows @ rows[:, :features].mT).to(self._products)
            return
        for start in range(0, features, PANEL_ROWS):
            own = slice(start, min(start + PANEL_ROWS, features))
            part = (rows[:, own] @ rows[:, : own.stop].mT).to(self._products)
            self._products[:, own, : own.stop] += part
            self._products[:, :start, own] += part[:, :, :start].mT
        if rows.shape[1] > features:
            self._products[:, features:] += (rows[:, features:] @ rows[:, :features].mT).to(self._products)

    def _in_range(self, rows: Tensor) -> Tensor:
        """Rows over their powers of two, which grow where rows are larger than those before."""
        parts = (rows[:, : self._features], rows[:, self._features :])
        for which, part in enumerate(parts):
            largest, power = magnitude(part), self._powers[which]
            if largest is not None and (power is None or largest - power > SAFE):
                self._rescale(which, 0 if abs(largest) <= SAFE else largest)
        if not any(self._powers):
            return rows
        return torch.cat([times_power(part, -(power or 0)) for part, power in zip(parts, self._powers, strict=True)], 1)

    def _rescale(self, which: int, power: int) -> None:
        """Sums of the columns (0) or the targets (1) over another power of two."""
        change = (self._powers[which] or 0) - power
        self._powers[which] = power
        if change:
            own = slice(0, self._features) if not which else slice(self._features, None)
            for sums in (self._sum, self._products, *([] if self._shift is None else [self._shift])):
                sums[:, own] = times_power(sums[:, own], change)
            if not which:  # the products' second factor
                self._products = times_power(self._products, change)

    def _times(self, tensor: Tensor, columns: int, targets: int) -> Tensor:
        """A result in units of so many columns and targets."""
        return times_power(tensor, columns * (self._powers[0] or 0) + targets * (self._powers[1] or 0))

    def all_reduce_(self) -> None:
        """Join the moments of all ranks: every rank then holds the same."""
        for which, power in enumerate(self._powers):
            largest = -fewest(10_000 if power is None else -power, self._sum.device)
            if largest != -10_000:
                self._rescale(which, largest)
        if self.centred:
            shift = torch.zeros_like(self._sum) if self._shift is None else self._shift[..., 0].to(self._sum)
            mean = shift + self._sum / max(1, self.count)
            count = torch.tensor(float(self.count), dtype=torch.float64, device=self._sum.device)
            total = mean * self.count
            all_reduce_([count, total])
            common = total / count.clamp(min=1)
            offset = mean - common
            self._centre_()
            for rows in _panels(self._products):
                self._products[:, rows] += self.count * offset[:, rows, None] * offset[:, None, : self._features]
            all_reduce_([self._products])
            self._shift, self._sum = common[..., None], torch.zeros_like(self._sum)
        else:
            count = torch.tensor(float(self.count), dtype=torch.float64, device=self._sum.device)
            all_reduce_([count, self._sum, self._products])
        self.count = round(float(count))

    def _centre_(self) -> None:
        """Take the products about the mean of the columns, in place: the sums must follow."""
        mean = self._sum / max(1, self.count)
        for rows in _panels(self._products):
            self._products[:, rows] -= self.count * mean[:, rows, None] * mean[:, None, : self._features]

    def _centred_products(self) -> Tensor:
        if not self.centred:
            return self._products
        mean = self._sum / max(1, self.count)
        return self._products - self.count * mean[:, :, None] * mean[:, None, : self._features]

    def take(self) -> tuple[Tensor, Tensor]:
        """:attr:`gram` and :attr:`cross`, to the same bits, without a copy of the sums, which are gone then."""
        if self.centred:
            self._centre_()
        square, cross = self._products[:, : self._features], self._products[:, self._features :]
        cross = self._times(cross.clone(), 1, 1)
        for own in square:
            symmetrize_(own)
        gram = self._times(square, 2, 0)
        if cross.shape[1]:  # or they would keep the memory of both
            gram = gram.clone()
        self._products = self._products.new_empty(0)
        return gram, cross

    def _mean(self) -> Tensor:
        mean = self._sum / max(1, self.count)
        return mean if self._shift is None else mean + self._shift[..., 0].to(mean)

    @property
    def hessian(self) -> Tensor:
        """:attr:`gram` over a power of four: for what does not depend on a common factor."""
        square = self._centred_products()[:, : self._features]
        return (square + square.mT) / 2

    @property
    def gram(self) -> Tensor:
        """Sum of ``h hᵀ`` (about the mean if centred), symmetric, [groups, D, D]."""
        return self._times(self.hessian, 2, 0)

    @property
    def cross(self) -> Tensor:
        """Sum of ``t hᵀ`` (about the means if centred), [groups, T, D]."""
        return self._times(self._centred_products()[:, self._features :], 1, 1)

    @property
    def mean(self) -> Tensor:
        """Mean column, [groups, D]."""
        return self._times(self._mean()[:, : self._features], 1, 0)

    @property
    def target_mean(self) -> Tensor:
        """Mean target, [groups, T]."""
        return self._times(self._mean()[:, self._features :], 0, 1)
