"""What the ops share: the ``torch.library`` namespace, the native module, and the way to it.

CPU and CUDA tensors run the kernels of ``csrc``; every other device runs the plain twins of
:mod:`sparse_accel.reference`. Layouts describe a tensor's memory (:func:`sparse_accel.groups.group_layout`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_accel import _op_sharding, native, reference
from sparse_accel.groups import GroupLayout

LIBRARY = torch.library.Library("sparse_accel", "DEF")
_names: list[str] = []


def register(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define an op of the ``sparse_accel`` namespace: its kernel, or its twin, and what tracing sees of it.

    Args:
        name: of the op.
        schema: what follows the name.
        run: takes the schema's arguments; chooses between kernel and twin.
        fake: the same on tensors without values.
    """
    LIBRARY.define(name + schema)
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sparse_accel::{name}", fake, lib=LIBRARY)
    _names.append(name)
    if _op_sharding.ready():
        _op_sharding.enable(LIBRARY, [name])


def kernels() -> Any:
    """The ops on the native module's kernels."""
    return native


def has_kernels(tensor: Tensor) -> bool:
    """Whether the native module runs on the tensor's device."""
    return _on_device(tensor)


def _on_device(tensor: Tensor) -> bool:  # apart, so that tests can take the kernels away from all ops at once
    return tensor.is_cpu or (tensor.is_cuda and native.has_cuda())


def step_of(name: str, tensors: int, keys: Sequence[str]) -> Callable[..., None]:
    """What runs an optimizer step that is an op: the kernel of its name, or the twin of its name without one.

    Args:
        name: of the op; its arguments are lists of tensors, layouts, prox, strengths, lr, lr_tensor, and the rest.
        tensors: number of the lists of tensors.
        keys: names of the rest, as the twin has them.
    """

    def run(*arguments: Any) -> None:
        if has_kernels(arguments[0][0]):
            getattr(kernels(), name)(*arguments)
            return
        layouts, prox, strengths, lr, lr_tensor, *rest = arguments[tensors:]
        getattr(reference, name)(
            *arguments[:tensors],
            unflat(layouts),
            prox=prox,
            strengths=strengths,
            lr=lr if lr_tensor is None else lr_tensor,
            **dict(zip(keys, rest, strict=True)),
        )

    return run


def fake_step(*arguments: Any) -> None:
    """What tracing sees of a step: it returns nothing."""


def call(name: str, *arguments: Any) -> Any:
    """The kernel at once where nothing watches; through the dispatcher under torch.compile, fake tensors and modes.

    The dispatcher's conversion of some hundred tensors costs more than a small optimizer step.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return getattr(torch.ops.sparse_accel, name)(*arguments)
    first = arguments[0]
    if not isinstance(first, Tensor):
        first = first[0] if first else None
    if first is not None and (type(first) not in (Tensor, torch.nn.Parameter) or not has_kernels(first)):
        if _op_sharding.ready():  # it was imported after the ops
            _op_sharding.enable(LIBRARY, _names)
        return getattr(torch.ops.sparse_accel, name)(*arguments)
    return getattr(native, name)(*arguments)


def flat(layouts: Sequence[GroupLayout]) -> list[int]:
    """Layouts as the numbers that a schema takes, four each."""
    return [number for layout in layouts for number in layout]


def unflat(numbers: Sequence[int]) -> list[GroupLayout]:
    """The way back from :func:`flat`."""
    return [GroupLayout(*numbers[i : i + 4]) for i in range(0, len(numbers), 4)]


def cpu_capability() -> str:
    """The instruction set that the CPU kernels use here: ``"AVX512"``, ``"AVX2"`` or ``"DEFAULT"``.

    Example:
        >>> cpu_capability() in ("AVX512", "AVX2", "DEFAULT")
        True
    """
    return native.cpu_capability()
