"""The command line."""

import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

import sparse_accel
from sparse_accel import cli


def test_info(capsys):
    assert cli.main(["info"]) == 0
    output = capsys.readouterr().out
    assert output == f"{sparse_accel.build_info()}\n"


def test_info_json(capsys):
    assert cli.main(["info", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["version"] == sparse_accel.__version__
    assert isinstance(info["cuda_architectures"], list)


def test_as_a_module():
    command = [sys.executable, "-m", "sparse_accel", "--version"]
    output = subprocess.run(command, check=True, capture_output=True, text=True)
    assert output.stdout == f"sparse-accel {sparse_accel.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["info", "--what"], ["demo", "--epochs", "0"]])
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert "usage: sparse-accel" in capsys.readouterr().err


def test_demo_passes_its_options_on(monkeypatch, tmp_path):
    calls = []

    def run(*args, **options):
        calls.append((args, options))
        return SimpleNamespace(status=len(calls) - 1)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    fake = SimpleNamespace(run=run)
    monkeypatch.setitem(sys.modules, "sparse_accel.demo", fake)
    monkeypatch.setattr(sparse_accel, "demo", fake, raising=False)
    assert cli.main(["demo", "--out-dir", str(tmp_path), "--epochs", "3", "--no-progress"]) == 0
    assert cli.main(["demo"]) == 1  # a target was missed
    assert calls[0] == ((tmp_path,), {"epochs": 3, "seed": 0, "progress": False})
    assert "epochs" not in calls[1][1]


def test_demo_names_the_missing_extra(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rich" else object())
    assert cli.main(["demo"]) == 2
    assert "the demo needs rich: pip install 'sparse-accel[demo]'" in capsys.readouterr().err


def test_bench_passes_its_options_on(monkeypatch, tmp_path):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").write_text(
        "calls = []\ndef main(argv):\n    calls.append(argv)\n    return 3\n"
    )
    monkeypatch.setattr(cli, "_ROOT", tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "bench", raising=False)
    assert cli.main(["bench", "--seconds", "1", "--help"]) == 3
    assert sys.modules.pop("bench").calls == [["--seconds", "1", "--help"]]


def test_bench_without_a_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_ROOT", tmp_path)
    assert cli.main(["bench"]) == 2
    assert "source checkout" in capsys.readouterr().err
