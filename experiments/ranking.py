"""Does the simulation rank model variants as encryption does? A study that resumes.

Within a group all variants have the same scale; they differ in degree, range, form, adapters,
depth or prime chain. For each the simulation, under keys of its own, says how far the encrypted
logits will be from those of the polynomial twin and how many sentences will be right; it says so
before anything is encrypted. Then the variant runs encrypted.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import jax
import numpy as np

import approx
import hesim
from experiments.blind import Measured, Sentences, claim, insecure, measure, reviews
from experiments.folder import write_whole
from hesim.params import CKKSParams
from models import metrics
from models.config import EncoderConfig
from models.encoder import Model
from models.lora import Params, combine, is_adapter, partition
from models.recipe import Recipe, train_classifier
from models.sites import FitSettings, Range, Sites, fit_ranges, function_of
from models.train import collect_ranges, take

__all__ = ["STUDY", "Ranked", "Study", "Variant", "agreement", "run_study"]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One model and its ring. scale_bits names its group.

    layers, activation, rank: of the model; adapters are encrypted with the sentences. degree,
    margin: of the polynomials at all sites, and how far beyond the ranges met they hold (a share of
    the width). squarings: exp as that many squarings of a polynomial seed, None for one polynomial.
    levels: of the chain.
    """

    name: str
    scale_bits: int
    layers: int = 1
    activation: str = "glu_relu"
    rank: int = 0
    degree: int = 7
    margin: float = 0.3
    squarings: int | None = None
    levels: int = 4

    def config(self, base: EncoderConfig) -> EncoderConfig:
        return base.replace(layers=self.layers, activation=self.activation, lora_rank=self.rank)


def _group(scale_bits: int, long_chain: int = 7) -> tuple[Variant, ...]:
    """The variants at one scale, each a step away from a base, and some two. The smaller the scale,
    the fewer primes there are for a chain.
    """
    variant = functools.partial(Variant, scale_bits=scale_bits)
    return (
        variant("base"),
        variant("degree 3", degree=3),
        variant("degree 15", degree=15),
        variant("narrow range", margin=0.0),
        variant("wide range", margin=2.0),
        variant("wide range, degree 15", margin=2.0, degree=15),
        variant("exp by squaring", squarings=4),
        variant("GELU", activation="glu_gelu"),
        variant("LoRA rank 4", rank=4),
        variant("two layers", layers=2),
        variant("long chain", levels=long_chain),
    )


@dataclasses.dataclass(frozen=True)
class Study:
    """Variants, the ring that they share, the model that they vary, and how many sentences count.

    The ring is too small to be secure: N = 2^log_n with the check switched off. keys: secret keys
    that the simulation draws.
    """

    variants: tuple[Variant, ...]
    log_n: int = 13
    sentences: int = 256
    keys: int = 8
    config: EncoderConfig = EncoderConfig(
        layers=1, hidden=32, heads=2, ffn=64, sequence=16, vocabulary=4096, pooler=(32,), classes=2
    )
    recipe: Recipe = Recipe(steps=400, polynomial_steps=0, evaluate_every=100, save_every=100)

    def params(self, variant: Variant) -> CKKSParams:
        return insecure(
            log_n=self.log_n,
            levels=variant.levels,
            scale_bits=variant.scale_bits,
            first_bits=min(60, variant.scale_bits + 12),
            special_bits=60,
        )


STUDY = Study((*_group(40), *_group(28), *_group(24, long_chain=5)))


@dataclasses.dataclass(frozen=True)
class Ranked(Measured):
    """What was simulated and what was measured of one variant."""

    variant: Variant


