"""Progress: bars in terminals alone, gone at the end whatever happens; functions are told of every step."""

from __future__ import annotations

import io
import os
import pty
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import sparse_accel as sa
from sparse_accel.progress import Progress, counting, meter, of_steps, over

SHOW_CURSOR, CLEAR_LINE = "\x1b[?25h", "\x1b[2K"


class Screen:
    """A pseudo-terminal; in the place of the standard error while it is a context."""

    def __init__(self) -> None:
        self.reader, writer = pty.openpty()
        self.file = os.fdopen(writer, "w", encoding="utf-8")

    def __enter__(self) -> None:
        self.before, sys.stderr = sys.stderr, self.file

    def __exit__(self, *error: object) -> None:
        sys.stderr = self.before

    def text(self) -> str:
        """All that was written; the terminal is closed."""
        self.file.write("\x00")
        self.file.flush()
        data = b""
        while not data.endswith(b"\x00"):
            data += os.read(self.reader, 65_536)
        self.file.close()
        os.close(self.reader)
        return data[:-1].decode()


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    return Screen()


@pytest.fixture(params=["rich", "text"])
def pen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "rich":
        pytest.importorskip("rich")
    else:
        for name in ("rich", "rich.console", "rich.progress"):
            monkeypatch.setitem(sys.modules, name, None)
    kind: str = request.param
    return kind


def clean(text: str, pen: str) -> bool:
    """Whether the terminal is as it was."""
    return text.rstrip().endswith(CLEAR_LINE) and SHOW_CURSOR in text if pen == "rich" else text.endswith(" \r")


def test_a_bar_in_a_terminal(screen: Screen, pen: str) -> None:
    with screen, meter(True, "prune", 2) as done:
        done.advance("layer.[bold]", 0.25)
        time.sleep(0.11)
        done.advance("layer.1", 0.5)
    text = screen.text()
    assert "prune" in text
    assert "error 0.25" in text or "error 0.5" in text
    assert "2/2" in text
    assert "left" in text
    assert clean(text, pen)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_the_terminal_is_clean_after_errors(kind: type[BaseException], screen: Screen, pen: str) -> None:
    def go() -> None:
        with screen, meter(True, "prune", 2) as done:
            done.advance("layer")
            raise kind

    with pytest.raises(kind):
        go()
    assert clean(screen.text(), pen)


def test_an_abandoned_loop_leaves_a_clean_terminal(screen: Screen, pen: str) -> None:
    with screen:
        loop = over(range(3), "loop", True)
        next(loop)
        next(loop)
        loop.close()  # type: ignore[attr-defined]
    assert clean(screen.text(), pen)


def test_by_default_short_calls_show_nothing(screen: Screen) -> None:
    with screen, meter(None, "prune", 2) as done:
        done.advance("layer")
    assert screen.text() == ""


def test_by_default_long_calls_show_a_bar(screen: Screen, pen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "PATIENCE_S", 0.01)
    with screen, meter(None, "prune", 2):  # its first step takes long
        time.sleep(0.3)
    text = screen.text()
    assert "prune" in text
    assert clean(text, pen)


def test_false_shows_nothing(screen: Screen) -> None:
    with screen:
        assert list(over([1, 2], "loop", False)) == [1, 2]
    assert screen.text() == ""


@pytest.mark.parametrize("shown", [True, None, False])
def test_pipes_are_quiet(
    shown: bool | None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "PATIENCE_S", 0.0)
    assert list(over([1, 2], "loop", shown)) == [1, 2]
    monkeypatch.setattr(sys, "stderr", None)  # pythonw
    assert list(over([1, 2], "loop", shown)) == [1, 2]
    assert capfd.readouterr() == ("", "")


def test_only_rank_0_shows(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    told: list[Progress] = []
    with screen:
        assert list(over([1], "loop", True)) == list(over([1], "loop", told.append)) == [1]
    assert len(told) == 2  # a function knows its rank
    assert screen.text() == ""


def test_time_left() -> None:
    told: list[Progress] = []
    with meter(told.append, "wait", 4) as done:
        time.sleep(0.05)
        done.advance()
    with meter(told.append, "wait", None) as done:
        done.advance(by=3)
    first, second = told[:2]
    assert first.seconds_left is None
    assert second.seconds_left == pytest.approx(3 * second.seconds)
    assert second.seconds >= 0.05
    assert (told[3].done, told[3].total, told[3].seconds_left) == (3, None, None)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2)
    )


X = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))


def ispasp(shown: Any, **more: Any) -> Any:
    return sa.prune.ISpaSP(net(), X[:1], progress=shown, **more).run(X)


def iht(shown: Any, **more: Any) -> Any:
    return sa.prune.CurvatureIHT(net(), 0.5, progress=shown, **more).run(X.split(16))


def refine(shown: Any) -> Any:
    return sa.prune.refine(ispasp(False), net(), X, steps=12, progress=shown)


def accelerate(shown: Any) -> Any:
    return sa.accelerate(iht(False), X, budget_s=0.0, progress=shown)


DATA = X, X[:, :2] * 2
PATH_ENDS = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2)]


def dropout_stability(shown: Any) -> Any:
    return sa.diagnostics.dropout_stability(net(), nn.functional.mse_loss, DATA, trials=2, progress=shown)


def low_loss_path(shown: Any) -> Any:
    return sa.diagnostics.low_loss_path(
        *PATH_ENDS, nn.functional.mse_loss, DATA, points=1, aligned=False, progress=shown
    )


