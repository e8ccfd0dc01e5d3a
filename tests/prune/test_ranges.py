"""Activations far from 1: products that would leave the range of float32 or float64, and inputs that are all zero."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparse_accel.calibration.moments import Gram
from sparse_accel.calibration.powers import power_of, times_power
from sparse_accel.prune import CurvatureIHT, ISpaSP, energy_select, gram_cosamp, gram_obs, layerwise_solve, refit

TINY, HUGE = 2.0**-73, 2.0**73  # about 1e-22 and 1e22
SCALES = pytest.mark.parametrize("scale", [TINY, HUGE], ids=["tiny", "huge"])


def mlp(scale: float) -> nn.Sequential:
    """Homogeneous: all that the first layer's scale does is scale what follows."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 24, bias=False), nn.ReLU(), nn.Linear(24, 8, bias=False))
    with torch.no_grad():
        net[0].weight *= scale
    return net.eval()


def inputs(rows: int = 200) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 12, generator=generator) @ torch.randn(12, 12, generator=generator)


def test_powers_are_exact_and_only_where_needed() -> None:
    for x in (
        torch.tensor([1.0, -3e9]),
        torch.zeros(2),
        torch.zeros(0),
        torch.tensor([1e-9, torch.nan]),
        -torch.ones(1),
    ):
        assert power_of(x) == 0
    x = torch.tensor([1e-45, -3e-40])  # subnormal
    scaled = times_power(x, -power_of(x))
    assert 0.5 <= float(scaled.abs().max()) < 1
    assert torch.equal(times_power(scaled, power_of(x)), x)
    assert power_of(torch.tensor([1e300], dtype=torch.float64)) == 997


