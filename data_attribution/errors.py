"""The exceptions of `data_attribution`, with the exit code that the command line gives each.

* AttributionError       2  base class: the request cannot be answered
  + QueryError           2  the query is empty, too long, or can occur in no document
  + IndexMissing         2  the token store has no index yet
  + IndexMismatch        2  the index was built from another token store
  + SorterError          2  the index cannot be sorted in the requested way
  + IndexSpaceError      4  memory or disk are too small to build the index
  + EvidenceError        2  the evidence does not exist, or does not fit the query
  + CounterfactualError  2  the counterfactual would change nothing, or has no control
  + DemoError            2  the files of an earlier demo do not belong to this demo

The number is the exit code of the `openbook` command. Damaged files raise
`train.errors.DamagedError` (exit code 3) here too. A warning means that a result is returned all
the same:

* AttributionWarning     base class
  + DamagedRunWarning    a retrained run cannot be read, and the result is without it
"""

from train.errors import ShortError


__all__ = [
    "AttributionError",
    "AttributionWarning",
    "CounterfactualError",
    "DamagedRunWarning",
    "DemoError",
    "EvidenceError",
    "IndexMismatch",
    "IndexMissing",
    "IndexSpaceError",
    "QueryError",
    "SorterError",
]


class AttributionError(ShortError):
    """Base class of every error of `data_attribution`; the command prints it on one line."""

    exit_code = 2


class QueryError(AttributionError):
    """The query is empty, too long, or can occur in no document."""


class IndexMissing(AttributionError):
    """The token store has no index yet."""


class IndexMismatch(AttributionError):
    """The index was built from another token store."""


class SorterError(AttributionError):
    """The index cannot be sorted in the requested way."""


class IndexSpaceError(AttributionError):
    """Memory or disk are too small to build the index."""

    exit_code = 4


class EvidenceError(AttributionError):
    """The evidence does not exist, or does not fit the query."""


class CounterfactualError(AttributionError):
    """The counterfactual would change nothing, or has no control."""


class DemoError(AttributionError):
    """The files of an earlier demo do not belong to this demo."""


class AttributionWarning(UserWarning):
    """Base of every warning of `data_attribution`; the command prints it as one line."""


class DamagedRunWarning(AttributionWarning):
    """A retrained run cannot be read, and the result is without it."""
