"""Configurations of Hugging Face models: numbers that all layers share follow where all layers are cut alike.

Forward passes take sizes from the layers themselves, so that layers may differ. The shared configuration only matters
when a model is built from it (``save_pretrained``, ``from_pretrained``, static caches): it is changed where it can
still describe every layer, and left alone otherwise.

Whether it describes them is tried: the class is built from the changed configuration on the meta device, and its
tensors' names and shapes are compared. What no configuration says (layers of different widths, heads of a number that
does not divide the width, a bias that the class does not have) is named in a note: ``from_pretrained`` would refuse
such a model, or lose the tensor; :func:`sparse_accel.save` and :func:`sparse_accel.load` do not.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparse_accel.channels.widths import Width
from sparse_accel.removal.surgery import Plan, attribute

_NEURONS = ("intermediate_size", "ffn_dim", "d_ff", "hidden_dim", "n_inner")
_INNER = re.compile("inner|intermediate|ffn|d_ff|mlp|hidden_dim")  # names that may be None: a multiple of the width
RELOAD = "from_pretrained: "  # what a note about a configuration starts with
UNSAID = "no configuration says what "  # in a note about tensors that a class builds otherwise
ADVICE = "save with sparse_accel.save and load with sparse_accel.load"  # what it ends in
_CHOICES = 4  # different numbers of units that are tried for one name

Changes = dict[str, list[Any]]


def owner_of(model: nn.Module, module: str) -> str | None:
    """The outermost module around a layer that is saved with a configuration and rebuilt from it, if there is one.

    Args:
        model: with the layer.
        module: name of the layer.
    """
    parts = module.split(".") if module else []
    for end in range(len(parts) + 1):
        path = ".".join(parts[:end])
        if _is_rebuilt(model.get_submodule(path)):
            return path
    return None


def _is_rebuilt(module: nn.Module) -> bool:
    return callable(getattr(module, "save_pretrained", None)) and getattr(module, "config", None) is not None


def has_rebuilt(model: nn.Module) -> bool:
    """Whether a model, or a module in it, is rebuilt from a configuration when it is loaded."""
    return any(map(_is_rebuilt, model.modules()))


def follow_removal(
    model: nn.Module, small: nn.Module, plan: Plan, widths: list[Width], kept: Mapping[str, Tensor]
) -> None:
    """Let the configurations of a smaller model follow, in the model and its plan; note what they cannot say.

    Args:
        model: the dense model.
        small: a copy without some units, whose configurations are those of the dense one.
        plan: of the removal; gets ``attributes`` and ``notes``.
        widths: all widths of the dense model.
        kept: units kept, by width.
    """
    owners = [name for name, module in model.named_modules() if _is_rebuilt(module) and owner_of(model, name) == name]
    if "" not in owners:
        _apply(small, plan, "", config_changes(model, widths, kept))
    for path in owners:
        owner, left = small.get_submodule(path), _differences(small.get_submodule(path))
        for proposal in _proposals(owner.config, widths, kept):
            if left is None or not left.tensors:
                break
            tried = _differences(owner, proposal)
            if tried is None:
                continue
            moved = {name for name, shape in tried.shapes.items() if left.shapes.get(name) != shape}
            if tried.tensors < left.tensors and not moved & tried.tensors:  # all that it says is right
                old = {key: attribute(owner, f"config.{key}") for key in proposal}
                _apply(small, plan, path, {f"config.{key}": [old[key], new] for key, new in proposal.items()})
                left = tried
        _note_reload(model, small, plan, path)


def follow_biases(model: nn.Module, small: nn.Module, plan: Plan) -> None:
    """Where new biases were made, switch on the configuration's flags for them; layers beside get biases of zero.

    Args:
        model: the dense model.
        small: with the biases; changed in place.
        plan: with them in ``created``; gets ``attributes`` and ``created``, and its notes are renewed.
    """
    for path in {owner_of(small, name.rpartition(".")[0]) for name in plan["created"]} - {None}:
        owner = small.get_submodule(str(path))
        for key in [key for key, value in _entries(owner.config) if value is False and "bias" in key]:
            left, tried = _differences(owner), _differences(owner, {key: True})
            if left is None or tried is None:
                break
            more = tried.tensors - left.tensors
            if left.tensors <= tried.tensors or not all(name.endswith("bias") for name in more):
                continue
            _apply(small, plan, str(path), {f"config.{key}": [False, True]})
            for name in sorted(more):
                _zero_bias(small, plan, f"{path}.{name}" if path else name)
        _note_reload(model, small, plan, str(path))


def _zero_bias(small: nn.Module, plan: Plan, name: str) -> None:
    layer = small.get_submodule(name.rpartition(".")[0])
    weight = layer.get_parameter("weight")
    size = weight.shape[1 if type(layer).__name__ == "Conv1D" else 0]
    bias = nn.Parameter(weight.new_zeros(size), requires_grad=weight.requires_grad)
    layer.register_parameter("bias", bias)
    plan["created"][name] = {"shape": [size], "like": f"{name.rpartition('.')[0]}.weight"}


def _note_reload(model: nn.Module, small: nn.Module, plan: Plan, path: str) -> None:
    """Renew the plan's note on what the configuration of ``small``'s module at ``path`` does not say."""
    start = f"{RELOAD}{path or 'the model'} ({type(small.get_submodule(path)).__name__}): "
    plan["notes"] = [note for note in plan["notes"] if not note.startswith(start)]
    came, before = _differences(small.get_submodule(path)), _differences(model.get_submodule(path))
    if came is None:
        plan["notes"].append(f"{start}cannot be built from its configuration for comparison; {ADVICE}")
        return
    names = sorted(came.tensors) + sorted(
        came.numbers - (before or came).numbers
    )  # a number may have been another one all along
    if names:
        shown = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
        plan["notes"].append(f"{start}{UNSAID}{shown} became; {ADVICE}")


def _apply(small: nn.Module, plan: Plan, path: str, changes: Changes) -> None:
    for key, (_, new) in changes.items():
        owner, _, last = key.rpartition(".")
        setattr(attribute(small.get_submodule(path), owner), last, new)
    if changes:
        plan["attributes"].setdefault(path, {}).update(changes)


class _Differences(NamedTuple):
    """In what a model differs from one that is built from a configuration.

    Attributes:
        tensors: names of those that are missing, too many or of another shape.
        numbers: names of attributes of modules.
        shapes: of the tensors built.
    """

    tensors: set[str]
    numbers: set[str]
    shapes: dict[str, torch.Size]


def _differences(owner: nn.Module, changes: Mapping[str, Any] | None = None) -> _Differences | None:
    """Tensors, and numbers that modules hold, in which a model differs from what its configuration builds.

    Args:
        owner: the model.
        changes: numbers of its configuration to change before, by dotted name.

    Returns:
        What differs; None if nothing can be built.
    """
    build: Any = type(owner)
    try:
        config: Any = copy.deepcopy(owner.config)
        for key, value in (changes or {}).items():
            path, _, last = key.rpartition(".")
            setattr(attribute(config, path), last, value)
        if hasattr(config, "to_dict"):
            type(config).from_dict(config.to_dict())  # what a loader does: numbers that do not go together are refused
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            built: nn.Module = build(config)
    except Exception:  # anything that a class may raise
        return None
    own, other = (
        {name: tensor.shape for name, tensor in one.state_dict().items() if isinstance(tensor, Tensor)}
        for one in (owner, built)
    )
    tensors = {name for name in own.keys() | other.keys() if own.get(name) != other.get(name)}
    modules, numbers = dict(owner.named_modules()), set()
    for name, module in built.named_modules():
        for key, value in vars(module).items() if name in modules else ():
            if type(value) in (int, float) and getattr(modules[name], key, None) != value:
                numbers.add(f"{name}.{key}" if name else key)
    return _Differences(tensors, numbers, other)


def _entries(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers, flags and empty entries of a configuration and those inside it, by dotted name."""
    for key, value in getattr(config, "__dict__", {}).items():
        if key.startswith("_"):
            continue
        if value is None or type(value) in (int, bool):
            yield prefix + key, value
        elif hasattr(value, "to_dict") and not isinstance(value, type):
            yield from _entries(value, f"{prefix}{key}.")


