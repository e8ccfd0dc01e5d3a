"""The sparse recovery example runs on made data and on files of the right format."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "iobs_recovery.py"


@pytest.fixture(scope="module")
def example() -> Any:
    pytest.importorskip("matplotlib", reason="the demo extra is not installed")
    pytest.importorskip("rich", reason="the demo extra is not installed")
    spec = importlib.util.spec_from_file_location("iobs_recovery", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["iobs_recovery"] = module  # its dataclass looks there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["iobs_recovery"]


TINY = [
    "--runs",
    "2",
    "--size",
    "20",
    "--nonzeros",
    "3",
    "--keep",
    "6",
    "--iterations",
    "5",
    "--side",
    "10",
    "--no-progress",
]


def idx_bytes(images: torch.Tensor) -> bytes:
    header = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in images.shape)
    return header + bytes(images.flatten().tolist())


@pytest.mark.parametrize("data", [False, True])
def test_example(example: Any, data: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    arguments = [*TINY, "--out", str(tmp_path)]
    if data:
        images = torch.zeros(2, 6, 7, dtype=torch.uint8)
        images[1, 2:5, 2:5] = 200
        (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(images))
        arguments += ["--data-dir", str(tmp_path), "--image", "1", "--noise", "0.01"]
    monkeypatch.setattr(sys, "argv", ["iobs_recovery", *arguments])
    assert example.main() == 0
    output = capsys.readouterr().out
    assert "n 40, d 20, nonzeros 3, kept 6, 2 runs" in output
    if data:
        assert "n 84, d 42, nonzeros 9, kept 18" in output
    for name in example.METHODS:
        assert name in output
    for file in ("iobs_gaussian.png", "iobs_image.png"):
        assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")


def test_example_says_what_is_wrong(example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    arguments = [*TINY, "--noise", "0", "--out", str(tmp_path), "--data-dir", str(tmp_path)]
    for content, message in [
        (None, "train-images-idx3-ubyte[.gz] is missing"),
        (b"abc", "expected an idx file of images in unsigned bytes"),
        (idx_bytes(torch.zeros(2, 3, 3, dtype=torch.uint8))[:-1], "expected 34 bytes, got 33"),
        (idx_bytes(torch.zeros(0, 3, 3, dtype=torch.uint8)), "--image: expected 0 to -1, got 0"),
    ]:
        if content is not None:
            (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
        monkeypatch.setattr(sys, "argv", ["iobs_recovery", *arguments])
        assert example.main() == 2
        assert message in capsys.readouterr().err


def test_built_in_images(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    ring = example.built_in_image(0, 28)
    assert ring.shape == (28, 28)
    assert 50 < int((ring != 0).sum()) < 400
