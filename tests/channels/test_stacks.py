"""Stacked experts are found by what their module computes, whatever its code and its numbers look like."""

from __future__ import annotations

import pytest
import torch
from expert_models import FLIPPED, FORMS, TRANSFORMERS, Mixture, tokens
from torch import Tensor, nn

from sparse_accel.channels.runs import Examples
from sparse_accel.channels.stacks import find_stacks
from sparse_accel.prune import ISpaSP, find_widths
from sparse_accel.removal.compact import UnsupportedModelError, compact

E, IN, N = 3, 8, 12


class Layers(nn.Module):
    """All experts on all inputs; gate and up apart, or together with rows side by side or a half apart."""

    def __init__(self, form: str, *, bias: bool = False) -> None:
        super().__init__()
        self.form = form
        self.reads = nn.Parameter(torch.randn(E, IN, N))
        if form == "apart":
            self.one, self.other = nn.Parameter(torch.randn(E, N, IN)), nn.Parameter(torch.randn(E, N, IN))
        else:
            self.both = nn.Parameter(torch.randn(E, 2 * N, IN))
        self.shift = nn.Parameter(torch.zeros(E, 2 * N)) if bias else None

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        y = torch.zeros_like(x)
        for e in range(E):
            if self.form == "apart":
                gate, up = x @ self.one[e].T, x @ self.other[e].T
            else:
                h = x @ self.both[e].T + (0 if self.shift is None else self.shift[e])
                gate, up = (h[..., ::2], h[..., 1::2]) if self.form == "side by side" else h.chunk(2, -1)
            y = y + scale * (torch.sigmoid(gate) * up) @ self.reads[e].T
        return y


class Coupled(Layers):
    """The neurons of an expert share a softmax: none goes alone."""

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return sum((x @ self.one[e].T + x @ self.other[e].T).softmax(-1) @ self.reads[e].T for e in range(E)) * scale


class Fixed(Layers):
    """Asks for a size by a number in its code."""

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return sum((x @ self.one[e].T + x @ self.other[e].T).view(-1, N) @ self.reads[e].T for e in range(E)) * scale


def stacks(model, x):
    return find_stacks(model.eval(), Examples(x), {})


@pytest.mark.parametrize("form", FORMS)
def test_every_way_to_write_a_mixture(form):
    (stack,) = stacks(Mixture(form), torch.randn(20, IN))
    assert (stack.module, stack.experts, stack.units, stack.reader) == ("", E, N, "down")
    dims = {name: dim for name, (dim, _) in stack.axes.items()}
    assert dims == ({"up": 2, "down": 1} if form in FLIPPED else {"up": 1, "down": 2})
    assert stack.granule == 4


@pytest.mark.parametrize("form", ["apart", "side by side", "a half apart"])
@pytest.mark.parametrize("bias", [False, True])
def test_entries_of_a_neuron(form, bias):
    bias = bias and form != "apart"
    model = Layers(form, bias=bias)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (stack,) = stacks(model, torch.randn(5, IN))
    expected = {
        "apart": {"one": [[0], [1]], "other": [[0], [1]]},
        "side by side": {"both": [[0, 1], [2, 3]]},
        "a half apart": {"both": [[0, N], [1, N + 1]]},
    }[form]
    if bias:  # of zeros, which do not tell
        expected["shift"] = expected["both"]
    assert {name: table[:2].tolist() for name, (_, table) in stack.axes.items() if name != "reads"} == expected
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e3])
def test_the_numbers_in_the_weights_and_inputs_do_not_matter(scale):
    model = Layers("side by side", bias=True)
    with torch.no_grad():
        model.both.mul_(scale)
        model.reads[:, :, 1:] = 0
    x = torch.randn(6, IN) * (scale or 1.0)
    (stack,) = stacks(model, x)
    assert stack.axes["both"][1][1].tolist() == [2, 3]


