"""Gradient evidence: score documents by how far a gradient step on them would raise a query.

The score of a document for a query is minus the inner product of the gradient of the document's
loss with the gradient of the query. With gradients of the loss it is the amount that one more step
of gradient descent on the document would add to the query's mean, per unit of learning rate; in
Adam's metric, one step of that optimizer. With gradients of log-odds it is not such a change,
because training never followed log-odds: it is a score to rank by, and predicts no effect.

* product: as above. Long documents win and, by their loss, documents that the model finds
  surprising, whatever the query is.
* cosine: divided by the length of the document's gradient (TrackStar; Pezeshkpour et al. 2021), so
  that its direction counts and not its size.

`collect` computes the gradients of documents once, and `Collected` compares them with any number of
queries. Intervals are over the query's prompts: they show what another draw of prompts would give.

`rank_by_gradients` has two stages. First, lexical evidence and BM25 name at most `candidates`
documents for each query, because gradients of millions are expensive; then the gradient of each is
compared with the queries', through the requested components. The gradient of a document that
several queries have in common is collected once, or once per block of queries if the gradients of
all prompts would take more than `MEMORY`. If the gradients of the whole corpus are stored beside
the run, those are compared instead. A query without words cannot name candidates: from a larger
corpus, that many documents are then drawn at random by the request's seed, and the ranking says so.

A score is valid at the checkpoints used, by default the last one. Knowing the data order does not
improve first-order scores; replay (`data_attribution.metagradients`) is the way to use it.

The defaults were chosen on 120 facts of a planted corpus with another content seed (1) than the
reported one (0). The table shows recall at 10 among 11,780 documents, for 63 facts stated in the
form of the query / 57 facts stated in other forms only:

                              rank   loss         log-odds, 1 - p at least .03   .01
    cosine                    16     .61 / .61                                   .68 / .41
    cosine in Adam's metric   16     .62 / .62    .82 / .60                      .82 / .53
    product in Adam's metric  16     .60 / .56    .69 / .57                      .84 / .51
    cosine in Adam's metric   32                  .80 / .68                      .86 / .64
    product in Adam's metric  32                  .76 / .80                      .89 / .78

* The loss of a learned target has no gradient left at the last checkpoint: of facts stated 32 times
  or more not one document was found. The gradient of log-odds stays as large as before the target
  was learned.
* Adam's metric separates rare tokens, such as names; but 16 dimensions are too few for 500 words.
* Curvature, and sums over checkpoints, improved less than either, alone and in addition. (The
  curvature measured there used the targets of the corpus. The present one, with targets that the
  model draws, was compared later, fused with words: it is the default where a run keeps no
  optimizer, see "Attribution quality" in docs/results.md.)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from data_attribution import lexical
from data_attribution.errors import EvidenceError
from data_attribution.gradients import features, preconditioner, store, store_size, weight_selection
from data_attribution.gradients.features import Features
from data_attribution.gradients.kinds import refuse_unknown_kind
from data_attribution.gradients.preconditioner import Curvature
from data_attribution.gradients.store import GradientStore
from data_attribution.gradients.store_size import StoreSize
from data_attribution.gradients.weight_selection import Selection
from data_attribution.queries import Query
from data_attribution.ranking import Ranking, ranked
from data_attribution.request import Request, run_and_seed
from train.model import GPT
from train.progress import Progress
from train.runs import Run
from train.short_repr import short_repr
from train.statistics import Average, n_prompts, over_prompts


__all__ = [
    "DEFAULT",
    "Collected",
    "GradientOptions",
    "averaged",
    "collect",
    "products",
    "rank_by_gradients",
    "ranking_cost",
    "stored",
]

# Comparing: documents sampled to estimate curvature, and documents collected at a time.
SAMPLE, PIECE = 2_000, 2_048

# Comparing many queries: bytes of their prompts' gradients and scores that are held at a time.
MEMORY = 2 << 30

Products = Float64[np.ndarray, "_ _"]  # document, prompt: any number of each for a query
Mask = Bool[np.ndarray, " document"]


@dataclass(frozen=True)
class GradientOptions:
    """Options of the comparison between documents and query.

    Attributes:
        kind: `dot` and `cosine` compare gradients as they are; `adam` and `adam-cosine` do the same
            in the metric of the run's optimizer; `curvature` is the cosine in the metric of the
            inverse Gauss-Newton matrix of the loss.
        log_odds: Follow the log-odds of a document's targets, the gradient of each divided by max(1
            - p, this value); None: follow their loss.
        steps: Checkpoints whose scores are averaged (TracIn, Pruthi et al. 2020); (): the last.
        rank: Rank of the projections of each weight.
        seed: Seed of the projections; stored gradients use their own.
        damping: Damping of `curvature` alone, as in `preconditioner.curvature`.
        candidates: Largest number of documents scored for a request that names none.

    Examples:
        >>> options = gradients.GradientOptions(kind="cosine", steps=(600, 2100))
        >>> options.metric, options.unit
        ('plain', True)
    """

    kind: str = "adam"
    log_odds: float | None = store.LOG_ODDS
    steps: tuple[int, ...] = ()
    rank: int = store.RANK
    seed: int = 0
    damping: float = preconditioner.DAMPING
    candidates: int = 10_000

    __repr__ = short_repr

    def __post_init__(self) -> None:
        refuse_unknown_kind(self.kind)
        if self.rank < 1:
            raise EvidenceError(f"gradients are projected to rank 1 or more, not {self.rank}")
        if self.damping != preconditioner.DAMPING and self.kind != "curvature":
            raise EvidenceError(f"damping {self.damping:g} belongs to curvature, not {self.kind}")
        if self.candidates < 1:
            raise EvidenceError(f"{self.candidates} candidates cannot be ranked; give 1 or more")

    @property
    def metric(self) -> str:
        """Return the metric's name, one of `store.METRICS`."""
        return "adam" if self.kind.startswith("adam") else "plain"

    @property
    def unit(self) -> bool:
        """Return whether scores are divided by the length of the document's gradient."""
        return self.kind not in ("adam", "dot")


