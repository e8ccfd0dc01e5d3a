"""MultiStageLR: learning rates, restarts and momentum at milestones, and checkpoints of all three."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from optim_infos import make_model, set_grads
from torch.nn import Parameter

import sparse_accel as sa

MultiStageLR = sa.lr_scheduler.MultiStageLR


def make(lr: Any = 0.1, momentum: float = 0.1, **kwargs: Any) -> tuple[Parameter, sa.RMDA]:
    weight = Parameter(torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return weight, sa.RMDA([weight], lr=lr, momentum=momentum, penalty=sa.GroupLasso(0.01), **kwargs)


def test_learning_rates_are_those_of_multi_step() -> None:
    ours, theirs = make()[1], torch.optim.SGD([Parameter(torch.ones(1))], lr=0.1)
    one = MultiStageLR(ours, [2, 3, 5], gamma=0.3, momentum="constant")
    two = torch.optim.lr_scheduler.MultiStepLR(theirs, [2, 3, 5], gamma=0.3)
    for _ in range(7):
        ours.step()
        theirs.step()
        one.step()
        two.step()
        assert one.get_last_lr() == pytest.approx(two.get_last_lr(), rel=1e-12)


def test_tensor_lr_is_written_in_place() -> None:
    for lr in (torch.tensor(0.1), torch.tensor([0.1])):
        weight, opt = make(lr=lr)
        sched = MultiStageLR(opt, [1], gamma=0.5)
        set_grads([weight])
        opt.step()
        sched.step()
        assert opt.param_groups[0]["lr"] is lr
        assert lr.item() == pytest.approx(0.05)


@pytest.mark.parametrize("momentum", ["divide", "ramp", "constant"])
def test_restarts_at_milestones_only(momentum: str) -> None:
    weight, opt = make()
    sched = MultiStageLR(opt, [2, 5], momentum=momentum)
    assert not opt.param_groups[0]["restart"]
    counts = []
    for epoch in range(7):
        for step in range(3):
            set_grads([weight], 3 * epoch + step)
            opt.step()
        counts.append(int(opt.state[weight]["step"].item()))
        sched.step()
        assert opt.param_groups[0]["restart"] == (epoch + 1 in (2, 5))
    assert counts == [3, 6, 3, 6, 9, 3, 6]


@pytest.mark.parametrize(
    ("start", "gamma", "expected"),
    [
        (0.1, 0.1, [0.1, 1.0, 1.0]),
        (0.01, 0.1, [0.01, 0.1, 1.0]),
        (0.3, 0.5, [0.3, 0.6, 1.0]),
        (0.5, 2, [0.5, 0.25, 0.125]),
    ],
)
def test_divide(start: float, gamma: float, expected: list[float]) -> None:
    weight, opt = make(momentum=start)
    sched = MultiStageLR(opt, [1, 2], gamma=gamma, momentum="divide")
    found = []
    for step in range(3):
        found.append(opt.param_groups[0]["momentum"])
        set_grads([weight], step)
        opt.step()
        sched.step()
    assert found == pytest.approx(expected, rel=1e-12)
    assert found[-1] == expected[-1]  # exactly 1: exact zeros need it


def test_divide_gives_exact_zeros() -> None:
    model = make_model()
    opt = sa.RMDA(sa.param_groups(model, sa.GroupLasso(4.0)), lr=0.1, momentum=0.1)
    sched = MultiStageLR(opt, [3])
    for step in range(6):
        set_grads(model.parameters(), step)
        opt.step()
        sched.step()
    assert any(parameter.eq(0).any() for parameter in model.parameters())
    with opt.proximal_parameters():
        proximal = [parameter.detach().clone() for parameter in model.parameters()]
    for one, two in zip(proximal, model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_ramp() -> None:
    """After the last milestone the j-th step has c = min(c0 sqrt(j), 1): W moves that share of the way to Wt."""
    weight, opt = make(momentum=0.3)
    sched = MultiStageLR(opt, [1, 2], momentum="ramp")
    shares = []
    for epoch in range(6):
        for step in range(3):
            set_grads([weight], 3 * epoch + step)
            before = weight.detach().clone()
            opt.step()
            with opt.proximal_parameters():
                target = weight.detach().clone()
            shares.append(((weight.detach() - before) / (target - before)).median().item())
        sched.step()
        assert opt.param_groups[0]["momentum"] == 0.3
    ramp = [min(0.3 * j**0.5, 1.0) for j in range(1, 13)]
    assert shares == pytest.approx([0.3] * 6 + ramp, rel=1e-6)
    assert ramp[-1] == 1


def test_constant_leaves_momentum() -> None:
    _, opt = make(momentum=0.3)
    sched = MultiStageLR(opt, [1], momentum="constant")
    opt.step()
    sched.step()
    assert opt.param_groups[0]["momentum"] == 0.3
    assert opt.param_groups[0]["momentum_ramp"] is None


@pytest.mark.parametrize("momentum", ["divide", "ramp", "constant"])
@pytest.mark.parametrize("stop", range(1, 6))
def test_resume_is_bitwise(momentum: str, stop: int) -> None:
    def epochs(weight: Parameter, opt: Any, sched: Any, numbers: range) -> None:
        for epoch in numbers:
            for step in range(2):
                set_grads([weight], 2 * epoch + step)
                opt.step()
            sched.step()

    weight, opt = make()
    sched = MultiStageLR(opt, [2, 4], momentum=momentum)
    epochs(weight, opt, sched, range(stop))
    buffer = io.BytesIO()
    torch.save({"weight": weight.detach(), "opt": opt.state_dict(), "sched": sched.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)

    other_weight, other = make()
    other_sched = MultiStageLR(other, [9], gamma=0.7)
    other_weight.data.copy_(saved["weight"])
    other.load_state_dict(saved["opt"])
    other_sched.load_state_dict(saved["sched"])
    assert (other_sched.milestones, other_sched.gamma, other_sched.momentum) == ([2, 4], 0.1, momentum)
    epochs(weight, opt, sched, range(stop, 7))
    epochs(other_weight, other, other_sched, range(stop, 7))
    assert torch.equal(weight, other_weight)
    assert opt.state_dict()["param_groups"] == other.state_dict()["param_groups"]


def test_resume_with_last_epoch() -> None:
    weight, opt = make()
    sched = MultiStageLR(opt, [2, 4])
    for step in range(3):
        set_grads([weight], step)
        opt.step()
        sched.step()
    other = make()[1]
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    resumed = MultiStageLR(other, [2, 4], last_epoch=2)
    assert resumed.last_epoch == sched.last_epoch == 3
    assert resumed.get_last_lr() == sched.get_last_lr()


@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_epoch_given() -> None:
    _, opt = make()
    sched = MultiStageLR(opt, [2, 4], gamma=0.5)
    opt.step()
    sched.step(4)
    assert opt.param_groups[0]["lr"] == pytest.approx(0.025)
    assert opt.param_groups[0]["restart"]


def test_other_optimizers_change_their_lr_only() -> None:
    weight = Parameter(torch.ones(2, 2))
    for opt in (sa.ProxSGD([weight], lr=0.1), torch.optim.SGD([weight], lr=0.1, momentum=0.9)):
        before = {key: value for key, value in opt.param_groups[0].items() if key != "params"}
        sched = MultiStageLR(opt, [1])
        set_grads([weight])
        opt.step()
        sched.step()
        after = {key: value for key, value in opt.param_groups[0].items() if key != "params"}
        assert after.pop("lr") == pytest.approx(0.01)
        assert after.pop("initial_lr") == before.pop("lr") == 0.1
        assert before == after


def test_groups_have_their_own_lr_and_momentum() -> None:
    params = [Parameter(torch.ones(2, 2)) for _ in range(2)]
    groups = [{"params": [params[0]], "lr": 1.0, "momentum": 0.05}, {"params": [params[1]]}]
    opt = sa.RMDA(groups, lr=0.1, momentum=0.2)
    sched = MultiStageLR(opt, [1], gamma=0.5)
    opt.step()
    sched.step()
    assert [group["lr"] for group in opt.param_groups] == pytest.approx([0.5, 0.05])
    assert [group["momentum"] for group in opt.param_groups] == pytest.approx([0.1, 0.4])
    assert all(group["restart"] for group in opt.param_groups)


def test_in_a_sequence_after_warm_up() -> None:
    weight, opt = make()
    warm_up = torch.optim.lr_scheduler.LinearLR(opt, start_factor=0.1, total_iters=2)
    stages = MultiStageLR(opt, [2], gamma=0.1)
    sched = torch.optim.lr_scheduler.SequentialLR(opt, [warm_up, stages], milestones=[2])
    rates = []
    for step in range(6):
        set_grads([weight], step)
        opt.step()
        rates.append(opt.param_groups[0]["lr"])
        sched.step()
    assert rates == pytest.approx([0.01, 0.055, 0.1, 0.1, 0.01, 0.01])
    assert opt.state[weight]["step"].item() == 2


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"milestones": [0, 2]}, "milestones: expected positive integers"),
        ({"milestones": [1.5]}, "milestones: expected positive integers"),
        ({"milestones": [2, 2]}, "milestones: expected an increasing sequence"),
        ({"milestones": [3, 2]}, "milestones: expected an increasing sequence"),
        ({"milestones": [1], "gamma": 0.0}, "gamma: expected a finite number > 0"),
        ({"milestones": [1], "gamma": float("inf")}, "gamma: expected a finite number > 0"),
        ({"milestones": [1], "momentum": "halve"}, "momentum: expected one of 'divide', 'ramp', 'constant'"),
    ],
)
def test_errors(kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        MultiStageLR(make()[1], **kwargs)


def test_no_milestones() -> None:
    _, opt = make()
    sched = MultiStageLR(opt, [])
    opt.step()
    sched.step()
    assert opt.param_groups[0]["lr"] == 0.1


class Around(torch.optim.Optimizer):
    """A wrapper of the usual kind: an optimizer in an attribute, and its groups."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.inner.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


