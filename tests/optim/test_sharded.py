"""Two processes, each with a part of every weight, take the steps of one that has it all (DTensor, FSDP2)."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from two_ranks import two_ranks

import sparse_accel as sa

SHAPES = [(6, 4), (5, 7), (1, 6), (6, 4, 3, 3), (9,)]  # even, uneven, an empty part, a convolution, a bias
OPTIMIZERS: list[tuple[Any, dict[str, Any]]] = [
    (sa.RMDA, {"lr": 0.3, "momentum": 0.4}),
    (sa.RMDA, {"lr": 0.3, "momentum": 1.0, "weight_decay": 0.1}),
    (sa.ProxSGD, {"lr": 0.3, "rho": 0.5}),
    (sa.RAMDA, {"lr": 0.1, "momentum": 0.4}),
    (sa.ProxAdamW, {"lr": 0.05}),
]
IN_METRIC = (sa.RAMDA, sa.ProxAdamW)
PENALTIES = [
    sa.GroupLasso(0.05, by="input"),
    sa.GroupLasso(0.05, by="output"),
    sa.GroupLasso(0.05, by="kernel"),
    sa.L1(0.05),
    sa.GroupL0(0.01, by="input"),
    sa.SparseGroupLasso(0.05, l1=0.02, by="input"),
    sa.Sum(sa.GroupLasso(0.05, by="output", l2=0.1), sa.GroupLasso(0.02, by="kernel"), sa.NonNegative()),
    None,
]


def randn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def trajectories(mesh: Any, *dims: int | None, few: bool = False) -> None:
    """Every optimizer, penalty and shape: parameters, proximal iterates and penalties of both ways are the same.

    Args:
        mesh: of processes.
        dims: for each of its dimensions the one of the parameters that is sharded along it; None: replicated.
        few: RMDA and RAMDA under two penalties alone.
    """
    cases = (OPTIMIZERS[::3], PENALTIES[:2]) if few else (OPTIMIZERS, PENALTIES)
    for (kind, options), penalty in itertools.product(*cases):
        case = f"{kind.__name__} {options} {penalty} dims {dims}"
        if kind in IN_METRIC and isinstance(penalty, sa.Sum):
            continue  # groups in groups, in no metric
        plain = [nn.Parameter(randn(shape, i)) for i, shape in enumerate(SHAPES)]
        placed = [[Replicate() if dim is None else Shard(min(dim, p.dim() - 1)) for dim in dims] for p in plain]
        parts = [nn.Parameter(distribute_tensor(p.detach(), mesh, at)) for p, at in zip(plain, placed, strict=True)]
        ones, twos = kind(plain, penalty=penalty, **options), kind(parts, penalty=penalty, **options)
        for step in range(3):
            for i, (p, part) in enumerate(zip(plain, parts, strict=True)):
                p.grad = randn(p.shape, 100 * step + i)
                # As autograd may leave it: sharded like the parameter, or sharded otherwise.
                at = placed[i] if step % 2 else [Replicate()] * len(dims)
                part.grad = distribute_tensor(p.grad, mesh, at)
            ones.step()
            twos.step()
            for p, part in zip(plain, parts, strict=True):
                torch.testing.assert_close(part.detach().full_tensor(), p.detach(), rtol=1e-12, atol=1e-13, msg=case)
        assert ones.penalty_value() == pytest.approx(twos.penalty_value(), abs=1e-10), case
        for p, part in zip(plain, parts, strict=True):
            for key, value in ones.state[p].items():
                assert isinstance(twos.state[part][key], DTensor) == (value.dim() > 0), case
                torch.testing.assert_close(whole(twos.state[part][key]), value, rtol=1e-12, atol=1e-13, msg=case)
        before = [part.detach().full_tensor() for part in parts]
        with twos.proximal_parameters(), ones.proximal_parameters():
            for p, part in zip(plain, parts, strict=True):
                torch.testing.assert_close(part.detach().full_tensor(), p.detach(), rtol=1e-12, atol=1e-13, msg=case)
        assert all(torch.equal(part.detach().full_tensor(), old) for part, old in zip(parts, before, strict=True)), case
        ones.finalize_()
        twos.finalize_()
        assert all(torch.equal(whole(q.detach()) == 0, p.detach() == 0) for p, q in zip(plain, parts, strict=True))


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 1, groups=2), nn.Flatten(), nn.Linear(6 * 4, 5), nn.Linear(5, 3)
    )


def fully_sharded(mesh: Any, folder: str) -> None:
    """FSDP2 on a real model, and its checkpoint in one process and back."""
    from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, load, save
    from torch.distributed.checkpoint import state_dict as dcp
    from torch.distributed.fsdp import fully_shard

    inputs = randn((4, 3, 4, 4), 0).float()
    penalty = sa.GroupLasso(0.1, by="output")
    models = [net(), net()]
    fully_shard(models[1][0], mesh=mesh)
    fully_shard(models[1], mesh=mesh)
    opts = [sa.RMDA(sa.param_groups(model, penalty), lr=0.5, momentum=0.5) for model in models]

    def train(model: nn.Module, opt: Any, steps: int) -> None:
        for _ in range(steps):
            opt.zero_grad()
            model(inputs).square().mean().backward()
            opt.step()

    def assert_same() -> None:
        for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(two.detach().full_tensor(), one.detach(), rtol=1e-5, atol=1e-6)

    for model, opt in zip(models, opts, strict=True):
        train(model, opt, 3)
    assert_same()
    opts[0].finalize_()
    opts[1].finalize_()
    for by in ("output", "input", "kernel", "element"):
        if by == "input":  # of the grouped convolution
            with pytest.raises(ValueError, match="sharded along its first dimension"):
                sa.sparsity(models[1], by=by)
        else:
            assert sa.sparsity(models[1], by=by) == sa.sparsity(models[0], by=by), by
    assert sa.sparsity(models[0], by="output").zero_groups > 0
    for model, opt in zip(models, opts, strict=True):
        opt.restart()
        train(model, opt, 2)

    state = dict(zip(("model", "optim"), dcp.get_state_dict(models[1], opts[1]), strict=True))
    save(state, storage_writer=FileSystemWriter(f"{folder}/dcp"))
    other = net(1)
    fully_shard(other, mesh=mesh)
    again = sa.RMDA(sa.param_groups(other, penalty), lr=0.5, momentum=0.5)
    fresh = dict(zip(("model", "optim"), dcp.get_state_dict(other, again), strict=True))
    load(fresh, storage_reader=FileSystemReader(f"{folder}/dcp"))
    dcp.set_state_dict(other, again, model_state_dict=fresh["model"], optim_state_dict=fresh["optim"])
    for p, q in zip(other.parameters(), models[1].parameters(), strict=True):
        assert torch.equal(p.detach().full_tensor(), q.detach().full_tensor())
    for model, opt in ((models[1], opts[1]), (other, again)):
        train(model, opt, 2)
    for p, q in zip(other.parameters(), models[1].parameters(), strict=True):
        assert torch.equal(p.detach().full_tensor(), q.detach().full_tensor())  # resumed to the same bits
    torch.save([p.detach().full_tensor() for p in other.parameters()], f"{folder}/after_{dist.get_rank()}.pt")


def from_one_process(mesh: Any, folder: str) -> None:
    """A checkpoint that one process wrote (:func:`in_one_process`) goes on in two."""
    from torch.distributed.checkpoint import FileSystemReader, load
    from torch.distributed.checkpoint import state_dict as dcp
    from torch.distributed.fsdp import fully_shard

    model = net(1)
    fully_shard(model, mesh=mesh)
    opt = sa.RMDA(sa.param_groups(model, sa.GroupLasso(0.1, by="output")), lr=0.5, momentum=0.5)
    state = dict(zip(("model", "optim"), dcp.get_state_dict(model, opt), strict=True))
    load(state, storage_reader=FileSystemReader(f"{folder}/one"))
    dcp.set_state_dict(model, opt, model_state_dict=state["model"], optim_state_dict=state["optim"])
    steps_of(model, opt, 2)
    for p, expected in zip(model.parameters(), torch.load(f"{folder}/one.pt", weights_only=True), strict=True):
        torch.testing.assert_close(p.detach().full_tensor(), expected, rtol=1e-5, atol=1e-6)


def steps_of(model: nn.Module, opt: Any, count: int) -> None:
    for _ in range(count):
        opt.zero_grad()
        model(randn((4, 3, 4, 4), 0).float()).square().mean().backward()
        opt.step()


def in_one_process(folder: Path) -> None:
    from torch.distributed.checkpoint import FileSystemWriter, save
    from torch.distributed.checkpoint import state_dict as dcp

    model = net()
    opt = sa.RMDA(sa.param_groups(model, sa.GroupLasso(0.1, by="output")), lr=0.5, momentum=0.5)
    steps_of(model, opt, 3)
    state = dict(zip(("model", "optim"), dcp.get_state_dict(model, opt), strict=True))
    save(state, storage_writer=FileSystemWriter(folder / "one"), no_dist=True)
    steps_of(model, opt, 2)
    torch.save([p.detach() for p in model.parameters()], folder / "one.pt")


def targets(mesh: Any) -> None:
    """The strength that is found for a share is that of one process, wherever the groups lie."""
    for kind, by, dim in itertools.product((sa.RMDA, sa.ProxSGD, sa.RAMDA), ("input", "output"), (0, 1)):
        plain = [nn.Parameter(randn(shape, i)) for i, shape in enumerate([(8, 12), (5, 7), (6, 4, 3, 3)])]
        parts = [nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(dim)])) for p in plain]
        opts = [kind(params, lr=0.1, penalty=sa.GroupLasso(target=0.5, by=by, ramp=5)) for params in (plain, parts)]
        for step in range(12):
            for i, (p, part) in enumerate(zip(plain, parts, strict=True)):
                p.grad = p.detach() + randn(p.shape, 10 * step + i)
                part.grad = distribute_tensor(p.grad, mesh, [Shard(dim)])
            for opt in opts:
                opt.step()
        one, two = (opt.param_groups[0]["penalty"]["strength"] for opt in opts)
        assert 0 < one == pytest.approx(two, rel=1e-9)
        assert sa.max_strength(opts[0]) == pytest.approx(sa.max_strength(opts[1]), rel=1e-9)
        found: list[Any] = [None, None]
        dist.all_gather_object(found, two)
        assert found[0] == found[1]


def masks_of_parts(mesh: Any, folder: str) -> None:
    """Zeros stay under any optimizer, and masks are saved whole."""
    for dim in (0, 1):
        plain, parts = nn.Linear(6, 5).double(), nn.Linear(6, 5).double()
        with torch.no_grad():
            for layer in (plain, parts):
                layer.weight.copy_(randn((5, 6), 0) * (randn((5, 6), 1) > 0))
                layer.bias.zero_()
        parts.weight = nn.Parameter(distribute_tensor(parts.weight.detach(), mesh, [Shard(dim)]))
        for layer in (plain, parts):
            masks = sa.prune.Masks(layer)
            assert abs(masks.sparsity - float((plain.weight == 0).double().mean())) < 1e-12
            opt = torch.optim.AdamW(layer.parameters(), lr=0.1)
            with masks.apply_to(opt):
                for step in range(3):
                    grad = randn((5, 6), 2 + step)
                    layer.weight.grad = (
                        distribute_tensor(grad, mesh, [Shard(0)])
                        if layer is parts and dim == 0
                        else (distribute_tensor(grad, mesh, [Replicate()]) if layer is parts else grad)
                    )
                    opt.step()
        torch.testing.assert_close(parts.weight.detach().full_tensor(), plain.weight.detach(), rtol=1e-12, atol=1e-13)
        assert (plain.weight == 0).any()
        masks.save(f"{folder}/masks{dim}")
        whole_again = sa.prune.Masks.load(f"{folder}/masks{dim}", plain)
        assert torch.equal(whole_again["weight"], masks["weight"].full_tensor())
        sharded_again = sa.prune.Masks.load(f"{folder}/masks{dim}", parts)
        assert torch.equal(sharded_again["weight"].to_local(), masks["weight"].to_local())


def rigl_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 4, 9), nn.ReLU(), nn.Linear(9, 1))


def rigl_steps(model: nn.Module, opt: Any, steps: range) -> None:
    for step in steps:
        opt.zero_grad()
        for half in (0, 1):  # gradients of two passes count together
            model(randn((6, 1, 4, 4), 2 * step + half).float()).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        opt.step()


def rigl_of_parts(mesh: Any, folder: str) -> None:
    """FSDP2: the masks of one process, exchange by exchange, and the same bits after a checkpoint."""
    from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, load, save
    from torch.distributed.checkpoint import state_dict as dcp
    from torch.distributed.fsdp import fully_shard

    def of_parts(seed: int) -> tuple[nn.Module, Any, Any]:
        model = rigl_net(seed)
        fully_shard(model[3], mesh=mesh)
        fully_shard(model, mesh=mesh)
        opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
        # Seeds differ: that of the first process holds.
        return model, opt, sa.RigL(model, opt, 0.6, total_steps=20, every=3, seed=7 + dist.get_rank())

    plain = rigl_net()
    one = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    rigl = sa.RigL(plain, one, 0.6, total_steps=20, every=3, seed=7, process_group=dist.new_group([dist.get_rank()]))
    parts, two, sharded = of_parts(0)
    for step in range(8):
        rigl_steps(plain, one, range(step, step + 1))
        rigl_steps(parts, two, range(step, step + 1))
        for name, mask in rigl.masks.items():
            assert torch.equal(sharded.masks[name].full_tensor(), mask), (step, name)
            weight = parts.get_parameter(name).detach().full_tensor()
            torch.testing.assert_close(weight, plain.get_parameter(name).detach(), rtol=1e-5, atol=1e-6)
            assert not weight[~mask].any()
    assert rigl.exchanged == sharded.exchanged > 0
    assert sharded.densities == rigl.densities
    assert sharded.sparsity == rigl.sparsity

    other, three, again = of_parts(1)
    states = [
        {**dict(zip(("model", "optim"), dcp.get_state_dict(model, opt), strict=True)), "rigl": held}
        for model, opt, held in ((parts, two, sharded), (other, three, again))
    ]
    save(states[0], storage_writer=FileSystemWriter(f"{folder}/rigl"))
    load(states[1], storage_reader=FileSystemReader(f"{folder}/rigl"))
    dcp.set_state_dict(other, three, model_state_dict=states[1]["model"], optim_state_dict=states[1]["optim"])
    for model, opt in ((parts, two), (other, three)):
        rigl_steps(model, opt, range(8, 14))
    assert again.step_count == 14
    assert again.exchanged == sharded.exchanged
    for p, q in zip(parts.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.detach().to_local(), q.detach().to_local())
    whole_masks = {name: mask.full_tensor() for name, mask in sharded.masks.items()}
    assert all(torch.equal(again.masks[name].full_tensor(), mask) for name, mask in whole_masks.items())
    state = sharded.state_dict()
    with pytest.raises(ValueError, match="expected shape"):
        again.load_state_dict({**state, "masks": {**state["masks"], "0.weight": torch.ones(2, dtype=torch.bool)}})
    rigl.load_state_dict({**state, "masks": whole_masks})  # and in a model that is not sharded
    assert rigl.step_count == 14


def choices_of_parts(mesh: Any) -> None:
    """The largest of a tensor in parts are those of the whole, ties by place, float32 and float64."""
    from sparse_accel.prune.unstructured.exchange.choice import largest_of

    for shape, dtype, at in itertools.product(((7, 5), (1, 6), (4, 3, 2)), (torch.float32, torch.float64), (0, 1)):
        scores = (randn(shape, 0).abs() * 2).round().to(dtype)  # many ties
        scores.view(-1)[0] = 1e-42
        among = randn(shape, 1) > -0.5
        parts = distribute_tensor(scores, mesh, [Shard(at)])
        own = distribute_tensor(among, mesh, [Shard(at)])
        for count in range(int(among.sum()) + 1):
            found = largest_of(parts.to_local(), own.to_local(), count, parts)
            expected = distribute_tensor(largest_of(scores, among, count, scores), mesh, [Shard(at)])
            assert torch.equal(found, expected.to_local()), (shape, dtype, at, count)


def rigl_tensor_parallel(mesh: Any) -> None:
    """Gradients that autograd accumulates into DTensors."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    parts = parallelize_module(copy.deepcopy(plain), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    rigls, group = [], dist.new_group([dist.get_rank()])
    for model in (plain, parts):
        opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        rigls.append(sa.RigL(model, opt, 0.5, total_steps=20, every=2, process_group=group))
        for step in range(7):
            opt.zero_grad()
            for half in (0, 1):
                model(randn((5, 6), 2 * step + half)).square().mean().backward()
            opt.step()
    assert rigls[0].exchanged == rigls[1].exchanged > 0
    for name, mask in rigls[0].masks.items():
        assert torch.equal(rigls[1].masks[name].full_tensor(), mask)
    for p, q in zip(plain.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(whole(q.detach()), p.detach(), rtol=1e-11, atol=1e-12)


def rigl_of_ranks() -> None:
    """DDP, each rank with its own data and another seed for the first masks: all end with the same bits."""
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 3))
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    wrapped = nn.parallel.DistributedDataParallel(model)
    rigl = sa.RigL(wrapped, opt, 0.7, total_steps=20, every=3, seed=rank)
    for step in range(10):
        opt.zero_grad()
        wrapped(randn((16, 8), 100 * rank + step).float()).square().mean().backward()
        opt.step()
    assert rigl.exchanged > 0
    found: list[Any] = [None, None]
    mine = [*rigl.state_dict()["masks"].values(), *(p.detach() for p in model.parameters())]
    dist.all_gather_object(found, mine)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def tensor_parallel(mesh: Any) -> None:
    """Columns of the first layer, rows of the second, by torch's own plan."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    inputs = randn((5, 6), 1)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    parts = parallelize_module(copy.deepcopy(plain), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    for penalty in (sa.GroupLasso(0.05, by="input"), sa.GroupLasso(0.05, by="output")):
        opts = [sa.RMDA(sa.param_groups(model, penalty), lr=0.3, momentum=0.5) for model in (plain, parts)]
        for _ in range(3):
            for model, opt in zip((plain, parts), opts, strict=True):
                opt.zero_grad()
                model(inputs).square().mean().backward()
                opt.step()
        for p, q in zip(plain.parameters(), parts.parameters(), strict=True):
            torch.testing.assert_close(whole(q.detach()), p.detach(), rtol=1e-12, atol=1e-13)
        assert sa.sparsity(plain, by=penalty.by) == sa.sparsity(parts, by=penalty.by)


def refusals(mesh: Any) -> None:
    weight = nn.Parameter(distribute_tensor(randn((4, 4), 0), mesh, [Shard(0)]))
    opt = sa.RMDA([weight])
    weight.grad = None
    other = nn.Parameter(distribute_tensor(randn((4, 4), 0).to(torch.complex128), mesh, [Shard(0)]))
    other.grad = torch.zeros_like(other)
    bad = sa.RMDA([other])
    with pytest.raises(RuntimeError, match="sharded complex"):
        bad.step()
    with pytest.raises(sa.UnsupportedModelError, match="DTensor"):
        sa.compact(nn.Sequential(_Held(weight)), weight)
    with pytest.raises(ValueError, match="lie across several"):
        sa.GroupLasso(0.1, by="input").prox_(weight)
    low_rank = sa.RMDA([nn.Parameter(weight.detach().clone())])
    low_rank.param_groups[0]["penalty"] = sa.NuclearNorm(0.1)
    low_rank.param_groups[0]["params"][0].grad = weight.detach()
    with pytest.raises(RuntimeError, match="'nuclear_norm' needs all of a weight"):
        low_rank.step()
    for refused in (sa.NuclearNorm(0.1).value, sa.NuclearNorm(0.1).prox_):
        with pytest.raises(ValueError, match="NuclearNorm needs all of a weight"):
            refused(weight)
    plain = nn.Parameter(torch.ones(4, 4))
    plain.grad = torch.ones(4, 4)
    donor = sa.RMDA([plain])
    donor.step()
    with pytest.raises(RuntimeError, match=r"torch\.distributed\.checkpoint\.state_dict"):
        opt.load_state_dict(donor.state_dict())
    assert not opt.state
    opt.step()
    assert not opt.state[weight]


class _Held(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for dim in (0, 1):
        trajectories(mesh, dim)
    for shape in ((2, 1), (1, 2)):  # HSDP
        trajectories(init_device_mesh("cpu", shape), None, 0, few=True)
    tensor_parallel(mesh)
    refusals(mesh)
    fully_sharded(mesh, folder)
    from_one_process(mesh, folder)
    targets(mesh)
    masks_of_parts(mesh, folder)
    rigl_of_ranks()
    rigl_of_parts(mesh, folder)
    choices_of_parts(mesh)
    rigl_tensor_parallel(mesh)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # DCP in one process says so
def test_two_processes_step_like_one(tmp_path: Path) -> None:
    from torch.distributed.checkpoint import FileSystemReader, load
    from torch.distributed.checkpoint import state_dict as dcp

    in_one_process(tmp_path)
    two_ranks(work, str(tmp_path))
    model = net(1)  # what two processes wrote, in one
    opt = sa.RMDA(sa.param_groups(model, sa.GroupLasso(0.1, by="output")), lr=0.5, momentum=0.5)
    state = dict(zip(("model", "optim"), dcp.get_state_dict(model, opt), strict=True))
    load(state, storage_reader=FileSystemReader(tmp_path / "dcp"), no_dist=True)
    dcp.set_state_dict(model, opt, model_state_dict=state["model"], optim_state_dict=state["optim"])
    steps_of(model, opt, 2)
    for p, expected in zip(model.parameters(), torch.load(tmp_path / "after_0.pt", weights_only=True), strict=True):
        torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-6)
    one, two = (torch.load(tmp_path / f"after_{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(*pair) for pair in zip(one, two, strict=True))


@pytest.mark.parametrize("use_orig_params", [True, False])
def test_a_group_penalty_on_flat_parameters_is_refused(tmp_path: Path, use_orig_params: bool) -> None:
    """FSDP1: 1-D shards, in which no group can be seen; silence would be training without a penalty."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = FullyShardedDataParallel(
            nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)),
            use_orig_params=use_orig_params,
            device_id=torch.device("cpu"),
        )
        for penalty in (sa.GroupLasso(0.1), sa.L1(0.1)):
            opt = sa.RMDA(model.parameters(), lr=0.1, penalty=penalty)
            model(torch.randn(3, 4)).square().mean().backward()
            before = [p.detach().clone() for p in model.parameters()]
            if penalty.by == "element":
                opt.step()
                continue
            with pytest.raises(RuntimeError, match="fully_shard"):
                opt.step()
            assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
            assert not opt.state
        with pytest.raises(ValueError, match="its parameters are flat"):
            sa.param_groups(model, sa.GroupLasso(0.1))
    finally:
        dist.destroy_process_group()
