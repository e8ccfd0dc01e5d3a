"""The README's Python runs as it stands, and its local links lead somewhere."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
# In reading order: a page's code goes on from that of the pages before it.
PAGES = ["README.md", *(f"docs/{name}.md" for name in ("training", "callbacks", "pruning", "sparse_weights", "sppam"))]
PAGES += ["docs/index.md"]  # the front page of the site
PAGES += ["docs/diagnostics.md", "docs/ops.md", "docs/sparse_recovery.md", "docs/reports.md", "docs/command_line.md"]
PAGES += ["docs/measurements.md"]
OWN = ("get_started", "which_method", "coming_from", "hugging_face", "train_anywhere", "ship_it", "strength")
OWN += ("add_a_penalty", "add_an_op", "kernels_without_a_gpu", "performance")
PAGES += [f"docs/{name}.md" for name in OWN]  # each stands on its own
PAGES += sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/algorithms/*.md"))  # and so do these
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}


def test_every_page_is_known():
    assert {*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"} == {
        str(path.relative_to(ROOT))
        for folder in (ROOT, ROOT / "docs", ROOT / "docs/algorithms")
        for path in folder.glob("*.md")
    }


def test_python_blocks_run_in_order(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="the demo extra is not installed")
    pytest.importorskip("typer", reason="the cli extra is not installed")
    for name in ("transformers", "accelerate", "lightning"):
        pytest.importorskip(name, reason="the test group is not installed")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    counts = {}
    with torch.random.fork_rng(devices=[]):
        for page, text in TEXTS.items():
            blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
            counts[page] = len(blocks)
            for index, block in enumerate(blocks):
                exec(compile(block, f"{page}, Python block {index + 1}", "exec", dont_inherit=True), namespace)
    state = importlib.import_module("accelerate.state")  # one for each process, and of the last block's settings
    state.AcceleratorState._reset_state(True)
    state.GradientState._reset_state()
    assert all(count for page, count in counts.items() if page != "docs/measurements.md")
    assert (tmp_path / "out" / "model.safetensors").exists()


LINKS = [(page, link) for page, text in TEXTS.items() for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text)]


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_local_links(page, target):
    assert ((ROOT / page).parent / target).exists()


@pytest.mark.parametrize("page", PAGES)
def test_no_placeholders(page):
    assert not re.search(r"TODO|TBD|XXX|FIXME|@@", TEXTS[page])
