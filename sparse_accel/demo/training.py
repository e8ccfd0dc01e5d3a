"""Training on tensors in memory, with one evaluation of the proximal iterate after every epoch."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import update_bn

from sparse_accel.diagnostics.sparsity import sparsity

EVALUATION_BATCH = 500


class Images(NamedTuple):
    """A data set: inputs ``[N, C, H, W]`` and labels ``[N]``, for training and for test."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


class Epoch(NamedTuple):
    """What is known after an epoch: shares in [0, 1], the mean training loss, seconds of training alone."""

    accuracy: float
    group_sparsity: float
    loss: float
    seconds: float


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    images: Images,
    *,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    scheduler: LRScheduler | None = None,
    by: str = "input",
    on_epoch: Callable[[Epoch], None] | None = None,
) -> list[Epoch]:
    """Train with cross entropy on full batches (a small last one would upset BatchNorm); the scheduler steps once an
    epoch.

    Args:
        model: trained in place.
        optimizer: evaluated at its proximal iterate where it has one.
        generator: shuffles the training data, on the CPU.
        by: the groups that are counted.
        on_epoch: called after each epoch with its figures.

    Returns:
        The figures of every epoch.
    """
    history: list[Epoch] = []
    count = len(images.train_x)
    for _ in range(epochs):
        begin = time.perf_counter()
        model.train()
        total = torch.zeros((), device=images.train_x.device)
        order = torch.randperm(count, generator=generator, device="cpu").to(images.train_x.device)
        batches = [batch for batch in order.split(batch_size) if len(batch) == batch_size]
        for batch in batches:
            loss = F.cross_entropy(model(images.train_x[batch]), images.train_y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        seconds = time.perf_counter() - begin
        with at_proximal_iterate(optimizer, model, images):
            figures = Epoch(
                accuracy(model, images.test_x, images.test_y),
                sparsity(model, by).group_sparsity,
                float(total) / len(batches),
                seconds,
            )
        if scheduler is not None:
            scheduler.step()
        history.append(figures)
        if on_epoch is not None:
            on_epoch(figures)
    return history


def stage_ends(epochs: int, stages: int) -> list[int]:
    """The epochs after which the stages but the last end, for stages as equal as can be.

    Example:
        >>> stage_ends(15, 5)
        [3, 6, 9, 12]
    """
    return sorted({max(1, epochs * stage // stages) for stage in range(1, stages)})


@contextlib.contextmanager
def at_proximal_iterate(optimizer: Optimizer, model: nn.Module, images: Images) -> Iterator[None]:
    """The model at the optimizer's proximal iterate, where it has one, with BatchNorm statistics of those weights.

    Running statistics are those of the weights in training, which differ; as for averaged weights
    (``torch.optim.swa_utils``) they are taken anew, in one pass over the training data.
    """
    lend = getattr(optimizer, "proximal_parameters", None)
    with lend() if lend is not None else contextlib.nullcontext():
        if lend is not None:
            refresh_batch_norm(model, images.train_x)
        yield


@torch.no_grad()
def refresh_batch_norm(model: nn.Module, inputs: Tensor) -> None:
    """Take BatchNorm's running statistics anew, over all inputs; a model without BatchNorm stays as it is."""
    update_bn(inputs.split(EVALUATION_BATCH), model)


@torch.no_grad()
def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """The model's outputs in eval mode; its mode is restored."""
    mode = model.training
    result = torch.cat([model.eval()(batch) for batch in inputs.split(EVALUATION_BATCH)])
    model.train(mode)
    return result


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of the inputs whose largest output is the label."""
    return (outputs(model, inputs).argmax(1) == labels).double().mean().item()


@torch.no_grad()
def latencies_ms(models: Sequence[nn.Module], inputs: Tensor, *, rounds: int = 60, seconds: float = 3.0) -> list[float]:
    """Median milliseconds that each model takes for one batch, in eval mode.

    The models take turns, for ``rounds`` rounds, or fewer (five at least) when these many seconds are over.
    """
    for model in models:
        model.eval()
        model(inputs)
    times: list[list[float]] = [[] for _ in models]
    runs = list(zip(models, times, strict=True))
    start = time.perf_counter()
    for turn in range(rounds):
        if turn >= 5 and time.perf_counter() - start > seconds:
            break
        runs.append(runs.pop(0))  # nobody always follows the same one
        for model, taken in runs:
            if inputs.is_cuda:
                torch.cuda.synchronize()
            begin = time.perf_counter()
            model(inputs)
            if inputs.is_cuda:
                torch.cuda.synchronize()
            taken.append(1e3 * (time.perf_counter() - begin))
    return [statistics.median(taken) for taken in times]
