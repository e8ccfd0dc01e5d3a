"""The command line: ``sparse-accel info | demo | bench | sparsity | compact | prune | sparsify | compare | report``.

``sources`` open what the user names (models, weights, calibration), ``results`` are the folders that are written,
``commands`` are what is typed. Imports: everything; nothing imports it. Without typer, ``info`` works, and the others
say what to install.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; those of the process by default.

    Returns:
        The exit status, see :mod:`sparse_accel.cli.errors`.

    Example:
        >>> main(["--version"])  # doctest: +ELLIPSIS
        sparse-accel ...
        0
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if importlib.util.find_spec("typer") is None:
        from sparse_accel.cli import plain

        return plain.main(arguments)
    from sparse_accel.cli.app import app

    try:
        app(args=arguments, prog_name="sparse-accel")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    return 0
