"""Pruned models fitted to dense ones without labels: better by held-out error, or as they came."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparse_accel as sa
from sparse_accel.prune import CurvatureIHT, ISpaSP, refine

PLAIN = {"keep": 0.4, "method": "magnitude", "refit": None}  # far from the best for such few units


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def images(count: int, seed: int = 1) -> torch.Tensor:
    return F.avg_pool2d(torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed)), 2) * 2


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Sequential(Block(8), Block(8)),
        nn.Sequential(nn.AvgPool2d(3), nn.Flatten()),
        nn.Linear(32, 5),
    )
    with torch.no_grad():
        for _ in range(20):
            net(images(64))
        for parameter in net.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return net.eval()


@pytest.fixture(scope="module")
def result(dense):
    return ISpaSP(dense, images(1), **PLAIN).run(images(192))


@torch.no_grad()
def error(dense: nn.Module, pruned: nn.Module, x: torch.Tensor) -> float:
    wanted = dense(x)
    return float((pruned(x) - wanted).square().mean() / wanted.var(correction=0))


def bits(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in model.state_dict().values()]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_the_error_falls_on_inputs_that_nobody_saw(dense, result):
    before = bits(dense), bits(result.model)
    looks: list[tuple[int, int, float]] = []
    refined = refine(result, dense, images(192), steps=60, batch_size=32, progress=lambda *look: looks.append(look))
    report = refined.report
    fresh = images(256, seed=2)
    assert error(dense, refined.model, fresh) < 0.85 * error(dense, result.model, fresh)
    assert report.error[1] < 0.85 * report.error[0]
    assert report.errors[report.best] == min(report.errors.values())
    assert [look[0] for look in looks] == list(report.errors) == [0, 10, 20, 30, 40, 50, 60]
    assert report.windows == ("0", "1.0", "1.1", "3")
    assert "24 of 192 samples" in str(report)
    assert "gradient-based, no labels" in str(report)
    assert same(before[0], bits(dense))
    assert same(before[1], bits(result.model))


def test_the_errors_are_those_of_what_is_held_out(dense, result):
    held = images(40, seed=3)
    refined = refine(result.model, dense, images(128), held_out=held, steps=6)
    assert refined.report.error[0] == pytest.approx(error(dense, result.model, held), rel=1e-4)
    assert refined.report.error[1] == pytest.approx(error(dense, refined.model, held), rel=1e-4)
    assert refined.result is None


@pytest.mark.parametrize("lr", [1e3, 1e20])
def test_never_worse_than_what_it_came_from(dense, result, lr):
    refined = refine(result.model, dense, images(64), steps=4, lr=lr, norms="held")
    assert same(bits(refined.model), bits(result.model))
    assert refined.report.best == 0
    assert refined.report.error[0] == refined.report.error[1]
    assert "no step lowered the held-out error" in str(refined.report)


def test_a_seed_gives_the_same_bits_in_any_state_of_the_generators(dense, result):
    def noisy(x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * torch.randn_like(x) + 0.1 * random.random() + 0.1 * float(np.random.rand())  # noqa: NPY002

    torch.manual_seed(1)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = refine(result.model, dense, images(64), steps=4, lr=1e-3, augment=noisy, seed=3)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2], np.random.get_state()[1])  # noqa: NPY002
    torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    with torch.no_grad():
        again = refine(result.model, dense, images(64), steps=4, lr=1e-3, augment=noisy, seed=3)
    other = refine(result.model, dense, images(64), steps=4, lr=1e-3, augment=noisy, seed=4)
    assert first.report.best > 0
    assert same(bits(first.model), bits(again.model))
    assert first.report.errors == again.report.errors != other.report.errors


def test_modes_gradients_and_frozen_parameters_are_as_before(dense, result):
    pruned, twin = copy.deepcopy(result.model), copy.deepcopy(dense)
    pruned.train()
    pruned[1][0].bn1.eval()
    twin.train()
    pruned[3].weight.requires_grad_(False)
    pruned[3].bias.grad = torch.ones(5)
    modes = [[module.training for module in model.modules()] for model in (pruned, twin)]
    refined = refine(pruned, twin, images(64), steps=4, lr=1e-3)
    assert refined.report.best > 0
    assert [module.training for module in refined.model.modules()] == modes[0]
    assert [[module.training for module in model.modules()] for model in (pruned, twin)] == modes
    assert [p.requires_grad for p in refined.model.parameters()] == [p.requires_grad for p in pruned.parameters()]
    assert not torch.equal(refined.model[3].weight, pruned[3].weight)
    assert torch.equal(pruned[3].bias.grad, torch.ones(5))
    assert all(p.grad is None for p in (*refined.model.parameters(), *twin.parameters()))
    assert not any(module._forward_hooks for model in (refined.model, pruned, twin) for module in model.modules())


def test_statistics_are_taken_anew_where_that_is_better(dense, result):
    wrong = copy.deepcopy(result.model)
    wrong[1][1].bn2.running_mean += 1.0
    auto = refine(wrong, dense, images(128), steps=1, lr=1e-6)
    held = refine(wrong, dense, images(128), steps=1, lr=1e-6, norms="held")
    assert auto.report.norms == "reestimated"
    assert held.report.norms == "held"
    assert auto.report.error[1] < 0.9 * held.report.error[1]
    assert auto.report.error[1] == pytest.approx(auto.report.after)
    assert torch.equal(held.model[1][1].bn2.running_mean, wrong[1][1].bn2.running_mean)
    assert auto.model[1][1].bn2.momentum == wrong[1][1].bn2.momentum


def test_batches_own_statistics_unless_they_are_too_few(dense, result):
    """Statistics move with the weights where mini-batches have enough samples, and stay where they have not."""
    live = refine(result.model, dense, images(128), steps=20, batch_size=32)
    few = refine(result.model, dense, images(128), steps=20, batch_size=8, lr=1e-3)
    held = refine(result.model, dense, images(128), steps=20, batch_size=32, norms="held")
    before = result.model[1][0].bn1.running_var
    assert live.report.best > 0
    assert few.report.best > 0
    assert held.report.best > 0
    assert live.report.norms == "reestimated"
    assert not torch.equal(live.model[1][0].bn1.running_var, before)
    assert torch.equal(held.model[1][0].bn1.running_var, before)
    assert few.report.norms == "reestimated" or torch.equal(few.model[1][0].bn1.running_var, before)
    assert all(module.momentum == 0.1 for module in live.model.modules() if isinstance(module, nn.BatchNorm2d))


def test_where_batches_own_statistics_mislead_they_are_held(dense):
    """Samples that come one kind to a batch: no batch's statistics are like those of all."""
    kinds = [images(16, seed=seed) * 0.2 + shift for seed, shift in ((1, -4.0), (2, 4.0), (3, -4.0), (4, 4.0))]
    near = copy.deepcopy(dense)
    near[3].bias.data += 0.005
    refined = refine(near, dense, kinds, held_out=images(64), steps=6, lr=1e-3)
    assert "did not help" in str(refined.report)
    assert refined.report.norms == "held"
    assert refined.report.error[1] <= refined.report.error[0]
    assert torch.equal(refined.model[1][0].bn1.running_var, dense[1][0].bn1.running_var)


