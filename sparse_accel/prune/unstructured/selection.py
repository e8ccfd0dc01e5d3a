"""Which layers of a model are pruned, which are left, why, and how large a share of the weights those are."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from sparse_accel.calibration.moments import column_count
from sparse_accel.calibration.slices import as_stack
from sparse_accel.channels.graph import is_conv1d_linear
from sparse_accel.prune.layerwise.targets import BlockSparsity
from sparse_accel.prune.unstructured.layers import Layer, StackedLayer, matches

Targets = str | Sequence[str] | Mapping[str, Any] | None
SUPPORTED = "Linear, Conv1d, Conv2d, Conv3d, Conv1D (Hugging Face) or a stack of matrices (experts)"
ASKED = ("skip", "targets")  # reasons for layers that the caller wants as they are
MOST_LEFT = 0.1  # of the weights, for other reasons, without a warning
TABLE = "a table that is looked up in"
_SUPPORTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass
class Selection:
    """What :func:`select_layers` found.

    Attributes:
        layers: to be pruned, in the order of ``model.named_modules()``.
        left: weights of two or more dimensions that are not pruned, by module (by parameter, where it is not called
            weight), with the reason.
        explicit: whether the caller named the layers.
        patterns: by which they were named.
    """

    layers: list[Layer]
    left: dict[str, str] = field(default_factory=dict)
    explicit: bool = False
    patterns: frozenset[str] = frozenset()

    def leave(self, layer: Layer, reason: str) -> None:
        """Do not prune a layer after all.

        Raises:
            ValueError: the caller named it by its very name.
        """
        if layer.name in self.patterns:
            raise ValueError(f"targets: {layer.where} cannot be pruned: {reason}")
        self.layers = [other for other in self.layers if other is not layer]
        self.left[layer.name] = reason


def select_layers(model: nn.Module, targets: Targets, skip: Sequence[str], sparsity: Any) -> Selection:
    """The layers that are asked for, each weight once.

    Args:
        model: whose modules they are.
        targets: None for every supported layer, a pattern (see :func:`matches`), several, or a mapping from patterns
            to sparsities (None: leave it), the last match counting. A stack of matrices goes by its parameter's name.
        skip: patterns of layers to leave as they are.
        sparsity: of the layers for which ``targets`` names none.

    Raises:
        TypeError: ``targets`` or ``skip`` is neither of these.
        ValueError: a pattern of ``targets`` matches no layer that can be pruned, or there is none at all.
    """
    patterns = _patterns(targets, sparsity)
    if isinstance(skip, str) or not all(isinstance(item, str) for item in skip):
        raise TypeError(f"skip: expected a sequence of patterns, got {skip!r}")
    out = Selection(
        [], explicit=targets is not None, patterns=frozenset(patterns) if targets is not None else frozenset()
    )
    owners = _owners(model)
    used: set[str] = set()
    found: dict[int, Layer] = {}
    for name, module, layer in _candidates(model):
        hits = [pattern for pattern in patterns if matches(layer.name, pattern)]
        if not hits:
            continue
        used.update(hits)
        stack = isinstance(layer, StackedLayer)
        reason = "skip" if any(matches(layer.name, pattern) for pattern in skip) else None
        if reason is None and not stack:
            reason = _unsuitable(module)
        layer.target = patterns[hits[-1]]
        if reason is None and layer.target is None:
            reason = "targets"
        if reason is None and not stack:
            reason = _too_narrow(module, layer.target)
        if reason is not None:
            out.left.setdefault(layer.name, reason)
            continue
        layer = found.setdefault(id(layer.weight), layer)
        if module not in layer.modules.values():
            layer.modules[name] = module
    for name, module in model.named_modules():
        if name in out.patterns - used and not any(module.children()):
            raise ValueError(f"targets: {name} ({type(module).__name__}): expected a {SUPPORTED}")
    out.layers = _unshared(found, owners, out)
    _check_patterns(patterns, used, out, targets)
    _list_the_rest(model, out)
    return out


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module, Layer]]:
    """What may be pruned: modules of the supported kinds, and parameters that may be stacks of matrices."""
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _SUPPORTED) or is_conv1d_linear(module):
            yield name, module, Layer(name, {name: module}, None)
        elif not isinstance(module, (nn.modules.conv._ConvNd, parametrize.ParametrizationList)):
            for local, parameter in module._parameters.items():
                if parameter is not None and _may_be_stack(parameter):
                    path = f"{name}.{local}" if name else local
                    own = name if local == "weight" else path
                    yield name, module, StackedLayer(own, {name: module}, None, module, local, path)


def _may_be_stack(parameter: nn.Parameter) -> bool:
    """Whether a parameter has the form of a stack of matrices; its use has to tell the rest."""
    if isinstance(parameter, nn.parameter.UninitializedParameter) or parameter.dim() < 3 or not parameter.numel():
        return False
    plain = parameter.is_floating_point() and parameter.layout == torch.strided and parameter.device.type != "meta"
    return plain and as_stack(parameter) is not None


def _list_the_rest(model: nn.Module, out: Selection) -> None:
    """Name every other weight of two or more dimensions in ``left``."""
    pruned = {id(layer.weight) for layer in out.layers}
    for parameter, names in _names_of_weights(model):
        if id(parameter) in pruned or any(name in out.left for name, _, _ in names):
            continue
        name, module, local = names[0]
        kind = type(module).__name__
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            reason = f"{TABLE} ({kind})"
        elif isinstance(module, _SUPPORTED) or is_conv1d_linear(module):
            reason = "targets"
        elif local == "weight":
            reason = f"{kind} is not supported"
        else:
            reason = f"a parameter of {kind}, which is not supported"
        out.left[name] = reason


def _names_of_weights(model: nn.Module) -> Iterator[tuple[nn.Parameter, list[tuple[str, nn.Module, str]]]]:
    """Parameters of two or more dimensions, each with the names that ``left`` has for it, the module, its own name.

    The weight of a module, also a parametrized one, goes by the module's name.
    """
    names: dict[nn.Parameter, list[tuple[str, nn.Module, str]]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for prefix, module in modules.items():
        for local, parameter in module._parameters.items():
            if parameter is None or isinstance(parameter, nn.parameter.UninitializedParameter) or parameter.dim() < 2:
                continue
            own, owner, key = prefix, module, local
            if isinstance(module, parametrize.ParametrizationList):
                own, _, key = prefix.removesuffix(".parametrizations").rpartition(".")
                own = own.removesuffix("parametrizations").removesuffix(".")
                owner = modules[own]
            name = own if key == "weight" else f"{own}.{key}".lstrip(".")
            names.setdefault(parameter, []).append((name, owner, key))
    yield from names.items()


def shares_of(model: nn.Module, left: Mapping[str, str]) -> tuple[dict[str, float], int]:
    """The share of all weights (parameters of two or more dimensions, each once) that each name in ``left`` has.

    Returns:
        The shares, and the number of all weights.
    """
    weights = list(_names_of_weights(model))
    total = sum(parameter.numel() for parameter, _ in weights)
    shares = dict.fromkeys(left, 0.0)
    for parameter, names in weights:
        for name, _, _ in names:
            if name in left:
                shares[name] += parameter.numel() / total
                break
    return shares, total


def warn_of_left(left: Mapping[str, str], shares: Mapping[str, float]) -> None:
    """Warn where more than a tenth of the weights is left for another reason than that the caller wants it.

    Tables that are looked up in are no maps of inputs: they are listed, and do not count here.
    """
    named = {
        name: shares[name] for name, reason in left.items() if reason not in ASKED and not reason.startswith(TABLE)
    }
    if sum(named.values()) <= MOST_LEFT:
        return
    largest = sorted(named, key=lambda name: -named[name])
    listed = "; ".join(f"{name} ({100 * named[name]:.1f} %): {left[name]}" for name in largest[:5])
    more = f"; and {len(largest) - 5} more" if len(largest) > 5 else ""
    warnings.warn(
        f"{100 * sum(named.values()):.1f} % of the model's weights are left dense, see report.left: {listed}{more}",
        stacklevel=4,
    )


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
        return "its weight has no values yet (sa.map_weights(model, folder) takes them from safetensors files)"
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
    layers: list[Layer] = []
    for key, layer in found.items():
        others = {n: m for n, m in owners.get(key, {}).items() if m not in layer.modules.values()}
        if others:
            name, module = next(iter(others.items()))
            out.left[layer.name] = f"its weight is also that of {name or 'model'} ({type(module).__name__})"
        elif isinstance(layer, StackedLayer):
            layers.append(layer)
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
