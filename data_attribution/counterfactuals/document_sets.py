"""The sets of documents that are removed together, and the random sets that are their controls."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Int64

from data_attribution.errors import CounterfactualError
from train.data import Together, document_sha256s, with_duplicates
from train.runs import Run


__all__ = [
    "RULE",
    "checked_documents",
    "kept_out",
    "matched_random",
    "matched_random_sets",
    "with_copies",
]

# How a control is drawn by its seed; manifests record it. Before it was numbered, the likest
# document was taken, so that several seeds often gave the same control.
RULE = 2
LIKEST = 8  # documents, or texts, of which one is drawn
CANDIDATES = 128  # documents of nearest length that are compared by their first steps
TRIES = 50  # draws for every control, of which some may be equal


def checked_documents(run: Run, documents: Sequence[int], *, first: int = 0) -> tuple[int, ...]:
    """Return the documents, ascending and once each, if all were read at step `first` or later.

    Raises:
        CounterfactualError: There are no documents, unknown ones, or one that was never read.
    """
    removed = tuple(sorted({int(one) for one in documents}))
    if not removed:
        raise CounterfactualError("no documents to remove were given; nothing would change")
    if not 0 <= removed[0] <= removed[-1] < run.store.n_documents:
        raise CounterfactualError(
            f"documents {removed[0]} to {removed[-1]} are not all among the "
            f"{run.store.n_documents} of the store"
        )
    if first:
        never = [one for one in removed if not (run.steps_learned(one) >= first).any()]
    else:
        never = _unread(run, removed)
    if never:
        span = f"from step {first} on of " if first else "in "
        raise CounterfactualError(
            f"{len(never)} of the {len(removed)} documents were never read {span}"
            f"{run.saved_at(None).step} steps (first: document {never[0]}); leave them out of the "
            "list"
        )
    return removed


def _unread(run: Run, documents: Sequence[int]) -> list[int]:
    firsts = run.first_steps_learned(documents)
    return [one for one, step in zip(documents, firsts, strict=True) if step < 0]


def _first_steps(run: Run, documents: Sequence[int]) -> dict[int, int]:
    """Return the documents that the run read, in the given order, with their first steps."""
    firsts = run.first_steps_learned(documents).tolist()
    return {one: step for one, step in zip(documents, firsts, strict=True) if step >= 0}


def _hold_copies(run: Run, documents: Sequence[int]) -> bool:
    """Return whether two of the documents have the same text."""
    texts = {run.store.document(one).sha256 for one in documents}
    return len(texts) < len(documents)


def _read_copies(run: Run) -> list[dict[int, int]]:
    """Return the documents that the run read, grouped by text, each with its first step.

    Texts with one copy are left out.
    """
    groups: dict[str, list[int]] = {}
    for document, sha256 in enumerate(document_sha256s(run.store)):
        groups.setdefault(sha256, []).append(document)
    repeated = [some for some in groups.values() if len(some) > 1]
    firsts = _first_steps(run, [one for some in repeated for one in some])
    read = ({one: firsts[one] for one in some if one in firsts} for some in repeated)
    return [some for some in read if len(some) > 1]


def with_copies(run: Run, documents: Sequence[int], which: Together) -> tuple[int, ...]:
    """Return the documents and those of their copies that the run read, ascending.

    Examples:
        >>> counterfactuals.with_copies(run, [28867], "near")
        (28867, 28874)
    """
    found = with_duplicates(run.store, documents, which) - {*documents}
    return tuple(sorted({*documents, *(one for one in found if len(run.steps_learned(one)))}))


def kept_out(run: Run, removed: Collection[int], avoid: Collection[int]) -> frozenset[int]:
    """Return the documents besides `removed` that no control may hold.

    These are `avoid`, and the copies of both.

    Examples:
        >>> counterfactuals.kept_out(run, [28867], avoid=[2456])
        frozenset({2456, 28874})
    """
    return frozenset(with_duplicates(run.store, {*removed, *avoid}, "near")) - {*removed}


def matched_random(
    run: Run, documents: Sequence[int], *, seed: int, avoid: Collection[int] = ()
) -> tuple[int, ...]:
    """Return as many other documents, matched by redundancy, length and first reading step.

    None of them is in `avoid`: pass `kept_out`, or copies of `documents` may be drawn. Several
    seeds may give the same documents; `matched_random_sets` returns different ones.

    A text of which `documents` hold all of several read copies is gone from the training, so the
    control takes all read copies of another text that has as many. If there is no such text, and
    for all other documents, the control is drawn one by one, and the copies of what is drawn stay
    in the training. Each text and each document is drawn at random from the 8 that are most like
    it: those that were read and have the nearest length (farther lengths only until there are 8; at
    most 128, drawn at random, of one length), and of these the 8 that were first read at the
    nearest step.

    Raises:
        CounterfactualError: The run read too few other documents, or not all of `documents`.

    Examples:
        >>> removed = (2456, 28867)
        >>> avoid = counterfactuals.kept_out(run, removed, avoid=())
        >>> random = counterfactuals.matched_random(run, removed, seed=0, avoid=avoid)
        >>> [sorted(store.lengths[list(some)].tolist()) for some in (removed, random)]
        [[6, 7], [6, 7]]
    """
    return _comparison(run, documents, avoid).drawn(seed)


def matched_random_sets(
    run: Run, documents: Sequence[int], n: int, *, avoid: Collection[int] = ()
) -> dict[int, tuple[int, ...]]:
    """Return n different controls as `matched_random` draws them, each by its seed.

    Seeds are tried from 0 on, and those that give a control once more are left out: the same
    documents removed twice are one retraining, and say nothing about how much controls differ.

    Raises:
        CounterfactualError: The run read too few other documents, or not all of `documents`, or
            there are fewer than n different controls.

    Examples:
        >>> several = counterfactuals.matched_random_sets(run, [28867], 3)
        >>> list(several), len({*several.values()})
        ([0, 1, 2], 3)
    """
    comparison = _comparison(run, documents, avoid)
    found: dict[tuple[int, ...], int] = {}
    for seed in range(TRIES * n):
        if len(found) == n:
            break
        found.setdefault(comparison.drawn(seed), seed)
    if len(found) < n:
        raise CounterfactualError(
            f"{n} different controls were asked for, and {TRIES * n} draws of as many documents "
            f"as the {len(comparison.own)} removed ones, each from up to {LIKEST} most like it, "
            f"gave {len(found)}; ask for at most {len(found)}, or remove or avoid other documents"
        )
    return {seed: control for control, seed in found.items()}


@dataclass(frozen=True)
class _Comparison:
    """Everything that the draws of all controls of the same documents have in common.

    Attributes:
        own: Removed documents, ascending, with their first steps.
        taken: Documents that no control may hold, the removed ones included.
        by_length: All documents of the store, ascending by length.
        lengths: Their lengths, in tokens.
        repeated: Texts with several read copies, if all copies of one may be removed.
    """

    run: Run
    own: dict[int, int]
    taken: frozenset[int]
    by_length: Int64[np.ndarray, " document"]
    lengths: Int64[np.ndarray, " document"]
    repeated: list[dict[int, int]]

    def drawn(self, seed: int) -> tuple[int, ...]:
        """Return the documents of the control with this seed."""
        draw, taken = np.random.default_rng(seed), {*self.taken}
        chosen: list[int] = []
        others = [some for some in self.repeated if taken.isdisjoint(some)]
        matched: set[int] = set()
        for some in self.repeated:
            if self.own.keys() >= some.keys() and (text := self._like_text(some, others, draw)):
                others.remove(text)
                chosen += text
                taken |= {*text}
                matched |= {*some}
        for document in sorted(self.own.keys() - matched):
            one = self._like_document(document, taken, draw)
            chosen.append(one)
            taken.add(one)
        return tuple(sorted(chosen))

    def _like_text(
        self, removed: dict[int, int], others: list[dict[int, int]], draw: np.random.Generator
    ) -> dict[int, int] | None:
        """Return one of `others` with as many copies; None if there is none."""
        alike = [some for some in others if len(some) == len(removed)]
        if not alike:
            return None
        alike = [alike[i] for i in draw.permutation(len(alike))]
        lengths = self.run.store.lengths[[next(iter(some)) for some in (removed, *alike)]]
        firsts = np.array([min(some.values()) for some in (removed, *alike)])
        return alike[_one_of_likest(abs(lengths[1:] - lengths[0]), firsts[1:] - firsts[0], draw)]

    def _like_document(self, document: int, taken: set[int], draw: np.random.Generator) -> int:
        """Return a document that the run read, of near length and first step, not in `taken`."""
        length = int(self.run.store.lengths[document])
        firsts = self._near_length(length, taken, draw)
        if not firsts:
            raise CounterfactualError(
                f"a control needs documents beside the {len(taken)} removed or avoided ones, and "
                f"the run read no other of the {len(self.by_length)} in the store"
            )
        found, steps = np.array([*firsts]), np.array([*firsts.values()])
        distances = abs(self.run.store.lengths[found] - length)
        return int(found[_one_of_likest(distances, steps - self.own[document], draw)])

    def _near_length(
        self, length: int, taken: set[int], draw: np.random.Generator
    ) -> dict[int, int]:
        """Return read documents of about this length in random order, with first steps.

        They are at least `LIKEST`, unless the run read fewer, and at most `CANDIDATES`.
        """
        spread = 0
        while True:
            ends = [length - spread, length + spread + 1]
            low, high = self.lengths.searchsorted(ends).tolist()
            alike = draw.permutation(self.by_length[low:high])
            free = (int(one) for one in alike if one not in taken)
            found: dict[int, int] = {}
            while len(found) < CANDIDATES and (some := list(islice(free, CANDIDATES))):
                found |= _first_steps(self.run, some)
            if len(found) >= LIKEST or high - low == len(self.lengths):
                return dict(islice(found.items(), CANDIDATES))
            spread = max(1, 2 * spread)


def _comparison(run: Run, documents: Sequence[int], avoid: Collection[int]) -> _Comparison:
    removed = checked_documents(run, documents)
    # All texts are compared only if a text may be gone.
    repeated = _read_copies(run) if _hold_copies(run, removed) else []
    by_length = np.argsort(run.store.lengths, kind="stable")
    return _Comparison(
        run=run,
        own=_first_steps(run, removed),
        taken=frozenset({*removed, *avoid}),
        by_length=by_length,
        lengths=run.store.lengths[by_length],
        repeated=repeated,
    )


def _one_of_likest(
    distances: Int64[np.ndarray, " one"],
    delays: Int64[np.ndarray, " one"],
    draw: np.random.Generator,
) -> int:
    """Draw one of the `LIKEST` with the nearest first step among those of nearest length.

    Ties keep their order, which is to be random.

    Args:
        distances: Differences of length, in tokens.
        delays: Differences of first step, of either sign.
    """
    farthest = np.sort(distances)[:LIKEST][-1]
    near = np.flatnonzero(distances <= farthest)
    likest = near[np.argsort(abs(delays[near]), kind="stable")][:LIKEST]
    return int(draw.choice(likest))