def test_channels_last_inputs(dense, result):
    x = images(96).to(memory_format=torch.channels_last)
    plain = refine(result.model, dense.eval(), images(96), steps=4, lr=1e-3)
    last = refine(result.model.to(memory_format=torch.channels_last), dense, x, steps=4, lr=1e-3)
    assert last.model[1][0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert list(last.report.errors.values()) == pytest.approx(list(plain.report.errors.values()), rel=1e-2)
    result.model.to(memory_format=torch.contiguous_format)


def test_half_precision_models_train_in_float32(dense, result):
    """Steps far below a bfloat16's spacing add up."""
    half, small = copy.deepcopy(dense).bfloat16(), copy.deepcopy(result.model).bfloat16()
    refined = refine(small, half, images(128).bfloat16(), steps=40, batch_size=32, lr=1e-3)
    assert {p.dtype for p in refined.model.parameters()} == {torch.bfloat16}
    assert refined.report.error[1] < 0.95 * refined.report.error[0]


def test_batches_stay_whole_unless_told(dense, result):
    sizes: list[int] = []

    def note(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return x

    parts = list(images(70).split(10))
    whole = refine(result.model, dense, parts, steps=6, augment=note)
    assert set(sizes) == {10}
    assert whole.report.held_out == "1 of 7 batches"
    sizes.clear()
    cut = refine(result.model, dense, parts, steps=6, augment=note, batch_size=16)
    assert set(sizes) == {16}
    assert cut.report.held_out == "8 of 70 samples"
    fresh = refine(result.model, dense, lambda: iter(parts), steps=8)
    assert fresh.report.steps == 8
    alone = refine(result.model, dense, parts[:1], steps=2)
    assert "the same that is learnt from" in str(alone.report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: expected a whole number"),
        ({"lr": -1.0}, "lr: expected a positive number"),
        ({"lr": 1e38}, "lr: expected a positive number"),
        ({"batch_size": True}, "batch_size: expected"),
        ({"norms": "train"}, "norms: expected one of"),
        ({"windows": ["nothing.*"]}, r"windows: 'nothing\.\*' matches no module"),
        ({"seed": -1}, "seed: expected"),
        ({"masks": {"9.weight": torch.ones(1, dtype=torch.bool)}}, "masks: the model has no parameter"),
        ({"masks": {"3.weight": torch.zeros(5, 32, dtype=torch.bool)}}, r"masks: 3\.weight: holds weights"),
        ({"max_memory": 1000}, "max_memory: expected at least"),
    ],
)
def test_bad_arguments_change_nothing(dense, result, options, message):
    before = bits(result.model)
    with pytest.raises(ValueError, match=message):
        refine(result, dense, images(16), **options)
    assert same(before, bits(result.model))


def test_models_that_do_not_belong_together(dense, result):
    with pytest.raises(ValueError, match="dense: expected the model before pruning"):
        refine(dense, dense, images(16))
    with pytest.raises(ValueError, match="dense: expected a model whose outputs are like"):
        refine(result.model, nn.Sequential(nn.Flatten(), nn.Linear(108, 4)), images(16))
    with pytest.raises(TypeError, match="model: expected a model or what a pruner returned, got str"):
        refine("net", dense, images(16))
    with pytest.raises(ValueError, match="batch_size: expected samples of the same shapes"):
        refine(result.model, dense, [images(8), images(8)[:, :, :5, :5]], batch_size=4)


def test_ispasp_refines_on_request_and_is_as_before_without(dense, result):
    x = images(192)
    again = ISpaSP(dense, images(1), **PLAIN, refine=None).run(x)
    assert same(bits(again.model), bits(result.model))
    assert again.report.refinement is None
    refined = ISpaSP(dense, images(1), **PLAIN, refine={"steps": 30, "batch_size": 32}).run(x)
    assert refined.kept == result.kept
    before, after = refined.report.refinement.error
    assert after < before
    assert "gradient-based, no labels" in str(refined.report)
    assert refined.report.to_plain()["refinement"]["held_out"] == "24 of 192 samples"
    fresh = images(64, seed=5)
    assert error(dense, refined.model, fresh) < error(dense, result.model, fresh)
    for bad, message in (("always", "refine: expected 'auto', None or a dict"), ({"epochs": 3}, "got 'epochs'")):
        with pytest.raises(ValueError, match=message):
            ISpaSP(dense, images(1), refine=bad)


def test_what_was_pruned_is_not_lost_where_the_refinement_fails(dense, result):
    calls = []

    def fails(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        if len(calls) == 3:
            raise ZeroDivisionError("the user's own")
        return x

    with pytest.raises(ZeroDivisionError, match="the user's own") as caught:
        ISpaSP(dense, images(1), **PLAIN, refine={"steps": 30, "lr": 1e-2, "augment": fails}).run(images(192))
    assert same(bits(caught.value.result.model), bits(result.model))


def test_saved_results_hold_the_fitted_weights(dense, result, tmp_path):
    refined = refine(result, dense, images(96), steps=4, lr=1e-3)
    assert refined.result.model is refined.model
    assert refined.result.report.refinement is refined.report
    assert result.report.refinement is None
    loaded = sa.load(sa.save(refined.result, tmp_path), dense)
    assert torch.equal(loaded(images(4)), refined.model(images(4)))


def test_masks_are_kept_and_saved_along(dense, tmp_path):
    sparse = CurvatureIHT(dense, 0.7).run(list(images(192).split(32)))
    refined = refine(sparse, dense, images(192), steps=40, batch_size=32, lr=1e-3)
    assert refined.report.error[1] < 0.9 * refined.report.error[0]
    for name, mask in sparse.masks.items():
        weight = refined.model.get_parameter(name)
        assert bool((weight[~mask] == 0).all())
        assert not torch.equal(weight, sparse.model.get_parameter(name))
    plain = refine(sparse.model, dense, images(192), steps=40, batch_size=32, lr=1e-3)
    assert same(bits(plain.model), bits(refined.model))
    loaded = sa.prune.load_sparse(refined.result.save(tmp_path), dense)
    assert same(bits(loaded.model), bits(refined.model))
    assert loaded.report.refinement == refined.report


def test_curvature_iht_fits_the_kept_weights(dense):
    x = list(images(256).split(32))
    once = CurvatureIHT(dense, 0.8, method="magnitude").run(x)
    more = CurvatureIHT(dense, 0.8, method="magnitude", refine={"steps": 40, "lr": 1e-3}).run(x)
    fresh = images(128, seed=7)
    assert all(torch.equal(more.masks[name], mask) for name, mask in once.masks.items())
    assert error(dense, more.model, fresh) < 0.9 * error(dense, once.model, fresh)
    assert more.report.refinement.held_out == "1 of 8 batches"
    assert "gradient-based, no labels" in str(more.report)
    judged = CurvatureIHT(dense, 0.8, refine={"steps": 2}).run(x, held_out=fresh)
    assert judged.report.refinement.held_out == "1 batches given"
    for bad in (True, -1, "often", 1.5):
        with pytest.raises(ValueError, match="refine: expected"):
            CurvatureIHT(dense, 0.8, refine=bad)