def after_four_steps(optimizer: Any, weight: Parameter, scheduler: Any) -> dict[str, float]:
    for step in range(4):
        set_grads([weight], step)
        optimizer.step()
        scheduler.step()
    inner = next(layer for layer in optimizer_layers(optimizer) if isinstance(layer, sa.RMDA))
    return {
        "lr": inner.param_groups[0]["lr"],
        "momentum": inner.param_groups[0]["momentum"],
        "step": inner.state[weight]["step"].item(),
    }


optimizer_layers = sa.optim.lr_scheduler._layers
STAGED = {"lr": pytest.approx(0.01), "momentum": 1.0, "step": 2.0}


def test_wrapped_optimizers_are_restarted() -> None:
    for wrap in (lambda opt: opt, Around, lambda opt: Around(Around(opt))):
        weight, opt = make()
        outer = wrap(opt)
        assert after_four_steps(outer, weight, MultiStageLR(outer, [2])) == STAGED


def test_accelerate_prepares_it() -> None:
    accelerate = pytest.importorskip("accelerate")
    weight, opt = make()
    accelerator = accelerate.Accelerator(cpu=True)
    outer = accelerator.prepare(opt)
    assert type(outer).__name__ == "AcceleratedOptimizer"
    assert after_four_steps(outer, weight, MultiStageLR(outer, [2])) == STAGED
    weight, opt = make()
    outer, sched = accelerator.prepare(opt, MultiStageLR(opt, [2]))
    assert after_four_steps(outer, weight, sched) == STAGED


