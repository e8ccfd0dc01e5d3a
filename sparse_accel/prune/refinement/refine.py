"""``refine``: any pruned model fitted to the dense one, without labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel._modes import outside_inference_mode
from sparse_accel.calibration.batches import Batches
from sparse_accel.calibration.data import Calibration, device_of, eval_mode, require_memory, to_device
from sparse_accel.calibration.observations import Observations
from sparse_accel.calibration.padding import DEFAULT, Keys, Padding
from sparse_accel.calibration.ranks import together
from sparse_accel.channels.call import run_model
from sparse_accel.progress import Show
from sparse_accel.prune.refinement.fit import Distillation
from sparse_accel.prune.refinement.masters import Masters
from sparse_accel.prune.refinement.options import RefineOptions, RefineReport
from sparse_accel.prune.refinement.samples import Samples
from sparse_accel.prune.refinement.windows import SURVEYED, find_windows
from sparse_accel.wrappers import bare_model, copy_model


@dataclass
class Refined:
    """What :func:`refine` returns.

    Attributes:
        model: the fitted model, a copy, in the modes of the one given.
        report: held-out errors before and after, and how they came about; a few lines when printed.
        result: the result that was given, with the fitted model in it, for :func:`sparse_accel.save`; None where a
            model was given. It has no optimizer: that of the old result holds the old model's parameters.
    """

    model: nn.Module
    report: RefineReport
    result: Any = None


@outside_inference_mode
def refine(
    model: Any,
    dense: nn.Module,
    calibration: Any,
    *,
    held_out: Any = None,
    masks: Mapping[str, Tensor] | None = None,
    steps: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    windows: Sequence[str] | None = None,
    norms: str = "auto",
    augment: Callable[[Any], Any] | None = None,
    progress: Show | Callable[[int, int, float], Any] = None,
    seed: int = 0,
    padding: Keys = DEFAULT,
    batch_first: bool | None = None,
    max_memory: int | None = None,
) -> Refined:
    """Fit a pruned model to the dense one, on inputs without labels: gradient-based, no labels.

    The pruned model learns the dense one's outputs and, block by block, what its blocks give (their *windows*), by a
    short run of Adam on the squared errors relative to their variation, with the modules in eval mode. Inputs that are
    held out judge: the result has the weights with the least error of the outputs there, and those it came with count
    too, so that it never is worse by that measure. Neither model changes; nor do torch's, NumPy's and Python's random
    numbers.

    Args:
        model: a pruned model, or a result with one, such as what :meth:`sparse_accel.prune.ISpaSP.run`,
            :meth:`sparse_accel.prune.CurvatureIHT.run`, :func:`sparse_accel.compact` or
            :func:`sparse_accel.prune.remove_units` return.
        dense: the model before, on the same device. Modules are matched by name.
        calibration: inputs as for :class:`~sparse_accel.prune.ISpaSP`; more of them help more than here than there.
        held_out: inputs to judge by, the same kinds; by default every eighth sample of a tensor, at most 512 of them,
            or every eighth batch of anything else. A single batch serves for both, and the report says so.
        masks: True for kept weights, by name of the parameter: the others stay zero. By default a result's own masks,
            or, of parameters of two or more dimensions, the weights that are not zero.
        steps: of Adam; None: 600, or 40 passes over the data if that is less.
        lr: its largest step size, after a warm-up and before a cosine; None: 0.04 times the size (root mean square)
            of the weights in a median layer for networks with convolutions, 0.002 times for others.
        batch_size: of mini-batches. None: 64 samples of a tensor, and batches as they are of anything else. A number
            also cuts batches along the first dimension of their tensors: give it where the samples lie along that.
        windows: patterns (``fnmatch``) of modules whose outputs are fitted besides the model's; None: its blocks;
            ``[]``: none. Modules whose outputs are of another size in the pruned model have no say.
        norms: ``"held"``: BatchNorms keep the statistics that they came with. ``"auto"``: they take those of each
            mini-batch (of 16 samples or more), running ones follow; where that does not lower the held-out error, the
            statistics are held after all, and new ones are taken at the end if these are better. ``"reestimated"``:
            as ``"auto"``, but never trained with statistics held unless mini-batches are smaller.
        augment: takes a batch (on the device), returns another one that both models are run on: flips, crops. Torch's,
            NumPy's and Python's global random numbers are seeded around it.
        progress: True, False or a function, see :mod:`sparse_accel.progress`; it is called at the start and at every
            look at the error, a function that takes three arguments as ``progress(step, steps, held_out_error)``.
        seed: of the order of the samples. The same seed gives the same bits on one machine, whatever the global
            generators' states.
        padding, batch_first: as for :class:`~sparse_accel.prune.CurvatureIHT`: positions of padding do not count.
        max_memory: bytes that gradients, Adam and the best weights may take; more is refused before the run.

    Under ``torch.distributed`` every rank brings its share of the data, and all get the same weights.

    Raises:
        TypeError, ValueError: an argument is not as above, or the models do not belong together; the message says how.

    Example:
        >>> import sparse_accel as sa
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        >>> x = torch.randn(256, 4)
        >>> result = sa.prune.ISpaSP(net, x[:1], keep=0.25).run(x)
        >>> refined = refine(result, net, x, steps=100)
        >>> before, after = refined.report.error
        >>> refined.report.kind, after < before
        ('gradient-based, no labels', True)
    """
    options = RefineOptions(steps, lr, batch_size, windows, norms, augment, progress, seed)
    given = model
    if not isinstance(model, nn.Module):
        model = getattr(given, "model", None)
        if not isinstance(model, nn.Module) or not is_dataclass(given) or isinstance(given, type):
            raise TypeError(f"model: expected a model or what a pruner returned, got {type(given).__name__}")
    model, dense = bare_model(model), bare_model(dense)
    if model is dense:
        raise ValueError("dense: expected the model before pruning, got the pruned one itself")
    places = device_of(model), device_of(dense)
    if places[0] != places[1]:
        raise ValueError(f"dense: expected a model on {places[0]}, like the pruned one, got one on {places[1]}")
    work = copy_model(model)
    work.zero_grad(set_to_none=True)
    keys = Padding(padding, batch_first)
    data = Batches(Calibration(calibration), dense, keys)
    judge = None if held_out is None else Batches(Calibration(held_out), dense, keys)
    own = getattr(given, "masks", None) if masks is None and given is not model else masks
    report = refine_(work, dense, data, judge, checked_masks(work, own), options, max_memory)
    if given is model or isinstance(given, nn.Module):
        return Refined(work, report)
    return Refined(work, report, _renewed(given, work, report))


def refine_(
    work: nn.Module,
    dense: nn.Module,
    data: Batches,
    held_out: Batches | None,
    masks: Mapping[str, Tensor],
    options: RefineOptions,
    max_memory: int | None = None,
) -> RefineReport:
    """:func:`refine` in place, on batches.

    Args:
        work: the pruned model; changed, and only for the better.
        dense: the model before.
        data: to learn from, and to judge by if there is nothing else.
        held_out: to judge by.
        masks: True for kept weights, by name.
        options: settings.
        max_memory: bytes.
    """
    require_memory(Masters.bytes_needed(work), max_memory, "the refinement's gradients, moments and best weights")
    device = device_of(work) or torch.device("cpu")
    generator = torch.Generator(device="cpu").manual_seed(options.seed)
    with together(device):
        samples = Samples(data, options.batch_size, held_out, generator)
        names = find_windows(dense, work, samples.held, options.windows)
        padding = _known(data.padding, dense, names, samples.held[:SURVEYED])
        fit = Distillation(dense, work, samples, names, masks, padding, options)
    return fit.run()


def checked_masks(model: nn.Module, masks: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Masks of a model's parameters: those given, or what is not zero in those of two or more dimensions.

    Raises:
        ValueError: a name or shape is not the model's, or a removed weight is not zero.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.0, 2.0]]))
        >>> checked_masks(layer, None)
        {'weight': tensor([[False,  True]])}
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if masks is None:
        found = {name: p.detach() != 0 for name, p in parameters.items() if p.dim() >= 2}
        return {name: mask for name, mask in found.items() if not bool(mask.all())}
    for name, mask in masks.items():
        if name not in parameters:
            raise ValueError(f"masks: the model has no parameter {name!r}")
        parameter = parameters[name].detach()
        if mask.dtype != torch.bool or mask.shape != parameter.shape:
            raise ValueError(
                f"masks: {name}: expected torch.bool {tuple(parameter.shape)}, got {mask.dtype} {tuple(mask.shape)}"
            )
        if bool((parameter[~mask.to(parameter.device)] != 0).any()):
            raise ValueError(f"masks: {name}: holds weights that its mask removes: call masks.apply_() first")
    return dict(masks)


def _known(padding: Padding, dense: nn.Module, names: Sequence[str], batches: Sequence[Any]) -> Padding:
    """The padding, with whose positions the windows and the outputs have."""
    fresh = Padding(padding.given, padding.batch_first, padding.argument)
    seen = Observations(fresh, {name: dense.get_submodule(name) for name in names}, outputs=True)
    device = device_of(dense)
    with torch.no_grad(), eval_mode(dense), seen.watching(dense):
        for batch in batches:
            seen.begin(batch)
            run_model(dense, batch if device is None else to_device(batch, device))
    fresh.learn(dense, seen)
    return fresh


def _renewed(given: Any, work: nn.Module, report: RefineReport) -> Any:
    """A result with another model in it."""
    new = copy.copy(given)
    new.model = work
    if hasattr(new, "optimizer"):
        new.optimizer = None
    if getattr(new, "masks", None) is not None:
        new.masks = type(given.masks)(work, dict(given.masks))
    if hasattr(getattr(given, "report", None), "refinement"):
        new.report = replace(given.report, refinement=report)
    return new
