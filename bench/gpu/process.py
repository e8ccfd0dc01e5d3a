"""Commands with a time limit, their output in a log."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TIMED_OUT = 124
NOT_STARTED = 125


@dataclasses.dataclass(frozen=True)
class Command:
    """What to run, under which name, with which changes to the environment."""

    name: str
    words: Sequence[str]
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cwd: Path | None = None

    def __str__(self) -> str:
        return " ".join([*(f"{key}={shlex.quote(value)}" for key, value in self.env.items()), shlex.join(self.words)])


@dataclasses.dataclass(frozen=True)
class Done:
    """A command that ended: its exit status (`TIMED_OUT` past its limit), seconds, and what it printed."""

    command: Command
    code: int
    seconds: float
    output: str

    def tail(self, lines: int = 15) -> str:
        """The end of the output."""
        return "\n".join(self.output.rstrip().splitlines()[-lines:])

    def why(self) -> str:
        """In a few words, how it ended."""
        if self.code == TIMED_OUT:
            return f"stopped at its limit, {self.seconds:.0f} s"
        if self.code == NOT_STARTED:
            return "not started"
        return f"killed by signal {-self.code}" if self.code < 0 else f"exit status {self.code}"


def run(command: Command, limit: float, log: Path) -> Done:
    """Run a command; past its limit it is killed with all that it has started. Standard input is empty.

    Args:
        command: what to run.
        limit: seconds; none left means that it is not started.
        log: file that gets the command line and both output streams.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    if limit <= 0:
        log.write_text(f"$ {command}\nnot started: no time left\n")
        return Done(command, NOT_STARTED, 0.0, "no time left")
    begin = time.monotonic()
    with log.open("wb") as file:
        file.write(f"$ {command}\n".encode())
        file.flush()
        try:
            process = subprocess.Popen(
                list(command.words),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **command.env},
                cwd=command.cwd,
                start_new_session=True,
            )
        except OSError as error:
            file.write(f"{error}\n".encode())
            return Done(command, NOT_STARTED, 0.0, str(error))
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            _kill(process)
            code = TIMED_OUT
        except BaseException:
            _kill(process)
            raise
    output = log.read_text(errors="replace").partition("\n")[2]
    return Done(command, code, time.monotonic() - begin, output)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_all(
    commands: Sequence[Command],
    jobs: int,
    seconds: float,
    logs: Path,
    each: float = float("inf"),
    told: Callable[[Done], None] = lambda done: None,
) -> list[Done]:
    """Run commands, `jobs` at a time, all within `seconds` and every one within `each`; in the order given.

    Args:
        commands: with names that differ; ``logs/<name>.log`` gets the output.
        jobs: how many run at a time.
        seconds: for all of them.
        logs: folder of the logs.
        each: limit of a single command.
        told: called with every command that has ended.
    """
    deadline = time.monotonic() + seconds

    def one(command: Command) -> Done:
        done = run(command, min(each, deadline - time.monotonic()), logs / f"{command.name}.log")
        told(done)
        return done

    with ThreadPoolExecutor(max(1, jobs)) as pool:
        return list(pool.map(one, commands))
