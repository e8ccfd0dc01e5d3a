"""What a linear map's weight is multiplied with, as columns: im2col and its likes, and the weight that goes with them.

A transposed convolution is a convolution of stride 1, with its taps in reverse, of the input with ``stride - 1`` zeros
between the values and ``dilation * (kernel - 1) - padding`` around them (fewer values where that is negative); at the
far end ``output_padding`` more. So its columns are those of that convolution, taps in reverse.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_accel.channels.graph import is_conv1d_linear

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is a convolution or a transposed one: its input is ``[batch, in_channels, ...]``."""
    return isinstance(module, (*_CONVS, *_TRANSPOSED))


def column_count(module: nn.Module) -> tuple[int, int]:
    """``(groups, D)`` of :func:`columns`.

    Raises:
        TypeError: the module is not a Linear, Conv1d, Conv2d, Conv3d, a transposed one or HF Conv1D.
    """
    if isinstance(module, nn.Linear):
        return 1, module.in_features
    if isinstance(module, (*_CONVS, *_TRANSPOSED)):
        return module.groups, module.in_channels // module.groups * math.prod(module.kernel_size)
    if is_conv1d_linear(module):
        return 1, module.get_parameter("weight").shape[0]
    raise TypeError(
        "expected a Linear, Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d or Conv1D "
        f"module, got {type(module).__name__}"
    )


def weight_matrix(module: nn.Module, weight: Tensor) -> Tensor:
    """A weight of the module's shape as what multiplies :func:`columns`, ``[groups, out / groups, D]``.

    Example:
        >>> deconv = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)
        >>> tuple(deconv.weight.shape), tuple(weight_matrix(deconv, deconv.weight).shape)
        ((4, 3, 3, 3), (2, 3, 18))
    """
    groups, features = column_count(module)
    if isinstance(module, _TRANSPOSED):  # [in, out / groups, ...]
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2)
    elif is_conv1d_linear(module):
        weight = weight.T
    return weight.reshape(groups, -1, features)


def weight_of(module: nn.Module, matrix: Tensor) -> Tensor:
    """The way back from :func:`weight_matrix`: a tensor of the weight's shape.

    Args:
        module: as there.
        matrix: ``[groups, out / groups, D]``, or anything with as many elements in that order.
    """
    shape = module.get_parameter("weight").shape
    if isinstance(module, _TRANSPOSED):
        groups, inputs, outputs = module.groups, shape[0] // module.groups, shape[1]
        return matrix.reshape(groups, outputs, inputs, *shape[2:]).transpose(1, 2).reshape(shape)
    return matrix.reshape(shape[::-1]).T if is_conv1d_linear(module) else matrix.reshape(shape)


def unit_columns(module: nn.Module, channels: Tensor) -> Tensor:
    """Which columns, of all groups, input channels ``[units, per unit]`` own: ``[units, per unit * taps]``.

    Example:
        >>> import torch
        >>> unit_columns(nn.Conv1d(4, 2, 2), torch.tensor([[0], [3]])).tolist()
        [[0, 1], [6, 7]]
    """
    taps = math.prod(getattr(module, "kernel_size", (1,)))
    return (channels[:, :, None] * taps + torch.arange(taps, device=channels.device)).flatten(1)


