"""Tensors, layouts and tolerances for the tests of the native ops."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_accel.groups import BY, Grouping, GroupLayout, layout_of

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Relative to the largest value: sums of some thousand terms in float32, one rounding for half types.
SUM_TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 3e-6, torch.float16: 3e-6}
VALUE_TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}

SHAPES = {
    "linear": (37, 53),
    "one by one": (1, 1),
    "row": (1, 300),
    "column": (300, 1),
    "no outputs": (0, 5),
    "no inputs": (5, 0),
    "conv1d": (6, 4, 3),
    "conv2d": (16, 8, 3, 3),
    "conv2d 1x1": (24, 40, 1, 1),
    "conv2d long runs": (3, 5, 9, 11),
    "conv3d": (4, 3, 2, 3, 2),
    "depthwise": (12, 1, 3, 3),
}


def memory_orders(tensor: Tensor) -> dict[str, Tensor]:
    """The tensor in every memory order that a weight meets, by name."""
    orders = {"contiguous": tensor, "transposed": tensor.transpose(0, 1).contiguous().transpose(0, 1)}
    if tensor.dim() == 4:
        orders["channels_last"] = tensor.contiguous(memory_format=torch.channels_last)
    if tensor.dim() == 5:
        orders["channels_last"] = tensor.contiguous(memory_format=torch.channels_last_3d)
    return orders


def randn(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    """Normal numbers, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def weights(dtype: torch.dtype, device: torch.device, by: str) -> list[tuple[str, Tensor, GroupLayout]]:
    """Name, weight and layout, for all shapes and memory orders that admit a view of the grouping."""
    cases = []
    for seed, (name, shape) in enumerate(SHAPES.items()):
        for order, tensor in memory_orders(randn(shape, dtype, device, seed)).items():
            layout, of_own_memory = layout_of(tensor, Grouping(by))
            if of_own_memory:
                cases.append((f"{name}, {order}", tensor, layout))
    grouped = randn((12, 4, 3, 3), dtype, device, 99)  # three blocks of [4, 4, 9]
    cases.append(("grouped", grouped, layout_of(grouped, Grouping(by, conv_groups=3))[0]))
    return cases


def like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy in the same memory order."""
    return tensor.to(dtype or tensor.dtype, copy=True, memory_format=torch.preserve_format)


def assert_near(
    found: Tensor, expected: Tensor, tolerance: float, what: object = "", scale: float | None = None
) -> None:
    """Shapes and dtypes equal, NaN alike, values within `tolerance` of `scale` (the largest magnitude expected)."""
    assert found.shape == expected.shape, what
    assert found.dtype == expected.dtype, what
    if expected.numel():
        found, expected = found.double(), expected.double()
        scale = scale or max(expected.abs().max().item(), 1e-30)
        assert torch.equal(found.isnan(), expected.isnan()), what
        error = (found - expected).nan_to_num().abs().max().item() / scale
        assert error <= tolerance, (what, error)


__all__ = [
    "BY",
    "DTYPES",
    "SUM_TOLERANCE",
    "VALUE_TOLERANCE",
    "assert_near",
    "like",
    "memory_orders",
    "randn",
    "weights",
]
