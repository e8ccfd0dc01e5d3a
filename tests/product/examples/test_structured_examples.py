"""The examples of structured pruning run on small generated data; with real data where a folder is given."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import sparse_accel as sa

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
CLASSES = ("blue", "green", "red")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *(str(item) for item in arguments)])
    module.main()


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """Two batches in the binary format, and random weights."""
    generator = np.random.default_rng(0)
    (tmp_path / "cifar-10-batches-bin").mkdir()
    for name, count in (("data_batch_1", 40), ("test_batch", 20)):
        records = generator.integers(0, 256, (count, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (tmp_path / "cifar-10-batches-bin" / f"{name}.bin").write_bytes(records.tobytes())
    torch.manual_seed(0)
    net = load("resnet20_cifar").ResNet20()
    state = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "resnet20-12fca82f.th")
    return tmp_path


def test_compare_structured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load("compare_structured")
    main(module, monkeypatch, "--keep", 0.25, "--epochs", 3, "--steps", 24, "--out-dir", tmp_path)
    found = json.loads((tmp_path / "compare_structured.json").read_text())
    rows = {row["method"]: row for row in found["rows"]}
    plain, refined = rows["ISpaSP"], rows["ISpaSP, refine"]
    assert refined["accuracy"] >= plain["accuracy"] - 1
    assert plain["macs"] == refined["macs"] < 0.4 * found["dense"][1]
    shown = capsys.readouterr().out
    if importlib.util.find_spec("torch_pruning") is None:
        assert "Torch-Pruning is not installed" in shown
    assert len({row["macs"] for row in found["rows"]}) == 1  # the same share for every method
    assert {"i-SpaSP as in the paper", "magnitude, compensated as in GRAIL"} < set(rows)
    assert ("Torch-Pruning, Taylor (sees labels)" in rows) == ("Torch-Pruning, magnitude" in rows)
    assert "processor seconds, kept" in shown
    assert (tmp_path / "compare_structured.png").stat().st_size > 10_000


def test_compare_structured_on_resnet20(cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("compare_structured")
    options = ["--rows", "refine", "--keep", 0.5, "--steps", 2, "--augment", "crop", "--out-dir", cifar]
    main(module, monkeypatch, "--data-dir", cifar, *options)
    (row,) = json.loads((cifar / "compare_structured.json").read_text())["rows"]
    assert row["macs"] == 20_497_024


def test_compare_sparse_on_resnet20(cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("compare_sparse")
    monkeypatch.setattr(module, "SPREAD", {**module.SPREAD, "targets": ["layer1.0.*"]})  # the others stay dense
    options = ["--net", "resnet20", "--steps", 2, "--out-dir", cifar]
    main(module, monkeypatch, "--data", cifar, *options, "--rows", "by layer", "fitted", "--sparsities", 80)
    rows = json.loads((cifar / "compare_sparse.json").read_text())
    assert [row["method"] for row in rows] == ["curvature IHT, by layer", "the same, fitted without labels"]
    assert all(0 <= row["accuracy"] <= 100 and 0 < row["cosine"] <= 1 for row in rows)
    with pytest.raises(SystemExit, match="--sparsities: the rows by layer take percents"):
        main(module, monkeypatch, "--data", cifar, *options)
    with pytest.raises(SystemExit, match="--net resnet20: expected --data"):
        main(module, monkeypatch, *options)


def test_resnet20(cifar: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = load("resnet20_cifar")
    rows = ["paper", "recalibrated", "auto", "budget"]
    options = ["--keep", 0.5, "--device", "cpu", "--json", cifar / "out.json"]
    main(module, monkeypatch, "--data-dir", cifar, "--rows", *rows, *options)
    figures = json.loads((cifar / "out.json").read_text())
    assert len(figures) == 4
    assert all(row["macs"] == [40_551_040, 20_497_024] for row in figures[:3])
    assert 0.8 * 20_497_024 < figures[3]["macs"][1] <= 20_497_024
    assert "test accuracy (%)" in capsys.readouterr().out


def test_resnet20_reads_npz(cifar: Path) -> None:
    module = load("resnet20_cifar")
    images, labels = module.read_batch(cifar, "test_batch")
    mean, std = (torch.tensor(values)[:, None, None] for values in (module.MEAN, module.STD))
    pixels = ((images * std + mean) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    np.savez(cifar / "same.npz", x=pixels, y=labels.numpy())
    again, own = module.read_batch(cifar, "same")
    assert torch.equal(again, images)
    assert torch.equal(own, labels)
    with pytest.raises(SystemExit, match=r"expected other\.bin, other\.npz"):
        module.read_batch(cifar, "other")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve training and six test images in three classes, by colour."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for channel, name in zip((2, 1, 0), CLASSES, strict=True):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 120, (40, 48, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def test_imagenet(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = load("imagenet/imagenet_resnet34")
    net = ["--blocks", 2, 1, "--width", 8, "--size", 32, "--batch-size", 6, "--device", "cpu"]
    options = ["--samples", 6, "--iterations", 3, "--stage-keep", "layer2=0.25", "--tune-steps", 2, "--epochs", 1]
    main(
        module, monkeypatch, "--data-dir", folder, *net, *options, "--out", folder / "out", "--json", folder / "f.json"
    )
    out = capsys.readouterr().out
    assert out.count("2 steps of fine-tuning") == 3
    assert "after 1 epochs" in out
    figures = json.loads((folder / "f.json").read_text())
    assert figures["macs"][1] < figures["macs"][0]
    loaded = sa.load(folder / "out", module.ResNet([2, 1], 8, 3))
    assert loaded.layer1[0].conv1.out_channels == 3
    assert loaded.layer2[0].conv1.out_channels == 4
    main(module, monkeypatch, "--data-dir", folder, *net, "--method", "gram_obs", "--same-batches", "--samples", 12)
    assert "skip+relu" in capsys.readouterr().out


def test_imagenet_says_what_is_wrong(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("imagenet/imagenet_resnet34")
    with pytest.raises(SystemExit, match="expected folders of images"):
        main(module, monkeypatch, "--data-dir", folder / "train")
    with pytest.raises(SystemExit, match=r"--stage-keep: expected layer1=0\.5"):
        module.stage_shares(["layer1"])


def test_bert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    words = [f"word{number}" for number in range(60)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    transformers.BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    generator = np.random.default_rng(0)
    for split in ("valid", "test"):
        lines = [" ".join(generator.choice(words, 20)) for _ in range(40)]
        (tmp_path / f"wikitext2-{split}.txt").write_text("\n".join(lines))
    module = load("bert_heads_ffn")
    options = ["--sequences", 8, "--length", 16, "--sentences", 10, "--keep", 0.5, "--device", "cpu"]
    where = ["--data-dir", tmp_path, "--model", tmp_path, "--json", tmp_path / "out.json"]
    main(module, monkeypatch, *where, *options, "--methods", "magnitude + refit", "Gram-OBS")
    figures = json.loads((tmp_path / "out.json").read_text())
    assert [row["widths"] for row in figures] == ["ffn"] * 3 + ["heads"] * 3
    assert all(0.5 < row["cosine"] <= 1.0001 and row["params"][1] < row["params"][0] for row in figures)
    assert "mean cosine to the dense model" in capsys.readouterr().out


@pytest.mark.skipif("SPARSE_ACCEL_DATA" not in os.environ, reason="SPARSE_ACCEL_DATA names no folder with real data")
def test_resnet20_reaches_its_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SPARSE_ACCEL_DATA is a folder that examples/resnet20_cifar.py takes as --data-dir."""
    module = load("resnet20_cifar")
    rows = ["(skip)", "auto"]
    where = ["--data-dir", os.environ["SPARSE_ACCEL_DATA"], "--json", tmp_path / "out.json"]
    main(module, monkeypatch, *where, "--rows", *[f"Gram-OBS + refit {row}" for row in rows[:1]], "auto", "--keep", 0.5)
    found = {row["method"]: row["accuracy"] for row in json.loads((tmp_path / "out.json").read_text())}
    assert found["Gram-OBS + refit (skip)"] >= 81.5
    assert found["Gram-OBS + refit (auto: skip, ReLU-aware, classifier)"] >= 83.5
