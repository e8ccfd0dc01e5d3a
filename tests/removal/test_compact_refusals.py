"""What compaction refuses, with a message that names it, leaving the model alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compact_checks import assert_unchanged, snapshot
from compact_models import (
    LeNet,
    Mlp,
    randomize,
    unread,
)
from torch import Tensor, nn
from torch.nn.utils import prune

from sparse_accel.removal.compact import CompactError, OutputMismatchError, UnsupportedModelError, compact


@pytest.mark.parametrize(
    "wrap, message",
    [
        (lambda net: torch.jit.script(net), "scripted"),
        (lambda net: nn.Sequential(nn.DataParallel(net)), r"DataParallel.*\.module"),
        (lambda net: nn.Sequential(torch.compile(net)), r"OptimizedModule.*\._orig_mod"),
    ],
    ids=["script", "data_parallel", "compile"],
)
def test_wrapped_models_are_refused(wrap: Any, message: str) -> None:
    model = wrap(nn.Sequential(nn.Linear(6, 4)))
    with pytest.raises(UnsupportedModelError, match=message):
        compact(model, torch.randn(2, 6))


def test_failing_forward_names_the_module() -> None:
    model = randomize(LeNet())
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match=r"fc1 \(Linear\).*shapes cannot be multiplied"):
        compact(model, torch.randn(2, 1, 30, 30))
    assert_unchanged(model, before)


class Counted(nn.Module):
    """Its output tells how wide it is: a compact one differs on every machine, however that rounds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) + self.a.out_features / 16


@pytest.mark.parametrize("tolerance, allowed", [(0, "0,"), (2**-6, "0.0156,"), (None, "1e-05,")])
def test_tolerance_is_enforced(tolerance: float | None, allowed: str) -> None:
    model = randomize(Counted())
    unread(model.b, (0, 3))
    with torch.no_grad():
        model.a.bias.zero_()
        model.b.bias.zero_()
    example = torch.zeros(3, 4)  # nothing but the count: 6 / 16, and 4 / 16
    before = snapshot(model)
    with pytest.raises(OutputMismatchError, match=f"output 0: expected a difference of at most {allowed} got 0.125"):
        compact(model, example, tolerance=tolerance)
    assert_unchanged(model, before)
    assert compact(model, example, tolerance=0.2).max_abs_diff == 0.125


def test_compact_model_that_cannot_run_is_an_error() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            if x.shape[1] != 6:
                raise ValueError("six, please")
            return self.b(x)

    model = randomize(Stubborn())
    unread(model.b, (0,))
    before = snapshot(model)
    with pytest.raises(CompactError, match="does not run: ValueError: six, please"):
        compact(model, torch.randn(2, 4))
    assert_unchanged(model, before)


def test_model_that_cannot_be_copied() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.lock = iter([1])  # a generator cannot be copied
    model.lock = (i for i in range(3))
    with pytest.raises(CompactError, match="cannot be copied"):
        compact(model, torch.randn(1, 2))


def test_lazy_modules_are_named() -> None:
    with pytest.raises(UnsupportedModelError, match=r"1 \(LazyLinear\): weight has no shape yet"):
        compact(nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(2)), torch.randn(2, 3))


def test_hook_made_weight_is_named() -> None:
    model = randomize(Mlp())
    prune.random_unstructured(model.b, "weight", amount=0.5)
    with pytest.raises(CompactError, match=r"b \(Linear\): its weight is computed by a hook .*prune\.remove\("):
        compact(model, torch.randn(2, 6))
    prune.remove(model.b, "weight")
    compact(model, torch.randn(2, 6))


def test_inputs_are_not_touched_and_must_be_leaves() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x.mul_(2))

    x = torch.ones(2, 4)
    compact(randomize(InPlace()), x)
    assert torch.equal(x, torch.ones(2, 4))
    with pytest.raises(CompactError, match="example_inputs cannot be copied"):
        compact(randomize(InPlace()), x.requires_grad_() * 2)


def test_model_without_tensor_outputs() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "nothing"

    with pytest.raises(UnsupportedModelError, match="output holds no tensor"):
        compact(Silent(), torch.ones(1))
