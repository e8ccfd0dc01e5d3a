"""Penalties: a value and a proximal operator, and nothing that an optimizer would have to ask about.

An optimizer sees of a penalty ``prox_name`` (``"soft"`` or ``"hard"``, the two group operators of
:func:`sparse_accel.ops.prox_`, which its fused step has), ``strength`` and ``by``; or, where that is not all, the
``stages`` of its operator, which come after the step. In parameter groups and checkpoints a penalty is a dictionary of
plain values, :meth:`Penalty.to_plain`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sparse_accel import ops
from sparse_accel.groups import BY, Grouping, GroupLayout, layout_of
from sparse_accel.sharding import all_sums, local_part, shard_dims, shard_groups


@functools.lru_cache(maxsize=8192)
def cached_layout(shape: torch.Size, stride: tuple[int, ...], grouping: Grouping) -> tuple[GroupLayout, bool]:
    """:func:`sparse_accel.groups.layout_of` of a tensor with this shape and these strides."""
    return layout_of(torch.empty_strided(shape, stride, device="meta"), grouping)


def dense_view(tensor: Tensor, grouping: Grouping) -> tuple[Tensor, GroupLayout]:
    """A tensor for the ops with its layout: the tensor itself, or a contiguous copy where it is not such a view."""
    layout, in_place = cached_layout(tensor.shape, tensor.stride(), grouping)
    return (tensor if in_place else tensor.clone(memory_format=torch.contiguous_format)), layout


def check_strengths(penalty: Any, *names: str) -> None:
    """Make these fields floats; ValueError where one is no finite number >= 0."""
    for name in names:
        value = getattr(penalty, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise ValueError(f"{name}: expected a finite number >= 0, got {value!r}")
        object.__setattr__(penalty, name, float(value))


class Stage(NamedTuple):
    """One of the operators whose composition is that of a penalty (:mod:`sparse_accel.optim.common.stages` runs them).

    ``"soft"`` and ``"hard"`` groups by ``by``, ``"weights"`` (the soft threshold of every weight), ``"ridge"``
    (``strength / 2 ||x||^2``), ``"clip"`` to an interval, and ``"call"``, the ``operate_`` of a penalty. On tensors
    that have no groups by ``by`` none of them does anything.
    """

    kind: str
    by: str = "element"
    strength: float = 0.0
    low: float = -math.inf
    high: float = math.inf
    penalty: Any = None


@dataclasses.dataclass(frozen=True)
class Penalty:
    """Base of the penalties; make a :class:`GroupLasso`, :class:`L1` or :class:`GroupL0`.

    A penalty by ``"input"``, ``"output"`` or ``"kernel"`` is about weights of two or more dimensions: it is zero
    on others (biases, normalization), and leaves them as they are. Sizes ``|g|`` are numbers of elements.
    """

    strength: float

    name: ClassVar[str]
    prox_name: ClassVar[str]
    projects: ClassVar[bool] = False  # whether it is a constraint: projects every weight on its own
    whole: ClassVar[bool] = False  # whether its operator needs all of a tensor: no part of one, no flat parameters
    size_power: ClassVar[float] = 0.5  # of |g| in its value, which compact() makes up for; 0: there is none

    def __post_init__(self) -> None:
        if type(self) is Penalty:
            raise TypeError("Penalty is a base class: use GroupLasso, L1 or GroupL0")
        check_strengths(self, "strength")
        if self.by not in BY:
            raise ValueError(f"by: expected one of {', '.join(map(repr, BY))}, got {self.by!r}")

    @property
    def by(self) -> str:
        """What forms a group."""
        return "element"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What its operator consists of, if it is not that of ``prox_name``."""
        return ()

    def parts(self) -> tuple[Stage, ...]:
        """What its operator consists of, in any case."""
        return self.stages or (Stage(self.prox_name, self.by, self.strength),)

    def operate_(self, weight: Tensor, tau: Tensor, metric: Tensor | None, grouping: Grouping) -> None:
        """Its operator as a ``"call"``, in place: the minimizer of ``tau * value + 1/2 <w - x, P (w - x)>``.

        Args:
            weight: x, all of a tensor (a part of it, if the penalty is not ``whole``), float32 or float64.
            tau: ``[]``, of the weight's dtype and device.
            metric: P > 0, as ``weight``; None: P = 1.
            grouping: how the weight is cut.
        """
        raise NotImplementedError(f"{type(self).__name__} has no operator of its own")

    @property
    def not_in_metric(self) -> str:
        """Why its operator in a diagonal metric (RAMDA, ProxAdamW) is not exact; empty: it is."""
        return ""

    def scaled(self, factor: float) -> Penalty:
        """The same with this times the strength of its groups ``by``, whose size has changed."""
        return self if factor == 1 else dataclasses.replace(self, strength=self.strength * factor)

    def to_plain(self) -> dict[str, Any]:
        """The penalty as a dictionary of plain values; :func:`penalty_from_plain` is the way back.

        Example:
            >>> from sparse_accel import GroupLasso
            >>> GroupLasso(0.5).to_plain()
            {'name': 'group_lasso', 'strength': 0.5, 'by': 'input'}
        """
        return {"name": self.name, "strength": self.strength, "by": self.by}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Penalty:
        """The penalty of these values; keys that are no fields are ignored."""
        fields = {field.name for field in dataclasses.fields(cls) if field.init}
        return cls(**{key: value for key, value in plain.items() if key in fields})

    def value(self, tensors: Tensor | Sequence[Tensor], groupings: Groupings = None) -> Tensor:
        """The penalty of some tensors together.

        Args:
            tensors: weights ``[out, in, ...]``, any strides; sharded ones (DTensor) count as a whole, and all processes
                have to call.
            groupings: how each is cut (one for all, or one per tensor), where it is not a plain ``[out, in, ...]``:
                transposed and grouped convolutions.

        Returns:
            ``[]`` float64, on the device of the first tensor; no gradient flows through it.

        Raises:
            ValueError: a tensor is not real floating point, or has no such groups.

        Example:
            >>> from sparse_accel import GroupLasso
            >>> GroupLasso(0.1, by="output").value(torch.tensor([[3.0, 4.0], [0.0, 0.0]])) / 2**0.5
            tensor(0.5000, dtype=torch.float64)
        """
        tensors, pairs = self._pairs(tensors, groupings)
        total = torch.zeros((), dtype=torch.float64, device=tensors[0].device if tensors else None)
        for tensor, grouping in pairs:
            work, layout = dense_view(local_part(tensor.detach()), grouping.of_part(shard_dims(tensor)))
            apart = grouping.group_dims(tensor.dim())
            size, processes = layout.group_size, shard_groups(tensor, apart)
            if processes:
                size = math.prod(length for dim, length in enumerate(tensor.shape) if dim not in apart)
                (squares,) = all_sums(ops.group_score([work], [layout], "l2sq"), processes)
                scores = squares.to(total.device, torch.float64).sqrt()
            else:
                (scores,) = ops.group_score([work], [layout], "l2" if self.prox_name == "soft" else "amax")
                scores = scores.to(total.device, torch.float64)
            part = size**0.5 * scores.sum() if self.prox_name == "soft" else size * (scores != 0).sum().double()
            (part,) = all_sums([part], shard_groups(tensor, set(range(tensor.dim())) - apart))
            total += self.strength * part
        return total

    @torch.no_grad()
    def prox_(self, tensors: Tensor | Sequence[Tensor], step: float = 1.0, groupings: Groupings = None) -> None:
        """Replace every tensor x by the minimizer of ``step * value(z) + 1/2 * ||z - x||^2`` over z, in place.

        Args:
            tensors: weights ``[out, in, ...]``, any strides and dtypes.
            step: the step size, >= 0.
            groupings: as for :meth:`value`.

        Raises:
            ValueError: ``step`` is negative or not finite, a tensor is not real floating point, or the groups of a
                sharded one lie across processes.

        Example:
            >>> from sparse_accel import L1
            >>> x = torch.tensor([4.0, -2.0, 0.5])
            >>> L1(1.0).prox_(x)
            >>> x.tolist()
            [3.0, -1.0, 0.0]
        """
        if not math.isfinite(step) or step < 0:
            raise ValueError(f"step: expected a finite number >= 0, got {step!r}")
        for tensor, grouping in self._pairs(tensors, groupings)[1]:
            if shard_groups(tensor, grouping.group_dims(tensor.dim())):
                raise ValueError(
                    f"tensors: expected each group on one process, but those by {self.by!r} of a DTensor of shape "
                    f"{tuple(tensor.shape)} lie across several (the optimizers take them)"
                )
            home = local_part(tensor.detach())
            work, layout = dense_view(home, grouping.of_part(shard_dims(tensor)))
            ops.prox_([work], [layout], [step * self.strength], prox=self.prox_name)
            if work.data_ptr() != home.data_ptr():
                home.copy_(work)

    def _pairs(
        self, tensors: Tensor | Sequence[Tensor], groupings: Groupings
    ) -> tuple[list[Tensor], list[tuple[Tensor, Grouping]]]:
        """The tensors as a list, and those the penalty is about, each with its grouping."""
        tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        if groupings is None or isinstance(groupings, Grouping):
            groupings = [groupings] * len(tensors)
        if len(groupings) != len(tensors):
            raise ValueError(f"groupings: expected one for each of {len(tensors)} tensors, got {len(groupings)}")
        pairs = []
        for tensor, grouping in zip(tensors, groupings, strict=True):
            if not tensor.is_floating_point():
                raise ValueError(f"tensors: expected real floating point, got {tensor.dtype}")
            grouping = Grouping(self.by) if grouping is None else grouping._replace(by=self.by)
            if grouping.applies_to(tensor):
                pairs.append((tensor, grouping))
        return tensors, pairs


Groupings = Sequence[Grouping | None] | Grouping | None
