"""Where the dense and the pruned model are compared: the outputs of blocks, and those of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from sparse_accel.calibration.data import Calibration
from sparse_accel.calibration.observations import floating
from sparse_accel.calibration.padding import Padding
from sparse_accel.calibration.survey import find_units, survey
from sparse_accel.channels.call import run_model, tree_tensors

SURVEYED = 4  # batches

Taken = dict[str, list[Tensor]]  # of every window, call by call; "" for the outputs


def find_windows(
    dense: nn.Module, pruned: nn.Module, batches: Sequence[Any], patterns: Sequence[str] | None
) -> list[str]:
    """Names of the modules whose outputs are compared.

    Args:
        dense, pruned: the models.
        batches: of inputs.
        patterns: names of modules, with shell wildcards; None: the blocks that every batch calls once.

    Raises:
        ValueError: a pattern matches no module of both models.
    """
    there = {name for name, _ in pruned.named_modules()}
    modules = {name: module for name, module in dense.named_modules() if name and name in there}
    if patterns is not None:
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in modules):
                raise ValueError(f"windows: {pattern!r} matches no module of both models")
        return [name for name in modules if any(fnmatchcase(name, pattern) for pattern in patterns)]
    found = survey(dense, Calibration(list(batches[:SURVEYED])))
    owners = {module for module in dense.modules() if any(True for _ in module.parameters(recurse=False))}
    names = {module: name for name, module in modules.items()}
    return [names[unit] for unit in find_units(dense, owners, found.once()) if unit in names]


class Watch:
    """A model whose windows and outputs are taken.

    Args:
        model: to run.
        names: of the windows.
        padding: which positions count.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], padding: Padding) -> None:
        self.model, self.padding = model, padding
        self.modules: Mapping[str, nn.Module] = {name: model.get_submodule(name) for name in names}

    def run(self, batch: Any) -> Taken:
        """One run; the positions of padding are left out of linear layers' results.

        Raises:
            ValueError: the model returns no floating-point tensor.
        """
        taken: Taken = {}
        self.padding.enter(batch)
        with self._hooked(taken):
            output = run_model(self.model, batch)
        found = floating(output)
        # Numbers alone, such as a loss of labels that are among the inputs, are no results to fit.
        taken[""] = [tensor for tensor in found if tensor.dim()] or found
        if not taken[""]:
            raise ValueError("refine: the model returns no floating-point tensor to compare")
        return {name: [self._counted(name, t, n) for n, t in enumerate(parts)] for name, parts in taken.items()}

    def _counted(self, name: str, tensor: Tensor, call: int) -> Tensor:
        chosen = self.padding.chosen(name, tensor.shape, call)
        return tensor if chosen is None else tensor.reshape(-1, tensor.shape[-1])[chosen.to(tensor.device)]

    @contextmanager
    def _hooked(self, taken: Taken) -> Iterator[None]:
        def hook_of(name: str) -> Any:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                first = next((t for t in tree_tensors(output) if t.is_floating_point() and t.numel()), None)
                if first is not None:
                    taken.setdefault(name, []).append(first)

            return hook

        handles = [module.register_forward_hook(hook_of(name)) for name, module in self.modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def paired(dense: Taken, pruned: Taken) -> dict[tuple[str, int], tuple[Tensor, Tensor]]:
    """What can be compared, by window and call: (pruned, dense). Of windows that were cut, nothing can.

    Raises:
        ValueError: the models' outputs do not match.
    """
    out = {}
    for name, wanted in dense.items():
        came = pruned.get(name, [])
        same = len(came) == len(wanted) and all(a.shape == b.shape for a, b in zip(came, wanted, strict=True))
        if not same and not name:
            shapes = [", ".join(str(tuple(t.shape)) for t in taken) for taken in (wanted, came)]
            raise ValueError(
                f"dense: expected a model whose outputs are like the pruned one's, {shapes[1]}, got {shapes[0]}"
            )
        if same:
            out.update({(name, call): pair for call, pair in enumerate(zip(came, wanted, strict=True))})
    return out
