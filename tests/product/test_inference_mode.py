"""Inside torch.inference_mode: what the library returns can be trained, and inputs made there will do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse_accel as sa

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.norm(self.a(x))))


def made() -> Net:
    torch.manual_seed(0)
    net = Net()
    net.b.weight.data[:, ::2] = 0
    net.a.weight.data[1] = 0  # a constant channel: compact() makes a bias for b
    return net


def assert_trainable(model: nn.Module) -> None:
    assert not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))
    optimizer = sa.RMDA(model.parameters(), lr=0.1, momentum=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(X.clone()).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in model.parameters())


def _removed(net: nn.Module, x: Tensor, _: Path) -> nn.Module:
    result = sa.prune.remove_units(net, x, {"a": [1, 3, 5]})
    result.add_bias("b")
    return result.model


def _reloaded(net: nn.Module, x: Tensor, path: Path) -> nn.Module:
    sa.save(sa.compact(net, x), path)
    return sa.load(path, Net())


def _sparse_reloaded(net: nn.Module, x: Tensor, path: Path) -> nn.Module:
    sa.prune.CurvatureIHT(net, 0.5).run(x).save(path)
    return sa.prune.load_sparse(path, Net()).model


def _fine_tuned(net: nn.Module, x: Tensor, _: Path) -> nn.Module:
    def tune(model: nn.Module, name: str) -> None:
        model(torch.zeros(2, 4)).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.01).step()

    return sa.prune.ISpaSP(net, x, fine_tune=tune).run(x).model


RESULTS: dict[str, Callable[[nn.Module, Tensor, Path], nn.Module]] = {
    "compact": lambda net, x, _: sa.compact(net, x).model,
    "remove_units": _removed,
    "ispasp": lambda net, x, _: sa.prune.ISpaSP(net, x).run(x).model,
    "ispasp_batches": lambda net, x, _: sa.prune.ISpaSP(net, x, method="ispasp").run([x, x]).model,
    "ispasp_fine_tune": _fine_tuned,
    "curvature_iht": lambda net, x, _: sa.prune.CurvatureIHT(net, 0.5).run(x).model,
    "curvature_iht_refine": lambda net, x, _: sa.prune.CurvatureIHT(net, 0.5, refine=1).run([x, x]).model,
    "load": _reloaded,
    "load_sparse": _sparse_reloaded,
}


@pytest.mark.parametrize("model_too", [False, True])
@pytest.mark.parametrize("name", RESULTS)
def test_results_can_be_trained(name: str, model_too: bool, tmp_path: Path) -> None:
    net = made()
    with torch.inference_mode():
        if model_too:
            net = made()
            assert net.norm.running_mean.is_inference()
        model = RESULTS[name](net.eval(), X.clone(), tmp_path)
        assert torch.is_inference_mode_enabled()
    assert_trainable(model)


def test_they_are_the_same_as_outside(tmp_path: Path) -> None:
    for name, result in RESULTS.items():
        plain = result(made().eval(), X, tmp_path / "plain")
        with torch.inference_mode():
            inside = result(made().eval(), X.clone(), tmp_path / "inside")
        for (key, one), other in zip(plain.state_dict().items(), inside.state_dict().values(), strict=True):
            assert torch.equal(one, other), (name, key)


def test_inputs_made_in_inference_mode_serve_outside() -> None:
    with torch.inference_mode():
        x = X.clone()
    net = made().eval()
    assert sa.compact(net, x).model.a.out_features == 2
    assert_trainable(sa.prune.ISpaSP(net, (x,)).run([(x,), {"x": x}]).model)
    assert_trainable(sa.prune.CurvatureIHT(net, 0.5, refine=1).run([x, x, x]).model)


def test_optimizers_go_on(tmp_path: Path) -> None:
    net = made()
    optimizer: Any = sa.ProxSGD(net.parameters(), lr=0.1)
    for _ in range(2):
        net(X).square().mean().backward()
        optimizer.step()
    with torch.inference_mode():
        optimizer.finalize_()
        optimizer.load_state_dict(optimizer.state_dict())
        result = sa.compact(net, X.clone(), optimizer)
        sa.save(result, tmp_path)
        loaded = sa.load(tmp_path, Net())
        again = sa.load_optimizer(tmp_path, loaded, sa.ProxSGD)
    assert result.optimizer is not None
    for model, own in ((net, optimizer), (result.model, result.optimizer), (loaded, again)):
        model(X).square().mean().backward()
        own.step()


def test_masks_and_solvers() -> None:
    with torch.inference_mode():
        net = sa.prune.CurvatureIHT(made(), 0.5).run(X.clone()).model
        masks = sa.prune.Masks(net)
        assert not any(mask.is_inference() for mask in masks.values())
        for method in ("iht", "obs", "admm"):
            weight = sa.prune.layerwise_solve(torch.randn(4, 6), torch.eye(6), 0.5, method=method)
            assert not weight.is_inference()
            assert int((weight == 0).sum()) == 12
        for problem in (
            sa.sparse_recovery.Problem(lambda w: (X @ w - 1).square().sum(), initial=torch.ones(4)),
            sa.sparse_recovery.LeastSquares(X.clone(), torch.ones(32)),
            sa.sparse_recovery.Logistic(X.clone(), (X.clone()[:, 0] > 0).float()),
        ):
            found = sa.sparse_recovery.solve(problem, 2).theta
            assert not found.is_inference()
            assert int((found != 0).sum()) == 2


def test_no_grad_of_the_caller_stays() -> None:
    grads = []

    class Watching(Net):
        def forward(self, x: Tensor) -> Tensor:
            grads.append(torch.is_grad_enabled())
            return super().forward(x)

    with torch.no_grad():
        small = sa.compact(Watching().eval(), X).model
    assert not any(grads)
    assert_trainable(small)
