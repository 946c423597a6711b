"""Exact influence of documents on a query, by replaying training and differentiating it in reverse.

The answer to a query at the end of a run is a function of the weight that each document's loss had
in the run. `influence` returns the derivative of that function at the actual run, for all documents
at once. It is not a first-order approximation in the steps: every later step reacts to what an
earlier one changed, through AdamW's moments, clipping and the learning rate. This is the
metagradient of MAGIC (Ilyas & Engstrom 2025, arXiv 2504.16430), on a run whose data order, weights
and moments are known to the bit. A document's score predicts what removing it from the steps
first..last takes from the answer (`train.data.DocumentRemoval` with `mode="loss"`: its targets and
the end-of-text behind it lose their loss, its tokens stay as context).

A derivative predicts small changes. It does not see the removal of many documents together,
clipping that sets in or ends, and weights that a single document moves
(`metagradients.backward_step`). Weights and moments are the run's own, in its precision; the
reverse pass is fp32 even where the trainer multiplied in bf16.

`Tally` adds up the derivatives of single targets: by document, and within it by token.
`rank_by_replay` ranks the documents of the last steps for any number of requests.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
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
from data_attribution.request import Request, run_and_seed
from train.data import TokenStore, read_batch
from train.errors import TrainError
from train.model import GPT
from train.numerics import applied, on_this_machine
from train.progress import Progress
from train.runs import Run
from train.short_repr import short_repr


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
    """Sums of derivatives, one number for each query and each target of some documents.

    Attributes:
        documents: Indices of the documents, ascending.
        starts: Index in `totals` where each document's targets begin: its tokens, then the
            end-of-text.
        totals: For query q and target t, the sum of dF_q / ds over all readings of t, where F_q is
            the final answer to q and s the weight of t in the loss of the step that read it. A
            document's score is the sum over its targets.
    """

    store: TokenStore
    context: int
    documents: Int64[np.ndarray, " document"]
    starts: Int64[np.ndarray, " document"]
    totals: Float64[np.ndarray, "question target"]

    __repr__ = short_repr

    def add(
        self,
        windows: Int64[np.ndarray, " batch"],
        scores: Float[torch.Tensor, "question batch pos"],
    ) -> None:
        """Add the derivatives of the targets of the windows that begin at these offsets."""
        # A window's inputs begin at its offset, its targets one token later.
        offsets = (windows[:, None] + 1 + np.arange(self.context)).ravel()
        begins = self.store.starts[self.documents]
        row = np.searchsorted(begins, offsets, side="right") - 1
        # The end-of-text behind a document is its last target; other tokens between documents are
        # padding.
        within = offsets - begins[row]
        taught = (row >= 0) & (within <= self.store.lengths[self.documents][row])
        places = (self.starts[row] + within)[taught]
        for total, found in zip(self.totals, scores.flatten(1).double().cpu().numpy(), strict=True):
            np.add.at(total, places, found[taught])


def of_span(run: Run, n_questions: int, first: int, last: int) -> Tally:
    """Return an empty tally for the documents that were read in steps first..last.

    Raises:
        TrainError: No document was read.
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
    """Return offset and length of the passage with the largest sum of scores.

    It has at least one token; without scores, the result is (0, 0).
    """
    if not len(scores):
        return 0, 0
    sums = np.concatenate([[0.0], np.cumsum(scores)])
    # The sum over [start, stop) is sums[stop] - sums[start], so for each stop the best start is
    # that of the lowest sum before it.
    lowest = np.minimum.accumulate(sums[:-1])
    stop = int((sums[1:] - lowest).argmax()) + 1
    start = int(sums[:stop].argmin())
    return start, stop - start


# Options and result of a replay.
ROOM = 4 << 30  # bytes on disk
SPAN = 1000  # largest number of steps, where a ranking does not say how many


