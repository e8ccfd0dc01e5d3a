"""The distillation: Adam on the windows' and the outputs' errors, the best weights by held-out error."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.calibration.data import all_reduce_, eval_mode, to_device
from sparse_accel.calibration.padding import Padding
from sparse_accel.calibration.ranks import broadcast_, fewest, together
from sparse_accel.channels.call import run_model
from sparse_accel.progress import Meter, meter, of_steps
from sparse_accel.prune.refinement.masters import Masters, seeded
from sparse_accel.prune.refinement.options import RefineOptions, RefineReport
from sparse_accel.prune.refinement.samples import Samples
from sparse_accel.prune.refinement.windows import Watch, paired

logger = logging.getLogger("sparse_accel")

STEPS, PASSES = 600, 40  # at most, unless asked for
RATE_CONVOLUTIONS, RATE = 0.04, 0.002  # largest step size, relative to the size of a median weight
WARM_UP = 0.1  # of the steps
LOOKS = 6  # at the held-out error, besides the first
FEW = 16  # samples of a mini-batch, below which its own statistics are too rough for the BatchNorms
MOMENTUM = 0.1  # of running statistics while the weights move
NORM_BATCHES = 32  # that statistics are taken anew on
MARGIN = 0.98  # of the error with the statistics held: new ones have to be better by more than chance

Key = tuple[str, int]


class Distillation:
    """A pruned model on its way to the dense one's results.

    Args:
        dense: whose results are the target.
        pruned: changed in place, and only for the better.
        samples: to learn from and to judge by.
        windows: names of modules whose outputs are fitted besides the model's.
        masks: True for kept weights, by name of the parameter.
        padding: which positions count.
        options: see :func:`sparse_accel.prune.refine`.
    """

    def __init__(
        self,
        dense: nn.Module,
        pruned: nn.Module,
        samples: Samples,
        windows: Sequence[str],
        masks: Mapping[str, Tensor],
        padding: Padding,
        options: RefineOptions,
    ) -> None:
        self.pruned, self.samples, self.options, self.names = pruned, samples, options, list(windows)
        self.models = dense, pruned
        self.dense, self.work = Watch(dense, windows, padding), Watch(pruned, windows, padding)
        self.masters = Masters(pruned, masks)
        if not self.masters.parameters:
            raise ValueError("model: expected parameters to fit, got none")
        self.device = self.masters.parameters[0].device
        steps = options.steps or min(STEPS, PASSES * samples.count)
        self.steps = steps if options.steps else fewest(steps, self.device)
        self.least = fewest(samples.least, self.device)
        convolutions = any(isinstance(module, nn.modules.conv._ConvNd) for module in pruned.modules())
        self.lr = options.lr or (RATE_CONVOLUTIONS if convolutions else RATE) * self.masters.size()
        self.norms = self._norms()
        self.live = False  # whether the BatchNorms take each mini-batch's own statistics
        self.scales: dict[Key, float] = {}
        self.notes: list[str] = []
        self.meter: Meter | None = None

    def run(self) -> RefineReport:
        """Fit; the model then has the weights with the least held-out error, those it came with among them."""
        start = time.perf_counter()
        options = self.options
        show = meter(of_steps(options.progress), "refine", self.steps, begin=False)
        with (
            show as self.meter,
            seeded(options.seed, self.device),
            self._in_eval(),
            self.masters.training(),
            self._or_as_before(),
        ):
            self._measure()
            errors = {0: self.error()}
            self._tell(0, errors[0])
            self.live = bool(self.norms) and options.norms != "held" and self.least >= FEW
            best, done = self._train(errors)
            if not best and self.live and errors[0] and options.norms == "auto":
                self.notes.append("mini-batches' own BatchNorm statistics did not help: trained with those held")
                self.live = False
                self.masters.restart()
                errors = {0: errors[0]}
                best, done = self._train(errors)
            norms, after = self._settle_norms(errors[0], errors[best], "reestimated" if best and self.live else "held")
        if not after < errors[0] and errors[0]:
            self.notes.append("no step lowered the held-out error: the model is as it came")
        windows = tuple(name for name in self.names if any(key[0] == name for key in self.scales))
        seconds = time.perf_counter() - start
        return RefineReport(
            self.samples.told,
            errors,
            best,
            after,
            done,
            self.lr,
            windows,
            norms,
            seconds,
            options.seed,
            tuple(self.notes),
        )

    def _train(self, errors: dict[int, float]) -> tuple[int, int]:
        """The steps; the model then has the best weights. Returns which, and how many steps were taken.

        Args:
            errors: by step, with that of step 0; the others are added.
        """
        best, kept, done = 0, self._state(), 0
        marks = {round(self.steps * look / LOOKS) for look in range(1, LOOKS + 1)}
        for step, batch in zip(range(1, self.steps + 1), self.samples.endless(), strict=False):
            if errors[0] == 0:
                self.notes.append("the outputs are the dense ones: nothing to fit")
                break
            if not self._step(step, batch):
                self.notes.append(f"ended at step {step}: a gradient is not finite")
                break
            done = step
            if self.meter is not None:
                self.meter.move(step)
            if step in marks:
                if self.live:
                    self._average_norms()
                errors[step] = self.error()
                self._tell(step, errors[step])
                if errors[step] < errors[best]:
                    best, kept = step, self._state()
        self._put(kept)
        return best, done

    def error(self) -> float:
        """Mean squared error of the outputs on what is held out, relative to their variance; of several, the mean.

        An error that is not finite counts as infinite.
        """
        sums: dict[int, Tensor] = {}
        with together(self.device), torch.no_grad():
            for batch in self.samples.held:
                batch = to_device(batch, self.device)
                both = paired({"": self.dense.run(batch)[""]}, {"": self.work.run(batch)[""]})
                for (name, call), (came, wanted) in both.items():
                    if (name, call) in self.scales:
                        squares = (came.double() - wanted.double()).square()
                        pair = torch.stack([squares.sum(), torch.ones_like(squares).sum()])
                        sums[call] = sums[call] + pair if call in sums else pair
        calls = sorted(sums)
        table = torch.stack([sums[call] for call in calls])
        all_reduce_([table])
        means = (table[:, 0] / table[:, 1]).tolist()
        found = sum(mean / self.scales["", call] for mean, call in zip(means, calls, strict=True)) / len(calls)
        return found if math.isfinite(found) else math.inf

    # ------------------------------------------------------------------ parts of a run

    @torch.no_grad()
    def _measure(self) -> None:
        """The variation of what is fitted, on the held-out inputs: errors count relative to it."""
        sums: dict[Key, Tensor] = {}
        with together(self.device):
            for batch in self.samples.held:
                batch = to_device(batch, self.device)
                for key, (_, wanted) in paired(self.dense.run(batch), self.work.run(batch)).items():
                    wide = wanted.double()
                    own = torch.stack([wide.square().sum(), wide.sum(), torch.ones_like(wide).sum()])
                    sums[key] = sums[key] + own if key in sums else own
        for key, own in sorted(sums.items()):
            all_reduce_([own])
            square, total, count = own.tolist()
            variance = square / count - (total / count) ** 2
            if variance > 0:
                self.scales[key] = variance
        if not any(not name for name, _ in self.scales):
            raise ValueError("dense: expected outputs that vary with the inputs, got constant ones")

    def _step(self, step: int, batch: Any) -> bool:
        with together(self.device):
            batch = to_device(batch, self.device)
            if self.options.augment is not None:
                batch = self.options.augment(batch)
            with torch.no_grad():
                wanted = self.dense.run(batch)
            with torch.enable_grad(), self._live_norms():
                pairs = paired(wanted, self.work.run(batch))
                loss = self._loss(pairs)
                if not loss.requires_grad:
                    raise ValueError("model: its outputs do not depend on its parameters (detached?)")
                gradients = torch.autograd.grad(loss, self.masters.parameters, allow_unused=True)
        warm = max(1, round(self.steps * WARM_UP))
        rate = step / warm if step <= warm else (1 + math.cos(math.pi * (step - warm) / (self.steps - warm + 1))) / 2
        return self.masters.step(gradients, self.lr * rate)

    def _loss(self, pairs: Mapping[Key, tuple[Tensor, Tensor]]) -> Tensor:
        """Mean relative error of the outputs, and that of the windows."""
        terms: dict[bool, list[Tensor]] = {True: [], False: []}
        for key, (came, wanted) in pairs.items():
            if key in self.scales:
                came, wanted = (t if t.dtype == torch.float64 else t.float() for t in (came, wanted))
                terms[key[0] == ""].append((came - wanted).square().mean() / self.scales[key])
        means = [torch.stack([t.float() for t in own]).mean() for own in terms.values() if own]
        return torch.stack(means).sum()

    def _tell(self, step: int, error: float) -> None:
        logger.info("refine: step %d of %d: held-out error %.4g", step, self.steps, error)
        if self.meter is not None:
            self.meter.at(step, "", error)

    def _tensors(self) -> list[Tensor]:
        """What a run changes: parameters and statistics."""
        return [*self.masters.parameters, *(t for module in self.norms for t in _statistics(module))]

    def _state(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self._tensors()]

    @torch.no_grad()
    def _put(self, state: Sequence[Tensor]) -> None:
        for tensor, value in zip(self._tensors(), state, strict=True):
            tensor.copy_(broadcast_(value))
        self.masters.follow()

    @contextmanager
    def _or_as_before(self) -> Iterator[None]:
        """Where something fails, a user's function or another rank, the model is as it came."""
        before = self._state()
        try:
            yield
        except BaseException:
            with torch.no_grad():
                for tensor, value in zip(self._tensors(), before, strict=True):
                    tensor.copy_(value)
            raise

    @contextmanager
    def _in_eval(self) -> Iterator[None]:
        with eval_mode(self.models[0]), eval_mode(self.models[1]):
            yield

    # ------------------------------------------------------------------ BatchNorm

    def _norms(self) -> list[nn.modules.batchnorm._BatchNorm]:
        """The BatchNorms with statistics of their own."""
        kind = nn.modules.batchnorm._BatchNorm
        return [m for m in self.pruned.modules() if isinstance(m, kind) and m.running_mean is not None]

    @contextmanager
    def _live_norms(self, momentum: float | None = MOMENTUM) -> Iterator[None]:
        """Mini-batches' own statistics, which the running ones follow; None: these are their plain mean."""
        norms = self.norms if self.live else []
        momenta = [module.momentum for module in norms]
        try:
            for module in norms:
                module.momentum = momentum
                module.train()
            yield
        finally:
            for module, own in zip(norms, momenta, strict=True):
                module.momentum = own
                module.eval()

    @torch.no_grad()
    def _settle_norms(self, before: float, after: float, as_trained: str) -> tuple[str, float]:
        """Which statistics the BatchNorms have in the end, and the error with them."""
        if not self.norms:
            return "", after
        if self.options.norms == "held" or not before:
            return "held", after
        trained = self._state()
        self.live = True
        for module in self.norms:
            module.reset_running_stats()
        with together(self.device), self._live_norms(None):
            for _, batch in zip(range(NORM_BATCHES), self.samples.one_pass(), strict=False):
                run_model(self.pruned, to_device(batch, self.device))
        self._average_norms()
        anew = self.error()
        if anew < (MARGIN * after if self.options.norms == "auto" else min(before, after)):
            self._put(self._state())  # ranks count batches of their own
            return "reestimated", anew
        self._put(trained)
        return as_trained, after

    def _average_norms(self) -> None:
        """The statistics of all ranks' samples."""
        for tensor in (t for module in self.norms for t in _statistics(module) if t.is_floating_point()):
            ranks = torch.ones((), device=tensor.device)
            all_reduce_([tensor, ranks])
            tensor.div_(ranks)


def _statistics(module: nn.modules.batchnorm._BatchNorm) -> list[Tensor]:
    return [t for t in (module.running_mean, module.running_var, module.num_batches_tracked) if t is not None]
