"""Integer attributes of modules that count channels: they follow a removal.

A forward pass may ask for sizes by attributes (``x.view(b, n, self.num_heads, self.head_dim)``). While a model is
traced its modules hold :class:`Counted` integers, which remember their attribute, so that a size that is cut says which
attribute must change with it. An attribute that enters any other computation stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from sparse_accel.channels.call import Call, Measured
from sparse_accel.channels.slots import PINNED

REPEATS = ("num_key_value_groups", "num_kv_groups", "n_rep", "num_queries_per_kv")  # query heads to a key's head


class Factor(NamedTuple):
    """An attribute that is a factor of a size."""

    module: str
    key: str
    value: int

    @property
    def counts_heads(self) -> bool:
        """Whether its name is that of a number of heads, not of their size."""
        return self.key in REPEATS or ("head" in self.key and not any(word in self.key for word in ("dim", "size")))


class Counted(Measured):
    """An integer attribute of a module, or a product of such with numbers.

    Attributes:
        factors: the attributes.
        frozen: set of (module, attribute) to which an attribute is added that is used otherwise than as a size.
    """

    factors: tuple[Factor, ...]
    frozen: set[tuple[str, str]]

    @classmethod
    def of(cls, value: int, factors: tuple[Factor, ...], frozen: set[tuple[str, str]]) -> Counted:
        """``value``, whose factors are ``factors`` and numbers."""
        made = cls(value)
        made.factors, made.frozen = factors, frozen
        return made

    def freeze(self) -> None:
        """Its attributes must keep their values."""
        self.frozen.update((factor.module, factor.key) for factor in self.factors)

    def chosen(self) -> Factor | None:
        """The attribute that is cut where this size is: the number of heads, or the only one."""
        heads = [factor for factor in self.factors if factor.counts_heads]
        candidates = heads or list(self.factors)
        return candidates[0] if len(candidates) == 1 else None

    def __mul__(self, other: Any) -> Any:
        product = int(self) * (int(other) if isinstance(other, int) else other)
        if isinstance(other, Counted):
            return Counted.of(product, self.factors + other.factors, self.frozen)
        if type(other) is int or (isinstance(other, Measured) and int(other) == 1):  # one channel: it stays
            return Counted.of(product, self.factors, self.frozen)
        self.freeze()
        return Measured.wrap(product, getattr(other, "sources", ()))

    __rmul__ = __mul__

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)

    def __reduce__(self) -> Any:
        return int, (int(self),)

    __hash__ = int.__hash__


def _freezing(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def method(self: Counted, *others: Any) -> Any:
        self.freeze()
        for other in others:
            if isinstance(other, Counted):
                other.freeze()
        sources = sum((getattr(other, "sources", ()) for other in others), ())
        result = plain(self, *others)
        return Measured.wrap(result, sources) if sources else result

    return method


_ARITHMETIC = ("add", "sub", "floordiv", "mod", "truediv", "pow", "divmod", "and", "or", "xor", "lshift", "rshift")
for _name in (
    *(f"__{side}{name}__" for name in _ARITHMETIC for side in ("", "r")),
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__neg__", "__float__"),
):
    setattr(Counted, _name, _freezing(_name))


def _compared(name: str) -> Callable[..., Any]:
    """Whether there is just one, as ``if n_rep == 1: return x`` asks, decides how things are computed, not what."""
    freezing, plain = getattr(Counted, name), getattr(int, name)
    return lambda self, other: plain(self, other) if type(other) is int and other == 1 else freezing(self, other)


for _name in ("__eq__", "__ne__", "__gt__"):
    setattr(Counted, _name, _compared(_name))


def mark_attributes(model: nn.Module, frozen: set[tuple[str, str]]) -> None:
    """Make the integer attributes of a model's own modules :class:`Counted`; PyTorch's own modules stay.

    Args:
        model: a copy made for tracing.
        frozen: see :class:`Counted`.
    """
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch."):
            continue
        for key, value in list(vars(module).items()):
            if type(value) is int and value > 1:
                vars(module)[key] = Counted.of(value, (Factor(name, key, value),), frozen)


def unmark_attributes(model: nn.Module) -> None:
    """Make the attributes plain integers again."""
    for module in model.modules():
        for key, value in list(vars(module).items()):
            if isinstance(value, Counted):
                vars(module)[key] = int(value)


def free_dims(call: Call, sizes: list[Any], labels: Tensor) -> set[int] | None:
    """The dimensions of a result, among those that hold channels, whose sizes follow a removal; None if none does.

    The others keep their sizes: a number in the code, the size of a head, the width of another tensor.

    Args:
        call: that asked for the sizes.
        sizes: of the result.
        labels: of the result.
    """
    counts: set[int] = set()
    measured: set[int] = set()
    attributes: set[int] = set()
    for dim in (dim for dim, extent in enumerate(labels.shape) if extent > 1):
        size = sizes[dim]
        if isinstance(size, Counted):
            factor = size.chosen()
            if factor is not None:
                (counts if factor.counts_heads else attributes).add(dim)
        elif int(size) == -1 or (isinstance(size, Measured) and same_channels(call, size, labels)):
            measured.add(dim)
    for free in (counts, measured, attributes):
        if free:
            return free if free is measured or len(free) == 1 else None
    return None


def same_channels(call: Call, size: Measured, labels: Tensor) -> bool:
    """Whether a size was read off tensors with the channels that the labels show, so that it is cut as they are."""
    if not size.sources:
        return False
    slots = call.graph.slots
    source = {root for known in size.sources for root in slots.roots(known.unique()).tolist()}
    return source == set(slots.roots(labels.unique()).tolist())


def tie_counted(call: Call, size: Measured, labels: Tensor, dim: int) -> bool:
    """Tie channels to those of another tensor whose number their size is, if each is a slot of its own.

    ``fc(pooled).view(batch, channels, 1, 1)`` takes the number of ``x.shape[1]``, which the result is to multiply: both
    stay equally many if they go together. They are no sum for that alone.

    Args:
        call: that asked for the size.
        size: read off other tensors.
        labels: of the result.
        dim: of the result that has the size.

    Returns:
        Whether they could be tied.
    """
    slots = call.graph.slots
    own = set(slots.roots(labels).tolist())
    if labels.shape[dim] != labels.numel() or len(own) != int(size) or PINNED in own or len(size.sources) != 1:
        return False
    (source,) = size.sources
    others = set(slots.roots(source).tolist())
    if source.numel() != int(size) or len(others) != int(size) or PINNED in others or own & others:
        return False
    slots.unite(labels.reshape(-1), source.reshape(-1), product=True)
    return True


def count_sizes(call: Call, sizes: list[Any], labels: Tensor, dims: set[int]) -> bool:
    """Remember which attributes count the channels along some dimensions, in blocks if a size is a product.

    Args:
        call: that asked for the sizes.
        sizes: of the result.
        labels: of the result.
        dims: dimensions that are cut.

    Returns:
        False if it is unclear which factor of a size is to change.
    """
    for dim in dims:
        size = sizes[dim]
        if not isinstance(size, Counted):
            continue
        factor = size.chosen()
        if factor is None:
            return False
        blocks = labels.movedim(dim, 0).reshape(factor.value, -1)
        call.graph.slots.unite(blocks[:, :1], blocks)
        call.graph.count_size(factor.module, factor.key, blocks[:, 0])
    return True


def known_sizes(size: int, names: str, module: nn.Module) -> list[str]:
    """Those of the module's integer attributes of these names that have this value."""
    found = []
    for key in names.split():
        value = vars(module).get(key)
        if isinstance(value, int) and int(value) == size:
            found.append(key)
    return found
