"""Pages stand alone: balanced elements, nothing from outside, all text escaped; in a browser where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_cases import HOSTILE, reports

REPORTS = reports()
KINDS = sorted(REPORTS)
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Checker(HTMLParser):
    """Notes what is not balanced, what refers to anything, and the text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> of nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert not checker.open
    assert not checker.seen & {"script", "link", "img", "iframe", "object", "base", "a", "form"}
    names = {name for name, _ in checker.attributes}
    assert not {name for name in names if name.startswith("on")} | names & {"src", "href", "srcset", "action", "style"}
    assert not re.search(r"https?:|@import|url\(", text)
    return checker


@pytest.mark.parametrize("kind", KINDS)
def test_pages_stand_alone(kind: str, tmp_path: Path) -> None:
    path = REPORTS[kind].html(tmp_path / "new" / "page.html")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    checker = checked(text)
    assert {"html", "head", "body", "title", "svg", "table", "h1"} <= checker.seen
    assert any(HOSTILE in part for part in checker.text)
    assert "prefers-color-scheme:dark" in text
    assert 'name="viewport"' in text
    for drawing in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        ET.fromstring(drawing)


@pytest.mark.parametrize("kind", KINDS)
def test_notebooks_get_a_piece_with_a_style_of_its_own(kind: str) -> None:
    text = REPORTS[kind]._repr_html_()
    checker = checked(text)
    assert "html" not in checker.seen
    style = re.search(r"<style>(.*?)</style>", text, flags=re.DOTALL)
    assert style is not None
    rules = re.sub(r"@media[^{]*\{(.*?\})\s*\}", r"\1", style[1], flags=re.DOTALL)
    selectors = [selector.strip() for selector in re.findall(r"([^{}]+)\{", rules)]
    assert selectors
    assert all(selector.startswith(".sparse-accel-report") for selector in selectors)


def test_control_characters_do_not_reach_a_page() -> None:
    text = reports("a\x00b\x1b[31m\nc")["compact"].to_html()
    checked(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", text)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(width: int, tmp_path: Path) -> None:
    """Nothing on the console, and nothing wider than the window, with long names too."""
    long = "model.layers.11.self_attention.output_projection_with_a_long_name.weight"
    for kind, report in {"iht": reports()["iht"], "structured": reports(long)["structured"]}.items():
        page = tmp_path / f"{kind}.html"
        probe = "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script>"
        page.write_text(report.to_html().replace("</body>", f"{probe}</body>"), encoding="utf-8")
        command = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--dump-dom"]
        done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
        assert "CONSOLE" not in done.stderr
        found = re.search(r"<title>(\d+) of (\d+)</title>", done.stdout)
        assert found is not None, done.stdout[:500]
        assert int(found[1]) <= int(found[2])
