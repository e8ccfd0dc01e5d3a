"""The widths of a model: which units can go together, who makes them and who reads them.

A *width* is a set of interchangeable units: the hidden neurons of an MLP, the inner channels of a residual block, the
heads of an attention layer. Each unit is one class of tied slots of the channel graph
(:class:`~sparse_accel.channels.graph.ChannelGraph`); units that occur in the same axes of the same tensors, equally
often, form one width. :mod:`~sparse_accel.channels.width_search` finds them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_accel.channels.graph import Stack


@dataclass(eq=False)
class Consumer:
    """A linear map that reads the units of a width.

    Attributes:
        module: name of the module whose ``forward`` computes it.
        weight: name of the weight.
        bias: name of the bias, or None.
        norm: name of the BatchNorm that alone follows it and uses running statistics, or None.
        channels: the input channels that each unit owns, int64 [units, unit_size].
        groups: the convolution's groups; 1 for linear layers.
        transposed: the weight is ``[in, out / groups, ...]`` (a transposed convolution, the Conv1D of Hugging Face).
        calls: how often one forward pass computes it.
        plain: the module is a Linear, a convolution, a transposed convolution or an HF Conv1D that alone owns the
            weight: its first input holds the units, and its weight may be replaced.
        obstacle: why it is not plain, in words; empty if it is.
        stage: how many of the width's gates come before it: what it reads depends on the consumers of lower stages.
    """

    module: str
    weight: str
    bias: str | None
    norm: str | None
    channels: Tensor
    groups: int = 1
    transposed: bool = False
    calls: int = 1
    plain: bool = True
    obstacle: str = ""
    stage: int = 0


@dataclass(eq=False)
class MeanOver:
    """A module that divides the units of a width by a mean over them: a response normalization.

    Attributes:
        module: its name.
        weight: name of the weight by which the quotients are multiplied.
        dim: of its input that holds the channels.
        channels: that each unit owns, int64 [units, channels].
        whole: whether all channels are those of units.
    """

    module: str
    weight: str
    dim: int
    channels: Tensor
    whole: bool


@dataclass(eq=False)
class Width:
    """Units of which any number, but not all, can be removed.

    Attributes:
        name: the first module that makes the units; the attention module for heads.
        kind: ``"channels"``, ``"heads"`` or ``"experts"``.
        units: how many there are.
        unit_size: input channels of the first consumer that a unit owns (a head's size; the positions of a flattened
            map).
        producers: the modules that make the units, in order: all of gate and up projection; query, key and value.
        consumers: the linear maps that read them, in order.
        rows: which rows (entries of the output dimension) of each producer's weight a unit owns, by the weight's name,
            int64 [units, rows].
        inner: depthwise convolutions that units pass through.
        coupled: something that comes after a consumer is added to the units, as around residual blocks: the width of
            the stream.
        order: position of the first consumer among the forward pass's linear maps; of those behind all gates.
        gates: producers that come after a consumer and only multiply the units, such as the last layer of a
            squeeze-and-excitation.
        balance: unit indices [parts, n] of which every row must keep equally many (a grouped convolution's groups),
            or None.
        norms: modules that divide by a mean over the units (response normalization).
        granule: a share of the units is rounded down to a multiple of it.
    """

    name: str
    kind: str
    units: int
    unit_size: int
    producers: list[str]
    consumers: list[Consumer]
    rows: dict[str, Tensor] = field(default_factory=dict)
    inner: list[str] = field(default_factory=list)
    coupled: bool = False
    order: int = 0
    balance: Tensor | None = None
    gates: list[str] = field(default_factory=list)
    classes: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64), repr=False)
    granule: int = 1
    norms: list[MeanOver] = field(default_factory=list)

    def watched(self) -> dict[str, str | None]:
        """The modules whose inputs tell what the units are worth, each with the norm that alone follows it, or None."""
        return {consumer.module: consumer.norm for consumer in self.consumers}

    @property
    def refittable(self) -> bool:
        """Whether new weights can be written for every consumer: each a plain layer that is called once and whose
        weight nobody else uses."""
        return all(consumer.plain and consumer.calls == 1 for consumer in self.consumers)

    def obstacles(self) -> dict[str, str]:
        """Why new weights cannot be written for some consumers, by their names; empty if :attr:`refittable`."""
        found = {}
        for consumer in self.consumers:
            if not consumer.plain:
                found[consumer.module] = consumer.obstacle or "its weight cannot be replaced"
            elif consumer.calls != 1:
                found[consumer.module] = f"one forward pass calls it {consumer.calls} times"
        return found

    def check(self, kept: Any) -> Tensor:
        """The kept units, sorted.

        Args:
            kept: indices, a tensor or a sequence.

        Raises:
            ValueError: not a non-empty set of unit indices, or unequally many in the rows of ``balance``.
        """
        kept = torch.as_tensor(kept, device="cpu").detach().cpu()
        if kept.dim() != 1 or kept.numel() == 0 or kept.is_floating_point() or kept.dtype == torch.bool:
            raise ValueError(f"kept[{self.name!r}]: expected a non-empty vector of unit indices, got {kept!r}")
        kept = kept.long().sort().values
        if int(kept[0]) < 0 or int(kept[-1]) >= self.units or kept.unique().numel() != kept.numel():
            raise ValueError(f"kept[{self.name!r}]: expected distinct indices below {self.units}, got {kept.tolist()}")
        if self.balance is not None:
            counts = torch.isin(self.balance, kept).sum(1)
            if int(counts.min()) != int(counts.max()):
                raise ValueError(
                    f"kept[{self.name!r}]: expected equally many units of each of the {len(counts)} groups, "
                    f"got {counts.tolist()}"
                )
        return kept


@dataclass(eq=False)
class ExpertWidth(Width):
    """The neurons of a mixture's experts whose matrices are stacked in parameters: each expert keeps its own.

    It has no consumers: no module reads an expert's neurons. A choice is ``[experts, n]``.

    Attributes:
        stack: the parameters.
    """

    stack: Stack = field(kw_only=True)

    @classmethod
    def of(cls, stack: Stack) -> ExpertWidth:
        """The width of a stack, named after the module that owns it."""
        name, units = stack.module, stack.units
        return cls(name, "experts", units, 1, [name], [], order=stack.position, granule=stack.granule, stack=stack)

    def watched(self) -> dict[str, str | None]:
        """The module that owns the stack."""
        return {self.stack.module: None}

    def check(self, kept: Any) -> Tensor:
        """The kept neurons of each expert, sorted, [experts, n].

        Args:
            kept: indices, ``[experts, n]``, or ``[n]`` for the same ones of all.

        Raises:
            ValueError: not a non-empty set of neurons for each expert.
        """
        kept = torch.as_tensor(kept, device="cpu").detach().cpu()
        rows = kept[None].expand(self.stack.experts, -1) if kept.dim() == 1 else kept
        if rows.dim() != 2 or len(rows) != self.stack.experts:
            raise ValueError(
                f"kept[{self.name!r}]: expected indices [{self.stack.experts}, n], as many of each expert, "
                f"got the shape {[*kept.shape]}"
            )
        return torch.stack([super(ExpertWidth, self).check(row) for row in rows])


def grouped(reasons: Mapping[str, str], what: str = "layers", shown: int = 4) -> list[str]:
    """Reasons in words, equal ones together.

    Args:
        reasons: by name; a name (and its kind) that a reason starts with is taken off.
        what: the names are of, in the plural.
        shown: names to spell out of one group.

    Example:
        >>> grouped({"a": "a (Linear): too small", "b": "b (Linear): too small", "c": "c (Conv2d): odd"})
        ['2 layers (a, b): too small', 'c (Conv2d): odd']
    """
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        own = re.match(re.escape(name or "model") + r"(?: \([^()]*\))?: ", reason)
        groups.setdefault(reason[own.end() :] if own else reason, []).append(name)
    lines = []
    for why, names in groups.items():
        if len(names) == 1:
            whole = reasons[names[0]]
            lines.append(whole if whole != why else f"{names[0] or 'model'}: {why}")
        else:
            few = [name or "model" for name in names[:shown]] + ["…"] * (len(names) > shown)
            lines.append(f"{len(names)} {what} ({', '.join(few)}): {why}")
    return lines


class Refusals(dict[str, str]):
    """Why layers keep their channels, by name; equal reasons once when printed.

    Example:
        >>> print(Refusals({"a": "a (Linear): its outputs must stay", "b": "b (Linear): its outputs must stay"}))
        2 layers (a, b): its outputs must stay
    """

    def __str__(self) -> str:
        return "\n".join(grouped(self))


class Widths(list[Width]):
    """The widths of a model in the order in which they are read; printed, a table and what cannot go.

    Attributes:
        refused: linear layers of which no output channel can go, and why: by module name. Printed, equal reasons stand
            together.
        notes: everything that the analysis kept for want of a rule.

    Example:
        >>> print(Widths([Width("fc", "channels", 8, 1, ["fc"], [])]))
        width  kind      units  made by  read by
        fc     channels  8      fc
    """

    def __init__(self, widths: Iterable[Width] = ()) -> None:
        super().__init__(widths)
        self.refused = Refusals()
        self.notes: list[str] = []

    def __str__(self) -> str:
        rows = [("width", "kind", "units", "made by", "read by")]
        for width in self:
            readers = dict.fromkeys(consumer.module for consumer in width.consumers)
            rows.append((width.name, width.kind, str(width.units), ", ".join(width.producers), ", ".join(readers)))
        sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, sizes)).rstrip() for row in rows]
        return "\n".join([*lines, *grouped(self.refused)])

    def named(self, name: str) -> Width:
        """The width of this name.

        Raises:
            ValueError: there is none; the message says why, if it is known.
        """
        for width in self:
            if width.name == name:
                return width
        reason = self.refused.get(name) or f"the widths are {[width.name for width in self]}"
        raise ValueError(f"{name}: no width of this name: {reason}")
