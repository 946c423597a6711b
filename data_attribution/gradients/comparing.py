"""Gradients of documents, collected once and compared with any number of questions.

What is compared by default was chosen on 120 facts of a planted corpus of another content seed (1)
than the one that is reported (0). Recall at 10 among 11,780 documents, of 63 facts stated in the
asked form and of 57 stated in other forms only:

                              rank   loss         log-odds, 1 - p at least .03   .01
    cosine                    16     .61 / .61                                   .68 / .41
    cosine in Adam's metric   16     .62 / .62    .82 / .60                      .82 / .53
    product in Adam's metric  16     .60 / .56    .69 / .57                      .84 / .51
    cosine in Adam's metric   32                  .80 / .68                      .86 / .64
    product in Adam's metric  32                  .76 / .80                      .89 / .78

* The loss of a target that was learned has no gradient left at the last checkpoint: of facts stated
  32 times or more not one document was found. Log-odds pull as they did before they were learned.
* Adam's metric tells rare tokens apart, as names are; but 16 dimensions do not hold 500 words.
* Curvature, and sums over checkpoints, brought less than either, alone and on top. (Curvature as
  measured there was that of targets that were read; of targets that the model draws, as it is now,
  it has not been measured.)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from data_attribution.errors import EvidenceError
from data_attribution.gradients import collecting, preconditioning, scoring, selecting, storing
from data_attribution.gradients.collecting import Features
from data_attribution.gradients.preconditioning import Curvature
from data_attribution.gradients.selecting import Selection
from data_attribution.gradients.storing import Stored
from data_attribution.questions import Question
from data_attribution.rankings import Ranking, ranked
from train.errors import nearest
from train.model import GPT
from train.runs import Run


__all__ = ["DEFAULT", "KINDS", "Collected", "How", "collect", "stored"]

SAMPLE, PIECE = 2_000, 2_048
KINDS = ("adam", "adam-cosine", "cosine", "curvature", "dot")

Progress = Callable[[str, int, int | None], None] | None


@dataclass(frozen=True)
class How:
    """What is compared with what.

    Attributes:
        kind: `dot` and `cosine` of gradients as they are; `adam` and `adam-cosine` the same in the
            metric of the run's optimizer; `curvature`: cosine in the metric of the inverse
            Gauss-Newton matrix of the loss.
        log_odds: Follow the log-odds of a document's targets, each divided by 1 - p or by this
            where that is less; None: its loss.
        steps: Checkpoints whose scores are averaged (TracIn, Pruthi et al. 2020); (): the last.
        rank: Of the projections of each weight.
        seed: Of the projections; gradients that are kept bring their own.
        damping: Of `curvature` alone, as `preconditioning.curvature` has it.
    """

    kind: str = "adam"
    log_odds: float | None = storing.LOG_ODDS
    steps: tuple[int, ...] = ()
    rank: int = storing.RANK
    seed: int = 0
    damping: float = preconditioning.DAMPING

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            known = nearest(self.kind, KINDS)
            raise EvidenceError(
                f"gradients are not compared by {self.kind!r}{known}; --method chooses the evidence"
            )
        if self.damping != preconditioning.DAMPING and self.kind != "curvature":
            raise EvidenceError(f"damping {self.damping:g} belongs to curvature, not {self.kind}")

    @property
    def metric(self) -> str:
        """As `storing` names it."""
        return "adam" if self.kind.startswith("adam") else "plain"

    @property
    def unit(self) -> bool:
        """Whether the length of a document's gradient is divided out."""
        return self.kind not in ("adam", "dot")


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
        found = np.zeros((len(self.documents), len(question.tokens)))
        for moment in self.moments:
            asked = moment.of(question, progress)
            rows = 0
            for piece in moment.pieces():
                found[rows : rows + len(piece.rows)] += scoring.products(
                    asked, piece, unit=self.how.unit
                )
                rows += len(piece.rows)
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
            signed=True,
            formula=f"{self.how.kind} of projected gradients of the {target}",
            details={
                "kind": self.how.kind,
                "log_odds": self.how.log_odds,
                "rank": self.how.rank,
                "seeds": [moment.how.seed for moment in self.moments],
                "steps": [moment.step for moment in self.moments],
                "sites": [site.name for site in self.selection.sites],
                "scored": len(self.documents),
                "kept": all(moment.kept is not None for moment in self.moments),
                "prompts": average.n,
            },
        )


