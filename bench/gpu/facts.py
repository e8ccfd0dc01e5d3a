"""What machine this is: card, driver, torch, compilers, packages, commit."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from .part import FAILED, LACKING, PASSED, READY, Outcome, Run

NEEDED = ("torch", "numpy", "safetensors", "pytest", "hypothesis")
USEFUL = ("xdist", "pytest_timeout", "mpmath", "transformers", "sklearn", "torch_pruning", "expecttest")
TOOLS = ("nvcc", "c++", "cmake", "ninja", "compute-sanitizer", "ncu", "nvidia-smi")
SMI = ("name", "driver_version", "memory.total", "compute_cap", "clocks.max.sm", "clocks.max.memory")

PROBE = """
import importlib.util, json, sys
try:
    import sparse_accel  # as it is here, before this run builds its own
    importable = ""
except Exception as error:
    importable = f"{type(error).__name__}: {error}"[:300]
packages = {name: importlib.util.find_spec(name) is not None for name in sys.argv[1:]}
out = {"importable": importable, "packages": packages}
if out["packages"].get("torch"):
    import torch
    out.update(torch=str(torch.__version__), torch_cuda=torch.version.cuda, available=torch.cuda.is_available())
    if out["available"]:
        p = torch.cuda.get_device_properties(0)
        out.update(card=p.name, capability=f"{p.major}.{p.minor}", memory_mib=p.total_memory >> 20,
                   multiprocessors=p.multi_processor_count, l2_bytes=getattr(p, "L2_cache_size", None))
print(json.dumps(out))
"""


def find_tool(name: str) -> str | None:
    """Path of a program: from PATH, beside the interpreter, or in the CUDA toolkit's usual place."""
    folders = [Path(sys.executable).parent]
    folders += [Path(os.environ[key]) / "bin" for key in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(key)]
    for toolkit in (Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)):
        folders += [toolkit / "bin", toolkit / "compute-sanitizer"]
    folders += sorted(Path("/opt/nvidia/nsight-compute").glob("*"), reverse=True)
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, folders)))


def _output(*words: str, **env: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, env={**os.environ, **env}, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    return (done.stdout if done.returncode == 0 else done.stdout + done.stderr).strip()


def commit(root: Path) -> str:
    """From git, or the variable SPARSE_ACCEL_COMMIT where the copy has no history; else "unknown"."""
    if (root / ".git").exists():
        words = ("git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*")
        found = _output(*words)
        if re.fullmatch(r"[0-9a-f]{7,}(-dirty)?", found):
            return found
    return os.environ.get("SPARSE_ACCEL_COMMIT") or "unknown"


def source_digest(root: Path) -> str:
    """A hash of csrc/ and the package's Python files, by which a copy without history can be told."""
    out = hashlib.sha256()
    files = [*(root / "csrc").rglob("*"), *(root / "sparse_accel").rglob("*.py")]
    for path in sorted(path for path in files if path.is_file() and path.name != "_build_info.py"):
        data = path.read_bytes()
        out.update(f"{path.relative_to(root).as_posix()} {len(data)}\n".encode() + data)
    return out.hexdigest()[:16]


def gather(run: Run) -> dict[str, Any]:
    """All facts; ``card`` is None without a device that torch sees."""
    probe = _output(sys.executable, "-c", PROBE, *NEEDED, *USEFUL, **run.env())
    try:
        facts: dict[str, Any] = json.loads(probe.splitlines()[-1])
    except (ValueError, IndexError):
        facts = {"probe": probe[-2000:]}
    tools = {name: find_tool(name) for name in TOOLS}
    smi: dict[str, str] = {}
    if tools["nvidia-smi"]:
        line = _output(tools["nvidia-smi"], f"--query-gpu={','.join(SMI)}", "--format=csv,noheader").splitlines()
        cells = [cell.strip() for cell in line[0].split(",")] if line else []
        smi = dict(zip(SMI, cells, strict=True)) if len(cells) == len(SMI) else {"error": "\n".join(line)[:500]}
    nvcc = re.search(r"V(\d[\d.]*)", _output(tools["nvcc"], "--version")) if tools["nvcc"] else None
    compiler = _output(tools["c++"], "--version").splitlines() if tools["c++"] else []
    return {
        "card": None,
        **facts,
        "driver": smi.get("driver_version"),
        "nvidia_smi": smi,
        "nvcc": nvcc[1] if nvcc else None,
        "compiler": compiler[0] if compiler else None,
        "python": platform.python_version(),
        "python_headers": (Path(sysconfig.get_path("include")) / "Python.h").exists(),
        "kernel": platform.release(),
        "cores": run.cores,
        "tools": tools,
        "commit": commit(run.root),
        "sources": source_digest(run.root),
        "date": datetime.date.today().isoformat(),
    }


def headline(facts: dict[str, Any]) -> str:
    """The first lines of the run."""

    def word(key: str, missing: str = "none") -> str:
        return str(facts.get(key) or missing)

    capability = f", sm_{facts['capability'].replace('.', '')}" if facts.get("capability") else ""
    memory = f", {facts['memory_mib']:,} MiB" if facts.get("memory_mib") else ""
    missing = [name for name, there in facts.get("packages", {}).items() if not there]
    missing += [name for name, path in facts["tools"].items() if not path]
    missing += [] if facts.get("python_headers") else ["Python.h"]
    return "\n".join(
        [
            f"card    {word('card')}{capability}{memory}; driver {word('driver')}",
            f"torch   {word('torch')} (CUDA {word('torch_cuda')}); nvcc {word('nvcc')}; {word('compiler')}",
            f"python  {word('python')}, {facts['cores']} cores; commit {word('commit')}, sources {word('sources')}",
            f"missing {', '.join(missing) or 'nothing'}",
        ]
    )


def problems(facts: dict[str, Any]) -> list[str]:
    """Why the run cannot be made here."""
    out = []
    if "packages" not in facts:
        return [f"the interpreter's packages could not be read: {facts.get('probe', '')[-300:]}"]
    out += [f"no Python package {name}" for name in NEEDED if not facts["packages"].get(name)]
    if facts["packages"].get("torch"):
        if not facts.get("torch_cuda"):
            out.append(f"torch {facts['torch']} has no CUDA")
        elif not facts.get("card"):
            out.append("torch sees no CUDA device")
    out += [f"no {name}" for name in ("nvcc", "c++", "cmake", "ninja") if not facts["tools"][name]]
    return out if facts.get("python_headers") else [*out, f"no Python.h in {sysconfig.get_path('include')}"]


def run(run: Run, seconds: float) -> Outcome:
    """Print the facts; failed where the machine lacks what the other parts cannot do without."""
    run.facts = gather(run)
    print(headline(run.facts), flush=True)
    bad = problems(run.facts)
    failures = [{"what": "machine", "why": problem, "text": ""} for problem in bad]
    return Outcome(FAILED if bad else PASSED, "; ".join(bad), failures)


def rehearse(run: Run, seconds: float) -> Outcome:
    """The same; what this machine lacks is said, and fails nothing."""
    run.facts = gather(run)
    print(headline(run.facts), flush=True)
    bad = problems(run.facts)
    if not run.wheels:
        lost = [{"what": "bench/wheels", "why": "no carried wheel", "text": ""}]
        return Outcome(FAILED, "bench/wheels: no carried wheel", lost)
    return Outcome(LACKING if bad else READY, "; ".join(bad))
