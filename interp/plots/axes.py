"""The axes of a panel: from the values of a figure to pixels, and their ticks."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10
from typing import Any

from interp.plots.marks import short
from interp.plots.trace_values import Scalar
from train.short_repr import short_repr


__all__ = ["Axis", "axis_of"]


@dataclass(frozen=True)
class Axis:
    """Conversion of the values of one axis to pixels.

    Attributes:
        names: Categories in order; () for numbers.
        low: Number at `start`; its logarithm if `log`.
        high: Number at `end`.
        log: True if the axis is logarithmic; numbers of 0 and below are left out.
        start: Pixel of the beginning, at the left or at the bottom.
        end: Pixel of the end.
    """

    names: tuple[str, ...]
    low: float
    high: float
    log: bool
    start: float
    end: float

    __repr__ = short_repr

    @property
    def step(self) -> float:
        """Pixels between neighbouring categories."""
        return abs(self.end - self.start) / max(len(self.names), 1)

    def at(self, value: Scalar) -> float | None:
        """Return the pixel of a value; None where nothing was measured."""
        if self.names:
            share = (
                None if value is None else (self.names.index(str(value)) + 0.5) / len(self.names)
            )
        else:
            number = self.number(value)
            share = None if number is None else (number - self.low) / (self.high - self.low)
        return None if share is None else self.start + share * (self.end - self.start)

    def number(self, value: Scalar) -> float | None:
        """Return the number on the axis; None for no number, and for 0 on a logarithmic axis."""
        if value is None or isinstance(value, str) or not isfinite(value):
            return None
        if self.log:
            return log10(value) if value > 0 else None
        return float(value)

    def ticks(self, room: float) -> list[tuple[float, str]]:
        """Return pixels and labels of the ticks, at least `room` pixels apart."""
        if self.names:
            every = max(1, ceil(room / self.step))
            labels = [(self.at(one), short(one)) for one in self.names[::every]]
        else:
            labels = [(self.at(one), f"{one:g}") for one in self._round_numbers(room)]
        return [(at, label) for at, label in labels if at is not None]

    def _round_numbers(self, room: float) -> list[float]:
        most = max(2.0, abs(self.end - self.start) / room)
        if self.log:
            every = max(1, ceil((self.high - self.low) / most))
            between = (1, 2, 5) if self.high - self.low < 2 else (1,)
            powers = range(floor(self.low), floor(self.high) + 1, every)
            found = [part * 10.0**i for i in powers for part in between]
            return [one for one in found if self.low <= log10(one) <= self.high]
        rough = (self.high - self.low) / min(most, 6.0)
        size = 10.0 ** floor(log10(rough))
        step = next(size * one for one in (1, 2, 2.5, 5, 10) if size * one >= rough * 0.999)
        first, last = ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9)
        return [float(f"{i * step:.6g}") for i in range(first, last + 1)]


def axis_of(
    values: Sequence[Scalar], given: Any, room: tuple[float, float], *, zero: bool, tight: bool
) -> Axis:
    """Return the axis of these values, with plotly's settings for it.

    Args:
        values: All values on the axis.
        given: The axis of plotly's layout.
        room: Pixels at which the axis begins and ends.
        zero: The axis includes 0, where bars begin.
        tight: The axis ends near its values, as the sides of a curve do.
    """
    start, end = room
    if given.type == "category" or any(isinstance(one, str) for one in values):
        names = tuple(dict.fromkeys(str(one) for one in values if one is not None))
        return Axis(names or ("",), 0.0, 1.0, False, start, end)
    log = given.type == "log"
    blank = Axis((), 0.0, 1.0, log, start, end)
    numbers = [n for one in values if (n := blank.number(one)) is not None]
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    if zero and not log:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    pad = 0.02 if tight else 0.06
    below = 0.0 if zero and low == 0 else pad * (high - low)
    above = 0.0 if zero and high == 0 else pad * (high - low)
    low, high = low - below, high + above
    if given.range:
        low, high = map(float, given.range)
    return Axis((), low, high, log, start, end)
