"""The channels that we tie together are those that Torch-Pruning's dependency graph, an independent analysis, ties."""

from __future__ import annotations

from typing import Any

import pytest
from compact_cases import CASES
from compact_models import randomize
from torch import nn

from sparse_accel.channels.graph import GROUPED
from sparse_accel.channels.trace import trace

torch_pruning = pytest.importorskip("torch_pruning", reason="the independent dependency graph is not installed")

Member = tuple[str, int, int]  # tensor, dimension, index
NAMES = ("mlp", "lenet", "vgg", "resnet", "densenet", "inception", "depthwise", "transposed", "conv1d", "conv3d")


def our_classes(model: nn.Module, example: Any) -> dict[Member, frozenset[Member]]:
    """For every row of a weight of a layer, everything that goes with it."""
    graph, _ = trace(model, example)
    members: dict[int, set[Member]] = {}
    for (name, dim), slots in graph.axes.items():
        for index, root in enumerate(graph.slots.roots(slots).tolist()):
            members.setdefault(root, set()).add((name, dim, index))
    return {
        member: frozenset(found)
        for root, found in members.items()
        if root != 0
        for member in found
        if member[0].endswith("weight") and member[1] == 0
    }


def their_class(model: nn.Module, example: Any, graph: Any, layer: nn.Module, index: int) -> frozenset[Member]:
    names = {id(module): name for name, module in model.named_modules()}
    prune = torch_pruning.prune_conv_out_channels
    if isinstance(layer, nn.Linear):
        prune = torch_pruning.prune_linear_out_channels
    elif layer.groups > 1:
        prune = torch_pruning.prune_depthwise_conv_out_channels
    found: set[Member] = set()
    for dependency, indices in graph.get_pruning_group(layer, prune, idxs=[index]):
        module = dependency.target.module
        name = names.get(id(module))
        if name is None:
            continue
        reads = "in_channels" in dependency.handler.__name__
        flipped = isinstance(module, nn.modules.conv._ConvTransposeNd)
        depthwise = getattr(module, "groups", 1) > 1
        for i in indices:
            if isinstance(module, nn.modules.batchnorm._NormBase):
                found |= {(f"{name}.{key}", 0, i) for key in ("weight", "bias", "running_mean", "running_var")}
            elif depthwise:
                found |= {(f"{name}.weight", 0, i), (f"{name}.weight", GROUPED, i)}
                if module.bias is not None:
                    found.add((f"{name}.bias", 0, i))
            else:
                found.add((f"{name}.weight", int(reads != flipped), i))
                if module.bias is not None and not reads:
                    found.add((f"{name}.bias", 0, i))
    return frozenset(found)


@pytest.mark.parametrize("name", NAMES)
def test_coupling(name: str) -> None:
    model = randomize(CASES[name].build()).eval()
    example = CASES[name].example()
    ours = our_classes(model, example)
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example)
    compared = 0
    for path, layer in model.named_modules():
        if not isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
            continue
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        for index in range(outputs):
            key = (f"{path}.weight", int(transposed), index)
            mine = ours.get(key) if not transposed else next((c for c in ours.values() if key in c), None)
            if mine is None:
                continue  # shown in an output: stays
            assert mine == their_class(model, example, graph, layer, index), key
            compared += 1
    assert compared > 0
