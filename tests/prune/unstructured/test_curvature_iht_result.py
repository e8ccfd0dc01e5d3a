"""Results of CurvatureIHT: saved, loaded, exported, compacted."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparse_accel as sa
from sparse_accel.prune import CurvatureIHT, GroupSparsity, Rows, export_sparse, load_sparse
from sparse_accel.removal.checkpoint import CheckpointError


class Net(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.first, self.second = nn.Linear(width, 8), nn.Linear(width, 8)
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.head(F.relu(self.first(x) + self.second(x)))


@pytest.fixture
def result():
    torch.manual_seed(0)
    return CurvatureIHT(Net(), 0.5).run(torch.randn(32, 2, 6, 6))


def test_save_and_load(result, tmp_path):
    assert result.save(tmp_path) == tmp_path
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "plan.json"]
    fresh = Net()
    before = copy.deepcopy(fresh.state_dict())
    loaded = load_sparse(tmp_path, fresh)
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.state_dict().items())
    assert loaded.model.second.weight is loaded.model.first.weight
    x = torch.randn(3, 2, 6, 6)
    assert torch.equal(loaded.model.eval()(x), result.model.eval()(x))
    assert {name: tensor.dtype for name, tensor in loaded.model.state_dict().items()} == {
        name: tensor.dtype for name, tensor in result.model.state_dict().items()
    }
    assert all(torch.equal(loaded.masks[name], mask) for name, mask in result.masks.items())
    assert loaded.report == result.report
    assert str(loaded.report) == str(result.report)
    with loaded.masks.apply_to(torch.optim.SGD(loaded.model.parameters(), lr=0.1)) as masked:
        loaded.model(x).sum().backward()
        masked.optimizer.step()
    loaded.save(tmp_path)


def test_only_kept_weights_are_stored(result, tmp_path):
    from safetensors.torch import load_file

    result.save(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["conv.weight:kept"].numel() == 54
    assert stored["conv.weight:mask"].numel() == -(-108 // 8)
    assert "conv.weight" not in stored
    assert "second.weight" not in {name.split(":")[0] for name in stored}


def test_refused_saves(result, tmp_path):
    with torch.no_grad():
        result.model.head.weight.fill_(1)
    with pytest.raises(CheckpointError, match=r"head\.weight.*apply_"):
        result.save(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    result.masks.apply_()
    result.save(tmp_path / "a")


def test_refused_loads(result, tmp_path):
    with pytest.raises(CheckpointError, match=r"plan\.json is missing"):
        load_sparse(tmp_path, Net())
    result.save(tmp_path)
    with pytest.raises(CheckpointError, match="expected the shape"):
        load_sparse(tmp_path, Net(7))
    with pytest.raises(CheckpointError, match=r"only one.*Linear"):
        load_sparse(tmp_path, nn.Linear(2, 2))
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["version"] = 99
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(CheckpointError, match="version"):
        load_sparse(tmp_path, Net())


def test_csr(result):
    sparse = result.export("csr")
    assert list(sparse) == ["conv.weight", "first.weight", "head.weight"]
    assert sparse["conv.weight"].shape == (6, 18)
    x = torch.randn(5, 8)
    for name, weight in sparse.items():
        assert weight.layout == torch.sparse_csr
        assert torch.equal(weight.to_dense(), result.model.get_parameter(name).detach().flatten(1))
    torch.testing.assert_close(F.linear(x, sparse["head.weight"]), F.linear(x, result.model.head.weight.detach()))


def test_semi_structured_says_what_is_missing(result):
    with pytest.raises(ValueError, match=r"conv\.weight.*CUDA"):
        result.export("semi_structured")
    with pytest.raises(ValueError, match="form: expected"):
        result.export("coo")
    with pytest.raises(ValueError, match="no parameter 'none'"):
        export_sparse(result.model, ["none"])


@pytest.mark.cuda
def test_semi_structured():
    torch.manual_seed(0)
    net = nn.Linear(128, 64).cuda()
    result = CurvatureIHT(net, "2:4").run(torch.randn(256, 128, device="cuda"))
    result.model.half()
    weight = result.export("semi_structured")["weight"]
    x = torch.randn(64, 128, device="cuda", dtype=torch.float16)
    torch.testing.assert_close(F.linear(x, weight), F.linear(x, result.model.weight), rtol=1e-2, atol=1e-2)
    dense = CurvatureIHT(net, 0.3).run(torch.randn(256, 128, device="cuda"))
    dense.model.half()
    with pytest.raises(ValueError, match="2 of 4"):
        dense.export("semi_structured")


def test_rows():
    torch.manual_seed(0)
    net = nn.Linear(12, 8)
    weight = CurvatureIHT(net, Rows(0.75)).run(torch.randn(64, 12)).model.weight
    assert (weight != 0).sum(1).tolist() == [3] * 8


def test_groups_go_with_compact():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten())
    net.append(nn.Linear(96, 4)).eval()
    x = torch.randn(40, 2, 8, 8)
    result = CurvatureIHT(net, targets={"3": GroupSparsity(0.5, by="input")}).run(x)
    alive = (result.model[3].weight != 0).any(3).any(2).any(0)
    assert int(alive.sum()) == 4
    small = sa.compact(result.model, x[:2]).model
    assert small[0].out_channels == small[3].in_channels == 4
    torch.testing.assert_close(small(x), result.model(x), rtol=1e-4, atol=1e-5)
