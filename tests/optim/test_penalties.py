"""Penalties: values, proximal operators held against their definition, plain values, errors."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sparse_accel as sa
from sparse_accel.groups import Grouping
from sparse_accel.penalties import Penalty, penalty_from_plain

KINDS = [sa.GroupLasso, sa.L1, sa.GroupL0]
BY = ["input", "output", "kernel", "element"]
PENALTIES = [sa.L1(0.3), *(kind(0.3, by=by) for kind in (sa.GroupLasso, sa.GroupL0) for by in BY)]


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def group_rows(tensor: Tensor, by: str) -> Tensor:
    """[groups, elements of one], for a weight [out, in, ...]."""
    if by == "input":
        return tensor.transpose(0, 1).flatten(1)
    if by == "output":
        return tensor.flatten(1)
    if by == "kernel":
        return tensor.flatten(2).flatten(0, 1)
    return tensor.reshape(-1, 1)


def value_by_hand(penalty: Any, tensor: Tensor) -> float:
    rows = group_rows(tensor, penalty.by)
    if isinstance(penalty, sa.GroupL0):
        return penalty.strength * rows.shape[1] * rows.ne(0).any(1).sum().item()
    return penalty.strength * rows.shape[1] ** 0.5 * rows.norm(dim=1).sum().item()


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_value(penalty: Any) -> None:
    tensor = seeded(5, 4, 3, 2)
    tensor[:, 1] = 0
    tensor[2] = 0
    for special in (
        tensor,
        tensor.to(memory_format=torch.channels_last),
        tensor.transpose(0, 1).contiguous().transpose(0, 1),
        torch.stack([tensor, tensor], -1)[..., 0],
    ):
        assert penalty.value(special).item() == pytest.approx(value_by_hand(penalty, tensor), rel=1e-12)
    assert penalty.value([tensor, 2 * tensor]).dtype == torch.float64
    both = value_by_hand(penalty, tensor) + value_by_hand(penalty, 2 * tensor)
    assert penalty.value([tensor, 2 * tensor]).item() == pytest.approx(both, rel=1e-12)


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_value_in_lower_precision(penalty: Any, dtype: torch.dtype) -> None:
    tensor = seeded(5, 4, 3, 2).to(dtype)
    assert penalty.value(tensor).item() == pytest.approx(value_by_hand(penalty, tensor.double()), rel=1e-5)


def test_value_of_nothing() -> None:
    assert sa.GroupLasso(1.0).value([]).item() == 0
    assert sa.GroupLasso(1.0).value([torch.ones(3), torch.ones(())]).item() == 0  # not weights
    assert sa.L1(1.0).value([torch.ones(3), torch.ones(()), torch.ones(0)]).item() == 4


@settings(max_examples=60, deadline=None)
@given(
    penalty=st.sampled_from(PENALTIES),
    seed=st.integers(0, 10**6),
    step=st.floats(0, 5),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
)
def test_prox_minimizes(penalty: Any, seed: int, step: float, scale: float) -> None:
    """No other point has less of step * value(z) + 1/2 ||z - x||^2: near ones, sparse ones, random ones."""
    x = seeded(3, 4, 2, seed=seed)
    point = x.clone()
    penalty.prox_(point, step)

    def objective(z: Tensor) -> float:
        return step * value_by_hand(penalty, z) + 0.5 * (z - x).square().sum().item()

    least = objective(point)
    noise = seeded(3, 4, 2, seed=seed + 1) * scale
    candidates = [x, torch.zeros_like(x), point + noise, point + 1e-3 * noise, point * 0.9, point * 1.1, noise]
    for i in range(x.shape[1]):
        without = point.clone()
        without[:, i] = 0
        with_it = point.clone()
        with_it[:, i] = x[:, i]
        candidates += [without, with_it]
    for candidate in candidates:
        assert least <= objective(candidate) + 1e-9


@settings(max_examples=40, deadline=None)
@given(penalty=st.sampled_from([p for p in PENALTIES if p.prox_name == "soft"]), seed=st.integers(0, 10**6))
def test_soft_prox_is_firmly_nonexpansive(penalty: Any, seed: int) -> None:
    one, two = seeded(3, 4, 2, seed=seed), seeded(3, 4, 2, seed=seed + 1)
    a, b = one.clone(), two.clone()
    penalty.prox_(a, 2.0)
    penalty.prox_(b, 2.0)
    assert (a - b).square().sum() <= ((a - b) * (one - two)).sum() + 1e-12


@pytest.mark.parametrize("by", BY)
def test_soft_prox_optimality(by: str) -> None:
    """x - p is step times a subgradient at p: of norm strength * sqrt(|g|) along p, and no longer where p is zero."""
    x = seeded(5, 4, 3)
    rows = group_rows(x, by)
    step = rows.norm(dim=1).median().item() / (0.4 * rows.shape[1] ** 0.5)
    point = x.clone()
    sa.GroupLasso(0.4, by=by).prox_(point, step)
    rows, residual = group_rows(point, by), group_rows(x - point, by)
    bound = step * 0.4 * rows.shape[1] ** 0.5
    zero = rows.eq(0).all(1)
    assert 0 < zero.sum() < len(zero)
    assert (residual[zero].norm(dim=1) <= bound * (1 + 1e-12)).all()
    torch.testing.assert_close(residual[~zero], bound * rows[~zero] / rows[~zero].norm(dim=1, keepdim=True))


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_prox_in_other_strides(penalty: Any) -> None:
    plain = seeded(5, 4, 3, 2)
    expected = plain.clone()
    penalty.prox_(expected, 2.0)
    base = torch.zeros(5, 8, 3, 4, dtype=torch.float64)
    gaps = base[:, 1::2, :, ::2]
    for special in (plain.to(memory_format=torch.channels_last), plain.mT.contiguous().mT, gaps):
        special.copy_(plain)
        penalty.prox_(special, 2.0)
        torch.testing.assert_close(special, expected, rtol=1e-12, atol=0, check_stride=False)
    assert base[:, ::2].eq(0).all()


def test_prox_takes_parameters_and_lists() -> None:
    linear = nn.Linear(4, 3)
    bias = linear.bias.detach().clone()
    sa.GroupLasso(100.0).prox_(list(linear.parameters()))
    assert linear.weight.eq(0).all()
    assert torch.equal(linear.bias, bias)


def test_prox_of_zero_strength_or_step_changes_nothing() -> None:
    for kind in KINDS:
        x = seeded(3, 3)
        kind(0.0).prox_(x)
        kind(1.0).prox_(x, 0.0)
        assert torch.equal(x, seeded(3, 3))


def test_groupings() -> None:
    weight = seeded(4, 6, 3)  # transposed convolution: [in, out, k]
    by_input = sa.GroupLasso(0.5)
    expected = by_input.value(weight.transpose(0, 1)).item()
    transposed = Grouping("input", transposed=True)
    assert by_input.value(weight, transposed).item() == pytest.approx(expected, rel=1e-12)
    assert by_input.value([weight, weight], [transposed, None]).item() == pytest.approx(
        expected + by_input.value(weight).item(), rel=1e-12
    )
    assert by_input.value(weight, Grouping("output", transposed=True)).item() == pytest.approx(expected, rel=1e-12)
    one, two = weight.clone(), weight.transpose(0, 1).contiguous()
    by_input.prox_(one, 1.0, transposed)
    by_input.prox_(two)
    torch.testing.assert_close(one.transpose(0, 1), two, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="groupings: expected one for each of 2 tensors, got 1"):
        by_input.value([weight, weight], [transposed])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [-1.0, math.nan, math.inf, -math.inf, "1", None, True])
def test_strength_is_checked(kind: Any, strength: Any) -> None:
    with pytest.raises(ValueError, match="strength: expected a finite number >= 0, got"):
        kind(strength)


@pytest.mark.parametrize("kind", [sa.GroupLasso, sa.GroupL0])
def test_by_is_checked(kind: Any) -> None:
    with pytest.raises(ValueError, match="by: expected one of 'input', 'output', 'kernel', 'element', got 'row'"):
        kind(1.0, by="row")


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="step: expected a finite number >= 0, got -1"):
        sa.L1(1.0).prox_(torch.ones(2), -1)
    for tensor in (torch.ones(2, dtype=torch.complex64), torch.ones(2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="expected real floating point, got torch"):
            sa.L1(1.0).value(tensor)
    with pytest.raises(TypeError, match="Penalty is a base class"):
        Penalty(1.0)


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_plain_values(penalty: Any) -> None:
    plain = penalty.to_plain()
    assert penalty_from_plain(json.loads(json.dumps(plain))) == penalty
    assert penalty_from_plain(penalty) is penalty
    assert pickle.loads(pickle.dumps(penalty)) == copy.deepcopy(penalty) == penalty
    assert hash(penalty) == hash(penalty_from_plain(plain))
    with pytest.raises(dataclasses.FrozenInstanceError):
        penalty.strength = 1.0


def test_equality() -> None:
    assert sa.GroupLasso(1) == sa.GroupLasso(1.0, by="input")
    assert sa.GroupLasso(1) != sa.GroupLasso(1, by="output")
    assert sa.GroupLasso(1, by="element") != sa.L1(1)
    assert sa.GroupLasso(1) != sa.GroupL0(1)


def test_plain_values_are_checked() -> None:
    assert penalty_from_plain(None) is None
    with pytest.raises(ValueError, match="expected a name among 'group_lasso', 'l1', 'group_l0'"):
        penalty_from_plain({"name": "ridge", "strength": 1.0})
    with pytest.raises(ValueError, match="strength: expected a finite number"):
        penalty_from_plain({"name": "l1", "strength": -1.0, "by": "element"})
    with pytest.raises(TypeError, match="expected a penalty such as"):
        penalty_from_plain("group_lasso")  # type: ignore[arg-type]


def test_l1_is_group_lasso_by_element() -> None:
    x = seeded(3, 4)
    assert sa.L1(0.3).value(x).item() == pytest.approx(sa.GroupLasso(0.3, by="element").value(x).item())
    assert sa.L1(0.3).value(x).item() == pytest.approx(0.3 * x.abs().sum().item())
