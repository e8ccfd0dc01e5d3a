"""The parts of bench/run_on_gpu.sh: facts, builds, choice of tests, reports of pytest, sanitizers and ncu."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "CMakeLists.txt").exists())
TESTS = ROOT / "tests"
sys.path.insert(0, str(ROOT / "bench"))
build, device, facts, part, process, selection, suite, timing = (
    importlib.import_module(f"gpu.{name}")
    for name in ("build", "device", "facts", "part", "process", "selection", "suite", "timing")
)
sys.path.remove(str(ROOT / "bench"))


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """A run in an empty folder; what it starts is this interpreter."""
    out = part.Run(tmp_path, "full", dry=False)
    out.logs.mkdir(parents=True)
    return out


def ended(output: str, code: int = 0) -> Any:
    return process.Done(process.Command("it", ["it"]), code, 1.0, output)


# ---- facts


def test_facts_of_this_machine() -> None:
    found = facts.gather(part.Run(ROOT, "full", dry=True))
    import torch

    assert found["torch"] == torch.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["packages"]["pytest"]
    assert found["importable"] == ""
    assert len(found["sources"]) == 16
    text = facts.headline(found)
    assert text.splitlines()[0].startswith("card ")
    assert f"commit {found['commit']}" in text
    json.dumps(found)


def test_problems_are_named() -> None:
    good = {"packages": dict.fromkeys(facts.NEEDED, True), "torch": "2.11.0", "torch_cuda": "13.0", "card": "H100",
            "python_headers": True, "tools": dict.fromkeys(facts.TOOLS, "/bin/x")}  # fmt: skip
    assert facts.problems(good) == []
    assert facts.problems(good | {"card": None}) == ["torch sees no CUDA device"]
    assert facts.problems(good | {"torch_cuda": None}) == ["torch 2.11.0 has no CUDA"]
    assert facts.problems(good | {"tools": good["tools"] | {"nvcc": None}}) == ["no nvcc"]
    assert "no Python.h in /" in facts.problems(good | {"python_headers": False})[0]
    assert facts.problems(good | {"packages": good["packages"] | {"pytest": False}}) == ["no Python package pytest"]
    assert "could not be read: Traceback" in facts.problems({"probe": "Traceback", "tools": {}})[0]


def test_a_copy_without_history_names_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSE_ACCEL_COMMIT", raising=False)
    assert facts.commit(tmp_path) == "unknown"
    monkeypatch.setenv("SPARSE_ACCEL_COMMIT", "0123456789ab")
    assert facts.commit(tmp_path) == "0123456789ab"
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "a.cu").write_text("one")
    one = facts.source_digest(tmp_path)
    (tmp_path / "csrc" / "a.cu").write_text("two")
    assert facts.source_digest(tmp_path) != one


def test_no_card_fails_the_real_run_only(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"packages": dict.fromkeys(facts.NEEDED, True), "torch": "2.13.0", "torch_cuda": None, "cores": 2,
             "tools": dict.fromkeys(facts.TOOLS, "/bin/x")}  # fmt: skip
    monkeypatch.setattr(facts, "gather", lambda run: found)
    assert facts.run(part.Run(ROOT, "full", dry=False), 9).result == "failed"
    assert facts.rehearse(part.Run(ROOT, "full", dry=True), 9).result == "lacking"


# ---- builds


def test_the_module_is_staged_beside_links(run: Any) -> None:
    package, built = run.root / "sparse_accel", run.root / "out"
    (package / "optim").mkdir(parents=True)
    built.mkdir()
    for path in (package / "__init__.py", package / "_C.old.so", package / "_build_info.py", built / "_C.new.so"):
        path.write_text("old")
    (built / "_build_info.py").write_text("with_cuda = True\n")
    for _ in range(2):
        outcome = build.stage(run, [*built.glob("_C*.so"), built / "_build_info.py"])
        assert outcome.result == "passed"
    staged = run.site / "sparse_accel"
    assert sorted(path.name for path in staged.iterdir()) == ["_C.new.so", "__init__.py", "_build_info.py", "optim"]
    assert (staged / "optim").resolve() == package / "optim"
    assert (staged / "_build_info.py").read_text() == "with_cuda = True\n"
    assert outcome.data["module"] == str(staged / "_C.new.so")
    lost = build.stage(run, [built / "_build_info.py"])
    assert lost.result == "failed"
    assert "expected _C*.so and _build_info.py" in lost.failures[0]["why"]


def test_a_build_that_cmake_cannot_make_goes_on_but_has_failed(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (run.root / "sparse_accel").mkdir()
    broken = process.Command("configure", ["sh", "-c", "echo no CUDA; exit 1"])
    monkeypatch.setattr(build, "cmake_commands", lambda run: [broken])
    made = f"touch {run.work}/jit/_C.so {run.work}/jit/_build_info.py"
    monkeypatch.setattr(part.Run, "script", lambda *a, **k: process.Command("jit", ["sh", "-c", made]))
    outcome = build.build_module(run, 20)
    assert (outcome.result, outcome.usable) == ("failed", True)
    assert outcome.failures[0]["text"] == "no CUDA"
    assert Path(outcome.data["module"]).exists()
    monkeypatch.setattr(part.Run, "script", lambda *a, **k: process.Command("jit", ["false"]))
    outcome = build.build_module(run, 20)
    assert (outcome.result, outcome.usable) == ("failed", False)


def test_cmake_is_told_the_card(run: Any) -> None:
    run.facts = {"capability": "10.0"}
    configure, make = build.cmake_commands(run)
    assert "-DSPARSE_ACCEL_CUDA_ARCHITECTURES=100-real" in configure.words
    assert "-DSPARSE_ACCEL_CUDA=ON" in configure.words
    options = (ROOT / "CMakeLists.txt").read_text() + (ROOT / "cmake" / "Cuda.cmake").read_text()
    for word in configure.words:
        if word.startswith("-DSPARSE_ACCEL_"):
            assert word[2:].split("=")[0] in options, word
    assert make.words[-2:] == ["--target", "_C"]


def test_every_emulated_program_is_one_for_the_card() -> None:
    from cuda_emulator import build as emulator

    names = {path.name for path in build.program_sources(ROOT)}
    assert names == {path.name for path in emulator.HERE.glob("test_*.cpp")}
    assert "bugs.cpp" not in names
    flags = (ROOT / "CMakeLists.txt").read_text()
    for flag in build.NVCC_FLAGS:
        assert flag in flags or flag in ("-std=c++17", "-O2"), flag


@pytest.mark.slow
def test_the_programs_compile_for_a_card(tmp_path: Path) -> None:
    """The C++ tests of the emulator are CUDA programs as they are. No optimization, and PTX: compiling is all; of the
    first its host side too, the others' is parsed."""
    nvcc = facts.find_tool("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc")
    quick = {"-O2": ["-O0", "-Xcicc", "-O0"], "-arch=sm_90": ["-gencode", "arch=compute_90,code=compute_90"]}
    commands = []
    for source in build.program_sources(ROOT):
        command = build.program_command(nvcc, source, "90", tmp_path / source.stem)
        words = [part for word in command.words for part in quick.get(word, [word])]
        words += ["-ptx"] if commands else []
        commands.append(dataclasses.replace(command, words=words))
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda one: process.run(one, 500, tmp_path / f"{one.name}.log"), commands))
    for one in done:
        assert one.code == 0, one.output
        assert "warning" not in one.output, one.output
    first, *others = (tmp_path / source.stem for source in build.program_sources(ROOT))
    assert os.access(first, os.X_OK)
    assert all(".entry " in path.read_text() for path in others)


