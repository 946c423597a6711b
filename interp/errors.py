"""What can go wrong while a model is opened, as a tree.

* InterpError           2  asked for something that cannot be done
  + ModelError          2  the model lacks what is asked of it: a tokenizer, a place, a layout
  + BehaviourError      2  a behaviour that does not exist or contradicts itself
  + EffectsError        2  a result without the place or the axis asked for
  + CapabilityError     1  the model does not do the behaviour, so nothing in it can be found
  + ContrastError       1  a behaviour does not tell its two sets of prompts apart
  + ProbeError          2  labels that no probe can be fitted to
  + CircuitError        2  a circuit of another model, or one that cannot be cut out
  + BudgetError         4  not even one patch fits into the memory allowed

The number is the exit code of the `openbook` command. What is done all the same is a warning:

* InterpWarning             base
  + UninformativeWarning    the contrast does not vary what was asked about: an effect of 0 is empty
  + InterruptedWarning      Ctrl-C: what is returned is the finished part
"""

__all__ = [
    "BehaviourError",
    "BudgetError",
    "CapabilityError",
    "CircuitError",
    "ContrastError",
    "EffectsError",
    "InterpError",
    "InterpWarning",
    "InterruptedWarning",
    "ModelError",
    "ProbeError",
    "UninformativeWarning",
]


class InterpError(ValueError):
    """Base of every error raised by `interp`; the command prints it without a traceback."""

    exit_code = 2


class ModelError(InterpError):
    """The model lacks what is asked of it."""


class BehaviourError(InterpError):
    """A behaviour that does not exist or contradicts itself."""


class EffectsError(InterpError):
    """A result without the place or the axis asked for."""


class CapabilityError(InterpError):
    """The model does not do the behaviour, so nothing in it can be found."""

    exit_code = 1


class ContrastError(InterpError):
    """A behaviour does not tell its two sets of prompts apart."""

    exit_code = 1


class ProbeError(InterpError):
    """Labels that no probe can be fitted to."""


class CircuitError(InterpError):
    """A circuit of another model, or one that cannot be cut out."""


class BudgetError(InterpError):
    """Not even one patch fits into the memory allowed."""

    exit_code = 4


class InterpWarning(UserWarning):
    """Base of every warning of `interp`; the command prints it as one line."""


class UninformativeWarning(InterpWarning):
    """The contrast does not vary what was asked about: an effect of 0 is empty."""


class InterruptedWarning(InterpWarning):
    """Ctrl-C: what is returned is the finished part."""
