"""Where sparse training starts: how many weights each layer keeps, and which."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparse_accel.groups.models import named_groupings
from sparse_accel.prune.unstructured.masks import placed_mask
from sparse_accel.wrappers import bare_model


def random_masks(
    model: nn.Module, sparsity: float, distribution: str, exclude: Sequence[str], seed: int
) -> dict[str, Tensor]:
    """Random masks with the number of weights that each layer keeps; of sharded parameters each process has its part.

    Args:
        model: see :class:`~sparse_accel.prune.unstructured.rigl.RigL`, also the others.
        sparsity: of all layers together.
        distribution: ``"erk"`` or ``"uniform"``.
        exclude: patterns of names.
        seed: the same on all processes.

    Raises:
        ValueError: the distribution is none, or no weight is left.
    """
    if distribution not in ("erk", "uniform"):
        raise ValueError(f"distribution: expected 'erk' or 'uniform', got {distribution!r}")
    shapes = {
        name: parameter.shape
        for name, parameter, grouping in named_groupings(model, "element")
        if grouping is not None
        and parameter.numel()
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude)
    }
    if not shapes:
        raise ValueError("model: expected weights of Linear or convolution layers that are not excluded, it has none")
    generator = torch.Generator().manual_seed(seed)
    masks, named = {}, dict(bare_model(model, sharded=True).named_parameters())
    for name, density in layer_densities(shapes, 1 - sparsity, distribution).items():
        count = shapes[name].numel()
        order = torch.randperm(count, generator=generator, device="cpu")
        mask = torch.zeros(count, dtype=torch.bool, device="cpu")
        mask[order[: round(density * count)]] = True
        masks[name] = placed_mask(mask.view(shapes[name]), named[name])
    return masks


def layer_densities(shapes: Mapping[str, Sequence[int]], density: float, distribution: str) -> dict[str, float]:
    """The share of its weights that each layer keeps, so that all together keep ``density``.

    ``"erk"``: in proportion to the sum of the dimensions over their product; a layer that would keep more than all is
    dense, and the others keep less.

    Args:
        shapes: of the weights, by name.
        density: in (0, 1].
        distribution: ``"erk"`` or ``"uniform"``.

    Example:
        >>> found = layer_densities({"a": (100, 100), "b": (10, 10)}, 0.1, "erk")
        >>> {name: round(share, 4) for name, share in found.items()}
        {'a': 0.0918, 'b': 0.9182}
    """
    if distribution == "uniform":
        return dict.fromkeys(shapes, density)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        rest = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        open_ones = {name: raw[name] for name in shapes if name not in dense}
        total = sum(raw[name] * sizes[name] for name in open_ones)
        scale = rest / total if total else 0.0
        over = {name for name, value in open_ones.items() if value * scale > 1}
        if not over:
            return {name: 1.0 if name in dense else raw[name] * scale for name in shapes}
        dense |= over
