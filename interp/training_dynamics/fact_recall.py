"""What a model recalls of planted facts, by how often it read them.

A fact is asked by a statement form up to its value, and answered by the value that the model finds
likeliest *among the values of the relation* (24 of them: guessing is right once in 24). Forms the
fact was stated in test memory; the form that was held out tests whether the fact was learned apart
from its wording.

Recall alone flatters: the values of facts that are stated most are also the commonest values, so
the share that one gets by always giving the commonest value is reported beside it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from interp.behaviours import encoded_prompts, fact_query
from interp.components import HookedModel, device_of
from interp.errors import BehaviourError
from interp.statistics import wilson
from train.errors import nearest


__all__ = [
    "Answer",
    "Level",
    "Recall",
    "Share",
    "facts_named",
    "recall_by_exposure",
    "recall_of_facts",
    "recall_share",
]


@dataclass(frozen=True)
class Answer:
    """One fact asked in one form.

    Attributes:
        fact: As the truth table names it, "capital of zemora".
        exposures: Documents that state it.
        form: Index of the form it was asked in.
        stated: Whether it was ever stated in that form.
        given: The value the model finds likeliest among the relation's.
        correct: Whether that is the planted one.
        log_prob: Natural log of the planted value's probability among the relation's values.
    """

    fact: str
    exposures: int
    form: int
    stated: bool
    given: str
    correct: bool
    log_prob: float


@dataclass(frozen=True)
class Share:
    """Share of correct answers.

    `n` counts facts and sets the width of the interval: two forms of one fact are no two facts.
    `log_prob` is the mean over answers. Without answers, recall and log_prob are None.
    """

    n: int
    recall: float | None
    low: float
    high: float
    log_prob: float | None


@dataclass(frozen=True)
class Level:
    """Facts that were stated equally often.

    Attributes:
        exposures: Documents that state each of them.
        n: Facts.
        seen: Asked in the forms they were stated in.
        paraphrase: Asked in the form that was held out; for facts never stated, in every form.
        baseline: Share of them that have the commonest value of their relation.
    """

    exposures: int
    n: int
    seen: Share
    paraphrase: Share
    baseline: float


@dataclass(frozen=True)
class Recall:
    """Recall of all planted facts.

    Attributes:
        levels: By exposure, ascending; of facts that are read throughout training.
        late: Facts whose documents are read late in training; None where there are none.
    """

    levels: tuple[Level, ...]
    late: Level | None = None

    def at(self, exposures: int) -> Level:
        """The level of a number of exposures."""
        for level in self.levels:
            if level.exposures == exposures:
                return level
        known = ", ".join(str(level.exposures) for level in self.levels)
        raise BehaviourError(f"no fact is stated {exposures} times; the levels are {known}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def to_frame(self) -> Any:
        """A pandas row per level."""
        import pandas

        return pandas.DataFrame([_flat(level) for level in self.levels])

    def plot(self) -> Any:
        """Recall against exposures, with intervals and baseline."""
        return _figure(self)


def recall_by_exposure(model: HookedModel, truth: dict, tokenizer: Any) -> Recall:
    """Ask every fact in every form. About 3,000 short prompts in two dozen forward passes."""
    facts = truth["facts"]
    answers = recall_of_facts(model, facts, truth, tokenizer)
    commonest = _commonest_values(facts)

    def level(exposures: int, there: list[dict]) -> Level:
        held_out = {fact["name"]: fact["held_out_form"] for fact in there}
        asked = [answer for answer in answers if answer.fact in held_out]
        unseen = [a for a in asked if exposures == 0 or a.form == held_out[a.fact]]
        guessed = sum(commonest[fact["relation"]] == fact["value"] for fact in there)
        seen = recall_share([answer for answer in asked if answer.stated])
        return Level(exposures, len(there), seen, recall_share(unseen), guessed / len(there))

    late = [fact for fact in facts if fact.get("late")]
    early = [fact for fact in facts if not fact.get("late")]
    return Recall(
        tuple(
            level(exposures, [fact for fact in early if fact["exposures"] == exposures])
            for exposures in sorted({fact["exposures"] for fact in early})
        ),
        level(late[0]["exposures"], late) if late else None,
    )


@torch.inference_mode()
def recall_of_facts(
    model: HookedModel, facts: Iterable[dict], truth: dict, tokenizer: Any
) -> tuple[Answer, ...]:
    """Ask some facts of the truth table in every form of their relation, in that order."""
    facts = list(facts)
    answers: dict[tuple[str, int], Answer] = {}
    for relation, stated in truth["relations"].items():
        asked = [fact for fact in facts if fact["relation"] == relation]
        for form, text in enumerate(stated["forms"] if asked else ()):
            for answer in _asked(model, asked, form, text, stated["values"], tokenizer):
                answers[answer.fact, form] = answer
    forms = {relation: len(stated["forms"]) for relation, stated in truth["relations"].items()}
    return tuple(
        answers[fact["name"], form] for fact in facts for form in range(forms[fact["relation"]])
    )


def facts_named(truth: dict, names: Iterable[str]) -> list[dict]:
    """Facts of the truth table by name ("capital of zemora") or entity ("zemora").

    Raises:
        BehaviourError: No such fact.
    """
    known = {fact["name"]: fact for fact in truth["facts"]}
    known |= {fact["entity"]: fact for fact in truth["facts"]}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BehaviourError(f"no fact is called {unknown[0]!r}{nearest(unknown[0], known)}")
    return [known[name] for name in names]


def recall_share(answers: Sequence[Answer]) -> Share:
    """Share of correct answers, with Wilson's interval over facts."""
    if not answers:
        return Share(0, None, 0.0, 1.0, None)
    n = len({answer.fact for answer in answers})
    recall = sum(answer.correct for answer in answers) / len(answers)
    low, high = wilson(recall, n)
    log_prob = sum(answer.log_prob for answer in answers) / len(answers)
    return Share(n, recall, low, high, log_prob)


