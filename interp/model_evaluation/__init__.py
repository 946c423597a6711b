"""Evaluation of models: held-out loss and public protocols, with intervals and differences."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from interp.model_evaluation.comparison import Difference, compare
    from interp.model_evaluation.items import (
        EvaluationSet,
        evaluate,
        identified,
        json_lines,
        text_of,
    )
    from interp.model_evaluation.likelihood import (
        ScoredRow,
        TokenRow,
        continuation_row,
        greedy_texts,
        rolling_rows,
        score_rows,
    )
    from interp.model_evaluation.protocols import FILES, PROTOCOLS, detokenised, load
    from interp.model_evaluation.score import Measure, Overlap, Score

__all__ = [
    "FILES",
    "PROTOCOLS",
    "Difference",
    "EvaluationSet",
    "Measure",
    "Overlap",
    "Score",
    "ScoredRow",
    "TokenRow",
    "compare",
    "continuation_row",
    "detokenised",
    "evaluate",
    "greedy_texts",
    "identified",
    "json_lines",
    "load",
    "rolling_rows",
    "score_rows",
    "text_of",
]

__getattr__ = names_on_first_use(__name__, __file__)
