"""One-line representation of dataclasses, as a notebook shows them.

A class takes it with `__repr__ = short_repr` in its body.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any


__all__ = ["LONGEST", "short_repr"]

LONGEST = 300  # characters of a representation
LONGEST_VALUE = 48  # characters of the value of one field
MOST_ITEMS = 4  # items of a collection that are written out, if they are numbers or short names
Scalar = str | int | float | bool | Enum | Path | None


def short_repr(self: Any) -> str:
    """Return a dataclass as one line of at most `LONGEST` characters.

    The line holds what the class's own `__str__` says or, without one, the fields that differ from
    their defaults: numbers and names as they are, arrays by type and shape, collections by size.
    """
    if type(self).__str__ is not object.__str__:
        content = " ".join(str(self).split())
    else:
        content = ", ".join(
            f"{one.name}={_short(getattr(self, one.name))}"
            for one in fields(self)
            if one.repr and not _is_default(one, getattr(self, one.name))
        )
    name = type(self).__qualname__
    return f"{name}({_clipped(content, LONGEST - len(name) - 2)})"


def _short(value: object) -> str:
    """Return a value of a field as at most some `LONGEST_VALUE` characters."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _array(value)
    if isinstance(value, Scalar):
        return _scalar(value)
    if isinstance(value, Callable) or is_dataclass(value) or not isinstance(value, Collection):
        kind = getattr(value, "__qualname__", type(value).__qualname__)
        own = is_dataclass(value) and type(value).__str__ is not object.__str__
        return _clipped(str(value), LONGEST_VALUE) if own else f"<{kind}>"
    return _collection(value)


def _array(value: Any) -> str:
    """Return type and shape of an array or tensor; the number itself if it holds only one."""
    if value.shape == ():
        return _scalar(value.item())
    return f"<{str(value.dtype).removeprefix('torch.')}{list(value.shape)}>"


def _scalar(value: Scalar) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Path):
        text = str(value)
        return repr(text if len(text) <= LONGEST_VALUE else "…" + text[1 - LONGEST_VALUE :])
    return repr(_clipped(value, LONGEST_VALUE)) if isinstance(value, str) else repr(value)


def _collection(value: Collection[Any]) -> str:
    """Return the items of a small collection, or the size and the type of the first item."""
    if not value:
        return repr(value)
    if isinstance(value, Mapping):
        return f"<{len(value)} keys>"
    items = list(islice(value, MOST_ITEMS))
    if len(value) <= MOST_ITEMS and all(isinstance(one, Scalar) for one in items):
        text = ", ".join(map(_scalar, items))
        if len(text) <= LONGEST_VALUE:
            return f"({text})"
    return f"<{len(value)} {type(items[0]).__qualname__}>"


def _is_default(field: Field[Any], value: object) -> bool:
    if field.default_factory is not MISSING:
        return isinstance(value, Collection) and not value
    return value is field.default or (isinstance(value, Scalar | tuple) and value == field.default)


def _clipped(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
