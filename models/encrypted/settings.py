"""What is simulated of an encrypted run: the ring, the library, and the twin's polynomials."""

from __future__ import annotations

import dataclasses

from hesim.noise.profiles import profile
from hesim.params import CKKSParams
from models.checks import check_numbers
from models.sites.sites import (
    FitSettings,
)

__all__ = ["EncryptionSettings"]


@dataclasses.dataclass(frozen=True)
class EncryptionSettings:
    """The ring that is simulated, and the polynomials of the twin.

    fit: degrees, composites, and how far beyond the ranges met by the pre-trained model they must
    hold, since under encryption nothing can be clipped or penalised; its `ranges` are fixed ones,
    for what the pre-trained model says nothing about, or for one twin on many tasks. Entries of
    `loss.exp`, `loss.inv` and `optimizer.inv_sqrt` are those of a training step
    (`encrypted_step.training_sites`). loss_scale: factor of the loss and so of the gradients, which
    lifts them above the noise: the second moment's, a thousandfold at the first step by its bias
    correction, must stay below AdamW-HE's epsilon, which grows with the square of the factor.
    range_rows: training rows on which the ranges are measured. softmax_squarings: of the twin of a
    model with softmax attention.
    """

    ckks: CKKSParams = CKKSParams(
        log_n=16, levels=12, scale_bits=42, first_bits=50, special_bits=60
    )
    profile: str = "seal"
    fit: FitSettings = FitSettings(
        degrees=(
            ("exp", 31),
            ("gelu", 31),
            ("gelu_tanh", 31),
            ("inv", 31),
            ("inv_sqrt", 31),
            ("relu", 31),
            ("silu", 31),
            ("softmax_exp", 15),
            ("softmax_inv", 63),
            ("tanh", 63),
        ),
        margin=1.0,
        ranges=(("tanh", (-5.0, 5.0)),),
    )
    loss_scale: float = 32.0
    range_rows: int = 1024
    softmax_squarings: int = 3

    def __post_init__(self) -> None:
        check_numbers(self, positive=("loss_scale", "range_rows"))
        profile(self.profile)  # knows the names
