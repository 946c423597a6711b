"""Names of attribution methods, and the options that a name may carry.

This module imports nothing heavy, so that the command line can refuse a name before torch is
imported. `methods.parse` makes the methods.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data_attribution import gradients
from data_attribution.errors import EvidenceError
from train.errors import nearest


__all__ = ["FUSED", "METHODS", "READERS", "read_names", "refuse_unknown_method"]

FUSED = "fused"
METHODS = ("lexical", "bm25", "gradient", "replay")
# Options that a name may carry, and how each is read from text.
READERS: Mapping[str, Mapping[str, Callable[[str], Any]]] = {
    "gradient": {"kind": str, "rank": int, "damping": float, "within": str},
    "replay": {"steps": int, "scratch": Path},
}


def read_names(name: str) -> list[tuple[str, dict[str, list[Any]]]]:
    """Return the method of every part of a name such as "lexical+gradient:rank=8", with options.

    Each option has the list of its values, in their order.

    Raises:
        EvidenceError: There is no such method or option, or an option is given without its value.
    """
    return [_part(part) for part in map(str.strip, name.split("+"))]


def refuse_unknown_method(name: str) -> None:
    """Raise an EvidenceError for a name that `parse` would refuse; imports no torch.

    Examples:
        >>> attribution.refuse_unknown_method("lexikal")
        Traceback (most recent call last):
            ...
        data_attribution.errors.EvidenceError: no evidence is called 'lexikal', did you mean \
'lexical'?
    """
    for method, options in read_names(name):
        for kind in options.get("kind", []) if method == "gradient" else []:
            gradients.refuse_unknown_kind(kind)
        for within in options.get("within", []):
            if within.endswith(".json") and not Path(within).is_file():
                raise EvidenceError(
                    f"there is no file {within}; write one with `openbook patch --out`"
                )


def _part(part: str) -> tuple[str, dict[str, list[Any]]]:
    method, colon, options = part.partition(":")
    if method == FUSED and colon:
        raise EvidenceError(f"{part!r}: give options to the methods, lexical+gradient:{options}")
    if method not in (*METHODS, FUSED):
        raise EvidenceError(f"no evidence is called {method!r}{nearest(method, (*METHODS, FUSED))}")
    return method, _options(method, options) if colon else {}


def _options(method: str, text: str) -> dict[str, list[Any]]:
    """Return the values of a text such as "kind=cosine,rank=8"."""
    readers = READERS.get(method, {})
    values: dict[str, list[Any]] = {}
    for part in text.split(","):
        option, _, value = part.partition("=")
        if option not in readers or not value:
            known = ", ".join(f"{one}=..." for one in readers) or "none"
            raise EvidenceError(
                f"{method} evidence has no option {part!r}; its options are {known}"
            )
        try:
            values.setdefault(option, []).append(readers[option](value))
        except ValueError:
            raise EvidenceError(f"{part!r} gives no number; write {option}=8") from None
    return values
