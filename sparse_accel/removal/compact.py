"""Physical removal of channels that became zero, with the proof that nothing changed."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_accel import wrappers
from sparse_accel._modes import outside_inference_mode
from sparse_accel.channels.graph import ChannelGraph, CompactError, UnsupportedModelError
from sparse_accel.channels.liveness import Decision, decide
from sparse_accel.channels.runs import Examples, Method
from sparse_accel.channels.trace import trace
from sparse_accel.channels.width_search import tie_for_removal, widths_of
from sparse_accel.removal.configs import follow_removal, owner_of
from sparse_accel.removal.optimizer_state import check_optimizer, compact_optimizer
from sparse_accel.removal.stacks import plan_stacks, without_silent, zeros_left
from sparse_accel.removal.surgery import Plan, apply_plan, carry_gradients, cut_tensors, make_plan
from sparse_accel.removal.verify import (
    OutputMismatchError,
    comparable,
    cuda_devices,
    outputs_in_float64,
    verify_outputs,
)
from sparse_accel.report import CompactReport, compare_models
from sparse_accel.wrappers import bare_model

__all__ = ["CompactError", "CompactResult", "OutputMismatchError", "UnsupportedModelError", "compact"]


@dataclass
class CompactResult:
    """What :func:`compact` returns.

    Attributes:
        model: the smaller model, a copy.
        optimizer: an optimizer of the same class on the new parameters with the cut state, or None.
        plan: what was removed, as plain JSON-able data.
        max_abs_diff: largest difference of an output element between the dense and the compact model.
        report: layers, parameters, MACs and latency before and after; a table when printed.
    """

    model: nn.Module
    optimizer: Optimizer | None
    plan: Plan
    max_abs_diff: float
    report: CompactReport


@outside_inference_mode
def compact(
    model: nn.Module,
    example_inputs: Any,
    optimizer: Optimizer | None = None,
    *,
    methods: Sequence[Method] | None = None,
    unvisited: str | None = None,
    tolerance: float | None = None,
    round_to: int = 1,
) -> CompactResult:
    """Remove every channel that cannot reach an output, without changing the outputs.

    A channel goes together with all that is tied to it (its filter, its norms, the weights that read it) if

    - no live channel reads it: the weights of every consumer on it are exactly zero, as group lasso by input
      channel leaves them; or
    - it is constant, whatever the input: its filter is zero, or reads only constants. Zero constants vanish; others
      are added to the bias of the consumer (or taken off the running mean of the BatchNorm that follows it) where
      that is exact, so not across zero padding, and are kept elsewhere.

    The heads of an attention go as a whole, with their queries, keys and values. Of the experts of a mixture that are
    stacked in parameters, as many neurons go as add nothing in every one of them, each expert's own. Channels that
    appear in an output of the model, or that an operation without an analysis takes (LayerNorm over them,
    ``nn.MultiheadAttention`` unless :func:`~sparse_accel.prune.open_attention` has been there, sizes written in the
    code as in ``x.view(-1, 400)``), stay; ``result.plan["notes"]`` says where. Every layer keeps at least one channel,
    and the groups of a grouped convolution stay equally wide.

    The configuration of a Hugging Face model follows where it can say what became of all layers, so that
    ``from_pretrained`` rebuilds what ``save_pretrained`` wrote; the notes say where it cannot. No bias is made in such
    a model that its configuration does not know.

    Equality is that of eval mode: constants use BatchNorm's running statistics. In train mode it holds for channels
    that nobody reads; a folded constant follows the running statistics of the moment of compaction.

    Args:
        model: in train or eval mode; neither it nor its mode changes, also not on failure. Of a compiled model, of
            DistributedDataParallel, DataParallel and accelerate's autocast it is the module inside.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs, on the model's device; a
            list of such tuples and dicts where one does not reach every part of the model (task heads, branches); or
            :class:`sparse_accel.Examples`. The report is on the first.
        methods: what else than ``model(...)`` users call: ``["forward", "encode"]``, see
            :class:`sparse_accel.Examples`.
        unvisited: ``"keep"`` (the default) what a layer that no example reaches may read, going by its sizes, or
            ``"ignore"`` such layers. ``result.plan["notes"]`` names their parameters.
        optimizer: whose parameters are the model's, or a wrapper around one, as accelerate's. The result's optimizer is
            of the class inside and continues as this one would if what was removed were zero and stayed so: the same
            next steps of the kept weights.
        tolerance: largest accepted difference of the outputs on the example, relative to ``max(1, max |output|)``;
            by default 1e-10, 1e-5, 3e-2 and 4e-3 for float64, float32 (without TF32), bfloat16 and float16.
        round_to: every layer keeps a multiple of so many outputs (every stacked expert of neurons), or all: of what
            could go, those with the largest weights stay. Some hardware likes 8.

    A learning-rate scheduler still holds the old optimizer: make a new one, or set its ``optimizer``.

    Raises:
        ValueError: ``round_to`` is not a whole number of at least 1.
        UnsupportedModelError: the forward pass cannot be followed; the message names the module.
        OutputMismatchError: the outputs differ by more than the tolerance, and in float64 too; its ``result`` has what
            was made. A difference that is rounding alone, by the same outputs in float64, is accepted where no
            ``tolerance`` is given, and noted in ``result.plan["notes"]``.
        CompactError: anything else that stands in the way (base class of both).

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> net[2].weight.data[:, 1] = 0
        >>> compact(net, torch.zeros(1, 4)).model[0]
        Linear(in_features=4, out_features=2, bias=True)
    """
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise ValueError(f"round_to: expected a whole number of at least 1, got {round_to!r}")
    model = bare_model(model, UnsupportedModelError)
    if optimizer is not None:
        optimizer = check_optimizer(optimizer, model)
    examples = copy_examples(Examples.of(example_inputs, methods, unvisited).check(model))
    probe = copy_model(model).eval()
    with comparable(model):
        graph, expected = trace(probe, copy.deepcopy(examples))
    _keep_what_needs_a_bias(graph, model)
    if optimizer is not None:
        _keep_what_needs_a_factor(graph, "would give the optimizer other steps")
    with comparable(model):
        kept, notes = without_silent(probe, graph.stacks, round_to)
    del probe
    for note in [*notes, *zeros_left(model, graph.stacks)]:
        graph.note(note)
    small, plan = _smaller(graph, kept, model, round_to)

    def result(max_abs_diff: float) -> CompactResult:
        carried = None if optimizer is None else compact_optimizer(optimizer, model, small, plan)
        with torch.random.fork_rng(devices=cuda_devices(model)):
            report = compare_models(model, small, examples, max_abs_diff)  # at the speed of the caller's settings
        return CompactResult(small, carried, plan, max_abs_diff, report)

    def exact() -> list[Tensor]:
        return outputs_in_float64(copy_model(model), examples)

    if plan["scaled"]:
        try:
            return result(verify_outputs(small, examples, expected, tolerance))
        except OutputMismatchError:
            _keep_what_needs_a_factor(graph, "is not exact enough beside the epsilon of the norm")
            small, plan = _smaller(graph, kept, model, round_to)
    try:
        difference = verify_outputs(small, examples, expected, tolerance, exact=exact, notes=plan["notes"])
    except OutputMismatchError as error:
        error.result = result(error.difference)
        raise
    return result(difference)


def copy_examples(examples: Examples) -> Examples:
    """A deep copy: models run on copies, the caller's examples stay as they are.

    Raises:
        CompactError: they cannot be copied.
    """
    try:
        return copy.deepcopy(examples)
    except Exception as error:
        raise CompactError(f"example_inputs cannot be copied (detach them): copy.deepcopy: {error}") from error


def _keep_what_needs_a_bias(graph: ChannelGraph, model: nn.Module) -> None:
    """No constant is folded into a new bias where the model is rebuilt from a configuration, which does not know it."""
    for read in graph.reads:
        new = read.bias is None and read.norm is None and bool((read.foldable & (read.values != 0)).any())
        if new and owner_of(model, read.module) is not None:
            graph.note(f"{read.module}: constant channels are kept: from_pretrained would lose a new bias for them")
            read.foldable = read.foldable & (read.values == 0)
            read.values = read.values * read.foldable


def _keep_what_needs_a_factor(graph: ChannelGraph, why: str) -> None:
    """No weight of a norm is multiplied to make up for a mean over fewer channels: they stay."""
    for number, norm in enumerate(graph.response_norms):
        if bool(norm.zero.any()):
            graph.note(
                f"{norm.module}: {int(norm.zero.sum())} of {len(norm.zero)} channels are zero, and stay: the mean over "
                f"the others needs a factor in {norm.weight}, which {why}"
            )
            graph.response_norms[number] = replace(norm, zero=torch.zeros_like(norm.zero))


def _smaller(
    graph: ChannelGraph, neurons: Mapping[str, Tensor], model: nn.Module, round_to: int
) -> tuple[nn.Module, Plan]:
    """A copy of the model without what the graph says, and the plan; neurons: kept ones of stacked experts."""
    decision = decide(graph, round_to)
    plan = make_plan(decision, model)
    plan_stacks(plan, graph.stacks, neurons, model)
    small = copy_model(model)
    apply_plan(small, plan, cut_tensors(decision, plan, model))
    _follow(replace(graph, slots=copy.deepcopy(graph.slots)), decision, neurons, model, small, plan)
    carry_gradients(model, small, plan)
    return small, plan


def _follow(
    graph: ChannelGraph,
    decision: Decision,
    neurons: Mapping[str, Tensor],
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
) -> None:
    """Let the configurations in a compact model follow."""
    if all(getattr(module, "config", None) is None for module in model.modules()):
        return
    tie_for_removal(graph)  # the decision knows the classes as they were
    widths = widths_of(graph, model)
    kept = {
        width.name: decision.keeps(torch.from_numpy(width.classes)).nonzero().flatten()
        for width in widths
        if len(width.classes)
    }
    kept |= neurons
    follow_removal(model, small, plan, widths, kept)


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy.

    Raises:
        CompactError: the model cannot be copied; the message names the module and what is in the way.
    """
    return wrappers.copy_model(model, CompactError)
