"""Files of checkpoints: JSON and safetensors, no pickle, written whole or not at all; every fault is a CheckpointError.

A JSON file describes the tensors of one safetensors file, with a checksum each, and holds an ``id``: a digest of all
else that is in it. The safetensors file holds the same id, so that files of different saves are told apart, and an
edited or damaged file is. Files of versions before there were ids have none; their values are checked all the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_accel.removal.fields import CheckpointError, Field

__all__ = ["CheckpointError", "Field", "Part", "Stored", "checksum", "read_plan", "read_tensors", "write_parts"]

ID = "id"


@dataclass
class Part:
    """A safetensors file and the JSON file that describes it.

    Attributes:
        tensors_file: its name.
        plan_file: the other's.
        tensors: to be written.
        plan: plain data.
        after: key of the plan that takes the id of the part before this one.
    """

    tensors_file: str
    plan_file: str
    tensors: Mapping[str, Tensor]
    plan: Mapping[str, Any]
    after: str | None = None


@dataclass(frozen=True)
class Stored:
    """What a safetensors file holds.

    Attributes:
        path: of the file.
        tensors: by name.
        identity: the id in its header, None in files that have none.
    """

    path: Path
    tensors: dict[str, Tensor]
    identity: str | None

    def take(self, name: str, described: Field, shape: list[int] | None = None) -> Tensor:
        """A copy of a tensor: aligned memory, so that kernels give the same bits as before.

        Args:
            name: of the tensor.
            described: what the plan says of it: ``dtype`` and ``crc32``, in plans that have them.
            shape: expected, if known.

        Raises:
            CheckpointError: there is none, or it is not what the plan says.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: {name} is missing")
        tensor = self.tensors[name].clone()
        if shape is not None and list(tensor.shape) != shape:
            raise CheckpointError(f"{self.path}: {name}: expected {shape}, got {list(tensor.shape)}")
        if "dtype" in described:
            expected, came = described["dtype"].text(), dtype_name(tensor)
            if came != expected:
                raise CheckpointError(f"{self.path}: {name}: expected {expected}, got {came}")
        if "crc32" in described and checksum(tensor) != described["crc32"].integer():
            raise CheckpointError(f"{self.path}: {name}: damaged: its values do not have the checksum of the plan")
        return tensor


def dtype_name(tensor: Tensor) -> str:
    """``"float32"`` for torch.float32."""
    return str(tensor.dtype).removeprefix("torch.")


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's elements in their logical order.

    Example:
        >>> checksum(torch.zeros(2, 2)) == checksum(torch.zeros(4)) != checksum(torch.ones(4))
        True
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().data) if flat.numel() else 0


def identity(plan: Mapping[str, Any]) -> str:
    """The digest of a plan, its ``id`` left out.

    Example:
        >>> identity({"a": 1}) == identity({"a": 1, "id": "old"}) != identity({"a": 2})
        True
    """
    plain = {key: value for key, value in plan.items() if key != ID}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:32]


def seal(plan: Mapping[str, Any]) -> dict[str, Any]:
    """A plan as it will be read back, with its id."""
    plain: dict[str, Any] = json.loads(json.dumps(plan))
    return {**plain, ID: identity(plain)}


def write_parts(directory: str | os.PathLike[str], parts: Sequence[Part], stale: Sequence[str] = ()) -> Path:
    """Write files into a folder. Until all are written, those that it holds stay; then they are replaced one by one:
    whoever is interrupted in between leaves files of two ids, which are refused.

    Args:
        directory: created if need be.
        parts: what to write.
        stale: names of files to remove at the end, those of an older checkpoint.
    """
    plans: list[dict[str, Any]] = []
    for part in parts:
        plans.append(seal({**part.plan, part.after: plans[-1][ID]} if part.after else part.plan))
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=directory))
    try:
        for part, plan in zip(parts, plans, strict=True):
            write_tensors(unfinished / part.tensors_file, part.tensors, plan)
            write_json(unfinished / part.plan_file, plan)
        written = [name for part in parts for name in (part.tensors_file, part.plan_file)]
        for name in written:
            os.replace(unfinished / name, directory / name)
        for name in set(stale) - set(written):
            (directory / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return directory


def write_tensors(path: Path, tensors: Mapping[str, Tensor], plan: Mapping[str, Any]) -> None:
    """A safetensors file with the id of its plan; the old one stays until the new one is whole."""
    from safetensors.torch import save_file

    unfinished = path.with_name(path.name + ".tmp")
    unfinished.touch()
    mode = unfinished.stat().st_mode  # safetensors gives the file to its owner alone, whatever the umask
    save_file(_apart(tensors), unfinished, metadata={"format": "pt", ID: plan[ID]})
    unfinished.chmod(mode)
    _settle(unfinished, path)


def write_json(path: Path, plan: Mapping[str, Any]) -> None:
    """A JSON file; the old one stays until the new one is whole."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    _settle(unfinished, path)


def _settle(unfinished: Path, path: Path) -> None:
    with open(unfinished, "rb") as file:  # on the disk before it takes the other's place: safe from a loss of power
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors for a safetensors file, which takes no two that share memory."""
    out: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        memory = flat.untyped_storage().data_ptr()
        out[name] = flat.clone() if memory in seen else flat
        seen.add(memory)
    return out


def read_json(path: Path) -> Field:
    """A JSON file that holds an object.

    Raises:
        CheckpointError: it is missing, or not such a file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error
    if not isinstance(plan, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(plan).__name__}")
    return Field(plan, path)


def read_plan(path: Path, expected: str, version: int) -> Field:
    """The JSON file of a part, of one of this package's formats.

    Raises:
        CheckpointError: it is missing, not JSON, or of another format or version.
    """
    plan = read_json(path)
    if plan.value.get("format") != expected:
        raise CheckpointError(f"{path}: expected the format {expected!r}, got another file")
    if plan.value.get("version") != version or isinstance(plan.value.get("version"), bool):
        raise CheckpointError(f"{path}: expected version {version}, got {plan.value.get('version')!r}")
    return plan


def check_seal(plan: Field) -> None:
    """Raise CheckpointError if a plan is not the one that was saved. Called last: what can be named was before."""
    if ID in plan and plan[ID].text() != identity(plan.value):
        raise CheckpointError(f"{plan.path}: changed since it was saved: its 'id' is not that of its contents")


def read_tensors(path: Path, plan: Field | None = None) -> Stored:
    """A safetensors file.

    Args:
        path: of the file.
        plan: that has to belong to it.

    Raises:
        CheckpointError: it is missing or damaged, or of another save than the plan.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            came = (file.metadata() or {}).get(ID)
    except Exception as error:  # whatever a damaged header leads to
        raise CheckpointError(f"{path}: {error}") from error
    if plan is not None:
        expected = plan[ID].text() if ID in plan else None
        if came != expected:
            raise CheckpointError(
                f"{path.name} and {plan.path.name} in {path.parent} do not belong together: "
                f"expected the id {expected}, got {came}"
            )
    return Stored(path, tensors, came)
