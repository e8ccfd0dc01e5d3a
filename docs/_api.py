"""The pages of the API reference, written from the modules' ``__all__``: no name can be forgotten."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

# Sections of `sparse_accel` itself; what stands in none of them goes into the last.
SECTIONS = {
    "Optimizers": ["RMDA", "RAMDA", "ProxSGD", "ProxAdamW", "SPPAM", "max_strength"],
    "Penalties and constraints": [
        *("GroupLasso", "L1", "SparseGroupLasso", "GroupL0", "NuclearNorm", "Sum", "NonNegative", "Box", "Binary"),
        *("Penalty", "register_penalty"),
    ],
    "Groups": [
        "param_groups",
        "coupled_groups",
        "CoupledGroups",
        "sparsity",
        "SparsityReport",
        "Grouping",
        "GroupLayout",
        "group_layout",
    ],
    "Removal and checkpoints": ["compact", "CompactResult", "Examples", "save", "load", "load_optimizer"],
    "Sparse weights": ["RigL", "accelerate", "densify", "AccelerateResult", "BlockSparsity", "GroupSparsity", "Rows"],
    "Operations": ["topk_threshold_", "masked_cg", "glm_prox", "glm_epoch"],
    "Errors": ["CompactError", "UnsupportedModelError", "OutputMismatchError", "CheckpointError"],
    "Reports and the installation": [],
}
ROOMS = {  # module: its title, and what the reference says above its names
    "lr_scheduler": ("Schedules", "Learning rates that end the stages of RMDA and RAMDA."),
    "callbacks": (
        "Callbacks",
        "Zeros over time, and checkpoints that have them: plain loops, transformers' Trainer, Lightning.",
    ),
    "prune": ("Pruning", "Trained models on calibration data: whole units, single weights, and the pieces of both."),
    "diagnostics": (
        "Diagnostics",
        "What training leaves behind: zero groups, stability under dropout, paths of low loss.",
    ),
    "sparse_recovery": ("Sparse recovery", "Smooth functions minimized over vectors with at most k nonzeros."),
    "sppam": ("Laws of SPPAM", "Rates of the stochastic proximal point method with momentum on quadratics."),
    "linear_model": ("scikit-learn estimators", "Linear models by implicit steps, or with exactly k coefficients."),
    "ops": ("Operations", "Kernels on lists of tensors, registered with ``torch.library``, each with a plain twin."),
    "report": ("Reports", "What a call did, in every format, and the pieces of which a report of your own is made."),
    "progress": (
        "Progress",
        "How far a long call is: a bar in a terminal, nothing in a pipe, or a function of your own.",
    ),
}
# Constants and type aliases, which have no page of their own.
LEFT_OUT = {"__version__", "METHODS", "Show"}


def module_of(path: str) -> ModuleType:
    """A module by its public path, of which the last part may be an attribute (``sparse_accel.lr_scheduler``)."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        parent, _, name = path.rpartition(".")
        return getattr(importlib.import_module(parent), name)


def public_names(path: str) -> list[str]:
    """What a module offers: its ``__all__``, or what is defined in it."""
    module = module_of(path)
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return [name for name in names if name not in LEFT_OUT and not isinstance(getattr(module, name), ModuleType)]


def heading(text: str, mark: str) -> list[str]:
    return [text, mark * len(text), ""]


def table(path: str, names: list[str]) -> list[str]:
    head = [f".. currentmodule:: {path}", "", ".. autosummary::", "   :toctree: generated", "   :nosignatures:", ""]
    return [*head, *(f"   {name}" for name in names), ""]


def listed(text: str) -> list[str]:
    """The full names in the tables of a page."""
    found = []
    for block in text.split(".. currentmodule:: ")[1:]:
        path, *lines = block.splitlines()
        names = [re.fullmatch(r"   (\w+)", line) for line in lines[lines.index(".. autosummary::") :]]
        found += [f"{path}.{name[1]}" for name in names if name]
    return found


def pages() -> dict[str, str]:
    """File name to text."""
    names = public_names("sparse_accel")
    named = {name for section in SECTIONS.values() for name in section}
    lines = heading("API reference", "=")
    lines += ["From the docstrings: what a name takes, gives and refuses, with an example that the tests run.", ""]
    lines += [".. toctree::", "   :hidden:", "", *(f"   {room}" for room in ROOMS), ""]
    lines += heading("sparse_accel", "-")
    lines += ["``import sparse_accel as sa``", ""]
    for title, section in SECTIONS.items():
        members = section or [name for name in names if name not in named]
        missing = set(members) - set(names)
        if missing:
            raise LookupError(f"docs/_api.py: sparse_accel has no {sorted(missing)}")
        lines += [*heading(title, "~"), *table("sparse_accel", members)]
    lines += heading("Modules", "-")
    lines += [".. list-table::", ""]
    for room, (title, _) in ROOMS.items():
        lines += [f"   * - :doc:`sa.{room} <{room}>`", f"     - {title}"]
    written = {"index.rst": "\n".join([*lines, ""])}
    at_the_top = {id(getattr(module_of("sparse_accel"), name)) for name in names}
    for room, (title, summary) in ROOMS.items():
        path = f"sparse_accel.{room}"
        module = module_of(path)
        own = [name for name in public_names(path) if id(getattr(module, name)) not in at_the_top]
        shared = [name for name in public_names(path) if name not in own]
        text = [*heading(f"{title}: sa.{room}", "="), f".. module:: {path}", "", summary, "", *table(path, own)]
        if shared:
            text += ["Also here: " + ", ".join(f":obj:`~sparse_accel.{name}`" for name in shared) + ".", ""]
        written[f"{room}.rst"] = "\n".join(text)
    return written


def write(folder: Path) -> None:
    """Write the pages; a file whose text stays is not touched, so that Sphinx need not read it again."""
    folder.mkdir(exist_ok=True)
    written = pages()
    known = {name for text in written.values() for name in listed(text)}
    for page in (folder / "generated").glob("*.rst"):
        if page.stem not in known:  # a name that is gone
            page.unlink()
    for name, text in written.items():
        file = folder / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
