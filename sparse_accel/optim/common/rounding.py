"""State in bfloat16: steps in float32 on a part of the tensors at a time, and stochastic rounding back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

STATE_DTYPE, SEED, CLOCK = "state_dtype", "rounding_seed", "rounding_step"  # entries of a parameter group
DEFAULTS: dict[str, Any] = {STATE_DTYPE: None, SEED: 0, CLOCK: 0}
_ELEMENTS = 1 << 22  # that are held in float32 at a time, but for tensors that are larger
_MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93)


def check_state_dtype(group: dict[str, Any], others: Sequence[dict[str, Any]]) -> None:
    """Make the entry a plain value; ValueError where it is not known, or not for this group.

    Args:
        group: of parameters.
        others: all groups of the optimizer.
    """
    value = group[STATE_DTYPE]
    if value not in (None, torch.float32, torch.bfloat16, "bfloat16"):
        raise ValueError(f"state_dtype: expected torch.bfloat16, or None for float32, got {value!r}")
    group[STATE_DTYPE] = value = "bfloat16" if value in (torch.bfloat16, "bfloat16") else None
    if isinstance(group[SEED], bool) or not isinstance(group[SEED], int):
        raise ValueError(f"rounding_seed: expected a whole number, got {group[SEED]!r}")
    if others and others[0][STATE_DTYPE] not in (value, torch.bfloat16 if value else torch.float32):
        raise ValueError("state_dtype: expected one for all parameter groups")
    if value is None:
        return
    for name in ("differentiable", "capturable"):
        if group[name]:
            raise ValueError(f"{name}=True is not supported with state_dtype: the state is rounded at random")
    if any(param.dtype in (torch.float64, torch.complex128) for param in group["params"]):
        raise ValueError("state_dtype: expected parameters of float32 or less; float64 ones have state of float64")


def widened(lists: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """Lists of state, with copies in float32 in the place of bfloat16."""
    return [[value.float() if value.dtype == torch.bfloat16 else value for value in values] for values in lists]


def parts(tensors: Sequence[Tensor], together: bool) -> Iterator[list[int]]:
    """The numbers of tensors that are taken at a time; all of them, if so."""
    part: list[int] = []
    size = 0
    for number, tensor in enumerate(tensors):
        if part and not together and size + tensor.numel() > _ELEMENTS:
            yield part
            part, size = [], 0
        part.append(number)
        size += tensor.numel()
    if part:
        yield part


@torch.no_grad()
def round_(target: Tensor, value: Tensor, generator: torch.Generator) -> None:
    """Write float32 into bfloat16: up or down, at random, so that the mean is the value. What is a bfloat16 already,
    infinite or NaN stays.

    Args:
        target: bfloat16, of the shape of ``value``.
        value: float32; it then holds what was written.
        generator: on the device of both.

    Example:
        >>> value = torch.full((100_000,), 1.0 + 2**-9)  # a quarter of the way to the next
        >>> target = torch.empty(100_000, dtype=torch.bfloat16)
        >>> round_(target, value, torch.Generator().manual_seed(0))
        >>> target.unique().tolist(), bool(((target > 1).float().mean() - 0.25).abs() < 0.01)
        ([1.0, 1.0078125], True)
    """
    noise = torch.empty_like(value, dtype=torch.int32).random_(0, 1 << 16, generator=generator)
    rounded = noise.add_(value.view(torch.int32)).bitwise_and_(-(1 << 16)).view(torch.float32)
    value.copy_(torch.where(value.isfinite(), rounded, value))
    target.copy_(value)


class Rounding:
    """The random numbers of one step of a parameter group: they follow from its seed and its clock, which are plain
    values in the state, so that a resumed run has the same."""

    def __init__(self, group: dict[str, Any]) -> None:
        self._at = group[SEED], group[CLOCK]
        self._generators: dict[torch.device, torch.Generator] = {}

    def store(self, states: Sequence[Tensor], wide: Sequence[Tensor], which: Sequence[int], kind: int) -> None:
        """Round float32 state into its tensors, and ``wide`` with it.

        Args:
            states: bfloat16.
            wide: float32, as ``states``.
            which: the number of each in its batch.
            kind: which of the tensors of a parameter's state.
        """
        for state, value, number in zip(states, wide, which, strict=True):
            generator = self._generators.get(value.device)
            if generator is None:
                generator = self._generators[value.device] = torch.Generator(device=value.device)
            key = (*self._at, number, kind)
            generator.manual_seed(sum(factor * (one + 1) for factor, one in zip(_MIX, key, strict=True)) % (1 << 62))
            round_(state, value, generator)
