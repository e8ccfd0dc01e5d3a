"""Where figures come from: processor or card, its clocks and driver, how busy the machine is, versions, commit."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from sparse_accel._info import build_info

_CARD = {"driver": "driver_version", "sm_mhz": "clocks.sm", "memory_mhz": "clocks.mem", "power_watts": "power.draw"}


def machine() -> dict[str, Any]:
    """What a results file says of its machine.

    Returns:
        Plain values; those of a card are None without one, or where ``nvidia-smi`` does not tell.
    """
    build = build_info()
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_mhz": _cpu_mhz(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "cpu_capability": build.cpu_capability,
        "gpu": card,
        **(_card() if card else dict.fromkeys(_CARD)),
        "cuda": torch.version.cuda,
        "torch": str(torch.__version__),
        "sparse_accel": build.version,
        "commit": build.commit,
        "python": platform.python_version(),
        "system": platform.system(),
        "date": datetime.date.today().isoformat(),
    }


def _proc(pattern: str) -> list[str]:
    info = Path("/proc/cpuinfo")
    return re.findall(pattern, info.read_text()) if info.exists() else []


def _cpu() -> str:
    names = _proc(r"model name\s*: (.*)")
    return names[0] if names else platform.processor() or platform.machine()


def _cpu_mhz() -> int | None:
    clocks = _proc(r"cpu MHz\s*: ([\d.]+)")
    return round(max(map(float, clocks))) if clocks else None


def _card() -> dict[str, Any]:
    """Driver and clocks of the card, as nvidia-smi has them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return dict.fromkeys(_CARD)
    query = [tool, f"--query-gpu={','.join(_CARD.values())}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return dict.fromkeys(_CARD)
    cells = [cell.strip() for cell in done.stdout.splitlines()[torch.cuda.current_device()].split(",")]
    return {
        name: cell if name == "driver" else float(cell) if re.fullmatch(r"[\d.]+", cell) else None
        for name, cell in zip(_CARD, cells, strict=True)
    }
