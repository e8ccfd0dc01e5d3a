"""A path of low loss between two trained networks: halves of their units take turns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel._modes import outside_inference_mode
from sparse_accel.channels.graph import UnsupportedModelError
from sparse_accel.diagnostics._align import matching, need_scipy
from sparse_accel.diagnostics._chain import Chain, State, check_alike, find_chain
from sparse_accel.diagnostics._outer import Moments, rescale, untreated
from sparse_accel.diagnostics._passes import Bench, Loss, Samples, same_random_state
from sparse_accel.diagnostics.path_report import LowLossPath, between
from sparse_accel.progress import Show, check_progress, meter
from sparse_accel.wrappers import bare_model


@outside_inference_mode
def low_loss_path(
    a: nn.Module,
    b: nn.Module,
    loss: Loss,
    data: Any,
    *,
    refit: bool = False,
    points: int = 10,
    trials: int = 1,
    seed: int = 0,
    aligned: bool = True,
    batch_size: int = 256,
    progress: Show = None,
) -> LowLossPath:
    """Connect two trained networks of one architecture by a path along which the loss stays low.

    Networks that are dropout stable (:func:`dropout_stability`) are connected: half of the units do the work of all
    while the others are replaced. For one hidden layer, with A half of the units and B the others, there are five
    segments: the outer weights of a go to ``(2 a_A, 0)``; the incoming weights of B become those of b; the outer
    weights go to ``(0, 2 a'_B)``; the incoming weights of A become those of b; the outer weights become those of b.
    Segments of the incoming weights change no output: nobody reads those units. With H hidden layers there are
    ``4 H + 1`` segments, in which copies of half a layer, made to read half of the layer before, take over from the
    output down. If the loss is convex in the outputs and these are linear in the outer weights, the barrier is at most
    the largest change by dropout.

    A model fits if its hidden layers read one another in turn (linear layers, convolutions, gated pairs; elementwise
    activations; BatchNorm, in eval mode) and the last one is read by the output layer alone.

    Copies are changed, in eval mode: parameters, buffers, modes, gradients and hooks of the models stay, and so do the
    random numbers of torch, numpy and Python.

    Args:
        a, b: the networks.
        loss, data, batch_size: as for :func:`dropout_stability`.
        refit: give the outer weights of a half by least squares (towards what the whole layer gave) instead of
            multiplying them by ``N / |A|``.
        points: losses to take in each segment.
        trials: random halves to try; the one with the lowest barrier stays.
        seed: of the halves.
        aligned: whether to take the straight line to b with its units in the order of a's, too (SciPy's Hungarian
            method).
        progress: True, False or a function, see :mod:`sparse_accel.progress`: a step is a loss on a line.

    Returns:
        A table when printed; a function of t in [0, 1] that gives a state dict.

    Raises:
        UnsupportedModelError: a model does not fit; the message names the module, and says why.
        ValueError: an argument is out of range, the networks are not of one architecture, or a loss is not finite.
        ImportError: SciPy is missing, and ``aligned`` was asked for.

    Source:
        D. Wu, V. Kungurtsev, M. Mondelli, *Mean-field analysis for heavy ball methods: dropout-stability, connectivity,
        and global convergence* (one hidden layer); R. Kuditipudi et al., *Explaining landscape connectivity of
        low-cost solutions for multilayer nets*, NeurIPS 2019 (copies of halves, deeper); S. Ainsworth, J. Hayase,
        S. Srinivasa, *Git Re-Basin*, ICLR 2023 (aligned by weights). The refit is ours.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> a, b = (nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)) for _ in range(2))
        >>> path = low_loss_path(a, b, nn.functional.mse_loss, (torch.randn(9, 2), torch.randn(9, 1)), aligned=False)
        >>> path.segments
        ('outer', 'inner', 'outer', 'inner', 'outer')
        >>> torch.equal(path(1.0)["0.weight"], b[0].weight)
        True
    """
    for name, value, least in (("points", points, 1), ("trials", trials, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}")
    check_progress(progress)
    if aligned:
        need_scipy()
    bare = [bare_model(model, UnsupportedModelError) for model in (a, b)]
    check_alike(*bare)
    samples = Samples(data, batch_size)
    with same_random_state():
        dense, work = Bench(bare[0], loss, samples), Bench(bare[0], loss, samples)
        other = Bench(bare[1], loss, samples)
        chain = find_chain(dense.model, samples.first_inputs(dense.device))
        builder = _Builder(chain, dense, work, refit)
        ends = [dense.state(), {name: tensor.to(dense.tensors[name].device) for name, tensor in other.start.items()}]
        _check_others(chain, *ends)
        values = (dense.finite_loss("a"), other.finite_loss("b"))
        alike = work.loss_at(ends[1])
        if abs(alike - values[1]) > 1e-4 * max(1.0, abs(values[1])):
            raise ValueError(
                f"b: expected what a computes with its parameters: on data a loss of {alike:.6g}, got {values[1]:.6g}"
            )
        del other
        generator = torch.Generator().manual_seed(seed)
        knots: list[State] = []
        lowest = math.inf
        for _ in range(trials):
            tried = builder.knots(ends, builder.halves(generator))
            highest = max(map(work.loss_at, tried)) if trials > 1 else 0.0
            if not knots or highest < lowest:
                knots, lowest = tried, highest
        lines = {"path": knots, "straight": ends}
        if aligned:
            lines["aligned"] = [ends[0], chain.permuted(ends[1], matching(chain, *ends))]
        times = [number / ((len(knots) - 1) * points) for number in range((len(knots) - 1) * points + 1)]
        found: dict[str, tuple[float, ...]] = {}
        with meter(progress, "low_loss_path", len(lines) * len(times)) as steps:
            for line, own in lines.items():
                losses = []
                for t in times:
                    losses.append(work.loss_at(between(own, t)))
                    steps.advance(line, losses[-1])
                found[line] = tuple(losses)
    return LowLossPath(
        {width.name: width.units for width in chain.widths},
        refit,
        tuple("outer" if number % 2 == 0 else "inner" for number in range(len(knots) - 1)),
        values,
        tuple(times),
        found["path"],
        found["straight"],
        found.get("aligned"),
        lines,
        _keys_of(bare[0]),
    )


Halves = tuple[list[Tensor], list[Tensor]]


class _Builder:
    """Builds the path's corners.

    Args:
        chain: of both networks.
        dense: gives what refits come close to.
        work: is changed on the way.
        refit: or rescale.
    """

    def __init__(self, chain: Chain, dense: Bench, work: Bench, refit: bool) -> None:
        self.chain, self.dense, self.work, self.refit = chain, dense, work, refit
        for width in chain.widths:
            why = untreated(width, refit=refit)
            if why:
                raise UnsupportedModelError(f"{type(dense.model).__name__}: {width.name}: {why}")
            if width.units < 2:
                raise UnsupportedModelError(f"{type(dense.model).__name__}: {width.name}: a single unit has no half")

    def halves(self, generator: torch.Generator) -> Halves:
        """A and B of every layer; of an odd number one unit is in neither, but in the first layer, where it is in B."""
        kept: Halves = ([], [])
        for layer, width in enumerate(self.chain.widths):
            order, half = torch.randperm(width.units, generator=generator, device="cpu"), width.units // 2
            kept[0].append(order[:half].sort().values)
            kept[1].append(order[half : None if layer == 0 else 2 * half].sort().values)
        return kept

    def knots(self, ends: Sequence[State], halves: Halves) -> list[State]:
        """The corners from one network to the other."""
        first = self._descend(ends[0], *halves)
        second = self._descend(ends[1], *halves[::-1])
        start, goal = first[-1], second[-1]
        ready = dict(start)
        for layer in range(len(self.chain.widths)):
            active = self._slot(len(self.chain.widths) - 1, layer, *halves[::-1])
            self.chain.place(ready, goal, layer, (active, active), None)
        switched = dict(ready)
        for name in self.chain.outer:
            switched[name] = goal[name]
        return [*first, ready, switched, *reversed(second)]

    def _descend(self, state: State, a: list[Tensor], b: list[Tensor]) -> list[State]:
        """From a network to one in which half of every layer does the work, the output layer switched in between.

        After step k half of the last k + 1 layers is in use: copies of the units of ``a``, each layer's in ``a`` and
        ``b`` by turns, that read half of the layer before.
        """
        last = len(self.chain.widths) - 1
        knots = [state]
        for step in range(last + 1):
            dropped = self._dropped(state, a, last - step)
            now = dict(knots[-1])
            for layer in range(last - step + 1, last + 1):
                places = self._slot(step, layer, a, b)
                below = (a[layer - 1], self._slot(step, layer - 1, a, b))
                self.chain.place(now, dropped, layer, (a[layer], places), below)
            if step:
                knots.append(now)
                now = dict(now)
            self.chain.read(now, dropped, (a[last], self._slot(step, last, a, b)))
            knots.append(now)
        return knots

    def _slot(self, step: int, layer: int, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Where the units in use of a layer are after a step."""
        since = step - (len(self.chain.widths) - 1 - layer)
        return a[layer] if since % 2 == 0 else b[layer][: len(a[layer])]

    def _dropped(self, state: State, a: list[Tensor], first: int) -> State:
        """A network in which only the units of ``a`` are read, in the layers from ``first`` on."""
        self.work.load(state)
        if self.refit:
            self.dense.load(state)
        for layer in range(first, len(self.chain.widths)):
            width = self.chain.widths[layer]
            if self.refit:
                Moments(self.dense, self.work, width).refit(self.work.model, a[layer])
            else:
                rescale(self.work.model, width, a[layer])
        return self.work.state()


def _check_others(chain: Chain, a: State, b: State) -> None:
    """Raise UnsupportedModelError where what belongs to no unit differs in the two networks."""
    for name in chain.others:
        if a[name].is_floating_point() and not torch.equal(a[name], b[name]):
            module = name.rpartition(".")[0]
            why = chain.reasons.get(module)
            raise UnsupportedModelError(
                f"{name}: differs in the two networks, and belongs neither to a hidden unit nor to the output layer"
                + (f" ({why})" if why else "")
            )


def _keys_of(model: nn.Module) -> dict[str, Any]:
    """What stands under each key of the model's state dict: a tensor's name in a state, or the item itself."""
    names = {id(tensor): name for name, tensor in _named(model)}
    return {
        key: names.get(id(item), item.detach().clone() if isinstance(item, Tensor) else item)
        for key, item in model.state_dict(keep_vars=True).items()
    }


def _named(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from model.named_buffers()
    yield from model.named_parameters()
