"""Which positions of a layer's input count: padding masks, and the modules that they belong to."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.calibration.data import device_of, eval_mode, to_device
from sparse_accel.calibration.observations import Call, Observations
from sparse_accel.calibration.probes import Layouts, follow_inputs, follow_length, follow_samples

logger = logging.getLogger("sparse_accel")

DEFAULT = "attention_mask"
Keys = str | Sequence[str] | Mapping[str, str | None] | None

Layout = tuple[str, str]  # a mask's key, and how the positions lie: one of _LAYOUTS
DECODER = "decoder_"  # before the keys of the second sequence, by convention
_LAYOUTS = ("batch first", "length first", "flat")


class Padding:
    """Masks ``[batch, length]`` in batches that are mappings, zero for padding; and whose positions they are.

    Args:
        keys: of the masks: one, whose positions are found (with ``"decoder_" + key`` for the decoder, if the batches
            have it); several, the same; or a mapping from patterns of module names (``fnmatch``, on the name or a
            leading part of it) to keys or None, the last match counting. None: all positions count.
        batch_first: whether inputs are ``[batch, length, ...]`` or ``[length, batch, ...]``; None: found from the data.
        argument: how messages call this.

    Raises:
        TypeError: ``keys`` is none of these.
    """

    def __init__(self, keys: Keys, batch_first: bool | None = None, argument: str = "padding") -> None:
        self.patterns: dict[str, str | None] | None = None
        if isinstance(keys, Mapping):
            self.patterns = dict(keys)
            self.keys = [key for key in dict.fromkeys(keys.values()) if key is not None]
        elif keys is None:
            self.keys = []
        else:
            several = [keys] if not isinstance(keys, Sequence) else list(keys)
            self.keys = [keys, f"{DECODER}{keys}"] if isinstance(keys, str) else several
        if not all(isinstance(key, str) for key in (*self.keys, *(self.patterns or ()))):
            raise TypeError(f"{argument}: expected a key, several or a mapping from patterns to keys, got {keys!r}")
        if batch_first not in (None, True, False):
            raise TypeError(f"batch_first: expected True, False or None, got {batch_first!r}")
        self.given = keys
        self.batch_first = batch_first
        self.argument = argument
        self.layouts: dict[str, list[Layout | None]] = {}
        self._masks: dict[str, Tensor] = {}
        self._calls: dict[str, int] = {}

    def enter(self, batch: Any) -> None:
        """A batch begins."""
        self._masks = self.masks_of(batch)
        self._calls = {}

    def masks_of(self, batch: Any) -> dict[str, Tensor]:
        """The masks of a batch, bool [batch, length], by key."""
        if not isinstance(batch, Mapping):
            return {}
        found = ((key, batch.get(key)) for key in self.keys)
        return {key: mask != 0 for key, mask in found if isinstance(mask, Tensor) and mask.dim() == 2}

    def chosen(self, name: str, shape: torch.Size, call: int | None = None) -> Tensor | None:
        """The positions of an input that count, bool, one for each row of the input as ``[rows, D]``; None: all.

        Args:
            name: of the module; "" for an output of the model.
            shape: of the input.
            call: number of the module's call for this batch (or of the output); None: the next.
        """
        if call is None:
            call = self._calls.get(name, 0)
            self._calls[name] = call + 1
        known = self.layouts.get(name)
        if not known or not self._masks:
            return None
        if call >= len(known) and any(layout != known[0] for layout in known):
            raise ValueError(
                f"{self.argument}: {name}: its calls have the positions of different masks, and a batch makes more of "
                f"them ({call + 1}) than are known ({len(known)}): give {self.argument}=None"
            )
        layout = known[min(call, len(known) - 1)]
        mask = None if layout is None else self._masks.get(layout[0])
        if layout is None or mask is None or layout[1] not in _fitting(shape, mask):
            return None
        turned = layout[1] == "length first" or (layout[1] == "flat" and self.batch_first is False)
        return (mask.T if turned else mask).reshape(-1)

    # ------------------------------------------------------------------ whose positions

    def learn(self, model: nn.Module, seen: Observations) -> None:
        """Decide which mask belongs to which call of which module.

        Args:
            model: to run once more on a batch, cut, where shapes alone do not tell.
            seen: what the modules were shown.

        Raises:
            ValueError: more than one reading fits; the message names the module and the candidates.
        """
        if not seen.masked:
            if self.given not in (None, DEFAULT) and self.patterns is None:
                raise ValueError(f"{self.argument}: no batch has a mask [batch, length] of the key {self.given!r}")
            return
        candidates = {call: self._candidates(call, shapes) for call, shapes in seen.shapes.items()}
        doubtful = [call for call, layouts in candidates.items() if self._doubtful(model, call, layouts, seen)]
        probed = _Probes(self, model, seen)
        for call in sorted(candidates):
            layouts = candidates[call]
            if call in doubtful:
                layouts = probed.settle(call, layouts)
            self.layouts.setdefault(call[0], []).append(layouts[0] if layouts else None)
        if self.batch_first is None:
            self._refuse_flat()

    def _refuse_flat(self) -> None:
        """Of models with the length first, nobody knows in which order they put batch and length into one dimension."""
        every = [(name, layout) for name, known in self.layouts.items() for layout in known if layout is not None]
        turned = {key for _, (key, layout) in every if layout == "length first"}
        for name, (key, layout) in every:
            if layout == "flat" and key in turned:
                raise ValueError(
                    f"{self.argument}: {name}: its input has batch and length in one dimension, in an order that "
                    "shapes do not tell: give batch_first=True or False"
                )

    def _candidates(self, call: Call, shapes: Sequence[tuple[torch.Size, Mapping[str, Tensor]]]) -> list[Layout]:
        """The layouts that fit all that was seen of a call."""
        keys = self.keys if self.patterns is None else [self._pattern(call[0])]
        out: list[Layout] = []
        for key in keys:
            with_mask = [(shape, masks[key]) for shape, masks in shapes if key is not None and key in masks]
            for layout in _LAYOUTS:
                if layout != "flat" and self.batch_first not in (None, layout == "batch first"):
                    continue
                if key is not None and with_mask and all(layout in _fitting(*pair) for pair in with_mask):
                    out.append((key, layout))
        return out

    def _pattern(self, name: str) -> str | None:
        found = None
        for pattern, key in (self.patterns or {}).items():
            parts = name.split(".")
            if any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1)):
                found = key
        return found

    def _doubtful(self, model: nn.Module, call: Call, layouts: list[Layout], seen: Observations) -> bool:
        """Whether the shapes of a call leave a choice."""
        if len(layouts) != 1:
            return len(layouts) > 1
        return self.patterns is None and len(seen.rivals[layouts[0][0]]) > 1 and not _one_sequence(model)

    def refuse(self, call: Call, layouts: Sequence[Layout]) -> None:
        """Raise: more than one reading fits."""
        keys = list(dict.fromkeys(key for key, _ in layouts))
        both = len({layout for _, layout in layouts}) > 1
        say = "batch_first=True or False" if both else f'{self.argument}={{"pattern of modules": "{keys[0]}", ...}}'
        readings = " or ".join(f"{key!r} ({layout})" for key, layout in layouts)
        if len(layouts) == 1:
            readings += " or those of another input of the same shape"
        where = call[0] or "the output"
        raise ValueError(f"{self.argument}: {where}: its positions may be those of {readings}: give {say}")


class _Probes:
    """What runs on cut batches tell, made when they are asked for."""

    def __init__(self, padding: Padding, model: nn.Module, seen: Observations) -> None:
        self.padding, self.model, self.seen = padding, model, seen
        self._found: dict[str, list[Layouts]] = {}

    def settle(self, call: Call, layouts: list[Layout]) -> list[Layout]:
        """The one layout, or none, that a cut mask leaves of several.

        Raises:
            ValueError: none of the runs tells.
        """
        answers = set()
        for key in dict.fromkeys(key for key, _ in layouts):
            for table in self._of(key):
                if call in table:
                    answers.add((key, table[call]))
        told = {key for key, _ in answers}
        if told != {key for key, _ in layouts} or len(answers) != len(told):
            self.padding.refuse(call, layouts)
        out = [layout for layout in layouts if layout in answers]
        if len(out) > 1:
            self.padding.refuse(call, layouts)
        return out

    def _of(self, key: str) -> list[Layouts]:
        """For examples with this mask: the layout of every call that follows it, "" where none does."""
        if key not in self._found:
            run = self._run
            found = []
            for batch in self.seen.masked:
                if key not in self.padding.masks_of(batch):
                    continue
                table = None
                if _one_sequence(self.model):
                    table = follow_samples(run, batch, key)
                elif _is_hugging_face(self.model):
                    table = follow_inputs(run, batch, key, self._sequence(batch, key))
                if table is None:
                    table = follow_length(run, batch, key)
                if table is not None:
                    found.append(table)
                    break
            self._found[key] = found
        return self._found[key]

    @staticmethod
    def _sequence(batch: Mapping[str, Any], key: str) -> list[str]:
        """The inputs of a mask's sequence in an encoder-decoder of Hugging Face's."""
        second = {name for name in batch if name.startswith((DECODER, "labels"))}
        return [name for name in batch if name != key and (name in second) == (key in second)]

    def _run(self, batch: Mapping[str, Any]) -> dict[Call, torch.Size]:
        """The shapes that the modules are shown of a batch."""
        shapes = Observations(self.padding, self.seen.modules, outputs=self.seen.outputs)
        device = device_of(self.model)
        with torch.no_grad(), eval_mode(self.model), shapes.watching(self.model):
            self.model(**(batch if device is None else to_device(batch, device)))
        return {call: found[0][0] for call, found in shapes.shapes.items()}


def _fitting(shape: torch.Size, mask: Tensor) -> list[str]:
    """The layouts in which an input could have the positions of a mask."""
    batch, length = mask.shape
    if len(shape) < 3:
        return ["flat"] if len(shape) == 2 and shape[0] == batch * length else []
    found = [batch, length] == list(shape[:2]), [length, batch] == list(shape[:2])
    return [layout for layout, fits in zip(_LAYOUTS, found, strict=False) if fits]


def _one_sequence(model: nn.Module) -> bool:
    """Whether a model is one of Hugging Face's without a decoder beside its encoder: batch first, one mask."""
    return _is_hugging_face(model) and not getattr(model.config, "is_encoder_decoder", False)


def _is_hugging_face(model: nn.Module) -> bool:
    return hasattr(getattr(model, "config", None), "model_type")
