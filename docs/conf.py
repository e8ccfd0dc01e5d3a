"""Sphinx settings: `make docs` builds the site in build/docs. Nothing is fetched from the network."""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import _api
import torch
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

import sparse_accel as sa

project = "sparse_accel"
author = "the authors of sparse_accel"
release = version = sa.__version__
# An attribute of the package, not a module on disk: autosummary imports by name.
sys.modules["sparse_accel.lr_scheduler"] = sa.lr_scheduler
html_title = f"sparse_accel {release}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["gallery", "_templates", "auto_gallery/*.py", "auto_gallery/*.md5", "auto_gallery/*.ipynb"]
templates_path = ["_templates"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
suppress_warnings = ["config.cache"]

# --- pages
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4

# --- reference
autosummary_generate = True
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
viewcode_line_numbers = True
# Links that a docstring asks for must lead somewhere; the types of annotations are torch's and Python's, whose pages
# would have to be fetched.
nitpicky = True
# The rooms beneath the public modules have no pages.
nitpick_ignore_regex = [("py:(class|obj|data|attr|mod)", r".*"), ("py:(func|meth|exc)", r"(?!sparse_accel|sa\.).*")]

# --- look
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": False, "top_of_page_buttons": []}
pygments_style = "friendly"
pygments_dark_style = "monokai"


# --- gallery
def fresh_start(_gallery: Any, _script: str) -> None:
    """Before every script: the same random numbers, one thread, pictures of one kind."""
    import matplotlib

    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    warnings.simplefilter("ignore", FutureWarning)
    matplotlib.rcParams.update(
        {
            "figure.figsize": (7.5, 3.4),
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "font.size": 10,
            "legend.frameon": False,
            "savefig.bbox": "tight",
            "savefig.pad_inches": 0.12,
        }
    )


sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": r"plot_",
    "subsection_order": ["gallery/training", "gallery/pruning", "gallery/laws"],
    "within_subsection_order": "FileNameSortKey",
    "reset_modules": ("matplotlib", fresh_start),
    "capture_repr": ("_repr_html_", "__str__"),
    "ignore_repr_types": r"matplotlib\.|list|tuple|dict|.*Text",
    "min_reported_time": 1,
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "abort_on_example_error": bool(os.environ.get("CI")),
    "parallel": 2,
    "write_computation_times": False,
}


def outside_links(app: Any, docname: str, source: list[str]) -> None:
    """A page links to folders of the repository (``../bench/results``), which the site has not: the name stays."""
    page = Path(app.env.doc2path(docname))

    def said(link: re.Match[str]) -> str:
        target = (page.parent / link[2]).resolve()
        return (
            link[0]
            if target.is_relative_to(HERE)
            else f"{link[1]} (`{target.relative_to(HERE.parent)}` in the repository)"
        )

    if page.suffix == ".md":
        source[0] = re.sub(r"\[([^\]]+)\]\((\.\./[^)#]+)\)", said, source[0])


def no_metadata(_app: Any, _kind: str, name: str, _thing: Any, _skip: bool, _options: Any) -> bool | None:
    """scikit-learn's generated methods have docstrings with links to its own pages."""
    return True if re.fullmatch(r"set_\w+_request|get_metadata_routing", name) else None


def mathml(tex: str, display: str) -> str:
    """A formula as browsers know it: no script of another site has to be fetched."""
    tex = re.sub(r"\\mathrel\{(.)\}", r"\1", tex).replace(r"\arg\min", r"\mathrm{arg\,min}")
    found = convert(tex, display=display)
    if "\\" in found:
        logging.getLogger(__name__).warning("a formula with a command that latex2mathml does not know: %s", tex)
    return found


def inline_math(translator: Any, node: Any) -> None:
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def block_math(translator: Any, node: Any) -> None:
    translator.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    _api.write(HERE / "api")
    app.connect("autodoc-skip-member", no_metadata)
    app.connect("source-read", outside_links)