DEFAULT = GradientOptions()


@dataclass(frozen=True, eq=False)
class Collected:
    """Gradients of the same documents at one or more checkpoints, ready to be compared.

    Attributes:
        documents: Indices of the documents, ascending.
    """

    documents: Int64[np.ndarray, " document"]
    how: GradientOptions
    selection: Selection
    moments: tuple["_Moment", ...]

    __repr__ = short_repr

    def products(self, *queries: Query, progress: Progress | None = None) -> list[Products]:
        """Return for each query the documents' scores for its prompts, averaged over checkpoints.

        Every piece of the documents is read once for all queries, whose gradients are in memory
        together.

        Raises:
            EvidenceError: A query depends on none of the components.
        """
        every = np.ones(len(self.documents), bool)
        return self._scores(queries, [every] * len(queries), progress)

    def rankings(
        self,
        queries: Sequence[Query],
        documents: Sequence[Int64[np.ndarray, " some"]],
        *,
        progress: Progress | None = None,
    ) -> list[Ranking]:
        """Rank for each query some of the documents by their mean score over its prompts.

        The queries are compared in blocks. The gradients of a block's prompts and their scores take
        at most `MEMORY` bytes, or those of a single query. Every block reads all pieces of the
        documents, and collects those again that are neither stored nor kept.

        Args:
            documents: For each query, the documents to rank.

        Raises:
            EvidenceError: A query depends on none of the components.
        """
        dim = store_size.numbers(self.selection, self.how.rank)
        sizes = [
            len(query.tokens) * (4 * dim + 8 * len(some))  # fp32 gradients and fp64 scores
            for query, some in zip(queries, documents, strict=True)
        ]
        rankings = []
        for block in _blocks(sizes, MEMORY):
            there = [np.isin(self.documents, some) for some in documents[block]]
            scores = self._scores(queries[block], there, progress)
            rankings += map(self._ranking, queries[block], scores, there)
            del scores  # else the next block's would be in memory together with these
        return rankings

    def _scores(
        self, queries: Sequence[Query], there: Sequence[Mask], progress: Progress | None
    ) -> list[Products]:
        """Return `products` for some of the documents, which differ by query."""
        scores = [
            np.zeros((int(rows.sum()), len(query.tokens)))
            for query, rows in zip(queries, there, strict=True)
        ]
        for moment in self.moments:
            self._add_scores(moment, queries, there, scores, progress)
        for total in scores:
            total /= len(self.moments)
        return scores

    def _add_scores(
        self,
        moment: "_Moment",
        queries: Sequence[Query],
        there: Sequence[Mask],
        scores: Sequence[Products],
        progress: Progress | None,
    ) -> None:
        """Add the scores at one checkpoint; the prompts' gradients there are freed at the end."""
        prompts = [moment.of(query, progress) for query in queries]
        first = 0
        for piece in moment.pieces():
            last = first + len(piece.rows)
            for total, gradients, rows in zip(scores, prompts, there, strict=True):
                begin, end = int(rows[:first].sum()), int(rows[:last].sum())
                if begin < end:
                    found = products(gradients, piece, unit=self.how.unit)
                    total[begin:end] += found[rows[first:last]]
            first = last

    def _ranking(self, query: Query, scores: Products, there: Mask) -> Ranking:
        """Rank documents by the mean of their scores over a query's prompts, with intervals."""
        average = averaged(scores, query.tokens)
        target = "log-odds" if self.how.log_odds else "loss"
        return ranked(
            self.documents[there],
            scores.mean(axis=1),
            low=None if average.low is None else average.low.double().numpy(),
            high=None if average.high is None else average.high.double().numpy(),
            signed=True,
            formula=f"{self.how.kind} of projected gradients of the {target}",
            details={
                "kind": self.how.kind,
                "log_odds": self.how.log_odds,
                "rank": self.how.rank,
                "seeds": [moment.how.seed for moment in self.moments],
                "steps": [moment.step for moment in self.moments],
                "sites": [site.name for site in self.selection.sites],
                "scored": len(scores),
                "kept": all(moment.kept is not None for moment in self.moments),
                "prompts": average.n,
            },
        )


