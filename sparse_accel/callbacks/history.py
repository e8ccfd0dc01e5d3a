"""How the share of zeros goes while training."""

from __future__ import annotations

import contextlib
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer

from sparse_accel.diagnostics.sparsity import sparsity
from sparse_accel.report import Column, Contents, Fact, Lines, Note, Report, Table, number, share, written


def inner_optimizer(optimizer: Any) -> Any:
    """The optimizer inside the wrappers of accelerate and others that keep it as ``.optimizer``."""
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def set_mode(optimizer: Any, mode: str) -> None:
    """Call ``optimizer.train()`` or ``optimizer.eval()`` where there is such a method."""
    method = getattr(inner_optimizer(optimizer), mode, None)
    if callable(method):
        method()


class SparsityHistory(Report):
    """A table of the zero groups over a training run, measured at the proximal iterate.

    It is a :class:`sparse_accel.Report`: ``print(history)``, ``history.plot("zeros.png")``, ``history.html(...)``.

    Args:
        model: that is trained, or a wrapper that has it inside.
        optimizer: of this package, whose proximal iterate is measured; any other, or None: the weights as they are.
        by: what forms a group; None: what the optimizer's penalty says, ``"input"`` where it says nothing.
        writer: with a method ``add_scalar(name, value, step)``, such as TensorBoard's ``SummaryWriter``.

    Attributes:
        rows: one dictionary of plain values for each :meth:`record`.

    Example:
        >>> import torch, sparse_accel as sa
        >>> layer = nn.Linear(4, 2, bias=False)
        >>> opt = sa.RMDA(layer.parameters(), lr=0.1, momentum=0.5, penalty=sa.GroupLasso(100.0))
        >>> history = SparsityHistory(layer, opt)
        >>> for epoch in range(2):
        ...     layer(torch.ones(3, 4)).square().mean().backward()
        ...     opt.step()
        ...     row = history.record(epoch, loss=1.0)
        >>> row["zero_groups"], row["group_sparsity"], row["loss"], layer.weight.count_nonzero().item()
        (4, 1.0, 1.0, 8)
    """

    rows: list[dict[str, Any]]

    def __init__(self, model: nn.Module, optimizer: Any = None, by: str | None = None, writer: Any = None) -> None:
        if optimizer is not None and not isinstance(inner_optimizer(optimizer), Optimizer):
            raise TypeError(f"optimizer: expected an optimizer or None, got {type(optimizer).__name__}")
        self.model, self.optimizer, self.by, self.writer = model, optimizer, by, writer
        self.rows = []

    def record(self, step: int | None = None, **values: Any) -> dict[str, Any]:
        """Measure, and add a row. With sharded parameters all processes have to call it. The host waits for the device.

        Args:
            step: number of the step or epoch; None: that of the row.
            **values: further entries of the row, such as a loss.

        Returns:
            The row: ``step``, ``groups``, ``zero_groups``, ``group_sparsity`` (their quotient),
            ``weighted_group_sparsity`` (the share of the weights that lies in zero groups), ``strength`` and
            ``target`` of the penalty (the first, where there are several; None without one) and ``values``.

        Raises:
            ValueError: ``by`` is unknown, or the weights are hidden (see :func:`sparse_accel.sparsity`).
        """
        inner = inner_optimizer(self.optimizer)
        groups = [] if inner is None else inner.param_groups
        penalties = [group["penalty"] for group in groups if group.get("penalty") is not None]
        penalty: Any = penalties[0] if penalties else None
        plain = penalty.to_plain() if hasattr(penalty, "to_plain") else penalty or {}
        lend = getattr(inner, "proximal_parameters", contextlib.nullcontext)
        with lend():
            report = sparsity(self.model, by=self.by or plain.get("by", "input"))
        row = {
            "step": len(self.rows) if step is None else step,
            "groups": report.groups,
            "zero_groups": report.zero_groups,
            "group_sparsity": report.group_sparsity,
            "weighted_group_sparsity": report.weighted_group_sparsity,
            "strength": plain.get("strength"),
            "target": plain.get("target"),
            **values,
        }
        self.rows.append(row)
        if self.writer is not None:
            for name in ("group_sparsity", "weighted_group_sparsity", "strength"):
                if row[name] is not None:
                    self.writer.add_scalar(f"sparsity/{name}", row[name], row["step"])
        return row

    def to_plain(self) -> dict[str, Any]:
        """The rows, as JSON-able data; values that are none, such as tensors, as text."""
        plain = (bool, int, float, str, type(None))
        return {"rows": [{k: v if isinstance(v, plain) else str(v) for k, v in row.items()} for row in self.rows]}

    def contents(self) -> Contents:
        """See :class:`~sparse_accel.Report`."""
        more = list(dict.fromkeys(name for row in self.rows for name in row if name not in _COLUMNS))
        known = [name for name in _COLUMNS if not self.rows or any(row.get(name) is not None for row in self.rows)]
        names = [*known, *more]
        columns = [_COLUMNS.get(name, Column(name, name)) for name in names]
        table = Table(columns, [[row.get(name) for name in names] for row in self.rows])
        last = self.rows[-1] if self.rows else {}
        facts = [
            Fact(f"{what} in the end", share(last[key]), plain="")
            for key, what in (("group_sparsity", "zero groups"), ("weighted_group_sparsity", "weights in zero groups"))
            if key in last
        ]
        shares = {
            "zero groups": self._curve("group_sparsity", 100.0),
            "weights in zero groups": self._curve("weighted_group_sparsity", 100.0),
        }
        charts = [Lines("Zeros while training", "step", shares, unit="%", low=0.0, high=100.0)]
        curves = {name: self._curve(name) for name in ("strength", *more)}
        varied = {name: points for name, points in curves.items() if len({y for _, y in points}) > 1}
        charts += [Lines(name, "step", {name: points}) for name, points in varied.items()]
        notes = [] if self.rows else [Note("nothing has been recorded")]
        return Contents("Sparsity while training", facts, [table], charts, notes=notes)

    def _curve(self, name: str, scale: float = 1.0) -> list[tuple[float, float]]:
        """What was recorded under a name, where it is a number."""
        values = ((row["step"], row.get(name)) for row in self.rows)
        return [
            (float(step), scale * float(value))
            for step, value in values
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        ]

    def state_dict(self) -> dict[str, Any]:
        """The rows, for a checkpoint."""
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the rows of a checkpoint."""
        self.rows = [dict(row) for row in state["rows"]]


_COLUMNS = {
    column.key: column
    for column in (
        Column("step", "step", number),
        Column("groups", "groups"),
        Column("zero_groups", "zero groups"),
        Column("group_sparsity", "of groups", share),
        Column("weighted_group_sparsity", "of weights", share),
        Column("strength", "strength", written(".4g")),
        Column("target", "target", share),
    )
}
