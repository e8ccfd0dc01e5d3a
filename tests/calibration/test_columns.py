"""Columns: a layer's weight as a matrix, times the columns of its input, is its output; of every kind of layer."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparse_accel.calibration.columns import column_chunks, column_count, columns, weight_matrix, weight_of
from sparse_accel.calibration.moments import Gram

LAYERS: list[nn.Module] = [
    nn.Linear(6, 4, bias=False),
    nn.Conv1d(4, 6, 3, 2, 1, groups=2, bias=False),
    nn.Conv2d(4, 6, (3, 2), (1, 2), (2, 0), (2, 1), padding_mode="circular", bias=False),
    nn.Conv3d(2, 3, 2, bias=False),
]
TRANSPOSED: list[nn.Module] = [
    kind(4, 6, 3, stride, padding, output, groups=groups, bias=False, dilation=dilation)
    for kind in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    for stride, padding, output, groups, dilation in (
        (1, 0, 0, 1, 1),
        (2, 1, 1, 2, 1),
        (3, 5, 2, 1, 2),
        (2, 0, 1, 2, 3),
    )
] + [
    nn.ConvTranspose2d(4, 2, (2, 5), (1, 3), (0, 4), (0, 2), groups=2, bias=False, dilation=(3, 1)),
    nn.ConvTranspose1d(4, 4, 1, 4, groups=4, bias=False),
]


def batch(module: nn.Module, samples: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if isinstance(module, nn.Linear):
        return torch.randn(samples, 5, module.in_features, generator=generator, dtype=torch.float64)
    sizes = (5, 4, 3)[: len(module.kernel_size)]
    return torch.randn(samples, module.in_channels, *sizes, generator=generator, dtype=torch.float64)


def as_rows(module: nn.Module, out: Tensor) -> Tensor:
    """An output as [groups, out / groups, positions]."""
    groups = column_count(module)[0]
    dim = -1 if isinstance(module, nn.Linear) else 1
    return out.movedim(dim, 0).reshape(groups, out.shape[dim] // groups, -1)


@pytest.mark.parametrize("module", [*LAYERS, *TRANSPOSED], ids=str)
def test_matrix_times_columns_is_the_output(module: nn.Module) -> None:
    module = module.double()
    x, weight = batch(module), module.weight.detach()
    matrix = weight_matrix(module, weight)
    groups, features = column_count(module)
    assert matrix.shape == (groups, module.weight.numel() // (groups * features), features)
    assert torch.equal(weight_of(module, matrix), weight)
    with torch.no_grad():
        expected = as_rows(module, module(x))
    torch.testing.assert_close(matrix @ columns(module, x), expected, rtol=1e-12, atol=1e-12)
    if not isinstance(module, nn.Linear):  # the same without a batch, and in chunks of a sample
        torch.testing.assert_close(columns(module, x[0]), columns(module, x[:1]), rtol=0, atol=0)
        parts = list(column_chunks(module, x, max_bytes=1))
        assert [part for _, part in parts] == [slice(i, i + 1) for i in range(len(x))]
        torch.testing.assert_close(torch.cat([part for part, _ in parts], 2), columns(module, x), rtol=0, atol=0)


@pytest.mark.parametrize("stride, size", list(product((2, 3), (0, 1))))
def test_the_size_asked_for_at_the_call(stride: int, size: int) -> None:
    module = nn.ConvTranspose2d(3, 2, 3, stride, padding=1, bias=False).double()
    x = batch(module)
    wanted = [(n - 1) * stride + 1 + size for n in x.shape[2:]]
    with torch.no_grad():
        out = module(x, output_size=wanted)
    assert list(out.shape[2:]) == wanted
    came = weight_matrix(module, module.weight.detach()) @ columns(module, x, wanted)
    torch.testing.assert_close(came, as_rows(module, out), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("module", TRANSPOSED[1::3], ids=str)
def test_the_gram_of_a_transposed_convolution_gives_its_energy(module: nn.Module) -> None:
    module = module.double()
    x = batch(module)
    groups, features = column_count(module)
    gram = Gram(groups, features, centred=False)
    for part, _ in column_chunks(module, x, max_bytes=4096):
        gram.update(part)
    matrix = weight_matrix(module, module.weight.detach())
    energy = ((matrix @ gram.gram) * matrix).sum()
    with torch.no_grad():
        torch.testing.assert_close(energy, module(x).square().sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("module", [nn.Bilinear(2, 2, 2), nn.ReLU(), nn.LSTM(2, 2)])
def test_other_modules_are_refused(module: Any) -> None:
    with pytest.raises(
        TypeError, match=rf"expected a Linear, .* ConvTranspose3d or Conv1D module, got {type(module).__name__}"
    ):
        column_count(module)
