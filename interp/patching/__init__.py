"""Activation patching: replace activations of one run by those of another and score the change."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from interp.patching.ablation import Ablation, ablate, every_component
    from interp.patching.activation_patching import (
        attention,
        heads,
        keys,
        mlps,
        neurons,
        patterns,
        queries,
        residual,
        together,
        values,
    )
    from interp.patching.causal_tracing import Trace, causal_trace, subject_noise
    from interp.patching.contrast_check import informative, largest_change, removed
    from interp.patching.contrast_result import ContrastCheck
    from interp.patching.controls import untrained_control
    from interp.patching.effects import Effects
    from interp.patching.paired_runs import PairedRuns, SweepLayout, SweepOptions, one_of, sweep
    from interp.patching.path_patching import receivers, senders
    from interp.patching.score_contrast import require_contrast

__all__ = [
    "Ablation",
    "ContrastCheck",
    "Effects",
    "PairedRuns",
    "SweepLayout",
    "SweepOptions",
    "Trace",
    "ablate",
    "attention",
    "causal_trace",
    "every_component",
    "heads",
    "informative",
    "keys",
    "largest_change",
    "mlps",
    "neurons",
    "one_of",
    "patterns",
    "queries",
    "receivers",
    "removed",
    "require_contrast",
    "residual",
    "senders",
    "subject_noise",
    "sweep",
    "together",
    "untrained_control",
    "values",
]

__getattr__ = names_on_first_use(__name__, __file__)
