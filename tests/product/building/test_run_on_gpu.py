"""bench/run_on_gpu.sh, as far as no GPU is needed: arguments, plan, limits, what counts as failed, results, dry run."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "CMakeLists.txt").exists())
sys.path.insert(0, str(ROOT / "bench"))
main, plan, part, process, report = (
    importlib.import_module(f"gpu.{name}") for name in ("__main__", "plan", "part", "process", "report")
)
sys.path.remove(str(ROOT / "bench"))

Outcome = part.Outcome


def fake(name: str, outcome: Any, *needs: str, limit: float = 9, least: float = 1) -> Any:
    """A part with this outcome, or that calls it."""

    def run(run: Any, seconds: float) -> Any:
        return outcome(run, seconds) if callable(outcome) else outcome

    return part.Part(name, "does", run, run, limit, least, needs)


def performed(tmp_path: Path, *rows: list[Any], budget: float | None = 60) -> Any:
    return main.perform(rows, part.Run(tmp_path, "full", dry=True), budget)


def results(made: Any) -> dict[str, str]:
    return {row["part"]: row["result"] for row in made.content(True)["parts"]}


@pytest.mark.parametrize(
    "argv, message",
    [
        (["fast"], "invalid choice: 'fast'"),
        (["--budget", "-1"], "--budget: expected a positive number of seconds, got -1.0"),
        (["full", "bench"], "unrecognized arguments: bench"),
        (["--budget", "soon"], "invalid float value"),
    ],
)
def test_wrong_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main.main(argv)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "bench/run_on_gpu.sh [-h]" in error


def test_the_script_passes_arguments_on() -> None:
    script = ROOT / "bench" / "run_on_gpu.sh"
    env = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([script, "nonsense"], capture_output=True, text=True, env=env, check=False, cwd="/")
    assert done.returncode == 2
    assert "invalid choice: 'nonsense'" in done.stderr
    assert len(script.read_text().splitlines()) < 20  # the logic is in the package


def test_plan() -> None:
    full = [one.name for row in plan.parts("full") for one in row]
    assert ", ".join(full) == (
        "facts, build: module, build: C++ tests, module, C++ tests, pytest, sanitizers, large, bench, ncu"
    )
    assert [one.name for row in plan.parts("bench") for one in row] == ["facts", "build: module", "module", "bench"]
    assert [len(row) for row in plan.parts("full")] == [
        1,
        2,
        1,
        1,
        1,
        1,
        1,
        1,
        1,
    ]  # the builds side by side, bench alone
    for mode, minutes in (("full", 8), ("bench", 4)):
        rows, before = plan.parts(mode), set()
        assert plan.BUDGET[mode] < 60 * minutes
        assert sum(max(one.least for one in row) for row in rows) < plan.BUDGET[mode]
        for row in rows:
            assert all(set(one.needs) <= before for one in row)
            assert all(0 <= one.least <= one.limit for one in row)
            before |= {one.name for one in row}


def test_a_good_run(tmp_path: Path) -> None:
    made = performed(tmp_path, [fake("a", Outcome("passed"))], [fake("b", Outcome("unavailable", "no counters"), "a")])
    assert made.good
    assert results(made) == {"a": "passed", "b": "unavailable"}
    assert made.failures_text() == ""


def test_failures_skips_and_exceptions_count(tmp_path: Path) -> None:
    def breaks(run: Any, seconds: float) -> Any:
        raise KeyError("x")

    failed = Outcome("failed", "no", [{"what": "it", "why": "status 3", "text": "one\ntwo"}])
    made = performed(
        tmp_path,
        [fake("a", failed), fake("b", breaks)],
        [fake("c", Outcome("passed"), "a")],
        [fake("d", Outcome("passed"), "c")],
        [fake("e", Outcome("passed"))],
    )
    assert results(made) == {"a": "failed", "b": "failed", "c": "skipped", "d": "skipped", "e": "passed"}
    assert not made.good
    text = made.failures_text()
    assert "-- a: it: status 3\none\ntwo" in text
    assert "-- b: b: KeyError: 'x'" in text
    assert "NOT GOOD" in made.table()
    for result in ("failed", "skipped"):
        assert not performed(tmp_path, [fake("a", Outcome(result))]).good


def test_a_failure_that_others_can_live_with(tmp_path: Path) -> None:
    made = performed(tmp_path, [fake("a", Outcome("failed", usable=True))], [fake("b", Outcome("passed"), "a")])
    assert results(made) == {"a": "failed", "b": "passed"}
    assert not made.good


def test_later_parts_keep_their_time() -> None:
    one, two = fake("a", None, limit=100, least=10), fake("b", None, limit=50, least=30)
    last = fake("c", None, limit=50, least=20)
    assert main.share([one, two], [[last]], 200) == [100, 50]
    assert main.share([one, two], [[last]], 60) == [40, 40]
    assert main.share([one, two], [[last]], 25) == [10, 25]
    assert main.share([last], [], 0.5) == [0.5]


def test_no_time_left(tmp_path: Path) -> None:
    made = performed(tmp_path, [fake("a", lambda run, seconds: time.sleep(1.2) or Outcome("passed"))],
                     [fake("b", Outcome("passed"))], budget=2)  # fmt: skip
    assert results(made) == {"a": "passed", "b": "skipped"}
    assert not made.good


@pytest.mark.parametrize("good", [True, False])
def test_results_file_and_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], good: bool
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    seen = []

    def facts(run: Any, seconds: float) -> Any:
        run.facts = {"card": "NVIDIA H100 80GB HBM3", "date": "2026-11-26", "commit": "abc"}
        (run.logs / "facts.log").write_text("log\n")
        return Outcome("passed")

    def bench(run: Any, seconds: float) -> Any:
        seen.append(json.loads((tmp_path / "bench/results/2026-11-26-nvidia-h100-80gb-hbm3.json").read_text()))
        return Outcome("passed" if good else "failed", data={"rows": [{"case": "x"}], "machine": {"gpu": "H100"}})

    monkeypatch.setenv("OUT", str(out))
    monkeypatch.setattr(main, "parts", lambda mode: [[fake("facts", facts)], [fake("bench", bench)]])
    assert main.main(["bench"], tmp_path) == (0 if good else 1)
    first = tmp_path / "bench/results/2026-11-26-nvidia-h100-80gb-hbm3.json"
    content = json.loads(first.read_text())
    assert not seen[0]["complete"]  # written after every part
    assert not seen[0]["good"]
    assert content["complete"]
    assert content["good"] == good
    assert (content["mode"], content["facts"]["commit"], content["rows"], content["machine"]) == (
        "bench", "abc", [{"case": "x"}], {"gpu": "H100"}
    )  # fmt: skip
    assert json.loads((out / first.name).read_text()) == content
    with tarfile.open(out / "logs.tar.gz") as archive:
        assert "logs/facts.log" in archive.getnames()
    assert (
        capsys.readouterr().out.rstrip().splitlines()[-1].startswith("all               " + ("good" if good else "NOT"))
    )
    seen.clear()
    main.main(["bench"], tmp_path)
    assert json.loads(first.read_text()) == content  # the older one stays
    assert (first.parent / f"{first.stem}-2.json").exists()


# ---- commands


def test_a_command_past_its_limit_is_killed_with_its_children(tmp_path: Path) -> None:
    words = ["sh", "-c", f"echo begun; (sleep 3; touch {tmp_path}/survived) & sleep 60"]
    done = process.run(process.Command("hangs", words), 1.5, tmp_path / "hangs.log")
    assert done.code == process.TIMED_OUT
    assert done.seconds < 10
    assert "begun" in done.output
    assert done.why().startswith("stopped at its limit")
    time.sleep(2)
    assert not (tmp_path / "survived").exists()


def test_commands_that_end_badly(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert process.run(process.Command("a", ["sh", "-c", "exit 3"]), 9, log).why() == "exit status 3"
    assert process.run(process.Command("a", ["sh", "-c", "kill -9 $$"]), 9, log).why() == "killed by signal 9"
    assert process.run(process.Command("a", ["/nowhere/program"]), 9, log).why() == "not started"
    assert process.run(process.Command("a", ["true"]), 0, log).why() == "not started"
    assert "no time left" in log.read_text()


def test_many_commands(tmp_path: Path) -> None:
    words = {"a": "sleep 0.3; echo $NAME", "b": "exit 1", "c": "sleep 60", "d": "cat"}
    commands = [process.Command(name, ["sh", "-c", text], {"NAME": name}) for name, text in words.items()]
    told: list[str] = []
    done = process.run_all(commands, 4, 30, tmp_path, each=1.5, told=lambda one: told.append(one.command.name))
    assert [one.command.name for one in done] == list(words)
    assert [one.code for one in done] == [0, 1, process.TIMED_OUT, 0]  # d: standard input is empty
    assert done[0].output == "a\n"
    assert sorted(told) == list(words)
    assert (tmp_path / "b.log").read_text() == "$ NAME=b sh -c 'exit 1'\n"


def test_outcome_of_commands(tmp_path: Path) -> None:
    def ended(name: str, text: str) -> Any:
        return process.run(process.Command(name, ["sh", "-c", text]), 9, tmp_path / "log")

    good, bad, silent = ended("good", "echo all correct"), ended("bad", "exit 1"), ended("silent", "true")

    def wrong(done: Any) -> str:
        return "" if "all correct" in done.output else "said nothing"

    assert part.of_commands([good], wrong).result == "passed"
    mixed = part.of_commands([good, bad, silent], wrong)
    assert mixed.result == "failed"
    assert mixed.note == "1 of 3; failed: bad, silent"
    assert [entry["why"] for entry in mixed.failures] == ["exit status 1", "said nothing"]
    assert part.of_commands([]).result == "failed"


def test_environment_of_python_commands(tmp_path: Path) -> None:
    run = part.Run(ROOT, "full", dry=False)
    paths = run.env(MORE="1")["PYTHONPATH"].split(os.pathsep)
    assert paths[:2] == [str(run.site), str(ROOT)]
    assert [Path(path).name.split("-")[0] for path in paths[2:]] == ["expecttest"]
    command = run.python("name", "-c", "import expecttest; print(expecttest.__file__)")
    done = process.run(dataclasses.replace(command, env={**command.env, "HOME": str(tmp_path)}), 60, tmp_path / "log")
    assert done.code == 0
    assert ".whl" in done.output or "site-packages" in done.output


def test_full_has_what_bench_has() -> None:
    full, bench = ([one for row in plan.parts(mode) for one in row] for mode in ("full", "bench"))
    assert [one for one in full if one in bench] == bench
    assert len(bench) < len(full)


@pytest.mark.slow
def test_dry_run() -> None:
    """What `--dry-run` says here: every script runs, tests are collected, nothing is written but under build/."""
    before = sorted((ROOT / "bench" / "results").iterdir())
    env = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = [ROOT / "bench" / "run_on_gpu.sh", "full", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, cwd="/", timeout=540)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    lines = output.splitlines()
    assert any(line.startswith("card ") and "driver" in line for line in lines)
    assert any(line.startswith("python ") and "commit" in line for line in lines)
    for row in plan.parts("full"):
        for one in row:
            assert any(line.startswith(f"{one.name:<18}") and line.split()[-1] for line in lines), one.name
    assert lines[-1].startswith("all               good")
    assert sorted((ROOT / "bench" / "results").iterdir()) == before


def test_carried_wheels_are_named() -> None:
    """Each with its licence and digest, and small."""
    import hashlib

    folder = ROOT / "bench" / "wheels"
    text = (folder / "README.md").read_text()
    wheels = list(folder.glob("*.whl"))
    assert wheels
    for wheel in wheels:
        assert f"`{wheel.name}`" in text
        assert hashlib.sha256(wheel.read_bytes()).hexdigest() in text
        assert wheel.stat().st_size < 100_000
    assert shutil.which("sh")
