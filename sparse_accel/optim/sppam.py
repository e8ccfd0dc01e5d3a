"""SPPAM, the stochastic proximal point method with momentum (Kim, Toulis & Kyrillidis, L4DC 2022, arXiv 2111.06171)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT

from sparse_accel.penalties import Penalty

from ._base import ProximalOptimizer
from ._batch import check_count, check_finite, state_dtype
from ._closure import ClosureProblem, number, real, warn_unfinished
from ._docs import shared_docs
from ._exact import Block, GlmLoss, Quadratic, check_exact
from ._iterates import advance, extrapolated
from .common.projection import has_constraint

__all__ = ["SPPAM"]

_SHORTEST_START = 1e-3  # of the inner solver's first step: a kink at the end of the last problem is no news of the next


@shared_docs()
class SPPAM(ProximalOptimizer):
    r"""The stochastic proximal point method with momentum: implicit steps, stable for any ``lr``.

    .. math::
        z = x + \beta\,(x - x_-),\qquad
        x^+ = \arg\min_y f(y) + \tfrac{\mathrm{wd}}{2}\|y\|^2 + \psi(y) + \tfrac{1}{2\,\mathrm{lr}}\|y - z\|^2

    with f the loss of the minibatch and :math:`\psi` the penalty. Three ways to step:

    - :meth:`step` with a closure, for any model: the problem is solved by proximal gradient steps with a line search
      from z, until the proximal gradient's norm is ``tolerance`` of that at z. The closure is called once and then
      once per inner step; it has to compute the same loss each time (no dropout, no new minibatch). It warns where the
      tolerance is not reached: beyond ``max_inner`` calls, or where the solution lies on a kink of the model.
    - :meth:`step_glm`, for a linear layer under a generalized linear model: exact.
    - :meth:`step_quadratic`, for :math:`\tfrac12 x^\top A x - b^\top x`: exact, one Cholesky factor for all steps.

    Args:
        {params}
        {lr}
        momentum: beta; 0 is SPPA. :func:`sparse_accel.sppam.optimal_momentum` has the best one for quadratics.
        weight_decay: strength of the L2 term, >= 0; part of the proximal problem.
        {penalty}
            It is part of the proximal problem.
        averaging: keep the mean of all iterates after this many steps (Polyak & Ruppert): :meth:`proximal_parameters`
            holds it in the parameters for evaluation, :meth:`finalize_` sets it for good. None: no mean, and both
            change nothing.
        tolerance: of the inner solver, in (0, 1).
        max_inner: closure calls after which the inner solver gives up and warns.
        maximize: ascend: the proximal problem of -f.
        foreach: accepted; there is one implementation.
        fused: True is refused, and so are ``capturable`` and ``differentiable``: the inner solver asks the closure
            and decides on the host.

    Raises:
        ValueError: a number is out of its range, or an option is not supported.

    State per parameter: ``step`` ``[]`` float32, ``previous`` (the iterate before) and, with ``averaging``,
    ``average``; float32 (float64 for float64 parameters). The groups' ``inner_length`` is the last inner step's length,
    where the next step starts. Half-precision parameters are rounded in every inner step, so that the tolerance may be
    out of reach.

    Example:
        >>> import sparse_accel as sa
        >>> _ = torch.nn.init.zeros_((layer := torch.nn.Linear(2, 1, bias=False)).weight)
        >>> opt = sa.SPPAM(layer.parameters(), lr=1e6)
        >>> loss = opt.step_glm(torch.tensor([[3.0, 4.0]]), torch.tensor([10.0]), family="gaussian")
        >>> loss, layer.weight.detach()
        (tensor(50.), tensor([[1.2000, 1.6000]]))
    """

    _tensor_state: ClassVar = ("previous",)
    _group_defaults: ClassVar[dict[str, Any]] = {
        **ProximalOptimizer._group_defaults,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "averaging": None,
        "tolerance": 1e-4,
        "max_inner": 100,
        "inner_length": 1.0,
    }

    inner_calls: int
    """Inner iterations of the last step: closure calls after the first, or Newton steps of :meth:`step_glm`."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        momentum: float = 0.0,
        *,
        weight_decay: float = 0.0,
        penalty: Penalty | None = None,
        averaging: int | None = None,
        tolerance: float = 1e-4,
        max_inner: int = 100,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "penalty": penalty,
            "averaging": averaging,
            "tolerance": tolerance,
            "max_inner": max_inner,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)
        self._start()

    def _start(self) -> None:
        self.inner_calls = 0
        self._factor: dict[str, Any] = {}  # of the last quadratic; not state: it follows from its matrix

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._start()

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        for name in ("fused", "capturable", "differentiable"):
            if group[name]:
                raise ValueError(f"{name}=True is not supported by SPPAM: its inner solver decides on the host")
        if group["coupled"] or (group["penalty"] and ("target" in group["penalty"] or has_constraint(group))):
            raise ValueError("target and constraints are not supported by SPPAM (nor coupled groups): give a strength")
        check_finite("momentum", group["momentum"])
        check_finite("weight_decay", group["weight_decay"], least=0.0)
        if group["averaging"] is not None:
            check_count("averaging", group["averaging"], "a number of steps >= 0, or None", least=0)
        if not 0 < group["tolerance"] < 1:
            raise ValueError(f"tolerance: expected a number in (0, 1), got {group['tolerance']!r}")
        check_count("max_inner", group["max_inner"], "a number of closure calls >= 1", least=1)

    @staticmethod
    def _is_fused(group: dict[str, Any]) -> bool:
        return False

    @_disable_dynamo
    def step(self, closure: Callable[[], Any] | GlmLoss | Quadratic | None = None) -> Any:
        """Do one step.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward()`` and returns the loss; called several
                times.

        Returns:
            The loss at z, where the inner solver starts: at the parameters, if ``momentum`` is 0.

        Raises:
            ValueError: there is no closure.
            RuntimeError: a gradient is sparse; a complex parameter is under a penalty; called inside
                :meth:`proximal_parameters` or in eval mode. All is then as it was, also when the closure raises.
        """
        self._refuse_eval("step()")
        for group in self.param_groups:
            self._check_group(group)
        if closure is None:
            raise ValueError("SPPAM: expected a closure: step(closure), or step_glm(features, targets, family)")
        if isinstance(closure, (GlmLoss, Quadratic)):
            return self._exact_step(closure)
        params = list(dict.fromkeys(param for group in self.param_groups for param in group["params"]))
        with torch.no_grad():
            saved = [param.detach().clone() for param in params]
        try:
            return self._closure_step(closure, dict(zip(params, saved, strict=True)))
        except BaseException:
            with torch.no_grad():
                for param, value in zip(params, saved, strict=True):
                    param.copy_(value)
            raise

    def step_glm(
        self, features: Tensor, targets: Tensor, family: str = "binomial", mode: str = "joint", *, delta: float = 1.0
    ) -> Tensor:
        """One exact proximal step of a linear layer on a minibatch.

        Args:
            features: rows ``[b, d]`` of the parameters' dtype, dense or ``torch.sparse_csr``.
            targets: ``[b]``, or ``[b, outputs]``: every output is a model of its own.
            family: ``"gaussian"``, ``"binomial"`` (targets 0 or 1), ``"poisson"`` (targets >= 0) or ``"huber"``.
            mode: ``"joint"`` (the proximal step of the mean loss), ``"average"`` (the mean of the rows' steps) or
                ``"single"`` (one row).
            delta: of the huber loss.

        Returns:
            The mean loss over the rows, summed over the outputs, at the parameters before the step.

        Raises:
            ValueError: data that do not fit (the parameters are then as they were), parameters that are not those of
                one linear layer, a penalty (``weight_decay`` is exact, a penalty needs :meth:`step`), ``maximize``.
        """
        return self.step(GlmLoss(features, targets, family, mode, delta))

    def step_quadratic(self, matrix: Tensor, vector: Tensor) -> Tensor:
        """One exact proximal step of ``1/2 x'Ax - b'x``, with x all parameters flattened into one vector ``[p]``.

        The Cholesky factor of ``I + lr A`` is kept while A (the same tensor, not modified) and lr stay.

        Args:
            matrix: A ``[p, p]``, symmetric, with ``I + lr A`` positive definite.
            vector: b ``[p]``.

        Returns:
            The objective at the parameters before the step.

        Raises:
            ValueError: sizes that do not fit, different lr among groups, a matrix that is not definite, a penalty.

        Example:
            >>> x = torch.nn.Parameter(torch.zeros(2))
            >>> _ = SPPAM([x], lr=1.0).step_quadratic(torch.eye(2), torch.tensor([2.0, 4.0]))
            >>> x.detach()
            tensor([1., 2.])
        """
        return self.step(Quadratic(matrix, vector))

    def _extrapolated(self, param: Tensor, momentum: float) -> Tensor:
        return extrapolated(param, self.state.get(param, {}).get("previous"), momentum)

    def _advance(self, param: Tensor, before: Tensor, averaging: int | None) -> None:
        """State after a step that has set the parameter; ``before``: its value until then."""
        state = self.state[param]
        if "step" not in state:
            state.update(self._new_scalars(param))
        advance(state, param, before, averaging)

    @torch.no_grad()
    def _exact_step(self, problem: GlmLoss | Quadratic) -> Tensor:
        blocks, averaging = [], {}
        for group in self.param_groups:
            check_exact(group)
            for param in dict.fromkeys(group["params"]):
                z = self._extrapolated(param, group["momentum"]).to(param.dtype)
                blocks.append(Block(param, z, float(group["lr"]), float(group["weight_decay"])))
                averaging[param] = group["averaging"]
        if isinstance(problem, Quadratic):
            loss, values, self.inner_calls = problem.solve(blocks, self._factor)
        else:
            loss, values, self.inner_calls = problem.solve(blocks)
        for block, value in zip(blocks, values, strict=True):
            before = block.param.detach().clone()
            block.param.copy_(value)
            self._advance(block.param, before, averaging[block.param])
        return loss

    def _closure_step(self, closure: Callable[[], Any], saved: dict[Tensor, Tensor]) -> Any:
        with torch.no_grad():
            for group in self.param_groups:
                for param in dict.fromkeys(group["params"]):
                    moves = param.requires_grad or param.grad is not None  # frozen is frozen, also within the step
                    if moves and group["momentum"] != 0 and "previous" in self.state.get(param, {}):
                        real(param).copy_(self._extrapolated(param, group["momentum"]))
        with torch.enable_grad():
            first = closure()
        with torch.no_grad():
            self._solve(closure, first, saved)
        return first

    def _solve(self, closure: Callable[[], Any], first: Any, saved: dict[Tensor, Tensor]) -> None:
        """From z in the parameters, with the gradients of the first call, to the new iterate and state."""
        averaging: dict[Tensor, int | None] = {}
        problem = ClosureProblem(closure, -1.0 if self.param_groups[0]["maximize"] else 1.0)
        if any(group["maximize"] != self.param_groups[0]["maximize"] for group in self.param_groups):
            raise ValueError("SPPAM: expected one value of maximize for all groups")
        for group in self.param_groups:
            lr = float(group["lr"])
            for batch in self._gather(group, need_grad=True):
                for param, work, layout, strength in zip(
                    batch.params, batch.work, batch.layouts, batch.strengths, strict=True
                ):
                    averaging[param] = group["averaging"]
                    if lr == 0:
                        continue  # the proximal operator is the identity: z it is
                    z = work.detach().to(state_dtype(work), copy=True)
                    problem.add(self, group, param, z, layout, strength)
        for param, value in saved.items():
            if param not in averaging:
                param.copy_(value)  # no gradient, no step
        if not math.isfinite(number(first)):
            raise ValueError(f"SPPAM: the closure returned {number(first)}: the proximal problem has no start")
        self.inner_calls = 0
        if problem.pieces:
            self._solve_problem(problem, first)
        for param in averaging:
            self._advance(param, saved[param], averaging[param])

    def _solve_problem(self, problem: ClosureProblem, first: Any) -> None:
        group = self.param_groups[0]
        solution = problem.solve(first, group["inner_length"], group["tolerance"], int(group["max_inner"]))
        self.inner_calls = solution.calls
        for group in self.param_groups:
            group["inner_length"] = max(solution.length, _SHORTEST_START)
        if not solution.converged:
            warn_unfinished(solution, group["tolerance"])

    # ------------------------------------------------------------------ the mean of the iterates

    @staticmethod
    def _is_apart(state: dict[str, Any]) -> bool:
        return "average" in state

    def _write_proximal(self, backup: dict[Tensor, Tensor] | None) -> None:
        for group in self.param_groups:
            for param in dict.fromkeys(group["params"]):
                average = self.state.get(param, {}).get("average")
                if average is None or not param.requires_grad:
                    continue
                if backup is not None:
                    backup[param] = param.detach().clone()
                real(param).copy_(average)
