"""The sets of documents that are removed together, and the random sets that are their controls."""

from collections.abc import Collection, Sequence
from itertools import islice

import numpy as np
from jaxtyping import Int64

from data_attribution.errors import CounterfactualError
from train.data import Together, document_sha256s, with_duplicates
from train.runs import Run


__all__ = ["checked_documents", "kept_out", "matched_random", "with_copies"]

NEAREST = 16  # documents of nearest length, of which the one with the nearest first step is taken


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


def _near_length(
    run: Run,
    lengths: Int64[np.ndarray, " document"],
    length: int,
    taken: set[int],
    draw: np.random.Generator,
) -> dict[int, int]:
    """Return up to `NEAREST` documents that the run read, of nearest length, with first steps."""
    for spread in (0, 1, 2, 4, 8, 1 << 40):
        alike = draw.permutation(np.flatnonzero(np.abs(lengths - length) <= spread))
        free = (int(one) for one in alike if one not in taken)
        found: dict[int, int] = {}
        while len(found) < NEAREST and (some := list(islice(free, 2 * NEAREST))):
            found |= _first_steps(run, some)
        found = dict(islice(found.items(), NEAREST))
        if found:
            return found
    raise CounterfactualError(
        f"a control needs documents beside the {len(taken)} removed or avoided ones, and the run "
        f"read no other of the {len(lengths)} in the store"
    )


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


def _matched_text(
    run: Run, removed: dict[int, int], others: list[dict[int, int]], draw: np.random.Generator
) -> dict[int, int] | None:
    """Return one of `others` with as many copies; None if there is none."""
    lengths, length = run.store.lengths, int(run.store.lengths[next(iter(removed))])
    alike = [some for some in others if len(some) == len(removed)]
    shuffled = [alike[i] for i in draw.permutation(len(alike))]
    near = sorted(shuffled, key=lambda some: abs(int(lengths[next(iter(some))]) - length))
    first = min(removed.values())
    return min(
        near[:NEAREST],
        key=lambda some: abs(next(iter(some.values())) - first),
        default=None,
    )


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

    None of them is in `avoid`: pass `kept_out`, or copies of `documents` may be drawn.

    A text of which `documents` hold all of several read copies is gone from the training, so the
    control takes all read copies of another text that has as many: of the 16 with the nearest
    length, the one first read at the nearest step. If there is no such text, and for all other
    documents, the control is drawn one by one, and the copies of what is drawn stay in the
    training: each among the documents that were read and have the nearest length; of 16 drawn, the
    one first read at the nearest step is taken.

    Raises:
        CounterfactualError: The run read too few other documents, or not all of `documents`.

    Examples:
        >>> removed = (2456, 28867)
        >>> avoid = counterfactuals.kept_out(run, removed, avoid=())
        >>> random = counterfactuals.matched_random(run, removed, seed=0, avoid=avoid)
        >>> [sorted(store.lengths[list(some)].tolist()) for some in (removed, random)]
        [[6, 7], [6, 7]]
    """
    removed, lengths = checked_documents(run, documents), run.store.lengths
    own = _first_steps(run, removed)
    taken, draw = {*removed, *avoid}, np.random.default_rng(seed)
    chosen: list[int] = []
    # All texts are compared only if a text may be gone.
    repeated = _read_copies(run) if _hold_copies(run, removed) else []
    others = [some for some in repeated if taken.isdisjoint(some)]
    matched: set[int] = set()
    for some in (one for one in repeated if {*removed}.issuperset(one)):
        if text := _matched_text(run, some, others, draw):
            others.remove(text)
            chosen += text
            taken |= {*text}
            matched |= {*some}
    for document in sorted({*removed} - matched):
        firsts = _near_length(run, lengths, int(lengths[document]), taken, draw)
        nearest = min(firsts, key=lambda one: abs(firsts[one] - own[document]))
        chosen.append(nearest)
        taken.add(nearest)
    return tuple(sorted(chosen))