def _asked(
    model: HookedModel,
    facts: Sequence[dict],
    form: int,
    text: str,
    values: list[str],
    tokenizer: Any,
) -> list[Answer]:
    """All facts of one relation in one form: one forward pass."""
    device = device_of(model)
    prompts = encoded_prompts((fact_query(text, fact["entity"]) for fact in facts), tokenizer).to(
        device
    )
    ids = torch.tensor([int(tokenizer.encode(value)[0]) for value in values], device=device)
    log_probs = model(prompts)[:, -1][:, ids].float().log_softmax(dim=-1)
    given = log_probs.argmax(dim=-1).tolist()
    right = [values.index(fact["value"]) for fact in facts]
    return [
        Answer(
            fact=fact["name"],
            exposures=fact["exposures"],
            form=form,
            stated=str(form) in fact["forms"],
            given=values[given[row]],
            correct=given[row] == right[row],
            log_prob=log_probs[row, right[row]].item(),
        )
        for row, fact in enumerate(facts)
    ]


def _commonest_values(facts: Sequence[dict]) -> dict[str, str]:
    """The value of each relation that most documents state."""
    stated: dict[str, Counter[str]] = {}
    for fact in facts:
        stated.setdefault(fact["relation"], Counter())[fact["value"]] += fact["exposures"]
    return {relation: counts.most_common(1)[0][0] for relation, counts in stated.items()}


def _flat(level: Level) -> dict[str, Any]:
    row: dict[str, Any] = {"exposures": level.exposures, "facts": level.n}
    for kind in ("seen", "paraphrase"):
        found = getattr(level, kind)
        for name in ("recall", "low", "high", "log_prob"):
            row[f"{kind} {name}"] = getattr(found, name)
    return row | {"baseline": level.baseline}


def _figure(found: Recall) -> Any:
    """Recall against exposures: seen forms, the held-out form, and the guesser's baseline."""
    from interp import plots  # plotly takes a second

    exposures = [str(level.exposures) for level in found.levels]
    figure = plots.figure()
    for kind, title in (("seen", "forms it was stated in"), ("paraphrase", "form held out")):
        shares = [getattr(level, kind) for level in found.levels]
        error = plots.interval(
            [one.recall or 0.0 for one in shares],
            [one.low for one in shares],
            [one.high for one in shares],
        )
        figure.add_scatter(x=exposures, y=[one.recall for one in shares], error_y=error, name=title)
    figure.add_scatter(
        x=exposures,
        y=[level.baseline for level in found.levels],
        name="always the commonest value",
        line={"dash": "dot"},
    )
    figure.update_xaxes(type="category", title="documents that state the fact")
    figure.update_yaxes(range=[0, 1.02], title="share recalled")
    return plots.framed(figure, "Recall of planted facts by exposure")
