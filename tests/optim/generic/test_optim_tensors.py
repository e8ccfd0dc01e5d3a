"""Parameters of every shape, stride, dtype and kind: the same result as for contiguous ones, or a clear refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_infos import OURS, each_info, set_grads
from torch import Tensor
from torch.nn import Parameter

import sparse_accel as sa

FLAGS: list[dict[str, Any]] = [{}, {"foreach": True}, {"foreach": False}, {"fused": True}]
BY = ["input", "output", "kernel", "element"]


def steps_equal(
    info: Any, plain: Tensor, special: Tensor, grad_like: Callable[[Tensor], Tensor] = lambda grad: grad, **kwargs: Any
) -> tuple[Parameter, Parameter]:
    """Three steps of each; the parameters and gradients have the same values in other strides."""
    params = Parameter(plain.clone()), Parameter(special)
    opts = [info.optim_cls([param], lr=0.1, **kwargs) for param in params]
    for step in range(3):
        set_grads(params[:1], step)
        params[1].grad = grad_like(params[0].grad.clone())
        for opt in opts:
            opt.step()
    torch.testing.assert_close(params[1], params[0], rtol=2e-6, atol=1e-7, check_stride=False)
    return params


@each_info(OURS)
@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("by", BY)
def test_strides(info: Any, flags: dict[str, Any], by: str) -> None:
    kwargs = {"penalty": sa.GroupLasso(0.02, by=by), **flags}
    plain = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    channels_last = plain.clone(memory_format=torch.channels_last)
    transposed = plain.transpose(0, 1).contiguous().transpose(0, 1)
    base = torch.zeros(6, 8, 3, 5)
    gaps = base[:, ::2, :, 1:4]
    gaps.copy_(plain)
    reversed_dims = plain.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    for special in (channels_last, transposed, gaps, reversed_dims):
        steps_equal(info, plain, special, **kwargs)
    outside = torch.ones(6, 8, 3, 5, dtype=torch.bool)
    outside[:, ::2, :, 1:4] = False
    assert base[outside].eq(0).all()  # nothing written between the elements


@each_info(OURS)
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_gradient_strides_differ(info: Any, flags: dict[str, Any]) -> None:
    kwargs = {"penalty": sa.GroupLasso(0.02), **flags}
    plain = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    steps_equal(info, plain, plain.clone(), lambda grad: grad.to(memory_format=torch.channels_last), **kwargs)
    channels_last = plain.clone(memory_format=torch.channels_last)
    steps_equal(info, plain, channels_last, lambda grad: grad.contiguous(), **kwargs)

    def strided(grad: Tensor) -> Tensor:
        return torch.stack([grad, grad], -1)[..., 0]

    steps_equal(info, plain, plain.clone(), strided, **kwargs)


@each_info(OURS)
@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("penalty", [None, sa.GroupLasso(0.02), sa.L1(0.02), sa.GroupL0(0.02)], ids=str)
def test_what_is_not_finite_shows(info: Any, flags: dict[str, Any], bad: float, penalty: Any) -> None:
    """It reaches its own group, and no other."""
    weight = Parameter(torch.ones(3, 4))
    opt = info.optim_cls([weight], lr=0.1, penalty=penalty, **flags)
    weight.grad = torch.zeros(3, 4)
    weight.grad[1, 2] = bad
    opt.step()
    assert not weight[1, 2].isfinite()
    assert weight[:, [0, 1, 3]].isfinite().all()


@each_info(OURS)
@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("penalty", [sa.GroupLasso(1.0), sa.L1(1.0), sa.GroupL0(1.0)], ids=str)
def test_a_zero_threshold_leaves_the_smallest_groups(info: Any, flags: dict[str, Any], penalty: Any) -> None:
    """Also where the squared norm underflows."""
    weight = Parameter(torch.full((3, 4), 1e-30))
    opt = info.optim_cls([weight], lr=0.0, penalty=penalty, **flags)
    weight.grad = torch.ones(3, 4)
    opt.step()
    torch.testing.assert_close(weight.detach(), torch.full((3, 4), 1e-30), rtol=1e-6, atol=0)


@each_info(OURS)
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_expanded_gradient(info: Any, flags: dict[str, Any]) -> None:
    one, two = Parameter(torch.ones(4, 5)), Parameter(torch.ones(4, 5))
    for param, grad in ((one, torch.ones(4, 5)), (two, torch.ones(1).expand(4, 5))):
        opt = info.optim_cls([param], lr=0.1, penalty=sa.GroupLasso(0.02), **flags)
        param.grad = grad
        opt.step()
    assert torch.equal(one, two)


@each_info(OURS)
@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("penalty", [None, sa.GroupLasso(0.01), sa.L1(0.01), sa.GroupL0(0.01)], ids=str)
def test_no_dimensions_and_no_elements(info: Any, flags: dict[str, Any], penalty: Any) -> None:
    params = [Parameter(torch.ones(shape)) for shape in ((), (0,), (0, 3), (3, 0, 2, 2), (1,), (2, 3), (1, 1, 1, 1))]
    opt = info.optim_cls(params, lr=0.1, penalty=penalty, **flags)
    for step in range(2):
        for param in params:
            param.grad = torch.full_like(param, 0.5)
        opt.step()
        assert all(opt.state[param]["step"].item() == step + 1 for param in params)
    assert all(param.lt(1).all() for param in params)
    with opt.proximal_parameters():
        assert all(param.isfinite().all() for param in params)
    assert opt.penalty_value() >= 0


@each_info(OURS)
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_mixed_dtypes_in_one_group(info: Any, flags: dict[str, Any]) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.float32]
    together = [Parameter(torch.full((4, 3), 0.5, dtype=dtype)) for dtype in dtypes]
    alone = [Parameter(torch.full((4, 3), 0.5, dtype=dtype)) for dtype in dtypes]
    kwargs = {"lr": 0.1, "penalty": sa.GroupLasso(0.01), **flags}
    opts = [info.optim_cls(together, **kwargs)] + [info.optim_cls([param], **kwargs) for param in alone]
    for step in range(3):
        set_grads(together, step)
        for one, two in zip(together, alone, strict=True):
            two.grad = one.grad.clone()
        for opt in opts:
            opt.step()
    for one, two in zip(together, alone, strict=True):
        assert torch.equal(one, two)


@each_info(OURS)
@pytest.mark.parametrize("flags", [{}, {"foreach": True}, {"foreach": False}], ids=str)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_equals_two_reals(info: Any, flags: dict[str, Any], dtype: torch.dtype) -> None:
    start = torch.randn(3, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    number = Parameter(start.clone())
    pair = Parameter(torch.view_as_real(start).clone())
    opts = [info.optim_cls([param], lr=0.1, **flags) for param in (number, pair)]
    for step in range(3):
        set_grads([number], step)
        pair.grad = torch.view_as_real(number.grad).clone()
        for opt in opts:
            opt.step()
    assert torch.equal(torch.view_as_real(number.detach()), pair)
    before = number.detach().clone()
    with opts[0].proximal_parameters():
        pass
    assert torch.equal(before, number)


@each_info(OURS)
def test_conjugate_and_negative_views_as_gradients(info: Any) -> None:
    for flags in FLAGS[:3]:
        for make, grad in (
            (lambda: torch.ones(3, dtype=torch.complex64), torch.tensor([1 + 2j, 3 - 1j, 2j]).conj()),
            (lambda: torch.ones(3), torch.tensor([1 + 2j, 3 - 1j, 2j]).conj().imag),
            (lambda: torch.ones(3), torch._neg_view(torch.tensor([1.0, 2.0, -3.0]))),  # without gaps
        ):
            one, two = Parameter(make()), Parameter(make())
            one.grad, two.grad = grad, grad.clone().resolve_conj().resolve_neg()
            for param in (one, two):
                info.optim_cls([param], lr=0.1, **flags).step()
            assert torch.equal(one, two)


@each_info(OURS)
def test_complex_under_a_penalty_is_refused_before_anything_changes(info: Any) -> None:
    real, number = Parameter(torch.ones(2, 2)), Parameter(torch.ones(2, 2, dtype=torch.complex64))
    opt = info.optim_cls([{"params": [real]}, {"params": [number]}], penalty=sa.GroupLasso(0.1))
    set_grads([real, number])
    with pytest.raises(RuntimeError, match=r"penalty on complex parameters.*complex64.*shape \(2, 2\)"):
        opt.step()
    assert not opt.state
    assert torch.equal(real, torch.ones(2, 2))


@each_info(OURS)
@pytest.mark.parametrize("dtype, flags", [*((torch.bfloat16, flags) for flags in FLAGS), (torch.float16, {})], ids=str)
def test_half_precision_accumulates_in_float32(info: Any, flags: dict[str, Any], dtype: torch.dtype) -> None:
    """Sums of which the parameter's dtype would lose most terms."""
    weight = Parameter(torch.ones(1, dtype=dtype))
    own = {"ProxSGD": {"rho": 2**-12}, "ProxAdamW": {"betas": (1 - 2**-12, 0.5)}}.get(info.name, {})
    opt = info.optim_cls([weight], lr=1.0, **own, **flags)
    for _ in range(2000):
        weight.grad = torch.full_like(weight, 2**-10)
        opt.step()
    weighted_sum = sum(step**0.5 for step in range(1, 2001)) * 2**-10
    expected, key = {
        "RMDA": (1 - weighted_sum / 2000**0.5, "point"),
        "RAMDA": (weighted_sum, "dual"),
        "ProxSGD": ((1 - (1 - 2**-12) ** 2000) * 2**-10, "momentum_buffer"),
        "ProxAdamW": ((1 - (1 - 2**-12) ** 2000) * 2**-10, "exp_avg"),
    }[info.name]
    found = opt.state[weight][key]
    assert found.item() == pytest.approx(expected, rel=1e-4)


