"""examples/compare_sparse.py on the digits, and on a made folder of text with a tiny random BERT."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from test_structured_examples import load

WORDS = ("the", "lobster", "is", "blue", "and", "lives", "in", "a", "cold", "sea", "of", "stones")


def run(monkeypatch, *arguments: object) -> None:
    module = load("compare_sparse")
    monkeypatch.setattr(sys, "argv", ["compare_sparse.py", *map(str, arguments)])
    module.main()


def test_on_the_digits(tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("sklearn")
    rows = ["magnitude", "SparseGPT", "curvature IHT"]
    run(monkeypatch, "--epochs", 1, "--sparsities", "2:4", "--rows", *rows, "--out-dir", tmp_path)
    rows = json.loads((tmp_path / "compare_sparse.json").read_text())
    cosine = {(row["method"], row["sparsity"]): row["cosine"] for row in rows}
    assert len(cosine) == 4
    assert cosine["curvature IHT", "2:4"] > cosine["magnitude", "2:4"]
    assert all(0 <= row["accuracy"] <= 100 and row["processor_seconds"] > 0 for row in rows)
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("cosine to the dense network", "test accuracy (%)", "processor seconds"))
    assert (tmp_path / "compare_sparse.png").stat().st_size > 10_000


def test_on_texts(tmp_path: Path, monkeypatch) -> None:
    transformers = pytest.importorskip("transformers")
    generator = torch.Generator().manual_seed(0)
    text, model = tmp_path / "data" / "text", tmp_path / "model"
    text.mkdir(parents=True)
    model.mkdir()
    for name in ("wikitext2-valid.txt", "wikitext2-test.txt"):
        picks = torch.randint(0, len(WORDS), (20, 12), generator=generator).tolist()
        (text / name).write_text("\n".join(" ".join(WORDS[i] for i in line) for line in picks) + "\n")
    (model / "vocab.txt").write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)) + "\n")
    transformers.BertTokenizer(str(model / "vocab.txt")).save_pretrained(model)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(vocab_size=17, **sizes)).save_pretrained(model)
    options = ["--sparsities", 50, "--rows", "magnitude", "curvature IHT", "--out-dir", tmp_path]
    run(monkeypatch, "--data", tmp_path / "data", "--model", model, *options)
    rows = json.loads((tmp_path / "compare_sparse.json").read_text())
    assert [row["method"] for row in rows] == ["magnitude", "curvature IHT", "curvature IHT, refine"]
    assert all(0 < row["cosine"] <= 1 for row in rows)
    with pytest.raises(SystemExit, match="--rows: expected words of"):
        run(monkeypatch, "--rows", "nothing", "--out-dir", tmp_path)
