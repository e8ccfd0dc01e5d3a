"""n:m on convolutions runs along input channels, as sparse tensor cores want it: solver, pruner, projection, export."""

from __future__ import annotations

import math

import pytest
import torch
from layerwise_cases import error, layer
from torch import nn
from torch.nn import functional as F

import sparse_accel as sa
from sparse_accel.prune import CurvatureIHT, export_sparse, layerwise_solve
from sparse_accel.prune.layerwise.solve import DEFAULTS
from sparse_accel.prune.unstructured.result import _two_of_four

SHAPES = [(6, 8, 3, 3), (6, 6, 3, 3), (6, 3, 2, 2), (4, 5, 3), (3, 7, 1, 2, 2)]


def kept_of_channels(weight, m):
    """Nonzeros of every block of m input channels at every tap, and how large the blocks are."""
    blocks = list((weight != 0).split(m, 1))
    return torch.cat([block.sum(1).flatten() for block in blocks]), torch.cat(
        [torch.full((block[:, 0].numel(),), block.shape[1]) for block in blocks]
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", DEFAULTS)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3)])
def test_blocks_of_input_channels_at_every_tap(method, shape, n, m):
    weight, hessian = layer(shape[0], math.prod(shape[1:]))
    sparse = layerwise_solve(weight, hessian, f"{n}:{m}", method=method, shape=shape)
    kept, sizes = kept_of_channels(sparse.view(shape), m)
    assert torch.equal(kept, sizes.clamp(max=n))  # not one block of four channels holds more, or less
    assert sparse.info.kept == int((sparse != 0).sum())
    assert sparse.info.sparsity == pytest.approx(1 - sparse.info.kept / weight.numel())
    assert sparse.info.error == pytest.approx(error(weight, sparse, hessian), rel=1e-9)
    assert sparse.info.dead_inputs == 0
    along_row = layerwise_solve(weight, hessian, sa.BlockSparsity(n, m, along="row"), method=method, shape=shape)
    assert torch.equal(along_row, layerwise_solve(weight, hessian, f"{n}:{m}", method=method))


@pytest.mark.parametrize("method", DEFAULTS)
def test_the_order_is_all_that_differs(method):
    # The same layer with its columns in the order of the taps, solved as a linear one.
    weight, hessian = layer(6, 72)
    order = torch.arange(72).view(8, 9).T.flatten()
    sparse = layerwise_solve(weight, hessian, "2:4", method=method, shape=(6, 8, 3, 3))
    linear = layerwise_solve(weight[:, order], hessian[order][:, order], "2:4", method=method)
    assert torch.equal(sparse[:, order], linear)


def test_linear_and_pointwise_layers_are_as_they_were():
    weight, hessian = layer(8, 16)
    plain = layerwise_solve(weight, hessian, "2:4")
    for shape in (None, (8, 16), (8, 16, 1, 1)):
        assert torch.equal(layerwise_solve(weight, hessian, "2:4", shape=shape), plain)
        assert torch.equal(layerwise_solve(weight, hessian, sa.BlockSparsity(2, 4, "row"), shape=shape), plain)


def test_the_order_is_made_where_the_weight_is():
    weight, hessian = layer(4, 18)
    plain = layerwise_solve(weight, hessian, "1:2", shape=(4, 2, 3, 3))
    with torch.device("meta"):
        assert torch.equal(layerwise_solve(weight, hessian, "1:2", shape=(4, 2, 3, 3)), plain)


def test_nothing_to_choose():
    weight, hessian = layer(4, 18)
    sparse = layerwise_solve(weight, hessian, "2:4", shape=(4, 2, 3, 3))
    assert torch.equal(sparse, weight)
    assert (sparse.info.kept, sparse.info.sparsity) == (72, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((4, 2), "n:m"), ((0, 4), "n:m"), ((2, 33), "n:m"), ((2.0, 4), "n:m"), ((2, 4, "tap"), "along: expected")],
)
def test_blocks_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        sa.BlockSparsity(*arguments)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 6, 3, padding=1),
        nn.Conv2d(16, 8, 3, groups=2),
        nn.Conv2d(6, 4, (1, 3)),
        nn.Conv1d(8, 6, 5),
        nn.Conv3d(4, 4, 2),
    ],
    ids=str,
)
def test_whole_convolutions(conv):
    x = torch.randn(4, conv.in_channels, *([8] * len(conv.kernel_size)))
    result = CurvatureIHT(conv, "2:4").run(x)
    kept, sizes = kept_of_channels(result.model.weight, 4)
    assert torch.equal(kept, sizes.clamp(max=2))
    rows = CurvatureIHT(conv, sa.BlockSparsity(2, 4, along="row")).run(x).model.weight.detach().flatten(1)
    assert torch.equal(
        (rows[:, : rows.shape[1] // 4 * 4].unflatten(1, (-1, 4)) != 0).sum(2).unique(), torch.tensor([2])
    )


def test_what_has_no_blocks_is_left_and_said():
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 4, 3), nn.Flatten()
    )
    report = CurvatureIHT(net, "2:4").run(torch.randn(4, 2, 12, 12)).report
    assert [item.name for item in report.layers] == ["3"]
    assert report.left == {
        "0": "2:4 removes nothing where there are 2 input channels",
        "1": "2:4 removes nothing where there are 1 input channels of each group",
        "2": "2:4 removes nothing where there are 2 input channels of each group",
    }
    row = CurvatureIHT(net, sa.BlockSparsity(2, 4, "row")).run(torch.randn(4, 2, 12, 12)).report
    assert len(row.layers) == 4


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(5, 8, 3, 3), (2, 6, 2, 3)])
def test_projection_along_a_dimension(memory, shape):
    x = torch.randn(shape).to(memory_format=memory)
    scale = torch.rand(shape[1]) + 0.1
    for scores in (None, torch.rand(shape)):
        kept, projected = x.clone(), x.clone()
        options = {} if scores is not None else {"scale": scale}
        mask = sa.topk_threshold_(projected, scores, (2, 4), dim=1, **options)
        last = x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
        moved = None if scores is None else scores.permute(0, 2, 3, 1).contiguous()
        expected = sa.topk_threshold_(last, moved, (2, 4), **options).permute(0, 3, 1, 2)
        assert torch.equal(mask, expected)
        assert torch.equal(projected, kept * expected)
        assert projected.stride() == mask.stride() == x.stride()
        count, sizes = kept_of_channels(projected, 4)
        assert torch.equal(count, sizes.clamp(max=2))
    assert torch.equal(sa.topk_threshold_(x.clone(), None, (2, 4), dim=-3), sa.topk_threshold_(x, None, (2, 4), dim=1))


