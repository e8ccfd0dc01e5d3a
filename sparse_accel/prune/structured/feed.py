"""The dense and the pruned model run side by side over the calibration data, and the refit that needs more passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.calibration.data import Calibration, all_reduce_
from sparse_accel.calibration.powers import power_of, times_power
from sparse_accel.channels.call import tree_tensors
from sparse_accel.prune.structured.layer import Layer, Piece
from sparse_accel.prune.structured.sites import Seen, Watch

Batch = tuple[dict[str, Seen], dict[str, Seen], "Tensor | None"]
Solutions = dict[str, tuple[Tensor, Tensor]]


class Feed:
    """Passes over the data that show some layers' inputs, shortcuts and wanted results.

    Each pass ends where the layers have been called. What the first pass shows is kept for the next ones while it fits.

    Args:
        dense: the model as it was.
        work: the model that is being pruned.
        calibration: the data.
        layers: consumers in ``work``.
        mask: name of the input that says with zeros which positions ``[batch, length]`` to leave out; None: none.
        cache_bytes: to keep at most.
    """

    def __init__(
        self,
        dense: nn.Module,
        work: nn.Module,
        calibration: Calibration,
        layers: Sequence[Layer],
        *,
        mask: str | None,
        cache_bytes: int,
    ) -> None:
        self.layers = {layer.name: layer for layer in layers}
        self.calibration = calibration
        self.mask = mask
        sites = {name: layer.site for name, layer in self.layers.items()}
        skips = [name for name, layer in self.layers.items() if layer.target == "skip"]
        wanted = {name: site for name, site in sites.items() if self.layers[name].target != "local"}
        self.watch = Watch(work, sites, inputs=True, results=False, sums=skips)
        self.dense = Watch(dense, wanted, inputs=False, results=True, sums=skips) if wanted else None
        self.device = next((t.device for t in tree_tensors((list(work.parameters()), list(work.buffers())))), None)
        self.cache: list[Batch] | None = []
        self.room = cache_bytes
        self.complete = False

    def run(self, visit: Callable[[Layer, Piece], None]) -> None:
        """One pass: ``visit(layer, (columns, wanted result, shortcut))``, piece by piece."""
        if self.complete and self.cache is not None:
            for shown in self.cache:
                self._show(shown, visit)
            return
        with ExitStack() as stack:
            stack.enter_context(self.watch.hooked())
            if self.dense is not None:
                stack.enter_context(self.dense.hooked())
            for batch in self.calibration.batches(self.device):
                dense = {} if self.dense is None else self.dense.run(batch)
                shown = (self.watch.run(batch), dense, self._mask_of(batch))
                self._keep(shown)
                self._show(shown, visit)
        self.complete = True

    def _show(self, shown: Batch, visit: Callable[[Layer, Piece], None]) -> None:
        seen, dense, mask = shown
        for name, layer in self.layers.items():
            chosen = None
            if mask is not None and all(x.shape[:-1].numel() == mask.numel() for x in seen[name].inputs):
                chosen = mask.flatten()
            for piece in layer.pieces(seen[name], dense.get(name), chosen):
                visit(layer, piece)

    def _keep(self, shown: Batch) -> None:
        if self.cache is None or self.complete:
            return
        self.room -= sum(tensor.nbytes for tensor in {id(t): t for t in tree_tensors(shown)}.values())
        if self.room < 0:
            self.cache = None
        else:
            self.cache.append(shown)

    def _mask_of(self, batch: Any) -> Tensor | None:
        found = batch.get(self.mask) if isinstance(batch, Mapping) and self.mask is not None else None
        return found.bool() if isinstance(found, Tensor) and found.dim() == 2 else None


def relu_aware(
    feed: Feed, layers: Sequence[Layer], kept: Tensor, solutions: Solutions, *, ridge: float, iterations: int
) -> None:
    """Refit for a ReLU after the sum: where the dense sum is negative, any negative sum will do.

    With p the present prediction and s the pruned shortcut, the target is ``t - s`` where the dense sum t is positive
    and ``min(p, -s)`` elsewhere; the Gram matrix stays.

    Args:
        feed: passes over the data.
        layers: to refit, with finished moments.
        kept: units kept.
        solutions: weight and shift by layer, replaced.
        ridge: of the least squares.
        iterations: passes.
    """
    kept_columns = {layer.name: layer.kept_columns(kept) if layer.groups == 1 else slice(None) for layer in layers}
    for _ in range(iterations):
        sums = {layer.name: (torch.zeros_like(layer.weight), torch.zeros_like(layer.target_mean)) for layer in layers}

        def visit(layer: Layer, piece: Piece, sums: dict[str, tuple[Tensor, Tensor]] = sums) -> None:
            columns, wanted, short = piece
            if layer.name not in sums or wanted is None:
                return
            at = kept_columns[layer.name]
            weight, shift = solutions[layer.name]
            few = columns[:, at]
            free = torch.zeros_like(wanted) if short is None else -short
            with torch.autocast(columns.device.type, enabled=False):
                now = weight[:, :, at].to(columns) @ few + shift.to(columns).reshape(layer.groups, -1, 1)
                target = torch.where(wanted > 0, wanted + free, torch.minimum(now, free))
                cross, total = sums[layer.name]
                powers = power_of(target), power_of(few)  # of a product that would leave the range of float32
                product = times_power(target, -powers[0]) @ times_power(few, -powers[1]).mT
                cross[:, :, at] += times_power(product.double(), sum(powers))
            total += target.sum(2, dtype=torch.float64)

        feed.run(visit)
        for layer in layers:
            cross, total = sums[layer.name]
            all_reduce_([cross, total])
            cross -= total[..., None] * layer.mean[:, None, :]  # centred here: the pass spares a copy of the columns
            weight = layer.fit(kept, ridge, cross)
            solutions[layer.name] = weight, layer.intercept(weight, total / max(1, layer.gram.count))
