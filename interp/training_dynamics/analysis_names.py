"""Names of the standard analyses of checkpoints.

This module imports nothing heavy, so that the command line can refuse a name before torch is
imported. `analyses.analysis` makes the analyses.
"""

from interp.errors import EffectsError
from train.errors import nearest


__all__ = ["NAMES", "OF_BEHAVIOURS", "WATCHED", "refuse_unknown_analysis"]

# Prefix of the names that `train.trainer.measure_tasks` gives to the scores of each analysis.
WATCHED = {
    "induction": "induction",
    "previous-token": "previous token",
    "copying": "copying gap",
    "detectors": "",
    "in-context": "in-context",
}
OF_BEHAVIOURS = ("score", "heads")
NAMES = (*WATCHED, *(f"{kind}:BEHAVIOUR" for kind in OF_BEHAVIOURS))


def refuse_unknown_analysis(name: str) -> None:
    """Raise an EffectsError if no analysis has this name, whatever its behaviour; imports no torch.

    Examples:
        >>> training_dynamics.refuse_unknown_analysis("copyin")
        Traceback (most recent call last):
            ...
        interp.errors.EffectsError: no analysis is called 'copyin', did you mean 'copying'?
    """
    kind, _, behaviour = name.partition(":")
    if name not in WATCHED and not (behaviour and kind in OF_BEHAVIOURS):
        raise EffectsError(f"no analysis is called {name!r}{nearest(name, NAMES)}")