def test_projection_refuses_other_dimensions():
    x = torch.randn(2, 4, 3)
    before = x.clone()
    with pytest.raises(ValueError, match="dim: expected one of the 3"):
        sa.topk_threshold_(x, None, (2, 4), dim=3)
    with pytest.raises(ValueError, match=r"dim: expected -1 unless k is a pair"):
        sa.topk_threshold_(x, None, 3, dim=1)
    assert torch.equal(x, before)


def test_export_has_the_order_of_the_blocks():
    conv = nn.Conv2d(8, 4, 3)
    x = torch.randn(4, 8, 6, 6)
    pruned = CurvatureIHT(conv, "2:4").run(x).model.weight.detach()
    rows = _two_of_four("weight", pruned, "input")
    assert torch.equal(rows, pruned.permute(0, 2, 3, 1).reshape(4, -1))
    with pytest.raises(ValueError, match="2 of 4 neighbours in a row"):
        _two_of_four("weight", pruned, "row")
    by_row = CurvatureIHT(conv, sa.BlockSparsity(2, 4, "row")).run(x).model.weight.detach()
    assert torch.equal(_two_of_four("weight", by_row, "row"), by_row.flatten(1))
    with pytest.raises(ValueError, match=r"2 of 4 input channels at one tap.*along"):
        _two_of_four("weight", by_row, "input")
    with pytest.raises(ValueError, match=r"multiple of 4 input channels .* got 6"):
        _two_of_four("weight", torch.zeros(4, 6, 2, 2), "input")
    with pytest.raises(ValueError, match="along: expected"):
        export_sparse(conv, ["weight"], "csr", "tap")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_semi_structured_convolution():
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 64, 3, bias=False).cuda()
    result = CurvatureIHT(conv, "2:4").run(torch.randn(4, 64, 10, 10, device="cuda"))
    result.model.half()
    weight = result.export("semi_structured")["weight"]
    x = torch.randn(1, 64, 10, 10, device="cuda", dtype=torch.float16)
    patches = F.unfold(x, 3)[0].view(64, 9, 64).transpose(0, 1).reshape(576, 64)  # [kh × kw × c, positions]
    expected = result.model(x)[0].flatten(1)
    torch.testing.assert_close(F.linear(patches.T.contiguous(), weight).T, expected, rtol=1e-2, atol=1e-2)
