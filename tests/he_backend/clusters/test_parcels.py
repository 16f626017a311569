"""How ciphertexts travel: names on a host, bytes to others, and nothing that stays behind."""

# ruff: noqa: E402  what is tested imports Dask
from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import Any

import pytest

distributed = pytest.importorskip("distributed", reason="Dask's distributed is not installed")

from distributed.protocol.serialize import deserialize, serialize

from he_backend.clusters import hostfiles
from he_backend.clusters.hostfiles import HostFolder, written
from he_backend.clusters.parcels import Parcel
from he_backend.errors import ClusterError
from he_backend.processes.folders import clean_environment

BLOBS = {3: b"three" * 100, 5: b"five" * 70}
HERE = {"sender": {"address": "tcp://10.0.0.1:80"}, "recipient": {"address": "tcp://10.0.0.1:81"}}
AWAY = {"sender": {"address": "tcp://10.0.0.1:80"}, "recipient": {"address": "tcp://10.0.0.2:80"}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(hostfiles, "_MEMORY", tmp_path)
    found = HostFolder("s", "")
    yield found
    found.close()


def parcel(folder: HostFolder) -> Parcel:
    found = Parcel(BLOBS)
    assert set(found.of(BLOBS, folder)) == set(BLOBS)
    return Parcel(found.held, shared=True)


def received(header, frames) -> Any:
    return deserialize(header, frames)


def test_a_name_travels_on_a_host_and_bytes_to_another(folder):
    sent = parcel(folder)
    for context, large in ((HERE, False), (AWAY, True), (None, True)):
        header, frames = serialize(sent, context=context)
        assert (sum(map(len, frames)) >= 700) is large
        assert received(header, frames).blobs() == BLOBS
    header, frames = serialize(sent.for_others(), context=HERE)
    assert sum(map(len, frames)) >= 700
    assert pickle.loads(pickle.dumps(sent)).blobs() == BLOBS
    assert sent.__sizeof__() == 780


def test_a_file_is_gone_with_its_last_name(folder):
    sent = parcel(folder)
    header, frames = serialize(sent, context=HERE)
    found = received(header, frames)
    del sent
    assert found.blobs() == BLOBS
    assert len(list(folder.path.iterdir())) == 3  # with the lock
    del found
    assert [path.name for path in folder.path.iterdir()] == ["lock"]


def test_a_name_that_is_followed_too_late_says_so(folder):
    header, frames = serialize(parcel(folder), context=HERE)  # and the parcel is gone
    with pytest.raises(ClusterError, match=r"finds nothing .* same run_dir to resume"):
        received(header, frames).blobs()


def test_what_finds_no_room_in_a_file_stays_as_bytes(folder, monkeypatch):
    monkeypatch.setattr("he_backend.clusters.parcels.written", lambda path, blob: False)
    assert Parcel(BLOBS).of([3], folder) == {3: BLOBS[3]}
    assert not written("/nowhere/file", b"x")


def test_the_last_one_removes_the_folder_and_the_next_session_what_was_left(folder, tmp_path):
    other = HostFolder("s", "")
    other.close()
    assert folder.path.exists()
    left = HostFolder("left", "")
    os.close(left.lock)  # as of a process that was killed
    assert left.path.exists()
    HostFolder("next", "").close()
    assert [path.name for path in tmp_path.iterdir()] == [folder.path.name]


def test_workers_that_share_a_folder_see_it(folder, tmp_path, monkeypatch):
    names = ["tcp://10.0.0.1:80", "tcp://10.0.0.1:81"]
    hostfiles.leave_mark("s", "", names[0])
    assert hostfiles.sees_marks("s", "", names[:1]) and not hostfiles.sees_marks("s", "", names)
    monkeypatch.setattr(hostfiles, "_MEMORY", tmp_path / "other")
    assert not hostfiles.sees_marks("s", str(tmp_path / "own"), names[:1])


def test_files_of_a_worker_that_was_killed_are_removed(folder):
    kept, lost = folder.new(1), folder.path / "killed-1"
    for path in (kept.path, str(lost)):
        assert written(path, b"x")
    code = (
        "import sys; from he_backend.clusters import hostfiles\n"
        "hostfiles._GRACE_SECONDS = 0.0\n"
        f"sys.argv = ['', {str(folder.path)!r}, 'killed-', '{folder.lock}']\n"
        "hostfiles.main()"
    )
    command = [sys.executable, "-c", code]
    subprocess.run(command, env=clean_environment(), pass_fds=[folder.lock], check=True)
    assert not lost.exists() and os.path.exists(kept.path)
