"""RigL: what goes and comes, numbers of weights, resumption, wrappers (ranks: ``tests/optim/test_sharded.py``)."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparse_accel as sa
from sparse_accel.prune.unstructured.rigl import KEY, layer_densities

OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "RMDA": lambda p: sa.RMDA(p, lr=0.1, momentum=0.5),
}


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 20), nn.ReLU(), nn.Linear(20, 3)
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(16, 1, 8, 8, generator=generator)
    return inputs, (inputs.mean((1, 2, 3)) * 20).long().clamp(0, 2)


def train(model: nn.Module, optimizer: Any, steps: range) -> None:
    for step in steps:
        inputs, labels = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def counts(rigl: Any) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in rigl.masks.items()}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_zeros_stay_and_numbers_too(kind: str) -> None:
    model = net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    rigl = sa.RigL(model, optimizer, 0.8, total_steps=40, every=5)
    before, first = counts(rigl), {name: mask.clone() for name, mask in rigl.masks.items()}
    total = sum(mask.numel() for mask in rigl.masks.values())
    assert abs(sum(before.values()) - 0.2 * total) <= len(before)
    for step in range(40):
        at = {name: mask.clone() for name, mask in rigl.masks.items()}
        train(model, optimizer, range(step, step + 1))
        assert counts(rigl) == before
        moved = any(not torch.equal(at[name], mask) for name, mask in rigl.masks.items())
        assert moved == ((step + 1) % 5 == 0 and step + 1 < 30)
        for name, mask in rigl.masks.items():
            weight = model.get_parameter(name)
            assert not weight.detach()[~mask].any()
            for value in optimizer.state[weight].values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    assert not value[~mask].any()
                    if moved:
                        assert not value[mask & ~at[name]].any()  # of what came
    assert any(not torch.equal(first[name], mask) for name, mask in rigl.masks.items())
    assert rigl.exchanged > 0
    rigl.remove()
    train(model, optimizer, range(40, 41))
    assert model[3].weight.detach().ne(0).float().mean() > 2 * rigl.densities["3.weight"]


def test_the_least_go_and_the_steepest_come() -> None:
    """By hand: the share of the schedule, the least magnitudes after the step, the largest gradients before it."""
    model = nn.Linear(30, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    rigl = sa.RigL(model, optimizer, 0.5, total_steps=10, every=2, fraction=0.4, end=1.0)
    target = torch.randn(10, 30, generator=torch.Generator().manual_seed(1))
    for step in range(1, 9):
        old, weight = rigl.masks["weight"].clone(), model.weight.detach().clone()
        gradient = weight - target
        optimizer.zero_grad()
        ((model.weight - target).square().sum() / 4).backward()  # in two parts, as gradients accumulate
        ((model.weight - target).square().sum() / 4).backward()
        assert torch.equal(model.weight.grad, torch.where(old, model.weight.grad, 0.0))
        optimizer.step()
        new = rigl.masks["weight"]
        if step % 2:
            assert torch.equal(old, new)
            continue
        count = int(0.4 / 2 * (1 + math.cos(math.pi * step / 10)) * 150)
        stepped = weight - 0.01 * gradient * old
        gone = torch.where(old, stepped.abs(), math.inf).flatten().argsort()[:count]
        kept = old.clone()
        kept.view(-1)[gone] = False
        come = torch.where(kept, -1.0, gradient.abs()).flatten().argsort(descending=True)[:count]
        expected = kept.clone()
        expected.view(-1)[come] = True
        assert torch.equal(new, expected)
        values = torch.where(expected & old, stepped, 0.0)
        torch.testing.assert_close(model.weight.detach(), values)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_resumed_to_the_same_bits(kind: str) -> None:
    model = net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    rigl = sa.RigL(model, optimizer, 0.9, total_steps=30, every=4)
    train(model, optimizer, range(10))
    stream = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, stream)
    stream.seek(0)
    saved = torch.load(stream, weights_only=True)
    other = net(1)
    again = OPTIMIZERS[kind](other.parameters())
    resumed = sa.RigL(other, again, 0.9, total_steps=30, every=4, seed=5)
    other.load_state_dict(saved["model"])
    again.load_state_dict(copy.deepcopy(saved["optimizer"]))
    for one, two in ((model, optimizer), (other, again)):
        train(one, two, range(10, 22))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert rigl.state_dict()["step_count"] == resumed.state_dict()["step_count"] == 22
    assert rigl.exchanged == resumed.exchanged
    plain = OPTIMIZERS[kind](net().parameters())
    plain.load_state_dict(saved["optimizer"])  # without RigL the entry is nobody's business


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    model = net()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    rigl = sa.RigL(model, optimizer, 0.9, total_steps=30, every=4)
    state = optimizer.state_dict()
    before = copy.deepcopy(rigl.state_dict())
    for change, text in ((("options", {"sparsity": 0.5}), "options: expected those"), (("masks", {}), "0.weight")):
        bad = {**state, KEY: {**state[KEY], change[0]: change[1]}}
        with pytest.raises(ValueError, match=text):
            optimizer.load_state_dict(bad)
    assert all(torch.equal(before["masks"][name], bits) for name, bits in rigl.state_dict()["masks"].items())


def test_densities() -> None:
    shapes = {"a": (64, 3, 3, 3), "b": (64, 64, 3, 3), "c": (10, 64)}
    for density in (0.5, 0.1, 0.05):
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        found = layer_densities(shapes, density, "erk")
        assert sum(found[name] * sizes[name] for name in shapes) == pytest.approx(density * sum(sizes.values()))
        assert max(found.values()) <= 1
        free = [name for name in shapes if found[name] < 1]
        ratio = {name: found[name] * sizes[name] / sum(shapes[name]) for name in free}
        assert max(ratio.values()) == pytest.approx(min(ratio.values()))
    assert layer_densities(shapes, 1.0, "erk") == pytest.approx(dict.fromkeys(shapes, 1.0))
    rigl = sa.RigL(model := net(), OPTIMIZERS["SGD"](model.parameters()), 0.75, total_steps=9, distribution="uniform")
    assert rigl.densities == pytest.approx(dict.fromkeys(("0.weight", "3.weight", "5.weight"), 0.25), abs=0.01)
    model = net()
    partly = sa.RigL(model, OPTIMIZERS["SGD"](model.parameters()), 0.5, total_steps=9, exclude=("0.*", "5.weight"))
    assert list(partly.masks) == ["3.weight"]
    model = net()
    own = sa.prune.Masks(model, {"3.weight": torch.rand(20, 216) < 0.1})
    assert sa.RigL(model, OPTIMIZERS["SGD"](model.parameters()), masks=own, total_steps=9).masks is own
    assert model[3].weight.detach().ne(0).float().mean() < 0.2


def test_overflows_closures_and_frozen_weights() -> None:
    model = net()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    rigl = sa.RigL(model, optimizer, 0.8, total_steps=40, every=1)
    before = {name: mask.clone() for name, mask in rigl.masks.items()}
    (model(batch(0)[0]).sum() * math.inf).backward()
    for parameter in model.parameters():
        parameter.grad = None  # as a scaler that skips
    optimizer.step()
    assert all(torch.equal(before[name], mask) for name, mask in rigl.masks.items())
    model[5].weight.requires_grad_(False)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch(1)[0]), batch(1)[1])
        loss.backward()
        return loss

    optimizer.step(closure)
    same = {name: torch.equal(before[name], mask) for name, mask in rigl.masks.items()}
    assert same == {"0.weight": False, "3.weight": False, "5.weight": True}
    assert not model[3].weight.detach()[~rigl.masks["3.weight"]].any()


def test_refusals() -> None:
    model = net()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    for options, text in (
        ({"sparsity": 1.0}, r"sparsity: expected a number in \[0, 1\), got 1.0"),
        ({"total_steps": 0}, "total_steps: expected a number of steps >= 1"),
        ({"every": True}, "every: expected a number of steps"),
        ({"fraction": 1.5}, r"fraction: expected a number in \[0, 1\], got 1.5"),
        ({"distribution": "even"}, "distribution: expected 'erk' or 'uniform'"),
        ({"exclude": ("*",)}, "model: expected weights"),
    ):
        with pytest.raises(ValueError, match=text):
            sa.RigL(model, optimizer, **{"total_steps": 10, **options})
    with pytest.raises(ValueError, match="holds none of the masked ones"):
        sa.RigL(net(), optimizer, total_steps=10)


def test_inside_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(True)  # one for each process, whatever ran before
    accelerate.state.GradientState._reset_state()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = net()
    model, optimizer = accelerator.prepare(model, OPTIMIZERS["AdamW"](model.parameters()))
    rigl = sa.RigL(model, optimizer, 0.9, total_steps=20, every=2)
    for step in range(8):
        with accelerator.accumulate(model):
            inputs, labels = batch(step)
            accelerator.backward(F.cross_entropy(model(inputs), labels))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    assert rigl.step_count == 4
    assert rigl.exchanged > 0
    assert KEY in optimizer.state_dict()
