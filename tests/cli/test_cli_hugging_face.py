"""A Hugging Face folder and a text file are enough: prune and sparsify, opened again by both doors."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_models import make_llama
from torch import nn

import sparse_accel as sa

transformers = pytest.importorskip("transformers", reason="the test group is not installed")
SHORT = ("--sequence-length", "16", "--samples", "24")


def logits(model: nn.Module, folder: Path) -> torch.Tensor:
    """On words of the folder's own tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    inputs = tokenizer("the cat sat on a mat and looked at all those other cats", return_tensors="pt")
    with torch.no_grad():
        return model.eval()(input_ids=inputs["input_ids"])[0]


def dense(folder: Path, kind: Any) -> nn.Module:
    """What a user makes for sparse_accel.load, as the command's last line has it."""
    return kind(transformers.AutoConfig.from_pretrained(folder / "dense", local_files_only=True))


def test_prune_llama_opens_by_both_doors(run, here):
    status, out, err = run("prune", "-m", "llama", "-c", "text.txt", *SHORT, "--keep", ".5", "-o", "small")
    assert status == 0, err
    kind = transformers.LlamaForCausalLM
    assert "opened again by sparse_accel.load and from_pretrained: the same outputs" in out
    assert f'sparse_accel.load("{here / "small"}", LlamaForCausalLM(' in out
    assert "ISpaSP 4/4 model.layers.1.mlp.gate_proj, error 0." in err
    assert "[" not in out.splitlines()[0]  # progress is on stderr
    own = kind.from_pretrained(here / "small", local_files_only=True)
    assert own.config.intermediate_size == 24
    assert (own.config.num_attention_heads, own.config.num_key_value_heads) == (2, 1)
    loaded = sa.load("small", dense(here / "small", kind))
    assert torch.equal(logits(own, here / "small"), logits(loaded, here / "small"))
    assert logits(own, here / "small").shape[-1] == own.config.vocab_size
    assert not [path for path in here.iterdir() if path.name.startswith(".")]
    # The result is a model like any other: what was pruned can be sparsified, and its own folder is not touched.
    status, out, err = run("sparsify", "-m", "small", "-c", "text.txt", *SHORT, "--sparsity", "2:4", "-o", "both")
    assert status == 0, err
    twice = kind.from_pretrained(here / "both", local_files_only=True)
    down = twice.model.layers[1].mlp.down_proj.weight
    assert down.shape == (32, 24)
    assert int((down.reshape(32, 6, 4) != 0).sum(2).max()) == 2
    assert torch.equal(logits(twice, here / "both"), logits(sa.load("both", dense(here / "both", kind)), here / "both"))


