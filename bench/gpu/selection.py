"""Which test files have tests on CUDA, and which of them this machine's packages allow."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterable
from pathlib import Path

_ON_CUDA = re.compile(r"^\s*def test_\w+\([^)]*\bbackend\b|\bmark\.cuda\b", re.MULTILINE)


def cuda_files(tests: Path) -> list[Path]:
    """Test files with a test on the backends, or one marked ``cuda``."""
    return [path for path in sorted(tests.rglob("test_*.py")) if _ON_CUDA.search(path.read_text())]


def imported(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports when it is imported."""
    names: set[str] = set()
    for node in _executed(ast.parse(path.read_text()).body):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names)


def _executed(body: Iterable[ast.stmt]) -> Iterable[ast.stmt]:
    """Statements that run at import: those of functions do not."""
    for node in body:
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "finalbody"):
                yield from _executed(getattr(node, field, []))


def missing_packages(path: Path, tests: Path, own: Iterable[str] = ("sparse_accel", "bench")) -> list[str]:
    """What a test file imports, by itself or through helpers among the tests, and this interpreter has not."""
    known, missing, queue = set(own), set(), [path]
    while queue:
        for name in imported(queue.pop()) - known:
            known.add(name)
            if helpers := list(tests.rglob(f"{name}.py")):
                queue += helpers
            elif not any(place.is_dir() for place in tests.rglob(name)) and importlib.util.find_spec(name) is None:
                missing.add(name)
    return sorted(missing)


def select(tests: Path) -> tuple[list[Path], dict[str, list[str]]]:
    """Files to run; and those that are left out, by what they need and this machine lacks."""
    files, left_out = [], {}
    for path in cuda_files(tests):
        lacks = missing_packages(path, tests)
        if lacks:
            left_out[path.relative_to(tests).as_posix()] = lacks
        else:
            files.append(path)
    return files, left_out
