"""Key files: those that SEAL writes are accepted, those that were altered anywhere are not."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_backend.errors import BlobError
from he_backend.machines.pyfhel.key_bytes import check_keys, key_sizes
from he_backend.machines.pyfhel.machine import PyfhelMachine
from hesim.params import CKKSParams

STEPS = (0, 1, 7, 500)


def ring(levels: int = 1, scale_bits: int = 30) -> CKKSParams:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CKKSParams(10, levels, scale_bits, 40, 50, security=None)


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "client").mkdir()
    PyfhelMachine.make_keys(ring(), STEPS, folder, folder / "client")
    return folder


def test_the_keys_that_seal_writes_are_as_announced(keys):
    check_keys(ring(), STEPS, keys)
    found = {path.name: path.stat().st_size for path in keys.glob("*.key")}
    assert found == key_sizes(ring(), STEPS)
    assert "rotation.key" not in key_sizes(ring(), ())


@pytest.mark.parametrize(
    ("params", "steps", "words"),
    [
        (ring(2), STEPS, "has not the"),
        (ring(1, 31), STEPS, "other parameters"),
        (ring(), (1, 7, 8), "other rotations"),
        (ring(), (1, 7), "has not the"),
    ],
)
def test_keys_of_others_are_refused(keys, params, steps, words):
    with pytest.raises(BlobError, match=words):
        check_keys(params, steps, keys)


@pytest.mark.parametrize("name", ["public.key", "relin.key", "rotation.key"])
@settings(max_examples=40)
@given(data=st.data())
def test_no_altered_header_or_too_large_residue_passes(keys, name, data, tmp_path_factory):
    content = bytearray((keys / name).read_bytes())
    if data.draw(st.booleans(), "in a header"):
        at = data.draw(st.integers(0, 110 if name == "public.key" else 180))
        content[at] ^= data.draw(st.integers(1, 255))
    else:  # the highest byte of a residue
        first = 121 if name == "public.key" else 16 + 40 + 8 + 121
        count = 100 if name == "rotation.key" else (len(content) - first) // 8 - 40
        if name == "rotation.key":
            first += 8  # place 0 is empty
        at = first + 8 * data.draw(st.integers(0, count)) + 7
        content[at] |= 0x80
    folder = tmp_path_factory.mktemp("altered")
    shutil.copytree(keys, folder, dirs_exist_ok=True)
    (folder / name).write_bytes(content)
    with pytest.raises(BlobError, match=name):
        check_keys(ring(), STEPS, folder)


def test_a_key_that_hides_nothing_is_refused(keys, tmp_path):
    shutil.copytree(keys, tmp_path, dirs_exist_ok=True)
    content = np.fromfile(tmp_path / "public.key", np.uint8)
    content[-8 * ring().n :] = 0
    content.tofile(tmp_path / "public.key")
    with pytest.raises(BlobError, match="hides nothing"):
        check_keys(ring(), STEPS, tmp_path)
