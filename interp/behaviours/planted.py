"""Behaviours of a planted corpus, built from its truth table.

    ioi              indirect object identification: who receives the object, for pairs of names
                     that never occur together in training
    ioi:names        the same sentences; the corrupt prompt names two other people
    ioi:<o>-<c>      ioi with opening <o> and closing <c> only; two combinations were held out
    induction        which word followed this word before, in random words of the vocabulary
    capital, ...     a relation: one prompt for each of its facts that 16 documents or more state
    fact:<entity>    one fact as the clean prompt, other facts of its relation as corrupt prompts

Every prompt begins with one end-of-text token, as every training document does, and ends just
before the answer.
"""

import numpy as np

from interp.behaviours.behaviour import Behaviour
from interp.behaviours.encoding import store_of, token_ids, tokenizer_of
from interp.behaviours.induction import repeats
from interp.behaviours.ioi import ioi_prompts
from interp.behaviours.planted_facts import fact_prompts
from interp.behaviours.planted_names import names_in
from interp.errors import BehaviourError, ModelError
from train.errors import nearest


__all__ = ["load", "planted_truth", "truth_of"]


def load(name: str, source: object, *, n_prompts: int, seed: int) -> Behaviour:
    """Load a planted behaviour by name; see `interp.behaviours.load`."""
    truth, tokenizer = truth_of(source), tokenizer_of(source)
    if truth is None or name not in names_in(truth):
        known = names_in(truth) if truth else ["ioi", "induction"]
        raise BehaviourError(f"there is no behaviour {name!r}{nearest(name, known)}")
    draw = np.random.Generator(np.random.Philox(key=seed))
    if name == "induction":
        words = token_ids(truth["induction"]["words"], tokenizer)
        return repeats(words, tokenizer.eot, n_prompts=n_prompts, draw=draw)
    if name.partition(":")[0] == "ioi":
        return ioi_prompts(name, truth["ioi"], tokenizer, n_prompts, draw)
    return fact_prompts(name, truth, tokenizer, n_prompts, draw)


def truth_of(source: object) -> dict | None:
    """Return the truth table of a run or token store, or None if its corpus was not planted.

    Raises:
        ModelError: The run was imported, so it has no token store.

    Examples:
        >>> behaviours.truth_of(run) == store.truth, behaviours.truth_of(model) is None
        (True, True)
    """
    return getattr(store_of(source), "truth", None)


def planted_truth(source: object) -> dict:
    """Return the truth table of a run or token store, or raise if there is none.

    Raises:
        ModelError: The corpus was not planted, so it is unknown which facts it teaches.

    Examples:
        >>> truth = behaviours.planted_truth(run)
        >>> sorted(truth), len(truth["facts"])
        (['duplicates', 'facts', 'induction', 'ioi', 'kinds', 'nonce', 'relations'], 426)
    """
    truth = truth_of(source)
    if truth is None:
        raise ModelError(
            f"a {type(source).__name__} without a truth table was given; only a run that was "
            "trained on the planted corpus knows its facts"
        )
    return truth
