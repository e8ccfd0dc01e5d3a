"""compact() on response normalization: what is zero in front of it goes, and its weight makes up for the mean."""

from __future__ import annotations

import copy

import pytest
import torch
from norm_models import convnext, pictures
from torch.nn import functional as F

import sparse_accel as sa

X = pictures()
GONE = [1, 2, 5, 7, 8, 11, 15]
STAY = [unit for unit in range(16) if unit not in GONE]


def planted(how, **options):
    model = convnext(blocks=1, **options)
    with torch.no_grad():
        if how == "rows":
            model[1].expand.weight[GONE] = 0
            model[1].expand.bias[GONE] = 0
        else:
            model[1].project.weight[:, GONE] = 0
    return model


@pytest.mark.parametrize("norm", ["last", "first"])
@pytest.mark.parametrize("act", [F.gelu, F.relu, torch.tanh])
def test_zeros_go_and_the_mean_is_made_up_for(norm, act, tmp_path):
    model = planted("rows", norm=norm, act=act)
    result = sa.compact(model, X[:4])
    small = result.model[1]
    assert small.norm.weight.numel() == small.norm.bias.numel() == small.expand.weight.shape[0] == len(STAY)
    torch.testing.assert_close(small.norm.weight.flatten(), model[1].norm.weight.flatten()[STAY] * 16 / len(STAY))
    torch.testing.assert_close(result.model(X), model(X), rtol=1e-4, atol=1e-4)
    # what the norm's shift made of the zeros is in the next bias
    shift = model[1].project.weight.flatten(1)[:, GONE] @ model[1].norm.bias.flatten()[GONE]
    torch.testing.assert_close(small.project.bias, model[1].project.bias + shift)
    assert any(note.startswith("1.norm: divides by the mean over 9 of 16 channels") for note in result.plan["notes"])
    loaded = sa.load(sa.save(result, tmp_path), model)
    assert torch.equal(loaded(X), result.model(X))


def test_a_pass_in_train_mode_does_not_count():
    class Auxiliary(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.extra = planted("rows"), torch.nn.Linear(4, 2)

        def forward(self, x):
            x = self.body(x)
            return (x, self.extra(x)) if self.training else x

    model = Auxiliary().eval()
    result = sa.compact(model, X[:4])
    assert result.model.body[1].norm.weight.numel() == len(STAY)
    torch.testing.assert_close(result.model(X), model(X), rtol=1e-4, atol=1e-4)


def test_what_nobody_reads_still_counts_in_the_mean():
    model = planted("columns")
    result = sa.compact(model, X[:4])
    assert result.model[1].norm.weight.numel() == 16
    torch.testing.assert_close(result.model(X), model(X))


def test_zeros_of_an_activation_that_is_not_zero_there_stay():
    model = planted("rows", act=torch.sigmoid)
    result = sa.compact(model, X[:4])
    assert result.model[1].norm.weight.numel() == 16
    torch.testing.assert_close(result.model(X), model(X))


def test_with_an_optimizer_they_stay_and_are_named():
    model = planted("rows")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    result = sa.compact(model, X[:4], optimizer)
    assert result.model[1].norm.weight.numel() == 16
    (note,) = [note for note in result.plan["notes"] if note.startswith("1.norm")]
    assert note == (
        "1.norm: 7 of 16 channels are zero, and stay: the mean over the others needs a factor in 1.norm.weight, "
        "which would give the optimizer other steps"
    )


def test_where_epsilon_counts_they_stay_and_are_named():
    model = planted("rows")
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
        model[0].bias.mul_(1e-6)
        model[1].expand.bias.zero_()
        model[1].depthwise.bias.zero_()
        model[1].norm.weight.mul_(1e6)
        model[-1].weight.mul_(1e3)
    before = copy.deepcopy(model.state_dict())
    result = sa.compact(model, X[:4])
    assert result.model[1].norm.weight.numel() == 16
    torch.testing.assert_close(result.model(X), model(X))
    assert any("is not exact enough beside the epsilon of the norm" in note for note in result.plan["notes"])
    assert "1.norm.weight" not in result.plan["scaled"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
