"""Random small nets, random units: the same outputs as without what the consumers read of the others."""

from __future__ import annotations

import copy
import tempfile

import torch
from compact_checks import assert_unchanged, snapshot
from compact_models import randomize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prune_models import Attention
from test_compact_random import STEPS, RandomNet, Step
from torch import Tensor, nn

import sparse_accel as sa
from sparse_accel.prune import Width, find_widths, remove_units


def draw_units(width: Width, generator: torch.Generator) -> Tensor:
    """Some units, equally many of every group."""
    if width.balance is None:
        count = int(torch.randint(1, width.units + 1, (1,), generator=generator))
        return torch.randperm(width.units, generator=generator)[:count]
    parts = width.balance
    count = int(torch.randint(1, parts.shape[1] + 1, (1,), generator=generator))
    return torch.cat([part[torch.randperm(len(part), generator=generator)[:count]] for part in parts])


def zero_unread(model: nn.Module, width: Width, kept: Tensor) -> None:
    """Zero what the consumers read of the units that are not kept."""
    parameters = dict(model.named_parameters())
    gone = [unit for unit in range(width.units) if unit not in kept.tolist()]
    with torch.no_grad():
        for consumer in width.consumers:
            weight = parameters[consumer.weight]
            for channel in consumer.channels[gone].reshape(-1).tolist():
                if consumer.transposed:
                    weight[channel] = 0
                else:
                    group, column = divmod(channel, weight.shape[1])
                    rows = weight.shape[0] // consumer.groups
                    weight[group * rows : (group + 1) * rows, column] = 0


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(STEPS, st.integers(1, 4), st.sampled_from(("flatten", "mean", "conv")), st.integers(0, 99))
def test_random_nets(steps: list[Step], channels: int, head: str, seed: int) -> None:
    model = randomize(RandomNet(steps, channels, head), seed).double()
    generator = torch.Generator().manual_seed(seed)
    example = torch.randn(2, channels, 6, 6, dtype=torch.float64, generator=generator)
    before = snapshot(model)
    widths = find_widths(model, example)
    kept = {width.name: draw_units(width, generator) for width in widths}
    result = remove_units(model, example, kept)
    assert_unchanged(model, before)
    with tempfile.TemporaryDirectory() as directory:
        sa.save(result, directory)
        loaded = sa.load(directory, model)
    for width in widths:
        assert len({unit for row in width.rows.values() for unit in row.reshape(-1).tolist()}) >= width.units
        zero_unread(model, width, kept[width.name])
    fresh = torch.randn(3, channels, 6, 6, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(fresh)
        came = result.model.eval()(fresh)
        assert torch.equal(loaded.eval()(fresh), came)
    torch.testing.assert_close(came, expected, rtol=1e-9, atol=1e-9 * max(1.0, float(expected.abs().max())))


class Transformer(nn.Module):
    def __init__(self, styles: list[str], heads: int, neurons: int, merge: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Attention(style, 4 * heads, heads) for style in styles])
        self.ups = nn.ModuleList([nn.Linear(4 * heads, neurons) for _ in styles])
        self.downs = nn.ModuleList([nn.Linear(neurons, 4 * heads) for _ in styles])
        self.norms = (
            nn.ModuleList([nn.LayerNorm(4 * heads) for _ in styles]) if merge else [nn.Identity()] * len(styles)
        )
        self.head = nn.Linear(4 * heads, 3)

    def forward(self, x: Tensor) -> Tensor:
        for attention, up, down, norm in zip(self.attentions, self.ups, self.downs, self.norms, strict=True):
            x = x + attention(norm(x))
            x = x + down(torch.relu(up(norm(x))))
        return self.head(x.mean(1))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    st.lists(st.sampled_from(("chunk", "product", "unflatten", "einsum", "timm")), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(1, 5),
    st.booleans(),
    st.integers(0, 99),
)
def test_random_transformers(styles: list[str], heads: int, neurons: int, norm: bool, seed: int) -> None:
    model = randomize(Transformer(styles, heads, neurons, norm), seed).double()
    generator = torch.Generator().manual_seed(seed)
    example = torch.randn(2, 3, 4 * heads, dtype=torch.float64, generator=generator)
    widths = find_widths(model, example)
    assert sum(width.kind == "heads" for width in widths) == (len(styles) if heads > 1 else 0)
    kept = {width.name: draw_units(width, generator) for width in widths}
    small = remove_units(model, example, kept).model
    for width in widths:
        zero_unread(model, width, kept[width.name])
    fresh = torch.randn(3, 5, 4 * heads, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(small(fresh), model(fresh), rtol=1e-9, atol=1e-9)
    # compaction finds the same heads dead
    compacted = sa.compact(model, example).model
    assert sum(p.numel() for p in compacted.parameters()) <= sum(p.numel() for p in small.parameters())
