"""An evaluator and a key holder: batches, what is remembered, and who is not served."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import threading
import time

import numpy as np
import pytest

import he_backend
from he_backend.errors import (
    BackendError,
    ClientRefusedError,
    EvaluatorGoneError,
    EvaluatorRefusedError,
    LedgerMismatchError,
    RunFolderError,
    ValueRangeError,
)
from he_backend.owners import wire
from he_backend.owners.addresses import Address, dial
from he_backend.owners.certificates import make_pair
from he_backend.processes.job import Batch
from he_backend.processes.messages import receive, send
from hesim.circuit.plain.errors import BackendError as Refused
from tests.he_backend.owners.conftest import MASK, X, exact


def test_batch_after_batch_the_result_is_the_functions(serving, connecting):
    with serving() as evaluator, connecting(evaluator) as session:
        for mask in (MASK, 1 - MASK):
            found = session.run(X, mask)
            np.testing.assert_allclose(found["out"], exact(X, mask), atol=1e-6)
        np.testing.assert_allclose(found["w"], np.linspace(0.5, 1.5, 8), atol=1e-6)
        assert session.done("0") and session.done("1") and not session.done("2")


def test_plaintexts_are_encoded_once_for_all_batches_of_a_visit(serving, connecting, bundle):
    with serving(backend="pyfhel") as evaluator, connecting(evaluator, backend="pyfhel") as session:
        encoded = []
        for k in range(3):
            batch = Batch([X / (k + 1)], [MASK.astype(np.float64)], bundle.ranges, str(k))
            encoded.append(session._session.run(batch).spent.encoded)
    assert encoded[0] > 0 and encoded[2] == 0


def test_a_finished_batch_is_read_back_without_the_evaluator(serving, connecting):
    with serving() as evaluator:
        with connecting(evaluator) as session:
            first = session.run(X, MASK, batch="monday")
        address = evaluator.address
    with connecting(address) as session:
        again = session.run(X, MASK, batch="monday")
        np.testing.assert_array_equal(first["out"], again["out"])
        with pytest.raises(RunFolderError, match="another name"):
            session.run(X / 2, MASK, batch="monday")
        with pytest.raises(EvaluatorGoneError, match="no evaluator answers"):
            session.run(X, MASK, batch="tuesday")


def test_over_tls_keys_are_brought_once(serving, connecting, certificates, log, tmp_path):
    ours, theirs = certificates
    with serving(address="127.0.0.1:0", certificates=ours, backend="pyfhel") as evaluator:
        for _ in range(2):
            with connecting(evaluator, certificates=theirs, backend="pyfhel") as session:
                found = session.run(X, MASK, batch=f"{time.monotonic_ns()}")
                np.testing.assert_allclose(found["out"], exact(X, MASK), atol=1e-2)
    assert log().count("brought the keys") == 1 and log().count("is finished") == 2
    kept = [p for p in (tmp_path / "evaluator").rglob("*") if p.is_file()]
    assert not any(p.name == "secret.key" for p in kept)
    secret = (tmp_path / "holder" / "own" / "secret.key").read_bytes()[200:264]
    assert not any(secret in p.read_bytes() for p in kept)


@pytest.mark.parametrize("what", ["bundle", "machine", "protocol", "keys", "more", "role"])
def test_whoever_says_something_else_is_refused_with_the_same_word(serving, bundle, log, what):
    hello = wire.hello(bundle.digest, "slots", "0" * 64)
    hello[what] = {"keys": "0" * 63, "protocol": 0, "more": 1}.get(what, "other")
    with serving() as evaluator, dial(Address.parse(evaluator.address)) as link:
        began = time.monotonic()
        send(link, hello)
        assert receive(link) == ({"type": "refused"}, [])
        assert 0.05 <= time.monotonic() - began < 5
        assert link.recv(1) == b""
    assert f"has another {'form of its keys' if what == 'keys' else what}" in log()


def test_a_key_holder_of_another_bundle_is_refused(serving, connecting, other_bundle):
    refused = pytest.raises(EvaluatorRefusedError, match="does not say why")
    with serving() as evaluator, connecting(evaluator, bundle=other_bundle) as session, refused:
        session.run(X, MASK)


def test_a_second_key_holder_is_refused_until_the_first_one_leaves(
    serving, connecting, log, tmp_path
):
    with serving() as evaluator:
        with connecting(evaluator) as first, connecting(evaluator, folder=tmp_path / "b") as second:
            first.run(X, MASK)
            with pytest.raises(EvaluatorRefusedError):
                second.run(X, MASK)
            first.run(X, 1 - MASK)
        assert "somebody else is being served" in log()
        with connecting(evaluator, folder=tmp_path / "b") as second:
            np.testing.assert_allclose(second.run(X, MASK)["out"], exact(X, MASK), atol=1e-6)


@pytest.mark.parametrize("whose", ["evaluator", "key holder", "nobody"])
def test_other_certificates_lead_nowhere(serving, connecting, certificates, log, tmp_path, whose):
    wrong = make_pair(tmp_path / "wrong")
    ours, theirs = certificates
    if whose == "evaluator":
        ours = wrong[0]
    with serving(address="127.0.0.1:0", certificates=ours) as evaluator:
        if whose == "nobody":
            address = Address.parse(evaluator.address)
            with socket.create_connection((address.host, address.port), 5) as link:
                send(link, wire.hello("0" * 64, "slots", "0" * 64))
                link.settimeout(5)
                with pytest.raises((OSError, BackendError)):
                    receive(link)
        else:
            held = theirs if whose == "evaluator" else wrong[1]
            refused = pytest.raises(EvaluatorRefusedError)
            with connecting(evaluator, certificates=held) as session, refused:
                session.run(X, MASK)
        with pytest.raises(BackendError, match="over TLS only"):
            connecting(evaluator)
    assert "was shown out: no TLS link" in log()


def test_keys_of_another_circuit_are_refused_with_the_same_word(serving, bundle, log):
    files = {"public.key": [1 << 20, "0" * 64], "relin.key": [7, "0" * 64]}
    hello = wire.hello(bundle.digest, "pyfhel", wire.digest_of_keys(files))
    with serving(backend="pyfhel") as evaluator, dial(Address.parse(evaluator.address)) as link:
        send(link, hello)
        assert receive(link)[0]["keys"] == "wanted"
        send(link, {"type": "keys", "files": files})
        assert receive(link) == ({"type": "refused"}, [])
    assert "its key files are not those of this Circuit" in log()


def test_values_unlike_the_examples_are_refused_on_this_side(serving, connecting, log):
    refused = pytest.raises(ValueRangeError, match="examples lay")
    with serving() as evaluator, connecting(evaluator) as session, refused:
        session.run(9 * X, MASK)
    assert "begins" not in log()


def test_a_refusal_at_a_refresh_tells_the_caller_why_and_the_evaluator_nothing(
    serving, connecting, bundle, log, tmp_path
):
    refreshed = next(iter(bundle.ranges))
    narrow = dataclasses.replace(bundle.for_key_holder(), ranges={refreshed: (-1e-9, 1e-9)})
    refused = pytest.raises(ValueRangeError, match="calibrated range")
    with serving() as evaluator, connecting(evaluator, bundle=narrow) as session, refused:
        session.run(X, MASK)
    assert "begins" in log() and "finished" not in log() and "range" not in log()


def test_the_evaluator_ends_and_the_same_batch_goes_on(serving, connecting, tmp_path):
    seen, ended = [], threading.Event()

    with serving() as evaluator:

        def stop(progress):
            seen.append(progress)
            if progress.tasks_done and not ended.is_set():
                ended.set()
                evaluator.close()

        gone = pytest.raises((EvaluatorGoneError, ClientRefusedError))
        with connecting(evaluator, progress=stop) as session, gone:
            session.run(X, MASK)
    with serving() as evaluator, connecting(evaluator, progress=seen.append) as session:
        found = session.run(X, MASK)
    np.testing.assert_allclose(found["out"], exact(X, MASK), atol=1e-6)


def test_the_key_holder_goes_and_the_evaluator_serves_the_next(serving, connecting, tmp_path):
    class Gone(Exception):
        pass

    def leave(progress):
        if progress.tasks_done:
            raise Gone

    with serving() as evaluator:
        with connecting(evaluator, progress=leave) as session, pytest.raises(Gone):
            session.run(X, MASK)
        with connecting(evaluator) as session:
            found = session.run(X, MASK)
    np.testing.assert_allclose(found["out"], exact(X, MASK), atol=1e-6)


def test_an_evaluator_that_lost_its_folder_is_brought_all_again(serving, connecting, tmp_path, log):
    with serving(backend="pyfhel") as evaluator, connecting(evaluator, backend="pyfhel") as session:
        session.run(X, MASK)
    shutil.rmtree(tmp_path / "evaluator")
    with serving(backend="pyfhel") as evaluator, connecting(evaluator, backend="pyfhel") as session:
        found = session.run(X, 1 - MASK, batch="1")
    np.testing.assert_allclose(found["out"], exact(X, 1 - MASK), atol=1e-2)
    assert log().count("brought the keys") == 1


def test_folders_are_of_one_bundle_and_one_process(serving, connecting, other_bundle, tmp_path):
    with serving() as evaluator:
        with pytest.raises(RunFolderError, match="another process is using"):
            he_backend.Evaluator(other_bundle, "unix:/x", tmp_path / "evaluator", backend="slots")
        with connecting(evaluator):
            pass
    with pytest.raises(RunFolderError, match="is of another bundle"):
        he_backend.Evaluator(other_bundle, "unix:/x", tmp_path / "evaluator", backend="slots")
    with pytest.raises(RunFolderError, match="is of another bundle"):
        connecting("unix:/x", bundle=other_bundle)
    with pytest.raises(RunFolderError, match="is of another machine"):
        connecting("unix:/x", backend="pyfhel")


def test_a_silent_key_holder_is_shown_out(serving, connecting, log):
    with serving(idle_seconds=2.5) as evaluator, connecting(evaluator) as session:
        session.run(X, MASK)
        end = time.monotonic() + 30
        while "said nothing" not in log() and time.monotonic() < end:
            time.sleep(0.05)
        assert "said nothing for 2 seconds" in log()
        found = session.run(X, 1 - MASK)  # it calls again
    np.testing.assert_allclose(found["out"], exact(X, 1 - MASK), atol=1e-6)


def test_an_evaluator_that_spends_something_else_is_noticed(serving, connecting, bundle):
    ledger = dataclasses.replace(
        bundle.circuit.ledger, rotations=bundle.circuit.ledger.rotations + 1
    )
    circuit = dataclasses.replace(bundle.for_key_holder().circuit, ledger=ledger)
    other = dataclasses.replace(bundle.for_key_holder(), circuit=circuit)
    wrong = pytest.raises(LedgerMismatchError, match="rotations")
    with serving() as evaluator, connecting(evaluator, bundle=other) as session, wrong:
        session.run(X, MASK)


def test_the_half_of_a_bundle_cannot_be_served(bundle, tmp_path):
    with pytest.raises(Refused, match="key holder's part"):
        he_backend.Evaluator(bundle.for_key_holder(), "unix:/x", tmp_path / "e")
