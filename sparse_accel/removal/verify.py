"""Whether a smaller model computes what the dense one does: its outputs, beside rounding."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparse_accel import wrappers
from sparse_accel.channels.graph import CompactError, tensors_of
from sparse_accel.channels.runs import Examples, one_by_one, outputs_of

logger = logging.getLogger("sparse_accel")

# Largest accepted |compact - dense|, relative to max(1, max |dense|).
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


# Largest difference of the same outputs in float64 that is put down to rounding, relative to the same: parts of a model
# may go on in float32 there.
ROUNDING = 1e-6
ROUNDED = "the outputs differ by rounding alone"


class OutputMismatchError(CompactError):
    """The compact model's outputs differ from the dense model's by more than the tolerance.

    Attributes:
        result: what would have been returned: nothing that was computed is lost.
        difference: the largest of an output element; infinite where the outputs are not of one shape.
    """

    difference: float = float("inf")


def cuda_devices(model: nn.Module) -> list[torch.device]:
    return list({tensor.device for tensor in tensors_of(model).values() if tensor.device.type == "cuda"})


@contextmanager
def comparable(model: nn.Module) -> Iterator[None]:
    """The same random numbers in every run and products of full float32 precision (no TF32, no bfloat16), both the
    caller's again afterwards."""
    devices = cuda_devices(model)
    backends: Any = torch.backends  # whose attributes torch sets at run time
    switches = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    switches += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    before = [switch.fp32_precision for switch in switches]
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(0)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        try:
            for switch in switches:
                switch.fp32_precision = "ieee"
            yield
        finally:
            for switch, precision in zip(switches, before, strict=True):
                switch.fp32_precision = precision


def verify_outputs(
    small: nn.Module,
    example_inputs: Any,
    expected: Sequence[Tensor],
    tolerance: float | None,
    *,
    exact: Callable[[], list[Tensor]] | None = None,
    notes: list[str] | None = None,
) -> float:
    """Run the smaller model on the example and compare.

    Args:
        small: the smaller model.
        example_inputs: see :func:`~sparse_accel.channels.runs.run_model`.
        expected: outputs of the dense one.
        tolerance: largest accepted difference, relative to ``max(1, max |output|)``; None: :data:`TOLERANCES`, and
            whatever is rounding alone, judged by the same outputs in float64.
        exact: the expected outputs in float64.
        notes: gets a line where a difference was put down to rounding.

    Returns:
        The largest difference of an output element.

    Raises:
        OutputMismatchError: past the tolerance.
        CompactError: the smaller model does not run.
    """
    try:
        with torch.no_grad(), comparable(small):
            came = outputs_of(wrappers.copy_model(small, CompactError).eval(), copy.deepcopy(example_inputs))
    except Exception as error:
        raise CompactError(f"the compact model does not run: {type(error).__name__}: {error}") from error
    _check_kinds(came, expected)
    largest, faults = 0.0, []
    for index, (new, old) in enumerate(zip(came, expected, strict=True)):
        difference, scale = _difference(new, old)
        allowed = (TOLERANCES.get(old.dtype, 0.0) if tolerance is None else tolerance) * max(1.0, scale)
        if not difference <= allowed:
            faults.append(f"output {index}: expected a difference of at most {allowed:.3g}, got {difference:.3g}")
        largest = difference if difference != difference else max(largest, difference)
    if not faults:
        return largest
    wide = None if tolerance is not None or exact is None else _largest_in_float64(small, example_inputs, exact)
    if wide is not None and wide <= ROUNDING:
        message = f"{ROUNDED}: {faults[0]}, and in float64 {wide:.3g} relative to the largest output"
        logger.warning(message)
        if notes is not None:
            notes.append(message)
        return largest
    mismatch = OutputMismatchError(faults[0] + ("" if wide is None else f"; it is no rounding: in float64 {wide:.3g}"))
    mismatch.difference = largest
    raise mismatch


def _check_kinds(came: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    if len(came) != len(expected):
        raise OutputMismatchError(f"outputs: expected {len(expected)} tensors, got {len(came)}")
    for index, (new, old) in enumerate(zip(came, expected, strict=True)):
        if new.shape != old.shape or new.dtype != old.dtype:
            raise OutputMismatchError(
                f"output {index}: expected {tuple(old.shape)} {old.dtype}, got {tuple(new.shape)} {new.dtype}"
            )


def in_float64(example_inputs: Any) -> Any:
    """A copy of the inputs with their floating-point tensors in float64."""
    inputs = copy.deepcopy(example_inputs)

    def wide(tree: Any) -> Any:
        return pytree.tree_map_only(
            Tensor, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, tree
        )

    if not isinstance(inputs, Examples):
        return wide(inputs)
    runs = tuple((method, wide(own)) for method, own in inputs.runs)
    object.__setattr__(inputs, "runs", runs)
    return inputs


def outputs_in_float64(model: nn.Module, example_inputs: Any) -> list[Tensor]:
    """Outputs of a model, which changes, in eval mode and float64; experts of mixtures one by one: kernels of theirs
    know no float64."""
    model = model.eval().double()
    with one_by_one(model):
        return outputs_of(model, in_float64(example_inputs))


def _largest_in_float64(small: nn.Module, example_inputs: Any, exact: Callable[[], list[Tensor]]) -> float | None:
    """The largest difference in float64, relative to ``max(1, max |output|)``; None where that cannot be told."""
    devices = {tensor.device.type for tensor in tensors_of(small).values()}
    if any(tensor.dtype == torch.float64 for tensor in tensors_of(small).values()) or "mps" in devices:
        return None
    try:
        with torch.no_grad(), comparable(small):
            came = outputs_in_float64(wrappers.copy_model(small, CompactError), example_inputs)
        with torch.no_grad(), comparable(small):
            wanted = exact()
        _check_kinds(came, wanted)
    except Exception as error:
        logger.info("the outputs cannot be compared in float64: %s: %s", type(error).__name__, error)
        return None
    ratios = [difference / max(1.0, scale) for difference, scale in map(_difference, came, wanted)]
    return float("nan") if any(ratio != ratio for ratio in ratios) else max(ratios, default=0.0)


def _difference(new: Tensor, old: Tensor) -> tuple[float, float]:
    """Largest |new - old| where they differ at all, and largest finite |old|; NaN at the same place is equal."""
    if old.numel() == 0:
        return 0.0, 0.0
    wide = torch.complex128 if old.is_complex() else torch.float64
    a, b = new.to(wide), old.to(wide)
    same = (a == b) | (a.isnan() & b.isnan())
    difference = torch.where(same, 0.0, (a - b).abs())
    scale = torch.where(b.isfinite(), b.abs(), 0.0)
    return float(difference.max()), float(scale.max())
