"""What runs on the card without pytest: the module's first op, the C++ tests, and both under compute-sanitizer."""

from __future__ import annotations

import re

from .build import program, program_sources
from .facts import find_tool
from .part import FAILED, LACKING, READY, Outcome, Run, of_commands
from .process import Command, Done, run_all
from .process import run as run_command

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
AT_A_TIME = 6  # programs on the card
ERRORS = 9  # exit status of compute-sanitizer where it found any
_CLEAN = re.compile(r"ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards")


def all_correct(done: Done) -> str:
    """What is wrong with the output of a test that ended with 0."""
    return "" if "all correct" in done.output else "it did not say that all is correct"


def clean(done: Done) -> str:
    """The same under compute-sanitizer."""
    return all_correct(done) or ("" if _CLEAN.search(done.output) else "no summary of 0 errors")


def run_module(run: Run, seconds: float) -> Outcome:
    """The built module is the one imported, has CUDA, and runs."""
    (module,) = (run.site / "sparse_accel").glob("_C*.so")
    return of_commands([run_command(run.script("module", module), seconds, run.logs / "module.log")])


def program_commands(run: Run) -> list[Command]:
    return [Command(source.stem, [str(program(run, source))]) for source in program_sources(run.root)]


def run_programs(run: Run, seconds: float) -> Outcome:
    """Every C++ test on the card."""
    return of_commands(run_all(program_commands(run), AT_A_TIME, seconds, run.logs), all_correct)


def sanitizer_commands(run: Run) -> list[Command]:
    """The Python smoke under memcheck first, as it takes longest; then every program under every tool."""
    sanitizer = find_tool("compute-sanitizer") or "compute-sanitizer"
    words = [sanitizer, f"--error-exitcode={ERRORS}", "--print-limit=20", "--tool"]
    smoke = run.script("smoke", PYTORCH_NO_CUDA_MEMORY_CACHING="1", OMP_NUM_THREADS="2")
    # torch asks the runtime for what may fail, and handles it: only accesses count
    checked = [*words, "memcheck", "--report-api-errors=no", *smoke.words]
    python = Command("memcheck_python", checked, smoke.env, run.root)
    return [
        python,
        *(
            Command(
                f"{tool}_{one.name}",
                [*words, tool, *(["--padding=512"] if tool == "memcheck" else []), *one.words],
                {"CHECK_UNWRITTEN": "1"} if tool == "initcheck" else {},
            )
            for tool in TOOLS
            for one in program_commands(run)
        ),
    ]


def run_sanitizers(run: Run, seconds: float) -> Outcome:
    """All of them; whoever reports anything, or nothing at all, has failed."""
    if not find_tool("compute-sanitizer"):
        missing = [{"what": "compute-sanitizer", "why": "not found", "text": ""}]
        return Outcome(FAILED, "no compute-sanitizer", missing)
    return of_commands(run_all(sanitizer_commands(run), AT_A_TIME, seconds, run.logs), clean)


def rehearse_module(run: Run, seconds: float) -> Outcome:
    return Outcome(READY, str(run.script("module", "MODULE")))


def rehearse_programs(run: Run, seconds: float) -> Outcome:
    found = program_commands(run)
    return Outcome(READY if found else FAILED, f"{len(found)} programs, {AT_A_TIME} at a time")


def rehearse_sanitizers(run: Run, seconds: float) -> Outcome:
    """The Python smoke runs on the CPU."""
    outcome = of_commands([run_command(run.script("smoke", "cpu"), seconds, run.logs / "smoke.log")], all_correct)
    commands = sanitizer_commands(run)
    if not outcome.good:
        return outcome
    lacking = not find_tool("compute-sanitizer")
    note = f"{'no compute-sanitizer; ' if lacking else ''}{len(commands)} runs: {commands[1]}"
    return Outcome(LACKING if lacking else READY, note)
