"""The native ops, one file per stem: wrapper, ``torch.library`` registration, fake kernel.

Imports: :mod:`~sparse_accel.native` (the kernels), :mod:`~sparse_accel.reference` (the fallback on devices without
kernels), :mod:`~sparse_accel.groups`.
"""

from ._library import cpu_capability
from .bitmask import Bitmask
from .glm import glm_epoch, glm_prox
from .gram_obs import gram_obs
from .group_score import group_score
from .group_topk import group_topk
from .masked_cg import masked_cg
from .metric_step import prox_adamw_step_, ramda_step_
from .prox import prox_, prox_sgd_step_
from .rmda_step import rmda_step_
from .sparse_linear import sparse_linear
from .topk_threshold import topk_threshold_

__all__ = [
    "Bitmask",
    "cpu_capability",
    "glm_epoch",
    "glm_prox",
    "gram_obs",
    "group_score",
    "group_topk",
    "masked_cg",
    "prox_",
    "prox_adamw_step_",
    "prox_sgd_step_",
    "ramda_step_",
    "rmda_step_",
    "sparse_linear",
    "topk_threshold_",
]