def _proposals(config: Any, widths: list[Width], kept: Mapping[str, Tensor]) -> list[dict[str, int]]:
    """Numbers that could describe the smaller model, several together where they only make sense so."""
    cut = [width for width in widths if width.name in kept and kept[width.name].shape[-1] < width.units]
    entries = list(_entries(config))
    proposals: list[dict[str, int]] = []
    for kind in ("heads", "channels", "experts"):
        news: dict[int, set[int]] = {}
        for width in (width for width in cut if width.kind == kind):
            news.setdefault(width.units, set()).add(kept[width.name].shape[-1])
        for units, numbers in ((u, n) for u, n in news.items() if len(n) <= _CHOICES):
            for new in sorted(numbers):
                if kind == "heads":
                    counts = {k: v for k, v in entries if _counts_heads(k) and type(v) is int and v and v % units == 0}
                    for prefix in sorted({key.rpartition(".")[0] for key in counts}):
                        own = {k: v // units * new for k, v in counts.items() if k.rpartition(".")[0] == prefix}
                        proposals += [own] + [{key: value} for key, value in own.items() if len(own) > 1]
                else:
                    same = [key for key, value in entries if type(value) is int and value == units]
                    open_ = [key for key, value in entries if value is None and _INNER.search(key)]
                    proposals += [{key: new} for key in [*same, *open_]]
    return proposals


def _counts_heads(key: str) -> bool:
    last = key.rpartition(".")[2]
    return "head" in last and not any(word in last for word in ("dim", "size", "mask", "group"))


def config_changes(model: nn.Module, widths: list[Width], kept: Mapping[str, Tensor]) -> Changes:
    """Numbers of ``model.config`` that change where it is an object that nothing can be built from.

    Args:
        model: the dense model.
        widths: all of its widths.
        kept: units to keep, by width.

    Returns:
        ``{"config.<name>": [old, new]}``
    """
    config = getattr(model, "config", None)
    if config is None or isinstance(config, (nn.Module, dict)):
        return {}
    changes: Changes = {}
    inner = [width for width in widths if not width.coupled]
    for key in _NEURONS:
        old = getattr(config, key, None)
        if type(old) is not int:
            continue
        cut = [width for width in inner if width.kind == "channels" and width.units == old]
        made = {name for width in cut for name in width.producers}
        others = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module.out_features == old and name not in made
        ]
        counts = {len(kept[width.name]) if width.name in kept else width.units for width in cut}
        if len(counts) == 1 and old not in counts and not others:
            changes[f"config.{key}"] = [old, counts.pop()]
    return changes
