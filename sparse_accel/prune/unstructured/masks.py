"""Masks of pruned weights: zeros that stay zero while the rest is trained, saved without pickle."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_accel._modes import outside_inference_mode
from sparse_accel.removal.files import (
    CheckpointError,
    Field,
    Part,
    Stored,
    check_seal,
    checksum,
    read_plan,
    read_tensors,
    write_parts,
)
from sparse_accel.removal.optimizer_state import bare_optimizer
from sparse_accel.sharding import aligned, all_sums, is_sharded, local_part, shard_groups, sharded_as
from sparse_accel.wrappers import bare_model

MASKS_FILE, MASKS_PLAN = "masks.safetensors", "masks.json"
FORMAT = "sparse_accel.masks"
VERSION = 1


class Masks(Mapping[str, Tensor]):
    """Which weights of a model are kept: boolean tensors of the parameters' shapes, by parameter name.

    Args:
        model: whose parameters they are; a wrapper counts as the module inside, names have no prefix.
        masks: True for kept weights; of sharded parameters (DTensor) each process gives whole masks, or DTensors, and
            holds its part. By default, the nonzero weights of every parameter of two or more dimensions
            that has a zero.

    Raises:
        ValueError: a name is not the model's, or a mask is not boolean or not of its parameter's shape; or parameters
            are flat, or hidden behind a hook.
        RuntimeError: a mask is a DTensor, and its parameter is none.

    Example:
        >>> net = nn.Linear(3, 1)
        >>> masks = Masks(net, {"weight": torch.tensor([[True, False, True]])})
        >>> with masks.apply_to(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)) as masked:
        ...     for _ in range(3):
        ...         net(torch.ones(1, 3)).sum().backward()
        ...         masked.optimizer.step()
        >>> float(net.weight[0, 1])
        0.0
    """

    @outside_inference_mode
    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> None:
        model = bare_model(model, sharded=True)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        if masks is None:
            masks = {
                name: p.detach() != 0
                for name, p in model.named_parameters()
                if p.dim() >= 2 and _count(p.detach() == 0)
            }
        for name, mask in masks.items():
            if name not in parameters:
                raise ValueError(f"masks: the model has no parameter {name!r}")
            if mask.dtype != torch.bool or mask.shape != parameters[name].shape:
                raise ValueError(
                    f"masks: {name}: expected torch.bool {tuple(parameters[name].shape)}, "
                    f"got {mask.dtype} {tuple(mask.shape)}"
                )
        self._parameters = {name: parameters[name] for name in masks}
        self._masks = {name: placed_mask(mask, parameters[name]) for name, mask in masks.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return f"Masks({len(self)} parameters, sparsity {self.sparsity:.4f})"

    @property
    def sparsity(self) -> float:
        """Share of the masked parameters' weights that is removed."""
        total = sum(mask.numel() for mask in self._masks.values())
        kept = sum(map(_count, self._masks.values()))
        return 1 - kept / total if total else 0.0

    def apply_(self) -> Masks:
        """Set the removed weights to zero, in the model; return self."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                here = local_part(parameter)
                here.masked_fill_(~local_part(self._masks[name]).to(here.device), 0)
        return self

    def apply_to(self, optimizer: Optimizer) -> MaskedOptimizer:
        """Keep the removed weights at zero under any optimizer, until the returned object is removed.

        Their gradients, and the optimizer's state for them (momentum, second moments, restored or new), are zero from
        now on, so that they neither move nor take part in the step of the others (weight decay, norms, clipping);
        after every step weight and state are set to zero once more, for optimizers that mix entries.

        Args:
            optimizer: of this model's parameters, or a wrapper around it, as accelerate's; it stays the one to call.

        Returns:
            A handle with ``remove()`` that is also a context manager.

        Raises:
            ValueError: the optimizer holds none of the masked parameters.
        """
        return MaskedOptimizer(self, optimizer)

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write ``masks.safetensors`` (one bit per weight) and ``masks.json``; return the directory. Of sharded weights
        the masks are gathered: all processes have to call, and the first writes."""
        sharded = any(map(is_sharded, self._masks.values()))
        bits = {name: pack(_whole(mask)) for name, mask in self._masks.items()}
        plan = {
            "format": FORMAT,
            "version": VERSION,
            "shapes": {name: list(mask.shape) for name, mask in self._masks.items()},
            "crc32": {name: checksum(tensor) for name, tensor in bits.items()},
        }
        if not sharded or torch.distributed.get_rank() == 0:
            write_parts(directory, [Part(MASKS_FILE, MASKS_PLAN, bits, plan)])
        if sharded:
            torch.distributed.barrier()
        return Path(directory)

    @classmethod
    @outside_inference_mode
    def load(cls, directory: str | os.PathLike[str], model: nn.Module) -> Masks:
        """The masks that :meth:`save` wrote, for a model with the same parameters; its weights stay as they are.

        Raises:
            CheckpointError: a file is missing, damaged or of another save, or the masks are not the model's.
        """
        plan = read_plan(Path(directory) / MASKS_PLAN, FORMAT, VERSION)
        stored = read_tensors(Path(directory) / MASKS_FILE, plan)
        sums = dict(plan["crc32"].items()) if "crc32" in plan else {}
        masks: dict[str, Tensor] = {}
        for name, shape in plan["shapes"].items():
            described = Field({"crc32": sums[name].value} if name in sums else {}, plan.path, ("crc32", name))
            masks[name] = read_mask(stored, name, shape.sizes(), described)
        check_seal(plan)
        try:
            return cls(model, masks)
        except ValueError as error:
            raise CheckpointError(f"{plan.path}: {error}") from error


