"""Users' mistakes: exit status 2, one message that says what to mend, and nothing on disk has changed."""

from __future__ import annotations

import importlib
import json
import pickle

import numpy as np
import pytest
import torch
from cli_models import make_llama
from safetensors.torch import load_file, save_file

import sparse_accel as sa
from sparse_accel.cli import main
from sparse_accel.cli.results import writing
from sparse_accel.prune import ISpaSP

prune_command = pytest.importorskip("sparse_accel.cli.commands.prune", reason="the cli extra is not installed")

OWN = ("-m", "stocked_nets:make", "-c", "rows.npy", "-o", "small")
LLAMA = ("-m", "llama", "-c", "text.txt", "--sequence-length", "16", "--samples", "8", "-o", "small")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("-m", "nowhere", "-c", "rows.npy", "-o", "x"),
            "--model: expected a Hugging Face folder (with config.json) or",
        ),
        (("-m", ".", "-c", "rows.npy", "-o", "x"), "has no config.json"),
        (("-m", "rows.npy", "-c", "rows.npy", "-o", "x"), "weights alone are for --weights"),
        (("-m", "no_such_nets:make", "-c", "rows.npy", "-o", "x"), "--model: no module 'no_such_nets'"),
        (("-m", "stocked_nets:nothing", "-c", "rows.npy", "-o", "x"), "--model: stocked_nets has no 'nothing'"),
        (("-m", "stocked_nets:breaks", "-c", "rows.npy", "-o", "x"), "stocked_nets:breaks() fails: KeyError"),
        (("-m", "stocked_nets:number", "-c", "rows.npy", "-o", "x"), "to be a function or an nn.Module, got int"),
        (
            ("-m", "stocked_nets:batches", "-c", "rows.npy", "-o", "x"),
            "expected an nn.Module from stocked_nets:batches()",
        ),
        (("-m", "stocked_nets:make", "-o", "x"), "--calibration is missing"),
        (("-m", "stocked_nets:make", "-c", "rows.npy"), "--out DIR is missing"),
        (("-m", "stocked_nets:make", "-c", "none.txt", "-o", "x"), "there is no 'none.txt'"),
        (("-m", "stocked_nets:make", "-c", "stocked_nets:number", "-o", "x"), "to be batches or a function, got int"),
        (("-m", "stocked_nets:conv", "-c", "rows.npy", "-o", "x"), "the model does not run on inputs of shape (2, 6)"),
        (("-m", "stocked_nets:make", "-c", "text.txt", "-o", "x"), "Sequential takes no tokens"),
        (("-m", "stocked_nets:make", "-c", "bert", "-o", "x"), "expected images"),
        ((*OWN, "--only", "layer.*"), "--only: 'layer.*' matches no width; the model's are 0, 2"),
        ((*OWN, "--keep", "nine=.5"), "--keep: 'nine' matches no width"),
        ((*OWN, "--keep", "0=99"), "--keep: 0: expected 1 to 16, got 99"),
        ((*OWN, "--keep", "1.5"), "--keep: expected a share in (0, 1], got 1.5"),
        ((*OWN, "--keep", "half"), "--keep: expected a number, got 'half'"),
        ((*OWN, "--keep", ".5", "--keep", ".6"), "--keep: expected one share for all layers, got 0.5 and .6"),
        ((*OWN, "--keep", ".5", "--budget", "flops=.5"), "--budget: expected in place of --keep, got both"),
        ((*OWN, "--budget", "time=.5"), "--budget: expected flops=SHARE, params=SHARE, units=SHARE or"),
        ((*OWN, "--method", "best"), "--method: expected one of gram_obs, ispasp"),
        ((*OWN, "--refit", "never"), "--refit: expected one of auto, none"),
        ((*OWN, "--scope", "outer"), "--scope: expected one of 'inner', 'all', got 'outer'"),
        ((*OWN, "--device", "abacus"), "--device: 'abacus' cannot be used"),
        ((*OWN, "--dtype", "int8"), "--dtype: expected one of float32"),
        ((*OWN, "--max-memory", "lots"), "--max-memory: expected a number of bytes such as 8GB"),
        ((*OWN, "--max-memory", "100"), "--max-memory: expected at least"),
        ((*OWN, "--weights", "none.pt"), "none.pt: no such file"),
        ((*OWN, "--weights", "text.txt"), "text.txt: expected safetensors or a state dict saved by torch.save"),
        ((*OWN, "--image-size", "big"), "--image-size: expected 224 or 224x320"),
        ((*LLAMA, "--sequence-length", "65"), "--sequence-length: expected at most 64, the model's positions, got 65"),
    ],
)
def test_prune(refused, arguments, message):
    assert message in refused("prune", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sparsify", *OWN, "--sparsity", "4:2"), "--sparsity: expected \"n:m\" with 1 <= n < m <= 32, got '4:2'"),
        (("sparsify", *OWN, "--sparsity", "1.5"), "--sparsity: expected a number in [0, 1]"),
        (("sparsify", *OWN, "--sparsity", "2:4", "--by", "input"), "--by: n:m is of single weights"),
        (("sparsify", *OWN, "--by", "hand"), "--by: expected one of element, row"),
        (("sparsify", *OWN, "--only", "conv1"), "--only: 'conv1' matches no"),
        (("sparsify", *OWN, "--method", "best"), "--method: expected one of iht"),
        (("sparsify", *OWN, "--allocation", "fair"), "--allocation: expected 'uniform' or 'global', got 'fair'"),
        (("compact", "-m", "stocked_nets:make", "-o", "x"), "--calibration or --input-shape is missing"),
        (("compact", "-m", "stocked_nets:make", "-o", "x", "--input-shape", "big"), "--input-shape: expected numbers"),
        (("compact", "-m", "stocked_nets:make", "-o", "x", "--input-shape", "2,6"), "nothing to remove"),
        (("sparsity", "nowhere"), "nowhere: no such file or folder"),
        (("sparsity", "llama", "--by", "hand"), "--by: expected one of input"),
        (("report", "nowhere"), "nowhere: no such folder"),
        (("report", "llama"), "expected a folder that prune, sparsify, compact or sparse_accel.save wrote"),
        (("compare", "llama", "nowhere"), "nowhere: no such file or folder"),
        (("compare", "llama", "rows.npy", "-c", "text.txt"), "rows.npy"),
        (("compare", "llama", "bert", "-c", "text.txt", "--sequence-length", "16"), "the outputs cannot be compared"),
    ],
)
def test_other_commands(refused, arguments, message):
    assert message in refused(*arguments)