def test_a_wrapper_around_others_only_scales_the_learning_rate() -> None:
    weight = Parameter(torch.ones(2, 2))
    outer = Around(torch.optim.SGD([weight], lr=0.1, momentum=0.9))
    sched = MultiStageLR(outer, [1])
    set_grads([weight])
    outer.step()
    sched.step()
    assert outer.param_groups[0]["lr"] == pytest.approx(0.01)
    assert outer.param_groups[0]["momentum"] == 0.9
    assert "restart" not in outer.param_groups[0]


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_zero_redundancy_optimizer() -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    weight, _ = make()
    options = {"lr": 0.1, "momentum": 0.1, "penalty": sa.GroupLasso(0.01)}
    outer = ZeroRedundancyOptimizer([weight], sa.RMDA, **options)
    assert after_four_steps(outer, weight, MultiStageLR(outer, [2])) == STAGED
    plain, opt = make()
    after_four_steps(opt, plain, MultiStageLR(opt, [2]))
    assert torch.equal(plain, weight)


class Own(torch.optim.SGD):
    """Somebody's optimizer with stages of its own."""

    restarts = 0

    def restart(self) -> None:
        self.restarts += 1


def test_any_restart_is_called() -> None:
    weight = Parameter(torch.ones(2, 2))
    inner = Own([weight], lr=0.1, momentum=0.1)
    for outer in (inner, Around(inner)):
        inner.restarts = 0
        sched = MultiStageLR(outer, [1], momentum="constant")
        set_grads([weight])
        outer.step()
        sched.step()
        assert inner.restarts == 1
        assert "restart" not in inner.param_groups[0]


def test_an_overridden_restart_is_called() -> None:
    class Counted(sa.RMDA):
        restarts = 0

        def restart(self) -> None:
            self.restarts += 1
            super().restart()

    weight = Parameter(torch.ones(2, 2))
    opt = Counted([weight], lr=0.1, momentum=0.1)
    sched = MultiStageLR(opt, [1])
    set_grads([weight])
    opt.step()
    sched.step()
    assert opt.restarts == 1
    assert opt.param_groups[0]["restart"]
