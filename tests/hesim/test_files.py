"""Files that appear whole, what killed writers leave, and folders that one process holds."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from hesim.errors import FolderInUseError
from hesim.files import alone_in, replacing, sweep, write_whole


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "file"
    write_whole(path, b"old")
    with pytest.raises(ValueError, match="half-way"), replacing(path) as file:
        file.write(b"new")
        raise ValueError("half-way")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_mode_that_is_asked_for_holds_whatever_the_umask(umask: int, tmp_path: Path):
    path = tmp_path / "file"
    before = os.umask(umask)
    try:
        write_whole(path, b"x")
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask
        write_whole(path, b"x", mode=0o600)
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_a_write_that_the_system_refuses_names_the_file(tmp_path: Path):
    path = tmp_path / "file"
    write_whole(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write_whole(path, b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(path) and caught.value.errno
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_only_what_killed_writers_left_is_swept(tmp_path: Path):
    names = (".v3.f64.123", ".c4.ct.7", ".hidden", ".hidden.txt", "v3.f64", "notes.123")
    for name in names:
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(names[2:])


def test_a_folder_is_held_by_one(tmp_path: Path):
    held = pytest.raises(FolderInUseError, match="another process is using")
    with alone_in(tmp_path), held, alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        pass
