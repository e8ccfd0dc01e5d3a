"""``module:name``, importable from the current directory as well."""

from __future__ import annotations

import importlib
import os
import re
import sys
from typing import Any

from sparse_accel.cli.errors import UserError


def is_import(spec: str) -> bool:
    """Whether a text is of the form ``module:name`` (``package.module:name.attribute``).

    Example:
        >>> is_import("nets:make"), is_import("some/folder"), is_import("C:/folder")
        (True, False, False)
    """
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", spec) is not None


def imported(option: str, spec: str) -> Any:
    """The object.

    Args:
        option: its name, for messages.
        spec: ``module:name``.

    Raises:
        UserError: there is no such module or name, or the import fails.
    """
    module, _, name = spec.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise UserError(f"{option}: no module {module!r}, neither installed nor in {here}") from error
        raise UserError(f"{option}: importing {module} fails: {error}") from error
    except Exception as error:  # of the user's own code
        raise UserError(f"{option}: importing {module} fails: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise UserError(f"{option}: {module} has no {name!r}")
        found = getattr(found, part)
    return found
