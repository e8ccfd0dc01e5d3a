"""SPPAM: exact and inexact steps, the laws of the paper, the conventions of optimizers."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from optim_infos import make_model
from torch import Tensor, nn
from torch.nn import Parameter, functional

import sparse_accel as sa
from sparse_accel.reference import glm as reference_glm


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mlp_problem(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Any]:
    """A small net and its closure's maker."""
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for i, param in enumerate(model.parameters()):
            param.copy_(randn(*param.shape, seed=i) * 0.5)
    model.to(dtype)
    x, y = randn(40, 5, seed=9).to(dtype), torch.arange(40) % 3

    def closure_for(opt: torch.optim.Optimizer) -> Any:
        def closure() -> Tensor:
            opt.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        return closure

    return model, closure_for


# ---- exact steps


@pytest.mark.parametrize("family", ["gaussian", "binomial", "poisson", "huber"])
@pytest.mark.parametrize("sparse", [False, True])
def test_step_glm_with_bias_is_the_proximal_step(family: str, sparse: bool) -> None:
    """The closure's proximal gradient vanishes at the new point, with momentum, decay and groups of their own."""
    layer = nn.Linear(4, 1).double()
    features = randn(9, 4, seed=3) * (randn(9, 4, seed=8) > -0.3)
    targets = (randn(9, seed=4) > 0).double()
    groups = [{"params": [layer.weight], "weight_decay": 0.3, "lr": 2.0}, {"params": [layer.bias], "lr": 0.5}]
    opt = sa.SPPAM(groups, momentum=0.6)
    last = {param: param.detach().clone() for param in layer.parameters()}
    for _ in range(3):
        now = {param: param.detach().clone() for param in layer.parameters()}
        predictors = layer(features).squeeze(1)
        expected = reference_glm.loss(family, predictors, targets).mean()
        rows = features.to_sparse_csr() if sparse else features
        loss = opt.step_glm(rows, targets, family)
        torch.testing.assert_close(loss, expected.detach())
        layer.zero_grad()
        reference_glm.loss(family, layer(features).squeeze(1), targets).mean().backward()
        for param, lr, decay in ((layer.weight, 2.0, 0.3), (layer.bias, 0.5, 0.0)):
            z = now[param] + 0.6 * (now[param] - last[param])
            residual = (param.detach() - z) / lr + param.grad + decay * param.detach()
            assert residual.abs().max() < 1e-11
        last = now
    assert opt.inner_calls >= 1


def test_step_glm_with_several_outputs() -> None:
    layer, features, targets = nn.Linear(4, 3).double(), randn(6, 4), (randn(6, 3, seed=1) > 0).double()
    single = [copy.deepcopy(layer) for _ in range(3)]
    sa.SPPAM(layer.parameters(), lr=3.0).step_glm(features, targets)
    for k, other in enumerate(single):
        one = nn.Linear(4, 1).double()
        with torch.no_grad():
            one.weight.copy_(other.weight[k : k + 1])
            one.bias.copy_(other.bias[k : k + 1])
        sa.SPPAM(one.parameters(), lr=3.0).step_glm(features, targets[:, k])
        torch.testing.assert_close(layer.weight[k : k + 1], one.weight)
        torch.testing.assert_close(layer.bias[k : k + 1], one.bias)


def test_step_quadratic_reuses_its_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    root = randn(6, 6)
    matrix, vector = root @ root.T, randn(6, seed=1)
    params = [Parameter(randn(2, 2, seed=2)), Parameter(randn(2, seed=3))]
    opt = sa.SPPAM(params, lr=0.7, momentum=0.4, weight_decay=0.1)
    calls = []
    factor = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda *args: calls.append(1) or factor(*args))
    x = torch.cat([p.detach().flatten() for p in params])
    last = x
    for step in range(6):
        if step == 3:
            opt.param_groups[0]["lr"] = 0.5
        lr = opt.param_groups[0]["lr"]
        value = opt.step_quadratic(matrix, vector)
        torch.testing.assert_close(value, x @ matrix @ x / 2 - vector @ x)
        system = torch.eye(6, dtype=torch.float64) * (1 + 0.1 * lr) + lr * matrix
        x, last = torch.linalg.solve(system, x + 0.4 * (x - last) + lr * vector), x
        torch.testing.assert_close(torch.cat([p.detach().flatten() for p in params]), x, rtol=1e-11, atol=1e-12)
    assert len(calls) == 2  # one for each lr


# ---- the laws


