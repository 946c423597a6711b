"""Counterfactuals: retrain without documents, and without random ones as controls."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from data_attribution.counterfactuals.cached_retraining import Retrainings
    from data_attribution.counterfactuals.document_sets import (
        kept_out,
        matched_random,
        matched_random_sets,
        with_copies,
    )
    from data_attribution.counterfactuals.effect_size import Change, EffectSize
    from data_attribution.counterfactuals.fact_removal import (
        STAYS,
        FactChange,
        Forgetting,
        documents_of,
        forget_facts,
        removable_facts,
    )
    from data_attribution.counterfactuals.retrained_runs import found
    from data_attribution.counterfactuals.retraining import (
        CONTROLS,
        Counterfactual,
        compare,
        without,
    )
    from data_attribution.counterfactuals.validation import marked_sources, validate_sources

__all__ = [
    "CONTROLS",
    "STAYS",
    "Change",
    "Counterfactual",
    "EffectSize",
    "FactChange",
    "Forgetting",
    "Retrainings",
    "compare",
    "documents_of",
    "forget_facts",
    "found",
    "kept_out",
    "marked_sources",
    "matched_random",
    "matched_random_sets",
    "removable_facts",
    "validate_sources",
    "with_copies",
    "without",
]

__getattr__ = names_on_first_use(__name__, __file__)
