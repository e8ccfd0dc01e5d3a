"""Every report in every format: the same figures, and the notes in each."""

from __future__ import annotations

import io
import json
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from report_cases import HOSTILE, reports

import sparse_accel as sa
from sparse_accel.report import Bars, Column, Contents, Lines, Note, Report, Table, format_table, plot_training

REPORTS = reports()
PLAIN = reports("conv1")
KINDS = sorted(REPORTS)


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_has_every_note(kind: str) -> None:
    report = PLAIN[kind]
    notes = [str(note) for note in report.contents().all_notes()]
    assert notes or kind in ("compact", "history")
    data = report.to_dict()
    assert data["notes"] == notes
    markdown, page = report.to_markdown(), report.to_html()
    for note in report.contents().all_notes():
        assert str(note) in str(report)
        assert note.text in page
        assert note.text.split(":")[0] in markdown.replace("\\", "")
    if kind != "history":
        assert {key for key in report.to_plain() if key != "notes"} <= data.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_json_reads_back(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    text = REPORTS[kind].to_json(path)
    assert json.loads(text) == json.loads(path.read_text(encoding="utf-8")) == REPORTS[kind].to_dict()


def test_numbers_that_json_lacks_are_text() -> None:
    report = sa.prune.RefineReport("x", {0: float("inf"), 1: float("nan")}, 1, 0.5, 1, 0.1, (), "", 0.0, 0)
    data = json.loads(report.to_json())
    assert data["errors"] == {"0": "inf", "1": "nan"}
    report.to_html()  # draws what is finite


def test_plain_text_is_what_it_was() -> None:
    assert str(PLAIN["compact"]).splitlines() == [
        "layer    kind  inputs  outputs  parameters              MACs",
        "------------------------------------------------------------",
        "conv1  Conv2d   3 → 3   16 → 8   432 → 216  100,000 → 50,000",
        "fc     Linear  16 → 8  10 → 10    170 → 90          160 → 80",
        "------------------------------------------------------------",
        "total                            602 → 306  100,160 → 50,080",
        "parameters: 50.8 % kept; MACs (torch.utils.flop_counter, FLOPs / 2, on the example): 50.0 % kept",
        "latency: 1.23 ms → 0.61 ms",
        "largest output difference: 1.2e-07",
    ]
    assert str(PLAIN["refine"]).splitlines() == [
        "refinement (gradient-based, no labels): held-out error of the outputs 0.5 → 0.29, after 20 of 60 steps, 3.2 s",
        "held out: 24 of 192; fitted: the outputs and 1 windows; BatchNorm statistics held",
        "note: conv1",
    ]
    assert str(PLAIN["accelerate"]).splitlines()[-5:] == [
        "latency of the example: 2 ms → 1.5 ms (1.33×); a layer had to gain 1.1×",
        "largest output difference: 1e-06",
        "model: csr cannot be tried: no",
        "left dense: conv1: the example does not call it",
        "note: so",
    ]
    assert str(PLAIN["structured"]).splitlines()[-8:-4] == [
        "parameters: 602 → 306 (50.8 % kept)",
        "MACs (torch.utils.flop_counter, FLOPs / 2, on the example): 100,160 → 50,080 (50.0 % kept)",
        "latency on the example: 1.23 ms → 0.61 ms",
        "12.3 s; statistics 3.0 MB",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_markdown_tables_have_as_many_cells_as_columns(kind: str) -> None:
    contents = REPORTS[kind].contents()
    text = REPORTS[kind].to_markdown()
    assert "<script" not in text
    widths = [
        len(line.replace("\\\\", "").replace("\\|", "").split("|")) - 2
        for line in text.splitlines()
        if line.startswith("|")
    ]
    expected = [
        len(table.columns)
        for table in contents.all_tables()
        for _ in range(2 + len(table.rows) + (table.total is not None))
    ]
    assert sorted(widths) == sorted(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_have_numbers_and_units(kind: str) -> None:
    pandas = pytest.importorskip("pandas")
    frame = REPORTS[kind].to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == len(REPORTS[kind].contents().all_tables()[0].rows)
    assert frame.attrs["notes"] == [str(note) for note in REPORTS[kind].contents().all_notes()]
    if kind == "accelerate":
        assert frame["us_dense"].tolist() == [120.0, 12.0]
        assert frame["bytes_now"].tolist() == [180_000, 324]
        assert frame.attrs["units"]["us_dense"] == "µs"
    if kind == "compact":
        assert frame["params_before"].sum() == 602
    with pytest.raises(IndexError, match="table: expected a number from 0 to"):
        REPORTS[kind].to_frame(9)


@pytest.mark.parametrize("kind, suffix", [*((kind, "png") for kind in KINDS), ("iht", "svg")])
def test_pictures(kind: str, suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = REPORTS[kind].plot(tmp_path / "new" / f"report.{suffix}")
    if suffix == "png":
        assert path.read_bytes().startswith(b"\x89PNG")
    else:
        assert ET.parse(path).getroot().tag.endswith("svg")


def test_plot_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path: expected a name that ends in \.png, \.svg, \.pdf, got 'report\.gif'"):
        REPORTS["compact"].plot("report.gif")
    with pytest.raises(ValueError, match="nothing to plot"):
        sa.SparsityReport("input", []).plot(tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_terminals_get_tables_and_pipes_get_text(kind: str) -> None:
    pytest.importorskip("rich")
    report = REPORTS[kind]
    pipe, terminal = io.StringIO(), Terminal()
    report.show(pipe)
    assert pipe.getvalue() == f"{report}\n"
    report.show(terminal)
    shown = terminal.getvalue()
    assert "\x1b[" in shown
    if not all(table.detail for table in report.contents().tables):
        assert "┃" in shown
        assert "[b" in shown  # of "[bold]" in a name: folded it may be, not taken for a colour


def test_show_writes_to_the_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    REPORTS["sparsity"].show()
    assert capsys.readouterr().out == f"{REPORTS['sparsity']}\n"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("pandas", "matplotlib", "matplotlib.figure", "rich", "rich.console"):
        monkeypatch.setitem(sys.modules, name, None)
    report = REPORTS["compact"]
    with pytest.raises(ImportError, match=r"to_frame needs pandas: pip install 'sparse-accel\[report\]'"):
        report.to_frame()
    with pytest.raises(ImportError, match=r"plots need matplotlib: pip install 'sparse-accel\[report\]'"):
        report.plot(tmp_path / "x.png")
    terminal = Terminal()
    report.show(terminal)
    assert terminal.getvalue() == f"{report}\n"
    assert report.html(tmp_path / "x.html").exists()  # needs nothing


def test_results_carry_reports() -> None:
    for kind in (sa.SparsityReport, sa.prune.StructuredReport, sa.prune.CurvatureIHTReport, sa.prune.RefineReport):
        assert issubclass(kind, Report)


def test_a_report_of_ones_own() -> None:
    class Mine(Report):
        def contents(self) -> Contents:
            table = Table([Column("n", "n"), Column("ms", "ms", unit="ms")], [(1, 0.5), (2, None)])
            empty = Lines("nothing", "x", {"a": [], "b": []})
            return Contents(
                "Mine", tables=[table], charts=[empty, Bars("b", [], {"s": []})], notes=[Note("assumed", "")]
            )

        def to_plain(self) -> dict[str, Any]:
            return {"n": [1, 2]}

    assert str(Mine()) == format_table(["n", "ms"], [[1, 0.5], [2, None]]) + "\nassumed"
    assert Mine().to_dict() == {"title": "Mine", "n": [1, 2], "notes": ["assumed"]}
    assert "<svg" not in Mine().to_html()


CURVES = [[(1, 2)], [(0, 0), (0, 0)], [(1, float("nan"))], [(0, 1e300), (1, -1e300)], [(5, 7), (6, 7)]]


@pytest.mark.parametrize("points", CURVES)
def test_curves_of_any_numbers_are_drawn(points: list[tuple[float, float]], tmp_path: Path) -> None:
    class Mine(Report):
        def contents(self) -> Contents:
            bars = Bars("bars", ["a", "b"], {"one": [points[0][1], None], "dense": [0.0, -1.0]})
            return Contents("Mine", charts=[Lines("curve", "x", {"one": points, "other": []}, marks=[0.5]), bars])

    drawings = re.findall(r"<svg.*?</svg>", Mine().to_html(), flags=re.DOTALL)
    assert len(drawings) == 2
    for drawing in drawings:
        numbers = [float(value) for value in re.findall(r' (?:x|y|x1|x2|y1|y2|cx|cy|width)="([^"]*)"', drawing)]
        assert all(-1 <= number <= 420 for number in numbers)
    pytest.importorskip("matplotlib")
    assert Mine().plot(tmp_path / "x.png").stat().st_size > 1000


def test_pictures_of_trainings(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    history = {"dense": [{"accuracy": 0.5}, {"accuracy": 0.9}], "RMDA": [{"accuracy": 0.4, "group_sparsity": 0.1}] * 2}
    path = plot_training(tmp_path / "x.svg", history, PLAIN["compact"], milestones=[1], title=HOSTILE)  # type: ignore[arg-type]
    assert ET.parse(path).getroot().tag.endswith("svg")


def test_short_charts_do_not_stand_beside_long_ones() -> None:
    from sparse_accel.report import figure

    def bars(count: int) -> Bars:
        return Bars("b", [str(i) for i in range(count)], {"s": [1.0] * count})

    short, long, curve = bars(3), bars(60), Lines("c", "x", {"s": [(0, 1)]})
    assert figure._rows([long, long, short, curve, short, short]) == [[long, long], [short, curve, short], [short]]
