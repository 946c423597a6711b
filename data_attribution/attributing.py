"""Which documents may have taught a text or a behaviour, by every kind of evidence there is.

`documents(run, target)` ranks the documents that a run read. Methods differ in what they look at,
what they cost, and how much they say (`sources` has the grades):

* `lexical`   shared words (`lexical.py`); `bm25` the same as everybody computes it. No model.
* `gradient`  pull of each document's loss on the weights at the last checkpoint, in the components
              of `within` alone where they are named (`gradients/`)
* `replay`    exact influence, by differentiating through the replayed training (`metagradients.py`)
* `fused`     words and gradients in one list (`fusing.py`); or name the parts: "lexical+replay"

That words alone find the document that states a fact better than gradients often do is known (Chang
et al. 2024, TrackStar), and why the default is both. Held-out documents and documents that the run
never reached are no sources.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from data_attribution import citing, duplicates, fusing, indexing, lexical, questions
from data_attribution.errors import EvidenceError, QueryError
from data_attribution.gradients import selecting
from data_attribution.questions import Question
from data_attribution.rankings import Ranking
from data_attribution.sources import GRADES, Sources
from data_attribution.token_index import TokenIndex
from interp.behaviours import Behaviour
from interp.effects import Effects
from interp.metrics import Metric
from train.errors import nearest
from train.orders import Order
from train.runs import Run
from train.token_store import TokenStore


__all__ = ["METHODS", "Method", "Reader", "Request", "ask", "documents", "evidence", "parts"]

BM25 = f"bm25 k1={lexical.K1} b={lexical.B} shared={lexical.SHARED}"
LONGEST = 1_000_000  # tokens of a text
FUSED = "fused"
HEAD = 20  # near copies are looked for among the first 20 documents a row

Progress = Callable[[str, int, int | None], None] | None
Candidates = Int64[np.ndarray, " document"] | None


@runtime_checkable
class Reader(Protocol):
    """What is asked of a run. Methods that follow gradients ask for a whole `train.runs.Run`."""

    @property
    def id(self) -> str: ...
    @property
    def knowledge(self) -> str: ...
    @property
    def store(self) -> TokenStore: ...
    @property
    def order(self) -> Order: ...

    def steps_reading(self, document: int) -> Int64[np.ndarray, " step"]: ...


@dataclass(frozen=True, eq=False)
class Request:
    """One question to a run, as every method of attribution is asked it.

    Attributes:
        run: The run that read the documents; a `train.runs.Run` for methods that need its weights.
        index: The sorted text of its store.
        target: A text, or a behaviour.
        question: The same as a number a prompt, to be measured and differentiated.
        within: Names of the components through which evidence counts; None: all.
        candidates: Documents to score; None: the method decides, and says how many in `details`.
        limit: How many documents are wanted; a method may rank more.
        seed: Of everything drawn: projections, samples.
        progress: Told (what, done, total).
    """

    run: Any
    index: TokenIndex
    target: str | Behaviour
    question: Question
    within: tuple[str, ...] | None = None
    candidates: Candidates = None
    limit: int = 50
    seed: int = 0
    progress: Progress = None


@dataclass(frozen=True)
class Method:
    """One way to rank documents.

    Attributes:
        grade: Of its evidence, as `sources.GRADES`.
        rank: Answers a request. What it needs is imported when it is asked.
        weights: Whether it needs the weights of a run.
    """

    grade: str
    rank: Callable[[Request], Ranking]
    weights: bool = False


def documents(
    run: Run | Reader,
    target: str | Behaviour,
    *,
    within: Effects | Sequence[str] | None = None,
    metric: Metric | None = None,
    method: str = FUSED,
    limit: int = 50,
    candidates: Candidates = None,
    fold: bool = True,
    seed: int = 0,
    progress: Progress = None,
) -> Sources:
    """Rank the documents that `run` read by the evidence that they taught `target`.

    Args:
        target: A text, or a behaviour.
        within: Components through which gradients count, by name, or the effects of a sweep: its
            `selecting.TOP` best ones.
        metric: What is asked of a behaviour; default: its logit difference.
        method: A key of `METHODS`, or several joined by "+", which are fused.
        limit: The most rows returned.
        candidates: Rank these documents only.
        fold: Put copies and near copies into the row of the best of them.

    Raises:
        EvidenceError: There is no such method, it cannot be asked that, or it finds nothing.
        QueryError: The target holds no token to look for, or too many.
        IndexMissing: The run's token store has no index.
    """
    if limit < 1:
        raise EvidenceError(f"a limit of {limit} documents was asked for; give 1 or more")
    asked = parts(method, run, within=within is not None)
    request = ask(
        run,
        target,
        within=within,
        metric=metric,
        limit=limit,
        candidates=candidates,
        seed=seed,
        progress=progress,
    )
    found = evidence(request, asked)
    ranking = fusing.fuse(found)
    _refuse_nothing(request, method, ranking)
    head = ranking.documents[: limit * HEAD].tolist()
    cited = citing.sources(
        run,
        request.index,
        ranking,
        limit=limit,
        grades=_grades(found),
        evidence=found,
        fold=fold,
        near=duplicates.near(run.store, head, among=head),
    )
    provenance = {
        "run": run.id,
        "knowledge": run.knowledge,
        "store": run.store.fingerprint,
        "index": request.index.backend,
        "question": request.question.name,
        "within": list(request.within) if request.within is not None else None,
        "formula": ranking.formula,
        "candidates": len(ranking.documents),
        "unread": cited.unread,
        "folded": cited.folded,
        **{name: part.details for name, part in found.items() if part.details},
    }
    name = target if isinstance(target, str) else target.name
    return Sources(name, method, cited.items, provenance)


def parts(method: str, run: Run | Reader, *, within: bool = False) -> tuple[str, ...]:
    """The methods that a name stands for.

    Raises:
        EvidenceError: There is no such method, or it cannot be asked that.
    """
    names = tuple(dict.fromkeys(one.strip() for one in method.split("+")))
    if names == (FUSED,):
        weighted = isinstance(run, Run)
        names = tuple(one for one in DEFAULT if weighted or not METHODS[one].weights)
    for name in names:
        if name not in METHODS or (name == FUSED):
            raise EvidenceError(f"no evidence is called {name!r}{nearest(name, METHODS)}")
    if within and "gradient" not in names:
        raise EvidenceError(
            f"components were named, and {method} evidence does not look inside the model; "
            "take the method gradient, or fused"
        )
    return names


def ask(
    run: Run | Reader,
    target: str | Behaviour,
    *,
    within: Effects | Sequence[str] | None = None,
    metric: Metric | None = None,
    limit: int = 50,
    candidates: Candidates = None,
    seed: int = 0,
    progress: Progress = None,
) -> Request:
    """The request that stands for a target.

    Raises:
        QueryError: The target holds no token to look for, or too many.
        IndexMissing: The run's token store has no index.
    """
    names = within.top(selecting.TOP) if isinstance(within, Effects) else within
    return Request(
        run,
        indexing.open(run.store),
        target,
        _question(run, target, metric),
        within=None if names is None else tuple(map(str, names)),
        candidates=candidates,
        limit=limit,
        seed=seed,
        progress=progress,
    )


def evidence(request: Request, methods: Sequence[str]) -> dict[str, Ranking]:
    """What each method says, of the request's candidates alone where it names some."""
    found = {name: METHODS[name].rank(request) for name in methods}
    if request.candidates is None:
        return found
    return {name: _only(one, request.candidates) for name, one in found.items()}