def collect(
    run: Run,
    documents: Int64[np.ndarray, " document"] | None,
    *,
    within: tuple[str, ...] | None = None,
    how: GradientOptions = DEFAULT,
    keep: bool = True,
    progress: Progress | None = None,
) -> Collected:
    """Collect the gradients of documents, or read them from RUN/gradients if they are stored there.

    Costs, per checkpoint, a forward and a backward pass over the documents, and for `curvature`
    over 2,000 more.

    Args:
        documents: Documents to collect; None: all that RUN/gradients holds.
        within: Components that count; None: all.
        keep: Whether to hold the gradients in memory for the next query; otherwise some 2,000 at a
            time are collected for each query.

    Raises:
        EvidenceError: A component has no weights, no documents are given and none are stored, or
            the optimizer of `adam` is Muon.

    Examples:
        >>> collected = gradients.collect(run, np.array([2456, 28867]), within=("L0.mlp",))
        >>> collected.documents.tolist()
        [2456, 28867]
    """
    if how.metric == "adam":
        preconditioner.refuse_muon(run)
    chosen = None if documents is None else np.unique(np.asarray(documents, np.int64))
    moments = []
    selection = weight_selection.select_weights(run.config, within)
    for step in how.steps or (run.steps[-1],):
        kept = stored(run, selection, how, step)
        if chosen is None:
            if kept is None:
                raise EvidenceError(
                    f"{run.path / store.GRADIENT_FOLDER} holds no gradients collected so; name "
                    "documents, or collect all with `openbook gradients build`"
                )
            chosen = kept.documents
        drawn = how if kept is None else replace(how, seed=kept.manifest["seed"])
        moments.append(_Moment(run, step, chosen, selection, drawn, kept, keep, progress))
    assert chosen is not None
    return Collected(chosen, how, selection, tuple(moments))


def stored(
    run: Run, selection: Selection, how: GradientOptions, step: int | None = None
) -> GradientStore | None:
    """Return the gradients stored beside a run if they fit these sites and options, else None.

    The seed of their projections may differ: the query is projected with the stored one.
    """
    path: Path = run.path / store.GRADIENT_FOLDER
    if not (path / store.MANIFEST).is_file():
        return None
    kept = store.open_gradient_store(path, run=run)
    sha256 = run.saved_at(step).files["model.safetensors"]
    fits = kept.fits(
        checkpoint_sha256=sha256,
        sites=[site.name for site in selection.sites],
        rank=how.rank,
        metric=how.metric,
        log_odds=how.log_odds,
    )
    return kept if fits else None


