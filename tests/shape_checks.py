"""The types and shapes of every signature, checked when a function is called, at half the price.

`--jaxtyping-packages` (pyproject.toml) puts `@jaxtyping.jaxtyped` on every function and class of
the packages. That decorator checks the arguments twice and binds them with `inspect` each time,
which took half of the time of all tests. `jaxtyped` below takes its place, and checks the same with
the same checker: beartype, around the function itself, and one set of axis sizes per call. A
function without an array in its signature needs no sizes, so it is left to beartype alone.
"""

import contextlib
import dataclasses
import functools
import inspect
import io
import types
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation


__all__ = ["install", "jaxtyped"]

of_jaxtyping = jaxtyping.jaxtyped
SIZES = of_jaxtyping("context")  # a new set of axis sizes; has no state, so that one is enough


def install() -> None:
    """Let jaxtyping's import hook use `jaxtyped` in packages that are imported from now on."""
    jaxtyping.jaxtyped = jaxtyped


def jaxtyped(fn: Any = None, *, typechecker: Any = None) -> Any:
    """Check a function, or the `__init__` of a dataclass, as `jaxtyping.jaxtyped` does."""
    if fn is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if inspect.isclass(fn):
        init = vars(fn).get("__init__")
        if dataclasses.is_dataclass(fn) and init and not hasattr(init, "__wrapped__"):
            fn.__init__ = _checked(init)
        return fn
    # The body of a generator runs when the call, and with it a set of sizes, has ended.
    if not inspect.isfunction(fn) or inspect.isgeneratorfunction(fn):
        return of_jaxtyping(fn, typechecker=typechecker)
    return _checked(fn)


def _checked(fn: Callable) -> Callable:
    written = fn.__annotations__
    fn.__annotations__ = {name: _looked_up(hint, fn) for name, hint in written.items()}
    holds_arrays = any(map(_may_hold_arrays, fn.__annotations__.values()))
    typed = beartype(fn)
    fn.__annotations__ = typed.__annotations__ = written
    if not holds_arrays:
        return typed

    @functools.wraps(fn)
    def with_sizes(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        with SIZES:
            try:
                return typed(*args, **kwargs)
            except BeartypeCallHintViolation as error:
                _note_sizes(error)
                raise

    return with_sizes


def _looked_up(hint: Any, fn: Callable) -> Any:
    """Return a type whose names, written as strings, are looked up; any type, if one is not there.

    Such a name is imported for type checkers only, or is the class whose body is being read.
    """
    holder = types.SimpleNamespace(__annotations__={"hint": hint})
    try:
        return typing.get_type_hints(holder, fn.__globals__, include_extras=True)["hint"]
    except (NameError, AttributeError):
        return Any


def _may_hold_arrays(hint: Any) -> bool:
    if isinstance(hint, typing.TypeVar):
        return True
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_may_hold_arrays, typing.get_args(hint)))


def _note_sizes(error: Exception) -> None:
    """Add the sizes of all axes that are known to an error, once."""
    if getattr(error, "__notes__", None):
        return
    sizes = io.StringIO()
    with contextlib.redirect_stdout(sizes):
        jaxtyping.print_bindings()
    error.add_note(sizes.getvalue().strip() or "no size of an axis is known yet")
