"""Mixtures of `transformers` whose experts run one after the other, so that each product can be seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def one_by_one(model: nn.Module, owners: Iterable[nn.Module]) -> Iterator[None]:
    """While some modules run, they run their experts one after the other, not gathered or in a kernel of their own.

    All others compute what they always do, to the same bits: their outputs may be kept for other passes.

    Args:
        model: whose configurations say how experts run.
        owners: modules in it that own stacks of experts.
    """
    configs = {id(config): config for module in model.modules() if (config := _config(module)) is not None}
    open_: list[list[tuple[Any, str]]] = []  # of every call that is under way what the configurations said before

    def begin(*_: Any) -> None:
        open_.append([(config, config._experts_implementation) for config in configs.values()])
        for config in configs.values():
            config._experts_implementation = "eager"

    def end(*_: Any) -> None:
        for config, implementation in open_.pop():
            config._experts_implementation = implementation

    handles = []
    try:
        for module in owners if configs else ():
            handles.append(module.register_forward_pre_hook(begin))
            handles.append(module.register_forward_hook(end, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
        while open_:
            end()


def _config(module: nn.Module) -> Any:
    """A module's configuration, where it has experts run otherwise than one by one."""
    config = getattr(module, "config", None)
    return None if getattr(config, "_experts_implementation", None) in (None, "eager") else config
