"""The outer weights of a width: what its readers multiply its units with, rescaled or refitted for some of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.calibration.columns import column_chunks, column_count, is_convolution, weight_matrix, weight_of
from sparse_accel.calibration.moments import Gram
from sparse_accel.channels.call import tree_tensors
from sparse_accel.channels.widths import Consumer, ExpertWidth, Width
from sparse_accel.diagnostics._passes import Bench

RIDGE = 1e-6


def untreated(width: Width, *, refit: bool = False) -> str:
    """Why units of a width cannot be dropped so that their readers make up for it, in words; empty if they can."""
    if isinstance(width, ExpertWidth):
        return "the experts' neurons are read inside the module, by parameters that are stacked"
    if width.coupled:
        return "a residual stream: what its readers make is added to its units"
    if width.norms:
        return f"{width.norms[0].module} divides each unit by a mean over all of them"
    for consumer in width.consumers:
        if not consumer.plain:
            return f"{consumer.module} reads its units, and {consumer.obstacle or 'its weight cannot be replaced'}"
    if refit and not width.refittable:
        name, why = next(iter(width.obstacles().items()))
        return f"{name} reads its units, and cannot be refitted: {why}"
    return ""


def choose_units(width: Width, keep: float, generator: torch.Generator) -> Tensor:
    """A random share of the units, at least one, ascending; of every part of :attr:`Width.balance` equally many."""
    parts = torch.arange(width.units, device="cpu")[None] if width.balance is None else width.balance
    count = max(1, round(keep * parts.shape[1]))
    chosen = [part[torch.randperm(len(part), generator=generator, device="cpu")[:count]] for part in parts]
    return torch.cat(chosen).sort().values


def rescale(model: nn.Module, width: Width, kept: Tensor, scale: float | None = None) -> None:
    """In every reader of a width, zero the weights on the other units and multiply those on the kept ones, in place.

    Args:
        model: with the readers.
        width: of it.
        kept: units.
        scale: N / |A| without it, as in the paper.
    """
    factor = width.units / len(kept) if scale is None else scale
    for consumer in width.consumers:
        module = model.get_submodule(consumer.module)
        matrix = weight_matrix(module, module.get_parameter("weight").detach())
        columns = columns_of(module, consumer, kept).to(matrix.device)
        every = columns_of(module, consumer, torch.arange(width.units, device="cpu")).to(matrix.device)
        flat = matrix.transpose(1, 2).reshape(-1, matrix.shape[1]).clone()  # [groups * D, out / groups]
        own = flat[columns] * factor
        flat[every] = 0
        flat[columns] = own
        _write(module, flat)


def columns_of(module: nn.Module, consumer: Consumer, units: Tensor) -> Tensor:
    """Entries of ``groups * D`` that units own in a reader's :func:`~sparse_accel.calibration.columns.columns`."""
    taps = math.prod(getattr(module, "kernel_size", (1,)))
    channels = consumer.channels.cpu()[units.cpu()].flatten()
    return (channels[:, None] * taps + torch.arange(taps, device="cpu")).flatten()


def _write(module: nn.Module, flat: Tensor) -> None:
    """A reader's weight from ``[groups * D, out / groups]``."""
    groups, features = column_count(module)
    matrix = flat.reshape(groups, features, -1).transpose(1, 2)
    with torch.no_grad():
        module.get_parameter("weight").copy_(weight_of(module, matrix.contiguous()))


