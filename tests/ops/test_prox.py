"""prox_: every backend against the plain twin, the definition of a proximal operator, and the edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import BY, DTYPES, VALUE_TOLERANCE, assert_near, like, randn, weights

from sparse_accel import ops, reference
from sparse_accel.groups import GroupLayout, group_layout

PROX = ("soft", "hard")


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("prox", PROX)
@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_twin(backend: Any, dtype: torch.dtype, prox: str, by: str) -> None:
    names, tensors, layouts = zip(*weights(dtype, backend.device, by), strict=True)
    taus = [(0.0, 0.3, 0.8, 1.1)[i % 4] for i in range(len(tensors))]
    found, expected = [like(t) for t in tensors], [like(t) for t in tensors]
    values = ops.prox_(found, layouts, taus, prox=prox, return_value=True)
    expected_values = reference.prox_(expected, layouts, taus, prox=prox, return_value=True)
    for case in zip(found, expected, names, strict=True):
        assert_near(*case[:2], VALUE_TOLERANCE[dtype], case[2])
        assert torch.equal(case[0] == 0, case[1] == 0), case[2]
    assert values is not None
    assert expected_values is not None
    torch.testing.assert_close(values, expected_values, rtol=1e-12 if dtype == torch.float64 else 1e-5, atol=1e-6)
    assert ops.prox_([like(t) for t in tensors], layouts, taus, prox=prox) is None


@pytest.mark.parametrize("shape", [(700, 600), (9000, 40), (3, 70000), (300, 40, 3, 3)])
@pytest.mark.parametrize("by", ["input", "output", "element"])
def test_large_tensors_in_parts(shape: tuple[int, ...], by: str) -> None:
    tensor = randn(shape, torch.float64, torch.device("cpu"))
    layout, tau = group_layout(tensor, by), 1.0
    found, expected = tensor.clone(), tensor.clone()
    values = ops.prox_([found], [layout], [tau], return_value=True)
    torch.testing.assert_close(values, reference.prox_([expected], [layout], [tau], return_value=True))
    assert_near(found, expected, 1e-11)  # the threshold takes most of each norm away


def penalty(x: torch.Tensor, layout: GroupLayout, prox: str) -> float:
    """The definition, group by group."""
    groups = reference.grouped_view(x, layout).transpose(1, 2).reshape(layout.num_groups, layout.group_size)
    if prox == "hard":
        return float(layout.group_size * (groups != 0).any(1).sum())
    return float(layout.group_size**0.5 * groups.norm(dim=1).sum())


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4), st.integers(1, 70)),
    st.floats(0, 2),
    st.sampled_from(PROX),
    st.integers(0, 99),
)
def test_minimizes_its_objective(sizes: tuple[int, int, int, int], tau: float, prox: str, seed: int) -> None:
    """prox(x) has a lower value of |u - x|^2 / 2 + tau psi(u) than x, 0 and random neighbours."""
    blocks, outer, groups, inner = sizes
    layout = GroupLayout(outer, groups, inner, blocks)
    x = randn(sizes, torch.float64, torch.device("cpu"), seed)
    best = x.clone()
    value = ops.prox_([best], [layout], [tau], prox=prox, return_value=True)
    assert value is not None
    assert value.item() == pytest.approx(penalty(best, layout, prox), rel=1e-10)

    def objective(u: torch.Tensor) -> float:
        return float((u - x).square().sum() / 2 + tau * penalty(u, layout, prox))

    others = [x, torch.zeros_like(x)]
    others += [best + scale * randn(sizes, torch.float64, x.device, seed + 100) for scale in (1e-3, 0.1, 1)]
    others += [best * scale for scale in (0.9, 1.1)]
    assert all(objective(best) <= objective(u) + 1e-9 for u in others)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 2), st.integers(0, 99))
def test_soft_is_firmly_nonexpansive(tau: float, seed: int) -> None:
    """|P x - P y|^2 <= <P x - P y, x - y>."""
    layout = GroupLayout(5, 7, 3)
    x, y = (randn((5, 7, 3), torch.float64, torch.device("cpu"), seed + i) for i in (0, 1000))
    px, py = x.clone(), y.clone()
    ops.prox_([px, py], [layout] * 2, [tau] * 2)
    assert ((px - py).square().sum() <= ((px - py) * (x - y)).sum() + 1e-12).item()


def test_threshold_zero_changes_nothing(backend: Any) -> None:
    x = randn((5, 300), torch.float32, backend.device)
    for layout in (GroupLayout(5, 300, 1), GroupLayout(1, 5, 300), GroupLayout(1, 1500, 1)):
        for prox in PROX:
            y = x.clone()
            ops.prox_([y], [layout], [0.0], prox=prox)
            assert torch.equal(x, y)


def test_threshold_at_the_largest_norm_gives_zero(backend: Any) -> None:
    x = randn((5, 300), torch.float32, backend.device)
    layout = GroupLayout(5, 300, 1)
    (norms,) = ops.group_score([x], [layout])
    ops.prox_([x], [layout], [float(norms.max()) / 5**0.5 * (1 + 1e-6)])
    assert not x.any()


def test_nan_shows_and_stays_in_its_group(backend: Any) -> None:
    for layout in (GroupLayout(5, 300, 1), GroupLayout(1, 5, 300), GroupLayout(1, 1500, 1)):
        x = torch.ones(5, 300, device=backend.device)
        x[2, 7] = torch.nan
        ops.prox_([x], [layout], [0.1])
        assert int(x.isnan().sum()) == layout.group_size


def test_errors_change_nothing(backend: Any) -> None:
    x = torch.ones(4, 6, device=backend.device)
    layout = GroupLayout(4, 6, 1)
    with pytest.raises(ValueError, match=r"prox: expected 'soft' or 'hard', got 'firm'"):
        ops.prox_([x], [layout], [1.0], prox="firm")
    with pytest.raises(ValueError, match=r"thresholds\[1\]: expected a number >= 0, got -1"):
        ops.prox_([x, x.clone()], [layout] * 2, [1.0, -1.0])
    with pytest.raises(ValueError, match=r"thresholds: expected one for each of 1 tensors, got 2"):
        ops.prox_([x], [layout], [1.0, 1.0])
    assert torch.equal(x, torch.ones_like(x))
