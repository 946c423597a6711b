"""The guard of every share of a clean-corrupt difference: the difference must not be 0.

Effects of patching, faithfulness and their estimates are divided by the difference between the
clean and the corrupt score. If the 95 % interval of that difference holds 0, every share is
compatible with the data: an untrained model then gives shares from +1.4 to -1.0, which mean
nothing.
"""

import numpy as np
from jaxtyping import Float, Int64

from interp.errors import ContrastError
from train.progress import count
from train.statistics import student_interval


__all__ = ["require_contrast"]

SMALLEST = 1e-6  # differences of scores below this one are rounding
# Prompts from which on an interval that holds 0 is refused. With fewer, Student's t is wide
# whatever the model does (12.7 standard errors for two prompts), so effects are returned with the
# reason why they have no interval.
ENOUGH = 10


def require_contrast(
    clean: Float[np.ndarray, " row"],
    corrupt: Float[np.ndarray, " row"],
    prompts: Int64[np.ndarray, " row"],
    *,
    name: str,
    metric: str,
    ends: tuple[str, str] = ("clean", "corrupt prompts"),
) -> tuple[str, ...]:
    """Refuse scores whose clean-corrupt difference may be 0, and note if there are too few prompts.

    Args:
        clean: Score of each clean prompt, in the unit of the metric.
        corrupt: Score of each corrupt prompt.
        prompts: Index of the distinct prompt of each row, counted from 0 without gaps.
        name: Name of the behaviour.
        metric: Name of the metric.
        ends: What the two scores are measured on.

    Returns:
        A note for the result if there are 2 to 9 prompts and the interval holds 0; otherwise
        nothing. One prompt has no interval, and results say so themselves.

    Raises:
        ContrastError: The difference is below 1e-6, or there are 10 prompts or more and its 95 %
            interval (Student's t) holds 0.

    Examples:
        >>> import numpy as np
        >>> clean, corrupt, prompts = np.array([3.0, 4.0, 5.0]), np.zeros(3), np.arange(3)
        >>> named = {"name": "ioi", "metric": "logit difference"}
        >>> patching.require_contrast(clean, corrupt, prompts, **named)
        ()
    """
    scores = (
        f"behaviour {name!r} scores {clean.mean():.3g} on {ends[0]} and {corrupt.mean():.3g} on "
    )
    scores += f"{ends[1]} ({metric}"
    if not abs(clean.mean() - corrupt.mean()) >= SMALLEST:
        raise ContrastError(
            f"{scores}); effects are shares of that difference, so give prompts that the model "
            "tells apart"
        )
    n = int(prompts.max()) + 1
    if n < 2:
        return ()
    # Rows of one prompt are summed, as in the intervals of the effects, which exist if this one
    # excludes 0. Scaled to the mean over rows.
    low, high = student_interval(np.bincount(prompts, clean - corrupt) * (n / len(prompts)))
    if low > 0 or high < 0:
        return ()
    held = (
        f"{scores}, {count(n, 'prompt')}), a difference with the interval [{low:.3g}, {high:.3g}], "
        "which holds 0"
    )
    if n >= ENOUGH:
        raise ContrastError(
            f"{held}; effects are shares of that difference, so give more prompts, or prompts that "
            "the model tells apart"
        )
    return (
        f"{held}; effects are shares of that difference and have no interval: give more prompts",
    )
