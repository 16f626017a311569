"""`hesim evaluate`: a fine-tuned model's held-out scores, exact, polynomial and under simulated
noise, and where its values leave the polynomials' ranges.
"""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from experiments.errors import ExperimentError
from experiments.training.finetune import MODEL, remembered
from experiments.training.twin import read_encryption, ring_of
from models.data import metrics
from models.data.tasks import TaskData, baseline, prepare_task
from models.encrypted.settings import EncryptionSettings
from models.encrypted.twin import merged, twin_of
from models.nn.encoder import Model
from models.train.checkpoint import sites_from_json
from models.train.evaluate import Evaluated, make_evaluate
from models.weights.folder import Saved, load_model

__all__ = ["AFTER_TRAINING", "Answers", "TwinAnswers", "evaluate_folder", "render"]

AFTER_TRAINING = EncryptionSettings(
    fit=dataclasses.replace(EncryptionSettings().fit, margin=0.25, ranges=())
)
"""The twin of a model that was trained in the clear: every domain is what the finished model meets
on training rows, widened by a quarter, since no training moves its values any more."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """Scores by measure of one model on the held-out rows of `data`; twin: of what encryption can
    run, softmax attention by squarings.
    """

    data: TaskData
    baseline: dict[str, float]
    exact: dict[str, float]
    twin: TwinAnswers

    @property
    def warnings(self) -> list[str]:
        """What a reader of the scores must know."""
        return self.twin.warnings


@dataclasses.dataclass(frozen=True)
class TwinAnswers:
    """Scores by measure through polynomials, without and with simulated noise, and what was met.

    noisy: ranges met and shares outside under noise, by site. fitted: the ranges that the
    polynomials hold on. own: whether these are the ones that the model was trained with; else they
    were fitted on training rows for this evaluation. how: the ring that was simulated. unused:
    whether polynomials were asked for and not taken, since the model has its own.
    """

    polynomial: dict[str, float]
    simulated: dict[str, float]
    noisy: Evaluated
    fitted: dict[str, tuple[float, float]]
    own: bool
    how: EncryptionSettings
    unused: bool = False

    @property
    def outside(self) -> list[tuple[str, float]]:
        """Sites that met values outside their range, with the share of values, the worst first."""
        found = [(name, share) for name, share in self.noisy.outside.items() if share > 0]
        return sorted(found, key=lambda pair: -pair[1])

    @property
    def warnings(self) -> list[str]:
        """What a reader of the scores must know: sites that were left, and rows without answer."""
        said = []
        if self.unused:
            said.append(
                "the section [twin] of --config is not used: this model has the polynomials that it"
                " was trained with"
            )
        if self.outside:
            worst = ", ".join(f"{name} {share:.3%}" for name, share in self.outside)
            wider = "a larger margin, or a wider range, in the section [twin]"
            mend = (
                f"Train again with {wider} of its settings"
                if self.own
                else "Fine-tune with a range penalty (section [penalty] of the settings), or "
                f"evaluate with {wider} of --config"
            )
            said.append(f"values left their polynomial's range: {worst}. {mend}")
        if len(self.noisy.lost):
            rows = ", ".join(map(str, self.noisy.lost[:8]))
            more = ", ..." if len(self.noisy.lost) > 8 else ""
            said.append(
                f"{len(self.noisy.lost)} held-out rows ran away beyond all numbers under noise "
                f"(rows {rows}{more}): they count as answered with 0, and encryption would refuse "
                "their ciphertexts"
            )
        return said


def evaluate_folder(
    folder: str | Path,
    *,
    data_dir: str | None = None,
    how: EncryptionSettings | str | Path | None = None,
) -> Answers:
    """Evaluate the model that `hesim finetune` wrote (its run folder or the model in it).

    data_dir: GLUE's folder, by default where the training read it, as its run folder knows.

    how: ring, degrees, margins and domains of the twin of a model that was trained in the clear, by
    default `AFTER_TRAINING`; one that was trained as encrypted brings its polynomials along and, by
    default, its ring. Or a TOML file with the sections `encrypted` and `twin`, which says what is
    other than by default.

    Raises CheckpointError for no or a damaged model, ExperimentError for one that was not
    fine-tuned here or a file that says what cannot be, DataError for missing data, ParameterError
    for polynomials that cannot be fitted.
    """
    path = Path(folder)
    saved = load_model(path / MODEL if (path / MODEL).is_dir() else path)
    own, unused = bool(saved.notes.get("sites")), False
    if isinstance(how, EncryptionSettings):
        chosen = how
    else:
        ring = saved.notes.get("encrypted")
        chosen = read_encryption(how, ring_of(ring, AFTER_TRAINING) if ring else AFTER_TRAINING)
        unused = own and how is not None and "twin" in tomllib.loads(Path(how).read_text("utf-8"))
    data, buckets = _task(saved, path, data_dir)
    model = Model(saved.config, low_rank=saved.config.lora_rank > 0)
    targets = data.test.targets
    plain = make_evaluate(merged(model, saved.params)[0], buckets=buckets)
    exact = plain(merged(model, saved.params)[1], data.test)
    if own:
        twin = model.with_sites(sites_from_json(saved.notes["sites"]))
    else:
        twin = twin_of(model, saved.params, data.train, buckets, chosen)
    polynomial = make_evaluate(twin, buckets=buckets)(saved.params, data.test)
    noisy = make_evaluate(twin, buckets=buckets, how=chosen)(saved.params, data.test)
    found = TwinAnswers(
        metrics.score(polynomial.answers, targets),
        metrics.score(noisy.answers, targets),
        noisy,
        twin.sites.ranges(),
        own,
        chosen,
        unused,
    )
    return Answers(data, baseline(data), metrics.score(exact.answers, targets), found)


def _task(saved: Saved, path: Path, data_dir: str | None) -> tuple[TaskData, tuple[int, ...]]:
    """The data of a model's notes, and the buckets that it was trained with."""
    notes: dict[str, Any] = saved.notes
    missing = [name for name in ("task", "length", "buckets", "sites") if name not in notes]
    if missing or saved.tokenizer is None:
        raise ExperimentError(
            f"{path} was not written by `hesim finetune` (no {', '.join(missing) or 'tokenizer'}): "
            "fine-tune it on a task first"
        )
    data = prepare_task(
        notes["task"],
        saved.tokenizer,
        notes["length"],
        data_dir=data_dir or remembered(path),
        train_rows=notes.get("train_rows") or None,
        token_types=notes.get("token_types", 0),  # before there was a note, all were 0
        pairs=saved.config.pairs,
    )
    return data, tuple(notes["buckets"])


