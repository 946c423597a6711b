"""Indirect object identification: who receives the object, in sentences of the planted corpus.

Pairs of names are those that never occur together in training. On other models, `ioi` is made from
the templates in `ioi.toml` (`interp.behaviours.templates`).
"""

from collections.abc import Sequence

import numpy as np
import torch

from interp.behaviours.behaviour import Behaviour
from interp.behaviours.encoding import before, encoded_prompts, token_ids
from train.data import Tokenizer


__all__ = ["ioi_prompts"]


def ioi_prompts(
    name: str, ioi: dict, tokenizer: Tokenizer, n_prompts: int, draw: np.random.Generator
) -> Behaviour:
    """Build `ioi`, `ioi:names` or `ioi:<opening>-<closing>` from the truth table's entry `ioi`."""
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
        template = f"{ioi['openings'][opening]} {before(ioi['closings'][closing], '{indirect}')}"
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
    told = "both names, in the same roles" if names_vary else "who of the two acts"
    return Behaviour(
        name=name,
        clean=encoded_prompts(clean, tokenizer),
        corrupt=encoded_prompts(corrupt, tokenizer),
        answer=torch.tensor(token_ids(answers, tokenizer)),
        foil=torch.tensor(token_ids(foils, tokenizer)),
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
