"""Tables 2 and 12 of Rho et al. 2025, line by line, beside what the published algorithms cost by
their own formulas at the published prices: `python -m benchmarks.paper lines`.

Lines stand on different ground. `formula`: counts by the paper's formulas. `calls`: bootstraps as
the published program calls them. `counted`: counted here from degrees and levels, with the paper's
seconds in view, so that agreement says that they are plausible and no more. `derived`: the paper's
own figure is a difference of its figures. So the totals hold what their lines hold: of (LoRA,
Gaussian) half of the seconds are by formulas or by bootstraps that the program calls, the rest is
`counted`. The ratio of the optimizers is 368 / 15 on both sides, whatever one ciphertext costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.paper.formulas import (
    LOW,
    TOP,
    Spent,
    adapter,
    inner,
    left,
    right,
    series,
    transposed,
)

__all__ = ["Line", "Variant", "backward", "forward", "lines", "variants"]

_LAYERS = 2

_HEADS = 6
"""Ciphertexts of all heads, two in each."""

_WEIGHTS = 180
"""Ciphertexts of a layer's matrices: 4 of 18, and 72 and 36 of the feed-forward network."""

_MATRICES = 368
"""Ciphertexts that are trained without adapters; with them 15."""

_ADAPTERS = 15


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
      name: of the line. theirs: seconds in the paper.
      basis: formula, calls, counted or derived, as above.
      parts: operations, and the level that they are counted at.
      why: what the difference is, or how it was counted.
    """

    name: str
    theirs: float
    basis: str
    parts: Sequence[tuple[Spent, int]]
    why: str = ""

    @property
    def seconds(self) -> float:
        return sum(spent.seconds(level) for spent, level in self.parts)

    @property
    def ratio(self) -> float:
        """Counted over published."""
        return self.seconds / self.theirs


def forward() -> tuple[Line, ...]:
    """One layer with adapters and the Gaussian kernel, and softmax in place of that."""
    passes = 2 + 2 + 2 + 3  # pairs of ciphertexts that are multiplied: q k v, output, up, down
    inners = 2 * 6 * (3 + 1 + 4) + 3 * 6
    norm = 6 * Spent(products=1) + 32 * Spent(rotations=1) + series(127)
    norm += Spent(products=3 * 3, bootstraps=1, extended=1)
    rectified = series(15) + series(15) + series(27) + Spent(products=1, bootstraps=2)
    kernel = Spent(rotations=14, products=1 + 14, bootstraps=2)
    return (
        _products("matrices, public", 1.35, passes, inners),
        Line(
            *("attention, encrypted", 1.87, "formula"),
            [(2 * _HEADS * _square(), LOW)],
            "scores and values: two products of Table 6 for each pair of heads",
        ),
        Line(
            *("LayerNorm", 0.48, "counted"),
            [(2 * norm, TOP)],
            "two sums over 256 columns and back, degree 127, 3 Newton steps; 2 bootstraps",
        ),
        Line(
            *("bootstraps", 5.74, "calls"),
            [(Spent(extended=2 + 9 + 3 + 3 + 3 + 2 + 12 + 3), TOP)],
            "those not counted in other lines",
        ),
        Line(
            *("ReLU", 1.35, "counted"),
            [(6 * rectified + Spent(extended=3), TOP)],
            "degrees 15, 15, 27 on 6 ciphertexts, two bootstraps each, three of pairs",
        ),
        Line(
            *("LoRA", 0.85, "formula"),
            [(3 * adapter(), TOP), (Spent(extended=5), TOP)],
            "Table 9 for q, k and v, and 5 bootstraps that the program calls",
        ),
        Line(
            *("transposed, saved", 0.23, "counted"),
            [(_HEADS * transposed(), LOW)],
            "keys only: files that are written have no price of an operation",
        ),
        Line(
            *("Gaussian kernel", 1.02, "counted"),
            [(_HEADS * kernel, TOP)],
            "14 squarings, two bootstraps a ciphertext; Table 15's 0.17 s six times is 1.02",
        ),
    )


def softmax() -> Line:
    """By comparisons and Goldschmidt's inverse, on the same six ciphertexts."""
    compared = Spent(rotations=1, products=4 * 4 + 1, bootstraps=2)
    exponential = Spent(products=5 * 3 + 4 + 5, bootstraps=2)
    inverse = Spent(rotations=14, products=2 * 12 + 1, bootstraps=3)
    each = 7 * compared + exponential + inverse
    why = "7 comparisons of 13 levels, 5 extensions, degree 8, 5 squarings, 12 steps of the inverse"
    return Line("softmax", 8.99, "counted", [(_HEADS * each, TOP)], why)


