"""i-SpaSP inside a network: the sums of a consumer's inputs, streamed, and the paper's loop on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.calibration.columns import is_convolution, spread
from sparse_accel.calibration.data import all_reduce_
from sparse_accel.calibration.replay.engine import Engine
from sparse_accel.channels.widths import Width
from sparse_accel.prune.select.ispasp import ispasp_select
from sparse_accel.prune.structured.choose import unit_sets
from sparse_accel.prune.structured.layer import Layer, Settings


def hidden_sum(engine: Engine, layer: Layer) -> tuple[Tensor, int, torch.Size]:
    """The consumer's input summed over the samples, float64, their number, and the spatial size of its result.

    The sum is ``[in_features]`` for a linear consumer, ``[in_channels, *spatial]`` for a convolution, over all ranks.
    """
    total: Tensor | None = None
    calibration = engine.batches
    count = torch.zeros(1, dtype=torch.float64, device=layer.weight.device)
    size = torch.Size()

    def visit(_name: str, x: Tensor, output: Any) -> None:
        nonlocal total, size
        keep = len(getattr(layer.module, "kernel_size", ())) + 1
        size = output.shape[output.dim() - keep + 1 :]
        x = calibration.positions(layer.name, x) if keep == 1 else x
        x = x.reshape(-1, *x.shape[x.dim() - keep :])
        part = x.sum(0, dtype=torch.float64)
        if total is not None and total.shape != part.shape:
            raise ValueError(
                f"{layer.name}: i-SpaSP needs inputs of one size, got {[*total.shape]} and {[*part.shape]}"
            )
        total = part if total is None else total + part
        count.add_(x.shape[0])

    def restart() -> None:
        nonlocal total
        total = None
        count.zero_()

    engine.work.stream(calibration, {layer.name: layer.module}, visit, restart, calls=layer.site.calls)
    if total is None:
        if isinstance(layer.module, nn.modules.conv._ConvNd):
            raise ValueError(f"{layer.name}: no batch reaches it in the pruned model: its inputs' size is not known")
        total = torch.zeros(layer.features, dtype=torch.float64, device=layer.weight.device)
    all_reduce_([total, count])
    return total, int(count), size


def ispasp_choose(width: Width, keep: int, engine: Engine, layers: Sequence[Layer], settings: Settings) -> Tensor:
    """The units that i-SpaSP keeps, ascending.

    The width has one consumer. With ``settings.fresh_batches`` every iteration takes the sums of another pass, as the
    paper does on ImageNet.

    Raises:
        ValueError: the consumer's units are not its input channels.
    """
    (layer,) = layers
    module = layer.module
    channels = width.consumers[0].channels.to(layer.weight.device)
    geometry: dict[str, Any] = {}
    transposed = is_convolution(module) and bool(getattr(module, "transposed", False))
    if is_convolution(module):
        if channels.shape[1] != 1 or (layer.groups > 1 and len(layer.fixed)):
            raise ValueError(f"{layer.name}: method='ispasp' takes convolutions whose units are single channels")
        kernel: Any = module.kernel_size
        weight = layer.weight.reshape(layer.outputs, -1, *kernel)  # [out, in / groups, *kernel]
        if layer.groups == 1:
            weight = weight[:, channels[:, 0]]
        geometry = {key: getattr(module, key) for key in ("stride", "padding", "dilation", "groups", "padding_mode")}
        if transposed:  # a convolution of stride 1 of the spread input, its taps in reverse
            weight = weight.flip(list(range(2, weight.dim())))
            geometry |= {"stride": 1, "padding": 0}
    else:
        weight = layer.weight[0][:, channels.flatten()]
    sets = unit_sets(width)
    kept: Tensor | None = None
    for _ in range(settings.iterations if settings.fresh_batches else 1):
        total, count, size = hidden_sum(engine, layer)
        if transposed:
            total = spread(module, total[None], size)[0]
        kept = ispasp_select(
            total[channels[:, 0]] if weight.dim() > 2 else total[channels],
            weight,
            keep,
            1 if settings.fresh_batches else settings.iterations,
            shift=layer.shift,
            count=max(1, count),
            balance=sets,
            start=kept,
            **geometry,
        ).kept
    assert kept is not None
    return kept