def collect(
    run: Run,
    documents: Int64[np.ndarray, " document"] | None,
    *,
    within: tuple[str, ...] | None = None,
    how: How = DEFAULT,
    keep: bool = True,
    progress: Progress = None,
) -> Collected:
    """The gradients of documents, read from RUN/gradients where they are kept.

    Costs a forward and a backward pass over the documents, and for `curvature` over 2,000 more, a
    checkpoint.

    Args:
        documents: None: all that RUN/gradients holds.
        within: Components that count; None: all.
        keep: Hold them in memory for the next question; else some 2,000 at a time are collected
            when a question is asked, and again for the next.

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
        drawn = how if kept is None else replace(how, seed=kept.manifest["seed"])
        moments.append(_Moment(run, step, chosen, selection, drawn, kept, keep, progress))
    assert chosen is not None
    return Collected(chosen, how, selection, tuple(moments))


def stored(run: Run, selection: Selection, how: How, step: int | None = None) -> Stored | None:
    """The gradients kept beside a run, if they are of these sites and were collected so.

    Whatever the seed of their projections: what is compared with them is projected by it, too.
    """
    path: Path = run.path / storing.FOLDER
    if not (path / storing.MANIFEST).is_file():
        return None
    kept = storing.open(path, run=run)
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
    """One checkpoint, and the documents' gradients there."""

    run: Run
    step: int
    documents: Int64[np.ndarray, " document"]
    selection: Selection
    how: How
    kept: Stored | None
    keep: bool
    progress: Progress

    def of(self, question: Question, progress: Progress) -> Features:
        """The question's gradients, in the metric of the documents'."""
        asked = collecting.of_question(
            self._model, question, self.selection, **self._options, progress=progress
        )
        return self._metric.applied(asked) if self._metric else asked

    def pieces(self) -> Iterator[Features]:
        """The documents' gradients, some at a time and in their order."""
        for piece in self._whole if self.keep else self._collected():
            yield self._metric.applied(piece) if self._metric else piece

    @cached_property
    def _whole(self) -> list[Features]:
        return list(self._collected())

    def _collected(self) -> Iterator[Features]:
        total = len(self.documents)
        for first in range(0, total, PIECE):
            yield self._gradients(self.documents[first : first + PIECE])
            if self.progress:
                self.progress("gradients of documents", min(first + PIECE, total), total)

    def _gradients(self, some: Int64[np.ndarray, " document"]) -> Features:
        if self.kept is not None and np.isin(some, self.kept.documents).all():
            return self.kept.features(some)
        options = {**self._options, "log_odds": self.how.log_odds}
        return collecting.of_documents(self._model, self.run.store, some, self.selection, **options)

    @cached_property
    def _model(self) -> GPT:
        return self.run.load(self.step)

    @cached_property
    def _options(self) -> dict[str, Any]:
        sides = None
        if self.how.metric == "adam":
            sides = preconditioning.adam(self.run, self.selection, step=self.step)
        return {"rank": self.how.rank, "seed": self.how.seed, "sides": sides}

    @cached_property
    def _metric(self) -> Curvature | None:
        if self.how.kind != "curvature":
            return None
        everyone = storing.trained(self.run)
        draw = np.random.default_rng(self.how.seed)
        some = draw.choice(everyone, min(SAMPLE, len(everyone)), replace=False)
        options = {**self._options, "drawn": self.how.seed}
        sample = collecting.of_documents(
            self._model, self.run.store, np.sort(some), self.selection, **options
        )
        return preconditioning.curvature(sample, damping=self.how.damping)
