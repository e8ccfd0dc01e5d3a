"""What pruning commands have in common: opening the model and the data, telling what was not as usual."""

from __future__ import annotations

from sparse_accel.cli.errors import UserError
from sparse_accel.cli.output import Output
from sparse_accel.cli.results.opening import open_start
from sparse_accel.cli.sources.calibration import Data, read_data
from sparse_accel.cli.sources.models import ModelOptions, Source
from sparse_accel.cli.sources.settings import DataOptions

MISSING = "--calibration is missing: a text file, a folder of images, arrays or module:loader"


def required(calibration: str | None) -> str:
    """The calibration.

    Raises:
        UserError: there is none.
    """
    if calibration is None:
        raise UserError(MISSING)
    return calibration


def opened(model: str, calibration: str, how: ModelOptions, what: DataOptions, output: Output) -> tuple[Source, Data]:
    """A model and its calibration inputs.

    Args:
        model: as the user named it.
        calibration: likewise.
        how: to open the model.
        what: to read.
        output: gets progress and notes.

    Raises:
        UserError: either cannot be opened, or they do not fit.
    """
    output.say(f"opening {model}")
    source = open_start(model, how)
    data = read_data(calibration, source, what)
    for note in (*source.notes, *data.notes):
        output.note(note)
    output.say(f"calibration: {data.what}")
    return source, data


def refine_settings(asked: bool, steps: int | None, seed: int) -> dict[str, int] | None:
    """What ``--refine`` and ``--refine-steps`` mean to a pruner.

    Example:
        >>> refine_settings(False, None, 0), refine_settings(True, None, 0), refine_settings(False, 5, 1)
        (None, {'seed': 0}, {'seed': 1, 'steps': 5})
    """
    if not asked and steps is None:
        return None
    return {"seed": seed} | ({} if steps is None else {"steps": steps})
