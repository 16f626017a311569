"""`hesim validate`: a saved model on held-out rows, exact, polynomial, simulated and encrypted."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments.cli import main
from experiments.cli.common import REFUSED
from experiments.console import Display, Update
from experiments.errors import ExperimentError
from experiments.planning import plan_model
from experiments.training.finetune import remember
from experiments.validation.clear import cosines
from experiments.validation.folder import RunFolder
from experiments.validation.results import Results
from experiments.validation.run import run_validation
from experiments.validation.settings import Validation
from models.config import EncoderConfig, preset
from models.data.datasets import load
from models.data.tokenizer import Tokenizer
from models.encrypted.twin import merged
from models.nn.encoder import Model
from models.recipes.agreement import embeddings
from models.weights.folder import load_model, save_model

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE = {"layers": 1, "hidden": 8, "heads": 1, "ffn": 8, "pooler": (4,), "vocabulary": 64}
QUIET = Display(quiet=True)


@pytest.fixture(scope="module")
def data(glue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GLUE's layout with pairs of the sentences of `glue`: rated (STS-B), and entailed (RTE)."""
    top = tmp_path_factory.mktemp("pairs")
    for name, count in (("train", 40), ("dev", 12)):
        texts = load("glue/SST-2", data_dir=glue).train.texts[: 2 * count]
        pairs = list(zip(texts[:count], texts[count:], strict=True))
        rows = {
            "STS-B": [f"{a}\t{b}\t{k % 6 - 0.0}" for k, (a, b) in enumerate(pairs)],
            "RTE": [
                f"{a}\t{b}\t{('entailment', 'not_entailment')[k % 2]}"
                for k, (a, b) in enumerate(pairs)
            ],
        }
        for task, label in (("STS-B", "score"), ("RTE", "label")):
            (top / task).mkdir(exist_ok=True)
            lines = [f"sentence1\tsentence2\t{label}", *rows[task]]
            (top / task / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return top


@pytest.fixture(scope="module")
def tokenizer(glue: Path) -> Tokenizer:
    return Tokenizer.train(load("glue/SST-2", data_dir=glue).train.texts, size=64)


def saved(
    folder: Path, tokenizer: Tokenizer, where: Path, notes: dict[str, Any], **changes: Any
) -> str:
    """The run folder of a training that was not run: random weights, and what its notes say."""
    config: EncoderConfig = preset("demo", sequence=8, **{**SHAPE, **changes})
    params = Model(config).init(jax.random.key(1))
    head = params["head"]["kernel"]
    params["head"]["kernel"] = head + np.random.default_rng(0).normal(size=head.shape)
    save_model(folder / "model", config, params, tokenizer, notes)
    remember(folder, str(where))
    return str(folder)


def trained(task: str) -> dict[str, Any]:
    return {"task": task, "length": 8, "buckets": [8], "sites": "", "encrypted": ""}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, glue: Path) -> str:
    folder = tmp_path_factory.mktemp("tuned") / "sst2"
    return saved(folder, tokenizer, glue, trained("glue/SST-2"), lora_rank=2)


class Stopping(Display):
    """A display that presses Ctrl-C when the bar whose title begins so is shown."""

    def __init__(self, title: str) -> None:
        super().__init__(quiet=True)
        self.title = title

    @contextlib.contextmanager
    def bar(self, title: str, total: float) -> Iterator[Update]:
        if title.startswith(self.title):
            raise KeyboardInterrupt
        yield lambda done, note, left: None


@pytest.fixture(scope="module")
def finished(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, RunFolder]:
    """Twelve sentences in two batches, stopped once between them."""
    path = tmp_path_factory.mktemp("run") / "run"
    asked = Validation(model, sentences=12, batch=8, backend="slots")
    with pytest.raises(KeyboardInterrupt):
        run_validation(asked, path, display=Stopping("on plain vectors, batch 2"))
    folder = RunFolder.find(path)
    assert folder.done("encrypted-0") and not folder.done("encrypted-1")
    first = (path / "encrypted-0.json").stat().st_mtime_ns
    results, _ = run_validation(asked, path, display=QUIET)
    assert (path / "encrypted-0.json").stat().st_mtime_ns == first
    return results, folder


def test_a_finetuned_model_is_validated_from_where_it_was_stopped(
    finished: tuple[Results, RunFolder],
) -> None:
    results, folder = finished
    assert results.encrypted.shape == (12, 2) and results.broken == []
    np.testing.assert_allclose(results.encrypted, results.polynomial[:12], rtol=1e-4, atol=1e-5)
    assert [batch["compared"] for batch in results.batches] == [True, False]
    assert results.predicted_std > 0 and results.simulated.shape == (12, 2)
    assert len(results.labels) == len(results.exact) == 40
    assert {site.outside for site in results.sites} == {0.0} and len(results.sites) == 5
    page = (folder.path / "report.html").read_text()
    assert "hesim validate sst2 --sentences 12 --batch 8 --backend slots" in page
    assert "Loss of the last batch" not in page and "SST-2" in page


def test_exact_answers_are_those_of_the_model_with_its_adapters(
    finished: tuple[Results, RunFolder], model: str, glue: Path
) -> None:
    kept = load_model(Path(model) / "model")
    whole, weights = merged(Model(kept.config), kept.params)
    assert kept.tokenizer is not None
    test = load("glue/SST-2", data_dir=glue).test
    order = np.random.default_rng(0).permutation(len(test))[:4]
    rows = kept.tokenizer.encode([test.texts[k] for k in order], length=8)
    expected = whole.predict(weights, rows.ids, rows.mask)
    np.testing.assert_allclose(finished[0].exact[:4], expected, rtol=1e-5, atol=1e-6)


