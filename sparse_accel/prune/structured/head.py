"""The classifier, refit to what the dense one says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparse_accel.calibration.columns import column_count, is_convolution
from sparse_accel.calibration.replay.engine import Engine
from sparse_accel.channels.widths import Consumer, Width
from sparse_accel.prune.structured.feed import Feed
from sparse_accel.prune.structured.layer import Layer, Settings
from sparse_accel.prune.structured.sites import Site
from sparse_accel.prune.structured.stage import collect


def linear_maps(model: nn.Module) -> list[str]:
    """Names of the linear layers and convolutions with a weight of their own."""
    found = []
    for name, module in model.named_modules():
        try:
            column_count(module)
        except TypeError:
            continue
        found.append(name)
    return found


def find_head(sites: Mapping[str, Site]) -> str | None:
    """The linear map whose result is an output of the model, if there is exactly one."""
    heads = [name for name, site in sites.items() if site.output and not site.residual and site.norm is None]
    return heads[0] if len(heads) == 1 else None


def wants_refit(asked: bool | None, settings: Settings, widths: Sequence[Width], work: nn.Module) -> bool:
    """Whether the classifier is to be refit: as asked, or with ``refit="auto"`` after a convolution."""
    if asked is not None:
        return asked
    modules = [work.get_submodule(consumer.module) for width in widths for consumer in width.consumers]
    return settings.refit == "auto" and any(is_convolution(module) for module in modules)


def refit_classifier(
    name: str,
    engine: Engine,
    site: Site,
    settings: Settings,
    gone: Tensor | None,
) -> tuple[float, float]:
    """Least squares of a linear map, in place, so that it says on the pruned model's features what the dense one says.

    Args:
        name: of the linear map.
        engine: the dense model, the one that is being pruned, and the data.
        site: of the linear map.
        settings: see there.
        gone: columns that it has lost.

    Returns:
        Relative squared error before and after.
    """
    work = engine.work.model
    module = work.get_submodule(name)
    groups, _ = column_count(module)
    none = torch.empty(0, 1, dtype=torch.int64, device="cpu")
    consumer = Consumer(name, f"{name}.weight", None, None, none, groups)
    layer = Layer(work, consumer, site, "dense", new_bias=settings.may_create_bias(work, name), gone=gone)
    collect(Feed(engine, [layer], cache_bytes=0), [layer])
    units = none[:, 0].to(layer.columns.device)
    before = layer.error(layer.weight, layer.shift)
    weight = layer.fit(units, settings.ridge)
    shift = layer.intercept(weight)
    layer.write(weight, shift)
    return before, layer.error(weight, shift)
