"""Training iterate and proximal iterate: lent for a while, swapped for evaluation, or kept for good."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import Optimizer

from sparse_accel.sharding import reshard

MODE = "train_mode"  # entry of every parameter group
ITERATE = "iterate"  # state of a parameter in eval mode: its training weights, of its shape and dtype


class SwapsIterates(Optimizer):
    """Base of the proximal optimizers: which of their two iterates the parameters hold."""

    _swapped: int = 0  # proximal_parameters() that are open
    _versions: dict[Tensor, int]  # of the parameters that eval() has written, after that

    def _write_proximal(self, backup: dict[Tensor, Tensor] | None) -> None:
        """Put the proximal iterate into the parameters, each saved in ``backup`` before it changes."""

    @staticmethod
    def _is_apart(state: dict[str, Any]) -> bool:
        """Whether a parameter with this state has a proximal iterate besides the one that is trained."""
        return False

    def _judge_end(self) -> None:
        """Warn of what training was to reach and did not; the parameters hold the proximal iterate for good."""

    @property
    def _low(self) -> str | None:
        """The dtype in which state of float32 is held, where it is another."""
        return self.param_groups[0].get("state_dtype") if self.param_groups else None

    @property
    def _trains(self) -> bool:
        return all(group.get(MODE, True) for group in self.param_groups)

    def _set_mode(self, mode: bool) -> None:
        for group in self.param_groups:
            group[MODE] = mode
        self._versions = {}

    def _refuse_swapped(self, what: str) -> None:
        if self._swapped:
            raise RuntimeError(f"{what} inside proximal_parameters(): leave the context first")

    def _refuse_eval(self, what: str) -> None:
        self._refuse_swapped(what)
        if not self._trains:
            raise RuntimeError(
                f"{what} in eval mode, where the parameters hold the proximal iterate: call optimizer.train() first"
            )

    def _was_written(self, param: Tensor) -> bool:
        """Whether somebody has written into the parameter since :meth:`eval` did; False where that is not known."""
        known = self._versions.get(param)
        return known is not None and version_of(param) != known

    @_disable_dynamo
    def eval(self) -> None:
        """Hold the proximal iterate, with its exact zeros, in the parameters until :meth:`train`: for evaluation and
        saving. The training weights are kept in the state, so that a ``state_dict()`` saved now goes on, after
        :meth:`train`, with the bits of a run that was not stopped.

        transformers' ``Trainer`` and accelerate's optimizer call both by themselves. In eval mode ``step()`` is
        refused; a second call changes nothing, nor does one inside :meth:`proximal_parameters`. Frozen parameters and
        those without a step stay. Where the iterate is the proximal iterate anyway (``ProxSGD``, ``ProxAdamW``), only
        the mode changes: entry ``"train_mode"`` of the groups.

        Example:
            >>> import sparse_accel as sa
            >>> weight = torch.nn.Parameter(torch.ones(2, 2))
            >>> opt = sa.RMDA([weight], lr=0.1, momentum=0.5, penalty=sa.GroupLasso(100.0))
            >>> weight.grad = torch.zeros_like(weight)
            >>> opt.step()
            >>> opt.eval()
            >>> weight.detach().count_nonzero()
            tensor(0)
            >>> opt.train()
            >>> weight.detach().count_nonzero()
            tensor(4)
        """
        if self._swapped or not self._trains:
            return
        backup: dict[Tensor, Tensor] = {}
        with torch.inference_mode(False), torch.no_grad():
            try:
                self._write_proximal(backup)
            except BaseException:
                for param, saved in backup.items():
                    param.copy_(saved)
                raise
            finally:
                reshard(backup)
        self._set_mode(False)
        for param, saved in backup.items():
            self.state[param][ITERATE] = saved
            version = version_of(param)
            if version is not None:
                self._versions[param] = version

    @_disable_dynamo
    def train(self) -> None:
        """Put the training weights back, bit by bit, after :meth:`eval`; in training mode nothing happens.

        A parameter into which something was written since :meth:`eval` (the weights of another checkpoint, say) keeps
        that, to train on from there, with a warning. (Writing to ``parameter.data`` escapes notice, and is lost.)

        Raises:
            RuntimeError: called inside :meth:`proximal_parameters`, or a parameter has another shape than its weights
                of training; nothing has changed then.
        """
        self._refuse_swapped("train()")
        if self._trains:
            return
        apart = {param: state[ITERATE] for param, state in self.state.items() if ITERATE in state}
        for param, saved in apart.items():
            if saved.shape != param.shape:
                raise RuntimeError(
                    f"state {ITERATE!r} has shape {tuple(saved.shape)}, its parameter {tuple(param.shape)}: "
                    "prune with compact(..., optimizer=optimizer), or make a new optimizer"
                )
        written = [param for param in apart if self._was_written(param)]
        if written:
            warnings.warn(
                f"{len(written)} of {len(apart)} parameters (the first of shape {tuple(written[0].shape)}) were "
                "written into while the optimizer was in eval mode: they keep that as the weights to train on",
                stacklevel=2,
            )
        with torch.inference_mode(False), torch.no_grad():
            for param, saved in apart.items():
                if not self._was_written(param):
                    param.copy_(saved)
            reshard(apart)
        self._leave_eval()

    def _leave_eval(self) -> None:
        for state in self.state.values():
            state.pop(ITERATE, None)
        self._set_mode(True)

    @contextlib.contextmanager
    def proximal_parameters(self) -> Iterator[None]:
        """Hold the proximal iterate, with its exact zeros, in the parameters; put the training iterate back, bit
        by bit, on leaving (also by an exception).

        Nested use is one use, and in eval mode the parameters hold it already. What is written into the parameters
        inside is lost on leaving; ``step()``, ``train()``, ``load_state_dict()`` and ``finalize_()`` are refused
        inside. Frozen parameters and those without a step stay.
        """
        self._swapped += 1
        backup: dict[Tensor, Tensor] = {}
        try:
            if self._swapped == 1 and self._trains:
                with torch.inference_mode(False), torch.no_grad():
                    self._write_proximal(backup)
                    reshard(backup)
            yield
        finally:
            self._swapped -= 1
            with torch.inference_mode(False), torch.no_grad():
                for param, saved in backup.items():
                    param.copy_(saved)
                reshard(backup)

    @torch.inference_mode(False)
    @torch.no_grad()
    def finalize_(self) -> None:
        """Set the parameters to the proximal iterate for good: exact zeros, ready for saving and removal.

        Frozen parameters (``requires_grad=False``) and those without a step stay. The iterate is the optimizer's,
        whatever the parameters hold: after ``model.load_state_dict(best)`` load the optimizer's state of that moment
        too, or the last step's iterate is set. Weights saved inside :meth:`proximal_parameters`, or in eval mode, need
        no finalizing. In eval mode, which this ends, a parameter that was written into stays as it is.

        Warns where a ``GroupLasso(target=...)`` is missed by more than a point (and two groups).

        Raises:
            RuntimeError: called inside :meth:`proximal_parameters`.
        """
        self._refuse_swapped("finalize_()")
        written = {} if self._trains else {p: p.detach().clone() for p in self.state if self._was_written(p)}
        self._write_proximal(None)
        for param, value in written.items():
            param.copy_(value)
        reshard(self.state)
        if not self._trains:
            self._leave_eval()
        self._judge_end()

    def _check_loaded_mode(self) -> None:
        """Raise RuntimeError where a state of eval mode came without the training weights."""
        if self._trains:
            return
        states = [state for param, state in self.state.items() if param.requires_grad and self._is_apart(state)]
        if states and not any(ITERATE in state for state in states):
            raise RuntimeError(
                "the state was saved in eval mode, but its training weights did not come along: call train() of the "
                "optimizer before saving, or eval() of the one that loads by torch.distributed.checkpoint"
            )

    def _after_load(self, before: dict[Tensor, Tensor], versions: dict[Tensor, int]) -> None:
        """A state of training mode was loaded in eval mode, where the training weights were ``before``: they come back
        as far as nobody (``model.load_state_dict()``) has written others."""
        if self._trains:
            with torch.no_grad():
                for param, saved in before.items():
                    if version_of(param) == versions.get(param):
                        param.copy_(saved)
                reshard(before)
        self._versions = {}


def version_of(param: Tensor) -> int | None:
    """How often the parameter was written; None of a tensor made in inference mode, which does not count."""
    return None if param.is_inference() else int(param._version)
