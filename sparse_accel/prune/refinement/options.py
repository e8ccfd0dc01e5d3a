"""What can be said about a refinement, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from sparse_accel.progress import Show, check_progress
from sparse_accel.removal.fields import Field
from sparse_accel.report import Column, Contents, Fact, Lines, Note, Report, Table, number, written

NORMS = ("auto", "held", "reestimated")
LARGEST = 1e30  # step size: beyond it steps leave the range of float32
KIND = "gradient-based, no labels"


@dataclass(frozen=True)
class RefineOptions:
    """The settings of :func:`sparse_accel.prune.refine`; see there."""

    steps: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    windows: Sequence[str] | None = None
    norms: str = "auto"
    augment: Callable[[Any], Any] | None = None
    progress: Show | Callable[[int, int, float], Any] = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("batch_size", self.batch_size)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}: expected a whole number of at least 1 or None, got {value!r}")
        lr = self.lr
        number = isinstance(lr, (int, float)) and not isinstance(lr, bool)
        if lr is not None and not (number and 0 < lr < LARGEST):
            raise ValueError(f"lr: expected a positive number below 1e30 or None, got {lr!r}")
        if self.norms not in NORMS:
            raise ValueError(f"norms: expected one of {', '.join(map(repr, NORMS))}, got {self.norms!r}")
        if isinstance(self.windows, str):
            raise TypeError(f"windows: expected a list of patterns, got {self.windows!r}")
        if self.windows is not None and not all(isinstance(pattern, str) for pattern in self.windows):
            raise TypeError(f"windows: expected a list of patterns, got {self.windows!r}")
        if self.augment is not None and not callable(self.augment):
            raise TypeError(f"augment: expected a function or None, got {type(self.augment).__name__}")
        check_progress(self.progress)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed: expected a whole number from 0 to 2³² − 1, got {self.seed!r}")

    def shown_by(self, progress: Show) -> RefineOptions:
        """With the ``progress`` of the call that refines, where these settings have none of their own.

        Example:
            >>> RefineOptions().shown_by(False).progress, RefineOptions(progress=True).shown_by(False).progress
            (False, True)
        """
        if progress is None or self.progress is not None:
            return self
        # Behind a function of one argument it is not taken for one of the older form.
        return replace(self, progress=(lambda at: progress(at)) if callable(progress) else progress)

    @classmethod
    def of(cls, refine: Any) -> RefineOptions | None:
        """What the argument ``refine`` of a pruner means.

        Raises:
            TypeError, ValueError: nothing that it may be; the message names it.

        Example:
            >>> RefineOptions.of("auto").steps, RefineOptions.of({"steps": 3}).steps, RefineOptions.of(None)
            (None, 3, None)
        """
        if refine is None or isinstance(refine, cls):
            return refine
        if refine == "auto":
            return cls()
        known = [entry.name for entry in fields(cls)]
        if not isinstance(refine, Mapping):
            raise ValueError(f"refine: expected 'auto', None or a dict of {', '.join(known)}, got {refine!r}")
        for name in refine:
            if name not in known:
                raise ValueError(f"refine: expected some of {', '.join(known)}, got {name!r}")
        try:
            return cls(**refine)
        except (TypeError, ValueError) as error:
            raise type(error)(f"refine: {error}") from error

    def to_plain(self) -> dict[str, Any]:
        """As JSON-able data, functions by name: what tells one run from another (whether it has a bar does not)."""
        functions = {"augment": self.augment, "progress": self.progress if callable(self.progress) else None}
        named = {name: None if f is None else getattr(f, "__qualname__", repr(f)) for name, f in functions.items()}
        windows = None if self.windows is None else list(self.windows)
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return plain | named | {"windows": windows}


@dataclass(frozen=True)
class RefineReport(Report):
    """What a refinement did; lines of text when printed.

    Attributes:
        held_out: what the errors were taken on, in words.
        errors: mean squared error of the outputs on the held-out inputs, relative to the variance of the dense ones, by
            step; step 0 is the model that came.
        best: the step whose weights the model has.
        after: the error of the model as it is: of step ``best``, with the statistics that ``norms`` says.
        steps: that were taken.
        lr: largest step size of Adam.
        windows: modules whose outputs were fitted besides the model's.
        norms: ``"held"`` or ``"reestimated"``: which statistics the BatchNorms have; ``""`` without any.
        seconds: of the whole refinement.
        seed: of the order of the samples and of the augmentation.
        notes: what was not as usual.
        kind: how it works: by gradients, without labels.
    """

    held_out: str
    errors: dict[int, float]
    best: int
    after: float
    steps: int
    lr: float
    windows: tuple[str, ...]
    norms: str
    seconds: float
    seed: int
    notes: tuple[str, ...] = ()
    kind: str = field(default=KIND)

    @property
    def error(self) -> tuple[float, float]:
        """Held-out error before and after."""
        return self.errors[0], self.after

    def to_plain(self) -> dict[str, Any]:
        """Everything as JSON-able data."""
        return asdict(self) | {"errors": {str(step): error for step, error in self.errors.items()}}

    @staticmethod
    def from_field(field: Field) -> RefineReport:
        """The inverse of :meth:`to_plain`, from a file.

        Raises:
            CheckpointError: it is not such a report.
        """
        errors = {}
        for step, entry in field["errors"].items():
            if not step.isdecimal():
                raise field["errors"].wrong("numbers of steps as keys")
            errors[int(step)] = entry.number(0)
        best = field["best"].integer(0)
        if 0 not in errors or best not in errors:
            raise field["errors"].wrong(f"errors of the steps 0 and {best}")
        return RefineReport(
            field["held_out"].text(),
            errors,
            best,
            field["after"].number(0),
            field["steps"].integer(0),
            field["lr"].number(0),
            tuple(field["windows"].texts()),
            field["norms"].text(),
            field["seconds"].number(0),
            field["seed"].integer(0),
            tuple(field["notes"].texts()),
            field["kind"].text(),
        )

    def contents(self) -> Contents:
        """See :class:`~sparse_accel.Report`."""
        before, after = self.error
        error = f"{before:.4g} → {after:.4g}"
        taken = f"after {self.best} of {self.steps} steps, {self.seconds:.1f} s"
        norms = f"; BatchNorm statistics {self.norms}" if self.norms else ""
        plain = f"refinement ({self.kind}): held-out error of the outputs {error}, {taken}"
        facts = [
            Fact("held-out error of the outputs", error, taken, self.kind, plain=plain),
            Fact("", f"held out: {self.held_out}; fitted: the outputs and {len(self.windows)} windows{norms}"),
        ]
        looks = Table(
            [Column("step", "step", number), Column("error", "held-out error", written(".4g"))],
            list(self.errors.items()),
            title="Held-out error by step",
            detail=True,
        )
        marks = [self.best] if len(self.errors) > 1 else []
        curve = Lines("Held-out error", "step", {"error": sorted(self.errors.items())}, marks=marks, low=0.0)
        notes = [Note(note) for note in self.notes]
        return Contents("Refinement", facts, [looks], [curve], notes=notes)