# ---- the choice of tests


def test_files_with_tests_on_cuda(request: pytest.FixtureRequest) -> None:
    """None is forgotten: of the tests collected in this run, all that are marked so are in the chosen files."""
    chosen = set(selection.cuda_files(TESTS))
    marked = {item.path for item in request.session.items if item.get_closest_marker("cuda")}
    assert marked <= chosen
    assert selection.select(TESTS) == (sorted(chosen), {})  # here nothing is missing
    assert {"test_glm.py", "test_cuda_sizes.py", "test_cuda_streams.py"} <= {path.name for path in chosen}
    assert [path.name for path in suite.large_files(part.Run(ROOT, "full", dry=True))] == ["test_cuda_sizes.py"]


def test_files_that_need_a_missing_package_are_left_out(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    case = "def test_one(backend):\n    pass\n"
    write("test_a.py", "import os, json\nimport pytest\nfrom sparse_accel import ops\n" + case)
    write("test_b.py", "import no_such_package.part\n" + case)
    write("deep/test_c.py", "from helper import x\n" + case)
    write("other/helper.py", "try:\n    import other_missing\nexcept ImportError:\n    raise\n")
    write("test_d.py", "def test_two():\n    import no_such_package\n")  # no test on CUDA
    write("test_e.py", f"def load():\n    import no_such_package\n\n\n{case}")  # only inside a function
    write("test_f.py", "from folder import build\n" + case)
    write("folder/build.py", "")
    files, left_out = selection.select(tmp_path)
    assert [path.name for path in files] == ["test_a.py", "test_e.py", "test_f.py"]
    assert left_out == {"test_b.py": ["no_such_package"], "deep/test_c.py": ["other_missing"]}


# ---- reports

XML = """<testsuites><testsuite>
<testcase classname="tests.test_x" name="test_one[cuda]"/>
<testcase classname="tests.test_x" name="test_two[cuda]">%s</testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize(
    "child, result, note",
    [
        ("", "passed", "2 passed, 0 failed"),
        ('<failure message="no">trace</failure>', "failed", "1 passed, 1 failed"),
        ('<error message="no">trace</error>', "failed", "1 passed, 1 failed"),
        ('<skipped message="no CUDA"/>', "failed", "1 passed, 1 failed"),
    ],
)
def test_report_of_pytest(run: Any, child: str, result: str, note: str) -> None:
    (run.work / "it.xml").write_text(XML % child)
    outcome = suite.outcome_of(run, [ended("")], {"test_z.py": ["hypothesis"]})
    assert outcome.result == result
    assert outcome.note == f"{note}; left out: test_z.py (no hypothesis)"
    assert [entry["what"] for entry in outcome.failures] == (["tests.test_x::test_two[cuda]"] if child else [])


def test_a_run_without_a_test_has_failed(run: Any) -> None:
    assert suite.outcome_of(run, [ended("no report")], {}).result == "failed"
    assert suite.outcome_of(run, [], {}).result == "failed"
    (run.work / "it.xml").write_text("<testsuites><testsuite/></testsuites>")
    assert suite.outcome_of(run, [ended("")], {}).result == "failed"
    (run.work / "it.xml").write_text(XML % "")
    assert suite.outcome_of(run, [ended("crashed at exit", -11)], {}).failures[0]["why"] == "killed by signal 11"


def test_workers_with_and_without_xdist(run: Any, tmp_path: Path) -> None:
    files = []
    for size in range(6):
        files.append(tmp_path / f"test_{size}.py")
        files[-1].write_text("#" * size)
    run.facts = {"packages": {"xdist": True, "pytest_timeout": True}}
    (one,) = suite.commands(run, files)
    assert one.words[one.words.index("-n") + 1] == "4"
    assert "addopts" not in str(one)
    assert one.env["SPARSE_ACCEL_REQUIRE_CUDA"] == "1"
    run.facts = {"packages": {}}
    four = suite.commands(run, files)
    assert len(four) == 4
    assert sorted(word for one in four for word in one.words if word.endswith(".py")) == sorted(map(str, files))
    assert all("addopts=-ra --strict-markers" in one.words for one in four)
    assert len({word for one in four for word in one.words if word.startswith("--junitxml")}) == 4


@pytest.mark.parametrize(
    "output, wrong",
    [
        ("all correct\n========= ERROR SUMMARY: 0 errors\n", ""),
        ("all correct\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", ""),
        (
            "all correct\n========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)\n",
            "no summary of 0 errors",
        ),
        ("all correct\nDevice not supported\n", "no summary of 0 errors"),
        ("========= ERROR SUMMARY: 0 errors\n", "it did not say that all is correct"),
    ],
)
def test_report_of_a_sanitizer(output: str, wrong: str) -> None:
    assert device.clean(ended(output)) == wrong


def test_sanitizers_see_every_program(monkeypatch: pytest.MonkeyPatch) -> None:
    run = part.Run(ROOT, "full", dry=False)
    commands = device.sanitizer_commands(run)
    assert len(commands) == 1 + 4 * len(build.program_sources(ROOT))
    assert len({command.name for command in commands}) == len(commands)
    assert commands[0].env["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
    assert {command.name for command in commands if "CHECK_UNWRITTEN" in command.env} == {
        command.name for command in commands if command.name.startswith("initcheck_")
    }
    monkeypatch.setattr(device, "find_tool", lambda name: None)
    assert device.run_sanitizers(run, 9).result == "failed"  # left out is failed


NCU = """calls
==PROF== Connected to process 1
"ID","Process ID","Kernel Name","gpu__time_duration.sum","dram__bytes_read.sum","launch__registers_per_thread"
"","","","usecond","Mbyte","register/thread"
"0","1","prox_kernel(float *)","45.5","67.1","40"
"1","1","score","1,024","0","32"
==PROF== Disconnected
"""


def test_report_of_ncu() -> None:
    one, two = timing.kernels_of(NCU)
    assert (one["kernel"], one["ns"], one["registers"]) == ("prox_kernel(float *)", 45500, 40)
    assert one["read_bytes"] == pytest.approx(67.1e6)
    assert (two["ns"], two["read_bytes"], two["written_bytes"]) == (1024e3, 0, None)
    assert timing.kernels_of("==ERROR== ERR_NVGPUCTRPERM") == []


@pytest.mark.parametrize(
    "text, result",
    [
        (NCU, "passed"),
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission", "unavailable"),
        ("==ERROR== Failed to initialize the profiler: LibraryNotLoaded", "unavailable"),
        ("==ERROR== an unknown metric", "failed"),
    ],
)
def test_ncu_that_is_not_permitted_is_said(run: Any, monkeypatch: pytest.MonkeyPatch, text: str, result: str) -> None:
    monkeypatch.setattr(timing, "find_tool", lambda name: "/bin/ncu")
    code = "import sys; sys.stdout.write(sys.argv[1])"
    fake = process.Command("ncu", [sys.executable, "-c", code, text])
    monkeypatch.setattr(timing, "profiler_command", lambda run: fake)
    assert timing.run_profiler(run, 30).result == result
    monkeypatch.setattr(timing, "find_tool", lambda name: None)
    assert timing.run_profiler(run, 30).result == "unavailable"


def test_benches_that_crash_keep_their_rows(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def script(rows: list[Any], failures: list[Any], end: str) -> None:
        content = json.dumps({"rows": rows, "failures": failures, "machine": {"gpu": "x"}})
        code = f"open({str(run.work / 'benches.json')!r}, 'w').write({content!r}); {end}"
        command = process.Command("benches", [sys.executable, "-c", code])
        monkeypatch.setattr(part.Run, "script", lambda *a, **k: command)

    script([{"case": 1}], [], "pass")
    outcome = timing.run_benches(run, 30)
    assert (outcome.result, outcome.note, outcome.data["rows"]) == ("passed", "1 rows", [{"case": 1}])
    script([{"case": 1}], [], "import os; os.abort()")
    outcome = timing.run_benches(run, 30)
    assert (outcome.result, outcome.data["rows"]) == ("failed", [{"case": 1}])
    script([{"case": 1}], [{"bench": "glm, float32", "why": "TimeoutError", "text": ""}], "exit(1)")
    outcome = timing.run_benches(run, 30)
    assert (outcome.result, outcome.note) == ("failed", "1 rows; failed: glm, float32")
    script([], [], "pass")
    assert timing.run_benches(run, 30).result == "failed"
