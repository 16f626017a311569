"""What is seen while something works: phases in order, shares that grow, nothing lost on errors."""

import io
import re
import sys
import warnings

import numpy as np
import pytest
from rich.console import Console

import hesim
from hesim import progress
from hesim.errors import EmptySlotsWarning
from hesim.progress import Bar, CompileProgress, reporting

PARAMS = hesim.CKKSParams(13, 3, 36, 45, 50)
RING = hesim.CKKSParams(14, 3, 40, 50, 60)
W = np.random.default_rng(0).normal(size=(128, 128)) / 12


def blocks(x):
    """Eight of them, 48 operations, more than a second of a run."""
    for _ in range(8):
        x = (x @ W) * x - x.mean(1, keepdims=True)
    return x


@pytest.fixture(scope="module")
def program():
    return hesim.trace(lambda x: (x * x - x).sum(-1), np.ones((4, 8)))


def test_compiling_tells_every_operation_of_every_layout(program):
    seen: list[CompileProgress] = []
    hesim.compile(program, PARAMS, progress=seen.append)
    assert seen[-1].phase == "placing refreshes and writing instructions"
    assert [p.fraction for p in seen] == sorted(p.fraction for p in seen)
    assert 0.0 <= seen[0].fraction < seen[-1].fraction < 1.0
    tried = sorted({p.layout for p in seen[:-1]})
    assert tried == list(range(1, len(tried) + 1)) and len(tried) <= seen[-1].layouts
    first = [p for p in seen if p.layout == 1 and p.op]
    assert [p.op.split(" at ")[0] for p in first] == [e.name for e in program.ops]
    assert "test_progress.py" in first[0].op


def test_what_it_takes_is_said_beforehand_and_progress_never_goes_back():
    program = hesim.trace(blocks, np.zeros((64, 128)))
    seen: list[CompileProgress] = []
    hesim.compile(program, RING, progress=seen.append)
    said = r"planning 48 operations \(mostly within 19 s and 0.9 GB; \d+.\d GB free\)$"
    assert re.match(said, seen[0].phase)
    assert seen[0].op == ""
    fractions = [p.fraction for p in seen]
    assert fractions == sorted(fractions) and any("search" in p.phase for p in seen)


def test_more_members_at_the_same_price_are_offered():
    program = hesim.trace(blocks, np.zeros((40, 128)))
    with pytest.warns(EmptySlotsWarning, match="40 members .* where 64 would cost the same"):
        circuit = hesim.compile(program, RING)
    assert (circuit.batch, circuit.full_batch) == (40, 64) and "(room for 64)" in repr(circuit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filled = hesim.compile(hesim.trace(blocks, np.zeros((64, 128))), RING)
    assert filled.ledger.counts() == circuit.ledger.counts()


def test_where_commands_are_typed_long_work_is_shown_unasked(monkeypatch, capsys):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with reporting(None) as reporter:
        reporter.phase("short work")
        reporter.at(0.5)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    with reporting(None) as reporter:
        reporter.phase("long work")
        reporter.at(0.5)
    assert "long work: done after 0:00" in capsys.readouterr().err
    with reporting(False) as reporter:
        reporter.phase("long work")
        reporter.at(0.5)
    assert capsys.readouterr().err == ""


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
