"""Logit lens and tuned lens, and their evaluation in bits per token."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from interp.lenses.evaluation import LensEvaluation, evaluate_lens
    from interp.lenses.logit_lens import Readings, logit
    from interp.lenses.tokens import held_out_tokens, training_tokens
    from interp.lenses.tuned_lens import TunedLens, fit_tuned_lens, load_tuned_lens, tuned

__all__ = [
    "LensEvaluation",
    "Readings",
    "TunedLens",
    "evaluate_lens",
    "fit_tuned_lens",
    "held_out_tokens",
    "load_tuned_lens",
    "logit",
    "training_tokens",
    "tuned",
]

__getattr__ = names_on_first_use(__name__, __file__)
