"""The main functions of attribution: rank the documents that a run read, for one target or many.

`documents(run, target)` ranks them for one target, fuses the methods and returns sources.
`rank_many(run, targets)` returns the rankings themselves, and does once what the targets have in
common: the gradient of a document is collected once (unless the targets are so many that their
gradients are compared in blocks, `gradients.rank_by_gradients`), and one replay answers all
queries.

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

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from data_attribution import queries, token_index
from data_attribution.attribution import fusion, passages
from data_attribution.attribution.method_names import FUSED
from data_attribution.attribution.methods import (
    DEFAULT,
    Gradient,
    Method,
    default_methods,
    parse,
    spelled,
    unspelled,
)
from data_attribution.attribution.passages import Cited
from data_attribution.attribution.sources import GRADES, Sources
from data_attribution.errors import EvidenceError
from data_attribution.queries import Query
from data_attribution.ranking import Ranking
from data_attribution.request import Candidates, Request
from data_attribution.token_index import TokenIndex
from interp.behaviours import Behaviour
from interp.metrics import MetricLike
from train import storage
from train.data import near_duplicates
from train.progress import Progress
from train.runs import ReadableRun, Run


__all__ = [
    "choose_methods",
    "documents",
    "make_request",
    "rank_many",
]

HEAD = 20  # near-duplicates are searched among the first 20 documents per requested source


# Inside a caller's inference mode the queries and the weights that are loaded here would have no
# gradients.
@torch.inference_mode(False)
def documents(
    run: Run | ReadableRun,
    target: str | Behaviour | None = None,
    *,
    query: Query | None = None,
    metric: MetricLike = None,
    methods: str | Sequence[Method] | None = None,
    limit: int = 50,
    candidates: Candidates = None,
    fold: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sources:
    """Rank the documents that `run` read by the evidence that they taught `target`.

    Args:
        target: A text, or a behaviour.
        query: Query that gradients follow instead of the target, as `component_queries` makes it.
            Words are still those of the target; without a target, the default and `fused` leave the
            word-based methods out and say so.
        metric: Metric of the behaviour, as an object, a name or a function of the behaviour; None
            for its logit difference.
        methods: `[Lexical(), Gradient(within=["L0.mlp"])]`, or a name such as "replay",
            "lexical+gradient" or "gradient:kind=cosine" (see `parse`); several methods are fused.
            None: `default_methods`, which are "fused" if the run's last checkpoint has its
            optimizer.
        limit: Largest number of sources returned.
        candidates: Documents to rank; default: any.
        fold: Fold duplicates and near-duplicates into the source with the best rank.

    Raises:
        EvidenceError: There is no such method, it cannot answer the query, or it finds no evidence.
        BehaviourError: There is no metric of that name.
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
    used = choose_methods(methods, run, words=target is not None)
    names = [method.name for method in used]
    _refuse_idle(used, query, metric)
    request = make_request(
        run,
        target,
        query=query,
        metric=metric,
        candidates=candidates,
        seed=seed,
        progress=progress,
    )
    (evidence,) = _rankings([request], used)
    ranking = fusion.fuse(evidence)
    _refuse_nothing(request, "+".join(names), ranking)
    head = ranking.documents[: limit * HEAD].tolist()
    cited = passages.sources(
        run,
        request.index,
        ranking,
        limit=limit,
        grades=_grades(evidence, used),
        evidence=evidence,
        fold=fold,
        near=near_duplicates(run.store, head, among=head),
    )
    named = methods is None or isinstance(methods, str)
    all_methods = choose_methods(methods, run) if named else used
    left_out = [method.name for method in all_methods if method.name not in names]
    about = _provenance(request, used, ranking, evidence, cited) | {"left out": left_out}
    about["asked"] = {
        "methods": spelled(used),
        "unspelled": unspelled(used),
        "limit": limit,
        "seed": seed,
        "fold": fold,
        "candidates": _identified(request.candidates),
    }
    if isinstance(target, Behaviour):
        about["asked"]["behaviour"] = target.sha256
    elif target is not None:
        about["asked"]["text"] = target
    if query is not None:
        about["asked"]["query"] = query.name
    if methods is None and (reason := default_methods(run, words=target is not None)[1]):
        about["instead of fused"] = reason
    follows = any(method.needs_weights for method in used)
    if isinstance(target, Behaviour) and follows and query is None:
        about["metric"] = request.query.metric.name
    return Sources(request.name, _label(methods, names), cited.items, about)


