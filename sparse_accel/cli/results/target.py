"""``--out``: a folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sparse_accel.cli.errors import UserError

RECORD = "report.json"
OURS = (RECORD, "plan.json", "sparse_model.json")  # one of them is in every folder that was written here


def check_target(out: Path | None, inputs: Sequence[str | Path | None], *, force: bool) -> Path:
    """Whether a folder may be written, before the work begins.

    Args:
        out: what the user said.
        inputs: files and folders that the command reads, which it may not replace; other texts do not matter.
        force: replace what an earlier command wrote there.

    Returns:
        The folder, absolute.

    Raises:
        UserError: it may not; the message says why.
    """
    if out is None:
        raise UserError("--out DIR is missing: where to write (or --dry-run)")
    out = Path(os.path.abspath(out.expanduser()))
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: expected a folder, {out} is a file")
    for item in inputs:
        path = None if item is None else Path(os.path.abspath(Path(item).expanduser()))
        if path is not None and path.exists() and (path == out or out in path.parents):
            raise UserError(f"--out: {out} holds {item}, which this command reads")
    if not out.is_dir() or not any(out.iterdir()):
        parent = next(path for path in out.parents if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise UserError(f"--out: {parent} cannot be written to")
        return out
    if not force:
        raise UserError(f"--out: {out} is not empty; --force replaces it")
    if not any((out / name).is_file() for name in OURS):
        raise UserError(f"--out: {out} holds files that are not of this program, which --force does not replace")
    return out


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place when all has gone well, and goes without a trace otherwise.

    Args:
        out: see :func:`check_target`.
    """
    made = [path for path in out.parents if not path.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".unfinished", dir=out.parent))
    try:
        yield unfinished
        mask = _umask()
        for path in (unfinished, *unfinished.rglob("*")):  # some writers give files to their owner alone
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        if out.is_dir() and any(out.iterdir()):
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
            os.replace(out, old)  # an empty folder gives way
            try:
                os.replace(unfinished, out)
            except BaseException:
                os.replace(old, out)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(unfinished, out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        for path in made:  # the innermost first
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
