"""The compact model's optimizer goes on as the dense one would."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compact_cases import CASES
from compact_checks import snapshot
from compact_models import LeNet, Mlp, randomize, silent, unread
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_accel.groups import param_groups
from sparse_accel.optim import RAMDA, RMDA, ProxAdamW, ProxSGD
from sparse_accel.penalties import GroupL0, GroupLasso
from sparse_accel.removal.compact import CompactError, CompactResult, compact
from sparse_accel.removal.surgery import cut

TORCH_OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


def train_step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    F.mse_loss(model(x), y).backward()
    optimizer.step()


def assert_kept_equal(dense: nn.Module, result: CompactResult, tolerance: float = 1e-9) -> None:
    small = dict(result.model.named_parameters())
    for name, parameter in dense.named_parameters():
        expected = cut(parameter, result.plan["tensors"].get(name))
        torch.testing.assert_close(
            small[name].detach(), expected, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def batches(case: str, outputs: int, count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    shape = CASES[case].example().shape

    def make(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    return [(make(*shape), make(shape[0], outputs)) for _ in range(count)]


@pytest.mark.parametrize("kind", TORCH_OPTIMIZERS)
@pytest.mark.parametrize("case, outputs", [("mlp", 3), ("lenet", 4), ("vgg", 3), ("resnet", 4)])
def test_next_steps_equal_the_dense_ones(case: str, outputs: int, kind: str) -> None:
    dense = randomize(CASES[case].build()).double()
    dense.eval()  # dropout would draw other numbers
    optimizer = TORCH_OPTIMIZERS[kind](dense.parameters())
    data = batches(case, outputs, 7)
    for x, y in data[:3]:
        train_step(dense, optimizer, x, y)
    CASES[case].plant(dense)
    before = snapshot(dense)["tensors"]
    state_before = {id(p): {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}

    result = compact(dense, data[0][0], optimizer=optimizer)

    assert type(result.optimizer) is type(optimizer)
    for name, (_, value) in before.items():
        assert torch.equal(dense.state_dict()[name], value)
    for parameter, state in optimizer.state.items():
        assert all(torch.equal(state[key], value) for key, value in state_before[id(parameter)].items())
    held = [p for group in result.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in result.model.parameters()}
    planted = {name: p.detach() != 0 for name, p in dense.named_parameters()}
    small_planted = {name: cut(mask, result.plan["tensors"].get(name)) for name, mask in planted.items()}
    for x, y in data[3:]:
        train_step(dense, optimizer, x, y)
        train_step(result.model, result.optimizer, x, y)
        with torch.no_grad():  # zeros stay zeros
            for name, parameter in dense.named_parameters():
                parameter *= planted[name]
            for name, parameter in result.model.named_parameters():
                parameter *= small_planted[name]
        assert_kept_equal(dense, result)


def embed_(dense: nn.Module, optimizer: Optimizer, result: CompactResult) -> None:
    """Make the dense model and its optimizer the compact ones with zeros in place of what was removed."""

    def wide(small: Tensor, entry: dict[str, Any] | None) -> Tensor:
        if entry is None:
            return small.detach().clone()
        out = small.new_zeros(entry["from"])
        keep = [entry["keep"].get(str(dim), list(range(size))) for dim, size in enumerate(entry["from"])]
        out[torch.meshgrid(*map(torch.tensor, keep), indexing="ij")] = small.detach()
        return out

    assert result.optimizer is not None
    for name, parameter in dense.named_parameters():
        entry, small = result.plan["tensors"].get(name), result.model.get_parameter(name)
        with torch.no_grad():
            parameter.copy_(wide(small, entry))
        state = result.optimizer.state[small]
        optimizer.state[parameter] = {
            key: wide(value, entry) if isinstance(value, Tensor) and value.shape == small.shape else value.clone()
            for key, value in state.items()
            if key != "penalty_scale"
        }


@pytest.mark.parametrize(
    "optimizer_class, options, penalty",
    [
        *(
            (RMDA, options, penalty)
            for options in ({"lr": 0.3, "momentum": 1.0}, {"lr": 0.2, "momentum": 0.5})
            for penalty in (GroupLasso(0.02), GroupLasso(0.02, by="output"), GroupL0(0.02))
        ),
        *(
            (ProxSGD, {"lr": 0.1, "rho": 0.3}, penalty)
            for penalty in (GroupLasso(0.02), GroupLasso(0.06, by="output"), GroupL0(0.3))
        ),
        *(
            (RAMDA, {"lr": 0.03, "momentum": momentum}, penalty)
            for momentum in (1.0, 0.5)
            for penalty in (GroupLasso(0.02), GroupLasso(0.02, by="output"), GroupL0(0.02))
        ),
        *(
            (ProxAdamW, {"lr": 0.01}, penalty)
            for penalty in (GroupLasso(0.02), GroupLasso(0.02, by="output"), GroupL0(0.02))
        ),
    ],
    ids=str,
)
def test_proximal_optimizers_go_on(optimizer_class: Any, options: dict[str, float], penalty: Any) -> None:
    """With zeros found by training. A group of the dense model also holds weights of removed channels, which count in
    its norm; in the dense model compared with they are zero."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2)).double()
    optimizer = optimizer_class(param_groups(dense, penalty), **options)
    x = torch.randn(64, 8, dtype=torch.float64)
    y = torch.stack([x[:, 0].relu(), (x[:, 1] - x[:, 2]).relu()], 1)
    for _ in range(60):
        train_step(dense, optimizer, x, y)
    optimizer.finalize_()
    result = compact(dense, x, optimizer=optimizer)
    assert result.plan["tensors"], "the penalty found nothing to remove"
    scales = [s["penalty_scale"] for s in result.optimizer.state.values() if "penalty_scale" in s]
    assert scales
    assert all(scale > 1 for scale in scales)
    embed_(dense, optimizer, result)
    torch.testing.assert_close(dense(x), result.model(x), rtol=1e-12, atol=1e-12)
    for _ in range(10):
        train_step(dense, optimizer, x, y)
        train_step(result.model, result.optimizer, x, y)
        assert_kept_equal(dense, result)
        torch.testing.assert_close(dense(x), result.model(x), rtol=1e-9, atol=1e-9)


