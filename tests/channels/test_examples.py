"""Several examples and methods: one analysis, all outputs compared; what none of them reaches is named and kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse_accel as sa
from sparse_accel.channels.runs import Examples, run_model

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Tasks(nn.Module):
    """A trunk and two heads; head "b" reads what "a" leaves, and the other way round."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.trunk, self.middle = nn.Linear(4, 8), nn.Linear(8, 6)
        self.heads = nn.ModuleDict({"a": nn.Linear(6, 2, bias), "b": nn.Linear(6, 3, bias)})

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(self.trunk(x))

    def forward(self, x: Tensor, task: str = "a") -> Tensor:
        return self.heads[task](torch.relu(self.middle(self.encode(x))))


def tasks(**options: Any) -> Tasks:
    torch.manual_seed(0)
    net = Tasks(**options)
    with torch.no_grad():
        net.heads["a"].weight[:, [0, 1, 2]] = 0
        net.heads["b"].weight[:, [2, 3]] = 0
        net.middle.weight[:, [1, 5]] = 0
    return net


def assert_same(dense: Tasks, small: Tasks) -> None:
    for task in dense.heads:
        torch.testing.assert_close(small(3 * X, task), dense(3 * X, task))


BOTH = [(X,), {"x": X, "task": "b"}]


def test_several_examples_are_followed_into_one_graph() -> None:
    net = tasks()
    result = sa.compact(net, BOTH)
    assert (result.model.middle.in_features, result.model.middle.out_features) == (6, 5)
    assert not result.plan["notes"]
    assert_same(net, result.model)
    widths = sa.prune.find_widths(net, BOTH)
    assert [consumer.calls for width in widths for consumer in width.consumers] == [1, 1, 1]
    assert all(width.refittable for width in widths)
    removed = sa.prune.remove_units(net, BOTH, {"middle": [0, 1, 5], "trunk": [0, 2, 3]})
    assert removed.model.heads["b"].in_features == 3


@pytest.mark.parametrize("bias", [True, False])
def test_constants_fold_once_in_several_runs(bias: bool) -> None:
    net = tasks(bias=bias)
    with torch.no_grad():
        net.middle.weight[4] = 0
        net.middle.bias[4] = 0.75
        net.trunk.weight[3] = 0
        net.trunk.bias[3] = 0.5
    result = sa.compact(net, [(X,), (X[:3], "b"), (X[:1], "a")])
    assert (result.model.trunk.out_features, result.model.middle.out_features) == (5, 4)
    assert_same(net, result.model)


def test_a_constant_that_differs_between_examples_is_not_folded() -> None:
    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor, level: float) -> Tensor:
            return self.b(torch.relu(self.a(x)) * level)

    torch.manual_seed(0)
    net = Levels()
    net.a.weight.data[:2] = 0
    net.a.bias.data[:2] = torch.tensor([1.0, -1.0])
    assert sa.compact(net, [(X, 1.0), (X, 1.0)]).model.a.out_features == 4
    small = sa.compact(net, [(X, 1.0), (X, 2.0)]).model
    assert small.a.out_features == 5
    torch.testing.assert_close(small(X, 3.0), net(X, 3.0))


def test_the_running_mean_takes_a_constant_in_several_runs() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)).eval()
    net[0].weight.data[2] = 0
    net[0].bias.data[2] = 1.0
    result = sa.compact(net, [(IMAGES,), (IMAGES[:1],)])
    assert result.model[0].out_channels == 5
    assert not result.plan["created"]
    torch.testing.assert_close(result.model(IMAGES), net(IMAGES))


def test_methods_beside_forward() -> None:
    net = tasks()
    net.heads["b"].weight.data[:, [0, 1]] = 0
    assert sa.compact(net, BOTH).model.trunk.out_features == 6
    for options in (
        {"methods": ["forward", "encode"]},
        {"methods": ["encode", lambda model, x: model(x, "a")]},
    ):
        result = sa.compact(net, X, **options)
        assert result.model.trunk.out_features == 8  # encode() shows it
        torch.testing.assert_close(result.model.encode(X), net.encode(X))
    result = sa.compact(net, [*BOTH, (X[:, :4],)], methods=["forward", "forward", "trunk"])
    assert result.model.trunk.out_features == 8
    assert result.model.middle.out_features < 6
    assert not any(width.name == "trunk" for width in sa.prune.find_widths(net, X, methods=["forward", "encode"]))
    with pytest.raises(ValueError, match="trunk"):
        sa.prune.remove_units(net, X, {"trunk": [0]}, methods=["forward", "encode"])


