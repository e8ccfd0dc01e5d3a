"""The benches, alone on the card, and Nsight Compute's view of some kernels."""

from __future__ import annotations

import csv
import json
import re
from typing import Any

from .facts import find_tool
from .part import FAILED, LACKING, PASSED, READY, UNAVAILABLE, Outcome, Run, failure
from .process import Command
from .process import run as run_command

METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__bytes_read.sum": "read_bytes",
    "dram__bytes_write.sum": "written_bytes",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "dram_percent",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps_percent",
    "launch__registers_per_thread": "registers",
    "launch__grid_size": "blocks",
    "launch__block_size": "threads",
}
_SCALE = {"nsecond": 1, "ns": 1, "usecond": 1e3, "us": 1e3, "msecond": 1e6, "ms": 1e6, "second": 1e9, "s": 1e9}
_SCALE |= {"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}
NOT_PERMITTED = re.compile("ERR_NVGPUCTRPERM|LibraryNotLoaded|failed to initialize the profiler|permission", re.I)


def run_benches(run: Run, seconds: float) -> Outcome:
    """Rows are written as they are measured, so that what was measured before a crash or the limit is kept."""
    file = run.work / "benches.json"
    file.unlink(missing_ok=True)
    command = run.script("benches", file, "--device", "cuda", "--until", f"{max(1.0, seconds - 10):.0f}")
    done = run_command(command, seconds, run.logs / "benches.log")
    data: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    rows, bad = data.get("rows", []), data.pop("failures", [])
    failures = [{"what": entry["bench"], "why": entry["why"], "text": entry["text"]} for entry in bad]
    if done.code != 0 and not failures:
        failures.append(failure(done))
    note = f"{len(rows)} rows" + (f"; failed: {', '.join(entry['what'] for entry in failures)}" if failures else "")
    return Outcome(FAILED if failures or not rows else PASSED, note, failures, data)


def rehearse_benches(run: Run, seconds: float) -> Outcome:
    """On the CPU, a few elements."""
    file = run.work / "rehearsed.json"
    file.unlink(missing_ok=True)
    words = (file, "--device", "cpu", "--rehearse", "--until", f"{seconds:.0f}")
    done = run_command(run.script("benches", *words), seconds, run.logs / "benches.log")
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    if done.code != 0 or not rows:
        return Outcome(FAILED, f"{len(rows)} rows", [failure(done)])
    return Outcome(READY, f"{len(rows)} rows on the CPU: {done.command}")


def profiler_command(run: Run) -> Command:
    """Nsight Compute over scripts/kernels.py, at the card's own clocks."""
    ncu = find_tool("ncu") or "ncu"
    options = ["--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "raw"]
    script = run.script("kernels", "cuda", "4096")
    return Command("ncu", [ncu, *options, "--metrics", ",".join(METRICS), *script.words], script.env, run.root)


def kernels_of(output: str) -> list[dict[str, Any]]:
    """Rows of ncu's CSV, in bytes and nanoseconds; its second line has the units."""
    lines = output.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    header, units, *rows = csv.reader(line for line in lines[start:] if line.startswith('"'))
    found = []
    for row in rows:
        cells, unit_of = dict(zip(header, row, strict=False)), dict(zip(header, units, strict=False))
        entry: dict[str, Any] = {"kernel": cells.get("Kernel Name", "")}
        for metric, name in METRICS.items():
            text = cells.get(metric, "").replace(",", "")
            scale = _SCALE.get(unit_of.get(metric, ""), 1)
            entry[name] = float(text) * scale if re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?", text) else None
        found.append(entry)
    return found


def run_profiler(run: Run, seconds: float) -> Outcome:
    """Unavailable, which fails nothing, where the machine has no ncu or does not let it read counters."""
    if not find_tool("ncu"):
        return Outcome(UNAVAILABLE, "ncu is not on this machine")
    done = run_command(profiler_command(run), seconds, run.logs / "ncu.log")
    kernels = kernels_of(done.output)
    if not kernels and NOT_PERMITTED.search(done.output):
        return Outcome(UNAVAILABLE, "ncu may not read this card's counters", data={"said": done.tail(5)})
    if done.code != 0 or not kernels:
        return Outcome(FAILED, f"{len(kernels)} kernels", [failure(done)], {"kernels": kernels})
    return Outcome(PASSED, f"{len(kernels)} kernels", data={"kernels": kernels})


def rehearse_profiler(run: Run, seconds: float) -> Outcome:
    """The script, on the CPU."""
    done = run_command(run.script("kernels", "cpu", "64"), seconds, run.logs / "kernels.log")
    if done.code != 0:
        return Outcome(FAILED, "scripts/kernels.py", [failure(done)])
    lacking = not find_tool("ncu")
    return Outcome(LACKING if lacking else READY, f"{'no ncu; ' if lacking else ''}{profiler_command(run)}")
