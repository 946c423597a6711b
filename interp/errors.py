"""What can go wrong while a model is opened, as a tree.

* InterpError           2  asked for something that cannot be done
  + ModelError          2  the model lacks what is asked of it: a tokenizer, a place, a layout
  + BehaviourError      2  a behaviour that does not exist or contradicts itself
  + EffectsError        2  a result without the place or the axis asked for
  + CapabilityError     1  the model does not do the behaviour, so nothing in it can be found
  + ContrastError       1  a behaviour does not tell its two sets of prompts apart

The number is the exit code of the `openbook` command.
"""

__all__ = [
    "BehaviourError",
    "CapabilityError",
    "ContrastError",
    "EffectsError",
    "InterpError",
    "ModelError",
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