def run_study(
    study: Study,
    folder: str | Path,
    *,
    backend: str = "pyfhel",
    data: Sentences | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Ranked]:
    """Simulate and then encrypt every variant; what a folder holds already is not done again.

    data: training, validation and held-out sentences; the movie reviews by default. Raises
    ExperimentError if the folder belongs to another study.
    """
    folder = claim(folder, study, backend)
    say(f"N = 2^{study.log_n} with the security check switched off: for studies only")
    config, parts = (study.config, data) if data else reviews(study.config, study.sentences)
    results = []
    for number, variant in enumerate(study.variants):
        path = folder / f"{variant.scale_bits}-{variant.name.replace(' ', '-')}.json"
        if not path.exists():
            measured = _one(study, variant, config, parts, folder, backend)
            write_whole(path, json.dumps(dataclasses.asdict(measured)).encode())
        found = Ranked(variant=variant, **json.loads(path.read_text(encoding="utf-8")))
        say(
            f"{number + 1}/{len(study.variants)} scale 2^{variant.scale_bits}, {variant.name}: "
            f"error 2^{np.log2(found.simulated_error):.2f} simulated, "
            f"2^{np.log2(found.encrypted_error):.2f} encrypted; right {found.simulated_score:.1%} "
            f"simulated, {found.encrypted_score:.1%} encrypted; {found.seconds:.0f} s"
        )
        results.append(found)
    return results


def agreement(results: Iterable[Ranked]) -> dict[str, dict[str, float]]:
    """By group and overall ("all"): Spearman correlation of errors and of scores, and how many of
    the best quarter by simulation are not among the encrypted best quarter ("missed").
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
    chosen, right = (set(np.argsort(x, kind="stable")[:best]) for x in (simulated, encrypted))
    return {
        "variants": len(rows),
        "error": metrics.spearman(simulated, encrypted),
        "score": metrics.spearman(
            [r.simulated_score for r in rows], [r.encrypted_score for r in rows]
        ),
        "bits": float(np.max(np.abs(np.log2(simulated / encrypted)))),
        "missed": len(chosen - right),
    }


def _one(
    study: Study,
    variant: Variant,
    config: EncoderConfig,
    parts: Sentences,
    folder: Path,
    backend: str,
) -> Measured:
    train, _, sentences = parts
    model, params = _trained(study, variant, config, parts, folder)
    met = collect_ranges(model, params, take(train, np.arange(min(512, len(train.tokens)))))
    twin = Model(model.config, _sites(model.config, variant, met), low_rank=variant.rank > 0)
    x = np.asarray(twin.embed(params, sentences.tokens))
    adapters, rest = partition(params, is_adapter)

    def logits(adapters: Params, rest: Params, x: jax.Array, mask: jax.Array) -> jax.Array:
        return twin.encrypted_forward(combine(adapters, rest), x, mask)

    arguments = (adapters, rest, x, np.asarray(sentences.mask))
    program = hesim.trace(logits, *arguments, encrypted=(variant.rank > 0, False, True, False))
    labels = np.asarray(sentences.targets)
    ckks = study.params(variant)
    return measure(program, ckks, arguments, labels, keys=study.keys, backend=backend)


def _trained(
    study: Study, variant: Variant, config: EncoderConfig, parts: Sentences, folder: Path
) -> tuple[Model, Params]:
    """The exact model of the variant's shape, trained once for all that share it."""
    shape = variant.config(config)
    place = folder / "training" / f"{variant.layers}-{variant.activation}-{variant.rank}"
    trained = train_classifier(shape, parts[0], parts[1], study.recipe, checkpoints=place)
    return Model(shape), trained.params


def _sites(config: EncoderConfig, variant: Variant, met: Mapping[str, Range]) -> Sites:
    kinds = ("exp", "gelu", "inv_sqrt", "relu", "tanh")
    settings = FitSettings(tuple((k, variant.degree) for k in kinds), margin=variant.margin)
    sites = fit_ranges(config, met, settings)
    if variant.squarings is None:
        return sites
    squared = {
        name: approx.composite(
            "exp_squaring", function.domain, squarings=variant.squarings, degree=variant.degree
        )
        for name, function in sites.entries
        if function_of(name) == "exp"
    }
    return Sites.of(dict(sites.entries) | squared)