@dataclass(frozen=True, eq=False)
class _Moment:
    """One checkpoint and the gradients of the documents there."""

    run: Run
    step: int
    documents: Int64[np.ndarray, " document"]
    selection: Selection
    how: GradientOptions
    kept: GradientStore | None
    keep: bool
    progress: Progress | None

    def of(self, query: Query, progress: Progress | None) -> Features:
        """Return the query's gradients, in the metric of the documents' gradients."""
        gradients = features.query_features(
            self._model, query, self.selection, **self._options, progress=progress
        )
        return self._metric.applied(gradients) if self._metric else gradients

    def pieces(self) -> Iterator[Features]:
        """Yield the documents' gradients piece by piece, in the order of the documents."""
        for piece in self._whole if self.keep else self._collected():
            yield self._metric.applied(piece) if self._metric else piece

    @cached_property
    def _whole(self) -> list[Features]:
        return list(self._collected())

    def _collected(self) -> Iterator[Features]:
        total = len(self.documents)
        for first in range(0, total, PIECE):

            def tell(what: str, done: int, _: int | None, first: int = first) -> None:
                if self.progress:
                    self.progress("gradients of documents", first + done, total)

            yield self._gradients(self.documents[first : first + PIECE], tell)
            tell("", min(PIECE, total - first), None)

    def _gradients(self, some: Int64[np.ndarray, " document"], progress: Progress) -> Features:
        if self.kept is not None and np.isin(some, self.kept.documents).all():
            return self.kept.features(some)
        options = {**self._options, "log_odds": self.how.log_odds, "progress": progress}
        return features.document_features(
            self._model, self.run.store, some, self.selection, **options
        )

    @cached_property
    def _model(self) -> GPT:
        return self.run.load(self.step)

    @cached_property
    def _options(self) -> dict[str, Any]:
        sides = None
        if self.how.metric == "adam":
            sides = preconditioner.adam(self.run, self.selection, step=self.step)
        return {"rank": self.how.rank, "seed": self.how.seed, "sides": sides}

    @cached_property
    def _metric(self) -> Curvature | None:
        if self.how.kind != "curvature":
            return None
        everyone = store.trained_documents(self.run)
        draw = np.random.default_rng(self.how.seed)
        some = draw.choice(everyone, min(SAMPLE, len(everyone)), replace=False)
        options = {**self._options, "drawn": self.how.seed}
        sample = features.document_features(
            self._model, self.run.store, np.sort(some), self.selection, **options
        )
        return preconditioner.curvature(sample, damping=self.how.damping)


