"""Schedules on clusters: between what cannot be beaten and all work one by one."""

from __future__ import annotations

import math
from typing import Any

import pytest

from he_backend.errors import BackendError
from he_backend.scaling import Network, expected_scaling

FREE = Network(math.inf, math.inf, 0.0, 0.0)
"""A network and a scheduler that cost nothing."""


@pytest.fixture
def scaling(broad):
    def found(*workers, **options):
        return expected_scaling(broad[0], workers, task_seconds=1e-9, **options)

    return found


def test_more_workers_are_no_slower_until_the_longest_chain_is_all(scaling):
    rows = scaling(1, 2, 4, 8, 64, clients=64, network=FREE)
    seconds = [row.seconds for row in rows]
    assert seconds == sorted(seconds, reverse=True)
    assert rows[0].speedup == 1.0 and rows[1].speedup > 1.5
    last = rows[-1]
    assert 1 - 1e-9 > last.path > 0.5 and last.limit == "dependencies"  # messages take the rest
    assert all(0 <= share <= 1 + 1e-9 for row in rows for share in row.busy.values())


def test_one_worker_does_all_its_work_one_by_one(scaling):
    (row,) = scaling(1, clients=64, network=FREE)
    assert row.busy["workers"] > 0.5
    (many,) = scaling(1, clients=64, network=FREE, batches=32, at_once=8)
    assert many.busy["workers"] > 0.95 and many.limit == "workers"
    assert many.seconds < 32 * row.seconds


def test_a_data_set_scales_further_than_a_batch(scaling):
    (one,) = scaling(32, clients=64, network=FREE)
    (many,) = scaling(32, clients=64, network=FREE, batches=32, at_once=32)
    assert many.speedup > 1.5 * one.speedup


def test_without_a_number_at_once_it_is_one_a_worker(scaling):
    each = [scaling(n, network=FREE, batches=8, at_once=n)[0].seconds for n in (1, 2, 4)]
    rows = scaling(1, 2, 4, network=FREE, batches=8, at_once=None)
    assert [row.seconds for row in rows] == each
    assert [row.speedup for row in rows] == [each[0] / s for s in each]


@pytest.mark.parametrize(
    ("slow", "clients", "limit"),
    [
        (Network(2e6, math.inf, 0.0, 0.0), 64, "network"),
        (FREE, 1, "key holder"),
        (Network(math.inf, math.inf, 0.0, 5e-3), 64, "scheduler"),
    ],
)
def test_what_is_slow_is_named_and_more_workers_do_not_help(scaling, slow, clients, limit):
    few, more = scaling(64, 256, clients=clients, network=slow, batches=64, at_once=64)
    assert few.limit == more.limit == limit
    assert more.busy[limit] > 0.9 and more.seconds > 0.95 * few.seconds


def test_nothing_passes_the_link_faster_than_its_bandwidth(broad, scaling):
    circuit, outputs = broad
    least = sum(circuit.params.ciphertext_bytes(int(circuit.level[c]), 2) for c in outputs)
    bandwidth = 1e5
    (row,) = scaling(256, clients=64, network=Network(bandwidth, math.inf, 0.0, 0.0))
    assert row.seconds > least / bandwidth


def test_counts_and_networks_that_are_none_are_refused(broad):
    wrong: list[dict[str, Any]] = [
        {"workers": [0]},
        {"batches": 0},
        {"at_once": 0},
        {"clients": True},
    ]
    for counts in wrong:
        with pytest.raises(BackendError, match="whole number"):
            expected_scaling(broad[0], **counts)
    with pytest.raises(BackendError, match="bandwidth"):
        Network(outside_bytes=0.0)
    with pytest.raises(BackendError, match="at least 0"):
        Network(latency_seconds=-1.0)
