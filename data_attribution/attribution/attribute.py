"""Which documents may have taught a text or a behaviour, by every kind of evidence there is.

`documents(run, target)` ranks the documents that a run read. Methods differ in what they look at,
what they cost, and how much they say (`sources` has the grades):

* `lexical`   shared words (`lexical.py`); `bm25` the same as everybody computes it. No model.
* `gradient`  pull of each document's loss on the weights at the last checkpoint, in the components
              of `within` alone where they are named (`gradients/`)
* `replay`    exact influence, by differentiating through the replayed training (`metagradients.py`)
* `fused`     words and gradients in one list (`fusing.py`); or name the parts: "lexical+replay"

What is asked is a text's log-probability, a behaviour's metric, or any `questions.Question`: where
a head attends, what lies along a probe's direction. Methods that follow gradients follow that
number; a question alone has no words, and the others cannot answer it.

That words alone find the document that states a fact better than gradients often do is known (Chang
et al. 2024, TrackStar), and why the default is both. Held-out documents and documents that the run
never reached are no sources.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from data_attribution import gradients, lexical, queries, token_index
from data_attribution.attribution import fusion, passages
from data_attribution.attribution.passages import Cited
from data_attribution.attribution.sources import GRADES, Sources
from data_attribution.errors import EvidenceError, QueryError
from data_attribution.gradients import GradientOptions
from data_attribution.metagradients import WHOLE, ReplayOptions
from data_attribution.queries import Query
from data_attribution.ranking import Ranking
from data_attribution.token_index import TokenIndex
from interp.behaviours import Behaviour
from interp.metrics import Metric
from interp.patching import Effects
from train.data import Order, TokenStore, near_duplicates
from train.errors import nearest
from train.runs import Run


__all__ = [
    "FUSED",
    "METHODS",
    "Method",
    "Reader",
    "Request",
    "ask",
    "documents",
    "evidence",
    "parts",
]

BM25 = f"bm25 k1={lexical.K1} b={lexical.B} shared={lexical.SHARED}"
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
        target: A text or a behaviour, whose words are looked for; None: a question without words.
        question: What is measured and differentiated, as a number a prompt.
        within: Names of the components through which evidence counts; None: all.
        candidates: Documents to score; None: the method decides, and says how many in `details`.
        limit: How many documents are wanted; a method may rank more.
        how: How gradients are compared.
        window: Which steps replay goes back through, and on what disk.
        seed: Of everything drawn: projections, samples.
        progress: Told (what, done, total).
    """

    run: Any
    index: TokenIndex
    target: str | Behaviour | None
    question: Query
    within: tuple[str, ...] | None = None
    candidates: Candidates = None
    limit: int = 50
    how: GradientOptions = gradients.DEFAULT
    window: ReplayOptions = WHOLE
    seed: int = 0
    progress: Progress = None

    @property
    def name(self) -> str:
        """What is asked: the question where one was given for itself, else the target."""
        if isinstance(self.target, str) and self.question.name == queries.TEXT:
            return self.target
        return self.question.name

    @property
    def words(self) -> str | Behaviour:
        """The target, whose words are looked for.

        Raises:
            EvidenceError: The question has none.
        """
        if self.target is None:
            raise EvidenceError(f"{self.question.name!r} has no words; give a text beside it")
        return self.target


@dataclass(frozen=True)
class Method:
    """One way to rank documents.

    Attributes:
        grade: Of its evidence, as `sources.GRADES`.
        rank: Answers a request. What it needs is imported when it is asked.
        weights: Whether it follows the weights of a run; else it looks for words of the target.
    """

    grade: str
    rank: Callable[[Request], Ranking]
    weights: bool = False


