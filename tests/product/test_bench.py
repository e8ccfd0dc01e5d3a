"""The benches run, measure what they say, and their contenders compute the same thing."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"group_score", "group_topk", "prox", "optim", "glm", "gram_obs", "ispasp", "sparse_linear", "topk"}


@pytest.fixture(scope="module", autouse=True)
def _checkout_on_the_path():
    sys.path.insert(0, str(ROOT))
    yield
    sys.path.remove(str(ROOT))


@pytest.fixture
def settings():
    from bench import harness

    return harness.Settings(workloads=("tiny",), seconds=0.01, min_rounds=2)


def test_all_benches_write_their_rows(tmp_path, capsys, monkeypatch):
    import bench
    from bench import timer

    monkeypatch.setattr(timer, "last_cache_bytes", lambda device: 1 << 16)
    file = tmp_path / "new" / "rows.json"
    page = tmp_path / "page.html"
    assert bench.main(["--workloads", "tiny", "--seconds", "0.001", "--json", str(file), "--html", str(page)]) == 0
    assert "RMDA by input" in page.read_text()
    output = capsys.readouterr().out
    for word in ("GB/s", "% of copy", "time / twin", "RMDA by input", "AdamW(fused=True)"):
        assert word in output
    written = json.loads(file.read_text())
    assert {row["bench"] for row in written["rows"]} == NAMES
    for row in written["rows"]:
        assert row["microseconds"] > 0
        assert row["gb_per_s"] == pytest.approx(row["bytes_moved"] / row["microseconds"] / 1e3)
        assert row["time_over_peer"] > 0
        assert row["bench"] == "glm" or row["time_over_twin"] > 0  # whose twin is too slow for most sizes
    assert written["machine"]["torch"] == torch.__version__


def test_results_are_reports(tmp_path, capsys):
    from bench import report

    files = sorted((ROOT / "bench" / "results").glob("*.json"))
    assert files
    for file in files:
        content = json.loads(file.read_text())
        read = report.BenchReport.read(file)
        assert read.to_plain() == content
        assert sum(len(table.rows) for table in read.contents().tables) == len(content["rows"])
    assert report.main([str(files[-1])]) == 0
    assert "note: Cold caches" in capsys.readouterr().out
    assert report.main([str(files[-1]), "--html", str(tmp_path / "new" / "page.html")]) == 0
    assert "<svg" in (tmp_path / "new" / "page.html").read_text()
    (tmp_path / "x.json").write_text("[]")
    assert report.main([str(tmp_path / "x.json")]) == 2
    assert "expected an object with machine and rows" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_bench_runs_alone(name, capsys, monkeypatch):
    import importlib

    from bench import timer

    monkeypatch.setattr(timer, "last_cache_bytes", lambda device: 1 << 16)
    module = importlib.import_module(f"bench.bench_{name}")
    assert module.main(["--workloads", "tiny", "--seconds", "0.001", "--dtype", "float64"]) == 0
    output = capsys.readouterr().out
    assert "tiny" in output
    assert ("times as long as AdamW(fused=True)" in output) == (name == "optim")


def test_contenders_of_group_score_agree(settings):
    from bench import bench_group_score

    for case in bench_group_score.cases(settings):
        for ours, twin, peer in zip(case.run(), case.twin(), case.peer(), strict=True):
            torch.testing.assert_close(ours, twin)
            torch.testing.assert_close(ours.view_as(peer), peer)


def test_contenders_of_group_topk_agree(settings):
    from bench import bench_group_topk

    for case in bench_group_topk.cases(settings):
        for ours, twin, peer in zip(case.run(), case.twin(), case.peer(), strict=True):
            assert torch.equal(ours, twin)
            assert torch.equal(ours, peer)


@pytest.mark.parametrize("contender", ["run", "twin", "peer"])
def test_contenders_of_prox_agree(settings, contender, monkeypatch):
    from bench import bench_prox
    from bench.workloads import tensors

    monkeypatch.setattr(bench_prox, "TAU", 1e-3)
    results = []
    monkeypatch.setattr(bench_prox, "tensors", lambda *args: results.append(tensors(*args)) or results[-1])
    for case in bench_prox.cases(settings):
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
    from bench import bench_ispasp

    block = bench_ispasp.make_block((8, 6, 5, 5), torch.float32, "cpu")
    bench_ispasp.compare(block)
    block.conv.weight[0] *= 1 + 1e-3
    wrong = bench_ispasp.ours(block)
    block.conv.weight[0] /= 1 + 1e-3
    monkeypatch.setattr(bench_ispasp, "ours", lambda block: wrong)
    with pytest.raises(RuntimeError, match="iteration 1: other sets, or"):
        bench_ispasp.compare(block)


def test_contenders_of_sparse_linear_agree(settings):
    from bench import bench_sparse_linear

    for case in bench_sparse_linear.cases(settings):
        torch.testing.assert_close(case.run(), case.peer(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(case.twin(), case.peer(), rtol=1e-5, atol=1e-5)


def test_contenders_of_gram_obs_agree(settings):
    from bench import bench_gram_obs

    for case in bench_gram_obs.cases(settings):
        (order, damages), (expected, costs) = case.run(), case.twin()
        assert torch.equal(order, expected)
        torch.testing.assert_close(damages, costs)


def test_resnet50_has_its_weights():
    from bench.workloads import WORKLOADS, numel

    assert len(WORKLOADS["resnet50"]()) == 50
    assert numel("resnet50") == 22_734_016
    assert numel("vit_b_block") == 12 * 768**2


def test_interleaved_takes_medians_in_turn():
    from bench import harness

    clock = iter(range(1, 10_000))
    order = []

    def timer(call):
        call()
        return float(next(clock))

    settings = harness.Settings(seconds=1e-9, min_rounds=4)
    medians, rounds = harness.interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, timer, settings
    )
    assert rounds == 4
    assert order[4:] == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert medians == {"a": 8.5, "b": 8.5}


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
        from bench import timer

        made = timer.Timer.__new__(timer.Timer)
        made.device, made._host = torch.device("cuda"), {}
        made._flush = type("Buffer", (), {"sum": lambda _: self.log.append("read")})()
        return made


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
    from bench import harness

    class Timer:
        def __call__(self, call):
            return call() or 1e-6

        def wall(self, call):
            return 7e-6

        def captured(self, call):
            return lambda: 2e-6 * call()

        def forget(self):
            self.forgotten = True

    timer, settings = Timer(), harness.Settings("cuda", seconds=1e-9, min_rounds=2)
    monkeypatch.setattr(harness, "copy_of", lambda size, device: (lambda: 1e-6, size))
    case = harness.Case("op", "tiny", lambda: 4e-6, 100, peer=lambda: 8e-6, peer_name="peer", graph=lambda: 1)
    row = harness.measure("bench", case, settings, timer)
    assert row.microseconds == pytest.approx(4)
    assert (row.wall_microseconds, row.peer_wall_microseconds) == pytest.approx((7, 7))
    assert row.graph_microseconds == pytest.approx(2)
    assert row.peer_graph_microseconds is None
    assert timer.forgotten
    line = harness.format_line(harness.format_row(row))
    assert len(harness.format_row(row)) == len(harness.headings(settings))
    assert line.split()[8:12] == ["7.0", "7.0", "2.0", "–"]


def test_copy_moves_the_bytes_it_says():
    from bench import harness

    copy, moved = harness.copy_of(1000, "cpu")
    assert moved == 1000
    assert copy().numel() * 4 * 2 == 1000


@pytest.mark.parametrize("argv", [["--workloads", "nonsense"], ["--seconds", "0"], ["--dtype", "int8"]])
def test_wrong_arguments(argv, capsys):
    import bench

    with pytest.raises(SystemExit) as exit_:
        bench.main(argv)
    assert exit_.value.code == 2
    assert "usage" in capsys.readouterr().err


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
