"""Shapes of JSON values: which keys an object has, and of which type each value is.

A seal says that a file was not changed by accident. Whether it holds what its reader expects is
checked here, once, when the file is opened, so that no reader meets a text where it adds numbers.

A shape is one of

    int, float, str, bool   a value of that type; a float may be whole, and no number a bool
    object                  any value
    None                    null
    (shape, ...)            one of these
    [shape]                 a list of such values
    {str: shape}            an object with any keys and such values
    {"key": shape, ...}     an object with at least these keys; a key that ends in ? may be missing
"""

from typing import Any

from train.errors import DamagedError


__all__ = ["check_shape"]

Shape = Any  # a recursive type, which beartype does not check
LARGEST = 2**63
NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def check_shape(content: object, shape: Shape, path: object, remedy: str = "") -> None:
    """Raise unless a JSON value has a shape.

    Raises:
        DamagedError: A key is missing, or a value has another type. The message begins with `path`,
            names the key and ends with `remedy`.

    Examples:
        >>> storage.check_shape({"counts": {"tokens": 3}}, {"counts": {str: int}}, "a.json")
        >>> storage.check_shape({"counts": 3}, {"counts": {str: int}}, "a.json")
        Traceback (most recent call last):
        ...
        train.errors.DamagedError: a.json: counts is 3, and an object is expected
    """
    if problem := _problem(content, shape, ""):
        raise DamagedError(f"{path}: {problem}{remedy and f'; {remedy}'}")


def _problem(value: Any, shape: Shape, name: str) -> str:
    """Return what is wrong with a value, or ""."""
    if isinstance(shape, tuple):
        problems = [_problem(value, one, name) for one in shape]
        return "" if "" in problems else next(filter(None, problems))
    if isinstance(shape, dict):
        return _of_object(value, shape, name)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _other(name, value, "a list")
        found = (
            _problem(one, shape[0], f"{name}[{at}]")
            for at, one in enumerate(value)
            if not _is_plainly(one, shape[0])
        )
        return next(filter(None, found), "")
    if shape is None:
        return "" if value is None else _other(name, value, "null")
    if shape is float and type(value) is int:
        shape = int
    if shape is object or _is_plainly(value, shape):
        return ""
    return _other(name, value, NAMES[shape])


def _of_object(value: Any, shape: dict[Any, Shape], name: str) -> str:
    if not isinstance(value, dict):
        return _other(name, value, "an object")
    if str in shape:
        found = (_problem(one, shape[str], _joined(name, key)) for key, one in value.items())
        return next(filter(None, found), "")
    for key, expected in shape.items():
        bare = key.removesuffix("?")
        if bare not in value:
            if bare == key:
                return f"{_joined(name, key)} is missing"
        elif not _is_plainly(value[bare], expected) and (
            problem := _problem(value[bare], expected, _joined(name, bare))
        ):
            return problem
    return ""


def _is_plainly(value: Any, shape: Shape) -> bool:
    """Return whether a value is of one of the four types; asked first, without making a name."""
    return type(value) is shape and (shape is not int or -LARGEST <= value < LARGEST)


def _joined(name: str, key: str) -> str:
    key = key if key.isidentifier() else f"{key!r:.60}"
    return f"{name}.{key}" if name else key


def _other(name: str, value: object, expected: str) -> str:
    shown = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return f"{name or 'the content'} is {shown}, and {expected} is expected"
