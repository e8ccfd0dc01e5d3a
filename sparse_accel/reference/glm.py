"""Plain-PyTorch twins of :mod:`sparse_accel.ops.glm`, written from the formulas: the tests' oracle, and what runs on
devices without kernels. Signatures are those of the ops; CSR rows come as values with their indices."""

from __future__ import annotations

import torch
from torch import Tensor


def slope(family: str, v: Tensor, targets: Tensor, delta: float = 1.0) -> Tensor:
    """Derivative of every row's loss by its predictor, ``[b]``."""
    if family == "binomial":
        sign = 1 - 2 * targets
        return sign * torch.sigmoid(sign * v)
    if family == "poisson":
        return v.exp() - targets
    return v - targets if family == "gaussian" else (v - targets).clamp(-delta, delta)


def loss(family: str, v: Tensor, targets: Tensor, delta: float = 1.0) -> Tensor:
    """Every row's loss, ``[b]``, up to terms of the targets alone."""
    if family == "binomial":
        return torch.nn.functional.softplus((1 - 2 * targets) * v)
    if family == "poisson":
        return v.exp() - targets * v
    size = (v - targets).abs()
    inner = size if family == "gaussian" else size.clamp(max=delta)
    return inner * (size - inner / 2)


def _curvature(family: str, v: Tensor, targets: Tensor, delta: float) -> Tensor:
    if family == "binomial":
        return torch.sigmoid(v) * torch.sigmoid(-v)
    if family == "poisson":
        return v.exp()
    return torch.ones_like(v) if family == "gaussian" else ((v - targets).abs() <= delta).to(v)


def dense_rows(values: Tensor, crow: Tensor | None, col: Tensor | None, columns: int) -> Tensor:
    """The rows as ``[b, columns]``."""
    if crow is None or col is None:
        return values
    rows = torch.repeat_interleave(torch.arange(crow.numel() - 1, device=crow.device), crow.diff())
    return values.new_zeros(crow.numel() - 1, columns).index_put_((rows, col), values)


def _single_steps(z: Tensor, rows: Tensor, targets: Tensor, lr: float, family: str, delta: float) -> Tensor:
    """xi of every row, ``[b]``: bisection on the predictor, which lies between u and u - lr |a|^2 slope(u)."""
    u, q = rows @ z, rows.square().sum(1)
    start = slope(family, u, targets, delta)
    if family == "gaussian":
        return -lr * start / (1 + lr * q)
    away = (u - lr * q * start).clamp(-1e300, 1e300)
    low, high = torch.minimum(u, away), torch.maximum(u, away)
    for _ in range(1100):  # the bracket may begin with 300 decades
        middle = low / 2 + high / 2
        if bool(((middle == low) | (middle == high)).all()):
            break
        over = middle + lr * q * slope(family, middle, targets, delta) > u
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    v = low / 2 + high / 2
    by_root = (v - u) / torch.where(q > 0, q, 1.0)
    by_slope = -lr * slope(family, v, targets, delta)
    return torch.where(lr * q * _curvature(family, v, targets, delta) < 1, by_slope, by_root)


def _joint_step(z: Tensor, rows: Tensor, targets: Tensor, lr: float, family: str, delta: float) -> tuple[Tensor, int]:
    """Damped Newton on the objective in x."""
    eta = lr / rows.shape[0]

    def objective(x: Tensor) -> Tensor:
        return eta * loss(family, rows @ x, targets, delta).sum() + (x - z).square().sum() / 2

    def residual(x: Tensor) -> Tensor:
        return x - z + eta * rows.T @ slope(family, rows @ x, targets, delta)

    x, iterations = z.clone(), 0
    eye = torch.eye(z.numel(), dtype=z.dtype, device=z.device)
    for _ in range(1000):
        r = residual(x)
        curve = eta * _curvature(family, rows @ x, targets, delta)
        step = torch.linalg.solve(eye + rows.T @ (curve[:, None] * rows), -r)
        t = 1.0
        while t > 1e-18 and not (
            residual(x + t * step).norm() < 0.9 * r.norm()
            or objective(x + t * step) <= objective(x) + 1e-4 * t * (step @ r) - 1e-15 * objective(x).abs()
        ):
            t /= 2
        if t <= 1e-18:
            break
        x, iterations = x + t * step, iterations + 1
    return x, iterations


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
    """Twin of ``torch.ops.sparse_accel.glm_prox``."""
    rows = dense_rows(values, crow, col, z.numel()).double()
    wide, y, iterations = z.double(), targets.double(), 0
    if rows.shape[0] == 0:
        x = wide.clone()
    elif mode == "joint":
        x, iterations = _joint_step(wide, rows, y, lr, family, delta)
    else:
        x = wide + rows.T @ _single_steps(wide, rows, y, lr, family, delta) / rows.shape[0]
    return x.to(z.dtype), torch.tensor(iterations, device=z.device)


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
    """Twin of ``torch.ops.sparse_accel.glm_epoch_``."""
    rows, y = dense_rows(values, crow, col, x.numel()).double(), targets.double()
    if average is not None:
        average.zero_()
    for k, i in enumerate(order.tolist()):
        z = x + beta * (x - x_prev)
        x_prev.copy_(x)
        xi = _single_steps(z.double(), rows[i : i + 1], y[i : i + 1], lr, family, delta)
        x.copy_(z.double() + xi * rows[i])
        if average is not None and k >= average_start:
            average += x
    if average is not None:
        average /= order.numel() - average_start
    return torch.zeros((), dtype=torch.int64, device=x.device)
