"""ISpaSP on small networks: exactness, methods, refits, saving, modes, errors."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structured_models as nets
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparse_accel as sa
from sparse_accel.prune import ISpaSP, PruneError

METHODS = ("gram_obs", "ispasp", "gram_cosamp", "magnitude", "energy", "random")
VECTORS = torch.randn(96, 6, generator=torch.Generator().manual_seed(3))
IMAGES = nets.images()
CASES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (nets.mlp, VECTORS),
    "resnet": (nets.resnet, IMAGES),
    "resnet_in_place": (lambda: nets.resnet(in_place=True), IMAGES),
    "vgg": (nets.vgg, IMAGES),
    "concat": (nets.concat, IMAGES),
    "gated": (nets.gated, VECTORS),
    "two": (nets.two, VECTORS),
    "mobile": (nets.mobile, IMAGES),
}


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out = model(x)
    return torch.cat(out, 1) if isinstance(out, tuple) else out


def error(model: nn.Module, pruned: nn.Module, x: Tensor) -> float:
    dense = run(model, x)
    return float((run(pruned, x) - dense).square().sum() / (dense - dense.mean(0)).square().sum())


def state(model: nn.Module) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(model: nn.Module, before: dict[str, Any]) -> bool:
    after = model.state_dict()
    return list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("case", CASES)
def test_keeping_all_changes_nothing(case: str) -> None:
    make, x = CASES[case]
    model = make()
    result = ISpaSP(model, x[:2], keep=1.0).run(x)
    assert torch.equal(run(result.model, x), run(model, x))
    assert result.report.params[0] == result.report.params[1]


@pytest.mark.parametrize("case", CASES)
def test_prunes_refits_saves_and_loads(case: str, tmp_path: Path) -> None:
    make, x = CASES[case]
    model = make()
    before = state(model)
    result = ISpaSP(model, x[:2], keep=0.5).run(x, batch_size=20)
    assert same_state(model, before)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(after == before // 2 for before, after in (width.units for width in result.report.widths))
    assert result.report.params[1] < result.report.params[0]
    assert result.report.macs[1] < result.report.macs[0]
    bare = ISpaSP(model, x[:2], keep=0.5, refit=None).run(x, batch_size=20)
    assert error(model, result.model, x) < 0.5 * error(model, bare.model, x)
    json.dumps(result.plan)
    json.dumps(result.report.to_plain())
    assert result.report.widths[0].name in str(result.report)
    loaded = sa.load(sa.save(result, tmp_path), make())
    assert torch.equal(run(loaded, x), run(result.model, x))
    run_backward(result.model, x)


def run_backward(model: nn.Module, x: Tensor) -> None:
    out = model.train()(x)
    sum(item.sum() for item in (out if isinstance(out, tuple) else (out,))).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("refit", ["auto", None, "bias", "local", "dense", "skip"])
def test_every_method_with_every_refit(method: str, refit: str | None) -> None:
    model = nets.resnet()
    result = ISpaSP(model, IMAGES[:2], keep=0.5, method=method, refit=refit).run(IMAGES)
    assert [width.units[1] for width in result.report.widths] == [4, 4, 8, 8]
    assert torch.isfinite(run(result.model, IMAGES)).all()
    if refit in ("dense", "skip"):
        assert error(model, result.model, IMAGES) < 0.5


def test_refits_help_in_their_order() -> None:
    model = nets.resnet(16)
    errors = {}
    for refit in (None, "bias", "local", "dense", "skip"):
        errors[refit] = error(model, ISpaSP(model, IMAGES[:2], refit=refit).run(IMAGES).model, IMAGES)
    assert errors["skip"] < errors["dense"] < errors["local"] < errors["bias"] < errors[None]


def test_methods_without_statistics_and_refit_report_no_error() -> None:
    result = ISpaSP(nets.mlp(), VECTORS[:2], method="magnitude", refit=None).run(VECTORS)
    assert [width.error for width in result.report.widths] == [None, None]


@pytest.mark.parametrize("make", [nets.mlp, nets.resnet, nets.vgg])
def test_duplicated_units_go_without_error(make: Callable[[], nn.Module]) -> None:
    """Every second unit of the first width is a copy of its neighbour: half of them are enough, exactly."""
    model = make().double()
    x = (VECTORS if make is nets.mlp else IMAGES).double()
    width = next(width for width in sa.prune.find_widths(model, x[:2]) if not width.coupled)
    with torch.no_grad():
        for weight, rows in width.rows.items():
            module = model.get_submodule(weight.rpartition(".")[0])
            duplicate(module, rows)
            norm = norm_after(model, weight.rpartition(".")[0])
            if norm is not None:
                duplicate(norm, rows)
    half = {width.name: 0.5}
    result = ISpaSP(model, x[:2], keep=1.0, keep_per_layer=half, refit="local", ridge=1e-10).run(x)
    assert len({unit // 2 for unit in result.kept[width.name]}) == width.units // 2
    assert error(model, result.model, x) < 1e-12


def duplicate(module: nn.Module, rows: Tensor) -> None:
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.dim():
            tensor[rows[1::2, 0]] = tensor[rows[::2, 0]]


def norm_after(model: nn.Module, name: str) -> nn.Module | None:
    names = [key for key, module in model.named_modules() if not list(module.children())]
    following = names[names.index(name) + 1]
    module = model.get_submodule(following)
    return module if isinstance(module, nn.BatchNorm2d) else None


def test_consumers_forget_what_went_before() -> None:
    """A layer that reads two widths, and the classifier, never get weights on units that are gone."""
    model = nets.concat()
    result = ISpaSP(model, IMAGES[:2], keep=0.5, refit_head=True).run(IMAGES)
    assert result.max_abs_diff < 1e-5
    assert error(model, result.model, IMAGES) < 0.2


def test_same_run_same_bits() -> None:
    first, second = (ISpaSP(nets.resnet(), IMAGES[:2]).run(IMAGES) for _ in range(2))
    assert first.kept == second.kept
    assert torch.equal(run(first.model, IMAGES), run(second.model, IMAGES))


def test_cache_or_not_the_same() -> None:
    results = [ISpaSP(nets.resnet(), IMAGES[:2], cache_memory=size).run(IMAGES) for size in (0, 1 << 30)]
    assert results[0].kept == results[1].kept
    assert torch.equal(run(results[0].model, IMAGES), run(results[1].model, IMAGES))


@pytest.mark.parametrize("kind", ["tensor", "list", "tuples", "generator", "function", "dicts"])
def test_any_kind_of_data(kind: str) -> None:
    model = nets.Named()
    batches = list(VECTORS.split(32))
    data: Any = {
        "tensor": VECTORS,
        "list": batches,
        "tuples": [(x,) for x in batches],
        "generator": (x for x in batches),
        "function": lambda: iter(batches),
        "dicts": [{"features": x} for x in batches],
    }[kind]
    result = ISpaSP(model, VECTORS[:2]).run(data, batch_size=32)
    expected = ISpaSP(model, {"features": VECTORS[:2]}).run(VECTORS, batch_size=32)
    assert torch.equal(run(result.model, VECTORS), run(expected.model, VECTORS))


def test_train_mode_and_frozen_parameters_are_kept() -> None:
    model = nets.resnet()
    expected = ISpaSP(model, IMAGES[:2]).run(IMAGES)
    model.train()
    model.layer1[0].eval()
    model.conv1.weight.requires_grad_(False)
    before = state(model)
    result = ISpaSP(model, IMAGES[:2]).run(IMAGES)
    assert same_state(model, before)
    assert model.training
    assert not model.layer1[0].training
    assert result.model.training
    assert not result.model.layer1[0].bn1.training
    assert not result.model.conv1.weight.requires_grad
    assert torch.equal(run(result.model.eval(), IMAGES), run(expected.model, IMAGES))


def test_autocast() -> None:
    model = nets.resnet()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = ISpaSP(model, IMAGES[:2]).run(IMAGES)
    assert all(parameter.dtype == torch.float32 for parameter in result.model.parameters())
    plain = ISpaSP(model, IMAGES[:2]).run(IMAGES)
    assert error(model, result.model, IMAGES) < 1.2 * error(model, plain.model, IMAGES)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = nets.mlp().to(dtype)
    x = VECTORS.to(dtype)
    result = ISpaSP(model, x[:2]).run(x)
    assert all(parameter.dtype == dtype for parameter in result.model.parameters())
    assert error(model.float(), result.model.float(), x.float()) < 0.3


def test_unfitting_arguments_are_named() -> None:
    model, x = nets.mlp(), VECTORS[:2]
    for arguments, words in (
        ({"keep": 0.0}, "keep: expected a share"),
        ({"keep": 1.5}, "keep: expected a share"),
        ({"method": "best"}, "method: expected one of 'gram_obs'"),
        ({"refit": "global"}, "refit: expected one of 'auto'"),
        ({"scope": "outer"}, "scope: expected one of"),
        ({"budget": {"bytes": 0.5}}, "budget: expected one of flops"),
        ({"budget": {"flops": 1.5}}, "budget: flops: expected a share"),
        ({"iterations": 0}, "iterations: expected at least 1"),
        ({"relu_iterations": -1}, "relu_iterations: expected at least 0"),
    ):
        with pytest.raises(ValueError, match=words):
            ISpaSP(model, x, **arguments)
    with pytest.raises(TypeError, match="only: expected a list"):
        ISpaSP(model, x, only="0")
    for arguments, words in (
        ({"only": ["nothing"]}, "only: 'nothing' matches no width; the model's are 0, 2"),
        ({"skip": ["nothing"]}, "skip: 'nothing' matches"),
        ({"keep_per_layer": {"0": 17}}, "keep_per_layer: 0: expected 1 to 16, got 17"),
        ({"keep_per_layer": {"0": 1.5}}, "keep_per_layer: 0: expected a share"),
        ({"max_memory": 1000}, "max_memory: expected at least .* bytes for the statistics of 0"),
    ):
        with pytest.raises(ValueError, match=words):
            ISpaSP(model, x, **arguments).run(VECTORS)


def test_patterns_choose_widths() -> None:
    model = nets.resnet()
    names = [width.name for width in ISpaSP(model, IMAGES[:2]).run(IMAGES).report.widths]
    assert names == ["layer1.0.conv1", "layer1.1.conv1", "layer2.conv1", "layer2.conv2"]
    result = ISpaSP(model, IMAGES[:2], skip=["layer1.*", "layer2.conv2"]).run(IMAGES)
    assert list(result.kept) == ["layer2.conv1"]
    result = ISpaSP(model, IMAGES[:2], keep=1.0, keep_per_layer={"layer1.*": 0.25, "layer2.conv1": 5}).run(IMAGES)
    assert {name: len(units) for name, units in result.kept.items()} == {
        "layer1.0.conv1": 2,
        "layer1.1.conv1": 2,
        "layer2.conv1": 5,
        "layer2.conv2": 16,
    }
    result = ISpaSP(model, IMAGES[:2], scope="all").run(IMAGES)
    assert "conv1" in result.kept
    assert result.model.conv1.out_channels == 4


def test_failure_leaves_the_model_alone_and_names_the_width() -> None:
    model = nets.two().train()
    before = state(model)
    bad = VECTORS.clone()
    bad[50] = float("nan")
    with pytest.raises(PruneError, match=r"hidden: .*finite"):
        ISpaSP(model, VECTORS[:2]).run(bad)
    with pytest.raises(ValueError, match=r"calibration: \w+ fails on a batch: RuntimeError: .*4x5"):
        ISpaSP(model, VECTORS[:2]).run([VECTORS[:10], torch.zeros(4, 5)])
    with pytest.raises(ValueError, match="at least one batch"):
        ISpaSP(model, VECTORS[:2]).run([])
    assert same_state(model, before)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_ispasp_leaves_widths_with_several_readers_whole() -> None:
    result = ISpaSP(nets.two(), VECTORS[:2], method="ispasp").run(VECTORS)
    assert result.kept == {}
    assert result.report.notes == [
        "2 layers (a, b): its outputs must stay",
        "hidden: left whole: method='ispasp' takes widths with one reader, got a, b",
    ]


def test_unsupported_models_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), torch.jit.script(nn.Linear(8, 2)))
    with pytest.raises(sa.UnsupportedModelError, match=r"2 \(\w+\): a scripted module"):
        ISpaSP(model, VECTORS[:2]).run(VECTORS)


def test_nothing_to_prune_says_why() -> None:
    with pytest.raises(sa.UnsupportedModelError, match=r"nothing can be pruned: 0 \(Linear\): its outputs must stay"):
        ISpaSP(nn.Sequential(nn.Linear(6, 8)), VECTORS[:2]).run(VECTORS)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)

    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.up, self.down = attention, nn.Linear(8, 12), nn.Linear(12, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attention(x, x, x, need_weights=False)[0]
            return x + self.down(F.relu(self.up(x)))

    x = torch.randn(4, 5, 8)
    result = ISpaSP(Attend().eval(), x[:1]).run(x)
    assert list(result.kept) == ["up"]
    assert any("attention" in note for note in result.report.notes)


def test_bias_appears_only_where_allowed(tmp_path: Path) -> None:
    model = nets.gated()
    result = ISpaSP(model, VECTORS[:2]).run(VECTORS + 1)
    assert result.model.down.bias is not None
    assert result.plan["created"]["down.bias"] == {"shape": [8], "like": "down.weight"}
    loaded = sa.load(sa.save(result, tmp_path), nets.gated())
    assert torch.equal(run(loaded, VECTORS), run(result.model, VECTORS))
    without = ISpaSP(model, VECTORS[:2], new_bias=False).run(VECTORS + 1)
    assert without.model.down.bias is None
    bare = ISpaSP(model, VECTORS[:2], refit=None).run(VECTORS + 1)
    assert error(model, without.model, VECTORS + 1) < 0.5 * error(model, bare.model, VECTORS + 1)


def test_norms_get_the_statistics_of_the_new_results() -> None:
    model = nets.resnet()
    with torch.no_grad():
        model.layer1[0].bn2.weight[:3] = 0  # a scale that nothing may be divided by
    result = ISpaSP(model, IMAGES[:2], refit="skip").run(IMAGES)
    small = copy.deepcopy(result.model)
    eval_mode = run(small, IMAGES)
    seen = {}
    small.layer1[0].bn2.register_forward_hook(lambda module, args, out: seen.update(x=args[0], y=out))
    run(small, IMAGES)
    assert torch.isfinite(eval_mode).all()
    torch.testing.assert_close(small.layer1[0].bn2.running_mean, seen["x"].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        small.layer1[0].bn2.running_var, seen["x"].var((0, 2, 3), unbiased=False), rtol=1e-4, atol=1e-5
    )


def test_norm_without_scale() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6, affine=False), nn.Flatten(1),
        nn.Linear(96, 3),
    )  # fmt: skip
    nets.settle_plain(model, IMAGES)
    for refit in ("local", "bias"):
        result = ISpaSP(model, IMAGES[:2], only=["0"], refit=refit).run(IMAGES)
        before, after = result.report.widths[0].error
        assert after < before


def test_masked_positions_do_not_count() -> None:
    model = nets.Masked()
    x = torch.randn(8, 5, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(8, 5, dtype=torch.int64)
    mask[:, 3:] = 0
    noise = torch.where(mask.bool()[..., None], x, 100.0)
    one = ISpaSP(model, {"x": x[:2], "attention_mask": mask[:2]}).run([{"x": x, "attention_mask": mask}])
    two = ISpaSP(model, {"x": x[:2], "attention_mask": mask[:2]}).run([{"x": noise, "attention_mask": mask}])
    three = ISpaSP(model, {"x": x[:2], "attention_mask": mask[:2]}, mask=None).run(
        [{"x": noise, "attention_mask": mask}]
    )
    assert torch.equal(one.model(x, mask), two.model(x, mask))
    assert not torch.allclose(one.model(x, mask), three.model(x, mask))


def test_fresh_batches_are_asked_for_in_every_iteration() -> None:
    calls = []

    def batches() -> list[Tensor]:
        calls.append(len(calls))
        return [VECTORS + 0.01 * len(calls)]

    model = nets.mlp()
    ISpaSP(model, VECTORS[:2], method="ispasp", refit=None, iterations=5, fresh_batches=True).run(batches)
    assert len(calls) == 11  # one pass looks which layers the data call
    same = ISpaSP(model, VECTORS[:2], method="ispasp", refit=None, iterations=5, fresh_batches=True).run(VECTORS)
    assert same.kept == ISpaSP(model, VECTORS[:2], method="ispasp", refit=None, iterations=5).run(VECTORS).kept


def test_fine_tuning_sees_small_models_and_is_kept() -> None:
    model = nets.resnet()
    seen = []

    def fine_tune(small: nn.Module, name: str) -> None:
        seen.append((name, sum(parameter.numel() for parameter in small.parameters())))
        optimizer = torch.optim.SGD(small.parameters(), lr=1e-3)
        small.train()(IMAGES).square().sum().backward()
        optimizer.step()
        if name == "layer2.conv2":
            small.fc.bias.data.fill_(7.0)

    result = ISpaSP(model, IMAGES[:2], fine_tune=fine_tune, refit_head=False).run(IMAGES)
    assert [name for name, _ in seen] == ["layer1.0.conv1", "layer1.1.conv1", "layer2.conv1", "layer2.conv2"]
    assert [count for _, count in seen] == sorted((count for _, count in seen), reverse=True)
    assert seen[-1][1] == sum(parameter.numel() for parameter in result.model.parameters())
    assert result.model.fc.bias.tolist() == [7.0] * 5
    assert not result.model.training
    assert not torch.equal(result.model.conv1.weight, model.conv1.weight)
