"""The examples of i-SpaSP run, on made data and on a small folder in MNIST's format."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("matplotlib", reason="the demo extra is not installed")

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """384 training and 100 test images whose label is the bright row, some files gzipped."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 384), ("t10k", 100)):
        labels = torch.randint(0, 10, (count,), generator=generator, dtype=torch.uint8)
        images = torch.randint(0, 60, (count, 28, 28), generator=generator, dtype=torch.uint8)
        images[torch.arange(count), 2 * labels.long() + 4] = 255
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, values.dim()]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
            raw = header + values.numpy().tobytes()
            zipped = kind == "images-idx3"
            path = tmp_path / f"{split}-{kind}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(raw) if zipped else raw)
    return tmp_path


def test_synthetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = example("ispasp_synthetic")
    monkeypatch.setattr(module, "HIDDEN", (20, 30))
    monkeypatch.setattr(sys, "argv", ["ispasp_synthetic", "--trials", "1", "--no-progress", "--out", str(tmp_path)])
    assert module.main() == 0
    output = capsys.readouterr().out
    assert output.count("units, p =") == 8
    assert (tmp_path / "ispasp_synthetic.png").read_bytes().startswith(b"\x89PNG")


def test_synthetic_rows_are_compressible_and_refit_helps() -> None:
    module = example("ispasp_synthetic")
    for rate in module.RATES:
        hidden, weight = module.made_data(40, 10, rate, 1)
        norms = hidden.norm(dim=1).sort(descending=True).values
        torch.testing.assert_close(norms, torch.arange(1, 41, dtype=torch.float64) ** (-1 / rate))
        assert bool((hidden >= 0).all())
        plain, fitted = module.residuals(hidden, weight)
        assert float(plain[-1]) < 1e-20
        assert bool((fitted <= plain + 1e-9).all())
        assert float(plain[9]) < 0.2 * float(plain[0])


def test_two_layer(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = example("ispasp_two_layer")
    sizes = ["--hidden", "96", "--keep", "8", "24", "--samples", "128", "--candidates", "60", "--epochs", "8"]
    argv = ["ispasp_two_layer", "--data-dir", str(folder), "--no-progress", "--out", str(folder / "out"), *sizes]
    monkeypatch.setattr(sys, "argv", argv)
    state = torch.get_rng_state()
    try:
        assert module.main() == 0
    finally:
        torch.set_rng_state(state)
    output = capsys.readouterr().out
    written = json.loads((folder / "out" / "ispasp_two_layer.json").read_text())
    assert written["dense"] > 90
    rows = {(row["keep"], row["method"]): row for row in written["rows"]}
    assert len(rows) == 8
    for method in ("i-SpaSP", "top-k", "greedy forward", "Gram-OBS"):
        assert method in output
        assert rows[24, method]["refit_residual"] < rows[8, method]["refit_residual"] + 1e-9
        assert rows[24, method]["refit_residual"] < rows[24, method]["as_it_is_residual"]
    assert rows[24, "Gram-OBS"]["refit_accuracy"] > 80


def test_greedy_forward_reaches_its_number_and_nears_the_target() -> None:
    module = example("ispasp_two_layer")
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(30, 50, generator=generator, dtype=torch.float64).relu()
    weight = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    target = weight @ hidden
    last = float(target.square().sum())
    for keep in (1, 4, 12):
        kept, columns = module.greedy_forward(hidden, weight, keep)
        assert len(kept) == keep
        error = float((target - columns @ hidden[kept]).square().sum())
        assert keep == 1 or error < last
        last = error
    # Each step takes the best unit: here the first two.
    kept, columns = module.greedy_forward(hidden, weight, 1)
    errors = [(target - 30 * weight[:, i, None] * hidden[i]).square().sum() for i in range(30)]
    assert int(kept) == int(torch.stack(errors).argmin())
    pair, _ = module.greedy_forward(hidden, weight, 2)
    both = [(target - 15 * weight[:, [int(kept), i]] @ hidden[[int(kept), i]]).square().sum() for i in range(30)]
    assert set(pair.tolist()) == {int(kept), int(torch.stack(both).argmin())}


def test_missing_data_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("ispasp_two_layer")
    monkeypatch.setattr(sys, "argv", ["ispasp_two_layer", "--data-dir", str(tmp_path)])
    assert module.main() == 2
    assert "train-images-idx3-ubyte[.gz] is missing" in capsys.readouterr().err
