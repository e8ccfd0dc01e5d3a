"""How the parameters of a model are cut into groups, and the parameter groups of an optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from sparse_accel.groups.costs import multiplications
from sparse_accel.groups.coupled import CoupledGroups, coupled_param_groups
from sparse_accel.groups.layouts import Grouping
from sparse_accel.wrappers import bare_model

STACKS = ("output,input", "input,output")  # what the matrices of a stack are; the second: transposed


def module_grouping(module: nn.Module, by: str) -> Grouping | None:
    """How a module's ``weight`` is cut; None for modules whose weight has no input and output channels.

    Linear and (transposed) convolution layers have them, and so do weights of two or more dimensions in
    modules of your own, read as ``[out, in, ...]``; embeddings and normalization layers do not. The ``Conv1D`` of
    transformers (GPT-2's layers) is ``[in, out]``. Other parameters, and stacks of matrices:
    :func:`parameter_grouping`.

    Example:
        >>> module_grouping(nn.ConvTranspose2d(8, 4, 3), "input")
        Grouping(by='input', transposed=True, conv_groups=1, stacked=False)
    """
    if isinstance(module, _UNGROUPED):
        return None
    if isinstance(module, nn.modules.conv._ConvNd):
        return Grouping(by, transposed=module.transposed, conv_groups=module.groups).check()
    return Grouping(by, transposed=_is_hf_conv1d(module)).check()


def _is_hf_conv1d(module: nn.Module) -> bool:
    """Whether it is ``transformers.pytorch_utils.Conv1D`` or derived from it; told by names, since that is optional."""
    return any(base.__name__ == "Conv1D" and base.__module__.startswith("transformers.") for base in type(module).mro())


_UNGROUPED: tuple[type[nn.Module], ...] = (
    nn.Embedding,
    nn.EmbeddingBag,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.batchnorm._NormBase,
    nn.PReLU,
)


def stacked_layout(module: nn.Module, local: str) -> str | None:
    """What the last two dimensions of a stack of matrices are, as far as its module says so.

    It does by ``is_transposed`` (the experts of transformers), by ``input_size`` and ``output_size`` or ``in_features``
    and ``out_features`` of which the shape has one order alone, or by ``hidden_size`` or ``hidden_dim`` and a name with
    ``up_proj`` or ``gate_proj`` (hidden is the input) or ``down_proj`` (the output).

    Returns:
        ``"output,input"``, ``"input,output"``, or None where it is not known.

    Example:
        >>> import torch
        >>> module = nn.Module()
        >>> module.weight, module.in_features, module.out_features = nn.Parameter(torch.zeros(4, 3, 2)), 3, 2
        >>> stacked_layout(module, "weight")
        'input,output'
    """
    *_, first, second = module.get_parameter(local).shape
    transposed = getattr(module, "is_transposed", None)
    if isinstance(transposed, bool):
        return STACKS[transposed]
    sizes = [
        (getattr(module, reads, None), getattr(module, makes, None))
        for reads, makes in (("input_size", "output_size"), ("in_features", "out_features"))
    ]
    hidden = getattr(module, "hidden_size", getattr(module, "hidden_dim", None))
    if "up_proj" in local or "gate_proj" in local:
        sizes.append((hidden, first if second == hidden else second))
    elif "down_proj" in local:
        sizes.append((first if second == hidden else second, hidden))
    for reads, makes in sizes:
        fits = [(makes, reads) == (first, second), (reads, makes) == (first, second)]
        if fits.count(True) == 1:
            return STACKS[fits[1]]
    return None


def parameter_grouping(module: nn.Module, local: str, by: str, layout: str | None = None) -> Grouping | None:
    """How a module's parameter is cut; None where it has no input and output channels, or they are not known.

    As :func:`module_grouping`, but a parameter of three dimensions in a module that is no convolution is a stack of
    matrices, and only cut if :func:`stacked_layout` tells which way round they are.

    Args:
        module: the parameter's.
        local: its name there.
        by: what forms a group.
        layout: of a stack, where the caller knows: ``"output,input"`` or ``"input,output"``.
    """
    found = module_grouping(module, by)
    parameter = module.get_parameter(local)
    own = isinstance(module, nn.modules.conv._ConvNd) or by == "element"
    if layout is None and (found is None or own or parameter.dim() < 3):
        return found
    layout = layout or stacked_layout(module, local)
    if layout is None:
        return found if parameter.dim() > 3 else None
    return Grouping(by, transposed=layout == STACKS[True], stacked=True).check()


def named_groupings(
    model: nn.Module, by: str, stacked: Mapping[str, str | None] | None = None
) -> Iterator[tuple[str, nn.Parameter, Grouping | None]]:
    """Every parameter once, with its first name and its grouping; None where it is not to be regularized.

    A tied parameter is left out of the penalty, with a warning, where its modules would cut it differently; so are a
    parameter of three dimensions of which it is not known what they are, and one of which a parametrization computes
    the weight.

    Args:
        model: a module, or a wrapper that has it inside.
        by: what forms a group.
        stacked: says it: by patterns of parameter names (shell wildcards), ``"output,input"``, ``"input,output"``, or
            None for what is to be left out.

    Raises:
        ValueError: a value of ``stacked`` is none of these, or its parameter has fewer than three dimensions; or
            parameters are flat (FSDP1) or hidden behind a hook: the message names the module.

    Example:
        >>> [(name, grouping is not None) for name, _, grouping in named_groupings(nn.Linear(3, 2), "input")]
        [('weight', True), ('bias', False)]
    """
    stacked = {} if stacked is None else stacked
    for pattern, layout in stacked.items():
        if layout not in (*STACKS, None):
            raise ValueError(f"stacked: {pattern}: expected {STACKS[0]!r}, {STACKS[1]!r} or None, got {layout!r}")
    found: dict[nn.Parameter, tuple[str, Grouping | None]] = {}
    unknown: list[str] = []
    hidden: set[nn.Module] = set()
    for prefix, module in bare_model(model, sharded=True).named_modules():
        if isinstance(module, ParametrizationList):
            hidden |= set(module.modules())
            warnings.warn(f"{prefix}: a weight that is computed (parametrization) is left unregularized", stacklevel=3)
        for local, parameter in module.named_parameters(recurse=False):
            name = f"{prefix}.{local}" if prefix else local
            said = [layout for pattern, layout in stacked.items() if fnmatchcase(name, pattern)]
            if said and said[-1] is not None and parameter.dim() < 3:
                raise ValueError(f"stacked: {name}: expected three or more dimensions, got {tuple(parameter.shape)}")
            grouping = None
            if parameter.dim() >= 2 and module not in hidden and (not said or said[-1] is not None):
                grouping = parameter_grouping(module, local, by, said[-1] if said else None)
                if grouping is None and parameter.dim() >= 3 and module_grouping(module, by) is not None:
                    unknown.append(f"{name} {tuple(parameter.shape)}")
            if parameter not in found:
                found[parameter] = (name, grouping)
            elif found[parameter][1] != grouping:
                warnings.warn(
                    f"{found[parameter][0]} and {name} are one parameter that these modules cut into different groups: "
                    "it is left unregularized",
                    stacklevel=3,
                )
                found[parameter] = (found[parameter][0], None)
    if unknown:
        warnings.warn(
            f"{', '.join(unknown)}: which dimensions are inputs and outputs is not known: left out of the groups by "
            f"{by!r}; say it with stacked={{name: {STACKS[0]!r}}} ({STACKS[1]!r}; None: without this warning)",
            stacklevel=3,
        )
    for parameter, (name, grouping) in found.items():
        yield name, parameter, grouping


def param_groups(
    model: nn.Module,
    penalty: Any,
    *,
    stacked: Mapping[str, str | None] | None = None,
    example: Any = None,
    coupled: CoupledGroups | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer of this package: weights with the penalty, biases and norms without.

    Args:
        model: its parameters are taken once each, frozen ones too (they take part once they get gradients). Of a
            compiled model or one in DistributedDataParallel it is the module inside, so that names have no prefix.
        penalty: a penalty of this package, such as ``GroupLasso(1e-4, by="input")``, or None.
        stacked: what the last two dimensions of stacks of matrices (the experts of a mixture) are,
            ``"output,input"`` or ``"input,output"``, by patterns of parameter names, where their modules do not tell
            (those of transformers do); each matrix has its own groups. Others of three dimensions are left without
            penalty, with a warning.
        example: input of the model (a tensor, a tuple of arguments or a mapping of keyword arguments), for a penalty
            with a target ``of="flops"``: the multiplications by each weight are counted in one forward pass.
        coupled: what :func:`sparse_accel.coupled_groups` found in this model: these groups, over several parameters
            each, are under the penalty (whose ``by`` is not looked at), and nothing else is.
        **options: further entries of every group, such as ``lr``.

    Returns:
        One group of regularized weights per kind of layer (transposed or grouped convolutions, stacks of matrices have
        their own; coupled ones are one) and one of everything else, with named parameters.

    Raises:
        ValueError: parameters are flat (FSDP1) or hidden behind a hook; the message names the module. Or the penalty's
            target is of multiplications, and ``example`` is missing, or a weight is in no Linear, convolution or HF
            Conv1D; or ``coupled`` is empty, is of another model, or comes with ``stacked``.

    Example:
        >>> from sparse_accel import GroupLasso
        >>> [g["penalty"] for g in param_groups(nn.Linear(3, 2), GroupLasso(1e-4))]
        [GroupLasso(strength=0.0001, by='input'), None]
    """
    if coupled is not None:
        if stacked is not None:
            raise ValueError("stacked: expected none with coupled=, which knows the stacks")
        return coupled_param_groups(model, penalty, coupled, example, options)
    costs: dict[nn.Parameter, float] | None = None
    if getattr(penalty, "of", None) == "flops":
        if example is None:
            raise ValueError("example: expected the model's input, to count the multiplications of of='flops'")
        costs = multiplications(model, example)
    regularized: dict[tuple[bool, int, bool], list[tuple[str, nn.Parameter]]] = {}
    rest: list[tuple[str, nn.Parameter]] = []
    for name, parameter, grouping in named_groupings(model, getattr(penalty, "by", "element"), stacked):
        if grouping is None or penalty is None:
            rest.append((name, parameter))
        else:
            if costs is not None and parameter not in costs:
                raise ValueError(
                    f"{name}: of='flops' counts the multiplications of Linear, convolution and HF Conv1D layers alone"
                )
            regularized.setdefault(grouping[1:], []).append((name, parameter))
    groups = [
        {
            "params": named,
            "penalty": penalty,
            "transposed": transposed,
            "conv_groups": conv_groups,
            "stacked": stack,
            **({} if costs is None else {"costs": [costs[parameter] for _, parameter in named]}),
            **options,
        }
        for (transposed, conv_groups, stack), named in regularized.items()
    ]
    return groups + ([{"params": rest, "penalty": None, **options}] if rest else [])
