"""Does the simulation rank model variants as encryption does? A study that resumes.

Within a group all variants have the same scale. How many bits an encrypted model loses is set above
all by the ranges over which its polynomials hold, the pre-scale, and by squarings, each of which
doubles the noise. The variants of a group therefore climb both ladders, so that their errors spread
over ten bits, and on the rungs they differ in degree, activation, adapters, depth and prime chain.
At the smallest scale the ladders go so far that labels flip, from hardly any to a coin toss each.
How far that is was read from simulations; no variant was chosen by its encrypted error or score.

For each variant the simulation, under keys of its own, says how far the encrypted logits will be
from those of the polynomial twin and how many sentences will be right; it says so before anything
is encrypted. Then the variant runs encrypted under several keys. Beside the simulation stand three
guesses that cost no simulation: depth, rescales, and how far the polynomial twin is from the exact
model.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np

import hesim
from experiments.studies.blind import (
    MODEL,
    Measured,
    Sentences,
    batched,
    claimed,
    insecure,
    kept,
    measure,
    reviews,
)
from he_backend.machines.table import DEFAULT_MACHINE
from he_backend.report import twin as exact_twin
from hesim.params import CKKSParams
from models.config import EncoderConfig
from models.data import metrics
from models.data.batches import Batch, select_rows
from models.nn.encoder import Model
from models.nn.lora import Params, combine, is_adapter, partition
from models.recipes.classify import Recipe, train_classifier
from models.sites.sites import FitSettings, Range, fit_ranges
from models.train.evaluate import collect_ranges, make_evaluate

__all__ = ["GUESSES", "STUDY", "Ranked", "Study", "Variant", "agreement", "run_study"]

_LOWEST_VARIANCE = 0.5


@dataclasses.dataclass(frozen=True)
class Variant:
    """One model and its ring. scale_bits names its group.

    layers, activation, rank: of the model; adapters are encrypted with the sentences. degree: of
    the polynomials at all sites. variance, exponent: the largest variance and the lowest exponent
    for which 1/sqrt and exp are fitted; None for those met, wider by a margin. squarings: k for exp
    as (1 + x / 2^k)^(2^k), which holds down to -2^(k + 1); None for a polynomial. levels: of the
    chain. headroom: bits of its first prime beyond the scale's. sentences: how many are encrypted,
    under each key.
    """

    name: str
    scale_bits: int
    layers: int = 1
    activation: str = "glu_relu"
    rank: int = 0
    degree: int = 7
    variance: float | None = None
    exponent: float | None = None
    squarings: int | None = None
    levels: int = 6
    headroom: int = 12
    sentences: int = 64

    def config(self, base: EncoderConfig) -> EncoderConfig:
        return base.replace(layers=self.layers, activation=self.activation, lora_rank=self.rank)

    def fit(self) -> FitSettings:
        kinds = ("exp", "gelu", "inv_sqrt", "relu", "tanh")
        ranges = []
        if self.variance is not None:
            ranges.append(("inv_sqrt", (_LOWEST_VARIANCE, self.variance)))
        if self.exponent is not None:
            ranges.append(("exp", (self.exponent, 0.0)))
        composites = ()
        if self.squarings is not None:
            ranges.append(("exp", (-(2.0 ** (self.squarings + 1)), 0.0)))
            composites = (("exp", (("squarings", self.squarings), ("degree", 1))),)
        return FitSettings(
            tuple((kind, self.degree) for kind in kinds),
            margin=0.3,
            composites=composites,
            ranges=tuple(ranges),
        )


def _spread(scale_bits: int) -> tuple[Variant, ...]:
    """Errors spread over many bits, all too small to change a label."""
    variant = functools.partial(Variant, scale_bits=scale_bits)
    return (
        variant("base"),
        variant("range 16, long chain", variance=16, levels=9),
        variant("range 50, degree 15", degree=15, variance=50, exponent=-15),
        variant("range 400, degree 15", degree=15, variance=400, exponent=-60),
        variant("range 400, degree 31", degree=31, variance=400, exponent=-60),
        variant("5 squarings", squarings=5),
        variant("8 squarings", squarings=8),
        variant("12 squarings", squarings=12),
        variant("LoRA rank 4, range 100", rank=4, degree=15, variance=100, exponent=-30),
        variant("GELU, range 200", activation="glu_gelu", degree=15, variance=200, exponent=-30),
        variant("two layers, range 100", layers=2, degree=15, variance=100, exponent=-60),
    )


def _flips(scale_bits: int) -> tuple[Variant, ...]:
    """Errors from a small part of a logit to as large as they are.

    Most variants end within three points of each other, so their ranks need sentences by the
    thousand and, since whole batches are lost at random, batches by the dozen.
    """
    variant = functools.partial(Variant, scale_bits=scale_bits, sentences=1536, headroom=24)
    return (
        variant("base"),
        variant("range 400, degree 15", degree=15, variance=400, exponent=-60),
        variant("range 6400, degree 15", degree=15, variance=6400, exponent=-60),
        variant("8 squarings", squarings=8),
        variant("10 squarings", squarings=10),
        variant("10 squarings, range 6400", squarings=10, degree=15, variance=6400),
        variant("11 squarings", squarings=11),
        variant("11 squarings, range 400", squarings=11, degree=15, variance=400),
        variant("12 squarings", squarings=12),
        variant("LoRA rank 4, 10 squarings", rank=4, squarings=10),
        variant("two layers, 9 squarings", layers=2, squarings=9),
    )


@dataclasses.dataclass(frozen=True)
class Study:
    """Variants, the ring that they share, and the model that they vary.

    The ring is too small to be secure: N = 2^log_n with the check switched off. keys: secret keys
    that the simulation draws for each batch of sentences. encrypted_keys: those under which each
    batch is encrypted. batch: sentences that run together, at most.
    """

    variants: tuple[Variant, ...]
    log_n: int = 12
    keys: int = 32
    encrypted_keys: int = 4
    batch: int = 256
    config: EncoderConfig = MODEL
    recipe: Recipe = Recipe(
        steps=400,
        polynomial_steps=0,
        learning_rate=6e-3,
        dropout=0.1,
        evaluate_every=200,
        save_every=200,
    )

    def params(self, variant: Variant) -> CKKSParams:
        return insecure(
            log_n=self.log_n,
            levels=variant.levels,
            scale_bits=variant.scale_bits,
            first_bits=min(60, variant.scale_bits + variant.headroom),
            special_bits=60,
        )


STUDY = Study((*_spread(40), *_spread(32), *_flips(23)))


@dataclasses.dataclass(frozen=True)
class Ranked(Measured):
    """What was simulated and what was measured of one variant.

    depth, rescales: of its ledger. approximation: root mean square of the polynomial twin's logits
    less the exact model's, on the first batch.
    """

    variant: Variant
    depth: int
    rescales: int
    approximation: float


_SIDES = ("simulated", "encrypted")

GUESSES = ("depth", "rescales", "approximation")
"""Names of the figures that a study without a simulator would rank variants by."""


def run_study(
    study: Study,
    folder: str | Path,
    *,
    backend: str = DEFAULT_MACHINE,
    data: Sentences | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Ranked]:
    """Simulate and then encrypt every variant; what a folder holds already is not done again.

    data: training, validation and held-out sentences; the movie reviews by default. Raises
    ExperimentError if the folder belongs to another study, or another process works in it.
    """
    most = max(variant.sentences for variant in study.variants)
    config, parts = (study.config, data) if data else reviews(study.config, most)
    with claimed(folder, study, backend, Ranked) as folder:
        say(f"N = 2^{study.log_n} with the security check switched off: for studies only")

        @functools.cache
        def trained(shape: EncoderConfig) -> _Trained:
            return _train(shape, parts, study.recipe, folder / "training")

        results = []
        for number, variant in enumerate(study.variants):
            name = f"{variant.scale_bits}-{variant.name.replace(',', '').replace(' ', '-')}"
            path = folder / f"{name}.json"

            def measured(variant: Variant = variant, name: str = name) -> dict[str, float]:
                known = trained(variant.config(config))
                found = dataclasses.asdict(
                    _one(study, variant, known, parts[2], folder / name, backend)
                )
                del found["variant"]
                return found

            found = Ranked(variant=variant, **kept(path, measured))
            say(
                f"{number + 1}/{len(study.variants)} scale 2^{variant.scale_bits}, {variant.name}: "
                f"error 2^{np.log2(found.simulated_error):.2f} simulated, "
                f"2^{np.log2(found.encrypted_error):.2f} +- {found.encrypted_bits:.2f} bit "
                f"encrypted; right {found.twin_score:.1%} in the clear, "
                f"{found.simulated_score:.1%} simulated, {found.encrypted_score:.1%} encrypted; "
                f"{found.seconds:.1f} s a key"
            )
            results.append(found)
    return results


def agreement(results: Iterable[Ranked]) -> dict[str, dict[str, float]]:
    """By group and overall ("all"): Spearman correlations of simulated with encrypted errors and
    scores, and of each guess with the encrypted error; the largest disagreement of errors in bits;
    how many of the best quarter by simulation are not among the encrypted best quarter ("missed");
    and which correlations a simulator without any fault would reach with as few keys, in the median
    ("error reachable", "score reachable") and in all but one of twenty repetitions ("... at
    least"), NaN where a single key leaves that unknown.
    """
    rows = list(results)
    groups: dict[str, list[Ranked]] = {"all": rows}
    for row in rows:
        groups.setdefault(f"2^{row.variant.scale_bits}", []).append(row)
    return {name: _agreement(group) for name, group in groups.items()}


def _agreement(rows: list[Ranked]) -> dict[str, float]:
    simulated = np.array([r.simulated_error for r in rows])
    encrypted = np.array([r.encrypted_error for r in rows])
    best = max(1, len(rows) // 4)
    guesses = {g: metrics.spearman([getattr(r, g) for r in rows], encrypted) for g in GUESSES}
    bits = [np.array([getattr(r, f"{side}_bits") for r in rows]) for side in _SIDES]
    points = [np.array([getattr(r, f"{side}_points") for r in rows]) for side in _SIDES]
    error_median, error_least = _reachable(np.log2(encrypted), *bits)
    scores = np.array([r.encrypted_score for r in rows])
    score_median, score_least = _reachable(scores, *points)
    chosen, right = (set(np.argsort(x, kind="stable")[:best]) for x in (simulated, encrypted))
    return {
        "variants": len(rows),
        "error": metrics.spearman(simulated, encrypted),
        "score": metrics.spearman(
            [r.simulated_score for r in rows], [r.encrypted_score for r in rows]
        ),
        "bits": float(np.max(np.abs(np.log2(simulated / encrypted)))),
        "missed": len(chosen - right),
        "error reachable": error_median,
        "error at least": error_least,
        "score reachable": score_median,
        "score at least": score_least,
    } | guesses


def _reachable(truth: np.ndarray, *errors: np.ndarray) -> tuple[float, float]:
    """Spearman correlation of two normal estimates of the same figures, with these standard errors:
    its median and its 5 % quantile.
    """
    if not np.isfinite(errors).all():
        return math.nan, math.nan
    random = np.random.default_rng(0)
    one, two = (truth + e * random.standard_normal((1000, len(truth))) for e in errors)
    found = [metrics.spearman(a, b) for a, b in zip(one, two, strict=True)]
    return float(np.median(found)), float(np.quantile(found, 0.05))


def _one(
    study: Study, variant: Variant, trained: _Trained, sentences: Batch, folder: Path, backend: str
) -> Ranked:
    params = trained.params
    sites = fit_ranges(trained.model.config, trained.met, variant.fit())
    twin = Model(trained.model.config, sites, low_rank=variant.rank > 0)
    adapters, rest = partition(params, is_adapter)

    def logits(adapters: Params, rest: Params, x: jax.Array, mask: jax.Array) -> jax.Array:
        return twin.encrypted_forward(combine(adapters, rest), x, mask)

    parts = batched(sentences, variant.sentences, min(study.batch, variant.sentences))
    batches = [
        (
            adapters,
            rest,
            np.asarray(twin.embed(params, part.tokens, part.types)),
            np.asarray(part.mask),
        )
        for part in parts
    ]
    program = hesim.trace(logits, *batches[0], encrypted=(variant.rank > 0, False, True, False))
    circuit = hesim.compile(program, study.params(variant))
    measured = measure(
        program,
        circuit,
        batches,
        [np.asarray(part.targets) for part in parts],
        keys=study.keys,
        encrypted_keys=study.encrypted_keys,
        backend=backend,
        folder=folder,
    )
    with_exact_functions = make_evaluate(trained.model)(params, parts[0]).logits
    off = exact_twin.evaluate(program, batches[0]).outputs - with_exact_functions
    return Ranked(
        **dataclasses.asdict(measured),
        variant=variant,
        depth=circuit.ledger.levels,
        rescales=circuit.ledger.rescales,
        approximation=float(np.sqrt(np.mean(off**2))),
    )


@dataclasses.dataclass(frozen=True)
class _Trained:
    """An exact model, and the ranges that it meets at its sites."""

    model: Model
    params: Params
    met: dict[str, Range]


def _train(config: EncoderConfig, parts: Sentences, recipe: Recipe, folder: Path) -> _Trained:
    place = folder / f"{config.layers}-{config.activation}-{config.lora_rank}"
    trained = train_classifier(config, parts[0], parts[1], recipe, checkpoints=place)
    model, rows = Model(config), np.arange(min(512, len(parts[0].tokens)))
    met = collect_ranges(model, trained.params, select_rows(parts[0], rows))
    return _Trained(model, trained.params, met)
