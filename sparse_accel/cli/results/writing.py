"""A result on disk, and the proof that what was written computes what was made."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparse_accel import wrappers
from sparse_accel.channels.runs import outputs_of
from sparse_accel.cli.errors import CheckError, library_errors
from sparse_accel.cli.output import Output
from sparse_accel.cli.render import as_plain
from sparse_accel.cli.results.opening import RESULT
from sparse_accel.cli.results.pretrained import add_dense_config, add_pretrained, copy_companions, remove_pretrained
from sparse_accel.cli.results.record import write_record
from sparse_accel.cli.results.target import new_folder
from sparse_accel.cli.sources.hugging_face import hushed
from sparse_accel.cli.sources.models import Source
from sparse_accel.removal import checkpoint
from sparse_accel.removal.verify import OutputMismatchError, comparable, verify_outputs

NONE = "not a Hugging Face model"


def write_result(
    out: Path,
    result: Any,
    source: Source,
    example: Any,
    output: Output,
    *,
    command: str,
    arguments: Mapping[str, Any],
    calibration: str,
    verify: bool,
) -> dict[str, Any]:
    """Write what a pruner or ``compact`` returned, and open it again.

    Args:
        out: folder, see :func:`~sparse_accel.cli.results.target.check_target`.
        result: with ``model`` and ``report``.
        source: of the dense model.
        example: inputs on which the outputs are compared.
        output: for progress.
        command: its name, for the record.
        arguments: of the user, for the record.
        calibration: in words, for the record.
        verify: open it again.

    Returns:
        The record.

    Raises:
        CheckError: what was written computes something else. Nothing is left of it.
    """
    with new_folder(out) as folder, library_errors("--out"):
        checkpoint.save(result, folder)
        why, copied = NONE, list[str]()
        rebuilt = hasattr(result.model, "save_pretrained") and getattr(result.model, "config", None) is not None
        if source.folder is not None and rebuilt:
            if source.origin["kind"] == RESULT:
                why = f"it was made of {source.spec}, which from_pretrained does not open"
            else:
                add_dense_config(folder, source)
                why = add_pretrained(folder, result)
            copied = copy_companions(source.folder, folder)
        checks: dict[str, float] = {}
        if verify:
            output.say(f"opening {out.name} again")
            checks["sparse_accel.load"] = _check_load(folder, result.model, source, example)
            if not why:
                try:
                    checks["from_pretrained"] = _check_pretrained(folder, result.model, example)
                except (CheckError, OutputMismatchError) as error:
                    why = f"it would not give the same model: {error}"
                    remove_pretrained(folder)
        return write_record(
            folder,
            command,
            {
                "arguments": dict(arguments),
                "model": source.origin,
                "calibration": calibration,
                "opens_with": {"sparse_accel.load": True, "from_pretrained": not why},
                "from_pretrained": why,
                "verified": checks if verify else None,
                "copied": copied,
                "notes": list(output.notes),
                "report": as_plain(result.report),
            },
        )


def _check_load(folder: Path, model: nn.Module, source: Source, example: Any) -> float:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    try:
        loaded = checkpoint.load(folder, source.build().to(device))
    except checkpoint.CheckpointError as error:
        hint = "; does the factory make the same sizes each time?" if source.folder is None else ""
        raise CheckError(f"sparse_accel.load does not open it again: {error}{hint}") from error
    return _difference(loaded, model, example, "sparse_accel.load")


def _check_pretrained(folder: Path, model: nn.Module, example: Any) -> float:
    kind: Any = type(model)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with hushed():
        try:
            loaded, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, dtype="auto")
        except Exception as error:  # whatever transformers has against it
            raise CheckError(f"{type(error).__name__}: {error}") from error
    odd = [name for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[key]]
    if odd:
        raise CheckError(f"{odd[0]} is missing, unexpected or of another shape")
    return _difference(loaded.to(device), model, example, "from_pretrained")


def _difference(loaded: nn.Module, model: nn.Module, example: Any, what: str) -> float:
    with torch.no_grad(), comparable(model):
        expected = outputs_of(wrappers.copy_model(model).eval(), copy.deepcopy(example))
    with library_errors(f"{what} gives another model"):
        return verify_outputs(loaded.eval(), example, expected, None)


def next_steps(out: Path, record: Mapping[str, Any], model: nn.Module) -> str:
    """How to open what was written, for people."""
    lines = [f"wrote {out}"]
    name = type(model).__name__
    if record["verified"]:
        largest = max(record["verified"].values())
        same = "the same outputs" if largest == 0 else f"outputs within {largest:.2g}"
        lines[0] += f"; opened again by {' and '.join(record['verified'])}: {same}"
    if record["opens_with"]["from_pretrained"]:
        lines.append(f'  {name}.from_pretrained("{out}")')
    elif record["from_pretrained"] != NONE:
        why = record["from_pretrained"]
        hint = " (--skip leaves such layers whole)" if "no configuration says" in why else ""
        lines.append(f"from_pretrained does not open it: {why}{hint}")
    if record["model"]["kind"] == "hugging_face":
        lines.append(
            f'  sparse_accel.load("{out}", {name}(AutoConfig.from_pretrained("{out}/dense")))'
            "  # from transformers import AutoConfig"
        )
    elif record["model"]["kind"] == RESULT:
        lines.append(f'  sparse_accel.load("{out}", model)  # model: what is loaded of {record["model"]["folder"]}')
    else:
        lines.append(f'  sparse_accel.load("{out}", model)  # model: what {record["model"]["spec"]} makes')
    return "\n".join(lines)
