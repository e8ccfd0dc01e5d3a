"""The README's Python runs as it stands, and its local links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run_in_order(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="the demo extra is not installed")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    namespace: dict[str, object] = {"__name__": "readme"}
    with torch.random.fork_rng(devices=[]):
        for index, block in enumerate(blocks):
            exec(compile(block, f"README.md, Python block {index + 1}", "exec"), namespace)
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:|#)([^)#]+)", README) or ["README.md"])
def test_local_links(target):
    assert (ROOT / target).exists()


def test_no_placeholders():
    assert not re.search(r"TODO|TBD|XXX|FIXME|", README)
