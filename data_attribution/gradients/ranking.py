"""Gradient evidence: documents whose loss pulls where a question scores higher.

Two stages. Lexical evidence and BM25 name at most `CANDIDATES` documents, for gradients of millions
are dear; the gradient of each is then compared with the question's, through the components asked
for. What is said holds at the checkpoints used, the last one by default: knowing the order of
training does not make first-order scores better (the exact way to use it is to replay).
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, Int64

from data_attribution import bm25
from data_attribution.errors import EvidenceError
from data_attribution.gradients import collecting, preconditioning, scoring, selecting
from data_attribution.gradients.projecting import RANK
from data_attribution.gradients.selecting import Selection
from data_attribution.rankings import Ranking, ranked
from train.errors import nearest
from train.model import GPT
from train.token_store import TokenStore


if TYPE_CHECKING:
    from data_attribution.attributing import Request

__all__ = ["CANDIDATES", "KIND", "KINDS", "rank"]

CANDIDATES, SAMPLE = 10_000, 2_000
KINDS = ("cosine", "dot", "adam", "curvature")
KIND = "adam"
LOG_ODDS: float | None = None


def rank(
    request: "Request",
    *,
    kind: str = KIND,
    steps: tuple[int, ...] | None = None,
    projection: int = RANK,
    log_odds: float | None = LOG_ODDS,
) -> Ranking:
    """Documents by how far their gradient speaks for a question, through chosen components.

    Costs a forward pass and a backward pass over the candidates, a checkpoint.

    Args:
        request: `within` are the components that count; `candidates` the documents to score; `seed`
            that of the projections.
        kind: `dot` and `cosine` of gradients as they are; `adam`: cosine as the optimizer steps;
            `curvature`: cosine in the metric of the inverse Gauss-Newton matrix.
        steps: Checkpoints whose scores are added (TracIn); None: the last.
        projection: Rank of the projections of each weight.
        log_odds: Follow the log-odds of a document's targets, each divided by 1 - p or by this
            where that is less; None: its loss, of which nothing is left where it was learned.

    Raises:
        EvidenceError: No such kind; a component without weights, or one that the question does not
            depend on; a run of which only weights are known.
    """
    if kind not in KINDS:
        raise EvidenceError(f"gradients are not compared by {kind!r}{nearest(kind, KINDS)}")
    run = request.run
    chosen = _candidates(request)
    found = np.zeros((len(chosen), len(request.question.tokens)))
    for step in steps or (None,):
        model = run.load(step)
        selection = selecting.select(model.cfg, request.within)
        found += _at(request, model, selection, chosen, kind, step, projection, log_odds)
    found /= len(steps or (None,))
    average = scoring.averaged(found, request.question.tokens)
    return ranked(
        chosen,
        found.mean(axis=1),
        low=None if average.low is None else average.low.double().numpy(),
        high=None if average.high is None else average.high.double().numpy(),
        formula=f"{kind} of projected gradients",
        details={
            "kind": kind,
            "rank": projection,
            "log_odds": log_odds,
            "steps": list(steps or run.steps[-1:]),
            "sites": [site.name for site in selection.sites],
            "scored": len(chosen),
            "prompts": average.n,
        },
    )


def _candidates(request: "Request") -> Int64[np.ndarray, " document"]:
    if request.candidates is not None:
        return np.unique(np.asarray(request.candidates, np.int64))
    trained = _trained(request.index.store)
    if len(trained) <= CANDIDATES:
        return trained
    return bm25.candidates(request, limit=CANDIDATES)


def _trained(store: TokenStore) -> Int64[np.ndarray, " document"]:
    """Documents of the train region."""
    return np.arange(int(np.searchsorted(store.starts, store.train_tokens)))


def _at(
    request: "Request",
    model: GPT,
    selection: Selection,
    documents: Int64[np.ndarray, " document"],
    kind: str,
    step: int | None,
    projection: int,
    log_odds: float | None,
) -> Float64[np.ndarray, "document prompt"]:
    """Scores at one checkpoint."""
    how = {
        "rank": projection,
        "seed": request.seed,
        "sides": preconditioning.adam(request.run, selection, step=step)
        if kind == "adam"
        else None,
        "progress": request.progress,
    }
    asked = collecting.of_question(model, request.question, selection, **how)
    store = request.index.store
    how["log_odds"] = log_odds
    given = collecting.of_documents(model, store, documents, selection, **how)
    if kind == "curvature":
        sample = _sample(store, request.seed)
        metric = preconditioning.curvature(
            collecting.of_documents(model, store, sample, selection, **how)
        )
        asked, given = metric.applied(asked), metric.applied(given)
    return scoring.products(asked, given, unit=kind != "dot")


def _sample(store: TokenStore, seed: int) -> Int64[np.ndarray, " document"]:
    """Documents that stand for all."""
    trained = _trained(store)
    draw = np.random.default_rng(seed)
    return np.sort(draw.choice(trained, min(SAMPLE, len(trained)), replace=False))
