"""The benches run, measure what they say, and their contenders compute the same thing."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import sparse_accel as sa
from sparse_accel.bench import command, compare, measure, report, table, timer
from sparse_accel.bench.case import Case, Row, Settings
from sparse_accel.bench.cases import gram_obs, group_score, group_topk, ispasp, prox, sparse_linear
from sparse_accel.bench.workloads import WORKLOADS, numel, tensors
from sparse_accel.cli import main

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"group_score", "group_topk", "prox", "optim", "glm", "gram_obs", "ispasp", "sparse_linear", "topk"}


@pytest.fixture(scope="module", autouse=True)
def _checkout_on_the_path():
    sys.path.insert(0, str(ROOT))
    yield
    sys.path.remove(str(ROOT))


@pytest.fixture
def settings():
    return Settings(workloads=("tiny",), seconds=0.01, min_rounds=2)


@pytest.fixture
def quick(monkeypatch):
    """Nothing is flushed, and two rounds suffice."""
    monkeypatch.setattr(timer, "last_cache_bytes", lambda device: 1 << 16)
    monkeypatch.setattr(measure, "last_cache_bytes", lambda device: 1 << 16)
    monkeypatch.setattr(command, "Settings", partial(Settings, min_rounds=2))
    return ["--workloads", "tiny", "--seconds", "0.001"]


def test_all_benches_write_their_rows(tmp_path, capsys, quick):
    """The whole command on tiny shapes: rows, JSON, page, pictures; then itself compared with itself, without a run."""
    file, page, pictures = tmp_path / "new" / "rows.json", tmp_path / "page.html", tmp_path / "pictures"
    words = [*quick, "--no-compile", "--json", str(file), "--html", str(page), "--plot", str(pictures)]
    assert main(["bench", *words]) == 0
    assert "RMDA by input" in page.read_text()
    output = capsys.readouterr().out
    for word in ("% of copy", "% of floor", "/ twin", "/ AdamW", "RMDA by input", "AdamW(fused=True)"):
        assert word in output
    content = json.loads(file.read_text())
    assert content["format"] == command.FORMAT
    assert {row["bench"] for row in content["rows"]} == NAMES == set(command.BENCHES)
    assert {row["dtype"] for row in content["rows"] if row["bench"] == "prox"} == {"float32", "bfloat16"}
    for row in content["rows"]:
        assert set(row) == {field.name for field in dataclasses.fields(Row)}
        assert 0 < row["low_microseconds"] <= row["microseconds"] <= row["high_microseconds"]
        assert row["gb_per_s"] == pytest.approx(row["bytes_moved"] / row["microseconds"] / 1e3)
        assert row["percent_of_floor"] == pytest.approx(100 * row["gb_per_s"] / content["machine"]["floor_gb_per_s"])
        assert row["time_over_peer"] > 0
        assert row["bench"] == "glm" or row["time_over_twin"] > 0  # whose twin is too slow for most sizes
        assert (row["time_over_adamw"] is not None) == row["case"].startswith("ProxSGD")
        assert row["rounds"] >= 2
    facts = content["machine"]
    assert facts["torch"] == torch.__version__
    assert facts["commit"] == sa.build_info().commit
    assert {"cpu", "threads", "load", "cpu_mhz", "driver", "sm_mhz", "memory_mhz", "cuda", "date"} <= set(facts)
    drawn = {f"{row['bench']}-{row['dtype']}.png" for row in content["rows"]}
    assert {path.name for path in pictures.iterdir()} == {"roofline.png", *drawn}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures.iterdir())
    assert main(["bench", "--compare", str(file), str(file)]) == 0
    said = capsys.readouterr().out
    assert f"0 faster and 0 slower beyond the spread; {len(content['rows'])}" in said
    assert "note:" not in said


def test_a_part_with_compiled_peers(tmp_path, capsys, quick):
    file = tmp_path / "rows.json"
    words = [*quick, "--only", "prox:soft by input", "prox:hard", "--dtype", "float32"]
    with torch._inductor.config.patch(cpp_cache_precompile_headers=False):  # for one kernel no gain
        assert main(["bench", *words, "--json", str(file)]) == 0
    rows = {row["case"]: row for row in json.loads(file.read_text())["rows"]}
    assert set(rows) == {"soft by input", "hard by input"}
    assert rows["soft by input"]["time_over_compiled"] > 0
    assert rows["hard by input"]["time_over_compiled"] is None


def test_what_cannot_be_compiled_is_told():
    def fails():
        raise RuntimeError("no compiler\nsecond line")

    notes = []
    assert measure.compiled(fails, notes.append) is None
    assert notes == ["torch.compile failed: RuntimeError: no compiler"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "optim", "sgd"], "--only: expected any of optim, prox, group_score, .*sparse_linear_all; got sgd"),
        (["--workloads", "nonsense"], "--workloads: expected any of resnet50, vit_b, .*tiny; got nonsense"),
        (["--dtype", "int8"], "--dtype: expected any of float32, float64, bfloat16, float16; got int8"),
        (["--device", "mps"], "--device: expected cpu or cuda, got mps"),
        (["--seconds", "0"], "--seconds: expected a positive number, got 0"),
        (["--threads", "0"], "--threads: expected a number >= 1, got 0"),
        (["--compare", "nowhere.json"], "--compare: expected a file, got nowhere.json"),
        (["--only", "prox:no such case", "--workloads", "tiny"], "--only: no case has prox:no such case in its name"),
    ],
)
def test_mistakes_are_told(words, message, capsys, quick):
    assert main(["bench", *words]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_only_files_of_the_bench_are_compared(tmp_path, capsys):
    wrong = tmp_path / "x.json"
    for text, message in {
        "[]": "expected an object with machine and rows",
        "no": "got no JSON",
        '{"machine": {}, "rows": [{"bench": "prox"}]}': r"rows\[0\]: expected .*; missing: case, workload",
    }.items():
        wrong.write_text(text)
        assert main(["bench", "--compare", str(wrong), str(wrong)]) == 2
        assert re.search(message, capsys.readouterr().err)


def row_of(case, low, median, high, copy=50.0, **more):
    return {
        "bench": "prox", "case": case, "workload": "tiny", "device": "cpu", "dtype": "float32", "bytes_moved": 8,
        "percent_of_copy": 50.0, "microseconds": median, "low_microseconds": low, "high_microseconds": high,
        "copy_microseconds": copy, **more,
    }  # fmt: skip


def test_comparisons_say_what_exceeds_the_spread():
    machine = {"cpu": "a", "threads": 2}
    old = {"machine": machine, "rows": [
        row_of("slower", 9, 10, 11), row_of("faster", 9, 10, 11), row_of("within", 9, 10, 11),
        {**row_of("unknown", 9, 10, 11), "low_microseconds": None}, row_of("gone", 1, 1, 1),
    ]}  # fmt: skip
    new = {"machine": {**machine, "threads": 4}, "rows": [
        row_of("faster", 4, 5, 6, copy=25.0), row_of("slower", 12, 20, 30), row_of("within", 10, 12, 13),
        row_of("unknown", 1, 2, 3), row_of("made", 1, 1, 1),
    ]}  # fmt: skip
    found = compare.compare(old, new)
    assert [(c.name.split(", ")[0], c.ratio, c.beside_copy, c.verdict) for c in found.changes] == [
        ("prox: faster", 0.5, 1.0, compare.FASTER),
        ("prox: slower", 2.0, 2.0, compare.SLOWER),
        ("prox: within", 1.2, 1.2, compare.WITHIN),
        ("prox: unknown", 0.2, 0.2, compare.UNKNOWN),
    ]  # fmt: skip
    assert found.only_old == ["prox: gone, tiny, float32"]
    assert found.only_new == ["prox: made, tiny, float32"]
    assert found.notes == ["threads: 2 then, 4 now: compare the column '/ copy'"]
    text = found.text()
    assert "1 faster and 1 slower beyond the spread; 2 not to be told apart." in text
    assert "only in the old file: prox: gone, tiny, float32" in text


def test_results_are_reports(tmp_path):
    files = sorted((ROOT / "bench" / "results").glob("*.json"))
    assert files
    measured = []
    for file in files:
        content = json.loads(file.read_text())
        if content["machine"] is None:
            with pytest.raises(ValueError, match="expected benches, got a run on a GPU machine that ended before"):
                report.BenchReport.read(file)
            continue
        measured.append(file)
        read = report.BenchReport.read(file)
        assert read.to_plain() == {"machine": content["machine"], "rows": content["rows"]}
        assert sum(len(table.rows) for table in read.contents().tables) == len(content["rows"])
    assert "<svg" in report.BenchReport.read(measured[-1]).html(tmp_path / "new" / "page.html").read_text()


def test_contenders_of_group_score_agree(settings):
    for case in group_score.cases(settings):
        for ours, twin, peer in zip(case.run(), case.twin(), case.peer(), strict=True):
            torch.testing.assert_close(ours, twin)
            torch.testing.assert_close(ours.view_as(peer), peer)


def test_contenders_of_group_topk_agree(settings):
    for case in group_topk.cases(settings):
        for ours, twin, peer in zip(case.run(), case.twin(), case.peer(), strict=True):
            assert torch.equal(ours, twin)
            assert torch.equal(ours, peer)


@pytest.mark.parametrize("contender", ["run", "twin", "peer"])
def test_contenders_of_prox_agree(settings, contender, monkeypatch):
    monkeypatch.setattr(prox, "TAU", 1e-3)
    results = []
    monkeypatch.setattr(prox, "weights_of", lambda *args: results.append(tensors(*args)) or results[-1])
    for case in prox.cases(settings):
        weights = results[-1]
        for weight, fresh in zip(weights, tensors("tiny", torch.float32, "cpu"), strict=True):
            weight.copy_(fresh)
        case.twin()
        expected = [weight.clone() for weight in weights]
        for weight, fresh in zip(weights, tensors("tiny", torch.float32, "cpu"), strict=True):
            weight.copy_(fresh)
        getattr(case, contender)()
        assert any(not torch.equal(a, b) for a, b in zip(weights, tensors("tiny", torch.float32, "cpu"), strict=True))
        torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-7)


def test_contenders_of_ispasp_agree(monkeypatch):
    block = ispasp.make_block((8, 6, 5, 5), torch.float32, "cpu")
    ispasp.compare(block)
    block.conv.weight[0] *= 1 + 1e-3
    wrong = ispasp.ours(block)
    block.conv.weight[0] /= 1 + 1e-3
    monkeypatch.setattr(ispasp, "ours", lambda block: wrong)
    with pytest.raises(RuntimeError, match="iteration 1: other sets, or"):
        ispasp.compare(block)


def test_contenders_of_sparse_linear_agree(settings):
    for case in sparse_linear.cases(settings):
        torch.testing.assert_close(case.run(), case.peer(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(case.twin(), case.peer(), rtol=1e-5, atol=1e-5)


def test_contenders_of_gram_obs_agree(settings):
    for case in gram_obs.cases(settings):
        (order, damages), (expected, costs) = case.run(), case.twin()
        assert torch.equal(order, expected)
        torch.testing.assert_close(damages, costs)


def test_resnet50_has_its_weights():
    assert len(WORKLOADS["resnet50"]()) == 50
    assert len(WORKLOADS["thousand_small"]()) == 1000
    assert numel("vit_b") == 86_415_592
    assert numel("one_gigabyte") * 4 == 1 << 30
    assert numel("resnet50") == 22_734_016
    assert numel("vit_b_block") == 12 * 768**2


def test_interleaved_takes_medians_in_turn():
    clock = iter(range(1, 10_000))
    order = []

    def timer(call):
        call()
        return next(clock) / 1024  # none of them is slow

    settings = Settings(seconds=1e-9, min_rounds=4)
    spreads, rounds = measure.interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, timer, settings
    )
    assert rounds == 4
    assert order[4:] == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert {name: spread.median for name, spread in spreads.items()} == {"a": 8.5 / 1024, "b": 8.5 / 1024}
    assert all(spread.low < spread.median < spread.high for spread in spreads.values())


class FakeDevice:
    """Records what is asked of torch.cuda; its clock runs 3 ms between events."""

    def __init__(self, monkeypatch):
        self.log, fake = [], self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                fake.log.append("event")

            def elapsed_time(self, end):
                return 3.0

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: self.log.append("synchronize"))
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: self.log.append(("sleep", cycles)))

    def timer(self):
        made = timer.Timer.__new__(timer.Timer)
        made.device, made._host = torch.device("cuda"), {}
        made._flush = type("Buffer", (), {"sum": lambda _: self.log.append("read")})()
        return made


def test_slow_rivals_have_few_rounds():
    calls = {"run": 3.0, "twin": 2 * measure.SLOW_SECONDS, "peer": 1e-3}
    ran = []

    def timer(call):
        ran.append(call)
        return calls[call]

    spreads, rounds = measure.interleaved({name: name for name in calls}, timer, Settings(seconds=0, min_rounds=5))
    assert rounds == 5
    assert {name: ran.count(name) for name in calls} == {"run": 7, "twin": 2 + measure.SLOW_ROUNDS, "peer": 7}
    assert spreads["twin"].median == calls["twin"]


def test_a_gpu_is_kept_waiting_while_a_call_is_enqueued(monkeypatch):
    device = FakeDevice(monkeypatch)
    timer = device.timer()

    def call():
        time.sleep(0.004)
        device.log.append("call")

    assert timer(call) == 3e-3
    assert device.log[:4] == ["synchronize", "call", "synchronize", "call"]  # how long the host is busy, once
    assert [entry if isinstance(entry, str) else entry[0] for entry in device.log[4:]] == [
        "read", "sleep", "event", "call", "event", "synchronize"
    ]  # fmt: skip
    (cycles,) = (entry[1] for entry in device.log if not isinstance(entry, str))
    assert 0.004 * 2e9 < cycles <= 0.02 * 2e9
    device.log.clear()
    timer(call)
    assert device.log.count("call") == 1
    timer.forget()
    assert timer._host == {}


def test_wall_time_is_from_idle_to_idle(monkeypatch):
    device = FakeDevice(monkeypatch)
    timer = device.timer()
    assert timer.wall(lambda: time.sleep(0.002)) > 0.002
    assert device.log == ["read", "synchronize", "synchronize"]


def test_gpu_rows_have_wall_and_graph_times(monkeypatch):
    class Timer:
        def __call__(self, call):
            return call() or 1e-6

        def wall(self, call):
            return 7e-6

        def captured(self, call):
            return lambda: 2e-6 * call()

        def forget(self):
            self.forgotten = True

    timer, settings = Timer(), Settings("cuda", seconds=1e-9, min_rounds=2)
    monkeypatch.setattr(measure, "copy_of", lambda size, device: (lambda: 1e-6, size))
    case = Case("op", "tiny", lambda: 4e-6, 100, peer=lambda: 8e-6, peer_name="peer", graph=lambda: 1)
    row = measure.measure("bench", case, settings, timer, 1e9)
    assert row.microseconds == pytest.approx(4)
    assert (row.wall_microseconds, row.peer_wall_microseconds) == pytest.approx((7, 7))
    assert row.graph_microseconds == pytest.approx(2)
    assert row.peer_graph_microseconds is None
    assert timer.forgotten
    line = table.format_line(table.format_row(row))
    assert len(table.format_row(row)) == len(table.headings(settings))
    assert line.split()[11:15] == ["7.0", "7.0", "2.0", "–"]


def test_copy_moves_the_bytes_it_says():
    copy, moved = measure.copy_of(1000, "cpu")
    assert moved == 1000
    assert copy().numel() * 4 * 2 == 1000


def test_layerwise_compares_all_methods(tmp_path, capsys):
    from bench import bench_layerwise

    weight, hessian = bench_layerwise.made_layer(12, 16)
    torch.save({"weight": weight, "hessian": hessian}, tmp_path / "layer.pt")
    options = ["--seconds", "0", "--json", str(tmp_path / "rows.json")]
    assert bench_layerwise.main(["--shapes", "12x16", "--sparsity", "0.5", "2:4", "input:0.5", *options]) == 0
    made = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {row["method"] for row in made if row["sparsity"] == "2:4"} == set(bench_layerwise.METHODS)
    assert all(row["error"] >= 0 and row["seconds"] > 0 for row in made)
    assert bench_layerwise.main(["--hessian", str(tmp_path / "layer.pt"), "--sparsity", "0.5", *options]) == 0
    real = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["error"] for row in real] == [row["error"] for row in made if row["sparsity"] == "0.5"]
    assert "error / ADMM" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc/self/status")
def test_a_large_block_says_its_peak():
    from bench.large_block.block import layer, made, neurons, peak

    block, inputs = made(32, 112, 512)
    for run in (neurons, layer):
        said = peak(lambda run=run: run(block, inputs))
        assert said["kept"] == (56 if run is neurons else 32 * 112 // 2)
        assert 0 < said["error"] < 0.5
        assert said["dtype"] == "torch.bfloat16"
        assert said["peak_gb"] > 0.01
        assert said["seconds"] >= said["selection_seconds"] > 0
