"""ISpaSP on mixtures whose experts are stacks: what it can prune is pruned, the stacks stay and are named."""

from __future__ import annotations

import pytest
import torch
from expert_models import TRANSFORMERS, Mixture, mixtral, tokens
from torch import nn

from sparse_accel.prune import ISpaSP
from sparse_accel.prune.structured.report import left_stacks
from sparse_accel.removal.compact import UnsupportedModelError


def shares(notes):
    return {
        note.split(" (")[0]: float(note.split(": ")[-1].split(" %")[0]) for note in notes if "left whole: units" in note
    }


@pytest.mark.parametrize("form", ["linear", "bmm"])
def test_the_layers_around_are_pruned_and_the_stacks_are_named(form):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), Mixture(form)).eval()
    x = torch.randn(64, 6)
    result = ISpaSP(net, x[:4], 0.5).run(x)
    assert result.model[0].out_features == 8
    for name in ("up", "down"):
        assert torch.equal(getattr(result.model[3], name), getattr(net[3], name))
    total = sum(p.numel() for p in net.parameters() if p.dim() >= 2)
    found = shares(result.report.notes)
    assert set(found) == {"3.up", "3.down"}
    assert found["3.up"] == pytest.approx(100 * net[3].up.numel() / total, abs=0.1)
    assert "note: 3.up (Mixture): left whole" in str(result.report)
    assert bool(torch.isfinite(result.model(x)).all())


def test_transformers():
    model = TRANSFORMERS["qwen2"]()  # with a shared expert of linear layers
    result = ISpaSP(model, tokens()[0], 0.5).run(tokens())
    assert result.model.model.layers[0].mlp.shared_expert.down_proj.in_features == 10
    found = shares(result.report.notes)
    assert {name.rpartition(".")[2] for name in found} == {"gate_up_proj", "down_proj"}


def test_where_nothing_is_left_to_prune_the_stacks_are_said():
    with pytest.raises(
        UnsupportedModelError, match=r"experts\.gate_up_proj \(MixtralExperts\): left whole.*of the weights"
    ):
        ISpaSP(mixtral(), tokens()[0], 0.5).run(tokens())


def test_convolutions_are_no_stacks():
    assert left_stacks(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose1d(4, 2, 3), nn.Linear(2, 2))) == []
