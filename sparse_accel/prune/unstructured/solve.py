"""One step of curvature IHT on a model: the Hessian of its inputs, and the solutions of the layers that share it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.calibration.batches import Batches
from sparse_accel.calibration.moments import Gram, column_chunks
from sparse_accel.calibration.replay.front import Front
from sparse_accel.calibration.slice_moments import SliceGram
from sparse_accel.prune.layerwise.targets import BlockSparsity
from sparse_accel.prune.unstructured.layers import Layer, StackedLayer, Step
from sparse_accel.prune.unstructured.report import LayerReport
from sparse_accel.prune.unstructured.stacked import stacked_hessian

CHUNK_BYTES = 1 << 26  # of im2col columns at a time


@dataclass(frozen=True)
class SolverOptions:
    """What every layer is solved with; see :func:`sparse_accel.prune.layerwise_solve`."""

    method: str = "iht"
    iterations: int = 20
    seed: int = 0
    dtype: torch.dtype = torch.float64
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype: expected torch.float32 or torch.float64, got {self.dtype}")


@dataclass
class Solved:
    """A layer's solution: matrix [groups, R, C], relative output error, seconds, damping, dead inputs."""

    matrix: Tensor
    error: float
    seconds: float
    damping: float
    dead: int = 0


def hessian_of(front: Front, batches: Batches, step: Step, dtype: torch.dtype) -> Gram | SliceGram:
    """``X Xᵀ`` of a step's inputs over all batches (of this rank), every call of them, summed in ``dtype``."""
    first = step.layers[0]
    if isinstance(first, StackedLayer):
        return stacked_hessian(front, batches, first, dtype, calls=step.calls)
    groups, _, features = step.layers[0].shape
    device = step.layers[0].weight.device
    grams: list[Gram] = []

    def restart() -> None:
        grams[:] = [Gram(groups, features, centred=False, dtype=dtype, device=device)]

    def visit(name: str, x: Tensor, output: Any) -> None:
        module = step.layers[0].modules[name]
        for part, _ in column_chunks(module, columns_input(module, x, batches, name), CHUNK_BYTES):
            grams[0].update(part)

    restart()
    modules = {name: front.model.get_submodule(name) for name in step.layers[0].modules}
    front.stream(batches, modules, visit, restart, calls=step.calls)
    return grams[0]


def columns_input(module: nn.Module, x: Tensor, batches: Batches, name: str) -> Tensor:
    """A layer's input without padded positions (they exist for linear layers only)."""
    return x if isinstance(module, nn.modules.conv._ConvNd) else batches.positions(name, x)


def solve_layer(
    layer: Layer, hessian: Tensor, target: Any, options: SolverOptions, dense: Tensor | None = None
) -> Solved:
    """Solve a layer's problem, each group of a grouped convolution with its own Hessian.

    Args:
        layer: names the layer in errors.
        hessian: [groups, C, C]
        target: a sparsity.
        options: of the solver.
        dense: the matrix to come close to, [groups, R, C]; by default the layer's own.

    Raises:
        ValueError, RuntimeError: the solver's, with the layer's name.
    """
    from sparse_accel.prune.layerwise.solve import layerwise_solve

    dense = layer.matrix() if dense is None else dense
    start = time.perf_counter()
    parts = []
    damping, dead = 0.0, 0
    shape = (dense.shape[1], *layer.weight.shape[1:]) if isinstance(layer.module, nn.modules.conv._ConvNd) else None
    even = isinstance(layer, StackedLayer)
    idle = [even and not bool(own.diagonal().any()) for own in hessian]  # nothing to tell one weight from another
    try:
        targets = even_targets(dense, target) if even else group_targets(dense, hessian, target)
        for group, share in enumerate(targets):
            part = layerwise_solve(
                dense[group],
                hessian[group],
                share,
                options.iterations,
                method="magnitude" if idle[group] else options.method,
                shape=shape,
                seed=options.seed,
                **options.extra,
            )
            damping = max(damping, float(part.info.damping))  # type: ignore[attr-defined]
            dead += part.info.dead_inputs  # type: ignore[attr-defined]
            parts.append(part)
    except ValueError as error:
        raise ValueError(f"{layer.where}: {error}") from error
    except RuntimeError as error:
        raise RuntimeError(f"{layer.where}: {error}") from error
    matrix = torch.stack(parts)
    return Solved(matrix, relative_error(matrix, dense, hessian), time.perf_counter() - start, damping, dead)


