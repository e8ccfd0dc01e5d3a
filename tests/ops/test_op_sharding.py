"""Ops on DTensors: two processes get what one gets, or a refusal that names the op."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from two_ranks import two_ranks

import sparse_accel as sa
from sparse_accel import ops
from sparse_accel._op_sharding import local_layout
from sparse_accel.groups import group_layout

SHAPES = [(6, 4), (5, 7), (1, 6), (6, 4, 3, 3)]
BY = {"input": {1}, "output": {0}, "kernel": {0, 1}, "element": {0, 1}}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(tensor: Any) -> Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.full_tensor()


def scores_and_operators(mesh: Any, placements: list[Any]) -> None:
    dims = {one.dim for one in placements if isinstance(one, Shard)}
    for by, apart in BY.items():
        plain = [randn(*shape, seed=i) for i, shape in enumerate(SHAPES)]
        plain.append(randn(6, 4, 3, 3, seed=9).to(memory_format=torch.channels_last))
        layouts = [group_layout(x, by) for x in plain]
        parts = [distribute_tensor(x, mesh, placements) for x in plain]
        for kind in ("l2", "l2sq", "l1", "sum", "amax"):
            found = ops.group_score(parts, layouts, kind)
            for one, other in zip(found, ops.group_score(plain, layouts, kind), strict=True):
                torch.testing.assert_close(whole(one), other, rtol=1e-12, atol=1e-12)
        if not dims <= apart:
            before = [whole(part) for part in parts]
            with pytest.raises(RuntimeError, match="prox_: groups of the DTensor"):
                ops.prox_(parts, layouts, [0.3] * len(parts))
            assert all(torch.equal(whole(part), old) for part, old in zip(parts, before, strict=True))
            continue
        found = ops.prox_(parts, layouts, [0.3] * len(parts), return_value=True)
        expected = ops.prox_(plain, layouts, [0.3] * len(parts), return_value=True)
        torch.testing.assert_close(whole(found), expected, rtol=1e-12, atol=1e-12)
        for one, other in zip(parts, plain, strict=True):
            torch.testing.assert_close(whole(one), other, rtol=1e-12, atol=1e-12)
        steps(plain, parts, layouts, mesh, placements)


def steps(plain: list[Tensor], parts: list[Any], layouts: list[Any], mesh: Any, placements: list[Any]) -> None:
    """The fused steps, called as ops."""
    numbers = {"prox": "soft", "strengths": [0.1] * len(plain), "lr": 0.1}
    for op, lists, more in (
        (ops.prox_sgd_step_, 3, {"rho": 0.5}),
        (ops.rmda_step_, 4, {"momentum": 0.5}),
        (ops.ramda_step_, 5, {"momentum": 0.5, "eps": 1e-3}),
        (ops.prox_adamw_step_, 4, {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}),
    ):
        ones = [[x.clone(memory_format=torch.preserve_format) for x in plain] for _ in range(lists)]
        ones[3:4] = [[x.abs() for x in values] for values in ones[3:4]]
        twos = [[distribute_tensor(x, mesh, placements) for x in values] for values in ones]
        twos[1] = [
            distribute_tensor(x, mesh, [Replicate()] * mesh.ndim) for x in ones[1]
        ]  # gradients may lie otherwise
        for values in (ones, twos):
            clocks = [[torch.zeros(()) for _ in plain]]
            if op not in (ops.prox_sgd_step_, ops.prox_adamw_step_):
                clocks.append([torch.zeros((), dtype=torch.float64) for _ in plain])
            op(*values, *clocks, layouts, **numbers, **more)
        for number in (0, *range(2, lists)):
            for one, two in zip(ones[number], twos[number], strict=True):
                torch.testing.assert_close(whole(two), one, rtol=1e-12, atol=1e-12)


def thresholds(mesh: Any) -> None:
    x = randn(6, 8)
    for dim, options in (
        (0, {"k": 3, "by": "row"}),
        (0, {"k": (2, 4)}),
        (0, {"k": 3, "by": "within", "layout": group_layout(x, "output")}),
        (1, {"k": 3, "by": "within", "layout": group_layout(x, "input")}),
        (0, {"k": 3, "by": "row", "scale": randn(8, seed=2).abs()}),
    ):
        plain, part = x.clone(), distribute_tensor(x, mesh, [Shard(dim)])
        kept = ops.topk_threshold_(plain, None, **options)
        found = ops.topk_threshold_(part, None, **options)
        assert torch.equal(whole(found), kept)
        assert torch.equal(whole(part), plain)
        plain, part = x.clone(), distribute_tensor(x, mesh, [Shard(dim)])
        if "scale" not in options:
            scores = randn(6, 8, seed=3)
            kept = ops.topk_threshold_(plain, scores, **options)
            found = ops.topk_threshold_(part, distribute_tensor(scores, mesh, [Replicate()]), **options)
            assert torch.equal(whole(found), kept)
    part = distribute_tensor(x, mesh, [Shard(1)])
    for options, text in (
        ({"k": 3}, "topk_threshold_: by='tensor': the largest of all"),
        ({"k": 3, "by": "row"}, "topk_threshold_: rows"),
        ({"k": (2, 4)}, "topk_threshold_: blocks of n:m"),
        ({"k": 3, "by": "within", "layout": group_layout(x, "output")}, "topk_threshold_: groups"),
    ):
        with pytest.raises(RuntimeError, match=text):
            ops.topk_threshold_(part, None, **options)
    assert torch.equal(whole(part), x)


def replicated_or_refused(mesh: Any) -> None:
    w, h = randn(3, 4), randn(8, 4)
    h = h.t() @ h
    mask = randn(3, 4, seed=1) > 0
    everywhere = [distribute_tensor(value, mesh, [Replicate()]) for value in (w, mask, h)]
    torch.testing.assert_close(whole(ops.masked_cg(*everywhere, 3)), ops.masked_cg(w, mask, h, 3))
    everywhere[0] = distribute_tensor(w, mesh, [Shard(0)])
    with pytest.raises(RuntimeError, match="masked_cg: expected replicated tensors"):
        ops.masked_cg(*everywhere, 3)
    scores = distribute_tensor(randn(6), mesh, [Replicate()])
    assert torch.equal(whole(ops.group_topk(scores, 2)), ops.group_topk(randn(6), 2))
    with pytest.raises(RuntimeError, match="group_topk: expected replicated tensors"):
        ops.group_topk(distribute_tensor(randn(6), mesh, [Shard(0)]), 2)
    partial = DTensor.from_local(w, mesh, [Partial()])
    with pytest.raises(RuntimeError, match="partial sum"):
        ops.prox_([partial], [group_layout(w, "element")], [0.1])


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for dim in (0, 1):
        scores_and_operators(mesh, [Shard(dim)])
    scores_and_operators(init_device_mesh("cpu", (1, 2)), [Replicate(), Shard(0)])
    thresholds(mesh)
    replicated_or_refused(mesh)
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_get_what_one_gets(tmp_path: Path) -> None:
    two_ranks(work, str(tmp_path))


def test_layouts_of_parts() -> None:
    """Against the layouts that the parts themselves have."""
    for shape in ((6, 4), (6, 4, 3, 3)):
        for form in (torch.contiguous_format, torch.channels_last)[: 1 + (len(shape) == 4)]:
            x = torch.empty(shape, device="meta").to(memory_format=form)
            for by, apart in BY.items():
                for dim in (0, 1):
                    part = x.narrow(dim, 0, 2).clone(memory_format=form)
                    found = local_layout(group_layout(x, by), x.shape, x.stride(), part.shape, part.stride(), {dim})
                    assert found is not None
                    layout, across = found
                    assert (across == set()) == (dim in apart)
                    expected = group_layout(part, by)
                    assert layout[1] * layout[3] == expected.num_groups
                    assert layout[0] * layout[2] == expected.group_size
    grouped = sa.Grouping("input", conv_groups=2)
    x = torch.empty(6, 4, 3, device="meta")
    assert local_layout(group_layout(x, grouped), x.shape, x.stride(), (3, 4, 3), (12, 3, 1), {0}) is None
    found = local_layout(group_layout(x, grouped), x.shape, x.stride(), (6, 2, 3), (6, 3, 1), {1})
    assert found == ((3, 2, 3, 2), set())