@dataclass(frozen=True)
class ReplayOptions:
    """Options of a replay: its steps, and where the states between them are stored.

    Attributes:
        steps: Number of last steps; None: one epoch, at most `SPAN`.
        room: Bytes of disk for states; with less room, steps are retrained more often.
        scratch: Folder for the states; None: the system's folder for temporary files.

    Raises:
        EvidenceError: The number of steps is below 1.
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
    """Derivatives of the answers to queries by the weight of each document in steps first..last.

    Attributes:
        questions: Names of the queries.
        units: Units of each query's answer and scores.
        answers: Answers after step `last`, as means over prompts.
        documents: Documents that were read in these steps, ascending.
        scores: Derivative of the answer by the document's weight: about what the answer loses when
            the document is removed from these steps.
        first, last: First and last step, both included.
        target_scores: Derivatives for single targets: for each document its tokens and then the
            end-of-text behind it, documents end to end.
        target_starts: Index in `target_scores` where each document begins.
        replayed: Number of steps that were trained again.
        differing: Those of them that were not bit-identical.
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

    __repr__ = short_repr

    def ranking(self, question: int = 0) -> Ranking:
        """Rank the documents by falling score, each with its most influential passage."""
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
        """Return offset and length of the document's passage with the largest sum of scores."""
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
    progress: Progress | None = None,
) -> Influence:
    """Return the influence of each document read in steps first..last on the answers after `last`.

    Costs about four times the training of these steps for one query, and three times for every
    further one. All queries share the replay. Memory does not grow with the number of steps.

    Args:
        last: Last step; default: the one before the last checkpoint, which has the run's weights.
        windows: Largest number of windows that pass through the model at a time; default: half as
            many as in training, which takes less than twice its memory.
        room: Bytes of disk for intermediate states; with less room, steps are retrained more often.
        scratch: Folder for the states; default: the system's folder for temporary files.
        progress: Callback for (what, steps done, steps in all).

    Raises:
        EvidenceError: There are no such steps, no query is given, not even the fewest states fit,
            or the run's optimizer is Muon.
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


def rank_by_replay(requests: Sequence[Request], *, window: ReplayOptions = WHOLE) -> list[Ranking]:
    """Rank the documents read in the last steps by their exact influence on each request's query.

    All requests share one replay. It begins at the last checkpoint at or before the first step that
    kept its optimizer. If there is none, the first step is that of the first checkpoint that did.
    `details` records both steps.

    Args:
        requests: Requests to one run with one seed.
        window: Steps to replay, and where the states between them are stored.

    Raises:
        TrainError: No checkpoint before the end kept its optimizer.
        EvidenceError: The requests cannot be answered together.
    """
    run, _ = run_and_seed(requests)
    epoch = -(-run.store.train_tokens // (run.order.batch * run.order.context))
    wanted = window.steps or min(epoch, SPAN)
    first, last = span(run, wanted)
    influences = influence(
        run,
        [request.query for request in requests],
        first=first,
        last=last,
        room=window.room,
        scratch=window.scratch,
        progress=requests[0].progress,
    )
    begin = max(one.step for one in run.saved if one.resumable and one.step <= first)
    details = {"from checkpoint": begin}
    if last + 1 - first < wanted:
        details["asked for"] = wanted
    rankings = map(influences.ranking, range(len(requests)))
    return [replace(one, details={**one.details, **details}) for one in rankings]


def span(run: Run, steps: int) -> tuple[int, int]:
    """Return the first and last of the `steps` steps before the last checkpoint.

    Where no checkpoint at or before the first step kept its optimizer, the first step is that of
    the first checkpoint that did. If a run was stopped, the steps after its last checkpoint do not
    count: they left no weights on which a query could be measured.

    Examples:
        >>> metagradients.span(run, 100)
        (2000, 2099)
    """
    end = run.saved_at(None).step
    kept = [one.step for one in run.saved if one.resumable and one.step < end]
    return max(end - steps, *kept[:1], 0), end - 1


def of_question(model: GPT, question: Query) -> tuple[float, Float[torch.Tensor, " parameter"]]:
    """Return a query's mean answer over prompts, and its gradient with respect to the weights."""
    parameters, n_prompts = list(model.parameters()), len(question.tokens)
    total, gradient = 0.0, torch.zeros_like(optimizer_vectors.flat(parameters))
    for rows in torch.arange(n_prompts).split(queries.ROWS):
        answer = queries.query_scores(model, question, rows).sum() / n_prompts
        pieces = torch.autograd.grad(answer, parameters, materialize_grads=True)
        gradient += optimizer_vectors.flat(pieces)
        total += answer.item()
    return total, gradient


# The reverse pass, from the last step to the first.
def _walk(
    trail: ReplayTrail,
    asked: Sequence[Query],
    tally: Tally,
    first: int,
    last: int,
    windows: int | None,
    progress: Progress | None,
) -> Float64[np.ndarray, " question"]:
    """Fill the tally from `last` down to `first`; return the answers after `last`."""
    run, answers, done = trail.run, np.zeros(len(asked)), 0
    model = double_backward.quicken(GPT(run.recipe.model)).to(trail.numerics.device)
    decayed, norms = optimizer_vectors.decayed(model), [row.grad_norm for row in trail.ledger]
    adjoint, after = None, None
    # Invariant: `adjoint` holds the derivatives of the answers with respect to `after`, the state
    # before step + 1. The first state, before `last` + 1, only starts the recursion.
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
    """Return the answers at the end, and their derivatives, which are zero for the moments."""
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
    if run.recipe.optimizer != "adamw":
        raise EvidenceError(
            f"the run {run.path} was trained with {run.recipe.optimizer}; replay differentiates "
            "the steps of AdamW only: rank by gradients of kind 'curvature' or by text"
        )
    if run.recipe.objective == "dpo":
        raise EvidenceError(
            f"the run {run.path} was tuned by dpo; replay differentiates the loss of next tokens "
            "only: rank by gradients or by text"
        )
    if run.recipe.methods or run.recipe.model.mtp:
        raise EvidenceError(
            f"the run {run.path} was trained with {', '.join(run.recipe.methods) or 'mtp'}; replay "
            "differentiates the loss of the next token only: rank by gradients or by text"
        )
    if not asked:
        raise EvidenceError("no question was asked; give one or more")
    if not 0 <= first <= last < run.steps_done:
        raise EvidenceError(
            f"steps {first} to {last} cannot be differentiated: the run {run.path} has done 0 to "
            f"{run.steps_done - 1}"
        )


def _states_that_fit(run: Run, room: int, first: int, last: int) -> int:
    """Return how many states `room` bytes hold.

    Raises:
        EvidenceError: So few states do not suffice for any reverse pass.
    """
    # fp32 weights and two moments.
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