def _blocks(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Yield consecutive blocks whose sizes sum to at most `most`, or of a single larger one."""
    first = 0
    for stop in range(1, len(sizes) + 1):
        if stop == len(sizes) or sum(sizes[first : stop + 1]) > most:
            yield slice(first, stop)
            first = stop


# Scores: inner products between gradients of documents and of prompts.
ROWS = 4096


def products(
    asked: Features, given: Features, *, unit: bool = False, rows: int = ROWS
) -> Float64[np.ndarray, "document prompt"]:
    """Return the score of each document for each prompt.

    Args:
        asked: Gradients of prompts.
        given: Gradients of documents, under the same projections.
        unit: Whether to divide by the length of the document's gradient and by that of the mean
            prompt's, so that the mean over prompts is a cosine. A document without gradient scores
            0.
        rows: Number of documents whose gradients are in memory as fp32 at a time.

    Raises:
        EvidenceError: The two were projected differently.

    Examples:
        >>> selection = gradients.select_weights(model.cfg, ["L0.mlp"])
        >>> query = queries.query_of_behaviour(fact)
        >>> asked = gradients.query_features(model, query, selection, rank=16)
        >>> given = gradients.document_features(model, store, [28867, 5], selection, rank=16)
        >>> gradients.products(asked, given, unit=True).shape
        (2, 50)
    """
    ours, theirs = ((one.blocks, one.rank, one.seed) for one in (asked, given))
    if ours != theirs:
        raise EvidenceError(
            f"gradients of {len(asked.blocks)} sites at rank {asked.rank} (seed {asked.seed}) "
            f"cannot be compared with those of {len(given.blocks)} at rank {given.rank} (seed "
            f"{given.seed}); collect both with the same selection, rank and seed"
        )
    prompts = asked.values.astype(np.float32).T
    length = np.linalg.norm(prompts.mean(axis=1, dtype=np.float64)) if unit else 1.0
    found = np.empty((len(given.rows), len(asked.rows)))
    for first in range(0, len(found), rows):
        values = given.values[first : first + rows].astype(np.float32)
        part = -(values @ prompts).astype(np.float64)
        if unit:
            whole = length * np.linalg.norm(values, axis=1, keepdims=True)
            part = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
        found[first : first + rows] = part
    return found


def averaged(scores: Float64[np.ndarray, "document prompt"], tokens: Tensor) -> Average:
    """Return the mean over prompts with its 95 % interval; rows of equal prompts are one case.

    Args:
        tokens: The query's prompts.
    """
    return over_prompts(scores, n_prompts(tokens))


# Ranking: choose candidates, collect their gradients and compare them with the query.


def rank_by_gradients(
    requests: Sequence[Request],
    *,
    within: tuple[str, ...] | None = None,
    how: GradientOptions = DEFAULT,
) -> list[Ranking]:
    """Rank documents for each request by their gradient score for its query.

    Costs, per checkpoint, a forward and a backward pass over the candidates of all requests
    together, and over the prompts of each query.

    Args:
        requests: Requests to one run with one seed. The `candidates` of each are scored for it;
            without them, a corpus of at most `how.candidates` documents is scored whole.
        within: Components that count; None: all.
        how: Options of the comparison; the requests' seed replaces their seed.

    Raises:
        EvidenceError: A component has no weights, a query depends on none of the components, or the
            requests cannot be answered together.

    Examples:
        >>> request = attribution.make_request(run, fact, candidates=np.array([5, 28867]))
        >>> options = gradients.GradientOptions(kind="cosine")
        >>> (ranking,) = gradients.rank_by_gradients([request], within=("L0.mlp",), how=options)
        >>> ranking.documents.tolist(), ranking.signed
        ([28867, 5], True)
    """
    run, seed = run_and_seed(requests)
    how, progress = replace(how, seed=seed), requests[0].progress
    selection = weight_selection.select_weights(run.config, within)
    step = how.steps[0] if how.steps else None
    kept = stored(run, selection, how, step) if len(how.steps) < 2 else None
    documents, drawn_of = zip(
        *(_to_score(request, kept, how.candidates) for request in requests), strict=True
    )
    union = np.unique(np.concatenate(documents))
    collected = collect(run, union, within=within, how=how, keep=False, progress=progress)
    queries = [request.query for request in requests]
    rankings = collected.rankings(queries, documents, progress=progress)
    return [
        one if total is None else replace(one, details={**one.details, "drawn of": total})
        for one, total in zip(rankings, drawn_of, strict=True)
    ]


def ranking_cost(
    run: Run, *, within: tuple[str, ...] | None = None, how: GradientOptions = DEFAULT
) -> StoreSize | None:
    """Estimate the cost of `rank_by_gradients` for one request; None if the gradients are stored.

    Loads the model and times the gradients of a sample of documents. Of a corpus from which words
    choose candidates, as many are counted as are scored at most; those of the sample for
    `curvature` are counted too.

    Raises:
        EvidenceError: A component has no weights, or a checkpoint has no moments for `adam`.

    Examples:
        >>> how = gradients.GradientOptions(kind="cosine", candidates=1000)
        >>> gradients.ranking_cost(run, within=("L0.mlp",), how=how).documents
        1000
    """
    selection = weight_selection.select_weights(run.config, within)
    steps = how.steps or (run.steps[-1],)
    for step in steps if how.metric == "adam" else ():
        preconditioner.refuse_missing_moments(run, step=step)
    if all(stored(run, selection, how, step) is not None for step in steps):
        return None
    trained = store.trained_documents(run)
    n = min(len(trained), how.candidates) + (min(len(trained), SAMPLE) * (how.kind == "curvature"))
    spread = trained[np.linspace(0, len(trained) - 1, n * len(steps)).astype(np.int64)]
    model = run.load(steps[-1])
    return store_size.plan_gradient_store(model, run.store, spread, selection, rank=how.rank)


def _to_score(
    request: Request, kept: GradientStore | None, limit: int
) -> tuple[Int64[np.ndarray, " document"], int | None]:
    """Return the documents to score for a request; if they were drawn, also from how many.

    They are drawn where no words select documents from a corpus too large to be scored whole.
    """
    if request.candidates is not None:
        return np.asarray(request.candidates, np.int64), None
    if kept is not None:
        return kept.documents, None
    trained = store.trained_documents(request.run)
    if len(trained) <= limit:
        return trained, None
    if request.target is not None:
        return lexical.candidates(request, limit=limit), None
    draw = np.random.default_rng(request.seed)
    return np.sort(draw.choice(trained, limit, replace=False)), len(trained)
