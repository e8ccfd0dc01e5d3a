"""The arguments of :mod:`sparse_accel.prune.layerwise.solve`, checked and scaled, and what its methods share.

The problem is ``min_W tr((W - W0) H (W - W0)^T)`` over sparse W. It is solved in coordinates in which H has a unit
diagonal: with ``s = sqrt(diag H)``, ``H / (s s^T)`` and ``W * s``. Masks and errors are the same in both.
"""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

logger = logging.getLogger("sparse_accel")

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DEAD = 1e-20  # curvature over the mean up to which an input counts as always zero
DEAD_SCALE = 1e-6  # scale of the columns of inputs that are always zero: behind all others, none of it in the error
MOST_DAMPING = 1.0


class LayerProblem:
    """The arguments, scaled; :func:`check` them before.

    Attributes:
        hessian: ``[C, C]`` with a unit diagonal and the damping, float32 (float64 for float64 weights).
        weight: ``[R, C]``, times the scale of each column.
        scale: ``[C]``.
        damping: what was added to the diagonal of H in the end, over its mean.
        dead: number of inputs that are always zero.
    """

    def __init__(self, weight: Tensor, hessian: Tensor, damping: float) -> None:
        self.original = weight.detach()
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.given = hessian.detach()
        wide = self.given.to(torch.promote_types(self.given.dtype, torch.float32))
        mean = float(wide.diagonal().double().mean()) if len(wide) else 0.0
        if math.isinf(mean):  # the sum overflows, not its terms
            mean = float((wide.diagonal().double() / len(wide)).sum())
        wide = wide / (mean or 1.0)
        self.unit = ((wide + wide.T) / 2).to(dtype)
        self.alive = self.unit.diagonal() > DEAD
        self.dead = int((~self.alive).sum())
        if self.dead:  # whatever rounding left in their rows is no curvature
            self.unit *= self.alive[:, None] & self.alive
        self._scaled(damping)

    def _scaled(self, damping: float) -> None:
        """Damp, escalating until H is positive definite; scale to a unit diagonal."""
        self.damping, attempts = damping, 0
        while True:
            diagonal = self.unit.diagonal() + self.damping
            self.scale = torch.where(self.alive, diagonal.sqrt(), DEAD_SCALE)
            self.hessian = self.unit / self.scale / self.scale[:, None]
            self.hessian.diagonal().fill_(1.0)
            _, fault = torch.linalg.cholesky_ex(self.hessian)
            if not int(fault):
                break
            attempts += 1
            if self.damping >= MOST_DAMPING:
                raise ValueError(
                    f"hessian: expected a positive semidefinite matrix, got one that is indefinite with "
                    f"{self.damping:.3g} of its mean diagonal added"
                )
            self.damping = min(MOST_DAMPING, max(10 * self.damping, _least_damping(self.hessian)))
        if attempts:
            logger.warning("hessian is not positive definite with damping %.3g: %.3g taken", damping, self.damping)
        weight = self.original.to(self.hessian.dtype)
        self.size = float(weight.abs().max()) if weight.numel() else 1.0
        self.size = self.size or 1.0
        self.weight = weight / self.size * self.scale

    def solution(self, scaled: Tensor) -> Tensor:
        """The weight in the dtype of the original from one in scaled coordinates, which is overwritten."""
        solution = scaled.div_(self.scale).mul_(self.size).to(self.original.dtype)
        if self.dead:  # their kept weights, to the bit
            columns = (~self.alive).nonzero().flatten()
            solution[:, columns] = self.original[:, columns] * (solution[:, columns] != 0)
        return solution

    def error(self, weight: Tensor) -> float:
        """``tr((W - W0) H (W - W0)^T) / tr(W0 H W0^T)`` with H as given, in float64; 0 / 0 is 0."""
        original = self.original.double()
        lost, total = _energy(weight.double() - original, self.given), _energy(original, self.given)
        if total:
            return lost / total
        return math.inf if lost else 0.0


