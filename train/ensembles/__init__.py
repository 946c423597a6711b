"""Ensembles of runs: averaged probabilities, learned weights, chains, and data efficiency."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from train.ensembles.chain import train_chain
    from train.ensembles.data_efficiency import BaselineCurve, distinct_tokens
    from train.ensembles.ensemble import Ensemble, Member, average_weights, ensemble_of
    from train.ensembles.evaluation import EnsembleEvaluation, EnsembleRow, evaluate, verdict
    from train.ensembles.learned_weights import learn_weights
    from train.ensembles.token_scores import HeldOutScores, held_out_scores, scores_of

__all__ = [
    "BaselineCurve",
    "Ensemble",
    "EnsembleEvaluation",
    "EnsembleRow",
    "HeldOutScores",
    "Member",
    "average_weights",
    "distinct_tokens",
    "ensemble_of",
    "evaluate",
    "held_out_scores",
    "learn_weights",
    "scores_of",
    "train_chain",
    "verdict",
]

__getattr__ = names_on_first_use(__name__, __file__)