@pytest.mark.parametrize(
    "arguments", [(), ("nonsense",), ("prune",), ("prune", "--what"), ("report",), ("demo", "--epochs", "0")]
)
def test_typing_errors(refused, arguments):
    assert "Usage: sparse-accel" in refused(*arguments)


def test_weights_that_are_not_the_models(refused, here):
    torch.save({"0.weight": torch.zeros(16, 7), "more": torch.zeros(1)}, "net.pt")
    message = refused("prune", *OWN, "--weights", "net.pt")
    assert (
        "missing: 0.bias, 2.weight, 2.bias, 4.weight and 1 more; unexpected: more; of another shape: 0.weight"
        in message
    )
    assert "(expected [16, 6], got [16, 7])" in message
    (here / "evil.pt").write_bytes(pickle.dumps(print))
    assert "without running code" in refused("prune", *OWN, "--weights", "evil.pt")


def test_data_that_do_not_fit(refused, here):
    rows = np.ones((4, 6), np.float32)
    np.savez(here / "uneven.npz", input=rows, other=rows[:3])
    np.savez(here / "strange.npz", left=rows, right=rows)
    np.save(here / "none.npy", rows[:0])
    np.save(here / "objects.npy", np.array([{}]), allow_pickle=True)
    (here / "latin.txt").write_bytes("Übung macht den Meister\n".encode("latin-1"))
    (here / "short.txt").write_text("the cat")
    own, llama = ("-m", "stocked_nets:make", "-o", "small"), ("-m", "llama", "-o", "small")
    for spec, message, model in (
        ("uneven.npz", "expected as many samples of each array, got {'input': 4, 'other': 3}", own),
        ("strange.npz", "left, right: Sequential.forward has no such argument; it takes input", own),
        ("none.npy", "expected at least one sample, got none", own),
        ("objects.npy", "expected arrays of numbers", own),
        ("latin.txt", "expected a text in UTF-8", llama),
        ("short.txt", "expected at least 62 tokens, got 2: --sequence-length", llama),
    ):
        assert message in refused("prune", *model, "-c", spec)


