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

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.behaviours.behaviour import Behaviour
from interp.errors import BehaviourError, ModelError
from train.errors import nearest


__all__ = ["encoded_prompts", "fact_query", "load", "names", "planted_truth", "repeats"]
__all__ += ["tokenizer_of", "truth_of"]

# Number of documents that must state a fact; every measured run recalls facts stated so often.
WELL_KNOWN = 16
INDUCTION_LENGTH, INDUCTION_ANSWER = 16, 8


def load(name: str, source: Any, *, n_prompts: int, seed: int) -> Behaviour:
    """Load a planted behaviour by name; see `interp.behaviours.load`."""
    truth, tokenizer = truth_of(source), tokenizer_of(source)
    if truth is None or name not in names(truth):
        known = names(truth) if truth else ["ioi", "induction"]
        raise BehaviourError(f"there is no behaviour {name!r}{nearest(name, known)}")
    draw = np.random.Generator(np.random.Philox(key=seed))
    if name == "induction":
        words = _ids(truth["induction"]["words"], tokenizer)
        return repeats(words, tokenizer.eot, n_prompts=n_prompts, draw=draw)
    if name.partition(":")[0] == "ioi":
        return _ioi(name, truth["ioi"], tokenizer, n_prompts, draw)
    return _facts(name, truth, tokenizer, n_prompts, draw)


def names(truth: dict) -> list[str]:
    """List the names of all behaviours that `load` can build from a truth table."""
    ioi = truth["ioi"]
    combinations = [
        f"ioi:{opening}-{closing}"
        for opening in range(len(ioi["openings"]))
        for closing in range(len(ioi["closings"]))
    ]
    facts = [f"fact:{fact['entity']}" for fact in truth["facts"]]
    return ["ioi", "induction", *truth["relations"], "ioi:names", *combinations, *facts]


def truth_of(source: Any) -> dict | None:
    """Return the truth table of a run or token store, or None if its corpus was not planted.

    Raises:
        ModelError: The run was imported, so it has no token store.
    """
    return getattr(_store_of(source), "truth", None)


def planted_truth(source: Any) -> dict:
    """Return the truth table of a run or token store, or raise if there is none.

    Raises:
        ModelError: The corpus was not planted, so it is unknown which facts it teaches.
    """
    truth = truth_of(source)
    if truth is None:
        raise ModelError(
            f"a {type(source).__name__} without a truth table was given; only a run that was "
            "trained on the planted corpus knows its facts"
        )
    return truth


def tokenizer_of(source: Any) -> Any:
    """Return the tokenizer of a run, a token store or a model.

    Raises:
        ModelError: It has no tokenizer.
    """
    tokenizer = getattr(_store_of(source), "tokenizer", None)
    if tokenizer is None:
        raise ModelError(
            f"a {type(source).__name__} without a tokenizer cannot state a behaviour; give the "
            "run, or a model from models.load"
        )
    return tokenizer


def _store_of(source: Any) -> Any:
    """Return the token store of a run, or `source` itself if it is no run.

    Raises:
        ModelError: The run was imported, so it has no token store; its model can be used instead.
    """
    if getattr(source, "knowledge", None) == "weights-only":
        raise ModelError(
            "an imported run has no token store to state a behaviour in; give the model from "
            "models.load instead of the run"
        )
    return getattr(source, "store", source)


def encoded_prompts(texts: Iterable[str], tokenizer: Any) -> Int[Tensor, "prompt pos"]:
    """Encode texts of equal length, each behind one end-of-text token.

    Raises:
        BehaviourError: The texts have different lengths.
    """
    rows = [[tokenizer.eot, *tokenizer.encode(text).tolist()] for text in texts]
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise BehaviourError(
            f"the prompts have {lengths[0]} to {lengths[-1]} tokens; positions can be compared "
            "only when all are equally long"
        )
    return torch.tensor(rows)


def _ids(words: Iterable[str], tokenizer: Any) -> list[int]:
    return [int(tokenizer.encode(word)[0]) for word in words]


# --- indirect object identification --------------------------------------------------------------


