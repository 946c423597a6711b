"""Training: train, resume, tune, replay, retrain without documents, monitor, and verify runs."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from train.trainer.evaluation import fixed_loss, held_out_loss, is_highest
    from train.trainer.loop import (
        first_step_reading,
        replay,
        resume,
        retrain_without,
        run_steps,
        train,
        training_steps,
    )
    from train.trainer.loss import next_token_loss
    from train.trainer.monitoring import (
        COPY_LENGTH,
        Monitor,
        context_task,
        copying_task,
        measure_tasks,
        monitor_words,
        store_tasks,
    )
    from train.trainer.objectives import Forward, Objective, next_token, objective_of
    from train.trainer.optimizer import Muon, adamw, lr_at, set_lr, write_state
    from train.trainer.preferences import (
        pair_log_probs,
        preference_loss,
        reference_log_probs,
        response_log_probs,
    )
    from train.trainer.ranks import Ranks, join_ranks, ranks_of
    from train.trainer.state import TrainState, first_state, initial_state, load_state
    from train.trainer.tuning import tune, tuning_recipe
    from train.trainer.verification import Verification, check_files, verify

__all__ = [
    "COPY_LENGTH",
    "Forward",
    "Monitor",
    "Muon",
    "Objective",
    "Ranks",
    "TrainState",
    "Verification",
    "adamw",
    "check_files",
    "context_task",
    "copying_task",
    "first_state",
    "first_step_reading",
    "fixed_loss",
    "held_out_loss",
    "initial_state",
    "is_highest",
    "join_ranks",
    "load_state",
    "lr_at",
    "measure_tasks",
    "monitor_words",
    "next_token",
    "next_token_loss",
    "objective_of",
    "pair_log_probs",
    "preference_loss",
    "ranks_of",
    "reference_log_probs",
    "replay",
    "response_log_probs",
    "resume",
    "retrain_without",
    "run_steps",
    "set_lr",
    "store_tasks",
    "train",
    "training_steps",
    "tune",
    "tuning_recipe",
    "verify",
    "write_state",
]

__getattr__ = names_on_first_use(__name__, __file__)
