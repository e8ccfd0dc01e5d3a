"""The Python tests on the device, and those that want it for themselves."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from . import selection
from .part import FAILED, LACKING, PASSED, READY, Outcome, Run, failure
from .process import Command, Done, run_all
from .process import run as run_command

WORKERS = 4
SHARED, ALONE = "cuda and not large", "cuda and large"


def has(run: Run, package: str) -> bool:
    return bool(run.facts.get("packages", {}).get(package))


def pytest_command(run: Run, name: str, marks: str, files: list[Path], *options: str) -> Command:
    """pytest on the files' tests with these marks; a skip is a failure (tests/require_cuda.py)."""
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marks, f"--junitxml={run.work / f'{name}.xml'}"]
    if not has(run, "pytest_timeout"):  # --strict-config would refuse its option in pyproject.toml
        words += ["-o", "addopts=-ra --strict-markers"]
    required = {} if run.dry else {"SPARSE_ACCEL_REQUIRE_CUDA": "1"}
    threads = str(max(1, run.cores // WORKERS))
    return run.python(name, *words, *options, *files, OMP_NUM_THREADS=threads, **required)


def commands(run: Run, files: list[Path]) -> list[Command]:
    """One pytest with as many workers where xdist is there; else as many pytests, each with a share of the files."""
    if has(run, "xdist"):
        return [pytest_command(run, "pytest", SHARED, files, "-n", str(WORKERS))]
    by_size = sorted(files, key=lambda path: -path.stat().st_size)
    shares = [by_size[i::WORKERS] for i in range(WORKERS)]
    return [pytest_command(run, f"pytest{i}", SHARED, share) for i, share in enumerate(shares) if share]


def cases(report: Path) -> tuple[dict[str, int], list[dict[str, str]]]:
    """Counts by outcome, and what failed, from pytest's XML file. A skip counts as failed."""
    counts, failures = {"passed": 0, "failed": 0}, []
    if report.exists():
        for case in ElementTree.parse(report).iter("testcase"):
            bad = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
            counts["passed" if bad is None else "failed"] += 1
            if bad is not None:
                what = f"{case.get('classname', '')}::{case.get('name', '')}"
                text = f"{bad.get('message', '')}\n{bad.text or ''}"
                failures.append({"what": what, "why": bad.tag, "text": text[-3000:]})
    return counts, failures


def outcome_of(run: Run, done: list[Done], left_out: dict[str, list[str]]) -> Outcome:
    """From exit statuses and reports; a report that is missing, or without a single test, is a failure."""
    total, failures = {"passed": 0, "failed": 0}, []
    for one in done:
        counts, bad = cases(run.work / f"{one.command.name}.xml")
        failures += bad
        for key, count in counts.items():
            total[key] += count
        if not sum(counts.values()) or (one.code != 0 and not bad):
            failures.append(failure(one))
    note = f"{total['passed']} passed, {total['failed']} failed"
    if left_out:
        note += "; left out: " + ", ".join(f"{name} (no {', '.join(lacks)})" for name, lacks in left_out.items())
    data = {"counts": total, "left_out": left_out}
    return Outcome(FAILED if failures or not done else PASSED, note, failures, data)


def run_suite(run: Run, seconds: float) -> Outcome:
    """All tests on the backend ``cuda`` or marked so, but the large ones."""
    files, left_out = selection.select(run.root / "tests")
    _remove_reports(run)
    done = run_all(commands(run, files), WORKERS, seconds, run.logs)
    return outcome_of(run, done, left_out)


def run_large(run: Run, seconds: float) -> Outcome:
    """The large ones, one after another."""
    files = large_files(run)
    report = run.work / "large.xml"
    report.unlink(missing_ok=True)
    done = run_command(pytest_command(run, "large", ALONE, files), seconds, run.logs / "large.log")
    return outcome_of(run, [done], {})


def large_files(run: Run) -> list[Path]:
    files = selection.cuda_files(run.root / "tests")
    return [path for path in files if "mark.large" in path.read_text()]


def _remove_reports(run: Run) -> None:
    run.work.mkdir(parents=True, exist_ok=True)
    for report in run.work.glob("pytest*.xml"):
        report.unlink()


def _rehearse(run: Run, seconds: float, marks: str, files: list[Path], left_out: dict[str, list[str]]) -> Outcome:
    """Collects the tests, where the package can be imported as it is."""
    if reason := run.facts.get("importable"):
        return Outcome(LACKING, f"{len(files)} files, not collected: sparse_accel cannot be imported here: {reason}")
    command = pytest_command(run, "collect", marks, files, "--collect-only")
    done = run_command(command, seconds, run.logs / "collect.log")
    number = sum("::" in line for line in done.output.splitlines())
    if done.code != 0 or not number or not files:
        return Outcome(FAILED, f"{number} tests collected", [failure(done)])
    note = f"{number} tests in {len(files)} files: {commands(run, files)[0] if marks == SHARED else command}"
    if left_out:
        note += f"; left out: {left_out}"
    return Outcome(READY, note)


def rehearse_suite(run: Run, seconds: float) -> Outcome:
    files, left_out = selection.select(run.root / "tests")
    return _rehearse(run, seconds, SHARED, files, left_out)


def rehearse_large(run: Run, seconds: float) -> Outcome:
    return _rehearse(run, seconds, ALONE, large_files(run), {})
