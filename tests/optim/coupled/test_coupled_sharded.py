"""Groups over several tensors whose parts lie on two processes: the steps of one process that has them all."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterable
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
from sparse_accel.groups.coupled import CoupledGroups, CoupledWidth, Member

STEPS: dict[str, dict[str, Any]] = {
    "RMDA": {"lr": 0.3, "momentum": 0.4, "weight_decay": 0.01},
    "RAMDA": {"lr": 0.1, "momentum": 0.4, "weight_decay": 0.01},
    "ProxSGD": {"lr": 0.1, "rho": 0.3, "weight_decay": 0.01},
    "ProxAdamW": {"lr": 0.05},
}


def chain(seed: int = 0) -> nn.Sequential:
    """Norms, a layer that makes and reads, and one of a single row, whose second part is empty."""
    torch.manual_seed(seed)
    layers = [nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 1)]
    return nn.Sequential(*layers).double()


class ByHand(nn.Module):
    """Three heads of 2 in one weight with a row of nobody's, and two stacked experts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        shapes = {"qkv": (19, 5), "out": (5, 6), "up": (2, 4, 5), "down": (2, 5, 4)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, dtype=torch.float64)))

    @staticmethod
    def groups() -> CoupledGroups:
        at = tuple(first + 2 * head + i for head in range(3) for first in (0, 6, 12) for i in range(2))
        heads = (Member("qkv", 0, 6, at), Member("out", 1, 2))
        experts = (Member("up", 1, 1, experts=2), Member("down", 2, 1, experts=2))
        return CoupledGroups(
            [CoupledWidth("heads", "heads", 3, 40, heads), CoupledWidth("experts", "experts", 8, 10, experts)]
        )


@functools.cache
def cases() -> list[tuple[nn.Module, CoupledGroups]]:
    model = chain()
    return [(model, sa.coupled_groups(model, torch.zeros(2, 5).double())), (ByHand(), ByHand.groups())]


def set_grads(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_same(parts: nn.Module, plain: nn.Module, case: str, rtol: float = 1e-11) -> None:
    for (name, p), q in zip(plain.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(whole(q.detach()), p.detach(), rtol=rtol, atol=rtol, msg=f"{case} {name}")


def trajectories(mesh: Any, *dims: int | None, mixed: bool = False, names: Iterable[str] = STEPS) -> None:
    """Optimizers and penalties on both models.

    Args:
        mesh: of processes.
        dims: for each of its dimensions the one of the parameters that is sharded along it; None: replicated.
        names: of optimizers.
        mixed: whether every third parameter stays plain, and every other is sharded along the other dimension.
    """
    for (model, groups), (name, options) in itertools.product(cases(), ((name, STEPS[name]) for name in names)):
        free = copy.deepcopy(model)
        opt = getattr(sa, name)(sa.param_groups(free, sa.GroupLasso(0.0), coupled=groups), **options)
        for step in range(3):
            set_grads(free, step)
            opt.step()
        strength = (0.8 if "MDA" in name else 0.6) * sa.max_strength(opt)
        for penalty in (sa.GroupLasso(strength), sa.GroupL0(strength / 30))[: 2 if mixed else 1]:
            plain, parts = copy.deepcopy(model), copy.deepcopy(model)
            places: dict[str, Any] = {}
            for number, (key, param) in enumerate(list(parts.named_parameters())):
                last = param.dim() - 1
                at = [Replicate() if d is None else Shard(min(d ^ (mixed and number % 2), last)) for d in dims]
                places[key] = None if mixed and number % 3 == 2 else at
                if places[key] is not None:
                    owner = parts.get_submodule(key.rpartition(".")[0])
                    setattr(owner, key.rpartition(".")[2], nn.Parameter(distribute_tensor(param.detach(), mesh, at)))
            case = f"{name} {penalty} dims {dims} mixed {mixed}"
            opts = [
                getattr(sa, name)(sa.param_groups(one, penalty, coupled=groups), **options) for one in (plain, parts)
            ]
            zero = 0
            for step in range(4):
                set_grads(plain, step)
                for (key, p), q in zip(plain.named_parameters(), parts.parameters(), strict=True):
                    q.grad = p.grad.clone() if places[key] is None else distribute_tensor(p.grad, mesh, places[key])
                if step == 3 and hasattr(opts[0], "restart"):
                    for opt in opts:
                        opt.restart()
                for opt in opts:
                    opt.step()
                assert_same(parts, plain, case)
                if step == 1:
                    continue
                with opts[0].proximal_parameters(), opts[1].proximal_parameters():
                    assert_same(parts, plain, case)
                    assert opts[1].penalty_value() == pytest.approx(opts[0].penalty_value(), rel=1e-10), case
                    report = sa.sparsity(parts, groups)
                    assert report == sa.sparsity(plain, groups), case
                    zero += report.zero_groups
            if isinstance(penalty, sa.GroupLasso):
                assert sa.max_strength(opts[1]) == pytest.approx(sa.max_strength(opts[0]), rel=1e-9), case
                assert 0 < zero < 4 * groups.units, case
            for p, q in zip(plain.parameters(), parts.parameters(), strict=True):
                for key, value in opts[0].state[p].items():
                    held = opts[1].state[q][key]
                    assert isinstance(held, DTensor) == (isinstance(q, DTensor) and value.dim() > 0), case
                    torch.testing.assert_close(whole(held), value, rtol=1e-10, atol=1e-11, msg=case)


def train(model: nn.Module, opt: Any, steps: range) -> None:
    for step in steps:
        opt.zero_grad()
        inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        (model(inputs).square().mean() - inputs.mean()).square().backward()
        opt.step()


def mlp(seed: int = 0, hidden: int = 11) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 7), nn.Tanh(), nn.Linear(7, 2))


