"""Stale, edited, cut and mixed checkpoint files: a CheckpointError that says what is wrong, or the very same result."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sparse_accel as sa
from sparse_accel.prune import CurvatureIHT, ISpaSP, Masks, load_sparse
from sparse_accel.removal import files


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(6, 8)
        self.out = nn.Linear(8, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(self.norm(self.conv(x)).relu().mean((2, 3))).relu())


X = torch.randn(16, 2, 5, 5, generator=torch.Generator().manual_seed(0))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().eval()


def compacted(seed: int = 0, kind: Callable[..., Any] = sa.RMDA) -> sa.CompactResult:
    model = net(seed)
    optimizer = kind(sa.param_groups(model, sa.GroupLasso(1e-3)) if kind is sa.RMDA else model.parameters(), lr=0.1)
    model(X).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        model.hidden.weight[:, [1, 4]] = 0
        model.out.weight[:, [0, 3, 5]] = 0
        model.hidden.weight[2] = 0  # constants, which the consumer takes into a new bias
        model.hidden.bias[2] = 1
    return sa.compact(model, X, optimizer)


def flat(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def load_compact(folder: Path, model: nn.Module) -> Any:
    loaded = sa.load(folder, model)
    loaded(X)  # what loads also runs
    return flat(loaded)


def load_with_optimizer(folder: Path, model: nn.Module) -> Any:
    loaded = sa.load(folder, model)
    optimizer = sa.load_optimizer(folder, loaded, sa.RMDA)
    return flat(loaded), optimizer.state_dict()


def load_masks(folder: Path, model: nn.Module) -> Any:
    return dict(Masks.load(folder, model))


def resume(folder: Path, model: nn.Module) -> Any:
    return flat(CurvatureIHT(model, 0.5, refine=1, allocation="global", iterations=2, resume_dir=folder).run(X).model)


def write_progress(folder: Path) -> None:
    resume(folder, net())


class Kind(NamedTuple):
    write: Callable[[Path], Any]
    load: Callable[[Path, nn.Module], Any]


KINDS = {
    "compact": Kind(lambda folder: sa.save(compacted(), folder), load_compact),
    "optimizer": Kind(lambda folder: sa.save(compacted(), folder), load_with_optimizer),
    "ispasp": Kind(lambda folder: sa.save(ISpaSP(net(), X, 0.5).run(X), folder), load_compact),
    "sparse": Kind(lambda folder: sa.save(CurvatureIHT(net(), 0.5, iterations=2).run(X), folder), load_compact),
    "masks": Kind(lambda folder: CurvatureIHT(net(), 0.5, iterations=2).run(X).masks.save(folder), load_masks),
    "progress": Kind(write_progress, resume),
}


def without_ids(folder: Path) -> None:
    """As versions before there were ids wrote the files: nothing is left but the checks of the values."""
    for path in folder.iterdir():
        if path.suffix == ".json":
            plan = json.loads(path.read_text())
            for part in (plan, *(plan["done"].values() if "done" in plan else ())):
                for key in ("id", "of"):
                    part.pop(key, None)
            path.write_text(json.dumps(plan))
        else:
            tensors = load_file(path)
            save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("originals")
    for name, kind in KINDS.items():
        kind.write(root / name)
        shutil.copytree(root / name, root / f"{name} without ids")
        without_ids(root / f"{name} without ids")
    return {path.name: path for path in root.iterdir()}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def assert_same_file(one: Path, other: Path) -> None:
    if one.suffix == ".json":
        assert one.read_bytes() == other.read_bytes()
        return
    with safe_open(one, "pt") as a, safe_open(other, "pt") as b:  # the header's order is not safetensors' promise
        assert a.metadata() == b.metadata()
    assert same(load_file(one), load_file(other))


def places(plan: Any, keys: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path in a JSON file."""
    inside = plan.items() if isinstance(plan, dict) else enumerate(plan) if isinstance(plan, list) else ()
    return [keys] * bool(keys) + [place for key, item in inside for place in places(item, (*keys, key))]


EXAMPLES = {"progress": 12}
ODD = st.sampled_from([None, True, -1, 0, 1, 3, 7, 10**30, 0.5, -2.5, math.nan, math.inf, "", "x", "weight", "../x"])
ODD |= st.sampled_from([[], {}, [1, -3], [[0, 1], [2]], {"tensor": "x"}, {"dict": None}, "conv.weight"]).map(
    copy.deepcopy
)


