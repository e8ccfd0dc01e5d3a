"""The results file, the logs, and the table at the end."""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any

from .part import Outcome, Run

WIDTHS = (18, 12, 8)


class Report:
    """Collects what the parts gave, and writes it after every part: what was found before a crash or the limit of
    the whole call is kept.

    Files: ``bench/results/<date>-<card>.json`` (an older one of the same day and card stays, and this one gets a
    number), and where the environment names a folder OUT, there too, with the logs in one archive. A dry run writes
    nothing.

    Args:
        run: the run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._begin = time.monotonic()
        self._rows: list[dict[str, Any]] = []
        self._failures: list[dict[str, str]] = []
        self._data: dict[str, Any] = {}
        self.path: Path | None = None

    def add(self, part: str, outcome: Outcome, seconds: float) -> None:
        """A part has ended."""
        row = {"part": part, "result": outcome.result, "seconds": round(seconds, 1), "note": outcome.note}
        self._rows.append(row)
        self._failures += [{"part": part, **entry} for entry in outcome.failures]
        if outcome.data:
            self._data[part] = outcome.data

    @property
    def good(self) -> bool:
        """Whether no part has failed or was skipped."""
        return all(row["result"] not in ("failed", "skipped") for row in self._rows)

    def content(self, complete: bool) -> dict[str, Any]:
        """The results file: the machine and the rows of the benches as ``sparse-accel bench --json`` writes them, and
        the facts, the parts and their failures, and what else the parts measured."""
        data = {name: dict(values) for name, values in self._data.items()}
        bench = data.get("bench", {})
        return {
            "mode": self._run.mode,
            "complete": complete,
            "good": self.good and complete,
            "seconds": round(time.monotonic() - self._begin, 1),
            "facts": self._run.facts,
            "parts": self._rows,
            "failures": self._failures,
            "machine": bench.pop("machine", None),
            "rows": bench.pop("rows", []),
            "kernels": data.get("ncu", {}).pop("kernels", []),
            "data": {name: values for name, values in data.items() if values},
        }

    def write(self, complete: bool) -> None:
        """Write the results file and, where there is an OUT, copies of it and of the logs."""
        if self._run.dry:
            return
        if self.path is None:
            known = self._run.facts.get("card")  # without a card there is nothing to commit
            folder = self._run.root / "bench" / "results" if known else self._run.work
            self.path = free_name(folder, file_stem(self._run.facts))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".tmp")
        part.write_text(json.dumps(self.content(complete), indent=1) + "\n")
        os.replace(part, self.path)
        out = os.environ.get("OUT")
        if out and Path(out).is_dir():
            shutil.copy(self.path, out)
            with tarfile.open(Path(out) / "logs.tar.gz", "w:gz") as archive:
                archive.add(self._run.logs, "logs")

    def failures_text(self, most: int = 12, lines: int = 12) -> str:
        """What failed, in some lines each."""
        shown = []
        for entry in self._failures[:most]:
            text = [line[:300] for line in entry["text"].strip().splitlines()[-lines:]]
            shown.append("\n".join([f"-- {entry['part']}: {entry['what']}: {entry['why']}", *text]))
        if len(self._failures) > most:
            shown.append(f"-- and {len(self._failures) - most} more")
        return "\n".join(shown)

    def table(self) -> str:
        """Part, result, seconds, and a note cut to a line."""
        lines = [_line("part", "result", "seconds", "")]
        lines += [_line(row["part"], row["result"], f"{row['seconds']:.1f}", row["note"]) for row in self._rows]
        total = f"{time.monotonic() - self._begin:.1f}"
        return "\n".join([*lines, _line("all", "good" if self.good else "NOT GOOD", total, "")])


def _line(part: str, result: str, seconds: str, note: str) -> str:
    note = note if len(note) <= 150 else note[:147] + "..."
    return f"{part:<{WIDTHS[0]}}{result:<{WIDTHS[1]}}{seconds:>{WIDTHS[2]}}  {note}".rstrip()


def file_stem(facts: dict[str, Any]) -> str:
    """``<date>-<card>`` in small letters, digits and dashes."""
    card = re.sub(r"[^a-z0-9]+", "-", str(facts.get("card") or "no-card").lower()).strip("-")
    return f"{facts.get('date', 'no-date')}-{card}"


def free_name(folder: Path, stem: str) -> Path:
    """A name that no file has."""
    number = 1
    while (path := folder / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")).exists():
        number += 1
    return path
