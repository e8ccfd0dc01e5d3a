"""Blocks that hold items of their own that are none: the shortcut's convolution of a residual block, layers of an MLP.

Whether what follows reads nothing else shows when the front is replaced; the blocks around take their place then."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import structured_models as nets
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_accel.calibration.replay.front import Front
from sparse_accel.calibration.replay.store import Store
from sparse_accel.calibration.survey import Blocks
from sparse_accel.prune import CurvatureIHT, ISpaSP

NOTE = "every pass runs the model from its inputs"


class Projecting(nn.Module):
    """A stem, and residual blocks of which the first has a convolution in its shortcut."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem, self.norm, self.pool = nn.Conv2d(3, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.MaxPool2d(2)
        self.blocks = nn.Sequential(nets.BasicBlock(6, 8), *(nets.BasicBlock(8, 8) for _ in range(depth - 1)))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.pool(F.relu(self.norm(self.stem(x))))).mean((2, 3)))


class Joined(Projecting):
    """The stem's output is read again behind the blocks."""

    def __init__(self, depth: int) -> None:
        super().__init__(depth)
        self.fc = nn.Linear(14, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm(self.stem(x))))
        return self.fc(torch.cat([self.blocks(x), x], 1).mean((2, 3)))


class Mixing(nn.Module):
    """A layer of a Transformer, less the attention: those of its MLP are items."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Mixers(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 4)
        self.blocks = nn.ModuleList(Mixing() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2).mT)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def made(kind: Callable[[int], nn.Module], depth: int) -> nn.Module:
    torch.manual_seed(0)
    return nets.settle(kind(depth), nets.images())


BATCHES = list(nets.images(9).split(3))
PRUNERS: dict[str, Callable[..., Any]] = {
    "ISpaSP": lambda model, **options: ISpaSP(model, BATCHES[0][:1], measure=False, **options).run(BATCHES),
    "CurvatureIHT": lambda model, **options: CurvatureIHT(model, 0.5, **options).run(BATCHES),
}


def calls_of(module: nn.Module) -> list[int]:
    """Counts calls with a whole batch, in the model and in its copies."""
    counts = [0]
    module.register_forward_pre_hook(lambda _, args: counts.__setitem__(0, counts[0] + (len(args[0]) == 3)))
    return counts


@pytest.mark.parametrize("what", PRUNERS)
@pytest.mark.parametrize("kind", [Projecting, Joined, Mixers])
def test_linear_in_depth_to_the_bits_of_whole_runs(kind, what):
    counts = {}
    for depth in (2, 4, 8):
        model = made(kind, depth)
        own = [calls_of(block) for block in model.blocks]
        came = PRUNERS[what](model)
        assert not [note for note in came.report.notes if NOTE in note]
        counts[depth] = sum(count[0] for count in own)
    assert counts[8] - counts[4] <= 2 * (counts[4] - counts[2])
    model = made(kind, 3)
    whole, replayed = PRUNERS[what](model, activation_memory=0), PRUNERS[what](model)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, replayed.model.state_dict()[name]), name


@pytest.mark.parametrize("what", PRUNERS)
def test_the_stem_is_not_run_again(what):
    """Only for as long as no block is finished."""
    counts = []
    for depth in (3, 6):
        model = made(Projecting, depth)
        own = calls_of(model.stem)
        PRUNERS[what](model)
        counts.append(own[0])
    assert counts[0] == counts[1]


@torch.no_grad()
def test_twins_that_took_other_blocks_do_not_read_each_others_outputs():
    """What is kept is counted by blocks: the first output of one is not that of the other's first block."""
    model = made(Mixers, 2)
    inner = Blocks([layer for block in model.blocks for layer in (block.mlp[0], block.mlp[2])], [[]] * 4, [])
    outer = Blocks(list(model.blocks), [[], []], [])
    front = Front(model, [inner, outer], Store(1 << 20))
    everything = set(model.modules())
    front.advance(everything, everything)
    twin = front.twin(copy.deepcopy(model))
    batches: Any = SimpleNamespace(number=0, changed=False)
    expected = model(BATCHES[0])
    front.go_out("a shortcut")

    def output(own: Front) -> Tensor:
        with own.replaced(batches):
            return own.model(BATCHES[0])

    for own in (front, twin, front):
        assert torch.equal(output(own), expected)
    with pytest.raises(RuntimeError, match="meta"):  # the inner ones are no blocks: that shows, as ever
        output(twin)
