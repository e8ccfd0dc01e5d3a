"""Inputs that are made up, where only the form of an input matters."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from sparse_accel.cli.errors import UserError
from sparse_accel.cli.sources.calibration import Data, checked
from sparse_accel.cli.sources.models import Source
from sparse_accel.cli.sources.text import inputs_of, vocabulary_of

TOKENS = 16
SIDE = 224


def made_up(source: Source, shape: str | None, seed: int) -> Data:
    """Two random sequences, images, or what ``--input-shape`` says.

    Args:
        source: the model.
        shape: of one tensor, with the batch: ``"1,3,32,32"``; or None.
        seed: of the random numbers.

    Raises:
        UserError: the shape cannot be read, nobody knows what the model takes, or it does not run.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs: Any
    if shape is not None:
        sizes = [part.strip() for part in shape.split(",")]
        if not all(size.isdecimal() and int(size) for size in sizes):
            raise UserError(f"--input-shape: expected numbers with commas between them, got {shape!r}")
        inputs = torch.randn([int(size) for size in sizes], generator=generator, device="cpu")
        what = f"random inputs of shape {shape}"
    else:
        model = source.model
        config = getattr(model, "config", None)
        vocabulary = vocabulary_of(model)
        takes = inspect.signature(model.forward).parameters
        if vocabulary is not None and "input_ids" in takes:
            inputs = inputs_of(torch.randint(vocabulary, (2, TOKENS), generator=generator, device="cpu"), model)
            what = f"2 random sequences of {TOKENS} tokens"
        elif "pixel_values" in takes:
            side = getattr(config, "image_size", None) or SIDE
            sides = (side, side) if isinstance(side, int) else tuple(side)
            channels = getattr(config, "num_channels", 3)
            inputs = {"pixel_values": torch.randn(2, channels, *sides, generator=generator, device="cpu")}
            what = f"2 random images, {sides[0]}x{sides[1]}"
        else:
            raise UserError("--calibration or --input-shape is missing: nothing says what the model takes")
    return checked(Data([inputs], None, what, [f"the outputs are compared on {what}"]), source.model)
