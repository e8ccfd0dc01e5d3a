"""The dense and the pruned model run side by side over the calibration data, and the refit that needs more passes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from sparse_accel.calibration.data import all_reduce_
from sparse_accel.calibration.powers import power_of, times_power
from sparse_accel.calibration.ranks import of_all
from sparse_accel.calibration.replay.engine import Engine
from sparse_accel.calibration.replay.front import check_values, replayed
from sparse_accel.channels.call import tree_tensors
from sparse_accel.prune.structured.layer import Layer, Piece
from sparse_accel.prune.structured.sites import Seen, Watch

Batch = tuple[dict[str, Seen], dict[str, Seen], dict[str, list["Tensor | None"]]]
Solutions = dict[str, tuple[Tensor, Tensor]]


class UnpairedError(ValueError):
    """The dense and the pruned model call a layer differently: its results cannot be compared.

    Attributes:
        names: of the layers.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(f"{', '.join(names)}: the dense model calls it with other samples than the pruned model")
        self.names = set(names)


class Feed:
    """Passes over the data that show some layers' inputs, shortcuts and wanted results.

    Each pass begins behind the finished blocks and ends where the layers have been called. What the first pass shows is
    kept for the next ones while it fits.

    Args:
        engine: the dense model, the one that is being pruned, and the data.
        layers: consumers in the latter.
        cache_bytes: to keep at most.
    """

    def __init__(
        self,
        engine: Engine,
        layers: Sequence[Layer],
        *,
        cache_bytes: int,
    ) -> None:
        self.layers = {layer.name: layer for layer in layers}
        self.engine, self.calibration = engine, engine.batches
        work = engine.work.model
        sites = {name: layer.site for name, layer in self.layers.items()}
        skips = [name for name, layer in self.layers.items() if layer.target == "skip"]
        wanted = {name: site for name, site in sites.items() if self.layers[name].target != "local"}
        self.watch = Watch(work, sites, inputs=True, results=False, sums=skips)
        self.dense = Watch(engine.dense.model, wanted, inputs=False, results=True, sums=skips) if wanted else None
        self.device = next((t.device for t in tree_tensors((list(work.parameters()), list(work.buffers())))), None)
        self.cache: list[Batch] | None = []
        self.room = self.cache_bytes = cache_bytes
        self.complete = False

    def run(self, visit: Callable[[Layer, Piece], None], restart: Callable[[], None]) -> None:
        """One pass: ``visit(layer, (columns, wanted result, shortcut))``, piece by piece.

        Args:
            visit: takes the pieces.
            restart: called where the visits start again.

        Raises:
            UnpairedError: on all ranks alike.
        """
        if self.complete and self.cache is not None:
            for shown in self.cache:
                self._show(shown, visit)
            return
        unpaired: set[str] = set()

        def again() -> None:
            unpaired.clear()
            self.cache, self.room = [], self.cache_bytes
            restart()

        fronts = [self.engine.work] + ([] if self.dense is None else [self.engine.dense])
        replayed(fronts, self.calibration, lambda: self._pass(visit, unpaired), again)
        unpaired = unpaired.union(*of_all(unpaired)) if self.dense is not None else unpaired
        if unpaired:
            raise UnpairedError(sorted(unpaired))
        self.complete = True

    def _pass(self, visit: Callable[[Layer, Piece], None], unpaired: set[str]) -> None:
        with ExitStack() as stack:
            stack.enter_context(self.watch.hooked())
            if self.dense is not None:
                stack.enter_context(self.dense.hooked())
            for batch in self.calibration.batches(self.device):
                known = not self.calibration.fresh
                dense = {} if self.dense is None else self.dense.run(batch, known=known)
                seen = self.watch.run(batch, known=known)
                for own in (*seen.values(), *dense.values()):
                    check_values([*own.inputs, *own.results, *own.shortcuts])
                unpaired.update(name for name, own in dense.items() if not self._paired(name, seen[name], own))
                if unpaired:
                    continue
                shown = (seen, dense, self._positions(seen))
                self._keep(shown)
                self._show(shown, visit)

    def _paired(self, name: str, seen: Seen, dense: Seen) -> bool:
        """Whether the calls in both models could be those of the same samples."""
        if len(seen.inputs) != len(dense.results):
            return False
        last = 1 if isinstance(self.layers[name].module, nn.modules.conv._ConvNd) else -1
        pairs = zip(seen.inputs, dense.results, strict=True)
        return all(x.shape[:last] == y.shape[:last] for x, y in pairs)

    def _positions(self, seen: Mapping[str, Seen]) -> dict[str, list[Tensor | None]]:
        """What of every input of the linear layers counts, by layer and call."""
        out: dict[str, list[Tensor | None]] = {}
        for name, own in seen.items():
            linear = not isinstance(self.layers[name].module, nn.modules.conv._ConvNd)
            chosen = [
                self.calibration.padding.chosen(name, x.shape, call) if linear else None
                for call, x in enumerate(own.inputs)
            ]
            out[name] = [None if mask is None else mask.to(self.device) for mask in chosen]
        return out

    def _show(self, shown: Batch, visit: Callable[[Layer, Piece], None]) -> None:
        seen, dense, positions = shown
        for name, layer in self.layers.items():
            for piece in layer.pieces(seen[name], dense.get(name), positions[name]):
                visit(layer, piece)

    def _keep(self, shown: Batch) -> None:
        if self.cache is None or self.complete:
            return
        self.room -= sum(tensor.nbytes for tensor in {id(t): t for t in tree_tensors(shown)}.values())
        if self.room < 0:
            self.cache = None
        else:
            self.cache.append(shown)


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
        sums: dict[str, tuple[Tensor, Tensor]] = {}

        def start(sums: dict[str, tuple[Tensor, Tensor]] = sums) -> None:
            for layer in layers:
                sums[layer.name] = torch.zeros_like(layer.weight), torch.zeros_like(layer.target_mean)

        start()

        def visit(layer: Layer, piece: Piece, sums: dict[str, tuple[Tensor, Tensor]] = sums) -> None:
            columns, wanted, short = piece
            if layer.name not in sums or wanted is None:
                return
            at = kept_columns[layer.name]
            weight, shift = solutions[layer.name]
            few = columns[:, at]
            free = torch.zeros_like(wanted) if short is None else -short
            with torch.autocast(columns.device.type, enabled=False):
                now = (weight[:, :, at].to(columns) @ few).add_(shift.to(columns).reshape(layer.groups, -1, 1))
                target = torch.where(wanted > 0, wanted + free, torch.minimum(now, free, out=now))
                cross, total = sums[layer.name]
                powers = power_of(target), power_of(few)  # of a product that would leave the range of float32
                product = times_power(target, -powers[0]) @ times_power(few, -powers[1]).mT
                cross[:, :, at] += times_power(product.double(), sum(powers))
            total += target.sum(2, dtype=torch.float64)

        feed.run(visit, start)
        for layer in layers:
            cross, total = sums[layer.name]
            all_reduce_([cross, total])
            cross -= total[..., None] * layer.mean[:, None, :]  # centred here: the pass spares a copy of the columns
            weight = layer.fit(kept, ridge, cross)
            solutions[layer.name] = weight, layer.intercept(weight, total / max(1, layer.gram.count))
