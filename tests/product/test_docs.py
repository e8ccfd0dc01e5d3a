"""What can be said of the documentation without building it: nothing is out of reach, nothing leads nowhere."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("algorithms/*.md")])
SCRIPTS = sorted((DOCS / "gallery").glob("*/*.py"))


def entries() -> list[str]:
    """The lines of all tables of contents of the front page, in order."""
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\{toctree\}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith(":")]


def anchors(page: Path) -> set[str]:
    """What `#...` can name on a page: its headings, as MyST and GitHub write them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = set()
    for title in re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", title).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


def links(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\]\((?![a-z]+:)([^)\s]+)\)", text)


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "index"], ids=lambda page: page.stem)
def test_every_page_stands_in_the_contents_once(page: Path) -> None:
    assert entries().count(str(page.relative_to(DOCS).with_suffix(""))) == 1


@pytest.mark.parametrize("entry", list(entries()))
def test_every_entry_of_the_contents_is_there(entry: str) -> None:
    written_by_the_build = {"auto_gallery/index", "api/index"}
    assert entry in written_by_the_build or (DOCS / f"{entry}.md").exists()


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_links_and_anchors_resolve(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert target.suffix == ".md", link
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", sorted(DOCS.glob("algorithms/*.md")), ids=lambda page: page.stem)
def test_pages_of_algorithms_have_every_part(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    parts = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    assert parts[0] == "What for"
    assert "Example" in parts
    assert parts[-2:] in (["What the paper says", "What we measured"], ["What the papers say", "What we measured"])
    assert "arXiv" in text
    assert "$" in text
    figure = re.search(
        r"^```\{figure\} \.\./auto_gallery/(\w+)/images/sphx_glr_(plot_\w+)_001\.png$", text, re.MULTILINE
    )
    assert figure
    assert (DOCS / "gallery" / figure[1] / f"{figure[2]}.py").exists(), "the gallery draws no such figure"
    assert f"</auto_gallery/{figure[1]}/{figure[2]}>" in text


SAID = [
    *PAGES,
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *ROOT.glob("examples/**/*.py"),
]


@pytest.mark.parametrize("page", SAID, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_scripts_that_are_named_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for script in re.findall(r"(?<![\w/])((?:examples|tools|docs/gallery)/[\w/]+\.(?:py|sh))", text):
        assert (ROOT / script).exists(), script
    for module in re.findall(r"python -m (bench[\w.]*)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_the_gallery_is_a_gallery() -> None:
    assert len(SCRIPTS) >= 15
    assert len({script.name for script in SCRIPTS}) == len(SCRIPTS)
    for folder in {script.parent for script in SCRIPTS}:
        assert (folder / "GALLERY_HEADER.rst").exists(), folder


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_gallery_scripts_have_a_title_a_text_and_a_figure(script: Path) -> None:
    source = script.read_text(encoding="utf-8")
    doc = ast.get_docstring(ast.parse(source), clean=True)
    assert doc, "no docstring"
    title, rule, blank, *text = doc.splitlines()
    assert re.fullmatch("=+", rule)
    assert len(rule) == len(title), "the rule under the title is not as long as the title"
    assert not blank
    assert "".join(text).strip()
    assert script.name.startswith("plot_"), "the gallery runs what is called plot_*.py"
    assert "# %%" in source
    assert "plt.show()" in source
    assert len(source.splitlines()) <= 80


def test_make_docs_and_its_packages_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^docs:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    assert recipe
    assert "-W --keep-going" in recipe[1]
    assert "build/docs" in recipe[1]
    group = re.search(r"^docs = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M | re.S)
    assert group
    named = set(re.findall(r'^  "([\w-]+)', group[1], flags=re.MULTILINE))
    assert {"sphinx", "myst-parser", "sphinx-gallery", "furo", "matplotlib", "scikit-learn", "scipy"} <= named
    assert {"transformers", "lightning"} <= named  # the reference imports every public name
    assert "make docs" in (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")


def load_api() -> Any:
    spec = importlib.util.spec_from_file_location("docs_api", DOCS / "_api.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_a_place_in_the_reference() -> None:
    pytest.importorskip("sklearn", reason="the sklearn extra is not installed")
    import sparse_accel as sa

    api = load_api()
    pages = api.pages()
    everywhere = "\n".join(pages.values())
    for room in (sa, sa.prune, sa.ops, sa.diagnostics, sa.callbacks, sa.sparse_recovery, sa.linear_model, sa.sppam):
        for name in set(room.__all__) - {"__version__", "METHODS"}:
            assert re.search(rf"\b{re.escape(name)}\b", everywhere), f"{room.__name__}.{name}"
    assert "MultiStageLR" in pages["lr_scheduler.rst"]
    # A thing stands under the package, or under its room, not under both: two targets of one link.
    listed = [name for page in pages.values() for name in api.listed(page)]
    things = {id(getattr(api.module_of(name.rpartition(".")[0]), name.rpartition(".")[2])) for name in listed}
    assert len(listed) == len(set(listed)) == len(things) > 100
