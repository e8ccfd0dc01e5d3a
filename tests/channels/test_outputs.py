"""What leaves a model is found in whatever it is packed in, stays as it is and is compared; or it is refused."""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict, UserDict, deque, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import sparse_accel as sa
from sparse_accel.channels.containers import output_leaves, output_tensors, tensors_inside

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
Pair = namedtuple("Pair", "first second")


class Plain:
    def __init__(self, hidden: Tensor) -> None:
        self.hidden, self.name, self.me = hidden, "plain", self


class Slotted:
    __slots__ = ("__hidden", "never")

    def __init__(self, hidden: Tensor) -> None:
        self.__hidden = hidden


class SlottedChild(Slotted):
    __slots__ = ("more",)


@dataclass
class Record:
    label: str
    hidden: Tensor


class Listed(list[Any]):
    pass


class Registered:
    """Shows its tensors to torch alone: as an object it would be a bare buffer of C code."""

    __slots__ = ("held",)


def registered(hidden: Tensor) -> Registered:
    made = Registered()
    made.held = hidden
    return made


pytree.register_pytree_node(Registered, lambda item: ([item.held], None), lambda items, _: registered(items[0]))


def later(hidden: Tensor) -> Iterator[Tensor]:
    yield hidden.sum()
    yield hidden


def cyclic(hidden: Tensor) -> Any:
    items: list[Any] = [hidden]
    items.append({"again": items})
    return items


def listed(hidden: Tensor) -> Listed:
    made = Listed()
    made.hidden = hidden  # type: ignore[attr-defined]
    return made


KEPT: list[Tensor] = []


def remembered(hidden: Tensor) -> Any:
    KEPT[:] = [hidden]
    return weakref.ref(hidden)


def scaled(hidden: Tensor, by: float) -> Tensor:
    return hidden * by


WRAP: dict[str, Callable[[Tensor], Any]] = {
    "object": Plain,
    "namespace": lambda h: SimpleNamespace(a=SimpleNamespace(b=h)),
    "slots": Slotted,
    "inherited_slots": SlottedChild,
    "deque": lambda h: deque([h]),
    "generator": later,
    "nested_generator": lambda h: {"all": (x for x in (h,))},
    "object_with_generator": lambda h: SimpleNamespace(items=later(h)),
    "map": lambda h: map(torch.neg, h),
    "namedtuple": lambda h: Pair(1, h),
    "dataclass": lambda h: Record("a", h),
    "user_dict": lambda h: UserDict(h=h),
    "proxy": lambda h: MappingProxyType({"h": h}),
    "ordered": lambda h: OrderedDict(h=(h,)),
    "key": lambda h: {h: "value"},
    "values_view": lambda h: {"h": h}.values(),
    "set": lambda h: {h},
    "list_with_attribute": listed,
    "registered": registered,
    "closure": lambda h: lambda: h,
    "partial": lambda h: functools.partial(scaled, h, by=2.0),
    "bound_method": lambda h: h.sum,
    "weak": remembered,
    "exception": lambda h: ValueError("odd", h),
    "cyclic": cyclic,
    "distribution": lambda h: torch.distributions.Normal(h, 1.0),
    "array": lambda h: h.numpy(),
    "array_of_objects": lambda h: np.array([None, Plain(h)], dtype=object),
    "numbers": lambda h: [h.tolist()],
    "size": lambda h: h.shape,
    "sparse": lambda h: h.to_sparse(),
}


class Net(nn.Module):
    """A result, and beside it the hidden layer, packed."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        hidden = torch.relu(self.a(x))
        return self.b(hidden), self.wrap(hidden)


def half_read(wrap: Callable[[Tensor], Any] = lambda h: None) -> Net:
    torch.manual_seed(1)
    net = Net(wrap)
    net.b.weight.data[:, ::2] = 0
    return net


@pytest.mark.parametrize("name", WRAP)
def test_what_leaves_the_model_stays(name: str) -> None:
    net = half_read(WRAP[name])
    result = sa.compact(net, X)
    assert result.model.a.out_features == 6
    assert not [width for width in sa.prune.find_widths(net, X) if width.name == "a"]


def test_without_it_the_layer_is_cut() -> None:
    assert sa.compact(half_read(), X).model.a.out_features == 3
    assert (
        sa.compact(half_read(lambda h: SimpleNamespace(size=6, dtype=h.dtype, f=torch.relu)), X).model.a.out_features
        == 3
    )


@pytest.mark.parametrize("name", ["namespace", "slots", "deque", "generator", "registered", "closure", "array"])
def test_what_leaves_the_model_is_compared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is another one once it is cut: the difference is seen in the packed tensor."""

    class Odd(Net):
        def forward(self, x: Tensor) -> Any:
            shown = torch.full((2,), float(self.a.out_features))
            return self.b(torch.relu(self.a(x))), self.wrap(shown)

    torch.manual_seed(1)
    net = Odd(WRAP[name])
    net.b.weight.data[:, ::2] = 0
    with pytest.raises(sa.OutputMismatchError, match="difference"):
        sa.compact(net, X)
    with pytest.raises(sa.OutputMismatchError, match="difference"):
        sa.prune.remove_units(net, X, {"a": [0, 1]})