def edit(plan: Any, place: tuple[Any, ...], how: str, value: Any) -> None:
    """Change a parsed JSON file at one place."""
    *front, last = place
    for key in front:
        plan = plan[key]
    if how == "delete":
        del plan[last]
    elif how == "replace":
        plan[last] = value
    elif how == "negate" and isinstance(plan[last], (int, float)):
        plan[last] = -plan[last] - 1
    elif how == "add" and isinstance(plan, list):
        plan.insert(last, value)
    elif isinstance(plan, dict):
        plan[f"{last}x"] = plan.pop(last)


def damage(path: Path, how: str, share: float) -> None:
    data = bytearray(path.read_bytes())
    at = min(int(share * len(data)), len(data) - 1)
    if how == "cut":
        path.write_bytes(data[:at])
    elif how == "flip":
        data[at] ^= 1 << (at % 8)
        path.write_bytes(data)
    elif how == "gone":
        path.unlink()
    elif how == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(b"[" * 100_000 if how == "deep" else b"\xff\x00" * 30)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sealed", [True, False], ids=["", "without_ids"])
@pytest.mark.parametrize("name", KINDS)
def test_fuzz(name: str, sealed: bool, originals: dict[str, Path], tmp_path: Path) -> None:
    """Whatever becomes of a file: CheckpointError, or, if it is not noticed, what was saved. Without ids an edit that
    fits together is not noticed; it loads whole. The model that was given never changes."""
    original, load = originals[name if sealed else f"{name} without ids"], KINDS[name].load
    model = net(1 if name != "progress" else 0)
    before, expected = flat(model), load(shutil.copytree(original, tmp_path / "whole"), model)
    names = sorted(path.name for path in original.iterdir())
    plans = {path: json.loads((original / path).read_text()) for path in names if path.endswith(".json")}
    every = [(path, place) for path, plan in plans.items() for place in places(plan)]
    tried = []

    @settings(
        max_examples=EXAMPLES.get(name, 40),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        where=st.sampled_from(every),
        how=st.sampled_from(["delete", "replace", "replace", "negate", "add", "rename"]),
        value=ODD,
        file=st.sampled_from(names),
        harm=st.sampled_from(["none"] * 6 + ["cut", "flip", "gone", "folder", "deep", "noise"]),
        share=st.floats(0, 1),
    )
    def attack(where: Any, how: str, value: Any, file: str, harm: str, share: float) -> None:
        folder = tmp_path / "attacked"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original, folder)
        if harm == "none":
            plan = copy.deepcopy(plans[where[0]])
            edit(plan, where[1], how, value)
            (folder / where[0]).write_text(json.dumps(plan))
        else:
            damage(folder / file, harm, share)
        try:
            came = load(folder, model)
        except sa.CheckpointError as error:
            tried.append(str(error))
        else:
            if sealed and name != "progress":
                assert same(came, expected)
            elif sealed:  # a step that the record lost is taken again
                assert all(torch.equal(came[key], expected[key]) for key in expected)
        assert same(flat(model), before)

    attack()
    assert len(tried) > 5
    assert all(tried)


@pytest.mark.parametrize(
    "place, value, message",
    [
        (("attributes", "conv", "out_channels"), [6, -3], r"plan\.json: attributes\.conv\.out_channels\.1.*-3"),
        (("attributes", "conv", "out_channels"), [6, 5], r"attributes\.conv\.out_channels: expected 4 as the weights"),
        (("attributes", "conv", "out_channels"), [6], r"out_channels: expected the old and the new number, got \[6\]"),
        (("saved", "conv.weight", "order"), None, r"plan\.json: saved\.conv\.weight: 'order' is missing"),
        (("saved", "conv.weight", "order"), [0, 1, 1, 3], r"saved\.conv\.weight\.order: expected the numbers 0 to 3"),
        (("saved", "conv.weight", "dtype"), "float64", r"conv\.weight: expected float64, got float32"),
        (
            ("saved", "conv.weight", "shape", 0),
            -4,
            r"saved\.conv\.weight\.shape\.0: expected a number from 0 on, got -4",
        ),
        (("tensors", "conv.weight", "keep", "0"), [0, 2, 3, 6], r"tensors\.conv\.weight\.keep\.0\.3.* 0 to 5, got 6"),
        (("tensors", "conv.weight", "keep", "0"), [0, 2, 2, 5], r"keep\.0: expected one or more increasing indices"),
        (
            ("tensors", "conv.weight", "keep"),
            {"4": [0]},
            r"keep: expected dimensions of a tensor of shape \[6, 2, 3, 3\]",
        ),
        (("tensors", "conv.weight", "shape", 0), 5, r"tensors\.conv\.weight\.shape: expected the shape \[4, 2, 3, 3\]"),
        (("created", "out.bias", "like"), "nothing", r"created\.out\.bias\.like: expected a parameter of the model"),
        (("created", "conv.bias"), {"shape": [4], "like": "conv.weight"}, r"created\.conv\.bias: .*has no bias"),
        (("aliases", "conv.bias"), "conv.weight", r"conv\.bias: tied to conv\.weight in only one"),
        (("max_abs_diff",), "small", "changed since it was saved"),
    ],
)
def test_edited_plans_are_told_by_file_and_key(
    place: tuple[Any, ...], value: Any, message: str, originals: dict[str, Path], tmp_path: Path
) -> None:
    sealed = message == "changed since it was saved"  # the net below all checks of values
    shutil.copytree(originals["compact" if sealed else "compact without ids"], tmp_path, dirs_exist_ok=True)
    plan = json.loads((tmp_path / "plan.json").read_text())
    edit(plan, place, "delete" if value is None else "replace", value)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(sa.CheckpointError, match=message):
        sa.load(tmp_path, net())


