"""The native ops, on lists of tensors, registered with ``torch.library`` under ``sparse_accel::``.

CPU and CUDA tensors run the kernels of ``csrc``; every other device runs the plain twins of
:mod:`sparse_accel.reference`. Layouts describe a tensor's memory (:func:`sparse_accel.groups.group_layout`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from . import _C, reference
from .groups import GroupLayout

_LIBRARY = torch.library.Library("sparse_accel", "DEF")
_LIBRARY.define("group_score(Tensor[] tensors, int[] layouts, str kind, bool coupled) -> Tensor[]")
_LIBRARY.define("group_topk(Tensor[] scores, int k) -> Tensor[]")
_LIBRARY.define(
    "prox_(Tensor(a!)[] tensors, int[] layouts, str prox, float[] thresholds, bool with_value) -> Tensor",
)
_LIBRARY.define(
    "rmda_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] points, Tensor[] anchors, Tensor(c!)[] steps, "
    "Tensor(d!)[] alphas, int[] layouts, str prox, float[] strengths, float lr, Tensor? lr_tensor, float momentum, "
    "bool maximize, Tensor? grad_scale, Tensor? found_inf) -> ()",
)


def cpu_capability() -> str:
    """The instruction set that the CPU kernels use here: ``"AVX512"``, ``"AVX2"`` or ``"DEFAULT"``.

    Example:
        >>> cpu_capability() in ("AVX512", "AVX2", "DEFAULT")
        True
    """
    return str(_C.cpu_capability())


@overload
def group_score(
    tensors: Sequence[Tensor], layouts: Sequence[GroupLayout], kind: str = "l2", *, coupled: Literal[False] = False
) -> list[Tensor]: ...
@overload
def group_score(
    tensors: Sequence[Tensor], layouts: Sequence[GroupLayout], kind: str = "l2", *, coupled: Literal[True]
) -> Tensor: ...
def group_score(
    tensors: Sequence[Tensor], layouts: Sequence[GroupLayout], kind: str = "l2", *, coupled: bool = False
) -> list[Tensor] | Tensor:
    """Score every group of every tensor.

    Args:
        tensors: N dense tensors of one dtype (float32, float64, bfloat16, float16) and device.
        layouts: the layout of each tensor's memory.
        kind: ``"l2"``, ``"l2sq"``, ``"l1"``, ``"sum"`` or ``"amax"`` (the largest magnitude).
        coupled: the groups that share an index in all tensors form one group, scored together; all layouts then
            have the same number of groups.

    Returns:
        One vector ``[num_groups]`` per tensor, or one for all if ``coupled``; float32 (float64 for float64 input).

    Raises:
        ValueError: an unknown kind, a layout that does not fit its tensor, a tensor with gaps in its memory.
        TypeError: an unsupported or mixed dtype.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[3.0, 0.0], [4.0, 0.0]])
        >>> group_score([weight], [GroupLayout(outer=2, groups=2, inner=1)])
        [tensor([5., 0.])]
    """
    scores = _call("group_score", list(tensors), _flat(layouts), kind, coupled)
    return scores[0] if coupled else scores


@overload
def group_topk(scores: Tensor, k: int) -> Tensor: ...
@overload
def group_topk(scores: Sequence[Tensor], k: int) -> list[Tensor]: ...
def group_topk(scores: Tensor | Sequence[Tensor], k: int) -> Tensor | list[Tensor]:
    """Which scores are among the k largest, over all vectors together.

    Exactly k are chosen; among equal scores the lowest index wins (vectors in the order given). Synchronizes.

    Args:
        scores: one vector or a list of vectors, of one dtype and device, without NaN.
        k: 0 to the number of scores.

    Returns:
        A boolean mask, or a list of masks, of the shape of ``scores``.

    Raises:
        ValueError: k out of range, or NaN among the scores.

    Example:
        >>> import torch
        >>> group_topk(torch.tensor([2.0, 1.0, 2.0, 3.0]), 2)
        tensor([ True, False, False,  True])
    """
    single = isinstance(scores, Tensor)
    masks = _call("group_topk", [scores] if single else list(scores), k)
    return masks[0] if single else masks


def prox_(
    tensors: Sequence[Tensor],
    layouts: Sequence[GroupLayout],
    thresholds: Sequence[float],
    *,
    prox: str = "soft",
    return_value: bool = False,
) -> Tensor | None:
    """Proximal operator of a group penalty, in place.

    ``"soft"`` is that of ``tau * sum_g sqrt(|g|) ||x_g||`` (group lasso; L1 with the element layout): group g is scaled
    by ``max(0, 1 - tau sqrt(|g|) / ||x_g||)``. ``"hard"`` is that of ``tau * sum_g |g| [x_g != 0]``: group g is kept
    where ``||x_g||^2 > 2 tau |g|``.

    Args:
        tensors: N dense tensors of one dtype and device.
        layouts: the layout of each tensor's memory.
        thresholds: tau of each tensor, the step size times the penalty's strength.
        return_value: also return the penalty of each result, without its strength.

    Returns:
        None, or float64 ``[N]`` on the tensors' device.

    Raises:
        ValueError: a negative threshold, an unknown prox, a layout that does not fit.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[3.0, 0.1], [4.0, 0.0]])
        >>> prox_([weight], [GroupLayout(outer=2, groups=2, inner=1)], [0.5**0.5])
        >>> weight
        tensor([[2.4000, 0.0000],
                [3.2000, 0.0000]])
    """
    values = _call("prox_", list(tensors), _flat(layouts), prox, list(thresholds), return_value)
    return values if return_value else None


def rmda_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    points: Sequence[Tensor],
    anchors: Sequence[Tensor],
    steps: Sequence[Tensor],
    alphas: Sequence[Tensor],
    layouts: Sequence[GroupLayout],
    *,
    prox: str,
    strengths: Sequence[float],
    lr: float | Tensor,
    momentum: float,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One fused RMDA step for a list of parameters, in place (Huang & Lee, ICLR 2022, Algorithm 1).

    ``t += 1; X = W0 + sqrt((t - 1) / t) (X - W0) - lr grad; alpha += lr sqrt(t); W = (1 - c) W + c prox(X)``
    with the prox threshold ``alpha / sqrt(t) * strength``. X is the paper's ``W0 - V / beta``, with V the weighted sum
    of the gradients.

    Args:
        params: W, dense, of one dtype and device.
        grads: as ``params``; strides may differ; not modified.
        points: X, float32 (float64 for float64 parameters), with the strides of ``params``.
        anchors: W0, the parameters at the start of the stage, as ``points``.
        steps: t, one-element float32 tensors, on the CPU or the parameters' device.
        alphas: one-element float64 tensors, where ``steps`` are.
        layouts: the layout of each parameter's memory.
        prox: ``"soft"`` or ``"hard"``, see :func:`prox_`.
        strengths: penalty strength of each parameter; 0 leaves it unregularized.
        lr: learning rate; a one-element tensor is read on its device.
        momentum: c in (0, 1]; 1 takes the proximal iterate itself.
        maximize: ascend.
        grad_scale: gradients are divided by it (AMP).
        found_inf: nothing changes where it is not zero (AMP).

    Raises:
        ValueError: sizes, strides or numbers that do not fit.
        TypeError: a dtype that does not fit.

    Example:
        >>> import torch
        >>> w, zero = torch.ones(2, 1), torch.zeros(2, 1)
        >>> t, alpha = torch.tensor(0.0), torch.tensor(0.0, dtype=torch.float64)
        >>> layout = GroupLayout(outer=1, groups=2, inner=1)
        >>> rmda_step_([w], [torch.ones(2, 1)], [zero], [w.clone()], [t], [alpha], [layout],
        ...            prox="soft", strengths=[1.0], lr=0.25, momentum=1.0)
        >>> w.flatten(), t
        (tensor([0.5000, 0.5000]), tensor(1.))
    """
    lr_tensor = lr if isinstance(lr, Tensor) else None
    _call(
        "rmda_step_",
        list(params),
        list(grads),
        list(points),
        list(anchors),
        list(steps),
        list(alphas),
        _flat(layouts),
        prox,
        list(strengths),
        0.0 if isinstance(lr, Tensor) else float(lr),
        lr_tensor,
        float(momentum),
        maximize,
        grad_scale,
        found_inf,
    )