def test_activations_that_a_module_keeps_have_left_it() -> None:
    class Keeps(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = SimpleNamespace(hidden=torch.relu(self.a(x)))
            return self.b(self.seen.hidden)

    torch.manual_seed(1)
    net = Keeps(lambda h: None)
    net.b.weight.data[:, ::2] = 0
    result = sa.compact(net, X)
    assert result.model.a.out_features == 6
    assert "model (Keeps): seen holds what the forward pass made" in result.plan["notes"][0]
    net(X)  # an old one there changes nothing
    net.seen.hidden = net.seen.hidden.detach()
    assert sa.compact(net, X).model.a.out_features == 6


@pytest.mark.parametrize(
    "wrap, name",
    [
        (lambda h: h.untyped_storage(), "UntypedStorage"),
        (lambda h: SimpleNamespace(inside=[torch.futures.Future()]), "torch.jit.Future"),
        (lambda h: {h, h + 1}, "set of tensors"),
        (lambda h: count(), "itertools.count of more than"),
    ],
)
def test_what_cannot_be_seen_through_is_refused_by_name(wrap: Callable[[Tensor], Any], name: str) -> None:
    net = half_read(wrap)
    for call in (
        lambda: sa.compact(net, X),
        lambda: sa.prune.find_widths(net, X),
        lambda: sa.prune.remove_units(net, X, {}),
        lambda: sa.prune.ISpaSP(net, X).run(X),
    ):
        with pytest.raises(sa.UnsupportedModelError, match=name):
            call()


def test_hugging_face_output_and_cache() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.arange(6)[None]
    widths = {width.kind: width for width in sa.prune.find_widths(model, {"input_ids": ids})}
    assert set(widths) == {"channels", "heads"}  # the cache is the model's own memory: heads may go from it
    shown = sa.prune.find_widths(model, {"input_ids": ids, "output_attentions": True, "use_cache": False})
    assert shown is not None


def test_order_and_inputs() -> None:
    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    assert [len(t) for t in output_tensors({"x": [a, Plain(b)], "y": (c, a)})] == [1, 2, 3, 1]
    assert output_leaves([1, 2.5, "s", None, np.float32(3), (n for n in (4,))]) == [1, 2.5, 3, 4]
    iterator = iter([a])
    assert not list(tensors_inside([iterator, torch.futures.Future()]))
    assert next(iterator) is a  # inputs are not used up
    assert [len(t) for t in tensors_inside(SimpleNamespace(batch=deque([b])))] == [2]


class Batch:
    def __init__(self, x: Tensor) -> None:
        self.x = x


def test_inputs_in_an_object() -> None:
    class TakesObject(Net):
        def forward(self, batch: Batch) -> Tensor:
            return self.b(torch.relu(self.a(batch.x)))

    torch.manual_seed(1)
    net = TakesObject(lambda h: None)
    net.b.weight.data[:, ::2] = 0
    result = sa.compact(net, Batch(X))
    assert result.model.a.out_features == 3
    assert not result.plan["notes"]


def test_a_model_that_is_a_generator_can_be_pruned() -> None:
    class Lazy(Net):
        def forward(self, x: Tensor) -> Iterator[Tensor]:
            hidden = torch.relu(self.a(x))
            yield self.b(hidden)
            yield self.b(hidden).sum()

    torch.manual_seed(1)
    net = Lazy(lambda h: None)
    net.b.weight.data[:, ::2] = 0
    assert sa.compact(net, X).model.a.out_features == 3
    assert sa.prune.CurvatureIHT(net, 0.5).run(torch.randn(32, 4)).report.sparsity == pytest.approx(0.5, abs=0.05)
