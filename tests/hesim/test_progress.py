"""What is seen while something works: phases in order, shares that grow, nothing lost on errors."""

import io

import numpy as np
import pytest
from rich.console import Console

import hesim
from hesim import progress
from hesim.progress import Bar, CompileProgress, reporting

PARAMS = hesim.CKKSParams(13, 3, 36, 45, 50)


@pytest.fixture(scope="module")
def program():
    return hesim.trace(lambda x: (x * x - x).sum(-1), np.ones((4, 8)))


def test_compiling_tells_every_operation_of_every_layout(program):
    seen: list[CompileProgress] = []
    hesim.compile(program, PARAMS, progress=seen.append)
    assert seen[-1].phase == "placing refreshes and writing instructions"
    assert [p.fraction for p in seen] == sorted(p.fraction for p in seen)
    assert 0.0 <= seen[0].fraction < seen[-1].fraction < 1.0
    assert {p.layout for p in seen[:-1]} == set(range(1, seen[0].layouts + 1))
    first = [p for p in seen if p.layout == 1 and p.op]
    assert [p.op.split(" at ")[0] for p in first] == [e.name for e in program.ops]
    assert "test_progress.py" in first[0].op


def test_what_a_callback_raises_ends_the_compilation(program):
    def stop(p):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hesim.compile(program, PARAMS, progress=stop)


def test_a_log_has_a_line_for_each_phase_and_for_how_it_ended(monkeypatch):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    out = io.StringIO()
    with Bar(Console(file=out, width=200)) as bar:
        bar.phase("weighing [bold] things")
        bar.at(0.25, "an apple", 30.0)
        bar.phase("counting")
        bar.at(float("nan"))
    lines = out.getvalue().splitlines()
    assert lines[0] == "weighing [bold] things ..."
    assert lines[1] == "weighing [bold] things  25 %, 0:30 left  an apple"
    assert lines[2] == "counting ..." and "so far" in lines[3]
    assert lines[4] == "counting: done after 0:00"
    with pytest.raises(ZeroDivisionError), Bar(Console(file=out, width=200)) as bar:
        bar.phase("dividing")
        bar.at(1 / 0)
    assert out.getvalue().splitlines()[-1] == "dividing: stopped after 0:00"


def test_a_terminal_keeps_a_row_for_each_phase():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    with Bar(console) as bar:
        bar.phase("first [x]")
        bar.at(0.5, "half", 3.0)
        bar.phase("second")
    last = out.getvalue().rsplit("first [x]", 1)[1]
    assert "second" in last


def test_a_notebook_shows_one_output_that_is_drawn_anew(monkeypatch):
    shown = []

    class Handle:
        def update(self, content):
            shown.append(content.data)

    def display(content, display_id):
        shown.append(content.data)
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    view = progress._Notebook()
    view.start()
    view.phase("a < b")
    view.at(0.5, "half", None)
    view.phase("next")
    view.stop(finished=True)
    assert "a &lt; b" in shown[0] and "<progress>" in shown[0]
    assert shown[-1].count("✓") == 2 and "<progress" not in shown[-1]


def test_nobody_is_told_without_progress(capsys):
    for nobody in (None, False):
        with reporting(nobody) as reporter:
            reporter.phase("unseen")
            reporter.at(0.5)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
