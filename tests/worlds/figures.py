"""What a figure draws, in tests; plotly does not declare the type of its traces."""

from typing import Any

from interp.plots import Figure


def traces(figure: Figure) -> list[Any]:
    """Return the traces, each with the attributes of its kind."""
    return list(figure.select_traces())
