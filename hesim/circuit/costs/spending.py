"""What a run of a Circuit spends, in all and by operation. Imports no JAX."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hesim.display import html_block, html_table, shown_as_text, text_table

__all__ = ["Ledger", "Spending"]


@dataclass(frozen=True)
class Spending:
    """What one operation of the Program spends in a Circuit, "input" for what is encrypted.

    Attributes:
      name, source: of the operation, the caller's file and line.
      level: the lowest of its results, before any refresh; -1 if it has no ciphertexts of its own.
      scale_bits: log2 of the exact scale there.
      rotations, relinearizations, rescales, plain_products, products, refreshes: its instructions.
      seconds: predicted for one core, with refreshes at the machine's own price and without the
        encoding of plaintexts. encoding: seconds of that, of vectors that it is the first to use.
      ciphertexts: that its result lies in.
      layout: where in them, as docs/layouts.md writes it, of one member of the batch; "table" if
        every element has a place of its own; empty if the result lies nowhere by itself.
    """

    name: str
    source: str
    level: int
    scale_bits: float
    rotations: int
    relinearizations: int
    rescales: int
    plain_products: int
    products: int
    refreshes: int
    seconds: float
    ciphertexts: int = 0
    layout: str = ""
    encoding: float = 0.0


@dataclass(frozen=True)
class Ledger:
    """What an encrypted run of a Circuit spends, count for count.

    Attributes:
      depth: levels on the longest path from inputs to results, whatever is refreshed on it.
      levels: of these, the most between two refreshes; what the parameters need.
      refreshes: refreshed ciphertexts. refresh_rounds: round trips that wait for each other, each
        of all ciphertexts that can be sent together; 0 means that nobody but the server takes part.
      rotations, relinearizations, rescales, additions, plain_additions: operations.
      plain_products: ciphertext by plaintext. products: ciphertext by ciphertext.
      inputs, outputs: ciphertexts encrypted and decrypted. drops: modulus switches.
      carried: of the inputs, those that every run but the first takes from the one before it.
      rotation_keys: distinct rotation steps. key_bytes: bytes of those keys and the
        relinearization key together.
      plaintexts: distinct plaintexts encoded.
      seconds: predicted for one core, refreshes at the machine's own price, and every vector
        encoded once. encoding_seconds: of these, those of encoding.
      seconds_bootstrapped: the same with every refresh priced as a bootstrap.
      operations: what each operation spends of it, inputs first; see `table`.
      plaintext_bytes: bytes of all plaintexts that are vectors, encoded.
      cipher_bytes: bytes of the ciphertexts alive at a time, at most, by their sizes.
      peak_bytes: predicted memory of one process that evaluates: the machine itself, evaluation
        keys, ciphertexts alive, and the plaintexts that it keeps.
      key_seconds: predicted for making all evaluation keys on one core; in no other figure.
      costs: name of the cost table that seconds and peak_bytes are predicted by.
    """

    depth: int
    refreshes: int
    refresh_rounds: int
    rotations: int
    relinearizations: int
    rescales: int
    additions: int
    plain_additions: int
    plain_products: int
    products: int
    drops: int
    inputs: int
    outputs: int
    rotation_keys: int
    key_bytes: int
    plaintexts: int
    seconds: float
    seconds_bootstrapped: float
    operations: tuple[Spending, ...] = ()
    plaintext_bytes: int = 0
    cipher_bytes: int = 0
    peak_bytes: int = 0
    costs: str = ""
    levels: int = 0
    key_seconds: float = 0.0
    carried: int = 0
    encoding_seconds: float = 0.0

    def counts(self) -> dict[str, int]:
        """The operation counts that a machine can count by itself."""
        names = (
            *("refreshes", "rotations", "relinearizations", "rescales", "additions"),
            *("plain_additions", "plain_products", "products", "drops", "inputs"),
        )
        return {name: getattr(self, name) for name in names}

    def _totals(self) -> list[tuple[str, str]]:
        names = [f.name for f in dataclasses.fields(self) if f.name != "operations"]
        values = [(name, getattr(self, name)) for name in names]
        values.insert(1, values.pop([name for name, _ in values].index("levels")))
        shown = [(name.replace("_", " "), _written(x)) for name, x in values if x != ""]
        return [(name, f"{x} between refreshes" if name == "levels" else x) for name, x in shown]

    def __str__(self) -> str:
        return text_table(self._totals())

    _repr_pretty_ = shown_as_text

    def _repr_html_(self) -> str:
        inner = html_table(self._totals(), head=False)
        if self.operations:
            inner += html_table(self._rows())
        return html_block("What an encrypted run spends", inner=inner)

    def table(self) -> str:
        """Text: a line for each operation: layout, level, what it spends, and its place."""
        return text_table(self._rows())

    def _rows(self) -> list[tuple[str, ...]]:
        head = ("operation", "layout", "cts", "level", "scale", "rotations", "relin.", "rescales")
        rows: list[tuple[str, ...]] = [
            (*head, "plain products", "products", "refreshes", "seconds", "encoding", "source")
        ]
        for op in self.operations:
            own = op.level >= 0
            counts = (op.rotations, op.relinearizations, op.rescales, op.plain_products)
            rows.append(
                (
                    op.name,
                    op.layout,
                    str(op.ciphertexts or ""),
                    str(op.level) if own else "",
                    f"2^{op.scale_bits:.3f}" if own else "",
                    *(str(n) if n else "" for n in (*counts, op.products, op.refreshes)),
                    f"{op.seconds:.3f}" if op.seconds else "",
                    f"{op.encoding:.3f}" if op.encoding else "",
                    op.source,
                )
            )
        return rows


def _written(value: float | int | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"
