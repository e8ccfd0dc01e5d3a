"""What curvature IHT did to every layer."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from sparse_accel.prune.refinement.options import RefineReport
from sparse_accel.removal.fields import Field
from sparse_accel.report import Bars, Column, Contents, Fact, Lines, Note, Report, Table, percent, share, sizes, written
from sparse_accel.report.left import left_notes, left_tables


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    Attributes:
        name: of the module.
        kind: its class.
        shape: of its weight.
        kept: weights that were kept.
        error: relative output error on the calibration inputs, ``tr(D H Dᵀ) / tr(W H Wᵀ)`` with D the change of W;
            before any rounds of ``refine``.
        seconds: that the solver took.
        damping: that the Hessian needed, relative to its mean diagonal.
        columns: input columns (samples times positions) that its Hessian sums.
        modules: that share the weight.
        dead: input columns that were zero in all samples, over all groups of a convolution. Their weights go first;
            where all are, the largest weights stay.
        stacked: of a stack of matrices (the experts of a mixture; ``name`` is then the parameter's), what the last two
            dimensions are: ``"output,input"`` or ``"input,output"``; else "".
        idle: matrices of the stack that no input reached: of these the largest weights were kept.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    kept: int
    error: float
    seconds: float
    damping: float
    columns: int
    modules: tuple[str, ...] = ()
    dead: int = 0
    stacked: str = ""
    idle: tuple[int, ...] = ()

    @property
    def numel(self) -> int:
        """Weights of the layer."""
        out = 1
        for size in self.shape:
            out *= size
        return out

    @property
    def sparsity(self) -> float:
        """Share of the weights that was removed."""
        return 1 - self.kept / self.numel

    @staticmethod
    def from_field(field: Field) -> LayerReport:
        """The inverse of ``dataclasses.asdict``, from a file.

        Raises:
            CheckpointError: it is not such a report.
        """
        shape = field["shape"].sizes()
        if not math.prod(shape):
            raise field["shape"].wrong("a shape with elements")
        return LayerReport(
            name=field["name"].text(),
            kind=field["kind"].text(),
            shape=tuple(shape),
            kept=field["kept"].integer(0, math.prod(shape)),
            error=field["error"].number(),
            seconds=field["seconds"].number(0),
            damping=field["damping"].number(0),
            columns=field["columns"].integer(),
            modules=tuple(field["modules"].texts()) if "modules" in field else (),
            dead=field["dead"].integer() if "dead" in field else 0,
            stacked=field["stacked"].text() if "stacked" in field else "",
            idle=tuple(entry.integer() for entry in field["idle"].entries()) if "idle" in field else (),
        )


@dataclass
class CurvatureIHTReport(Report):
    """Every pruned layer, in the order in which they were solved; a table when printed.

    Attributes:
        layers: see :class:`LayerReport`.
        method: of the layer solver.
        seconds: of the whole run, without what an interrupted run had done before.
        memory: bytes that the run was to take beyond model and data, as stated before it.
        left: weights of two or more dimensions that were not pruned, by the name of their module (of the parameter,
            where it is not called ``weight``), with the reason. ``"skip"`` and ``"targets"``: as asked for.
        shares: of all weights, by the same names.
        weights: the number of all weights: of parameters of two or more dimensions, each once.
        notes: fallbacks, with the reason: where every pass had to run the whole model.
        rounds: held-out error of the model's outputs, relative to the dense model's: after the first pass and after
            every further round (empty without ``refine``).
        best: which of ``rounds`` was kept.
        refinement: what ``refine`` did where it was not a number of rounds; None else.
    """

    layers: list[LayerReport] = field(default_factory=list)
    method: str = "iht"
    seconds: float = 0.0
    memory: int = 0
    left: dict[str, str] = field(default_factory=dict)
    rounds: list[float] = field(default_factory=list)
    best: int = 0
    shares: dict[str, float] = field(default_factory=dict)
    weights: int = 0
    notes: list[str] = field(default_factory=list)
    refinement: RefineReport | None = None

    @property
    def sparsity(self) -> float:
        """Share of the weights of the pruned layers that was removed; see :attr:`model_sparsity` for the model's."""
        total = sum(layer.numel for layer in self.layers)
        return 1 - sum(layer.kept for layer in self.layers) / total if total else 0.0

    @property
    def model_sparsity(self) -> float:
        """Share of all the model's weights (parameters of two or more dimensions) that was removed."""
        return sum(layer.numel - layer.kept for layer in self.layers) / self.weights if self.weights else self.sparsity

    @property
    def left_share(self) -> float:
        """Share of all the model's weights that was left dense, whatever the reason."""
        return sum(self.shares.values())

    def __getitem__(self, name: str) -> LayerReport:
        for layer in self.layers:
            if name == layer.name or name in layer.modules:
                return layer
        raise KeyError(name)

    def to_plain(self) -> dict[str, Any]:
        """Everything as JSON-able data."""
        refinement = None if self.refinement is None else self.refinement.to_plain()
        return asdict(self) | {"refinement": refinement}

    @staticmethod
    def from_field(field: Field) -> CurvatureIHTReport:
        """The inverse of :meth:`to_plain`, from a file.

        Raises:
            CheckpointError: it is not such a report.
        """
        rounds = [entry.number() for entry in field["rounds"].entries()]
        return CurvatureIHTReport(
            layers=[LayerReport.from_field(entry) for entry in field["layers"].entries()],
            method=field["method"].text(),
            seconds=field["seconds"].number(0),
            memory=field["memory"].integer(),
            left={name: entry.text() for name, entry in field["left"].items()},
            rounds=rounds,
            best=field["best"].integer(0, max(0, len(rounds) - 1)),
            shares={name: entry.number(0) for name, entry in field["shares"].items()} if "shares" in field else {},
            weights=field["weights"].integer() if "weights" in field else 0,
            notes=field["notes"].texts() if "notes" in field else [],
            refinement=None if _missing(field, "refinement") else RefineReport.from_field(field["refinement"]),
        )

    def contents(self) -> Contents:
        """See :class:`~sparse_accel.Report`."""
        columns = [
            Column("layer", "layer"),
            Column("kind", "kind", left=True),
            Column("shape", "shape", sizes),
            Column("sparsity", "sparsity", lambda value: share(value, 2)),
            Column("error", "error", written(".3g")),
            Column("seconds", "solver s", written(".2f"), unit="s"),
            Column("damping", "damping", written(".1g")),
        ]
        rows = [
            (layer.name or "model", layer.kind, layer.shape, layer.sparsity, layer.error, layer.seconds, layer.damping)
            for layer in self.layers
        ]
        seconds = sum(layer.seconds for layer in self.layers)
        table = Table(columns, rows, ("total", None, None, self.sparsity, None, seconds, None))
        notes = [
            Note(f"{layer.dead} of its inputs are always zero", layer.name or "model")
            for layer in self.layers
            if layer.dead
        ]
        notes += [
            Note(f"no input reached {', '.join(map(str, layer.idle))}: their largest weights are kept", layer.name)
            for layer in self.layers
            if layer.idle
        ]
        notes += [*left_notes(self.left, self.shares), *map(Note, self.notes)]
        parts = [] if self.refinement is None else [self.refinement.contents()]
        tables = [table, *left_tables(self.left, self.shares)]
        return Contents("Sparse weights (CurvatureIHT)", self._facts(), tables, self._charts(), parts, notes)

    def _facts(self) -> list[Fact]:
        facts = [Fact("", f"method {self.method}; {self.seconds:.1f} s in all, {self.memory / 1e6:.0f} MB stated")]
        if self.rounds:
            errors = ", ".join(f"{error:.4g}" for error in self.rounds)
            text = f"held-out error of the outputs, first pass and further rounds: {errors}; kept: {self.best}"
            facts.append(Fact("", text))
        own, all_, left = (percent(share, 1) for share in (self.sparsity, self.model_sparsity, self.left_share))
        facts.append(Fact("zero weights of these layers", own, plain=""))
        if self.weights:
            plain = (
                f"{own} of the weights of these layers, {all_} of all {self.weights} weights of the model are zero; "
                f"{left} were left dense"
            )
            facts.append(Fact("zero weights of the model", all_, f"of {self.weights:,}", plain=plain))
            facts.append(Fact("weights left dense", left, plain=""))
        return facts

    def _charts(self) -> list[Bars | Lines]:
        names = [layer.name or "model" for layer in self.layers]
        zero = [100 * layer.sparsity for layer in self.layers]
        texts = [share(layer.sparsity, 2) for layer in self.layers]
        charts: list[Bars | Lines] = [
            Bars("Relative output error per layer", names, {"error": [layer.error for layer in self.layers]}),
            Bars("Zero weights per layer", names, {"zero": zero}, texts, whole=100.0, unit="%"),
        ]
        if len(self.rounds) > 1:
            rounds = {"error": [(float(number), error) for number, error in enumerate(self.rounds)]}
            charts.append(Lines("Held-out error of the outputs", "round", rounds, marks=[self.best], low=0.0))
        return charts


def _missing(field: Field, key: str) -> bool:
    """Whether an object of a file has no such entry, as in older files, or null there."""
    return key not in field or field[key].value is None