def test_sparsify_llama_opens_by_both_doors(run, here):
    arguments = ("-c", "text.txt", *SHORT, "--sparsity", ".5", "--sparsity", "down_proj=.75", "--skip", "layers.1")
    status, out, err = run("sparsify", "-m", "llama", *arguments, "-o", "sparse", "--json")
    assert status == 0, err
    document = json.loads(out)
    assert document["opens_with"] == {"sparse_accel.load": True, "from_pretrained": True}
    assert document["verified"] == {"sparse_accel.load": 0.0, "from_pretrained": 0.0}
    assert document == json.loads((here / "sparse" / "report.json").read_text()) | {
        "out": str(here / "sparse"),
        "command": "sparsify",
    }
    own = transformers.LlamaForCausalLM.from_pretrained(here / "sparse", local_files_only=True)
    first, second = own.model.layers
    zeros = [int((layer.mlp.down_proj.weight == 0).sum()) for layer in (first, second)]
    assert zeros == [32 * 48 * 3 // 4, 0]
    assert int((first.mlp.up_proj.weight == 0).sum()) == 32 * 48 // 2
    loaded = sa.load("sparse", dense(here / "sparse", transformers.LlamaForCausalLM))
    assert torch.equal(logits(own, here / "sparse"), logits(loaded, here / "sparse"))
    masks = sa.prune.load_sparse("sparse", dense(here / "sparse", transformers.LlamaForCausalLM)).masks
    assert "model.layers.0.mlp.down_proj.weight" in masks
    modes = {path.stat().st_mode & 0o777 for path in (here / "sparse").iterdir() if path.is_file()}
    assert modes == {(here / "sparse" / "report.json").stat().st_mode & 0o777}


def test_widths_that_no_configuration_describes(run, here):
    """BERT's heads: the folder says so, has no config.json that would mislead, and opens by the other door."""
    status, out, err = run("prune", "-m", "bert", "-c", "text.txt", *SHORT, "-o", "small")
    assert status == 0, err
    assert "from_pretrained does not open it: the model (BertModel): no configuration says what encoder.layer.0" in out
    assert not (here / "small" / "config.json").exists()
    loaded = sa.load("small", dense(here / "small", transformers.BertModel))
    assert loaded.encoder.layer[0].attention.self.query.out_features == 16
    assert logits(loaded, here / "small").isfinite().all()  # with the tokenizer that was copied
    status, out, err = run("compare", "bert", "small", "-c", "text.txt", *SHORT, "--json")
    assert status == 0, err
    document = json.loads(out)
    status, told, err = run("sparsify", "-m", "small", "-c", "text.txt", *SHORT, "--method", "magnitude", "-o", "both")
    assert status == 0, err
    assert "it was made of small, which from_pretrained does not open" in told
    assert not (here / "both" / "config.json").exists()
    assert (sa.load("both", loaded).encoder.layer[0].attention.self.query.weight == 0).float().mean() == 0.5
    assert document["b"]["params"] == sum(p.numel() for p in loaded.parameters()) < document["a"]["params"]
    assert 0 < document["outputs"][0]["relative_error"] < 1
    assert document["macs"][1] < document["macs"][0]


@pytest.mark.parametrize("command", ["prune", "sparsify"])
def test_from_pretrained_is_not_promised_without_a_look(run, here, monkeypatch, command):
    """Where it gives another model after all, the folder is one for sparse_accel.load, and says so."""
    real = transformers.LlamaForCausalLM.from_pretrained.__func__

    def wrong(kind, folder, **options):
        made = real(kind, folder, **options)
        if str(folder).endswith(".unfinished"):
            made[0].lm_head.weight.data.add_(1)
        return made

    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", classmethod(wrong))
    arguments = ("-m", "llama", "-c", "text.txt", *SHORT, "--method", "magnitude", "-o", "small")
    status, out, err = run(command, *arguments)
    assert status == 0, err
    assert "from_pretrained does not open it: it would not give the same model" in out
    weights = "model.safetensors" if command == "prune" else "sparse_model.safetensors"
    assert [path.name for path in (here / "small").glob("*.safetensors")] == [weights]
    assert not (here / "small" / "config.json").exists()
    assert sa.load("small", dense(here / "small", transformers.LlamaForCausalLM)) is not None


def test_one_kind_of_widths_is_uniform(run, here):
    status, out, err = run("prune", "-m", "bert", "-c", "text.txt", *SHORT, "--only", "channels", "-o", "small", "-q")
    assert (status, out, err) == (0, "", "")
    own = transformers.BertModel.from_pretrained(here / "small", local_files_only=True)
    assert own.config.intermediate_size == 24
    assert torch.equal(
        logits(own, here / "small"), logits(sa.load("small", dense(here / "small", type(own))), here / "small")
    )


def test_dry_run_says_it_all_and_writes_nothing(run, here):
    before = sorted(here.rglob("*"))
    status, out, err = run("prune", "-m", "bert", "-c", "text.txt", *SHORT, "--dry-run")
    assert status == 0, err
    assert "note: from_pretrained: the model (BertModel): no configuration" in out
    status, out, err = run("prune", "-m", "llama", "-c", "text.txt", *SHORT, "--dry-run", "--json")
    document = json.loads(out)
    assert [(width["kind"], width["units"], width["kept"]) for width in document["widths"]] == [
        ("heads", 2, 1),
        ("channels", 48, 24),
    ] * 2
    assert document["memory"] > 0
    assert document["seconds"] > 0
    predicted = document["params"][1]
    status, out, err = run("sparsify", "-m", "llama", "-c", "text.txt", *SHORT, "--dry-run")
    assert status == 0, err
    assert "lm_head: skip" in out
    assert "nothing was written" in out
    assert sorted(here.rglob("*")) == before
    status, out, err = run("prune", "-m", "llama", "-c", "text.txt", *SHORT, "-o", "small", "--json", "--no-verify")
    assert json.loads(out)["report"]["totals"]["params"][1] == predicted  # what was foretold
    assert json.loads(out)["verified"] is None


def test_tied_weights_shards_and_bin(run, here):
    """Weights in several files, and in a file of torch.save; the table of tokens is the head's weight."""
    folder = make_llama(here / "tied", tie_word_embeddings=True, attention_bias=True)
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    model.save_pretrained(here / "shards", max_shard_size="20KB")
    assert len(list((here / "shards").glob("*.safetensors"))) > 1
    (here / "bin").mkdir()
    model.config.save_pretrained(here / "bin")
    torch.save(model.state_dict(), here / "bin" / "pytorch_model.bin")
    zeros = []
    for name in ("shards", "bin"):
        arguments = ("--tokenizer", "tied", "-c", "text.txt", *SHORT, "--method", "magnitude", "-o", f"{name}-out")
        status, out, err = run("sparsify", "-m", name, *arguments)
        assert status == 0, err
        assert "from_pretrained: the same outputs" in out
        own = transformers.LlamaForCausalLM.from_pretrained(here / f"{name}-out", local_files_only=True)
        assert own.lm_head.weight is own.model.embed_tokens.weight
        zeros.append(json.loads(run("sparsity", name + "-out", "--by", "element", "--json")[1])["sparsity"])
    assert zeros[0] == zeros[1] > 0.4
    assert json.loads(run("sparsity", "shards", "--json")[1])["sparsity"] == 0
    # The weights in a file beside: the folder then needs its configuration alone.
    (here / "bin" / "pytorch_model.bin").rename(here / "net.bin")
    arguments = ("-m", "bin", "--weights", "net.bin", "--tokenizer", "tied", "-c", "text.txt", *SHORT, "--dry-run")
    assert run("sparsify", *arguments)[0] == 0


def test_large_texts_are_read_in_part(run, here, monkeypatch):
    from sparse_accel.cli.sources import text

    monkeypatch.setattr(text, "LARGEST", 1000)
    (here / "long.txt").write_text("a cat sat on a mat äöü\n" * 100, encoding="utf-8")
    status, out, err = run("prune", "-m", "llama", "-c", "long.txt", *SHORT, "--dry-run", "--json")
    assert status == 0, err
    assert "long.txt: its first 0 MiB alone are used" in json.loads(out)["notes"]


OWN_CODE = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


class OwnConfig(PretrainedConfig):
    model_type = "own_for_the_command_line"

    def __init__(self, width=32, **more):
        super().__init__(**more)
        self.width, self.intermediate_size = width, more.get("intermediate_size", 48)


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.table = nn.Embedding(300, config.width)
        self.up, self.down = nn.Linear(config.width, 48), nn.Linear(48, config.width)
        self.post_init()

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids):
        return self.down(torch.relu(self.up(self.table(input_ids))))
