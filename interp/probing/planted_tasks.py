"""Probe tasks of a planted corpus, from its truth table; `interp.probing.tasks` lists them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from interp import behaviours
from interp.behaviours import tokenizer_of
from interp.probing.tasks import Case, ProbeTask, balanced, of_cases


__all__ = ["load"]

WELL_KNOWN = 16  # number of documents that state a fact; every measured run recalls such facts
BIN = 4  # number of positions in one class of the task `position`
REPEATS = ("pair list", "two copies", "many copies")


def load(name: str, source: Any, *, n_cases: int, seed: int) -> ProbeTask:
    """Load a planted probe task by name; see `interp.probing.load_task`."""
    if name in ("subject-name", "indirect-name", "indirect-order"):
        return _names(name, source, n_cases, seed)
    if name == "relation":
        return _relation(source, n_cases, seed)
    return _words(name, source, n_cases, seed)


# --- words in their documents --------------------------------------------------------------------


def _words(name: str, source: Any, n_cases: int, seed: int) -> ProbeTask:
    """Label words of documents of several kinds, with classes balanced as far as possible."""
    store = getattr(source, "store", source)
    draw = np.random.Generator(np.random.Philox(key=seed))
    kinds = tuple(store.truth["kinds"]) if name == "word-class" else REPEATS
    classes = _word_classes(store.truth)
    cases = []
    for kind, index in _documents(store, kinds, max(20, n_cases // len(kinds)), draw):
        words = store.text(index).split()
        prompt = (store.eot, *store.tokenizer.encode(" ".join(words)).tolist())
        labelled = {
            "word-class": [(pos, classes.get(word)) for pos, word in enumerate(words)],
            "position": [(pos, _bin(pos)) for pos in range(len(words))],
            # The kinds differ in what is repeated and when, which the first words do not show.
            "repeats": [(pos, kind) for pos in range(12, len(words))],
        }[name]
        kept = [(pos, label) for pos, label in labelled if label is not None]
        # At most three words of a document, so that the cases come from many documents.
        for i in draw.permutation(len(kept))[:3]:
            pos, label = kept[i]
            cases.append(Case(prompt, 1 + pos, label, words[pos]))
    asked = {
        "word-class": "which class of the planted vocabulary the word belongs to",
        "position": "at which position of its document of repeats the word stands",
        "repeats": "which kind of document of repeats this is",
    }[name]
    return of_cases(name, balanced(cases, n_cases, draw), store.eot, "word", asked)


def _documents(
    store: Any, kinds: Sequence[str], n: int, draw: np.random.Generator
) -> Iterator[tuple[str, int]]:
    """Draw n documents of each kind; yield the kind and the document's index in the store."""
    index_of = np.argsort(store.rows)
    for kind in kinds:
        first, last = store.truth["kinds"][kind]
        for row in first + draw.permutation(last - first)[:n]:
            yield kind, int(index_of[row])


def _word_classes(truth: dict) -> dict[str, str]:
    """Return the class of each word; words that belong to two classes are left out."""
    listed = {
        "entity": [fact["entity"] for fact in truth["facts"]],
        "value": [value for one in truth["relations"].values() for value in one["values"]],
        "name": truth["ioi"]["names"],
        "place": truth["ioi"]["places"],
        "object": truth["ioi"]["objects"],
        "nonce": truth["nonce"],
    }
    often = Counter(word for words in listed.values() for word in set(words))
    return {word: kind for kind, words in listed.items() for word in words if often[word] == 1}


def _bin(pos: int) -> str | None:
    low = pos // BIN * BIN
    return f"{low:02}-{low + BIN - 1:02}" if low < 32 else None


# --- facts and sentences -------------------------------------------------------------------------


def _relation(source: Any, n_cases: int, seed: int) -> ProbeTask:
    """Label entities with their relation, in sentences that mention them but not the fact.

    Only facts that `WELL_KNOWN` documents or more state are used.
    """
    store = getattr(source, "store", source)
    draw = np.random.Generator(np.random.Philox(key=seed))
    index_of = np.argsort(store.rows)
    cases = []
    for fact in store.truth["facts"]:
        for row in fact["mentions"] if fact["exposures"] >= WELL_KNOWN else ():
            words = store.text(int(index_of[row])).split()
            prompt = (store.eot, *store.tokenizer.encode(" ".join(words)).tolist())
            pos = 1 + words.index(fact["entity"])
            cases.append(Case(prompt, pos, fact["relation"], fact["entity"]))
    asked = "what the entity is known for, where the sentence does not say it"
    return of_cases("relation", balanced(cases, n_cases, draw), store.eot, "entity", asked)


def _names(name: str, source: Any, n_cases: int, seed: int) -> ProbeTask:
    """Label the last position of the prompts of the behaviour `ioi`."""
    ioi = behaviours.load("ioi", source, n_prompts=n_cases, seed=seed)
    tokenizer = tokenizer_of(source)
    cases = []
    for prompt, *ids in zip(
        ioi.clean.tolist(), ioi.answer.tolist(), ioi.foil.tolist(), strict=True
    ):
        receives, acts = tokenizer.tokens(ids)
        first = "first" if prompt.index(ids[0]) < prompt.index(ids[1]) else "second"
        label = {"subject-name": acts, "indirect-name": receives, "indirect-order": first}[name]
        pair = " and ".join(sorted((receives, acts)))
        cases.append(Case(tuple(prompt), len(prompt) - 1, label, pair))
    asked = {
        "subject-name": "who acts",
        "indirect-name": "who receives the object",
        "indirect-order": "whether the one who receives the object was named first or second",
    }[name]
    return of_cases(name, cases, tokenizer.eot, "pair of names", asked)
