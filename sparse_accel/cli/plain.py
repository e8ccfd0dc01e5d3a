"""What is left without typer: ``info``, what one runs when an installation is in doubt, needs nothing besides torch."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence

from sparse_accel._build_info import version
from sparse_accel._info import build_info
from sparse_accel.cli.errors import OK, USER

COMMANDS = ("demo", "bench", "sparsity", "compact", "prune", "sparsify", "compare", "report")
INSTALL = "pip install 'sparse-accel[cli]'"
USAGE = f"usage: sparse-accel info [--json] | --version\n{', '.join(COMMANDS)} need typer: {INSTALL}\n"


def info_text(*, as_json: bool) -> str:
    """What is installed, as a table or as JSON."""
    info = build_info()
    return json.dumps(dataclasses.asdict(info), indent=2) if as_json else str(info)


def main(arguments: Sequence[str]) -> int:
    """Run ``info`` or ``--version``; say of the other commands what to install."""
    if arguments and arguments[0] in COMMANDS:
        sys.stderr.write(f"sparse-accel: {arguments[0]} needs typer: {INSTALL}\n")
        return USER
    if list(arguments) == ["--version"]:
        sys.stdout.write(f"sparse-accel {version}\n")
    elif list(arguments) in (["info"], ["info", "--json"]):
        sys.stdout.write(info_text(as_json="--json" in arguments) + "\n")
    else:
        asked = list(arguments) in (["--help"], ["info", "--help"])
        (sys.stdout if asked else sys.stderr).write(USAGE)
        return OK if asked else USER
    return OK