def _flat(layouts: Sequence[GroupLayout]) -> list[int]:
    return [number for layout in layouts for number in layout]


def _unflat(numbers: Sequence[int]) -> list[GroupLayout]:
    return [GroupLayout(*numbers[i : i + 4]) for i in range(0, len(numbers), 4)]


def _call(name: str, *arguments: Any) -> Any:
    """The kernel at once where nothing watches; through the dispatcher under torch.compile, fake tensors and modes.

    The dispatcher's conversion of some hundred tensors costs more than a small optimizer step.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return getattr(torch.ops.sparse_accel, name)(*arguments)
    tensors = arguments[0]
    if tensors and (not _has_kernels(tensors[0]) or type(tensors[0]) not in (Tensor, torch.nn.Parameter)):
        return getattr(torch.ops.sparse_accel, name)(*arguments)
    return getattr(_C, name)(*arguments)


def _has_kernels(tensor: Tensor) -> bool:
    return tensor.is_cpu or (tensor.is_cuda and _C.has_cuda)


# ---- torch.library: kernels on CPU and CUDA, the plain twins elsewhere, fake kernels for tracing.


def _group_score(tensors: list[Tensor], layouts: list[int], kind: str, coupled: bool) -> list[Tensor]:
    if _has_kernels(tensors[0]):
        return _C.group_score(tensors, layouts, kind, coupled)
    if coupled:
        return [reference.group_score(tensors, _unflat(layouts), kind, coupled=True)]
    return reference.group_score(tensors, _unflat(layouts), kind)


def _group_score_fake(tensors: list[Tensor], layouts: list[int], kind: str, coupled: bool) -> list[Tensor]:
    numbers = [layout.num_groups for layout in _unflat(layouts)]
    dtype = reference.compute_type(tensors[0].dtype)
    return [tensors[0].new_empty(number, dtype=dtype) for number in (numbers[:1] if coupled else numbers)]


def _group_topk(scores: list[Tensor], k: int) -> list[Tensor]:
    return _C.group_topk(scores, k) if _has_kernels(scores[0]) else reference.group_topk(scores, k)


def _group_topk_fake(scores: list[Tensor], k: int) -> list[Tensor]:
    return [torch.empty_like(score, dtype=torch.bool, memory_format=torch.contiguous_format) for score in scores]


def _prox(tensors: list[Tensor], layouts: list[int], prox: str, thresholds: list[float], with_value: bool) -> Tensor:
    if _has_kernels(tensors[0]):
        return _C.prox_(tensors, layouts, prox, thresholds, with_value)
    values = reference.prox_(tensors, _unflat(layouts), thresholds, prox=prox, return_value=with_value)
    return tensors[0].new_empty(0, dtype=torch.float64) if values is None else values


def _prox_fake(
    tensors: list[Tensor], layouts: list[int], prox: str, thresholds: list[float], with_value: bool
) -> Tensor:
    return tensors[0].new_empty(len(tensors) if with_value else 0, dtype=torch.float64)


def _rmda_step(
    params: list[Tensor],
    grads: list[Tensor],
    points: list[Tensor],
    anchors: list[Tensor],
    steps: list[Tensor],
    alphas: list[Tensor],
    layouts: list[int],
    prox: str,
    strengths: list[float],
    lr: float,
    lr_tensor: Tensor | None,
    momentum: float,
    maximize: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    state = (params, grads, points, anchors, steps, alphas)
    if _has_kernels(params[0]):
        scaling = (grad_scale, found_inf)
        _C.rmda_step_(*state, layouts, prox, strengths, lr, lr_tensor, momentum, maximize, *scaling)
        return
    reference.rmda_step_(
        *state,
        _unflat(layouts),
        prox=prox,
        strengths=strengths,
        lr=lr if lr_tensor is None else lr_tensor,
        momentum=momentum,
        maximize=maximize,
        grad_scale=grad_scale,
        found_inf=found_inf,
    )


def _rmda_step_fake(*arguments: Any) -> None:
    return None


for _name, _run, _fake in (
    ("group_score", _group_score, _group_score_fake),
    ("group_topk", _group_topk, _group_topk_fake),
    ("prox_", _prox, _prox_fake),
    ("rmda_step_", _rmda_step, _rmda_step_fake),
):
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sparse_accel::{_name}", _fake, lib=_LIBRARY)
