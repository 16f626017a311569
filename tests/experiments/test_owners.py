"""Two owners from the command line: from a bundle to results, over TLS, in two processes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hesim
from experiments.cli import main
from experiments.errors import ExperimentError
from experiments.owners import read_call
from he_backend.processes.folders import clean_environment

X = np.linspace(-1, 1, 8).astype(np.float32)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    top = tmp_path_factory.mktemp("owners")
    params = hesim.CKKSParams(log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40)
    fn = lambda inputs, w, mask: {"y": inputs["x"] * w + mask, "parts": [w[:2]]}
    program = hesim.trace(fn, {"x": X}, X, X, encrypted=0)
    bundle = hesim.bundle(hesim.compile(program, params), {"x": X}, X, X, open=2)
    hesim.save(bundle, top / "whole")
    return top


def write(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path, **arrays)


def hesim_(*words: object) -> int:
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    return int(done.value.code or 0)


@pytest.fixture(scope="module")
def address(place) -> Iterator[str]:
    assert hesim_("certificates", place / "certificates") == 0
    assert hesim_("share", place / "whole", place / "half") == 0
    command = [sys.executable, "-P", "-m", "experiments", "serve", place / "whole"]
    command += ["--listen", "127.0.0.1:0", "--folder", place / "evaluator", "--backend", "slots"]
    command += ["--certificates", place / "certificates" / "evaluator"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=clean_environment()
    ) as process:
        assert process.stdout is not None
        found = next(filter(None, (re.search(r"serving at (\S+);", s) for s in process.stdout)))
        yield found[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_batches_go_through_and_are_read_back(place, address, capsys):
    write(place / "monday.npz", {"args[0]['x']": X, "1": X})
    write(place / "tuesday.npz", {"0": X / 2, "1": -X})
    command = ["encrypt", place / "half", "--connect", address, "--folder", place / "keys"]
    command += ["--certificates", place / "certificates" / "key-holder", "--backend", "slots"]
    command += ["--out", place / "results", "--clients", "1"]
    data = ["--data", place / "monday.npz", "--data", place / "tuesday.npz"]
    assert hesim_(*command, *data) == 0
    assert "read back" not in capsys.readouterr().out
    for name, x, mask in (("monday", X, X), ("tuesday", X / 2, -X)):
        with np.load(place / "results" / f"{name}.npz") as result:
            assert sorted(result) == ["parts.0", "y"]
            np.testing.assert_allclose(result["y"], x * X + mask, atol=1e-6)
    assert hesim_(*command, *data) == 0
    assert capsys.readouterr().out.count("read back") == 2


def test_a_stranger_is_told_what_to_do(place, address, capsys):
    assert hesim_("certificates", place / "others") == 0
    command = ["encrypt", place / "half", "--connect", address, "--folder", place / "other-keys"]
    command += ["--certificates", place / "others" / "key-holder", "--backend", "slots"]
    write(place / "day.npz", {"0": X, "1": X})
    assert hesim_(*command, "--out", place / "x.npz", "--data", place / "day.npz") == 2
    assert "EvaluatorRefusedError" in capsys.readouterr().err
    assert not (place / "x.npz").exists()


def test_files_that_are_no_call_are_named(place, tmp_path):
    bundle = hesim.load(place / "whole")
    np.savez(tmp_path / "a.npz", x=X, y=X)
    with pytest.raises(ExperimentError, match=r"a.npz has arrays named x, y; the arguments are"):
        read_call(bundle, tmp_path / "a.npz")
    (tmp_path / "b.npz").write_text("no archive")
    np.save(tmp_path / "c.npy", X)
    np.savez(tmp_path / "d.npz", np.array([None]))
    bad = {
        "b.npz": "is no .npz file of plain arrays: numpy.savez",
        "c.npy": "is no .npz file of plain arrays: numpy.savez",
        "d.npz": "is no .npz file of plain arrays",
        "e.npz": "does not exist",
    }
    for name, words in bad.items():
        with pytest.raises(ExperimentError, match=rf"{name} {words}"):
            read_call(bundle, tmp_path / name)


def test_one_sides_certificate_waits_for_the_others(tmp_path, capsys):
    assert hesim_("certificates", tmp_path / "mine", "--name", "evaluator") == 0
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["own.crt", "own.key"]
    assert "put theirs at" in capsys.readouterr().out


def test_the_commands_need_neither_jax_nor_a_model():
    code = (
        "import sys, experiments.cli, experiments.owners, he_backend\n"
        "he_backend.connect, he_backend.Evaluator\n"
        "outside = {'jax', 'jaxtyping', 'flax', 'models', 'scipy', 'psutil'} & set(sys.modules)\n"
        "sys.exit(f'imported {outside}' if outside else 0)"
    )
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
