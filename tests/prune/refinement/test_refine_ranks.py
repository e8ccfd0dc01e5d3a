"""Two processes with half of the data each end with the same weights, nearer to the dense model's results."""

from __future__ import annotations

from pathlib import Path

import structured_models as nets
import torch
import torch.distributed as dist
from two_ranks import two_ranks

from sparse_accel.prune import ISpaSP, refine


def work(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    dense, images = nets.resnet(), nets.images(160)
    pruned = ISpaSP(dense, images[:1], keep=0.5, method="magnitude", refit=None).run(images).model
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2)
    own = images[:96] if rank == 0 else images[96:]
    refined = refine(pruned, dense, own, steps=8, batch_size=16, seed=rank)
    torch.save({"state": refined.model.state_dict(), "errors": refined.report.errors}, f"{directory}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_end_alike(tmp_path: Path) -> None:
    two_ranks(work, str(tmp_path))
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert one["errors"] == two["errors"]
    assert min(one["errors"].values()) < 0.9 * one["errors"][0]
    assert all(torch.equal(one["state"][name], two["state"][name]) for name in one["state"])
