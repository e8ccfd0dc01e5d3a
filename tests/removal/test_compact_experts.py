"""compact() on stacked experts: as many neurons go as add nothing in every expert, each expert's own."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from expert_models import FLIPPED, FORMS, TRANSFORMERS, Mixture, tokens
from torch import nn

import sparse_accel as sa
from sparse_accel.prune import find_widths

E, DIM, INNER = 3, 8, 12


def planted(form, counts, how="input", seed=0, **options):
    """A mixture so many of whose neurons are silent in each expert, and which."""
    torch.manual_seed(seed)
    model = Mixture(form, **options).eval()
    gone = [torch.randperm(INNER)[:count] for count in counts]
    with torch.no_grad():
        ups, downs = (w.mT if form in FLIPPED else w for w in (model.up, model.down))
        for e, own in enumerate(gone):
            if how == "input":
                downs[e][:, own] = 0
            else:
                ups[e][own] = 0
    return model, gone


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", ["input", "output"])
def test_silent_neurons_go_expert_by_expert(form, how):
    model, gone = planted(form, (8, 8, 8), how)
    x = torch.randn(30, DIM)
    result = sa.compact(model, x)
    torch.testing.assert_close(result.model(x), model(x))
    up = result.model.up.mT if form in FLIPPED else result.model.up
    assert tuple(up.shape) == (E, 4, DIM)
    for e, own in enumerate(gone):
        stay = [n for n in range(INNER) if n not in own.tolist()]
        assert torch.equal(up[e], (model.up.mT if form in FLIPPED else model.up)[e][stay])
    assert not [note for note in result.plan["notes"] if "add nothing" in note]


def test_the_expert_with_the_fewest_decides_and_what_stays_is_named():
    model, gone = planted("linear", (9, 5, 12))
    x = torch.randn(30, DIM)
    result = sa.compact(model, x)
    torch.testing.assert_close(result.model(x), model(x))
    assert tuple(result.model.down.shape) == (E, DIM, 8)  # 7 are left, rows of 16 bytes
    live = set(range(INNER)) - set(gone[1].tolist())
    assert live <= set(result.plan["tensors"]["down"]["keep"]["2"][1])
    (note,) = [note for note in result.plan["notes"] if "add nothing" in note]
    assert note.startswith("model (Mixture): 14 of 24 neurons left add nothing (58.3 %): every expert keeps equally")
    assert "expert 1 has only 5 such" in note
    untouched, _ = planted("linear", (9, 0, 9))
    whole = sa.compact(untouched, x)
    assert "down" not in whole.plan["tensors"]
    assert any("18 of 36 neurons left add nothing (50.0 %)" in note for note in whole.plan["notes"])


class Softmax(Mixture):
    """An expert's neurons share a softmax, so that none goes alone."""

    def one(self, expert, x):
        return (x @ self.up[expert].T).softmax(-1) @ self.down[expert].T


def test_zeros_in_stacks_that_are_not_understood_are_named():
    torch.manual_seed(0)
    model = Softmax("linear").eval()
    with torch.no_grad():
        model.down[0][:, [1, 4]] = 0
        model.down[2][:, 3] = 0
        model.down[1][5] = 0
    result = sa.compact(model, torch.randn(30, DIM))
    assert not result.plan["tensors"]
    share = 100 * model.down.numel() / sum(p.numel() for p in model.parameters())
    (note,) = [note for note in result.plan["notes"] if "of zeros stay" in note]
    assert note.startswith("down (Softmax): 1 rows and 3 columns of zeros stay")
    assert note.endswith(f": {share:.1f} % of the parameters")


class Shifted(nn.Module):
    """Gated experts; the activation of zero is not zero, on request, and there are biases."""

    def __init__(self, act) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.act = act
        self.gate, self.up = (nn.Parameter(torch.randn(E, INNER, DIM)) for _ in range(2))
        self.gate_bias = nn.Parameter(torch.randn(E, INNER))
        self.down, self.down_bias = nn.Parameter(torch.randn(E, DIM, INNER)), nn.Parameter(torch.randn(E, DIM))

    def forward(self, x):
        expert = (x[:, 0] > 0).long()  # the last one gets nothing
        out = torch.zeros_like(x)
        for e in range(E):
            own = x[expert == e]
            h = self.act(own @ self.gate[e].T + self.gate_bias[e]) * (own @ self.up[e].T)
            out[expert == e] = h @ self.down[e].T + self.down_bias[e]
        return out


