"""The channels of a model and who reads them.

:class:`ChannelGraph` is what :func:`sparse_accel.channels.trace.trace` finds by running the model once: the slots of
every parameter axis, tied where removing one channel means removing the other, and one :class:`Read` for every
linear or convolutional layer call. It holds no activations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from sparse_accel.channels.slots import PINNED, Slots

GROUPED = -1  # axis number of the channels that a grouped convolution's weight holds in several blocks of rows


class CompactError(RuntimeError):
    """A model could not be compacted; the model itself is unchanged.

    Attributes:
        result: what had been made when a check at the end failed; None where nothing had.
    """

    result: Any = None


class UnsupportedModelError(CompactError):
    """The forward pass cannot be analysed; the message names the module or the operation."""


@dataclass
class Read:
    """One call of a linear map: which output channel reads which input channel.

    Attributes:
        module: name of the module whose ``forward`` made the call.
        weight: name of the weight.
        bias: name of the bias, or None.
        inputs: slots of the input channels, [C].
        outputs: slots of the output channels, [O].
        nonzero: whether any weight from input to output is not zero, [groups, O / groups, C / groups].
        foldable: input channels that hold one known constant, exact at every position of the output, [C].
        values: those constants, float64 [C].
        transposed: the weight is ``[C, O / groups, ...]``.
        bias_ok: a constant can be absorbed for this call alone: by its bias, a new bias, or ``norm``.
        norm: name of the running mean that alone takes the output, or None.
        run: number of the run that made the call.
    """

    module: str
    weight: str
    bias: str | None
    inputs: Tensor
    outputs: Tensor
    nonzero: Tensor
    foldable: Tensor
    values: Tensor
    transposed: bool = False
    bias_ok: bool = True
    norm: str | None = None
    run: int | None = None

    @property
    def groups(self) -> int:
        """The convolution's ``groups``; 1 for linear layers."""
        return self.nonzero.shape[0]

    @property
    def input_blocks(self) -> Tensor:
        """Input slots by group, [groups, C / groups]."""
        return self.inputs.reshape(self.groups, -1)

    @property
    def output_blocks(self) -> Tensor:
        """Output slots by group, [groups, O / groups]."""
        return self.outputs.reshape(self.groups, -1)

    def constant_outputs(self) -> Tensor:
        """Output channels that no varying input reaches: constant, equal to the bias plus the constants read, [O]."""
        varying = ~self.foldable.reshape(self.groups, 1, -1)
        return ~(self.nonzero & varying).any(2).reshape(-1)


@dataclass(frozen=True, eq=False)
class Stack:
    """The matrices of a mixture's experts, stacked ``[experts, ..]`` in parameters of one module.

    Each expert has neurons between its first matrices and its last one, the *reader*. They go expert by expert, equally
    many of each: what is left is stacked again.

    Attributes:
        module: that owns the parameters.
        experts: how many there are.
        units: neurons of each.
        reader: name of the parameter that reads the neurons.
        axes: by parameter, the reader among them: its dimension that holds the neurons, and which entries of it each
            one owns, int64 [units, entries].
        bias: name of the reader's bias ``[experts, out]``, or None.
        attributes: of the module, integers that count the neurons.
        granule: numbers of neurons whose multiples keep the rows of 16 bytes that grouped products ask for.
        position: number of linear maps that were called before the module.
        inputs: positional and keyword inputs of a call of the module.
    """

    module: str
    experts: int
    units: int
    reader: str
    axes: dict[str, tuple[int, Tensor]]
    bias: str | None
    attributes: tuple[str, ...]
    granule: int
    position: int
    inputs: Any = field(default=None, repr=False)

    def indices(self, name: str, kept: Tensor) -> Tensor:
        """Entries of a parameter's dimension that stay, ascending.

        Args:
            name: of the parameter.
            kept: neurons, int64 [experts, n].

        Returns:
            int64 [experts, n * entries].
        """
        return self.axes[name][1][kept].flatten(1).sort(1).values


@dataclass(frozen=True, eq=False)
class ResponseNorm:
    """A call of a global response normalization, which divides by the mean over its channels' norms.

    Attributes:
        module: that computes it.
        weight: name of gamma, by which the quotients are multiplied.
        slots: of the channels, [C].
        zero: channels that are zero whatever the input, [C].
        dim: of the input that holds the channels.
    """

    module: str
    weight: str
    slots: Tensor
    zero: Tensor
    dim: int


