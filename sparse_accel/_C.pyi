"""Kernels on views of memory; :mod:`sparse_accel.native` says what for."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

has_cuda: bool
emulated: bool  # the CUDA kernels on CPU tensors: the tests' build
torch_version: str  # whose headers it was compiled with
abi: str  # what it asks of torch at run time

def cpu_capability() -> str: ...

class StepPlan:
    def __init__(
        self,
        everything: dict[Tensor, dict[str, Any]],
        group: list[Tensor],
        batches: Sequence[tuple[list[Tensor], list[int], list[float]]],
        names: Sequence[str],
        prox: str,
    ) -> None: ...
    def grads(self, everything: dict[Tensor, dict[str, Any]], group: list[Tensor]) -> list[Tensor] | None: ...
    def rmda_step_(self, grads: list[Tensor], lr: float, momentum: float, maximize: bool) -> bool: ...
    def ramda_step_(self, grads: list[Tensor], lr: float, momentum: float, eps: float, maximize: bool) -> bool: ...
    def prox_adamw_step_(
        self,
        grads: list[Tensor],
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        maximize: bool,
    ) -> bool: ...
    def prox_sgd_step_(self, grads: list[Tensor], lr: float, rho: float, maximize: bool) -> bool: ...

def check_layouts(op: str, tensors: Sequence[Tensor], layouts: Sequence[int]) -> None: ...
def group_score(
    tensors: Sequence[Tensor], layouts: Sequence[int], outputs: Sequence[Tensor], kind: str, coupled: bool
) -> None: ...
def group_topk(scores: Sequence[Tensor], masks: Sequence[Tensor], k: int) -> None: ...
def prox_(
    tensors: Sequence[Tensor], layouts: Sequence[int], prox: str, thresholds: Sequence[float], values: Tensor | None
) -> None: ...
def check_glm_data(
    op: str, crow: Tensor | None, col: Tensor | None, targets: Tensor, columns: int, family: str
) -> None: ...
def glm_prox(
    z: Tensor,
    values: Tensor,
    crow: Tensor | None,
    col: Tensor | None,
    targets: Tensor,
    lr: float,
    family: str,
    delta: float,
    out: Tensor,
    iterations: Tensor,
) -> None: ...
def glm_epoch_(
    x: Tensor,
    x_prev: Tensor,
    values: Tensor,
    crow: Tensor | None,
    col: Tensor | None,
    targets: Tensor,
    order: Tensor,
    lr: float,
    beta: float,
    family: str,
    delta: float,
    average: Tensor | None,
    average_start: int,
    iterations: Tensor,
) -> None: ...
def glm_terms(v: Tensor, targets: Tensor, family: str, delta: float, slopes: Tensor, curvatures: Tensor) -> float: ...
def glm_residual(
    x: Tensor, z: Tensor, pull: Tensor, eta: float, moved: Tensor, residual: Tensor
) -> tuple[float, float, float]: ...
def gram_obs_order(units: int) -> tuple[int, int]: ...
def gram_obs_panel(
    inverse: Tensor,
    moment: Tensor,
    v: Tensor,
    a: Tensor,
    own_inverse: Tensor,
    own_moment: Tensor,
    units: Tensor,
    set_of: Tensor | None,
    gone: Tensor | None,
    most: int,
    order: Tensor,
    damages: Tensor,
) -> int: ...
def rmda_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    points: Sequence[Tensor],
    anchors: Sequence[Tensor],
    steps: Sequence[Tensor],
    alphas: Sequence[Tensor],
    layouts: Sequence[int],
    prox: str,
    strengths: Sequence[float],
    lr: float,
    lr_tensor: Tensor | None,
    momentum: float,
    maximize: bool,
    grad_scale: float,
    grad_scale_tensor: Tensor | None,
    found_inf: Tensor | None,
) -> list[int]: ...
def prox_sgd_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    steps: Sequence[Tensor],
    layouts: Sequence[int],
    prox: str,
    strengths: Sequence[float],
    lr: float,
    lr_tensor: Tensor | None,
    rho: float,
    maximize: bool,
    grad_scale: float,
    grad_scale_tensor: Tensor | None,
    found_inf: Tensor | None,
) -> list[int]: ...
def ramda_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    duals: Sequence[Tensor],
    squares: Sequence[Tensor],
    anchors: Sequence[Tensor],
    steps: Sequence[Tensor],
    alphas: Sequence[Tensor],
    layouts: Sequence[int],
    prox: str,
    strengths: Sequence[float],
    lr: float,
    lr_tensor: Tensor | None,
    momentum: float,
    eps: float,
    maximize: bool,
    grad_scale: float,
    grad_scale_tensor: Tensor | None,
    found_inf: Tensor | None,
) -> list[int]: ...
def prox_adamw_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    layouts: Sequence[int],
    prox: str,
    strengths: Sequence[float],
    lr: float,
    lr_tensor: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    grad_scale: float,
    grad_scale_tensor: Tensor | None,
    found_inf: Tensor | None,
) -> list[int]: ...
def masked_cg_rows(
    mask: Tensor,
    w: Tensor,
    x: Tensor,
    r: Tensor,
    p: Tensor,
    q: Tensor,
    diagonal: Tensor,
    inverse: Tensor,
    rz: Tensor,
    done: Tensor,
    begin: bool,
) -> int: ...
def sparse_linear(
    x: Tensor,
    values: Tensor,
    bits: Tensor,
    offsets: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    activation: str,
    y: Tensor,
) -> bool: ...
def sparse_unpack(
    values: Tensor,
    bits: Tensor,
    offsets: Tensor,
    scales: Tensor | None,
    rows: int,
    first: int,
    last: int,
    dense: Tensor,
) -> None: ...
def sparse_collect(dense: Tensor, bits: Tensor, offsets: Tensor, values: Tensor) -> None: ...
def sparse_finish(y: Tensor, bias: Tensor | None, activation: str) -> None: ...
def topk_rows(x: Tensor, scores: Tensor | None, scale: Tensor | None, mask: Tensor, rows: int, k: int) -> None: ...
def topk_blocks(x: Tensor, scores: Tensor | None, scale: Tensor | None, mask: Tensor, n: int, m: int) -> None: ...
def topk_within(
    x: Tensor, scores: Tensor | None, scale: Tensor | None, mask: Tensor, layout: Sequence[int], k: int
) -> None: ...
def topk_groups(x: Tensor, mask: Tensor, keep: Tensor, layout: Sequence[int]) -> None: ...
