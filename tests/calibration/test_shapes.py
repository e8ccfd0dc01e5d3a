"""Passes without values: what they tell of a model, and where they have to be made with values."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparse_accel.calibration.batches import Batches
from sparse_accel.calibration.data import Calibration
from sparse_accel.calibration.shapes import without_values
from sparse_accel.calibration.survey import survey
from sparse_accel.prune import ISpaSP


class Net(nn.Module):
    """Calls its middle layer once, or twice where ``asks`` and the values are large."""

    def __init__(self, asks=False):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.middle = nn.Conv2d(8, 8, 1)
        self.blocks = nn.Sequential(nn.Conv2d(8, 6, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(6, 4)
        self.asks, self.runs, self.seen = asks, [], []

    def forward(self, x):
        self.runs.append(x.device.type)  # a list that copies of the model do not share
        h = self.stem(x)
        h = h + self.middle(h)
        if self.asks and x.max() > 5:
            h = self.middle(h)
        h = self.blocks(h)
        return self.head(F.adaptive_avg_pool2d(h, 1).flatten(1))


def test_shapes_alone_tell_the_calls():
    torch.manual_seed(0)
    net, data = Net().eval(), torch.randn(10, 3, 8, 8)
    whole = survey(net, Batches(Calibration(data, 4)))
    empty = without_values(net)
    told = survey(empty, Batches(Calibration(data, 4)), shapes_of=net)
    assert told.once() == whole.once()
    assert (told.least, told.most) == (whole.least, whole.most)
    assert empty.runs[-3:] == ["meta"] * 3
    assert {p.device.type for p in net.parameters()} == {"cpu"}


def test_magnitude_alone_runs_no_data(monkeypatch):
    torch.manual_seed(0)
    net, data = Net().eval(), torch.randn(12, 3, 8, 8)
    sizes = []

    class Watching(nn.Conv2d):
        def forward(self, x):
            sizes.append((x.device.type, len(x)))
            return super().forward(x)

    net.middle.__class__ = Watching
    run = {"method": "magnitude", "refit": None, "measure": False}
    blind = ISpaSP(net, data[:1], **run).run(data, batch_size=6)
    assert ("meta", 6) in sizes
    assert ("cpu", 6) not in sizes
    monkeypatch.setattr("sparse_accel.prune.structured.request.without_values", lambda _model: 1 / 0)
    seen = ISpaSP(net, data[:1], **run).run(data, batch_size=6)
    assert ("cpu", 6) in sizes
    assert blind.kept == seen.kept
    assert blind.report.notes == seen.report.notes
    for one, other in zip(blind.model.state_dict().values(), seen.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_what_asks_for_values_is_run_with_them():
    torch.manual_seed(0)
    net, data = Net(asks=True).eval(), torch.randn(8, 3, 8, 8)
    data[5] *= 10
    result = ISpaSP(net, data[:1], method="magnitude", refit=None, scope="all").run(data, batch_size=4)
    assert any("a batch calls middle 2 times, example_inputs 1 times" in note for note in result.report.notes)


def test_data_that_do_not_fit_are_refused():
    net = Net().eval()
    for wrong in (torch.randn(4, 2, 8, 8), torch.randn(4, 3, 8, 8).double()):
        with pytest.raises(ValueError, match="calibration: Net fails on a batch"):
            ISpaSP(net, torch.randn(1, 3, 8, 8), method="magnitude", refit=None).run(wrong)