def sharded_model(mesh: Any, seed: int = 0) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    model = mlp(seed)
    fully_shard(model[0], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def fully_sharded(mesh: Any, folder: str) -> None:
    """FSDP2 in float32: a target, both iterates, and a run that goes on from its checkpoint with the same bits."""
    from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, load, save
    from torch.distributed.checkpoint import state_dict as dcp

    groups = sa.coupled_groups(mlp(), torch.zeros(1, 6))
    for kind, options in ((sa.RMDA, {"lr": 0.1, "momentum": 0.5}), (sa.RAMDA, {"lr": 0.02, "momentum": 0.5})):

        def optimizer(model: nn.Module, kind: Any = kind, options: Any = options, of: str = "groups") -> Any:
            penalty = sa.GroupLasso(target=0.4, of=of, ramp=8)
            return kind(sa.param_groups(model, penalty, coupled=groups), **options)

        plain, parts = mlp(), sharded_model(mesh)
        one, two = optimizer(plain), optimizer(parts)
        train(plain, one, range(10))
        train(parts, two, range(10))
        assert_same(parts, plain, kind.__name__, 1e-6)
        strengths = [opt.param_groups[0]["penalty"]["strength"] for opt in (one, two)]
        assert 0 < strengths[0] == pytest.approx(strengths[1], rel=1e-5)

        path = f"{folder}/{kind.__name__}"
        state = dict(zip(("model", "optim"), dcp.get_state_dict(parts, two), strict=True))
        save(state, storage_writer=FileSystemWriter(path))
        other = sharded_model(mesh, 1)
        again = optimizer(other)
        fresh = dict(zip(("model", "optim"), dcp.get_state_dict(other, again), strict=True))
        load(fresh, storage_reader=FileSystemReader(path))
        dcp.set_state_dict(other, again, model_state_dict=fresh["model"], optim_state_dict=fresh["optim"])
        for model, opt in ((plain, one), (parts, two), (other, again)):
            train(model, opt, range(10, 14))
            opt.eval()
        assert sa.sparsity(parts, groups) == sa.sparsity(plain, groups)
        assert sa.sparsity(parts, groups).zero_groups > 0
        for opt in (one, two, again):
            opt.train()
        for p, q in zip(parts.parameters(), other.parameters(), strict=True):
            assert torch.equal(p.detach().to_local(), q.detach().to_local())
        for opt in (one, two):
            opt.finalize_()
        assert_same(parts, plain, kind.__name__, 1e-5)
        gathered = mlp()
        gathered.load_state_dict({key: value.full_tensor() for key, value in parts.state_dict().items()})
        removed = sa.compact(gathered, torch.zeros(1, 6)).model
        assert removed[0].out_features == 11 - sa.sparsity(parts, groups).layers[0].zero_groups


def tensor_parallel(mesh: Any) -> None:
    """Columns of the first layer and rows of the second, by torch's own plan; other parameters stay plain."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    groups = sa.coupled_groups(mlp(hidden=12), torch.zeros(1, 6))
    plain, parts = (
        mlp(hidden=12),
        parallelize_module(mlp(hidden=12), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()}),
    )
    opts = [sa.RAMDA(sa.param_groups(m, sa.GroupLasso(1e-3), coupled=groups), lr=0.02) for m in (plain, parts)]
    for model, opt in zip((plain, parts), opts, strict=True):
        train(model, opt, range(6))
        opt.finalize_()
    assert_same(parts, plain, "tensor parallel", 1e-6)
    assert sa.sparsity(parts, groups) == sa.sparsity(plain, groups)


def low_memory(mesh: Any) -> None:
    """State in bfloat16: of parts too; with nothing to round that is the same, and every unit is one on all."""
    groups = sa.coupled_groups(mlp(), torch.zeros(1, 6))
    for kind in (sa.RMDA, sa.RAMDA):
        parts = sharded_model(mesh)
        penalty = sa.GroupLasso(target=0.4, ramp=4)
        opt = kind(sa.param_groups(parts, penalty, coupled=groups), lr=0.05, state_dtype=torch.bfloat16)
        train(parts, opt, range(12))
        opt.eval()
        found: list[Any] = [None, None]
        report = sa.sparsity(parts, groups)
        dist.all_gather_object(found, report)
        assert found[0] == found[1]
        assert report.zero_groups == round(0.4 * groups.units)


def refusals(mesh: Any) -> None:
    groups = sa.coupled_groups(mlp(), torch.zeros(1, 6))
    parts = mlp()
    parts[0].weight = nn.Parameter(distribute_tensor(parts[0].weight.detach().double(), mesh, [Shard(0)]))
    opt = sa.RMDA(sa.param_groups(parts, sa.GroupLasso(1e-3), coupled=groups), lr=0.1)
    for param in parts.parameters():
        param.grad = torch.zeros_like(param)
    with pytest.raises(RuntimeError, match="of float64 all or none"):
        opt.step()
    parts[0].weight.grad = None
    with pytest.raises(RuntimeError, match=r"0\.weight has no gradient"):
        opt.step()
    assert not opt.state
    parts[0].weight._fsdp_flattened = True
    with pytest.raises(ValueError, match="got a flat one"):
        sa.RMDA(sa.param_groups(parts, sa.GroupLasso(1e-3), coupled=groups))


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    trajectories(mesh, 0)
    trajectories(mesh, 1, names=("RMDA", "RAMDA"))
    trajectories(mesh, 0, mixed=True, names=("RMDA", "ProxAdamW"))
    trajectories(init_device_mesh("cpu", (2, 1)), None, 0, names=("RAMDA",))  # HSDP
    trajectories(init_device_mesh("cpu", (1, 2)), 0, 0, names=("RMDA",))  # twice along one dimension
    fully_sharded(mesh, folder)
    tensor_parallel(mesh)
    low_memory(mesh)
    refusals(mesh)
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_step_like_one(tmp_path: Path) -> None:
    two_ranks(work, str(tmp_path))
