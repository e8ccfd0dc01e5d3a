"""Calibration data, watched forward passes, im2col columns and streamed Gram matrices."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from two_ranks import two_ranks

from sparse_accel.calibration import moments
from sparse_accel.calibration.data import Calibration, eval_mode, require_memory, stream
from sparse_accel.calibration.moments import Gram, column_chunks, columns


def shapes(calibration):
    return [tuple(batch.shape) for batch in calibration.batches()]


def test_tensor_is_split():
    assert shapes(Calibration(torch.zeros(5, 2), batch_size=2)) == [(2, 2), (2, 2), (1, 2)]


def test_large_samples_make_small_batches():
    images = torch.zeros(1, 3, 224, 224).expand(20, -1, -1, -1)
    assert [shape[0] for shape in shapes(Calibration(images))] == [6, 6, 6, 2]
    assert [shape[0] for shape in shapes(Calibration(images, batch_size=16))] == [16, 4]
    assert [shape[0] for shape in shapes(Calibration(torch.zeros(1).expand(2, 3 << 20)))] == [1, 1]
    assert [shape[0] for shape in shapes(Calibration(torch.zeros(200, 3, 32, 32)))] == [128, 72]


def test_iterators_are_kept_and_functions_called_again():
    kept = Calibration(torch.full((1,), float(i)) for i in range(3))
    assert shapes(kept) == shapes(kept) == [(1,)] * 3
    made = []
    fresh = Calibration(lambda: made.append(1) or [torch.zeros(1)])
    list(fresh.batches())
    list(fresh.batches())
    assert len(made) == 2


def test_mapping_is_one_batch_and_select_picks():
    (batch,) = Calibration({"x": torch.zeros(2)}).batches("cpu")
    assert set(batch) == {"x"}
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(4, 3), torch.zeros(4)), 2)
    assert shapes(Calibration(loader, select=lambda item: item[0])) == [(2, 3), (2, 3)]
    assert shapes(Calibration(Calibration(torch.zeros(2, 1), 1))) == [(1, 1), (1, 1)]


@pytest.mark.parametrize("inputs", [3, None, nn.Linear(1, 1)])
def test_inputs_of_another_type(inputs):
    with pytest.raises(TypeError, match=f"calibration: expected .* got {type(inputs).__name__}"):
        Calibration(inputs)


def test_bad_items():
    with pytest.raises(TypeError, match="model inputs, got int"):
        list(Calibration([1]).batches())
    for empty in ([], torch.zeros(0, 3)):
        with pytest.raises(ValueError, match="at least one batch"):
            list(Calibration(empty).batches())
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        Calibration([], batch_size=0)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(3, 2)
        self.unused = nn.Linear(3, 2)
        self.ran = 0

    def forward(self, x, scale=1.0):
        x = self.first(self.drop(self.first(x * scale)))
        x = self.last(input=x)
        self.ran += 1
        return x


def test_stream_sees_every_call_and_stops_where_it_is_told():
    net = Shared()
    net.drop.eval()
    seen = []
    data = Calibration([{"x": torch.ones(2, 3), "scale": 2.0}, (torch.ones(4, 3),), torch.ones(1, 3)])
    assert stream(net, data, {"first": net.first}, lambda name, x, y: seen.append((name, len(x)))) == 3
    assert seen == [("first", n) for n in (2, 2, 4, 4, 1, 1)]
    assert net.ran == 3
    assert net.training
    assert not net.drop.training
    assert not net.first._forward_hooks
    seen.clear()
    stream(net, data, {"last": net.last}, lambda name, x, y: seen.append(name), calls=1)
    assert net.ran == 3  # no pass went on
    assert seen == ["last"] * 3
    data.fresh = True  # who knows how often these batches call it
    stream(net, data, {"last": net.last}, lambda name, x, y: None, calls=1)
    assert net.ran == 6


def test_stream_counts_calls_over_all_batches():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            layer = self.a if x[0, 0] >= 0 else self.b
            for _ in range(len(x)):
                layer(x)
            return x

    net, seen = Routed(), []
    modules = {"a": net.a, "b": net.b}
    data = Calibration([torch.ones(1, 2), -torch.ones(3, 2), torch.ones(2, 2)])
    stream(net, data, modules, lambda name, x, y: seen.append(name))
    assert seen == ["a", "b", "b", "b", "a", "a"]
    stream(net, Calibration(torch.ones(1, 2)), modules, lambda *_: None, required=False)
    with pytest.raises(ValueError, match=r"b \(Linear\): the forward pass does not call"):
        stream(net, Calibration(torch.ones(1, 2)), modules, lambda *_: None)


def test_stream_refuses_idle_modules_and_cleans_up():
    net = Shared()
    with pytest.raises(ValueError, match=r"unused \(Linear\): the forward pass does not call"):
        stream(net, Calibration(torch.ones(2, 3)), {"unused": net.unused}, lambda *_: None)
    with pytest.raises(ZeroDivisionError):
        stream(net, Calibration(torch.ones(2, 3)), {"last": net.last}, lambda *_: 1 / 0)
    assert net.training
    assert not net.last._forward_hooks


def test_eval_mode_restores_each_module():
    net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with eval_mode(net):
        assert not any(module.training for module in net.modules())
    assert [module.training for module in net] == [True, False]


def test_memory_is_stated_and_bounded(caplog):
    with caplog.at_level(logging.INFO, "sparse_accel"):
        require_memory(2_000_000, None, "the sums")
    assert "the sums: 2.0 MB" in caplog.text
    with pytest.raises(ValueError, match="max_memory: expected at least 10 bytes for sums, got 9"):
        require_memory(10, 9, "sums")


CONVS = [
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), groups=2),
    nn.Conv2d(4, 4, 3, dilation=2, padding="same", groups=4, padding_mode="reflect"),
    nn.Conv2d(4, 6, 3, stride=2, padding=(1, 2), padding_mode="circular"),
    nn.Conv1d(4, 2, 3, stride=3, padding_mode="replicate", padding=1),
    nn.Conv3d(4, 2, 2, padding="valid"),
    nn.Linear(7, 3),
]


@pytest.mark.parametrize("module", CONVS, ids=str)
def test_columns_times_weight_is_the_layer(module):
    torch.manual_seed(0)
    module = module.double()
    ndim = module.weight.dim() - 2
    x = torch.randn(3, 4, *[7] * ndim, dtype=torch.float64)
    if not ndim:
        x = x[:, :, None].expand(3, 4, 7) * torch.arange(7.0)
    groups = getattr(module, "groups", 1)
    weight = module.weight.reshape(groups, -1, module.weight[0].numel())
    expected = module(x) - module.bias.reshape(-1, *[1] * ndim)
    expected = expected.movedim(1, -1).reshape(-1, module.weight.shape[0]) if ndim else expected.reshape(-1, 3)
    torch.testing.assert_close((weight @ columns(module, x)).flatten(0, 1).T, expected)
    parts = list(column_chunks(module, x, max_bytes=1))
    assert len(parts) == (len(x) if ndim else 12)
    torch.testing.assert_close(torch.cat([part for part, _ in parts], 2), columns(module, x))
    if ndim:
        torch.testing.assert_close(columns(module, x[0]), columns(module, x[:1]))


def test_conv1d_of_gpt2_and_other_modules():
    conv = type("Conv1D", (nn.Module,), {})()
    conv.weight = nn.Parameter(torch.randn(5, 2))
    assert columns(conv, torch.zeros(2, 3, 5)).shape == (1, 5, 6)
    with pytest.raises(TypeError, match="got Bilinear"):
        columns(nn.Bilinear(1, 1, 1), torch.zeros(2, 1))


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    groups=st.integers(1, 3),
    features=st.integers(1, 5),
    targets=st.integers(0, 3),
    centred=st.booleans(),
    panel=st.sampled_from([2, moments.PANEL_ROWS]),
)
def test_gram_is_the_moments_of_all_batches(data, groups, features, targets, centred, panel):
    sizes = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(sum(sizes))
    rows = torch.randn(groups, features + targets, sum(sizes), generator=generator, dtype=torch.float64) + 3
    gram = Gram(groups, features, targets, centred=centred)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "PANEL_ROWS", panel)
        for batch in rows.split(sizes, 2):
            gram.update(batch[:, :features], batch[:, features:] if targets else None)
    mean = rows.mean(2, keepdim=True) if sum(sizes) else torch.zeros_like(rows[:, :, :1].sum(2, keepdim=True))
    moved = rows - mean if centred else rows
    products = moved @ moved[:, :features].mT
    torch.testing.assert_close(gram.gram, products[:, :features])
    torch.testing.assert_close(gram.cross, products[:, features:])
    torch.testing.assert_close(torch.cat([gram.mean, gram.target_mean], 1), mean[..., 0])
    assert gram.count == sum(sizes)
    assert gram.nbytes == Gram.bytes_needed(groups, features, targets)


def test_a_large_mean_costs_no_digits():
    rows = torch.randn(1, 3, 4096, generator=torch.Generator().manual_seed(0))
    gram = Gram(1, 3)
    for batch in (rows + 1000).split(256, 2):
        gram.update(batch)
    exact = (rows + 1000).double()
    exact = exact - exact.mean(2, keepdim=True)
    torch.testing.assert_close(gram.gram, exact @ exact.mT, rtol=1e-5, atol=1e-2)


def test_gram_takes_half_precision_and_refuses_other_shapes():
    gram = Gram(1, 2, 1)
    gram.update(torch.ones(1, 2, 3, dtype=torch.bfloat16), torch.ones(1, 1, 3))
    assert gram.mean.tolist() == [[1.0, 1.0]]
    with pytest.raises(ValueError, match=r"expected shape \[1, 3, 4\] together, got \[1, 4, 4\]"):
        gram.update(torch.zeros(1, 3, 4), torch.zeros(1, 1, 4))


def _rank(rank, path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    rows = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 5
    for centred in (True, False):
        gram = Gram(1, 3, 1, centred=centred)
        mine = rows[:, :, :7] if rank == 0 else rows[:, :, 7:]
        gram.update(mine[:, :3], mine[:, 3:])
        gram.all_reduce_()
        whole = SimpleNamespace(rows=rows - rows.mean(2, keepdim=True) if centred else rows)
        products = whole.rows @ whole.rows[:, :3].mT
        torch.testing.assert_close(gram.gram, products[:, :3])
        torch.testing.assert_close(gram.cross, products[:, 3:])
        torch.testing.assert_close(gram.mean, rows[:, :3].mean(2))
        assert gram.count == 9
        sums = [None, None]
        torch.distributed.all_gather_object(sums, gram.gram.sum().item())
        assert sums[0] == sums[1]
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_join_their_moments(tmp_path):
    two_ranks(_rank, str(tmp_path / "rendezvous"))