@pytest.mark.parametrize(
    "place, value, message",
    [
        (("groups", 0, "options", "momentum"), -3, r"optimizer\.json: groups\.0\.options: momentum"),
        (("groups", 0, "options", "lr"), "fast", r"groups\.0\.options\.lr: expected a number, got \"fast\""),
        (("groups", 0, "options", "lr"), {"list": []}, r"groups\.0\.options\.lr: expected a number, got"),
        (("groups", 0, "options", "momentum_ramp"), -3, r"momentum_ramp: expected a number from 0 on, got -3"),
        (("groups", 0, "options", "maximize"), 2, r"groups\.0\.options\.maximize: expected true or false, got 2"),
        (("groups", 0, "options", "lr"), None, r"groups\.0\.options: 'lr' is missing"),
        (("groups", 0, "names", 0), "hidden.weight", r"every parameter once"),
        (
            ("state", "conv.weight", "point"),
            None,
            r"state\.conv\.weight: point: expected a tensor of shape \(4, 2, 3, 3\)",
        ),
        (("state", "conv.weight", "step", "shape"), [1], r"state\.conv\.weight\.step\.order: expected the numbers 0"),
        (("state", "conv.weight", "step", "tensor"), "x", r"optimizer\.safetensors: x is missing"),
        (("state", "conv.weight", "penalty_scale"), -1, r"penalty_scale: expected a number from 0"),
        (("class",), 3, r"optimizer\.json: class: expected a string, got 3"),
    ],
)
def test_edited_optimizers_without_ids(
    place: tuple[Any, ...], value: Any, message: str, originals: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(originals["optimizer without ids"], tmp_path, dirs_exist_ok=True)
    plan = json.loads((tmp_path / "optimizer.json").read_text())
    edit(plan, place, "delete" if value is None else "replace", value)
    (tmp_path / "optimizer.json").write_text(json.dumps(plan))
    with pytest.raises(sa.CheckpointError, match=message):
        sa.load_optimizer(tmp_path, sa.load(tmp_path, net()), sa.RMDA)


@pytest.mark.parametrize("name", ["compact", "sparse", "masks", "optimizer"])
def test_files_of_two_saves_are_refused(name: str, originals: dict[str, Path], tmp_path: Path) -> None:
    """Each file of a save that differs, in the other one's folder."""
    other = tmp_path / "other"
    if name in ("compact", "optimizer"):
        sa.save(compacted(2), other)
    else:
        result = CurvatureIHT(net(2), 0.5, iterations=2).run(X)
        result.masks.save(other) if name == "masks" else result.save(other)
    for path in sorted(originals[name].iterdir()):
        folder = shutil.copytree(originals[name], tmp_path / path.name)
        shutil.copy(other / path.name, folder / path.name)
        if name == "compact" and path.name.startswith("optimizer"):
            assert same(load_compact(folder, net()), load_compact(originals[name], net()))
            with pytest.raises(sa.CheckpointError, match="do not belong together"):
                sa.load_optimizer(folder, sa.load(folder, net()), sa.RMDA)
        else:
            with pytest.raises(sa.CheckpointError, match="do not belong together"):
                KINDS[name].load(folder, net())


def test_a_save_removes_the_older_optimizer(tmp_path: Path) -> None:
    sa.save(compacted(), tmp_path)
    assert (tmp_path / "optimizer.json").exists()
    sa.save(compacted(), tmp_path, optimizer=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "plan.json"]
    sa.save(compacted(), tmp_path)
    sa.save(CurvatureIHT(net(), 0.5, iterations=2).run(X), tmp_path)
    with pytest.raises(sa.CheckpointError, match=r"optimizer\.json is missing"):
        sa.load_optimizer(tmp_path, net(), sa.RMDA)


def test_older_files_beside_a_newer_model_are_refused(originals: dict[str, Path], tmp_path: Path) -> None:
    """An optimizer without an id, as an older version would have left it, and a model with one."""
    sa.save(compacted(2), tmp_path, optimizer=False)
    for name in ("optimizer.json", "optimizer.safetensors"):
        shutil.copy(originals["optimizer without ids"] / name, tmp_path / name)
    with pytest.raises(sa.CheckpointError, match="do not belong together"):
        sa.load_optimizer(tmp_path, sa.load(tmp_path, net()), sa.RMDA)


def test_the_same_result_gives_the_same_files(tmp_path: Path) -> None:
    result = compacted()
    for name in "ab":
        sa.save(result, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert_same_file(path, tmp_path / "b" / path.name)
        assert path.stat().st_mode == (tmp_path / "a" / "plan.json").stat().st_mode
    with safe_open(tmp_path / "a" / "model.safetensors", "pt") as file:
        assert file.metadata()["id"] == json.loads((tmp_path / "a" / "plan.json").read_text())["id"]


@pytest.mark.parametrize("name", ["compact", "sparse"])
def test_an_interrupted_save_leaves_the_old_one_or_a_refused_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies before any of the renamings, or while the files are written."""
    results = [compacted(0), compacted(2)] if name == "compact" else []
    results = results or [CurvatureIHT(net(seed), 0.5, iterations=2).run(X) for seed in (0, 2)]
    old, new = (flat(result.model) for result in results)
    replace, seen = os.replace, []
    for last in range(12):
        folder = tmp_path / str(last)
        sa.save(results[0], folder)
        count = iter(range(100))

        def dying(source: Any, target: Any, last: int = last, count: Any = count) -> None:
            if next(count) == last:
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(files.os, "replace", dying)
        try:
            sa.save(results[1], folder)
            finished = True
        except KeyboardInterrupt:
            finished = False
        monkeypatch.setattr(files.os, "replace", replace)
        assert not list(folder.glob(".unfinished*"))
        try:
            came = load_with_optimizer(folder, net())[0] if name == "compact" else load_compact(folder, net())
        except sa.CheckpointError as error:
            seen.append("refused" if "do not belong together" in str(error) else str(error))
        else:
            seen.append("new" if same(came, new) else "old")
            assert same(came, new if finished else old)
        sa.save(results[1], folder)
        assert same(load_compact(folder, net()), new)
    assert list(dict.fromkeys(seen)) == ["old", "refused", "new"]


def test_a_full_disk_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sa.save(compacted(0), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        sa.save(compacted(2), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_values_that_changed_on_the_disk_are_noticed(originals: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(originals["compact"], tmp_path, dirs_exist_ok=True)
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(sa.CheckpointError, match=r"model\.safetensors: \S+: damaged"):
        sa.load(tmp_path, net())


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"expected what compact\(\) or a pruner returned, got Net"):
        sa.save(net(), tmp_path)
    with pytest.raises(TypeError, match=r"got Masks: call its own save\(\)"):
        sa.save(Masks(net()), tmp_path)
    assert not list(tmp_path.iterdir())


def test_both_names_are_one(tmp_path: Path) -> None:
    result = CurvatureIHT(net(), 0.5, iterations=2).run(X)
    sa.save(result, tmp_path / "a")
    result.save(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert_same_file(path, tmp_path / "b" / path.name)
    loaded = load_sparse(tmp_path / "a", net(1))
    assert same(flat(sa.load(tmp_path / "a", net(1))), flat(loaded.model))
    assert loaded.report == result.report


def test_a_model_without_values_takes_them(tmp_path: Path) -> None:
    """A dense model on the meta device costs nothing; the loaded one is on the CPU."""
    for name, result in (("a", compacted()), ("b", CurvatureIHT(net(), 0.5, iterations=2).run(X))):
        sa.save(result, tmp_path / name)
        with torch.device("meta"):
            fresh = Net().eval()
        loaded = sa.load(tmp_path / name, fresh)
        assert fresh.conv.weight.is_meta
        assert torch.equal(loaded(X), result.model(X))


def test_loaded_in_inference_mode_they_can_be_trained(originals: dict[str, Path]) -> None:
    model = net()
    with torch.inference_mode():
        loaded = sa.load(originals["optimizer"], model)
        optimizer = sa.load_optimizer(originals["optimizer"], loaded, sa.RMDA)
        sparse = load_sparse(originals["sparse"], model).model
    for module in (loaded, sparse):
        module(X).square().sum().backward()
    optimizer.step()
