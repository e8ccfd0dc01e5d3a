"""Outputs of finished blocks between two passes: in memory up to a limit, beyond it in files."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

logger = logging.getLogger("sparse_accel")

ACTIVATION_MEMORY = 512 << 20  # bytes that pruners keep in memory unless told otherwise
_PLAIN = (type(None), bool, int, float, str)


class CannotStoreError(ValueError):
    """A value is none that can be kept; the message says why."""


class Store:
    """Nested values with tensors, by key: in host memory up to a limit, beyond it memory-mapped from files.

    What comes out has the bits, the strides and the device of what went in, and shares no memory with it. The files
    (safetensors, in a folder of their own inside ``tempfile.gettempdir()``) go with :meth:`close`, with the store and
    with the process.

    Args:
        limit: bytes of tensors to keep in memory.

    Attributes:
        nbytes: in memory now.
        on_disk: bytes in files now.
        most: bytes in files at the most so far.

    Example:
        >>> store = Store(limit=0)
        >>> store.put("a", (torch.ones(2, 3), None))
        >>> store.get("a")[0].sum().item(), store.nbytes, store.on_disk
        (6.0, 0, 24)
        >>> store.close()
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = self.on_disk = self.most = 0
        self._values: dict[Hashable, tuple[list[Any], pytree.TreeSpec, Path | None, int]] = {}
        self._folder: Path | None = None
        self._remove: Any = None
        self._files = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def put(self, key: Hashable, value: Any) -> None:
        """Keep a value in place of the key's last one.

        Args:
            key: any.
            value: nested tuples, lists and dicts of tensors, numbers, strings and None.

        Raises:
            CannotStoreError: it holds anything else, or does not go into a file.
        """
        self.drop(key)
        leaves, spec = pytree.tree_flatten(value)
        for leaf in leaves:
            if not isinstance(leaf, (Tensor, *_PLAIN)) or getattr(leaf, "is_meta", False):
                raise CannotStoreError(f"expected nothing but tensors with values and numbers, got {_kind(leaf)}")
        size = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
        if self.nbytes + size <= self.limit:
            kept = [_Kept(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            self._values[key] = kept, spec, None, size
            self.nbytes += size
            return
        path = self._write({str(i): leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)})
        kept = [_Kept(leaf, values=False) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._values[key] = kept, spec, path, size
        self.on_disk += size
        self.most = max(self.most, self.on_disk)

    def get(self, key: Hashable) -> Any:
        """A copy of what was put there last.

        Raises:
            KeyError: nothing was.
        """
        kept, spec, path, _ = self._values[key]
        if path is None:
            leaves = [leaf.copy() if isinstance(leaf, _Kept) else leaf for leaf in kept]
        else:
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                leaves = [
                    leaf.copy(file.get_tensor(str(i))) if isinstance(leaf, _Kept) else leaf
                    for i, leaf in enumerate(kept)
                ]
        return pytree.tree_unflatten(leaves, spec)

    def drop(self, key: Hashable) -> None:
        """Forget a key, if it is there."""
        entry = self._values.pop(key, None)
        if entry is None:
            return
        *_, path, size = entry
        if path is None:
            self.nbytes -= size
        else:
            self.on_disk -= size
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Forget everything and remove the files."""
        self._values.clear()
        self.nbytes = self.on_disk = 0
        if self._remove is not None:
            self._remove()
        self._folder = self._remove = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write(self, tensors: dict[str, Tensor]) -> Path:
        from safetensors.torch import save_file

        try:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="sparse_accel-"))
                self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
                logger.info("outputs of finished blocks beyond %d bytes go to %s", self.limit, self._folder)
            self._files += 1
            path = self._folder / f"{self._files:08d}.safetensors"
            plain = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in
                     tensors.items()}  # fmt: skip
            save_file(plain, path)
        except Exception as error:  # no room, no permission, a dtype or layout that the format does not know
            raise CannotStoreError(f"they do not go into a file: {type(error).__name__}: {error}") from error
        return path


class _Kept:
    """A tensor's values on the host, and how it lay where it was."""

    def __init__(self, tensor: Tensor, *, values: bool = True) -> None:
        tensor = tensor.detach()
        self.device = tensor.device
        self.strides: tuple[int, ...] | None = None
        if not values:  # those of a clone, which closes gaps and keeps the order of the dimensions
            self.strides = torch.empty_like(tensor, device="meta").stride()
        self.values = tensor.to("cpu", copy=True) if values else None

    def copy(self, values: Tensor | None = None) -> Tensor:
        if values is None:
            assert self.values is not None
            return self.values.to(self.device, copy=True)
        assert self.strides is not None
        out = torch.empty_strided(values.shape, self.strides, dtype=values.dtype, device=self.device)
        return out.copy_(values)


def _kind(leaf: Any) -> str:
    return "a tensor without values" if isinstance(leaf, Tensor) else type(leaf).__name__