def test_stability_map_follows_the_law() -> None:
    """Every cell away from the border, on the spectrum of condition number 10; SGD with momentum as the control."""
    eigenvalues = torch.linspace(0.1, 1.0, 10, dtype=torch.float64)
    matrix, vector = torch.diag(eigenvalues), torch.zeros(10, dtype=torch.float64)
    checked = 0
    for lr in (0.01, 0.5, 1.0, 10.0):
        for momentum in (0.0, 0.8, 0.95, 1.02, 1.2, 5.0):
            border = min(abs(momentum - 1 - lr * float(value)) for value in eigenvalues)
            if border < 0.015:
                continue
            x = Parameter(torch.ones(10, dtype=torch.float64))
            opt = sa.SPPAM([x], lr=lr, momentum=momentum)
            norms = []
            for _ in range(12):
                for _ in range(100):
                    opt.step_quadratic(matrix, vector)
                norms.append(float(x.detach().norm()))
                if not 1e-12 < norms[-1] < 1e12:
                    break
            law = all(momentum < 1 + lr * float(value) for value in eigenvalues)
            assert law == all(sa.sppam.is_stable(lr, momentum, float(value)) for value in eigenvalues)
            assert (norms[-1] < 12**0.5 and (norms[-1] < norms[0] or norms[-1] < 1e-9)) == law, (lr, momentum, norms)
            checked += 1
    assert checked > 18


def test_sgd_with_momentum_has_its_own_law() -> None:
    """The control: SGDM needs lr * eigenvalue < 2 + 2 * momentum; where it blows up SPPAM goes on."""
    for lr, momentum in ((1.9, 0.0), (2.1, 0.0), (3.5, 0.8), (3.7, 0.8), (100.0, 0.5)):
        sgd, ours = Parameter(torch.ones(1).double()), Parameter(torch.ones(1).double())
        opts = torch.optim.SGD([sgd], lr=lr, momentum=momentum), sa.SPPAM([ours], lr=lr, momentum=momentum)
        for _ in range(300):
            sgd.grad = sgd.detach().clone()
            opts[0].step()
            opts[1].step_quadratic(torch.eye(1).double(), torch.zeros(1).double())
        assert (float(sgd.detach().abs()) < 1) == (lr < 2 + 2 * momentum)
        assert float(ours.detach().abs()) < 1e-6


@pytest.mark.parametrize("s", [0.01, 0.1, 1.0, 10.0])
def test_optimal_momentum_reaches_its_rate(s: float) -> None:
    beta = sa.sppam.optimal_momentum(1.0, s)
    eigenvalues = s * torch.tensor([1.0, 1.7, 4.0, 30.0], dtype=torch.float64)
    x = Parameter(torch.ones(4, dtype=torch.float64))
    opt = sa.SPPAM([x], lr=1.0, momentum=beta)
    rate = 1 - (s / (1 + s)) ** 0.5
    steps = int(-300 / torch.log(torch.tensor(rate)).item())  # to 1e-130: of the double root's factor k little is left
    for _ in range(steps):
        opt.step_quadratic(torch.diag(eigenvalues), torch.zeros(4, dtype=torch.float64))
    late = x.detach().norm()
    for _ in range(4):
        opt.step_quadratic(torch.diag(eigenvalues), torch.zeros(4, dtype=torch.float64))
    measured = float(x.detach().norm() / late) ** 0.25
    assert measured == pytest.approx(rate, rel=0.02)
    assert sa.sppam.convergence_rate(1.0, beta, s) == pytest.approx(rate, rel=1e-6)
    assert rate < sa.sppam.convergence_rate(1.0, 0.0, s)
    for other in (0.8 * beta, 1.2 * beta):
        assert sa.sppam.convergence_rate(1.0, other, s) > rate


@pytest.mark.parametrize("lr, expected", [(0.1, 5100), (1.0, 920), (10.0, 510), (1000.0, 465)])
def test_iterations_of_the_linear_experiment(lr: float, expected: int) -> None:
    """p = n = 100, condition number 1, batches of 10, averaged steps, noise 1e-3: iterations to relative error .01."""
    features = torch.linalg.qr(randn(100, 100, seed=1))[0].contiguous()
    truth = randn(100, seed=2)
    targets = features @ truth + 1e-3 * randn(100, seed=3)
    x, generator = torch.zeros(100, dtype=torch.float64), torch.Generator().manual_seed(0)
    limit, iteration = 0.01 * float(truth.norm()), 0
    while float((x - truth).norm()) >= limit and iteration < 2 * expected:
        iteration += 1
        batch = torch.randperm(100, generator=generator)[:10]
        x, _ = sa.glm_prox(x, features[batch], targets[batch], lr, "gaussian", "average")
    assert iteration == pytest.approx(expected, rel=0.15)


