"""Generalized linear models: a pass of implicit steps, and the joint step of a minibatch.

The pass takes 32,561 logistic rows of 123 columns, 14 of them set, one after another (the size of a9a), as a dense
matrix and as CSR; the peer is a pass of scikit-learn's SGDClassifier (explicit steps), where that is installed. On
2,048 of the rows, the twin is the loop of the same steps in plain PyTorch, and the peer that loop with its root in
Python numbers.
The joint step (linear, d = 123) is held against torch.linalg.solve on the same system.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparse_accel.bench.case import Case, Settings
from sparse_accel.ops import glm_epoch, glm_prox

ROWS, COLUMNS, ENTRIES = 32_561, 123, 14
LR, BETA = 1.0, 0.5
PLAIN_ROWS = 2048
BATCHES = (1, 4, 16, 64, 256, 1024)


def cases(settings: Settings) -> Iterator[Case]:
    """Epochs, dense and CSR, without and with momentum; joint steps by batch size."""
    tiny = tuple(settings.workloads) == ("tiny",)
    rows, name = (64, "tiny") if tiny else (ROWS, "32561 x 123")
    dtype = settings.torch_dtype if settings.torch_dtype == torch.float64 else torch.float32
    features, targets = logistic_rows(rows, dtype, settings.device)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0), device="cpu").to(settings.device)
    itemsize = dtype.itemsize
    for kind, data in (("dense", features), ("CSR", features.to_sparse_csr())):
        bytes_moved = rows * (COLUMNS * itemsize if kind == "dense" else ENTRIES * (itemsize + 8))
        for beta in (0.0, BETA):
            yield Case(
                f"epoch, {kind}, beta {beta:g}",
                name,
                partial(epoch, data, targets, order, beta),
                bytes_moved,
                peer=sgd_epoch(features, targets, kind) if settings.device == "cpu" else None,
                peer_name="SGDClassifier, one pass",
            )
        few, plain = order[:PLAIN_ROWS], settings.device == "cpu"  # a GPU would wait for thousands of tiny loops
        yield Case(
            f"epoch, {kind}, beta {BETA:g}",
            f"{len(few)} steps",
            partial(epoch, data, targets, few, BETA),
            bytes_moved * len(few) // rows,
            twin=partial(plain_epoch, features, targets, few, BETA, tensor_root) if plain else None,
            peer=partial(plain_epoch, features, targets, few, BETA, number_root) if plain else None,
            peer_name="loop, root in Python numbers",
        )
    for batch in BATCHES[:2] if tiny else BATCHES:
        part, wanted = features[:batch], targets[:batch].to(dtype)
        z = torch.zeros(COLUMNS, dtype=dtype, device=settings.device)
        yield Case(
            "joint step, linear",
            f"b = {batch}",
            partial(glm_prox, z, part, wanted, LR, "gaussian"),
            part.numel() * itemsize,
            peer=partial(solve, z.double(), part.double(), wanted.double()),
            peer_name="A A' + linalg.solve",
        )


def logistic_rows(rows: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """0/1 features with ENTRIES ones in each row, and labels of a logistic model."""
    generator = torch.Generator().manual_seed(0)
    features = torch.zeros(rows, COLUMNS, dtype=dtype, device="cpu")
    columns = torch.rand(rows, COLUMNS, generator=generator, device="cpu").argsort(1)[:, :ENTRIES]
    features.scatter_(1, columns, 1.0)
    truth = torch.randn(COLUMNS, generator=generator, device="cpu").to(dtype)
    labels = torch.rand(rows, generator=generator, device="cpu") < torch.sigmoid(features @ truth)
    return features.to(device), labels.to(device, torch.float64)


def epoch(features: Tensor, targets: Tensor, order: Tensor, beta: float) -> None:
    """One native call."""
    x = torch.zeros(COLUMNS, dtype=features.dtype, device=features.device)
    glm_epoch(x, x.clone(), features, targets, order, LR, beta, "binomial")


Root = Callable[[Tensor, Tensor, Tensor], Any]  # from sign * u, |a|^2 and the sign of a row: xi


def plain_epoch(features: Tensor, targets: Tensor, order: Tensor, beta: float, root: Root) -> Tensor:
    """The same steps in plain PyTorch."""
    x = torch.zeros(COLUMNS, dtype=features.dtype, device=features.device)
    x_prev = x.clone()
    signs = (1 - 2 * targets).to(features.dtype)
    for i in order.tolist():
        a = features[i]
        z = x + beta * (x - x_prev)
        x_prev, x = x, z + root(a @ z, a @ a, signs[i]) * a
    return x


def tensor_root(u: Tensor, q: Tensor, sign: Tensor) -> Tensor:
    """Newton on tensors."""
    d = torch.zeros_like(u)
    for _ in range(20):
        mean = torch.sigmoid(sign * u - d)
        step = (d - LR * q * mean) / (1 + LR * q * mean * (1 - mean))
        d = d - step
        if step * step <= 1e-16 * d.abs():
            break
    return -sign * d / q


def number_root(u: Tensor, q: Tensor, sign: Tensor) -> float:
    """Newton on Python numbers, which is faster."""
    at, square, side = float(u), float(q), float(sign)
    d = 0.0
    for _ in range(20):
        mean = 1 / (1 + math.exp(min(700.0, d - side * at)))
        step = (d - LR * square * mean) / (1 + LR * square * mean * (1 - mean))
        d -= step
        if step * step <= 1e-16 * abs(d):
            break
    return -side * d / square


def sgd_epoch(features: Tensor, targets: Tensor, kind: str) -> Callable[[], object] | None:
    """A pass of scikit-learn's SGD over the same rows, float64, as it wants them; None without scikit-learn."""
    try:
        from scipy.sparse import csr_matrix
        from sklearn.linear_model import SGDClassifier
    except ImportError:
        return None
    rows = features.double().numpy()
    data = csr_matrix(rows) if kind == "CSR" else rows
    model = SGDClassifier(loss="log_loss", alpha=0.0, learning_rate="constant", eta0=0.1, fit_intercept=False)
    return partial(model.partial_fit, data, targets.numpy(), classes=[0.0, 1.0])


def solve(z: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """The joint step of least squares by its Gram matrix."""
    eta = LR / len(rows)
    system = torch.eye(len(rows), dtype=z.dtype, device=z.device) + eta * rows @ rows.T
    return z + rows.T @ torch.linalg.solve(system, eta * (targets - rows @ z))