def solve(shown: Any) -> Any:
    problem = sa.sparse_recovery.LeastSquares(X, X @ torch.tensor([1.0, 0.0, 2.0, 0.0]))
    return sa.sparse_recovery.solve(problem, 2, "niht", iterations=3, stop=NEVER, progress=shown)


def sparse_path(shown: Any) -> Any:
    pytest.importorskip("sklearn", reason="the sklearn extra is not installed")
    model = sa.linear_model.SparseLinearRegression()
    return sa.linear_model.sparse_path(model, X.numpy(), X[:, 1].numpy(), ks=[1, 2], cv=2, progress=shown)


NEVER = sa.sparse_recovery.Stopping(step=-1.0)
CALLS: dict[str, tuple[Callable[[Any], Any], list[int], int]] = {
    "ISpaSP": (ispasp, [0, 1, 2, 3], 3),
    "CurvatureIHT": (iht, [0, 1, 2, 3, 4], 4),
    "refine": (refine, [0, 2, 4, 6, 8, 10, 12], 12),
    "accelerate": (accelerate, [0, 1, 2, 3, 4], 4),
    "dropout_stability": (dropout_stability, list(range(9)), 8),
    "low_loss_path": (low_loss_path, list(range(13)), 12),
    "solve": (solve, [0, 1, 2, 3], 3),
    "sparse_path": (sparse_path, list(range(7)), 6),
}


@pytest.mark.parametrize("name", sorted(CALLS))
def test_every_long_call_tells(name: str) -> None:
    call, steps, total = CALLS[name]
    told: list[Progress] = []
    result = call(lambda at: told.append(at))
    assert [at.done for at in told] == steps
    assert {(at.task, at.total) for at in told} == {(name, total)}
    if name in ("ISpaSP", "CurvatureIHT"):
        names = [layer.name for layer in getattr(result.report, "widths" if name == "ISpaSP" else "layers")]
        assert [at.label for at in told[1:]] == names
    if name in ("ISpaSP", "CurvatureIHT", "refine", "low_loss_path", "solve"):
        assert all(at.error is not None and at.error >= 0 for at in told[1:])


@pytest.mark.parametrize("name", sorted(CALLS))
def test_wrong_arguments_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match="progress: expected True, False, None or a function, got str"):
        CALLS[name][0]("yes")


@pytest.mark.parametrize("name", ["ISpaSP", "CurvatureIHT", "refine"])
def test_what_it_shows_does_not_change_what_comes(name: str) -> None:
    call = CALLS[name][0]
    quiet, told = call(False), call(lambda at: torch.rand(3))
    for one, other in zip(quiet.model.parameters(), told.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("call", [ispasp, iht])
def test_pruners_pass_it_on_to_what_refines(call: Callable[..., Any]) -> None:
    told: list[Progress] = []
    call(told.append, refine={"steps": 6})
    assert [at.done for at in told if at.task == "refine"] == [0, 1, 2, 3, 4, 5, 6]
    own: list[Progress] = []
    call(told.append, refine={"steps": 6, "progress": lambda at: own.append(at)})
    assert [at.done for at in own] == [0, 1, 2, 3, 4, 5, 6]


def test_rounds_of_curvature_iht() -> None:
    told: list[Progress] = []
    report = iht(told.append, refine=2).report
    rounds = [at for at in told if at.task == "refine"]
    assert [(at.done, at.total) for at in rounds] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert [at.error for at in rounds[1:]] == report.rounds


def test_functions_of_three_arguments() -> None:
    told: list[Any] = []
    assert of_steps(None) is None
    show = of_steps(lambda *look: told.append(look))
    assert callable(show)
    show(Progress("refine", 1, 9, "", 0.5))
    assert of_steps(told.append) == told.append
    assert told == [(1, 9, 0.5)]


def test_errors_of_functions_come_through(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(at: Progress) -> None:
        raise RuntimeError(f"at {at.done}")

    model = net()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(RuntimeError, match="at 0"):
        sa.prune.ISpaSP(model, X[:1], progress=fail).run(X)
    for one, other in zip(before, model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_bars_move_where_functions_are_not_called(screen: Screen, pen: str) -> None:
    told: list[Progress] = []
    with screen, meter(True, "refine", 4) as done, meter(told.append, "refine", 4) as heard:
        for one in (done, heard):
            one.at(1, "", 0.25)
            time.sleep(0.11)
            one.move(2)
    assert [at.done for at in told] == [0, 1]
    text = screen.text()
    assert "2/4" in text
    assert "error 0.25" in text[text.index("2/4") :]


def test_one_bar_at_a_time(screen: Screen, pen: str) -> None:
    with screen:
        with meter(True, "outer", 1), meter(True, "inner", 1):
            pass
        with meter(True, "later", 1):
            pass
    text = screen.text()
    assert ("outer" in text, "inner" in text, "later" in text) == (True, False, True)


def test_threads_do_not_stay(screen: Screen) -> None:
    import threading

    count = threading.active_count()
    with screen, meter(None, "prune", 1), meter(True, "inner", 1):
        pass
    time.sleep(0.05)
    assert threading.active_count() == count
    screen.text()


def test_loops_without_a_length() -> None:
    def items() -> Iterator[int]:
        yield 1

    out = io.StringIO()
    assert list(over(items(), "loop", lambda at: print(at, file=out))) == [1]
    assert out.getvalue() == "loop 0\nloop 1\n"
