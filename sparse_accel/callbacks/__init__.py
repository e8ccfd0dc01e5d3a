"""Progress of the zeros, and checkpoints that have them, in plain loops, transformers' Trainer and Lightning.

``SparsityHistory`` needs nothing else; ``TrainerCallback`` imports transformers and ``LightningCallback`` Lightning on
first use. Imports: :mod:`~sparse_accel.diagnostics`, :mod:`~sparse_accel.report`.
"""

from typing import Any

from .history import SparsityHistory

__all__ = ["LightningCallback", "SparsityHistory", "TrainerCallback"]


def __getattr__(name: str) -> Any:
    """The callbacks of other libraries, on first use."""
    if name == "TrainerCallback":
        from .trainer import trainer_callback

        return trainer_callback()
    if name == "LightningCallback":
        from .lightning import lightning_callback

        return lightning_callback()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