"""


def test_code_of_a_folder_runs_when_asked_for(run, here, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(here / "cache"))
    monkeypatch.syspath_prepend(str(here))
    (here / "own_code.py").write_text(OWN_CODE)
    own = importlib.import_module("own_code")
    own.OwnConfig.register_for_auto_class()
    own.OwnModel.register_for_auto_class("AutoModel")
    own.OwnModel(own.OwnConfig()).save_pretrained(here / "own")
    arguments = ("-c", "text.txt", "--tokenizer", "bytes", *SHORT)
    assert run("prune", "-m", "own", *arguments, "-o", "small")[0] == 2
    trusting = (*arguments, "--trust-remote-code")
    status, out, err = run("prune", "-m", "own", *trusting, "-o", "small")
    assert status == 0, err
    assert "from_pretrained does not open it" in out  # 48 stands in the code
    assert sa.load("small", own.OwnModel(own.OwnConfig())).up.out_features == 24
    status, out, err = run("compare", "own", "small", *trusting, "--json")
    assert status == 0, err
    assert json.loads(out)["b"]["params"] < json.loads(out)["a"]["params"]
    assert run("compare", "own", "small", *arguments)[0] == 2


def test_compact_llama(run, here):
    folder = make_llama(here / "zeros")
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data[:, 8:24] = 0
    model.save_pretrained(folder)
    status, _, err = run("compact", "-m", "zeros", "-o", "small")
    assert status == 0, err
    assert "compared on 2 random sequences of 16 tokens" in err
    own = transformers.LlamaForCausalLM.from_pretrained(here / "small", local_files_only=True)
    assert own.config.intermediate_size == 32
    torch.testing.assert_close(logits(own, here / "small"), logits(model, here / "small"))


def test_budget_and_refine(run, here):
    arguments = ("--budget", "flops=.7", "--refine-steps", "2", "--round-to", "4", "-o", "small", "--json")
    status, out, err = run("prune", "-m", "llama", "-c", "text.txt", *SHORT, *arguments)
    assert status == 0, err
    report = json.loads(out)["report"]
    assert report["refinement"]["steps"] == 2
    before, after = report["totals"]["macs"]
    assert after <= 0.75 * before


def test_images(run, here):
    image = pytest.importorskip("PIL.Image")
    (here / "photos" / "cats").mkdir(parents=True)
    for number in range(6):
        image.new("RGB", (20 + number, 24), (40 * number, 9, 200)).save(here / "photos" / "cats" / f"{number}.png")
    status, out, err = run("prune", "-m", "vit", "-c", "photos", "--only", "channels", "-o", "small")
    assert status == 0, err
    assert "6 of 6 images of photos, 16x16" in err
    assert "from_pretrained: the same outputs" in out
    assert (here / "small" / "preprocessor_config.json").is_file()
    status, out, err = run("compact", "-m", "small", "-c", "photos", "-o", "smaller")
    assert (status, out) == (2, "")
    assert "nothing to remove" in err


def test_bytes_are_tokens_only_when_asked_for(run, refused, here):
    make_llama(here / "plain", tokenizer=False)
    assert "a text needs a tokenizer, and plain has none: --tokenizer FOLDER" in refused(
        "prune", "-m", "plain", "-c", "text.txt", *SHORT, "-o", "small"
    )
    assert "expected a vocabulary of at least 256, the model's has" in refused(
        "prune", "-m", "llama", "-c", "text.txt", *SHORT, "--tokenizer", "bytes", "-o", "small"
    )
    arguments = (
        "-m",
        "plain",
        "-c",
        "text.txt",
        *SHORT,
        "--tokenizer",
        "bytes",
        "-o",
        "small",
        "--method",
        "magnitude",
    )
    status, _, err = run("prune", *arguments)
    assert status == 0, err
    assert "every byte of the text is a token" in err
    assert "every byte of the text is a token" in (here / "small" / "report.json").read_text()
    # The tokenizer of another folder, which does not belong to the model.
    make_llama(here / "few", vocabulary=10, tokenizer=False)
    assert "the tokenizer has a token" in refused(
        "prune", "-m", "few", "-c", "text.txt", *SHORT, "--tokenizer", "llama", "-o", "smaller"
    )
