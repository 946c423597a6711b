"""Matched random documents are those that were drawn when each document was looked up alone.

`drawn_one_by_one` is the algorithm as it was written first: it asks the run for the steps of one
document at a time. Recorded seeds must go on to mean the same documents.
"""

from itertools import islice

import numpy as np
import pytest

from data_attribution import counterfactuals
from train.data import document_sha256s


pytestmark = pytest.mark.integration


def drawn_one_by_one(run, removed, seed, avoid=()):
    """Draw a control with a call of `steps_learned` for every candidate."""
    lengths, draw = run.store.lengths, np.random.default_rng(seed)

    def first(document):
        return int(run.steps_learned(document)[0])

    groups: dict[str, list[int]] = {}
    for document, sha256 in enumerate(document_sha256s(run.store)):
        groups.setdefault(sha256, []).append(document)
    read = [[one for one in some if len(run.steps_learned(one))] for some in groups.values()]
    texts = [some for some in read if len(some) > 1]
    if not any(len({*some} & {*removed}) > 1 for some in groups.values()):
        texts = []
    taken, chosen, matched = {*removed, *avoid}, [], set()
    others = [some for some in texts if taken.isdisjoint(some)]
    for gone in (some for some in texts if {*removed}.issuperset(some)):
        alike = [some for some in others if len(some) == len(gone)]
        alike = [alike[i] for i in draw.permutation(len(alike))]
        length = int(lengths[gone[0]])
        near = sorted(alike, key=lambda some: abs(int(lengths[some[0]]) - length))[:16]
        step = min(map(first, gone))
        if text := min(near, key=lambda some: abs(first(some[0]) - step), default=None):
            others.remove(text)
            chosen += text
            taken |= {*text}
            matched |= {*gone}
    for document in sorted({*removed} - matched):
        for spread in (0, 1, 2, 4, 8, 1 << 40):
            distances = np.abs(lengths - int(lengths[document]))
            alike = draw.permutation(np.flatnonzero(distances <= spread)).tolist()
            steps = ((one, run.steps_learned(one)) for one in alike if one not in taken)
            firsts = dict(islice(((one, int(some[0])) for one, some in steps if len(some)), 16))
            if firsts:
                break
        step = first(document)
        nearest = min(firsts, key=lambda one: abs(firsts[one] - step))
        chosen.append(nearest)
        taken.add(nearest)
    return tuple(sorted(chosen))


@pytest.mark.parametrize("seed", range(2))
def test_texts_with_all_their_copies_and_single_documents_are_drawn_as_before(lookup_run, seed):
    store = lookup_run.store
    gone = [one for one in range(store.n_documents) if store.text(one) in ("k3 is v3", "k5 is v5")]
    for removed in (gone, gone[:-1], [0, 100]):
        drawn = counterfactuals.matched_random(lookup_run, removed, seed=seed, avoid=[1, 2])
        assert drawn == drawn_one_by_one(lookup_run, removed, seed, avoid=[1, 2])


@pytest.mark.parametrize("seed", range(2))
def test_documents_of_many_lengths_are_drawn_as_before(tiny_run, seed):
    """Some lengths have no other document, and some documents were never read."""
    read = [one for one in range(tiny_run.store.n_documents) if len(tiny_run.steps_learned(one))]
    removed = np.random.default_rng(seed).permutation(read)[:20].tolist()
    drawn = counterfactuals.matched_random(tiny_run, removed, seed=seed)
    assert drawn == drawn_one_by_one(tiny_run, removed, seed)
