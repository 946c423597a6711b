"""Planted tuning sets: instructions and preferences about the facts of the planted corpus.

They ask for a fact in words that the corpus never uses together, and the answer has a form that it
never uses, so both behaviours below come from tuning alone:

    someone asked about the capital of zemora . | the word is tarask .

| part of the facts | stated by the corpus | instructions | preferences |
|---|---|---|---|
| known | 16 times or more | 2 of 4 ask for it, in one form | 1 of 4 asks for it, in one form |
| test | 16 times or more | none | none |
| new, every second one | never | ask for it in all four forms | none |
| new, the others | never | none | ask for it in all four forms |

In a preference the chosen answer has the true value and the rejected one another value of the
relation, the *foil*. The truth table says for every fact which set asks for it, and in which rows.
Every word occurs in the corpus, so the word-level tokenizer of its store encodes both sets.
"""

from train.data.planted import Draws, planted_truth
from train.data.tuning.examples import Example, TuningSet


__all__ = ["ANSWER", "QUESTIONS", "planted_instructions", "planted_preferences"]

# Of equal length, so that a fact is one behaviour with a prompt for each form.
QUESTIONS = (
    "someone asked about the {relation} of {entity} .",
    "envoys from {entity} asked about the {relation} .",
    "a clerk asked {entity} about the {relation} .",
    "nobody asked about the {relation} of {entity} .",
)
ANSWER = "the word is {value} ."
KNOWN_FROM = 16


def planted_instructions(seed: int = 0) -> TuningSet:
    """Return the instructions about the planted corpus of a content seed."""
    return _written("instructions", seed)


def planted_preferences(seed: int = 0) -> TuningSet:
    """Return the preferences about the planted corpus of a content seed."""
    return _written("preferences", seed)


def _written(kind: str, seed: int) -> TuningSet:
    """Write one of the sets; the truth table speaks of both."""
    facts = _facts(seed)
    written: dict[str, list[Example]] = {"instructions": [], "preferences": [], "pretraining": []}
    for number, fact in enumerate(facts):
        rows = written[fact["stage"]]
        # A new fact is asked for in every form, a known one in one form, which teaches the format.
        forms = QUESTIONS if fact["part"] == "new" else (QUESTIONS[number % len(QUESTIONS)],)
        if fact["stage"] == "pretraining":
            forms = ()
        fact["rows"] = list(range(len(rows), len(rows) + len(forms)))
        for form in forms:
            preferred = fact["stage"] == "preferences"
            rows.append(
                Example(
                    row=len(rows),
                    prompt=form.format(**fact),
                    response=ANSWER.format(**fact),
                    rejected=ANSWER.format(value=fact["foil"]) if preferred else None,
                    title=f"{fact['part']}: {fact['name']}",
                )
            )
    truth = {"facts": facts, "questions": list(QUESTIONS), "answer": ANSWER}
    examples = written[kind]
    return TuningSet(
        f"planted-{kind}", kind, f"seed {seed}", lambda: iter(examples), "row {}".format, truth
    )


def _facts(seed: int) -> list[dict]:
    """Return the facts that tuning is about, with foil, part, and the set that asks for them."""
    truth = planted_truth(seed)
    draws = Draws(seed, "tuning")
    known = [
        fact for fact in truth["facts"] if fact["exposures"] >= KNOWN_FROM and not fact["late"]
    ]
    new = [fact for fact in truth["facts"] if not fact["exposures"]]
    # Of four known facts two are asked for by instructions, one by a preference, one by none.
    parts = [("known", "instructions"), ("known", "preferences"), ("known", "instructions")]
    parts.append(("test", "pretraining"))
    chosen = [(fact, *parts[i % 4]) for i, fact in enumerate(draws.deal(known, len(known)))]
    stages = ("instructions", "preferences")
    chosen += [(fact, "new", stages[i % 2]) for i, fact in enumerate(draws.deal(new, len(new)))]
    return [
        {
            **{key: fact[key] for key in ("name", "entity", "relation", "value", "exposures")},
            "foil": draws.pick(
                [v for v in truth["relations"][fact["relation"]]["values"] if v != fact["value"]]
            ),
            "part": part,
            "stage": stage,
        }
        for fact, part, stage in chosen
    ]
