"""Shows which runs notice each planted mistake of bugs.cpp, the whole matrix (the tests stop at the first)."""

from __future__ import annotations

from mutate import RUNS, outcome, print_header

import build


def main() -> None:
    """Run every case in every run."""
    programs = {name: build.build_program(build.HERE / "bugs.cpp", name) for name in ("plain", "asan", "tsan")}
    cases = build.run_program(programs["plain"]).stdout.splitlines()
    print_header()
    for number, case in enumerate(cases):
        words = [outcome(programs[sanitizer], order, str(number)) for sanitizer, order in RUNS]
        print(f"{case:78}" + "".join(f"{word:>14}" for word in words), flush=True)


if __name__ == "__main__":
    main()
