"""Next-word prediction, by which decoders are pre-trained: at every place the token after it.

Radford et al. 2018, section 3.1. A token sees itself and those before it only, so one pass over a
row asks for each of its tokens but the first; nothing is hidden and nothing is drawn at random.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from models.data.corpus import Stream
from models.data.tokenizer import Tokenizer
from models.objectives.mlm import MaskedBatch

__all__ = ["NextWord"]


@dataclasses.dataclass(frozen=True)
class NextWord:
    """Every token that has a next one guesses it, special tokens included, padding excluded.

    words: the vocabulary numbers [first, end) that may have to be guessed: all.
    """

    padding_id: int
    words: tuple[int, int]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> NextWord:
        return cls(tokenizer.pad_id, (0, tokenizer.size))

    def apply(self, tokens: np.ndarray, progress: float = 0.0) -> MaskedBatch:
        """Rows (n, length) as they are, with each place's next token; the last place of a row is
        there with weight 0, so that the number of places divides as that of the tokens does.
        """
        real = (tokens != self.padding_id).astype(np.float32)
        weights = np.zeros(tokens.shape, np.float32)
        weights[:, :-1] = real[:, :-1] * real[:, 1:]
        return MaskedBatch(
            tokens,
            real,
            np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
            np.roll(tokens, -1, axis=1).astype(np.int32),
            weights,
            np.float32(progress),
        )

    def batch(
        self, stream: Stream, rows: np.ndarray, seed: int, step: int, progress: float = 0.0
    ) -> MaskedBatch:
        """The rows of a step; seed and step, which `Masking` draws from, decide nothing here."""
        del seed, step
        return self.apply(stream.take(rows), progress)