def relative_error(matrix: Tensor, dense: Tensor, hessian: Tensor) -> float:
    """``tr(D H Dᵀ) / tr(W H Wᵀ)`` with ``D = matrix − dense``, ``W = dense``; float64; 0 where W's output is zero."""
    wide = hessian.to(torch.float64) if hessian.device.type != "mps" else hessian
    change, whole = (matrix - dense).to(wide.dtype), dense.to(wide.dtype)
    energy = float(((whole @ wide) * whole).sum())
    return float(((change @ wide) * change).sum()) / energy if energy > 0 else 0.0


def group_targets(dense: Tensor, hessian: Tensor, target: Any) -> list[Any]:
    """The sparsity of every group of a grouped convolution.

    A number is a share of the whole tensor: what each group keeps follows the largest ``w² H_jj`` over all groups.
    """
    groups, rows, features = dense.shape
    if groups == 1 or isinstance(target, bool) or not isinstance(target, (int, float)):
        return [target] * groups
    kept = kept_count(target, dense.numel())
    score = dense.square() * hessian.diagonal(dim1=1, dim2=2)[:, None, :]
    order = score.reshape(-1).argsort(descending=True, stable=True)[:kept]
    counts = torch.bincount(order // (rows * features), minlength=groups)
    return [1 - int(count) / (rows * features) for count in counts]


def even_targets(dense: Tensor, target: Any) -> list[Any]:
    """The sparsity of every matrix of a stack: the same, up to the one weight that makes the total exact.

    Experts that see few tokens are no less worth than others: they are not weighed by the sums of their inputs.

    Example:
        >>> [round(8 * (1 - share)) for share in even_targets(torch.zeros(3, 2, 4), 0.4)]
        [5, 5, 4]
    """
    slices, rows, features = dense.shape
    if isinstance(target, bool) or not isinstance(target, (int, float)) or not 0 <= target <= 1:
        return [target] * slices
    each, more = divmod(kept_count(target, dense.numel()), slices)
    return [1 - (each + (number < more)) / (rows * features) for number in range(slices)]


def kept_count(sparsity: float, numel: int) -> int:
    """Weights that a sparsity keeps: the nearest count, at least none and at most all."""
    return numel - min(numel, max(0, round(sparsity * numel)))


def work_bytes(layer: Layer, dtype: torch.dtype) -> int:
    """Bytes for a layer's Hessian, its sums, and the solver's own tensors."""
    groups, rows, features = layer.shape
    sums = 2 * groups * features * (features + 1) * dtype.itemsize
    solver = 4 * (8 * features * features + 12 * rows * features)
    if isinstance(layer.module, nn.modules.conv._ConvNd) and isinstance(layer.target, (str, BlockSparsity)):
        solver += features * features * dtype.itemsize  # the Hessian in the order of the taps
    return sums + solver + 3 * layer.weight.numel() * layer.weight.element_size()


def report_of(layer: Layer, solved: Solved, columns: int, idle: tuple[int, ...] = ()) -> LayerReport:
    """The report of a layer whose weight has been written."""
    return LayerReport(
        name=layer.name,
        kind=layer.kind,
        shape=tuple(layer.weight.shape),
        kept=int((layer.weight != 0).sum()),
        error=solved.error,
        seconds=solved.seconds,
        damping=solved.damping,
        columns=columns,
        modules=() if isinstance(layer, StackedLayer) else tuple(layer.modules),
        stacked=layer.layout if isinstance(layer, StackedLayer) else "",
        idle=idle,
        dead=solved.dead,
    )