@torch.inference_mode(False)
def rank_many(
    run: Run | ReadableRun,
    targets: Sequence[str | Behaviour | Query],
    *,
    methods: str | Sequence[Method] | None = None,
    candidates: Candidates = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[dict[str, Ranking]]:
    """Rank the documents for every target by every method; `fuse` joins the rankings of a target.

    Each ranking is the one that `documents` uses for that target alone. Documents that the run
    never read are not left out yet, and copies are not folded.

    Args:
        targets: Texts, behaviours, or queries. A query has no words: if there is one, the default
            and `fused` leave the word-based methods out for all targets.
        methods: Methods, as in `documents`.
        candidates: Documents to rank, the same for every target; default: any.
        seed: Random seed.

    Returns:
        For each target the ranking of each method, by the name of the method.

    Raises:
        EvidenceError: There is no target or no such method, or a method cannot answer a target.
        QueryError: A target holds no token to search for, or too many.
        IndexMissing: The run's token store has no index.

    Examples:
        >>> by_target = attribution.rank_many(run, [fact, "the capital of"], methods="lexical+bm25")
        >>> [sorted(rankings) for rankings in by_target]
        [['bm25', 'lexical'], ['bm25', 'lexical']]
    """
    targets = [targets] if isinstance(targets, str) else targets
    if not targets:
        raise EvidenceError("no targets were given to rank documents for; give one or more")
    words = not any(isinstance(target, Query) for target in targets)
    used = choose_methods(methods, run, words=words)
    index = token_index.open(run.store)
    requests = [
        make_request(
            run,
            None if isinstance(target, Query) else target,
            query=target if isinstance(target, Query) else None,
            candidates=candidates,
            index=index,
            seed=seed,
            progress=progress,
        )
        for target in targets
    ]
    return _rankings(requests, used)


def _rankings(requests: Sequence[Request], methods: Sequence[Method]) -> list[dict[str, Ranking]]:
    """Return for each request the methods' rankings, restricted to its candidates if it has any."""
    by_method = {method.name: method.rank_documents(requests) for method in methods}
    return [
        {
            name: rankings[place]
            if request.candidates is None
            else rankings[place].among(request.candidates)
            for name, rankings in by_method.items()
        }
        for place, request in enumerate(requests)
    ]


def _label(methods: str | Sequence[Method] | None, names: Sequence[str]) -> str:
    """Return the requested name of the evidence if all its methods answered, else their names.

    A name with options is replaced by those of the methods.
    """
    plain = methods if isinstance(methods, str) and ":" not in methods else None
    if plain and [method.name for method in parse(plain)] == [*names]:
        return plain
    return FUSED if tuple(names) == DEFAULT else "+".join(names)


def choose_methods(
    methods: str | Sequence[Method] | None, run: Run | ReadableRun, *, words: bool = True
) -> tuple[Method, ...]:
    """Return the methods to use: the given ones, those of a name, or None: `default_methods`.

    Args:
        words: True if the target has words.

    Raises:
        EvidenceError: There is no such method, two have the same name, or one cannot answer a query
            without words.

    Examples:
        >>> attribution.choose_methods("lexical", run)
        (Lexical(),)
    """
    if methods is None:
        used, _ = default_methods(run, words=words)
    elif isinstance(methods, str):
        used = parse(methods, words=words, weights=isinstance(run, Run))
    else:
        used = tuple(methods)
    names = [method.name for method in used]
    if len(set(names)) < len(names) or not names:
        raise EvidenceError(f"methods {names}: give at least one, and none of a kind twice")
    for method in used:
        if not (words or method.needs_weights):
            raise EvidenceError(
                f"a question has no words that {method.name} evidence could look for; give a text "
                "or a behaviour beside it, or take the method gradient or replay"
            )
    return used


def make_request(
    run: Run | ReadableRun,
    target: str | Behaviour | None = None,
    *,
    query: Query | None = None,
    metric: MetricLike = None,
    candidates: Candidates = None,
    index: TokenIndex | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Request:
    """Return the request for a target, for a target and a query, or for a query alone.

    Args:
        index: Token index of the run's store, if it is already open.

    Raises:
        EvidenceError: There is neither a target nor a query, or a metric is given for something
            that already is a number.
        BehaviourError: There is no metric of that name.
        QueryError: The target holds no token to search for, or too many.
        IndexMissing: The run's token store has no index.

    Examples:
        >>> request = attribution.make_request(run, fact, seed=5)
        >>> request.name, request.seed
        ('fact:runethi', 5)
    """
    query = queries.query_for(
        target, query, metric, tokenizer=run.store.tokenizer, n_ctx=run.order.context
    )
    index = index or token_index.open(run.store)
    return Request(run, index, target, query, candidates=candidates, seed=seed, progress=progress)


def _refuse_idle(methods: Sequence[Method], query: Query | None, metric: MetricLike) -> None:
    """Raise EvidenceError for a query or metric that none of the methods would look at."""
    for value, name in ((query, "a question"), (metric, "a metric")):
        if value is not None and not any(method.needs_weights for method in methods):
            names = "+".join(method.name for method in methods)
            raise EvidenceError(
                f"{name} was given, and {names} evidence does not look at that; take the method "
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
    evidence: Mapping[str, Ranking],
    cited: Cited,
) -> storage.JsonObject:
    """Return the provenance: run, store, index, formula, and the details of each method."""
    run = request.run
    within = next((method.components for method in methods if isinstance(method, Gradient)), None)
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
        **{name: part.details for name, part in evidence.items() if part.details},
    }


def _identified(candidates: Candidates) -> storage.JsonObject | None:
    """Return the number of the candidates and a digest of them in order; None if there are none."""
    if candidates is None:
        return None
    numbers = np.unique(candidates).astype("<i8")
    return {"n": len(numbers), "sha256": hashlib.sha256(numbers.tobytes()).hexdigest()}


def _grades(evidence: Mapping[str, Ranking], methods: Sequence[Method]) -> dict[int, str]:
    """Return for each document the strongest grade among the methods that speak for it."""
    grades: dict[int, str] = {}
    for method in sorted(methods, key=lambda method: GRADES.index(method.grade)):
        documents = fusion.speaking(evidence[method.name]).tolist()
        grades.update(dict.fromkeys(documents, method.grade))
    return grades
