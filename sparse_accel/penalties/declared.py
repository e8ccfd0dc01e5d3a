"""Penalties that users write: any object with a value and a proximal operator, declared by its class."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor

from sparse_accel.groups import BY, Grouping
from sparse_accel.sharding import all_sums, local_part, shard_groups

from . import plain as names
from .base import Groupings, Penalty, Stage

__all__ = ["register_penalty"]

Kind = TypeVar("Kind", bound=type)
_PLAIN = (bool, int, float, str, type(None))


@dataclasses.dataclass(frozen=True, repr=False)
class Declared(Penalty):
    """An object of a class that :func:`register_penalty` knows, as the optimizers see it."""

    strength: float = dataclasses.field(default=1.0, init=False, repr=False)
    penalty: Any = None
    name: ClassVar[str] = ""
    prox_name: ClassVar[str] = "stages"
    size_power: ClassVar[float] = 0.0
    made_by: ClassVar[Any] = None  # the class, or its from_plain

    def __post_init__(self) -> None:
        if type(self) is Declared:
            raise TypeError("Declared is a base class: register_penalty makes the classes")
        super().__post_init__()
        separable = getattr(self.penalty, "separable", False)
        if not isinstance(separable, bool):
            raise TypeError(f"{self._kind}.separable: expected True or False, got {separable!r}")

    def __repr__(self) -> str:
        return repr(self.penalty)

    @property
    def _kind(self) -> str:
        return type(self.penalty).__name__

    @property
    def by(self) -> str:
        """The object's ``by``; ``"element"`` without one."""
        return str(getattr(self.penalty, "by", "element"))

    @property
    def whole(self) -> bool:  # type: ignore[override]
        """Whether it is not ``separable``."""
        return not getattr(self.penalty, "separable", False)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Its own operator."""
        return (Stage("call", self.by, penalty=self),)

    @property
    def not_in_metric(self) -> str:
        """See :class:`Penalty`."""
        if not self.whole or hasattr(self.penalty, "metric_prox_"):
            return ""
        return "it is not separable and has no metric_prox_(weight, metric, step)"

    def scaled(self, factor: float) -> Penalty:
        """The same: what sizes mean to it is its own."""
        return self

    def to_plain(self) -> dict[str, Any]:
        """The object's ``to_plain()``, or the fields of the dataclass, with the name.

        Raises:
            TypeError: there is neither, or something is no plain value.
        """
        values: Any
        if hasattr(self.penalty, "to_plain"):
            values = dict(self.penalty.to_plain())
        elif dataclasses.is_dataclass(self.penalty):
            fields = [field for field in dataclasses.fields(self.penalty) if field.init]
            values = {field.name: getattr(self.penalty, field.name) for field in fields}
        else:
            raise TypeError(f"{self._kind}: expected a dataclass, or to_plain() and from_plain(), for checkpoints")
        _check_plain(self._kind, values)
        return {"name": self.name, **{key: value for key, value in values.items() if key != "name"}}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Penalty:
        """See :class:`Penalty`."""
        return cls(cls.made_by({key: value for key, value in plain.items() if key != "name"}))

    def value(self, tensors: Tensor | Sequence[Tensor], groupings: Groupings = None) -> Tensor:
        """As :meth:`Penalty.value`: the sum over the tensors of the object's values."""
        tensors, pairs = self._pairs(tensors, groupings)
        total = torch.zeros((), dtype=torch.float64, device=tensors[0].device if tensors else None)
        for tensor, _ in pairs:
            part = torch.as_tensor(self.penalty.value(self._part(tensor)), device=total.device)
            if part.numel() != 1:
                raise ValueError(f"{self._kind}.value: expected one number, got shape {tuple(part.shape)}")
            total += all_sums([part.detach().double().reshape(())], shard_groups(tensor))[0]
        return total

    @torch.no_grad()
    def prox_(self, tensors: Tensor | Sequence[Tensor], step: float = 1.0, groupings: Groupings = None) -> None:
        """As :meth:`Penalty.prox_`: the object's, tensor by tensor."""
        if not math.isfinite(step) or step < 0:
            raise ValueError(f"step: expected a finite number >= 0, got {step!r}")
        for tensor, part in [(tensor, self._part(tensor)) for tensor, _ in self._pairs(tensors, groupings)[1]]:
            self.penalty.prox_(part, torch.tensor(step, dtype=part.dtype, device=tensor.device))

    def operate_(self, weight: Tensor, tau: Tensor, metric: Tensor | None, grouping: Grouping) -> None:
        """See :class:`Penalty`. In a metric, a separable operator takes a step for each weight."""
        if metric is None:
            self.penalty.prox_(weight, tau)
        elif hasattr(self.penalty, "metric_prox_"):
            self.penalty.metric_prox_(weight, metric, tau)
        elif not self.whole:
            self.penalty.prox_(weight, tau / metric)
        else:
            raise ValueError(f"{self._kind}: {self.not_in_metric}")

    def _part(self, tensor: Tensor) -> Tensor:
        if self.whole and shard_groups(tensor):
            raise ValueError(
                f"tensors: {self._kind} needs all of a weight, and the DTensor of shape {tuple(tensor.shape)} is "
                "sharded: declare separable = True if each weight is on its own"
            )
        return local_part(tensor.detach())


