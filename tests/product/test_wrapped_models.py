"""Compiled, distributed, prepared, pruned and sharded models: every entry point takes the module inside, or refuses in
the same words."""

from __future__ import annotations

import copy
import functools
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import sparse_accel as sa
from sparse_accel.prune import CurvatureIHT, ISpaSP, Masks, export_sparse, find_widths, load_sparse, remove_units
from sparse_accel.wrappers import bare_model, copy_model

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    with torch.no_grad():
        model[2].weight[:, [1, 5]] = 0
    return model


def prepared(model: nn.Module, **options: Any) -> nn.Module:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(True)  # one for each process, of one precision
    return accelerate.Accelerator(cpu=True, **options).prepare(model)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compile": lambda m: torch.compile(m, backend="eager"),
    "compile_in_place": lambda m: m.compile(backend="eager") or m,
    "data_parallel": nn.DataParallel,
    "ddp": nn.parallel.DistributedDataParallel,
    "compiled_ddp": lambda m: torch.compile(nn.parallel.DistributedDataParallel(m), backend="eager"),
    "accelerate": prepared,
    "accelerate_bf16": lambda m: prepared(m, mixed_precision="bf16"),
}


def saved_and_loaded(model: nn.Module, folder: Path) -> Any:
    """A result whose model was wrapped since, into a wrapped dense model."""
    plain = bare_model(model)
    result = sa.compact(model, X)
    result.model = nn.DataParallel(result.model)
    sa.save(result, folder)
    loaded = sa.load(folder, nn.DataParallel(plain))
    assert type(loaded) is nn.Sequential
    return loaded.state_dict()


def sparse_saved_and_loaded(model: nn.Module, folder: Path) -> Any:
    result = CurvatureIHT(model, 0.5, iterations=2).run(X)
    result.model = nn.DataParallel(result.model)
    result.save(folder)
    loaded = load_sparse(folder, model)
    assert torch.equal(loaded.masks["0.weight"], result.masks["0.weight"])
    return loaded.model.state_dict()


def optimizer_round(model: nn.Module, folder: Path) -> Any:
    plain = bare_model(model)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    sa.save(sa.compact(model, X, optimizer), folder)
    loaded = torch.compile(sa.load(folder, model), backend="eager")
    return sa.load_optimizer(folder, loaded, torch.optim.SGD).state_dict()


def named_groups(model: nn.Module, folder: Path) -> Any:
    groups = sa.param_groups(model, sa.GroupLasso(1e-3))
    return [(name, tuple(p.shape)) for group in groups for name, p in group["params"]]


