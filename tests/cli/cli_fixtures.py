"""A user's folder with models and data, and a way to see that nothing in it changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from cli_models import NETS, TEXT, make_bert, make_llama, make_vit

from sparse_accel import report
from sparse_accel.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What nobody writes to."""
    pytest.importorskip("typer", reason="the cli extra is not installed")
    pytest.importorskip("transformers", reason="the test group is not installed")
    folder = tmp_path_factory.mktemp("stock")
    for make, name in ((make_llama, "llama"), (make_bert, "bert"), (make_vit, "vit")):
        make(folder / name)
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    (folder / "stocked_nets.py").write_text(NETS, encoding="utf-8")
    np.save(folder / "rows.npy", np.random.default_rng(0).standard_normal((40, 6)))
    return folder


@pytest.fixture
def here(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with all of it, where latencies are not measured for long."""
    for path in stock.iterdir():
        if path.name != "__pycache__":
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(stock))
    from sparse_accel.cli.commands import compare

    for module in (report, compare):
        monkeypatch.setattr(module, "latencies_ms", partial(report.latencies_ms, budget_s=0.0))
    return tmp_path


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Type a command: exit status, stdout, stderr."""

    def typed(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return typed


@pytest.fixture
def refused(run: Run, here: Path, stock: Path) -> Callable[..., str]:
    """Type a command that is a user's mistake: its message; no traceback, no result, nothing on disk has changed."""

    def typed(*arguments: object, status: int = 2) -> str:
        before = snapshot(here) | snapshot(stock)
        came, out, err = run(*arguments)
        assert (came, out) == (status, ""), err
        assert "Traceback" not in err
        assert snapshot(here) | snapshot(stock) == before
        return " ".join(err.split())

    return typed


def snapshot(folder: Path) -> dict[Path, bytes | None]:
    """Every file and folder with its contents; what Python caches is nobody's."""
    paths = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return {path: path.read_bytes() if path.is_file() else None for path in paths}
