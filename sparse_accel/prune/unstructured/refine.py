"""Further outer rounds on the whole model: Gauss-Newton steps on the kept weights, the inputs' curvature taken anew.

The layers' problems are quadratic: solving them again with the same inputs changes nothing. What is not quadratic is
the error of the model's outputs. A round recomputes the inputs of all layers in the pruned model, and with them the
curvature ``H = X Xᵀ``; then, batch after batch, the gradient ``g`` of the outputs' error gives the direction ``−g H⁻¹``
of the kept weights (I-OBS, Wu et al., NeurIPS 2024), and the step along it and along the last step is the one that
minimizes the error of the linearized outputs: one forward pass per direction, no step size to choose.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.calibration.batches import Batches
from sparse_accel.calibration.data import all_reduce_, eval_mode, stream, to_device
from sparse_accel.calibration.moments import Gram, column_chunks
from sparse_accel.calibration.observations import floating
from sparse_accel.calibration.powers import power_of, times_power
from sparse_accel.calibration.ranks import broadcast_, fewest, together
from sparse_accel.calibration.slice_moments import SliceGram
from sparse_accel.calibration.slices import SliceCall
from sparse_accel.channels.call import run_model
from sparse_accel.progress import Show, over
from sparse_accel.prune.refinement.options import RefineOptions, RefineReport
from sparse_accel.prune.refinement.refine import checked_masks, refine_
from sparse_accel.prune.unstructured.layers import Layer, StackedLayer
from sparse_accel.prune.unstructured.progress import Progress
from sparse_accel.prune.unstructured.solve import CHUNK_BYTES, columns_input
from sparse_accel.prune.unstructured.stacked import watch_stacks

logger = logging.getLogger("sparse_accel")

DAMPING = 1e-2  # of the inputs' curvature, times its mean diagonal
SHARE = 0.5  # of a batch's best step that is taken at the start of a round: the next batch differs
FADING = 4  # steps after which it is half of that, a third after twice as many, and so on
PROBE = 1e-3  # length of the finite difference, relative to the weights


class Refinement:
    """Rounds of Gauss-Newton steps for the kept weights of a pruned model.

    Args:
        dense: whose outputs are the target.
        pruned: a copy of it with zeros; changed.
        layers: of ``pruned``, whose kept weights may change.
        train: batches to learn from.
        held_out: batches to compare rounds on.
    """

    def __init__(
        self, dense: nn.Module, pruned: nn.Module, layers: Sequence[Layer], train: Batches, held_out: Batches
    ) -> None:
        self.dense, self.pruned, self.layers = dense, pruned, list(layers)
        self.train, self.held_out = train, held_out
        self.device = layers[0].weight.device
        self.kept = [layer.weight.detach() != 0 for layer in layers]
        self.share = SHARE

    @staticmethod
    def bytes_needed(layers: Sequence[Layer]) -> int:
        """Bytes of gradients, directions, best weights and curvatures."""
        total = 0
        for layer in layers:
            groups, _, features = layer.shape
            total += 6 * layer.weight.nbytes + layer.weight.numel() + 3 * 4 * groups * features * (features + 1)
        return total

    def error(self) -> float:
        """Squared error of the outputs on the held-out batches of all ranks, relative to the dense outputs.

        Of several outputs, the mean.
        """
        sums: dict[int, Tensor] = {}  # by number of the output: squared error and energy
        with together(self.device), torch.no_grad(), self._in_eval():
            for batch in self._batches(self.held_out):
                targets = self._outputs(self.dense, batch, self.held_out)
                outputs = self._outputs(self.pruned, batch, self.held_out)
                for index, (target, output) in enumerate(zip(targets, outputs, strict=True)):
                    both = [_square(output.double() - target.double()), _square(target)]
                    pair = torch.tensor(both, dtype=torch.float64, device="cpu")
                    sums[index] = sums[index] + pair if index in sums else pair
        table = torch.stack([sums[index] for index in sorted(sums)]).to(self.device)
        all_reduce_([table])
        return float((table[:, 0] / table[:, 1].clamp(min=1e-300)).mean())

    def round(self) -> None:
        """One pass of steps over the training batches."""
        inverses = self._curvatures()
        last: list[Tensor] | None = None
        weights = [layer.weight for layer in self.layers]
        frozen = [weight.requires_grad for weight in weights]
        steps = fewest(sum(1 for _ in self.train.batches()), self.device)
        try:
            for weight in weights:
                weight.requires_grad_(True)
            with self._in_eval():
                for number, batch in zip(range(steps), self._batches(self.train), strict=False):
                    share = self.share / (1 + number / FADING)
                    with together(self.device):
                        gradients, residual, outputs, targets = self._gradients(batch, weights)
                    last = self._step(batch, weights, gradients, residual, outputs, targets, inverses, last, share)
        finally:
            for weight, required in zip(weights, frozen, strict=True):
                weight.requires_grad_(required)
        for weight in weights:
            broadcast_(weight.data)

    def run(self, rounds: int, progress: Progress, show: Show = None) -> tuple[list[float], int]:
        """Up to ``rounds`` rounds; the pruned model then has the best round's weights.

        A round that makes the error larger is taken back, and later ones take half as long steps.

        Args:
            rounds: how many.
            progress: finished rounds are taken from it and put into it.
            show: see :mod:`sparse_accel.progress`.

        Returns:
            The errors before the first round and after each, and which is the least.
        """
        errors: list[float] = []
        best, kept = 0, [layer.weight.detach().clone() for layer in self.layers]
        for number in over(range(rounds + 1), "refine", show, error=lambda: errors[-1]):
            key = f"round_{number:02d}"
            layers = {layer.name: layer.weight for layer in self.layers} if number else {}
            done = progress.get(key, layers, lambda notes: notes["error"].number(0))
            if done is not None:
                for layer in self.layers if number else ():
                    layer.weight.data.copy_(done[0][layer.name])
                errors.append(done[1])
            else:
                if number:
                    self.round()
                errors.append(self.error())
                progress.put(key, layers, {"error": errors[-1]})
            logger.info("round %d: held-out error %.4g", number, errors[-1])
            if number and not errors[-1] < errors[best]:
                self.share /= 2
                for layer, weight in zip(self.layers, kept, strict=True):
                    layer.weight.data.copy_(weight)
            elif number:
                best, kept = number, [layer.weight.detach().clone() for layer in self.layers]
        return errors, best

    def by(
        self, how: int | RefineOptions, progress: Progress, show: Show = None
    ) -> tuple[list[float], int, RefineReport | None, dict[str, Tensor]]:
        """Rounds, or a fit of all parameters to the dense model's blocks and outputs, the supports kept.

        Returns:
            What :meth:`run` does, the report of a fit, and the supports by name of the parameter.
        """
        rounds, best = self.run(how, progress, show) if isinstance(how, int) and how else ([], 0)
        nonzero = {layer.parameter_name: layer.weight.detach() != 0 for layer in self.layers}
        if isinstance(how, int):
            return rounds, best, None, nonzero
        judge = None if self.held_out is self.train else self.held_out
        kept = checked_masks(self.pruned, None) | nonzero
        report = refine_(self.pruned, self.dense, self.train, judge, kept, how.shown_by(show))
        return rounds, best, report, nonzero

    # ------------------------------------------------------------------ parts of a step

    def _gradients(
        self, batch: Any, weights: list[nn.Parameter]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        with torch.no_grad():
            targets = self._outputs(self.dense, batch, self.train)
        with torch.enable_grad():
            outputs = self._outputs(self.pruned, batch, self.train)
            residual = [(o - t) / _energy(t) ** 0.5 for o, t in zip(outputs, targets, strict=True)]
            loss = sum((r.square().sum() for r in residual), torch.zeros((), device=self.device)) / 2
            if not loss.requires_grad:
                raise ValueError("refine: the model's outputs do not depend on the pruned weights (detached?)")
            found = torch.autograd.grad(loss, weights, allow_unused=True)
        gradients = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]
        return gradients, [r.detach() for r in residual], [o.detach() for o in outputs], targets

    @torch.no_grad()
    def _step(
        self,
        batch: Any,
        weights: list[nn.Parameter],
        gradients: list[Tensor],
        residual: list[Tensor],
        outputs: list[Tensor],
        targets: list[Tensor],
        inverses: list[Tensor],
        last: list[Tensor] | None,
        share: float,
    ) -> list[Tensor]:
        """Move the weights; return the step."""
        all_reduce_(gradients)
        direction = [
            self._conditioned(layer, gradient, inverse) * kept
            for layer, gradient, inverse, kept in zip(self.layers, gradients, inverses, self.kept, strict=True)
        ]
        directions = [direction] if last is None else [direction, last]
        size = _norm(weights)
        slopes = []
        for item in directions:
            length = _norm(item)
            if length == 0 or not length < float("inf"):
                return [torch.zeros_like(weight) for weight in weights] if last is None else last
            probe = PROBE * size / length
            with self._moved(weights, item, probe), together(self.device):
                moved = self._outputs(self.pruned, batch, self.train)
            pairs = zip(moved, outputs, targets, strict=True)
            slopes.append([(new - old) / (probe * _energy(target) ** 0.5) for new, old, target in pairs])
        count = len(directions)
        system = torch.zeros(count, count + 1, dtype=torch.float64, device="cpu")
        for i in range(count):
            for j in range(count):
                system[i, j] = _dot(slopes[i], slopes[j])
            system[i, count] = -_dot(slopes[i], residual)
        system = system.to(self.device)
        all_reduce_([system])
        system = system.cpu()
        scale = system[:, :count].diagonal().clamp(min=1e-300).sqrt()
        matrix = system[:, :count] / scale / scale[:, None] + 1e-6 * torch.eye(count, dtype=torch.float64, device="cpu")
        factors = (torch.linalg.solve(matrix, system[:, count] / scale) / scale).tolist()
        step = [torch.zeros_like(weight) for weight in weights]
        for factor, item in zip(factors, directions, strict=True):
            for total, part in zip(step, item, strict=True):
                total.add_(part, alpha=factor)
        for weight, part in zip(weights, step, strict=True):
            weight.add_(part, alpha=share)
        return step

    def _conditioned(self, layer: Layer, gradient: Tensor, inverse: Tensor) -> Tensor:
        """``−g H⁻¹``, of weights over a power of two where they are far from 1."""
        direction = -layer.as_weight((layer.as_matrix(gradient).to(inverse.dtype) @ inverse).to(gradient.dtype))
        return times_power(direction, 2 * power_of(layer.weight))

    def _curvatures(self) -> list[Tensor]:
        """``(H / mean diag H + damping)⁻¹`` of every layer's inputs in the pruned model, [groups, C, C]."""
        plain = [(i, layer) for i, layer in enumerate(self.layers) if not isinstance(layer, StackedLayer)]
        names = {name: i for i, layer in plain for name in layer.modules}
        modules = {name: module for _, layer in plain for name, module in layer.modules.items()}
        grams: list[Gram | SliceGram] = [
            SliceGram(layer.shape[0], layer.shape[2], dtype=torch.float32, device=self.device)
            if isinstance(layer, StackedLayer)
            else Gram(layer.shape[0], layer.shape[2], centred=False, dtype=torch.float32, device=self.device)
            for layer in self.layers
        ]
        sums = {i: gram for i, gram in enumerate(grams) if isinstance(gram, Gram)}
        stacks = {
            layer.name: gram for layer, gram in zip(self.layers, grams, strict=True) if isinstance(gram, SliceGram)
        }

        def visit(name: str, x: Tensor, output: Any) -> None:
            module = modules[name]
            for part, _ in column_chunks(module, columns_input(module, x, self.train, name), CHUNK_BYTES):
                sums[names[name]].update(part)

        def product(layer: StackedLayer, call: SliceCall) -> None:
            stacks[layer.name].update(call)

        with together(self.device), watch_stacks(self.pruned, self.layers, product, self.train):
            stream(self.pruned, self.train, modules, visit, required=False)
        inverses = []
        while grams:
            gram = grams.pop(0)
            gram.all_reduce_()
            hessian = gram.hessian
            mean = hessian.diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(hessian.dtype).tiny)
            hessian /= mean[:, None, None]
            hessian.diagonal(dim1=1, dim2=2).add_(DAMPING)
            inverses.append(torch.cholesky_inverse(torch.linalg.cholesky(hessian)))
        return inverses

    # ------------------------------------------------------------------ models and batches

    def _outputs(self, model: nn.Module, batch: Any, batches: Batches) -> list[Tensor]:
        """Floating-point outputs, without padded positions."""
        found = floating(run_model(model, batch))
        if not found:
            raise ValueError("refine: the model returns no floating-point tensor to compare")
        rows = [batches.positions("", tensor, number) for number, tensor in enumerate(found)]
        return [tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in rows]

    def _batches(self, batches: Batches) -> Iterator[Any]:
        for batch in batches.batches():
            yield to_device(batch, self.device)

    @contextmanager
    def _in_eval(self) -> Iterator[None]:
        with eval_mode(self.dense), eval_mode(self.pruned):
            yield

    @contextmanager
    def _moved(self, weights: list[nn.Parameter], direction: list[Tensor], length: float) -> Iterator[None]:
        """The weights moved along a direction; their own bits again afterwards."""
        before = [weight.detach().clone() for weight in weights]
        try:
            for weight, part in zip(weights, direction, strict=True):
                weight.add_(part, alpha=length)
            yield
        finally:
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)


def _square(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().sum())


def _energy(target: Tensor) -> float:
    return max(_square(target), 1e-300)


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(sum(_square(tensor) for tensor in tensors)) ** 0.5


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    return float(sum(float((a.double() * b.double()).sum()) for a, b in zip(left, right, strict=True)))
