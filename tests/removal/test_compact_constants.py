"""Constant channels are folded where that is exact, and kept elsewhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compact_checks import compact_checked, widths
from compact_models import BasicBlock, randomize, silent
from torch import Tensor, nn

from sparse_accel.removal.compact import compact

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def conv_net(*between: nn.Module, consumer: nn.Module | None = None, width: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3), *between, consumer or nn.Conv2d(width, 2, 3))


ACTIVATIONS = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Sigmoid(),
    nn.Tanh(), nn.ELU(), nn.LeakyReLU(0.1), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(), nn.Softplus(),
    nn.Softsign(), nn.SELU(), nn.CELU(), nn.LogSigmoid(), nn.Threshold(0.1, 0.5), nn.Identity(), nn.Dropout(),
    nn.Dropout2d(), nn.PReLU(), nn.PReLU(6), nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False), nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(4), nn.AdaptiveMaxPool2d(4),
    nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.CircularPad2d(1),
]  # fmt: skip


@pytest.mark.parametrize("between", ACTIVATIONS, ids=repr)
def test_constants_pass_through(between: nn.Module) -> None:
    net = randomize(conv_net(between))
    silent(net[0], (1, 4), bias=0.7)
    result = compact_checked(net, X)
    assert widths(result.model)["0"] == (3, 4)
    assert result.plan["folded"] in ({"2": 2}, {})  # nothing to add where the activation made it zero


def test_zero_channels_vanish_whatever_the_padding() -> None:
    net = randomize(conv_net(nn.ReLU(), consumer=nn.Conv2d(6, 2, 3, padding=1)))
    silent(net[0], (0,), bias=0.0)
    silent(net[0], (2,), bias=-3.0)  # zero after the ReLU
    silent(net[0], (3,), bias=0.5)  # the border would differ
    result = compact_checked(net, X)
    assert widths(result.model)["0"] == (3, 4)
    assert result.plan["folded"] == {}


@pytest.mark.parametrize("mode, kept", [("zeros", 6), ("reflect", 5), ("replicate", 5), ("circular", 5)])
def test_padding_modes(mode: str, kept: int) -> None:
    net = randomize(conv_net(consumer=nn.Conv2d(6, 2, 3, padding=1, padding_mode=mode)))
    silent(net[0], (5,), bias=0.5)
    assert widths(compact_checked(net, X).model)["0"] == (3, kept)


@pytest.mark.parametrize(
    "layer, kept",
    [
        (nn.AvgPool2d(3, 2, 1), 6),
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), 6),
        (nn.ZeroPad2d(1), 6),
        (nn.ConstantPad2d(1, 0.5), 5),
        (nn.LPPool2d(2, 2), 6),
        (nn.LocalResponseNorm(2), 6),
        (nn.GroupNorm(2, 6), 6),
    ],
    ids=repr,
)
def test_layers_that_do_not_keep_a_constant(layer: nn.Module, kept: int) -> None:
    net = randomize(conv_net(layer))
    silent(net[0], (5,), bias=0.5)
    assert widths(compact_checked(net, X).model)["0"] == (3, kept)


@pytest.mark.parametrize(
    "consumer, kept",
    [
        (nn.ConvTranspose2d(6, 2, 2, stride=2), 6),
        (nn.ConvTranspose2d(6, 2, 1), 5),
        (nn.Conv2d(6, 2, 2, stride=2), 5),
        (nn.Conv2d(6, 2, 3, dilation=2), 5),
        (nn.Conv2d(6, 2, 3, padding="same"), 6),
        (nn.Conv2d(6, 2, 1, padding="same"), 5),
        (nn.Conv2d(6, 2, 3, padding="valid"), 5),
        (nn.Conv2d(6, 2, 3, bias=False), 5),
        (nn.Conv2d(6, 6, 3, groups=3), 6),
        (nn.Conv2d(6, 6, 3, groups=6), 6),
    ],
    ids=repr,
)
def test_consumers(consumer: nn.Module, kept: int) -> None:
    net = randomize(conv_net(consumer=consumer))
    silent(net[0], (5,), bias=0.5)
    result = compact_checked(net, X)
    assert widths(result.model)["0"] == (3, kept)
    if consumer.bias is None:
        assert isinstance(result.model[1].bias, nn.Parameter)
        assert result.plan["created"]["1.bias"]["shape"] == [2]


def test_linear_without_a_bias_gets_one() -> None:
    net = randomize(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)))
    silent(net[0], (0, 2), bias=1.5)
    result = compact_checked(net, torch.randn(2, 4))
    assert widths(result.model)["0"] == (4, 3)
    assert result.model[2].bias.shape == (3,)
    assert net[2].bias is None


def test_flattened_constants_fold_into_the_linear_layer() -> None:
    net = randomize(nn.Sequential(nn.Conv2d(3, 6, 3), nn.SiLU(), nn.Flatten(), nn.Linear(6 * 36, 4)))
    silent(net[0], (2, 3), bias=0.4)
    result = compact_checked(net, X)
    assert widths(result.model) == {"0": (3, 4), "3": (4 * 36, 4)}
    assert result.plan["folded"] == {"3": 72}


def test_constant_is_absorbed_by_the_running_mean_after_the_consumer() -> None:
    net = randomize(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
        )
    )
    silent(net[0], (1, 3), None)  # constant after the first norm
    result = compact_checked(net, X)
    assert widths(result.model)["2"] == (4, 4)
    assert result.plan["created"] == {}
    assert result.model[2].bias is None
    assert not torch.equal(result.model[3].running_mean, net[3].running_mean)


def test_running_mean_is_left_alone_when_the_map_is_used_otherwise() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(self.a(x))
            return self.norm(y) + y.mean()

    net = randomize(Net())
    silent(net.a, (2,), bias=0.5)
    result = compact_checked(net, X)
    assert widths(result.model)["a"] == (3, 5)
    assert "b.bias" in result.plan["created"]


def test_constants_cascade() -> None:
    """A layer that reads only constants is one, and its consumers take it over."""
    net = randomize(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 3)))
    silent(net[0], (0, 1), bias=1.0)
    with torch.no_grad():
        net[2].weight[3:, 2:] = 0  # rows 3, 4, 5 read the constants alone
    result = compact_checked(net, torch.randn(2, 4))
    assert widths(result.model) == {"0": (4, 3), "2": (3, 3), "4": (3, 3)}


def test_constant_across_a_sum() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.relu(self.a(x) + self.b(x)))

    net = randomize(Sum())
    silent(net.a, (0, 1, 2), bias=0.5)
    silent(net.b, (1, 2, 3), bias=0.25)
    result = compact_checked(net, X)
    assert widths(result.model)["c"] == (4, 2)


def test_constant_concatenated_and_depthwise() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.depthwise, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(7, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = F.silu(self.depthwise(F.silu(self.a(x))))
            return self.b(torch.cat([x[:, :, 1:-1, 1:-1], y], 1))

    net = randomize(Net())
    silent(net.a, (1,), bias=0.5)
    silent(net.depthwise, (2,), bias=0.5)
    result = compact_checked(net, X)
    assert widths(result.model)["a"] == (3, 2)
    assert widths(result.model)["depthwise"] == (2, 2)
    assert widths(result.model)["b"] == (5, 2)


def test_padded_constant_is_no_constant_further_on() -> None:
    net = randomize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)))
    silent(net[0], (1,), bias=0.5)
    with torch.no_grad():
        net[1].weight[2] = 0
        net[1].weight[2, 1] = 1  # reads the constant, whose border the padding breaks
    result = compact_checked(net, X)
    assert widths(result.model)["0"] == (3, 4)
    assert widths(result.model)["1"] == (4, 4)


def test_constant_used_by_two_calls_of_one_layer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.a(x))) + self.c(torch.relu(self.b(x)))

    net = randomize(Net())
    for channel, values in ((0, (0.5, 0.25)), (1, (-1.0, 0.0))):
        silent(net.a, (channel,), values[0])
        silent(net.b, (channel,), values[1])
    result = compact_checked(net, torch.randn(2, 3))
    assert widths(result.model)["c"] == (3, 2)  # zeros go; what would change the shared bias twice stays


def test_batch_statistics_make_no_constant() -> None:
    net = randomize(conv_net(nn.BatchNorm2d(6, track_running_stats=False)))
    silent(net[0], (1,), bias=0.5)
    assert widths(compact_checked(net, X).model)["0"] == (3, 6)


def test_written_over_constant_is_none() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            view = y[:, :, 2:4]
            view += x.mean()  # writes into a part of y
            return self.b(y)

    net = randomize(Net())
    silent(net.a, (1,), bias=0.5)
    assert widths(compact_checked(net, X).model)["a"] == (3, 4)


def test_setitem_keeps_the_channels() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            y[:, 1:3] = x[:, :2]
            return self.b(y)

    net = randomize(Net())
    silent(net.a, (0, 1), bias=0.0)
    with torch.no_grad():
        net.b.weight[:, 3] = 0
    assert widths(compact_checked(net, X).model)["a"] == (3, 4)


def test_dead_block_of_a_residual_net() -> None:
    """A residual branch whose last norm is zero contributes nothing, and shrinks to one channel."""
    net = randomize(nn.Sequential(nn.Conv2d(3, 4, 1), BasicBlock(4, 4, 1), nn.Conv2d(4, 2, 1)))
    with torch.no_grad():
        net[1].conv2.weight.zero_()
    small = compact_checked(net, X).model
    assert widths(small)["1.conv1"] == (4, 1)


def test_half_precision_fold_stays_within_tolerance() -> None:
    net = randomize(nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 8))).bfloat16()
    silent(net[0], range(48), bias=0.5)
    x = torch.randn(4, 32).bfloat16()
    result = compact(net, x)
    assert widths(result.model)["0"] == (32, 16)


def test_constants_that_follow_the_size_of_the_input() -> None:
    class Sized(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.how = how
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            if self.how == "scalar":
                y = y * x.size(2)
            elif self.how == "tensor":
                y = y * torch.full((1, 1, 1, 1), float(x.size(2)))
            else:
                y = y.sum((2, 3), keepdim=True)
            return self.b(y)

    for how in ("scalar", "tensor", "sum"):
        net = randomize(Sized(how))
        silent(net.a, (1,), bias=0.5)
        result = compact_checked(net, X)
        assert widths(result.model)["a"] == (3, 4)
        for size in (3, 8):
            x = torch.randn(2, 3, size, size)
            torch.testing.assert_close(result.model(x), net(x))


def test_other_sizes_than_the_example() -> None:
    """What was folded on one size holds on others."""
    net = randomize(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(6, 2, 3))
    )
    silent(net[0], (1, 2), bias=0.5)
    result = compact_checked(net, X)
    assert widths(result.model)["0"] == (3, 4)
    for size in (5, 12, 17):
        x = torch.randn(1, 3, size, size + 2)
        torch.testing.assert_close(result.model.eval()(x), net.eval()(x))


class Positioned(nn.Module):
    """A map of positions on top of every channel: constants that vary over the image."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat = flat
        self.a = nn.Conv2d(3, 4, 1)
        self.position = nn.Parameter(torch.zeros(1, 1, 8, 8))
        self.b: nn.Module = nn.Linear(4 * 64, 2) if flat else nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x) + self.position)
        return self.b(x.flatten(1) if self.flat else x)


