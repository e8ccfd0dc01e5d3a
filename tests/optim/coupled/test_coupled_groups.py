"""Which weights go with a unit, and that what becomes zero together is removed together."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from expert_models import Mixture
from torch import Tensor, nn
from torch.nn import functional as F

import sparse_accel as sa

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "RMDA": {"lr": 0.5, "momentum": 0.5},
    "RAMDA": {"lr": 0.05, "momentum": 0.5},
    "ProxSGD": {"lr": 0.2},
    "ProxAdamW": {"lr": 0.02},
}
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


class Block(nn.Module):
    """A layer of a Transformer: 4 query heads of 3 on 2 key-value heads, and a gated MLP of 10."""

    def __init__(self, biases: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(8), nn.RMSNorm(8)
        self.q, self.k, self.v = nn.Linear(8, 12, bias=biases), nn.Linear(8, 6), nn.Linear(8, 6, bias=biases)
        self.out = nn.Linear(12, 8)
        self.gate, self.up, self.down = nn.Linear(8, 10), nn.Linear(8, 10), nn.Linear(10, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (layer(y).unflatten(-1, (-1, 3)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Net(nn.Module):
    """Convolutions with norms around a residual addition, a depthwise one, and a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv1, self.norm1 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.conv2, self.norm2 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.fc1, self.fc2 = nn.Linear(6 * 9, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.relu(x + self.norm2(self.conv2(F.relu(self.deep(F.relu(self.norm1(self.conv1(x))))))))
        return self.fc2(F.relu(self.fc1(F.max_pool2d(x, 2).flatten(1))))


def mixture() -> nn.Module:
    return Mixture("linear")


MODELS = {"block": (Block, (3, 5, 8)), "net": (Net, (8, 2, 6, 6)), "mixture": (mixture, (30, 8))}
each_model = pytest.mark.parametrize("kind", MODELS)


def make(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    maker, shape = MODELS[kind]
    return maker(), torch.randn(shape)  # type: ignore[operator]


def train(model: nn.Module, opt: Any, x: Tensor, steps: range) -> None:
    for step in steps:
        opt.zero_grad()
        generator = torch.Generator().manual_seed(step)
        y = model(x)
        (y * torch.randn(y.shape, generator=generator)).mean().backward()
        opt.step()


@each_model
def test_a_unit_has_all_that_goes_with_it(kind: str) -> None:
    """Overwriting everything that is not the unit's with zeros leaves what remove_units cuts, and nothing else."""
    model, x = make(kind)
    groups = sa.coupled_groups(model, x)
    named = dict(model.named_parameters())
    found = {width.name: (width.kind, width.units, width.size) for width in groups}
    if kind == "block":
        # two query heads of 3 rows of 8, one key head with bias, one value head, 6 columns of the output
        assert found == {"": ("heads", 2, 6 * 8 + 3 * 9 + 3 * 8 + 6 * 8), "gate": ("channels", 10, 9 + 9 + 8)}
    if kind == "net":
        # the stream's groups: rows of the stem and its norm, the norm of the second; columns of what reads it
        assert found["stem"] == ("channels", 6, 2 * 9 + 1 + 2 + 8 * 9 + 2 + 12 * 9)
        # conv1 belongs to the stream, which it reads; the depthwise one goes with its channel
        assert found["conv1"] == ("channels", 8, 2 + 9 + 1 + 6 * 9)
        assert found["fc1"] == ("channels", 12, 1 + 4)
    whole = {name: torch.ones_like(value) for name, value in named.items()}
    for width in groups:
        assert not width.zero_units(whole).any()
        for member in width.members:
            others = {name: torch.zeros_like(value) for name, value in named.items()} | {
                member.parameter: whole[str(member.parameter)]
            }
            assert not width.zero_units(others).any()  # the others' zeros do not make it zero
            rest = whole[str(member.parameter)].select(member.dim, 0).numel() // max(1, member.experts)
            assert int(width.zeros(others)) == width.units * (width.size - member.each * rest)
    again = pickle.loads(pickle.dumps(copy.deepcopy(groups)))
    assert (again, again.refused, str(again)) == (groups, groups.refused, str(groups))


@each_model
@each_optimizer
def test_what_became_zero_is_removed_and_training_goes_on(kind: str, name: str) -> None:
    model, x = make(kind)
    groups = sa.coupled_groups(model, x)
    penalty = sa.GroupLasso(target=0.5, ramp=15)
    opt = getattr(sa, name)(sa.param_groups(model, penalty, coupled=groups), **OPTIMIZERS[name])
    train(model, opt, x, range(40))
    opt.param_groups[0]["penalty"] = sa.GroupLasso(opt.param_groups[0]["penalty"]["strength"])
    opt.finalize_()
    named = dict(model.named_parameters())
    zero = {width.name: width.zero_units(named) for width in groups}
    report = sa.sparsity(model, groups)
    assert report.zero_groups == sum(int(own.sum()) for own in zero.values()) > 0
    assert report.groups == groups.units
    assert report.by == "coupled"
    small = sa.compact(model, x, optimizer=opt)
    torch.testing.assert_close(small.model.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-5)
    left = {width.name: width.units for width in sa.coupled_groups(small.model, x)}
    if kind == "block":  # the query heads of a single key-value head are units of their own
        left[""] = small.model.k.out_features // 3
    expected = {}
    for width in groups:
        alive = max(1, int((~zero[width.name]).sum()))
        if width.kind == "experts":  # equally many of each, in rows of 16 bytes
            alive = 3 * min(12, -(-int((~zero[width.name]).reshape(3, -1).sum(1).max()) // 4) * 4)
        expected[width.name] = alive
        assert left.get(width.name, 1) == alive
    assert small.optimizer is not None
    units = {width["name"]: width["units"] for width in small.optimizer.param_groups[0]["coupled"]}
    assert units == expected
    model.eval(), small.model.eval()
    # The next steps are those of the dense model, whose zeros stay. (In the net, filters of zero channels belong to the
    # groups that they read, and count there until they are removed.)
    for step in range(40, 43 if kind != "net" else 40):
        for net, own in ((model, opt), (small.model, small.optimizer)):
            train(net, own, x, range(step, step + 1))
            with torch.no_grad():
                torch.testing.assert_close(net(x), model(x), rtol=1e-3, atol=1e-4)


def test_reading_decides_and_what_cannot_go_is_named() -> None:
    x = torch.zeros(1, 4, 5, 5)
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(150, 7), nn.ReLU(), nn.Linear(7, 3),
    )  # fmt: skip
    groups = sa.coupled_groups(net, x)
    assert [width.name for width in groups] == ["2", "4", "7"]
    assert "grouped convolution" in groups.refused["0"]
    assert "outputs must stay" in groups.refused["9"]
    owned = [name for width in groups for name in (member.parameter for member in width.members)]
    assert len(owned) == len(set(owned))
    net[7].weight.requires_grad_(False)
    frozen = sa.coupled_groups(net, x)
    assert [width.name for width in frozen] == ["2", "7"]
    assert "7.weight" in frozen.refused["4"]
    few = sa.coupled_groups(net, x, only=["7"])
    assert [width.name for width in few] == ["7"]
    assert few.refused["2"] == "only= leaves it out"
    with pytest.raises(ValueError, match=r"only: no width fits 'mlp\*'"):
        sa.coupled_groups(net, x, only=["mlp*"])
    with pytest.raises(ValueError, match="coupled: expected groups, got none"):
        sa.param_groups(nn.Linear(4, 2), sa.GroupLasso(0.1), coupled=sa.coupled_groups(nn.Linear(4, 2), x[0, 0, :, :4]))
    with pytest.raises(ValueError, match="stacked: expected none"):
        sa.param_groups(net, sa.GroupLasso(0.1), coupled=groups, stacked={})


def test_a_unit_is_all_or_nothing() -> None:
    """Rows and columns shrink by one factor, where two penalties would leave halves of neurons."""
    model, x = make("block")
    groups = sa.coupled_groups(model, x, only=["gate"])
    opt = sa.ProxSGD(sa.param_groups(model, sa.GroupLasso(0.03), coupled=groups), lr=1.0, rho=1.0)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    opt.step()
    ratios = torch.stack([
        model.gate.weight[:, 0] / before["gate.weight"][:, 0],  # type: ignore[index, union-attr]
        model.up.bias / before["up.bias"],  # type: ignore[operator]
        model.down.weight[0] / before["down.weight"][0],  # type: ignore[index, union-attr]
    ])  # fmt: skip
    torch.testing.assert_close(ratios, ratios[:1].expand(3, -1))
    assert (ratios < 1).all()
    assert ratios[0].unique().numel() > 1
    assert torch.equal(model.q.weight, before["q.weight"])  # type: ignore[arg-type, union-attr]
