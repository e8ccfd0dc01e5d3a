"""Masks: zeros stay zero under any optimizer; saved and loaded; refused where they do not fit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sparse_accel as sa
from sparse_accel.prune import Masks
from sparse_accel.removal.checkpoint import CheckpointError

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=5),
    "rmda": lambda p: sa.RMDA(list(p), lr=0.1, momentum=0.5),
    "prox_sgd": lambda p: sa.ProxSGD(list(p), lr=0.1),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def masked_net() -> tuple[nn.Sequential, Masks]:
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    masks = Masks(net, {f"{i}.weight": torch.rand(net[i].weight.shape) < 0.5 for i in (0, 2)})
    return net, masks.apply_()


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(32, 6, generator=generator), torch.randn(32, 3, generator=generator)

    def closure():
        optimizer.zero_grad()
        loss = ((net(x) - y) ** 2).mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


def removed(net: nn.Module, masks: Masks) -> torch.Tensor:
    parameters = dict(net.named_parameters())
    return torch.cat([parameters[name].detach()[~mask] for name, mask in masks.items()])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_zero(name):
    net, masks = masked_net()
    before = copy.deepcopy(net.state_dict())
    optimizer = OPTIMIZERS[name](net.parameters())
    with masks.apply_to(optimizer) as masked:
        assert masked.optimizer is optimizer
        train(net, optimizer)
        assert not removed(net, masks).any()
        for parameter, mask in ((net[0].weight, masks["0.weight"]), (net[2].weight, masks["2.weight"])):
            for value in optimizer.state[parameter].values():
                if isinstance(value, torch.Tensor) and value.shape == mask.shape:
                    assert not value[~mask].any()
    assert not torch.equal(net[0].weight, before["0.weight"])
    assert not torch.equal(net[0].bias, before["0.bias"])
    train(net, optimizer)
    assert removed(net, masks).any()  # the hooks are gone


def test_rmda_hands_out_masked_proximal_iterates():
    net, masks = masked_net()
    optimizer = sa.RMDA(sa.param_groups(net, sa.GroupLasso(1e-3)), lr=0.1, momentum=0.1)
    with masks.apply_to(optimizer):
        train(net, optimizer)
        with optimizer.proximal_parameters():
            assert not removed(net, masks).any()


def test_sgd_is_that_of_a_model_without_the_weights():
    net, masks = masked_net()
    other = copy.deepcopy(net)
    with masks.apply_to(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)) as masked:
        train(net, masked.optimizer)
    plain = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    parameters = dict(other.named_parameters())
    for name, mask in masks.items():
        parameters[name].register_hook(lambda grad, mask=mask: grad * mask)
    train(other, plain)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_restored_state_is_masked_too():
    net, masks = masked_net()
    free = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    train(net, free)
    state = free.state_dict()
    masks.apply_()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    with masks.apply_to(optimizer):
        optimizer.load_state_dict(state)
        assert not optimizer.state[net[0].weight]["momentum_buffer"][~masks["0.weight"]].any()
        optimizer.step()  # with the gradients of before
        assert not removed(net, masks).any()


def test_old_gradients_and_weights_are_cleared_at_once():
    net, masks = masked_net()
    for parameter in net.parameters():
        parameter.data.fill_(1)
        parameter.grad = torch.ones_like(parameter)
    masks.apply_to(torch.optim.SGD(net.parameters(), lr=0.1)).remove()
    assert not removed(net, masks).any()
    assert not net[0].weight.grad[~masks["0.weight"]].any()
    assert net[0].weight.grad[masks["0.weight"]].all()


def test_removing_twice_and_other_parameters():
    net, masks = masked_net()
    handle = masks.apply_to(torch.optim.SGD([net[0].weight], lr=0.1))
    handle.remove()
    handle.remove()
    with pytest.raises(ValueError, match="optimizer: expected the parameters"):
        masks.apply_to(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1))


def test_frozen_parameters():
    net, masks = masked_net()
    net[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with masks.apply_to(optimizer):
        train(net, optimizer)
    assert not removed(net, masks).any()


def test_masks_of_a_sparse_model():
    net, masks = masked_net()
    found = Masks(net)
    assert list(found) == ["0.weight", "2.weight"]
    assert all(torch.equal(found[name], masks[name]) for name in masks)
    assert found.sparsity == pytest.approx(masks.sparsity)
    assert "2 parameters" in repr(found)
    assert Masks(nn.Linear(2, 2)).sparsity == 0


def test_save_and_load(tmp_path):
    _, masks = masked_net()
    assert masks.save(tmp_path / "masks") == tmp_path / "masks"
    other, _ = masked_net()
    loaded = Masks.load(tmp_path / "masks", other)
    assert list(loaded) == list(masks)
    assert all(torch.equal(loaded[name], masks[name]) for name in masks)
    loaded.apply_()
    assert not removed(other, masks).any()
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["masks.json", "masks.safetensors"]


def test_load_refuses_other_files_and_models(tmp_path):
    net, masks = masked_net()
    with pytest.raises(CheckpointError, match=r"masks\.json"):
        Masks.load(tmp_path, net)
    masks.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"no parameter '0\.weight'"):
        Masks.load(tmp_path, nn.Linear(6, 8))
    with pytest.raises(CheckpointError, match=r"0\.weight.*expected"):
        Masks.load(tmp_path, nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)))
    (tmp_path / "masks.json").write_text("{}")
    with pytest.raises(CheckpointError, match="expected the format"):
        Masks.load(tmp_path, net)
    masks.save(tmp_path)
    (tmp_path / "masks.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"masks\.safetensors"):
        Masks.load(tmp_path, net)


@pytest.mark.parametrize(
    "name, mask, message",
    [
        ("none", torch.ones(2, 2, dtype=torch.bool), "no parameter 'none'"),
        ("weight", torch.ones(2, 2), r"weight: expected torch\.bool"),
        ("weight", torch.ones(2, 3, dtype=torch.bool), r"weight: expected torch\.bool \(2, 2\)"),
    ],
)
def test_masks_are_checked(name, mask, message):
    with pytest.raises(ValueError, match=message):
        Masks(nn.Linear(2, 2), {name: mask})
