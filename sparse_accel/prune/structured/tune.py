"""Fine-tuning between the widths: a small model for the user, and its values back into the full-size one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.channels.graph import tensors_of
from sparse_accel.removal.remove import remove_units
from sparse_accel.removal.surgery import Plan, is_grouped


def fine_tune_small(
    function: Callable[[nn.Module, str], None],
    name: str,
    work: nn.Module,
    example_inputs: Any,
    kept: Mapping[str, Tensor],
    tolerance: float | None = None,
) -> None:
    """Hand the model, as small as it is by now, to a function, and take over what it made of it.

    Args:
        function: called as ``function(model, name)``.
        name: of the width just pruned.
        work: the full-size model whose consumers hold zeros for removed units; gets the new values.
        example_inputs: see :func:`~sparse_accel.channels.call.run_model`.
        kept: units by width.
        tolerance: see :func:`~sparse_accel.removal.remove.remove_units`.

    Raises:
        ValueError: the function changed shapes or names; the message says which.
    """
    removed = remove_units(work, example_inputs, kept, configs=False, tolerance=tolerance)
    small = removed.model
    shapes = {key: tensor.shape for key, tensor in tensors_of(small).items()}
    function(small, name)
    came = tensors_of(small)
    for key, shape in shapes.items():
        if key not in came or came[key].shape != shape:
            new = "none" if key not in came else str(list(came[key].shape))
            raise ValueError(f"fine_tune: {key}: expected a tensor {list(shape)}, got {new}")
    put_back(work, removed.plan, came)


def put_back(work: nn.Module, plan: Plan, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors of a smaller model into the places that they were cut from, in place.

    Args:
        work: the full-size model.
        plan: what was cut.
        tensors: of the smaller model, by name.
    """
    with torch.no_grad():
        for name, full in tensors_of(work).items():
            new = tensors[name].detach().to(full) / plan["scaled"].get(name, 1.0)
            entry = plan["tensors"].get(name)
            if entry is None:
                full.copy_(new)
                continue
            keep = entry["keep"]
            if is_grouped(keep):
                rows = torch.tensor(keep["0"], device=full.device)
                columns = torch.tensor(keep["1"], device=full.device)
                group = torch.arange(len(rows), device=full.device) // (len(rows) // len(columns))
                full[rows[:, None], columns[group]] = new
                continue
            lists = [int(dim) for dim, indices in keep.items() if isinstance(indices[0], list)]
            if lists:  # of every expert its own
                for part, other, own in zip(full, new, keep[str(lists[0])], strict=True):
                    part.index_copy_(lists[0] - 1, torch.tensor(own, device=full.device), other)
                continue
            index = [torch.arange(size, device=full.device) for size in full.shape]
            for dim, indices in keep.items():
                index[int(dim)] = torch.tensor(indices, device=full.device)
            full[torch.meshgrid(*index, indexing="ij")] = new
