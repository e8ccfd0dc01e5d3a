"""Global response normalization (ConvNeXt V2), followed as a whole: it divides by a mean over the channels.

For x with the norms ``g_c = |x_c|`` over all positions it is ``gamma_c x_c g_c / (mean(g) + eps) + beta_c + x_c``. The
mean makes every channel matter to every other one, but only as a factor: channels that are zero can go if gamma is
multiplied by what the mean over fewer of them grows by. A module is known by what it computes of made-up numbers.

Source: Woo et al., "ConvNeXt V2", CVPR 2023 (arXiv 2301.00808), section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparse_accel.channels.call import Call, Trace
from sparse_accel.channels.graph import ResponseNorm
from sparse_accel.channels.rules.linear import channel_slots, constant_channels
from sparse_accel.channels.slots import Value, along
from sparse_accel.channels.stacks import outputs_with

EPS = 1e-6  # of all known implementations; it only has to be small


class Form(NamedTuple):
    """How a module is written: the names of its parameters, and the dimension of its input that holds the channels."""

    gamma: str
    beta: str
    dim: int


class ResponseNorms:
    """The response norms of a model while it is traced.

    Attributes:
        busy: whether one is running: what it calls is not followed.
    """

    def __init__(self) -> None:
        self.busy = False
        self._known: dict[str, Form | None] = {}
        self._running: tuple[str, Form, Tensor] | None = None

    def enter(self, tracer: Trace, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A module is about to run."""
        name, module = tracer.stack[-1]
        if self.busy or kwargs or len(args) != 1 or not isinstance(args[0], Tensor) or not _could_be(module):
            return
        self.busy = True
        try:
            if name not in self._known:
                self._known[name] = form_of(module, args[0])
        finally:
            form = self._known.get(name)
            self.busy = form is not None
        if form is not None:
            self._running = (name, form, args[0])

    def leave(self, tracer: Trace, module: nn.Module, output: Any) -> None:
        """A module has run."""
        if self._running is None or tracer.stack[-1][0] != self._running[0]:
            return
        name, form, x = self._running
        names = [tracer.names[id(module._parameters[key])] for key in (form.gamma, form.beta)]
        call = Call(tracer, "response norm", type(module).forward, (x,), {}, output)
        value = tracer.value_of(x)
        slots = channel_slots(call, value, form.dim)
        const, values = constant_channels(value, x, form.dim)
        zero = const & (values == 0)
        for parameter in names:
            shape = tracer.graph.tensors[parameter].shape
            tracer.graph.slots.unite(tracer.graph.axis(parameter, max(range(len(shape)), key=shape.__getitem__)), slots)
        known = [norm.module for norm in tracer.graph.response_norms]
        if not tracer.finished or name not in known:  # of a pass in train mode only those that it alone reaches
            tracer.graph.response_norms.append(ResponseNorm(name, names[0], slots, zero, form.dim))
        labels, same = (along(vector, form.dim, x.dim()) for vector in (slots, zero))
        tracer.finish(output, Value(output.shape, labels, same), x, names)
        self._running, self.busy = None, False


def _could_be(module: nn.Module) -> bool:
    own = [parameter for parameter in module._parameters.values() if parameter is not None]
    long = [[size for size in parameter.shape if size > 1] for parameter in own]
    plain = not module._modules and not module._buffers
    return plain and len(own) == 2 and len(long[0]) == 1 and long[0] == long[1]


def form_of(module: nn.Module, x: Tensor) -> Form | None:
    """How a module is written that is a response norm; None for any other.

    Args:
        module: with two parameters.
        x: its input.

    Example:
        >>> class Norm(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight, self.bias = (nn.Parameter(torch.zeros(1, 1, 1, 4)) for _ in range(2))
        ...
        ...     def forward(self, x):
        ...         g = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        ...         return self.weight * (x * (g / (g.mean(-1, keepdim=True) + 1e-6))) + self.bias + x
        >>> form_of(Norm(), torch.zeros(2, 3, 3, 4))
        Form(gamma='weight', beta='bias', dim=3)
    """
    keys = [key for key, parameter in module._parameters.items() if parameter is not None]
    first = module.get_parameter(keys[0])
    channels = first.numel()
    dims = [dim for dim in dict.fromkeys((1, x.dim() - 1)) if x.dim() > 2 and x.shape[dim] == channels]
    if not dims or not x.is_floating_point() or not x.numel():
        return None
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(x.shape, generator=generator, device="cpu").to(x)
    numbers = {
        key: torch.randn(module.get_parameter(key).shape, generator=generator, device="cpu").to(first) for key in keys
    }
    try:
        (came,) = outputs_with(module, ((made,), {}), numbers)
    except Exception:  # whatever a module may raise
        return None
    if came.shape != x.shape:
        return None
    tolerance = max(1e-4, 16 * torch.finfo(came.dtype).eps)
    for dim in dims:
        for gamma, beta in (keys, keys[::-1]):
            g = norms_of(made.double(), dim)
            size = [channels if other == dim else 1 for other in range(x.dim())]
            scale, shift = (numbers[key].double().reshape(size) for key in (gamma, beta))
            expected = scale * (made.double() * (g / (g.mean(dim, keepdim=True) + EPS))) + shift + made.double()
            if float((came.double() - expected).abs().max()) <= tolerance * float(expected.abs().max()):
                return Form(gamma, beta, dim)
    return None


def norms_of(x: Tensor, dim: int) -> Tensor:
    """The norm of each sample's channels over all positions, in dimensions of size 1.

    Args:
        x: [samples, ..].
        dim: that holds the channels.
    """
    return torch.linalg.vector_norm(x, dim=[other for other in range(1, x.dim()) if other != dim], keepdim=True)
