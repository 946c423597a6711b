"""Linear probes with control tasks, and concept erasure (LEACE)."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from interp.probing.concept_erasure import Erasure, erasure_effect, leace
    from interp.probing.loading import load_task, task_of_behaviour
    from interp.probing.probes import linear
    from interp.probing.result import Probe
    from interp.probing.tasks import ProbeTask, read_task

__all__ = [
    "Erasure",
    "Probe",
    "ProbeTask",
    "erasure_effect",
    "leace",
    "linear",
    "load_task",
    "read_task",
    "task_of_behaviour",
]

__getattr__ = names_on_first_use(__name__, __file__)
