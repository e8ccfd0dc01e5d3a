"""Exit statuses, and how errors end: users' mistakes in one message without a traceback."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

from sparse_accel.channels.graph import CompactError
from sparse_accel.removal.fields import CheckpointError
from sparse_accel.removal.verify import OutputMismatchError

OK = 0
FAILED = 1  # a check failed: what was made does not compute what it should
USER = 2  # something that the user can mend
INTERNAL = 3  # an error of sparse_accel, torch or the user's own code: with its traceback
INTERRUPTED = 130  # Ctrl-C, as shells have it


class UserError(Exception):
    """Something that the user can mend: its message says what was expected and what came."""


class CheckError(Exception):
    """What was made does not compute what it should."""


@contextmanager
def library_errors(where: str = "", options: Mapping[str, str] | None = None) -> Iterator[None]:
    """Errors by which the library refuses arguments, data and models, as this command line's own.

    Args:
        where: what the message starts with.
        options: by names of arguments, how they are typed: a message about one is about the other.
    """
    start = f"{where}: " if where else ""

    def told(error: BaseException) -> str:
        name, colon, rest = str(error).partition(":")
        return f"{start}{(options or {}).get(name, name)}{colon}{rest}"

    try:
        yield
    except OutputMismatchError as error:
        raise CheckError(told(error)) from error
    except (CompactError, CheckpointError, ValueError, TypeError) as error:
        raise UserError(told(error)) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise UserError(f"{start}out of memory: a smaller --batch-size or --samples may help ({error})") from error


def status_of(error: BaseException, *, debug: bool) -> int:
    """Say on stderr what happened; the exit status for it.

    Args:
        error: that ended a command.
        debug: show the traceback of users' mistakes, too.
    """
    if isinstance(error, KeyboardInterrupt):
        message, status, shown = "interrupted; --out is as it was", INTERRUPTED, debug
    elif isinstance(error, UserError):
        message, status, shown = str(error), USER, debug
    elif isinstance(error, CheckError):
        message, status, shown = f"check failed: {error}", FAILED, debug
    elif isinstance(error, OSError):
        message, status, shown = str(error), USER, debug
    else:
        message, status, shown = f"unexpected {type(error).__name__}: {error}", INTERNAL, True
    if shown:
        traceback.print_exception(error, file=sys.stderr)
    sys.stderr.write(f"sparse-accel: {message}\n")
    return status


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """A command of typer whose errors end in a message and an exit status; its option ``debug`` shows tracebacks."""
    import typer

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except typer.Exit:
            raise
        except (Exception, KeyboardInterrupt) as error:
            raise typer.Exit(status_of(error, debug=bool(kwargs.get("debug")))) from error

    return run
