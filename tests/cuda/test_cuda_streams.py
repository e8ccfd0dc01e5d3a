"""Streams other than the default one, CUDA graphs of ops, and AMP on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from optim_infos import OURS, each_info, make_model
from torch import Tensor

import sparse_accel as sa
from sparse_accel import ops
from sparse_accel.groups import group_layout

SHAPE = (300, 700)
A_WHILE = 50_000_000  # cycles: some 30 ms, in which the host has enqueued all that follows


def draw(seed: int, shape: tuple[int, ...] = SHAPE, device: str = "cuda") -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def rmda(x: Tensor) -> Tensor:
    clocks = [[torch.ones((), device=x.device)], [torch.ones((), dtype=torch.float64, device=x.device)]]
    state = [x.clone(), x * 0.1, x.clone(), x * 0.5]
    layout = [group_layout(x, "input")]
    ops.rmda_step_(*([t] for t in state), *clocks, layout, prox="soft", strengths=[0.1], lr=0.2, momentum=0.5)
    return torch.stack([state[0], state[2]])


def prox(x: Tensor) -> Tensor:
    out = x.clone()
    values = ops.prox_([out], [group_layout(x, "input")], [0.3], return_value=True)
    assert values is not None
    return torch.cat([out.flatten().double(), values])


def score(x: Tensor) -> Tensor:
    return torch.cat(ops.group_score([x, x], [group_layout(x, by) for by in ("input", "output")]))


def topk(x: Tensor) -> Tensor:
    out = x.clone()
    mask = sa.topk_threshold_(out, None, 200, by="row")
    return torch.stack([out, mask.float()])


def pattern(x: Tensor) -> Tensor:
    out = x.clone()
    sa.topk_threshold_(out, None, (2, 4))
    return out


def chosen(x: Tensor) -> Tensor:
    return ops.group_topk(x.flatten(), 5000).float()


def epoch(x: Tensor) -> Tensor:
    point, before = x[0].double().clone(), x[1].double().clone()
    order = torch.arange(8, device=x.device)
    sa.glm_epoch(point, before, x[:8].double(), (x[:8, 0] > 0).double(), order, 0.1, 0.5, "binomial")
    return point


CAPTURABLE = {"rmda": rmda, "prox": prox, "score": score}
EVERY = {**CAPTURABLE, "topk": topk, "pattern": pattern, "chosen": chosen, "epoch": epoch}


@pytest.mark.parametrize("run", list(EVERY.values()), ids=list(EVERY))
def test_ops_of_these_tests_run_on_the_cpu(run: Callable[[Tensor], Tensor]) -> None:
    x = draw(0, device="cpu")
    assert bool(run(x).isfinite().all())
    assert torch.equal(x, draw(0, device="cpu"))


@pytest.mark.cuda
@pytest.mark.parametrize("run", list(EVERY.values()), ids=list(EVERY))
def test_side_stream(run: Callable[[Tensor], Tensor]) -> None:
    """The input comes after a while, on the side stream alone: an op on another stream would not wait for it."""
    source, expected = draw(0), run(draw(0))
    side, x = torch.cuda.Stream(), torch.full(SHAPE, 0.5, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(A_WHILE)
        x.copy_(source)
        found = run(x)
    side.synchronize()
    assert torch.equal(found, expected)


@pytest.mark.cuda
@pytest.mark.parametrize("run", list(CAPTURABLE.values()), ids=list(CAPTURABLE))
def test_replayed_graph(run: Callable[[Tensor], Tensor]) -> None:
    """A graph computes on what its input holds at the replay."""
    x = draw(0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(x)  # loads what is loaded at the first use
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run(x)
    for seed in (1, 2):
        x.copy_(draw(seed))
        graph.replay()
        assert torch.equal(found, run(draw(seed)))


@each_info(OURS)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_grad_scaler_leaves_out_an_overflow(device: str, info: Any) -> None:
    """Scaled training is plain training without the step that overflowed, whose state does not move."""
    models = [make_model().to(device), make_model().to(device)]
    plain, scaled = (
        info.optim_cls(sa.param_groups(model, sa.GroupLasso(1e-3)), lr=0.05, fused=True) for model in models
    )
    scaler = torch.amp.GradScaler(device=device, init_scale=1024.0, growth_interval=100)
    inputs = draw(3, (4, 3, 4, 4), device)
    exact = {"enabled": True, "deterministic": True, "allow_tf32": False}
    for step in range(5):
        for model, opt in zip(models, (plain, scaled), strict=True):
            opt.zero_grad()
            with torch.backends.cudnn.flags(**exact):
                loss = model(inputs).square().mean()
                (loss if opt is plain else scaler.scale(loss)).backward()
            if opt is plain:
                if step != 3:
                    opt.step()
                continue
            if step == 3:
                next(model.parameters()).grad[0] = torch.inf
            before = [p.detach().clone() for p in model.parameters()]
            scaler.step(opt)
            scaler.update()
            if step == 3:
                assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert scaler.get_scale() == 512.0
    steps = {float(state["step"]) for state in scaled.state.values()}
    assert steps == {4.0}
    for one, two in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, two, rtol=2e-5, atol=1e-6)


@pytest.mark.cuda
def test_fp16_gradients_of_autocast() -> None:
    """The usual loop: autocast, scaler, RMDA; the loss falls and the state stays finite."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 8)).cuda()
    opt = sa.RMDA(sa.param_groups(model, sa.GroupLasso(1e-4)), lr=1.0, momentum=0.5)
    scaler = torch.amp.GradScaler("cuda")
    x, y = draw(1, (256, 64)), draw(2, (256, 8))
    losses = []
    for _ in range(30):
        opt.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = torch.nn.functional.mse_loss(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert all(bool(value.isfinite().all()) for state in opt.state.values() for value in state.values())
