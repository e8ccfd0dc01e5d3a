"""Values of a JSON file that know where they stand."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Key = str | int


class CheckpointError(RuntimeError):
    """A checkpoint is missing or damaged, or does not belong to the model; the model is unchanged."""


class Field:
    """A value in a JSON file; where it is not what is asked for, a CheckpointError names file and key.

    Args:
        value: as read.
        path: of the file.
        keys: that lead to the value.

    Example:
        >>> plan = Field({"a": {"shape": [2, -3]}}, Path("plan.json"))
        >>> plan["a"]["shape"].sizes()
        Traceback (most recent call last):
        sparse_accel.removal.fields.CheckpointError: plan.json: a.shape.1: expected a number from 0 on, got -3
    """

    def __init__(self, value: Any, path: Path, keys: tuple[Key, ...] = ()) -> None:
        self.value = value
        self.path = path
        self.keys = keys

    @property
    def where(self) -> str:
        """File and key."""
        return ": ".join([str(self.path), *([".".join(map(str, self.keys))] if self.keys else [])])

    def wrong(self, expected: str) -> CheckpointError:
        """The error that something else was expected."""
        text = json.dumps(self.value)
        text = text if len(text) < 80 else text[:77] + "..."
        return CheckpointError(f"{self.where}: expected {expected}, got {text}")

    def _child(self, key: Key) -> Field:
        return Field(self.value[key], self.path, (*self.keys, key))

    def __contains__(self, key: str) -> bool:
        return isinstance(self.value, dict) and key in self.value

    def __getitem__(self, key: str) -> Field:
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        if key not in self.value:
            raise CheckpointError(f"{self.where}: {key!r} is missing")
        return self._child(key)

    def items(self) -> Iterator[tuple[str, Field]]:
        """Of an object."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return ((key, self._child(key)) for key in self.value)

    def entries(self) -> list[Field]:
        """Of an array."""
        if not isinstance(self.value, list):
            raise self.wrong("an array")
        return [self._child(index) for index in range(len(self.value))]

    def text(self) -> str:
        """A string."""
        if not isinstance(self.value, str):
            raise self.wrong("a string")
        return self.value

    def texts(self) -> list[str]:
        """An array of strings."""
        return [entry.text() for entry in self.entries()]

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def integer(self, low: int = 0, high: int | None = None) -> int:
        """A whole number."""
        fits = type(self.value) is int and low <= self.value and (high is None or self.value <= high)
        if not fits:
            raise self.wrong(f"a number from {low} {'on' if high is None else f'to {high}'}")
        return int(self.value)

    def number(self, low: float = -math.inf, high: float = math.inf) -> float:
        """A real number; NaN where there are no bounds above."""
        plain = not isinstance(self.value, bool) and isinstance(self.value, (int, float))
        if not plain or self.value < low or not (self.value <= high or high == math.inf):
            raise self.wrong("a number" if low == -math.inf else f"a number from {low:g} to {high:g}")
        if isinstance(self.value, int) and abs(self.value) > 2**1000:
            raise self.wrong("a number that fits into 64 bits")
        return float(self.value)

    def sizes(self) -> list[int]:
        """A tensor's shape."""
        return [entry.integer() for entry in self.entries()]

    def order(self, dims: int) -> list[int]:
        """The dimensions ``0 ... dims - 1``, in some order."""
        found = [entry.integer() for entry in self.entries()]
        if sorted(found) != list(range(dims)):
            raise self.wrong(f"the numbers 0 to {dims - 1} in some order" if dims else "an empty array")
        return found

    def indices(self, size: int) -> list[int]:
        """Increasing indices of a dimension of this size, at least one."""
        found = [entry.integer(0, size - 1) for entry in self.entries()]
        if not found or any(b <= a for a, b in itertools.pairwise(found)):
            raise self.wrong("one or more increasing indices")
        return found
