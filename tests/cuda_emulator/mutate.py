"""Plants mistakes in the kernels, one at a time, and shows which of the C++ tests' runs notice.

    python tests/cuda_emulator/mutate.py            all mutants, a few minutes
    python tests/cuda_emulator/mutate.py 3 7        only these

Exit code 1 if a mutant escapes. (Left-out barriers need no compilation: test_cuda_emulator.py covers every one.)
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import build


class Mutant(NamedTuple):
    """A replacement in one kernel file, and the program that should notice."""

    file: str
    old: str
    new: str
    program: str


MUTANTS = [
    Mutant("reduce.cuh", "if (lane >= step) sum += other;", "sum += other;", "reduce"),
    Mutant("reduce.cuh", "if (other == warp) before = total;", "if (other == warp) before = A(0);", "reduce"),
    Mutant("reduce.cuh", "a > b || a != a ? a : b", "a > b ? a : b", "group_score"),
    Mutant("reduce.cuh", "if (tile.column < columns) {", "if (tile.column <= columns) {", "reduce"),
    Mutant("reduce.cuh", "c < side && tile.first_column + c < columns", "c < side", "reduce"),
    Mutant("reduce.cuh", "if (tile.end > cover.layout.outer) tile.end", "if (false) tile.end", "reduce"),
    Mutant("reduce.cuh", "begin + cover.length < size ? begin + cover.length : size", "begin + cover.length",
           "group_score"),
    Mutant("cover.cuh", "layout.inner < kShortRun", "layout.inner <= kShortRun", "group_score"),  # equivalent
    Mutant("cover.cuh", "aligned && layout.inner % width == 0", "aligned", "group_score"),
    Mutant("cover.cuh", "aligned && columns % width == 0", "aligned", "group_score"),
    Mutant("cover.cuh", "aligned && columns % width == 0", "columns % width == 0", "group_score"),
    Mutant("cover.cuh", "row * columns() + group", "row * layout.inner + group", "group_score"),
    Mutant("vec.cuh", "? N * sizeof(T) : 16) Pack", "? N * sizeof(T) : 4) Pack", "group_score"),  # equivalent on CPUs
    Mutant("tables.cuh", "table.count == table.kCapacity ||", "", "group_score"),
    Mutant("tables.cuh", "if (block < table.first_block[middle])", "if (false)", "group_score"),
    Mutant("shrink.cuh", "end - (end - begin) % kPack", "end", "prox"),
    Mutant("shrink.cuh", "staging + slot * size", "staging", "prox"),
    Mutant("shrink.cuh", "factor == A(0) ? A(0) : x * factor", "x * factor", "prox"),
    Mutant("shrink.cuh", "if (tile.column >= columns) return;", "", "prox"),
    Mutant("shrink.cuh", "divide(tile.column + k, cover.layout.inner)", "divide(tile.column, cover.layout.inner)",
           "prox"),
    Mutant("shrink_launch.cuh", "staging > staging_ ? staging : staging_", "staging", "prox"),
    Mutant("shrink_launch.cuh", "next += planned.value_blocks;", "", "prox"),
    Mutant("rmda_step.cu", "if (now.skip) return;", "", "rmda_step"),
    Mutant("rmda_step.cu", "if (momentum_ != A(1)) loaded.param", "if (false) loaded.param", "rmda_step"),
    Mutant("rmda_step.cu", "/ scale);", ");", "rmda_step"),
    Mutant("rmda_step.cu", "settings.maximize ? -lr", "false ? -lr", "rmda_step"),
    Mutant("group_topk.cu", "atomicAdd(&histogram[unsigned(key >> options.shift) % kDigits], 1u)",
           "++histogram[unsigned(key >> options.shift) % kDigits]", "group_topk"),
    Mutant("group_topk.cu", "atomicAdd(&options.selection->histogram[threadIdx.x], histogram[threadIdx.x])",
           "options.selection->histogram[threadIdx.x] += histogram[threadIdx.x]", "group_topk"),
    Mutant("group_topk.cu", "if (Bits(bits & ~kSign<Bits>) == 0) return kSign<Bits>;", "", "group_topk"),
    Mutant("group_topk.cu", "selection->histogram[digit] = 0;", "", "group_topk"),
    Mutant("group_topk.cu", "before + rank < remaining", "rank < remaining", "group_topk"),
    Mutant("group_topk.cu", "bits & ~kSign<Bits>) > options.infinity", "bits & ~kSign<Bits>) >= options.infinity",
           "group_topk"),
]  # fmt: skip
EQUIVALENT = {7, 12}  # change speed or what only a GPU checks, not results
RUNS = [("plain", order) for order in ("forward", "reverse", "random:1", "random:2")]
RUNS += [("asan", "forward"), ("tsan", "forward")]


def plant(mutant: Mutant, folder: Path) -> Path:
    """A copy of csrc with the mistake in it."""
    shutil.rmtree(folder, ignore_errors=True)
    csrc = folder / "csrc"
    shutil.copytree(build.CSRC, csrc, ignore=shutil.ignore_patterns("cpu", "ops", "*.cpp"))
    path = csrc / "cuda" / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.file}: {text.count(mutant.old)} times {mutant.old!r}: adapt mutate.py")
    path.write_text(text.replace(mutant.old, mutant.new))
    return csrc


def outcome(program: Path, order: str, *arguments: str) -> str:
    """In one word what a run noticed; "-" for nothing."""
    try:
        done = build.run_program(program, *arguments, order=order)
    except subprocess.TimeoutExpired:
        return "hang"
    text = done.stdout + done.stderr
    marks = {
        "AddressSanitizer": "ASan",
        "runtime error": "UBSan",
        "data race": "race",
        "EMU ERROR": "EMU",
        "block (": "EMU",
    }
    for mark, word in marks.items():
        if mark in text:
            return word
    return "-" if done.returncode == 0 else "wrong" if done.returncode == 1 else f"exit {done.returncode}"


def print_header() -> None:
    """One column per run."""
    print(f"{'':78}" + "".join(f"{sanitizer + ' ' + order.replace('random', 'rnd'):>14}" for sanitizer, order in RUNS))


def main() -> int:
    """Run the matrix."""
    chosen = [int(word) for word in sys.argv[1:]] or range(len(MUTANTS))
    print_header()
    escaped = []
    for number in chosen:
        mutant = MUTANTS[number]
        folder = build.BUILD / "mutants" / str(number)
        csrc = plant(mutant, folder)
        source = build.HERE / f"test_{mutant.program}.cpp"
        programs = {name: build.build_program(source, name, folder, csrc, "-w") for name in ("plain", "asan", "tsan")}
        words = [outcome(programs[sanitizer], order) for sanitizer, order in RUNS]
        shutil.rmtree(folder)
        if set(words) == {"-"} and number not in EQUIVALENT:
            escaped.append(number)
        label = f"{number:3} {mutant.file}: {mutant.new or 'drop ' + mutant.old}"
        print(f"{label[:77]:78}" + "".join(f"{word:>14}" for word in words), flush=True)
    print(f"{len(escaped)} escaped: {escaped}" if escaped else "all noticed")
    return bool(escaped)


if __name__ == "__main__":
    sys.exit(main())
