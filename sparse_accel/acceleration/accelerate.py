"""One call that makes a sparse model faster, and the way back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel._modes import outside_inference_mode
from sparse_accel.acceleration.candidates import Candidate, find_candidates, record_inputs
from sparse_accel.acceleration.layers import BitmaskLayer, CSRLayer, SparseLayer
from sparse_accel.acceleration.report import AccelerateReport, LayerSpeed
from sparse_accel.acceleration.timing import layer_times, times_in_turns
from sparse_accel.channels.containers import output_leaves
from sparse_accel.channels.runs import Examples, as_tensors, run_as_is
from sparse_accel.progress import Show, check_progress, over
from sparse_accel.wrappers import bare_model, copy_model

# How far a sparse layer's output may be from the dense one's, of its largest: sums in another order, one rounding.
_NEAR = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
_NEAR_INT8 = 0.05


@dataclass
class AccelerateResult:
    """What :func:`accelerate` returns.

    Attributes:
        model: a copy whose layers are those that were fastest.
        report: what was measured and chosen, per layer; a table when printed.
    """

    model: nn.Module
    report: AccelerateReport


@outside_inference_mode
def accelerate(
    model: Any,
    example_inputs: Any,
    min_gain: float = 1.1,
    *,
    int8: bool = False,
    budget_s: float = 0.2,
    progress: Show = None,
) -> AccelerateResult:
    """Store the kept weights of a sparse model alone where that makes it faster.

    Every ``nn.Linear``, 1 × 1 convolution and Hugging Face ``Conv1D`` with zeros is timed on the inputs that the
    example gives it: dense, with kept values and one bit per weight (:class:`sparse_accel.ops.Bitmask`), and in torch's
    CSR format. The fastest stays, if it is ``min_gain`` times as fast as the dense layer; and if the whole model is not
    faster in the end, every layer stays dense. Times are those of this machine, its number of threads
    (``torch.get_num_threads()``) and the example's sizes: give what the model will be run on.

    The sparse layers have gradients for their kept values, can be copied, saved (:func:`sparse_accel.save`), compiled
    and exported. :func:`densify` leads back.

    Args:
        model: an ``nn.Module``, or what a pruner or :func:`sparse_accel.compact` returned. It does not change.
        example_inputs: of one run, a tensor, a tuple or a dict of keyword inputs; or :class:`sparse_accel.Examples`.
        min_gain: at least 1: how many times faster a layer has to be.
        int8: store kept values in 8 bits with a scale for each row's 256 columns: smaller, and no longer exact.
        budget_s: seconds for each layer's timing.
        progress: True, False or a function, see :mod:`sparse_accel.progress`: a step is a layer.

    Returns:
        A new model and a report, which also names what stayed dense and why: shared or tied weights, hooks,
        parametrizations, subclasses of ``nn.Linear``, other dtypes.

    Raises:
        TypeError: ``model`` is neither.
        ValueError: ``min_gain`` or ``budget_s`` out of range, or a model in a wrapper that hides its weights.

    Example:
        >>> import sparse_accel as sa
        >>> net = nn.Sequential(nn.Linear(256, 512), nn.ReLU())
        >>> net[0].weight.data[torch.rand(512, 256) < 0.7] = 0
        >>> result = sa.accelerate(net, torch.randn(4, 256))
        >>> torch.allclose(result.model(torch.ones(1, 256)), net(torch.ones(1, 256)), atol=1e-5)
        True
    """
    _check_numbers(min_gain, budget_s)
    check_progress(progress)
    new = copy_model(bare_model(_model_of(model)))
    modes = {name: module.training for name, module in new.named_modules()}
    new.eval()
    found, left = find_candidates(new)
    examples = copy.deepcopy(example_inputs)
    if isinstance(examples, Examples):
        examples.check(new)
    expected = as_tensors(output_leaves(record_inputs(new, found, examples)))
    layers: list[LayerSpeed] = []
    chosen: dict[str, SparseLayer] = {}
    for candidate in over(found, "accelerate", progress, label=lambda candidate: candidate.name):
        if not candidate.counts:
            left[candidate.name] = "the example does not call it"
        elif None in candidate.counts:
            left[candidate.name] = "its input is not a plain tensor"
        else:
            speed, layer = _choose(candidate, min_gain, int8, budget_s)
            layers.append(speed)
            if layer is not None:
                chosen[candidate.name] = layer
    return _judge(new, chosen, AccelerateReport(layers, left, min_gain, (0.0, 0.0), 0.0, []), examples, expected, modes)


def _check_numbers(min_gain: float, budget_s: float) -> None:
    for name, value, low in (("min_gain", min_gain, 1.0), ("budget_s", budget_s, 0.0)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < float("inf"):
            raise ValueError(f"{name}: expected a number from {low:g} on, got {value!r}")


def _model_of(model: Any) -> nn.Module:
    inside = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    if not isinstance(inside, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module or a result that has one, got {type(model).__name__}")
    return inside


def _choose(
    candidate: Candidate, min_gain: float, int8: bool, budget_s: float
) -> tuple[LayerSpeed, SparseLayer | None]:
    """What was measured of a layer, and the sparse one that takes its place, if any."""
    dense = candidate.module
    inputs = [(x, candidate.counts[key]) for key, x in candidate.inputs.items()]
    forms: dict[str, nn.Module] = {"dense": dense}
    notes: list[str] = []
    for form in ("bitmask",) if int8 else ("bitmask", "csr"):
        try:
            layer: SparseLayer = BitmaskLayer(dense, int8=int8) if form == "bitmask" else CSRLayer(dense)
            apart = _apart(dense, layer, inputs)
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:  # torch's CSR lacks some dtypes
            notes.append(f"{form} cannot be tried: {str(error).splitlines()[0]}")
            continue
        allowed = _NEAR_INT8 if int8 else _NEAR[dense.weight.dtype]  # type: ignore[index]
        if apart <= allowed:
            forms[form] = layer
        else:
            notes.append(f"{form} is not used: its output differs by {apart:.2g} of the largest, {allowed:.2g} may be")
    us = layer_times(forms, inputs, budget_s)
    best = min((form for form in forms if form != "dense"), key=us.__getitem__, default="dense")
    if best != "dense" and us["dense"] < min_gain * us[best]:
        notes.append(f"{best}, the fastest, would gain {us['dense'] / us[best]:.2f}×")
        best = "dense"
    weight: Tensor = dense.weight  # type: ignore[assignment]
    winner = forms[best]
    kept = winner if isinstance(winner, BitmaskLayer | CSRLayer) else None
    matrix_inputs = [x.numel() // max(1, _columns(dense)) for x, _ in inputs]
    rows = weight.numel() // max(1, _columns(dense))
    speed = LayerSpeed(
        name=candidate.name,
        kind=type(dense).__name__,
        shape=(rows, _columns(dense)),
        sparsity=candidate.sparsity,
        calls=sum(candidate.counts.values()),
        inputs=max(matrix_inputs),
        us=us,
        chosen=best,
        bytes=(weight.nbytes, weight.nbytes if kept is None else kept.nbytes),
        note="; ".join(notes),
    )
    return speed, kept


def _columns(dense: nn.Module) -> int:
    weight: Tensor = dense.weight  # type: ignore[assignment]
    return int(weight.shape[0] if type(dense).__name__ == "Conv1D" and weight.dim() == 2 else weight.shape[1])


@torch.no_grad()
def _apart(dense: nn.Module, layer: nn.Module, inputs: list[tuple[Tensor, int]]) -> float:
    """The largest difference of the outputs, of the largest of them."""
    worst = 0.0
    for x, _ in inputs:
        expected, found = dense(x), layer(x)
        if expected.shape != found.shape or expected.dtype != found.dtype:
            raise ValueError(f"the output is {list(found.shape)} {found.dtype}")
        if expected.numel():
            finite = expected.isfinite()
            if not bool((finite == found.isfinite()).all()):
                return float("inf")
            apart = (expected.double() - found.double())[finite].abs()
            scale = expected[finite].double().abs()
            if apart.numel():
                worst = max(worst, float(apart.max()) / max(float(scale.max()), 1e-30))
    return worst


def _judge(
    new: nn.Module,
    chosen: Mapping[str, SparseLayer],
    report: AccelerateReport,
    examples: Any,
    expected: list[Tensor],
    modes: Mapping[str, bool],
) -> AccelerateResult:
    """Put the chosen layers in, and take them out again unless the model as a whole is faster."""
    dense = {name: new.get_submodule(name) for name in chosen}
    cuda = any(tensor.is_cuda for tensor in new.parameters())
    state = {"now": ""}

    def run(which: str) -> None:
        if state["now"] != which:
            put(new, chosen if which == "sparse" else dense)
            state["now"] = which
        run_as_is(new, examples)

    def fresh(which: str) -> Any:
        put(new, chosen if which == "sparse" else dense)
        state["now"] = which
        return lambda: run(which)

    notes, latency, apart = list(report.notes), (0.0, 0.0), 0.0
    if "" in chosen:  # the model is the layer
        speed = report.layers[0]
        latency = (speed.us["dense"] / 1e3, speed.us[speed.chosen] / 1e3)
        new = chosen[""]
        with torch.no_grad():
            apart = _difference(expected, run_as_is(new, examples))
    else:
        with torch.no_grad():
            runs = {which: fresh(which) for which in ("dense", "sparse")} if chosen else {"dense": fresh("dense")}
            times = times_in_turns(runs, cuda=cuda, budget_s=1.0, most=50, least=5)
            latency = (median(times["dense"]) / 1e3, median(times["sparse" if chosen else "dense"]) / 1e3)
            faster = bool(chosen) and median(a / b for a, b in zip(times["dense"], times["sparse"], strict=True)) >= 1.0
            if chosen and not faster:
                notes.append("the model as a whole was not faster: every layer is dense")
                report.layers[:] = [_dense_again(speed) for speed in report.layers]
                latency = (latency[0], latency[0])
            put(new, chosen if faster else dense)
            if faster:
                apart = _difference(expected, run_as_is(new, examples))
    for name, module in new.named_modules():
        module.training = modes.get(name, module.training)
    final = AccelerateReport(report.layers, report.left, report.min_gain, latency, apart, notes)
    return AccelerateResult(new, final)


def _dense_again(speed: LayerSpeed) -> LayerSpeed:
    return LayerSpeed(**{**vars(speed), "chosen": "dense", "bytes": (speed.bytes[0], speed.bytes[0])})


def _difference(expected: list[Tensor], found: Any) -> float:
    pairs = zip(expected, as_tensors(output_leaves(found)), strict=True)
    apart = [(a.double() - b.double()).nan_to_num().abs().max().item() for a, b in pairs if a.numel()]
    return max(apart, default=0.0)


def put(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Modules into a model, by name."""
    for name, layer in layers.items():
        path, _, key = name.rpartition(".")
        model.get_submodule(path)._modules[key] = layer


@outside_inference_mode
def densify(model: Any) -> nn.Module:
    """A copy with dense layers again, with the kept weights' values of now and zeros between them.

    Args:
        model: a model with layers of :func:`accelerate`, or its result. It does not change.

    Raises:
        TypeError: ``model`` is neither.

    Example:
        >>> import sparse_accel as sa
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        >>> net[0].weight.data[:, ::2] = 0
        >>> back = sa.densify(sa.accelerate(net, torch.randn(2, 64)))
        >>> type(back[0]), torch.equal(back[0].weight, net[0].weight)
        (<class 'torch.nn.modules.linear.Linear'>, True)
    """
    new = copy_model(bare_model(_model_of(model)))
    if isinstance(new, SparseLayer):
        return new.densify()
    seen: dict[int, nn.Module] = {}
    for name, module in list(new.named_modules(remove_duplicate=False)):
        if isinstance(module, SparseLayer):
            put(new, {name: seen.setdefault(id(module), module.densify())})
    return new
