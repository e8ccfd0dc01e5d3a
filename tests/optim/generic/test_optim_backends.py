"""The optimizers on every backend (CPU, emulated CUDA, CUDA), held against the plain loop on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optim_infos import OURS, each_info, make_model, set_grads

import sparse_accel as sa

TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-12, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


NATIVE = [info for info in OURS if info.name != "ProxSGD"]  # one op for the whole step


def trained(optimizer: Any, model: torch.nn.Module, dtype: torch.dtype, by: str, **flags: Any) -> Any:
    """Five steps with a restart, on gradients that do not depend on the device."""
    opt = optimizer(sa.param_groups(model, sa.GroupLasso(0.02, by=by)), lr=0.1, **flags)
    source = make_model(dtype)
    for step in range(5):
        set_grads(source.parameters(), step)
        for parameter, grad in zip(model.parameters(), source.parameters(), strict=True):
            parameter.grad = torch.empty_like(parameter).copy_(grad.grad)
        if step == 3 and issubclass(optimizer, sa.RMDA):
            opt.restart()
        opt.step()
    return opt


@each_info(OURS)
@pytest.mark.parametrize("by", ["input", "output", "kernel", "element"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_backends_agree(
    backend: Any, info: Any, by: str, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    plain = make_model(dtype)
    trained(info.optim_cls, plain, dtype, by, fused=False)
    model = make_model(dtype).to(device=backend.device, memory_format=memory_format)
    opt = trained(info.optim_cls, model, dtype, by)
    tolerance = TOLERANCE[dtype]
    for one, two in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.cpu(), two, rtol=tolerance, atol=tolerance / 10, check_stride=False)
    for state in opt.state.values():
        assert all(value.device.type == backend.device.type for value in state.values())
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with opt.proximal_parameters():
        assert all(parameter.isfinite().all() for parameter in model.parameters())
    for one, two in zip(before, model.parameters(), strict=True):
        assert torch.equal(one, two)


@each_info(NATIVE)
def test_scaled_gradients_and_overflow(backend: Any, info: Any) -> None:
    plain, model = make_model(), make_model().to(backend.device)
    expected = trained(info.optim_cls, plain, torch.float32, "input", fused=False)
    opt = trained(info.optim_cls, model, torch.float32, "input")
    set_grads(plain.parameters(), 9)
    expected.step()
    opt.grad_scale = torch.tensor(8.0, device=backend.device)
    for overflow in (1.0, 0.0):
        opt.found_inf = torch.tensor(overflow, device=backend.device)
        for parameter, grad in zip(model.parameters(), plain.parameters(), strict=True):
            parameter.grad.copy_(grad.grad * 8)
        opt.step()
    for one, two in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.cpu(), two, rtol=5e-6, atol=5e-7)


@each_info(NATIVE)
def test_lr_on_the_device(backend: Any, info: Any) -> None:
    plain, model = make_model(), make_model().to(backend.device)
    trained(info.optim_cls, plain, torch.float32, "input", fused=False)
    lr = torch.tensor(0.1, device=backend.device)
    opt = info.optim_cls(sa.param_groups(model, sa.GroupLasso(0.02)), lr=lr)
    for step in range(5):
        set_grads(plain.parameters(), step)
        for parameter, grad in zip(model.parameters(), plain.parameters(), strict=True):
            parameter.grad = grad.grad.to(backend.device)
        if step == 3 and isinstance(opt, sa.RMDA):
            opt.restart()
        opt.step()
    for one, two in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.cpu(), two, rtol=5e-6, atol=5e-7)


@pytest.mark.cuda
@each_info(NATIVE)
def test_capture_in_a_cuda_graph(info: Any) -> None:
    models = [make_model().cuda(), make_model().cuda()]
    opts = [
        info.optim_cls(
            sa.param_groups(model, sa.GroupLasso(0.02)), lr=torch.tensor(0.1, device="cuda"), capturable=True
        )
        for model in models
    ]
    for model, opt in zip(models, opts, strict=True):
        set_grads(model.parameters())
        opt.step()  # makes the state
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        opts[0].step()
    for _ in range(3):
        graph.replay()
        opts[1].step()
    for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, two)
