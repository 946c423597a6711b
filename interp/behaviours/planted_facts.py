"""Planted facts: what a statement about an entity ends in."""

import numpy as np
import torch

from interp.behaviours.behaviour import Behaviour
from interp.behaviours.encoding import before, encoded_prompts, token_ids
from interp.errors import BehaviourError
from train.data import Tokenizer
from train.errors import nearest


__all__ = ["WELL_KNOWN", "fact_prompts", "fact_query", "tuned_fact"]

# Number of documents that must state a fact; every measured run recalls facts stated so often.
WELL_KNOWN = 16


def fact_query(form: str, entity: str) -> str:
    """Return a statement about an entity up to the value that completes it.

    Examples:
        >>> form = behaviours.planted_truth(run)["relations"]["capital"]["forms"][0]
        >>> behaviours.fact_query(form, "runethi")
        'the capital of runethi is'
    """
    return before(form, "{value}").format(entity=entity)


def fact_prompts(
    name: str, truth: dict, tokenizer: Tokenizer, n_prompts: int, draw: np.random.Generator
) -> Behaviour:
    """Build the behaviour of a relation, or of one fact (`fact:<entity>`)."""
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
        answer=torch.tensor(token_ids((fact["value"] for fact, _ in pairs), tokenizer)),
        foil=torch.tensor(token_ids((other["value"] for _, other in pairs), tokenizer)),
        subject=(place, place + 1),
        candidates=tuple(token_ids(truth["relations"][relation]["values"], tokenizer)),
        description=f"recalls the {asked[0]['name'] if asked else relation} from training",
    )


def tuned_fact(name: str, truth: dict, tokenizer: Tokenizer) -> Behaviour:
    """Build the behaviour that planted tuning sets teach of a fact: one prompt for each question.

    Args:
        name: Name of the fact, such as "capital of zemora".
        truth: Truth table of a planted tuning set (`TokenStore.tuning_truth`).

    Raises:
        BehaviourError: The table has no fact of that name.

    Examples:
        >>> truth = tuning.planted_instructions().truth
        >>> learned = behaviours.tuned_fact(truth["facts"][0]["name"], truth, run.tokenizer)
        >>> model.to_string(learned.clean[0])
        '<eot> someone asked about the capital of febodra . the word is'
    """
    facts = {fact["name"]: fact for fact in truth["facts"]}
    if name not in facts:
        raise BehaviourError(f"no planted fact is called {name!r}{nearest(name, facts)}")
    fact = facts[name]
    alike = [one for one in facts.values() if one["relation"] == fact["relation"]]
    other = next(one for one in alike if one["value"] != fact["value"])
    answer = before(truth["answer"], "{value}")
    texts = [
        [f"{form.format(**one)} {answer}" for form in truth["questions"]] for one in (fact, other)
    ]
    value, foil = token_ids([fact["value"], fact["foil"]], tokenizer)
    n = len(truth["questions"])
    return Behaviour(
        name=f"tuned fact: {name}",
        clean=encoded_prompts(texts[0], tokenizer),
        corrupt=encoded_prompts(texts[1], tokenizer),
        answer=torch.full((n,), value),
        foil=torch.full((n,), foil),
        candidates=tuple(
            sorted({value, foil, *token_ids((one["value"] for one in alike), tokenizer)})
        ),
        description=f"answers a question about the {name} as tuning taught it",
        tokenizer=tokenizer.sha256,
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
