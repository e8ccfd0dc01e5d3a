"""What torch checks of every optimizer of its own, on RMDA, ProxSGD, RAMDA and ProxAdamW, with AdamW as a control."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from optim_infos import INFOS, OURS, common, each_case, each_info, make_model, set_grads
from torch.nn import Parameter

import sparse_accel as sa


def reduced(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments with their own tensors, so that no case changes another's lr."""
    return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in kwargs.items()}


@each_info(OURS)
def test_inputs_leave_the_implementation_open(info: Any) -> None:
    for case in info.optim_inputs_func(device="cpu"):
        assert not {"foreach", "fused", "differentiable"} & set(case.kwargs)


@each_info()
def test_errors_at_construction(info: Any) -> None:
    for error in info.optim_error_inputs_func(device="cpu", dtype=torch.float32):
        case = error.optimizer_error_input
        params = case.params if case.params is not None else [Parameter(torch.randn(2, 3))]
        if issubclass(error.error_type, Warning):
            with pytest.warns(error.error_type, match=error.error_regex):
                info.optim_cls(params, **case.kwargs)
        elif error.error_on == common.OptimizerErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                info.optim_cls(params, **case.kwargs)


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("scheduled", [False, True])
@each_case()
def test_goes_in_the_right_direction(optimizer: Any, kwargs: dict[str, Any], contiguous: bool, scheduled: bool) -> None:
    if optimizer is torch.optim.AdamW and kwargs.get("fused") and not contiguous:
        pytest.skip("the control fails: torch's fused AdamW walks CPU parameters with gaps as if they had none")
    generator = torch.Generator().manual_seed(1)
    if contiguous:
        weight = Parameter(torch.randn((10, 5), generator=generator))
        bias = Parameter(torch.randn((10,), generator=generator))
    else:
        weight = Parameter(torch.randn((10, 5, 2), generator=generator)[..., 0])
        bias = Parameter(torch.randn((10, 2), generator=generator)[..., 0])
    inputs = torch.randn((5,), generator=generator)
    opt = optimizer([weight, bias], **reduced(kwargs))
    schedulers: list[Any] = []
    if scheduled:
        schedulers = [
            torch.optim.lr_scheduler.StepLR(opt, step_size=10, gamma=0.9),
            torch.optim.lr_scheduler.ReduceLROnPlateau(opt),
        ]

    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = (weight.mv(inputs) + bias).pow(2).sum()
        loss.backward()
        return loss

    initial = closure().item()
    for _ in range(20):
        loss = opt.step(closure)
        assert loss.requires_grad
        for scheduler in schedulers:
            is_plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(loss.item()) if is_plateau else scheduler.step()
    if kwargs.get("maximize"):
        assert closure().item() > initial
    else:
        assert closure().item() < initial


@each_info()
def test_param_groups_have_their_own_lr(info: Any) -> None:
    first, second = (Parameter(torch.ones(3, 4)) for _ in range(2))
    opt = info.optim_cls([{"params": [first]}, {"params": [second], "lr": 0.0}], lr=0.1)
    for step in range(3):
        set_grads([first, second], step)
        opt.step()
    assert not torch.equal(first, torch.ones(3, 4))
    torch.testing.assert_close(second, torch.ones(3, 4))


@each_info()
def test_tensor_lr_equals_number(info: Any) -> None:
    for lr in (torch.tensor(0.02), torch.tensor([0.02]), torch.tensor([[0.02]])):
        one, two = Parameter(torch.ones(3, 4)), Parameter(torch.ones(3, 4))
        with_number = info.optim_cls([one], lr=float(lr))
        with_tensor = info.optim_cls([two], lr=lr)
        scheduler = torch.optim.lr_scheduler.StepLR(with_tensor, 1, gamma=0.5)
        for step in range(4):
            set_grads([one, two], step)
            two.grad = one.grad.clone()
            with_number.step()
            with_tensor.step()
            scheduler.step()
            with_number.param_groups[0]["lr"] *= 0.5
        torch.testing.assert_close(one, two)
        assert with_tensor.param_groups[0]["lr"] is lr  # schedulers write into it
        assert lr.item() == pytest.approx(0.02 / 16)


