"""Box, NonNegative and Binary in the place of a penalty."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse_accel as sa
from sparse_accel.penalties import penalty_from_plain

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "RMDA": (sa.RMDA, {"lr": 0.3, "momentum": 0.2}),
    "RMDA-c1": (sa.RMDA, {"lr": 0.3, "momentum": 1.0}),
    "RAMDA": (sa.RAMDA, {"lr": 0.1, "momentum": 0.2}),
    "RAMDA-foreach": (sa.RAMDA, {"lr": 0.02, "momentum": 1.0, "foreach": True}),
    "ProxSGD": (sa.ProxSGD, {"lr": 0.3}),
    "ProxAdamW": (sa.ProxAdamW, {"lr": 0.05, "weight_decay": 0.0}),
    "ProxAdamW-loop": (sa.ProxAdamW, {"lr": 0.05, "fused": False, "weight_decay": 0.0}),
}
each = pytest.mark.parametrize("kind", KINDS)
CONSTRAINTS = [sa.Box(-0.1, 0.2), sa.NonNegative(), sa.Binary(-0.5, 0.5)]


def make(kind: str, weights: list[Tensor], penalty: Any) -> Any:
    optimizer, options = KINDS[kind]
    return optimizer(weights, penalty=penalty, **options)


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_proximal_iterate_is_allowed(kind: str, dtype: torch.dtype) -> None:
    for constraint in CONSTRAINTS:
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(5, 4, dtype=dtype)), nn.Parameter(torch.randn(7, 3, dtype=dtype).t())]
        opt = make(kind, weights, constraint)
        for _ in range(4):
            for weight in weights:
                weight.grad = torch.randn_like(weight)
            opt.step()
        with opt.proximal_parameters():
            for weight in weights:
                allowed = weight.detach().clone()
                constraint.prox_(allowed)
                assert torch.equal(weight, allowed)
            assert opt.penalty_value() == 0.0
        if kind not in ("RMDA", "RAMDA"):  # of which the weights themselves are the iterate
            assert opt.penalty_value() == 0.0
        opt.eval()
        assert opt.penalty_value() == 0.0
        opt.train()


@each
def test_the_formula(kind: str) -> None:
    # The step without a penalty and with momentum 1 gives the point; it is projected, and mixed with the old weights.
    torch.manual_seed(0)
    start, constraint = torch.randn(6, 4, dtype=torch.float64), sa.Box(-0.3, 0.5)
    optimizer, options = KINDS[kind]
    weight, free = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    opt = make(kind, [weight], constraint)
    point = optimizer([free], **{**options, **({"momentum": 1.0} if "momentum" in options else {})})
    share = options.get("momentum", 1.0)
    for _ in range(5):
        grad, before = torch.randn_like(start), weight.detach().clone()
        weight.grad, free.grad = grad.clone(), grad.clone()
        if "momentum" not in options:
            with torch.no_grad():
                free.copy_(weight)
        opt.step()
        point.step()
        expected = (1 - share) * before + share * free.detach().clamp(-0.3, 0.5)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)


@each
def test_minimum_of_a_quadratic_in_a_box(kind: str) -> None:
    # RAMDA without averaging swings by about lr / 3 around a minimum, whatever the penalty.
    target = torch.tensor([[-2.0, -0.05, 0.1, 3.0]], dtype=torch.float64)
    weight = nn.Parameter(torch.zeros_like(target))
    opt = make(kind, [weight], sa.Box(-0.1, 0.2))
    for _ in range(600):
        weight.grad = weight.detach() - target
        opt.step()
    opt.finalize_()
    torch.testing.assert_close(weight.detach(), target.clamp(-0.1, 0.2), rtol=0, atol=2e-2)


@each
def test_nothing_moves_without_a_learning_rate_or_by_an_overflow(kind: str) -> None:
    weight = nn.Parameter(torch.tensor([[3.0, -4.0]]))
    opt = make(kind, [weight], sa.NonNegative())
    lr = opt.param_groups[0]["lr"]
    opt.param_groups[0]["lr"] = 0.0  # as torch.distributed.checkpoint makes state
    weight.grad = torch.ones_like(weight)
    opt.step()
    assert weight.tolist() == [[3.0, -4.0]]
    opt.param_groups[0]["lr"] = lr
    if opt._step_supports_amp_scaling:
        opt.grad_scale, opt.found_inf = torch.tensor(2.0), torch.tensor(1.0)
        opt.step()
        assert weight.tolist() == [[3.0, -4.0]]
        opt.found_inf = torch.tensor(0.0)
        opt.step()
        assert weight[0, 1] > -4.0


@each
def test_resumed_to_the_same_bits(kind: str) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 3))
    opt = make(kind, [weight], sa.Box(-0.5, 0.5))
    grads = torch.randn(6, 3, 3)
    for step in range(6):
        if step == 3:
            other = nn.Parameter(weight.detach().clone())
            again = make(kind, [other], None)
            again.load_state_dict(copy.deepcopy(opt.state_dict()))
        weight.grad = grads[step]
        opt.step()
        if step >= 3:
            other.grad = grads[step]
            again.step()
    assert torch.equal(weight, other)
    assert again.param_groups[0]["penalty"] == {"name": "box", "low": -0.5, "high": 0.5}


def test_values_plain_values_and_refusals() -> None:
    x = torch.tensor([[0.5, -2.0]])
    assert sa.Box(-1, 1).value(x) == math.inf
    assert sa.Box(-2, 1).value([x, x]) == 0
    assert sa.NonNegative().value(x.abs()) == 0
    nan = torch.tensor([math.nan])
    for constraint in CONSTRAINTS:
        assert penalty_from_plain(constraint.to_plain()) == constraint
        constraint.prox_(nan)
        assert nan.isnan()
    groups = sa.param_groups(nn.Linear(3, 2), sa.NonNegative())
    assert [group["penalty"] for group in groups] == [sa.NonNegative(), None]
    for make_it, text in (
        (lambda: sa.Box(1, -1), "expected low <= high, got 1.0, -1.0"),
        (lambda: sa.Box("a", 1), "low: expected a number, got 'a'"),
        (lambda: sa.Binary(0, math.inf), "expected finite numbers, low < high"),
        (lambda: sa.SPPAM([nn.Parameter(x)], penalty=sa.NonNegative()), "constraints are not supported by SPPAM"),
        (lambda: sa.RMDA([nn.Parameter(x)], penalty=sa.Box(), differentiable=True), "got a constraint"),
        (lambda: sa.max_strength(sa.RMDA([nn.Parameter(x)], penalty=sa.Box())), "expected penalties GroupLasso or L1"),
    ):
        with pytest.raises(ValueError, match=text):
            make_it()