def _ioi(name: str, ioi: dict, tokenizer: Any, n_prompts: int, draw: np.random.Generator):
    names_vary = name == "ioi:names"
    combinations, note = _combinations("ioi" if names_vary else name, ioi)
    clean, corrupt, answers, foils = [], [], [], []
    for turn in range(n_prompts):
        opening, closing = combinations[turn // 2 % len(combinations)]
        pair = ioi["held_out_pairs"][draw.integers(len(ioi["held_out_pairs"]))]
        first, second = draw.permutation(pair).tolist()
        # The subject (who acts) is named second on even turns, first on odd ones: both name orders
        # of Wang et al. 2022 (ABBA and BABA) occur equally often.
        subject, indirect = (second, first) if turn % 2 == 0 else (first, second)
        slots = {
            "first": first,
            "second": second,
            "place": ioi["places"][draw.integers(len(ioi["places"]))],
            "object": ioi["objects"][draw.integers(len(ioi["objects"]))],
        }
        template = f"{ioi['openings'][opening]} {_before(ioi['closings'][closing], '{indirect}')}"
        clean.append(template.format(subject=subject, **slots))
        if names_vary:
            others = _without(ioi["held_out_pairs"], pair)
            other = draw.permutation(others[draw.integers(len(others))]).tolist()
            acts = other[0] if subject == first else other[1]
            slots |= {"first": other[0], "second": other[1]}
            corrupt.append(template.format(subject=acts, **slots))
        else:
            corrupt.append(template.format(subject=indirect, **slots))
        answers.append(indirect)
        foils.append(subject)
    opening = ioi["openings"][combinations[0][0]].split()
    acts = 1 + len(opening)
    # `acts` is the position of the subject's second mention, right after the opening. With other
    # names the prompts differ from the first name on, which is the second word of every opening.
    begin = 1 + opening.index("{first}") if names_vary else acts
    told = "they and two others in the same roles" if names_vary else "who of the two acts"
    return Behaviour(
        name=name,
        clean=encoded_prompts(clean, tokenizer),
        corrupt=encoded_prompts(corrupt, tokenizer),
        answer=torch.tensor(_ids(answers, tokenizer)),
        foil=torch.tensor(_ids(foils, tokenizer)),
        subject=(begin, acts + 1),
        description="the one of two named people who does not act receives the object; clean and "
        f"corrupt differ in {told}; {note}",
    )


def _without(pairs: Sequence[Sequence[str]], pair: Sequence[str]) -> list[Sequence[str]]:
    """Return the pairs that share no name with `pair`."""
    return [one for one in pairs if not {*one} & {*pair}]


def _combinations(name: str, ioi: dict) -> tuple[list[tuple[int, int]], str]:
    """Return opening-closing combinations with the same word positions, and a description.

    For "ioi" this is the largest such group of combinations that were not held out.
    """
    held_out = {(opening, closing) for opening, closing in ioi["held_out_combinations"]}
    if ":" in name:
        opening, closing = map(int, name.partition(":")[2].split("-"))
        note = "held-out" if (opening, closing) in held_out else "known"
        return [(opening, closing)], f"held-out pairs in a {note} combination"
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for opening, text in enumerate(ioi["openings"]):
        for closing in range(len(ioi["closings"])):
            if (opening, closing) not in held_out:
                shape = (len(text.split()), closing)
                groups.setdefault(shape, []).append((opening, closing))
    largest = max(groups.values(), key=len)
    return largest, "held-out pairs in known combinations"


# --- induction -----------------------------------------------------------------------------------


def repeats(
    words: Sequence[int],
    eot: int,
    *,
    n_prompts: int,
    draw: np.random.Generator,
    length: int = INDUCTION_LENGTH,
    answer_at: int = INDUCTION_ANSWER,
    name: str = "induction",
) -> Behaviour:
    """Build prompts of distinct random tokens whose beginning is repeated up to the answer.

    With run t and a = `answer_at` the clean prompt is t[0] ... t[length - 1] t[0] ... t[a - 1],
    behind one end-of-text, and the answer is t[a]. The corrupt prompt has the foil in place of
    t[a] in the first copy.

    Raises:
        BehaviourError: There are too few words, or `answer_at` lies outside 1 to length - 1.
    """
    if len(words) < length + 1 or not 0 < answer_at < length:
        raise BehaviourError(
            f"a run of {length} different tokens and a foil, asked at {answer_at}, cannot be drawn "
            f"from a vocabulary of {len(words)}"
        )
    dealt = torch.tensor(
        np.stack([draw.choice(words, size=length + 1, replace=False) for _ in range(n_prompts)])
    )
    run, foil = dealt[:, :length], dealt[:, length]
    other = run.clone()
    other[:, answer_at] = foil
    start = torch.full((n_prompts, 1), eot)
    return Behaviour(
        name=name,
        clean=torch.cat([start, run, run[:, :answer_at]], dim=1),
        corrupt=torch.cat([start, other, run[:, :answer_at]], dim=1),
        answer=run[:, answer_at],
        foil=foil,
        subject=(1 + answer_at, 2 + answer_at),
        description="what followed a token before follows it again, in random tokens",
    )


# --- facts ---------------------------------------------------------------------------------------


def fact_query(form: str, entity: str) -> str:
    """Return a statement about an entity up to the value that completes it."""
    return _before(form, "{value}").format(entity=entity)


def _before(form: str, slot: str) -> str:
    return form.partition(slot)[0].rstrip()


def _facts(name: str, truth: dict, tokenizer: Any, n_prompts: int, draw: np.random.Generator):
    entity = name.removeprefix("fact:")
    asked = [f for f in truth["facts"] if f["entity"] == entity] if name != entity else []
    relation = asked[0]["relation"] if asked else name
    known = [
        fact
        for fact in truth["facts"]
        if fact["relation"] == relation and fact["exposures"] >= WELL_KNOWN
    ]
    pairs = _against(asked or known, known, n_prompts, draw)
    form = truth["relations"][relation]["forms"][0]
    place = 1 + form.split().index("{entity}")
    return Behaviour(
        name=name,
        clean=encoded_prompts((fact_query(form, fact["entity"]) for fact, _ in pairs), tokenizer),
        corrupt=encoded_prompts(
            (fact_query(form, other["entity"]) for _, other in pairs), tokenizer
        ),
        answer=torch.tensor(_ids((fact["value"] for fact, _ in pairs), tokenizer)),
        foil=torch.tensor(_ids((other["value"] for _, other in pairs), tokenizer)),
        subject=(place, place + 1),
        candidates=tuple(_ids(truth["relations"][relation]["values"], tokenizer)),
        description=f"recalls the {asked[0]['name'] if asked else relation} from training",
    )


def _against(
    asked: list[dict], known: list[dict], n_prompts: int, draw: np.random.Generator
) -> list[tuple[dict, dict]]:
    """Pair each fact with another fact of its relation that has another value.

    A single fact is paired with up to `n_prompts` other facts.
    """
    if len(asked) == 1:
        others = [other for other in known if other["value"] != asked[0]["value"]]
        chosen = draw.permutation(len(others))[:n_prompts]
        return [(asked[0], others[i]) for i in chosen]
    chosen = [asked[i] for i in draw.permutation(len(asked))[:n_prompts]]
    pairs = []
    for fact in chosen:
        others = [other for other in known if other["value"] != fact["value"]]
        pairs.append((fact, others[draw.integers(len(others))]))
    return pairs
