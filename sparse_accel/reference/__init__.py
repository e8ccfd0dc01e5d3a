"""Plain-PyTorch twins of every op, same stems, written from the formulas: the tests' oracle, and what runs on devices
without kernels. Signatures are those of the ops. Imports torch alone; at run time only the fallback in
:mod:`sparse_accel.ops` uses it."""

from ._common import compute_type, grouped_view
from .glm import glm_epoch_, glm_prox, loss
from .gram_obs import gram_obs
from .group_score import group_score
from .group_topk import group_topk
from .masked_cg import masked_cg
from .metric_step import metric_prox, prox_adamw_step_, ramda_step_
from .prox import prox_, prox_sgd_step_
from .rmda_step import rmda_step_
from .sparse_linear import ACTIVATIONS, sparse_collect, sparse_linear, sparse_unpack
from .topk_threshold import topk_threshold_

__all__ = [
    "ACTIVATIONS",
    "compute_type",
    "glm_epoch_",
    "glm_prox",
    "gram_obs",
    "group_score",
    "group_topk",
    "grouped_view",
    "loss",
    "masked_cg",
    "metric_prox",
    "prox_",
    "prox_adamw_step_",
    "prox_sgd_step_",
    "ramda_step_",
    "rmda_step_",
    "sparse_collect",
    "sparse_linear",
    "sparse_unpack",
    "topk_threshold_",
]
