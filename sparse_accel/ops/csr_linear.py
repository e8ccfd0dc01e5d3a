"""Products with weights in torch's CSR format, as one op: torch.compile and torch.export need not look inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._library import LIBRARY, register


def csr_linear(x: Tensor, crow: Tensor, col: Tensor, values: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    """``x @ W.T + bias`` with torch's own kernel. Gradients flow to ``x``, ``values`` and ``bias``.

    Args:
        x: ``[.., columns]``.
        crow: ``[rows + 1]`` of the CSR format.
        col: ``[kept]`` of the CSR format.
        values: ``[kept]`` of the dtype of ``x``.
        bias: ``[rows]``.
        rows: outputs.

    Example:
        >>> w = torch.tensor([[0.0, 2.0], [1.0, 0.0]]).to_sparse_csr()
        >>> csr_linear(torch.tensor([[3.0, -4.0]]), w.crow_indices(), w.col_indices(), w.values(), None, 2)
        tensor([[-8.,  3.]])
    """
    y: Tensor = torch.ops.sparse_accel.csr_linear(x, crow, col, values, bias, rows)
    return y


def _matrix(crow: Tensor, col: Tensor, values: Tensor, rows: int, columns: int) -> Tensor:
    return torch.sparse_csr_tensor(crow, col, values, (rows, columns), device=values.device, check_invariants=False)


def _run(x: Tensor, crow: Tensor, col: Tensor, values: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    columns = x.shape[-1]
    flat = x.reshape(-1, columns)
    y = (_matrix(crow, col, values, rows, columns) @ flat.t()).t()
    if bias is not None:
        y = y + bias
    return y.reshape(*x.shape[:-1], rows).contiguous()


def _fake(x: Tensor, crow: Tensor, col: Tensor, values: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))


register(
    "csr_linear", "(Tensor x, Tensor crow, Tensor col, Tensor values, Tensor? bias, SymInt rows) -> Tensor", _run, _fake
)


def _collect_run(dense: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    return dense[torch.arange(dense.shape[0], device=dense.device).repeat_interleave(crow.diff()), col]


register(
    "csr_collect",
    "(Tensor dense, Tensor crow, Tensor col) -> Tensor",
    _collect_run,
    lambda dense, crow, col: dense.new_empty(col.shape),
)
register(
    "csr_unpack",
    "(Tensor crow, Tensor col, Tensor values, SymInt rows, SymInt columns) -> Tensor",
    lambda crow, col, values, rows, columns: _matrix(crow, col, values, rows, columns).to_dense(),
    lambda crow, col, values, rows, columns: values.new_empty((rows, columns)),
)


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, crow, col, values, _, ctx.rows = inputs
    ctx.save_for_backward(x, crow, col, values)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, crow, col, values = ctx.saved_tensors
    of_x, of_values, of_bias = None, None, None
    flat = grad.reshape(-1, ctx.rows)
    if ctx.needs_input_grad[0]:
        of_x = (flat @ torch.ops.sparse_accel.csr_unpack(crow, col, values, ctx.rows, x.shape[-1])).view(x.shape)
    if ctx.needs_input_grad[3]:
        of_values = torch.ops.sparse_accel.csr_collect(flat.t() @ x.reshape(-1, x.shape[-1]), crow, col)
    if ctx.needs_input_grad[4]:
        of_bias = flat.sum(0)
    return of_x, None, None, of_values, of_bias, None


torch.library.register_autograd("sparse_accel::csr_linear", _backward, setup_context=_context, lib=LIBRARY)
