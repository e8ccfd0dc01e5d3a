"""ramda_step_ and prox_adamw_step_: every backend against the plain twins, torch's AdamW, the papers' own recursions
and the optimality condition of the subproblem."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from op_cases import BY, DTYPES, VALUE_TOLERANCE, assert_near, like, randn, weights
from torch import Tensor

from sparse_accel import ops, reference
from sparse_accel.groups import GroupLayout, group_layout

CPU = torch.device("cpu")
TOLERANCE = {**VALUE_TOLERANCE, torch.float64: 1e-12, torch.float32: 5e-6}


class Ramda:
    """RAMDA's state, and a step by the op or its twin."""

    name = "ramda_step_"

    def __init__(self, tensors: list[Tensor], clocks_on: torch.device | None = None) -> None:
        wide = [like(t, reference.compute_type(t.dtype)) for t in tensors]
        device = clocks_on or (tensors[0].device if tensors else CPU)
        self.params = [like(t) for t in tensors]
        self.state = [[torch.zeros_like(t) for t in wide], [torch.zeros_like(t) for t in wide], wide]
        self.clocks = [
            [torch.zeros((), device=device) for _ in tensors],
            [torch.zeros((), dtype=torch.float64, device=device) for _ in tensors],
        ]
        self.numbers: dict[str, Any] = {"lr": 0.5, "momentum": 0.4, "eps": 1e-3}

    def all(self) -> list[Tensor]:
        return [x for column in (self.params, *self.state, *self.clocks) for x in column]

    def step(self, module: Any, grads: list[Tensor], layouts: Any, **options: Any) -> None:
        defaults = {"prox": "soft", "strengths": [0.2] * len(self.params), **self.numbers}
        function = getattr(module, self.name)
        function(self.params, grads, *self.state, *self.clocks, layouts, **{**defaults, **options})


class Adamw(Ramda):
    """The same for AdamW with a penalty."""

    name = "prox_adamw_step_"

    def __init__(self, tensors: list[Tensor], clocks_on: torch.device | None = None) -> None:
        super().__init__(tensors, clocks_on)
        self.state, self.clocks = self.state[:2], self.clocks[:1]
        self.numbers = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3, "weight_decay": 0.05}


both = pytest.mark.parametrize("kind", [Ramda, Adamw], ids=["ramda", "adamw"])


def gradients(tensors: list[Tensor], seed: int) -> list[Tensor]:
    return [randn(tuple(t.shape), t.dtype, t.device, seed + i) for i, t in enumerate(tensors)]


def assert_same(found: Ramda, expected: Ramda, tolerance: float) -> None:
    for x, y in zip(found.all(), expected.all(), strict=True):
        assert_near(x, y, tolerance)