def _energy(weight: Tensor, hessian: Tensor) -> float:
    """``tr(W H W^T)`` of float64 W, in float64; only the blocks of H on and above the diagonal are multiplied."""
    columns = weight.shape[1]
    width = max(64, columns // 8)
    total = 0.0
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        block = hessian[:stop, start:stop].to(torch.float64, copy=True)
        block[:start] += hessian[start:stop, :start].mT
        total += float((weight[:, :stop] @ block).mul_(weight[:, start:stop]).sum())
    return total


def _least_damping(hessian: Tensor) -> float:
    return 1e-6 if hessian.dtype == torch.float32 else 1e-12


def check(weight: Tensor, hessian: Tensor, damping: float) -> None:
    """Raise TypeError or ValueError unless the arguments make a problem; the message names the argument."""
    for name, tensor in (("weight", weight), ("hessian", hessian)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a Tensor, got {type(tensor).__name__}")
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{name}: expected a floating-point dtype, got {tensor.dtype}")
    if weight.dim() != 2:
        raise ValueError(f"weight: expected [R, C], one row per output, got {tuple(weight.shape)}")
    columns = weight.shape[1]
    if hessian.shape != (columns, columns):
        raise ValueError(f"hessian: expected [{columns}, {columns}], got {tuple(hessian.shape)}")
    if hessian.device != weight.device:
        raise ValueError(f"hessian: expected on {weight.device} as the weight is, got {hessian.device}")
    if not (damping >= 0 and math.isfinite(damping)):
        raise ValueError(f"damping: expected a finite number >= 0, got {damping}")
    for name, tensor in (("weight", weight), ("hessian", hessian)):
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name}: expected finite numbers, got NaN or inf")
    if not columns:
        return
    wide = hessian.detach().to(torch.promote_types(hessian.dtype, torch.float32))
    diagonal = wide.diagonal()
    if bool((diagonal < 0).any()):
        raise ValueError(f"hessian: expected a diagonal >= 0, got {float(diagonal.min()):.3g}")
    skew = float((wide - wide.T).abs().max())
    if skew > 1e-2 * float(diagonal.max()):
        raise ValueError(f"hessian: expected a symmetric matrix, got entries that differ by {skew:.3g}")


def conjugate_gradients(
    weight: Tensor, mask: Tensor, hessian: Tensor, steps: int, start: Tensor | None = None, least: float = 0.0
) -> tuple[Tensor, int]:
    """``argmin tr((X - W) H (X - W)^T)`` over X on the mask, by conjugate gradients, every row on its own.

    H has a unit diagonal: no preconditioner. Rows that have converged stay as they are.

    Args:
        weight: W ``[R, C]``.
        mask: bool ``[R, C]``.
        hessian: H ``[C, C]``.
        steps: products with H after the first, at most.
        start: where to begin, ``[R, C]``, zero outside of the mask; overwritten. W on the mask if None.
        least: end with the step that takes less than this share off the error.

    Returns:
        X, and the number of steps.
    """
    inside = mask.to(weight.dtype)
    solution = weight * inside if start is None else start
    change = weight - solution
    residual = change @ hessian
    error = float(change.mul_(residual).sum(dtype=torch.float64))
    residual.mul_(inside)
    direction = residual.clone()
    power = torch.linalg.vecdot(residual, residual)[:, None]
    image = torch.empty_like(residual)
    for step in range(1, steps + 1):
        torch.mm(direction, hessian, out=image)
        curvature = torch.linalg.vecdot(direction, image)[:, None]
        length = torch.where(curvature > 0, power / curvature, 0.0)
        solution.addcmul_(direction, length)
        gain = float((length * power).sum(dtype=torch.float64))
        if step == steps or gain < least * error:
            return solution, step
        error -= gain
        residual.addcmul_(image, length, value=-1).mul_(inside)
        last, power = power, torch.linalg.vecdot(residual, residual)[:, None]
        torch.addcmul(residual, direction, torch.where(last > 0, power / last, 0.0), out=direction)
    return solution, 0