def backward() -> tuple[Line, ...]:
    """One layer with adapters; the same with both kinds of attention in the paper's table."""
    passes = 2 + 6 + 2 + 3 * 2  # down, up, output, q k v, transposed
    inners = 2 * 12 + 6 * 6 + 2 * 6 + 3 * 2 * 6
    norm = Spent(rotations=32, products=10, extended=1)
    calls = 3 + 6 + 2 + 2 + 2 + 3 + 3 + 6 + 2 + 2
    return (
        _products("matrices, public", 2.29, passes, inners),
        Line(
            *("attention, encrypted", 3.79, "formula"),
            [(4 * _HEADS * _square(), LOW)],
            "gradients of scores, values, queries and keys",
        ),
        Line(
            *("LayerNorm", 0.32, "counted"), [(2 * norm, TOP)], "sums, 10 products, one bootstrap"
        ),
        Line(
            *("bootstraps", 4.45, "counted"),
            [(Spent(extended=calls), TOP)],
            "one for two ciphertexts of each product's result",
        ),
        Line(
            *("kernel", 0.02, "counted"),
            [(_HEADS * Spent(rotations=14, products=1), LOW)],
            "by what the forward pass saved",
        ),
        Line(
            *("ReLU", 0.02, "counted"),
            [(12 * Spent(products=1), TOP)],
            "by what the forward pass saved: 12 products of 0.6 ms; the rest reads files",
        ),
        Line(
            *("LoRA", 0.26, "formula"), [(6 * adapter(), TOP)], "twice the forward pass: Table 10"
        ),
        Line(
            *("transposed, saved", 0.57, "counted"),
            [(4 * _HEADS * transposed(), LOW)],
            "an operand of each product; files have no price of an operation",
        ),
    )


def full_forward() -> Line:
    """Matrices of a layer, encrypted, in place of public ones and LoRA."""
    theirs = 61.12 / 2 - (20.86 - 1.35 - 0.85)
    lefts = 3 + 3 + 3 + 6
    spent = lefts * left() + _WEIGHTS * (right() + inner(False))
    why = "10 products of 768 x 768; the paper's Table 1 has 1.259 s for one"
    return Line("matrices, encrypted", theirs, "derived", [(spent, LOW)], why)


def full_backward() -> Line:
    """Gradients by inputs and by matrices of a layer."""
    theirs = (169.2 - 61.12) / 2 - (11.72 - 2.29 - 0.26)
    lefts, turned = 3 + 12 + 3 + 9, 6 + 6 + 6 + 12
    inputs = lefts * left() + _WEIGHTS * (transposed() + right() + inner(False))
    matrices = turned * (transposed() + left()) + lefts * right() + _WEIGHTS * inner(False)
    raised = Spent(extended=_WEIGHTS / 2)
    why = "by inputs and by matrices, whose gradients are bootstrapped in pairs"
    return Line("matrices, encrypted", theirs, "derived", [(inputs + matrices + raised, LOW)], why)


def optimizer(ciphertexts: int, theirs: float) -> Line:
    """AdamW-HE on so many ciphertexts."""
    each = series(127) + Spent(additions=5, by_plaintexts=6, products=3 * 3 + 2, extended=4)
    why = f"{ciphertexts} ciphertexts; theirs are 0.687 s each, and 5 bootstraps would be 0.685"
    return Line("optimizer", theirs, "counted", [(ciphertexts * each, TOP)], why)


def head(training: bool) -> Line:
    """Final norm, two thin products, tanh, logits; with the loss and its gradients."""
    norm = forward()[2].parts[0][0]
    there = 0.5 * norm + 2 * adapter(1) + series(63) + Spent(extended=3)
    back = series(15) + series(63) + 4 * adapter(1) + Spent(bootstraps=2, extended=3)
    back += Spent(rotations=32, products=10, extended=1)
    if training:
        return Line("head", 1.5, "counted", [(there + back, TOP)], "thin products as LoRA's")
    return Line("head", 0.72, "counted", [(there, TOP)], "thin products as LoRA's")


