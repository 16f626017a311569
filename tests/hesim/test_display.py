"""Tables: aligned as text, complete and escaped as HTML, for everything that a notebook shows."""

import html.parser

import numpy as np
import pytest

import approx
import he_backend
import hesim
from hesim.circuit.layout import Tensor, described
from hesim.display import html_table, text_table

PARAMS = hesim.CKKSParams(13, 3, 36, 45, 50)
SIGMOID = approx.fit("sigmoid", (-4, 4), degree=3)


class Table(html.parser.HTMLParser):
    """Cells of a table by row, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def traced():
    x = np.linspace(-1, 1, 24).reshape(4, 6)
    program = hesim.trace(lambda x: SIGMOID(x * x) - x, x)
    return program, hesim.compile(program, PARAMS), x


def test_columns_are_aligned():
    assert text_table([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc  d"


def test_numbers_stand_on_the_right_and_text_is_escaped():
    text = html_table([("name", "count"), ("<b>", "1,200"), ("c", "–"), ("d", "3e-5")])
    assert "&lt;b&gt;" in text and "<b>" not in text
    assert text.count("text-align: right") == 4 and text.count("text-align: left") == 4
    assert Table(text).rows[1] == ["<b>", "1,200"]
    assert Table(html_table([("head",)])).rows == [["head"]]


def test_of_very_many_rows_the_number_is_said():
    found = Table(html_table([("n",), *((str(k),) for k in range(1000))], most=10)).rows
    assert len(found) == 12 and found[-1] == ["and 990 more"]


def test_a_program_lists_its_operations(traced):
    program, _, _ = traced
    rows = Table(program._repr_html_()).rows
    assert len(rows) == 1 + len(program.ops)
    assert rows[2][1].startswith("polynomial") and "test_display.py" in rows[2][3]
    assert "<lambda>" not in program._repr_html_() and "&lt;lambda&gt;" in program._repr_html_()


def test_a_circuit_and_its_ledger_are_told_without_their_arrays(traced):
    _, circuit, _ = traced
    assert repr(circuit).startswith("Circuit of 3 operations, ") and len(repr(circuit)) < 200
    rows = Table(circuit._repr_html_()).rows
    assert ["rotations", str(circuit.ledger.rotations)] in rows
    assert [row[0] for row in rows[-3:]] == ["mul", "polynomial", "sub"]
    depth, levels = (line.split() for line in str(circuit.ledger).splitlines()[:2])
    assert depth == ["depth", str(circuit.ledger.depth)]
    assert levels == ["levels", str(circuit.ledger.levels), "between", "refreshes"]


def test_a_printed_circuit_says_where_each_operation_lies_and_at_which_level(traced):
    _, circuit, _ = traced
    first, _, *lines = str(circuit).splitlines()
    assert first == repr(circuit) and len(lines) == 1 + len(circuit.op_names)
    for line, op in zip(lines, circuit.ledger.operations, strict=True):
        assert line.split()[0] == op.name and op.layout in line and op.source in line
        assert op.layout.startswith("[") and op.ciphertexts == 1


def test_layouts_by_tables_are_read_like_others():
    node, column = np.repeat([[3], [5]], 4, axis=1), np.tile(np.arange(0, 16, 4), (2, 1))
    held = [(column, "[a2 | b4]"), (column[:, ::-1], "[a2 | b4]"), (column**2, "table")]
    for columns, text in held:
        x = Tensor(node.astype(np.int32), columns.astype(np.int32), 1.0, None, (2, 4))
        assert described(x) == text
    flat = Tensor(np.zeros((2, 4), np.int32), np.arange(8).reshape(2, 4), 1.0, None, (2, 4))
    assert described(flat) == "[ | a2 b4]"
    turned = Tensor(flat.node.T, flat.column.T, 1.0, None, (4, 2))
    assert described(turned) == "[ | b2 a4]"


def test_a_terminal_of_ipython_shows_the_text(traced):
    from IPython.lib.pretty import pretty

    program, circuit, x = traced
    assert pretty(program) == str(program)
    assert pretty(circuit.ledger) == str(circuit.ledger)
    report = he_backend.run(program, x, circuit=circuit, backend="slots")
    assert pretty(report) == str(report)


@pytest.mark.parametrize("compare", [True, False])
def test_a_report_says_what_it_says_as_text(traced, compare):
    program, circuit, x = traced
    report = he_backend.run(program, x, circuit=circuit, backend="slots", compare=compare)
    text = report._repr_html_()
    rows = Table(text).rows
    assert len({len(row) for row in rows}) == 1
    assert [row[0] for row in rows[1:]] == ["mul", "polynomial sigmoid", "sub"]
    assert "nothing encrypted" in text and (report.verdict() in text)
    assert ("bits off" in rows[0]) is compare


def test_suggestions_calibrations_and_certificates_have_their_tables(traced):
    program, circuit, x = traced
    met = hesim.calibrate(program, [(x,)])
    assert [row[0] for row in Table(met._repr_html_()).rows][2:] == ["mul", "polynomial", "sub"]
    predicted = hesim.predict(program, PARAMS, (x,), keys=2)
    rows = Table(predicted._repr_html_()).rows
    assert [row[0] for row in rows[1:]] == ["mul", "polynomial", "sub"]
    assert f"{predicted.ops[-1].std:.2e}" in rows[-1] and "test_display.py" in rows[-1][-1]
    found = hesim.certify(circuit, (x,), keys=2)
    assert [row[0] for row in Table(found._repr_html_()).rows[1:]] == ["mul", "polynomial", "sub"]
    suggestion = hesim.suggest(program, bits=10, rings=(13,))
    rows = Table(suggestion._repr_html_()).rows
    assert len(rows) == 1 + len(suggestion.alternatives)
    assert suggestion.table().splitlines()[0].split() == [c for c in rows[0] if c]


def test_a_report_on_an_approximation_keeps_its_lines():
    report = approx.report(approx.fit("exp", (-1, 1), degree=3))
    assert Table(report._repr_html_()).open == []
    assert report._repr_html_().count("<div>") == len(str(report).splitlines()) - 1
