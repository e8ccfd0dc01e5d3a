"""Two results files beside each other: ratios of times, and which changes are larger than the spread of the rounds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_KEY = ("bench", "case", "workload", "device", "dtype")
_SAME = ("cpu", "gpu", "threads", "torch", "cpu_capability", "driver")  # facts without which times differ of themselves
_NEEDED = (*_KEY, "microseconds", "bytes_moved", "percent_of_copy", "copy_microseconds")

FASTER, SLOWER, WITHIN, UNKNOWN = "faster", "slower", "within the spread", "spread unknown"


@dataclasses.dataclass(frozen=True)
class Change:
    """A row of both files.

    Attributes:
        name: bench, case, workload, dtype.
        old: microseconds.
        new: microseconds.
        ratio: new over old; below 1 is faster.
        beside_copy: the same of the times over those of the copies that ran beside them: what a slower machine does to
            both is not in it.
        verdict: :data:`FASTER` or :data:`SLOWER` where the middle halves of the rounds lie apart, :data:`WITHIN` where
            they overlap, :data:`UNKNOWN` where a file has no spread.
    """

    name: str
    old: float
    new: float
    ratio: float
    beside_copy: float
    verdict: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Of two results files.

    Attributes:
        changes: rows that both have, in the order of the new file.
        only_old: rows that only the old file has.
        only_new: rows that only the new file has.
        notes: what is not the same about the machines.
    """

    changes: list[Change]
    only_old: list[str]
    only_new: list[str]
    notes: list[str]

    def text(self) -> str:
        """For people."""
        lines = [f"note: {note}" for note in self.notes]
        lines.append(f"{'old µs':>12} {'new µs':>12} {'ratio':>7} {'/ copy':>7}  ")
        for change in self.changes:
            numbers = f"{change.old:12,.1f} {change.new:12,.1f} {change.ratio:7.3f} {change.beside_copy:7.3f}"
            lines.append(f"{numbers}  {change.verdict:17}  {change.name}")
        for what, names in (("only in the old file", self.only_old), ("only in the new file", self.only_new)):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                lines.append(f"{what}: {'; '.join(names[:3])}{more}")
        counts = {verdict: sum(change.verdict == verdict for change in self.changes) for verdict in (FASTER, SLOWER)}
        rest = len(self.changes) - sum(counts.values())
        lines.append(
            f"{counts[FASTER]} faster and {counts[SLOWER]} slower beyond the spread; {rest} not to be told apart."
        )
        return "\n".join(lines)


def read(path: Path) -> dict[str, Any]:
    """A results file.

    Raises:
        ValueError: it is none; the message says what it lacks.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: expected a results file of sparse-accel bench --json, got no JSON: {error}"
        ) from error
    if not isinstance(content, dict) or not {"machine", "rows"} <= content.keys():
        raise ValueError(f"{path}: expected an object with machine and rows, as sparse-accel bench --json writes it")
    if content["machine"] is None:
        raise ValueError(f"{path}: expected benches, got a run on a GPU machine that ended before them")
    for number, row in enumerate(content["rows"]):
        missing = [name for name in _NEEDED if not isinstance(row, dict) or name not in row]
        if missing:
            raise ValueError(f"{path}: rows[{number}]: expected {', '.join(_NEEDED)}; missing: {', '.join(missing)}")
    return content


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> Comparison:
    """Hold two results against each other.

    Args:
        old: as :func:`read` gives it.
        new: the same.
    """
    before = {_key(row): row for row in old["rows"]}
    after = {_key(row): row for row in new["rows"]}
    both = [key for key in after if key in before]
    notes = [
        f"{fact}: {old['machine'].get(fact)} then, {new['machine'].get(fact)} now: compare the column '/ copy'"
        for fact in _SAME
        if old["machine"].get(fact) != new["machine"].get(fact)
    ]
    return Comparison(
        [_change(key, before[key], after[key]) for key in both],
        [_name(key) for key in before if key not in after],
        [_name(key) for key in after if key not in before],
        notes,
    )


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in _KEY)


def _name(key: Sequence[str]) -> str:
    bench, case, workload, device, dtype = key
    return f"{bench}: {case}, {workload}, {dtype}" + ("" if device == "cpu" else f", {device}")


def _change(key: Sequence[str], old: Mapping[str, Any], new: Mapping[str, Any]) -> Change:
    ratio = new["microseconds"] / old["microseconds"]
    copies = new["copy_microseconds"] / old["copy_microseconds"]
    return Change(_name(key), old["microseconds"], new["microseconds"], ratio, ratio / copies, verdict(old, new))


def verdict(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Of two rows, by their quartiles.

    Example:
        >>> verdict({"low_microseconds": 9, "high_microseconds": 11}, {"low_microseconds": 12, "high_microseconds": 13})
        'slower'
    """
    known = [row.get(name) for row in (old, new) for name in ("low_microseconds", "high_microseconds")]
    bounds = [float(bound) for bound in known if bound is not None]
    if len(bounds) < len(known):
        return UNKNOWN
    old_low, old_high, new_low, new_high = bounds
    return FASTER if new_high < old_low else SLOWER if new_low > old_high else WITHIN
