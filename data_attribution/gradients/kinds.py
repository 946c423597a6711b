"""Kinds of comparison between the gradients of documents and of a query.

This module imports nothing heavy, so that the command line can refuse a name before torch is
imported.
"""

from data_attribution.errors import EvidenceError
from train.errors import nearest


__all__ = ["KINDS", "refuse_unknown_kind"]

KINDS = ("adam", "adam-cosine", "cosine", "curvature", "dot")


def refuse_unknown_kind(kind: str) -> None:
    """Raise an EvidenceError if gradients are not compared by a kind of this name.

    Examples:
        >>> gradients.refuse_unknown_kind("cosin")
        Traceback (most recent call last):
            ...
        data_attribution.errors.EvidenceError: gradients are not compared by 'cosin', did you mean \
'cosine' or 'adam-cosine'?
    """
    if kind not in KINDS:
        raise EvidenceError(f"gradients are not compared by {kind!r}{nearest(kind, KINDS)}")
