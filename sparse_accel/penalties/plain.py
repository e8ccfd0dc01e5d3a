"""Penalties as plain values, and the way back: by the names of the kinds that were registered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import Penalty
from .group import L1, GroupL0, GroupLasso

_BY_NAME: dict[str, Any] = {kind.name: kind for kind in (GroupLasso, L1, GroupL0)}
_WRAPPERS: dict[type, Any] = {}  # of objects that are no Penalty: what makes one of them


def register(kind: Any, of: type | None = None) -> None:
    """Have :func:`penalty_from_plain` know a kind of penalty by its name, and the objects of a class ``of``."""
    _BY_NAME[kind.name] = kind
    if of is not None:
        _WRAPPERS[of] = kind


def kind_of(name: str) -> Any:
    """The kind that was registered under a name, or None."""
    return _BY_NAME.get(name)


def penalty_from_plain(penalty: Any) -> Penalty | None:
    """The penalty that :meth:`Penalty.to_plain` described; a penalty, or None, comes back as it is.

    Raises:
        TypeError: neither a penalty nor a mapping nor None, or of a class that is not registered.
        ValueError: no penalty has this name, or its numbers are out of range.

    Example:
        >>> penalty_from_plain({"name": "l1", "strength": 0.5, "by": "element"})
        L1(strength=0.5)
    """
    if penalty is None or isinstance(penalty, Penalty):
        return penalty
    if type(penalty) in _WRAPPERS:
        wrapped: Penalty = _WRAPPERS[type(penalty)](penalty)
        return wrapped
    if not isinstance(penalty, Mapping):
        if hasattr(penalty, "value") and hasattr(penalty, "prox_"):
            name = type(penalty).__name__
            raise TypeError(f"penalty: {name} is not known by a name: declare its class by register_penalty({name})")
        raise TypeError(f"penalty: expected a penalty such as GroupLasso(1e-4), or None, got {penalty!r}")
    kind = _BY_NAME.get(penalty.get("name", ""))
    if kind is None:
        raise ValueError(f"penalty: expected a name among {', '.join(map(repr, _BY_NAME))}, got {dict(penalty)!r}")
    found: Penalty = kind.from_plain(penalty)
    return found
