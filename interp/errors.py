"""Exceptions and warnings of `interp`.

* InterpError           2  base class: the request cannot be carried out
  + ModelError          2  the model lacks what is needed: a tokenizer, a component, a layout
    - BridgeOnlyError   2  a call of TransformerLens that only its bridge answers
  + BehaviourError      2  the behaviour does not exist or contradicts itself
  + EffectsError        2  the result does not contain the requested component or axis
  + CapabilityError     1  the model does not do the behaviour, so there is nothing to explain
  + ContrastError       1  the model scores the clean and the corrupt prompts alike
  + ProbeError          2  no probe can be fitted to the labels
  + CircuitError        2  the circuit belongs to another model, or cannot be cut out
  + EvaluationError     2  an evaluation file is of another kind, or two scores are not comparable
  + BudgetError         4  not even one patch fits into the allowed memory

The number is the exit code of the `openbook` command. A warning means that a result is returned all
the same:

* InterpWarning             base class
  + UninformativeWarning    the prompts do not vary the component, so an effect of 0 says nothing
  + InterruptedWarning      Ctrl-C was pressed; the result contains only what was finished
"""

from train.errors import ShortError


__all__ = [
    "BehaviourError",
    "BridgeOnlyError",
    "BudgetError",
    "CapabilityError",
    "CircuitError",
    "ContrastError",
    "EffectsError",
    "EvaluationError",
    "InterpError",
    "InterpWarning",
    "InterruptedWarning",
    "ModelError",
    "ProbeError",
    "UninformativeWarning",
]


class InterpError(ShortError):
    """Base of every error raised by `interp`; the command prints it without a traceback."""

    exit_code = 2


class ModelError(InterpError):
    """The model lacks what is needed: a tokenizer, a component or a layout."""


class BridgeOnlyError(ModelError, AttributeError, TypeError):
    """The loaded model does not answer this call of TransformerLens; its bridge may."""


class BehaviourError(InterpError):
    """The behaviour does not exist or contradicts itself."""


class EffectsError(InterpError):
    """The result does not contain the requested component or axis."""


class CapabilityError(InterpError):
    """The model does not do the behaviour, so there is nothing in it to explain."""

    exit_code = 1


class ContrastError(InterpError):
    """The model scores the clean and the corrupt prompts of a behaviour alike."""

    exit_code = 1


class ProbeError(InterpError):
    """No probe can be fitted to the labels."""


class CircuitError(InterpError):
    """The circuit belongs to another model, or cannot be cut out."""


class EvaluationError(InterpError):
    """An evaluation file is of another kind, or two scores cannot be compared."""


class BudgetError(InterpError):
    """Not even one patch fits into the allowed memory."""

    exit_code = 4


class InterpWarning(UserWarning):
    """Base of every warning of `interp`; the command prints it as one line."""


class UninformativeWarning(InterpWarning):
    """The clean and corrupt prompts do not vary a component, so an effect of 0 says nothing."""


class InterruptedWarning(InterpWarning):
    """Ctrl-C was pressed; the returned result contains only what was finished."""