@pytest.mark.parametrize("flat, kept", [(True, 2), (False, 4)])
def test_constants_that_vary_over_the_image(flat: bool, kept: int) -> None:
    net = randomize(Positioned(flat))
    silent(net.a, (1, 2), bias=0.5)
    assert widths(compact_checked(net, X).model)["a"] == (3, kept)


def test_shared_layer_without_a_bias_takes_no_constant() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.a(x))) * torch.sigmoid(self.c(torch.relu(self.b(x))))

    net = randomize(Net())
    silent(net.a, (0,), 0.5)
    silent(net.b, (0,), 0.25)
    assert widths(compact_checked(net, torch.randn(2, 3)).model)["c"] == (4, 2)


def test_constant_kept_for_the_shape_stays_right() -> None:
    """Halves of one projection must stay equal: a constant that its readers could take over is kept, and so is what
    makes it, as the shared projection cannot take that over."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.u, self.v, self.shared = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 4)
            self.one, self.two, self.three = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.shared(self.u(x)), self.shared(self.v(x))
            left, right = first.chunk(2, 1)
            return self.one(left) + self.two(right) + self.three(second)

    net = randomize(Net())
    silent(net.u, (0,), 0.5)
    silent(net.v, (0,), 0.25)
    with torch.no_grad():
        net.shared.weight[0, 1:] = 0  # row 0 reads the constant alone,
        net.shared.weight[1:, 0] = 0  # and alone reads it
    result = compact_checked(net, torch.randn(2, 3))
    assert widths(result.model)["shared"] == (4, 4)


def test_constant_overwritten_through_a_view() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            view = y.flatten(2)
            view += x.mean()  # y is still the same everywhere in a channel, but not for other inputs
            return self.b(y)

    net = randomize(Net())
    silent(net.a, (1,), bias=0.5)
    assert widths(compact_checked(net, X).model)["a"] == (3, 4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Identity(),
        nn.ZeroPad2d(1),
        nn.AvgPool2d(3, 1, 1),
        nn.LPPool2d(2, 2),
        nn.MaxPool2d(3, 1, 1),
        nn.Upsample(scale_factor=2),
    ],
    ids=repr,
)
@pytest.mark.parametrize("gate", [False, True])
def test_zero_on_the_example_is_no_constant(layer: nn.Module, gate: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.layer, self.b = nn.Conv2d(3, 4, 1), layer, nn.Conv2d(4, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.a(x))
            return self.b(self.layer(y * y if gate else y))

    net = randomize(Net())
    with torch.no_grad():
        net.a.bias[2] = -1  # closed on the example, which is small
    silent(net.a, (0,), bias=0.5)  # a true one beside it, which the padding keeps
    result = compact_checked(net, X / 100)  # compared on other, larger inputs
    assert widths(result.model)["a"] == (3, 4)
