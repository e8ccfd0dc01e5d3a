"""Generalized linear models: a pass of implicit steps, and the joint step of a minibatch.

    python -m bench.bench_glm [--dtype float64] [--json FILE]

The pass takes 32,561 logistic rows of 123 columns, 14 of them set, one after another (the size of a9a), as a dense matrix
and as CSR. The twin is the loop a user of PyTorch would write, with the same roots by Newton; the peer is a pass of
scikit-learn's SGDClassifier (explicit steps), where that is installed. The joint step (linear, d = 123) is held against
torch.linalg.solve on the same system.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

import sparse_accel as sa

from . import harness

ROWS, COLUMNS, ENTRIES = 32_561, 123, 14
LR, BETA = 1.0, 0.5
BATCHES = (1, 4, 16, 64, 256, 1024)


def cases(settings: harness.Settings) -> Iterator[harness.Case]:
    """Epochs, dense and CSR, without and with momentum; joint steps by batch size."""
    tiny = tuple(settings.workloads) == ("tiny",)
    rows, name = (64, "tiny") if tiny else (ROWS, "32561 x 123")
    dtype = settings.torch_dtype if settings.torch_dtype == torch.float64 else torch.float32
    features, targets = logistic_rows(rows, dtype, settings.device)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0)).to(settings.device)
    itemsize = dtype.itemsize
    for kind, data in (("dense", features), ("CSR", features.to_sparse_csr())):
        bytes_moved = rows * (COLUMNS * itemsize if kind == "dense" else ENTRIES * (itemsize + 8))
        for beta in (0.0, BETA):
            yield harness.Case(
                f"epoch, {kind}, beta {beta:g}",
                name,
                partial(epoch, data, targets, order, beta),
                bytes_moved,
                twin=partial(plain_epoch, features, targets, order, beta) if kind == "dense" else None,
                peer=sgd_epoch(features, targets, kind) if settings.device == "cpu" else None,
                peer_name="SGDClassifier, one pass",
            )
    for batch in BATCHES[:2] if tiny else BATCHES:
        part, wanted = features[:batch], targets[:batch].to(dtype)
        z = torch.zeros(COLUMNS, dtype=dtype, device=settings.device)
        yield harness.Case(
            "joint step, linear",
            f"b = {batch}",
            partial(sa.glm_prox, z, part, wanted, LR, "gaussian"),
            part.numel() * itemsize,
            peer=partial(solve, z.double(), part.double(), wanted.double()),
            peer_name="A A' + linalg.solve",
        )


def logistic_rows(rows: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """0/1 features with ENTRIES ones in each row, and labels of a logistic model."""
    generator = torch.Generator().manual_seed(0)
    features = torch.zeros(rows, COLUMNS, dtype=dtype)
    columns = torch.rand(rows, COLUMNS, generator=generator).argsort(1)[:, :ENTRIES]
    features.scatter_(1, columns, 1.0)
    truth = torch.randn(COLUMNS, generator=generator).to(dtype)
    labels = torch.rand(rows, generator=generator) < torch.sigmoid(features @ truth)
    return features.to(device), labels.to(device, torch.float64)


def epoch(features: Tensor, targets: Tensor, order: Tensor, beta: float) -> None:
    """One native call."""
    x = torch.zeros(COLUMNS, dtype=features.dtype, device=features.device)
    sa.glm_epoch(x, x.clone(), features, targets, order, LR, beta, "binomial")


def plain_epoch(features: Tensor, targets: Tensor, order: Tensor, beta: float) -> Tensor:
    """The same steps in plain PyTorch, the scalar root by Newton on the host."""
    x = torch.zeros(COLUMNS, dtype=features.dtype, device=features.device)
    x_prev = x.clone()
    labels = targets.tolist()
    for i in order.tolist():
        a = features[i]
        z = x + beta * (x - x_prev)
        u, q = float(a @ z), float(a @ a)
        sign = 1 - 2 * labels[i]
        d = 0.0
        for _ in range(20):
            mean = 1 / (1 + math.exp(-max(-700.0, sign * u - d)))
            step = (d - LR * q * mean) / (1 + LR * q * mean * (1 - mean))
            d -= step
            if abs(step) <= 1e-12 * abs(d):
                break
        x_prev, x = x, z - (sign * d / q) * a
    return x


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run this bench alone."""
    return harness.bench_main({"glm": cases}, argv, __doc__ or "")[0]


if __name__ == "__main__":
    sys.exit(main())
