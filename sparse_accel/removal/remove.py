"""Removal of chosen units: a smaller model that computes what the dense one does without them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_accel._modes import outside_inference_mode
from sparse_accel.channels.graph import ChannelGraph, ResponseNorm, UnsupportedModelError, tensors_of
from sparse_accel.channels.liveness import Decision
from sparse_accel.channels.runs import Examples, Method, outputs_of
from sparse_accel.channels.trace import trace
from sparse_accel.channels.width_search import tie_for_removal, widths_of
from sparse_accel.channels.widths import Widths
from sparse_accel.removal.compact import copy_examples, copy_model
from sparse_accel.removal.configs import follow_removal
from sparse_accel.removal.optimizer_state import check_optimizer, compact_optimizer
from sparse_accel.removal.stacks import blind_readers, plan_stacks
from sparse_accel.removal.surgery import Plan, apply_plan, carry_gradients, cut, cut_tensors, make_plan
from sparse_accel.removal.verify import OutputMismatchError, comparable, outputs_in_float64, verify_outputs
from sparse_accel.wrappers import bare_model


@dataclass
class RemovalResult:
    """What :func:`remove_units` returns; :func:`sparse_accel.save` takes it.

    Attributes:
        model: the smaller model, a copy.
        plan: what was removed, as plain JSON-able data.
        max_abs_diff: largest difference of an output element from the dense model with the consumers' weights on the
            removed units at zero; NaN without ``verify``.
        optimizer: an optimizer of the same class on the new parameters with the cut state, or None.
    """

    model: nn.Module
    plan: Plan
    max_abs_diff: float
    optimizer: Optimizer | None = None

    @outside_inference_mode
    def add_bias(self, module: str) -> nn.Parameter:
        """The bias of a linear or convolutional layer of ``model``; where it has none, a new one at zero.

        Raises:
            ValueError: the module has no place for a bias.
        """
        layer = self.model.get_submodule(module)
        if "bias" not in layer._parameters or "weight" not in layer._parameters:
            raise ValueError(
                f"{module} ({type(layer).__name__}): expected a layer with a weight and a place for a bias"
            )
        bias = layer._parameters["bias"]
        if bias is None:
            weight = layer.get_parameter("weight")
            transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
            count = weight.shape[1] * int(getattr(layer, "groups", 1)) if transposed else weight.shape[0]
            bias = nn.Parameter(weight.new_zeros(count), requires_grad=weight.requires_grad)
            layer.register_parameter("bias", bias)
            prefix = f"{module}." if module else ""
            self.plan["created"][f"{prefix}bias"] = {"shape": [count], "like": f"{prefix}weight"}
        return bias


@outside_inference_mode
def find_widths(
    model: nn.Module,
    example_inputs: Any,
    *,
    methods: Sequence[Method] | None = None,
    unvisited: str | None = None,
) -> Widths:
    """Every width of a model of which units can be removed physically.

    The model is run once on each example; see :class:`~sparse_accel.channels.widths.Width` for what is found. The units
    of a width are

    - channels, with all that is tied to them: their filters (gate and up projection of a gated MLP, the last layer of
      a squeeze-and-excitation, every layer whose outputs are added), norms, and what reads them. A flattened channel
      owns several columns of its reader, both channels of a depthwise convolution are one, the groups of other grouped
      convolutions stay equally wide.
    - attention heads (``F.scaled_dot_product_attention``, or products of activations by ``matmul``, ``bmm`` or
      ``einsum``), with their rows of the query, key and value projections and their columns of the output projection.
      Where query heads share keys and values, a unit is a key-value head with all query heads that it serves, so that
      their ratio stays; where all share a single one, it stays, and each query head is a unit. Position biases tie
      the heads of all layers that use them.

    Not found, with the reason in ``refused`` or ``notes``: channels that appear in an output or that an operation
    without an analysis takes, widths over which a LayerNorm or an RMSNorm runs, weights computed in the forward pass,
    heads of ``nn.MultiheadAttention`` (whose sizes are those of its input: :func:`~sparse_accel.prune.open_attention`
    makes them units), or of code that computes with the number of heads (``width // num_heads``).

    Args:
        model: in train or eval mode; neither it nor its mode changes.
        example_inputs: a tensor, a tuple of positional inputs, a dict of keyword inputs, a list of such tuples and
            dicts or :class:`sparse_accel.Examples`, on the model's device.
        methods: methods to follow besides ``forward``; see :class:`sparse_accel.Examples`.
        unvisited: ``"keep"`` (the default) what layers that no example reaches may read, or ``"ignore"`` them; they are
            named in ``notes``.

    Returns:
        The widths in the order in which they are read, with ``refused`` (layers none of whose channels can go) and
        ``notes``.

    Raises:
        UnsupportedModelError: the forward pass cannot be followed; the message names the module.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
        >>> width = find_widths(net, torch.zeros(1, 1, 5, 5))[0]
        >>> width.name, width.units, width.unit_size, width.consumers[0].channels[1].tolist()
        ('0', 4, 9, [9, 10, 11, 12, 13, 14, 15, 16, 17])
    """
    model = bare_model(model, UnsupportedModelError)
    graph, _ = followed(model, Examples.of(example_inputs, methods, unvisited))
    return widths_of(graph, model)


@outside_inference_mode
def remove_units(
    model: nn.Module,
    example_inputs: Any,
    kept: Mapping[str, Any],
    *,
    methods: Sequence[Method] | None = None,
    unvisited: str | None = None,
    verify: bool = True,
    tolerance: float | None = None,
    optimizer: Optimizer | None = None,
    configs: bool = True,
) -> RemovalResult:
    """Cut a model down to some units of its widths.

    The smaller model computes what ``model`` does when every consumer's weights on the removed units are zero. A
    response normalization that divides by a mean over units (:attr:`~sparse_accel.channels.widths.Width.norms`) takes
    it over those that are left, and its weight is multiplied by the ratio of their numbers: the same, up to its
    epsilon, if the removed units are zero where it takes them.

    Args:
        model: in train or eval mode; neither it nor its mode changes, also not on failure.
        example_inputs: a tensor, a tuple of positional inputs, a dict of keyword inputs, a list of such tuples and
            dicts or :class:`sparse_accel.Examples`, on the model's device.
        kept: indices of the units to keep, by the width's name (of :func:`find_widths`); other widths stay. Of a
            width of kind ``"experts"`` ``[experts, n]``: each expert keeps neurons of its own.
        verify: run both models on the example and compare; the smaller one is also run without.
        tolerance: largest accepted difference, relative to ``max(1, max |output|)``; see :func:`sparse_accel.compact`.
        methods, unvisited: as for :func:`find_widths`.
        optimizer: whose parameters are the model's; the result's one holds the cut state.
        configs: let the configuration of a Hugging Face model follow where it can say what became of all layers, so
            that ``from_pretrained`` rebuilds what ``save_pretrained`` wrote; ``plan["notes"]`` says where it cannot.

    Raises:
        ValueError: ``kept`` names no width, or holds something else than units of it; the message names the width.
        UnsupportedModelError: the forward pass cannot be followed; the message names the module.
        OutputMismatchError: the outputs differ by more than the tolerance, as for :func:`sparse_accel.compact`; its
            ``result`` has the smaller model.
        CompactError: the smaller model does not run.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> remove_units(net, torch.zeros(1, 4), {"0": [0, 2, 5]}).model[2]
        Linear(in_features=3, out_features=2, bias=True)
    """
    model = bare_model(model, UnsupportedModelError)
    if optimizer is not None:
        optimizer = check_optimizer(optimizer, model)
    graph, examples = followed(model, Examples.of(example_inputs, methods, unvisited))
    return remove_known(
        model,
        (graph, widths_of(graph, model), examples),
        kept,
        verify=verify,
        tolerance=tolerance,
        optimizer=optimizer,
        configs=configs,
    )


def remove_known(
    model: nn.Module,
    analysis: tuple[ChannelGraph, Widths, Examples],
    kept: Mapping[str, Any],
    *,
    verify: bool = True,
    tolerance: float | None = None,
    optimizer: Optimizer | None = None,
    configs: bool = True,
) -> RemovalResult:
    """:func:`remove_units` of a model that has been analysed; its tensors may have got other values since, no others.

    Args:
        model: not wrapped.
        analysis: its graph and inputs from :func:`followed`, and the graph's widths.
        kept, verify, tolerance, configs: see there.
        optimizer: checked.
    """
    graph, widths, examples = analysis
    chosen = {name: widths.named(name).check(units) for name, units in kept.items()}
    decision = _decision(graph, widths, chosen)
    plan = make_plan(decision, model)
    plan_stacks(plan, graph.stacks, chosen, model)
    small = copy_model(model)
    apply_plan(small, plan, cut_tensors(decision, plan, model))
    if configs:
        follow_removal(model, small, plan, widths, chosen)
    carry_gradients(model, small, plan)

    def result(difference: float) -> RemovalResult:
        carried = None if optimizer is None else compact_optimizer(optimizer, model, small, plan)
        return RemovalResult(small, plan, difference, carried)

    def exact() -> list[Tensor]:
        return _masked_outputs(model, decision, plan, chosen, examples, float64=True)

    if not verify:
        return result(float("nan"))
    masked = _masked_outputs(model, decision, plan, chosen, examples)
    try:
        difference = verify_outputs(small, examples, masked, tolerance, exact=exact, notes=plan["notes"])
    except OutputMismatchError as error:
        error.result = result(error.difference)
        raise
    return result(difference)


def followed(model: nn.Module, examples: Examples) -> tuple[ChannelGraph, Examples]:
    """The model's graph, ready for a free choice of units, and a copy of the inputs."""
    examples = copy_examples(examples.check(model))
    probe = copy_model(model).eval()
    with comparable(model):
        graph, _ = trace(probe, copy.deepcopy(examples))
    graph.tensors = tensors_of(model)  # the same, without the copy's memory
    tie_for_removal(graph)
    for read in graph.reads:  # nothing is folded: what goes is zero for its readers
        read.foldable = torch.zeros_like(read.foldable)
        read.values = torch.zeros_like(read.values)
    return graph, examples


def _decision(graph: ChannelGraph, widths: Widths, kept: Mapping[str, Tensor]) -> Decision:
    roots = graph.slots.roots()
    table = np.ones(len(roots), dtype=bool)
    for name, units in kept.items():
        classes = widths.named(name).classes
        if not len(classes):  # of a stack
            continue
        table[classes] = False
        table[classes[units.numpy()]] = True
    return Decision(roots, table, table, graph)


def _narrow(module: nn.Module, name: str, norm: ResponseNorm, kept: Tensor, plan: Plan) -> None:
    """Let a response norm see some of its channels alone, with the parameters that it has in the smaller model.

    Args:
        module: that takes one tensor; changes.
        name: of the module.
        norm: its channels.
        kept: bool [C].
        plan: of the removal.
    """
    at = kept.nonzero().flatten()
    for key, parameter in list(module._parameters.items()):
        own = f"{name}.{key}" if name else key
        if parameter is not None:
            new = cut(parameter, plan["tensors"].get(own)) * plan["scaled"].get(own, 1.0)
            module._parameters[key] = nn.Parameter(new, requires_grad=False)

    def before(_module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0].index_select(norm.dim, at.to(args[0].device)),)

    def after(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        shape = [len(kept) if dim == norm.dim else size for dim, size in enumerate(output.shape)]
        return output.new_zeros(shape).index_copy_(norm.dim, at.to(output.device), output)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def _masked_outputs(
    model: nn.Module,
    decision: Decision,
    plan: Plan,
    kept: Mapping[str, Tensor],
    examples: Examples,
    *,
    float64: bool = False,
) -> list[Tensor]:
    """Outputs of the dense model (in float64) whose readers hold zeros on what goes."""
    masked = copy_model(model).eval()
    masked = masked.double() if float64 else masked
    blind_readers(masked, decision.graph.stacks, kept)
    norms = {norm.module: norm for norm in decision.graph.response_norms}
    for name, norm in norms.items():
        if not bool(decision.keeps(norm.slots).all()):
            _narrow(masked.get_submodule(name), name, norm, decision.keeps(norm.slots), plan)
    tensors = tensors_of(masked)
    with torch.no_grad(), comparable(model):
        for read in decision.graph.reads:
            gone = ~decision.keeps(read.inputs)
            if not bool(gone.any()):
                continue
            weight = tensors[read.weight]
            blocks = gone.reshape(read.groups, -1)
            if read.transposed:
                weight[gone.to(weight.device)] = 0
            else:
                rows = weight.shape[0] // read.groups
                for number, block in enumerate(blocks):
                    weight[number * rows : (number + 1) * rows, block.to(weight.device)] = 0
        return outputs_in_float64(masked, examples) if float64 else outputs_of(masked, copy.deepcopy(examples))