@dataclass
class ChannelGraph:
    """Slots, parameter axes and reads of one model.

    Attributes:
        slots: the union-find.
        tensors: parameters and buffers of the traced copy, by name (a tied tensor by its first name).
        axes: slots of a tensor's dimension, by (name, dimension); dimension ``GROUPED`` of a grouped
            convolution's weight stands for the channels that its second dimension holds block by block.
        blocks: ``groups`` of every weight that has a ``GROUPED`` axis.
        reads: calls of linear maps, in order.
        attributes: slots that an integer attribute of a module counts, by (module, attribute).
        balanced: slot matrices [parts, n] of which every row must keep equally many channels.
        heads: labels of the heads of every attention, [heads], with the module that computes it.
        needed: attributes by which the forward pass asks for sizes.
        frozen: attributes that it uses otherwise, and that therefore stay.
        notes: why channels were kept although they may be prunable, in words.
        stacks: experts whose neurons can go, which no slot stands for.
        response_norms: calls of modules that divide by a mean over channels.
        entered: number of reads before the first call of each module.
    """

    tensors: dict[str, Tensor]
    slots: Slots = field(default_factory=Slots)
    axes: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    attributes: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    balanced: list[Tensor] = field(default_factory=list)
    heads: list[tuple[str, Tensor]] = field(default_factory=list)
    needed: set[tuple[str, str]] = field(default_factory=set)
    frozen: set[tuple[str, str]] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    stacks: list[Stack] = field(default_factory=list)
    response_norms: list[ResponseNorm] = field(default_factory=list)
    entered: dict[str, int] = field(default_factory=dict)

    def axis(self, name: str, dim: int, blocks: int = 1) -> Tensor:
        """Slots of a tensor's dimension, made at the first request.

        Args:
            name: the tensor.
            dim: its dimension, or ``GROUPED`` for dimension 1 of a grouped convolution's weight.
            blocks: the convolution's groups (``GROUPED`` only).
        """
        if (name, dim) not in self.axes:
            shape = self.tensors[name].shape
            self.axes[name, dim] = self.slots.new(shape[1] * blocks if dim == GROUPED else shape[dim])
            if dim == GROUPED:
                self.blocks[name] = blocks
        return self.axes[name, dim]

    def count(self, module: tuple[str, nn.Module], attribute: str, slots: Tensor) -> None:
        """Remember that the module's attribute, where it has it, is the number of these slots."""
        if isinstance(getattr(module[1], attribute, None), int):
            self.attributes.setdefault((module[0], attribute), slots)

    def count_size(self, module: str, attribute: str, slots: Tensor) -> None:
        """Remember that the forward pass asks for the number of these slots by an attribute."""
        known = self.attributes.setdefault((module, attribute), slots)
        if known.numel() != slots.numel():
            self.slots.pin(torch.cat([known, slots]))
        elif known is not slots:
            self.slots.unite(known, slots)
        self.needed.add((module, attribute))

    def settle_attributes(self) -> None:
        """Forget the counts of frozen attributes; channels whose number the forward pass takes from one stay."""
        for module, attribute in sorted(self.frozen & set(self.attributes)):
            slots = self.attributes.pop((module, attribute))
            if (module, attribute) in self.needed and not self.pinned(slots):
                self.note(
                    f"{module or 'model'}: computes with its attribute {attribute}: the channels it counts are kept"
                )
                self.slots.pin(slots)

    def heads_known(self, labels: Tensor) -> bool:
        """Whether these are the heads of an attention met before."""
        roots = self.slots.roots(labels)
        return any(
            known.numel() == labels.numel() and bool((self.slots.roots(known) == roots).all())
            for _, known in self.heads
        )

    def pin_tensor(self, name: str) -> None:
        """Keep every axis of a parameter or buffer."""
        for dim in range(self.tensors[name].dim()):
            if dim < 2 or (name, dim) in self.axes:
                self.slots.pin(self.axis(name, dim))
        if (name, GROUPED) in self.axes:
            self.slots.pin(self.axes[name, GROUPED])

    def pin_everything(self) -> None:
        """Keep every channel seen so far."""
        self.slots.pin(torch.arange(len(self.slots), device="cpu"))

    def note(self, message: str) -> None:
        """Record a reason once."""
        if message not in self.notes:
            self.notes.append(message)

    def pinned(self, labels: Tensor) -> bool:
        """Whether all of the slots must stay."""
        return bool((self.slots.roots(labels) == PINNED).all())


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, then buffers, by name; a tied tensor by its first name only."""
    named: dict[str, Tensor] = dict(model.named_parameters())
    for name, buffer in model.named_buffers():
        named.setdefault(name, buffer)
    return named


def is_conv1d_linear(module: nn.Module) -> bool:
    """Whether a module is the ``Conv1D`` of Hugging Face's GPT-2: a linear layer with a transposed weight."""
    return type(module).__name__ == "Conv1D" and getattr(module, "weight", torch.empty(0, device="cpu")).dim() == 2


def refuse_shapeless(model: nn.Module) -> None:
    """Raise UnsupportedModelError where a parameter or buffer has no shape yet."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        for key, tensor in {**vars(module), **module._parameters, **module._buffers}.items():
            if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
                raise UnsupportedModelError(f"{name or 'model'} ({kind}): {key} has no shape yet: run the model once")
