"""Widths that transposed convolutions read: every method, 1 to 3 dimensions, groups, strides, output padding."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparse_accel as sa
from sparse_accel.prune import ISpaSP, find_widths, ispasp_select

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
GEOMETRIES: dict[str, dict[str, Any]] = {
    "upsampling": {"kernel_size": 2, "stride": 2},
    "output padding": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    "dilated": {"kernel_size": 3, "stride": 2, "padding": 3, "dilation": 2, "output_padding": 1},
    "groups": {"kernel_size": 4, "stride": 2, "padding": 1, "groups": 2},
}


class Decoder(nn.Module):
    """A convolution, and a transposed one that reads it; with a norm behind it, or asked for a size."""

    def __init__(self, ndim: int, norm: bool = False, size: list[int] | None = None, **geometry: Any) -> None:
        super().__init__()
        self.encode = CONVS[ndim](3, 8, 3, padding=1)
        self.decode = TRANSPOSED[ndim](8, 4, **geometry, bias=not norm)
        self.norm = NORMS[ndim](4) if norm else nn.Identity()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.encode(x))
        return self.norm(self.decode(h) if self.size is None else self.decode(h, output_size=self.size))


def data(ndim: int, samples: int = 40) -> Tensor:
    sizes = {1: (9,), 2: (5, 4), 3: (3, 4, 2)}[ndim]
    return torch.randn(samples, 3, *sizes, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def decoder(ndim: int, name: str, **how: Any) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(ndim, **GEOMETRIES[name], **how).double()
    with torch.no_grad():
        model.train()(data(ndim))
    return model.eval()


@pytest.mark.parametrize("ndim, name", list(product((1, 2, 3), GEOMETRIES)))
def test_half_of_the_channels_go(ndim: int, name: str, tmp_path: Path) -> None:
    model, x = decoder(ndim, name, norm=ndim == 2), data(ndim)
    assert find_widths(model, x[:2]).named("encode").refittable
    result = ISpaSP(model, x[:2], refit_head=False).run(x)
    (width,) = result.report.widths
    assert (width.units, width.consumers, width.target) == ((8, 4), ("decode",), "dense")
    assert width.error[1] < 0.8 * width.error[0]
    assert result.model.decode.in_channels == 4
    with torch.no_grad():
        came, wanted = result.model(x), model(x)
        error = (came - wanted).square().sum() / (
            wanted - wanted.mean((0, *range(2, wanted.dim())), True)
        ).square().sum()
        torch.testing.assert_close(float(error), width.error[1], rtol=1e-6, atol=0)
        loaded = sa.load(sa.save(result, tmp_path), model)
        assert torch.equal(loaded(x), came)


@pytest.mark.parametrize("method", ["gram_obs", "gram_cosamp", "energy", "ispasp", "magnitude"])
@pytest.mark.parametrize("name", ["output padding", "groups"])
def test_methods(method: str, name: str) -> None:
    model, x = decoder(2, name), data(2)
    result = ISpaSP(model, x[:2], method=method).run(x)
    assert len(result.kept["encode"]) == 4
    assert result.report.widths[0].error[1] < result.report.widths[0].error[0]


@pytest.mark.parametrize("ndim, name", list(product((1, 2, 3), GEOMETRIES)))
def test_copies_of_channels_are_made_up_for_exactly(ndim: int, name: str) -> None:
    model, x = decoder(ndim, name), data(ndim)
    own = 8 // model.decode.groups // 2  # the second half of each group's channels repeats the first
    with torch.no_grad():
        for tensor in (model.encode.weight, model.encode.bias):
            groups = tensor.unflatten(0, (model.decode.groups, -1))
            groups[:, own:] = groups[:, :own]
    result = ISpaSP(model, x[:2], ridge=1e-10, relu_iterations=0, refit_head=False).run(x)
    with torch.no_grad():
        torch.testing.assert_close(result.model(x), model(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("extra", [0, 1])
def test_a_size_asked_for_at_the_call(extra: int) -> None:
    x = data(2)
    size = [(n - 1) * 2 + 1 + extra for n in x.shape[2:]]
    torch.manual_seed(0)
    model = Decoder(2, size=size, kernel_size=3, stride=2, padding=1).double().eval()
    for method in ("gram_obs", "ispasp"):
        result = ISpaSP(model, x[:2], method=method).run(x)
        assert list(result.model(x).shape[2:]) == size
        assert result.report.widths[0].error[1] < result.report.widths[0].error[0]


@pytest.mark.parametrize("name", ["upsampling", "output padding", "dilated"])
def test_ispasp_is_that_of_the_map_written_out(name: str) -> None:
    model, x = decoder(1, name), data(1)
    result = ISpaSP(model, x[:2], method="ispasp", refit=None).run(x)
    with torch.no_grad():
        hidden = F.relu(model.encode(x)).sum(0)
        units = torch.eye(hidden.numel(), dtype=torch.float64).reshape(-1, *hidden.shape)
        weight = F.conv_transpose1d(
            units,
            model.decode.weight,
            None,
            *(getattr(model.decode, key) for key in ("stride", "padding", "output_padding", "groups", "dilation")),
        ).flatten(1)  # [8 * length, outputs]
        shift = model.decode.bias.repeat_interleave(weight.shape[1] // 4)
        chosen = ispasp_select(hidden, weight.T, keep=4, shift=shift, count=len(x))
    assert result.kept["encode"] == chosen.kept.tolist()


def test_a_grouped_transposed_producer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 8, 2, 2, groups=2), nn.ReLU(), nn.ConvTranspose2d(8, 2, 1)
    ).double()
    x = data(2)
    for method in ("gram_obs", "magnitude"):
        result = ISpaSP(model, x[:2], method=method).run(x)
        assert {name: len(units) for name, units in result.kept.items()} == {"0": 2, "2": 4}
        assert result.model[2].weight.shape == (2, 2, 2, 2)


def test_the_stream_of_a_decoder_with_skips() -> None:
    """As in a U-Net: what is upsampled is concatenated with an earlier map."""

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.down = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 10, 3, 2, 1)
            self.up, self.last = nn.ConvTranspose2d(10, 6, 2, 2), nn.Conv2d(12, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            a = F.relu(self.first(x))
            return self.last(torch.cat([a, F.relu(self.up(F.relu(self.down(a))))], 1))

    torch.manual_seed(0)
    model = UNet()
    x = torch.randn(16, 3, 8, 8)
    result = ISpaSP(model, x[:2]).run(x)
    assert {name: len(units) for name, units in result.kept.items()} == {"first": 3, "down": 5, "up": 3}
    assert result.report.macs[1] < 0.45 * result.report.macs[0]
