"""Memory kept while a run goes on: which blocks it is for, that it ends, and who is left alone."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import sparse_accel as sa
from sparse_accel import _heap as heap

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="not glibc, or one before 2.33")

# In a process of its own, whose heap has no room left by others: mapped() counts the system's blocks of some tensors.
PROLOGUE = """
import ctypes, torch
from sparse_accel import _heap as heap

MB = 1 << 20
names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "used", "free", "top")
Info = type("Info", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in names]})
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info

def mapped(nbytes, count=8):  # more than the room that the heap has by then
    before = libc.mallinfo2().hblks
    tensors = [torch.empty(nbytes, dtype=torch.uint8) for _ in range(count)]
    return libc.mallinfo2().hblks - before

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
"""
KEPT = """
assert mapped(40 * MB) == 8
with heap.kept_heap():
    assert mapped(40 * MB) == 0
    with heap.kept_heap():
        assert mapped(100 * MB) == 0
    assert mapped(100 * MB) == 0, "the outer one goes on"
    assert mapped(2 * heap.LARGEST) > 0
assert mapped(200 * MB) > 0
assert mapped(40 * MB, 40) > 0
with heap.kept_heap():
    before = resident()
    torch.zeros(100 * MB, dtype=torch.uint8)
    assert resident() - before > 90 * MB, "kept"
    heap.give_back()
    assert resident() - before < 10 * MB, "given back"
    torch.zeros(100 * MB, dtype=torch.uint8)
assert resident() - before < 10 * MB, "given back at the end"
"""
LEFT_ALONE = """
with heap.kept_heap():
    assert mapped(40 * MB) == 8
    heap.give_back()
"""


@pytest.mark.parametrize(
    ("code", "settings"),
    [
        (KEPT, {}),
        (LEFT_ALONE, {"MALLOC_TOP_PAD_": "100000"}),
        (LEFT_ALONE, {"GLIBC_TUNABLES": "glibc.malloc.top_pad=100000"}),
    ],
)
def test_blocks_of_a_fresh_process(code: str, settings: dict[str, str]) -> None:
    own = {name: value for name, value in os.environ.items() if name not in (*heap._VARIABLES, "GLIBC_TUNABLES")}
    run = subprocess.run([sys.executable, "-c", PROLOGUE + code], env=own | settings, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_of_ispasp_keeps_its_memory_and_gives_it_back(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    seen: list[tuple[int, int]] = []
    libc = ctypes.CDLL(None)
    monkeypatch.setattr(heap, "_libc", lambda: libc)
    monkeypatch.setattr(heap, "_set", lambda *thresholds: seen.append(thresholds))
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    pruner = sa.prune.ISpaSP(model, torch.randn(1, 8), keep=0.5)
    if fails:
        with pytest.raises(ValueError, match="NaN"):
            pruner.run(torch.full((32, 8), torch.nan))
    else:
        pruner.run(torch.randn(32, 8))
    assert seen == [(heap.LARGEST, heap._KEEP), (heap._LARGEST_OWN, heap._KEEP_OWN)]
    assert not heap._users
