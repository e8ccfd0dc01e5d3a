"""Other machines' rounding: tests that compare two ways of computing, under other instruction sets and numbers of
threads. CI runs the whole suite under each (.github/workflows/ci.yml)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REFUSALS, GOLDEN = "tests/removal/test_compact_refusals.py", "tests/optim/test_golden_rmda.py"
MACHINES = {
    "before AVX, one thread": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "OMP_NUM_THREADS": "1",
    },
    "AVX2, two threads": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_CBWR": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OMP_NUM_THREADS": "2",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_rounding_of_another_machine(machine: str) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    threads = MACHINES[machine]["OMP_NUM_THREADS"]
    check = "import torch; print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())"
    env |= {**MACHINES[machine], "MKL_NUM_THREADS": threads}
    said = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, env=env, check=True).stdout
    assert said.split() == [{"default": "DEFAULT", "avx2": "AVX2"}[env["ATEN_CPU_CAPABILITY"]], threads]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-k",
        "not emulated",
        REFUSALS,
        *([GOLDEN] if threads == "1" else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > (40 if threads == "1" else 10), done.stdout[-1000:]
