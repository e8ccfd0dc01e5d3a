"""What a part of the run is, and what the parts share."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import process

PASSED, FAILED, SKIPPED, UNAVAILABLE = "passed", "failed", "skipped", "unavailable"
READY, LACKING = "ready", "lacking"  # of a dry run


@dataclasses.dataclass
class Outcome:
    """How a part ended.

    Attributes:
        result: ``passed``; ``failed``; ``skipped`` (what it needs had failed, or no time was left), which counts as
            failed; ``unavailable``: the machine does not allow a measurement, which does not. In a dry run ``ready``,
            or ``lacking``: the real run needs what this machine has not.
        note: one line.
        failures: what failed, each with the end of its output.
        data: for the results file.
        usable: failed, but the parts that need this one can go on.
    """

    result: str
    note: str = ""
    failures: list[dict[str, str]] = dataclasses.field(default_factory=list)
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    usable: bool = False

    @property
    def good(self) -> bool:
        return self.result in (PASSED, UNAVAILABLE, READY, LACKING)


@dataclasses.dataclass
class Run:
    """What the parts share: folders, the machine's facts, which parts have passed.

    Attributes:
        root: the checkout.
        mode: ``full`` or ``bench``.
        dry: nothing is built or run on a device.
        facts: see :mod:`gpu.facts`.
        passed: names of the parts that have passed, or are usable.
        jobs: how many compilers run at a time, if not one for each core.
    """

    root: Path
    mode: str
    dry: bool
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    passed: set[str] = dataclasses.field(default_factory=set)
    jobs: int | None = None

    @property
    def work(self) -> Path:
        """Everything that is built and written, but the results."""
        return self.root / "build" / "gpu"

    @property
    def logs(self) -> Path:
        return self.work / "logs"

    @property
    def site(self) -> Path:
        """The folder from which the built package is imported."""
        return self.work / "site"

    @property
    def cores(self) -> int:
        return self.jobs or len(os.sched_getaffinity(0))

    @property
    def architecture(self) -> str:
        """The card's compute capability as CMake writes it; 90 where there is no card."""
        return str(self.facts.get("capability") or "9.0").replace(".", "")

    @property
    def wheels(self) -> list[Path]:
        return sorted((self.root / "bench" / "wheels").glob("*.whl"))

    def env(self, **more: str) -> dict[str, str]:
        """For Python commands: the built package first, then the checkout and the carried wheels; never the working
        directory."""
        first = [] if self.dry else [self.site]
        paths = [str(path) for path in (*first, self.root, *self.wheels)]
        return {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"} | more

    def python(self, name: str, *words: object, **env: str) -> process.Command:
        """A command of the interpreter that runs this."""
        return process.Command(name, [sys.executable, *map(str, words)], self.env(**env), self.root)

    def script(self, name: str, *words: object, **env: str) -> process.Command:
        """One of ``bench/gpu/scripts``."""
        return self.python(name, Path(__file__).parent / "scripts" / f"{name}.py", *words, **env)


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the run.

    Attributes:
        name: in the table.
        does: in a few words, for the plan.
        run: does it, in the seconds given.
        rehearse: for a dry run: says what would run (the outcome's note) and checks what can be checked.
        limit: seconds that it gets at most.
        least: seconds that are kept for it, whatever comes before.
        needs: parts that must have passed.
        modes: in which modes it runs.
    """

    name: str
    does: str
    run: Callable[[Run, float], Outcome]
    rehearse: Callable[[Run, float], Outcome]
    limit: float
    least: float
    needs: tuple[str, ...] = ()
    modes: tuple[str, ...] = ("full", "bench")


def failure(done: process.Done, text: str = "") -> dict[str, str]:
    """An entry of `Outcome.failures`."""
    return {"what": done.command.name, "why": done.why(), "text": text or done.tail()}


def of_commands(done: list[process.Done], wrong: Callable[[process.Done], str] = lambda done: "") -> Outcome:
    """Passed if every command ended with 0 and `wrong` finds nothing in its output."""
    failures = []
    for one in done:
        if one.code != 0:
            failures.append(failure(one))
        elif reason := wrong(one):
            failures.append({"what": one.command.name, "why": reason, "text": one.tail()})
    if not done:
        return Outcome(FAILED, "there was nothing to run", [{"what": "commands", "why": "none", "text": ""}])
    note = f"{len(done) - len(failures)} of {len(done)}"
    if failures:
        note += "; failed: " + ", ".join(entry["what"] for entry in failures)
    return Outcome(FAILED if failures else PASSED, note, failures)
