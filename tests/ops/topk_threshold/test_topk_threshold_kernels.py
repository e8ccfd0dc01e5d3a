"""topk_threshold_ on the CPU, under each instruction set, on inputs of every kind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sparse_accel as sa
from sparse_accel.groups import GroupLayout

TESTS = Path(__file__).parent
LEVELS = ["DEFAULT", "AVX2", "AVX512"]


@pytest.mark.parametrize("capability", LEVELS)
def test_made_inputs(capability: str) -> None:
    if LEVELS.index(capability) > LEVELS.index(torch.backends.cpu.get_cpu_capability()):
        pytest.skip(f"needs a CPU with {capability}")
    env = {**os.environ, "ATEN_CPU_CAPABILITY": capability.lower()}
    command = [sys.executable, str(TESTS / "topk_cases.py"), "250"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_nothing_changes_where_groups_that_lie_apart_have_nan() -> None:
    layout = GroupLayout(outer=300, groups=70, inner=3)
    for place in (0, 70 * 3 * 150 + 5, 300 * 70 * 3 - 1):  # sampled or not
        x, scores = torch.randn(300, 210), torch.randn(300, 210)
        scores.view(-1)[place] = torch.nan
        before = x.clone()
        with pytest.raises(ValueError, match="scores: expected numbers that can be ordered, got NaN"):
            sa.topk_threshold_(x, scores, 400, by="within", layout=layout)
        assert torch.equal(x, before)


def test_threads_give_the_same_within_groups() -> None:
    x = (torch.randn(200, 3 * 65, generator=torch.Generator().manual_seed(0)) * 5).round()
    threads = torch.get_num_threads()
    masks = []
    for number in (1, 3):
        torch.set_num_threads(number)
        masks.append(sa.topk_threshold_(x.clone(), None, 290, by="within", layout=GroupLayout(200, 65, 3)))
    torch.set_num_threads(threads)
    assert torch.equal(*masks)
    assert masks[0].view(200, 65, 3).sum((0, 2)).tolist() == [290] * 65