@each_info(OURS)
@pytest.mark.parametrize("flags", [{}, {"foreach": True}, {"fused": True}, {"foreach": False}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_implementations_agree(info: Any, flags: dict[str, bool], dtype: torch.dtype) -> None:
    for case in info.optim_inputs_func(device="cpu"):
        models = [make_model(dtype), make_model(dtype)]
        opts = [
            info.optim_cls(models[0].parameters(), **reduced(case.kwargs), **flags),
            info.optim_cls(models[1].parameters(), **reduced(case.kwargs), fused=False),
        ]
        for step in range(4):
            for model, opt in zip(models, opts, strict=True):
                set_grads(model.parameters(), step)
                opt.step()
        tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
        for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance / 10, msg=case.desc)
            for key, value in opts[0].state[one].items():
                rtol = tolerance if "weight_decay" in case.kwargs else 2e-6  # rounded weights come back by it
                torch.testing.assert_close(value, opts[1].state[two][key], rtol=rtol, atol=rtol / 2)


@each_case(OURS)
def test_no_gradient_is_no_step(optimizer: Any, kwargs: dict[str, Any]) -> None:
    model = make_model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    opt = optimizer(model.parameters(), **reduced(kwargs))
    opt.step()
    assert not opt.state
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new)


@each_info()
def test_some_gradients_missing(info: Any) -> None:
    first, frozen, later = (Parameter(torch.ones(3, 4)) for _ in range(3))
    frozen.requires_grad_(False)
    opt = info.optim_cls([first, frozen, later], lr=0.1)
    set_grads([first])
    opt.step()
    assert set(opt.state) == {first}
    set_grads([first, later], 1)
    opt.step()
    assert opt.state[first]["step"].item() == 2
    assert opt.state[later]["step"].item() == 1
    assert torch.equal(frozen, torch.ones(3, 4))


@each_case(skip=("differentiable",))
def test_zero_gradient_moves_nothing_without_penalty(optimizer: Any, kwargs: dict[str, Any]) -> None:
    kwargs = {key: value for key, value in reduced(kwargs).items() if key != "penalty"}
    if optimizer in (torch.optim.AdamW, sa.ProxAdamW) or "weight_decay" in kwargs:
        kwargs["weight_decay"] = 0
    parameter = Parameter(torch.tensor([[1.5, -0.3, 0.7]]))
    opt = optimizer([parameter], **kwargs)
    parameter.grad = torch.zeros_like(parameter)
    opt.step()
    torch.testing.assert_close(parameter.detach(), torch.tensor([[1.5, -0.3, 0.7]]))


@each_case()
def test_gradients_are_not_modified(optimizer: Any, kwargs: dict[str, Any]) -> None:
    model = make_model()
    opt = optimizer(model.parameters(), **reduced(kwargs))
    set_grads(model.parameters())
    before = [parameter.grad.clone() for parameter in model.parameters()]
    opt.step()
    for old, parameter in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, parameter.grad)


@each_case()
def test_can_be_printed(optimizer: Any, kwargs: dict[str, Any]) -> None:
    text = repr(optimizer(make_model().parameters(), **reduced(kwargs)))
    assert text.startswith(optimizer.__name__)
    assert "lr: " in text


@each_info()
def test_step_is_seen_by_autograd(info: Any) -> None:
    """Backward through a forward pass that used the old weights fails, instead of using the new ones."""
    weight = Parameter(torch.ones(3, 3))
    x = torch.ones(3, requires_grad=True)
    for flags in ({}, {"foreach": True}, {"foreach": False}):
        opt = info.optim_cls([weight], **flags)
        output = (weight @ x).sum()
        set_grads([weight])
        version = weight._version
        opt.step()
        assert weight._version > version
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.backward()


@each_info()
def test_closure_runs_with_gradients(info: Any) -> None:
    weight = Parameter(torch.ones(3))
    opt = info.optim_cls([weight], lr=0.1)

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        opt.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = opt.step(closure)
    assert loss.item() == 3
    assert weight.sum().item() < 3


@each_info()
def test_named_parameters(info: Any) -> None:
    model = make_model()
    opt = info.optim_cls(model.named_parameters(), lr=0.1)
    names = [name for name, _ in model.named_parameters()]
    assert opt.param_groups[0]["param_names"] == names
    assert opt.state_dict()["param_groups"][0]["param_names"] == names


@each_info()
def test_add_param_group(info: Any) -> None:
    first, second = Parameter(torch.ones(2, 3)), Parameter(torch.ones(2, 3))
    opt = info.optim_cls([first], lr=0.1)
    set_grads([first])
    opt.step()
    group = {"params": second, "lr": 0.2}
    opt.add_param_group(group)
    set_grads([first, second], 1)
    opt.step()
    assert opt.param_groups[1]["lr"] == 0.2
    assert opt.state[first]["step"].item() == 2
    assert opt.state[second]["step"].item() == 1
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        opt.add_param_group({"params": [second]})
    with pytest.raises((TypeError, ValueError)):
        opt.add_param_group([second])


