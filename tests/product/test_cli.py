"""The command line's frame: info, demo and bench, with typer and without."""

import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

import sparse_accel
from sparse_accel import cli
from sparse_accel.cli import plain


@pytest.fixture
def typer():
    return pytest.importorskip("typer", reason="the cli extra is not installed")


@pytest.fixture
def no_typer(monkeypatch):
    """As after `pip install sparse-accel` alone."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "typer" else real(name))


@pytest.fixture(params=["with typer", "without"])
def either(request):
    request.getfixturevalue("typer" if request.param == "with typer" else "no_typer")


def test_info(either, capsys):
    assert cli.main(["info"]) == 0
    output = capsys.readouterr().out
    assert output == f"{sparse_accel.build_info()}\n"


def test_info_json(either, capsys):
    assert cli.main(["info", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["version"] == sparse_accel.__version__
    assert isinstance(info["cuda_architectures"], list)


def test_version(either, capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"sparse-accel {sparse_accel.__version__}\n"


@pytest.mark.parametrize("command", plain.COMMANDS)
def test_without_typer_the_others_say_what_to_install(no_typer, capsys, command):
    assert cli.main([command, "--anything"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"sparse-accel: {command} needs typer: pip install 'sparse-accel[cli]'\n"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["info", "--what"]])
def test_without_typer_typing_errors(no_typer, capsys, arguments):
    assert cli.main(arguments) == 2
    assert "usage: sparse-accel info" in capsys.readouterr().err
    assert cli.main(["--help"]) == 0
    assert "pip install 'sparse-accel[cli]'" in capsys.readouterr().out


def test_plain_knows_all_commands(typer):
    from sparse_accel.cli.app import app

    assert {command.name for command in app.registered_commands} == {"info", *plain.COMMANDS}


def test_as_a_module_info_needs_torch_alone():
    """python -m sparse_accel info, where nothing but torch is installed: nothing else is imported on the way."""
    code = """
import importlib.util, runpy, sys
find, hidden = importlib.util.find_spec, {"typer", "click", "rich", "transformers", "sklearn"}
importlib.util.find_spec = lambda name: None if name in hidden else find(name)
sys.argv = ["sparse-accel", "info"]
try:
    runpy.run_module("sparse_accel", run_name="__main__")
except SystemExit as end:
    print(hidden & set(sys.modules), end.code)
"""
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.splitlines()[0] == str(sparse_accel.build_info()).splitlines()[0]
    assert output.splitlines()[-1] == "set() 0"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("sparse-accel s", ["sparsify", "sparsity"]),
        ("sparse-accel prune --meth", ["--method"]),
        ("sparse-accel prune --method g", ["gram_obs", "gram_cosamp"]),
        ("sparse-accel sparsity x --by e", ["element"]),
    ],
)
def test_completion(typer, monkeypatch, capsys, words, expected):
    monkeypatch.setenv("_SPARSE_ACCEL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    cli.main([])
    assert capsys.readouterr().out.split() == expected


def test_demo_passes_its_options_on(typer, monkeypatch, tmp_path):
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


def test_demo_names_the_missing_extra(typer, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rich" else object())
    assert cli.main(["demo"]) == 2
    assert "the demo needs rich: pip install 'sparse-accel[demo]'" in capsys.readouterr().err


def test_bench_passes_its_options_on(typer, monkeypatch):
    from sparse_accel.bench import command

    calls = []
    monkeypatch.setattr(command, "main", lambda arguments: calls.append(arguments) or 3)
    assert cli.main(["bench", "--seconds", "1", "--help"]) == 3
    assert calls == [["--seconds", "1", "--help"]]


def test_bench_names_what_there_is(typer, capsys):
    assert cli.main(["bench", "--only", "nothing"]) == 2
    said = capsys.readouterr().err
    assert "nothing" in said
    assert "group_score" in said
