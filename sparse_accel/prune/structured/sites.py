"""Where a linear map's result goes: the residual addition and the ReLU after it, found by watching a run.

A *site* is a consumer together with the BatchNorm that alone follows it: its result y. While a model runs, a
:class:`torch.overrides.TorchFunctionMode` sees the addition that takes y and what is done with the sum, so nothing
about the model's code has to be known: ``x + y``, ``y += x`` and ``torch.add`` in any module are the same to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sparse_accel.calibration.data import eval_mode
from sparse_accel.channels.call import run_model, tree_tensors
from sparse_accel.channels.containers import output_tensors
from sparse_accel.channels.runs import Examples

_ADD = frozenset(("add", "add_", "__add__", "__radd__", "__iadd__"))
_RELU = frozenset(("relu", "relu_"))
_SAME_NAMES = """dropout dropout_ dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout
contiguous float to type_as"""
_SAME = frozenset(_SAME_NAMES.split())


@dataclass
class Site:
    """A consumer's result in one model's forward pass.

    Attributes:
        module: name of the consumer.
        norm: name of the eval-mode BatchNorm that alone follows it.
        calls: how often one forward pass calls it, known for every batch; 0 where that differs.
        routed: whether the values of a batch decide which of its samples it sees: those of two models may differ.
        residual: whether every result is added to a tensor of its shape (the shortcut).
        relu: whether nothing but a ReLU takes that sum (or the result, if it is not added to anything).
        output: whether a result is itself an output of the model.
    """

    module: str
    norm: str | None = None
    calls: int = 0
    residual: bool = False
    relu: bool = False
    output: bool = False
    routed: bool = False


def _name(func: Any) -> str:
    return str(getattr(func, "__name__", func))


def _operands(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Both terms of a plain addition of tensors of one shape."""
    if name not in _ADD or kwargs.get("alpha", 1) != 1 or kwargs.get("out") is not None:
        return None
    terms = [*args, *(kwargs[key] for key in ("input", "other") if key in kwargs)]
    if len(terms) != 2 or not all(isinstance(term, Tensor) for term in terms) or terms[0].shape != terms[1].shape:
        return None
    return terms[0], terms[1]


class _Follow(TorchFunctionMode):
    """Notes what the results of sites are used for in one run on the example."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: list[Tensor] = []  # so that no id is used twice
        self.results: dict[int, set[tuple[str, int]]] = {}  # tensor -> sites and numbers of their calls
        self.sums: dict[int, set[tuple[str, int]]] = {}  # a sum can have two of them
        self.added: set[tuple[str, int]] = set()
        self.uses: dict[tuple[str, int], list[str]] = {}
        self.sum_uses: dict[tuple[str, int], list[str]] = {}

    def result(self, key: tuple[str, int], tensor: Tensor) -> None:
        self.alive.append(tensor)
        self.results.setdefault(id(tensor), set()).add(key)
        self.uses[key] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        taken = [t for t in tree_tensors((args, kwargs)) if id(t) in self.results or id(t) in self.sums]
        result = func(*args, **kwargs)
        if not taken or not any(True for _ in tree_tensors(result)):
            return result
        terms = _operands(name, args, kwargs)
        for tensor in taken:
            table, uses = (self.sums, self.sum_uses) if id(tensor) in self.sums else (self.results, self.uses)
            keys = table[id(tensor)]
            if name in _SAME and isinstance(result, Tensor) and result.shape == tensor.shape:
                if result is not tensor:
                    self.alive.append(result)
                    table[id(result)] = keys
                continue
            for key in keys:
                uses[key].append(name)
            if result is tensor:  # overwritten
                del table[id(tensor)]
            if table is self.results and terms is not None and terms[0] is not terms[1]:
                self.alive.append(result)
                self.added |= keys
                self.sums.setdefault(id(result), set()).update(keys)
                for key in keys:
                    self.sum_uses[key] = []
        return result


def find_sites(model: nn.Module, example_inputs: Any, consumers: Mapping[str, str | None]) -> dict[str, Site]:
    """Run the model on the examples and see what becomes of the consumers' results.

    Args:
        model: runs in eval mode, without gradients.
        example_inputs: see :func:`~sparse_accel.channels.runs.run_model`.
        consumers: names of linear maps, each with the name of the norm that alone follows it, or None.

    Returns:
        A site for every consumer, by its name. Of several examples it tells what holds in all that reach the consumer.
    """
    found = [_sites_of(model, example, consumers) for example in Examples.of(example_inputs).single()]
    sites = {}
    for name, norm in consumers.items():
        own = [run[name] for run in found if run[name].calls] or [found[0][name]]
        residual = all(site.residual for site in own)
        relu = residual == any(site.residual for site in own) and all(site.relu for site in own)
        calls, output = max(site.calls for site in own), any(site.output for site in own)
        sites[name] = Site(name, norm, calls, residual, relu, output)
    return sites


def _sites_of(model: nn.Module, example: Examples, consumers: Mapping[str, str | None]) -> dict[str, Site]:
    """The sites of one run."""
    follow = _Follow()
    calls = dict.fromkeys(consumers, 0)

    def hook_of(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                follow.result((name, calls[name]), output)
            calls[name] += 1

        return hook

    results = {name: model.get_submodule(norm or name) for name, norm in consumers.items()}
    handles = [module.register_forward_hook(hook_of(name)) for name, module in results.items()]
    try:
        with torch.no_grad(), eval_mode(model), follow:
            outputs = {id(tensor) for tensor in output_tensors(run_model(model, example))}
    finally:
        for handle in handles:
            handle.remove()
    sites = {}
    for name, norm in consumers.items():
        keys = [(name, call) for call in range(calls[name])]
        residual = bool(keys) and all(key in follow.added and len(follow.uses[key]) == 1 for key in keys)
        uses = [(follow.sum_uses if residual else follow.uses).get(key, []) for key in keys]
        ends = [tensor for tensor, own in (follow.sums if residual else follow.results).items() if own & set(keys)]
        output = any(tensor in outputs for tensor in ends)
        relu = bool(keys) and not output and all(own and set(own) <= _RELU for own in uses)
        sites[name] = Site(name, norm, calls[name], residual, relu, output)
    return sites


@dataclass
class Seen:
    """What one batch shows of a site, a list entry for each call.

    Attributes:
        inputs: of the consumer.
        sizes: shapes of its own results.
        results: after the norm, and after the addition where the site has a shortcut and it was asked for.
        shortcuts: the other terms of the additions.
    """

    inputs: list[Tensor] = field(default_factory=list)
    sizes: list[torch.Size] = field(default_factory=list)
    results: list[Tensor] = field(default_factory=list)
    shortcuts: list[Tensor] = field(default_factory=list)


class _Enough(BaseException):
    """Ends a forward pass; not an Exception, so that a model's own handlers let it through."""


