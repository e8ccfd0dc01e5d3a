"""What the user says of calibration data."""

from __future__ import annotations

from dataclasses import dataclass, field

from sparse_accel.cli.sources.images import ImageOptions


@dataclass(frozen=True)
class DataOptions:
    """How calibration data are read.

    Attributes:
        samples: at most so many.
        length: tokens of each sequence; None for 128, or less where the model takes no more.
        batch_size: samples that run together.
        seed: of the choice.
        tokenizer: a folder, ``"bytes"``, or None for the model's own.
        images: see there.
    """

    samples: int = 128
    length: int | None = None
    batch_size: int = 16
    seed: int = 0
    tokenizer: str | None = None
    images: ImageOptions = field(default_factory=ImageOptions)
