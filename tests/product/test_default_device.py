"""torch.set_default_device speaks of the caller's tensors, not of the library's: under "meta" nothing changes."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._device import _device_constructors

import sparse_accel as sa

PACKAGE = Path(sa.__file__).parent
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(24, 3, 8, 8, generator=GENERATOR)
VECTORS = torch.randn(48, 6, generator=GENERATOR)
TOKENS = torch.randn(8, 5, 8, generator=GENERATOR)
NOISE = torch.randn(4000, generator=GENERATOR)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.q, self.k, self.v = 4, nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.out, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.out(torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(torch.relu(self.up(self.norm(x))))


def _filled(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(NOISE[: parameter.numel()].reshape(parameter.shape) * 0.4)
    return model.eval()


def _convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2, padding=1),
        nn.PixelShuffle(2), nn.Conv2d(2, 4, 1), nn.ELU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(64, 5),
    )  # fmt: skip


CONVOLUTIONS, MLP, ATTENTION = (
    _filled(_convolutions()),
    _filled(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 3))),
    _filled(Attention()),
)
SHARED = {"conv": (CONVOLUTIONS, IMAGES), "mlp": (MLP, VECTORS), "attention": (ATTENTION, TOKENS)}


def _planted(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and m.weight.shape[1] > 4):
            layer.weight[:, ::3] = 0
            layer.weight[1] = 0
    return model


def _state(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


def _compact(name: str, path: Path) -> list[Tensor]:
    model, x = SHARED[name]
    return _state(sa.compact(_planted(model), x).model)


def _widths(name: str, path: Path) -> list[Tensor]:
    model, x = SHARED[name]
    widths = sa.prune.find_widths(model, x)
    kept = {width.name: list(range(0, width.units, 2)) for width in widths if width.balance is None}
    result = sa.prune.remove_units(model, x, kept)
    return [consumer.channels for width in widths for consumer in width.consumers] + _state(result.model)


def _ispasp(**options: Any) -> Callable[[str, Path], list[Tensor]]:
    def run(name: str, path: Path) -> list[Tensor]:
        model, x = SHARED[name]
        return _state(sa.prune.ISpaSP(model, x, **options).run([x, x]).model)

    return run


def _curvature_iht(**options: Any) -> Callable[[str, Path], list[Tensor]]:
    def run(name: str, path: Path) -> list[Tensor]:
        model, x = SHARED[name]
        return _state(sa.prune.CurvatureIHT(model, 0.5, **options).run([x, x]).model)

    return run


def _saved(name: str, path: Path) -> list[Tensor]:
    model, x = SHARED[name]
    small = sa.compact(_planted(model), x)
    sa.save(small, path / "small")
    sparse = sa.prune.CurvatureIHT(model, "2:4").run(x)
    sparse.save(path / "sparse")
    again = sa.load(path / "small", copy.deepcopy(model)), sa.prune.load_sparse(path / "sparse", model).model
    exported = [tensor.to_dense() for tensor in sparse.export().values()]
    return [*_state(again[0]), *_state(again[1]), *exported, *sa.prune.Masks(sparse.model).values()]


def _train(make: Callable[[list[Any]], Any]) -> Callable[[str, Path], list[Tensor]]:
    def run(name: str, path: Path) -> list[Tensor]:
        model, x = copy.deepcopy(SHARED[name][0]), SHARED[name][1]
        optimizer = make(list(sa.param_groups(model, sa.GroupLasso(0.01))))
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step()
        optimizer.finalize_()
        sa.sparsity(model)
        result = sa.compact(model, x, optimizer)
        sa.save(result, path)
        again = sa.load_optimizer(path, sa.load(path, copy.deepcopy(model)), type(optimizer))
        return [*_state(result.model), *(t for s in again.state.values() for t in s.values() if isinstance(t, Tensor))]

    return run


def _sppam(name: str, path: Path) -> list[Tensor]:
    model, x = copy.deepcopy(SHARED[name][0]), SHARED[name][1]
    optimizer = sa.SPPAM(model.parameters(), lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    vector = nn.Parameter(x.new_zeros(7))
    exact = sa.SPPAM([vector], lr=1.0, momentum=0.5)
    exact.step_quadratic(NOISE[:49].reshape(7, 7) @ NOISE[:49].reshape(7, 7).T, NOISE[:7])
    other = nn.Parameter(x.new_zeros(1, 6))
    glm = sa.SPPAM([other], lr=1.0)
    glm.step_glm(VECTORS, (VECTORS[:, 0] > 0).float(), family="binomial")
    glm.step_glm(VECTORS.to_sparse_csr(), (VECTORS[:, 0] > 0).float(), family="binomial")
    assert sa.sppam.is_stable(0.1, 0.1, 0.5) in (True, False)
    return [*_state(model), vector.detach(), other.detach()]


def _plain(name: str, path: Path) -> list[Tensor]:
    weight, x = NOISE[:96].reshape(8, 12), NOISE[:480].reshape(12, 40)
    gram = x @ x.T
    found = [
        sa.prune.layerwise_solve(weight, gram, 0.5, method=m) for m in ("iht", "magnitude", "obs", "sparsegpt", "admm")
    ]
    found += [sa.prune.layerwise_solve(weight, gram, target) for target in ("2:4", sa.Rows(0.5))]
    double = gram.double(), weight.double()
    found.append(sa.prune.gram_obs(double[0], double[1] @ double[0], double[1], keep=5).kept)
    found.append(sa.prune.energy_select(double[0], double[1] @ double[0], double[1], keep=5).kept)
    found.append(sa.topk_threshold_(weight.clone(), None, 20))
    kept = weight.abs() > 0.3
    found.append(sa.masked_cg(weight @ gram, kept, gram + gram.diagonal().diag(), iters=5))
    recovery = sa.sparse_recovery
    b = x.T @ NOISE[:12]
    for problem in (recovery.LeastSquares(x.T, b), recovery.Logistic(x.T, (b > 0).float())):
        for method in recovery.METHODS:
            found.append(recovery.solve(problem, 3, method=method).theta)
    stochastic = recovery.solve(recovery.LeastSquares(x.T, b), 3, batch_size=10, seed=1)
    found += [stochastic.theta, stochastic.history.iteration]
    return found


def _diagnostics(name: str, path: Path) -> list[Tensor]:
    model, x = SHARED[name]
    other = _filled(copy.deepcopy(model))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(NOISE[-parameter.numel() :].reshape(parameter.shape))
    data = (x, NOISE[: len(x)].sign().clamp(min=0).long().cpu())
    found = []
    for refit in (False, True):
        loss = torch.nn.functional.cross_entropy
        report = sa.diagnostics.dropout_stability(model, loss, data, trials=2, refit=refit)
        line = sa.diagnostics.low_loss_path(model, other, loss, data, points=2, refit=refit)
        found += [torch.as_tensor([*report.together.losses, *line.losses, *(line.aligned or ())], device="cpu")]
        found += line(0.3).values()
    return found


PATHS: dict[str, Callable[[str, Path], list[Tensor]]] = {
    "compact": _compact,
    "widths": _widths,
    "ispasp": _ispasp(),
    "ispasp_all": _ispasp(scope="all", method="ispasp", refit="bias"),
    "ispasp_random": _ispasp(method="random", refit_head=True),
    "ispasp_budget": _ispasp(budget={"flops": 0.7}),
    "curvature_iht": _curvature_iht(refine=2),
    "curvature_iht_global": _curvature_iht(allocation="global"),
    "saved": _saved,
    "rmda": _train(lambda groups: sa.RMDA(groups, lr=0.1, momentum=0.1)),
    "ramda": _train(lambda groups: sa.RAMDA(groups, lr=0.01, momentum=0.1)),
    "prox_adamw": _train(lambda groups: sa.ProxAdamW(groups, lr=0.1)),
    "prox_sgd": _train(lambda groups: sa.ProxSGD(groups, lr=0.1)),
    "sppam": _sppam,
    "plain": _plain,
    "diagnostics": _diagnostics,
}


@pytest.fixture
def meta() -> Iterator[None]:
    before = torch.get_default_device()
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None if before.type == "cpu" else before)


EVERYWHERE = ("compact", "widths", "ispasp", "curvature_iht")
CASES = [(path, name) for path in PATHS for name in (SHARED if path in EVERYWHERE else ["mlp"])]


@pytest.mark.parametrize("path, name", CASES, ids=[f"{path}-{name}" for path, name in CASES])
def test_main_paths(path: str, name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    before = PATHS[path](name, tmp_path / "before")
    request.getfixturevalue("meta")
    after = PATHS[path](name, tmp_path / "after")
    assert len(before) == len(after) > 0
    for one, other in zip(before, after, strict=True):
        assert other.device.type == "cpu"
        assert torch.equal(one, other) or torch.allclose(one, other, equal_nan=True)


def test_estimators(meta: None) -> None:
    pytest.importorskip("sklearn")
    x = VECTORS.numpy()
    assert sa.linear_model.SPPAMRegressor(max_iter=2).fit(x, x[:, 0]).coef_.shape == (6,)
    assert sa.linear_model.SparseLinearRegression(k=2).fit(x, x[:, 0] + x[:, 1]).support_.tolist() == [0, 1]
    assert sa.linear_model.SparseLogisticRegression(k=1).fit(x, x[:, 0] > 0).support_.tolist() == [[0]]


def test_no_factory_leaves_its_device_to_the_caller() -> None:
    makers = {function.__name__ for function in _device_constructors()}
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: torch.{node.func.attr}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
        and node.func.attr in makers
        and not any(keyword.arg in ("device", None) for keyword in node.keywords)
    ]
    assert not found
