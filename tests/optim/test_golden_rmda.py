"""Trajectories of the RMDA authors' published code (2022, float64), reproduced.

Each file of ``data/`` has, for parameters i = 0 (convolution, by input channel), 1 (linear, by input column) and
2 (bias, unregularized): ``init_i``, ``grad_i [30, ...]``, ``param_i [30, ...]``, and ``lr``, ``momentum``, ``lambda``.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import Parameter

import sparse_accel as sa

DATA = Path(__file__).resolve().parents[1] / "data"
NAMES = ["rmda_glasso_m01", "rmda_glasso_m10", "rmda_l1_m10"]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@functools.cache
def trajectory(name: str) -> dict[str, Any]:
    with np.load(DATA / f"{name}.npz") as file:
        return dict(file)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("flags", [{}, {"foreach": True}, {"foreach": False}], ids=str)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("name", NAMES)
def test_trajectory(backend: Any, name: str, dtype: torch.dtype, flags: dict[str, Any], channels_last: bool) -> None:
    golden = trajectory(name)
    params = [Parameter(torch.tensor(golden[f"init_{i}"], dtype=dtype, device=backend.device)) for i in range(3)]
    if channels_last:
        params[0] = Parameter(params[0].detach().to(memory_format=torch.channels_last))
    strength = float(golden["lambda"])
    penalty = sa.L1(strength) if "l1" in name else sa.GroupLasso(strength, by="input")
    groups = [{"params": params[:2], "penalty": penalty}, {"params": params[2:], "penalty": None}]
    opt = sa.RMDA(groups, lr=float(golden["lr"]), momentum=float(golden["momentum"]), **flags)
    for step in range(30):
        for i, param in enumerate(params):
            param.grad = torch.from_numpy(golden[f"grad_{i}"][step]).to(backend.device, dtype)
        opt.step()
        for i, param in enumerate(params):
            expected = torch.from_numpy(golden[f"param_{i}"][step])
            error = (param.detach().cpu().double() - expected).abs().max() / expected.abs().max()
            assert error.item() < TOLERANCE[dtype], (step, i)
            if opt.param_groups[0]["momentum"] == 1:
                assert torch.equal(param.cpu() == 0, expected == 0), (step, i)
