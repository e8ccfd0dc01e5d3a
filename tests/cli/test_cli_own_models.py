"""Models of the user's own: module:factory, weights from files, calibration from loaders and arrays."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import sparse_accel as sa


@pytest.fixture
def nets(here):
    return importlib.import_module("stocked_nets")


def test_prune_and_load(run, nets, here):
    trained = nets.make()
    with torch.no_grad():
        trained[2].weight.mul_(3)
    state = {f"module.{key}": value for key, value in trained.state_dict().items()}  # as DataParallel saves it
    torch.save({"epoch": 3, "state_dict": state}, "net.pt")
    arguments = (
        "--weights",
        "net.pt",
        "-c",
        "stocked_nets:batches",
        "--keep",
        "0=.25",
        "--keep",
        "2=3",
        "-o",
        "a/small",
    )
    status, out, err = run("prune", "-m", "stocked_nets:make", *arguments)
    assert status == 0, err
    loaded = sa.load("a/small", nets.make())
    assert [layer.out_features for layer in loaded if isinstance(layer, nn.Linear)] == [4, 3, 3]
    assert 'sparse_accel.load("' in out
    assert "from_pretrained" not in out
    # The same by the library alone.
    batches = nets.batches()
    inputs = [batch[:1] for batch in batches]
    own = sa.prune.ISpaSP(trained, inputs[0], keep_per_layer={"0": 0.25, "2": 3}).run(inputs)
    for one, other in zip(loaded.parameters(), own.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_modules_beside_the_user_are_found(run, here):
    (here / "beside_here.py").write_text(
        "from torch import nn\n\nnet = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2))\n"
    )
    status, _, err = run("sparsify", "-m", "beside_here:net", "-c", "rows.npy", "--samples", "20", "-o", "sparse")
    assert status == 0, err
    assert "20 of 40 samples of rows.npy" in err
    loaded = sa.load("sparse", nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)))
    assert int((loaded[0].weight == 0).sum()) == 24


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_arrays_by_name(run, here, form):
    rows = np.load("rows.npy").astype(np.float32)
    if form == "npz":
        np.savez(here / "inputs.npz", input=rows)
    else:
        save_file({"input": torch.from_numpy(rows)}, here / "inputs.safetensors")
    status, out, err = run("prune", "-m", "stocked_nets:make", "-c", f"inputs.{form}", "-o", "small", "--json")
    assert status == 0, err
    assert json.loads(out)["report"]["widths"][0]["units"] == [16, 8]


@pytest.mark.parametrize(
    ("arguments", "zeros"),
    [(("--by", "input"), "input"), (("--by", "row", "--sparsity", ".25"), "row"), (("--only", "2"), "one")],
)
def test_what_becomes_zero(run, nets, arguments, zeros):
    status, _, err = run("sparsify", "-m", "stocked_nets:make", "-c", "rows.npy", *arguments, "-o", "sparse", "-q")
    assert (status, err) == (0, "")
    loaded = sa.load("sparse", nets.make())
    if zeros == "input":
        assert sa.sparsity(loaded).group_sparsity == pytest.approx(0.5)
    elif zeros == "row":
        assert (loaded[2].weight == 0).sum(1).tolist() == [4] * 12
    else:
        assert [int((loaded[at].weight == 0).sum()) for at in (0, 2, 4)] == [0, 96, 0]


def test_compact_and_what_looks_at_it(run, nets, here):
    trained = nets.conv()
    with torch.no_grad():
        trained[3].weight[:, : 3 * 36] = 0
    save_file(trained.state_dict(), here / "net.safetensors")
    arguments = ("-m", "stocked_nets:conv", "--weights", "net.safetensors", "--input-shape", "2,3,8,8", "-o", "small")
    status, out, err = run("compact", *arguments, "--dry-run")
    assert (status, (here / "small").exists()) == (0, False), err
    status, out, err = run("compact", *arguments)
    assert status == 0, err
    assert "8 → 5" in out
    loaded = sa.load("small", nets.conv())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(loaded(x), trained(x))
    status, table, _ = run("report", "small")
    assert status == 0
    assert "8 → 5" in table
    assert "model: factory stocked_nets:conv" in table
    record = json.loads((here / "small" / "report.json").read_text())
    assert json.loads(run("report", "small", "--format", "json")[1])["record"] == record
    assert run("report", "small", "-f", "markdown")[1].startswith("# sparse-accel compact: small\n\n- **parameters**")
    page = run("report", "small", "--format", "html")[1]
    assert page.startswith("<!DOCTYPE html>")
    assert "8 → 5" in page
    status, out, err = run("compare", "net.safetensors", "small", "--json")
    assert status == 0, err
    sides = [json.loads(out)[side] for side in "ab"]
    assert [side["params"] for side in sides] == [
        sum(p.numel() for p in model.parameters()) for model in (trained, loaded)
    ]
    assert sides[0]["zeros"] == 2 * 3 * 36
    status, out, err = run(
        "compare", "net.safetensors", "small", "-m", "stocked_nets:conv", "-c", "stocked_nets:batches"
    )
    assert status == 2
    assert "the model does not run on inputs of shape (2, 6)" in err


def test_sparsity_with_and_without_the_model(run, nets, here):
    trained = nets.make()
    with torch.no_grad():
        trained[2].weight[:, :4] = 0
    torch.save(trained.state_dict(), "net.pt")
    expected = json.loads(json.dumps(sa.sparsity(trained).to_plain()["layers"][1]))
    for more in ((), ("--model", "stocked_nets:make")):
        status, out, err = run("sparsity", "net.pt", "--json", *more)
        assert status == 0, err
        assert json.loads(out)["layers"][1] == expected
    status, out, _ = run("sparsity", "net.pt", "--by", "output")
    assert "groups by output" in out
    # A sparse checkpoint, whose zeros are not stored.
    status, _, err = run("sparsify", "-m", "stocked_nets:make", "-c", "rows.npy", "-o", "sparse")
    assert status == 0, err
    document = json.loads(run("sparsity", "sparse", "--by", "element", "--json")[1])
    loaded = sa.load("sparse", nets.make())
    assert document["sparsity"] == pytest.approx(sa.sparsity(loaded, "element").sparsity)


def test_report_is_that_of_the_run(run, here):
    for command, more in (("prune", ("--refine-steps", "1")), ("sparsify", ("--refine-steps", "1"))):
        status, out, err = run(command, "-m", "stocked_nets:make", "-c", "rows.npy", *more, "-o", command)
        assert status == 0, err
        shown = run("report", command)[1]
        assert shown.splitlines()[:8] == out.splitlines()[:8]
        assert "refinement (gradient-based" in shown


@pytest.mark.parametrize("kind", ["ViTImageProcessor", "CLIPImageProcessor", "ConvNextImageProcessor"])
@pytest.mark.parametrize(("height", "width"), [(30, 41), (26, 22), (13, 9)])
def test_images_are_prepared_as_transformers_does(here, kind, height, width):
    image = pytest.importorskip("PIL.Image")
    transformers = pytest.importorskip("transformers")
    from sparse_accel.cli.sources.images import ImageOptions, read_images
    from sparse_accel.cli.sources.models import Source

    sizes = {"size": {"height": 16, "width": 16}} if kind == "ViTImageProcessor" else {"size": {"shortest_edge": 16}}
    sizes |= {"crop_size": {"height": 16, "width": 16}} if kind == "CLIPImageProcessor" else {}
    processor = getattr(transformers, kind)(**sizes)
    processor.save_pretrained(here / "folder")
    (here / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    image.fromarray(pixels).save(here / "photos" / "a.png")
    source = Source("", nn.Conv2d(3, 1, 1), lambda: nn.Conv2d(3, 1, 1), here / "folder", {}, [])
    came, _ = read_images(here / "photos", source, ImageOptions(), 1, 0)
    wanted = processor(image.fromarray(pixels), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(came.numpy(), wanted, atol=1e-6)


def test_old_batch_norms(run, here):
    """Files of torch before 0.4.1 have no counters of batches."""
    layers = "nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)"
    (here / "norm_nets.py").write_text(f"from torch import nn\ndef make():\n    return nn.Sequential({layers})\n")
    state = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).state_dict()
    save_file({key: value for key, value in state.items() if "num_batches" not in key}, here / "old.safetensors")
    arguments = ("-m", "norm_nets:make", "--weights", "old.safetensors", "-c", "rows.npy", "-o", "small")
    assert run("prune", *arguments)[0] == 0


def test_report_of_what_the_library_saved(run, nets, here):
    model, rows = nets.make(), torch.from_numpy(np.load("rows.npy")).float()
    sa.save(sa.prune.ISpaSP(model, rows[:2], 0.5).run(rows), "pruned")
    sa.save(sa.prune.CurvatureIHT(model, 0.5).run(rows), "sparse")
    status, out, err = run("report", "pruned")
    assert status == 0, err
    assert out.splitlines()[2].split() == ["0.weight", "16×6", "8×6"]
    assert "50.00 %" in run("report", "sparse")[1]
    assert json.loads(run("report", "sparse", "-f", "json")[1])["record"]["report"]["method"] == "iht"
    assert json.loads(run("sparsity", "pruned", "--json")[1])["layers"][0]["shape"] == [8, 6]
    status, out, err = run("compare", "stocked_nets:make", "pruned", "-m", "stocked_nets:make", "-c", "rows.npy")
    assert status == 0, err