@both
@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("prox", ["soft", "hard"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_twin(backend: Any, kind: Any, dtype: torch.dtype, prox: str, by: str) -> None:
    _, weights_, layouts = zip(*weights(dtype, backend.device, by), strict=True)
    tensors = list(weights_)
    strengths = [(0.0, 0.1, 0.5)[i % 3] for i in range(len(tensors))]
    found, expected = kind(tensors), kind(tensors)
    for t in range(3):
        grads = gradients(tensors, 10 * t)
        options = {"prox": prox, "strengths": strengths, "maximize": t == 1}
        if kind is Ramda and t == 2:
            options["momentum"] = 1.0
        kept = [like(grad) for grad in grads]
        found.step(ops, grads, layouts, **options)
        assert all(torch.equal(*pair) for pair in zip(grads, kept, strict=True))
        expected.step(reference, grads, layouts, **options)
        assert_same(found, expected, TOLERANCE[dtype])
    zeros = 0
    for x, y in zip(found.params, expected.params, strict=True):  # the last step takes the proximal iterate itself
        assert torch.equal(x == 0, y == 0)
        zeros += int((x == 0).sum())
    assert zeros > 0


def residual(w: Tensor, x: Tensor, metric: Tensor, layout: GroupLayout, tau: float) -> float:
    """How far ``P (w - x) + tau sqrt(|g|) d||w_g||`` is from holding 0, relative to ||P x||; of the worst group."""
    w, x, p = (reference.grouped_view(t.double(), layout) for t in (w, x, metric))
    if not w.numel():
        return 0.0
    scale = x.abs().amax((1, 3), keepdim=True).clamp(min=1e-300) * p.amax((1, 3), keepdim=True)
    q = p * (x / x.abs().amax((1, 3), keepdim=True).clamp(min=1e-300)) / p.amax((1, 3), keepdim=True)
    bound = tau * layout.group_size**0.5 / scale
    length = q.norm(dim=(1, 3), keepdim=True)
    moved = p * w / scale
    top = w.abs().amax((1, 3), keepdim=True)
    norm = (w / top.clamp(min=1e-320)).norm(dim=(1, 3), keepdim=True)
    direction = torch.where(top == 0, 0.0, w / top.clamp(min=1e-320) / norm)
    off = (moved - q + bound * direction).norm(dim=(1, 3), keepdim=True)
    off = torch.where(top == 0, (length - bound).clamp(min=0), off)  # zero: q has to lie in the ball
    return (off / length.clamp(min=1e-300)).nan_to_num(0.0).max().item()


EXPONENTS = st.floats(-6, 6)


@settings(max_examples=60, deadline=None)
@given(
    layout=st.builds(GroupLayout, st.integers(1, 40), st.integers(0, 9), st.integers(1, 90), st.integers(1, 2)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
    weight=EXPONENTS,
    spread=st.floats(0, 6),
    metric=st.floats(-4, 4),
    metric_spread=st.floats(0, 4),
    share=st.one_of(st.sampled_from([0.0, 1e-9, 0.999999, 1.0, 1.000001]), st.floats(0, 1.2)),
)
@example(GroupLayout(3, 5, 7), torch.float32, 1, -6.0, 6.0, -4.0, 4.0, 0.999999)
@example(GroupLayout(1, 5, 70), torch.float32, 1, 0.0, 0.0, 0.0, 0.0, 0.5)  # P equal across a group
@example(GroupLayout(1, 50, 1), torch.float64, 1, 6.0, 6.0, 4.0, 4.0, 0.5)
def test_optimality(
    layout: GroupLayout,
    dtype: torch.dtype,
    seed: int,
    weight: float,
    spread: float,
    metric: float,
    metric_spread: float,
    share: float,
) -> None:
    """The minimizer of the subproblem, to 1e-6 in float32 and 1e-12 in float64, over 12 orders of magnitude of x."""
    check_optimality(ops, CPU, layout, dtype, seed, weight, spread, metric, metric_spread, share)


def check_optimality(
    module: Any,
    device: torch.device,
    layout: GroupLayout,
    dtype: torch.dtype,
    seed: int,
    weight: float,
    spread: float,
    metric: float,
    metric_spread: float,
    share: float,
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def magnitudes(middle: float, width: float) -> Tensor:
        uniform = torch.rand(layout.numel, generator=generator, dtype=torch.float64)
        return 10.0 ** (middle + width * (2 * uniform - 1))

    signs = torch.randint(0, 2, (layout.numel,), generator=generator) * 2 - 1
    x = (signs * magnitudes(weight, spread)).to(device, dtype)
    if layout.numel:
        grouped = reference.grouped_view(x, layout)
        grouped[:, :, :1] = 0  # a zero group
    # With no gradient, decay or history AdamW's point is W and its metric what v holds, over sqrt(1 - beta2).
    root = magnitudes(metric, metric_spread).to(device, dtype)
    squares, beta2 = root.square(), 0.5
    p = (beta2 * squares).sqrt() * torch.tensor(1 / (1 - beta2) ** 0.5, dtype=dtype)
    length = reference.grouped_view(p.double() * x.double(), layout).norm(dim=(1, 3))
    median = length.flatten().sort().values[length.numel() // 2].item() if length.numel() else 1.0
    tau = share * median / layout.group_size**0.5
    w = x.clone()
    zeros = torch.zeros_like(x)
    step = torch.zeros((), device=device)
    module.prox_adamw_step_(
        [w], [zeros], [zeros.clone()], [squares], [step], [layout],
        prox="soft", strengths=[tau], lr=1.0, beta1=0.9, beta2=beta2, eps=0.0, weight_decay=0.0,
    )  # fmt: skip
    exact = squares.double().sqrt() / (1 - beta2) ** 0.5 if layout.numel else squares.double()
    assert w.isfinite().all()
    # the metric itself is rounded a few times
    assert residual(w, x, exact, layout, tau) <= {torch.float32: 1e-6, torch.float64: 1e-12}[dtype]
    if share == 0:
        assert torch.equal(w, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [1e-9, 0.4, 0.999999, 1.000001])
def test_optimality_on_every_backend(backend: Any, dtype: torch.dtype, share: float) -> None:
    for seed, layout in enumerate(
        [
            GroupLayout(40, 9, 3),
            GroupLayout(1, 7, 300),
            GroupLayout(1, 40, 1),
            GroupLayout(5, 4, 40),
            GroupLayout(3, 0, 1),
        ]
    ):
        for weight, spread, metric in ((0.0, 1.0, 0.0), (-6.0, 6.0, -4.0), (6.0, 6.0, 4.0), (0.0, 0.0, 0.0)):
            check_optimality(
                ops, backend.device, layout, dtype, seed, weight, spread, metric, min(spread, 4.0), share
            )  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "least", "most"), [(torch.float32, 1e-30, 1e28), (torch.float64, 1e-250, 1e250)], ids=str
)
@pytest.mark.parametrize("layout", [GroupLayout(6, 5, 2), GroupLayout(1, 4, 70)])
def test_squares_that_overflow_or_vanish(
    backend: Any, dtype: torch.dtype, least: float, most: float, layout: GroupLayout
) -> None:
    """Scaled by a power of two, the minimizer scales along, to the last bits."""
    x = randn((layout.numel,), torch.float64, backend.device)
    expected = None
    for scale in (1.0, 2.0 ** round(math.log2(least)), 2.0 ** round(math.log2(most))):
        w = (x * scale).to(dtype)
        zeros = torch.zeros_like(w)
        ops.prox_adamw_step_(
            [w], [zeros], [zeros.clone()], [zeros + 4], [torch.zeros((), device=backend.device)], [layout],
            prox="soft", strengths=[1.2 * scale], lr=1.0, beta1=0.9, beta2=0.5, eps=0.0, weight_decay=0.0,
        )  # fmt: skip
        found = w.double() / scale
        expected = found if expected is None else expected
        assert 0 < (found == 0).sum() < found.numel() or found.ne(0).all()
        assert_near(found, expected, {torch.float32: 1e-6, torch.float64: 1e-13}[dtype])


def test_the_metric_equal_across_a_group_is_the_plain_prox(backend: Any) -> None:
    x = randn((8, 6, 3), torch.float64, backend.device)
    layout = GroupLayout(8, 6, 3)
    w, zeros = x.clone(), torch.zeros_like(x)
    ops.prox_adamw_step_(
        [w], [zeros], [zeros.clone()], [zeros + 9], [torch.zeros((), device=backend.device)], [layout],
        prox="soft", strengths=[1.5], lr=1.0, beta1=0.9, beta2=0.5, eps=0.0, weight_decay=0.0,
    )  # fmt: skip
    plain = x.clone()
    ops.prox_([plain], [layout], [0.5])  # 1.5 over P = sqrt(9)
    assert_near(w, plain, 1e-13)


@pytest.mark.parametrize("layout", [GroupLayout(6, 5, 4), GroupLayout(1, 30, 4), GroupLayout(1, 120, 1)])
def test_paper(backend: Any, layout: GroupLayout) -> None:
    """RAMDA as it is written, its subproblem by the paper's proximal gradient steps."""
    device, c, lam, eps = backend.device, 0.3, 0.2, 1e-2
    found = Ramda([randn((6, 5, 4), torch.float64, device)])
    w, w0 = found.params[0].clone(), found.params[0].clone()
    v, u = torch.zeros_like(w), torch.zeros_like(w)
    alpha = 0.0
    for t in range(1, 6):
        grad, lr = randn((6, 5, 4), torch.float64, device, t), 0.5 if t < 3 else 0.05
        found.step(ops, [grad], [layout], strengths=[lam], lr=lr, momentum=c, eps=eps)
        s = lr * t**0.5
        alpha += s
        v += s * grad
        u += s * grad**2
        p = u ** (1 / 3) + eps
        z, size = w.clone(), 1 / p.max()
        for _ in range(3000):
            y = reference.grouped_view(z - size * (v + p * (z - w0)), layout)
            norms = y.norm(dim=(1, 3), keepdim=True)
            y = y * (1 - size * alpha * lam * layout.group_size**0.5 / norms).clamp(min=0)
            z = y.reshape(w.shape)
        w = (1 - c) * w + c * z
        assert_near(found.params[0], w, 1e-9)
        assert found.clocks[0][0].item() == t
        assert found.clocks[1][0].item() == pytest.approx(alpha, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_penalty_is_torchs_adamw(backend: Any, dtype: torch.dtype) -> None:
    weight = torch.nn.Parameter(randn((37, 53), dtype, backend.device))
    found = Adamw([weight.detach()])
    torchs = torch.optim.AdamW([weight], lr=0.1, betas=(0.9, 0.99), eps=1e-3, weight_decay=0.05, foreach=False)
    for t in range(20):
        weight.grad = randn((37, 53), dtype, backend.device, t)
        torchs.step()
        found.step(ops, [weight.grad], [group_layout(weight, "input")], strengths=[0.0])
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
    assert_near(found.params[0], weight.detach(), tolerance)
    assert_near(found.state[0][0], torchs.state[weight]["exp_avg"], tolerance)
    assert_near(found.state[1][0], torchs.state[weight]["exp_avg_sq"], tolerance)


@both
@pytest.mark.parametrize("shape", [(700, 600), (9000, 40), (3, 70000), (300, 40, 3, 3), (1, 150000)])
@pytest.mark.parametrize("by", ["input", "output", "element"])
def test_large_tensors(kind: Any, shape: tuple[int, ...], by: str) -> None:
    """In strips, and the same bits for any number of threads."""
    tensors = [randn(shape, torch.float64, CPU)]
    layouts = [group_layout(tensors[0], by)]
    states = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        found = kind(tensors)
        torch.set_num_threads(threads)
        found.step(ops, gradients(tensors, 5), layouts, strengths=[0.9])
        states.append(found)
    torch.set_num_threads(before)
    expected = kind(tensors)
    expected.step(reference, gradients(tensors, 5), layouts, strengths=[0.9])
    assert_same(states[0], expected, 1e-12)
    assert all(torch.equal(*pair) for pair in zip(states[0].all(), states[1].all(), strict=True))


@both
def test_gradients_in_another_memory_order(backend: Any, kind: Any) -> None:
    tensors = [randn((8, 6, 3, 3), torch.float32, backend.device)]
    layouts = [group_layout(tensors[0], "input")]
    found, expected = kind(tensors), kind(tensors)
    grads = gradients(tensors, 3)
    found.step(ops, [grads[0].contiguous(memory_format=torch.channels_last)], layouts)
    expected.step(ops, grads, layouts)
    assert_same(found, expected, 0.0)


@both
def test_lr_and_scalars_as_tensors(backend: Any, kind: Any) -> None:
    tensors = [randn((8, 6), torch.float32, backend.device)]
    layouts = [group_layout(tensors[0], "input")]
    found, expected = kind(tensors), kind(tensors, CPU)
    lr = torch.tensor([0.5], device=backend.device)
    for t in range(3):
        found.step(ops, gradients(tensors, t), layouts, lr=lr)
        expected.step(ops, gradients(tensors, t), layouts, lr=0.5)
    for x, y in zip(found.all(), expected.all(), strict=True):
        tolerance = 1e-14 if x.dtype == torch.float64 else TOLERANCE[torch.float32]
        assert_near(x.cpu(), y.cpu(), tolerance if backend.name == "cuda" else 0.0)


@both
def test_amp(backend: Any, kind: Any) -> None:
    tensors = [randn((8, 6), torch.float32, backend.device)]
    layouts = [group_layout(tensors[0], "input")]
    found, expected = kind(tensors), kind(tensors)
    scale = torch.tensor(8.0, device=backend.device)
    finite, inf = (torch.tensor(flag, device=backend.device) for flag in (0.0, 1.0))
    grads = gradients(tensors, 1)
    expected.step(ops, grads, layouts)
    found.step(ops, [8 * g for g in grads], layouts, grad_scale=scale, found_inf=finite)
    assert_same(found, expected, 0.0)
    found.step(ops, [g * torch.inf for g in grads], layouts, grad_scale=scale, found_inf=inf)
    assert_same(found, expected, 0.0)


def test_momentum_one_forgets_what_the_weights_were(backend: Any) -> None:
    for layout in (GroupLayout(8, 6, 1), GroupLayout(1, 48, 1), GroupLayout(1, 8, 6)):
        state = Ramda([torch.ones(8, 6, device=backend.device)])
        state.params[0].fill_(torch.nan)
        state.step(ops, [torch.ones(8, 6, device=backend.device)], [layout], momentum=1.0)
        assert state.params[0].isfinite().all()


@both
@pytest.mark.parametrize("layout", [GroupLayout(8, 6, 1), GroupLayout(1, 48, 1), GroupLayout(1, 8, 6)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("prox", ["soft", "hard"])
def test_what_is_not_finite_shows(backend: Any, kind: Any, layout: GroupLayout, bad: float, prox: str) -> None:
    """In its own group, and in no other."""
    state = kind([torch.ones(8, 6, device=backend.device)])
    grads = [torch.zeros(8, 6, device=backend.device)]
    grads[0][1, 2] = bad
    state.step(ops, grads, [layout], prox=prox, strengths=[0.01])
    assert not state.params[0][1, 2].isfinite()
    others = reference.grouped_view(state.params[0].isfinite().float(), layout).amin((1, 3))
    assert int((others == 0).sum()) == 1


@both
def test_errors_change_nothing(backend: Any, kind: Any) -> None:
    tensors = [torch.ones(4, 6, device=backend.device)]
    layouts, grads = [GroupLayout(4, 6, 1)], [torch.ones(4, 6, device=backend.device)]
    state = kind(tensors)
    own: dict[str, dict[str, Any]] = {
        r"momentum: expected 0 < momentum <= 1, got 0": {"momentum": 0.0},
        r"eps: expected a number > 0, got 0": {"eps": 0.0},
    }
    if kind is Adamw:
        own = {
            r"beta1: expected 0 <= beta1 < 1, got 1": {"beta1": 1.0},
            r"beta2: expected 0 <= beta2 < 1, got -1": {"beta2": -1.0},
            r"eps: expected a number >= 0, got -1": {"eps": -1.0},
            r"weight_decay: expected a number >= 0, got nan": {"weight_decay": float("nan")},
        }
    for message, change in {
        **own,
        r"strengths\[0\]: expected a number >= 0, got -1": {"strengths": [-1.0]},
        r"strengths: expected one for each of 1 parameters, got 0": {"strengths": []},
        r"lr: expected one element, got shape \[2\]": {"lr": torch.ones(2, device=backend.device)},
        r"prox: expected 'soft' or 'hard'": {"prox": "none"},
    }.items():
        with pytest.raises(ValueError, match=message):
            state.step(ops, grads, layouts, **change)
    with pytest.raises(ValueError, match=r"grads\[0\]: expected shape \[4, 6\], got \[6, 4\]"):
        state.step(ops, [grads[0].t()], layouts)
    with pytest.raises(TypeError, match=r"grads\[0\]: expected float32, got float64"):
        state.step(ops, [grads[0].double()], layouts)
    name = "duals" if kind is Ramda else "exp_avgs"
    broken = kind(tensors)
    broken.state[0] = [broken.state[0][0].t().contiguous().t()]
    with pytest.raises(ValueError, match=rf"{name}\[0\]: expected the strides of the parameter"):
        broken.step(ops, grads, layouts)
    broken = kind(tensors)
    broken.clocks[0] = [broken.clocks[0][0].double()]
    with pytest.raises(ValueError, match=r"steps\[0\]: expected one float32 element"):
        broken.step(ops, grads, layouts)
    for place in range(len(state.clocks)):  # a device pointer is not to be read here
        broken = kind(tensors)
        broken.clocks[place] = [broken.clocks[place][0].to("meta")]
        with pytest.raises(ValueError, match=r"\[0\]: expected all clocks on the CPU or all on .*, got "):
            broken.step(ops, grads, layouts)
    assert_same(state, kind(tensors), 0.0)


@both
def test_no_tensors(backend: Any, kind: Any) -> None:
    state = kind([])
    state.step(ops, [], [])
