"""The commands, as typer knows them."""

from __future__ import annotations

import inspect as introspection
from typing import Annotated

import typer

from sparse_accel._build_info import version
from sparse_accel.cli.commands import basics, compact, compare, inspect, prune, sparsify
from sparse_accel.cli.errors import guarded

HELP = """Structured sparsity for PyTorch: smaller and faster networks from trained ones.

\b
Start here, with the folder of a Hugging Face model and a text file:
  sparse-accel prune -m my-model/ -c text.txt --dry-run
  sparse-accel prune -m my-model/ -c text.txt --keep .5 --out half/
  sparse-accel compare my-model/ half/ -c text.txt

Exit status: 0 all went well, 1 a check failed (what was made does not compute what it should), 2 something that you
can mend, 3 an error of the program or of your model's code (with its traceback), 130 Ctrl-C. Results go to stdout,
progress and notes to stderr."""


def joined(text: str) -> str:
    """Help with each paragraph in one line, which the terminal breaks; those after a backspace stay as they are.

    Example:
        >>> joined("Some\\nwords.\\n\\n\\b\\nAn\\nexample")
        'Some words.\\n\\n\\x08\\nAn\\nexample'
    """
    paragraphs = introspection.cleandoc(text).split("\n\n")
    return "\n\n".join(p if p.startswith("\b") else p.replace("\n", " ") for p in paragraphs)


app = typer.Typer(
    name="sparse-accel",
    help=joined(HELP),
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"sparse-accel {version}")
        raise typer.Exit


@app.callback()
def _main(
    show: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

app.command("info")(guarded(basics.info))
app.command("demo")(guarded(basics.demo))
app.command("bench", context_settings=_PASSED_ON, add_help_option=False)(guarded(basics.bench))
for _command in (prune.prune, sparsify.sparsify, compact.compact, compare.compare, inspect.sparsity, inspect.report):
    app.command(_command.__name__, help=joined(_command.__doc__ or ""))(guarded(_command))