def _products(name: str, theirs: float, passes: int, inners: int) -> Line:
    spent = passes * left() + inners * inner(True)
    why = "left operands transformed once, two real ciphertexts as one complex"
    return Line(name, theirs, "formula", [(spent, LOW)], why)


def _square() -> Spent:
    return left() + right() + inner(False)


@dataclass(frozen=True)
class Variant:
    """A column of Table 2: lines of a layer there and back, head, optimizer, and its totals."""

    name: str
    there: tuple[Line, ...]
    back: tuple[Line, ...]
    steps: Line
    theirs: float
    theirs_forward: float

    @property
    def inference(self) -> float:
        return _LAYERS * _sum(self.there) + head(False).seconds

    @property
    def fine_tuning(self) -> float:
        """A step of one sentence, the optimizer's included."""
        return self.gradient + self.steps.seconds

    @property
    def gradient(self) -> float:
        return _LAYERS * _sum(self.there + self.back) + head(True).seconds


def variants() -> tuple[Variant, Variant, Variant]:
    """Full and softmax, LoRA and softmax, LoRA and the Gaussian kernel."""
    shared = forward()[:-1]
    there, back = (*shared, softmax()), backward()
    other = tuple(line for line in shared if line.name not in ("matrices, public", "LoRA"))
    full = (*other, softmax(), full_forward())
    kept = tuple(line for line in back if line.name not in ("matrices, public", "LoRA"))
    small = optimizer(_ADAPTERS, 10.31)
    large = optimizer(_MATRICES, 252.83)
    return (
        Variant("full, softmax", full, (*kept, full_backward()), large, 423.55, 61.84),
        Variant("LoRA, softmax", there, back, small, 76.97, 42.44),
        Variant("LoRA, Gaussian", forward(), back, small, 61.03, 26.5),
    )


def lines() -> None:
    """Print all lines, totals, and ratios by both accountings."""
    full, softly, gaussian = variants()
    _show("One layer, forward (Table 12)", (*gaussian.there, softmax(), full_forward()))
    _show("One layer, backward (Table 12)", (*gaussian.back, full_backward()))
    _show("The rest (Table 2)", (head(False), head(True), gaussian.steps, full.steps))
    print("Totals (Table 2)")
    for v in (full, softly, gaussian):
        _total(f"{v.name}, inference", v.inference, v.theirs_forward)
        _total(f"{v.name}, fine-tuning", v.fine_tuning, v.theirs)
    print("Ratios of full, softmax over LoRA, Gaussian")
    _total("inference", full.inference / gaussian.inference, 2.33)
    _total("a step, one sentence", full.fine_tuning / gaussian.fine_tuning, 6.94)
    _total("optimizer", full.steps.seconds / gaussian.steps.seconds, 24.5)
    shared = [v.gradient + v.steps.seconds / 2 for v in (full, gaussian)]
    theirs = (423.55 - 252.83 / 2) / (61.03 - 10.31 / 2)
    _total("a step, two sentences in turn", shared[0] / shared[1], theirs)
    shared = [v.gradient + v.steps.seconds / 16 for v in (full, gaussian)]
    theirs = (170.72 + 252.83 / 16) / (50.72 + 10.31 / 16)
    _total("a step, sixteen in turn", shared[0] / shared[1], theirs)


def _show(title: str, chosen: Sequence[Line]) -> None:
    print(f"{title}\n  {'':22}{'theirs':>8}{'counted':>9}{'ratio':>7}")
    for line in chosen:
        print(
            f"  {line.name:22}{line.theirs:8.2f}{line.seconds:9.2f}{line.ratio:7.2f}  "
            f"{line.basis}: {line.why}"
        )


def _total(name: str, counted: float, theirs: float) -> None:
    print(f"  {name:30}{theirs:8.2f}{counted:9.2f}{counted / theirs:7.2f}")


def _sum(chosen: Sequence[Line]) -> float:
    return sum(line.seconds for line in chosen)