def test_averaging_takes_the_noise_out() -> None:
    features = randn(400, 5)
    targets = (torch.sigmoid(features @ torch.ones(5).double()) > torch.rand(
        400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).double()  # fmt: skip
    best = torch.zeros(5, dtype=torch.float64)
    best = sa.glm_prox(best, features, targets, 1e6, "binomial")[0]
    layer = nn.Linear(5, 1, bias=False).double()
    opt = sa.SPPAM(layer.parameters(), lr=5.0, averaging=200)
    total, generator = torch.zeros_like(layer.weight), torch.Generator().manual_seed(0)
    for step in range(1, 1001):
        i = torch.randint(400, (4,), generator=generator)
        opt.step_glm(features[i], targets[i])
        if step > 200:
            total += layer.weight.detach()
    last = layer.weight.detach().clone()
    with opt.proximal_parameters():
        average = layer.weight.detach().clone()
    assert torch.equal(layer.weight, last)
    torch.testing.assert_close(average, total / 800)
    assert (average - best).norm() < 0.5 * (last - best).norm()
    opt.finalize_()
    assert torch.equal(layer.weight, average)


# ---- inexact steps


@pytest.mark.parametrize("lr", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("penalty", [None, sa.GroupLasso(0.05, by="output"), sa.L1(0.02)])
def test_closure_step_solves_the_proximal_problem(lr: float, penalty: Any) -> None:
    """The objective decreases, and the proximal gradient falls to the tolerance of what it was."""
    model, closure_for = mlp_problem()
    opt = sa.SPPAM(model.parameters(), lr=lr, momentum=0.3, weight_decay=0.01, penalty=penalty, max_inner=1000)
    params = list(model.parameters())
    for _ in range(3):
        x = [p.detach().clone() for p in params]
        z = [
            now + 0.3 * (now - opt.state[p]["previous"]) if p in opt.state else now
            for p, now in zip(params, x, strict=True)
        ]

        def objective() -> tuple[float, float]:
            """And the norm of the unit proximal gradient, in the metric of lr."""
            loss = closure_for(opt)().item()
            norm = 0.0
            for p, center in zip(params, z, strict=True):  # noqa: B023
                loss += float((p - center).square().sum()) / (2 * lr) + 0.005 * float(p.square().sum())
                loss += float(penalty.value(p)) if penalty else 0.0
                t = lr * opt.param_groups[0]["inner_length"] * 0.1
                moved = p.detach() - t * (p.grad + 0.01 * p.detach() + (p.detach() - center) / lr)
                if penalty:
                    penalty.prox_(moved, t)
                norm += float((p.detach() - moved).square().sum()) / t**2
            return loss, norm**0.5

        with torch.no_grad():
            for p, center in zip(params, z, strict=True):
                p.copy_(center)
        start = objective()
        with torch.no_grad():
            for p, now in zip(params, x, strict=True):
                p.copy_(now)
        opt.step(closure_for(opt))
        end = objective()
        assert end[0] < start[0]
        assert end[1] < 1e-3 * start[1]
        assert opt.inner_calls >= 1


def test_closure_step_equals_the_exact_one() -> None:
    features, targets = randn(12, 4), (randn(12, seed=1) > 0).double()
    layers = [nn.Linear(4, 1).double() for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    exact = sa.SPPAM(layers[0].parameters(), lr=20.0, momentum=0.5)
    inexact = sa.SPPAM(layers[1].parameters(), lr=20.0, momentum=0.5, tolerance=1e-10, max_inner=2000)

    def closure() -> Tensor:
        inexact.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(layers[1](features).squeeze(1), targets)
        loss.backward()
        return loss

    for _ in range(4):
        exact.step_glm(features, targets)
        inexact.step(closure)
    torch.testing.assert_close(layers[0].weight, layers[1].weight, rtol=1e-6, atol=1e-7)


def test_group_lasso_gives_exact_zeros() -> None:
    model, closure_for = mlp_problem(torch.float32)
    opt = sa.SPPAM(model.parameters(), lr=2.0, penalty=sa.GroupLasso(0.1, by="input"), tolerance=1e-3, max_inner=500)
    first = closure_for(opt)().item()
    for _ in range(10):
        opt.step(closure_for(opt))
    assert closure_for(opt)().item() < first
    assert (model[2].weight.detach().norm(dim=0) == 0).any()


def test_large_lr_where_sgd_blows_up() -> None:
    results = []
    for make in (lambda p: sa.SPPAM(p, lr=1e3, max_inner=300), lambda p: torch.optim.SGD(p, lr=1e3, momentum=0.5)):
        model, closure_for = mlp_problem()
        opt = make(model.parameters())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            for _ in range(5):
                loss = opt.step(closure_for(opt))
        results.append(float(loss))
    assert results[0] < 0.9
    assert not results[1] < 2.0


def test_cap_is_warned_of_and_the_step_is_still_one_of_descent() -> None:
    model, closure_for = mlp_problem()
    opt = sa.SPPAM(model.parameters(), lr=100.0, max_inner=6)
    with pytest.warns(RuntimeWarning, match="stopped after 6 closure calls .* raise max_inner"):
        first = opt.step(closure_for(opt))
    assert closure_for(opt)().item() < first.item()


# ---- conventions


def run(opt: Any, closure: Any, steps: int) -> None:
    for _ in range(steps):
        opt.step(closure)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_resume_is_bitwise(dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # bfloat16 may not reach the tolerance
        options: dict[str, Any] = {"lr": 2.0, "momentum": 0.4, "averaging": 2, "penalty": sa.GroupLasso(0.01)}
        model, closure_for = mlp_problem(dtype)
        opt = sa.SPPAM(model.parameters(), **options)
        run(opt, closure_for(opt), 4)
        buffer = io.BytesIO()
        torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, buffer)
        run(opt, closure_for(opt), 3)
        buffer.seek(0)
        saved = torch.load(buffer, weights_only=True)
        other, other_for = mlp_problem(dtype)
        resumed = sa.SPPAM(other.parameters(), **options)
        other.load_state_dict(saved["model"])
        resumed.load_state_dict(saved["opt"])
        run(resumed, other_for(resumed), 3)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        for name in ("step", "previous", "average"):
            assert torch.equal(opt.state[a][name], resumed.state[b][name])
            assert opt.state[a][name].dtype == (torch.float32 if name == "step" or dtype != torch.float64 else dtype)


def test_deepcopy_and_hooks_and_scheduler() -> None:
    model, closure_for = mlp_problem()
    opt = sa.SPPAM(model.parameters(), lr=torch.tensor(1.0), momentum=0.4)
    seen: list[str] = []
    opt.register_step_pre_hook(lambda *_: seen.append("pre"))
    opt.register_step_post_hook(lambda *_: seen.append("post"))
    run(opt, closure_for(opt), 2)
    assert seen == ["pre", "post"] * 2
    twin = copy.deepcopy(opt)
    assert set(twin.state_dict()["state"]) == set(opt.state_dict()["state"])
    layer = nn.Linear(3, 1)
    glm = sa.SPPAM(layer.parameters(), lr=8.0)
    glm.register_step_post_hook(lambda *_: seen.append("glm"))
    scheduler = torch.optim.lr_scheduler.StepLR(glm, 1, 0.5)
    for _ in range(2):
        glm.step_glm(torch.ones(2, 3), torch.ones(2))
        scheduler.step()
    assert seen[-2:] == ["glm", "glm"]
    assert glm.param_groups[0]["lr"] == 2.0
    quadratic = sa.SPPAM([Parameter(torch.ones(2))])
    quadratic.step_quadratic(torch.eye(2), torch.ones(2))
    copy.deepcopy(quadratic).step_quadratic(torch.eye(2), torch.ones(2))


@pytest.mark.filterwarnings("ignore:SPPAM. the inner solver stopped:RuntimeWarning")  # ReLU has kinks
def test_memory_orders_and_missing_gradients_and_empty_params() -> None:
    first, second = make_model(torch.float64).eval(), make_model(torch.float64).eval()
    second = second.to(memory_format=torch.channels_last)
    x, y = randn(6, 3, 4, 4), torch.arange(6) % 5
    unused, empty = Parameter(torch.ones(2)), Parameter(torch.zeros(0, 3))
    for model in (first, second):
        opt = sa.SPPAM([*model.parameters(), unused, empty], lr=1.0, momentum=0.3, penalty=sa.GroupLasso(0.02))

        def closure() -> Tensor:
            opt.zero_grad()  # noqa: B023
            loss = functional.cross_entropy(model(x), y) + empty.sum()  # noqa: B023
            loss.backward()
            return loss

        run(opt, closure, 2)
        assert unused not in opt.state
    assert torch.equal(unused, torch.ones(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_complex_and_maximize() -> None:
    target = torch.tensor([1 + 2j, -1j], dtype=torch.complex128)
    param = Parameter(torch.zeros(2, dtype=torch.complex128))
    opt = sa.SPPAM([param], lr=1.0, maximize=True, tolerance=1e-10)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = -(param - target).abs().square().sum() / 2
        loss.backward()
        return loss

    opt.step(closure)
    torch.testing.assert_close(param.detach(), target / 2)


def test_refusals_leave_everything_as_it_was() -> None:
    layer = nn.Linear(3, 1)
    opt = sa.SPPAM(layer.parameters(), lr=2.0, momentum=0.5)
    opt.step_glm(torch.ones(2, 3), torch.ones(2))
    before = copy.deepcopy((layer.state_dict(), opt.state_dict()["state"]))
    rows = torch.ones(2, 3)
    for features, targets, family, message in (
        (rows, torch.tensor([1.0, torch.nan]), "binomial", "targets: expected finite numbers"),
        (rows, torch.tensor([1.0, -2.0]), "poisson", "targets: expected counts >= 0"),
        (rows, torch.tensor([1.0, 2.0]), "binomial", "targets: expected 0 or 1"),
        (rows, torch.ones(3), "gaussian", r"targets: expected shape \[2, 1\], got \(3,\)"),
        (torch.ones(2, 4), torch.ones(2), "gaussian", r"features: expected shape \[b, 3\], got \(2, 4\)"),
        (rows, torch.ones(2), "gamma", "family: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            opt.step_glm(features, targets, family)

    def broken() -> Tensor:
        raise OSError("disk")

    def not_finite() -> Tensor:
        opt.zero_grad()
        loss = (layer.weight * torch.nan).sum()
        loss.backward()
        return loss

    def sparse() -> Tensor:
        layer.weight.grad = torch.ones(1, 3).to_sparse()
        return torch.tensor(1.0)

    with pytest.raises(OSError, match="disk"):
        opt.step(broken)
    with pytest.raises(ValueError, match="the closure returned nan"):
        opt.step(not_finite)
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        opt.step(sparse)
    with pytest.raises(ValueError, match="expected a closure"):
        opt.step()
    after = (layer.state_dict(), opt.state_dict()["state"])
    for name, value in before[0].items():
        assert torch.equal(value, after[0][name])
    for index, values in before[1].items():
        assert all(torch.equal(value, after[1][index][name]) for name, value in values.items())

    conv = sa.SPPAM([Parameter(torch.ones(2, 3, 3))])
    with pytest.raises(ValueError, match="of one linear layer, got parameters of shapes"):
        conv.step_glm(rows, torch.ones(2))
    with pytest.raises(ValueError, match="exact steps take no penalty"):
        sa.SPPAM(layer.parameters(), penalty=sa.L1(0.1)).step_glm(rows, torch.ones(2))
    with pytest.raises(ValueError, match="not positive definite"):
        sa.SPPAM([Parameter(torch.ones(2))], lr=1.0).step_quadratic(-2 * torch.eye(2), torch.ones(2))
    with pytest.raises(ValueError, match=r"expected A \[2, 2\] and b \[2\]"):
        sa.SPPAM([Parameter(torch.ones(2))]).step_quadratic(torch.eye(3), torch.ones(2))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"lr": -1.0}, "lr: expected a finite number >= 0, got -1.0"),
        ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
        ({"momentum": float("nan")}, "momentum: expected a finite number, got nan"),
        ({"weight_decay": -1.0}, "weight_decay: expected a finite number >= 0"),
        ({"averaging": -1}, "averaging: expected a number of steps >= 0, or None"),
        ({"tolerance": 0.0}, r"tolerance: expected a number in \(0, 1\), got 0.0"),
        ({"max_inner": 0}, "max_inner: expected a number of closure calls >= 1"),
        ({"fused": True}, "fused=True is not supported"),
        ({"capturable": True}, "capturable=True is not supported"),
        ({"differentiable": True}, "differentiable=True is not supported"),
    ],
)
def test_bad_numbers(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sa.SPPAM([Parameter(torch.ones(2))], **kwargs)


def test_laws_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="strong_convexity: expected a number > 0, got 0"):
        sa.sppam.optimal_momentum(1.0, 0.0)
    stable = sa.sppam.is_stable(torch.tensor([1.0, -4.0]), 0.5, 1.0)
    assert stable.tolist() == [True, True]  # at lr = -4 both roots are small again
    assert not sa.sppam.is_stable(-1.0, 0.5, 1.0)