def render(answers: Answers) -> RenderableType:
    """The scores, the ring, and every site with range met, range held and share outside."""
    title = f"{answers.data.name}, {len(answers.data.test.tokens):,} held-out rows"
    scores = Table("", *answers.data.metrics, title=title)
    rows = [
        ("always the most frequent label", answers.baseline),
        ("exact functions", answers.exact),
    ]
    twin = answers.twin
    rows += [
        ("polynomials", twin.polynomial),
        ("polynomials, simulated noise", twin.simulated),
    ]
    for label, found in rows:
        scores.add_row(label, *(f"{found[name]:.4f}" for name in answers.data.metrics))
    scores.caption = f"simulated: {twin.how.ckks}, {twin.how.profile}"
    fitted = "as trained with" if twin.own else "fitted on training rows"
    sites = Table("site", "met", "holds on", "outside", title=f"ranges, {fitted}")
    for name, met in twin.noisy.ranges.items():
        held = twin.fitted[name]
        sites.add_row(
            name,
            f"[{met[0]:.4g}, {met[1]:.4g}]".replace("[", r"\["),
            f"[{held[0]:.4g}, {held[1]:.4g}]".replace("[", r"\["),
            f"{twin.noisy.outside.get(name, 0.0):.3%}",
        )
    return Group(scores, sites)
