"""Exact influence of every document: training is replayed, and differentiated backwards.

What a question answers at the end of a run is a function of the weight that each document's loss
had in it. `influence` is the derivative of that function at the run as it was, for all documents at
once and not to first order in the steps: every later step answers to what an earlier one changed,
through AdamW's moments, clipping and the learning rate. This is the metagradient of MAGIC (Ilyas &
Engstrom 2025, arXiv 2504.16430), on a run whose data order, weights and moments are known to the
bit. A document's score foretells what leaving it out of the steps first..last takes from the answer
(`train.data.DocumentRemoval` with `mode="loss"`: its targets and the end-of-text behind it lose
their loss, its tokens stay as context).

A derivative foretells small changes. Many documents left out together, clipping that sets in or
ends, and weights that a single document moves are what it does not see (`replaying.adjoints`).
Weights and moments are the run's own, in its precision; the way back is fp32 also where the trainer
multiplied in bf16.

Where the scores of targets are added up: by document, and within it by token.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64

from data_attribution import queries
from data_attribution.errors import EvidenceError
from data_attribution.metagradients import backward_step, double_backward, optimizer_vectors, replay
from data_attribution.metagradients.backward_step import Update
from data_attribution.metagradients.optimizer_vectors import Vectors
from data_attribution.metagradients.replay import ReplayTrail
from data_attribution.queries import Query
from data_attribution.ranking import Ranking, ranked
from data_attribution.request import Request
from train.data import TokenStore, read_batch
from train.errors import TrainError
from train.model import GPT
from train.numerics import applied, on_this_machine
from train.runs import Run


__all__ = [
    "WHOLE",
    "Influence",
    "ReplayOptions",
    "Tally",
    "heaviest",
    "influence",
    "of_question",
    "of_span",
    "rank_by_replay",
    "span",
]


@dataclass(frozen=True, eq=False)
class Tally:
    """A number for each question and each target of some documents.

    Attributes:
        documents: Ascending.
        starts: Where the targets of each begin in `totals`: its tokens, then the end-of-text.
    """

    store: TokenStore
    context: int
    documents: Int64[np.ndarray, " document"]
    starts: Int64[np.ndarray, " document"]
    totals: Float64[np.ndarray, "question target"]

    def add(
        self,
        windows: Int64[np.ndarray, " batch"],
        scores: Float[torch.Tensor, "question batch pos"],
    ) -> None:
        """Add what was found for the targets of the windows that begin at these offsets."""
        offsets = (windows[:, None] + 1 + np.arange(self.context)).ravel()
        begins = self.store.starts[self.documents]
        row = np.searchsorted(begins, offsets, side="right") - 1
        # The end-of-text behind a document is its last target; what else lies between is padding.
        within = offsets - begins[row]
        taught = (row >= 0) & (within <= self.store.lengths[self.documents][row])
        places = (self.starts[row] + within)[taught]
        for total, found in zip(self.totals, scores.flatten(1).double().cpu().numpy(), strict=True):
            np.add.at(total, places, found[taught])


def of_span(run: Run, n_questions: int, first: int, last: int) -> Tally:
    """An empty tally for the documents that were read in steps first..last.

    Raises:
        TrainError: No document was.
    """
    read = (run.documents_read(step) for step in range(first, last + 1))
    documents = reduce(np.union1d, read).astype(np.int64)
    if not len(documents):
        raise TrainError(f"no document was read in steps {first} to {last} of {run.path}")
    sizes = run.store.lengths[documents].astype(np.int64) + 1
    starts = np.cumsum(sizes) - sizes
    totals = np.zeros((n_questions, int(sizes.sum())))
    return Tally(run.store, run.order.context, documents, starts, totals)


def heaviest(scores: Float64[np.ndarray, " token"]) -> tuple[int, int]:
    """Offset and length of the stretch with the largest sum, one token at least; 0, 0 of none."""
    if not len(scores):
        return 0, 0
    sums = np.concatenate([[0.0], np.cumsum(scores)])
    lowest = np.minimum.accumulate(sums[:-1])
    stop = int((sums[1:] - lowest).argmax()) + 1
    start = int(sums[:stop].argmin())
    return start, stop - start


ROOM = 4 << 30  # bytes on disk
SPAN = 1000  # steps, at most, where a ranking does not say how many

Progress = Callable[[str, int, int | None], None] | None


@dataclass(frozen=True)
class ReplayOptions:
    """Which steps a ranking goes back through, and where the states between them lie.

    Attributes:
        steps: How many of the last; None: an epoch, `SPAN` at most.
        room: Bytes of disk for states; with little, steps are trained again.
        scratch: Folder for them; None: the system's for temporary files.

    Raises:
        EvidenceError: No step.
    """

    steps: int | None = None
    room: int = ROOM
    scratch: Path | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise EvidenceError(f"replay goes back through 1 step or more, not {self.steps}")


WHOLE = ReplayOptions()


@dataclass(frozen=True, eq=False)
class Influence:
    """How much each question hangs on the weight of each document in steps first..last.

    Attributes:
        questions, units: What was asked, and of what the answers and scores are.
        answers: Mean over prompts, behind step `last`.
        documents: Those read in these steps, ascending.
        scores: Derivative of the answer by the document's weight: about what the answer loses when
            the document is left out of these steps.
        first, last: Steps, both included.
        target_scores: The same of single targets: for each document its tokens and then the
            end-of-text behind it, documents end to end from `target_starts` on.
        replayed: Steps that were trained again; those of `differing` were not bit for bit.
        seconds: Wall time.
    """

    questions: tuple[str, ...]
    units: tuple[str, ...]
    answers: Float64[np.ndarray, " question"]
    documents: Int64[np.ndarray, " document"]
    scores: Float64[np.ndarray, "question document"]
    first: int
    last: int
    target_scores: Float64[np.ndarray, "question target"]
    target_starts: Int64[np.ndarray, " document"]
    replayed: int
    differing: tuple[int, ...]
    seconds: float

    def ranking(self, question: int = 0) -> Ranking:
        """The documents by falling score; a place is the stretch that speaks most for it."""
        return ranked(
            self.documents,
            self.scores[question],
            where=lambda document: self.where(document, question),
            signed=True,
            formula=f"d {self.questions[question]} / d weight of the document in training",
            details={
                "steps": [self.first, self.last],
                "answer": float(self.answers[question]),
                "unit": self.units[question],
                "bit-exact replay": not self.differing,
            },
        )

    def where(self, document: int, question: int = 0) -> tuple[int, int]:
        """Offset and length of the stretch of its tokens whose scores have the largest sum."""
        row = int(np.searchsorted(self.documents, document))
        ends = np.append(self.target_starts[1:], self.target_scores.shape[1])
        begin = self.target_starts[row]
        return heaviest(self.target_scores[question, begin : ends[row] - 1])


def influence(
    run: Run,
    asked: Query | Sequence[Query],
    *,
    first: int = 0,
    last: int | None = None,
    windows: int | None = None,
    room: int = ROOM,
    scratch: Path | None = None,
    progress: Progress = None,
) -> Influence:
    """What each document that was read in steps first..last did for the answers behind `last`.

    Costs about four times what training these steps did, for one question; every further one three
    times. All questions share the replay. Memory does not grow with the number of steps.

    Args:
        last: Default: the last step before the last checkpoint, which has the run's weights.
        windows: At most so many pass through the model at a time; default: half as many as the
            trainer took, which takes less than twice its memory.
        room: Bytes of disk for states in between; with little, steps are trained again.
        scratch: Folder for them; default: the system's for temporary files.
        progress: Called with (what, steps done, steps in all).

    Raises:
        EvidenceError: No such steps, no question, or not even the fewest states fit.
        TrainError: No checkpoint at or before `first` kept its optimizer.
        DiskError: The disk is full.
    """
    begin = time.perf_counter()
    asked = [asked] if isinstance(asked, Query) else list(asked)
    last = run.saved_at(None).step - 1 if last is None else last
    _check_span(run, asked, first, last)
    tally = of_span(run, len(asked), first, last)
    numerics = on_this_machine(run.numerics)
    with applied(numerics), _folder(scratch) as folder:
        trail = ReplayTrail(run, numerics, folder, _states_that_fit(run, room, first, last))
        windows = windows or -(-(run.recipe.micro_batch_size or run.recipe.batch_size) // 2)
        answers = _walk(trail, asked, tally, first, last, windows, progress)
    return Influence(
        questions=tuple(one.name for one in asked),
        units=tuple(one.unit for one in asked),
        answers=answers,
        documents=tally.documents,
        scores=np.add.reduceat(tally.totals, tally.starts, axis=1),
        first=first,
        last=last,
        target_scores=tally.totals,
        target_starts=tally.starts,
        replayed=trail.replayed,
        differing=tuple(sorted(trail.differing)),
        seconds=time.perf_counter() - begin,
    )


def rank_by_replay(request: Request, *, window: ReplayOptions = WHOLE) -> Ranking:
    """The documents read in the last steps by their exact influence on the request's question.

    Replay begins at the last checkpoint at or before the first step that kept its optimizer. Where
    none did the first step is that of the first checkpoint which did. `details` say both.

    Args:
        window: Which steps, and where the states between them lie.

    Raises:
        TrainError: No checkpoint before the end kept its optimizer.
    """
    run = request.run
    epoch = -(-run.store.train_tokens // run.recipe.tokens_per_step)
    asked = window.steps or min(epoch, SPAN)
    first, last = span(run, asked)
    found = influence(
        run,
        request.query,
        first=first,
        last=last,
        room=window.room,
        scratch=window.scratch,
        progress=request.progress,
    ).ranking()
    begun = max(one.step for one in run.saved if one.resumable and one.step <= first)
    short = {"asked for": asked} if last + 1 - first < asked else {}
    return replace(found, details={**found.details, "from checkpoint": begun, **short})


def span(run: Run, steps: int) -> tuple[int, int]:
    """The last `steps` steps before the last checkpoint, first and last, as far as replay reaches.

    Where no checkpoint before them kept its optimizer the first is that of the first which did. Of
    a run that was stopped the steps behind its last checkpoint left no weights to ask.
    """
    end = run.saved_at(None).step
    kept = [one.step for one in run.saved if one.resumable and one.step < end]
    return max(end - steps, *kept[:1], 0), end - 1


def of_question(model: GPT, question: Query) -> tuple[float, Float[torch.Tensor, " parameter"]]:
    """Its mean answer over prompts, and the gradient of that by the weights."""
    parameters, n_prompts = list(model.parameters()), len(question.tokens)
    total, gradient = 0.0, torch.zeros_like(optimizer_vectors.flat(parameters))
    for rows in torch.arange(n_prompts).split(queries.ROWS):
        answer = queries.query_scores(model, question, rows).sum() / n_prompts
        pieces = torch.autograd.grad(answer, parameters, materialize_grads=True)
        gradient += optimizer_vectors.flat(pieces)
        total += answer.item()
    return total, gradient


def _walk(
    trail: ReplayTrail,
    asked: Sequence[Query],
    tally: Tally,
    first: int,
    last: int,
    windows: int | None,
    progress: Progress,
) -> Float64[np.ndarray, " question"]:
    """Fill the tally from `last` down to `first`; the answers behind `last`."""
    run, answers, done = trail.run, np.zeros(len(asked)), 0
    model = double_backward.quicken(GPT(run.recipe.model)).to(trail.numerics.device)
    decayed, norms = optimizer_vectors.decayed(model), [row.grad_norm for row in trail.ledger]
    adjoint, after = None, None
    for step, state in replay.backwards(trail, first, last):
        _load(model, state)
        if adjoint is None or after is None:
            answers, adjoint = _last(model, asked)
        else:
            update = Update(step, state, after, norms[step], decayed)
            batch = read_batch(run.store, run.order, step, run.removal)
            adjoint, on_targets = backward_step.backwards(
                model, batch, adjoint, update, run.recipe, windows=windows
            )
            tally.add(run.order.starts(step), on_targets)
            done += 1
            if progress:
                progress("steps differentiated", done, last + 1 - first)
        after = state
    return answers


def _last(model: GPT, asked: Sequence[Query]) -> tuple[Float64[np.ndarray, " question"], Vectors]:
    """What is answered at the end, and how it hangs on the state there: on weights alone."""
    found = [of_question(model, one) for one in asked]
    weights = torch.stack([gradient for _, gradient in found])
    nothing = torch.zeros_like(weights)
    return np.array([answer for answer, _ in found]), Vectors(weights, nothing, nothing)


@torch.no_grad()
def _load(model: GPT, state: Vectors) -> None:
    for parameter, weights in zip(
        model.parameters(), optimizer_vectors.split(state.weights, model), strict=True
    ):
        parameter.copy_(weights)


def _check_span(run: Run, asked: Sequence[Query], first: int, last: int) -> None:
    if not asked:
        raise EvidenceError("no question was asked; give one or more")
    if not 0 <= first <= last < run.steps_done:
        raise EvidenceError(
            f"steps {first} to {last} cannot be differentiated: the run {run.path} has done 0 to "
            f"{run.steps_done - 1}"
        )


def _states_that_fit(run: Run, room: int, first: int, last: int) -> int:
    """How many states `room` bytes hold; refused when no way back goes through so few."""
    size = 12 * sum(one.numel() for one in GPT(run.recipe.model).parameters())
    n_states = max(stop - begin + 1 for begin, stop in replay.stretches(run, first, last))
    if not replay.room_for(n_states, room // size):
        raise EvidenceError(
            f"{n_states} states of {size:,} bytes lie between two checkpoints, and {room:,} bytes "
            f"of disk hold {room // size}; give more room"
        )
    return room // size


@contextmanager
def _folder(scratch: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="openbook-replay-", dir=scratch) as folder:
        yield Path(folder)
