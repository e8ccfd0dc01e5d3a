"""Freed memory kept for the next tensors while a run goes on.

glibc's allocator gives large blocks back to the system as they are freed, and the system hands the next ones out page
by page, zeroed: a sixth of the processor time of pruning a ResNet-50. Blocks of :data:`LARGEST` and more, which a
run has few of, go back at once all the same.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LARGEST = 128 << 20  # bytes
_KEEP = (1 << 31) - 1  # of unused memory at the end of the heap: the largest number that mallopt takes
_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
_LARGEST_OWN, _KEEP_OWN = 32 << 20, 64 << 20  # what glibc arrives at by itself once large blocks have been freed
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")

_lock = threading.Lock()
_users = 0


@functools.cache
def _libc() -> Any:
    """The C library where it is glibc and nobody has set its thresholds, else None."""
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _VARIABLES):
        return None
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def _set(largest: int, keep: int) -> None:
    _libc().mallopt(_MMAP, largest)
    _libc().mallopt(_TRIM, keep)


@contextmanager
def kept_heap() -> Iterator[None]:
    """Keep freed memory until the last such context, of all threads, ends: the rest then goes back to the system.

    Nothing happens with another C library, or where ``MALLOC_TRIM_THRESHOLD_`` and its like or ``GLIBC_TUNABLES`` say
    what is wanted.

    Example:
        >>> import torch
        >>> with kept_heap():
        ...     total = sum(float(torch.ones(1 << 20).sum()) for _ in range(3))
        >>> total
        3145728.0
    """
    global _users
    if _libc() is None:
        yield
        return
    with _lock:
        _users += 1
        if _users == 1:
            _set(LARGEST, _KEEP)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _set(_LARGEST_OWN, _KEEP_OWN)
                _libc().malloc_trim(0)


def give_back() -> None:
    """Return unused memory to the system now, before a step that needs much; nothing outside of :func:`kept_heap`."""
    with _lock:
        if _users:
            _libc().malloc_trim(0)
