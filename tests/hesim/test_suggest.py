"""`suggest`: parameters that carry a Program at the precision asked for."""

import math

import numpy as np
import pytest

import hesim
from hesim.errors import ParameterError
from hesim.params import SEAL_LIMITS, SECURITY_LIMITS
from hesim.suggest import _first_scale, _Trial

W = np.random.default_rng(0).uniform(-1, 1, (8, 8)).astype(np.float32) / 3


def fn(x):
    return ((x @ W) ** 2 - x) ** 2


@pytest.fixture(scope="module")
def program():
    return hesim.trace(fn, np.zeros((16, 8), np.float32))


@pytest.fixture(scope="module")
def suggestion(program):
    return hesim.suggest(program, bits=20, rings=(13, 14), keys=1)


def test_the_suggestion_meets_what_was_asked_and_is_the_cheapest_that_does(suggestion):
    assert suggestion.bits >= 19.9
    assert suggestion.bits < 23  # not far more than asked: that would cost levels
    fitting = [a for a in suggestion.alternatives if a.fits]
    assert fitting[0].priced_seconds == min(a.priced_seconds for a in fitting)
    assert suggestion.params == fitting[0].params and suggestion.seconds == fitting[0].seconds
    # Half a percent of the seconds is not worth half of the keys.
    assert all(0.0 < a.priced_seconds / a.seconds - 1.0 < 0.5 for a in fitting)
    assert suggestion.params.security == 128


def test_the_prediction_is_that_of_the_compiled_circuit(program, suggestion):
    x = np.random.default_rng(5).uniform(-1, 1, (16, 8))
    circuit = hesim.compile(program, suggestion.params)
    assert circuit.ledger.key_bytes == suggestion.key_bytes
    assert circuit.ledger.refreshes == suggestion.refreshes
    from hesim.noise.placement import of_circuit

    found = hesim.predict(
        program, suggestion.params, (x,), keys=4, schedule=of_circuit(program, circuit)
    )
    assert -math.log2(found.ops[-1].std) == pytest.approx(suggestion.bits, abs=0.5)


def test_more_bits_take_a_larger_scale(program, suggestion):
    finer = hesim.suggest(program, bits=28, rings=(14,), keys=1)
    assert finer.params.scale_bits >= suggestion.params.scale_bits + 6
    assert finer.bits >= 27.9


def test_without_the_key_holder_there_are_levels_for_all_of_it(program):
    found = hesim.suggest(program, bits=15, rings=(13, 14), keys=1, interactive=False)
    assert found.refreshes == 0 and found.params.levels >= program.depth
    assert all(a.refreshes == 0 for a in found.alternatives)
    short = [a for a in found.alternatives if a.params.levels < program.depth]
    assert short and all("levels" in a.lacks for a in short)


def test_slots_and_memory_are_obeyed(program, suggestion):
    wide = hesim.suggest(program, bits=20, slots=8192, rings=(13, 14), keys=1)
    assert wide.params.slots >= 8192
    assert all(a.params.log_n == 14 for a in wide.alternatives)
    with pytest.raises(ParameterError, match="raise memory"):
        hesim.suggest(program, bits=20, memory=1e3, rings=(13,), keys=1)


def test_impossible_wishes_say_what_to_change(program):
    with pytest.raises(ParameterError, match="fewer bits"):
        hesim.suggest(program, bits=58, rings=(13,))
    with pytest.raises(ParameterError, match="rings="):
        hesim.suggest(program, bits=20, slots=1 << 15, rings=(13,))
    with pytest.raises(ParameterError, match="security"):
        hesim.suggest(program, bits=20, security=100)


def test_parameters_whose_values_run_away_are_not_suggested():
    def steep(x):
        for _ in range(4):
            x = 40 * x * x
        return x

    program = hesim.trace(steep, np.zeros((4,), np.float32))
    args = (np.full(4, 0.9 / 40, np.float32),)
    found = hesim.suggest(program, bits=10, rings=(13,), keys=1, args=args)
    assert found.bits >= 9.9
    with pytest.raises(ParameterError, match="stand for real data"):
        hesim.suggest(program, bits=10, rings=(13,), keys=1, args=(np.full(4, 1e30),))
    trial = _Trial(program, args, 10.0, None, None, "seal", 1)
    trial._bits = lambda params, circuit: math.nan
    entry = trial._try(found.params)
    assert not entry.fits and "run away" in entry.lacks
    tried = list(trial.set_exact_scale(13, 2, 10, 128))
    assert len(tried) == 1 and trial.lost is not None  # it was tried again at a larger scale
    assert tried[0].params.scale_bits >= _first_scale(10, 13) + 8


def test_a_scale_that_no_prime_holds_says_what_is_reached(program):
    with pytest.raises(ParameterError, match="the most is"):
        hesim.suggest(program, bits=45, rings=(13,), keys=1)


def test_reasons_and_table_are_in_words(suggestion):
    text = str(suggestion)
    assert f"scale of 2^{suggestion.params.scale_bits}" in text
    assert sum(line.startswith("*") for line in suggestion.table().splitlines()) == 1
    assert len(suggestion.table().splitlines()) == 1 + len(suggestion.alternatives)


def test_the_2018_answer_is_shown_beside_the_2024_one(suggestion):
    p = suggestion.params
    older = SEAL_LIMITS[p.log_n]
    assert any("2018" in reason and f"{older} bits" in reason for reason in suggestion.reasons)
    chosen = next(line for line in suggestion.table().splitlines() if line.startswith("*"))
    assert {str(older), str(SECURITY_LIMITS[128][p.log_n])} <= set(chosen.split())


@pytest.mark.parametrize("security", [192, 256])
def test_higher_security_takes_a_larger_ring_or_a_shorter_chain(program, suggestion, security):
    found = hesim.suggest(program, bits=20, rings=(14, 15), keys=1, security=security)
    assert found.params.security == security
    assert found.params.log_qp <= SECURITY_LIMITS[security][found.params.log_n]
    assert found.seconds >= suggestion.seconds
    assert not any("2018" in reason for reason in found.reasons)
