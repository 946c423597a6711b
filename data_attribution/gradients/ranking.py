"""Gradient evidence: documents whose loss pulls where a question scores higher.

Two stages. Lexical evidence and BM25 name at most `CANDIDATES` documents, for gradients of millions
are dear; the gradient of each is then compared with the question's, through the components asked
for. Where the gradients of the whole corpus are kept beside the run, they are compared instead.

A question that comes without words names none: of a larger corpus `CANDIDATES` documents are drawn
at random then, by the request's seed, and the ranking says so.

What is said holds at the checkpoints used, the last one by default: knowing the order of training
does not make first-order scores better (the way to use it is to replay).
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64

from data_attribution import bm25
from data_attribution.gradients import comparing, selecting, storing
from data_attribution.gradients.comparing import How
from data_attribution.rankings import Ranking


if TYPE_CHECKING:
    from data_attribution.attributing import Request

__all__ = ["CANDIDATES", "rank"]

CANDIDATES = 10_000


def rank(request: "Request", *, how: How | None = None) -> Ranking:
    """Documents by how far their gradient speaks for a question, through chosen components.

    Costs a forward pass and a backward pass over the candidates, a checkpoint.

    Args:
        request: `within` are the components that count; `candidates` the documents to score;
            without them a corpus of at most `CANDIDATES` documents is scored whole.
        how: What is compared, in place of the request's; its seed gives way to the request's.

    Raises:
        EvidenceError: A component without weights, or none that the question depends on.
    """
    run = request.run
    how = replace(how or request.how, seed=request.seed)
    selection = selecting.select(run.config, request.within)
    step = how.steps[0] if how.steps else None
    kept = comparing.stored(run, selection, how, step) if len(how.steps) < 2 else None
    chosen = None if kept is not None and request.candidates is None else _candidates(request)
    collected = comparing.collect(
        run, chosen, within=request.within, how=how, keep=False, progress=request.progress
    )
    found = collected.ranking(request.question, request.progress)
    if chosen is None or not _wordless(request):
        return found
    return replace(found, details={**found.details, "drawn of": len(storing.trained(run))})


def _wordless(request: "Request") -> bool:
    """Whether nothing says which documents of a large corpus to look at."""
    n_trained = len(storing.trained(request.run))
    return request.target is None and request.candidates is None and n_trained > CANDIDATES


def _candidates(request: "Request") -> Int64[np.ndarray, " document"]:
    if request.candidates is not None:
        return np.asarray(request.candidates, np.int64)
    trained = storing.trained(request.run)
    if len(trained) <= CANDIDATES:
        return trained
    if _wordless(request):
        draw = np.random.default_rng(request.seed)
        return np.sort(draw.choice(trained, CANDIDATES, replace=False))
    return bm25.candidates(request, limit=CANDIDATES)