def test_what_is_planned_is_what_runs(finished: tuple[Results, RunFolder], model: str) -> None:
    planned = plan_model(model, 8, length=8).circuit.ledger
    ledger = finished[1].figures("plan")["ledger"]
    for name in ("refresh_rounds", "rotations", "products", "depth"):
        assert ledger[name] == getattr(planned, name)


@pytest.mark.slow
def test_pairs_read_apart_are_rows_of_two(data: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    name = saved(
        tmp_path / "rte", tokenizer, data, trained("glue/RTE"), pairs="bi-encoder", pooling="mean"
    )
    asked = Validation(
        name, data="rte", sentences=1, layout="latency", compare="none", backend="slots"
    )
    results, folder = run_validation(asked, tmp_path / "run", display=QUIET)
    assert folder.settings["batch"] == 1 and len(results.labels) == 12
    assert results.broken == [] and results.metric == "accuracy"
    assert not results.batches[0]["compared"] and not results.batches[0]["verdict"]
    assert "--compare none" in (folder.path / "report.html").read_text()


def test_an_encoder_with_softmax_and_without_a_head_compares_sentences(
    data: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    fresh = ["head.bias", "head.kernel", "pooler.0.bias", "pooler.0.kernel"]
    shape = {"positions": "learned", "attention": "softmax"}
    name = saved(tmp_path / "mini", tokenizer, data, {"fresh": fresh}, **shape)
    asked = Validation(name, data="sts-b", sentences=8, backend="slots")
    results, folder = run_validation(asked, tmp_path / "run", display=QUIET)
    assert folder.settings["answer"] == "cosine" and results.encrypted.shape == (4, 1)
    assert results.metric == "spearman" and len(results.exact) == 12
    assert "layer0.attention.square2.softmax_inv" in {site.name for site in results.sites}
    assert [check.name for check in results.broken] == []
    assert results.answers in (folder.path / "report.html").read_text()

    kept = load_model(Path(name) / "model")
    test = load("glue/STS-B", data_dir=data).test
    order = np.random.default_rng(0).permutation(len(test))[:4]
    assert kept.tokenizer is not None and test.pairs is not None
    texts = [text for k in order for text in (test.texts[k], test.pairs[k])]
    rows = kept.tokenizer.encode(texts, length=8)
    pooled = embeddings(
        Model(kept.config), kept.params, load_rows(rows.ids, rows.mask), batch=8, buckets=(8,)
    )
    np.testing.assert_allclose(results.exact[:4], cosines(pooled), atol=1e-5)

    off = results.encrypted.copy()
    off[0] += 2.0**-7
    broken = dataclasses.replace(results, encrypted=off).broken
    assert "cosine similarities within 2^-8" in broken[0].name
    backwards = dataclasses.replace(results, encrypted=-results.encrypted).broken
    assert any("Spearman" in check.name for check in backwards)


def load_rows(ids: np.ndarray, mask: np.ndarray) -> Any:
    from models.data.batches import Batch

    return Batch(ids, mask, np.zeros(len(ids)))


@pytest.mark.parametrize(
    ("notes", "options", "message"),
    [
        ({"corpus_digest": "0"}, ("--data", "sst-2"), "trained on text alone, its head is random"),
        ({}, (), "name a data set with --data"),
        (trained("glue/SST-2"), ("--data", "sts-b"), "answers with 2 logits, glue/STS-B wants 1"),
        (trained("glue/RTE"), ("--length", "999"), r"reads rows of at most \d+ tokens"),
        (trained("glue/RTE"), ("--sentences", "13"), "holds out 12 sentences, fewer than the 13"),
    ],
)
def test_what_cannot_be_validated_says_why(
    notes: dict[str, Any],
    options: tuple[str, ...],
    message: str,
    data: Path,
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = saved(tmp_path / "m", tokenizer, data, notes)
    with pytest.raises(SystemExit) as done:
        main(["validate", name, *options, "--backend", "slots", "--out", str(tmp_path / "run")])
    shown = capsys.readouterr().err
    assert done.value.code == REFUSED
    assert re.search(message, shown) or "no folder SST-2" in shown.replace("\n", " ")


def test_a_run_of_another_model_is_refused(
    finished: tuple[Results, RunFolder],
    model: str,
    tokenizer: Tokenizer,
    glue: Path,
    tmp_path: Path,
) -> None:
    path = finished[1].path
    other = saved(tmp_path / "sst2", tokenizer, glue, trained("glue/SST-2"))
    asked = Validation(other, sentences=12, batch=8, backend="slots")
    with pytest.raises(ExperimentError, match="other settings.*--fresh.*another --out"):
        run_validation(asked, path, display=QUIET)
    with pytest.raises(ExperimentError, match="folder of a validation, not of a model"):
        run_validation(dataclasses.replace(asked, model=str(path)), display=QUIET)


def test_in_the_clear_every_polynomial_is_listed(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        main(["validate", model, "--clear"])
    shown, error = capsys.readouterr()
    assert not done.value.code, error
    assert "40 held-out rows, exact: accuracy" in shown and "layer0.attention.exp" in shown


@pytest.mark.slow
def test_a_finetuned_model_runs_encrypted(model: str, tmp_path: Path) -> None:
    asked = Validation(model, sentences=6, batch=4)
    results, folder = run_validation(asked, tmp_path / "run", display=QUIET)
    assert results.was_encrypted and results.broken == []
    assert 0 < results.max_error < 2.0**-12
    assert not list(folder.path.glob("encrypted*.client"))
    assert [row["key_seconds"] > 0 for row in results.batches] == [True, False]
    assert Results.load(folder).ratio == results.ratio


def test_what_is_kept_nowhere_needs_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["validate", str(tmp_path), "--clear", "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert "--clear keeps nothing" in capsys.readouterr().err.replace("\n", " ")