@SCALES
@pytest.mark.parametrize("centred", [False, True])
def test_moments_scale_to_the_bit(scale: float, centred: bool) -> None:
    x = torch.randn(1, 5, 40, generator=torch.Generator().manual_seed(0)) + 1
    plain, scaled = (Gram(1, 3, 2, centred=centred) for _ in range(2))
    for part in x.split(13, 2):
        plain.update(part[:, :3], part[:, 3:])
        scaled.update(part[:, :3] * scale, part[:, 3:] / scale)
    assert torch.equal(scaled.gram, plain.gram * scale**2)
    assert torch.equal(scaled.cross, plain.cross)
    assert torch.equal(scaled.mean, plain.mean * scale)
    assert torch.equal(scaled.target_mean, plain.target_mean / scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("centred", [False, True])
def test_batches_of_different_sizes_add_up(dtype: torch.dtype, centred: bool) -> None:
    base = torch.randn(1, 3, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = torch.cat([torch.zeros(1, 3, 4), (base * 1e-20), (base.flip(2) * 1e12), base * 1e16], 2).to(dtype)
    gram = Gram(1, 3, centred=centred, dtype=dtype)
    for part in rows.split([4, 30, 30, 30], 2):
        gram.update(part)
    wide = rows.double()
    wide = wide - wide.mean(2, keepdim=True) if centred else wide
    expected = (wide @ wide.mT) / 2.0**110
    torch.testing.assert_close(gram.gram.double() / 2.0**110, expected, rtol=1e-4, atol=1e-6)


@SCALES
def test_sums_in_float32_keep_their_digits(scale: float) -> None:
    x = torch.randn(1, 4, 50, generator=torch.Generator().manual_seed(0))
    plain, scaled = (Gram(1, 4, centred=False, dtype=torch.float32) for _ in range(2))
    plain.update(x)
    scaled.update(x * scale)
    ratio = scaled.hessian / plain.hessian
    assert torch.equal(ratio, ratio[0, 0, 0].expand_as(ratio))


@SCALES
@pytest.mark.parametrize("options", [{}, {"dtype": torch.float32}, {"method": "sparsegpt"}], ids=["", "f32", "gpt"])
def test_weights_are_pruned_alike_at_any_scale(scale: float, options: dict) -> None:
    plain = CurvatureIHT(mlp(1.0), 0.5, **options).run(inputs())
    other = CurvatureIHT(mlp(scale), 0.5, **options).run(inputs())
    assert torch.equal(other.model[2].weight, plain.model[2].weight)
    assert other.report["2"].error == pytest.approx(plain.report["2"].error)
    assert [layer.dead for layer in other.report.layers] == [0, 0]


@SCALES
@pytest.mark.parametrize("refit_to", ["auto", "dense", "local"])
def test_units_are_pruned_alike_at_any_scale(scale: float, refit_to: str) -> None:
    plain, other = (ISpaSP(mlp(s), inputs()[:2], refit=refit_to, new_bias=False).run(inputs()) for s in (1.0, scale))
    assert plain.kept == other.kept
    torch.testing.assert_close(other.model[2].weight, plain.model[2].weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.report.widths[0].error, plain.report.widths[0].error)
    torch.testing.assert_close(other.model(inputs()) / scale, plain.model(inputs()), rtol=1e-3, atol=1e-3)


def test_relu_aware_refits_at_any_scale() -> None:
    def net(scale: float) -> nn.Sequential:
        torch.manual_seed(0)
        out = nn.Sequential(
            nn.Conv2d(2, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False), nn.ReLU(),
            nn.Flatten(), nn.Linear(16, 2),
        )  # fmt: skip
        with torch.no_grad():
            out[0].weight *= scale
        return out.eval()

    x = torch.randn(30, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    plain, other = (ISpaSP(net(s), x[:2], only=["0"], new_bias=False, refit_head=False).run(x) for s in (1.0, TINY))
    assert plain.report.widths[0].target == "dense+relu"
    assert plain.kept == other.kept
    torch.testing.assert_close(other.model[2].weight, plain.model[2].weight, rtol=1e-4, atol=1e-5)


def test_rounds_of_refinement_at_any_scale() -> None:
    data = list(inputs().split(25))
    plain, other = (CurvatureIHT(mlp(s), 0.6, refine=1).run(data, held_out=data) for s in (1.0, TINY))
    assert plain.report.rounds[1] < plain.report.rounds[0]
    assert other.report.rounds == pytest.approx(plain.report.rounds, rel=1e-2)


@pytest.mark.parametrize("select", [gram_obs, gram_cosamp, energy_select])
@pytest.mark.parametrize("scale", [2.0**-900, 2.0**900])
def test_selection_scales_with_the_moments(select, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 40, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    gram = x @ x.T
    plain = select(gram, weight @ gram, weight, keep=3)
    other = select(gram * scale, weight @ gram * scale, weight, keep=3)
    assert torch.equal(plain.kept, other.kept)
    assert torch.allclose(plain.weight, other.weight)
    assert torch.allclose(other.damages / scale, plain.damages)
    assert other.explained / scale == pytest.approx(plain.explained)
    assert [delta / scale for delta in other.delta] == pytest.approx(plain.delta)
    assert torch.allclose(refit(gram * scale, weight @ gram * scale, weight, plain.kept), plain.weight)


@pytest.mark.parametrize("scale", [2.0**-1000, 2.0**1012])
def test_layerwise_solve_scales_with_the_moments(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 300, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 200, generator=generator)
    assert torch.equal(layerwise_solve(weight, x @ x.T * scale, 0.5), layerwise_solve(weight, x @ x.T, 0.5))


# ---------------------------------------------------------------- dead layers


@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
@pytest.mark.parametrize("method", ["iht", "sparsegpt", "admm", "obs", "magnitude"])
def test_a_layer_without_inputs_keeps_its_largest_weights(sparsity, method: str) -> None:
    net = mlp(1.0)
    with torch.no_grad():
        net[0].weight.zero_()
    result = CurvatureIHT(net, sparsity, method=method).run(inputs())
    weight, kept = net[2].weight.detach(), result.model[2].weight.detach()
    expected = weight.clone()
    if sparsity == "2:4":
        order = weight.abs().reshape(8, 6, 4).argsort(2, descending=True)
        expected.view(8, 6, 4).scatter_(2, order[..., 2:], 0.0)
    else:
        expected.view(-1)[weight.abs().flatten().argsort()[: weight.numel() // 2]] = 0
    assert torch.equal(kept, expected)
    assert result.report["2"].dead == 24
    assert result.report["2"].error == 0
    assert "2: 24 of its inputs are always zero" in str(result.report)


@pytest.mark.parametrize("method", ["gram_obs", "energy", "gram_cosamp", "ispasp", "magnitude"])
def test_units_of_a_dead_width_go(method: str) -> None:
    net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.fill_(-1)  # dead behind the ReLU, and not foldable before it
    before = copy.deepcopy(net.state_dict())
    result = ISpaSP(net, inputs()[:2], method=method).run(inputs())
    assert [len(result.kept[name]) for name in ("0", "2")] == [8, 4]
    torch.testing.assert_close(result.model(inputs()), net(inputs()), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def inverted(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        nn.Conv2d(16, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
    )  # fmt: skip


def test_random_mobilenets_can_be_pruned() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*[inverted(3 if i == 0 else 8, 8) for i in range(5)], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in net.modules():
        if isinstance(module, nn.Conv2d):  # fresh norms do nothing: the signal fades with depth
            nn.init.normal_(module.weight, std=2e-3)
    net.eval()
    images = torch.randn(8, 3, 6, 6)
    last: list[torch.Tensor] = []
    handle = net[4][6].register_forward_pre_hook(lambda _, args: last.append(args[0].detach()))
    net(images)
    handle.remove()
    assert 0 < float(last[0].abs().max()) < 1e-22
    sparse = CurvatureIHT(net, 0.5).run(images)
    assert sparse.report.sparsity == 0.5
    assert all(0 < layer.error < 0.5 for layer in sparse.report.layers)
    small = ISpaSP(net, images[:1], only=["0.0", "4.0"]).run(images)
    assert [len(units) for units in small.kept.values()] == [8, 8]
    for change in small.report.widths:
        before, after = change.error
        assert 0 < after < before < 1.5
