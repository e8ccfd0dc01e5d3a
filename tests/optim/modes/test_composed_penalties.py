"""Penalties of stages: sums, squares, low rank, and what users write, on every optimizer and in its metric."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse_accel as sa
from sparse_accel.groups import Grouping
from sparse_accel.optim.common.constraints import Constraint
from sparse_accel.optim.common.stages import cut_of, run_stages
from sparse_accel.penalties import penalty_from_plain

INF = math.inf
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


@sa.register_penalty
@dataclasses.dataclass(frozen=True)
class Huberized:
    """|w| with a round bottom: separable, and of another name than its class."""

    strength: float
    width: float = 0.5
    name = "tests.huberized"
    separable = True

    def value(self, weight: Tensor) -> Tensor:
        inside = weight.square() / (2 * self.width)
        return self.strength * torch.where(weight.abs() <= self.width, inside, weight.abs() - self.width / 2).sum()

    def prox_(self, weight: Tensor, step: Tensor) -> None:
        tau = step * self.strength
        inside = weight * self.width / (self.width + tau)
        weight.copy_(torch.where(weight.abs() <= self.width + tau, inside, weight - tau * weight.sign()))


@sa.register_penalty
class RowSum:
    """Pulls the sum of a matrix to zero: not separable, with an operator in the metric."""

    by = "output"

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def to_plain(self) -> dict[str, Any]:
        return {"strength": self.strength}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> RowSum:
        return cls(**values)

    def value(self, weight: Tensor) -> Tensor:
        return self.strength / 2 * weight.sum().square()

    def prox_(self, weight: Tensor, step: Tensor) -> None:
        self.metric_prox_(weight, torch.ones_like(weight), step)

    def metric_prox_(self, weight: Tensor, metric: Tensor, step: Tensor) -> None:
        t = step * self.strength
        weight.sub_(t * weight.sum() / (1 + t * (1 / metric).sum()) / metric)


@sa.register_penalty
@dataclasses.dataclass(frozen=True)
class Plain:
    """No metric, not separable."""

    strength: float = 1.0

    def value(self, weight: Tensor) -> Tensor:
        return self.strength * weight.norm()

    def prox_(self, weight: Tensor, step: Tensor) -> None:
        norm = weight.norm()
        weight.mul_(torch.where(norm > step * self.strength, 1 - step * self.strength / norm, 0.0))


LASSO, SINGLE, SQUARES = sa.GroupLasso(0.3), sa.L1(0.2), sa.GroupLasso(0.0, l2=0.7)
IN_METRIC: list[Any] = [
    sa.GroupLasso(0.3, l2=0.8),
    sa.GroupLasso(0.3, "output", l2=0.8),
    sa.SparseGroupLasso(0.3, l1=0.2),
    sa.SparseGroupLasso(0.3, l1=0.2, by="output"),
    sa.Sum(SINGLE, LASSO, SQUARES),
    sa.Sum(LASSO, SINGLE, sa.NonNegative()),
    sa.Sum(LASSO, sa.Box(-INF, 0)),
    sa.Sum(sa.Box(-0.2, 0.6), SINGLE, SQUARES),
    sa.Sum(sa.GroupL0(0.05), SINGLE, sa.NonNegative(), SQUARES),
    sa.Sum(sa.GroupL0(0.05), sa.GroupLasso(0.1, "kernel"), SINGLE),
    Huberized(0.4),
    RowSum(0.2),
    sa.Sum(RowSum(0.2), SQUARES),
]
WITHOUT: list[Any] = [
    sa.Sum(sa.GroupLasso(0.2, "kernel"), LASSO, SINGLE),
    sa.Sum(sa.GroupLasso(0.2, "kernel"), sa.GroupLasso(0.3, "output"), SQUARES),
    sa.NuclearNorm(0.8),
    sa.Sum(sa.NuclearNorm(0.8), SQUARES),
    Plain(1.5),
]


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def minimizer(penalty: Any, x: Tensor, tau: float, metric: Tensor | None, grouping: Grouping | None = None) -> Tensor:
    kind = penalty_from_plain(penalty)
    assert kind is not None
    grouping = (grouping or Grouping(kind.by))._replace(by=kind.by)
    out = x.clone()
    metrics = None if metric is None else [metric.clone()]
    run_stages([cut_of(kind, grouping, x, 1.0)], [out], [torch.tensor(tau, dtype=torch.float64)], metrics)
    return out


def objective(penalty: Any, x: Tensor, tau: float, metric: Tensor | None, z: Tensor) -> float:
    kind: Any = penalty_from_plain(penalty)
    weight = torch.ones_like(x) if metric is None else metric
    return tau * float(kind.value(z)) + float((weight * (z - x).square()).sum()) / 2


@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize("penalty", IN_METRIC + WITHOUT, ids=lambda p: re.sub(r" object at 0x\w+", "", str(p))[:60])
def test_nothing_has_a_lower_objective(penalty: Any, metric: bool) -> None:
    """The definition, in float64 to 1e-12: near points, sparse ones, far ones, along every group and weight."""
    if metric and penalty in WITHOUT:
        pytest.skip("refused there")
    allowed: Any = penalty_from_plain(penalty)
    clips = [stage for stage in allowed.stages if stage.kind == "clip"]
    for seed, tau in ((0, 0.3), (1, 1.0), (2, 4.0)):
        x = seeded(3, 4, 2, seed=seed)
        weight = seeded(3, 4, 2, seed=seed + 10).exp() if metric else None
        point = minimizer(penalty, x, tau, weight)
        least = objective(penalty, x, tau, weight, point)
        candidates = [x, torch.zeros_like(x), point * 0.9, point * 1.1, point * (1 + 1e-6)]
        candidates += [point + seeded(3, 4, 2, seed=100 + i) * 10.0 ** -(i % 7) for i in range(28)]
        for i in range(4):
            candidates += [point.clone(), point.clone(), point.clone()]
            candidates[-3][:, i], candidates[-2][:, i], candidates[-1][i % 3] = 0, x[:, i], 0
        for candidate in candidates:
            for clip in clips:
                candidate = candidate.clamp(clip.low, clip.high)
            assert least <= objective(penalty, x, tau, weight, candidate) + 1e-12 * (1 + abs(least))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_optimality_of_sparse_groups(dtype: torch.dtype) -> None:
    """P (x - w) = tau (a s + b sqrt(|g|) w / ||w||) with s a sign; 12 orders of magnitude, zero and empty groups."""
    for by, shape in (("input", (40, 6)), ("output", (6, 40)), ("kernel", (5, 4, 3, 3)), ("input", (0, 3))):
        for scale in (1e-6, 1.0, 1e6):
            x = (seeded(*shape) * scale).to(dtype)
            x[:, 1:2] = 0
            metric = seeded(*shape, seed=1).exp().to(dtype)
            penalty = sa.SparseGroupLasso(0.4 * scale, l1=0.3 * scale, by=by)
            for weight in (None, metric):
                w = minimizer(penalty, x, 1.0, weight)
                p = (torch.ones_like(x) if weight is None else metric).double()
                residual = (p * (x.double() - w.double())) / scale
                soft = residual.clamp(-0.3, 0.3)  # of single weights that are zero, as near as they come
                sign = torch.where(w == 0, soft, 0.3 * w.sign().double())
                dims = {"input": (0,), "output": (1,), "kernel": (2, 3)}[by]
                size = math.prod(shape[dim] for dim in dims)
                norms = w.double().norm(dim=dims, keepdim=True)
                along = w.double() / norms.clamp(min=1e-300) * 0.4 * size**0.5
                error = (residual - sign - along).abs() / (1 + residual.abs())
                assert (error.masked_fill(norms == 0, 0) < 10 * TOLERANCE[dtype]).all()
                left = torch.linalg.vector_norm(residual - soft, dim=dims, keepdim=True) - 0.4 * size**0.5
                assert (left.masked_fill(norms != 0, 0) <= 10 * TOLERANCE[dtype] * (1 + left.abs())).all()


def test_low_rank_is_shrunk_singular_values() -> None:
    for dtype, rest in TOLERANCE.items():
        x = seeded(5, 4, 2, 1).to(dtype)
        w = minimizer(sa.NuclearNorm(0.5), x, 2.0, None)
        left, values, right = torch.linalg.svd(x.double().flatten(1), full_matrices=False)
        expected = left @ torch.diag((values - 1).clamp(min=0)) @ right
        torch.testing.assert_close(w.double().flatten(1), expected, rtol=rest, atol=rest)
        assert torch.linalg.matrix_rank(w.flatten(1)) == (values > 1).sum() == 4
    grouped, transposed = Grouping("output", conv_groups=2), Grouping("output", transposed=True)
    weight = seeded(4, 3, 2)
    blocks = sum(torch.linalg.svdvals(weight[2 * i : 2 * i + 2].flatten(1)).sum() for i in range(2))
    assert torch.isclose(sa.NuclearNorm(1.0).value(weight, grouped), torch.as_tensor(blocks))
    turned = torch.linalg.svdvals(weight.transpose(0, 1).flatten(1)).sum()
    assert torch.isclose(sa.NuclearNorm(1.0).value(weight, transposed), turned)
    one = weight.clone()
    sa.NuclearNorm(1.0).prox_(one, 0.5, transposed)
    two = weight.transpose(0, 1).contiguous()
    sa.NuclearNorm(1.0).prox_(two, 0.5)
    torch.testing.assert_close(one.transpose(0, 1), two, rtol=1e-12, atol=1e-12)
    stack, apart = weight.clone(), weight.clone()
    sa.NuclearNorm(1.0).prox_(stack, 0.5, Grouping("output", stacked=True))
    for matrix in apart:
        sa.NuclearNorm(1.0).prox_(matrix, 0.5)
    torch.testing.assert_close(stack, apart, rtol=1e-12, atol=1e-12)
    bad = torch.tensor([[1.0, math.nan], [2.0, 3.0]])
    sa.NuclearNorm(1.0).prox_(bad)
    assert bad.isnan().all()
    vector = torch.ones(3)
    sa.NuclearNorm(9.0).prox_([vector, torch.zeros(0, 4)])
    assert vector.sum() == 3


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "RMDA": (sa.RMDA, {"lr": 0.3, "momentum": 0.4}),
    "RMDA-loop": (sa.RMDA, {"lr": 0.3, "momentum": 1.0, "fused": False}),
    "ProxSGD": (sa.ProxSGD, {"lr": 0.3}),
    "RAMDA": (sa.RAMDA, {"lr": 0.1, "momentum": 0.4}),
    "RAMDA-foreach": (sa.RAMDA, {"lr": 0.1, "momentum": 1.0, "foreach": True}),
    "ProxAdamW": (sa.ProxAdamW, {"lr": 0.05}),
}
METRICS = ("RAMDA", "RAMDA-foreach", "ProxAdamW")


def make(kind: str, params: Any, penalty: Any, **more: Any) -> Any:
    optimizer, options = OPTIMIZERS[kind]
    return optimizer(params, penalty=penalty, **{**options, **more})


def train(opt: Any, params: list[Any], steps: range) -> None:
    for step in steps:
        for i, p in enumerate(params):
            p.grad = (0.3 * seeded(*p.shape, seed=1000 * step + i)).to(p.dtype)
        opt.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_steps_end_in_the_minimizer(kind: str) -> None:
    """Of the subproblem that a run without penalty poses: its point, its metric, its step."""
    for penalty in IN_METRIC + ([] if kind in METRICS else WITHOUT):
        start = seeded(6, 4, 3)
        one, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        opt, free = make(kind, [one], penalty), make(kind, [other], None)
        if "momentum" in free.defaults:
            free.param_groups[0]["momentum"] = 1.0
        share = opt.param_groups[0].get("momentum", 1.0)
        for step in range(3):
            before = one.detach().clone()
            if "momentum" not in free.defaults:
                with torch.no_grad():
                    other.copy_(one)
            train(opt, [one], range(step, step + 1))
            train(free, [other], range(step, step + 1))
            state = free.state[other]
            t, lr, metric = float(state["step"]), free.param_groups[0]["lr"], None
            tau = {"RMDA": float(state.get("alpha", 0)) / t**0.5, "RAMDA": float(state.get("alpha", 0))}.get(
                kind.partition("-")[0], lr
            )
            if kind.startswith("RAMDA"):
                metric = state["square"].pow(1 / 3) + 1e-6
            elif kind == "ProxAdamW":
                metric = (state["exp_avg_sq"] / (1 - 0.999**t)).sqrt() + 1e-8
            expected = minimizer(penalty, other.detach(), tau, metric)
            mixed = (1 - share) * before + share * expected
            torch.testing.assert_close(one.detach(), mixed, rtol=1e-10, atol=1e-11)
            with opt.proximal_parameters():
                torch.testing.assert_close(one.detach(), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_resumed_to_the_same_bits(kind: str) -> None:
    for penalty in IN_METRIC + ([] if kind in METRICS else WITHOUT):
        for dtype in (torch.float32, torch.bfloat16)[: 1 + isinstance(penalty, (sa.SparseGroupLasso, RowSum))]:
            params = [nn.Parameter(seeded(6, 4, 2).to(dtype)), nn.Parameter(seeded(5, seed=3).to(dtype))]
            opt = make(kind, params, penalty)
            train(opt, params, range(2))
            opt.eval()
            stream = io.BytesIO()
            torch.save(opt.state_dict(), stream)
            json.dumps(opt.state_dict()["param_groups"])  # plain values
            stream.seek(0)
            again = [nn.Parameter(p.detach().clone()) for p in params]
            other = make(kind, again, None)
            other.load_state_dict(torch.load(stream, weights_only=True))
            for optimizer, held in ((opt, params), (other, again)):
                optimizer.train()
                train(optimizer, held, range(2, 4))
            assert all(torch.equal(p, q) for p, q in zip(params, again, strict=True))
            assert other.param_groups[0]["penalty"] == copy.deepcopy(opt).param_groups[0]["penalty"]
            opt.finalize_()
            assert opt.penalty_value() < INF


def test_the_same_as_fused_where_both_are() -> None:
    for kind in OPTIMIZERS:
        for fused, staged in (
            (LASSO, sa.SparseGroupLasso(0.3, l1=0.0)),
            (sa.L1(0.2), sa.Sum(sa.L1(0.15), sa.L1(0.05))),
        ):
            one, two = nn.Parameter(seeded(6, 4)), nn.Parameter(seeded(6, 4))
            opts = make(kind, [one], fused), make(kind, [two], staged)
            for opt, p in zip(opts, (one, two), strict=True):
                train(opt, [p], range(4))
                opt.param_groups[0]["lr"] = 0.0
                train(opt, [p], range(4, 5))
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
            assert opts[0].penalty_value() == pytest.approx(opts[1].penalty_value(), rel=1e-12)


def test_proximal_point_steps_of_models() -> None:
    for penalty in (
        sa.SparseGroupLasso(0.05, l1=0.02),
        sa.NuclearNorm(0.1),
        Huberized(0.1),
        sa.GroupLasso(0.05, l2=0.1),
    ):
        target, weight = seeded(4, 3), nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
        opt = sa.SPPAM([weight], lr=10.0, penalty=penalty, tolerance=1e-5)

        def closure(opt: Any = opt, weight: Tensor = weight, target: Tensor = target) -> Tensor:
            opt.zero_grad()
            loss = (weight - target).square().sum() / 2
            loss.backward()
            return loss

        for _ in range(6):
            opt.step(closure)
        expected = minimizer(penalty, target, 1.0, None)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=1e-7)
    for constraint in (sa.NonNegative(), sa.Sum(sa.NonNegative(), LASSO)):
        with pytest.raises(ValueError, match="constraints are not supported by SPPAM"):
            sa.SPPAM([nn.Parameter(torch.ones(2, 2))], penalty=constraint)


def test_nothing_moves_by_an_overflow() -> None:
    for kind in ("RMDA", "RAMDA", "ProxAdamW"):
        for penalty in (sa.SparseGroupLasso(0.3, l1=0.2), Huberized(0.3), *([] if kind != "RMDA" else WITHOUT)):
            weight = nn.Parameter(torch.tensor([[3.0, -4.0]]))
            opt = make(kind, [weight], penalty)
            weight.grad = torch.full_like(weight, INF)
            opt.grad_scale, opt.found_inf = torch.tensor(2.0), torch.tensor(1.0)
            opt.step()
            assert weight.tolist() == [[3.0, -4.0]]
            weight.grad, opt.found_inf = torch.ones_like(weight), torch.tensor(0.0)
            opt.step()
            assert weight[0, 0] < 3
            assert weight.isfinite().all()


def test_groups_of_models_and_reports() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ConvTranspose2d(3, 2, 3), nn.Flatten(), nn.Linear(4, 2))
    for penalty, by in ((sa.SparseGroupLasso(0.1, l1=0.1, by="output"), "output"), (sa.Sum(SINGLE, LASSO), "input")):
        groups = sa.param_groups(model, penalty)
        assert [group["transposed"] for group in groups[:-1]] == [False, True]
        opt = sa.RMDA(groups, lr=0.5)
        assert opt.param_groups[0]["penalty"]["by"] == by
        row = sa.callbacks.SparsityHistory(model, opt).record()
        assert row["groups"] == sa.sparsity(model, by=by).groups
    assert sa.param_groups(model, Huberized(0.1))[-1]["penalty"] is None
    opt = sa.RMDA(sa.param_groups(model, RowSum(0.1)))
    assert sa.callbacks.SparsityHistory(model, opt).record()["strength"] == 0.1


def test_a_target_with_squares() -> None:
    penalty = sa.GroupLasso(target=0.5, ramp=10, l2=0.1)
    assert penalty_from_plain(json.loads(json.dumps(penalty.to_plain()))) == penalty
    weight = nn.Parameter(seeded(8, 20))
    opt = sa.RMDA([weight], lr=0.1, momentum=1.0, penalty=penalty)
    for _ in range(40):
        weight.grad = weight.detach() - seeded(8, 20)
        opt.step()
    with opt.proximal_parameters():
        assert (weight == 0).all(0).sum() == 10
    assert opt.param_groups[0]["penalty"]["strength"] > 0


def test_after_compact_groups_keep_their_weight() -> None:
    """Groups that lost weights count sqrt(before / after) times; single weights as before."""
    for penalty in (sa.SparseGroupLasso(0.3, l1=0.2), sa.Sum(sa.GroupL0(0.1), LASSO, SINGLE)):
        kind: Any = penalty_from_plain(penalty)
        weight = nn.Parameter(seeded(4, 3))
        opt = sa.RMDA([weight], lr=0.3, momentum=1.0, penalty=penalty)
        opt.state[weight]["penalty_scale"] = 2.0
        scaled = kind.scaled(2.0)
        assert opt.penalty_value() == pytest.approx(float(scaled.value(weight)))
        if isinstance(penalty, sa.Sum):
            assert scaled == sa.Sum(sa.GroupL0(0.4), sa.GroupLasso(0.6), SINGLE)
        else:
            assert scaled == sa.SparseGroupLasso(0.6, l1=0.2)


class Unregistered:
    def value(self, weight: Tensor) -> Tensor:
        return weight.sum()

    def prox_(self, weight: Tensor, step: Tensor) -> None:
        weight.sub_(step)


def test_refusals() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    box, zero = sa.Box(-1, 1), sa.GroupL0(0.1)
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: sa.Sum(), ValueError, "expected one penalty at least"),
        (lambda: sa.Sum(LASSO, None), TypeError, "terms: expected penalties, got None"),
        (lambda: sa.Sum(LASSO, sa.GroupLasso(0.1, "output")), ValueError, "by 'input' and by 'output' overlap"),
        (lambda: sa.Sum(LASSO, box), ValueError, "goes with L1 and squares alone"),
        (lambda: sa.Sum(zero, box), ValueError, "goes with L1 and squares alone"),
        (lambda: sa.Sum(sa.Box(0, 1), sa.Box(2, 3)), ValueError, "no weight is in all intervals"),
        (lambda: sa.Sum(zero, zero), ValueError, "one GroupL0 at most"),
        (lambda: sa.Sum(sa.GroupL0(0.1, "kernel"), LASSO), ValueError, "GroupL0 have to contain"),
        (lambda: sa.Sum(sa.NuclearNorm(0.1), SINGLE), ValueError, "NuclearNorm goes with squares alone"),
        (lambda: sa.Sum(sa.Binary(), SINGLE), ValueError, "Binary goes with squares alone"),
        (lambda: sa.Sum(sa.GroupLasso(target=0.5)), ValueError, "finds its strength alone"),
        (lambda: sa.GroupLasso(0.1, l2=-1), ValueError, "l2: expected a finite number >= 0, got -1"),
        (lambda: sa.SparseGroupLasso(0.1, l1=math.nan), ValueError, "l1: expected a finite number"),
        (lambda: sa.RMDA([weight], penalty=Unregistered()), TypeError, r"register_penalty\(Unregistered\)"),
        (
            lambda: sa.RMDA([weight], penalty=LASSO.to_plain() | {"name": "lost"}),
            ValueError,
            "among .*'tests.huberized'",
        ),
        (lambda: sa.register_penalty(int), TypeError, "expected a method value"),
        (lambda: sa.register_penalty(Plain(1.0)), TypeError, "expected a class"),
        (lambda: sa.register_penalty(type("L1", (Unregistered,), {"name": "l1"})), ValueError, "'l1' is that of"),
        (lambda: sa.register_penalty(type("A", (Unregistered,), {"by": "row"})), ValueError, "A.by: expected one of"),
        (lambda: sa.RMDA([weight], penalty=Plain(), differentiable=True), ValueError, "differentiable=True"),
        (lambda: sa.max_strength(sa.RMDA([weight], penalty=sa.NuclearNorm(1.0))), ValueError, "GroupLasso or L1"),
    ]
    for kind in (sa.RAMDA, sa.ProxAdamW):
        for penalty in WITHOUT:
            name = penalty_from_plain(penalty).name  # type: ignore[union-attr]
            cases.append((lambda k=kind, p=penalty: k([weight], penalty=p), ValueError, f"'{name}' is not exact there"))
    for make_it, error, text in cases:
        with pytest.raises(error, match=text):
            make_it()
    opt = sa.RAMDA([weight], penalty=LASSO)  # assigned later: refused before anything changes
    opt.param_groups[0]["penalty"] = sa.NuclearNorm(1.0)
    weight.grad = torch.ones_like(weight)
    with pytest.raises(ValueError, match="'nuclear_norm' is not exact there"):
        opt.step()
    assert not opt.state
    assert weight.sum() == 4
    complex_one = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    with pytest.raises(RuntimeError, match="not defined"):
        sa.RMDA([complex_one], penalty=sa.Sum(SINGLE, LASSO))


def test_declared_again_and_as_a_constraint() -> None:
    assert sa.register_penalty(Huberized) is Huberized

    @sa.register_penalty
    @dataclasses.dataclass(frozen=True)
    class Even(Constraint):
        name = "tests.even"

        def project_(self, weights: Tensor) -> None:
            weights.div_(2).round_().mul_(2)

    weight = nn.Parameter(torch.tensor([[0.4, 3.2]]))
    opt = sa.RAMDA([weight], momentum=1.0, penalty=Even())
    weight.grad = torch.zeros_like(weight)
    opt.step()
    assert weight.tolist() == [[0.0, 4.0]]
    assert opt.param_groups[0]["penalty"] == {"name": "tests.even"}
    assert float(sa.Sum(Even(), SQUARES).value(weight.detach())) == pytest.approx(0.35 * 16, rel=1e-6)
