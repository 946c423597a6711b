"""Activation stores: activations written to disk, and read back by document and offset."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from interp.activations.plan import Plan, plan_store
    from interp.activations.store import ActivationStore, open_store, verify_store
    from interp.activations.windows import (
        Windows,
        document_windows,
        prompt_windows,
        training_windows,
    )
    from interp.activations.writer import write_planned_store, write_store

__all__ = [
    "ActivationStore",
    "Plan",
    "Windows",
    "document_windows",
    "open_store",
    "plan_store",
    "prompt_windows",
    "training_windows",
    "verify_store",
    "write_planned_store",
    "write_store",
]

__getattr__ = names_on_first_use(__name__, __file__)
