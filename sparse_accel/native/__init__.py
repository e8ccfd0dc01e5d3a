"""Between the ops and their kernels: checks, memory for results, and what is dense algebra. Signatures are those of the
ops; the compiled module gets views of memory and knows no tensor library.

Imports: ``_C`` alone.
"""

from ._module import cpu_capability, has_cuda
from .glm import glm_epoch_, glm_prox
from .gram_obs import gram_obs
from .groups import group_score, group_topk, prox_
from .masked_cg import masked_cg
from .plan import PlannedBatch, StepPlan, step_plan
from .sparse_linear import sparse_collect, sparse_linear, sparse_unpack
from .steps import prox_adamw_step_, prox_sgd_step_, ramda_step_, rmda_step_
from .topk_threshold import topk_threshold_

__all__ = [
    "PlannedBatch",
    "StepPlan",
    "cpu_capability",
    "glm_epoch_",
    "glm_prox",
    "gram_obs",
    "group_score",
    "group_topk",
    "has_cuda",
    "masked_cg",
    "prox_",
    "prox_adamw_step_",
    "prox_sgd_step_",
    "ramda_step_",
    "rmda_step_",
    "sparse_collect",
    "sparse_linear",
    "sparse_unpack",
    "step_plan",
    "topk_threshold_",
]