def test_outputs_of_all_examples_are_compared() -> None:
    class Stubborn(Tasks):
        def forward(self, x: Tensor, task: str = "a") -> Tensor:
            y = super().forward(x, task)
            return y if task == "a" else y + self.middle.out_features

    torch.manual_seed(0)
    net = Stubborn()
    for head in net.heads.values():
        head.weight.data[:, :2] = 0
    sa.compact(net, X, unvisited="ignore")
    with pytest.raises(sa.OutputMismatchError, match="output 1: "):
        sa.compact(net, BOTH)


class Unseen(nn.Module):
    """A head that a flag turns on and that reads a width of the trunk in one of several ways."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 7, 3, padding=1), nn.Conv2d(7, 5, 1)
        extra: dict[str, nn.Module] = {
            "reader": nn.Conv2d(6, 2, 1),
            "flattened": nn.Linear(6 * 64, 2),
            "grouped": nn.Conv2d(6, 6, 1, groups=3),
            "norm": nn.BatchNorm2d(6),
            "bare_norm": nn.BatchNorm2d(6, affine=False),
            "adds": nn.Conv2d(3, 6, 1),
        }
        self.extra = extra.get(kind)
        if kind == "parameter":
            self.scale = nn.Parameter(torch.ones(6, 1, 1))

    def forward(self, x: Tensor, more: bool = False) -> Tensor:
        hidden = torch.relu(self.a(x))
        if more and self.kind == "parameter":
            hidden = hidden * self.scale
        if more and self.kind == "adds":
            hidden = hidden + self.extra(x)
        y = self.c(torch.relu(self.b(hidden)))
        if more and self.kind in ("reader", "grouped", "norm", "bare_norm"):
            y = y.sum() + self.extra(hidden)
        if more and self.kind == "flattened":
            y = self.extra(hidden.flatten(1))
        return y


def unseen(kind: str) -> Unseen:
    torch.manual_seed(0)
    net = Unseen(kind).eval()
    net.b.weight.data[:, ::2] = 0
    net.c.weight.data[:, ::2] = 0
    return net


KINDS = ["reader", "flattened", "grouped", "norm", "bare_norm", "adds", "parameter"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_no_example_reaches_is_named_and_what_it_may_read_is_kept(kind: str) -> None:
    net = unseen(kind)
    result = sa.compact(net, IMAGES)
    assert (result.model.a.out_channels, result.model.b.out_channels) == (6, 3)
    torch.testing.assert_close(result.model(IMAGES, more=True), net(IMAGES, more=True))
    notes = "\n".join(result.plan["notes"])
    named = set(notes.replace(",", " ").replace(":", " ").split())
    for name, _ in net.named_parameters():
        assert (name in named) == (name.startswith("extra") or name == "scale")
    assert "6 channels are kept" in notes
    assert [width.name for width in sa.prune.find_widths(net, IMAGES)] == ["b"]
    assert notes == "\n".join(sa.prune.find_widths(net, IMAGES).notes)


@pytest.mark.parametrize("kind", ["reader", "flattened", "parameter"])
def test_the_user_may_say_otherwise(kind: str) -> None:
    net = unseen(kind)
    result = sa.compact(net, IMAGES, unvisited="ignore")
    assert result.model.a.out_channels == 3
    assert ("scale" if kind == "parameter" else "extra.weight") in "\n".join(result.plan["notes"])
    assert [w.name for w in sa.prune.find_widths(net, IMAGES, unvisited="ignore")] == ["a", "b"]
    sa.prune.remove_units(net, IMAGES, {"a": [0, 1]}, unvisited="ignore")


@pytest.mark.parametrize("kind", KINDS)
def test_with_an_example_for_it_nothing_is_kept_in_vain(kind: str) -> None:
    net = unseen(kind)
    result = sa.compact(net, [(IMAGES,), (IMAGES, True)])
    assert not result.plan["notes"]
    torch.testing.assert_close(result.model(IMAGES, more=True), net(IMAGES, more=True))
    if kind == "parameter":
        assert result.model.scale.shape == (3, 1, 1)


class Mixture(nn.Module):
    """Experts, of which the first example reaches one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 5), nn.Linear(5, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 5)) for _ in range(3))

    def forward(self, x: Tensor, expert: int = 0) -> Tensor:
        return self.leave(torch.relu(self.experts[expert](self.enter(x))))


