"""Evaluation cases: facts of a planted corpus, for which the documents that state them are known.

The query asks for a fact in the first form of its relation. *Verbatim* facts are stated in that
form. *Paraphrase* facts are stated in other wordings only, so that their documents share only the
names with the query. Only facts with distractors are used (documents that name entity and value and
do not state the fact), so that sharing the words is not enough. Facts are dealt by their number of
documents in turn, so that each number occurs equally often as long as there are facts for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Literal

import numpy as np

from data_attribution import queries
from data_attribution.errors import EvidenceError
from data_attribution.queries import Query
from interp import behaviours
from interp.behaviours import Behaviour
from train import storage
from train.runs import Run
from train.short_repr import short_repr


__all__ = ["KINDS", "FactCase", "other_facts", "planted_facts", "planted_labels"]

KINDS = ("verbatim", "paraphrase")
PROMPTS = 24  # foils per fact; its relation has no more values


@dataclass(frozen=True, eq=False)
class FactCase:
    """One fact and the documents it was learned from.

    Attributes:
        kind: `verbatim` if it was ever stated in the form of the query, else `paraphrase`.
        relevant: Documents that state it and were read.
        distractors: Documents that name its words, do not state it, and were read.
        exposures: Number of documents that state it, read or not.
    """

    name: str
    kind: Literal["verbatim", "paraphrase"]
    behaviour: Behaviour
    relevant: frozenset[int]
    distractors: frozenset[int]
    exposures: int

    __repr__ = short_repr

    @property
    def question(self) -> Query:
        """Return the query for the logit difference between its value and those of other facts."""
        return queries.query_of_behaviour(self.behaviour)


# Choice of facts, by the truth table alone.
def planted_facts(
    run: Run, *, n: int = 30, least: int = 1, most: int | None = None, seed: int = 0
) -> tuple[FactCase, ...]:
    """Return at most `n` facts of each kind, chosen by seed; fewer if there are no more.

    Args:
        least: Smallest number of documents that state a fact.
        most: Largest number of documents that state a fact; None: no limit.

    Raises:
        EvidenceError: The run has no truth table, or no such facts, or `n` is below 1.

    Examples:
        >>> cases = evaluation.planted_facts(run, n=2, least=8)
        >>> cases[0].name, cases[0].kind, cases[0].exposures
        ('maker of somuthi', 'verbatim', 8)
    """
    if n < 1:
        raise EvidenceError(f"{n} facts of each kind are none; take 1 or more")
    chosen = [one for kind in KINDS for one in _dealt(run, kind, least, most, seed)[:n]]
    if not chosen:
        raise EvidenceError(
            f"no fact of {run.path} is stated {least} times or more and has distractors; "
            "take facts in fewer documents"
        )
    return tuple(_case(run, fact) for fact in chosen)


def other_facts(
    run: Run, cases: tuple[FactCase, ...], *, least: int = 16, n: int = 9
) -> tuple[FactCase, ...]:
    """Return well-known facts that are not in `cases`, a third of them per relation.

    They serve for choices, such as of components, that must not be made on evaluated facts.

    Raises:
        EvidenceError: There is no such fact.
    """
    asked = {case.name for case in cases}
    facts = [
        fact for fact in _truth(run)["facts"] if fact["exposures"] >= least
        and fact["name"] not in asked
    ]  # fmt: skip
    by_relation = [
        [fact for fact in facts if fact["relation"] == relation]
        for relation in _truth(run)["relations"]
    ]
    if not facts:
        raise EvidenceError(
            f"all facts stated {least} times or more are among the {len(cases)} evaluated; leave "
            "some out, or name components"
        )
    return tuple(_case(run, fact) for fact in _in_turn(by_relation)[:n])


def _dealt(
    run: Run, kind: str, least: int, most: int | None, seed: int
) -> list[storage.JsonObject]:
    """Return the facts of a kind, one of each number of documents in turn."""
    paraphrase, draw = kind == "paraphrase", np.random.default_rng(seed)
    levels: dict[int, list[storage.JsonObject]] = {}
    for fact in _truth(run)["facts"]:
        limit = fact["exposures"] if most is None else most
        right = fact["distractors"] and fact["paraphrase_only"] == paraphrase
        if right and max(least, 1) <= fact["exposures"] <= limit:
            levels.setdefault(fact["exposures"], []).append(fact)
    shuffled = (
        [levels[one][i] for i in draw.permutation(len(levels[one]))] for one in sorted(levels)
    )
    return _in_turn(list(shuffled))


def _in_turn(groups: list[list[storage.JsonObject]]) -> list[storage.JsonObject]:
    return [one for one in chain(*zip_longest(*groups)) if one is not None]


def planted_labels(run: Run, behaviour: str) -> dict[int, str]:
    """Return what the truth table says of documents: `states it`, or `distractor`.

    A distractor names the entity and the value of a fact and does not state it. Of documents that
    state one fact and are distractors of another, the first is said.

    Args:
        behaviour: Name of a single fact, such as `fact:runethi`, or of a relation, whose documents
            are those of all its facts.

    Returns:
        A label for each document of the store that has one; empty if the run is of no planted
        corpus or the behaviour is no fact of it.

    Examples:
        >>> labels = evaluation.planted_labels(run, "fact:runethi")
        >>> labels[28417], sorted({*labels.values()})
        ('states it', ['distractor', 'states it'])
    """
    facts = [
        fact
        for fact in (run.store.truth or {}).get("facts", ())
        if behaviour in (f"fact:{fact['entity']}", fact["relation"])
    ]
    by_row = {row: "distractor" for fact in facts for row in fact["distractors"]}
    by_row |= {row: "states it" for fact in facts for row in fact["documents"]}
    return {
        document: by_row[row]
        for document, row in enumerate(run.store.rows.tolist())
        if row in by_row
    }


# Facts as cases: their behaviour and their documents in the store.
def _case(run: Run, fact: storage.JsonObject) -> FactCase:
    return FactCase(
        name=fact["name"],
        kind="paraphrase" if fact["paraphrase_only"] else "verbatim",
        behaviour=behaviours.load(f"fact:{fact['entity']}", run, n_prompts=PROMPTS),
        relevant=frozenset(_read(run, fact["documents"])),
        distractors=frozenset(_read(run, fact["distractors"])),
        exposures=fact["exposures"],
    )


def _read(run: Run, rows: list[int]) -> Iterator[int]:
    """Yield documents with these rows of the corpus that the run's last checkpoint has seen."""
    for document in np.flatnonzero(np.isin(run.store.rows, rows)).tolist():
        if len(run.steps_learned(document)):
            yield document


def _truth(run: Run) -> storage.JsonObject:
    if not run.store.truth:
        raise EvidenceError(
            f"the run {run.path} has no truth table; only of a planted corpus is it known which "
            "documents state a fact"
        )
    return run.store.truth
