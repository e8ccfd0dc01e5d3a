"""Which layers of a model are pruned, in which order, and which of them read the same inputs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparse_accel.calibration.moments import column_count
from sparse_accel.channels.graph import is_conv1d_linear
from sparse_accel.prune.layerwise.targets import BlockSparsity

logger = logging.getLogger("sparse_accel")

Targets = str | Sequence[str] | Mapping[str, Any] | None
SUPPORTED = "Linear, Conv1d, Conv2d, Conv3d or Conv1D (Hugging Face)"
_SUPPORTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


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


@dataclass
class Selection:
    """What :func:`select_layers` found.

    Attributes:
        layers: to be pruned, in the order of ``model.named_modules()``.
        left: layers that could be pruned but are not, by name, with the reason.
        explicit: whether the caller named the layers.
    """

    layers: list[Layer]
    left: dict[str, str] = field(default_factory=dict)
    explicit: bool = False


def select_layers(model: nn.Module, targets: Targets, skip: Sequence[str], sparsity: Any) -> Selection:
    """The layers that are asked for, each weight once.

    Args:
        model: whose modules they are.
        targets: None for every supported layer, a pattern (see :func:`matches`), several, or a mapping from patterns
            to sparsities (None: leave it), the last match counting.
        skip: patterns of layers to leave as they are.
        sparsity: of the layers for which ``targets`` names none.

    Raises:
        TypeError: ``targets`` or ``skip`` is neither of these.
        ValueError: a pattern of ``targets`` matches no layer that can be pruned, or there is none at all.
    """
    patterns = _patterns(targets, sparsity)
    if isinstance(skip, str) or not all(isinstance(item, str) for item in skip):
        raise TypeError(f"skip: expected a sequence of patterns, got {skip!r}")
    out = Selection([], explicit=targets is not None)
    owners = _owners(model)
    used: set[str] = set()
    found: dict[int, Layer] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        hits = [pattern for pattern in patterns if matches(name, pattern)]
        if not isinstance(module, _SUPPORTED) and not is_conv1d_linear(module):
            if name in hits and not any(module.children()):
                raise ValueError(f"targets: {name} ({type(module).__name__}): expected a {SUPPORTED}")
            continue
        if not hits:
            continue
        used.update(hits)
        reason = "skip" if any(matches(name, pattern) for pattern in skip) else _unsuitable(module)
        target = patterns[hits[-1]]
        if reason is None:
            reason = "targets" if target is None else _too_narrow(module, target)
        if reason is not None:
            out.left.setdefault(name, reason)
            continue
        layer = found.setdefault(id(module.weight), Layer(name, {}, target))
        if module not in layer.modules.values():
            layer.modules[name] = module
    out.layers = _unshared(found, owners, out)
    _check_patterns(patterns, used, out, targets)
    return out


def _patterns(targets: Targets, sparsity: Any) -> dict[str, Any]:
    if targets is None:
        return {"*": sparsity}
    if isinstance(targets, str):
        return {targets: sparsity}
    if isinstance(targets, Mapping):
        out = dict(targets)
    elif isinstance(targets, Sequence):
        out = dict.fromkeys(targets, sparsity)
    else:
        raise TypeError(f"targets: expected patterns or a mapping from patterns, got {type(targets).__name__}")
    for pattern in out:
        if not isinstance(pattern, str):
            raise TypeError(f"targets: expected strings as patterns, got {pattern!r}")
    return out


def _owners(model: nn.Module) -> dict[int, dict[str, nn.Module]]:
    """Every module that holds a parameter, by the parameter's id."""
    owners: dict[int, dict[str, nn.Module]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), {})[name] = module
    return owners


def _unsuitable(module: nn.Module) -> str | None:
    weight = getattr(module, "weight", None)
    if parametrize.is_parametrized(module, "weight"):
        return "its weight is computed (parametrization)"
    if not isinstance(weight, nn.Parameter):
        return "its weight is not a parameter"
    if isinstance(weight, nn.parameter.UninitializedParameter) or weight.device.type == "meta":
        return "its weight has no values yet"
    if not weight.is_floating_point() or weight.layout != torch.strided:
        return f"its weight is {weight.dtype}, {weight.layout}"
    return "its weight is empty" if not weight.numel() else None


def _too_narrow(module: nn.Module, target: Any) -> str | None:
    """Why n:m removes nothing of a layer: it has no more than n neighbours."""
    try:
        blocks = BlockSparsity.read(target) if isinstance(target, str) else target
    except ValueError:
        return None  # the solver says what is wrong with it
    if not isinstance(blocks, BlockSparsity):
        return None
    count, what = column_count(module)[1], "inputs"
    if isinstance(module, nn.modules.conv._ConvNd) and blocks.along == "input":
        count, what = module.in_channels // module.groups, "input channels"
    of = " of each group" if getattr(module, "groups", 1) > 1 else ""
    if count > blocks.n:
        return None
    return f"{blocks.n}:{blocks.m} removes nothing where there are {count} {what}{of}"


def _unshared(found: Mapping[int, Layer], owners: Mapping[int, Mapping[str, nn.Module]], out: Selection) -> list[Layer]:
    """The layers whose weight no other module uses; layers of the same weight need the same shape."""
    layers = []
    for key, layer in found.items():
        others = {n: m for n, m in owners.get(key, {}).items() if m not in layer.modules.values()}
        if others:
            name, module = next(iter(others.items()))
            out.left[layer.name] = f"its weight is also that of {name or 'model'} ({type(module).__name__})"
        elif len({column_count(module) for module in layer.modules.values()}) > 1:
            out.left[layer.name] = f"{', '.join(layer.modules)} use one weight in different ways"
        else:
            layers.append(layer)
    return layers


def _check_patterns(patterns: Mapping[str, Any], used: set[str], out: Selection, targets: Targets) -> None:
    if targets is not None:
        for pattern in patterns:
            if pattern not in used:
                raise ValueError(f"targets: {pattern!r} matches no {SUPPORTED} module of the model")
        for name, reason in out.left.items():
            if name in patterns and reason not in ("targets",):
                raise ValueError(f"targets: {name} cannot be pruned: {reason}")
    if not out.layers:
        why = "".join(f"; {name}: {reason}" for name, reason in list(out.left.items())[:3])
        raise ValueError(f"model: expected at least one {SUPPORTED} module to prune, found none{why}")
