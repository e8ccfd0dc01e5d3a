from collections.abc import Sequence

from torch import Tensor

has_cuda: bool
torch_version: str

def cpu_capability() -> str: ...
def group_score(tensors: Sequence[Tensor], layouts: Sequence[int], kind: str, coupled: bool) -> list[Tensor]: ...
def group_topk(scores: Sequence[Tensor], k: int) -> list[Tensor]: ...
def glm_prox(
    z: Tensor,
    values: Tensor,
    crow: Tensor | None,
    col: Tensor | None,
    targets: Tensor,
    lr: float,
    family: str,
    mode: str,
    delta: float,
) -> tuple[Tensor, Tensor]: ...
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
) -> Tensor: ...
def gram_obs(inverse: Tensor, weight: Tensor, block: int, steps: int, sets: Tensor | None) -> tuple[Tensor, Tensor]: ...
def prox_(
    tensors: Sequence[Tensor], layouts: Sequence[int], prox: str, thresholds: Sequence[float], with_value: bool
) -> Tensor: ...
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
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None: ...
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
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None: ...
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
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None: ...
def topk_threshold_(
    x: Tensor, scores: Tensor | None, k: Sequence[int], by: str, layout: Sequence[int], scale: Tensor | None
) -> Tensor: ...
def masked_cg(w: Tensor, mask: Tensor, h: Tensor, iters: int, start: Tensor | None) -> Tensor: ...
def sparse_linear(
    x: Tensor,
    values: Tensor,
    bits: Tensor,
    offsets: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    rows: int,
    activation: str,
) -> Tensor: ...
def sparse_unpack(
    values: Tensor, bits: Tensor, offsets: Tensor, scales: Tensor | None, rows: int, columns: int
) -> Tensor: ...
def sparse_collect(dense: Tensor, bits: Tensor, offsets: Tensor, length: int) -> Tensor: ...
