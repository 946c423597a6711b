"""Behaviours of a planted corpus, built from its truth table.

    ioi              who receives the object, on name pairs that training never paired
    ioi:names        the same sentences; the corrupt one speaks of two other people
    ioi:<o>-<c>      one opening and one closing; two combinations were held out
    induction        what followed a word before, random words of the whole vocabulary
    capital, ...     one prompt a fact of the relation, among facts stated 16 times or more
    fact:<entity>    one fact, against other facts of its relation

Every prompt begins with one end-of-text, as every row that was trained on does, and stops before
the token it asks for.
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

# Facts stated so often are recalled by every measured run.
WELL_KNOWN = 16
INDUCTION_LENGTH, INDUCTION_ANSWER = 16, 8


def load(name: str, source: Any, *, n_prompts: int, seed: int) -> Behaviour:
    """The planted behaviour of a name; see `interp.behaviours.load`."""
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
    """What `load` can build."""
    ioi = truth["ioi"]
    combinations = [
        f"ioi:{opening}-{closing}"
        for opening in range(len(ioi["openings"]))
        for closing in range(len(ioi["closings"]))
    ]
    facts = [f"fact:{fact['entity']}" for fact in truth["facts"]]
    return ["ioi", "induction", *truth["relations"], "ioi:names", *combinations, *facts]


def truth_of(source: Any) -> dict | None:
    """The truth table of a run, a token store, or of nothing."""
    return getattr(_store_of(source), "truth", None)


def planted_truth(source: Any) -> dict:
    """The truth table, which must be there.

    Raises:
        ModelError: The texts were not planted, so nobody knows what they teach.
    """
    truth = truth_of(source)
    if truth is None:
        raise ModelError(
            f"a {type(source).__name__} without a truth table was given; only a run that was "
            "trained on the planted corpus knows its facts"
        )
    return truth


def tokenizer_of(source: Any) -> Any:
    """The tokenizer of a run, a token store or a model.

    Raises:
        ModelError: It has none.
    """
    tokenizer = getattr(_store_of(source), "tokenizer", None)
    if tokenizer is None:
        raise ModelError(
            f"a {type(source).__name__} without a tokenizer cannot state a behaviour; give the "
            "run, or a model from hooked.load"
        )
    return tokenizer


def _store_of(source: Any) -> Any:
    """A run's token store; an imported run has none, and its model must be given instead."""
    if getattr(source, "knowledge", None) == "weights-only":
        raise ModelError(
            "an imported run has no token store to state a behaviour in; give the model from "
            "hooked.load instead of the run"
        )
    return getattr(source, "store", source)


def encoded_prompts(texts: Iterable[str], tokenizer: Any) -> Int[Tensor, "prompt pos"]:
    """One end-of-text and the tokens of each text, which must be equally long.

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
        # ABBA and BABA by turns: the one who acts is named second, then first.
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
    # In every opening the first name is the second word.
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
    """The pairs that share no name with one."""
    return [one for one in pairs if not {*one} & {*pair}]


def _combinations(name: str, ioi: dict) -> tuple[list[tuple[int, int]], str]:
    """Opening-closing combinations whose words stand at the same positions."""
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
    """A run of different random tokens and its beginning again, up to the one that is asked for.

    The corrupt prompt has the foil where the clean one has the answer, in the first copy.
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
    """The statement form up to the value it ends in."""
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
    """Each fact beside another of its relation with another value; a single fact beside many."""
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
