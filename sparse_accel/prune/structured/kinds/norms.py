"""Widths over which a response normalization takes a mean: the others are made zero there, and its weight follows.

``gamma_c x_c g_c / mean(g)`` changes for all units when some go. The ratio of the two means is a number for each
sample. Its best constant goes into gamma, exactly; how much it varies is reported; the refit of what reads the units
sees the rest.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.calibration.data import all_reduce_, eval_mode
from sparse_accel.calibration.replay.engine import Engine
from sparse_accel.channels.call import run_model
from sparse_accel.channels.rules.response_norm import norms_of
from sparse_accel.channels.runs import Examples
from sparse_accel.channels.widths import MeanOver, Width


def prunable(widths: Sequence[Width], work: nn.Module, example_inputs: Any, notes: list[str]) -> list[Width]:
    """The widths whose units are zero in front of their response norms once what makes them is zero; others are noted.

    Args:
        widths: of the model.
        work: the model, which stays as it is.
        example_inputs: to try it on.
        notes: gets a line for each width that is left whole.
    """
    normed = [width for width in widths if width.norms]
    if not normed:
        return list(widths)
    probe = copy.deepcopy(work)
    reasons: dict[str, str] = {}
    for width in normed:
        if not all(norm.whole for norm in width.norms):
            reasons[width.name] = "divides by a mean over other channels, too"
        elif not all(_is_plain(probe, name) for name in width.producers) or width.inner:
            reasons[width.name] = "takes what other layers than plain Linear and convolutions make"
        else:
            silence(probe, width, torch.arange(width.units, device="cpu"))
    live: set[str] = set()
    with torch.no_grad(), eval_mode(probe), _inputs_of(probe, normed, lambda norm, x: _note_live(live, norm, x)):
        for example in Examples.of(example_inputs).single():
            run_model(probe, example)
    for width in normed:
        if any(norm.module in live for norm in width.norms):
            reasons.setdefault(width.name, "takes units that are not zero where what makes them is")
    named = {width.name: width.norms[0].module for width in normed}
    notes += [f"{name}: left whole: {named[name]} {why}" for name, why in reasons.items()]
    return [width for width in widths if width.name not in reasons]


def _note_live(live: set[str], norm: MeanOver, x: Tensor) -> None:
    if bool(x.any()):
        live.add(norm.module)


def _is_plain(model: nn.Module, name: str) -> bool:
    module = model.get_submodule(name)
    return isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and not getattr(module, "transposed", False)


def silence(model: nn.Module, width: Width, units: Tensor) -> None:
    """Zero, in place, the rows and the biases that make some units."""
    with torch.no_grad():
        for name, rows in width.rows.items():
            weight = model.get_parameter(name)
            at = rows[units].flatten().to(weight.device)
            weight[at] = 0
            bias = getattr(model.get_submodule(name.rpartition(".")[0]), "bias", None)
            if bias is not None:
                bias[at] = 0
    torch.clear_autocast_cache()


@contextmanager
def _inputs_of(model: nn.Module, widths: Sequence[Width], visit: Any) -> Iterator[None]:
    def hook_of(norm: MeanOver) -> Any:
        return lambda _module, args: visit(norm, args[0])

    handles = [
        model.get_submodule(norm.module).register_forward_pre_hook(hook_of(norm))
        for width in widths
        for norm in width.norms
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def settle_norms(width: Width, kept: Tensor, engine: Engine) -> str:
    """Make the units that go zero in front of the width's response norms, and let these divide by the mean of the rest.

    With m the mean over all channels and n that over those kept, gamma is multiplied by the rho that makes
    ``rho / n`` the nearest to ``1 / m`` over the samples: the least squares of ``1 - rho m / n``. The mean in ``work``
    is still over all channels, zeros among them: there gamma is smaller by the share of units kept, which the removal
    makes up for.

    Args:
        width: with norms.
        kept: units.
        engine: the model that is being pruned, in eval mode (its producers and norms change in place), and the data.

    Returns:
        What to report.
    """
    work, lines = engine.work.model, []
    for norm in width.norms:
        channels = norm.channels[kept.cpu()].flatten()
        sums = torch.zeros(3, dtype=torch.float64, device=work.get_parameter(norm.weight).device)

        def visit(_name: str, x: Tensor, _y: Any, dim: int = norm.dim, at: Tensor = channels, sums: Any = sums) -> None:
            g = norms_of(x.double(), dim)
            every, rest = g.mean(dim).flatten(), g.index_select(dim, at.to(x.device)).mean(dim).flatten()
            ratio = (every / rest)[rest > 0]
            sums.add_(torch.stack([torch.ones_like(ratio).sum(), ratio.sum(), ratio.square().sum()]))

        def start(sums: Tensor = sums) -> None:
            sums.zero_()

        module = work.get_submodule(norm.module)
        engine.work.stream(engine.batches, {norm.module: module}, visit, start, calls=len(engine.order.get(module, ())))
        all_reduce_([sums])
        count, first, second = sums.tolist()
        rho = first / second if second else 1.0
        spread = math.sqrt(max(0.0, 1 - first * first / (count * second))) if second else 0.0
        with torch.no_grad():
            work.get_parameter(norm.weight).mul_(rho * len(channels) / norm.channels.numel())
        lines.append(
            f"{norm.module}: divides by the mean over the {len(kept)} units kept: {norm.weight} times {rho:.4g} makes "
            f"up for it on average, what is left varies by {100 * spread:.2g} % between samples"
        )
    gone = torch.ones(width.units, dtype=torch.bool, device="cpu")
    gone[kept.cpu()] = False
    silence(work, width, gone.nonzero().flatten())
    return "; ".join(lines)
