"""RMDA: the formulas, stages, the proximal iterate, and where it converges to."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from optim_infos import make_model, set_grads
from torch import Tensor, nn
from torch.nn import Parameter

import sparse_accel as sa

FLAGS: list[dict[str, Any]] = [{}, {"foreach": True}, {"foreach": False}]
each_flags = pytest.mark.parametrize("flags", FLAGS, ids=str)


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def copies(params: Any) -> list[Tensor]:
    return [param.detach().clone() for param in params]


def same(one: Any, two: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@each_flags
def test_formulas(flags: dict[str, Any]) -> None:
    """Algorithm 1 by hand, on a weight by input channel and a bias."""
    lr, c, strength = 0.3, 0.4, 0.2
    weight, bias = Parameter(seeded(3, 4)), Parameter(seeded(3, seed=1))
    opt = sa.RMDA([weight, bias], lr=lr, momentum=c, penalty=sa.GroupLasso(strength), **flags)
    start = {param: param.detach().clone() for param in (weight, bias)}
    now = dict(start)
    total = {param: torch.zeros_like(value) for param, value in start.items()}
    alpha = 0.0
    for t in range(1, 6):
        set_grads([weight, bias], t)
        alpha += lr * t**0.5
        for param in (weight, bias):
            total[param] += lr * t**0.5 * param.grad
            x = start[param] - total[param] / t**0.5
            if param is weight:
                norms = x.norm(dim=0, keepdim=True)
                x = x * (1 - alpha / t**0.5 * strength * 3**0.5 / norms).clamp(min=0)
            now[param] = (1 - c) * now[param] + c * x
        opt.step()
        for param in (weight, bias):
            torch.testing.assert_close(param.detach(), now[param], rtol=1e-12, atol=1e-14)
    assert opt.state[weight]["step"].item() == 5
    assert opt.state[weight]["alpha"].item() == pytest.approx(alpha, rel=1e-14)


@each_flags
def test_groups_are_independent(flags: dict[str, Any]) -> None:
    """Two groups of one optimizer give the bits of two optimizers: t and alpha advance in every group."""
    options: list[dict[str, Any]] = [
        {"lr": 0.1, "momentum": 0.5, "penalty": sa.GroupLasso(0.02, by="output")},
        {"lr": 0.03, "momentum": 1.0, "penalty": sa.L1(0.01)},
        {"lr": 0.2, "momentum": 0.1, "penalty": None},
    ]
    together = [Parameter(seeded(5, 4, seed=i)) for i in range(3)]
    alone = [Parameter(param.detach().clone()) for param in together]
    groups = [{"params": [param], **option} for param, option in zip(together, options, strict=True)]
    one = sa.RMDA(groups, **flags)
    several = [sa.RMDA([param], **option, **flags) for param, option in zip(alone, options, strict=True)]
    for step in range(6):
        set_grads(together, step)
        for joint, single in zip(together, alone, strict=True):
            single.grad = joint.grad.clone()
        one.step()
        for opt in several:
            opt.step()
        assert same(together, alone)


def test_group_dictionaries_are_not_shared() -> None:
    groups = sa.param_groups(make_model(), sa.GroupLasso(0.1))
    keys = [set(group) for group in groups]
    one, two = sa.RMDA(groups, lr=0.3), sa.ProxSGD(groups, lr=0.2)
    assert [set(group) for group in groups] == keys
    assert (one.param_groups[0]["lr"], two.param_groups[0]["lr"]) == (0.3, 0.2)
    several = sa.RMDA([{"params": [Parameter(torch.ones(2, 2))]} for _ in range(2)], penalty=sa.L1(0.1))
    several.param_groups[0]["penalty"]["strength"] = 0.5
    assert several.param_groups[1]["penalty"]["strength"] == 0.1
    assert several.defaults["penalty"]["strength"] == 0.1


def test_penalty_can_be_changed() -> None:
    for change in ({"name": "l1", "strength": 0.5, "by": "element"}, sa.L1(0.5)):
        one, two = Parameter(seeded(3, 3)), Parameter(seeded(3, 3))
        changed, constant = sa.RMDA([one], penalty=sa.GroupLasso(1.0)), sa.RMDA([two], penalty=sa.L1(0.5))
        changed.param_groups[0]["penalty"] = change
        set_grads([one])
        set_grads([two])
        changed.step()
        constant.step()
        assert torch.equal(one, two)
        assert changed.param_groups[0]["penalty"] == {"name": "l1", "strength": 0.5, "by": "element"}


def test_penalty_by_channel_is_about_weights_only() -> None:
    model = make_model()
    one = sa.RMDA(model.parameters(), penalty=sa.GroupLasso(100.0), momentum=1.0)
    set_grads(model.parameters())
    one.step()
    for name, parameter in model.named_parameters():
        assert parameter.eq(0).all() == (parameter.dim() >= 2), name


@each_flags
def test_penalty_scale_multiplies_the_strength(flags: dict[str, Any]) -> None:
    one, two = Parameter(seeded(4, 4)), Parameter(seeded(4, 4))
    scaled = sa.RMDA([one], penalty=sa.GroupLasso(0.02), momentum=1.0, **flags)
    scaled.state[one]["penalty_scale"] = 3.0
    plain = sa.RMDA([two], penalty=sa.GroupLasso(0.06), momentum=1.0, **flags)
    for step in range(3):
        set_grads([one], step)
        set_grads([two], step)
        scaled.step()
        plain.step()
    torch.testing.assert_close(one, two, rtol=1e-12, atol=0)
    assert scaled.penalty_value() == pytest.approx(plain.penalty_value(), rel=1e-12)
    reloaded = sa.RMDA([one], penalty=sa.GroupLasso(0.02))
    reloaded.load_state_dict(scaled.state_dict())
    assert reloaded.state[one]["penalty_scale"] == 3.0


# ---------------------------------------------------------------------------------------------------- stages


@each_flags
def test_restart_is_a_fresh_stage(flags: dict[str, Any]) -> None:
    weight, bias = Parameter(seeded(4, 5)), Parameter(seeded(4))
    opt = sa.RMDA([weight, bias], penalty=sa.GroupLasso(0.05), **flags)
    for step in range(4):
        set_grads([weight, bias], step)
        opt.step()
    fresh = [Parameter(param.detach().clone()) for param in (weight, bias)]
    other = sa.RMDA(fresh, penalty=sa.GroupLasso(0.05), **flags)
    opt.restart()
    for step in range(4, 7):
        set_grads([weight, bias], step)
        set_grads(fresh, step)
        opt.step()
        other.step()
        assert same([weight, bias], fresh)
        assert not opt.param_groups[0]["restart"]


def test_restart_is_lazy_and_saved() -> None:
    weight = Parameter(seeded(4, 5))
    opt = sa.RMDA([weight], penalty=sa.GroupLasso(0.05))
    for step in range(4):
        set_grads([weight], step)
        opt.step()
    with opt.proximal_parameters():
        before = weight.detach().clone()
    opt.restart()
    with opt.proximal_parameters():
        assert torch.equal(before, weight)
    twin = Parameter(weight.detach().clone())
    resumed = sa.RMDA([twin])
    resumed.load_state_dict(opt.state_dict())
    assert resumed.param_groups[0]["restart"]
    for step in range(4, 6):
        for param, optimizer in ((weight, opt), (twin, resumed)):
            set_grads([param], step)
            optimizer.step()
    assert torch.equal(weight, twin)
    assert opt.state[weight]["step"].item() == 2


def test_restart_reaches_parameters_without_a_gradient_now() -> None:
    one, two = Parameter(seeded(2, 2)), Parameter(seeded(2, 2))
    opt = sa.RMDA([one, two])
    set_grads([one, two])
    opt.step()
    opt.restart()
    two.grad = None
    opt.step()
    assert opt.state[two]["step"].item() == 0
    assert torch.equal(opt.state[two]["anchor"], two)
    assert torch.equal(opt.state[two]["point"], two)
    with opt.proximal_parameters():
        assert torch.equal(opt.state[two]["anchor"], two)


def test_changed_lr_alone_does_not_restart() -> None:
    weight = Parameter(seeded(4, 5))
    opt = sa.RMDA([weight], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 2)
    for step in range(6):
        set_grads([weight], step)
        opt.step()
        scheduler.step()
    assert opt.state[weight]["step"].item() == 6
    expected = sum(lr * (t + 1) ** 0.5 for t, lr in enumerate([0.1, 0.1, 0.01, 0.01, 0.001, 0.001]))
    assert opt.state[weight]["alpha"].item() == pytest.approx(expected, rel=1e-12)


# --------------------------------------------------------------------------------------- the proximal iterate


@each_flags
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("penalty", [sa.GroupLasso(0.15), sa.L1(0.03), sa.GroupL0(0.01)], ids=str)
def test_proximal_iterate_is_the_iterate_of_momentum_one(
    flags: dict[str, Any], dtype: torch.dtype, penalty: Any
) -> None:
    """Bit by bit: V does not depend on c for given gradients."""
    slow, fast = make_model(dtype), make_model(dtype)
    opts = [
        sa.RMDA(sa.param_groups(model, penalty), lr=0.3, momentum=c, **flags) for model, c in ((slow, 0.1), (fast, 1.0))
    ]
    for step in range(5):
        for model, opt in zip((slow, fast), opts, strict=True):
            set_grads(model.parameters(), step)
            opt.step()
        before = copies(slow.parameters())
        with opts[0].proximal_parameters():
            assert same(slow.parameters(), fast.parameters())
        assert same(before, slow.parameters())
    opts[0].finalize_()
    assert same(slow.parameters(), fast.parameters())
    assert any(parameter.eq(0).any() for parameter in fast.parameters())


def test_state_keeps_its_bits() -> None:
    weight = Parameter(seeded(4, 5, dtype=torch.float32))
    opt = sa.RMDA([weight], penalty=sa.GroupLasso(0.1))
    set_grads([weight])
    opt.step()
    opt.state[weight]["point"][0, :2] = torch.tensor([-0.0, 0.0])
    before = {key: value.clone() for key, value in opt.state[weight].items()}
    with opt.proximal_parameters():
        pass
    for key, value in before.items():
        bits = torch.int64 if value.dtype == torch.float64 else torch.int32
        assert torch.equal(value.view(bits), opt.state[weight][key].view(bits)), key


def test_exceptions_put_the_parameters_back() -> None:
    weight = Parameter(seeded(4, 5))
    opt = sa.RMDA([weight], penalty=sa.GroupLasso(0.1))
    set_grads([weight])
    opt.step()
    before = copies([weight])

    def fail_inside() -> None:
        with opt.proximal_parameters():
            weight.data.zero_()
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert same(before, [weight])
    opt.step()  # no longer refused


def test_a_failed_swap_puts_the_parameters_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    opt = sa.RMDA(sa.param_groups(model, sa.GroupLasso(0.1)))
    set_grads(model.parameters())
    opt.step()
    before = copies(model.parameters())
    module = __import__("sparse_accel.optim.rmda", fromlist=["rmda"])
    original, calls = module.rmda, []

    def fails_on_the_second_group(*args: Any, **kwargs: Any) -> None:
        calls.append(None)
        if len(calls) == 2:
            raise MemoryError
        original(*args, **kwargs)

    monkeypatch.setattr(module, "rmda", fails_on_the_second_group)
    with pytest.raises(MemoryError), opt.proximal_parameters():
        pytest.fail("entered")
    monkeypatch.undo()
    assert same(before, model.parameters())
    opt.step()


def test_nested_use_is_one_use() -> None:
    weight = Parameter(seeded(4, 5))
    opt = sa.RMDA([weight], penalty=sa.GroupLasso(0.1))
    set_grads([weight])
    opt.step()
    before = copies([weight])
    with opt.proximal_parameters():
        inside = copies([weight])
        with opt.proximal_parameters():
            assert same(inside, [weight])
        assert same(inside, [weight])
        weight.data.fill_(7)
        with opt.proximal_parameters():
            assert weight.eq(7).all()
        with pytest.raises(RuntimeError, match=r"step\(\) inside proximal_parameters\(\): leave the context first"):
            opt.step()
        with pytest.raises(RuntimeError, match="load_state_dict"):
            opt.load_state_dict(opt.state_dict())
        with pytest.raises(RuntimeError, match="finalize_"):
            opt.finalize_()
    assert same(before, [weight])
    assert not same(before, inside)


def test_parameters_without_a_step_stay() -> None:
    used, unused = Parameter(seeded(2, 2)), Parameter(seeded(2, 2))
    opt = sa.RMDA([used, unused], penalty=sa.GroupLasso(100.0))
    with opt.proximal_parameters():
        assert torch.equal(used, seeded(2, 2))
    set_grads([used])
    opt.step()
    opt.finalize_()
    assert used.eq(0).all()
    assert torch.equal(unused, seeded(2, 2))


def test_copies_made_inside_the_context_can_step() -> None:
    weight = Parameter(seeded(2, 2))
    opt = sa.RMDA([weight], penalty=sa.GroupLasso(0.1))
    set_grads([weight])
    opt.step()
    with opt.proximal_parameters():
        twin = copy.deepcopy(opt)
    twin.step()


def test_training_goes_on_after_finalize() -> None:
    weight = Parameter(seeded(4, 5))
    opt = sa.RMDA([weight], penalty=sa.GroupLasso(0.1), momentum=0.5)
    for step in range(3):
        set_grads([weight], step)
        opt.step()
    opt.finalize_()
    version = weight._version
    final = copies([weight])
    opt.finalize_()
    assert weight._version > version
    assert same(final, [weight])
    opt.step()
    assert not same(final, [weight])


def test_penalty_value() -> None:
    model = make_model()
    opt = sa.RMDA(sa.param_groups(model, sa.GroupLasso(0.1, by="output")))
    expected = 0.0
    for module in (model[0], model[4]):
        rows = module.weight.detach().flatten(1)
        expected += 0.1 * rows.shape[1] ** 0.5 * rows.norm(dim=1).sum().item()
    assert opt.penalty_value() == pytest.approx(expected, rel=1e-5)


# ----------------------------------------------------------------------------------------------- mathematics


@each_flags
def test_lambda_max(flags: dict[str, Any]) -> None:
    """The least strength at which one step leaves nothing, from the prox: max_g ||x_g|| / (lr sqrt(|g|))."""
    start, grad, lr = seeded(6, 5), seeded(6, 5, seed=1), 0.2
    norms = (start - lr * grad).norm(dim=0) / (lr * 6**0.5)
    for factor, zeros in ((1 + 1e-9, 5), (1 - 1e-9, 4), (0.0, 0)):
        weight = Parameter(start.clone())
        weight.grad = grad
        sa.RMDA([weight], lr=lr, momentum=1.0, penalty=sa.GroupLasso(norms.max().item() * factor), **flags).step()
        assert weight.eq(0).all(0).sum() == zeros


@pytest.mark.parametrize("by", ["input", "output", "element"])
def test_converges_to_the_minimizer(by: str) -> None:
    """Least squares with a group penalty: the optimality conditions hold, and proximal gradient agrees."""
    inputs, targets = seeded(60, 12), seeded(60, 4, seed=1)
    targets[:, :3] += inputs[:, :3] @ seeded(3, 3, seed=2)  # 3 of 12 inputs, 3 of 4 outputs matter
    penalty = sa.GroupLasso(0.2, by=by)

    def gradient(weight: Tensor) -> Tensor:
        return (inputs @ weight.T - targets).T @ inputs / 60

    reference = torch.zeros(4, 12, dtype=torch.float64)
    step = 1 / torch.linalg.eigvalsh(inputs.T @ inputs / 60).max().item()
    for _ in range(3000):
        reference -= step * gradient(reference)
        penalty.prox_(reference, step)

    weight = Parameter(torch.zeros(4, 12, dtype=torch.float64))
    opt = sa.RMDA([weight], lr=0.1, momentum=0.5, penalty=penalty)
    for t in range(3000):
        weight.grad = gradient(weight.detach())
        opt.step()
        if t in (500, 1000):
            opt.restart()
    opt.finalize_()
    torch.testing.assert_close(weight.detach(), reference, rtol=1e-3, atol=1e-4)
    zero = reference.eq(0)
    assert torch.equal(weight.eq(0), zero)
    assert 0 < zero.sum() < zero.numel()

    descent, dim = -gradient(weight.detach()), {"input": 0, "output": 1, "element": None}[by]
    size = {"input": 4, "output": 12, "element": 1}[by]
    bound = penalty.strength * size**0.5
    descent_norms = descent.norm(dim=dim) if dim is not None else descent.abs()
    norms = weight.detach().norm(dim=dim) if dim is not None else weight.detach().abs()
    active = norms > 0
    assert (descent_norms[~active] <= bound * (1 + 1e-3)).all()
    torch.testing.assert_close(descent_norms[active], torch.full_like(norms[active], bound), rtol=2e-3, atol=0)


def test_tied_weights_take_one_step() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4, bias=False)
            self.two = nn.Linear(4, 4, bias=False)
            self.two.weight = self.one.weight

    model = Tied()
    groups = sa.param_groups(model, sa.GroupLasso(0.01))
    assert sum(len(group["params"]) for group in groups) == 1
    opt = sa.RMDA(groups, lr=0.1)
    set_grads(model.parameters())
    opt.step()
    assert opt.state[model.one.weight]["step"].item() == 1
    with pytest.warns(UserWarning, match="duplicate"):
        twice = sa.RMDA([model.one.weight, model.two.weight], lr=0.1)
    twice.step()
    assert twice.state[model.one.weight]["step"].item() == 1


def test_differentiable_step() -> None:
    """Autograd through a step: derivatives in the weight, the gradient, the state and lr."""
    start, grad = seeded(3, 4).requires_grad_(), seeded(3, 4, seed=1).requires_grad_()
    point, anchor = seeded(3, 4, seed=2).requires_grad_(), seeded(3, 4, seed=3).requires_grad_()
    lr = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def step(start: Tensor, grad: Tensor, point: Tensor, anchor: Tensor, lr: Tensor) -> tuple[Tensor, ...]:
        weight = start.clone()
        weight.grad = grad
        opt = sa.RMDA([weight], lr=lr, momentum=0.4, penalty=sa.GroupLasso(0.8), differentiable=True)
        alpha = torch.tensor(1.3, dtype=torch.float64)
        opt.state[weight].update(step=torch.tensor(3.0), alpha=alpha, point=point.clone(), anchor=anchor.clone())
        opt.step()
        return weight, opt.state[weight]["point"], opt.state[weight]["alpha"]

    weight = step(start, grad, point, anchor, lr)[0]
    assert 0 < (weight - 0.6 * start).abs().sum(0).lt(1e-12).sum() < 4  # some groups are zero, some are not
    assert torch.autograd.gradcheck(step, (start, grad, point, anchor, lr))


def test_differentiable_step_at_a_zero_group_has_no_nan() -> None:
    start = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    weight = start.clone()
    weight.grad = torch.zeros(3, 4, dtype=torch.float64)
    opt = sa.RMDA([weight], momentum=0.4, penalty=sa.GroupLasso(0.3), differentiable=True)
    opt.state[weight].update(opt._new_scalars(weight), point=start.clone(), anchor=start.clone())
    opt.step()
    (derivative,) = torch.autograd.grad(weight.sum(), start)
    torch.testing.assert_close(derivative, torch.full_like(start, 0.6))


def test_clocks_follow_a_model_that_moves() -> None:
    """``model.cpu()`` in the middle of training: the next step has all its state in one place."""
    weight = Parameter(torch.ones(3, 4))
    opt = sa.RMDA([weight], penalty=sa.GroupLasso(0.1))
    weight.grad = torch.ones_like(weight)
    opt.step()
    weight.grad = None
    torch.utils.swap_tensors(weight, Parameter(torch.ones(3, 4, device="meta")))
    weight.grad = torch.ones_like(weight)
    opt.step()
    assert {value.device.type for value in opt.state[weight].values()} == {"meta"}


@pytest.mark.parametrize("scheduler", ["OneCycleLR", "CyclicLR"])
def test_a_scheduler_that_cycles_the_momentum_is_refused(scheduler: str) -> None:
    options: dict[str, Any] = {"max_lr": 0.1, "total_steps": 5}
    if scheduler == "CyclicLR":
        options = {"base_lr": 0.01, "max_lr": 0.1}
    weight = Parameter(torch.ones(3, 4))
    weight.grad = torch.ones_like(weight)
    opt = sa.RMDA([weight], momentum=0.1)
    getattr(torch.optim.lr_scheduler, scheduler)(opt, **options)
    with pytest.raises(RuntimeError, match="cycle_momentum=False"):
        opt.step()
    assert weight.eq(1).all()
    assert not opt.state[weight]
    opt = sa.RMDA([weight], momentum=0.1)
    sched = getattr(torch.optim.lr_scheduler, scheduler)(opt, **options, cycle_momentum=False)
    opt.step()
    sched.step()
    assert opt.param_groups[0]["momentum"] == 0.1
    assert not weight.eq(1).any()