@pytest.mark.parametrize(
    "act, zeros, left",
    [
        (torch.relu, ("gate", "bias"), 4),
        (torch.sigmoid, ("gate", "bias"), INNER),  # half of the other factor
        (torch.relu, ("gate",), INNER),  # what the bias makes of it
        (torch.relu, ("gate", "negative"), 4),
        (torch.sigmoid, ("up",), 4),
        (torch.sigmoid, ("gate", "up"), 4),
    ],
)
def test_rows_of_zeros_are_tried_also_in_experts_that_the_example_does_not_reach(act, zeros, left):
    model = Shifted(act).eval()
    with torch.no_grad():
        for e in range(E):
            gone = torch.randperm(INNER)[:8]
            if "gate" in zeros:
                model.gate[e][gone] = 0
            if "up" in zeros:
                model.up[e][gone] = 0
            model.gate_bias[e][gone] = {"bias": 0.0, "negative": -1.0}.get(zeros[-1], 0.5)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(40, DIM)
    result = sa.compact(model, x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert result.model.down.shape[2] == result.model.gate.shape[1] == result.model.gate_bias.shape[1] == left
    assert result.model.down_bias.shape == model.down_bias.shape
    torch.testing.assert_close(result.model(x), model(x))
    if left < INNER:  # the expert that got nothing computes the same as before
        with torch.no_grad():
            small, dense = (
                m.act(x @ m.gate[2].T + m.gate_bias[2]) * (x @ m.up[2].T) @ m.down[2].T for m in (result.model, model)
            )
        torch.testing.assert_close(small, dense)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_after_group_lasso(name, tmp_path):
    """RMDA on groups of an expert's inputs leaves exact zeros, which go; the optimizer and a checkpoint go along."""
    pytest.importorskip("transformers", reason="the test group is not installed")
    model = TRANSFORMERS[name]()
    penalty = sa.GroupLasso(1e-3, by="input")
    optimizer = sa.RMDA(sa.param_groups(model, penalty, lr=0.01, momentum=0.1))
    loss = model(**tokens()[0]).logits.square().mean()
    loss.backward()
    optimizer.step()
    (width,) = [width for width in find_widths(model, tokens()[0]) if width.kind == "experts"]
    reader = model.get_parameter(width.stack.reader)
    dim = width.stack.axes[width.stack.reader][0]
    with torch.no_grad():
        for e in range(width.stack.experts):
            reader[e].index_fill_(dim - 1, torch.randperm(width.units)[: width.units - 4], 0)
    result = sa.compact(model, tokens()[0], optimizer)
    assert result.model.get_parameter(width.stack.reader).shape[dim] == 4
    with torch.no_grad():
        torch.testing.assert_close(result.model(**tokens()[0]).logits, model(**tokens()[0]).logits)
    result.model(**tokens()[0]).logits.square().mean().backward()
    result.optimizer.step()
    state = result.optimizer.state[result.model.get_parameter(width.stack.reader)]
    assert all(t.shape[dim] == 4 for t in state.values() if isinstance(t, torch.Tensor) and t.dim() == 3)
    result = sa.compact(model, tokens()[0])
    loaded = sa.load(sa.save(result, tmp_path), TRANSFORMERS[name]())
    with torch.no_grad():
        assert torch.equal(loaded(**tokens()[0]).logits, result.model(**tokens()[0]).logits)


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda keep: keep.pop(), "expected as many indices for each of 3 slices"),
        (lambda keep: keep[0].pop(), "expected as many indices for each of 3 slices"),
        (lambda keep: keep[1].__setitem__(0, 99), r"down\.keep\.2\.1\.0: expected a number from 0 to 11, got 99"),
        (lambda keep: keep.__setitem__(2, 5), r"down\.keep\.2\.2: expected an array, got 5"),
        (lambda keep: keep[0].reverse(), r"down\.keep\.2\.0: expected one or more increasing indices"),
    ],
)
def test_edited_plans_are_refused(edit, words, tmp_path):
    model, _ = planted("linear", (8, 8, 8))
    folder = sa.save(sa.compact(model, torch.randn(30, DIM)), tmp_path)
    plan = json.loads((folder / "plan.json").read_text())
    edit(plan["tensors"]["down"]["keep"]["2"])
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(sa.CheckpointError, match=words):
        sa.load(folder, model)
