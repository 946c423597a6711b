"""What can go wrong while looking for the documents behind a behaviour, as a tree.

* AttributionError       2  asked for something that cannot be answered
  + QueryError           2  a query that no document could hold
  + IndexMissing         2  the token store has no index yet
  + IndexMismatch        2  the index was built from another token store
  + SorterError          2  the index cannot be sorted in the way that was asked for
  + IndexSpaceError      4  memory or disk do not hold the index while it is built
  + EvidenceError        2  evidence that does not exist, or that does not fit what is asked
  + CounterfactualError  2  a counterfactual that would vary nothing, or has no control
  + DemoError            2  what an earlier demo left is not what this one would make

The number is the exit code of the `openbook` command. Damaged files are `train.errors.DamagedError`
(exit code 3) here too.
"""

__all__ = [
    "AttributionError",
    "CounterfactualError",
    "DemoError",
    "EvidenceError",
    "IndexMismatch",
    "IndexMissing",
    "IndexSpaceError",
    "QueryError",
    "SorterError",
]


class AttributionError(ValueError):
    """Base of every error raised by `data_attribution`; the command prints it in one line."""

    exit_code = 2


class QueryError(AttributionError):
    """A query that no document could hold."""


class IndexMissing(AttributionError):
    """The token store has no index yet."""


class IndexMismatch(AttributionError):
    """The index was built from another token store."""


class SorterError(AttributionError):
    """The index cannot be sorted in the way that was asked for."""


class IndexSpaceError(AttributionError):
    """Memory or disk do not hold the index while it is built."""

    exit_code = 4


class EvidenceError(AttributionError):
    """Evidence that does not exist, or that does not fit what is asked."""


class CounterfactualError(AttributionError):
    """A counterfactual that would vary nothing, or has no control."""


class DemoError(AttributionError):
    """What an earlier demo left is not what this one would make."""
