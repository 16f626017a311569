"""CKKS parameters: primes, scales, sizes, and the security check."""

import dataclasses
import math
import pickle
import re
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hesim.errors import ParameterError
from hesim.params import (
    SCALE_TOLERANCE_BITS,
    CKKSParams,
    InsecureParametersWarning,
    larger_capacity,
    largest_levels,
    smallest_ring,
)

CHAINS = st.tuples(
    st.integers(10, 15),  # log_n
    st.integers(0, 20),  # levels
    st.integers(30, 50),  # scale_bits
    st.integers(1, 10),  # first_bits above scale_bits
    st.integers(0, 10),  # special_bits above first_bits
)


def insecure(*shape: int) -> CKKSParams:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureParametersWarning)
        return CKKSParams(*shape, security=None)


def is_prime(q: int) -> bool:
    return all(pow(a, q - 1, q) == 1 for a in range(2, 60))


@settings(max_examples=40, deadline=None)
@given(CHAINS)
def test_primes_are_distinct_ntt_primes_and_scales_do_not_drift(chain):
    log_n, levels, scale, first, special = chain
    first = min(60, scale + first)
    p = insecure(log_n, levels, scale, first, min(60, first + special))
    assert len(p.primes) == levels + 1
    assert len(set(p.moduli)) == levels + 2
    assert all(q % (2 * p.n) == 1 and q < 1 << 60 and is_prime(q) for q in p.moduli)
    assert p.primes[0].bit_length() == p.first_bits
    assert p.special.bit_length() == p.special_bits
    for level in range(levels + 1):
        assert abs(math.log2(p.scale(level)) - scale) <= SCALE_TOLERANCE_BITS
    for level in range(levels, 0, -1):
        product = p.scale(level) ** 2
        assert p.scale(level - 1) == pytest.approx(product / p.primes[level], rel=1e-15)


def test_greedy_choice_keeps_long_chains_within_a_thousandth_of_a_bit():
    p = CKKSParams(15, 18, 40, 50, 60)
    assert max(abs(math.log2(p.scale(l)) - 40) for l in range(19)) < 1e-3


def test_too_few_small_primes_are_refused():
    with pytest.raises(ParameterError, match="scale_bits"):
        insecure(15, 12, 20, 30, 40)


@pytest.mark.parametrize(
    ("log_n", "security", "levels"),
    [(13, 128, 2), (14, 128, 8), (15, 128, 18), (14, 192, 4), (15, 256, 9)],
)
def test_largest_levels_is_secure_and_one_more_is_not(log_n, security, levels):
    assert largest_levels(log_n, 40, 50, 60, security) == levels
    p = CKKSParams(log_n, levels, 40, 50, 60, security=security)
    assert p.log_qp == pytest.approx(sum(math.log2(q) for q in (*p.primes, p.special)))
    with pytest.raises(ParameterError):
        CKKSParams(log_n, levels + 1, 40, 50, 60, security=security)


def test_refusal_names_what_fits():
    with pytest.raises(ParameterError) as error:
        CKKSParams(13, 4, 40, 50, 60)
    message = str(error.value)
    assert "special prime included" in message
    assert "levels=2" in message
    assert f"log_n={smallest_ring(4, 40, 50, 60)}" in message


def test_between_the_tables_of_2018_and_2024_the_newer_one_decides():
    with pytest.raises(ParameterError, match="2018 table, which SEAL uses, allows 438"):
        CKKSParams(14, 8, 40, 54, 60)


def test_no_ring_and_no_levels_are_said():
    with pytest.raises(ParameterError, match="No number of levels fits"):
        CKKSParams(11, 1, 40, 50, 60)
    with pytest.raises(ParameterError, match="No ring up to"):
        CKKSParams(17, 100, 40, 50, 60)


