"""Attention heads: detectors of attention patterns, OV circuits, and direct logit attribution."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from interp.heads.attention_scores import (
        KINDS,
        Copying,
        attended_positions,
        best_head,
        copying_loss,
        detector_scores,
        duplicate_token_heads,
        induction_heads,
        previous_token_heads,
        repeated_tokens,
    )
    from interp.heads.direct_logit_attribution import Contributions, decompose_logits, readout
    from interp.heads.ov_circuits import effective_embedding, name_moving, ov_copying
    from interp.heads.result import HeadScores

__all__ = [
    "KINDS",
    "Contributions",
    "Copying",
    "HeadScores",
    "attended_positions",
    "best_head",
    "copying_loss",
    "decompose_logits",
    "detector_scores",
    "duplicate_token_heads",
    "effective_embedding",
    "induction_heads",
    "name_moving",
    "ov_copying",
    "previous_token_heads",
    "readout",
    "repeated_tokens",
]

__getattr__ = names_on_first_use(__name__, __file__)
