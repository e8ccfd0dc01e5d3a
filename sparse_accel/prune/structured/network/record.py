"""The finished widths of a run on disk: what they changed in the model, to go on from to the same bits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.calibration.batches import Batches, fingerprint
from sparse_accel.calibration.data import device_of
from sparse_accel.channels.widths import ExpertWidth, Width
from sparse_accel.prune.records.progress import Progress
from sparse_accel.prune.structured.report import WidthChange
from sparse_accel.prune.structured.sites import Site
from sparse_accel.prune.structured.stage import watched
from sparse_accel.removal.files import Field


class Record:
    """The finished steps of a run, if it keeps any.

    Args:
        pruner: the :class:`~sparse_accel.prune.ISpaSP`.
        work: the model that is being pruned, as it was.
        widths: to prune, in order.
        data: of the run.

    Raises:
        CheckpointError: ``resume_dir`` holds a damaged record, or one of another run.
    """

    def __init__(self, pruner: Any, work: nn.Module, widths: Sequence[Width], data: Batches) -> None:
        self.work = work
        settings: dict[str, Any] = {}
        if pruner.resume_dir is not None:
            settings = {
                "request": repr(pruner.request),
                "settings": repr(pruner.settings),
                "budget": repr(pruner.budget),
                "refit_head": repr(pruner.refit_head),
                "mask": repr(pruner.mask),
                "widths": {width.name: [width.kind, width.units] for width in widths},
                "weights": fingerprint([*work.parameters(), *work.buffers()]),
                "data": fingerprint(next(data.batches())),
            }
        device = device_of(work) or torch.device("cpu")
        self.progress = Progress(pruner.resume_dir, settings, device, kind="ispasp")
        self.on = pruner.resume_dir is not None

    def counts(self, widths: Sequence[Width]) -> dict[str, int] | None:
        """Units to keep of each width, if they were found before."""
        most = {width.name: width.units for width in widths}

        def check(notes: Field) -> dict[str, int]:
            return {name: notes["counts"][name].integer(1, units) for name, units in most.items()}

        found = self.progress.get("sizes", {}, check) if self.on else None
        return None if found is None else found[1]

    def put_counts(self, counts: Mapping[str, int]) -> None:
        """Keep them."""
        if self.on:
            self.progress.put("sizes", {}, {"counts": dict(counts)})

    def get(
        self, number: int, width: Width, count: int, sites: Mapping[str, Site], gone: dict[str, Tensor]
    ) -> tuple[Tensor, WidthChange] | None:
        """A finished width, put into the model: the units kept and what to report; None if it is not there.

        Args:
            number: of the width.
            width: see there.
            count: units that it keeps.
            sites: of its consumers: which of them turned out to see other samples than the dense model's is noted.
            gone: columns that consumers have lost; what went is added.
        """
        if not self.on:
            return None
        shape = (width.stack.experts, count) if isinstance(width, ExpertWidth) else (count,)
        kept = torch.zeros(shape, dtype=torch.int64, device="cpu")
        found = self.progress.get(_key(number), {"kept": kept, **self._tensors(watched(width))}, _notes)
        if found is None:
            return None
        tensors, (notes, change) = found
        units = tensors.pop("kept")
        self._write(tensors, notes["created"])
        for name in notes["routed"]:
            sites[name].routed = True
        for consumer in width.consumers:
            lost = _lost(consumer.channels, self.work.get_submodule(consumer.module), units)
            name = consumer.module
            gone[name] = torch.cat([gone[name], lost]) if name in gone else lost
        if not isinstance(width, ExpertWidth) and width.consumers:
            units = units.to(self.work.get_parameter(width.consumers[0].weight).device)
        return units, change

    def put(self, number: int, width: Width, units: Tensor, change: WidthChange, sites: Mapping[str, Site]) -> None:
        """Keep a finished width."""
        if not self.on:
            return
        names = watched(width)
        notes = {
            "change": asdict(change),
            "created": self._created(names),
            "routed": [c.module for c in width.consumers if sites[c.module].routed],
        }
        self.progress.put(_key(number), {"kept": units, **self._tensors(names)}, notes)

    def head(self, module: str) -> tuple[float, float] | None:
        """The error of the classifier before and after its refit, which is put into the model."""
        if not self.on:
            return None

        def check(notes: Field) -> tuple[float, float]:
            return notes["before"].number(0), notes["after"].number(0)

        found = self.progress.get("head", self._tensors([module]), check)
        if found is None:
            return None
        tensors, errors = found
        self._write(tensors, [])
        return errors

    def put_head(self, module: str, before: float, after: float) -> None:
        """Keep it."""
        if self.on:
            self.progress.put("head", self._tensors([module]), {"before": before, "after": after})

    def _tensors(self, modules: Sequence[str]) -> dict[str, Tensor]:
        """All that a width may change, by name: of layers without a bias also the one that they may have got."""
        found: dict[str, Tensor] = {}
        for name in modules:
            module, prefix = self.work.get_submodule(name), f"{name}." if name else ""
            found |= {prefix + key: tensor for key, tensor in module.named_parameters(recurse=False)}
            found |= {prefix + key: tensor for key, tensor in module.named_buffers(recurse=False)}
            weight = module._parameters.get("weight")
            if weight is not None and module._parameters.get("bias", weight) is None:
                found[f"{prefix}bias"] = weight.new_zeros(_outputs(module, weight))
        return found

    def _created(self, modules: Sequence[str]) -> list[str]:
        """Layers that have a bias; which of them had none before is known where they are read."""
        return [name for name in modules if self.work.get_submodule(name)._parameters.get("bias") is not None]

    def _write(self, tensors: Mapping[str, Tensor], biased: Sequence[str]) -> None:
        with torch.no_grad():
            for name, values in tensors.items():
                path, _, key = name.rpartition(".")
                module = self.work.get_submodule(path)
                old = module._parameters.get(key) if key in module._parameters else module._buffers.get(key)
                if old is not None:
                    old.copy_(values)
                elif path in biased:
                    like = module.get_parameter("weight")
                    bias = nn.Parameter(values.to(like.device), requires_grad=like.requires_grad)
                    module.register_parameter(key, bias)
        torch.clear_autocast_cache()


def _key(number: int) -> str:
    return f"width_{number:04d}"


def _outputs(module: nn.Module, weight: Tensor) -> int:
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return weight.shape[1] * module.groups
    return weight.shape[1 if type(module).__name__ == "Conv1D" else 0]


def _lost(channels: Tensor, module: nn.Module, kept: Tensor) -> Tensor:
    """Columns of a consumer that belong to units that are not kept."""
    device = module.get_parameter("weight").device
    taps = math.prod(getattr(module, "kernel_size", (1,)))
    rest = torch.ones(len(channels), dtype=torch.bool, device=device)
    rest[kept.to(device)] = False
    columns = channels.to(device)[:, :, None] * taps + torch.arange(taps, device=device)
    return columns.flatten(1)[rest].flatten()


def _notes(notes: Field) -> tuple[dict[str, list[str]], WidthChange]:
    own = notes["change"]
    units, error = own["units"].entries(), own["error"]
    change = WidthChange(
        name=own["name"].text(),
        kind=own["kind"].text(),
        units=(units[0].integer(1), units[1].integer(1)),
        consumers=tuple(own["consumers"].texts()),
        target=own["target"].text(),
        error=None if error.value is None else (error.entries()[0].number(0), error.entries()[1].number(0)),
        seconds=own["seconds"].number(0),
        note=own["note"].text(),
    )
    return {key: notes[key].texts() for key in ("created", "routed")}, change
