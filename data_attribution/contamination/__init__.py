"""Contamination: what of an evaluation set the training text holds, beside every score."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from data_attribution.contamination.evaluations import Evaluations, evaluate_models
    from data_attribution.contamination.ngrams import overlap

__all__ = ["Evaluations", "evaluate_models", "overlap"]

__getattr__ = names_on_first_use(__name__, __file__)
