"""What the tests of compaction check every time."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.channels.call import run_model, tree_tensors
from sparse_accel.removal.compact import CompactResult, compact


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that compaction must not touch."""
    return {
        "tensors": {name: (id(t), t.detach().clone()) for name, t in model.state_dict(keep_vars=True).items()},
        "repr": repr(model),
        "training": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
    }


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(model)
    assert [before[key] for key in ("repr", "training", "hooks")] == [
        after[key] for key in ("repr", "training", "hooks")
    ]
    assert before["tensors"].keys() == after["tensors"].keys()
    for name, (identity, value) in before["tensors"].items():
        assert after["tensors"][name][0] == identity, name
        assert torch.equal(after["tensors"][name][1], value), name


def compact_checked(model: nn.Module, example: Any, **options: Any) -> CompactResult:
    """Compact, and check that the model is unchanged and that outputs agree on other inputs."""
    before = snapshot(model)
    result = compact(model, example, **options)
    assert_unchanged(model, before)
    assert_same_outputs(model, result.model, example)
    return result


def assert_same_outputs(model: nn.Module, small: nn.Module, example: Any, tolerance: float = 2e-5) -> None:
    """Outputs of two models in eval mode on inputs that compaction never saw."""
    generator = torch.Generator().manual_seed(11)

    def other(item: Any) -> Any:
        if isinstance(item, Tensor) and item.is_floating_point():
            return (3 * torch.randn(item.shape, generator=generator)).to(item)
        return item

    if isinstance(example, dict):
        fresh: Any = {key: other(item) for key, item in example.items()}
    else:
        fresh = tuple(map(other, example)) if isinstance(example, tuple) else other(example)
    with torch.no_grad():
        outputs = [list(tree_tensors(run_model(copy.deepcopy(net).eval(), fresh))) for net in (model, small)]
    assert len(outputs[0]) == len(outputs[1]) > 0
    for old, new in zip(*outputs, strict=True):
        torch.testing.assert_close(new, old, rtol=tolerance, atol=tolerance * float(old.abs().max()))


def widths(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(input, output) channels of every layer."""
    out = {}
    for name, module in model.named_modules():
        for keys in (("in_features", "out_features"), ("in_channels", "out_channels")):
            if hasattr(module, keys[0]):
                out[name] = (getattr(module, keys[0]), getattr(module, keys[1]))
    return out
