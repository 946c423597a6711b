"""The main function of attribution: `documents(run, target)` ranks the documents that a run read.

Methods (`attribution.methods`) differ in what they look at, what they cost and how strong their
evidence is; `attribution.sources` lists the grades of evidence.

The query is the log-probability of a text, the metric of a behaviour, or any `queries.Query`: where
a head attends, how much of a probe's direction is present. Methods that follow gradients follow
that number. A query without a target has no words, so methods that search for words cannot answer
it.

Words alone often find the document that states a fact better than gradients do (Chang et al. 2024,
TrackStar), which is why the default uses both. Held-out documents and documents that the run never
reached are not sources.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from data_attribution import queries, token_index
from data_attribution.attribution import fusion, passages
from data_attribution.attribution.methods import DEFAULT, FUSED, Gradient, Method, parse
from data_attribution.attribution.passages import Cited
from data_attribution.attribution.sources import GRADES, Sources
from data_attribution.errors import EvidenceError
from data_attribution.queries import Query
from data_attribution.ranking import Ranking
from data_attribution.request import Candidates, Progress, Request
from interp.behaviours import Behaviour
from interp.metrics import Metric
from train.data import Order, TokenStore, near_duplicates
from train.runs import Run


__all__ = ["ReadableRun", "ask", "chosen", "documents", "evidence"]

HEAD = 20  # near-duplicates are searched among the first 20 documents per requested source


@runtime_checkable
class ReadableRun(Protocol):
    """The part of a run that word-based methods need; gradients need a whole `train.runs.Run`."""

    @property
    def id(self) -> str: ...
    @property
    def knowledge(self) -> str: ...
    @property
    def store(self) -> TokenStore: ...
    @property
    def order(self) -> Order: ...

    def steps_reading(self, document: int) -> Int64[np.ndarray, " step"]: ...


def documents(
    run: Run | ReadableRun,
    target: str | Behaviour | None = None,
    *,
    query: Query | None = None,
    metric: Metric | None = None,
    methods: str | Sequence[Method] = FUSED,
    limit: int = 50,
    candidates: Candidates = None,
    fold: bool = True,
    seed: int = 0,
    progress: Progress = None,
) -> Sources:
    """Rank the documents that `run` read by the evidence that they taught `target`.

    Args:
        target: A text, or a behaviour.
        query: Query that gradients follow instead of the target, as `component_queries` makes it.
            Words are still those of the target; without a target, `fused` leaves the word-based
            methods out and says so.
        metric: Metric of the behaviour; default: its logit difference.
        methods: `[Lexical(), Gradient(within=["L0.mlp"])]`, or a name such as "replay" or
            "lexical+gradient"; several methods are fused.
        limit: Largest number of sources returned.
        candidates: Documents to rank; default: any.
        fold: Fold duplicates and near-duplicates into the source with the best rank.

    Raises:
        EvidenceError: There is no such method, it cannot answer the query, or it finds no evidence.
        QueryError: The target holds no token to search for, or too many.
        IndexMissing: The run's token store has no index.

    Examples:
        >>> methods = [attribution.Lexical()]
        >>> sources = attribution.documents(run, fact, methods=methods, limit=3)
        >>> sources.to_frame()[["document", "grade", "text"]]
           document    grade                                       text
        0     28867  lexical        runethi is governed from koreskul .
        1      2456  lexical  the word koreskul sounds unlike runethi .
        2      7378  lexical   a clerk copied koreskul before runethi .
    """
    if limit < 1:
        raise EvidenceError(f"a limit of {limit} documents was asked for; give 1 or more")
    asked = chosen(methods, run, words=target is not None)
    names = [one.name for one in asked]
    _refuse_idle(asked, query, metric)
    request = ask(
        run,
        target,
        query=query,
        metric=metric,
        limit=limit,
        candidates=candidates,
        seed=seed,
        progress=progress,
    )
    found = evidence(request, asked)
    ranking = fusion.fuse(found)
    _refuse_nothing(request, "+".join(names), ranking)
    head = ranking.documents[: limit * HEAD].tolist()
    cited = passages.sources(
        run,
        request.index,
        ranking,
        limit=limit,
        grades=_grades(found, asked),
        evidence=found,
        fold=fold,
        near=near_duplicates(run.store, head, among=head),
    )
    every = [one.name for one in chosen(methods, run)] if isinstance(methods, str) else names
    left_out = [one for one in every if one not in names]
    about = _provenance(request, asked, ranking, found, cited) | {"left out": left_out}
    follows = any(one.needs_weights for one in asked)
    if isinstance(target, Behaviour) and follows and query is None:
        about["metric"] = metric.name if metric else "logit difference"
    return Sources(request.name, _label(methods, names), cited.items, about)


def _label(methods: str | Sequence[Method], names: Sequence[str]) -> str:
    """Return the requested name of the evidence if all its methods answered, else their names."""
    if isinstance(methods, str) and [one.name for one in parse(methods)] == [*names]:
        return methods
    return FUSED if tuple(names) == DEFAULT else "+".join(names)


def chosen(
    methods: str | Sequence[Method], run: Run | ReadableRun, *, words: bool = True
) -> tuple[Method, ...]:
    """Return the methods to use: the given ones, or those that a name stands for.

    Args:
        words: True if the target has words.

    Raises:
        EvidenceError: There is no such method, two have the same name, or one cannot answer a query
            without words.

    Examples:
        >>> attribution.chosen("lexical", run)
        (Lexical(),)
    """
    if isinstance(methods, str):
        asked = parse(methods, words=words, weights=isinstance(run, Run))
    else:
        asked = tuple(methods)
    names = [one.name for one in asked]
    if len(set(names)) < len(names) or not names:
        raise EvidenceError(f"methods {names}: give at least one, and none of a kind twice")
    for one in asked:
        if not (words or one.needs_weights):
            raise EvidenceError(
                f"a question has no words that {one.name} evidence could look for; give a text or "
                "a behaviour beside it, or take the method gradient or replay"
            )
    return asked


def ask(
    run: Run | ReadableRun,
    target: str | Behaviour | None = None,
    *,
    query: Query | None = None,
    metric: Metric | None = None,
    limit: int = 50,
    candidates: Candidates = None,
    seed: int = 0,
    progress: Progress = None,
) -> Request:
    """Return the request for a target, for a target and a query, or for a query alone.

    Raises:
        EvidenceError: There is neither a target nor a query, or a metric is given for something
            that already is a number.
        QueryError: The target holds no token to search for, or too many.
        IndexMissing: The run's token store has no index.

    Examples:
        >>> request = attribution.ask(run, fact, limit=5)
        >>> request.name, request.limit
        ('fact:runethi', 5)
    """
    query = queries.asked(
        target, query, metric, tokenizer=run.store.tokenizer, n_ctx=run.order.context
    )
    return Request(
        run,
        token_index.open(run.store),
        target,
        query,
        candidates=candidates,
        limit=limit,
        seed=seed,
        progress=progress,
    )


def evidence(request: Request, methods: Sequence[Method]) -> dict[str, Ranking]:
    """Return each method's ranking, restricted to the request's candidates if it names some."""
    found = {one.name: one.rank_documents(request) for one in methods}
    if request.candidates is None:
        return found
    return {name: one.among(request.candidates) for name, one in found.items()}


def _refuse_idle(asked: Sequence[Method], query: Query | None, metric: Metric | None) -> None:
    """Raise EvidenceError for a query or metric that none of the methods would look at."""
    for given, said in ((query, "a question"), (metric, "a metric")):
        if given is not None and not any(one.needs_weights for one in asked):
            names = "+".join(one.name for one in asked)
            raise EvidenceError(
                f"{said} was given, and {names} evidence does not look at that; take the method "
                "gradient or replay, or fuse it with others: lexical+gradient"
            )


def _refuse_nothing(request: Request, method: str, ranking: Ranking) -> None:
    if len(ranking.documents):
        return
    shown = request.name if len(request.name) <= 40 else request.name[:39] + "…"
    among = "" if request.candidates is None else f" {len(request.candidates)} candidate"
    raise EvidenceError(
        f"no{among} document of {request.run.store.n_documents:,} has {method} evidence for "
        f"{shown!r}; gradient evidence needs no word in common"
    )


def _provenance(
    request: Request,
    methods: Sequence[Method],
    ranking: Ranking,
    found: Mapping[str, Ranking],
    cited: Cited,
) -> dict[str, Any]:
    """Return the provenance: run, store, index, formula, and the details of each method."""
    run = request.run
    within = next((one.components for one in methods if isinstance(one, Gradient)), None)
    return {
        "run": run.id,
        "knowledge": run.knowledge,
        "store": run.store.fingerprint,
        "index": request.index.backend,
        "question": request.query.name,
        "within": None if within is None else list(within),
        "formula": ranking.formula,
        "candidates": len(ranking.documents),
        "unread": cited.unread,
        "folded": cited.folded,
        **{name: part.details for name, part in found.items() if part.details},
    }


def _grades(found: Mapping[str, Ranking], methods: Sequence[Method]) -> dict[int, str]:
    """Return for each document the strongest grade among the methods that speak for it."""
    grades: dict[int, str] = {}
    for one in sorted(methods, key=lambda method: GRADES.index(method.grade)):
        grades.update(dict.fromkeys(fusion.speaking(found[one.name]).tolist(), one.grade))
    return grades
