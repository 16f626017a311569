"""What a trade-off study says of its rows: intervals, fronts, answers, tables, plots."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from experiments.cli.app import main
from experiments.errors import ExperimentError
from experiments.studies.tradeoff.folder import Store, is_tradeoff, load_results
from experiments.studies.tradeoff.knobs import Knobs
from experiments.studies.tradeoff.plots import plot_checks, plot_fronts, plot_interactions
from experiments.studies.tradeoff.report import Question, answers, text, write_csv
from experiments.studies.tradeoff.rows import Cost, Row, Spot, Task, save
from experiments.studies.tradeoff.spots import SpotChecks, chosen_points, rank_correlations
from experiments.studies.tradeoff.statistics import (
    best_within,
    cheapest,
    dominating,
    front,
    interactions,
    points_of,
)

REFERENCE = Knobs()
TARGETS = tuple(int(x) for x in np.random.default_rng(0).integers(0, 2, 200))
TASK = Task("glue/RTE", "accuracy", 2, TARGETS, 52.0)


def cost(seconds: float, depth: int, refreshes: int, sentences: int = 1) -> Cost:
    return Cost(sentences, depth, refreshes, 3, 10, 20, 30, 4, 5 * 10**8, 10**9, seconds)


def row(knobs: Knobs, seed: int, wrong: int, **changes: object) -> Row:
    """A row that answers `wrong` of the rows wrongly, chosen by the seed."""
    answered = np.array(TARGETS)
    chosen = np.random.default_rng(seed).permutation(len(answered))[:wrong]
    answered[chosen] = 1 - answered[chosen]
    score = 100 * (1 - wrong / len(answered))
    found = Row(
        knobs,
        TASK.name,
        seed,
        1.0,
        exact=score,
        polynomial=score,
        simulated=score,
        answers=tuple(answered.tolist()),
        noise=1e-6 * knobs.rank,
        certified=1e-6,
        one=f"{knobs.digest()}-one",
        many=f"{knobs.digest()}-many",
    )
    return dataclasses.replace(found, **changes)


def knobs(**changes: object) -> Knobs:
    return dataclasses.replace(REFERENCE, **changes)


CASES: dict[Knobs, tuple[int, Cost]] = {
    REFERENCE: (60, cost(200.0, 118, 13)),
    knobs(kernel="minimax-15"): (60, cost(150.0, 100, 10)),
    knobs(kernel="minimax-7"): (70, cost(120.0, 90, 8)),
    knobs(rank=8): (50, cost(220.0, 118, 13)),
    knobs(rank=8, kernel="minimax-15"): (52, cost(230.0, 100, 10)),
    knobs(refresh="key holder", ring="14/4/40"): (60, cost(9.0, 97, 75)),
}
ROWS = [row(k, seed, wrong + seed) for k, (wrong, _) in CASES.items() for seed in range(3)]
COSTS = {f"{k.digest()}-one": found for k, (_, found) in CASES.items()} | {
    f"{k.digest()}-many": cost(16 * found.seconds, found.depth, found.refreshes, 64)
    for k, (_, found) in CASES.items()
}
POINTS = points_of(ROWS, COSTS, {TASK.name: TASK}, REFERENCE)


def by(points: list, **changes: object):
    (found,) = [p for p in points if p.knobs == knobs(**changes)]
    return found


def test_an_interval_holds_seeds_and_rows_and_differences_are_paired():
    reference, rank = by(POINTS), by(POINTS, rank=8)
    assert reference.score.mean == pytest.approx(100 * (1 - 61 / 200))
    binomial = 1.96 * math.sqrt(0.305 * 0.695 / 200 / 3) * 100
    assert 0.7 * binomial < reference.score.half < 2.5 * binomial
    assert reference.change.mean == 0 and reference.change.half == 0
    assert rank.change.mean == pytest.approx(5.0)
    assert rank.change.half < reference.score.half  # the same rows are wrong
    single = points_of(ROWS[:1], COSTS, {TASK.name: TASK}, REFERENCE)[0]
    assert math.isinf(single.score.half)


def test_fronts_rise_and_leave_out_what_left_its_range():
    own = front(POINTS, lambda p: p.cost("seconds"), interactive=False)
    assert [p.knobs.label(REFERENCE) for p in own] == ["minimax-7", "minimax-15", "rank 8"]
    assert [p.score.mean for p in own] == sorted(p.score.mean for p in own)
    lost = [dataclasses.replace(r, lost=2) if r.knobs == knobs(rank=8) else r for r in ROWS]
    points = points_of(lost, COSTS, {TASK.name: TASK}, REFERENCE)
    best = front(points, lambda p: p.cost("seconds"), interactive=False)[-1]
    assert best.knobs == knobs(rank=8, kernel="minimax-15")


def test_answers_are_the_cheapest_and_the_best_within_a_budget():
    found = cheapest(POINTS, 73.0)
    assert found is not None and found.knobs == knobs(rank=8)
    assert cheapest(POINTS, 73.0, "levels") == by(POINTS, rank=8, kernel="minimax-15")
    assert cheapest(POINTS, 99.0) is None
    assert best_within(POINTS, "bootstraps", 10) == by(POINTS, rank=8, kernel="minimax-15")
    assert best_within(POINTS, "levels", 10) is None


def test_who_dominates_the_reference_is_refreshed_by_the_same_hand():
    found = [p.knobs for p in dominating(POINTS, REFERENCE)]
    assert found == [knobs(kernel="minimax-15")]  # neither slower, worse, nor interactive


def test_an_interaction_is_what_the_sum_of_two_effects_leaves():
    chosen = [p for p in POINTS if p.knobs.kernel != "minimax-7" and not p.knobs.interactive]
    (found,) = interactions(chosen, ("rank", "kernel", "sites"), lambda p: p.score.mean)
    assert (found.first, found.second) == ("rank", "kernel") and found.firsts == (2, 8)
    table = found.means
    left = table[0, 0] - table[0, 1] - table[1, 0] + table[1, 1]
    assert found.strength == pytest.approx(abs(left) / 4) and found.strength > 0


def spot(k: Knobs, seconds: float, error: float, **changes: object) -> Spot:
    predicted = CASES[k][1].seconds
    found = Spot(
        *(k, TASK.name, 0, 4, "pyfhel", True), predicted, seconds, 1e-6 * k.rank, error=error
    )
    return dataclasses.replace(found, **changes)


SPOTS = [
    spot(knobs(refresh="key holder", ring="14/4/40"), 8.0, 1e-6),
    spot(REFERENCE, 190.0, 1.1e-6),
    spot(knobs(rank=8), 260.0, 9e-6),
    spot(knobs(kernel="minimax-7"), 1.0, 1.0, reason="OverBudgetError: too large"),
]


def test_checks_are_far_apart_and_their_ranks_are_correlated():
    cheap = chosen_points(POINTS, SpotChecks(3), [])
    costs = [p.cost("seconds") for p in cheap]
    assert min(costs) == 9.0 and max(costs) > 200 and len(set(costs)) == 3
    known = [(TASK.name, cheap[0].knobs)]
    assert chosen_points(POINTS, SpotChecks(3), known) == cheap[1:]
    assert not chosen_points(POINTS, SpotChecks(3, memory=1e8), [])
    found = rank_correlations(SPOTS)
    assert found["seconds"] == 1.0 and 0.5 < found["error"] < 1.0
    assert math.isnan(rank_correlations(SPOTS[2:])["seconds"])


def test_questions_and_checks_that_are_no_numbers_are_refused():
    with pytest.raises(ExperimentError, match="accuracy=nan"):
        Question(accuracy=math.nan)
    with pytest.raises(ExperimentError, match="memory=nan"):
        SpotChecks(1, memory=math.nan)


VARIED = {name: sorted({getattr(r.knobs, name) for r in ROWS}) for name in ("rank", "kernel")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = Store(tmp_path)
    asked = {
        "kind": "tradeoff",
        "reference": dataclasses.asdict(REFERENCE),
        "varied": VARIED,
        "paired": [],
    }
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    broken = row(knobs(ring="12/8/40"), 0, 0, reason="SecurityError: too short", simulated=math.nan)
    for each in (*ROWS, dataclasses.replace(broken, one="", many="", answers=(), exact=math.nan)):
        store.keep_row(each)
    for key, found in COSTS.items():
        store.keep_cost(key, found)
    store.keep_task(TASK)
    for each in SPOTS:
        save(store.spot_path(each.task, each.knobs), each)
    return tmp_path


def test_the_text_says_everything(folder: Path):
    results = load_results(folder)
    said = text(results)
    lines = said.splitlines()
    assert lines[2].startswith("configuration") and lines[4].startswith("reference")
    assert "most frequent label 52.0" in lines[0] and "200 held-out rows, 3 seeds" in lines[0]
    assert "1 configurations dominate the reference" in said and "12/8/40: Security" in said
    assert "pyfhel, encrypted" in said and "3 checks: seconds 1.000" in said
    own = results.points
    assert "best within 100 levels: rank 8, minimax-15" in answers(
        results, own, Question(levels=100)
    )
    assert answers(results, own, Question(accuracy=99.0)).count("none") == 3
    plain = dataclasses.replace(results, spots=(dataclasses.replace(SPOTS[0], encrypted=False),))
    assert "pyfhel, NOT encrypted" in text(plain)
    assert "No configuration was run encrypted" in text(dataclasses.replace(results, spots=()))


def _changed(name: str, value: object):
    def damage(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))

    return damage


@pytest.mark.parametrize(
    ("part", "damage", "said"),
    [
        ("rows", lambda path: path.write_bytes(b"[]"), "is damaged"),
        ("rows", lambda path: path.write_bytes(b"\xff"), "is damaged"),
        ("rows", _changed("simulated", "70"), "simulated is '70'"),
        ("rows", _changed("lost", None), "lost is None"),
        ("rows", _changed("knobs", {"rank": 0}), "is damaged"),
        ("rows", _changed("answers", [1, 0]), "2 answers to the 200"),
        ("rows", lambda path: path.with_stem("copy").write_bytes(path.read_bytes()), "is a copy"),
        ("costs", _changed("seconds", "9"), "seconds is '9'"),
        ("tasks", _changed("targets", ["a"]), "targets is"),
        ("spots", _changed("encrypted", 1), "encrypted is 1"),
        (".", lambda path: path.write_bytes(b"{"), r"asked\.json is damaged"),
        (".", _changed("varied", {"depth": [1]}), r"asked\.json is damaged"),
        (".", _changed("reference", [1]), r"asked\.json is damaged"),
    ],
)
def test_a_damaged_file_is_named(folder: Path, part: str, damage, said: str):
    damage(min((folder / part).glob("*.json")))
    assert is_tradeoff(folder)
    with pytest.raises(ExperimentError, match=said):
        load_results(folder)


def test_answers_beyond_all_bounds_are_kept(folder: Path):
    lost = row(knobs(rank=4), 0, 5, answers=(math.nan,) * len(TARGETS))
    Store(folder).keep_row(lost)
    (found,) = [r for r in load_results(folder).rows if r.knobs == lost.knobs]
    assert np.isnan(found.answers).all()


def test_a_line_a_configuration_is_written(folder: Path):
    write_csv(load_results(folder), folder / "out.csv")
    with open(folder / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(CASES) + 1 and rows[0]["kernel"] == "squarings-14"
    assert float(rows[0]["one_seconds"]) == 200.0 and rows[0]["many_sentences"] == "64"
    assert [r["reason"] for r in rows if r["one_seconds"] == ""] == ["SecurityError: too short"]


def test_values_that_were_tried_alone_are_no_combinations(folder: Path):
    results = load_results(folder)
    whole = {p.knobs for p in results.combined(TASK.name)}
    assert {k.rank for k in whole} == set(results.varied["rank"])
    fewer = dataclasses.replace(results, varied={**results.varied, "rank": (REFERENCE.rank,)})
    left = {p.knobs for p in fewer.combined(TASK.name)}
    assert left == {k for k in whole if k.rank == REFERENCE.rank} != whole


def test_the_figures_show_fronts_rings_and_pairs(folder: Path):
    results = load_results(folder)
    fronts = plot_fronts(results)
    assert len(fronts.axes) == 4
    dots = [c for c in fronts.axes[0].collections if isinstance(c, PathCollection)]
    stars = [c for c in dots if c.get_sizes().tolist() == [170]]
    rings = [c for c in dots if c.get_sizes().tolist() == [90]]
    assert (
        len(np.asarray(stars[0].get_offsets())) == 1
        and len(np.asarray(rings[0].get_offsets())) == 3
    )
    pairs = plot_interactions(results)
    assert pairs is not None and any(a.get_xlabel() in ("rank", "kernel") for a in pairs.axes)
    checks = plot_checks(results)
    assert checks is not None and len(np.asarray(checks.axes[0].lines[0].get_xdata())) == 3
    assert plot_interactions(dataclasses.replace(results, varied={"rank": (2, 8)})) is None
    assert plot_checks(dataclasses.replace(results, spots=())) is None


def test_a_layout_without_a_plan_is_said_so(folder: Path):
    results = load_results(folder)
    alone = [dataclasses.replace(p, many=None) for p in results.points]
    figure = plot_fronts(dataclasses.replace(results, points=alone))
    figure.draw_without_rendering()
    assert [bool(axes.texts) for axes in figure.axes] == [False, True, False, False]


def test_the_report_command_answers_and_other_folders_refuse_the_question(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("COLUMNS", "300")  # messages stay on one line, however long a path is
    with pytest.raises(SystemExit) as ended:
        main(["report", str(folder), "--accuracy", "73"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "fewest seconds for 73 points or more: rank 8: " in said
    for name in ("tradeoff.txt", "tradeoff.csv", "fronts.png", "interactions.png", "checks.png"):
        assert (folder / name).stat().st_size > 100
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path_factory.mktemp("other")), "--levels", "9"])
    assert ended.value.code == 2 and "no trade-off study" in capsys.readouterr().err
