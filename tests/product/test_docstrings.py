"""The examples in docstrings run, and every public name has a docstring."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import sparse_accel as sa

MODULES = [
    module.name
    for module in pkgutil.walk_packages([str(Path(sa.__file__).parent)], "sparse_accel.")
    if not module.name.endswith(("__main__", "_C"))
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # examples may write files
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0, f"python -m doctest: {result.failed} of {result.attempted} examples fail in {name}"


@pytest.mark.parametrize("name", [name for name in sa.__all__ if not name.startswith("__")])
def test_public_names_are_documented(name: str) -> None:
    value = getattr(sa, name)
    assert inspect.getdoc(value), name


@pytest.mark.parametrize("kind", [sa.GroupLasso, sa.L1, sa.GroupL0, sa.RMDA, sa.ProxSGD, sa.lr_scheduler.MultiStageLR])
def test_public_classes_have_examples(kind: type) -> None:
    assert ">>> " in (kind.__doc__ or "")
    for name, member in inspect.getmembers(kind, inspect.isfunction):
        if not name.startswith("_") and member.__module__.startswith("sparse_accel"):
            assert inspect.getdoc(member), f"{kind.__name__}.{name}"


@pytest.mark.parametrize("name", sa.prune.__all__)
def test_pruning_names_are_documented(name: str) -> None:
    value = getattr(sa.prune, name)
    assert inspect.getdoc(value), name
    if inspect.isfunction(value):
        assert ">>> " in value.__doc__, name
