"""Any twice-differentiable loss, by automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .objective import Objective, as_shape, check_finite, check_float

_CHUNK = 64  # derivatives taken in one batched backward pass


class Problem(Objective):
    """Any twice-differentiable ``loss(theta)``; Hessian-vector products by autograd.

    Args:
        loss: without ``samples``, takes theta and returns a scalar. With ``samples``, takes theta and ``rows``, int64
            ``[m]``, and returns their losses ``[m]``; the problem is the mean over all samples. That is what
            minibatches and the curvature ``"fisher"`` need. With batch dimensions the results are ``[*batch]`` and
            ``[*batch, m]``, each of its own slice of theta.
        size: the shape of theta, or its length.
        initial: where to start, instead of ``size`` and zeros.
        samples: see ``loss``.
        batch_dims: the first dimensions of theta that count independent problems.
        dtype, device: of theta, without ``initial``; torch's defaults.

    Raises:
        ValueError: neither or both of size and initial; numbers that are not finite; when evaluated, a loss of another
            shape.
        TypeError: ``loss`` cannot be called, another dtype.

    Example:
        >>> from sparse_accel.sparse_recovery import solve
        >>> target = torch.tensor([[3.0, 0.1], [0.2, -2.0]])
        >>> problem = Problem(lambda theta: (theta - target).pow(2).sum() + theta.pow(4).sum(), (2, 2))
        >>> solve(problem, 2).theta
        tensor([[ 1.0000,  0.0000],
                [ 0.0000, -0.8351]])
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        size: int | Sequence[int] | None = None,
        *,
        initial: Tensor | None = None,
        samples: int | None = None,
        batch_dims: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if not callable(loss):
            raise TypeError(f"loss: expected a function of theta, got {type(loss).__name__}")
        if (size is None) == (initial is None):
            raise ValueError(f"size: expected either size or initial, got {'neither' if size is None else 'both'}")
        if initial is None:
            assert size is not None
            initial = torch.zeros(as_shape(size), dtype=dtype, device=device)
        check_float(initial, "initial")
        check_finite(initial, "initial")
        if not isinstance(batch_dims, int) or not 0 <= batch_dims <= initial.dim():
            raise ValueError(f"batch_dims: expected 0 to {initial.dim()}, got {batch_dims!r}")
        if samples is not None and (not isinstance(samples, int) or samples < 1):
            raise ValueError(f"samples: expected a whole number >= 1, got {samples!r}")
        self._loss = loss
        self.shape = initial.shape
        self.batch_dims = batch_dims
        self.samples = samples
        self.initial = initial.detach().reshape(self.batch_shape.numel(), self.size).clone()

    def _losses(self, theta: Tensor, rows: Tensor | None) -> Tensor:
        """``[B]``, or ``[B, m]`` with samples."""
        shaped = theta.view(self.shape)
        if self.samples is None:
            value, expected = self._loss(shaped), tuple(self.batch_shape)
        else:
            rows = torch.arange(self.samples, device=theta.device) if rows is None else rows
            value, expected = self._loss(shaped, rows), (*self.batch_shape, len(rows))
        if not isinstance(value, Tensor) or tuple(value.shape) != expected:
            came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss: expected a tensor of shape {expected}, got {came}")
        return value.reshape(len(theta), *value.shape[self.batch_dims :])

    def _mean(self, theta: Tensor, rows: Tensor | None) -> Tensor:
        value = self._losses(theta, rows)
        return value if self.samples is None else value.mean(-1)

    def loss(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            return self._mean(theta, rows).detach().to(theta.dtype)

    def gradient(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        return self._gradient(theta, rows, False)[1].detach()

    def _gradient(self, theta: Tensor, rows: Tensor | None, twice: bool) -> tuple[Tensor, Tensor]:
        """A leaf at theta and the gradient there."""
        with torch.enable_grad():
            leaf = theta.detach().clone().requires_grad_()
            value = self._mean(leaf, rows).sum()
            if not value.requires_grad:
                return leaf, torch.zeros_like(theta)
            (gradient,) = torch.autograd.grad(value, leaf, create_graph=twice, allow_unused=True)
        return leaf, torch.zeros_like(theta) if gradient is None else gradient

    def product(self, theta: Tensor, direction: Tensor, rows: Tensor | None = None) -> Tensor:
        leaf, gradient = self._gradient(theta, rows, True)
        return _pull(gradient, leaf, direction[None])[0]

    def _rows(self, theta: Tensor, index: Tensor, rows: Tensor | None) -> Tensor:
        """Rows ``index [B, k]`` of the Hessian: ``[B, k, d]``, in theta's dtype."""
        leaf, gradient = self._gradient(theta, rows, True)
        parts = []
        for part in index.split(_CHUNK, 1):
            units = torch.zeros(part.shape[1], *theta.shape, dtype=theta.dtype, device=theta.device)
            units.scatter_(2, part.T[..., None], 1.0)
            parts.append(_pull(gradient, leaf, units))
        return torch.cat(parts).movedim(0, 1) if parts else theta.new_zeros(len(theta), 0, theta.shape[1])

    def hessian(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        index = torch.arange(theta.shape[1], device=theta.device).expand(len(theta), -1)
        matrix = self._rows(theta, index, rows).double()
        return (matrix + matrix.mT) / 2

    def hessian_on(self, theta: Tensor, index: Tensor, rows: Tensor | None = None) -> Tensor:
        found = self._rows(theta, index, rows).double()
        matrix = found.gather(2, index[:, None].expand(-1, index.shape[1], -1))
        return (matrix + matrix.mT) / 2

    def diagonal(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        index = torch.arange(theta.shape[1], device=theta.device).expand(len(theta), -1)
        parts = [self._rows(theta, part, rows).gather(2, part[..., None])[..., 0] for part in index.split(_CHUNK, 1)]
        return torch.cat(parts, 1).double()

    def sample_gradients(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        if self.samples is None:
            raise ValueError("curvature: expected a problem with samples for 'fisher', got one without")
        with torch.enable_grad():
            leaf = theta.detach().clone().requires_grad_()
            losses = self._losses(leaf, rows)  # [B, m]
        parts = []
        for start in range(0, losses.shape[1], _CHUNK):
            count = min(_CHUNK, losses.shape[1] - start)
            units = losses.new_zeros(count, *losses.shape)
            own = torch.arange(count, device=units.device)
            units[own, :, start + own] = 1
            parts.append(_pull(losses, leaf, units))
        return torch.cat(parts).movedim(0, 1).double()


def _pull(outputs: Tensor, leaf: Tensor, weights: Tensor) -> Tensor:
    """Vector-Jacobian products with each of ``weights [c, *outputs.shape]``: ``[c, *leaf.shape]``."""
    if not outputs.requires_grad:
        return leaf.new_zeros(len(weights), *leaf.shape).detach()
    options = {"retain_graph": True, "allow_unused": True}
    if len(weights) > 1:
        try:
            (found,) = torch.autograd.grad(outputs, leaf, weights, is_grads_batched=True, **options)
            return leaf.new_zeros(len(weights), *leaf.shape).detach() if found is None else found.detach()
        except RuntimeError:  # an operation of the loss has no batching rule
            pass
    singles = [torch.autograd.grad(outputs, leaf, weight, **options)[0] for weight in weights]
    return torch.stack([leaf.new_zeros(leaf.shape).detach() if one is None else one.detach() for one in singles])
