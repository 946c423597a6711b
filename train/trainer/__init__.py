"""Training: train, resume, replay, retrain without documents, monitor, and verify runs."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from train.trainer.distillation import distillation_loss
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
    from train.trainer.optimizer import Muon, adamw, lr_at, set_lr, write_state
    from train.trainer.ranks import Ranks, join_ranks, ranks_of
    from train.trainer.state import TrainState, initial_state, load_state
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
    "ranks_of",
    "replay",
    "resume",
    "retrain_without",
    "run_steps",
    "set_lr",
    "store_tasks",
    "train",
    "training_steps",
    "update_average",
    "verify",
    "write_state",
]

__getattr__ = names_on_first_use(__name__, __file__)
