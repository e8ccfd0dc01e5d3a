"""Conjugate gradients on what a mask keeps: products with H by torch, the work on rows by kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ._module import check_device, check_dtype, kernels, shown

_OP = "masked_cg"


@torch.no_grad()
def masked_cg(w: Tensor, mask: Tensor, h: Tensor, iters: int, start: Tensor | None) -> Tensor:
    """X ``[R, C]``."""
    check_dtype(_OP, "W", w, (torch.float32, torch.float64))
    if w.dim() != 2:
        raise ValueError(f"{_OP}: W: expected a matrix, got shape {list(w.shape)}")
    rows, columns = w.shape
    _check_like("W", w, w, w.dtype, (rows, columns))
    _check_like("mask", mask, w, torch.bool, (rows, columns))
    _check_like("H", h, w, w.dtype, (columns, columns))
    if start is not None:
        _check_like("start", start, w, w.dtype, (rows, columns))
    if iters < 0:
        raise ValueError(f"{_OP}: iters: expected a number >= 0, got {iters}")
    check_device(_OP, "W", w)
    w, mask, zero = w.contiguous(), mask.contiguous(), w.new_zeros(())
    x = torch.where(mask, w if start is None else start, zero).contiguous()
    if x.numel() == 0 or iters == 0:
        return x
    diagonal = h.diagonal().contiguous()
    inverse = torch.where(diagonal > 0, diagonal.reciprocal(), zero)
    r, p, q = torch.mm(w - x, h).contiguous(), torch.empty_like(x), torch.empty_like(x)
    rz = w.new_empty(rows, dtype=torch.float64)
    work = (mask, w, x, r, p, q, diagonal, inverse, rz, torch.empty_like(rz))
    run = kernels().masked_cg_rows
    going = run(*work, True)
    for _ in range(iters):
        if going == 0:
            break
        torch.mm(p, h, out=q)
        going = run(*work, False)
    return x


def _check_like(name: str, t: Tensor, w: Tensor, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    if t.layout != torch.strided:
        raise TypeError(f"{_OP}: {name}: expected a dense tensor, got {shown(t.layout)}")
    if t.dtype != dtype:
        raise TypeError(f"{_OP}: {name}: expected {shown(dtype)}, got {shown(t.dtype)}")
    if t.device != w.device:
        raise ValueError(f"{_OP}: {name}: expected the device of W, {w.device}, got {t.device}")
    if t.shape != shape:
        raise ValueError(f"{_OP}: {name}: expected shape {list(shape)}, got {list(t.shape)}")
