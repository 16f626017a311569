"""The page of a run: what ran and what it cost, nothing fetched, no number unexplained."""

from __future__ import annotations

import dataclasses
import html.parser
import math
import re

import jax.numpy as jnp
import numpy as np
import pytest

import approx
import he_backend
import hesim
from he_backend.report import figures
from he_backend.report.html import page

GELU = approx.fit("gelu", (-4, 4), degree=3)
INV = approx.fit("inv", [(-3, -0.5), (0.5, 3)], degree=3)


def layer(x, w):
    y = GELU(x @ w)
    return (y * y).sum(-1) + INV(x).mean(-1)


class Page(html.parser.HTMLParser):
    """Tags, identifiers, links, and the text of table cells by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.rows: list[list[str]] = []
        self.cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [v or "" for k, v in attrs if k == "id"]
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = False

    def handle_data(self, data):
        if self.cell:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def report(params):
    rng = np.random.default_rng(0)
    x = rng.uniform(0.4, 1, (8, 4)).astype(np.float32)
    w = rng.normal(size=(4, 4)).astype(np.float32)
    program = hesim.trace(layer, x, w, encrypted=(0,))
    with pytest.warns(UserWarning, match="outside its domain"):
        return he_backend.run(
            program, x, w, params=params, backend="slots", compare=True, outside="warn"
        )


@pytest.fixture(scope="module")
def text(report):
    return page(report)


def test_it_says_what_ran_when_and_with_what(report, text):
    assert "<title>layer, on plain vectors (nothing was encrypted)</title>" in text
    assert "args[0]: float32[8, 4], encrypted" in text
    assert "args[1]: float32[4, 4], public" in text
    assert "8 members of a batch" in text
    environment = report.subject.environment
    assert environment["date"] in text and f"numpy {np.__version__}" in text
    assert f"jax {environment['packages']['jax']}" in text


def test_a_function_that_was_encrypted_is_called_so(report):
    encrypted = page(dataclasses.replace(report, encrypted=True))
    assert "<title>layer, encrypted</title>" in encrypted
    assert "shows no encrypted result" not in encrypted


def test_it_is_self_contained(text):
    found = Page(text)
    assert all(link.startswith("#") for link in found.links)
    assert not {"script", "link", "iframe", "img", "object"} & set(found.tags)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert len(found.ids) == len(set(found.ids))
    assert {link.removeprefix("#") for link in found.links} <= set(found.ids)
    assert found.tags.count("svg") == 3


def test_every_operation_has_a_row_in_which_everything_is_said(report, text):
    rows = Page(text).rows
    head = next(row for row in rows if row[:2] == ["#", "operation"])
    start = rows.index(head) + 1
    found = rows[start : start + len(report.ops)]
    assert [row[1] for row in found] == [op.label for op in report.ops]
    assert "polynomial gelu" in [row[1] for row in found]
    assert all(len(row) == len(head) for row in found)
    cells = {cell for row in found for cell in row}
    assert not {"nan", "-1", "inf"} & cells
    fused = next(row for op, row in zip(report.ops, found, strict=True) if op.level < 0)
    assert fused[2] == "with a later one"
    assert any("computed together with a later operation" in cell for cell in fused)


def test_no_two_columns_of_a_group_have_one_name(text):
    rows = Page(text).rows
    head = next(row for row in rows if row[:2] == ["#", "operation"])
    groups = rows[rows.index(head) - 1]
    assert head.count("predicted") == len([g for g in groups if g.strip()]) - 1
    assert {"standard deviation of the error", "core-seconds", "exact values"} <= set(groups)


def test_seconds_are_told_measured_and_predicted(report, text):
    rows = {row[0]: row[1] for row in Page(text).rows if len(row) == 3}
    assert rows["core-seconds"] == f"{report.core_seconds:.2f}"
    assert rows["core-seconds predicted"] == f"{report.ledger.seconds:.2f}"
    total = sum(op.predicted_seconds for op in report.ops)
    inputs = report.ledger.operations[0].seconds
    assert total + inputs == pytest.approx(sum(op.seconds for op in report.ledger.operations))


def test_the_time_of_the_whole_call_is_told_phase_by_phase(report, text):
    phases = [name.split(" (")[0] for name in report.phases]
    assert phases[0].startswith("compiling") and phases[-1] == "comparing"
    assert "evaluating the exact twin" in phases
    rows = [row[0] for row in Page(text).rows]
    first = rows.index(phases[0])
    assert rows[first : first + len(phases)] == phases
    assert sum(report.phases.values()) >= report.seconds > 0.0


def test_ranges_are_those_of_what_polynomials_were_fed(report):
    gelu, inv = (op for op in report.ops if op.function)
    assert gelu.domain == ((-4.0, 4.0),) and not gelu.outside
    assert inv.met == pytest.approx((0.4, 1.0), abs=0.1) and inv.outside > 0
    first, second = figures.ranges_of(report.ops)
    assert first.inside and not second.inside and len(second.intervals) == 2
    drawn = figures.ranges([first, second])
    assert [t.get_text().split()[0] for t in drawn.axes[0].get_yticklabels()] == ["gelu", "inv"]


def test_operations_are_named_and_refreshes_marked(report):
    drawn = figures.errors_and_levels(report.ops, report.params.levels, report.encrypted)
    top, _, bottom = drawn.axes
    names = [label.get_text() for label in bottom.get_xticklabels()]
    assert names == [f"{k}  {op.function or op.name}" for k, op in enumerate(report.ops)]
    refreshed = [k for k, op in enumerate(report.ops) if op.refreshes]
    assert sum(op.refreshes for op in report.ops) == report.refreshes > 0
    (marks,) = (line for line in bottom.lines if line.get_marker() == "v")
    np.testing.assert_array_equal(marks.get_xdata(), refreshed)
    # Nothing is in the legend that is not in the figure.
    assert "outside" not in " ".join(top.get_legend_handles_labels()[1])
    wrong = [dataclasses.replace(op, measured_std=1.0) for op in report.ops if op.judged]
    (axes,) = figures.errors(wrong, True).axes
    assert "measured, encrypted, outside" in axes.get_legend_handles_labels()[1]
    assert "measured, encrypted" not in axes.get_legend_handles_labels()[1]


def test_names_of_hundreds_of_operations_are_those_that_matter(report):
    many = [dataclasses.replace(report.ops[0], refreshes=0)] * 400 + [report.ops[-2]]
    some = [op if k % 2 else dataclasses.replace(op, function="gelu") for k, op in enumerate(many)]
    axes = figures.levels_of(some, 3).axes[0]
    assert 50 < len(axes.get_xticks()) <= 201


def test_a_run_that_compared_nothing_has_levels_and_costs(report):
    nothing = math.nan
    ops = tuple(
        dataclasses.replace(op, measured_std=nothing, predicted_std=nothing, unjudged="")
        for op in report.ops
    )
    text = page(dataclasses.replace(report, compared=False, ops=ops))
    assert "Levels along the program" in text and "This run did not compare" in text
    assert "operations judged" not in text and "bits off" not in text


def test_names_and_messages_are_escaped(report):
    assert report.subject is not None
    subject = dataclasses.replace(report.subject, name="<lambda>", listing="</pre><b>")
    text = page(dataclasses.replace(report, subject=subject, outside=("<script>",)))
    assert "&lt;lambda&gt;, on plain vectors" in text
    assert "<script>" not in text and "</pre><b>" not in text


def test_a_report_made_by_hand_needs_no_subject(report):
    assert "A program, on plain vectors" in page(dataclasses.replace(report, subject=None))


def test_the_figure_of_one_operation_alone_can_be_drawn(params):
    x = np.ones(4)
    program = hesim.trace(lambda x: x * jnp.float32(0.0), x)
    report = he_backend.run(program, x, params=params, backend="slots", compare=True)
    assert page(report).count("<svg") == 2