def _question(run: Run | Reader, target: str | Behaviour, metric: Metric | None) -> Question:
    if isinstance(target, Behaviour):
        return questions.of_behaviour(target, metric)
    if metric is not None:
        raise EvidenceError(f"a text has no {metric.name}: it is asked for its log-probability")
    if not target.strip():
        raise QueryError("the text is empty; give some words to trace")
    ids = run.store.tokenizer.encode(target).tolist()
    if len(ids) > LONGEST:
        raise QueryError(
            f"the text has {len(ids):,} tokens, and at most {LONGEST:,} are traced at once; "
            "trace its parts"
        )
    return questions.of_text(ids, run.store.tokenizer, n_ctx=run.order.context)


def _only(ranking: Ranking, candidates: Int64[np.ndarray, " document"]) -> Ranking:
    there = np.isin(ranking.documents, candidates)
    return replace(
        ranking,
        documents=ranking.documents[there],
        scores=ranking.scores[there],
        low=None if ranking.low is None else ranking.low[there],
        high=None if ranking.high is None else ranking.high[there],
    )


def _refuse_nothing(request: Request, method: str, ranking: Ranking) -> None:
    if len(ranking.documents):
        return
    target = request.target if isinstance(request.target, str) else request.target.name
    shown = target if len(target) <= 40 else target[:39] + "…"
    among = "" if request.candidates is None else f" {len(request.candidates)} candidate"
    raise EvidenceError(
        f"no{among} document of {request.run.store.n_documents:,} has {method} evidence for "
        f"{shown!r}; gradient evidence needs no word in common"
    )


def _grades(found: dict[str, Ranking]) -> dict[int, str]:
    """The strongest grade of evidence that speaks for each document."""
    grades: dict[int, str] = {}
    for name in sorted(found, key=lambda one: GRADES.index(METHODS[one].grade)):
        grades.update(dict.fromkeys(fusing.speaking(found[name]).tolist(), METHODS[name].grade))
    return grades


def _lexical(request: Request) -> Ranking:
    target, index = request.target, request.index
    if isinstance(target, str):
        return replace(lexical.spans(index, target, request.progress), formula="maximal spans")
    clean, corrupt = np.asarray(target.clean), np.asarray(target.corrupt)
    bags = lexical.bags(clean, corrupt, np.asarray(target.answer), index.store.eot)
    if not bags or not all(bags):
        raise QueryError(f"behaviour {target.name!r} has a prompt without a single token of text")
    return replace(lexical.bm25(index, bags, request.progress), formula=BM25)


def _bm25(request: Request) -> Ranking:
    from data_attribution import bm25

    return bm25.rank(request)


def _gradient(request: Request) -> Ranking:
    from data_attribution.gradients import ranking

    return ranking.rank(request)


def _replay(request: Request) -> Ranking:
    from data_attribution import metagradients

    return metagradients.rank(request)


def _fused(request: Request) -> Ranking:
    asked = parts(FUSED, request.run)
    return fusing.fuse(evidence(request, asked))


METHODS = {
    "lexical": Method("lexical", _lexical),
    "bm25": Method("lexical", _bm25),
    "gradient": Method("gradient", _gradient, weights=True),
    "replay": Method("replay", _replay, weights=True),
    FUSED: Method("gradient", _fused),
}
DEFAULT = ("lexical", "gradient")
