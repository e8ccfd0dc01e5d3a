"""OptimizerInfo entries of the proximal optimizers, in the form of torch's own, with AdamW beside them as a control."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal import common_optimizers as common

import sparse_accel as sa

GENERAL: list[tuple[str, dict[str, Any]]] = [
    ("default", {}),
    ("lr", {"lr": 0.02}),
    ("tensor_lr", {"lr": torch.tensor(0.02)}),
    ("tensor_lr_1d", {"lr": torch.tensor([0.02])}),
    ("maximize", {"maximize": True}),
    ("weight_decay", {"weight_decay": 0.1}),
    ("group_lasso", {"penalty": sa.GroupLasso(1e-3)}),
    ("by_output", {"penalty": sa.GroupLasso(1e-3, by="output"), "maximize": True}),
    ("l1", {"penalty": sa.L1(1e-3)}),
    ("group_l0", {"penalty": sa.GroupL0(1e-6)}),
    ("capturable", {"capturable": True}),
]


def _inputs(own: list[tuple[str, dict[str, Any]]]) -> Any:
    def inputs(device: Any, dtype: Any = None) -> list[common.OptimizerInput]:
        return [common.OptimizerInput(params=None, kwargs=dict(kwargs), desc=desc) for desc, kwargs in GENERAL + own]

    return inputs


def _errors(own: list[tuple[dict[str, Any], str]]) -> Any:
    general = [
        ({"lr": -1.0}, "lr: expected a finite number >= 0, got -1.0"),
        ({"lr": float("nan")}, "lr: expected a finite number >= 0, got nan"),
        ({"fused": True, "foreach": True}, "fused and foreach cannot both be True"),
        ({"fused": True, "differentiable": True}, "fused does not support differentiable=True"),
        ({"foreach": True, "differentiable": True}, "foreach does not support differentiable=True"),
        ({"penalty": {"name": "lasso", "strength": 1.0}}, "penalty: expected a name among"),
    ]

    def errors(device: Any, dtype: Any) -> list[common.ErrorOptimizerInput]:
        return common.get_error_inputs_for_all_optims(device, dtype) + [
            common.ErrorOptimizerInput(
                common.OptimizerInput(params=None, kwargs=kwargs, desc=text), error_type=ValueError, error_regex=text
            )
            for kwargs, text in general + own
        ]

    return errors


def _info(optimizer: Any, own: list[tuple[str, dict[str, Any]]], errors: list[tuple[dict[str, Any], str]]) -> Any:
    return common.OptimizerInfo(
        optimizer,
        optim_inputs_func=_inputs(own),
        optim_error_inputs_func=_errors(errors),
        supported_impls=("foreach", "differentiable", "fused"),
        not_og_supported_flags=("foreach", "differentiable", "fused", "maximize", "capturable"),
        supports_fused_on=("cpu", "cuda"),
        has_capturable_arg=True,
    )


INFOS = [
    _info(
        sa.RMDA,
        [("momentum", {"momentum": 1.0}), ("momentum_l1", {"momentum": 0.5, "penalty": sa.L1(1e-3), "lr": 0.02})],
        [({"momentum": 0.0}, r"momentum: expected a number in \(0, 1\], got 0.0"), ({"momentum": 1.5}, "momentum: ex")],
    ),
    _info(
        sa.ProxSGD,
        [("rho", {"rho": 1.0}), ("rho_l1", {"rho": 0.5, "penalty": sa.L1(1e-3), "lr": 0.02})],
        [({"rho": 0.0}, r"rho: expected a number in \(0, 1\], got 0.0"), ({"rho": float("nan")}, "rho: expected")],
    ),
    _info(
        sa.RAMDA,
        [("momentum", {"momentum": 1.0}), ("eps_l1", {"eps": 1e-3, "penalty": sa.L1(1e-3), "lr": 0.02})],
        [
            ({"momentum": 0.0}, r"momentum: expected a number in \(0, 1\], got 0.0"),
            ({"eps": 0.0}, "eps: expected a finite number > 0, got 0.0"),
        ],
    ),
    _info(
        sa.ProxAdamW,
        [("decay", {"weight_decay": 0.1}), ("betas_l1", {"betas": (0.8, 0.9), "penalty": sa.L1(1e-3), "lr": 0.02})],
        [
            ({"betas": (1.0, 0.999)}, r"betas: expected two numbers in \[0, 1\), got \(1.0, 0.999\)"),
            ({"eps": -1.0}, "eps: expected a finite number >= 0, got -1.0"),
            ({"weight_decay": float("nan")}, "weight_decay: expected a finite number >= 0, got nan"),
        ],
    ),
    next(info for info in common.optim_db if info.optim_cls is torch.optim.AdamW),
]
OURS = INFOS[:4]


def each_info(infos: list[Any] = INFOS) -> Any:
    """Parametrize over optimizers."""
    return pytest.mark.parametrize("info", infos, ids=lambda info: info.name)


def each_case(infos: list[Any] = INFOS, skip: tuple[str, ...] = ("differentiable",)) -> Any:
    """Parametrize over optimizers and all their inputs, with torch's cross product of foreach and fused."""

    def cases() -> Iterator[Any]:
        for info in infos:
            inputs = common._get_optim_inputs_including_global_cliquey_kwargs("cpu", torch.float32, info, skip=skip)
            for i, case in enumerate(inputs):
                flags = [f"{flag}={case.kwargs[flag]}" for flag in ("foreach", "fused") if flag in case.kwargs]
                name = "-".join([info.name, str(i), case.desc.replace(" ", "_"), *flags])
                yield pytest.param(info.optim_cls, case.kwargs, id=name)

    return pytest.mark.parametrize("optimizer, kwargs", list(cases()))


def make_model(dtype: torch.dtype = torch.float32) -> torch.nn.Sequential:
    """A small conv net of fixed weights."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, padding=1),
        torch.nn.BatchNorm2d(6),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(6 * 16, 5),
    ).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)
    return model


def set_grads(parameters: Any, step: int = 0) -> None:
    """Gradients that depend on the step only."""
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        dtype = torch.complex128 if parameter.is_complex() else torch.float64
        value = torch.randn(parameter.shape, generator=generator, dtype=dtype) * 0.1
        parameter.grad = torch.empty_like(parameter).copy_(value)
