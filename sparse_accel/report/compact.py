"""Dense against compact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sparse_accel.report.base import Report
from sparse_accel.report.contents import Bars, Column, Contents, Fact, Note, Table, change, percent
from sparse_accel.report.costs import count_macs, latencies_ms
from sparse_accel.wrappers import copy_model

MACS = "torch.utils.flop_counter, FLOPs / 2, on the example"


@dataclass(frozen=True)
class LayerChange:
    """One layer before and after compaction; MACs are multiply-accumulates of one run on the example."""

    name: str
    kind: str
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    params: tuple[int, int]
    macs: tuple[int, int]


@dataclass(frozen=True)
class CompactReport(Report):
    """Dense against compact; a table when printed.

    Attributes:
        layers: every linear and convolution layer.
        params: elements of all parameters, before and after.
        macs: ``torch.utils.flop_counter`` FLOPs / 2 of one run on the example (linear maps only), before and after.
        latency_ms: median wall time of one run on the example, before and after; None where not measured.
        max_abs_diff: largest difference of the outputs on the example.
    """

    layers: list[LayerChange]
    params: tuple[int, int]
    macs: tuple[int, int]
    latency_ms: tuple[float, float] | None
    max_abs_diff: float

    def contents(self) -> Contents:
        """See :class:`~sparse_accel.Report`."""
        pair = ("before", "after")
        table = Table(
            [
                Column("layer", "layer"),
                Column("kind", "kind", left=True),
                *(Column(key, key, change, parts=pair) for key in ("inputs", "outputs")),
                Column("params", "parameters", change, parts=pair),
                Column("macs", "MACs", change, parts=pair),
            ],
            [(layer.name, layer.kind, layer.inputs, layer.outputs, layer.params, layer.macs) for layer in self.layers],
            ("total", None, None, None, self.params, self.macs),
        )
        facts = [
            Fact("parameters", f"{percent(self.params[1], self.params[0])} kept"),
            Fact("MACs", f"{percent(self.macs[1], self.macs[0])} kept", basis=MACS, joined=True),
        ]
        if self.latency_ms:
            facts.append(Fact("latency", " → ".join(f"{ms:.3g} ms" for ms in self.latency_ms)))
        facts.append(Fact("largest output difference", f"{self.max_abs_diff:.3g}"))
        notes = [] if any(self.macs) or not self.layers else [Note("MACs could not be counted", warning=True)]
        return Contents("Compact model", facts, [table], [self.channels_kept(), *self.costs_kept()], notes=notes)

    def channels_kept(self) -> Bars:
        """The share of the input channels that every layer keeps, with both numbers."""
        return Bars(
            "Input channels kept",
            [layer.name for layer in self.layers],
            {"kept": [100 * kept / full if full else 0.0 for full, kept in (layer.inputs for layer in self.layers)]},
            [f"{kept} of {full}" for full, kept in (layer.inputs for layer in self.layers)],
            whole=100.0,
            unit="% of the dense layer",
        )

    def costs_kept(self) -> list[Bars]:
        """What remains of parameters, MACs and latency."""
        rows: dict[str, tuple[tuple[float, float], str]]
        rows = {"parameters": (self.params, change(self.params)), "MACs": (self.macs, change(self.macs))}
        if self.latency_ms:
            rows["latency"] = (self.latency_ms, " → ".join(f"{ms:.3g} ms" for ms in self.latency_ms))
        kept = {name: (100 * now / before, text) for name, ((before, now), text) in rows.items() if before}
        if not kept:
            return []
        shares = [value for value, _ in kept.values()]
        texts = [text for _, text in kept.values()]
        whole = max(100.0, *shares)
        return [Bars("Cost, of the dense model", list(kept), {"compact": shares}, texts, whole=whole, unit="%")]


def compare_models(
    dense: nn.Module, small: nn.Module, example_inputs: Any, max_abs_diff: float, *, measure: bool = True
) -> CompactReport:
    """Two models with the same layer names, on the first example; neither changes.

    Args:
        dense, small: the models.
        example_inputs: on which MACs are counted and times taken.
        max_abs_diff: of their outputs.
        measure: run them for that; if not, MACs are 0 and there is no latency.
    """
    counts: list[dict[str, int]] = [{}, {}]
    latency: tuple[float, float] | None = None
    if measure:
        probes = [copy_model(model).eval() for model in (dense, small)]
        counts = [count_macs(probe, example_inputs) for probe in probes]
        times = latencies_ms(probes, example_inputs)
        latency = times[0], times[1]
        del probes
    modules = dict(small.named_modules())
    layers = []
    for name, module in dense.named_modules():
        weight, other = getattr(module, "weight", None), modules.get(name)
        channels = [_channels(module), None if other is None else _channels(other)]
        if not isinstance(weight, Tensor) or channels[0] is None or channels[1] is None or other is None:
            continue
        layers.append(
            LayerChange(
                name=name or "model",
                kind=type(module).__name__,
                inputs=(channels[0][0], channels[1][0]),
                outputs=(channels[0][1], channels[1][1]),
                params=(_own_params(module), _own_params(other)),
                macs=(counts[0].get(name, 0), counts[1].get(name, 0)),
            )
        )
    return CompactReport(
        layers,
        (sum(p.numel() for p in dense.parameters()), sum(p.numel() for p in small.parameters())),
        (counts[0].get("", 0), counts[1].get("", 0)),
        latency,
        max_abs_diff,
    )


def _channels(module: nn.Module) -> tuple[int, int] | None:
    for names in (("in_channels", "out_channels"), ("in_features", "out_features")):
        found = [getattr(module, name, None) for name in names]
        if all(isinstance(number, int) for number in found):
            return found[0], found[1]  # type: ignore[return-value]
    return None


def _own_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))
