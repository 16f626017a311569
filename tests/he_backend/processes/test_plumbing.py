"""Messages, the byte cache, the journal and errors that travel between processes."""

from __future__ import annotations

import json
import socket
import struct

import pytest

from he_backend import errors
from he_backend.machines.cache import ByteCache
from he_backend.processes.messages import Told, receive, send
from he_backend.processes.store import Journal, Store, bound_line


@pytest.fixture
def links():
    a, b = socket.socketpair()
    b.settimeout(5)
    with a, b:
        yield a, b


def test_messages_come_back(links):
    send(links[0], {"type": "x", "n": [1, 2]}, [b"abc", b"", b"\0" * 1000])
    assert receive(links[1]) == ({"type": "x", "n": [1, 2]}, [b"abc", b"", b"\0" * 1000])


def test_blobs_of_unexpected_length_are_refused(links):
    send(links[0], {}, [b"abc", b"de"])
    with pytest.raises(errors.BlobError, match=r"\[3, 2\] bytes instead of \[3, 3\]"):
        receive(links[1], [3, 3])


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        struct.pack("<4sII", b"heM1", 2**31, 0),
        struct.pack("<4sII", b"heM1", 3, 0) + b"{]}",
        struct.pack("<4sII", b"heM1", 2, 0) + b"[]",
        struct.pack("<4sII", b"heM1", 2, 1) + b"{}" + struct.pack("<Q", 2**40),
    ],
)
def test_bytes_that_are_no_message_are_refused(links, data):
    links[0].sendall(data)
    with pytest.raises(errors.ProtocolError):
        receive(links[1])


def test_a_closed_link_is_noticed(links):
    links[0].sendall(b"heM1")
    links[0].close()
    with pytest.raises(errors.ProtocolError, match="closed"):
        receive(links[1])


def test_a_caller_is_told_of_several_tasks_at_once_before_it_is_too_far_behind():
    told = Told(4, 1000)
    assert told.patience is None and not told.behind
    told.finished()
    assert told.patience == 0.0, "of the first one at once"
    told.say()
    assert told.patience is None
    told.finished()
    assert told.patience and told.patience < 1.0
    told.finished()
    assert told.patience == 0.0, "half of what it may not have heard of"
    told.finished()
    assert told.behind
    told.say()
    assert told.behind, "it has not heard"
    told.heard()
    assert not told.behind
    told.heard()
    told.heard()
    assert not told.behind


@pytest.mark.parametrize(("ahead", "tasks"), [(1, 1000), (32, 100)])
def test_a_caller_that_may_not_be_behind_or_of_few_tasks_is_told_of_each(ahead, tasks):
    told = Told(ahead, tasks)
    for _ in range(3):
        told.finished()
        assert told.patience == 0.0 and told.behind == (ahead == 1)
        told.say()
        told.heard()
        assert not told.behind


def test_cache_counts_bytes_and_drops_the_least_recently_used():
    cache: ByteCache[str] = ByteCache(10)
    for key, size in (("a", 4), ("b", 4)):
        cache.put(key, key, size)
    assert cache.get("a", lambda: ("new", 1)) == "a"
    cache.put("c", "c", 5)
    assert cache.get("b", lambda: ("again", 1)) == "again"
    assert cache.held <= 10 and len(cache) == 3
    cache.put("huge", "huge", 11)
    assert cache.get("huge", lambda: ("made", 11)) == "made"
    assert cache.held <= 10


def test_journal_adds_up_attempts_and_forgets_a_torn_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    lines = [
        {"attempt": 0},
        {"task": 0, "wall": 1.5, "counts": {}, "seconds": {}},
        {"task": 3, "wall": 2.0, "counts": {}, "seconds": {}},
        {"attempt": 2},
        {"task": 1, "wall": 0.25, "counts": {}, "seconds": {}},
    ]
    path.write_text(
        "".join(bound_line("run", path.name, line) for line in lines) + '{"task": 4, "wa'
    )
    journal = Journal(path, "run")
    assert sorted(journal.records) == [0, 1, 3] and journal.seconds == 2.25
    journal.finish(4, {"counts": {}, "seconds": {}})
    journal.close()
    assert sorted(Journal(path, "run").records) == [0, 1, 3, 4]


def test_a_journal_of_other_tasks_says_nothing_of_these(tmp_path):
    """They would have the same numbers: of another version of the library, say."""
    spent = {"counts": {}, "seconds": {}}
    for plan, task in (("one", 3), ("other", 5), ("one", 7)):
        journal = Journal(tmp_path / "journal", "run", plan)
        assert task not in journal.records
        journal.finish(task, spent)
        journal.checkpoint(journal.lines)
        journal.close()
    again = Journal(tmp_path / "journal", "run", "one")
    assert sorted(again.records) == [3, 7] == sorted(again.sure) and again.damaged == 0
    assert not Journal(tmp_path / "journal", "run", "third").records


def test_store_shows_whole_files_only(tmp_path):
    store = Store(tmp_path / "store", "run")
    store.write(3, b"blob")
    (store.folder / ".c4.ct.123").write_bytes(b"half")
    store.clean()
    assert store.read(3) == b"blob" and store.holds(3) and not store.holds(4)
    assert [p.name for p in store.folder.iterdir()] == ["c3.ct"]
    store.delete([3, 5])
    with pytest.raises(errors.RunFolderError, match="c3.ct cannot be read.*run again"):
        store.read(3)


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_travel(name):
    cls = getattr(errors, name)
    error = cls("what happened", 5) if name == "MissingRotationKey" else cls("what happened")
    error.at("mul", "model.py:3")
    error.at("add", "other.py:4")
    back = errors.from_message(json.loads(json.dumps(errors.to_message(error))))
    assert type(back) is cls and str(back) == "`mul` at model.py:3: what happened" == str(error)
    assert getattr(back, "step", 5) == 5
    error.rows = (3, 4)
    assert errors.from_message(errors.to_message(error)).rows == (3, 4)


def test_foreign_errors_keep_their_name():
    back = errors.from_message(errors.to_message(ValueError("odd")))
    assert type(back) is errors.BackendError and str(back) == "ValueError: odd"