def test_switching_the_check_off_is_loud():
    with pytest.warns(InsecureParametersWarning, match="INSECURE"):
        CKKSParams(13, 4, 40, 50, 60, security=None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"log_n": 3},
        {"log_n": 18},
        {"levels": -1},
        {"levels": 1.0},
        {"scale_bits": 61},
        {"special_bits": 61},
        {"first_bits": 35},
        {"special_bits": 45},
        {"security": 100},
    ],
)
def test_impossible_sizes_are_refused(wrong):
    right = {"log_n": 14, "levels": 3, "scale_bits": 40, "first_bits": 50, "special_bits": 60}
    with pytest.raises(ParameterError):
        CKKSParams(**{**right, **wrong})


def test_sizes_in_bytes():
    p = CKKSParams(15, 18, 40, 50, 60)
    assert p.key_bytes() == 16 * 2**15 * 20 * 19
    assert p.key_bytes(3) == 3 * p.key_bytes()
    assert p.ciphertext_bytes(0) == 2 * 8 * 2**15
    assert p.ciphertext_bytes(18, components=3) == 3 * 8 * 2**15 * 19
    assert p.plaintext_bytes(4) == 8 * 2**15 * 5


def test_capacity_is_the_largest_constant_that_does_not_wrap():
    p = CKKSParams(14, 4, 40, 50, 60)
    assert p.capacity(0) == pytest.approx(2.0**9, rel=1e-4)
    for level in range(5):
        bound = math.prod(p.primes[: level + 1]) / 2 / p.scale(level)
        assert p.capacity(level) == pytest.approx(bound, rel=1e-12)


def test_levels_outside_the_chain_are_refused():
    p = CKKSParams(14, 4, 40, 50, 60)
    for call in (p.scale, p.log_q, p.capacity, p.ciphertext_bytes):
        with pytest.raises(ParameterError, match="levels 0 to 4"):
            call(5)
        with pytest.raises(ParameterError):
            call(-1)


def test_params_are_plain_data():
    p = CKKSParams(14, 4, 40, 50, 60)
    assert pickle.loads(pickle.dumps(p)) == p
    assert CKKSParams(**dataclasses.asdict(p)).moduli == p.moduli
    assert hash(p) == hash(dataclasses.replace(p))


@pytest.mark.parametrize("bits", [0.2, 4.0, 25.0])
@pytest.mark.parametrize("power", [1, 2, 3])
def test_parameters_that_are_advised_exist_and_hold_so_much_more(bits, power):
    def room(p, level):
        return p.log_q(level) - power * p.scale_bits

    for shape in [(14, 4, 40, 50, 60), (13, 2, 40, 50, 60), (14, 4, 40, 58, 60)]:
        p = CKKSParams(*shape)
        for level in range(power - 1, p.levels + 1):
            advice = larger_capacity(p, bits, level, 2.0 ** (power * p.scale_bits))
            assert "scale the values down" in advice
            for changes in re.findall(
                r"((?:(?:first|special|scale)_bits=\d+(?: with )?)+)", advice
            ):
                change = {n: int(x) for n, x in re.findall(r"(\w+)=(\d+)", changes)}
                better = dataclasses.replace(p, **change)  # as secure, or it would be refused
                assert room(better, level) >= room(p, level) + bits
            assert ("scale_bits=" in advice) == (level < power and p.scale_bits - bits > 20)


def test_seal_accepts_the_primes():
    pyfhel = pytest.importorskip("Pyfhel")
    for shape in [(13, 2, 40, 50, 60), (14, 8, 40, 50, 60), (13, 3, 30, 40, 50)]:
        p = CKKSParams(*shape)
        assert p.seal_checks
        he = pyfhel.Pyfhel()
        status = he.contextGen(
            scheme="ckks", n=p.n, qi=list(p.moduli), scale=2.0**p.scale_bits, sec=128
        )
        assert status == "success: valid"


def test_seal_refuses_what_its_own_table_does():
    pyfhel = pytest.importorskip("Pyfhel")
    p = insecure(13, 4, 40, 50, 60)
    assert not p.seal_checks
    he = pyfhel.Pyfhel()
    status = he.contextGen(scheme="ckks", n=p.n, qi=list(p.moduli), scale=2.0**40, sec=128)
    assert "valid" not in status.split(": ")[-1].split()


