"""Evaluation of document rankings: recall, LDS, removal curves, tail patches."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from data_attribution.evaluation.facts import planted_facts, planted_labels
    from data_attribution.evaluation.lds import (
        Lds,
        draw_subsets,
        lds_score,
        predicted_change,
        retrained_on_subsets,
        spearman,
        spread,
    )
    from data_attribution.evaluation.method_evaluation import (
        EvaluationOptions,
        evaluate,
        rankings_by_method,
    )
    from data_attribution.evaluation.removal_curves import (
        CurvePoint,
        Ratio,
        RemovalCurves,
        apart,
        removal_curves_of,
    )
    from data_attribution.evaluation.result import Evaluation
    from data_attribution.evaluation.scope import first_read

__all__ = [
    "CurvePoint",
    "Evaluation",
    "EvaluationOptions",
    "Lds",
    "Ratio",
    "RemovalCurves",
    "apart",
    "draw_subsets",
    "evaluate",
    "first_read",
    "lds_score",
    "planted_facts",
    "planted_labels",
    "predicted_change",
    "rankings_by_method",
    "removal_curves_of",
    "retrained_on_subsets",
    "spearman",
    "spread",
]

__getattr__ = names_on_first_use(__name__, __file__)
