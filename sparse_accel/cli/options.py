"""Options that several commands share, and what their text means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from sparse_accel.cli.errors import UserError

MODEL = "Model"
DATA = "Calibration"
RUN = "Output"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A Hugging Face folder (config.json and weights), module:factory (a function without arguments that "
        "returns the model, importable from here). Or the folder of a result, to go on from there.",
        metavar="MODEL",
        rich_help_panel=MODEL,
    ),
]
OptionalModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="As for prune: a Hugging Face folder or module:factory.",
        metavar="MODEL",
        rich_help_panel=MODEL,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="A state dict for the model: safetensors, or what torch.save wrote (loaded without running code).",
        metavar="FILE",
        rich_help_panel=MODEL,
    ),
]
Device = Annotated[str, typer.Option(help="Where to run.", metavar="cpu|cuda", rich_help_panel=MODEL)]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Convert the weights: float32, bfloat16, float16, float64.", metavar="NAME", rich_help_panel=MODEL
    ),
]
Trust = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run Python code that the model's folder holds.", rich_help_panel=MODEL),
]
Calibrate = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        "-c",
        help="Inputs like those that the model will see, no labels: a text file, a folder of images, "
        ".npy/.npz/.safetensors, or module:loader (batches, or a function that returns them).",
        metavar="DATA",
        rich_help_panel=DATA,
    ),
]
Samples = Annotated[
    int, typer.Option(help="Sequences, images or rows to use.", min=1, metavar="N", rich_help_panel=DATA)
]
Length = Annotated[
    int | None,
    typer.Option(
        "--sequence-length",
        help="Tokens of each sequence; 128, or what the model takes.",
        min=2,
        metavar="N",
        rich_help_panel=DATA,
    ),
]
Batch = Annotated[
    int, typer.Option("--batch-size", help="Samples that run together.", min=1, metavar="N", rich_help_panel=DATA)
]
Seed = Annotated[
    int,
    typer.Option(help="Of the choice of samples, and of methods that draw.", min=0, metavar="N", rich_help_panel=DATA),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        help="A folder with the tokenizer, where the model's has none; or 'bytes': every byte of the text is a token.",
        metavar="FOLDER|bytes",
        rich_help_panel=DATA,
    ),
]
ImageSize = Annotated[
    str | None,
    typer.Option(
        help="Of images: 224 or 224x320 (height x width); else the model's.", metavar="SIZE", rich_help_panel=DATA
    ),
]
ImageMean = Annotated[
    str | None,
    typer.Option(
        help="Subtracted from pixels in [0, 1]: .5 or .485,.456,.406.", metavar="NUMBERS", rich_help_panel=DATA
    ),
]
ImageStd = Annotated[
    str | None, typer.Option(help="By which they are divided: the same.", metavar="NUMBERS", rich_help_panel=DATA)
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder to write.", metavar="DIR", rich_help_panel=RUN),
]
Force = Annotated[bool, typer.Option("--force", help="Replace --out where it holds files.", rich_help_panel=RUN)]
Verify = Annotated[
    bool,
    typer.Option(help="Open the written folder again and compare the outputs.", rich_help_panel=RUN),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what would go, memory and time; write nothing.", rich_help_panel=RUN),
]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON, alone on stdout.", rich_help_panel=RUN)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Errors alone.", rich_help_panel=RUN)]
Debug = Annotated[bool, typer.Option("--debug", help="Tracebacks of all errors.", rich_help_panel=RUN)]
MaxMemory = Annotated[
    str | None,
    typer.Option(help="Refuse to start if the run would take more: 8GB, 500MB.", metavar="BYTES", rich_help_panel=RUN),
]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_DTYPES = ("float32", "bfloat16", "float16", "float64")


def number(option: str, text: str) -> float:
    """A number.

    Raises:
        UserError: it is none.

    Example:
        >>> number("--keep", ".5")
        0.5
    """
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"{option}: expected a number, got {text!r}") from error


def share(option: str, value: float) -> float:
    """A share.

    Raises:
        UserError: it is not in (0, 1].
    """
    if not 0 < value <= 1:
        raise UserError(f"{option}: expected a share in (0, 1], got {value:g}")
    return value


def nbytes(option: str, text: str | None) -> int | None:
    """A number of bytes.

    Raises:
        UserError: it is none.

    Example:
        >>> nbytes("--max-memory", "1.5GB"), nbytes("--max-memory", "2KiB"), nbytes("--max-memory", None)
        (1500000000, 2048, None)
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?i?)b?\s*", text, re.IGNORECASE)
    if match is None or match[2].lower() not in _UNITS:
        raise UserError(f"{option}: expected a number of bytes such as 8GB or 500MB, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def shares(option: str, items: Sequence[str]) -> tuple[float | None, dict[str, float | int]]:
    """``.5`` for all, ``PATTERN=.5`` or ``PATTERN=64`` for some.

    Args:
        option: its name, for messages.
        items: in the order given.

    Returns:
        The share for all, None where none is named; shares (numbers with a point) or numbers (whole) by pattern.

    Raises:
        UserError: an item is neither, or there are two for all.

    Example:
        >>> shares("--keep", [".5", "layer.*=.25", "head=4"])
        (0.5, {'layer.*': 0.25, 'head': 4})
    """
    every: float | None = None
    some: dict[str, float | int] = {}
    for item in items:
        pattern, equals, text = item.rpartition("=")
        text = text.strip()
        if not equals:
            if every is not None:
                raise UserError(f"{option}: expected one share for all layers, got {every:g} and {text}")
            every = share(option, number(option, text))
        elif not pattern.strip():
            raise UserError(f"{option}: expected PATTERN=SHARE, got {item!r}")
        else:
            some[pattern.strip()] = int(text) if text.isdecimal() else share(option, number(option, text))
    return every, some


def budget(text: str | None) -> dict[str, float] | None:
    """``flops=.5``, ``params=.5`` or ``latency_ms=2``.

    Raises:
        UserError: it is none of these.

    Example:
        >>> budget("flops=.5"), budget(None)
        ({'flops': 0.5}, None)
    """
    if text is None:
        return None
    name, equals, value = text.partition("=")
    if not equals or name not in ("flops", "params", "units", "latency_ms"):
        raise UserError(
            f"--budget: expected flops=SHARE, params=SHARE, units=SHARE or latency_ms=MILLISECONDS, got {text!r}"
        )
    return {name: number("--budget", value)}


def dtype(text: str | None) -> torch.dtype | None:
    """A floating-point dtype by its name.

    Raises:
        UserError: there is no such.

    Example:
        >>> dtype("bfloat16"), dtype(None)
        (torch.bfloat16, None)
    """
    if text is None:
        return None
    if text not in _DTYPES:
        raise UserError(f"--dtype: expected one of {', '.join(_DTYPES)}, got {text!r}")
    found: Any = getattr(torch, text)
    return found if isinstance(found, torch.dtype) else None


def device(text: str) -> torch.device:
    """A device that is there.

    Raises:
        UserError: there is no such.

    Example:
        >>> device("cpu")
        device(type='cpu')
    """
    try:
        found = torch.device(text)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device: {text!r} cannot be used: {str(error).splitlines()[0]}") from error
    return found
