"""Generalized linear models: checks, and how rows and targets are laid out for the kernels."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._module import check_device, kernels, on_cuda, shown
from .glm_joint import solve_joint


class Rows(NamedTuple):
    """Rows of a model with their targets; contiguous, on one device, without NaN among the targets."""

    values: Tensor  # [rows, columns], or [nnz] of CSR; float32 or float64
    crow: Tensor | None  # [rows + 1] int64
    col: Tensor | None  # [nnz] int64, ascending within each row
    targets: Tensor  # [rows] float64


@torch.no_grad()
def glm_prox(
    z: Tensor,
    values: Tensor,
    crow: Tensor | None,
    col: Tensor | None,
    targets: Tensor,
    lr: float,
    family: str,
    mode: str,
    delta: float,
) -> tuple[Tensor, Tensor]:
    """The new point and the number of Newton steps."""
    op = "glm_prox"
    if mode not in ("single", "average", "joint"):
        raise ValueError(f"{op}: mode: expected 'single', 'average' or 'joint', got {mode!r}")
    rows = _checked(op, z, values, crow, col, targets, family, lr, delta)
    if mode == "single" and rows.targets.numel() != 1:
        raise ValueError(f"{op}: mode 'single': expected one row, got {rows.targets.numel()}")
    iterations = z.new_zeros((), dtype=torch.int64)

    def average(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        kernels().glm_prox(x, *rows, lr, family, delta, out, iterations)
        return out

    point = z.contiguous()
    if mode != "joint":
        return average(point), iterations
    x, steps = solve_joint(point, *rows, lr, family, delta, average)
    return x, iterations.fill_(steps)


@torch.no_grad()
def glm_epoch_(
    x: Tensor,
    x_prev: Tensor,
    values: Tensor,
    crow: Tensor | None,
    col: Tensor | None,
    targets: Tensor,
    order: Tensor,
    lr: float,
    beta: float,
    family: str,
    delta: float,
    average: Tensor | None,
    average_start: int,
) -> Tensor:
    """The sum of the Newton steps, ``[]`` int64."""
    op = "glm_epoch"
    rows = _checked(op, x, values, crow, col, targets, family, lr, delta)
    if not math.isfinite(beta):
        raise ValueError(f"{op}: beta: expected a finite number, got {beta}")
    if x_prev.shape != x.shape or x_prev.dtype != x.dtype or x_prev.device != x.device:
        got = f"{list(x_prev.shape)}, {shown(x_prev.dtype)}, {x_prev.device}"
        raise ValueError(f"{op}: x_prev: expected shape, dtype and device of x, got {got}")
    if not (x.is_contiguous() and x_prev.is_contiguous()) or x.data_ptr() == x_prev.data_ptr() != 0:
        raise ValueError(f"{op}: x and x_prev: expected contiguous vectors that share no memory")
    if order.dim() != 1 or order.dtype != torch.int64 or order.device != x.device:
        got = f"shape {list(order.shape)}, {shown(order.dtype)}, {order.device}"
        raise ValueError(f"{op}: order: expected a vector of int64 on {x.device}, got {got}")
    steps = order.numel()
    if steps:
        low, high = (int(number) for number in order.aminmax())
        if low < 0 or high >= rows.targets.numel():
            known = f"[0, {rows.targets.numel()})"
            raise ValueError(f"{op}: order: expected rows in {known}, got numbers from {low} to {high}")
    if average is not None:
        fits = average.shape == x.shape and average.dtype == torch.float64 and average.device == x.device
        if not fits or not average.is_contiguous():
            got = f"{list(average.shape)}, {shown(average.dtype)}"
            raise ValueError(f"{op}: average: expected a contiguous float64 vector like x, got {got}")
        if not 0 <= average_start < steps:
            raise ValueError(
                f"{op}: average_start: expected 0 <= start < {steps}, the number of steps, got {average_start}"
            )
    iterations = x.new_zeros((), dtype=torch.int64)
    numbers = (lr, beta, family, delta, average, average_start)
    kernels().glm_epoch_(x, x_prev, *rows, order.contiguous(), *numbers, iterations)
    return iterations


def _checked(
    op: str,
    point: Tensor,
    values: Tensor,
    crow: Tensor | None,
    col: Tensor | None,
    targets: Tensor,
    family: str,
    lr: float,
    delta: float,
) -> Rows:
    """Every check is made here, before anything is written."""
    if point.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: expected float32 or float64, got {shown(point.dtype)}")
    if values.dtype != point.dtype:
        expected = f"expected the parameters' dtype, {shown(point.dtype)}, got {shown(values.dtype)}"
        raise TypeError(f"{op}: features: {expected}")
    for name, number in (("lr", lr), ("delta", delta)):
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"{op}: {name}: expected a finite number > 0, got {number}")
    if point.dim() != 1:
        raise ValueError(f"{op}: expected a vector of parameters, got shape {list(point.shape)}")
    if targets.dim() != 1:
        raise ValueError(f"{op}: targets: expected a vector, one number per row, got shape {list(targets.shape)}")
    if (crow is None) != (col is None):
        raise ValueError(f"{op}: expected crow_indices and col_indices, or neither")
    others: list[Any] = [values, targets, *(() if crow is None else (crow, col))]
    for tensor in others:
        if tensor.device != point.device:
            raise ValueError(f"{op}: expected one device, got {point.device} and {tensor.device}")
    count, columns = targets.numel(), point.numel()
    wide = targets.to(torch.float64).contiguous()
    if crow is None or col is None:
        if values.shape != (count, columns):
            expected = f"[{count}, {columns}] (targets, parameters)"
            raise ValueError(f"{op}: features: expected shape {expected}, got {list(values.shape)}")
        rows = Rows(values.contiguous(), None, None, wide)
    else:
        if crow.dim() != 1 or crow.numel() != count + 1:
            raise ValueError(
                f"{op}: crow_indices: expected {count + 1} numbers, one more than targets, got shape {list(crow.shape)}"
            )
        if col.dim() != 1 or values.dim() != 1 or col.numel() != values.numel():
            raise ValueError(
                f"{op}: col_indices: expected one for each of {values.numel()} values, got shape {list(col.shape)}"
            )
        begin, column = (index.to(torch.int64).contiguous() for index in (crow, col))
        rows = Rows(values.contiguous(), begin, column, wide)
    check_device(op, "x", point)
    if not (on_cuda(point) and _fits(rows, columns, family)):
        host = (None if part is None else part.cpu() for part in rows[1:])
        kernels().check_glm_data(op, *host, columns, family)  # says what is wrong
    return rows


def _fits(rows: Rows, columns: int, family: str) -> bool:
    """Whether ``check_glm_data`` would find nothing wrong, asked where the data are: one flag goes to the host."""
    targets, crow, col = rows.targets, rows.crow, rows.col
    if family not in ("gaussian", "binomial", "poisson", "huber"):
        return False
    good = [targets.isfinite()]
    if family == "poisson":
        good.append(targets >= 0)
    elif family == "binomial":
        good.append((targets == 0) | (targets == 1))
    if crow is not None and col is not None:
        count = col.numel()
        good += [crow[:1] == 0, crow[-1:] == count, crow.diff() >= 0, (col >= 0) & (col < columns)]
        begins = torch.zeros(count + 1, dtype=torch.bool, device=col.device)
        begins[crow.clamp(0, count)] = True  # where a row begins, any column may come before
        good.append((col.diff() > 0) | begins[1:count])
    return bool(torch.stack([part.all() for part in good]).all())
