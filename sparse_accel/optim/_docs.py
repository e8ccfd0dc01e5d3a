"""Words that the optimizers' docstrings share, as in ``torch.optim.optimizer``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Documented = TypeVar("Documented", bound=type)

PARAMS = """params: parameters, named parameters, or groups (see :func:`sparse_accel.param_groups`). Groups are
            independent; each may name its own options, and says with ``transposed=True`` or ``conv_groups=n`` that its
            weights belong to transposed or grouped convolutions, with ``stacked=True`` that they are stacks of matrices
            (experts)."""
LR = "lr: step size, >= 0; a number or a one-element tensor."
PENALTY = """penalty: a penalty such as ``GroupLasso(1e-4)`` for the groups that name none. By channel or kernel it acts
            on parameters of two or more dimensions only; biases and normalization stay unregularized."""
WEIGHT_DECAY = """weight_decay: this much times a parameter joins its gradient, as in ``torch.optim.SGD`` (without a
            preconditioner that is decoupled decay, but for the factor lr). It is no part of the penalty."""
MAXIMIZE = "maximize: ascend instead of descending; the penalty shrinks all the same."
CAPTURABLE = """capturable: the step is to be captured in a CUDA graph. Numbers are then fixed at their value at
            capture."""
DIFFERENTIABLE = "differentiable: let autograd run through the step; takes the loop."
STATE_DTYPE = """state_dtype: ``torch.bfloat16`` holds the tensors of state in half of the memory, rounded at random so
            that they are right in the mean (Gupta et al., "Deep learning with limited numerical precision", 2015); a
            stage starts at the rounded weights. A step takes two passes, and some megabytes of float32 at a time.
            None: float32. One for all groups; not for float64 parameters."""
ROUNDING_SEED = """rounding_seed: of the random numbers, which follow from it and the number of steps: a resumed run has
            the same, and so have ranks."""
RAISES = """Raises:
        ValueError: a number is out of its range, or ``fused`` comes with ``foreach`` or ``differentiable``."""


def shared_docs(**words: str) -> Callable[[Documented], Documented]:
    """Put shared words into a class's docstring, in place of ``{params}``, ``{lr}`` and so on.

    Args:
        **words: what stands for other names in braces.

    Raises:
        KeyError: a name in braces that nobody explains.
    """
    known = {
        "params": PARAMS,
        "lr": LR,
        "penalty": PENALTY,
        "weight_decay": WEIGHT_DECAY,
        "maximize": MAXIMIZE,
        "capturable": CAPTURABLE,
        "differentiable": DIFFERENTIABLE,
        "state_dtype": STATE_DTYPE,
        "rounding_seed": ROUNDING_SEED,
        "raises": RAISES,
        **words,
    }

    def fill(documented: Documented) -> Documented:
        lines = (documented.__doc__ or "").splitlines(keepends=True)
        filled = []
        for line in lines:
            word = line.strip()
            if word.startswith("{") and word.endswith("}"):
                line = line.replace(word, known[word[1:-1]])
            filled.append(line)
        documented.__doc__ = "".join(filled)
        return documented

    return fill
