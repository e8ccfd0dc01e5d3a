"""Penalties: a value and a proximal operator, and nothing that an optimizer would have to ask about.

An optimizer sees three things of a penalty: ``prox_name`` (``"soft"`` or ``"hard"``, the two group operators of
:func:`sparse_accel.ops.prox_`), ``strength`` and ``by``. In parameter groups and checkpoints a penalty is a
dictionary of plain values, :meth:`Penalty.to_plain`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

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

    def __post_init__(self) -> None:
        if type(self) is Penalty:
            raise TypeError("Penalty is a base class: use GroupLasso, L1 or GroupL0")
        number = isinstance(self.strength, (int, float)) and not isinstance(self.strength, bool)
        if not number or not math.isfinite(self.strength) or self.strength < 0:
            raise ValueError(f"strength: expected a finite number >= 0, got {self.strength!r}")
        object.__setattr__(self, "strength", float(self.strength))
        if self.by not in BY:
            raise ValueError(f"by: expected one of {', '.join(map(repr, BY))}, got {self.by!r}")

    @property
    def by(self) -> str:
        """What forms a group."""
        return "element"

    def to_plain(self) -> dict[str, Any]:
        """The penalty as a dictionary of plain values; :func:`penalty_from_plain` is the way back.

        Example:
            >>> GroupLasso(0.5).to_plain()
            {'name': 'group_lasso', 'strength': 0.5, 'by': 'input'}
        """
        return {"name": self.name, "strength": self.strength, "by": self.by}

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
                    f"{tuple(tensor.shape)} lie across several (RMDA and ProxSGD take them)"
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


OF = ("groups", "params", "flops")


@dataclasses.dataclass(frozen=True, repr=False)
class GroupLasso(Penalty):
    """Group lasso, ``strength * sum_g sqrt(|g|) * ||x_g||``: drives whole groups to zero.

    Source: Yuan & Lin, "Model selection and estimation in regression with grouped variables", JRSS B 2006.

    With ``target`` the optimizer finds the strength while it trains (:mod:`sparse_accel.optim.common.target`): the
    share of zero groups follows ``target * x^2 * (3 - 2 x)``, ``x = step / ramp``, for ``ramp`` steps, then it is held.
    RMDA and RAMDA set it exactly, in the proximal iterate, by the order of the groups' dual averages; ProxSGD and
    ProxAdamW approach it. The strength found so far is that of the penalty in the optimizer's ``param_groups`` and
    ``state_dict()``; parameter groups with the same target have one strength, and share the target.

    Args:
        strength: weight of the penalty, finite, >= 0; not needed with a target, where it is the first.
        by: ``"input"`` (all weights that read one input channel), ``"output"`` (one filter or row), ``"kernel"``
            (one spatial kernel), ``"element"`` (every weight on its own: the same as :class:`L1`).
        target: share in [0, 1) that is to be zero at the end, or None.
        of: what it is a share of: ``"groups"``, ``"params"`` (the weights under the penalty), or ``"flops"`` (the
            multiplications of these weights, which ``param_groups(..., example=...)`` counts).
        ramp: optimizer steps until the target is wanted, >= 0. Train for several times as many. Too short a ramp has
            the weights at the start decide, and may leave a layer next to nothing.

    Example:
        >>> GroupLasso(1e-4)
        GroupLasso(strength=0.0001, by='input')
        >>> GroupLasso(target=0.6)
        GroupLasso(strength=0.0, by='input', target=0.6, of='groups', ramp=1000)
    """

    strength: float = math.nan
    by: str = "input"
    target: float | None = None
    of: str = "groups"
    ramp: int = 1000
    name: ClassVar[str] = "group_lasso"
    prox_name: ClassVar[str] = "soft"

    def __post_init__(self) -> None:
        if self.target is not None:
            number = isinstance(self.target, (int, float)) and not isinstance(self.target, bool)
            if not number or not 0 <= self.target < 1:
                raise ValueError(f"target: expected a number in [0, 1), or None, got {self.target!r}")
            if self.of not in OF:
                raise ValueError(f"of: expected one of {', '.join(map(repr, OF))}, got {self.of!r}")
            if isinstance(self.ramp, bool) or not isinstance(self.ramp, int) or self.ramp < 0:
                raise ValueError(f"ramp: expected a number of steps >= 0, got {self.ramp!r}")
            if isinstance(self.strength, float) and math.isnan(self.strength):
                object.__setattr__(self, "strength", 0.0)
        super().__post_init__()

    def __repr__(self) -> str:
        shown = {key: value for key, value in self.to_plain().items() if key != "name"}
        return f"GroupLasso({', '.join(f'{key}={value!r}' for key, value in shown.items())})"

    def to_plain(self) -> dict[str, Any]:
        """As :meth:`Penalty.to_plain`, with the target if there is one."""
        plain = super().to_plain()
        return plain if self.target is None else {**plain, "target": self.target, "of": self.of, "ramp": self.ramp}


@dataclasses.dataclass(frozen=True)
class L1(Penalty):
    """Sum of magnitudes, ``strength * ||x||_1``: drives single weights to zero.

    Source: Tibshirani, "Regression shrinkage and selection via the lasso", JRSS B 1996.

    Args:
        strength: weight of the penalty, finite, >= 0.

    Example:
        >>> L1(0.5).value(torch.tensor([1.0, -3.0]))
        tensor(2., dtype=torch.float64)
    """

    name: ClassVar[str] = "l1"
    prox_name: ClassVar[str] = "soft"


@dataclasses.dataclass(frozen=True)
class GroupL0(Penalty):
    """Number of weights in the groups that are not zero, ``strength * sum_g |g| * [x_g != 0]``; not convex.

    Its proximal operator is the hard threshold: a group stays as it is where ``||x_g||^2 > 2 * step * strength * |g|``
    and becomes zero elsewhere. Source: Blumensath & Davies, "Iterative thresholding for sparse approximations", 2008.

    Args:
        strength: weight of the penalty, finite, >= 0.
        by: as for :class:`GroupLasso`.

    Example:
        >>> x = torch.tensor([[3.0, 0.1], [4.0, 0.1]])
        >>> GroupL0(0.5, by="input").prox_(x)
        >>> x
        tensor([[3., 0.],
                [4., 0.]])
    """

    by: str = "input"
    name: ClassVar[str] = "group_l0"
    prox_name: ClassVar[str] = "hard"


_BY_NAME: dict[str, type[Penalty]] = {kind.name: kind for kind in (GroupLasso, L1, GroupL0)}


def register(kind: type[Penalty]) -> None:
    """Have :func:`penalty_from_plain` know a kind of penalty by its name."""
    _BY_NAME[kind.name] = kind


def penalty_from_plain(penalty: Penalty | Mapping[str, Any] | None) -> Penalty | None:
    """The penalty that :meth:`Penalty.to_plain` described; a penalty, or None, comes back as it is.

    Raises:
        TypeError: neither a penalty nor a mapping nor None.
        ValueError: no penalty has this name, or its numbers are out of range.

    Example:
        >>> penalty_from_plain({"name": "l1", "strength": 0.5, "by": "element"})
        L1(strength=0.5)
    """
    if penalty is None or isinstance(penalty, Penalty):
        return penalty
    if not isinstance(penalty, Mapping):
        raise TypeError(f"penalty: expected a penalty such as GroupLasso(1e-4), or None, got {penalty!r}")
    kind = _BY_NAME.get(penalty.get("name", ""))
    if kind is None:
        raise ValueError(f"penalty: expected a name among {', '.join(map(repr, _BY_NAME))}, got {dict(penalty)!r}")
    fields = {field.name for field in dataclasses.fields(kind)}
    return kind(**{key: value for key, value in penalty.items() if key in fields})
