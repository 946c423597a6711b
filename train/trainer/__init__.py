"""Training: train, resume, tune, replay, retrain without documents, monitor, and verify runs."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from train.trainer.distillation import distillation_loss, teacher_entry
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
    from train.trainer.objectives import (
        Forward,
        Objective,
        TrainingMethods,
        next_token,
        objective_of,
    )
    from train.trainer.optimizer import (
        Muon,
        adamw,
        lr_at,
        optimizer_state,
        set_lr,
        set_weight_decay,
        weight_decay_at,
    )
    from train.trainer.preferences import (
        pair_log_probs,
        preference_loss,
        reference_log_probs,
        response_log_probs,
    )
    from train.trainer.ranks import Ranks, join_ranks, ranks_of
    from train.trainer.state import TrainState, first_state, initial_state, load_state
    from train.trainer.stochastic_depth import layer_scales
    from train.trainer.tuning import tune, tuning_recipe
    from train.trainer.verification import Verification, check_files, verify
    from train.trainer.weight_average import begin_average, update_average

__all__ = [
    "COPY_LENGTH",
    "Forward",
    "Monitor",
    "Muon",
    "Objective",
    "Ranks",
    "TrainState",
    "TrainingMethods",
    "Verification",
    "adamw",
    "begin_average",
    "check_files",
    "context_task",
    "copying_task",
    "distillation_loss",
    "first_state",
    "first_step_reading",
    "fixed_loss",
    "held_out_loss",
    "initial_state",
    "is_highest",
    "join_ranks",
    "layer_scales",
    "load_state",
    "lr_at",
    "measure_tasks",
    "monitor_words",
    "next_token",
    "next_token_loss",
    "objective_of",
    "optimizer_state",
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
    "set_weight_decay",
    "store_tasks",
    "teacher_entry",
    "train",
    "training_steps",
    "tune",
    "tuning_recipe",
    "update_average",
    "verify",
    "weight_decay_at",
]

__getattr__ = names_on_first_use(__name__, __file__)
