"""prox_sgd_step_: every backend against the plain twin and against the formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_cases import BY, DTYPES, VALUE_TOLERANCE, assert_near, like, randn, weights
from torch import Tensor

from sparse_accel import ops, reference
from sparse_accel.groups import GroupLayout, group_layout

State = tuple[list[Tensor], list[Tensor], list[Tensor]]
FLOAT32_TINY = GroupLayout(4, 6, 1)


def new_state(tensors: list[Tensor], scalar_device: torch.device | None = None) -> State:
    """params, buffers, steps."""
    buffers = [torch.zeros_like(t, dtype=reference.compute_type(t.dtype)) for t in tensors]
    device = scalar_device or tensors[0].device
    return [like(t) for t in tensors], buffers, [torch.zeros((), device=device) for _ in tensors]


def gradients(tensors: list[Tensor], seed: int) -> list[Tensor]:
    return [randn(tuple(t.shape), t.dtype, t.device, seed + i) for i, t in enumerate(tensors)]


def take_step(function: Any, state: State, grads: list[Tensor], layouts: Any, **options: Any) -> None:
    params, buffers, steps = state
    defaults = {"prox": "soft", "strengths": [0.3] * len(params), "lr": 0.5, "rho": 0.4}
    function(params, grads, buffers, steps, layouts, **{**defaults, **options})


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
    for t, rho in enumerate((0.4, 0.7, 1.0)):
        grads = gradients(tensors, 10 * t)
        options = {"prox": prox, "strengths": strengths, "rho": rho, "maximize": t == 1}
        kept = [like(grad) for grad in grads]
        take_step(ops.prox_sgd_step_, found, grads, layouts, **options)
        assert all(torch.equal(*pair) for pair in zip(grads, kept, strict=True))
        take_step(reference.prox_sgd_step_, expected, grads, layouts, **options)
        assert_same_state(found, expected, dtype)
    for x, y in zip(found[0], expected[0], strict=True):
        assert torch.equal(x == 0, y == 0)


@pytest.mark.parametrize("layout", [GroupLayout(6, 5, 4), GroupLayout(1, 30, 4), GroupLayout(1, 120, 1)])
def test_formulas(backend: Any, layout: GroupLayout) -> None:
    device, rho, lam, lr = backend.device, 0.3, 0.2, 0.25
    state = new_state([randn((6, 5, 4), torch.float64, device)])
    w, m = state[0][0].clone(), torch.zeros(6, 5, 4, dtype=torch.float64, device=device)
    for t in range(1, 11):
        grad = randn((6, 5, 4), torch.float64, device, t)
        take_step(ops.prox_sgd_step_, state, [grad], [layout], strengths=[lam], lr=lr, rho=rho)
        m = (1 - rho) * m + rho * grad
        x = reference.grouped_view(w - lr * m, layout)
        norms = x.norm(dim=(1, 3), keepdim=True)
        w = (x * (1 - lr * lam * layout.group_size**0.5 / norms).clamp(min=0)).reshape(w.shape)
        assert_near(state[0][0], w, 1e-13)
        assert_near(state[1][0], m, 1e-13)
        assert state[2][0].item() == t


@pytest.mark.parametrize("shape", [(700, 600), (9000, 40), (3, 70000), (300, 40, 3, 3)])
@pytest.mark.parametrize("by", ["input", "output", "element"])
def test_large_tensors_in_parts(shape: tuple[int, ...], by: str) -> None:
    """The same bits for any number of threads; a strength of 0 is the plain step."""
    tensors = [randn(shape, torch.float64, torch.device("cpu"))]
    layouts = [group_layout(tensors[0], by)]
    before = torch.get_num_threads()
    for strength in (1.5, 0.0):
        states = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            states.append(new_state(tensors))
            take_step(ops.prox_sgd_step_, states[-1], gradients(tensors, 5), layouts, strengths=[strength])
        torch.set_num_threads(before)
        expected = new_state(tensors)
        take_step(reference.prox_sgd_step_, expected, gradients(tensors, 5), layouts, strengths=[strength])
        assert_same_state(states[0], expected, torch.float64)
        assert all(torch.equal(x[0], y[0]) for x, y in zip(*states, strict=True))


def test_lr_and_scalars_as_tensors(backend: Any) -> None:
    tensors = [randn((8, 6), torch.float32, backend.device)]
    layouts = [group_layout(tensors[0], "input")]
    found, expected = new_state(tensors), new_state(tensors, torch.device("cpu"))
    for t in range(3):
        lr = torch.tensor([0.5], device=backend.device)
        take_step(ops.prox_sgd_step_, found, gradients(tensors, t), layouts, lr=lr)
        take_step(ops.prox_sgd_step_, expected, gradients(tensors, t), layouts, lr=0.5)
    for x, y in zip(found, expected, strict=True):
        assert_near(x[0].cpu(), y[0].cpu(), VALUE_TOLERANCE[torch.float32] if backend.name == "cuda" else 0.0)


def test_amp_and_memory_orders(backend: Any) -> None:
    tensors = [randn((8, 6, 3, 3), torch.float32, backend.device)]
    layouts = [group_layout(tensors[0], "input")]
    found, expected = new_state(tensors), new_state(tensors)
    scale = torch.tensor(8.0, device=backend.device)
    finite, inf = (torch.tensor(flag, device=backend.device) for flag in (0.0, 1.0))
    grads = gradients(tensors, 1)
    take_step(ops.prox_sgd_step_, expected, grads, layouts)
    scaled = [(8 * grads[0]).contiguous(memory_format=torch.channels_last)]
    take_step(ops.prox_sgd_step_, found, scaled, layouts, grad_scale=scale, found_inf=finite)
    assert all(torch.equal(x[0], y[0]) for x, y in zip(found, expected, strict=True))
    nothing = [g * torch.inf for g in grads]
    take_step(ops.prox_sgd_step_, found, nothing, layouts, grad_scale=scale, found_inf=inf)
    assert all(torch.equal(x[0], y[0]) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("prox", ["soft", "hard"])
@pytest.mark.parametrize("layout", [GroupLayout(8, 6, 1), GroupLayout(1, 48, 1), GroupLayout(1, 8, 6)])
def test_what_is_not_a_number_shows(backend: Any, layout: GroupLayout, prox: str) -> None:
    """In its own group, and in no other."""
    state = new_state([torch.ones(8, 6, device=backend.device)])
    grads = [torch.zeros(8, 6, device=backend.device)]
    grads[0][1, 2] = torch.nan
    take_step(ops.prox_sgd_step_, state, grads, [layout], prox=prox, strengths=[0.01])
    assert state[0][0][1, 2].isnan()
    others = reference.grouped_view(state[0][0].isfinite().float(), layout).amin((1, 3))
    assert int((others == 0).sum()) == 1


def test_errors_change_nothing(backend: Any) -> None:
    tensors = [torch.ones(4, 6, device=backend.device)]
    layouts, grads = [FLOAT32_TINY], [torch.ones(4, 6, device=backend.device)]
    state = new_state(tensors)
    for message, change in {
        r"rho: expected 0 < rho <= 1, got 0": {"rho": 0.0},
        r"rho: expected 0 < rho <= 1, got nan": {"rho": float("nan")},
        r"strengths\[0\]: expected a number >= 0, got -1": {"strengths": [-1.0]},
        r"strengths: expected one for each of 1 parameters, got 0": {"strengths": []},
        r"lr: expected one element, got shape \[2\]": {"lr": torch.ones(2, device=backend.device)},
        r"prox: expected 'soft' or 'hard'": {"prox": "none"},
    }.items():
        with pytest.raises(ValueError, match=message):
            take_step(ops.prox_sgd_step_, state, grads, layouts, **change)
    with pytest.raises(ValueError, match=r"grads\[0\]: expected shape \[4, 6\], got \[6, 4\]"):
        take_step(ops.prox_sgd_step_, state, [grads[0].t()], layouts)
    with pytest.raises(TypeError, match=r"grads\[0\]: expected float32, got float64"):
        take_step(ops.prox_sgd_step_, state, [grads[0].double()], layouts)
    strided = (state[0], [torch.zeros(6, 4, device=backend.device).t()], state[2])
    with pytest.raises(ValueError, match=r"buffers\[0\]: expected the strides of the parameter"):
        take_step(ops.prox_sgd_step_, strided, grads, layouts)
    elsewhere = (state[0], state[1], [torch.zeros((), device="meta")])
    with pytest.raises(ValueError, match=r"steps\[0\]: expected all clocks on the CPU or all on .*, got "):
        take_step(ops.prox_sgd_step_, elsewhere, grads, layouts)
    assert_same_state(state, new_state(tensors), torch.float32)
