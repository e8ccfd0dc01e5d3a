"""Optimizer steps: RMDA, RAMDA, ProxAdamW and ProxSGD under group lasso, against ``torch.optim`` in the same process.

RMDA reads gradient, point, anchor and weight and writes point and weight: 6 accesses for each element, where AdamW
makes 7. Whole ``step()`` calls are timed, Python included; the twin is the update alone in plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from sparse_accel import reference
from sparse_accel.bench.case import Case, Settings
from sparse_accel.bench.workloads import compiles, tensors
from sparse_accel.groups import group_layout
from sparse_accel.optim import RAMDA, RMDA, ProxAdamW, ProxSGD
from sparse_accel.penalties import GroupLasso

STRENGTH = 1e-4
LR = 1e-3


def cases(settings: Settings) -> Iterator[Case]:
    """RMDA by input, by output and without a penalty against AdamW; the adaptive ones by input and output likewise;
    ProxSGD by input against SGD with momentum."""
    for workload in settings.workloads:
        parameters = partial(_parameters, workload, settings)
        state = 8 if settings.torch_dtype == torch.float64 else 4
        count = sum(p.numel() for p in parameters())
        size = settings.torch_dtype.itemsize
        gpu = settings.on_gpu
        adamw = torch.optim.AdamW(parameters(), lr=LR, fused=True).step
        adamw_graph = torch.optim.AdamW(parameters(), lr=LR, fused=True, capturable=True).step if gpu else None
        for by in ("input", "output", None):
            captured = RMDA(_groups(parameters(), by), lr=LR, momentum=0.1, capturable=True).step if gpu else None
            yield Case(
                f"RMDA by {by}" if by else "RMDA, no penalty",
                workload,
                RMDA(_groups(parameters(), by), lr=LR, momentum=0.1).step,
                count * (3 * size + 3 * state),  # gradient, weight twice; anchor, point twice
                twin=_rmda_twin(parameters(), by),
                peer=adamw,
                peer_name="AdamW(fused=True)",
                plain=torch.optim.AdamW(parameters(), lr=LR).step if by == "input" and compiles(workload) else None,
                graph=captured,
                peer_graph=adamw_graph,
            )
        for by in ("input", "output"):
            for name, kind, moved in (
                ("RAMDA", RAMDA, 3 * size + 5 * state),
                ("ProxAdamW", ProxAdamW, 3 * size + 4 * state),
            ):
                yield Case(
                    f"{name} by {by}",
                    workload,
                    kind(_groups(parameters(), by), lr=LR).step,
                    count * moved,  # gradient, weight twice; the two sums twice, RAMDA's anchor
                    twin=kind(_groups(parameters(), by), lr=LR, foreach=False).step,
                    peer=adamw,
                    peer_name="AdamW(fused=True)",
                    graph=kind(_groups(parameters(), by), lr=LR, capturable=True).step if gpu else None,
                    peer_graph=adamw_graph,
                )
        yield Case(
            "ProxSGD by input",
            workload,
            ProxSGD(_groups(parameters(), "input"), lr=LR, rho=0.1).step,
            count * (3 * size + 2 * state),  # gradient, weight twice, momentum twice
            twin=ProxSGD(_groups(parameters(), "input"), lr=LR, rho=0.1, foreach=False).step,
            peer=torch.optim.SGD(parameters(), lr=LR, momentum=0.9, fused=True).step,
            peer_name="SGD(momentum, fused=True)",
            plain=torch.optim.SGD(parameters(), lr=LR, momentum=0.9).step if compiles(workload) else None,
            graph=ProxSGD(_groups(parameters(), "input"), lr=LR, rho=0.1, capturable=True).step if gpu else None,
            adamw=adamw,
        )


def _parameters(workload: str, settings: Settings) -> list[Tensor]:
    """Leaves with gradients of the magnitude that training has."""
    params = tensors(workload, settings.torch_dtype, settings.device, requires_grad=True)
    grads = tensors(workload, settings.torch_dtype, settings.device, seed=1, scale=1e-3)
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    return params


def _groups(params: Sequence[Tensor], by: str | None) -> list[dict[str, object]]:
    return [{"params": list(params), "penalty": GroupLasso(STRENGTH, by=by) if by else None}]


def _rmda_twin(params: Sequence[Tensor], by: str | None) -> Callable[[], None]:
    """The twin's step on detached weights, with its own state."""
    wide = torch.float64 if params[0].dtype == torch.float64 else torch.float32
    weights = [p.detach() for p in params]
    return partial(
        reference.rmda_step_,
        weights,
        [p.grad for p in params if p.grad is not None],
        [w.to(wide, copy=True) for w in weights],
        [w.to(wide, copy=True) for w in weights],
        [torch.zeros((), device=w.device) for w in weights],
        [torch.zeros((), dtype=torch.float64, device=w.device) for w in weights],
        [group_layout(w, by if by and w.dim() > 1 else "element") for w in weights],
        prox="soft",
        strengths=[STRENGTH if by and w.dim() > 1 else 0.0 for w in weights],
        lr=LR,
        momentum=0.1,
    )
