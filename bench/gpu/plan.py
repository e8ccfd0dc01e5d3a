"""The parts, in order; those of one row run at the same time."""

from __future__ import annotations

from . import build, device, facts, suite, timing
from .part import Part

FULL = ("full",)
BUDGET = {"full": 470.0, "bench": 230.0}  # seconds for all: under 8 and under 4 minutes
DRY_LIMIT = 300.0  # seconds for each part of a dry run: on machines of any kind

PLAN: tuple[tuple[Part, ...], ...] = (
    (Part("facts", "card, driver, torch, tools, packages, commit", facts.run, facts.rehearse, 60, 5),),
    (
        Part(
            "build: module", "CMake and ninja, SPARSE_ACCEL_CUDA=ON, this card's architecture only",
            build.build_module, build.rehearse_module, 200, 30, ("facts",),
        ),
        Part(
            "build: C++ tests", "tests/cuda_emulator/test_*.cpp with nvcc -x cu",
            build.build_programs, build.rehearse_programs, 200, 0, ("facts",), FULL,
        ),
    ),
    (
        Part(
            "module", "the built module is the one imported, has CUDA, and runs",
            device.run_module, device.rehearse_module, 60, 10, ("build: module",),
        ),
    ),
    (
        Part(
            "C++ tests", "on the card",
            device.run_programs, device.rehearse_programs, 45, 5, ("build: C++ tests",), FULL,
        ),
    ),
    (
        Part(
            "pytest", "tests marked cuda, SPARSE_ACCEL_REQUIRE_CUDA=1: a skip is a failure",
            suite.run_suite, suite.rehearse_suite, 120, 30, ("module",), FULL,
        ),
    ),
    (
        Part(
            "sanitizers", "memcheck, racecheck, synccheck, initcheck on the C++ tests; memcheck on Python",
            device.run_sanitizers, device.rehearse_sanitizers, 130, 30, ("module", "build: C++ tests"), FULL,
        ),
    ),
    (
        Part(
            "large", "tests marked cuda and large, alone",
            suite.run_large, suite.rehearse_large, 75, 20, ("module",), FULL,
        ),
    ),
    (
        Part(
            "bench", "alone on the card; device, wall and graph times",
            timing.run_benches, timing.rehearse_benches, 160, 60, ("module",),
        ),
    ),
    (
        Part(
            "ncu", "hardware counters of some ten kernels, where they may be read",
            timing.run_profiler, timing.rehearse_profiler, 50, 20, ("module",), FULL,
        ),
    ),
)  # fmt: skip


def parts(mode: str) -> list[list[Part]]:
    """The plan of a mode."""
    rows = [[part for part in row if mode in part.modes] for row in PLAN]
    return [row for row in rows if row]
