"""rmda_step_: every backend against the plain twin and against the paper's own recursion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_cases import BY, DTYPES, VALUE_TOLERANCE, assert_near, like, randn, weights
from torch import Tensor

from sparse_accel import ops, reference
from sparse_accel.groups import GroupLayout, group_layout

State = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


def new_state(tensors: list[Tensor], scalar_device: torch.device | None = None) -> State:
    """params, points, anchors, steps, alphas."""
    state = [like(t, reference.compute_type(t.dtype)) for t in tensors]
    device = scalar_device or tensors[0].device
    return (
        [like(t) for t in tensors],
        state,
        [like(t) for t in state],
        [torch.zeros((), device=device) for _ in tensors],
        [torch.zeros((), dtype=torch.float64, device=device) for _ in tensors],
    )


def gradients(tensors: list[Tensor], seed: int) -> list[Tensor]:
    return [randn(tuple(t.shape), t.dtype, t.device, seed + i) for i, t in enumerate(tensors)]


def take_step(function: Any, state: State, grads: list[Tensor], layouts: Any, **options: Any) -> None:
    params, points, anchors, steps, alphas = state
    defaults = {"prox": "soft", "strengths": [0.3] * len(params), "lr": 0.5, "momentum": 0.4}
    function(params, grads, points, anchors, steps, alphas, layouts, **{**defaults, **options})


def assert_same_state(found: State, expected: State, dtype: torch.dtype) -> None:
    for a, b in zip(found, expected, strict=True):
        for x, y in zip(a, b, strict=True):
            assert_near(x, y, VALUE_TOLERANCE[dtype])


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("prox", ["soft", "hard"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_twin(backend: Any, dtype: torch.dtype, prox: str, by: str) -> None:
    _, weights_, layouts = zip(*weights(dtype, backend.device, by), strict=True)
    tensors = list(weights_)
    strengths = [(0.0, 0.1, 0.5)[i % 3] for i in range(len(tensors))]
    found, expected = new_state(tensors), new_state(tensors)
    for t, momentum in enumerate((0.4, 0.4, 1.0)):
        grads = gradients(tensors, 10 * t)
        options = {"prox": prox, "strengths": strengths, "momentum": momentum, "maximize": t == 1}
        kept = [like(grad) for grad in grads]
        take_step(ops.rmda_step_, found, grads, layouts, **options)
        assert all(torch.equal(*pair) for pair in zip(grads, kept, strict=True))
        take_step(reference.rmda_step_, expected, grads, layouts, **options)
        assert_same_state(found, expected, dtype)
    for x, y in zip(found[0], expected[0], strict=True):  # momentum 1: exact zeros
        assert torch.equal(x == 0, y == 0)


@pytest.mark.parametrize("layout", [GroupLayout(6, 5, 4), GroupLayout(1, 30, 4), GroupLayout(1, 120, 1)])
def test_paper(backend: Any, layout: GroupLayout) -> None:
    """Algorithm 1 as it is written, with the sum of gradients V as its state."""
    device, c, lam = backend.device, 0.3, 0.2
    state = new_state([randn((6, 5, 4), torch.float64, device)])
    w, w0, v = state[0][0].clone(), state[0][0].clone(), torch.zeros(6, 5, 4, dtype=torch.float64, device=device)
    alpha = 0.0
    for t in range(1, 21):
        grad, lr = randn((6, 5, 4), torch.float64, device, t), 0.5 if t < 10 else 0.05
        take_step(ops.rmda_step_, state, [grad], [layout], strengths=[lam], lr=lr, momentum=c)
        beta = t**0.5
        alpha += lr * beta
        v += lr * beta * grad
        x = reference.grouped_view(w0 - v / beta, layout)
        norms = x.norm(dim=(1, 3), keepdim=True)
        x = x * (1 - alpha / beta * lam * layout.group_size**0.5 / norms).clamp(min=0)
        w = (1 - c) * w + c * x.reshape(w.shape)
        assert_near(state[0][0], w, 1e-13)
        assert state[3][0].item() == t
        assert state[4][0].item() == pytest.approx(alpha, rel=1e-14)


@pytest.mark.parametrize("shape", [(700, 600), (9000, 40), (3, 70000), (300, 40, 3, 3)])
@pytest.mark.parametrize("by", ["input", "output", "element"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_large_tensors_in_parts(shape: tuple[int, ...], by: str, threads: int) -> None:
    tensors = [randn(shape, torch.float64, torch.device("cpu"))]
    layouts = [group_layout(tensors[0], by)]
    found, expected = new_state(tensors), new_state(tensors)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    take_step(ops.rmda_step_, found, gradients(tensors, 5), layouts, strengths=[1.5])
    torch.set_num_threads(before)
    take_step(reference.rmda_step_, expected, gradients(tensors, 5), layouts, strengths=[1.5])
    assert_same_state(found, expected, torch.float64)


def test_gradients_in_another_memory_order(backend: Any) -> None:
    tensors = [randn((8, 6, 3, 3), torch.float32, backend.device)]
    layouts = [group_layout(tensors[0], "input")]
    found, expected = new_state(tensors), new_state(tensors)
    grads = gradients(tensors, 3)
    take_step(ops.rmda_step_, found, [grads[0].contiguous(memory_format=torch.channels_last)], layouts)
    take_step(ops.rmda_step_, expected, grads, layouts)
    assert all(torch.equal(x[0], y[0]) for x, y in zip(found, expected, strict=True))


def test_lr_and_scalars_as_tensors(backend: Any) -> None:
    tensors = [randn((8, 6), torch.float32, backend.device)]
    layouts = [group_layout(tensors[0], "input")]
    found, expected = new_state(tensors), new_state(tensors, torch.device("cpu"))
    lr = torch.tensor([0.5], device=backend.device)
    for t in range(3):
        take_step(ops.rmda_step_, found, gradients(tensors, t), layouts, lr=lr)
        take_step(ops.rmda_step_, expected, gradients(tensors, t), layouts, lr=0.5)
    for x, y in zip(found, expected, strict=True):
        if backend.name == "cuda":  # clocks there take sqrt and a fused multiply-add: the last bit of a double
            assert_near(
                x[0].cpu(), y[0].cpu(), 1e-15 if x[0].dtype == torch.float64 else VALUE_TOLERANCE[torch.float32]
            )
        else:
            assert torch.equal(x[0], y[0])


def test_amp(backend: Any) -> None:
    tensors = [randn((8, 6), torch.float32, backend.device)]
    layouts = [group_layout(tensors[0], "input")]
    found, expected = new_state(tensors), new_state(tensors)
    scale = torch.tensor(8.0, device=backend.device)
    finite, inf = (torch.tensor(flag, device=backend.device) for flag in (0.0, 1.0))
    grads = gradients(tensors, 1)
    take_step(ops.rmda_step_, expected, grads, layouts)
    take_step(ops.rmda_step_, found, [8 * g for g in grads], layouts, grad_scale=scale, found_inf=finite)
    assert all(torch.equal(x[0], y[0]) for x, y in zip(found, expected, strict=True))
    take_step(ops.rmda_step_, found, [g * torch.inf for g in grads], layouts, grad_scale=scale, found_inf=inf)
    assert all(torch.equal(x[0], y[0]) for x, y in zip(found, expected, strict=True))


def test_momentum_one_forgets_what_the_weights_were(backend: Any) -> None:
    for layout in (GroupLayout(8, 6, 1), GroupLayout(1, 48, 1), GroupLayout(1, 8, 6)):
        state = new_state([torch.ones(8, 6, device=backend.device)])
        state[0][0].fill_(torch.nan)
        take_step(ops.rmda_step_, state, [torch.ones(8, 6, device=backend.device)], [layout], momentum=1.0)
        assert state[0][0].isfinite().all()


def test_errors_change_nothing(backend: Any) -> None:
    tensors = [torch.ones(4, 6, device=backend.device)]
    layouts, grads = [GroupLayout(4, 6, 1)], [torch.ones(4, 6, device=backend.device)]
    state = new_state(tensors)
    for message, change in {
        r"momentum: expected 0 < momentum <= 1, got 0": {"momentum": 0.0},
        r"strengths\[0\]: expected a number >= 0, got -1": {"strengths": [-1.0]},
        r"lr: expected one element, got shape \[2\]": {"lr": torch.ones(2, device=backend.device)},
        r"prox: expected 'soft' or 'hard'": {"prox": "none"},
    }.items():
        with pytest.raises(ValueError, match=message):
            take_step(ops.rmda_step_, state, grads, layouts, **change)
    for place in (3, 4):  # a device pointer is not to be read here
        elsewhere = (*state[:place], [state[place][0].to("meta")], *state[place + 1 :])
        with pytest.raises(ValueError, match=r"\[0\]: expected all clocks on the CPU or all on .*, got "):
            take_step(ops.rmda_step_, elsewhere, grads, layouts)
    with pytest.raises(ValueError, match=r"grads\[0\]: expected shape \[4, 6\], got \[6, 4\]"):
        take_step(ops.rmda_step_, state, [grads[0].t()], layouts)
    with pytest.raises(TypeError, match=r"grads\[0\]: expected float32, got float64"):
        take_step(ops.rmda_step_, state, [grads[0].double()], layouts)
    broken = (*state[:1], [state[1][0].t().contiguous().t()], *state[2:])
    with pytest.raises(ValueError, match=r"expected the strides of the parameter"):
        take_step(ops.rmda_step_, broken, grads, layouts)
    assert all(torch.equal(x[0], y[0]) for x, y in zip(state, new_state(tensors), strict=True))


def test_no_tensors(backend: Any) -> None:
    ops.rmda_step_([], [], [], [], [], [], [], prox="soft", strengths=[], lr=0.1, momentum=0.5)
