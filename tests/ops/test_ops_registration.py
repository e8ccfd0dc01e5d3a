"""The ops as PyTorch sees them: schemas, fake kernels, torch.compile, devices without kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_cases import randn
from torch import Tensor

from sparse_accel import ops, reference
from sparse_accel.groups import GroupLayout

LAYOUT = GroupLayout(4, 6, 3)
FLAT = [*LAYOUT, *LAYOUT]


def pair() -> list[Tensor]:
    return [randn((4, 6, 3), torch.float32, torch.device("cpu"), i) for i in range(2)]


def step_arguments() -> tuple[Any, ...]:
    scalars = [torch.zeros(()) for _ in range(2)], [torch.zeros((), dtype=torch.float64) for _ in range(2)]
    numbers = (FLAT, "soft", [0.1, 0.0], 0.5, None, 0.5, False, None, None)
    return (pair(), pair(), pair(), pair(), *scalars, *numbers)


def sgd_arguments() -> tuple[Any, ...]:
    numbers = (FLAT, "soft", [0.1, 0.0], 0.5, None, 0.5, False, None, None)
    return (pair(), pair(), pair(), [torch.zeros(()) for _ in range(2)], *numbers)


def adaptive_arguments(ramda: bool) -> tuple[Any, ...]:
    steps, alphas = [torch.zeros(()) for _ in range(2)], [torch.zeros((), dtype=torch.float64) for _ in range(2)]
    squares = [x.square() for x in pair()]
    state = (pair(), squares, pair(), steps, alphas) if ramda else (pair(), squares, steps)
    own = (0.5, 1e-3) if ramda else (0.9, 0.99, 1e-3, 0.01)
    return (pair(), pair(), *state, FLAT, "soft", [0.1, 0.0], 0.5, None, *own, False, None, None)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("group_score", (pair(), FLAT, "l2", False)),
        ("group_score", (pair(), FLAT, "amax", True)),
        ("group_topk", ([randn((9,), torch.float32, torch.device("cpu"), i) for i in range(2)], 5)),
        ("prox_", (pair(), FLAT, "soft", [0.1, 0.2], True)),
        ("prox_", (pair(), FLAT, "hard", [0.1, 0.2], False)),
        ("rmda_step_", step_arguments()),
        ("prox_sgd_step_", sgd_arguments()),
        ("ramda_step_", adaptive_arguments(ramda=True)),
        ("prox_adamw_step_", adaptive_arguments(ramda=False)),
    ],
)
def test_opcheck(name: str, arguments: tuple[Any, ...]) -> None:
    utils = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(getattr(torch.ops.sparse_accel, name).default, arguments, test_utils=utils)


def test_torch_compile_takes_ops_whole() -> None:
    def loss(x: Tensor) -> Tensor:
        (score,) = ops.group_score([x], [LAYOUT])
        return (score * ops.group_topk(score, 2)).sum()

    x = pair()[0]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), loss(x))


def test_other_devices_run_the_twin() -> None:
    """The meta device stands for a device that has no kernels: shapes come out, nothing is refused."""
    x = torch.empty(4, 6, 3, device="meta")
    (score,) = ops.group_score([x], [LAYOUT])
    assert score.shape == (6,)
    assert score.is_meta
    assert ops.prox_([x], [LAYOUT], [0.1]) is None


def test_twin_is_reached_through_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops._library, "_on_device", lambda tensor: False)
    (expected,) = reference.group_score(pair()[:1], [LAYOUT])
    (found,) = ops.group_score(pair()[:1], [LAYOUT])
    assert torch.equal(found, expected)
    scores = pair()[0].flatten()
    assert torch.equal(ops.group_topk(scores, 5), reference.group_topk([scores], 5)[0])
    x, y = pair()[0], pair()[0]
    assert torch.equal(
        ops.prox_([x], [LAYOUT], [0.4], return_value=True), reference.prox_([y], [LAYOUT], [0.4], return_value=True)
    )
    assert torch.equal(x, y)


def test_cpu_capability_is_one_that_is_known() -> None:
    assert ops.cpu_capability() in ("DEFAULT", "AVX2", "AVX512")