@pytest.mark.parametrize(("levels", "scale", "digits"), [(17, 59, 3), (9, 50, 5), (1, 40, 2)])
def test_digits_have_as_many_special_primes_as_the_largest_needs(levels, scale, digits):
    with pytest.warns(InsecureParametersWarning):
        p = CKKSParams(11, levels, scale, 60, 60, security=None, digits=digits)
    width = p.digit_primes
    assert (digits - 1) * width < levels + 1 <= digits * width
    parts = [p.primes[i : i + width] for i in range(0, levels + 1, width)]
    assert 2.0**3.9 < p.special / max(map(math.prod, parts)) < 2.0**64.1
    assert len(set(p.moduli)) == len(p.moduli) and math.prod(p.moduli[levels + 1 :]) == p.special
    assert all(q % (2 * p.n) == 1 and q < 1 << 60 and is_prime(q) for q in p.moduli)
    assert p.log_qp == pytest.approx(math.log2(p.special) + p.log_q(levels))
    assert p.key_bytes() == 8 * 2 * digits * len(p.moduli) * p.n
    assert p.scale(levels) == float(p.primes[levels])
    for level in range(levels, 0, -1):
        assert p.scale(level - 1) == p.scale(level) * p.scale(level) / p.primes[level]
        assert abs(math.log2(p.scale(level)) - scale) <= SCALE_TOLERANCE_BITS
    assert CKKSParams(**p.fields) == p


def test_special_primes_of_digits_count_for_security():
    sizes = (16, 22, 59, 60, 60)
    assert CKKSParams(*sizes, digits=4).log_qp == pytest.approx(60 + 22 * 59 + 6 * 60, abs=0.01)
    with pytest.raises(ParameterError, match="largest that fits this ring is levels=18"):
        CKKSParams(*sizes, digits=2)


def test_digits_are_told_only_where_there_are_some():
    plain = CKKSParams(14, 7, 40, 50, 60)
    assert "digits" not in plain.fields and CKKSParams(**plain.fields) == plain
    assert dataclasses.asdict(plain) == {**plain.fields, "digits": None, "continues": None}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"digits": 1}, "from 2 to 6"),
        ({"digits": 7}, "from 2 to 6"),
        ({"digits": 2.0}, "from 2 to 6"),
        ({"digits": 4}, "take digits=3"),
        ({"digits": 3, "special_bits": 55}, "have 60 bits"),
    ],
)
def test_digits_that_cannot_be_are_refused(change, said):
    with pytest.raises(ParameterError, match=said):
        CKKSParams(**{**CKKSParams(14, 5, 40, 50, 60).fields, **change})


def test_a_chain_that_continues_another_begins_with_its_primes_and_scale():
    sizes = {"log_n": 16, "scale_bits": 59, "first_bits": 60, "special_bits": 60}
    short = CKKSParams(levels=9, digits=2, **sizes)
    chain = CKKSParams(levels=22, digits=4, continues=9, **sizes)
    assert chain.primes[:10] == short.primes and len(set(chain.primes)) == 23
    for level in range(10):
        assert chain.scale(level) == pytest.approx(short.scale(level), rel=2.0**-25)
    assert chain.fields["continues"] == 9 and "continues" not in short.fields
    assert CKKSParams(**chain.fields) == chain
    with pytest.raises(ParameterError, match="continues=3 needs digits"):
        CKKSParams(14, 5, 40, 50, 60, continues=3)
    with pytest.raises(ParameterError, match="ends below the top"):
        CKKSParams(15, 5, 40, 50, 60, digits=2, continues=5)


@pytest.mark.parametrize("log_n", [11, 13, 16])
def test_first_and_top_prime_cancel_what_they_are_off_their_powers(log_n):
    """OpenFHE's bootstrap is off by the square of the one over the other."""
    with pytest.warns(InsecureParametersWarning):
        chain = CKKSParams(log_n, 18, 59, 60, 60, security=None, digits=4, continues=5)
    first, top = chain.primes[0], chain.primes[-1]
    off = 2 * (1 - first / 2**60) + (top / 2**59 - 1)
    # A correction of 2^13 makes of it, times some multiples, less than half a bit of the noise.
    assert abs(off) < 2.0**-43 and chain.scale(18) == float(top)
