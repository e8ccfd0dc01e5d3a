"""The CUDA kernels on the CPU: C++ tests under sanitizers and several thread orders, and whether planted mistakes
and removed barriers are noticed. The ops themselves run on the emulated backend in test_group_score.py and its like."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import torch
from cuda_emulator import build

from sparse_accel import native

pytestmark = pytest.mark.slow

FOLDER = build.HERE
ORDERS = ("forward", "reverse", "random:1", "random:2")
RUNS = [(sanitizer, order) for order in ORDERS for sanitizer in ("asan", "tsan")]
QUIET = [("asan", "forward"), ("asan", "random:1"), ("tsan", "random:1")]  # what a correct twin goes through
# Where nothing should be noticed. Programs run what they test in a second order besides: forward in reverse, too.
CLEAN = [(name, "asan", order) for name in build.PROGRAMS for order in ("forward", "random:2")]
CLEAN += [(name, "tsan", "forward") for name in build.RACING]
CLEAN.append(("reduce", "ucontext", "random:3"))
CLEAN += [(name, "asan", "reverse") for name in ("masked_cg", "reduce", "topk_blocks")]  # but for these
CASES = re.findall(r'^    \{"(.+?)",', (FOLDER / "bugs.cpp").read_text(), re.MULTILINE)


class Programs:
    """The C++ tests, all built at the first use, as many at a time as `build.JOBS`."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(build.JOBS)
        self._futures = {
            (name, sanitizer): self._pool.submit(build.build_program, build.source(name), sanitizer)
            for name, sanitizer in build.WANTED
        }

    def path(self, name: str, sanitizer: str) -> Path:
        try:
            return self._futures[name, sanitizer].result()
        except RuntimeError as error:
            if re.search(r"cannot find.*(lib)?[at]san", str(error)):
                pytest.skip(f"the C++ compiler has no runtime of the sanitizer {sanitizer!r}")
            raise

    def outcome(
        self, name: str, sanitizer: str, *arguments: str, order: str, skip: str = "", stop: bool = False
    ) -> tuple[int, str]:
        """The exit code and what was printed; `stop`: at the first failure."""
        done = build.run_program(self.path(name, sanitizer), *arguments, order=order, skip=skip, stop=stop)
        return done.returncode, done.stdout + done.stderr

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    built = Programs()
    yield built
    built.close()


@pytest.mark.parametrize("name, sanitizer, order", CLEAN)
def test_kernels_match_plain_loops(programs: Programs, name: str, sanitizer: str, order: str) -> None:
    code, output = programs.outcome(name, sanitizer, order=order)
    assert code == 0, output
    assert "all correct" in output


@pytest.mark.parametrize("case", CASES)
def test_planted_mistake_is_noticed(programs: Programs, case: str) -> None:
    """Every mistake shows in at least one run; correct twins show nothing in any."""
    control = case.startswith("CONTROL")
    runs = QUIET if control else RUNS
    outcomes = (programs.outcome("bugs", *run[:1], str(CASES.index(case)), order=run[1], stop=True) for run in runs)
    if control:
        for code, output in outcomes:
            assert code == 0, output
    else:
        assert any(code != 0 for code, _ in outcomes), "nobody noticed"


def test_planted_mistakes_are_all_there(programs: Programs) -> None:
    code, output = programs.outcome("bugs", "asan", order="forward")
    assert code == 0
    assert output.splitlines() == CASES
    assert sum(not case.startswith("CONTROL") for case in CASES) == 32


def _barriers() -> list[tuple[str, int]]:
    """Every barrier and fence of the kernels, as (file, line)."""
    sites = []
    paths = {*build.CSRC.glob("cuda/*.cu"), *build.CSRC.glob("cuda/*.cuh")}
    paths.remove(build.CSRC / "cuda" / "launch.cuh")  # has the GPU's halves of what the emulator does in its own way
    for path in sorted(paths):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(r"(__syncthreads|__syncwarp|__threadfence\w*|cluster_sync|cluster_leave)\(", line):
                sites.append((path.name, number))
    return sites


@functools.cache
def _included(source: Path) -> frozenset[str]:
    """The kernels' files that a source includes, and those that they include."""
    names = re.findall(r'^#include "([\w.]+)"', source.read_text(), re.MULTILINE)
    paths = [build.CSRC / "cuda" / name for name in names if (build.CSRC / "cuda" / name).exists()]
    return frozenset().union([path.name for path in paths], *map(_included, paths))


@pytest.mark.parametrize("file, line", _barriers())
def test_removed_barrier_is_noticed(programs: Programs, file: str, line: int) -> None:
    """Without any one of its barriers a kernel gives a wrong result in some order, or ThreadSanitizer sees a race."""
    outcomes = (
        programs.outcome(name, sanitizer, order=order, skip=f"{file}:{line}", stop=True)
        for name in build.PROGRAMS
        if file in _included(build.source(name))
        for sanitizer, order in RUNS
        if (name, sanitizer) in build.WANTED
    )
    assert any(code != 0 for code, _ in outcomes), f"nobody noticed that the barrier at {file}:{line} was left out"


def test_skipping_needs_the_right_line(programs: Programs) -> None:
    """The check above proves something only if leaving out nothing passes."""
    file, line = _barriers()[0]
    code, output = programs.outcome("reduce", "asan", order="random:1", skip=f"{file}:{line + 1000}")
    assert code == 0, output


def test_emulator_errors_reach_python(emulated: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="DIVERGENT BARRIER: 1 of 32 threads"):
        emulated.launch_broken_kernel()
    assert native.group_score([torch.ones(4)], [1, 1, 4, 1], "sum", False)[0].item() == 4  # and it goes on
    with pytest.raises(ValueError, match="order: expected 'forward'"):
        emulated.set_order("sideways")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_emulated_half_types_round_like_torch(dtype: torch.dtype, emulated: ModuleType) -> None:
    """All 65536 numbers widened, and numbers around every rounding boundary narrowed."""
    emulated.set_order("forward")
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    wide = native.group_score([halves], [1, halves.numel(), 1, 1], "sum", False)[0]
    torch.testing.assert_close(wide, halves.float(), rtol=0, atol=0, equal_nan=True)

    finite = halves[halves.isfinite()].sort().values
    middle = (finite[1:].double() + finite[:-1].double()).div(2).float()
    wide = torch.cat([middle, middle.nextafter(torch.tensor(1e38)), middle.nextafter(torch.tensor(-1e38))])
    wide = torch.cat([wide, torch.tensor([1e-30, -1e-30, 65519.99, 65520.0, 1e30, -1e30])])
    out = torch.zeros_like(wide, dtype=dtype)
    # W0 is rounded to W in the first step where the gradient is zero and c = 1
    clock = [torch.tensor(0.0)], [torch.tensor(0.0, dtype=torch.float64)]
    state = [torch.zeros_like(out)], [torch.zeros_like(wide)], [wide]
    layout = [1, wide.numel(), 1, 1]
    native.rmda_step_([out], *state, *clock, layout, "soft", [0.0], 0.1, None, 1.0, False, None, None)
    torch.testing.assert_close(out, wide.to(dtype), rtol=0, atol=0)