def test_images_that_do_not_fit(refused, here):
    image = pytest.importorskip("PIL.Image")
    (here / "photos").mkdir()
    image.new("RGB", (20, 24)).save(here / "photos" / "a.png")
    image.new("RGB", (24, 24)).save(here / "photos" / "b.png")
    arguments = ("-m", "stocked_nets:conv", "-c", "photos", "-o", "small")
    assert "images of several sizes" in refused("prune", *arguments)
    assert "the model does not run on inputs of shape (2, 3, 9, 9)" in refused("prune", *arguments, "--image-size", "9")
    assert "expected one number or 3, not 0" in refused(
        "prune", *arguments, "--image-size", "8", "--image-std", "1,0,1"
    )
    assert "LlamaForCausalLM takes tokens" in refused("prune", "-m", "llama", *arguments[2:])
    (here / "photos" / "c.png").write_text("no image")
    assert "c.png: not an image" in refused("prune", *arguments, "--image-size", "8")


def test_folders_with_holes(refused, here):
    folder = make_llama(here / "holes")
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "up_proj" not in k}, folder / "model.safetensors", {"format": "pt"})
    arguments = ("-c", "text.txt", "-o", "small")
    assert "weights of LlamaForCausalLM are missing: model.layers.0.mlp.up_proj.weight" in refused(
        "prune", "-m", "holes", *arguments
    )
    short = {k: v[:-1] if k == "lm_head.weight" else v for k, v in weights.items()}
    save_file(short, folder / "model.safetensors", {"format": "pt"})
    assert "are of another shape: lm_head.weight (expected [28, 32], got [27, 32])" in refused(
        "prune", "-m", "holes", *arguments
    )
    (folder / "model.safetensors").unlink()
    assert "expected model.safetensors or pytorch_model.bin beside config.json" in refused(
        "prune", "-m", "holes", *arguments
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "own.Model"}}))
    assert "--trust-remote-code runs it, if you trust it" in refused("prune", "-m", "holes", *arguments)
    (folder / "config.json").write_text("{")
    assert "config.json: not JSON" in refused("prune", "-m", "holes", *arguments)


