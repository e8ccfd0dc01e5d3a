"""Further rounds of CurvatureIHT on the whole model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparse_accel.calibration.batches import Batches
from sparse_accel.calibration.data import Calibration
from sparse_accel.prune import CurvatureIHT
from sparse_accel.prune.unstructured import refine as module
from sparse_accel.prune.unstructured.progress import Progress
from sparse_accel.prune.unstructured.refine import Refinement
from sparse_accel.prune.unstructured.selection import select_layers


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5))


def data(count: int = 400) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 12, generator=generator) @ torch.randn(12, 12, generator=generator)


@torch.no_grad()
def error(dense: nn.Module, sparse: nn.Module, x: torch.Tensor) -> float:
    return float(((sparse(x) - dense(x)) ** 2).sum() / (dense(x) ** 2).sum())


def test_rounds_lower_the_error_of_the_outputs_and_keep_the_support(net):
    x, fresh = data(2300).split([2000, 300])
    once = CurvatureIHT(net, 0.5).run(list(x.split(100)), held_out=fresh)
    more = CurvatureIHT(net, 0.5, refine=3).run(list(x.split(100)), held_out=fresh)
    assert len(more.report.rounds) == 4
    assert more.report.rounds[0] == pytest.approx(error(net, once.model, fresh), rel=1e-3)
    assert more.report.rounds[more.report.best] == min(more.report.rounds)
    assert error(net, more.model, fresh) == pytest.approx(min(more.report.rounds), rel=1e-3)
    assert error(net, more.model, fresh) < 0.95 * error(net, once.model, fresh)
    assert all(torch.equal(more.masks[name], mask) for name, mask in once.masks.items())
    assert "held-out error of the outputs" in str(more.report)
    assert [p.requires_grad for p in more.model.parameters()] == [True] * 6
    assert all(p.grad is None for p in (*net.parameters(), *more.model.parameters()))


def test_every_eighth_batch_is_held_out(net):
    x = data(320)
    result = CurvatureIHT(net, 0.5, refine=1).run(list(x.split(20)))
    assert result.report["0"].columns == 280
    alone = CurvatureIHT(net, 0.5, refine=1).run(x[:100])
    assert alone.report["0"].columns == 100


def test_worse_rounds_are_taken_back(net, monkeypatch):
    x = data()
    once = CurvatureIHT(net, 0.5).run(list(x.split(40)), held_out=x)
    monkeypatch.setattr(module, "SHARE", 50.0)  # far too long steps
    result = CurvatureIHT(net, 0.5, refine=2).run(list(x.split(40)), held_out=x)
    assert result.report.best == 0
    for a, b in zip(once.model.parameters(), result.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_one_step_is_exact_for_one_linear_layer_along_its_direction():
    """With white inputs and a whole step, the conditioned gradient of a quadratic is Newton's: the error vanishes."""
    torch.manual_seed(0)
    dense = nn.Linear(6, 4).double()
    x = torch.linalg.qr(torch.randn(50, 6, dtype=torch.float64))[0]
    pruned = copy.deepcopy(dense)
    pruned.weight.data += 0.1 * torch.randn(4, 6)
    layers = select_layers(pruned, None, (), 0.5).layers
    batches = Batches(Calibration(x), None, None)
    refinement = Refinement(dense, pruned, layers, batches, batches)
    refinement.share = 1.0
    refinement.round()
    assert refinement.error() < 1e-10


def test_frozen_convolutions_and_shared_weights():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3, groups=2)
            self.twice = nn.Linear(4, 4)
            self.unread = nn.Linear(4, 2)

        def forward(self, x):
            x = self.conv(x).relu().mean((2, 3))
            return {
                "out": self.twice(self.twice(x).relu()),
                "number": torch.arange(3),
                "detached": self.unread(x).detach(),
            }

    torch.manual_seed(0)
    net = Net()
    net.conv.weight.requires_grad_(False)
    result = CurvatureIHT(net, 0.5, refine=2).run(list((torch.randn(64, 2, 6, 6) + 1).split(8)))
    assert min(result.report.rounds) <= result.report.rounds[0]
    assert not result.model.conv.weight.requires_grad
    assert int((result.model.conv.weight == 0).sum()) == 18


def test_what_cannot_be_refined_is_said(net):
    class Numbers(nn.Module):
        def __init__(self, detach: bool) -> None:
            super().__init__()
            self.body, self.detach = nn.Linear(12, 3), detach

        def forward(self, x):
            return self.body(x).detach() if self.detach else self.body(x).argmax(1)

    for detach, message in ((True, "do not depend"), (False, "no floating-point")):
        with pytest.raises(ValueError, match=message):
            CurvatureIHT(Numbers(detach), 0.5, refine=1).run(data(40))


def test_rounds_are_recorded(net, tmp_path, monkeypatch):
    batches = list(data().split(40))
    whole = CurvatureIHT(net, 0.6, refine=3).run(batches)

    class StopError(Exception):
        pass

    put = Progress.put

    def put_and_stop(self, key, *rest):
        put(self, key, *rest)
        if key == "round_02":
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "put", put_and_stop)
        with pytest.raises(StopError):
            CurvatureIHT(net, 0.6, refine=3, resume_dir=tmp_path).run(batches)
    resumed = CurvatureIHT(net, 0.6, refine=3, resume_dir=tmp_path).run(batches)
    assert resumed.report.rounds == whole.report.rounds
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
