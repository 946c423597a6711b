"""Gradients of documents, collected once and compared with any number of questions.

What is compared, by default, was chosen on the facts of a planted corpus of another content seed
than the one that is reported, by recall at 10 among 11,780 documents (120 facts):

    stated in the asked form / only in others     loss       log-odds, at most 1 / .03
    cosine                                     .61 / .61        -
    cosine in Adam's metric                    .62 / .62     .82 / .60

* The loss of a target that was learned has no gradient left at the last checkpoint: of facts stated
  32 times or more not one document was found. Log-odds pull as they did before they were learned.
* Adam's metric tells tokens apart that are rare, as names of entities are.
* Curvature on top changed little, and gradients of earlier checkpoints added little that log-odds
  at the last do not have.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from data_attribution.errors import EvidenceError
from data_attribution.gradients import collecting, preconditioning, scoring, selecting, storing
from data_attribution.gradients.collecting import Features
from data_attribution.gradients.preconditioning import Curvature
from data_attribution.gradients.projecting import RANK
from data_attribution.gradients.selecting import Selection
from data_attribution.gradients.storing import Stored
from data_attribution.questions import Question
from data_attribution.rankings import Ranking, ranked
from train.errors import nearest
from train.model import GPT
from train.runs import Run


__all__ = ["DEFAULT", "KINDS", "Collected", "How", "collect", "stored"]

SAMPLE = 2_000
KINDS = ("adam", "cosine", "curvature", "dot")

Progress = Callable[[str, int, int | None], None] | None


@dataclass(frozen=True)
class How:
    """What is compared with what.

    Attributes:
        kind: `dot` and `cosine` of gradients as they are; `adam`: cosine as the optimizer steps;
            `curvature`: cosine in the metric of the inverse Gauss-Newton matrix.
        log_odds: Follow the log-odds of a document's targets, each divided by 1 - p or by this
            where that is less; None: its loss.
        steps: Checkpoints whose scores are averaged (TracIn, Pruthi et al. 2020); (): the last.
        rank: Of the projections of each weight.
        seed: Of the projections.
    """

    kind: str = "adam"
    log_odds: float | None = 0.03
    steps: tuple[int, ...] = ()
    rank: int = RANK
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            known = nearest(self.kind, KINDS)
            raise EvidenceError(f"gradients are not compared by {self.kind!r}{known}")

    @property
    def metric(self) -> str:
        """As `storing` names it."""
        return "adam" if self.kind == "adam" else "plain"


DEFAULT = How()


@dataclass(frozen=True, eq=False)
class Collected:
    """Gradients of documents, ready to be compared; at every checkpoint the same documents.

    Attributes:
        documents: Which, ascending.
    """

    documents: Int64[np.ndarray, " document"]
    how: How
    selection: Selection
    moments: tuple["_Moment", ...]

    def products(
        self, question: Question, progress: Progress = None
    ) -> Float64[np.ndarray, "document prompt"]:
        """How much each document speaks for each prompt, mean over checkpoints.

        Raises:
            EvidenceError: The question depends on none of the components.
        """
        unit = self.how.kind != "dot"
        found = np.zeros((len(self.documents), len(question.tokens)))
        for moment in self.moments:
            asked = moment.of(question, progress)
            rows = 0
            for piece in moment.pieces():
                given = moment.metric.applied(piece) if moment.metric else piece
                found[rows : rows + len(given.rows)] += scoring.products(asked, given, unit=unit)
                rows += len(given.rows)
        return found / len(self.moments)

    def ranking(self, question: Question, progress: Progress = None) -> Ranking:
        """The documents by how much they speak for a question, with intervals over its prompts."""
        found = self.products(question, progress)
        average = scoring.averaged(found, question.tokens)
        target = "log-odds" if self.how.log_odds else "loss"
        return ranked(
            self.documents,
            found.mean(axis=1),
            low=None if average.low is None else average.low.double().numpy(),
            high=None if average.high is None else average.high.double().numpy(),
            formula=f"{self.how.kind} of projected gradients of the {target}",
            details={
                "kind": self.how.kind,
                "log_odds": self.how.log_odds,
                "rank": self.how.rank,
                "steps": [moment.step for moment in self.moments],
                "sites": [site.name for site in self.selection.sites],
                "scored": len(self.documents),
                "prompts": average.n,
            },
        )


def collect(
    run: Run,
    documents: Int64[np.ndarray, " document"] | None,
    *,
    within: tuple[str, ...] | None = None,
    how: How = DEFAULT,
    progress: Progress = None,
) -> Collected:
    """The gradients of documents, read from RUN/gradients where they are kept.

    Costs a forward and a backward pass over the documents, and for `curvature` over 2,000 more, a
    checkpoint.

    Args:
        documents: None: all that RUN/gradients holds.
        within: Components that count; None: all.

    Raises:
        EvidenceError: A component without weights, or no documents given and none kept.
    """
    chosen = None if documents is None else np.unique(np.asarray(documents, np.int64))
    moments = []
    selection = selecting.select(run.config, within)
    for step in how.steps or (run.steps[-1],):
        kept = stored(run, selection, how, step)
        if chosen is None:
            if kept is None:
                raise EvidenceError(
                    f"{run.path / storing.FOLDER} holds no gradients collected so; name documents, "
                    "or collect all with `openbook attribution index`"
                )
            chosen = kept.documents
        moments.append(_moment(run, chosen, selection, how, step, kept, progress))
    assert chosen is not None
    return Collected(chosen, how, selection, tuple(moments))


def stored(run: Run, selection: Selection, how: How, step: int | None = None) -> Stored | None:
    """The gradients kept beside a run, if they are of these sites and were collected so."""
    path: Path = run.path / storing.FOLDER
    if not (path / storing.MANIFEST).is_file():
        return None
    kept = storing.open(path, run=run)
    sha256 = run.saved_at(step).files["model.safetensors"]
    fits = kept.fits(
        checkpoint_sha256=sha256,
        sites=[site.name for site in selection.sites],
        rank=how.rank,
        seed=how.seed,
        metric=how.metric,
        log_odds=how.log_odds,
    )
    return kept if fits else None


@dataclass(frozen=True, eq=False)
class _Moment:
    """One checkpoint: its model, and the documents' gradients there."""

    step: int
    model: GPT
    selection: Selection
    options: dict[str, Any]
    given: Features | Stored
    metric: Curvature | None

    def of(self, question: Question, progress: Progress) -> Features:
        """The question's gradients, in the metric of the documents'."""
        asked = collecting.of_question(
            self.model, question, self.selection, **self.options, progress=progress
        )
        return self.metric.applied(asked) if self.metric else asked

    def pieces(self) -> Iterator[Features]:
        """The documents', some at a time."""
        if isinstance(self.given, Stored):
            yield from self.given.pieces()
        else:
            yield self.given


def _moment(
    run: Run,
    documents: Int64[np.ndarray, " document"],
    selection: Selection,
    how: How,
    step: int,
    kept: Stored | None,
    progress: Progress,
) -> _Moment:
    model = run.load(step)
    sides = preconditioning.adam(run, selection, step=step) if how.metric == "adam" else None
    options: dict[str, Any] = {"rank": how.rank, "seed": how.seed, "sides": sides}

    def of(some: Int64[np.ndarray, " document"]) -> Features:
        if kept is not None and np.isin(some, kept.documents).all():
            return kept.features(some)
        return collecting.of_documents(
            model, run.store, some, selection, **options, log_odds=how.log_odds, progress=progress
        )

    whole = kept is not None and np.array_equal(documents, kept.documents)
    given = kept if whole and kept is not None else of(documents)
    metric = None
    if how.kind == "curvature":
        everyone = storing.trained(run)
        draw = np.random.default_rng(how.seed)
        some = draw.choice(everyone, min(SAMPLE, len(everyone)), replace=False)
        metric = preconditioning.curvature(of(np.sort(some)))
    return _Moment(step, model, selection, options, given, metric)