def test_inner_widths_of_unvisited_twins_keep_nothing() -> None:
    net = Mixture()
    widths = sa.prune.find_widths(net, X)
    assert [width.name for width in widths] == ["experts.0.0"]  # what the others read and make, 5, is kept
    small = sa.prune.remove_units(net, X, {"experts.0.0": [0, 1, 2]}).model
    for expert in range(3):
        assert small(X, expert).shape == (6, 2)


def test_ispasp_with_several_examples_and_methods() -> None:
    net = tasks()

    class Both(Tasks):
        def forward(self, x: Tensor, task: str = "both") -> Any:
            hidden = torch.relu(self.middle(self.encode(x)))
            return [head(hidden) for head in self.heads.values()]

    both = Both()
    both.load_state_dict(net.state_dict())
    batches = torch.randn(64, 4, generator=torch.Generator().manual_seed(2))
    free = sa.prune.ISpaSP(both, [(X,), (X[:2],)], keep=0.5).run(batches)
    assert (free.model.trunk.out_features, free.model.middle.out_features) == (4, 3)
    shown = sa.prune.ISpaSP(both, X, keep=0.5, methods=["forward", "encode"], budget={"flops": 0.9}).run(batches)
    assert shown.model.trunk.out_features == 8
    assert shown.model.middle.out_features < 6
    torch.testing.assert_close(shown.model.encode(X), both.encode(X))


@pytest.mark.parametrize(
    "inputs, options, message",
    [
        (X, {"methods": ["no_such"]}, "methods: Tasks has no method 'no_such'"),
        (X, {"methods": "encode"}, "methods: expected a list of names or functions, got 'encode'"),
        (X, {"methods": [3]}, "methods: expected a list of names or functions"),
        (X, {"methods": [Tasks().encode]}, "methods: expected the name of a method, got what is bound to a Tasks"),
        (X, {"methods": [nn.ReLU()]}, "methods: expected the name of a method, got what is bound to a ReLU"),
        (X, {"methods": []}, "methods: expected one for each of the 1 examples, got 0"),
        (BOTH, {"methods": ["encode"]}, "methods: expected one for each of the 2 examples, got 1"),
        (X, {"unvisited": "drop"}, "unvisited: expected 'keep' or 'ignore', got 'drop'"),
        (Examples(X), {"methods": ["encode"]}, "methods: expected in the Examples alone"),
    ],
)
def test_what_is_refused(inputs: Any, options: dict[str, Any], message: str) -> None:
    net = tasks()
    for call in (
        lambda: sa.compact(net, inputs, **options),
        lambda: sa.prune.find_widths(net, inputs, **options),
        lambda: sa.prune.remove_units(net, inputs, {}, **options),
        lambda: sa.prune.ISpaSP(net, inputs, **options),
    ):
        with pytest.raises((ValueError, TypeError), match=message.replace("(", r"\(")):
            call()


def test_forms_of_examples() -> None:
    net = nn.Bilinear(4, 4, 2)
    assert len(Examples([X, X]).runs) == 1  # a list of tensors: positional inputs
    assert run_model(net, [X, X]).shape == (6, 2)
    assert [y.shape for y in run_model(net, Examples([(X, X), {"input1": X[:2], "input2": X[:2]}]))] == [(6, 2), (2, 2)]
    assert sa.compact(net, sa.Examples([(X, X)])).report.macs == sa.compact(net, [(X, X), (X[:2], X[:2])]).report.macs