@each_info(OURS[:1])
def test_half_parameters_follow_float64_ones(info: Any) -> None:
    """With c = 1 half-precision weights are the exact run's weights, rounded: the state carries the precision."""
    half = Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).bfloat16())
    exact = Parameter(half.detach().double())
    opts = [info.optim_cls([param], lr=0.01, momentum=1.0, penalty=sa.GroupLasso(1e-3)) for param in (half, exact)]
    for step in range(20):
        set_grads([half], step)
        exact.grad = half.grad.double()
        for opt in opts:
            opt.step()
    torch.testing.assert_close(half, exact.bfloat16(), rtol=2**-7, atol=1e-6)


@each_info(OURS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_strides(info: Any, data: st.DataObject) -> None:
    dims = data.draw(st.integers(2, 4))
    shape = data.draw(st.lists(st.integers(1, 4), min_size=dims, max_size=dims))
    order = data.draw(st.permutations(range(dims)))
    gaps = data.draw(st.lists(st.integers(1, 2), min_size=dims, max_size=dims))
    by = data.draw(st.sampled_from(BY))
    flags = data.draw(st.sampled_from(FLAGS))
    padded = torch.zeros([shape[i] * gaps[i] for i in order])
    special = padded[tuple(slice(None, None, gaps[i]) for i in order)]
    special = special.permute([order.index(i) for i in range(dims)])
    assert list(special.shape) == shape
    plain = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        special.copy_(plain)
    steps_equal(info, plain, special, penalty=sa.GroupLasso(0.02, by=by), **flags)


@each_info(OURS)
def test_grouped_convolution_equals_its_dense_masked_equivalent(info: Any) -> None:
    """Two convolution groups by input channel, against two plain weights: the groups are the same sets."""
    weight = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0))  # 3 groups: 6 out, 6 in
    grouped = Parameter(weight.clone())
    parts = [Parameter(part.clone()) for part in weight.chunk(3)]
    penalty = sa.GroupLasso(0.05)
    opts = [
        info.optim_cls([{"params": [grouped], "penalty": penalty, "conv_groups": 3}], lr=0.1),
        info.optim_cls(parts, lr=0.1, penalty=penalty),
    ]
    for step in range(4):
        set_grads([grouped], step)
        for part, grad in zip(parts, grouped.grad.chunk(3), strict=True):
            part.grad = grad.clone()
        for opt in opts:
            opt.step()
    torch.testing.assert_close(grouped.detach(), torch.cat([part.detach() for part in parts]), rtol=1e-6, atol=1e-7)
    assert opts[0].penalty_value() == pytest.approx(opts[1].penalty_value(), rel=1e-6)


@each_info(OURS)
def test_transposed_convolution_equals_its_transpose(info: Any) -> None:
    weight = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))  # [in, out, k]
    transposed, plain = Parameter(weight.clone()), Parameter(weight.transpose(0, 1).contiguous())
    opts = [
        info.optim_cls([{"params": [transposed], "transposed": True}], lr=0.1, penalty=sa.GroupLasso(0.05)),
        info.optim_cls([plain], lr=0.1, penalty=sa.GroupLasso(0.05)),
    ]
    for step in range(4):
        set_grads([transposed], step)
        plain.grad = transposed.grad.transpose(0, 1).contiguous()
        for opt in opts:
            opt.step()
    torch.testing.assert_close(transposed.detach(), plain.detach().transpose(0, 1), rtol=1e-6, atol=1e-7)
