"""State of RMDA and RAMDA in bfloat16 with stochastic rounding."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse_accel as sa
from sparse_accel.optim.common import rounding

LOW = {"state_dtype": torch.bfloat16}
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "RMDA": (sa.RMDA, {"lr": 0.1, "momentum": 0.3}),
    "RMDA-loop": (sa.RMDA, {"lr": 0.1, "momentum": 1.0, "fused": False}),
    "RAMDA": (sa.RAMDA, {"lr": 0.05, "momentum": 0.3}),
    "RAMDA-foreach": (sa.RAMDA, {"lr": 0.05, "momentum": 1.0, "foreach": True}),
}
each = pytest.mark.parametrize("kind", KINDS)
PENALTIES = [sa.GroupLasso(0.05), sa.L1(0.01), sa.SparseGroupLasso(0.03, l1=0.01), sa.Box(-0.5, 0.5), None]


def make(kind: str, params: Any, penalty: Any, **more: Any) -> Any:
    optimizer, options = KINDS[kind]
    return optimizer(params, penalty=penalty, **{**options, **more})


def train(opt: Any, params: list[Any], steps: range) -> None:
    for step in steps:
        for i, p in enumerate(params):
            generator = torch.Generator().manual_seed(100 * step + i)
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype) * 0.3 + 0.2 * p.detach()
        opt.step()


def weights(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(6, 8, generator=generator), torch.randn(8, 5, generator=generator).t(), torch.zeros(0, 3)
    return [nn.Parameter(one.to(dtype)) for one in (*plain, torch.randn(5, generator=generator))]


def test_rounding_is_right_in_the_mean() -> None:
    values = torch.tensor([1.001, -1.001, 3.3e-5, -7.7e20, 1e-40, 0.0, 2.0])
    wide = values.repeat(20_000, 1)
    low = torch.empty_like(wide, dtype=torch.bfloat16)
    rounding.round_(low, wide, torch.Generator().manual_seed(1))
    assert torch.equal(low.float(), wide)
    for value, column in zip(values, wide.double().unbind(1), strict=True):
        neighbours = column.unique()
        assert len(neighbours) <= 2
        assert neighbours[0] <= value.double() <= neighbours[-1]
        spread = float(neighbours[-1] - neighbours[0])
        assert abs(float(column.mean() - value.double())) <= 4 * 0.5 * spread / 20_000**0.5  # four deviations
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, 2.0, -1.5])
    kept = special.clone()
    rounding.round_(torch.empty(5, dtype=torch.bfloat16), kept, torch.Generator().manual_seed(2))
    torch.testing.assert_close(kept, special, rtol=0, atol=0, equal_nan=True)


@each
def test_state_is_bfloat16_and_the_iterate_is_that_of_the_step(kind: str) -> None:
    for penalty in PENALTIES:
        for dtype in (torch.float32, torch.bfloat16):
            params = weights(dtype)
            opt = make(kind, params, penalty, **LOW)
            train(opt, params, range(5))
            for p in params:
                state = opt.state[p]
                kept = [key for key, value in state.items() if value.dim()]
                assert {state[key].dtype for key in kept} == {torch.bfloat16}
                assert all(state[key].stride() == p.stride() for key in kept)
            before = [p.detach().clone() for p in params]
            with opt.proximal_parameters():
                if opt.param_groups[0]["momentum"] == 1.0:
                    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))
            assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))


@each
def test_resumed_to_the_same_bits(kind: str) -> None:
    for penalty in (PENALTIES[0], PENALTIES[2]):
        params = weights()
        opt = make(kind, params, penalty, rounding_seed=7, **LOW)
        train(opt, params, range(3))
        opt.restart()
        train(opt, params, range(3, 5))
        opt.eval()
        stream = io.BytesIO()
        torch.save(opt.state_dict(), stream)
        stream.seek(0)
        again = [nn.Parameter(p.detach().clone()) for p in params]
        other = make(kind, again, None)
        other.load_state_dict(torch.load(stream, weights_only=True))
        clone = copy.deepcopy(opt)
        for one, held in ((opt, params), (other, again)):
            one.train()
            train(one, held, range(5, 8))
        assert all(torch.equal(p, q) for p, q in zip(params, again, strict=True))
        assert clone.param_groups[0]["rounding_step"] == 5


@each
def test_parts_and_seeds(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many tensors are taken at a time changes nothing; the seed does."""
    found: list[list[Tensor]] = []
    for elements, seed in ((1 << 22, 0), (1, 0), (50, 0), (1 << 22, 1)):
        monkeypatch.setattr(rounding, "_ELEMENTS", elements)
        params = weights()
        opt = make(kind, params, PENALTIES[0], rounding_seed=seed, **LOW)
        train(opt, params, range(4))
        found.append([p.detach().clone() for p in params])
    for other in found[1:3]:
        assert all(torch.equal(p, q) for p, q in zip(found[0], other, strict=True))
    assert not torch.equal(found[0][0], found[3][0])


@each
def test_near_the_run_in_float32(kind: str) -> None:
    """Many small steps, each below half an ulp of the state: rounding to nearest would stand still."""
    target = torch.randn(16, 16, generator=torch.Generator().manual_seed(3))
    ends = []
    for options in ({}, LOW):
        weight = nn.Parameter(torch.zeros(16, 16))
        opt = make(kind, [weight], sa.GroupLasso(1e-3), lr=0.02 if "RMDA" in kind else 0.002, **options)
        for _ in range(150):
            weight.grad = weight.detach() - target
            opt.step()
        opt.finalize_()
        ends.append(weight.detach())
    assert (ends[0] - ends[1]).norm() < 0.05 * ends[0].norm()


def test_overflow_and_no_rate_leave_the_state() -> None:
    for kind in ("RMDA", "RAMDA"):
        weight = nn.Parameter(torch.tensor([[3.0, -4.1]]))
        opt = make(kind, [weight], PENALTIES[0], **LOW)
        weight.grad = torch.ones_like(weight)
        opt.param_groups[0]["lr"] = 0.0
        opt.step()
        assert torch.equal(weight.detach(), torch.tensor([[3.0, -4.1]]))
        opt.param_groups[0]["lr"] = 0.1
        opt.step()
        before = copy.deepcopy(opt.state[weight]), weight.detach().clone()
        weight.grad = torch.full_like(weight, torch.inf)
        opt.grad_scale, opt.found_inf = torch.tensor(2.0), torch.tensor(1.0)
        opt.step()
        assert torch.equal(weight.detach(), before[1])
        assert all(torch.equal(value, before[0][key]) for key, value in opt.state[weight].items())


def test_refusals() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    for options, text in (
        ({"state_dtype": torch.float16}, "state_dtype: expected torch.bfloat16, or None"),
        ({**LOW, "differentiable": True}, "differentiable=True is not supported with state_dtype"),
        ({**LOW, "capturable": True}, "capturable=True is not supported with state_dtype"),
        ({**LOW, "rounding_seed": 0.5}, "rounding_seed: expected a whole number"),
    ):
        with pytest.raises(ValueError, match=text):
            sa.RMDA([weight], **options)
    with pytest.raises(ValueError, match="float64 ones have state of float64"):
        sa.RAMDA([nn.Parameter(torch.ones(2, dtype=torch.float64))], **LOW)
    groups = [{"params": [weight]}, {"params": [nn.Parameter(torch.ones(2))], **LOW}]
    with pytest.raises(ValueError, match="state_dtype: expected one for all parameter groups"):
        sa.RMDA(groups)
    assert sa.RMDA([weight], state_dtype=torch.float32).param_groups[0]["state_dtype"] is None
