"""Tracing of text: when a run read it, and where a generated text occurs in the corpus."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from data_attribution.tracing.exposure import (
        Exposure,
        exposure_of_documents,
        exposure_of_text,
    )
    from data_attribution.tracing.generated_text import Generation, Holder, TracedSpan, trace_text
    from data_attribution.tracing.verbatim_chance import SpansByChance, spans_by_chance

__all__ = [
    "Exposure",
    "Generation",
    "Holder",
    "SpansByChance",
    "TracedSpan",
    "exposure_of_documents",
    "exposure_of_text",
    "spans_by_chance",
    "trace_text",
]

__getattr__ = names_on_first_use(__name__, __file__)
