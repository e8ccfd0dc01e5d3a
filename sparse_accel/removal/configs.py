"""Configurations of Hugging Face models: numbers that all layers share follow where all layers are cut alike.

Forward passes take sizes from the layers themselves, so that layers may differ. The shared configuration only matters
when a model is built from it (``save_pretrained``, ``from_pretrained``, static caches): it is changed where it can
still describe every layer, and left alone otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sparse_accel.channels.widths import Width

_NEURONS = ("intermediate_size", "ffn_dim", "d_ff", "hidden_dim", "n_inner")


def config_changes(model: nn.Module, widths: list[Width], kept: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Numbers of ``model.config`` that change: ``{"config.<name>": [old, new]}``.

    Args:
        model: the dense model.
        widths: all of its widths.
        kept: units to keep, by width.
    """
    config = getattr(model, "config", None)
    if config is None or isinstance(config, (nn.Module, dict)):
        return {}
    changes: dict[str, list[int]] = {}
    inner = [width for width in widths if not width.coupled]
    for key in _NEURONS:
        old = _number(config, key)
        cut = [width for width in inner if width.kind == "channels" and width.units == old]
        made = {name for width in cut for name in width.producers}
        others = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module.out_features == old and name not in made
        ]
        new = _common(cut, kept)
        if old is not None and new is not None and new != old and not others:
            changes[f"config.{key}"] = [old, new]
    return changes | _head_changes(config, [width for width in inner if width.kind == "heads"], kept)


def _head_changes(config: Any, heads: list[Width], kept: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """The numbers of heads, where the configuration states the size of a head besides."""
    queries, keys = _number(config, "num_attention_heads"), _number(config, "num_key_value_heads")
    units, new = keys or queries, _common(heads, kept)
    if queries is None or units is None or new is None or new == units or _number(config, "head_dim") is None:
        return {}
    if len(heads) != _number(config, "num_hidden_layers") or any(width.units != units for width in heads):
        return {}
    changes = {"config.num_attention_heads": [queries, queries // units * new]}
    return changes | ({"config.num_key_value_heads": [units, new]} if keys else {})


def _number(config: Any, key: str) -> int | None:
    value = getattr(config, key, None)
    return value if type(value) is int else None


def _common(widths: list[Width], kept: Mapping[str, Tensor]) -> int | None:
    """How many units every one of the widths keeps, or None if they differ."""
    counts = {len(kept[width.name]) if width.name in kept else width.units for width in widths}
    return counts.pop() if len(counts) == 1 else None
