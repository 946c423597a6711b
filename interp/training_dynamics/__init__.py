"""Analyses over the checkpoints of a run, and recall of facts by number of documents."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from interp.training_dynamics.analyses import (
        analysis,
        behaviour_tasks,
        heads_analysis,
        score_analysis,
    )
    from interp.training_dynamics.analysis_names import refuse_unknown_analysis
    from interp.training_dynamics.checkpoint_analysis import (
        Analysis,
        logged,
        over_training,
        read_between,
        replayed,
    )
    from interp.training_dynamics.fact_recall import (
        Answer,
        Level,
        Recall,
        Share,
        facts_named,
        recall_by_exposure,
        recall_of_facts,
        recall_share,
    )
    from interp.training_dynamics.trajectory import Trajectory, TrajectoryPoint

__all__ = [
    "Analysis",
    "Answer",
    "Level",
    "Recall",
    "Share",
    "Trajectory",
    "TrajectoryPoint",
    "analysis",
    "behaviour_tasks",
    "facts_named",
    "heads_analysis",
    "logged",
    "over_training",
    "read_between",
    "recall_by_exposure",
    "recall_of_facts",
    "recall_share",
    "refuse_unknown_analysis",
    "replayed",
    "score_analysis",
]

__getattr__ = names_on_first_use(__name__, __file__)