def test_penalty_scale_is_the_root_of_the_sizes() -> None:
    dense = randomize(CASES["lenet"].build())
    CASES["lenet"].plant(dense)
    groups = param_groups(dense, GroupLasso(1e-3, by="input"))
    optimizer = RMDA(groups, lr=0.1)
    small = compact(dense, CASES["lenet"].example(), optimizer=optimizer)
    state = small.optimizer.state
    assert state[small.model.conv2.weight] == {"penalty_scale": pytest.approx(math.sqrt(8 * 9 / (5 * 9)))}
    assert state[small.model.fc1.weight] == {"penalty_scale": pytest.approx(math.sqrt(10 / 9))}
    assert small.model.fc2.weight not in state  # its rows all stay
    assert state[small.model.conv1.weight] == {"penalty_scale": pytest.approx(math.sqrt(6 / 4))}
    hard = RMDA(param_groups(dense, GroupL0(1e-3, by="input")), lr=0.1)
    state = (again := compact(dense, CASES["lenet"].example(), optimizer=hard)).optimizer.state
    assert state[again.model.conv2.weight]["penalty_scale"] == pytest.approx(8 / 5)


def test_depthwise_groups_follow() -> None:
    dense = randomize(CASES["depthwise"].build())
    CASES["depthwise"].plant(dense)
    optimizer = RMDA(param_groups(dense, GroupLasso(1e-3)), lr=0.1)
    assert 6 in [group["conv_groups"] for group in optimizer.param_groups]
    result = compact(dense, CASES["depthwise"].example(), optimizer=optimizer)
    found = {group["conv_groups"]: len(group["params"]) for group in result.optimizer.param_groups if group["penalty"]}
    assert found == {1: 2, 4: 1}
    F.mse_loss(result.model(torch.randn(2, 3, 5, 5)), torch.zeros(2, 3, 5, 5)).backward()
    result.optimizer.step()