def test_a_pass_in_train_mode_before_changes_nothing():
    class Dropped(Layers):
        def forward(self, x, *, scale=1.0):
            hidden = [torch.dropout(x @ self.one[e].T + x @ self.other[e].T, 0.5, self.training) for e in range(E)]
            return scale * sum(h @ self.reads[e].T for e, h in enumerate(hidden))

    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts, self.extra = Dropped("apart"), nn.Linear(IN, 2)

        def forward(self, x):
            x = self.experts(x)
            return (x, self.extra(x)) if self.training else x

    model = Auxiliary().eval()
    assert [width.kind for width in find_widths(model, torch.randn(5, IN), unvisited="ignore")] == ["experts"]


def test_indices_that_stay():
    (stack,) = stacks(Layers("a half apart"), torch.randn(5, IN))
    kept = torch.tensor([[0, 2], [1, 3], [4, 5]])
    assert stack.indices("reads", kept).tolist() == kept.tolist()
    assert stack.indices("both", kept).tolist() == [[0, 2, 12, 14], [1, 3, 13, 15], [4, 5, 16, 17]]


@pytest.mark.parametrize("model", [Coupled("apart"), Fixed("apart")], ids=["coupled", "fixed sizes"])
def test_what_cannot_go_is_not_found(model):
    assert stacks(model, torch.randn(5, IN)) == []


def test_other_parameters_of_three_dimensions_are_no_experts():
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(1, 4, IN)), nn.Parameter(torch.randn(1, 4, IN))
            self.c, self.d = nn.Parameter(torch.randn(4, 2, IN)), nn.Parameter(torch.randn(4, 2, IN))

        def forward(self, x):
            return x + self.a * self.b + (self.c * self.d).amax(1)

    assert stacks(Places(), torch.randn(3, 4, IN)) == []
    shared = nn.Sequential(Layers("apart"), Layers("apart"))
    shared[1].reads = shared[0].reads
    assert stacks(shared, torch.randn(3, IN)) == []


def test_several_modules_in_the_order_of_their_calls():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first, self.unused = Layers("apart"), Layers("a half apart"), Layers("apart")
            self.between = nn.Sequential(nn.Linear(IN, 6), nn.ReLU(), nn.Linear(6, IN))

        def forward(self, x):
            return self.last(self.between(self.first(x, scale=2.0)))

    widths = find_widths(Both(), torch.randn(5, IN), unvisited="ignore")
    assert [(width.name, width.kind) for width in widths] == [
        ("first", "experts"),
        ("between.0", "channels"),
        ("last", "experts"),
    ]
    with pytest.raises(UnsupportedModelError):
        find_widths(Both(), torch.randn(5, IN + 1))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name):
    pytest.importorskip("transformers", reason="the test group is not installed")
    (width,) = [width for width in find_widths(TRANSFORMERS[name](), tokens()[0]) if width.kind == "experts"]
    gate = next(table for key, (_, table) in width.stack.axes.items() if key.endswith("gate_up_proj"))
    units = 24 if name == "mixtral" else 12
    assert gate[1].tolist() == ([2, 3] if name == "gpt_oss" else [1, units + 1])
    assert (width.units, width.granule) == (units, 4)
    assert (width.stack.bias is not None) == (name == "gpt_oss")


class Normed(Layers):
    """Divides the neurons by their norm: zeros in what makes some have the effect of taking them off, but no reader."""

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        y = torch.zeros_like(x)
        for e in range(E):
            h = torch.relu(x @ self.one[e].T) * (x @ self.other[e].T)
            y = y + scale * (h / (h.norm(dim=-1, keepdim=True) + 1e-3)) @ self.reads[e].T
        return y


def test_a_matrix_that_makes_neurons_is_no_reader():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, IN), Normed("apart"), nn.Linear(IN, 2)).eval()
    x = torch.randn(20, 4)
    assert stacks(model, x) == []
    with pytest.raises(UnsupportedModelError, match=r"1\.reads \(Normed\): left whole: .* % of the weights"):
        ISpaSP(model, x, 0.5).run(x)
    model[1].one.data[:, 0] = 0
    notes = compact(model, x).plan["notes"]
    assert any("1.one (Normed): 3 rows of zeros stay" in note for note in notes), notes
