"""The demo: it resumes wherever it was stopped, and its figures are those of its arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from experiments.console import Display, Update
from experiments.demo import stages
from experiments.demo.run import run_demo
from experiments.demo.settings import FAST, Settings
from experiments.errors import ExperimentError
from experiments.validation.folder import RunFolder
from experiments.validation.results import LOGIT_ERROR, Results

Finished = tuple[Results, RunFolder, str]


class Stopping(Display):
    """A display that presses Ctrl-C when the bar whose title begins so reaches `at`."""

    def __init__(self, title: str, at: float) -> None:
        super().__init__(quiet=True)
        self.title, self.at = title, at

    @contextlib.contextmanager
    def bar(self, title: str, total: float) -> Iterator[Update]:
        def update(done: float, note: str, left: float | None) -> None:
            if title.startswith(self.title) and done >= self.at:
                raise KeyboardInterrupt

        yield update


def test_all_sentences_run_and_guarantees_hold(finished: Finished, settings: Settings) -> None:
    results, _, _ = finished
    assert results.encrypted.shape == (settings.sentences, 2)
    assert results.max_error < LOGIT_ERROR
    assert results.broken == []
    assert not results.was_encrypted


def test_an_interrupted_run_ends_as_if_it_had_not_been(
    finished: Finished, settings: Settings, shared: Path, tmp_path: Path
) -> None:
    path, compiled = tmp_path / "run", shared / "compiled"
    for display in (Stopping("training", 8), Stopping("on plain vectors, batch 2", 0.0)):
        with pytest.raises(KeyboardInterrupt):
            run_demo(settings, path, display=display, compiled=compiled)
    folder = RunFolder.find(path)
    assert folder.done("encrypted-0") and not folder.done("encrypted-1")
    first = (path / "encrypted-0.json").stat().st_mtime_ns
    results, _ = run_demo(settings, path, display=Display(quiet=True), compiled=compiled)
    assert (path / "encrypted-0.json").stat().st_mtime_ns == first
    whole = finished[0]
    assert np.array_equal(results.exact, whole.exact)
    assert np.array_equal(results.encrypted, whole.encrypted)
    steps = [row["step"] for row in results.history]
    assert steps == [row["step"] for row in whole.history] == [4, 8, 12]


def test_a_finished_run_is_not_done_again(
    finished: Finished, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copytree(finished[1].path, tmp_path / "run")

    def never(*_: object) -> None:
        raise AssertionError("a finished stage was started again")

    for name in ("prepare", "train", "plan"):
        monkeypatch.setattr(stages, name, never)
    monkeypatch.setattr("experiments.demo.run.encrypt", never)
    results, _ = run_demo(settings, path, display=Display(quiet=True))
    assert np.array_equal(results.encrypted, finished[0].encrypted)


def test_a_folder_of_other_settings_or_files_is_refused(
    finished: Finished, settings: Settings, tmp_path: Path
) -> None:
    other = dataclasses.replace(settings, seed=7)
    with pytest.raises(ExperimentError, match="other settings.*--fresh"):
        RunFolder.claim(finished[1].path, other)
    (tmp_path / "thesis.tex").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(ExperimentError, match="holds no run"):
            RunFolder.claim(tmp_path, settings, fresh=fresh)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("name", ["settings", "training", "plan", "encrypted-0", "encrypted-1"])
@pytest.mark.parametrize("how", ["digit", "cut", "another's", "list"])
def test_altered_figures_are_named_and_never_shown(
    finished: Finished, tmp_path: Path, name: str, how: str
) -> None:
    path = shutil.copytree(finished[1].path, tmp_path / "run")
    file = path / f"{name}.json"
    content = file.read_bytes()
    if how == "digit":
        place = next(k for k, c in enumerate(content) if chr(c).isdigit())
        content = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    elif how == "cut":
        content = content[:-20]
    elif how == "list":
        content = b"[" * 5000
    else:
        other = "encrypted-0" if name == "encrypted-1" else "encrypted-1"
        content = (path / f"{other}.json").read_bytes()
    file.write_bytes(content)
    with pytest.raises(ExperimentError, match=rf"{file}.* remove "):
        Results.load(RunFolder.find(path))


@pytest.mark.parametrize("how", ["gone", "cut", "another's"])
def test_altered_arrays_are_named_and_can_be_made_again(
    finished: Finished, settings: Settings, tmp_path: Path, how: str
) -> None:
    path = shutil.copytree(finished[1].path, tmp_path / "run")
    file, other = path / "encrypted-0.npz", path / "encrypted-1.npz"
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(other.read_bytes() if how == "another's" else file.read_bytes()[:-20])
    with pytest.raises(ExperimentError, match=rf"{file}.* remove encrypted-0\.json"):
        Results.load(RunFolder.find(path))


def test_two_processes_do_not_share_a_folder(settings: Settings, tmp_path: Path) -> None:
    folder = RunFolder.claim(tmp_path / "run", settings)
    with folder.held(), pytest.raises(ExperimentError, match="another process"):
        run_demo(settings, folder.path, display=Display(quiet=True))


def test_other_settings_have_other_folders(settings: Settings) -> None:
    names = {s.default_folder() for s in (settings, FAST, dataclasses.replace(settings, seed=1))}
    assert len(names) == 3


def test_settings_survive_json(settings: Settings) -> None:
    for one in (settings, FAST, Settings()):
        assert Settings.from_plain(one.plain()) == one


def test_too_many_sentences_are_refused(settings: Settings, tmp_path: Path) -> None:
    many = dataclasses.replace(settings, sentences=41)
    with pytest.raises(ExperimentError, match="40 sentences, fewer than the 41"):
        run_demo(many, tmp_path / "run", display=Display(quiet=True))


def test_a_stage_that_was_not_finished_is_named(finished: Finished) -> None:
    with pytest.raises(ExperimentError, match="no finished encrypted-9"):
        finished[1].figures("encrypted-9")


def test_the_plan_is_told_before_anything_runs(finished: Finished) -> None:
    log = finished[2]
    keys, run = log.index("keys to make"), log.index("4/4")
    assert keys < run
    assert "nothing is encrypted" in log
