"""What the descriptions of other models say that a factor is worth, as they say it.

None of these numbers was measured here. Their models, data and sizes are other ones, mostly with
one seed, so they stand beside a measurement and are not compared with it by a number.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from train.ladder.factors import Factor


__all__ = ["published_claims"]

RETRO = "retro LLM"
SLOWRUN = "NanoGPT Slowrun, 1-h track"


class Published(NamedTuple):
    """A published change, and between which values of a field; None: from any value."""

    field: str
    before: Any
    after: Any
    change: str
    source: str


# retro LLM: WikiText-103, 1.2 billion parameters, 50 billion tokens; neither code nor weights were
# found. NanoGPT Slowrun: qlabs-eng/slowrun, validation loss after 100 million tokens of FineWeb.
PUBLISHED = (
    Published("position", "sinusoidal", "rope", "-0.8 perplexity", RETRO),
    Published("mlp", "relu", "swiglu", "-1.2 perplexity, +15 % latency", RETRO),
    Published("mlp", None, "swiglu", "-0.014 nats", SLOWRUN),
    Published("value_residual", False, True, "-0.027 nats", SLOWRUN),
    Published("unet", False, True, "-0.021 nats", SLOWRUN),
    Published("head_gate", False, True, "-0.019 nats", SLOWRUN),
    Published("loop_passes", 1, 3, "-0.010 and -0.007 nats", SLOWRUN),
    Published("exclusive", "none", "learned", "-0.002 nats", SLOWRUN),
)


def published_claims(factors: Iterable[Factor]) -> str:
    """Return what is published of changing these factors, with its sources; "" if nothing is.

    Examples:
        >>> from train.model import preset
        >>> between = ladder.factors_between(preset("retro-nano"), preset("modern-nano"))
        >>> ladder.published_claims(between[:1])
        '-0.8 perplexity (retro LLM)'
    """
    claims = [
        f"{one.change} ({one.source})"
        for factor in factors
        for one in PUBLISHED
        if one.field in factor.before
        and one.before in (None, factor.before[one.field])
        and one.after == factor.after[one.field] != factor.before[one.field]
    ]
    return "; ".join(claims)