def test_folders_that_are_taken(run, refused, here):
    (here / "mine").mkdir()
    (here / "mine" / "thesis.tex").write_text("years of work")
    own = OWN[:-1]
    assert "is not empty; --force replaces it" in refused("prune", *own, "mine")
    assert "holds files that are not of this program" in refused("prune", *own, "mine", "--force")
    assert "is a file" in refused("prune", *own, "rows.npy")
    assert "which this command reads" in refused("prune", *own, ".", "--force")
    assert "which this command reads" in refused("prune", *LLAMA[:-1], "llama", "--force")
    assert run("prune", *OWN, "-q")[0] == 0
    assert "--force replaces it" in refused("prune", *OWN)
    before = (here / "small" / "model.safetensors").read_bytes()
    status, _, err = run("prune", *OWN, "--keep", ".25", "--force")
    assert status == 0, err
    assert (here / "small" / "model.safetensors").read_bytes() != before
    assert sorted(path.name for path in (here / "small").iterdir()) == ["model.safetensors", "plan.json", "report.json"]
    assert not [path for path in here.iterdir() if path.name.startswith(".")]
    # What is damaged is refused, and named.
    weights = bytearray((here / "small" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (here / "small" / "model.safetensors").write_bytes(weights)
    assert "damaged" in refused("compare", "stocked_nets:make", "small")
    (here / "small" / "report.json").write_text('{"format": "sparse_accel.report", "version": 1, "command": "prune"}')
    assert "report.json: damaged" in refused("report", "small")


def test_results_of_results(run, refused, here):
    """What no configuration describes is a start all the same: its result is opened by way of it."""
    start = ("-m", "stocked_nets:make", "-c", "rows.npy", "-q")
    assert run("prune", *start, "-o", "small")[0] == 0
    status, out, err = run("sparsify", "-m", "small", "-c", "rows.npy", "-o", "both")
    assert status == 0, err
    assert f"model: what is loaded of {here / 'small'}" in out
    nets = importlib.import_module("stocked_nets")
    loaded = sa.load("both", sa.load("small", nets.make()))
    assert (loaded[0].out_features, int((loaded[0].weight == 0).sum())) == (8, 24)
    status, out, err = run("compare", "stocked_nets:make", "both", "-c", "rows.npy", "--json")
    assert status == 0, err
    assert json.loads(out)["b"]["params"] == sum(p.numel() for p in loaded.parameters())
    assert "--weights: small is a result, which has its own" in refused(
        "sparsify", "-m", "small", "--weights", "rows.npy", "-c", "rows.npy", "-o", "x"
    )
    assert "holds small, which this command reads" in refused("prune", "-m", "small", "-c", "rows.npy", "-o", "small")
    (here / "small").rename(here / "moved")
    assert f"was made of {here / 'small'}, which is not there" in refused("compare", "stocked_nets:make", "both")
    (here / "moved" / "report.json").unlink()
    assert "moved has no report.json, which says of which model it is" in refused(
        "sparsify", "-m", "moved", "-c", "rows.npy", "-o", "x"
    )


def test_a_failed_check_leaves_nothing(refused, monkeypatch):
    """What was written is opened again: here by something that gives another model."""
    real = writing.checkpoint.load

    def wrong(folder, model):
        loaded = real(folder, model)
        with torch.no_grad():
            next(loaded.parameters()).add_(1)
        return loaded

    monkeypatch.setattr(writing.checkpoint, "load", wrong)
    assert "check failed: sparse_accel.load gives another model" in refused("prune", *OWN, status=1)


def test_interrupted(refused, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ISpaSP, "run", interrupted)
    assert "interrupted; --out is as it was" in refused("prune", *OWN, status=130)
    monkeypatch.undo()


def test_interrupted_while_writing(refused, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "write_record", interrupted)
    refused("prune", *OWN[:-1], "deep/inside/small", status=130)


def test_tracebacks(run, monkeypatch):
    status, _, err = run("prune", *OWN, "--keep", "half", "--debug")
    assert status == 2
    assert "Traceback" in err

    def broken(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(prune_command, "find_widths", broken)
    status, out, err = run("prune", *OWN)
    assert (status, out) == (3, "")
    assert "Traceback" in err
    assert "unexpected ZeroDivisionError: a bug" in err


def test_random_weights_are_told(run, here):
    (here / "random_nets.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2))\n"
    )
    status, _, err = run("prune", "-m", "random_nets:make", "-c", "rows.npy", "-o", "small")
    assert status == 0
    assert "the factory makes other weights each time: they are random" in err


def test_help_has_examples(capsys):
    for command in ("prune", "sparsify", "compact", "compare", "sparsity", "report"):
        assert main([command, "--help"]) == 0
        out = capsys.readouterr().out
        assert f"sparse-accel {command} " in out
        assert "--debug" in out
