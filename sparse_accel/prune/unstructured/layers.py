"""The layers to prune: a weight as a matrix for each group of outputs, and the modules that apply it."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.calibration.moments import column_count
from sparse_accel.calibration.slices import SliceCall
from sparse_accel.channels.graph import is_conv1d_linear


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern names a module or one of its parents: shell wildcards on a run of the dotted name's parts.

    Example:
        >>> matches("model.lm_head", "lm_head"), matches("encoder.layer.0.output.dense", "layer.0")
        (True, True)
        >>> matches("encoder.layer.10.output.dense", "layer.1"), matches("conv2", "conv*")
        (False, True)
    """
    parts = name.split(".")
    runs = (".".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1))
    return any(fnmatchcase(run, pattern) for run in runs) or fnmatchcase(name, pattern)


@dataclass
class Layer:
    """A weight to be pruned and the modules that apply it.

    Attributes:
        name: of the first of the modules.
        modules: every module that holds this weight, by name.
        target: the sparsity asked for.
    """

    name: str
    modules: dict[str, nn.Module]
    target: Any

    @property
    def module(self) -> nn.Module:
        """The first of the modules."""
        return self.modules[self.name]

    @property
    def weight(self) -> nn.Parameter:
        """The parameter."""
        return self.module.weight  # type: ignore[return-value]

    @property
    def parameter_name(self) -> str:
        """The parameter's name in the model."""
        return f"{self.name}.weight".lstrip(".")

    @property
    def kind(self) -> str:
        """The module's class."""
        return type(self.module).__name__

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(groups, rows, columns)`` of :meth:`matrix`."""
        groups, features = column_count(self.module)
        return groups, self.weight.numel() // (groups * features), features

    @property
    def where(self) -> str:
        """How messages name the layer."""
        return f"{self.name or 'model'} ({self.kind})"

    def matrix(self) -> Tensor:
        """A copy of the weight as the map of :func:`sparse_accel.calibration.moments.columns`, [groups, R, C]."""
        return self.as_matrix(self.weight.detach()).clone()

    def as_matrix(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's shape as such a matrix."""
        return (weight.t() if is_conv1d_linear(self.module) else weight).reshape(self.shape)

    def write(self, matrix: Tensor) -> None:
        """Put a matrix of :meth:`matrix`'s shape into the weight."""
        with torch.no_grad():
            self.weight.copy_(self.as_weight(matrix))

    def as_weight(self, matrix: Tensor) -> Tensor:
        """A matrix in the shape of the weight."""
        if is_conv1d_linear(self.module):
            return matrix.reshape(self.shape[1:]).t()
        return matrix.reshape(self.weight.shape)

    def geometry(self, module: nn.Module) -> tuple[Any, ...]:
        """What makes two modules turn one input into the same columns."""
        if isinstance(module, nn.modules.conv._ConvNd):
            keys = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
            return (module.in_channels, *(getattr(module, key) for key in keys))
        return ("linear", column_count(module)[1])


@dataclass
class StackedLayer(Layer):
    """A parameter ``[E, ..]`` whose slices are matrices of linear maps, ``[E, out, in]`` or ``[E, in, out]``.

    Attributes:
        name: of the parameter; where that is called ``weight``, of the module.
        modules: the module that a pass has to call for the parameter to be used.
        owner: the module that holds the parameter,
        local: under this name.
        path: of the parameter in the model.
        input_last: ``[E, out, in]``; None until the first use shows.
        fault: how else the parameter is used, if it is.
    """

    owner: nn.Module = field(default_factory=nn.Module)
    local: str = ""
    path: str = ""
    input_last: bool | None = None
    fault: str | None = None

    @property
    def module(self) -> nn.Module:
        """The module that holds the parameter."""
        return self.owner

    @property
    def weight(self) -> nn.Parameter:
        """The parameter."""
        return self.owner.get_parameter(self.local)

    @property
    def parameter_name(self) -> str:
        """The parameter's name in the model."""
        return self.path

    @property
    def layout(self) -> str:
        """``"output,input"`` or ``"input,output"``: what a slice's dimensions are."""
        return "output,input" if self.input_last else "input,output"

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(E, out, in)``"""
        *_, first, second = self.weight.shape
        rows, features = (first, second) if self.input_last else (second, first)
        return self.weight.numel() // (rows * features), rows, features

    def as_matrix(self, weight: Tensor) -> Tensor:
        """A tensor of the parameter's shape as ``[E, out, in]``."""
        stack = weight.reshape(-1, *weight.shape[-2:])
        return stack if self.input_last else stack.mT.contiguous()

    def as_weight(self, matrix: Tensor) -> Tensor:
        """``[E, out, in]`` in the shape of the parameter."""
        return (matrix if self.input_last else matrix.mT).reshape(self.weight.shape)

    def saw(self, call: SliceCall) -> None:
        """Learn from a product what the slices' dimensions are."""
        if self.input_last is None:
            self.input_last = call.input_last
        elif self.input_last is not call.input_last:
            self.fault = "its slices are used both ways round"


@dataclass
class Step:
    """Layers that read the same inputs: one Hessian, solved together.

    Attributes:
        layers: in the order of their calls.
        calls: how often every batch applies the first of them; 0 if not all batches do equally often.
    """

    layers: list[Layer]
    calls: int = 1

    @property
    def name(self) -> str:
        """The first layer's name."""
        return self.layers[0].name
