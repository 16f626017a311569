"""Bundles in folders: whole or not at all, refused by name where anything is another."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hesim
from hesim.bundles import content, storage, versions
from hesim.bundles.bundle import Bundle
from tests.test_packaging import TOP

PARAMS = hesim.CKKSParams(log_n=13, levels=2, scale_bits=40, first_bits=50, special_bits=60)
X = np.linspace(-1, 1, 8).astype(np.float32)


def bundled(w: np.ndarray) -> Bundle:
    program = hesim.trace(lambda x, w, m: [x * w[::-1] + m, w], X, X, X)
    return hesim.bundle(hesim.compile(program, PARAMS), X, w, X, open=2)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return bundled(X)


@pytest.fixture(scope="module")
def saved(bundle, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "whole"
    hesim.save(bundle, folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_it_comes_back_as_it_was(bundle, saved, tmp_path):
    loaded = hesim.load(saved)
    assert loaded.digest == content.digest(loaded) == bundle.digest
    assert (loaded.call, loaded.result, loaded.leaves) == (
        bundle.call,
        bundle.result,
        bundle.leaves,
    )
    assert loaded.ranges == bundle.ranges
    part = bundle.for_key_holder()
    hesim.save(part, tmp_path / "part")
    again = hesim.load(tmp_path / "part")
    assert again.digest == part.digest and again.whole == bundle.digest
    assert again.operands is None and len(again.circuit) == len(bundle.circuit)
    assert not (tmp_path / "part" / "operands").exists()


@pytest.mark.parametrize("name", ["circuit.npz", "opened.npz", "publics.npz", "operands/0.npy"])
@pytest.mark.parametrize("how", ["gone", "cut", "altered"])
def test_files_that_differ_are_named(copy, name, how):
    path, data = copy / name, (copy / name).read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if how == "cut" else data[:-9] + b"x" + data[-8:])
    with pytest.raises(hesim.BundleError, match=f"{name} (is gone|was altered)"):
        hesim.load(copy)


def sealed(path: Path, **changes) -> None:
    """A manifest with other entries that fits its own digest."""
    found = {**json.loads(path.read_bytes()), **changes}
    found.pop("digest")
    path.write_bytes(content.sealed(found))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 99}, "of format 99, and this version reads format 1"),
        ({"versions": {"hesim": "0.0.9"}}, "made with hesim 0.0.9, and here is hesim"),
        ({"call": {"tuple": [0, 7]}}, "structure .* is damaged"),
        ({"call": {"tuple": [0]}}, "do not belong together"),
        ({"result": {"set": [0, 1]}}, "structure .* is damaged"),
        ({"operands": 1 << 40}, "operands"),
        ({"operands": 0}, "list of files"),
        ({"files": {"../../x": [0, ""]}}, "list of files"),
        ({"leaves": 3}, "damaged"),
        ({"opened": [[0, 1, False, ["object"]]]}, "list of files|unknown dtype object"),
    ],
)
def test_manifests_that_are_none_of_this_version_are_refused(copy, changes, words):
    sealed(copy / "bundle.json", **changes)
    with pytest.raises(hesim.BundleError, match=words):
        hesim.load(copy)


def test_an_altered_manifest_is_named(copy):
    path = copy / "bundle.json"
    path.write_text(path.read_text().replace('"label', '"lebal').replace("args[0]", "args[9]"))
    with pytest.raises(hesim.BundleError, match=r"bundle.json: it was altered"):
        hesim.load(copy)
    path.write_text("[" * 100_000)
    with pytest.raises(hesim.BundleError, match=r"bundle.json"):
        hesim.load(copy)


def test_it_is_written_whole_or_not_at_all(bundle, saved, tmp_path, monkeypatch):
    with pytest.raises(hesim.BundleError, match="not empty"):
        hesim.save(bundle, saved)
    with pytest.raises(hesim.BundleError, match=r"not a Circuit: bundle = hesim\.bundle"):
        hesim.save(bundle.circuit, tmp_path / "new")
    written = []

    def full(path, content):
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(storage, "write_whole", full)
    with pytest.raises(OSError, match="No space left"):
        hesim.save(bundle, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_the_version_here_is_that_of_the_package():
    assert f'version = "{versions.HESIM}"' in (TOP / "pyproject.toml").read_text()
    with pytest.raises(hesim.BundleError, match="made with pyfhel 0.1, and here is pyfhel"):
        versions.check({"hesim": versions.HESIM, "pyfhel": "0.1"}, "pyfhel")


def test_it_is_loaded_and_called_without_jax(saved):
    code = (
        "import sys, hesim, numpy as np\n"
        f"bundle = hesim.load({str(saved)!r})\n"
        "leaves = bundle.arguments(np.zeros(8), np.ones(8))\n"
        "bundle.filled(leaves), bundle.for_key_holder().digest\n"
        "outside = {'jax', 'jaxlib', 'jaxtyping', 'flax', 'scipy', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {outside}' if outside else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_one_program_with_the_same_operands_has_one_digest(bundle):
    assert bundled(X).digest == bundle.digest != bundled(2 * X).digest