class MaskedOptimizer:
    """Hooks that keep masked weights at zero; see :meth:`Masks.apply_to`.

    Attributes:
        optimizer: as it was given; it, or the one inside, carries the hooks.
    """

    def __init__(self, masks: Masks, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        optimizer = self._inside = bare_optimizer(optimizer, ValueError)
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        self._removed: dict[nn.Parameter, Tensor] = {
            parameter: ~local_part(masks[name]).to(parameter.device)
            for name, parameter in masks._parameters.items()
            if id(parameter) in held
        }
        if not self._removed:
            raise ValueError("optimizer: expected the parameters of the masks' model, it holds none of the masked ones")
        self._handles: list[Any] = [
            parameter.register_hook(self._of_gradient(parameter))
            for parameter in self._removed
            if parameter.requires_grad
        ]
        self._handles.append(optimizer.register_step_pre_hook(lambda *_: self._clear_gradients()))
        self._handles.append(optimizer.register_step_post_hook(lambda *_: self._after_step()))
        self._handles.append(optimizer.register_load_state_dict_post_hook(lambda *_: self._after_load()))
        self._clear_gradients()
        self._clear()

    def _of_gradient(self, parameter: nn.Parameter) -> Any:
        def masked(grad: Tensor) -> Tensor:
            if not is_sharded(grad):
                return grad.masked_fill(self._on(parameter, grad), 0)
            if not is_sharded(parameter) or grad.placements != parameter.placements:  # type: ignore[attr-defined]
                return grad  # sharded otherwise: cleared before the step
            here = local_part(grad)
            return sharded_as(here.masked_fill(self._on(parameter, here), 0), parameter)

        return masked

    def _on(self, parameter: nn.Parameter, like: Tensor) -> Tensor:
        removed = self._removed[parameter]
        if removed.device != like.device:
            removed = self._removed[parameter] = removed.to(like.device)
        return removed

    @torch.no_grad()
    def _clear_gradients(self) -> None:
        for parameter in self._removed:
            if parameter.grad is not None:
                grad = aligned("the gradient", parameter.grad, parameter)
                if grad is not parameter.grad:
                    parameter.grad = grad
                here = local_part(grad)
                here.masked_fill_(self._on(parameter, here), 0)

    def _after_step(self) -> None:
        self._clear()

    def _after_load(self) -> None:
        self._clear()

    @torch.no_grad()
    def _clear(self) -> None:
        for parameter in self._removed:
            here = local_part(parameter)
            removed = self._on(parameter, here)
            here.masked_fill_(removed, 0)
            for value in self._inside.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    local_part(value).masked_fill_(removed.to(value.device), 0)

    def remove(self) -> None:
        """Take the hooks off: the weights are free again. Twice is once."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> MaskedOptimizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def _whole(mask: Tensor) -> Tensor:
    return mask.full_tensor() if is_sharded(mask) else mask  # type: ignore[attr-defined]


def _count(mask: Tensor) -> int:
    """How many are true, of all parts."""
    (count,) = all_sums([local_part(mask).sum()], shard_groups(mask))
    return int(count)


def placed_mask(mask: Tensor, parameter: Tensor) -> Tensor:
    """A mask, sharded as its parameter; each process takes its part of a whole one."""
    if is_sharded(mask) or not is_sharded(parameter):
        return aligned("the mask", mask, parameter)
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    return distribute_tensor(mask.to(parameter.device), mesh, placements, src_data_rank=None)


def pack(mask: Tensor) -> Tensor:
    """A boolean tensor as bits, uint8 [ceil(n / 8)].

    Example:
        >>> pack(torch.tensor([True, False, True])).tolist()
        [160]
    """
    return torch.from_numpy(np.packbits(mask.detach().cpu().contiguous().reshape(-1).numpy()))


def unpack(bits: Tensor, shape: list[int]) -> Tensor:
    """The inverse of :func:`pack`.

    Raises:
        ValueError: the number of bytes is not that of the shape, or the last ones hold more than it.
    """
    count = math.prod(shape)
    if bits.dtype != torch.uint8 or bits.numel() != -(-count // 8):
        raise ValueError(f"a mask of shape {shape} has {-(-count // 8)} bytes, got {bits.numel()} of {bits.dtype}")
    every = np.unpackbits(bits.numpy())
    if every[count:].any():
        raise ValueError(f"a mask of shape {shape} has {count} bits, got more")
    return torch.from_numpy(every[:count].astype(bool)).reshape(shape)


def read_mask(stored: Stored, name: str, shape: list[int], described: Field) -> Tensor:
    """A mask from a file of packed masks.

    Raises:
        CheckpointError: it is missing, damaged, or of another shape.
    """
    bits = stored.take(name, described)
    try:
        return unpack(bits, shape)
    except ValueError as error:
        raise CheckpointError(f"{stored.path}: {name}: {error}") from error
