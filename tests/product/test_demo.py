"""The demo end to end, and what it is made of."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn", reason="the demo extra is not installed")
pytest.importorskip("matplotlib", reason="the demo extra is not installed")

import sparse_accel as sa
from sparse_accel import demo
from sparse_accel.demo import digits, summary, training
from sparse_accel.demo.progress import progress_bar

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_default_demo(tmp_path, capsys):
    """What `make demo` runs; once, as it takes most of a minute."""
    result = demo.run(tmp_path, progress=False)
    assert result.missed == ()
    assert result.status == 0
    table = capsys.readouterr().out
    assert "MISSED" not in table
    for row in ("accuracy", "zero groups", "parameters", "MACs per image", "latency", "largest output difference"):
        assert row in table
    written = json.loads(result.files["figures"].read_text())
    assert written == json.loads(json.dumps(result.figures))
    assert len(written["history"]["RMDA"]) == len(written["history"]["dense, SGD"]) == demo.EPOCHS
    compact_is_the_trained_one(result.figures)
    plot_and_page_are_written(result.files)
    checkpoint_loads_into_the_dense_class(result)


def compact_is_the_trained_one(figures):
    models = figures["models"]
    # Of 450 images one may lie on the edge between two classes: the compact model rounds otherwise.
    assert models["RMDA, compact"]["accuracy"] == pytest.approx(models["RMDA"]["accuracy"], abs=1.5 / 450)
    assert models["RMDA, compact"]["parameters"] < models["RMDA"]["parameters"] == models["dense, SGD"]["parameters"]
    assert models["RMDA, compact"]["macs"] < models["RMDA"]["macs"]
    assert figures["max_abs_diff"] <= 1e-5
    assert figures["checkpoint_equal"]


def plot_and_page_are_written(files):
    assert files["plot"].read_bytes().startswith(PNG)
    assert files["plot"].stat().st_size > 10_000
    page = files["page"].read_text()
    assert page.count("<svg") == 4
    assert "RMDA, compact" in page


def checkpoint_loads_into_the_dense_class(result):
    assert (result.files["checkpoint"] / "model.safetensors").exists()
    assert (result.files["checkpoint"] / "plan.json").exists()
    images = digits.load_digits()
    restored = sa.load(result.files["checkpoint"], digits.DigitsNet())
    expected = result.figures["models"]["RMDA, compact"]["accuracy"]
    assert training.accuracy(restored, images.test_x, images.test_y) == expected


def test_a_missed_target_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "TARGETS", summary.Targets(accuracy_loss=1, removed_groups=1.01, max_abs_diff=1e-5))
    assert demo.run(tmp_path, epochs=1, progress=False).status == 1
    assert "TARGET MISSED" in capsys.readouterr().out


def test_same_seed_same_figures_and_random_state_untouched():
    images = digits.load_digits()
    state = torch.get_rng_state()

    def ignore(label: str, figures: object) -> None:
        del label, figures

    first, _, history = demo.train_sparse(images, 1, 3, ignore)
    second, _, again = demo.train_sparse(images, 1, 3, ignore)
    assert torch.equal(torch.get_rng_state(), state)
    assert [epoch[:3] for epoch in history] == [epoch[:3] for epoch in again]
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_digits_are_split_once_and_for_all():
    images = digits.load_digits()
    assert images.train_x.shape == (1347, 1, 8, 8)
    assert images.test_x.shape == (450, 1, 8, 8)
    assert float(images.train_x.max()) == 1.0
    assert torch.equal(images.test_y, digits.load_digits().test_y)
    assert images.test_y.bincount().min() > 20


def test_evaluation_leaves_the_training_iterate_alone():
    images = digits.load_digits()
    model = digits.DigitsNet()
    optimizer = sa.RMDA(sa.param_groups(model, sa.GroupLasso(1.0)), lr=1.0, momentum=0.1)
    nn.functional.cross_entropy(model(images.train_x[:64]), images.train_y[:64]).backward()
    optimizer.step()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with training.at_proximal_iterate(optimizer, model, images):
        assert sa.sparsity(model).group_sparsity == 1.0
    assert sa.sparsity(model).group_sparsity == 0.0
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new)


def test_latencies_order_models_by_work():
    small, large = nn.Linear(8, 8), nn.Sequential(*(nn.Linear(512, 512) for _ in range(8)))
    quick = training.latencies_ms([small], torch.zeros(64, 8), rounds=5)[0]
    slow = training.latencies_ms([large], torch.zeros(64, 512), rounds=5)[0]
    assert 0 < quick < slow


@pytest.mark.parametrize("epochs, stages, ends", [(15, 5, [3, 6, 9, 12]), (4, 4, [1, 2, 3]), (1, 4, [1]), (3, 1, [])])
def test_stage_ends(epochs, stages, ends):
    assert training.stage_ends(epochs, stages) == ends


def test_progress_bar(capfd):
    told = []
    for shown in (False, True, told.append):
        with progress_bar(2, shown) as advance:
            advance("training", training.Epoch(0.5, 0.25, 1.0, 0.1))
    assert capfd.readouterr() == ("", "")  # no terminal, no bar
    assert [(at.done, at.total, at.error) for at in told] == [(0, 2, None), (1, 2, 0.5)]
    assert told[1].label == "training: accuracy 50.0 %, zero 25 %"
