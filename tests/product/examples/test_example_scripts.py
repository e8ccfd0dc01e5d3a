"""The examples run on data of their format."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the demo extra is not installed")

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.fixture(scope="module")
def fashion_mnist():
    spec = importlib.util.spec_from_file_location("fashion_mnist", EXAMPLES / "fashion_mnist.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def idx_bytes(values: torch.Tensor) -> bytes:
    header = bytes([0, 0, 8, values.dim()]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return header + bytes(values.flatten().tolist())


@pytest.fixture
def folder(tmp_path):
    """256 training and 100 test images whose label is the bright row, some files gzipped."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 256), ("t10k", 100)):
        labels = torch.randint(0, 10, (count,), generator=generator, dtype=torch.uint8)
        images = torch.randint(0, 60, (count, 28, 28), generator=generator, dtype=torch.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * int(label) + 4] = 255
        (tmp_path / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return tmp_path


def test_fashion_mnist(fashion_mnist, folder, monkeypatch, capsys):
    out = folder / "out"
    argv = ["fashion_mnist.py", "--data-dir", str(folder), "--epochs", "5", "--out", str(out), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*argv, "--optimizers", "rmda", "proxsgd", "sgd", "--no-progress"])
    state = torch.get_rng_state()
    try:
        assert fashion_mnist.main() == 0
    finally:
        torch.set_flush_denormal(False)
        torch.set_rng_state(state)
    output = capsys.readouterr().out
    for word in (
        "accuracy",
        "RMDA, compact",
        "ProxSGD, compact",
        "dense, SGD",
        "zero groups, by size",
        "MACs per image",
    ):
        assert word in output
    figures = json.loads((out / "fashion_mnist.json").read_text())
    assert figures["settings"]["milestones"] == [1, 2, 3, 4]
    assert set(figures["models"]) == {"RMDA", "RMDA, compact", "ProxSGD", "ProxSGD, compact", "dense, SGD"}
    assert figures["models"]["dense, SGD"]["parameters"] == 431_080
    assert len(figures["history"]["ProxSGD"]) == 5
    assert (out / "fashion_mnist.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "rmda" / "model.safetensors").exists()


def test_missing_data_is_said(fashion_mnist, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fashion_mnist.py", "--data-dir", str(tmp_path)])
    try:
        assert fashion_mnist.main() == 2
    finally:
        torch.set_flush_denormal(False)
    assert "train-images-idx3-ubyte[.gz] is missing" in capsys.readouterr().err


@pytest.mark.parametrize("zipped", [False, True])
def test_read_idx(fashion_mnist, tmp_path, zipped):
    values = torch.arange(24, dtype=torch.uint8).view(2, 3, 4)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(idx_bytes(values)) if zipped else idx_bytes(values))
    assert torch.equal(fashion_mnist.read_idx(path), values)


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: b"\0\0\x0d" + raw[3:], lambda raw: b""])
def test_read_idx_refuses_other_files(fashion_mnist, tmp_path, damage):
    path = tmp_path / "file"
    path.write_bytes(damage(idx_bytes(torch.zeros(2, 3, dtype=torch.uint8))))
    with pytest.raises(ValueError, match="expected"):
        fashion_mnist.read_idx(path)


@pytest.mark.parametrize(
    "name, arguments, files",
    [
        ("sppam_stability", ["--cells", "11"], ["sppam_stability.png"]),
        ("sparse_path", ["--most", "2", "--folds", "2"], ["sparse_path_diabetes.png"]),
        ("heavy_ball_mean_field", ["--quick"], ["heavy_ball_mean_field.png"]),
        ("sppam_glm", ["--limit", "20", "--lrs", "2"], ["sppam_glm.png"]),
    ],
)
def test_examples_on_made_or_bundled_data(name, arguments, files, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [name, *arguments, "--no-progress", "--out", str(tmp_path)])
    assert module.main() == 0
    assert "written: " in capsys.readouterr().out
    for file in files:
        assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")


def test_proximal_point_examples_say_what_is_missing(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("sppam_glm", EXAMPLES / "sppam_glm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arguments = ["--limit", "2", "--lrs", "1", "--no-progress", "--data-dir", str(tmp_path), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["sppam_glm", *arguments])
    assert module.main() == 2
    assert "a9a: missing" in capsys.readouterr().err


@pytest.mark.slow
def test_heavy_ball_at_width_800() -> None:
    """What the mean-field theory says: a path of low loss where the straight line has a wall."""
    spec = importlib.util.spec_from_file_location("heavy_ball_mean_field", EXAMPLES / "heavy_ball_mean_field.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows, labels = module.digits()
    x, y = rows[: module.TRAINED], labels[: module.TRAINED]
    nets = [module.train(800, "SHB", seed, seed, 20, x, y) for seed in (0, 1)]
    found = module.measure(nets, nets[1], x, y, rows[module.TRAINED :], labels[module.TRAINED :])
    assert found["accuracy"] > 0.9
    assert found["barrier, rescaled"] <= 0.06
    assert found["barrier, refitted"] <= 1e-3
    assert found["barrier, straight line"] > 0.2
    assert found["barrier, aligned line"] < 0.02
    assert found["dropout, refitted"] < 1e-3 < found["dropout, rescaled"] < 0.1