def test_groups_options_and_names_are_kept() -> None:
    dense = randomize(Mlp())
    CASES["mlp"].plant(dense)
    named = list(dense.named_parameters())
    optimizer = torch.optim.AdamW(
        [{"params": named[:2], "lr": 0.5, "weight_decay": 0.0}, {"params": named[2:], "betas": (0.5, 0.6)}], lr=0.1
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    outer = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [("outer", outer)], "lr": 0.25})
    del scheduler
    new = compact(dense, torch.randn(2, 6), optimizer=optimizer).optimizer
    assert [group["lr"] for group in new.param_groups] == [group["lr"] for group in optimizer.param_groups]
    assert [group["param_names"] for group in new.param_groups] == [
        group["param_names"] for group in optimizer.param_groups
    ]
    assert new.param_groups[1]["betas"] == (0.5, 0.6)
    assert new.param_groups[2]["params"] == [outer]
    assert new.defaults == optimizer.defaults
    new.zero_grad()
    again = torch.optim.AdamW(new.param_groups, lr=0.1)
    again.load_state_dict(new.state_dict())


def test_new_bias_joins_the_optimizer() -> None:
    dense = randomize(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)))
    silent(dense[0], (0, 2), bias=1.5)
    plain = compact(dense, torch.randn(2, 4), optimizer=torch.optim.SGD(dense.parameters(), lr=0.1))
    assert any(p is plain.model[2].bias for p in plain.optimizer.param_groups[0]["params"])
    ours = compact(dense, torch.randn(2, 4), optimizer=RMDA(param_groups(dense, GroupLasso(0.1)), lr=0.1))
    (group,) = [g for g in ours.optimizer.param_groups if any(p is ours.model[2].bias for p in g["params"])]
    assert group["penalty"] is None


def test_folded_bias_and_its_anchor_move_together() -> None:
    """RMDA keeps the weights of the stage's start: the folded constant must not be pulled out again."""
    dense = randomize(nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 3))).double()
    silent(dense[0], (1,), bias=0.3)
    frozen = [dense[0].weight, dense[0].bias]
    for parameter in frozen:
        parameter.requires_grad_(False)
    optimizer = RMDA([dense[2].bias], lr=0.1, momentum=0.5)
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    train_step(dense, optimizer, x, y)
    result = compact(dense, x, optimizer=optimizer)
    assert result.plan["folded"] == {"2": 1}
    for _ in range(3):
        train_step(dense, optimizer, x, y)
        train_step(result.model, result.optimizer, x, y)
        torch.testing.assert_close(result.model(x), dense(x), rtol=1e-12, atol=1e-12)


def test_state_that_cannot_be_cut_is_refused() -> None:
    dense = randomize(LeNet())
    CASES["lenet"].plant(dense)
    x = CASES["lenet"].example()
    factored = torch.optim.Adafactor(dense.parameters())
    lbfgs = torch.optim.LBFGS(dense.parameters(), max_iter=3)
    for optimizer in (factored, lbfgs):

        def closure(optimizer: Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = dense(x).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        CASES["lenet"].plant(dense)
        before = snapshot(dense)["tensors"]
        with pytest.raises(CompactError, match=f"{type(optimizer).__name__}.*cannot be cut"):
            compact(dense, x, optimizer=optimizer)
        for name, (_, value) in before.items():
            assert torch.equal(dense.state_dict()[name], value)


def test_channels_last_state_keeps_its_order() -> None:
    dense = randomize(CASES["resnet"].build()).to(memory_format=torch.channels_last)
    CASES["resnet"].plant(dense)
    x = CASES["resnet"].example().to(memory_format=torch.channels_last)
    optimizer = RMDA(param_groups(dense, GroupLasso(1e-4)), lr=0.01)
    train_step(dense, optimizer, x, torch.zeros(2, 4))
    CASES["resnet"].plant(dense)
    result = compact(dense, x, optimizer=optimizer)
    weight = result.model.block2.conv2.weight
    assert result.optimizer.state[weight]["point"].stride() == weight.stride()


def test_inside_proximal_parameters() -> None:
    """Compacting the proximal iterate on loan gives an optimizer that can step."""
    dense = randomize(Mlp())
    optimizer = RMDA(param_groups(dense, GroupLasso(0.3)), lr=0.1, momentum=0.1)
    x = CASES["mlp"].example()
    for _ in range(5):
        train_step(dense, optimizer, x, torch.zeros(5, 3))
    with optimizer.proximal_parameters():
        result = compact(dense, x, optimizer=optimizer)
    train_step(result.model, result.optimizer, x, torch.zeros(5, 3))
    unread(dense.c, ())


def test_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(CompactError, match="expected the model's parameters, got none"):
        compact(randomize(Mlp()), torch.randn(2, 6), optimizer=torch.optim.SGD(Mlp().parameters(), lr=0.1))
