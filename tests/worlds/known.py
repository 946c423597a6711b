"""Values that a result may lack, in tests that know that it has them."""

from typing import TypeVar


Value = TypeVar("Value")


def known(value: Value | None) -> Value:
    """Return the value; fails if it is None."""
    assert value is not None
    return value
