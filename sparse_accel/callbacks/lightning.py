"""The callback for Lightning's Trainer."""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
from typing import Any

from .history import SparsityHistory, inner_optimizer, set_mode


@functools.cache
def lightning_callback() -> type:
    """The class; it derives from Lightning's own, which is imported now (as ``lightning`` or ``pytorch_lightning``)."""
    name = "lightning.pytorch" if importlib.util.find_spec("lightning") else "pytorch_lightning"
    base: Any = importlib.import_module(name).Callback

    class LightningCallback(base):
        """For ``Trainer(callbacks=[sa.callbacks.LightningCallback()])``: zeros in validation, logs and checkpoints.

        Lightning knows no modes of optimizers. Here validation, test and prediction see the proximal iterate
        (``optimizer.eval()``); before the next batch of training the training weights are back
        (``optimizer.train()``). Every checkpoint, by ``ModelCheckpoint`` or by ``trainer.save_checkpoint``, holds the
        proximal iterate as the model's weights, and in the optimizer's state the training weights: with this callback
        a resumed run goes on with the same bits. Files of weights alone (``save_weights_only=True``) have the proximal
        iterate where they are saved after a validation or at the end of an epoch. After the last batch the model has
        the proximal iterate.

        ``group_sparsity`` and ``weighted_group_sparsity`` are logged at the end of each epoch, to whatever logger the
        trainer has.

        Args:
            by: what forms a group; None: what the optimizer's penalty says.
            log: measure and log at the end of each epoch.
            writer: as for :class:`SparsityHistory`, beside the trainer's logger.

        Attributes:
            history: a :class:`SparsityHistory`, from the start of the training.
        """

        history: SparsityHistory | None = None

        def __init__(self, by: str | None = None, *, log: bool = True, writer: Any = None) -> None:
            super().__init__()
            self.by, self.log, self.writer = by, log, writer
            self._loaded: list[dict[str, Any]] = []  # rows of a checkpoint

        def _set_modes(self, trainer: Any, mode: str) -> None:
            for optimizer in trainer.optimizers:
                set_mode(optimizer, mode)

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            """The history begins."""
            rows = self._loaded if self.history is None else self.history.rows
            optimizer = trainer.optimizers[0] if trainer.optimizers else None
            self.history = SparsityHistory(pl_module, optimizer, self.by, self.writer)
            self.history.rows = rows

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            """Training weights."""
            self._set_modes(trainer, "train")

        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            """Proximal iterate."""
            self._set_modes(trainer, "eval")

        on_test_start = on_predict_start = on_train_end = on_validation_start

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            """Proximal iterate, measured and logged."""
            self._set_modes(trainer, "eval")
            if self.log and self.history is not None:
                row = self.history.record(trainer.global_step)
                pl_module.log_dict({key: row[key] for key in ("group_sparsity", "weighted_group_sparsity")})

        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            """In the middle of an epoch: what would be saved in eval mode, without disturbing the training."""
            trained = [
                optimizer
                for optimizer in map(inner_optimizer, trainer.optimizers)
                if all(group.get("train_mode", False) for group in optimizer.param_groups)
            ]
            if not trained:
                return
            for optimizer in trained:
                optimizer.eval()
            try:
                checkpoint["state_dict"] = copy.deepcopy(trainer.strategy.lightning_module_state_dict())
                if "optimizer_states" in checkpoint:
                    states = [trainer.strategy.optimizer_state(optimizer) for optimizer in trainer.optimizers]
                    checkpoint["optimizer_states"] = copy.deepcopy(states)
            finally:
                for optimizer in trained:
                    optimizer.train()

        def state_dict(self) -> dict[str, Any]:
            """The history's rows."""
            return {"rows": []} if self.history is None else self.history.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            """Go on with the rows of a checkpoint."""
            self._loaded, self.history = list(state_dict["rows"]), None

    LightningCallback.__qualname__ = "LightningCallback"
    return LightningCallback
