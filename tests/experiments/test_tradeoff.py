"""The trade-off study: knobs, designs, jobs, a folder that goes on, and encrypted checks."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from experiments.console import Display
from experiments.errors import ExperimentError
from experiments.lock import alone_in
from experiments.studies.tasks import Stopped
from experiments.studies.tradeoff import jobs as tradeoff_jobs
from experiments.studies.tradeoff import run as tradeoff_run
from experiments.studies.tradeoff.designs import Space, configurations, rungs, survivors
from experiments.studies.tradeoff.folder import Store
from experiments.studies.tradeoff.jobs import (
    Scored,
    Scoring,
    Subject,
    Trained,
    Training,
    cost_key,
    plan_of,
    training_key,
)
from experiments.studies.tradeoff.knobs import Knobs
from experiments.studies.tradeoff.report import text
from experiments.studies.tradeoff.rows import Cost, Row, Task
from experiments.studies.tradeoff.run import run_tradeoff
from experiments.studies.tradeoff.settings import TradeoffStudy, knobs_template, read_study
from experiments.studies.tradeoff.spots import SpotChecks
from hesim.circuit.circuit import Circuit
from hesim.errors import ParameterError, TooLargeError
from models.config import preset
from models.sites.sites import fit_ranges
from tests.experiments.conftest import write_encoder

pytestmark = pytest.mark.usefixtures("quick_compilation")

RANGES = (("exp", (-40.0, 0.0)), ("inv_sqrt", (0.1, 50.0)), ("relu", (-7.0, 7.0)))
EASY = Knobs(2, "qv", "minimax-7", "7", "7", 7, 0.0, "13/3/36", "key holder")


# Knobs


def test_the_reference_is_the_published_models_own_point():
    knobs = Knobs()
    fit = knobs.fit((*RANGES, ("tanh", (-5.0, 5.0))))
    assert knobs.adapted == ("query", "key", "value") and knobs.rank == 2
    assert fit.knobs("layer0.attention.exp") == {"squarings": 14, "degree": 1}
    assert fit.knobs("layer0.ffn.relu") == {"degrees": (15, 15, 27)}
    assert fit.knobs("final_norm.inv_sqrt") == {"degree": 127, "steps": 3}
    assert fit.degree("pooler.tanh") == 63
    assert knobs.ckks().log_n == 16 and knobs.price == "bootstrap" and not knobs.interactive


@pytest.mark.parametrize(("squarings", "low"), [(3, -16.0), (14, -32768.0)])
def test_squarings_hold_where_their_base_is_at_most_1(squarings: int, low: float):
    knobs = dataclasses.replace(EASY, kernel=f"squarings-{squarings}")
    fit = knobs.fit(RANGES)
    assert fit.domain("layer0.attention.exp", None) == (low, 0.0)
    made = fit.build("layer0.attention.exp", (low, 0.0))
    x = np.linspace(low, 0.0, 101)
    np.testing.assert_allclose(
        made(x), (1 + x / 2**squarings) ** (2**squarings), rtol=1e-9, atol=1e-12
    )


def test_the_exact_kernel_leaves_its_exponential_alone():
    config = preset("tiny", layers=1)
    exact = dataclasses.replace(EASY, kernel="exact")
    kept = set(EASY.approximated(config)) - set(exact.approximated(config))
    assert kept == {"layer0.attention.exp"}
    sites = fit_ranges(
        config, {}, EASY.fit((*RANGES, ("tanh", (-5, 5)))), EASY.approximated(config)
    )
    assert {name: f.degree for name, f in sites.entries} == {
        name: 6 if name.endswith("relu") else 7  # ReLU is x / 2 and an even function
        for name in sites.ranges()
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kernel": "squarings"}, "squarings-14"),
        ({"kernel": "squarings-99"}, "from 1 to 30"),
        ({"sites": "vq"}, "in this order"),
        ({"sites": ""}, "in this order"),
        ({"ring": "16/12"}, "LOG_N/LEVELS"),
        ({"refresh": "nobody"}, "bootstrap"),
        ({"inv_sqrt": "127+"}, "Newton"),
        ({"rank": 0}, "at least 1"),
        ({"penalty": -1.0}, "at least 0"),
        ({"penalty": math.inf}, "finite"),
        ({"inv_sqrt": "7+1000000"}, "Newton steps 30"),
        ({"activation": "15,99999"}, "511 at most"),
        ({"tanh": 512}, "511 at most"),
    ],
)
def test_values_that_no_configuration_has_are_refused(changes: dict, said: str):
    with pytest.raises(ExperimentError, match=said):
        Knobs(**changes)


def test_a_composition_of_relu_is_refused_for_another_function():
    with pytest.raises(ExperimentError, match="composes ReLU"):
        Knobs().approximated(preset("tiny", activation="gelu"))


def test_an_insecure_ring_shows_when_it_is_built():
    with pytest.raises(ParameterError):
        dataclasses.replace(EASY, ring="12/8/40").ckks()


# Designs

SPACE = Space(
    reference=EASY,
    knobs=(
        ("rank", (2, 4)),
        ("kernel", ("minimax-7", "minimax-15")),
        ("ring", ("13/3/36", "14/4/40")),
        ("refresh", ("key holder", "bootstrap")),
    ),
    singly=(("tanh", (7, 15)),),
    paired=("ring", "refresh"),
)


def test_a_factorial_design_has_every_combination_once_and_pairs_go_together():
    found = configurations(SPACE)
    assert found[0] == EASY and len(found) == len(set(found)) == 2 * 2 * 2 + 1  # and tanh 15
    assert {(k.ring, k.refresh) for k in found} == {
        ("13/3/36", "key holder"),
        ("14/4/40", "bootstrap"),
    }
    assert sum(k.tanh == 15 for k in found) == 1


def test_a_random_design_is_drawn_from_the_combinations_by_its_seed():
    some = dataclasses.replace(SPACE, design="random", count=3)
    everything = configurations(SPACE)
    found = configurations(some)
    assert found == configurations(some) and set(found) <= set(everything)
    assert 3 <= len(found) <= 5 and found[0] == EASY
    assert any(
        configurations(dataclasses.replace(some, seed=seed)) != found for seed in range(1, 9)
    )


def test_halving_gives_more_rows_to_fewer_and_all_seeds_to_the_last():
    rounds = rungs(dataclasses.replace(SPACE, design="halving", keep=3, rungs=3), 27, 3)
    assert [r.survivors for r in rounds] == [9, 3, 27]
    assert [r.seeds for r in rounds] == [1, 1, 3]
    np.testing.assert_allclose([r.share for r in rounds], [1 / 9, 1 / 3, 1.0])
    assert [r.share for r in rungs(SPACE, 27, 3)] == [1.0]


def test_what_nothing_dominates_survives_first_and_the_reference_always():
    tried = [dataclasses.replace(EASY, rank=rank) for rank in range(1, 6)]
    judged = {1: (50.0, 9.0), 2: (80.0, 5.0), 3: (70.0, 1.0), 4: (69.0, 2.0), 5: None}
    kept = survivors(tried, lambda k: judged[k.rank], 2)
    assert [k.rank for k in kept] == [1, 2, 3]
    assert [k.rank for k in survivors(tried, lambda k: judged[k.rank], 4)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"design": "grid"}, "factorial, random"),
        ({"knobs": (("depth", (1,)),)}, "no knob 'depth'"),
        ({"knobs": (("rank", (2, 2)),)}, "each once"),
        ({"knobs": (("kernel", ("cosine",)),)}, "kernel is 'cosine'"),
        ({"knobs": (("ring", ("13/3/36",)),), "paired": ("ring", "refresh")}, "equally many"),
        ({"knobs": (("rank", (2, 4)),), "paired": ("rank", "rank")}, "each once"),
        ({"paired": (1, 2)}, "two knobs or more"),
        ({"seed": -1}, "seed=-1"),
        ({"design": "halving", "rungs": 12}, "fewer rungs"),
        ({"design": "halving", "rungs": 10**9}, "fewer rungs"),
        ({"singly": (("rank", tuple(range(1, 100_002))),)}, "leave out some"),
    ],
)
def test_spaces_that_are_none_are_refused(changes: dict, said: str):
    with pytest.raises(ExperimentError, match=said):
        Space(**changes)


# Files


def test_the_template_is_a_file_of_the_reference_alone_and_says_every_knob(tmp_path: Path):
    text = knobs_template()
    path = tmp_path / "knobs.toml"
    path.write_text(text)
    study = read_study(path, ["sst2", "RTE"], "there")
    assert configurations(study.space) == [Knobs()]
    assert study.tasks == ("glue/SST-2", "glue/RTE") and study.data_dir == "there"
    path.write_text(text.replace("# kernel = ", "kernel = ", 1))
    kernels = [k.kernel for k in configurations(read_study(path, ["reviews"], None).space)]
    assert kernels == ["squarings-14", "squarings-8", "minimax-15", "softmax-3"]
    path.write_text("[knobs]\nkernel = ['cubings-3']\n")
    with pytest.raises(ExperimentError, match=r"knobs\.toml: kernel is 'cubings-3'"):
        read_study(path, ["reviews"], None)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[study]\nrate = nan", "rate=nan"),
        ("[study]\nscale = inf", "scale=inf"),
        ("[study]\nseeds = 1000000000000", "1,000 at most"),
        ("[study]\nprofile = 'quiet'", "noise profile 'quiet'"),
        ("[study]\npaired = [1]", "two knobs or more"),
        ("[ranges]\nexp = [1.0]", "range of exp is"),
        ("[ranges]\nexp = [1.0, 2.0, 3.0]", "range of exp is"),
    ],
)
def test_files_that_say_no_study_are_refused_before_any_work(tmp_path: Path, line: str, said: str):
    path = tmp_path / "knobs.toml"
    path.write_text(line)
    with pytest.raises(ExperimentError, match=rf"knobs\.toml: .*{said}"):
        read_study(path, ["reviews"], None)


def test_what_is_shared_has_one_name_and_what_differs_another():
    study = TradeoffStudy()

    def fine_tuned(**changes: object) -> str:
        return training_key(Training(study, "reviews", dataclasses.replace(EASY, **changes), 0))

    assert fine_tuned() == fine_tuned(kernel="squarings-8", ring="14/4/40", tanh=15)
    assert len({fine_tuned(), fine_tuned(rank=4), fine_tuned(kernel="softmax-3")}) == 3
    assert len({fine_tuned(), fine_tuned(penalty=1.0), fine_tuned(sites="q")}) == 3

    def planned(**changes: object) -> str:
        return cost_key(study, "reviews", dataclasses.replace(EASY, **changes), "one")

    assert planned() == planned(penalty=1.0)
    assert len({planned(), planned(rank=4), planned(ring="14/4/40"), planned(tanh=15)}) == 4
    assert planned() != cost_key(study, "glue/MNLI", EASY, "one")  # of other classes


# A whole study


@pytest.fixture(scope="module")
def study(glue: Path, tmp_path_factory: pytest.TempPathFactory) -> TradeoffStudy:
    start = write_encoder(tmp_path_factory.mktemp("start") / "gaussian", glue)
    space = Space(
        reference=EASY,
        knobs=(("kernel", ("minimax-7", "exact")),),
        singly=(("ring", ("12/8/40",)),),
    )
    return TradeoffStudy(
        space=space,
        tasks=("glue/SST-2",),
        seeds=1,
        data_dir=str(glue),
        gaussian=str(start),
        length=8,
        many=4,
        train_rows=200,
        epochs=2,
        rate=1e-2,
        ranges=(*RANGES, ("tanh", (-5.0, 5.0))),
        table=(),
    )


@pytest.mark.slow
def test_a_study_goes_on_and_what_cannot_be_is_a_row_with_its_reason(
    study: TradeoffStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = itertools.count()
    with pytest.raises(Stopped):  # after the fine-tuning, before the first score
        run_tradeoff(study, tmp_path, stop=lambda: next(asked) >= 2)
    assert len(list((tmp_path / "trained").glob("*.npz"))) == 1
    assert not list((tmp_path / "rows").iterdir())
    checks = SpotChecks(1, sentences=2, backend="slots")
    found = run_tradeoff(study, tmp_path, checks=checks, display=Display(quiet=True))
    rows = {row.knobs.kernel + row.knobs.ring: row for row in found.rows}
    easy, exact, insecure = (
        rows[name] for name in ("minimax-713/3/36", "exact13/3/36", "minimax-712/8/40")
    )
    assert easy.sound and abs(easy.simulated - easy.exact) < 10 and 0 < easy.noise < 1e-3
    assert abs(math.log2(easy.certified / easy.noise)) < 1.5
    assert found.costs[easy.one].sentences == 1 and found.costs[easy.many].sentences == 4
    assert found.costs[easy.many].seconds < 4 * found.costs[easy.one].seconds
    assert math.isnan(exact.simulated) and "no encryption evaluates exp" in exact.reason
    assert exact.answers and exact.exact == easy.exact and not exact.lost
    assert not insecure.sound and "security" in insecure.reason.lower()
    (spot,) = found.spots
    assert spot.knobs == EASY and not spot.encrypted and not spot.reason
    assert spot.error < spot.predicted_error  # plain vectors have no noise

    monkeypatch.setattr(tradeoff_run, "train", lambda job: pytest.fail("trained again"))
    monkeypatch.setattr(tradeoff_run, "score", lambda job: pytest.fail("scored again"))
    again = run_tradeoff(study, tmp_path, checks=checks)
    assert [repr(row) for row in again.rows] == [repr(row) for row in found.rows]


def trained(job: Training) -> Trained:
    return Trained({"head.kernel": np.full((2, 2), float(job.seed))}, 1.0)


def scored(job: Scoring) -> Scored:
    """Better for higher ranks, and dearer."""
    rank = job.knobs.rank
    cost = Cost(1, 10, 5, 5, 1, 1, 1, 1, 1, 1, float(rank))
    key = cost_key(job.study, job.task, job.knobs, "one")
    score = 100 * (1 - 1 / (1 + rank))
    rows = [
        Row(job.knobs, job.task, seed, job.share, score, score, score, (1, 0), one=key, many=key)
        for seed in job.trained
    ]
    return Scored(tuple(rows), {"one": cost}, Task(job.task, "accuracy", 2, (1, 0), 50.0))


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[Scoring]:
    """Jobs that cost nothing; what was scored."""
    asked: list[Scoring] = []
    monkeypatch.setattr(tradeoff_run, "train", trained)
    monkeypatch.setattr(tradeoff_run, "score", lambda job: asked.append(job) or scored(job))
    return asked


def test_a_study_adds_what_is_missing_and_repeats_nothing(tmp_path: Path, fakes: list[Scoring]):
    space = Space(reference=EASY, knobs=(("rank", (2, 4)), ("tanh", (7, 15))))
    small = TradeoffStudy(space=space, tasks=("glue/RTE",), seeds=2)
    count = itertools.count()
    with pytest.raises(Stopped):
        run_tradeoff(small, tmp_path, stop=lambda: next(count) > 8)  # within the scoring
    before = len(fakes)
    assert 0 < before < 4 and len(list((tmp_path / "trained").iterdir())) == 4  # 2 ranks, 2 seeds
    found = run_tradeoff(small, tmp_path)
    assert len(fakes) == 4 and len(found.rows) == 8 and len(found.points) == 4
    assert found.axes == ("rank", "tanh") and len(found.combined("glue/RTE")) == 4
    run_tradeoff(small, tmp_path)
    run_tradeoff(dataclasses.replace(small, seeds=1), tmp_path)
    assert len(fakes) == 4
    more = dataclasses.replace(small, seeds=3, tasks=("glue/RTE", "glue/MRPC"))
    assert len(run_tradeoff(more, tmp_path).rows) == 24
    assert [list(job.trained) for job in fakes[4:8]] == [[2]] * 4  # the new seed alone
    assert all(set(job.costs) == {"one"} for job in fakes[4:8])  # planned already
    next(iter((tmp_path / "trained").iterdir())).write_bytes(b"cut off")
    next(iter((tmp_path / "rows").iterdir())).unlink()
    assert len(run_tradeoff(more, tmp_path).rows) == 24
    done = len(fakes)
    next(iter((tmp_path / "tasks").iterdir())).unlink()  # as an error says of a damaged one
    next(iter((tmp_path / "costs").iterdir())).unlink()
    assert len(run_tradeoff(more, tmp_path).tasks) == 2
    assert len(list((tmp_path / "costs").iterdir())) == 8 and len(fakes) > done
    run_tradeoff(more, tmp_path)
    next(iter((tmp_path / "rows").iterdir())).write_bytes(b"{")
    with pytest.raises(ExperimentError, match="is damaged"):
        run_tradeoff(more, tmp_path)


def test_what_failed_is_tried_again_by_the_next_call(
    tmp_path: Path, fakes: list[Scoring], monkeypatch: pytest.MonkeyPatch
):
    study = TradeoffStudy(space=Space(reference=EASY), tasks=("glue/RTE",), seeds=2)

    def killed(job: Scoring) -> Scored:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(tradeoff_run, "score", killed)
        rows = run_tradeoff(study, tmp_path).rows
    assert len(rows) == 2 and all("no room" in row.reason and not row.sound for row in rows)
    again = run_tradeoff(study, tmp_path).rows
    assert len(fakes) == 1 and len(again) == 2 and all(row.sound for row in again)
    run_tradeoff(study, tmp_path)
    assert len(fakes) == 1


def test_a_damaged_archive_of_a_fine_tuning_is_none(tmp_path: Path):
    store = Store(tmp_path)
    store.keep_trained("key", trained(Training(TradeoffStudy(), "reviews", EASY, 0)))
    path = tmp_path / "trained" / "key.npz"
    whole = path.read_bytes()
    assert store.trained("key") is not None
    for damaged in (whole[: len(whole) // 2], whole[:100] + b"\xff" * 100 + whole[200:]):
        path.write_bytes(damaged)
        assert store.trained("key") is None


def test_held_out_rows_that_changed_are_not_compared(tmp_path: Path):
    store = Store(tmp_path)
    task = Task("glue/RTE", "accuracy", 2, (1, 0), 50.0)
    store.keep_task(task)
    store.keep_task(task)
    with pytest.raises(ExperimentError, match="other held-out rows"):
        store.keep_task(dataclasses.replace(task, targets=(0, 1)))


def test_one_sentence_is_planned_where_many_are_too_many(
    study: TradeoffStudy, monkeypatch: pytest.MonkeyPatch
):
    def planned(subject: Subject, knobs: Knobs, sentences: int) -> Circuit:
        if sentences > 1:
            raise TooLargeError("`dot_general`", 2**40, 2**30)
        return plan_of(subject, knobs, sentences)

    monkeypatch.setattr(tradeoff_jobs, "plan_of", planned)
    job = Training(study, "glue/SST-2", EASY, 0)
    found = tradeoff_jobs.score(
        Scoring(study, "glue/SST-2", EASY, 1.0, {0: tradeoff_jobs.train(job)}, {})
    )
    (row,) = found.rows
    assert row.sound and row.one == cost_key(study, "glue/SST-2", EASY, "one") and not row.many
    assert set(found.costs) == {"one"} and "no plan of 4 sentences" in row.reason


def test_halving_scores_fewer_with_more_rows(tmp_path: Path, fakes: list[Scoring]):
    space = Space(
        reference=EASY,
        knobs=(("rank", tuple(range(1, 10))),),
        design="halving",
        count=9,
        keep=3,
        rungs=2,
    )
    run_tradeoff(TradeoffStudy(space=space, tasks=("glue/RTE",), seeds=2), tmp_path)
    first, last = fakes[:9], fakes[9:]
    assert {job.share for job in first} == {1 / 3} and {job.share for job in last} == {1.0}
    assert all(len(job.trained) == 1 for job in first) and all(len(j.trained) == 2 for j in last)
    assert {job.knobs.rank for job in last} == {9, 8, 7, 2}  # by score, and the reference


def test_a_fine_tuning_that_fails_is_a_reason_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(job: Training) -> Trained:
        raise ExperimentError(f"seed {job.seed} will not learn")

    monkeypatch.setattr(tradeoff_run, "train", broken)
    study = TradeoffStudy(space=Space(reference=EASY), tasks=("glue/RTE",), seeds=2)
    found = run_tradeoff(study, tmp_path)
    rows = found.rows
    assert not found.points and "glue/RTE: not fine-tuned" in text(found)
    assert [row.reason[-21:] for row in rows] == [f"seed {k} will not learn" for k in (0, 1)]
    assert not any(row.sound for row in rows)
    with pytest.raises(ExperimentError, match="another study"):
        run_tradeoff(dataclasses.replace(study, scale=4.0), tmp_path)
    with alone_in(tmp_path), pytest.raises(ExperimentError, match="another process"):
        run_tradeoff(study, tmp_path)
