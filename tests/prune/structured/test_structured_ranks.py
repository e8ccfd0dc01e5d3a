"""Two processes with half of the data each decide like one with all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structured_models as nets
import torch
import torch.distributed as dist
from two_ranks import two_ranks

from sparse_accel.prune import ISpaSP

CASES: list[dict[str, Any]] = [
    {"keep": 0.5},
    {"keep": 0.5, "method": "ispasp", "refit": "bias"},
    {"budget": {"flops": 0.5}, "refit": "skip"},
    {"budget": {"latency_ms": 1e9}},
]


def prune(data: torch.Tensor) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    model = nets.resnet()
    results = [ISpaSP(model, data[:1], **case).run(data, batch_size=8) for case in CASES]
    return [{"kept": result.kept, "state": result.model.state_dict()} for result in results]


def work(rank: int, directory: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2)
    images = nets.images(48)
    torch.save(prune(images[:32] if rank == 0 else images[32:]), f"{directory}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_decide_alike(tmp_path: Path) -> None:
    two_ranks(work, str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for case, one, two, alone in zip(CASES, *ranks, prune(nets.images(48)), strict=True):
        assert one["kept"] == two["kept"], case
        assert all(torch.equal(one["state"][name], two["state"][name]) for name in one["state"]), case
        assert one["kept"] == alone["kept"], case
        for name, tensor in alone["state"].items():
            torch.testing.assert_close(one["state"][name], tensor, rtol=1e-3, atol=1e-4, msg=f"{case} {name}")
