"""Text files: pieces from all over the text, all of one length, between the tokenizer's own marks."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.cli.errors import UserError
from sparse_accel.cli.sources.arrays import chosen
from sparse_accel.cli.sources.hugging_face import hushed
from sparse_accel.cli.sources.models import Source
from sparse_accel.cli.sources.settings import DataOptions

BYTES = "bytes"
LENGTH = 128
LARGEST = 1 << 26  # bytes of a text that are read
FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")


def read_text(path: Path, source: Source, options: DataOptions, notes: list[str]) -> tuple[dict[str, Any], str]:
    """Sequences of tokens of a text file.

    Args:
        path: UTF-8.
        source: whose folder has the tokenizer, unless ``options.tokenizer`` names another.
        options: how many, how long.
        notes: gets what was not as usual.

    Returns:
        The model's keyword inputs, ``[samples, length]``; and what they are, in words.

    Raises:
        UserError: no text, no tokenizer, or tokens that the model does not know.
    """
    text = _read(path, notes)
    vocabulary = vocabulary_of(source.model)
    if vocabulary is None:
        kind = type(source.model).__name__
        raise UserError(
            f"--calibration: {path} is read as text, and {kind} takes no tokens (it has no get_input_embeddings()): "
            "images, arrays or module:loader"
        )
    length = _length(source.model, options.length)
    ids, before, after = _tokens(text, source, options.tokenizer, vocabulary, notes)
    largest = max([*ids, *before, *after], default=0)
    if largest >= vocabulary:
        raise UserError(
            f"--calibration: the tokenizer has a token {largest}, the model's vocabulary has {vocabulary}: "
            "they do not belong together (--tokenizer FOLDER)"
        )
    body = length - len(before) - len(after)
    if body < 1:
        raise UserError(f"--sequence-length: expected more than the {len(before) + len(after)} marks, got {length}")
    pieces = len(ids) // body
    if not pieces:
        raise UserError(f"--calibration: {path}: expected at least {body} tokens, got {len(ids)}: --sequence-length")
    rows = chosen(pieces, options.samples, options.seed)
    if pieces < options.samples:
        notes.append(f"{path.name}: {pieces} sequences of {length} tokens, not the {options.samples} of --samples")
    middle = torch.tensor(ids[: pieces * body], device="cpu").view(pieces, body)[rows]
    ends = [torch.tensor(marks, dtype=torch.long, device="cpu").expand(len(rows), -1) for marks in (before, after)]
    tokens = torch.cat([ends[0], middle, ends[1]], 1)
    return inputs_of(tokens, source.model), f"{len(rows)} of {pieces} sequences of {length} tokens of {path.name}"


def _read(path: Path, notes: list[str]) -> str:
    """A file's text, of a large file the beginning."""
    with path.open("rb") as file:
        found = file.read(LARGEST)
        whole = not file.read(1)
    if not whole:
        notes.append(f"{path.name}: its first {LARGEST >> 20} MiB alone are used")
        found = found[: found.rfind(b"\n") + 1] or found[:-4]  # no character is cut in two
    try:
        return found.decode("utf-8", errors="strict" if whole else "ignore")
    except UnicodeDecodeError as error:
        raise UserError(f"--calibration: {path}: expected a text in UTF-8: {error}") from error


def vocabulary_of(model: nn.Module) -> int | None:
    """Rows of the model's table of tokens."""
    get: Any = getattr(model, "get_input_embeddings", None)
    try:
        table = get() if callable(get) else None
    except (NotImplementedError, AttributeError):
        return None
    weight = getattr(table, "weight", None)
    return len(weight) if isinstance(table, nn.Embedding) and isinstance(weight, Tensor) else None


def _length(model: nn.Module, asked: int | None) -> int:
    most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    most = most if isinstance(most, int) and most > 0 else None
    # RoBERTa and its kin count positions from the padding's index on.
    table = next((m for name, m in model.named_modules() if name.endswith("position_embeddings")), None)
    if most is not None and isinstance(table, nn.Embedding) and table.padding_idx is not None:
        most -= table.padding_idx + 1
    if asked is None:
        return min(LENGTH, most or LENGTH)
    if most is not None and asked > most:
        raise UserError(f"--sequence-length: expected at most {most}, the model's positions, got {asked}")
    return asked


def _tokens(
    text: str, source: Source, tokenizer: str | None, vocabulary: int, notes: list[str]
) -> tuple[list[int], list[int], list[int]]:
    """The text's tokens, and the marks before and after a sequence."""
    if tokenizer == BYTES:
        if vocabulary < 256:
            raise UserError(f"--tokenizer bytes: expected a vocabulary of at least 256, the model's has {vocabulary}")
        notes.append("every byte of the text is a token (--tokenizer bytes): not what the model has learned, unless so")
        return list(text.encode()), [], []
    folder = source.folder if tokenizer is None else Path(tokenizer).expanduser()
    if folder is None or not any((folder / name).is_file() for name in FILES):
        where = "the model has no folder" if folder is None else f"{folder} has none"
        raise UserError(f"--calibration: a text needs a tokenizer, and {where}: --tokenizer FOLDER, or 'bytes'")
    with hushed() as transformers:
        try:
            own = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            ids, short = (own(t, add_special_tokens=False, verbose=False)["input_ids"] for t in (text, "a"))
            marked = own("a", verbose=False)["input_ids"]
        except Exception as error:  # whatever transformers has against the files
            raise UserError(f"--tokenizer: {folder}: {type(error).__name__}: {error}") from error
    if not short:  # an alphabet without "a"
        return list(ids), [], []
    at = next((i for i in range(len(marked)) if marked[i : i + len(short)] == short), None)
    return (list(ids), [], []) if at is None else (list(ids), marked[:at], marked[at + len(short) :])


def inputs_of(tokens: Tensor, model: nn.Module) -> dict[str, Any]:
    """Keyword inputs; decoders do not return what they keep for generation, which no removal may change."""
    takes = inspect.signature(model.forward).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values())
    config = getattr(model, "config", None)
    inputs: dict[str, Any] = {"input_ids": tokens}
    if "attention_mask" in takes:
        inputs["attention_mask"] = torch.ones_like(tokens)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in takes:
        first = getattr(config, "decoder_start_token_id", None)
        first = first if first is not None else getattr(config, "pad_token_id", None) or 0
        inputs["decoder_input_ids"] = torch.cat([torch.full_like(tokens[:, :1], first), tokens[:, :-1]], 1)
    if getattr(config, "use_cache", False) and ("use_cache" in takes or anything):
        inputs["use_cache"] = False
    return inputs
