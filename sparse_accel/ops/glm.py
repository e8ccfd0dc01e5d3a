"""Exact proximal steps of generalized linear models: the native ops behind :class:`sparse_accel.SPPAM`.

Families, for a row a, its target y and the predictor v = a.x:

==============  =====================================  ==============
family          loss                                   targets
==============  =====================================  ==============
``"gaussian"``  ``(v - y)^2 / 2``                      any
``"binomial"``  ``log(1 + e^v) - y v``                 0 or 1
``"poisson"``   ``e^v - y v``                          >= 0
``"huber"``     quadratic within ``delta`` of y, then  any
                linear
==============  =====================================  ==============

Source: Kim, Toulis and Kyrillidis, "Convergence and stability of the stochastic proximal point algorithm with
momentum", L4DC 2022 (arXiv 2111.06171).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_accel import reference

from ._library import call, has_kernels, kernels, register

FAMILIES = ("gaussian", "binomial", "poisson", "huber")
MODES = ("single", "average", "joint")


def glm_prox(
    z: Tensor,
    features: Tensor,
    targets: Tensor,
    lr: float,
    family: str = "gaussian",
    mode: str = "joint",
    *,
    delta: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The proximal step of a generalized linear model, solved to rounding for any step size.

    ``"single"``: ``x = z + xi a`` of one row with the root ``xi = -lr loss'(a.z + xi |a|^2)``. ``"average"``: z
    plus the mean of such steps, one per row, each from z. ``"joint"``: the minimizer of
    ``mean_i loss_i(a_i.x) + |x - z|^2 / (2 lr)``, by Newton with a line search on systems of min(b, d) unknowns
    (synchronizes with the device). All computation is in float64, whatever the tensors' dtype.

    Args:
        z: the point ``[d]`` to step from, float32 or float64.
        features: rows ``[b, d]`` of the dtype of ``z``, dense or ``torch.sparse_csr``.
        targets: ``[b]``.
        lr: step size, > 0.
        family: see the table in :mod:`sparse_accel.ops.glm`.
        mode: see above.
        delta: of the huber loss.

    Returns:
        The new point ``[d]`` and the number of Newton steps, ``[]`` int64: the most that a row took (0 in
        closed form: gaussian and huber), or those of the joint problem.

    Raises:
        ValueError: shapes, numbers or targets that do not fit; an unknown family or mode.
        TypeError: a dtype that does not fit.

    Example:
        >>> x, _ = glm_prox(torch.zeros(2), torch.tensor([[3.0, 4.0]]), torch.tensor([10.0]), lr=1e6)
        >>> x
        tensor([1.2000, 1.6000])
    """
    return call("glm_prox", z, *_rows(z, features), targets, float(lr), family, mode, float(delta))


def glm_epoch(
    x: Tensor,
    x_prev: Tensor,
    features: Tensor,
    targets: Tensor,
    order: Tensor,
    lr: float,
    beta: float = 0.0,
    family: str = "gaussian",
    *,
    delta: float = 1.0,
    average: Tensor | None = None,
    average_start: int = 0,
) -> Tensor:
    """A whole pass of implicit steps of single rows, one after another, in place and in one native call.

    For each i of ``order``: ``z = x + beta (x - x_prev)``, ``x_prev = x``, ``x = prox_{lr loss_i}(z)``. The work of
    CSR rows goes with their entries, with and without momentum.

    Each step needs the one before: on a GPU a single block takes them all, which pays only where the data are there
    anyway. The checks of data and order synchronize with the device, but copy neither.

    Args:
        x: the iterate ``[d]``, contiguous, float32 or float64; overwritten.
        x_prev: the iterate before it; overwritten.
        features: rows ``[n, d]`` of the dtype of ``x``, dense or ``torch.sparse_csr``.
        targets: ``[n]``.
        order: the row of each step, int64 ``[steps]``; rows may repeat.
        lr: step size, > 0.
        beta: momentum.
        family: see the table in :mod:`sparse_accel.ops.glm`.
        delta: of the huber loss.
        average: float64 ``[d]``, receives the mean of the iterates after steps ``average_start, ..., steps - 1``.
        average_start: see ``average``.

    Returns:
        The sum of all rows' Newton steps, ``[]`` int64.

    Raises:
        ValueError, TypeError: as :func:`glm_prox`; nothing has changed then.

    Example:
        >>> x, x_prev = torch.zeros(1), torch.zeros(1)
        >>> _ = glm_epoch(x, x_prev, torch.ones(3, 1), torch.tensor([1.0, 2.0, 3.0]), torch.arange(3), lr=1.0)
        >>> x
        tensor([2.1250])
    """
    rows = _rows(x, features)
    numbers = (float(lr), float(beta), family, float(delta))
    return call("glm_epoch_", x, x_prev, *rows, targets, order, *numbers, average, average_start)


def glm_loss(family: str, predictors: Tensor, targets: Tensor, delta: float = 1.0) -> Tensor:
    """Every row's loss, of the predictors' shape, up to terms of the targets alone; in plain tensor ops.

    Args:
        family: see the table in :mod:`sparse_accel.ops.glm`.
        predictors: ``a.x`` of every row.
        targets: of the same shape and dtype.
        delta: of the huber loss.

    Example:
        >>> glm_loss("gaussian", torch.tensor([3.0]), torch.tensor([1.0]))
        tensor([2.])
    """
    return reference.loss(family, predictors, targets, delta)


def _rows(point: Tensor, features: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Values with their CSR indices, or dense rows."""
    if features.layout == torch.strided:
        return features, None, None
    if features.layout != torch.sparse_csr:
        raise ValueError(f"features: expected a dense or a sparse_csr tensor, got {features.layout}")
    if features.dim() != 2 or features.shape[1] != point.numel():
        raise ValueError(f"features: expected shape [b, {point.numel()}], got {tuple(features.shape)}")
    return features.values(), features.crow_indices(), features.col_indices()


def _glm_prox(z: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    point, iterations = (kernels() if has_kernels(z) else reference).glm_prox(z, *arguments)
    return point, iterations


def _glm_prox_fake(z: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(z, memory_format=torch.contiguous_format), z.new_empty((), dtype=torch.int64)


def _glm_epoch(x: Tensor, *arguments: Any) -> Tensor:
    iterations: Tensor = (kernels() if has_kernels(x) else reference).glm_epoch_(x, *arguments)
    return iterations


def _glm_epoch_fake(x: Tensor, *arguments: Any) -> Tensor:
    return x.new_empty((), dtype=torch.int64)


register(
    "glm_prox",
    "(Tensor z, Tensor values, Tensor? crow, Tensor? col, Tensor targets, float lr, str family, str mode, "
    "float delta) -> (Tensor, Tensor)",
    _glm_prox,
    _glm_prox_fake,
)
register(
    "glm_epoch_",
    "(Tensor(a!) x, Tensor(b!) x_prev, Tensor values, Tensor? crow, Tensor? col, Tensor targets, "
    "Tensor order, float lr, float beta, str family, float delta, Tensor(c!)? average, int average_start) -> Tensor",
    _glm_epoch,
    _glm_epoch_fake,
)