class Watch(TorchFunctionMode):
    """Collects what a model shows of some sites, and ends each forward pass when it has all of it.

    Args:
        model: to run.
        sites: by any name.
        inputs: keep the consumers' inputs.
        results: keep the results.
        sums: sites, by name, whose shortcuts are wanted: their results are kept with the shortcuts added.

    Use :meth:`hooked` around all batches, and :meth:`run` for each of them.
    """

    def __init__(
        self, model: nn.Module, sites: Mapping[str, Site], *, inputs: bool, results: bool, sums: Collection[str] = ()
    ) -> None:
        super().__init__()
        self.model = model
        self.sites = sites
        self.inputs, self.results = inputs, results
        self.sums = frozenset(name for name in sums if sites[name].residual)
        self.pending: dict[int, tuple[str, Tensor]] = {}
        self.seen: dict[str, Seen] = {}
        self.open: float = 0  # calls until all have been seen; inf where nobody knows

    @contextmanager
    def hooked(self) -> Iterator[Watch]:
        """The model in eval mode and watched, without gradients."""
        handles = []
        for name, site in self.sites.items():
            consumer = self.model.get_submodule(site.module)
            handles.append(consumer.register_forward_hook(self._consumed(name), with_kwargs=True))
            if site.norm is not None:
                handles.append(self.model.get_submodule(site.norm).register_forward_hook(self._finished(name)))
        try:
            with torch.no_grad(), eval_mode(self.model):
                yield self
        finally:
            for handle in handles:
                handle.remove()

    def run(self, batch: Any, *, known: bool = True) -> dict[str, Seen]:
        """What this batch shows, by site: every call.

        Args:
            batch: for the model.
            known: whether it calls the sites as often as they say; if not, or if one does not say, the forward pass
                goes to its end.

        Raises:
            ValueError: a result is not added to anything, unlike on the example; the message names the site.
        """
        self.seen = {name: Seen() for name in self.sites}
        counted = known and all(site.calls for site in self.sites.values())
        self.open = sum(site.calls for site in self.sites.values()) if counted else math.inf
        self.pending = {}
        with suppress(_Enough):
            if self.sums:
                with self:
                    run_model(self.model, batch)
            else:
                run_model(self.model, batch)
        for name, _ in self.pending.values():
            raise ValueError(f"{self.sites[name].module}: expected its result to be added, as on example_inputs")
        return self.seen

    def _consumed(self, name: str) -> Callable[..., None]:
        site = self.sites[name]

        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self.inputs:
                x = next(tree_tensors((args, kwargs)))
                self.seen[name].inputs.append(x.clone() if self.open > 1 else x)
                self.seen[name].sizes.append(output.shape)
            if site.norm is None or not (self.results or name in self.sums):
                self._finish(name, output)

        return hook

    def _finished(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if self.results or name in self.sums:
                self._finish(name, output)

        return hook

    def _finish(self, name: str, output: Tensor) -> None:
        if name in self.sums:
            self.pending[id(output)] = (name, output)
            return
        if self.results:
            self.seen[name].results.append(output.clone() if self.open > 1 else output)
        self._done()

    def _done(self) -> None:
        self.open -= 1
        if not self.open:
            raise _Enough

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.pending:
            return func(*args, **kwargs)
        name = _name(func)
        terms = _operands(name, args, kwargs)
        for tensor, other in () if terms is None else (terms, terms[::-1]):
            if id(tensor) in self.pending and tensor is not other:
                site, _ = self.pending.pop(id(tensor))
                if self.results:
                    self.seen[site].results.append(tensor + other)
                self.seen[site].shortcuts.append(other.clone() if self.open > 1 else other)
                self._done()
        result = func(*args, **kwargs)
        if name in _SAME and isinstance(result, Tensor):
            for tensor in tree_tensors((args, kwargs)):
                if id(tensor) in self.pending and result is not tensor and result.shape == tensor.shape:
                    self.pending[id(result)] = (self.pending.pop(id(tensor))[0], result)
        return result