def register_penalty(kind: Kind) -> Kind:
    """Declare a class of penalties: its objects are then penalties for every optimizer, ``param_groups`` and
    checkpoints. A decorator.

    An object has

    - ``value(weight)``: the penalty of one tensor, a number or ``[]``;
    - ``prox_(weight, step)``: replaces x by the minimizer of ``step * value(z) + 1/2 ||z - x||^2``, in place.
      ``weight`` is dense, float32 or float64 in a step (also of half-precision parameters), of the parameter's shape,
      of any strides. ``step`` >= 0 is ``[]`` of its dtype and device: use it as a tensor, ``float(step)`` makes the
      host wait for a GPU. A step of 0 changes nothing, unless it is a projection, and NaN stays NaN;
    - numbers that describe it: a dataclass, whose fields are plain values, or ``to_plain()`` with a classmethod
      ``from_plain(values)``. They are what ``state_dict()`` holds; the name there is the class attribute ``name``, or
      else the name of the class;
    - ``separable``, optional: True says that each weight is on its own, and that ``step`` may be a tensor like
      ``weight``, with a step for each. It is then exact in the metric of ``RAMDA`` and ``ProxAdamW``, and on the parts
      of sharded parameters;
    - ``metric_prox_(weight, metric, step)``, optional: the minimizer of ``step * value(z) + 1/2 <z - x, P (z - x)>``
      with P ``metric`` > 0. Without either of the two, RAMDA and ProxAdamW refuse it by its name;
    - ``by``, optional: ``"input"``, ``"output"`` or ``"kernel"`` leave tensors of fewer than two dimensions alone; by
      default, ``"element"``, it is about all tensors that it is given to.

    A subclass of :class:`Penalty` or of ``Constraint`` is declared likewise.

    Args:
        kind: the class.

    Returns:
        The class.

    Raises:
        TypeError: ``value`` or ``prox_`` is missing.
        ValueError: another class has the name.

    Example:
        >>> import dataclasses, sparse_accel as sa
        >>> @sa.register_penalty
        ... @dataclasses.dataclass(frozen=True)
        ... class Squares:
        ...     strength: float
        ...     separable = True
        ...     def value(self, weight):
        ...         return self.strength / 2 * weight.square().sum()
        ...     def prox_(self, weight, step):
        ...         weight.div_(1 + step * self.strength)
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> opt = sa.ProxSGD([weight], lr=0.5, penalty=Squares(2.0))
        >>> weight.grad = torch.zeros(2)
        >>> opt.step()
        >>> weight.detach(), opt.param_groups[0]["penalty"]
        (tensor([0.5000, 0.5000]), {'name': 'Squares', 'strength': 2.0})
    """
    if not isinstance(kind, type):
        raise TypeError(f"kind: expected a class, got {kind!r}")
    named: Any = kind
    name = str(getattr(named, "name", kind.__name__))
    known = names.kind_of(name)
    before = getattr(known, "wraps", known)
    if before is not None and (before.__module__, before.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ValueError(f"name: {name!r} is that of {before.__module__}.{before.__qualname__} already")
    if issubclass(kind, Penalty):
        names.register(kind)
        return cast(Kind, kind)
    for method in ("value", "prox_"):
        if not callable(getattr(kind, method, None)):
            raise TypeError(f"{kind.__name__}: expected a method {method}")
    if getattr(named, "by", "element") not in BY and not isinstance(getattr(named, "by", None), property):
        raise ValueError(f"{kind.__name__}.by: expected one of {', '.join(map(repr, BY))}, got {named.by!r}")
    made_by: Callable[[Mapping[str, Any]], Any] = getattr(named, "from_plain", lambda values: named(**values))
    wrapper = type(f"Declared{kind.__name__}", (Declared,), {"name": name, "made_by": staticmethod(made_by)})
    wrapper.wraps = kind  # type: ignore[attr-defined]
    names.register(wrapper, kind)
    return kind


def _check_plain(kind: str, value: Any, key: str = "") -> None:
    if isinstance(value, Mapping):
        for name, item in value.items():
            _check_plain(kind, item, str(name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_plain(kind, item, key)
    elif not isinstance(value, _PLAIN):
        raise TypeError(f"{kind}: {key}: expected plain values, for checkpoints, got {type(value).__name__}")
