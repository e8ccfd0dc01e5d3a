"""Runs of CurvatureIHT that stop and go on, that several processes share, and that take a Transformer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from two_ranks import two_ranks

from sparse_accel.prune import CurvatureIHT, load_sparse
from sparse_accel.prune.unstructured.progress import Progress
from sparse_accel.removal.checkpoint import CheckpointError

RUN = """
import os, signal, sys
import torch
from torch import nn
from sparse_accel.prune import CurvatureIHT
from sparse_accel.prune.unstructured.progress import Progress

torch.manual_seed(0)
torch.set_num_threads(1)
net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 4))
x = torch.randn(64, 12)
put, puts = Progress.put, []

def put_and_die(self, *args):
    put(self, *args)
    puts.append(args[0])
    if len(puts) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

Progress.put = put_and_die
result = CurvatureIHT(net, 0.5, allocation="global", resume_dir=sys.argv[1]).run(list(x.split(8)))
result.save(sys.argv[3])
print(*puts)
"""


def run(*arguments: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", RUN, *map(str, arguments)], capture_output=True, text=True, env=environment, check=False
    )


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    stop = 3  # the allocation and two layers
    killed = run(tmp_path / "a", stop, tmp_path / "out")
    assert killed.returncode == -9, killed.stderr
    assert not (tmp_path / "out").exists()
    first = json.loads((tmp_path / "a" / "progress.json").read_text())
    assert len(first["done"]) == stop
    resumed = run(tmp_path / "a", 99, tmp_path / "out")
    assert resumed.returncode == 0, resumed.stderr
    assert not set(resumed.stdout.split()) & set(first["done"])
    whole = run(tmp_path / "b", 99, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    for name in ("out", "whole"):
        assert (tmp_path / name / "model.safetensors").exists()
    a, b = (load_sparse(tmp_path / name, _net()) for name in ("out", "whole"))
    for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert [layer.error for layer in a.report.layers] == [layer.error for layer in b.report.layers]


def _net() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 4)
    )


def test_a_record_of_another_run_is_refused(tmp_path):
    torch.manual_seed(0)
    net, x = nn.Linear(6, 4), torch.randn(20, 6)
    CurvatureIHT(net, 0.5, resume_dir=tmp_path).run(x)
    for other, data, key in [
        (CurvatureIHT(net, 0.6, resume_dir=tmp_path), x, "layers"),
        (CurvatureIHT(net, 0.5, iterations=21, resume_dir=tmp_path), x, "iterations"),
        (CurvatureIHT(nn.Linear(6, 4), 0.5, resume_dir=tmp_path), x, "weights"),
        (CurvatureIHT(net, 0.5, resume_dir=tmp_path), x + 1, "data"),
    ]:
        with pytest.raises(CheckpointError, match=rf"another run: {key}"):
            other.run(data)
    (tmp_path / "progress.json").write_text("not JSON")
    with pytest.raises(CheckpointError, match=r"progress\.json"):
        CurvatureIHT(net, 0.5, resume_dir=tmp_path).run(x)


def test_a_damaged_step_is_refused(tmp_path):
    torch.manual_seed(0)
    net, x = nn.Linear(6, 4), torch.randn(20, 6)
    CurvatureIHT(net, 0.5, resume_dir=tmp_path).run(x)
    (tmp_path / "step_0000.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="step_0000"):
        CurvatureIHT(net, 0.5, resume_dir=tmp_path).run(x)


def test_no_folder_no_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    progress = Progress(None, {})
    progress.put("a", {"x": torch.ones(2)}, {})
    assert progress.get("a", {"x": torch.ones(2)}, lambda notes: notes) is None
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- several processes


def _ranks(rank: int, folder: str, broken: bool) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
        x = torch.randn(60, 8)
        share = x[:24] if rank == 0 else x[24:]
        wrapped = nn.parallel.DistributedDataParallel(net)
        if broken:
            data = share if rank == 0 else share[:, :5]
            try:
                CurvatureIHT(wrapped, 0.5).run(data)
                message = "no error"
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
            Path(folder, f"error_{rank}").write_text(message)
            torch.distributed.barrier()  # or gloo may abort one rank while the other still reads from it
            return
        result = CurvatureIHT(wrapped, 0.5, refine=1, resume_dir=f"{folder}/resume").run(share.split(12))
        torch.save([p.detach() for p in result.model.parameters()], f"{folder}/weights_{rank}.pt")
        Path(folder, f"report_{rank}").write_text(json.dumps([layer.columns for layer in result.report.layers]))
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


def test_ranks_decide_alike(tmp_path):
    two_ranks(_ranks, str(tmp_path), False)
    a, b = (torch.load(tmp_path / f"weights_{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
    assert json.loads((tmp_path / "report_0").read_text()) == [60 - 12 - 12, 60 - 12 - 12]


def test_ranks_fail_together(tmp_path):
    two_ranks(_ranks, str(tmp_path), True)
    errors = [(tmp_path / f"error_{rank}").read_text() for rank in range(2)]
    assert "another rank failed" in errors[0]
    assert "shapes" in errors[1]


# ---------------------------------------------------------------- Hugging Face


@pytest.fixture(scope="module")
def bert():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    return transformers.BertModel(config).eval()


def tokens(count: int = 24, length: int = 10) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(0, 50, (count, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[::2, 6:] = 0
    return [{"input_ids": a, "attention_mask": b} for a, b in zip(ids.split(6), mask.split(6), strict=True)]


@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_bert(bert, sparsity):
    data = tokens()
    result = CurvatureIHT(bert, sparsity).run(data)
    assert len(result.report.layers) == 13
    assert result.report.sparsity == 0.5
    counted = int(sum(batch["attention_mask"].sum() for batch in data))
    assert result.report["encoder.layer.1.intermediate.dense"].columns == counted
    assert result.report["pooler.dense"].columns == 24
    plain = CurvatureIHT(bert, sparsity, activation_memory=0).run(data).model
    for a, b in zip(plain.parameters(), result.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bert_blocks_are_replayed(bert, caplog):
    from sparse_accel.calibration.data import Calibration
    from sparse_accel.calibration.survey import find_units
    from sparse_accel.prune.unstructured.selection import select_layers
    from sparse_accel.prune.unstructured.steps import find_steps, modules_of

    selection = select_layers(bert, None, (), 0.5)
    steps, order = find_steps(bert, Calibration(tokens()), selection)
    assert find_units(bert, modules_of([layer for step in steps for layer in step.layers]), order) == list(
        bert.encoder.layer
    )
    assert [len(step.layers) for step in steps] == [3, 1, 1, 1] * 2 + [1]
    with caplog.at_level("INFO", "sparse_accel"):
        CurvatureIHT(bert, 0.5).run(tokens())
    assert not any("as a whole" in message for message in caplog.messages)


def test_gpt2_conv1d():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    data = tokens()
    result = CurvatureIHT(model, "2:4").run(data)
    assert {layer.kind for layer in result.report.layers} == {"Conv1D"}
    assert len(result.report.layers) == 8
    assert result.report.left == {"lm_head": "skip", "transformer.wpe": "a table that is looked up in (Embedding)"}
    weight = result.model.transformer.h[0].attn.c_attn.weight  # [in, out]
    assert torch.equal((weight.t().reshape(48, 4, 4) != 0).sum(2), torch.full((48, 4), 2))
    with torch.no_grad():
        assert torch.isfinite(result.model(**data[0]).logits).all()
