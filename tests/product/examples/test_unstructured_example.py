"""examples/training/unstructured_sparsity.py: a table, a picture, states from which it goes on."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib", reason="the demo extra is not installed")
pytest.importorskip("sklearn", reason="the demo extra is not installed")

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def run(module: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["unstructured_sparsity.py", "--no-progress", *arguments])
    state = torch.get_rng_state()
    try:
        return int(module.main())
    finally:
        torch.set_flush_denormal(False)
        torch.set_rng_state(state)


def test_unstructured_sparsity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    spec = importlib.util.spec_from_file_location(
        "unstructured_sparsity", EXAMPLES / "training" / "unstructured_sparsity.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "unstructured_sparsity", module)
    spec.loader.exec_module(module)
    images = module.load_digits()
    few = module.Images(images.train_x[:128], images.train_y[:128], images.test_x[:50], images.test_y[:50])
    monkeypatch.setattr(module, "load_digits", lambda: few)
    options = ("--epochs", "2", "--sparsity", "0.9", "--out", str(tmp_path))
    assert run(module, monkeypatch, *options) == 0
    output = capsys.readouterr().out
    assert all(word in output for word in ("accuracy", "dense", "RMDA 90 %", "RigL 90 %"))
    folder = tmp_path / "digits"
    figures = json.loads((folder / "figures.json").read_text())["history"]
    assert abs(figures["RigL 90 %"][0][-1]["group_sparsity"] - 0.9) < 0.01
    assert (folder / "unstructured_sparsity.png").read_bytes().startswith(b"\x89PNG")

    for method, share in (("RMDA", 0.9), ("RigL", 0.9)):  # stopped after the first epoch, it ends in the same
        row = module.Row(method, share, 0)
        once = module.Training(row, few, "digits", 2, tmp_path / "again")
        once.run_epoch()
        resumed = module.Training(row, few, "digits", 2, tmp_path / "again")
        resumed.run_epoch()
        straight = torch.load(folder / row.file, weights_only=True)["model"]
        assert all(torch.equal(value, straight[name]) for name, value in resumed.model.state_dict().items())
    assert run(module, monkeypatch, *options[:1], "3", *options[2:]) == 2  # the states are of another length
    assert "a training of 2 epochs" in capsys.readouterr().err
    assert run(module, monkeypatch, "--dataset", "mnist", "--out", str(tmp_path)) == 2
    assert "--data-dir: expected the folder" in capsys.readouterr().err
