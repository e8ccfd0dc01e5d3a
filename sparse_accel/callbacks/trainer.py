"""The callback for transformers' Trainer."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from .history import SparsityHistory, set_mode


@functools.cache
def trainer_callback() -> type:
    """The class; it derives from transformers' own, which is imported now."""
    base: Any = importlib.import_module("transformers").TrainerCallback

    class TrainerCallback(base):
        """For ``Trainer(..., callbacks=[sa.callbacks.TrainerCallback()])``: zeros in the logs and in every checkpoint.

        ``Trainer`` itself calls ``optimizer.eval()`` before it evaluates. This adds: checkpoints that are saved without
        an evaluation, and the model after the last step, have the exact zeros of the proximal iterate too (training
        goes on with the training weights, from any checkpoint with the same bits); ``eval_group_sparsity`` and
        ``eval_weighted_group_sparsity`` join the metrics of each evaluation, where ``metric_for_best_model`` finds
        them; ``state.log_history`` gets a row for each, and so does ``history``.

        Args:
            by: what forms a group; None: what the optimizer's penalty says.
            save: swap the proximal iterate in before every checkpoint, and after the last step.
            writer: with a method ``add_scalar(name, value, step)``, such as TensorBoard's ``SummaryWriter``.

        Attributes:
            history: a :class:`SparsityHistory`, from the start of the training.
        """

        history: SparsityHistory | None = None

        def __init__(self, by: str | None = None, *, save: bool = True, writer: Any = None) -> None:
            self.by, self.save, self.writer = by, save, writer

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """The history begins."""
            self.history = SparsityHistory(kwargs["model"], kwargs.get("optimizer"), self.by, self.writer)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Swap before a checkpoint is saved; ``Trainer`` swaps back before the next step."""
            if self.save and (control.should_save or control.should_training_stop):
                set_mode(kwargs.get("optimizer"), "eval")

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """As :meth:`on_step_end`, for checkpoints by epoch."""
            self.on_step_end(args, state, control, **kwargs)

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Measure, at the iterate that was evaluated."""
            if self.history is None:  # evaluation without training
                return
            row = self.history.record(state.global_step)
            found = {f"eval_{name}": row[name] for name in ("group_sparsity", "weighted_group_sparsity")}
            if kwargs.get("metrics") is not None:
                kwargs["metrics"].update(found)
            state.log_history.append({**found, "strength": row["strength"], "step": state.global_step})

    TrainerCallback.__qualname__ = "TrainerCallback"
    return TrainerCallback