def documents(
    run: Run | Reader,
    target: str | Behaviour | None = None,
    *,
    question: Query | None = None,
    within: Effects | Sequence[str] | None = None,
    metric: Metric | None = None,
    method: str = FUSED,
    how: GradientOptions | None = None,
    window: ReplayOptions | None = None,
    limit: int = 50,
    candidates: Candidates = None,
    fold: bool = True,
    seed: int = 0,
    progress: Progress = None,
) -> Sources:
    """Rank the documents that `run` read by the evidence that they taught `target`.

    Args:
        target: A text, or a behaviour.
        question: What gradients follow in its place, as `component_questions` makes it. Words are
            still those of the target; without one `fused` leaves words out, and says so.
        within: Components through which gradients count, by name, or the effects of a sweep: its
            `selecting.TOP` best ones.
        metric: What is asked of a behaviour; default: its logit difference.
        method: A key of `METHODS`, or several joined by "+", which are fused.
        how: How gradients are compared: kind, rank, checkpoints; its seed gives way to `seed`.
        window: The last steps that replay goes back through; default: an epoch, 1,000 at most.
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
    asked = parts(method, run, words=target is not None)
    _refuse_idle(method, asked, (question, within, metric, how, window))
    request = ask(
        run,
        target,
        question=question,
        within=within,
        metric=metric,
        how=how,
        window=window,
        limit=limit,
        candidates=candidates,
        seed=seed,
        progress=progress,
    )
    found = evidence(request, asked)
    ranking = fusion.fuse(found)
    _refuse_nothing(request, method, ranking)
    head = ranking.documents[: limit * HEAD].tolist()
    cited = passages.sources(
        run,
        request.index,
        ranking,
        limit=limit,
        grades=_grades(found),
        evidence=found,
        fold=fold,
        near=near_duplicates(run.store, head, among=head),
    )
    left_out = [one for one in parts(method, run) if one not in asked]
    about = _provenance(request, ranking, found, cited) | {"left out": left_out}
    follows = any(METHODS[one].weights for one in asked)
    if isinstance(target, Behaviour) and follows and question is None:
        about["metric"] = metric.name if metric else "logit difference"
    return Sources(request.name, "+".join(asked) if left_out else method, cited.items, about)


def parts(method: str, run: Run | Reader, *, words: bool = True) -> tuple[str, ...]:
    """The methods that a name stands for.

    Args:
        words: Whether the target has any; of `fused` those methods stay that can be asked.

    Raises:
        EvidenceError: There is no such method, or it cannot be asked that.
    """
    names: list[str] = []
    for name in (one.strip() for one in method.split("+")):
        if name not in METHODS:
            raise EvidenceError(f"no evidence is called {name!r}{nearest(name, METHODS)}")
        names += _fusible(run, words) if name == FUSED else [name]
    for name in names:
        if not (words or METHODS[name].weights):
            raise EvidenceError(
                f"a question has no words that {name} evidence could look for; give a text or a "
                "behaviour beside it, or take the method gradient or replay"
            )
    return tuple(dict.fromkeys(names))


def ask(
    run: Run | Reader,
    target: str | Behaviour | None = None,
    *,
    question: Query | None = None,
    within: Effects | Sequence[str] | None = None,
    metric: Metric | None = None,
    how: GradientOptions | None = None,
    window: ReplayOptions | None = None,
    limit: int = 50,
    candidates: Candidates = None,
    seed: int = 0,
    progress: Progress = None,
) -> Request:
    """The request that stands for a target, or for a question beside it or alone.

    Raises:
        EvidenceError: Nothing is asked, or two things at once.
        QueryError: The target holds no token to look for, or too many.
        IndexMissing: The run's token store has no index.
    """
    names = within.top(gradients.TOP_WEIGHTS) if isinstance(within, Effects) else within
    question = queries.asked(
        target, question, metric, tokenizer=run.store.tokenizer, n_ctx=run.order.context
    )
    return Request(
        run,
        token_index.open(run.store),
        target,
        question,
        within=None if names is None else tuple(map(str, names)),
        candidates=candidates,
        limit=limit,
        how=replace(how or gradients.DEFAULT, seed=seed),
        window=window or WHOLE,
        seed=seed,
        progress=progress,
    )


def evidence(request: Request, methods: Sequence[str]) -> dict[str, Ranking]:
    """What each method says, of the request's candidates alone where it names some."""
    found = {name: METHODS[name].rank(request) for name in methods}
    if request.candidates is None:
        return found
    return {name: one.among(request.candidates) for name, one in found.items()}


def _fusible(run: Run | Reader, words: bool) -> list[str]:
    """Those of `DEFAULT` that this run can be asked about such a target."""
    weighted = isinstance(run, Run)
    names = [one for one in DEFAULT if (weighted if METHODS[one].weights else words)]
    if not names:
        raise EvidenceError("a question has no words, and gradients need the weights of a run")
    return names


def _refuse_idle(method: str, asked: Sequence[str], given: Sequence[object]) -> None:
    """What no method that was asked would look at."""
    needs = (
        ("a question was given", ("gradient", "replay")),
        ("components were named", ("gradient",)),
        ("a metric was given", ("gradient", "replay")),
        ("a way to compare gradients was given", ("gradient",)),
        ("a window of replay was given", ("replay",)),
    )
    for one, (said, methods) in zip(given, needs, strict=True):
        if one is not None and not set(methods) & set(asked):
            raise EvidenceError(
                f"{said}, and {method} evidence does not look at that; take "
                f"--method {' or '.join(methods)}, or fuse it with others: lexical+{methods[0]}"
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
    request: Request, ranking: Ranking, found: Mapping[str, Ranking], cited: Cited
) -> dict[str, Any]:
    """Of which run, index and formula, and what each method says of how it was done."""
    run = request.run
    return {
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


def _grades(found: dict[str, Ranking]) -> dict[int, str]:
    """The strongest grade of evidence that speaks for each document."""
    grades: dict[int, str] = {}
    for name in sorted(found, key=lambda one: GRADES.index(METHODS[one].grade)):
        grades.update(dict.fromkeys(fusion.speaking(found[name]).tolist(), METHODS[name].grade))
    return grades


def _lexical(request: Request) -> Ranking:
    target, index = request.words, request.index
    if isinstance(target, str):
        return replace(
            lexical.rank_by_spans(index, target, request.progress), formula="maximal spans"
        )
    clean, corrupt = np.asarray(target.clean), np.asarray(target.corrupt)
    bags = lexical.prompt_bags(clean, corrupt, np.asarray(target.answer), index.store.eot)
    if not bags or not all(bags):
        raise QueryError(f"behaviour {target.name!r} has a prompt without a single token of text")
    return replace(lexical.rank_by_words(index, bags, request.progress), formula=BM25)


def _bm25(request: Request) -> Ranking:
    from data_attribution import lexical

    return lexical.rank_by_bm25(request)


def _gradient(request: Request) -> Ranking:
    from data_attribution import gradients

    return gradients.rank_by_gradients(request)


def _replay(request: Request) -> Ranking:
    from data_attribution import metagradients

    return metagradients.rank_by_replay(request)


def _fused(request: Request) -> Ranking:
    asked = parts(FUSED, request.run, words=request.target is not None)
    return fusion.fuse(evidence(request, asked))


METHODS = {
    "lexical": Method("lexical", _lexical),
    "bm25": Method("lexical", _bm25),
    "gradient": Method("gradient", _gradient, weights=True),
    "replay": Method("replay", _replay, weights=True),
    FUSED: Method("gradient", _fused),
}
DEFAULT = ("lexical", "gradient")
