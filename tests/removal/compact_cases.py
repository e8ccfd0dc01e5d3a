"""The networks with zeros planted, and the layer widths expected after compaction, for the tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from compact_models import (
    Conv1dNet,
    Conv3dNet,
    Decoder,
    DenseNet,
    FrozenNorm,
    Gated,
    Inception,
    LeNet,
    Mlp,
    MobileBlock,
    PixelShuffle,
    ResNet,
    ResNeXt,
    Sequence,
    SpatialAttention,
    SqueezeExcite,
    Tied,
    Twice,
    TwoHalves,
    TwoInputs,
    Vgg,
    silent,
    unread,
)
from torch import Tensor, nn


class Case(NamedTuple):
    """A network with zeros planted, an example, and the layer widths expected after compaction."""

    build: Callable[[], nn.Module]
    plant: Callable[[Any], None]
    example: Callable[[], Any]
    widths: dict[str, tuple[int, int]]


def _image(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def _plant_mlp(net: Mlp) -> None:
    unread(net.b, (0, 3, 5))
    unread(net.c, (1, 6))
    silent(net.a, (7,))


def _plant_lenet(net: LeNet) -> None:
    unread(net.conv2, (0, 2))
    unread(net.fc1, (1, 2, 7), width=4)
    unread(net.fc2, (4,))


def _plant_vgg(net: Vgg) -> None:
    unread(net.features[3], (1, 4))
    unread(net.features[6], (0,))
    unread(net.classifier[1], (2, 3), width=16)
    unread(net.classifier[3], (0, 1, 2))


def _plant_resnet(net: ResNet) -> None:
    for layer in (net.block1.conv1, net.block2.conv1, net.block2.shortcut[0]):
        unread(layer, (0, 1))
    unread(net.block2.shortcut[0], (2,))  # still read by block2.conv1 and block1.conv1
    unread(net.block1.conv2, (3, 4))
    unread(net.block3.conv1, (5,))
    unread(net.fc, (5, 6))  # 6 is still read by block3.conv1
    unread(net.block3.conv2, range(1, 12))


def _plant_densenet(net: DenseNet) -> None:
    for layer, channel in ((net.b, 1), (net.c, 1), (net.fc, 1), (net.c, 6), (net.fc, 6), (net.fc, 10)):
        unread(layer, (channel,))


def _plant_inception(net: Inception) -> None:
    for layer in (net.one, net.three, net.pool[1]):
        unread(layer, (2, 5))
    unread(net.head, (0, 3, 4, 9))


def _plant_resnext(net: ResNeXt) -> None:
    with torch.no_grad():
        net.grouped.weight[4:8] = 0  # the whole middle group, not read either
        net.grouped.weight[0:4, 1] = 0
        net.grouped.weight[8:12, 3] = 0  # one input channel in each of the others, at different places
        net.expand.weight[:, 4:8] = 0


def _plant_mobile(net: MobileBlock) -> None:
    multiplier = net.depthwise.out_channels // 6
    for channel in (1, 4):
        unread(net.project, range(channel * multiplier, (channel + 1) * multiplier))
    if multiplier > 1:
        unread(net.project, (0,))  # its sibling is read: the group keeps both


def _plant_decoder(net: Decoder) -> None:
    unread(net.up1, (0,))
    unread(net.up2, (1, 2, 6))
    unread(net.out, (0, 3))


def _plant_grouped_decoder(net: Decoder) -> None:
    unread(net.up2, (1, 6))  # one of each group
    unread(net.out, (0, 1, 2))  # the outputs of the first group; up1 keeps its inputs, so it stays


def _plant_sum(net: TwoInputs) -> None:
    for layer in (net.shown, net.side):
        unread(layer, (3,))
    unread(net.head, (2,))  # shown outside: stays


def _plant_tied(net: Tied) -> None:
    with torch.no_grad():
        net.encoder.weight[2] = 0
        net.encoder.bias[2] = 0
        net.encoder.weight[5] = 0
        net.encoder.bias[5] = -1


def _plant_sequence(net: Sequence) -> None:
    unread(net.down, range(0, 16, 2))
    unread(net.up, (4,))
    unread(net.head, (4,))
    unread(net.head, (5,))


def _plant_squeeze_excite(net: SqueezeExcite) -> None:
    unread(net.b, (1, 6))
    unread(net.down, (1,))
    unread(net.up, (2,))


def _plant_conv1d(net: Conv1dNet) -> None:
    unread(net.b, (5,))
    unread(net.fc, (0, 2), width=4)


def _plant_conv3d(net: Conv3dNet) -> None:
    unread(net.b, (0, 1))
    unread(net.fc, (3,))


def _plant_twice(net: Twice) -> None:
    unread(net.hidden, (2, 3))
    unread(net.leave, (2,))  # 3 is still read


def _plant_gated(net: Gated) -> None:
    unread(net.down, (1, 4))


def _plant_halves(net: TwoHalves) -> None:
    unread(net.left, (0, 1, 2))
    unread(net.right, (1, 5))  # the larger half decides


def _plant_attention(net: SpatialAttention) -> None:
    unread(net.attend, (1, 2))
    unread(net.b, (1, 3))  # only 1 is unread by both


CASES: dict[str, Case] = {
    "mlp": Case(Mlp, _plant_mlp, _image(5, 6), {"a": (6, 4), "b": (4, 5), "c": (5, 3)}),
    "lenet": Case(LeNet, _plant_lenet, _image(2, 1, 14, 14), {"conv1": (1, 4), "conv2": (4, 5), "fc1": (20, 9)}),
    "lenet_sizes": Case(
        lambda: LeNet("sizes"), _plant_lenet, _image(2, 1, 14, 14), {"conv1": (1, 4), "conv2": (4, 5), "fc1": (20, 9)}
    ),
    "lenet_rest": Case(lambda: LeNet("rest"), _plant_lenet, _image(2, 1, 14, 14), {"conv2": (4, 5), "fc1": (20, 9)}),
    "lenet_fixed": Case(lambda: LeNet("fixed"), _plant_lenet, _image(2, 1, 14, 14), {"conv2": (4, 8), "fc1": (32, 9)}),
    "vgg": Case(
        Vgg,
        _plant_vgg,
        _image(2, 3, 8, 8),
        {"features.0": (3, 4), "features.3": (4, 7), "features.6": (7, 6), "classifier.1": (96, 9)},
    ),
    "resnet": Case(
        ResNet,
        _plant_resnet,
        _image(2, 3, 8, 8),
        {
            "stem": (3, 6),
            "block1.conv1": (6, 6),
            "block1.conv2": (6, 6),
            "block2.conv2": (12, 11),
            "block3.conv1": (11, 1),
        },
    ),
    "densenet": Case(
        DenseNet, _plant_densenet, _image(2, 2, 6, 6), {"a": (2, 3), "b": (3, 4), "c": (7, 2), "fc": (9, 2)}
    ),
    "inception": Case(
        Inception,
        _plant_inception,
        _image(2, 2, 7, 7),
        {"stem": (2, 4), "one": (4, 2), "three": (4, 4), "head": (8, 2)},
    ),
    "resnext": Case(
        ResNeXt, _plant_resnext, _image(2, 3, 6, 6), {"reduce": (3, 6), "grouped": (6, 8), "expand": (8, 2)}
    ),
    "depthwise": Case(MobileBlock, _plant_mobile, _image(2, 3, 5, 5), {"expand": (3, 4), "depthwise": (4, 4)}),
    "depthwise_multiplier": Case(
        lambda: MobileBlock(2),
        _plant_mobile,
        _image(2, 3, 5, 5),
        {"expand": (3, 4), "depthwise": (4, 8), "project": (8, 3)},
    ),
    "transposed": Case(Decoder, _plant_decoder, _image(2, 4, 4, 4), {"up1": (4, 5), "up2": (5, 4), "out": (4, 2)}),
    "transposed_grouped": Case(
        lambda: Decoder(2), _plant_grouped_decoder, _image(2, 4, 4, 4), {"up1": (4, 6), "up2": (6, 6), "out": (6, 2)}
    ),
    "conv1d": Case(Conv1dNet, _plant_conv1d, _image(3, 2, 16), {"a": (2, 5), "b": (5, 3), "fc": (12, 3)}),
    "conv3d": Case(Conv3dNet, _plant_conv3d, _image(2, 1, 4, 4, 4), {"a": (1, 3), "b": (3, 3), "fc": (3, 2)}),
    "twice": Case(Twice, _plant_twice, _image(3, 4), {"enter": (4, 7), "hidden": (7, 7), "leave": (7, 2)}),
    "tied": Case(Tied, _plant_tied, _image(3, 6), {"encoder": (6, 6)}),
    "sequence": Case(
        Sequence,
        _plant_sequence,
        lambda: torch.arange(12).reshape(2, 6) % 11,
        {"up": (7, 8), "down": (8, 7), "head": (7, 3)},
    ),
    "two_inputs_tuple": Case(
        TwoInputs,
        _plant_sum,
        lambda: (_image(2, 2, 5, 5)(), _image(2, 3, 5, 5)()),
        {"left": (2, 4), "right": (3, 4), "shown": (4, 4), "side": (4, 3)},
    ),
    "two_inputs_dict": Case(
        TwoInputs,
        _plant_sum,
        lambda: {"left": _image(2, 2, 5, 5)(), "right": _image(2, 3, 5, 5)(), "scale": 0.5},
        {"left": (2, 4), "right": (3, 4), "head": (4, 2)},
    ),
    "squeeze_excite": Case(
        SqueezeExcite,
        _plant_squeeze_excite,
        _image(2, 2, 6, 6),
        {"a": (2, 7), "down": (7, 3), "up": (3, 7), "b": (7, 2)},
    ),
    "pixel_shuffle": Case(
        PixelShuffle, lambda net: unread(net.b, (1,)), _image(2, 2, 5, 5), {"a": (2, 8), "b": (2, 2)}
    ),
    "two_halves": Case(TwoHalves, _plant_halves, _image(3, 5), {"up": (5, 8), "left": (4, 3), "right": (4, 3)}),
    "spatial_attention": Case(
        SpatialAttention, _plant_attention, _image(2, 2, 6, 6), {"a": (2, 5), "attend": (5, 1), "b": (5, 2)}
    ),
    "frozen_norm": Case(FrozenNorm, lambda net: unread(net.b, (1,)), _image(2, 2, 6, 6), {"a": (2, 4), "b": (2, 2)}),
    "gated": Case(Gated, _plant_gated, _image(3, 5), {"up": (5, 8), "down": (4, 3)}),
}
