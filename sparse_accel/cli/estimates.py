"""What a run will take, before it begins: memory by the formulas of the run itself, time by short measurements."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.calibration.columns import is_convolution
from sparse_accel.channels.runs import run_model
from sparse_accel.channels.widths import ExpertWidth, Width
from sparse_accel.prune.structured.choose import unit_sets
from sparse_accel.prune.structured.pruner import ISpaSP
from sparse_accel.prune.structured.sites import find_sites
from sparse_accel.prune.structured.stage import state_bytes
from sparse_accel.prune.unstructured.layers import Layer, StackedLayer
from sparse_accel.prune.unstructured.pruner import CurvatureIHT
from sparse_accel.prune.unstructured.solve import CHUNK_BYTES, work_bytes

PASSES = 6  # of the dense and the pruned model together, while finished blocks are replayed
SIDE = 384  # of the matrices that the speed of products is measured on


def model_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def prune_memory(pruner: ISpaSP, widths: Sequence[Width]) -> int:
    """Bytes that pruning takes beyond the model and the data: copies of it, the largest statistics, activations."""
    sites = find_sites(pruner.model, pruner.example_inputs, {n: m for w in widths for n, m in w.watched().items()})
    largest = max((state_bytes(width, pruner.model, sites, pruner.settings) for width in widths), default=0)
    return 2 * model_bytes(pruner.model) + largest + pruner.activation_memory


def sparsify_memory(pruner: CurvatureIHT, layers: Sequence[Layer]) -> int:
    """Bytes that sparsification takes beyond the model and the data."""
    work = max(
        (work_bytes(layer, pruner.options.dtype) for layer in layers if not isinstance(layer, StackedLayer)), default=0
    )
    masks = sum(layer.weight.numel() for layer in layers)
    return model_bytes(pruner.model) + masks + work + 2 * CHUNK_BYTES + pruner.activation_memory


def prune_seconds(model: nn.Module, batches: Sequence[Any], widths: Iterable[Width]) -> float:
    """About how long pruning takes: passes over the data, products for the statistics, eliminations."""
    readers = {name: 1.0 for width in widths if not isinstance(width, ExpertWidth) for name in width.watched()}
    return _seconds(model, batches, readers, solve=6.0)


def sparsify_seconds(model: nn.Module, batches: Sequence[Any], layers: Iterable[Layer], iterations: int) -> float:
    """About how long sparsification takes."""
    plain = [layer for layer in layers if not isinstance(layer, StackedLayer)]
    rounds = {name: float(iterations) for layer in plain for name in layer.modules}
    return _seconds(model, batches, rounds, solve=4.0)


def _seconds(model: nn.Module, batches: Sequence[Any], rounds: Mapping[str, float], solve: float) -> float:
    """Passes, second moments of the modules' inputs, ``solve`` times the cube of their columns, and rounds of products.

    Args:
        model: in eval mode; runs twice on the first batch.
        batches: all of them.
        rounds: products of a module's weight with its moments, by module.
        solve: operations of a factorization and an inverse, in cubes of the number of columns.
    """
    sizes: dict[str, tuple[int, int]] = {}  # columns, and positions of a batch

    def hook_of(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            x = next((item for item in args if isinstance(item, Tensor)), None)
            weight = getattr(module, "weight", None)
            if x is None or not isinstance(weight, Tensor) or not isinstance(output, Tensor):
                return
            if is_convolution(module):
                columns, positions = weight[0].numel(), output.numel() // max(output.shape[1], 1)
            else:
                columns, positions = x.shape[-1], x.numel() // max(x.shape[-1], 1)
            before = sizes.get(name, (columns, 0))
            sizes[name] = columns, before[1] + positions

        return hook

    with torch.no_grad():
        handles = [model.get_submodule(name).register_forward_hook(hook_of(name)) for name in rounds]
        try:
            run_model(model, batches[0])
        finally:
            for handle in handles:
                handle.remove()
        start = time.perf_counter()
        run_model(model, batches[0])
        _settle(model)
        forward = time.perf_counter() - start
    work = 0.0
    for name, (columns, positions) in sizes.items():
        rows = model.get_submodule(name).get_parameter("weight").numel() / columns
        work += 2.0 * positions * len(batches) * columns**2 + solve * columns**3
        work += 2.0 * rounds[name] * rows * columns**2
    return PASSES * forward * len(batches) + work / _rate(model)


def _rate(model: nn.Module) -> float:
    """Floating-point operations of a second in products of float64 matrices where the model is."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    a = torch.ones(SIDE, SIDE, dtype=torch.float64, device=device)
    a @ a
    _settle(model)
    start = time.perf_counter()
    for _ in range(4):
        a @ a
    _settle(model)
    return 4 * 2 * SIDE**3 / max(time.perf_counter() - start, 1e-6)


def _settle(model: nn.Module) -> None:
    if any(parameter.is_cuda for parameter in model.parameters()):
        torch.cuda.synchronize()


def some_units(width: Width, keep: int) -> Tensor:
    """Any ``keep`` units of a width that may be kept together: how large what is left is does not depend on which."""
    if isinstance(width, ExpertWidth):
        return torch.arange(keep, device="cpu")  # the same ones of all experts
    sets = unit_sets(width)
    if sets is None:
        return torch.arange(keep, device="cpu")
    number = int(sets.max()) + 1
    chosen = [(sets == part).nonzero().flatten()[: keep // number] for part in range(number)]
    return torch.cat(chosen).sort().values


def duration(seconds: float) -> str:
    """In words.

    Example:
        >>> duration(4.2), duration(95), duration(9000)
        ('4 s', '1.6 min', '2.5 h')
    """
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.1f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def size(nbytes: float) -> str:
    """In words.

    Example:
        >>> size(512), size(90_900_000), size(3.2e9)
        ('512 bytes', '90.9 MB', '3.2 GB')
    """
    return (
        f"{nbytes:.0f} bytes"
        if nbytes < 1000
        else f"{nbytes / 1e6:.1f} MB"
        if nbytes < 1e9
        else f"{nbytes / 1e9:.1f} GB"
    )
