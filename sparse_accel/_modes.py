"""Torch's global modes while the library runs a user's model: alike in every run, the caller's again afterwards."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_lock = threading.Lock()
_open = 0  # runs that want the fast path off
_before = True  # what the first of them found


def outside_inference_mode(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Leave ``torch.inference_mode`` while a function runs: what it makes can be trained, and gradients can be taken.

    Example:
        >>> double = outside_inference_mode(lambda x: 2 * x)
        >>> with torch.inference_mode():
        ...     x = torch.ones(1)
        >>> x.is_inference(), double(x).is_inference()
        (True, False)
    """

    @functools.wraps(function)
    def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if not torch.is_inference_mode_enabled():  # a False mode would turn gradients on under no_grad, too
            return function(*args, **kwargs)
        with torch.inference_mode(False):
            return function(*args, **kwargs)

    return wrapped


@contextmanager
def layer_by_layer() -> Iterator[None]:
    """Turn torch's fast path of ``nn.TransformerEncoder`` and ``nn.MultiheadAttention`` off.

    It computes several layers in one kernel and in nested tensors without the padding, so hooks see nothing of it; and
    torch takes it or not by what happens to look on. Several threads may be inside at a time.

    Example:
        >>> with layer_by_layer():
        ...     torch.backends.mha.get_fastpath_enabled()
        False
    """
    global _open, _before
    with _lock:
        if not _open:
            _before = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
        _open += 1
    try:
        yield
    finally:
        with _lock:
            _open -= 1
            if not _open:
                torch.backends.mha.set_fastpath_enabled(_before)