ENTRY: dict[str, Callable[[nn.Module, Path], Any]] = {
    "compact": lambda m, _: sa.compact(m, X).model.state_dict(),
    "find_widths": lambda m, _: [(w.name, w.units) for w in find_widths(m, X)],
    "remove_units": lambda m, _: remove_units(m, X, {"0": [0, 2, 4]}).model.state_dict(),
    "ispasp": lambda m, _: ISpaSP(m, X, 0.5).run(X).model.state_dict(),
    "curvature_iht": lambda m, _: CurvatureIHT(m, 0.5, iterations=2, refine=1).run(X).model.state_dict(),
    "save_load": saved_and_loaded,
    "sparse_save_load": sparse_saved_and_loaded,
    "optimizer": optimizer_round,
    "sparsity": lambda m, _: sa.sparsity(m).to_plain(),
    "param_groups": named_groups,
    "masks": lambda m, _: dict(Masks(m)),
    "masks_save": lambda m, folder: dict(Masks.load(Masks(m).save(folder), m)),
    "export_sparse": lambda m, _: {n: t.to_dense() for n, t in export_sparse(m, ["2.weight"]).items()},
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {name: entry(net(), tmp_path_factory.mktemp(name)) for name, entry in ENTRY.items()}


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    else:
        assert one == other


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("entry", ENTRY)
def test_the_module_inside_is_taken(
    entry: str, wrapper: str, expected: dict[str, Any], group: None, tmp_path: Path
) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    wrapped = WRAPPERS[wrapper](model)
    assert_same(ENTRY[entry](wrapped, tmp_path), expected[entry])
    assert_same(model.state_dict(), before)


def weight_normed(model: nn.Sequential) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(model[2])
    return model


def fsdp(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    mesh = init_device_mesh("cpu", (1,))
    model[2].weight = nn.Parameter(distribute_tensor(model[2].weight.detach(), mesh))
    return model


def pruned(model: nn.Sequential) -> nn.Module:
    nn.utils.prune.random_unstructured(model[2], "weight", amount=0.5)
    return model


def pruned_twice(model: nn.Sequential) -> nn.Module:
    nn.utils.prune.random_unstructured(model[2], "bias", amount=0.5)
    nn.utils.prune.l1_unstructured(model[2], "bias", amount=0.5)
    with torch.no_grad():
        model(X)
    return model


def hook(where: str, kind: str, advice: str) -> str:
    return (
        f"2 (Linear): its {where} is computed by a hook ({kind}): make it a parameter again by torch.nn.utils.{advice}"
    )


def part(kind: str, inside: str) -> str:
    return f"0 ({kind}): wraps a part of the model: pass a model with the module inside in its place ({inside})"


def spectral(model: nn.Sequential) -> nn.Module:
    nn.utils.spectral_norm(model[2])
    return model


REFUSED: dict[str, tuple[Callable[[Any], nn.Module], str]] = {
    "prune": (pruned, hook("weight", "RandomUnstructured", "prune.remove(module, 'weight')")),
    "prune_twice": (pruned_twice, hook("bias", "PruningContainer", "prune.remove(module, 'bias')")),
    "weight_norm": (weight_normed, hook("weight", "WeightNorm", "remove_weight_norm(module, 'weight')")),
    "spectral_norm": (spectral, hook("weight", "SpectralNorm", "remove_spectral_norm(module, 'weight')")),
    "compiled_part": (
        lambda m: nn.Sequential(torch.compile(m, backend="eager")),
        part("OptimizedModule", "._orig_mod"),
    ),
    "ddp_part": (
        lambda m: nn.Sequential(nn.parallel.DistributedDataParallel(m)),
        part("DistributedDataParallel", ".module"),
    ),
    "scripted": (torch.jit.script, "a scripted module cannot be followed; pass the original"),
    "fsdp": (fsdp, "model (FullyShardedDataParallel): its parameters are flat: gather them"),
    "dtensor": (sharded, "2 (Linear): weight is a DTensor: gather it (full_tensor())"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_hides_the_weights_is_refused_everywhere_alike(kind: str, group: None, tmp_path: Path) -> None:
    make, message = REFUSED[kind]
    model = make(net())
    result = sa.compact(net(), X)
    sa.save(result, tmp_path / "whole")
    result.model = model
    entries = {**ENTRY, "save": lambda m, folder: sa.save(result, folder)}
    entries["load"] = lambda m, folder: sa.load(tmp_path / "whole", m)
    for name, entry in entries.items():
        if name in ("save_load", "optimizer"):  # of several entry points, the first of which is none
            continue
        if kind == "dtensor" and name in ("sparsity", "param_groups", "masks", "masks_save"):  # take parts of tensors
            found = entry(model, tmp_path / name)
            if "masks" in name:
                found = {key: getattr(mask, "full_tensor", lambda m=mask: m)() for key, mask in found.items()}
            assert_same(found, ENTRY[name](net(), tmp_path / name))
            continue
        with pytest.raises((sa.CompactError, sa.CheckpointError, ValueError), match=re.escape(message)):
            entry(model, tmp_path / name)
        assert not (tmp_path / name).exists()


class Gate(nn.Module):
    def __init__(self, item: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.item = item

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


@pytest.mark.parametrize("item", [threading.Lock, lambda: (i for i in range(3)), os.scandir])
def test_what_cannot_be_copied_is_named(item: Callable[[], Any]) -> None:
    value = item()
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Gate(value)))
    message = rf"1\.0 \(Gate\): item \({type(value).__name__}\) cannot be copied"
    calls: list[Callable[[], Any]] = [
        lambda: sa.compact(model, X),
        lambda: find_widths(model, X),
        lambda: ISpaSP(model, X).run(X),
        lambda: CurvatureIHT(model, 0.5).run(X),
    ]
    for call in calls:
        with pytest.raises((sa.CompactError, ValueError), match=message):
            call()
    if hasattr(value, "close"):
        value.close()


def test_a_forward_that_holds_the_module_is_refused() -> None:
    """A copy of such a model would run the original's weights."""

    def logged(forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def call(*args: Any) -> Any:
            return forward(*args)

        return call

    model = net()
    model[2].forward = logged(model[2].forward)
    with pytest.raises(sa.CompactError, match=r"2 \(Linear\): its forward was replaced.*del module\.forward"):
        sa.compact(model, X)
    with pytest.raises(ValueError, match=r"2 \(Linear\): its forward was replaced"):
        CurvatureIHT(model, 0.5).run(X)
    del model[2].forward
    sa.compact(model, X)
    model.forward = functools.partial(type(model).forward, model)  # a copy of this one holds the copy
    twin = copy_model(model)
    with torch.no_grad():
        twin[0].weight.zero_()
    assert not torch.equal(twin(X), model(X))


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_parametrized_weights_stay_and_are_named(norm: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    model = net()
    norm(model[2])
    assert any("parametrization" in note for note in sa.compact(model, X).plan["notes"])
    result = CurvatureIHT(model, 0.5, iterations=2).run(X)
    assert "parametrization" in result.report.left["2"]
    loaded = sa.load(result.save(tmp_path), model)
    assert torch.equal(loaded(X), result.model(X))
    with pytest.warns(UserWarning, match=r"2\.parametrizations\.weight: a weight that is computed"):
        rows = sa.sparsity(model).layers
    assert [row.name for row in rows] == ["0.weight", "4.weight"]
    with pytest.warns(UserWarning, match="parametrization"):
        groups = sa.param_groups(model, sa.GroupLasso(1e-3))
    assert [name for name, _ in groups[0]["params"]] == ["0.weight", "4.weight"]
    assert len([p for group in groups for p in group["params"]]) == len(list(model.parameters()))


def test_wrapped_optimizers() -> None:
    """accelerate's wrapper, and the handle of our masks: the optimizer inside is cut."""
    accelerate = pytest.importorskip("accelerate")
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    accelerate.state.AcceleratorState._reset_state(True)
    prepared_model, wrapped = accelerate.Accelerator(cpu=True).prepare(model, optimizer)
    prepared_model(X).square().sum().backward()
    wrapped.step()
    with torch.no_grad():
        model[2].weight[:, [1, 5]] = 0
    handle = Masks(model).apply_to(wrapped)
    assert handle.optimizer is wrapped
    for given in (wrapped, handle, optimizer):
        result = sa.compact(prepared_model, X, given)
        assert type(result.optimizer) is torch.optim.SGD
        assert {id(p) for g in result.optimizer.param_groups for p in g["params"]} == {
            id(p) for p in result.model.parameters()
        }
        buffer = result.optimizer.state[result.model[2].weight]["momentum_buffer"]
        assert buffer.shape == result.model[2].weight.shape == (6, 6)
        result.model(X).sum().backward()
        result.optimizer.step()
    wrapped.zero_grad()
    prepared_model(X).square().sum().backward()
    wrapped.step()
    assert not model[2].weight[:, [1, 5]].any()
    handle.remove()


def test_optimizers_that_cannot_be_unwrapped(group: None) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = net()
    spread = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(sa.CompactError, match=r"ZeroRedundancyOptimizer.*spread over the ranks"):
        sa.compact(model, X, spread)
    with pytest.raises(sa.CompactError, match=r"optimizer: expected a torch\.optim\.Optimizer, got str"):
        remove_units(model, X, {}, optimizer="sgd")


def test_no_module_is_a_type_error() -> None:
    for call in (lambda: sa.compact("net", X), lambda: sa.sparsity(3), lambda: Masks(None)):
        with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got"):
            call()
