"""The examples that train to structured sparsity: on small data, stopped and started again."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the demo extra is not installed")

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "training"


@pytest.fixture
def start(monkeypatch, capsys):
    """Run an example by its name; the exit status and what it printed."""

    def run(name, *arguments, change=None):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if change:
            change(module)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments), "--no-progress"])
        state = torch.get_rng_state()
        try:
            return module.main(), "".join(capsys.readouterr())
        finally:
            torch.set_flush_denormal(False)
            torch.set_rng_state(state)

    return run


class StoppedError(Exception):
    pass


def stop_after(name, calls):
    """Have a function of the example raise at its so-many-th call."""

    def change(module):
        own, left = getattr(module, name), [calls]

        def counted(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise StoppedError
            return own(*args, **kwargs)

        setattr(module, name, counted)

    return change


@pytest.fixture
def cifar(tmp_path):
    """12 + 6 images in the binary format of CIFAR-10 and CIFAR-100."""
    generator = torch.Generator().manual_seed(0)
    for names, before in ((("data_batch_1", "test_batch"), 1), (("train", "test"), 2)):
        for name, count in zip(names, (12, 6), strict=True):
            rows = torch.randint(0, 256, (count, before + 3072), generator=generator, dtype=torch.uint8)
            rows[:, before - 1] %= 10
            (tmp_path / f"{name}.bin").write_bytes(bytes(rows.flatten().tolist()))
    return tmp_path


def test_structured_sparsity_goes_on_where_it_was(start, cifar):
    def small(module):
        module.vgg19 = lambda classes: torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, 4), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(),
            torch.nn.Linear(256, classes),
        )  # fmt: skip

    arguments = ["--data-dir", cifar, "--data", "cifar10", "--epochs", 5, "--seeds", 2, "--device", "cpu"]
    status, output = start("structured_sparsity", *arguments, "--out", cifar / "whole", change=small)
    assert status == 0
    assert "written: " in output
    for row in ("Dense", "ProxSGD", "ProxSSI", "RMDA", "RAMDA"):
        assert row in output

    def stopping(module):
        small(module)
        stop_after("accuracy", 13)(module)  # in the second seed of the second row

    with pytest.raises(StoppedError):
        start("structured_sparsity", *arguments, "--out", cifar / "parts", change=stopping)
    assert (cifar / "parts" / "proxsgd-0.pt").exists()
    assert start("structured_sparsity", *arguments, "--out", cifar / "parts", change=small)[0] == 0
    for seed in range(2):
        for name in ("dense", "proxsgd", "rmda"):
            file = f"{name}-{seed}.json"
            assert json.loads((cifar / "parts" / file).read_text()) == json.loads((cifar / "whole" / file).read_text())
    assert (cifar / "whole" / "structured_sparsity.png").read_bytes().startswith(b"\x89PNG")
    status, output = start("structured_sparsity", *arguments, "--strength", 1, "--out", cifar / "whole")
    assert status == 2
    assert "runs of other settings" in output


def test_a_target_in_place_of_strengths(start, cifar):
    def small(module):
        module.BATCH = 4
        module.vgg19 = lambda classes: torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3, 4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(1024, classes)
        )

    arguments = ["--data-dir", cifar, "--data", "cifar10", "--epochs", 20, "--seeds", 1, "--device", "cpu"]
    chosen = ["--optimizers", "RMDA", "--target", 0.6, "--out", cifar / "target"]
    assert start("structured_sparsity", *arguments, *chosen, change=small)[0] == 0
    history = json.loads((cifar / "target" / "rmda-0.json").read_text())
    assert history[-1][1] == pytest.approx(0.6, abs=0.01)  # 1,027 groups
    status, output = start("structured_sparsity", *arguments, *chosen, "--strength", 1)
    assert status == 2
    assert "--target: expected a share in [0, 1), and no --strength besides" in output


@pytest.mark.parametrize("model, dataset, weights", [("vgg19", "cifar10", 17), ("resnet50", "cifar100", 54)])
def test_the_networks_of_the_paper(start, cifar, model, dataset, weights):
    def few(module):
        module.BATCH = 6
        made = getattr(module, model)(10)
        assert sum(parameter.dim() >= 2 for parameter in made.parameters()) == weights

    arguments = ["--data-dir", cifar, "--data", dataset, "--model", model, "--epochs", 1, "--seeds", 1]
    optimizers = ["--optimizers", "RMDA", "--device", "cpu", "--out", cifar / "out"]
    status, output = start("structured_sparsity", *arguments, *optimizers, change=few)
    assert status == 0
    assert f"{model} on {dataset}, 1 epochs" in output


def test_structured_sparsity_refuses(start, tmp_path):
    for arguments, words in (
        (["--dataset", "cifar10"], "cifar10 in its binary version is missing"),
        (["--dataset", "mnist"], "train-images-idx3-ubyte"),
        (["--dataset", "mnist", "--model", "vgg19"], "expected lenet5 for MNIST"),
    ):
        status, output = start("structured_sparsity", "--data-dir", tmp_path, *arguments)
        assert status == 2
        assert words in output


def test_shifts_and_mirrors_keep_the_pixels():
    spec = importlib.util.spec_from_file_location("structured_sparsity", EXAMPLES / "structured_sparsity.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x = torch.zeros(200, 3, 32, 32)
    x[:, 1, 10, 12] = 1
    y = module.augmented(x, torch.Generator().manual_seed(0))
    assert (y.sum((1, 2, 3)) == 1).all()
    assert (y[:, 1].sum() == 200).all()
    rows, columns = y[:, 1].amax(2).argmax(1), y[:, 1].amax(1).argmax(1)
    assert sorted(set(rows.tolist())) == [*range(6, 15)]
    assert set(columns.tolist()) == {*range(8, 17), *range(31 - 16, 31 - 7)}
    grey = torch.rand(2, 1, 28, 28)
    assert module.augmented(grey, torch.Generator()) is grey


def test_identification(start, tmp_path):
    arguments = ["--epochs", 6, "--seeds", 1, "--out", tmp_path]
    with pytest.raises(StoppedError):
        start("identification", *arguments, change=stop_after("shares", 1))
    status, output = start("identification", *arguments, change=stop_after("shares", 3))  # the first is kept
    assert status == 0
    assert "42 of 50 groups are zero" in output
    runs = json.loads((tmp_path / "identification.json").read_text())["runs"]
    assert runs["RMDA 0"][-1] == 1.0  # found, and not by the others
    assert max(runs["ProxSGD 0"][-1], runs["ProxAdamW 0"][-1]) < 1.0
    assert (tmp_path / "identification.png").read_bytes().startswith(b"\x89PNG")
    assert start("identification", *arguments, "--strength", 0.1)[0] == 2


def test_sparse_transformer(start, tmp_path):
    arguments = ["--steps", 20, "--shares", 0.5, "--dim", 16, "--layers", 1]

    def short(module):
        module.CONTEXT, module.BATCH = 16, 2
        whole = module.made_up
        module.made_up = lambda: whole(200)

    status, output = start("sparse_transformer", *arguments, "--out", tmp_path / "whole", change=short)
    assert status == 0
    rows = {
        name: json.loads((tmp_path / "whole" / f"{name}.json").read_text())
        for name in ("adamw-0", "ramda-0.5", "proxadamw-0.5", "magnitude-0.5")
    }
    for name in ("ramda-0.5", "magnitude-0.5"):
        assert rows[name]["neurons"] == pytest.approx(0.5, abs=0.04)
        assert rows[name]["heads"] == 0.5
        assert rows[name]["parameters"] < 0.8

    def stopping(module):
        short(module)
        stop_after("loss_of", 150)(module)

    stopped = False
    try:
        start("sparse_transformer", *arguments, "--out", tmp_path / "parts", change=stopping)
    except StoppedError:
        stopped = True
    assert stopped
    assert start("sparse_transformer", *arguments, "--out", tmp_path / "parts", change=short)[0] == 0
    for name, row in rows.items():
        again = json.loads((tmp_path / "parts" / f"{name}.json").read_text())
        assert (again["perplexity"], again["history"]) == (row["perplexity"], row["history"])
    assert (tmp_path / "whole" / "sparse_transformer.png").read_bytes().startswith(b"\x89PNG")
    status, output = start("sparse_transformer", "--dim", 12, "--out", tmp_path)
    assert status == 2
    assert "a multiple of 8" in output
