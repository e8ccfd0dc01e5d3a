"""The commands of docs/command_line.md, as they stand, in a reader's folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "command_line.md"
HELD_SHORT = {"prune": 12, "sparsify": 12, "compare": 4}


def test_commands_run(run, here):
    (here / "my-model").symlink_to(here / "bert")
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == 9
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "sparse-accel"
        short = HELD_SHORT.get(arguments[0])
        more = [] if short is None else ["--samples", short, "--sequence-length", 8]
        more += ["--no-verify"] if short is not None and "--dry-run" not in line and "--out" in line else []
        status, out, err = run(*arguments, *more)
        assert status == 0, f"{line}\n{err}"
        assert out


def test_the_options_it_names_exist():
    """Every long option on the page is one of a command."""
    from typer.main import get_command

    from sparse_accel.cli.app import app

    commands = get_command(app).commands.values()
    known = {
        name for command in commands for option in command.params for name in (*option.opts, *option.secondary_opts)
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE.read_text(encoding="utf-8")))
    assert named - known == {"--help", "--install-completion"}


def test_commands_of_the_other_pages_have_these_options():
    """Those of the README and of the pages by task, which are not run: each option is one of the line's command."""
    from typer.main import get_command

    from sparse_accel.cli.app import app

    commands = get_command(app).commands
    seen = set()
    for page in [PAGE.parents[1] / "README.md", *sorted(PAGE.parent.glob("*.md"))]:
        for line in re.findall(r"^sparse-accel .*", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
            _, name, *arguments = shlex.split(line, comments=True)
            assert name in commands, f"{page.name}: {line}"
            known = {option for item in commands[name].params for option in (*item.opts, *item.secondary_opts)}
            used = {argument.split("=")[0] for argument in arguments if re.match(r"--?[a-z]", argument)}
            passed_on = name == "bench"  # to its own parser
            assert passed_on or used <= known | {"--help"}, f"{page.name}: {line}: {used - known}"
            seen.add(page.name)
    assert {"README.md", "command_line.md", "coming_from.md", "hugging_face.md"} <= seen
