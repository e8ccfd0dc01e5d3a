"""Weights on disk: mapped models, copies in files, and what a large problem takes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import sparse_accel as sa
from sparse_accel.calibration.moments import Gram, symmetrize_
from sparse_accel.mapped import copies_in
from sparse_accel.prune import CurvatureIHT, ISpaSP, gram_obs, refit
from sparse_accel.prune.select.gram import Refit, gram_obs_kept
from sparse_accel.wrappers import copy_model


@pytest.fixture(autouse=True)
def small_tensors_too(monkeypatch) -> None:
    monkeypatch.setattr("sparse_accel.mapped.LEAST", 1 << 10)


def net(width: int = 32, hidden: int = 48) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.Linear(width, 8)).eval()


X = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))


def test_copies_in_files_are_copies(tmp_path) -> None:
    model = net()
    model.register_buffer("table", torch.randn(30, 20).t())  # strides stay
    model[0].bias.requires_grad_(False)
    model[3].weight = nn.Parameter(model[3].weight.detach().bfloat16())
    tied = nn.Sequential(nn.Embedding(40, 16), nn.Linear(16, 40, bias=False))
    tied[1].weight = tied[0].weight
    with copies_in(tmp_path / "new"):
        copy, twin = copy_model(model), copy_model(tied)
    assert copy[0].weight.data_ptr() != model[0].weight.data_ptr()
    for (name, old), (_, new) in zip(model.state_dict().items(), copy.state_dict().items(), strict=True):
        assert (new.shape, new.stride(), new.dtype) == (old.shape, old.stride(), old.dtype), name
        assert torch.equal(new, old)
    assert [p.requires_grad for p in copy.parameters()] == [p.requires_grad for p in model.parameters()]
    assert twin[0].weight is twin[1].weight
    assert list((tmp_path / "new").iterdir()) == []  # they have no names
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert maps.read_text().count(f"{tmp_path}/new/sparse_accel-") >= 3
    with torch.no_grad():
        copy[0].weight.zero_()
    assert bool(model[0].weight.any())
    plain = copy_model(model)  # outside: as usual
    assert not maps.exists() or str(plain[0].weight.data_ptr()) not in maps.read_text()


@pytest.mark.parametrize(
    "run",
    [
        lambda model, **more: ISpaSP(model, X[:2], **more).run(X),
        lambda model, **more: ISpaSP(model, X[:2], budget={"params": 0.6}, **more).run(X),
        lambda model, **more: CurvatureIHT(model, 0.5, **more).run(X),
    ],
    ids=["ISpaSP", "budget", "CurvatureIHT"],
)
def test_results_on_disk_have_the_same_bits(run, tmp_path) -> None:
    model = net()
    plain, kept = run(model), run(model, offload_dir=tmp_path)
    for one, other in zip(plain.model.parameters(), kept.model.parameters(), strict=True):
        assert torch.equal(one, other)
    sa.save(kept, tmp_path / "saved")
    again = sa.load(tmp_path / "saved", net())
    assert torch.equal(again.eval()(X), plain.model.eval()(X))
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_weights_of_files_are_mapped(tmp_path) -> None:
    from safetensors.torch import save_file

    model = net()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    with torch.device("meta"):
        empty = net()
    with pytest.raises(sa.CompactError, match=r"0.weight: it has no values .*sa.map_weights\(model, folder\)"):
        ISpaSP(empty, X[:2]).run(X)
    with pytest.raises(ValueError, match=r"0: its weight has no values yet .*sa.map_weights\(model, folder\)"):
        CurvatureIHT(empty, 0.5).run(X)
    with pytest.raises(sa.CompactError, match=r"0.weight: it has no values"):
        sa.compact(empty, X[:2])
    assert sa.map_weights(empty, tmp_path) is empty
    assert torch.equal(empty(X), model(X))
    results = [ISpaSP(one, X[:2], offload_dir=tmp_path).run(X).model(X) for one in (model, empty)]
    assert torch.equal(*results)
    with torch.no_grad():
        empty[0].weight.zero_()  # changes stay in memory
    assert torch.equal(sa.map_weights(empty, tmp_path / "model.safetensors")(X), model(X))


def test_what_cannot_be_mapped_is_refused_by_name(tmp_path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match=r"source: expected a safetensors file or a folder"):
        sa.map_weights(net(), tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"source: expected model.safetensors or"):
        sa.map_weights(net(), tmp_path)
    save_file({"0.weight": torch.zeros(3, 3)}, tmp_path / "model.safetensors")
    model = net()
    before = model[0].weight
    with pytest.raises(ValueError, match=r"source: 0.weight: expected shape \[48, 32\], got \[3, 3\]"):
        sa.map_weights(model, tmp_path)
    assert model[0].weight is before
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"source: expected 0.bias, which has no values yet, in"):
        sa.map_weights(empty, tmp_path)
    assert empty[0].weight.is_meta


def test_what_no_file_has_is_named(tmp_path) -> None:
    """Nothing keeps random values without a word: files of another model, or of a part, or with a prefix."""
    from safetensors.torch import save_file

    model = net()
    state = model.state_dict()
    save_file({f"encoder.{name}": tensor for name, tensor in state.items()}, tmp_path / "prefixed.safetensors")
    with pytest.raises(ValueError, match=r"such as 0\.weight; .*prefixed.* has none of them, but encoder\.0\.bias"):
        sa.map_weights(model, tmp_path / "prefixed.safetensors")
    save_file({"0.weight": state["0.weight"] + 1, "0.bias": state["0.bias"]}, tmp_path / "part.safetensors")
    model.register_buffer("computed", torch.ones(2), persistent=False)  # no file ever has it
    with pytest.warns(UserWarning, match=r"4 of 7 tensors are not in the files .*: 2\.weight, 2\.bias, 3\.weight"):
        sa.map_weights(model, tmp_path / "part.safetensors")
    assert torch.equal(model[0].weight, state["0.weight"] + 1)
    assert torch.equal(model[2].weight, state["2.weight"])


def test_a_hugging_face_model_is_mapped_and_pruned(tmp_path) -> None:
    pytest.importorskip("transformers")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True)
    model, ids = LlamaForCausalLM(config).to(torch.bfloat16).eval(), torch.arange(32).reshape(4, 8)
    model.save_pretrained(tmp_path / "dense", max_shard_size="50KB")
    with torch.device("meta"):
        empty = LlamaForCausalLM(config).eval()
    mapped = sa.map_weights(empty, tmp_path / "dense")
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.bfloat16).eval()
    with torch.no_grad():
        assert torch.equal(mapped(ids).logits, loaded(ids).logits)
    small = ISpaSP(mapped, ids[:1], offload_dir=tmp_path, uniform=True).run({"input_ids": ids}).model
    assert {parameter.dtype for parameter in small.parameters()} == {torch.bfloat16}
    small.save_pretrained(tmp_path / "small")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "small", dtype=torch.bfloat16).eval()
    with torch.no_grad():
        assert torch.equal(again(ids).logits, small(ids).logits)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc/self/status")
def test_copies_in_files_take_no_memory(tmp_path) -> None:
    def anonymous() -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) << 10

    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(8))).eval()  # 32 MB
    copy_model(nn.Linear(4, 4))
    before = anonymous()
    with copies_in(tmp_path):
        copies = [copy_model(model) for _ in range(3)]
    assert anonymous() - before < 16 << 20 < 3 * sum(p.nbytes for p in model.parameters())
    assert torch.equal(copies[2][7].weight, model[7].weight)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e25])
def test_moments_taken_in_place_have_the_same_bits(centred: bool, scale: float, monkeypatch) -> None:
    monkeypatch.setattr("sparse_accel.calibration.moments.PANEL_BYTES", 1 << 10)
    grams = []
    for _ in range(2):
        gram = Gram(2, 24, 5, centred=centred)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            columns, targets = (torch.randn(2, size, 40, generator=generator) for size in (24, 5))
            gram.update(scale * columns + 1, targets)
        gram.all_reduce_()
        grams.append(gram)
    wanted = grams[0].gram, grams[0].cross
    for one, other in zip(grams[1].take(), wanted, strict=True):
        assert torch.equal(one, other)
    a = torch.randn(90, 90)
    assert torch.equal(symmetrize_(a.clone()), (a + a.T) / 2)


def test_units_without_weights_are_those_with_them() -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(48, 400, dtype=torch.float64, generator=generator)
    weight = torch.randn(6, 48, dtype=torch.float64, generator=generator)
    gram = h @ h.T
    for options in ({"block": 1}, {"block": 4}, {"block": 2, "balance": 4}):
        chosen = gram_obs(gram, weight @ gram, weight, keep=0.5, **options)
        assert torch.equal(gram_obs_kept(gram, weight @ gram, weight, keep=0.5, **options), chosen.kept)
    fast = refit(gram, weight @ gram, weight, chosen.kept, block=2, semidefinite=True)
    assert torch.equal(fast, refit(gram, weight @ gram, weight, chosen.kept, block=2))
    low = h[:, :3] @ h[:, :3].T  # definite by its ridge alone, and not even so in float64
    at = torch.arange(8)
    ways = [refit(low, weight @ low, weight, at, ridge=1e-17, semidefinite=known) for known in (False, True)]
    assert torch.equal(*ways)


@pytest.mark.parametrize("scale", [1.0, 1e-80])
def test_another_target_costs_no_other_factorization(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(2, 12, 60, dtype=torch.float64, generator=generator) * scale
    weight = torch.randn(2, 3, 12, dtype=torch.float64, generator=generator)
    gram, kept = h @ h.mT, torch.tensor([0, 2, 3, 7, 9, 10])
    targets = [factor * weight @ gram for factor in (1.0, 3.0)]
    wanted = [refit(gram, cross, weight, kept, block=2, semidefinite=True) for cross in targets]
    calls = []
    original = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda *args, **more: calls.append(1) or original(*args, **more))
    again = Refit(gram, targets[0], weight, kept, block=2, semidefinite=True)
    for cross, one in zip(targets, wanted, strict=True):
        assert torch.equal(again(cross), one)
    assert len(calls) == 2  # one for each group
    with pytest.raises(ValueError, match="cross: expected finite"):
        again(targets[0] * float("nan"))
    with pytest.raises(ValueError, match="cross: expected shape"):
        again(targets[0][:1])


def test_matrices_are_narrowed_a_few_rows_at_a_time() -> None:
    module = sys.modules["sparse_accel.native.gram_obs"]
    matrix = torch.randn(2, 1100, 2, 1100, dtype=torch.float64)
    left = torch.arange(1100)[torch.rand(1100) < 0.6]
    new = module._narrowed(matrix, left, len(left) + 3)
    few = matrix[:, left][:, :, :, left]
    few[0, :, 1] = 0  # above the diagonal: nobody reads it
    assert torch.equal(new[:, : len(left), :, : len(left)], few)
    assert not bool(new[:, len(left) :].any() | new[:, :, :, len(left) :].any())


def test_folders_are_made(tmp_path) -> None:
    ISpaSP(net(), X[:2], offload_dir=os.fspath(tmp_path / "a" / "b")).run(X)
    assert (tmp_path / "a" / "b").is_dir()
