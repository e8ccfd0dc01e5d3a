"""examples/bert_sparse.py on a made folder of text and a tiny random BERT."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "bert_sparse.py"
WORDS = ("the", "lobster", "is", "blue", "and", "lives", "in", "a", "cold", "sea", "of", "stones")


@pytest.fixture(scope="module")
def bert_sparse():
    spec = importlib.util.spec_from_file_location("bert_sparse", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folders(tmp_path):
    """A folder of text and one of a model with its tokenizer."""
    generator = torch.Generator().manual_seed(0)
    text, model = tmp_path / "text", tmp_path / "model"
    text.mkdir()
    model.mkdir()
    for name in ("wikitext2-valid.txt", "wikitext2-test.txt"):
        picks = torch.randint(0, len(WORDS), (30, 12), generator=generator).tolist()
        lines = [" ".join(WORDS[i] for i in line) for line in picks]
        (text / name).write_text(" \n = A heading = \n" + "\n".join(lines) + "\n", encoding="utf-8")
    (model / "vocab.txt").write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)) + "\n")
    transformers.BertTokenizer(str(model / "vocab.txt")).save_pretrained(model)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=17,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    transformers.BertModel(config).save_pretrained(model)
    return text, model


def run(module, monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["bert_sparse.py", *map(str, arguments)])
    return module.main()


def test_the_table(bert_sparse, folders, tmp_path, monkeypatch, capsys):
    text, model = folders
    out = tmp_path / "out.json"
    options = [
        "--length",
        12,
        "--test-length",
        12,
        "--calibration",
        24,
        "--test",
        8,
        "--batch-size",
        6,
        "--refine",
        1,
        "--steps",
        5,
    ]
    status = run(
        bert_sparse,
        monkeypatch,
        "--text-dir",
        text,
        "--model",
        model,
        "--sparsities",
        50,
        "2:4",
        "--out",
        out,
        *options,
    )
    assert status == 0
    printed = capsys.readouterr().out
    for word in ("mean cosine similarity", "50 %", "2:4", *bert_sparse.METHODS):
        assert word in printed
    figures = json.loads(out.read_text())["figures"]
    assert set(figures) == set(bert_sparse.METHODS)
    for own in figures.values():
        for cell in own.values():
            assert cell["sparsity"] == pytest.approx(0.5, abs=1e-3)
            assert 0 < cell["cosine"] <= 1
    assert figures["iht"]["50"]["cosine"] > figures["magnitude"]["50"]["cosine"]


def test_what_is_missing_is_said(bert_sparse, folders, tmp_path, monkeypatch, capsys):
    text, model = folders
    assert run(bert_sparse, monkeypatch, "--text-dir", tmp_path, "--model", model) == 2
    assert "wikitext2-valid.txt" in capsys.readouterr().err
    (text / "wikitext2-test.txt").write_text(" = A heading = \n")
    assert run(bert_sparse, monkeypatch, "--text-dir", text, "--model", model) == 2
    assert "paragraphs of at least 8 words" in capsys.readouterr().err


def test_texts_are_spread_over_the_file(bert_sparse, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"{i} a b" for i in range(10)) + "\nshort\n")
    assert [text[0] for text in bert_sparse.read_texts(path, 5, 3)] == ["0", "2", "4", "6", "8"]
    assert len(bert_sparse.read_texts(path, 99, 3)) == 10
