"""`python -m benchmarks.paper lines`: the published algorithms at the published prices."""

from __future__ import annotations

import pytest

from benchmarks.paper import formulas
from benchmarks.paper.cases import SIZES
from benchmarks.paper.formulas import Spent
from benchmarks.paper.lines import variants
from benchmarks.paper.ours import RING, optimizer, planned, published_costs
from benchmarks.paper.tradeoff import counted, one_at_a_time, program_of
from benchmarks.paper.training import PUBLISHED, Measured, ratios_of
from experiments.studies.tradeoff.designs import Space
from experiments.studies.tradeoff.knobs import Knobs


def test_left_right_and_inner_are_the_counts_of_table_6():
    total = formulas.left() + formulas.right() + formulas.inner(False)
    d = formulas.BLOCK
    assert total == Spent(6 * d, 4 * d, 3 * d + 5 * d**0.5, d)
    public = formulas.left() + formulas.inner(True)
    assert total.rotations - public.rotations == pytest.approx(d + 2 * d**0.5)
    assert public.products == 0


def test_prices_fall_with_the_level_as_table_8_does():
    product = formulas.left() + formulas.inner(True)
    ratio = product.seconds(formulas.LOW) / product.seconds()
    assert ratio == pytest.approx(0.103 / 0.242)
    assert product.seconds() == pytest.approx(0.242, rel=0.2)
    assert Spent(extended=2).seconds(formulas.LOW) == pytest.approx(0.274)


def test_totals_and_ratios_are_near_those_of_table_2():
    full, softly, gaussian = variants()
    for variant in (full, softly, gaussian):
        assert variant.fine_tuning == pytest.approx(variant.theirs, rel=0.25)
        assert variant.inference == pytest.approx(variant.theirs_forward, rel=0.25)
    assert full.fine_tuning / gaussian.fine_tuning == pytest.approx(6.94, rel=0.25)


def test_published_seconds_of_lines_add_up_to_the_published_totals():
    for variant in variants():
        layers = 2 * sum(line.theirs for line in variant.there + variant.back)
        assert layers + 1.5 + variant.steps.theirs == pytest.approx(variant.theirs, abs=0.1)


def test_a_step_shared_by_a_batch_counts_its_part_of_the_optimizer():
    rows = {"dear": Measured(2, 6, 32), "cheap": Measured(1, 2, 16)}
    assert [rows["dear"].step(n) for n in (1, 16)] == [38, 8]
    found = ratios_of(dict.fromkeys(PUBLISHED, rows["cheap"]), "full, softmax", "LoRA, Gaussian")
    assert [ours for ours, _ in found.values()] == [1.0] * 5
    assert [round(theirs, 2) for _, theirs in found.values()] == [2.33, 3.37, 24.52, 6.94, 3.63]
    found = ratios_of(PUBLISHED, "LoRA, softmax", "LoRA, Gaussian")
    assert all(ours == theirs for ours, theirs in found.values())
    assert found["a step, one sentence"][0] == pytest.approx(76.97 / 61.03)


def test_the_compilers_table_has_the_published_prices_at_both_levels():
    table = published_costs()

    def ms(level, *operations):
        return sum(1e3 * table.seconds(name, level, RING.log_n) for name in operations)

    product = "dot", "relinearize", "rescale"
    assert ms(formulas.TOP, *product) == pytest.approx(0.6)
    assert ms(formulas.TOP, "dot_plain", "rescale") == pytest.approx(0.1)
    assert ms(formulas.TOP, "rotate") == pytest.approx(0.49)
    assert ms(formulas.TOP, "add") == pytest.approx(0.02)
    assert ms(formulas.LOW, *product) == pytest.approx(0.6 * 0.103 / 0.242)
    assert ms(formulas.LOW, "encode", "encrypt") == 0.0


def test_the_optimizer_of_a_ciphertext_needs_no_more_bootstraps_than_its_published_seconds():
    ledger = planned(optimizer(), {0: 0, 1: 1}).ledger
    assert ledger.carried == 3 and ledger.rotations == 0
    assert 1 <= ledger.refreshes <= 252.83 / 368 / 0.137


def test_the_reference_of_a_trade_off_study_is_counted_as_the_published_lines():
    gaussian = variants()[2]
    found = counted(Knobs())
    assert found.inference == pytest.approx(gaussian.inference)
    assert found.step == pytest.approx(gaussian.fine_tuning)
    softly = variants()[1]
    assert counted(Knobs(kernel="softmax-3")).step == pytest.approx(softly.fine_tuning)


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 1},
        {"sites": "q"},
        {"kernel": "squarings-8"},
        {"kernel": "minimax-15"},
        {"activation": "15"},
        {"inv_sqrt": "15"},
        {"tanh": 15},
    ],
    ids=str,
)
def test_less_of_a_knob_is_counted_cheaper(changes):
    less, more = counted(Knobs(**changes)), counted(Knobs())
    assert less.inference < more.inference and less.step < more.step


def test_every_value_of_a_file_is_costed_once():
    space = Space(
        knobs=(("kernel", ("squarings-14", "minimax-7", "exact")), ("ring", ("13/3/36",))),
        singly=(("rank", (2, 4)), ("penalty", (1.0,))),
    )
    found = one_at_a_time(space)
    assert [k.label(Knobs()) for k in found] == ["reference", "minimax-7", "rank 4"]


@pytest.mark.slow
def test_a_kernel_of_fewer_levels_makes_a_program_of_fewer():
    found = (Knobs(), Knobs(kernel="minimax-7"), Knobs(rank=4))
    small = SIZES["tiny"].replace(layers=1, hidden=16, heads=2)
    depths = [program_of(k, small).depth for k in found]
    assert depths[1] < depths[0] == depths[2]