class Moments:
    """Second moments of what a width's readers are shown, with their dense results: for refits of any units.

    Args:
        dense: makes the wanted results, those of the readers as they are there.
        work: shows the inputs; may be the same.
        width: of both.

    Example:
        >>> from sparse_accel.diagnostics._passes import Samples
        >>> from sparse_accel.removal.remove import find_widths
        >>> net, x = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)), torch.randn(9, 2)
        >>> bench = Bench(net, nn.functional.mse_loss, Samples((x, torch.zeros(9, 1))))
        >>> list(Moments(bench, bench, find_widths(net, x)[0]).grams)
        ['2']
    """

    def __init__(self, dense: Bench, work: Bench, width: Width) -> None:
        self.width = width
        self.grams: dict[str, Gram] = {}
        names = [consumer.module for consumer in width.consumers]
        readers, models = ({n: bench.model.get_submodule(n) for n in names} for bench in (work, dense))
        with _watching(readers) as shown, _watching(models) as wanted:
            for _ in work.passes(*(() if work is dense else (dense,))):
                inputs, results = shown(), wanted()
                for name, reader in readers.items():
                    self._add(name, reader, inputs[name][0], results[name][1])

    def _add(self, name: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        groups, features = column_count(module)
        rows = weight_matrix(module, module.get_parameter("weight")).shape[1]
        if name not in self.grams:
            self.grams[name] = Gram(groups, features, rows, device=x.device)
        if is_convolution(module) and x.dim() == len(module.kernel_size) + 1:  # type: ignore[arg-type]
            x, y = x[None], y[None]
        conv = is_convolution(module)
        results = y.flatten(2) if conv else y.reshape(-1, groups * rows)
        for columns, samples in column_chunks(module, x.double(), size=y.shape[2:] if conv else None):
            part = results[samples].double()  # [n, out, positions] or [n, out]
            part = part.transpose(0, 1).flatten(1) if conv else part.T
            self.grams[name].update(columns, part.reshape(groups, rows, -1))

    def refit(self, model: nn.Module, kept: Tensor, ridge: float = RIDGE) -> None:
        """Write the least-squares weights (and bias, where there is one) on the kept units into every reader.

        They minimize the squared distance of the readers' results from the dense ones over the data; weights on other
        channels than the width's stay as they are in ``model``. A small ridge towards the rescaled weights settles
        directions that the data leave open.

        Args:
            model: to write to.
            kept: units.
            ridge: relative to the mean diagonal of the Gram matrix of the kept units.
        """
        rescale(model, self.width, kept)
        for consumer in self.width.consumers:
            module, gram = model.get_submodule(consumer.module), self.grams[consumer.module]
            weight = _weight64(module)  # [groups, out / groups, D]
            bias = getattr(module, "bias", None)
            square, cross, mean = gram.gram, gram.cross, gram.mean
            if bias is None:  # no intercept: moments about zero
                square = square + gram.count * mean[:, :, None] * mean[:, None, :]
                cross = cross + gram.count * gram.target_mean[:, :, None] * mean[:, None, :]
            own, every = (
                _mask(module, consumer, units).to(weight.device)
                for units in (kept, torch.arange(self.width.units, device="cpu"))
            )
            for group in range(len(weight)):
                at, rest = own[group], ~every[group]
                target = cross[group][:, at] - weight[group][:, rest] @ square[group][rest][:, at]
                weight[group, :, at] = _solve(square[group][at][:, at], target, weight[group][:, at], ridge)
            if bias is not None:
                shift = gram.target_mean - (weight @ mean[:, :, None])[..., 0]
                with torch.no_grad():
                    bias.copy_(shift.flatten())
            _write(module, weight.transpose(1, 2).reshape(-1, weight.shape[1]))


def _mask(module: nn.Module, consumer: Consumer, units: Tensor) -> Tensor:
    """Which columns units own, bool [groups, D]."""
    groups, features = column_count(module)
    mask = torch.zeros(groups * features, dtype=torch.bool, device="cpu")
    mask[columns_of(module, consumer, units)] = True
    return mask.reshape(groups, features)


def _solve(square: Tensor, cross: Tensor, weight: Tensor, ridge: float) -> Tensor:
    """``(cross + delta weight) (square + delta I)^-1``, [out, n]; the weight itself where the data say nothing."""
    delta = ridge * float(square.diagonal().mean()) if len(square) else 0.0
    if delta == 0.0:
        return weight
    damped = square + delta * torch.eye(len(square), dtype=square.dtype, device=square.device)
    factor = torch.linalg.cholesky(damped)
    return torch.cholesky_solve((cross + delta * weight).mT, factor).mT


def _weight64(module: nn.Module) -> Tensor:
    """A reader's weight, float64 [groups, out / groups, D], a copy."""
    return weight_matrix(module, module.get_parameter("weight").detach().double()).clone()


@contextmanager
def _watching(modules: Mapping[str, nn.Module]) -> Iterator[Callable[[], dict[str, tuple[Tensor, Tensor]]]]:
    """A function that hands out input and output of the one call of each module since it was called last.

    It raises ValueError where a module has been called not once.
    """
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in modules}

    def hook_of(name: str) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            calls[name].append((next(tree_tensors((args, kwargs))).clone(), output.clone()))

        return hook

    def take() -> dict[str, tuple[Tensor, Tensor]]:
        for name, own in calls.items():
            if len(own) != 1:
                raise ValueError(f"{name}: a refit needs one call for every batch, got {len(own)}")
        return {name: own.pop() for name, own in calls.items()}

    handles = [m.register_forward_hook(hook_of(n), with_kwargs=True) for n, m in modules.items()]
    try:
        yield take
    finally:
        for handle in handles:
            handle.remove()