def columns(module: nn.Module, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
    """What the rows of a layer's weight are multiplied with, ``[groups, D, N]``.

    ``weight_matrix(module, weight) @ columns(module, x)`` are the layer's outputs before the bias, one column for each
    sample and position (im2col for convolutions, with their stride, padding, dilation and groups). Of anything but a
    transposed convolution or HF Conv1D, ``weight_matrix`` is ``weight.reshape(groups, out / groups, D)``.

    Args:
        module: Linear, Conv1d, Conv2d, Conv3d, a transposed one, or the Conv1D of Hugging Face (whose weight is
            ``[D, out]``).
        x: its input, ``[..., in_features]`` or ``[batch, in_channels, ...]`` (or without the batch).
        size: the spatial size of its output, where a transposed convolution was called with ``output_size``; by
            default that of its ``output_padding``.

    Example:
        >>> import torch
        >>> conv = nn.Conv2d(2, 4, 3, bias=False)
        >>> x = torch.randn(1, 2, 5, 5)
        >>> out = conv.weight.reshape(1, 4, -1) @ columns(conv, x)
        >>> torch.allclose(out.reshape(4, 3, 3), conv(x)[0], atol=1e-5)
        True
    """
    groups, features = column_count(module)
    if not isinstance(module, (*_CONVS, *_TRANSPOSED)):
        return x.reshape(1, -1, features).transpose(1, 2)
    ndim = len(module.kernel_size)
    if x.dim() == ndim + 1:
        x = x[None]
    strides = tuple(module.stride)
    if isinstance(module, _TRANSPOSED):
        x, strides = spread(module, x, size), (1,) * ndim
    else:
        pads = module._reversed_padding_repeated_twice
        if any(pads):
            x = F.pad(x, pads, mode=_PAD_MODES[module.padding_mode])
    for dim, (kernel, stride, dilation) in enumerate(
        zip(module.kernel_size, strides, module.dilation, strict=True), start=2
    ):
        x = x.unfold(dim, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    batch = x.shape[0]
    x = x.reshape(batch, groups, x.shape[1] // groups, *x.shape[2:])
    spatial = list(range(3, 3 + ndim))
    taps = list(range(3 + ndim, 3 + 2 * ndim))
    if isinstance(module, _TRANSPOSED):
        x = x.flip(taps)
    return x.permute(1, 2, *taps, 0, *spatial).reshape(groups, features, -1)


def spread(module: nn.Module, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
    """The input of the convolution of stride 1 and no padding that a transposed convolution is.

    Args:
        module: a transposed convolution.
        x: its input, ``[batch, in_channels, ...]``.
        size: see :func:`columns`.

    Example:
        >>> import torch
        >>> spread(nn.ConvTranspose1d(1, 1, 2, stride=3), torch.tensor([[[1.0, 2.0]]])).tolist()
        [[[0.0, 1.0, 0.0, 0.0, 2.0, 0.0]]]
    """
    if not isinstance(module, _TRANSPOSED):
        raise TypeError(f"module: expected a transposed convolution, got {type(module).__name__}")
    steps: list[int] = list(module.stride)
    places = [(count - 1) * step + 1 for count, step in zip(x.shape[2:], steps, strict=True)]
    wide = x.new_zeros((*x.shape[:2], *places))
    inside = wide
    for dim, step in enumerate(steps, start=2):
        inside = inside.transpose(0, dim)[::step].transpose(0, dim)
    inside.copy_(x)
    pads: list[int] = []
    for dim in reversed(range(len(steps))):
        reach = module.dilation[dim] * (module.kernel_size[dim] - 1)
        before = reach - int(module.padding[dim])
        natural = places[dim] + 2 * before - reach + module.output_padding[dim]
        extra = module.output_padding[dim] + (0 if size is None else size[dim] - natural)
        pads += [before, before + extra]
    return F.pad(wide, pads)


def column_chunks(
    module: nn.Module, x: Tensor, max_bytes: int = 1 << 26, size: Sequence[int] | None = None
) -> Iterator[tuple[Tensor, slice]]:
    """:func:`columns` of a few samples at a time.

    Args:
        module: see :func:`columns`.
        x: with a batch dimension for convolutions.
        max_bytes: of one chunk, unless one sample takes more.
        size: see :func:`columns`.

    Yields:
        Columns ``[groups, D, n]`` and the samples (of the flattened leading dimensions for linear layers) that they
        belong to.
    """
    features = column_count(module)[1]
    if isinstance(module, (*_CONVS, *_TRANSPOSED)):
        if x.dim() == len(module.kernel_size) + 1:
            x = x[None]
        grown = math.prod(module.stride) ** (1 if isinstance(module, _TRANSPOSED) else -1)
        sample = math.ceil(math.prod(x.shape[1:]) * math.prod(module.kernel_size) * grown)
    else:
        x = x.reshape(-1, features)
        sample = features
    step = max(1, max_bytes // max(1, sample * x.element_size()))
    for start in range(0, len(x), step):
        chosen = slice(start, min(start + step, len(x)))
        yield columns(module, x[chosen], size), chosen