@each_info(OURS)
def test_refused_group_leaves_the_optimizer_as_it_was(info: Any) -> None:
    opt = info.optim_cls([Parameter(torch.ones(2, 3))])
    for bad in ({"lr": -1.0}, {"penalty": "lasso"}, {"conv_groups": 0}):
        with pytest.raises((ValueError, TypeError)):
            opt.add_param_group({"params": [Parameter(torch.ones(2))], **bad})
    assert len(opt.param_groups) == 1


@each_info(OURS)
def test_sparse_gradients_are_refused_before_anything_changes(info: Any) -> None:
    first, second = Parameter(torch.ones(4, 2)), Parameter(torch.ones(4, 2))
    opt = info.optim_cls([{"params": [first]}, {"params": [second]}], lr=0.1)
    set_grads([first])
    second.grad = torch.ones(4, 2).to_sparse()
    with pytest.raises(RuntimeError, match=f"{info.name} does not support sparse gradients.*shape \\(4, 2\\)"):
        opt.step()
    assert not opt.state
    assert torch.equal(first, torch.ones(4, 2))


@each_info()
def test_duplicates_within_a_group_warn(info: Any) -> None:
    weight = Parameter(torch.ones(2, 3))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        info.optim_cls([weight, weight])


@each_info()
def test_compiled_step(info: Any) -> None:
    models = [make_model(), make_model()]
    opts = [info.optim_cls(model.parameters(), lr=0.01) for model in models]
    compiled = torch.compile(opts[0].step, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(3):
            for model in models:
                set_grads(model.parameters(), step)
            compiled()
            opts[1].step()
    for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, two)


@each_info(OURS)
@pytest.mark.parametrize("flags", [{}, {"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
def test_no_host_synchronization(info: Any, flags: dict[str, bool]) -> None:
    """Tensors without values: whatever reads one on the host fails."""
    lr = torch.tensor(0.1, device="meta") if not flags else 0.1
    params = [Parameter(torch.ones(4, 3, device="meta")), Parameter(torch.ones(4, device="meta"))]
    opt = info.optim_cls(params, lr=lr, penalty=sa.GroupLasso(0.1), **flags)
    for _ in range(2):
        for param in params:
            param.grad = torch.ones_like(param)
        opt.step()
        with opt.proximal_parameters():
            pass
    if opt._step_supports_amp_scaling:
        opt.grad_scale, opt.found_inf = torch.ones((), device="meta"), torch.ones((), device="meta")
        opt.step()
    if info.name in ("RMDA", "RAMDA"):
        opt.restart()
        opt.step()


def test_which_implementation_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(sa.ops, "rmda_step_", lambda *_, **__: calls.append("fused"))
    original = torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda *args: calls.append("foreach") or original(*args))
    expected: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["fused"]),
        ({"fused": True}, ["fused"]),
        ({"foreach": True}, ["foreach"]),
        ({"foreach": True, "fused": False}, ["foreach"]),
        ({"foreach": False}, []),
        ({"fused": False}, []),
    ]
    for flags, names in expected:
        calls.clear()
        weight = Parameter(torch.ones(2, 2))
        set_grads([weight])
        sa.RMDA([weight], **flags).step()
        assert calls == names, flags


@each_info(OURS)
def test_inside_inference_mode(info: Any) -> None:
    weight = Parameter(torch.ones(2, 2))
    opt = info.optim_cls([weight], penalty=sa.GroupLasso(0.1))
    set_grads([weight])
    opt.step()
    before = weight.detach().clone()
    with torch.inference_mode(), opt.proximal_parameters():
        weight.sum()
    assert torch.equal(before, weight)
    with torch.inference_mode():
        opt.finalize_()
    opt.step()


def test_control_is_adamw() -> None:
    assert [info.name for info in INFOS] == ["RMDA", "ProxSGD", "RAMDA", "ProxAdamW", "AdamW"]


@each_info([info for info in OURS if info.optim_cls is not sa.ProxAdamW])  # which has AdamW's
@pytest.mark.parametrize("maximize", [False, True])
def test_weight_decay_is_the_gradient_of_half_the_square(info: Any, maximize: bool) -> None:
    runs = []
    for own in (True, False):
        model = make_model()
        groups = sa.param_groups(model, sa.GroupLasso(1e-3))
        opt = info.optim_cls(groups, lr=0.1, maximize=maximize, **({"weight_decay": 0.3} if own else {}))
        for step in range(4):
            set_grads(model.parameters(), step)
            kept = [p.grad.clone() for p in model.parameters()]
            if not own:
                for p in model.parameters():
                    p.grad = p.grad + (-0.3 if maximize else 0.3) * p.detach()
            opt.step()
            if own:
                assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), kept, strict=True))
        runs.append(list(model.parameters()))
    for one, two in zip(*runs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)
