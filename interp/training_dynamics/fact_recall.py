"""Recall of planted facts by the number of documents that state them.

The prompt is a statement of the fact up to its value. The model's answer is the value that it finds
likeliest *among the values of the relation*: there are 24, so guessing is right once in 24. Forms
in which the fact was stated test memory; the held-out form tests whether the fact was learned
independently of its wording.

Recall alone is misleading: the facts that are stated most also have the commonest values. The
accuracy of always answering the commonest value is therefore reported as a baseline.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from interp import plots
from interp.behaviours import encoded_prompts, fact_query
from interp.components import HookedModel, device_of
from interp.errors import BehaviourError
from train.data import Tokenizer
from train.errors import nearest
from train.html_panel import html_repr
from train.short_repr import short_repr
from train.statistics import wilson


if TYPE_CHECKING:
    import pandas

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
    """Answer of a model to one fact in one form.

    Attributes:
        fact: Name of the fact in the truth table, such as "capital of zemora".
        exposures: Number of documents that state it.
        form: Index of the form of the prompt.
        stated: Whether the fact was ever stated in that form.
        given: Value that the model finds likeliest among those of the relation.
        correct: Whether that is the planted value.
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
    """Share of correct answers, with a 95 % Wilson interval.

    Attributes:
        n: Number of facts, which sets the width of the interval: two forms of one fact are not two
            independent facts.
        recall: Share of correct answers; None without answers.
        low: Lower end of the interval.
        high: Upper end of the interval.
        log_prob: Mean log probability over answers; None without answers.
    """

    n: int
    recall: float | None
    low: float
    high: float
    log_prob: float | None


@dataclass(frozen=True)
class Level:
    """Recall of the facts that were stated equally often.

    Attributes:
        exposures: Number of documents that state each of them.
        n: Number of facts.
        seen: Recall in the forms in which they were stated.
        paraphrase: Recall in the held-out form; for facts that were never stated, in every form.
        baseline: Share of the facts that have the commonest value of their relation.
    """

    exposures: int
    n: int
    seen: Share
    paraphrase: Share
    baseline: float

    __repr__ = short_repr


@dataclass(frozen=True)
class Recall:
    """Recall of all planted facts.

    Attributes:
        levels: Recall by number of documents, ascending; facts that are read throughout training.
        late: Recall of facts whose documents are read late in training; None if there are none.
    """

    meaning: ClassVar[str] = (
        "A recall shows how many facts this run answers by how many documents state them; it does "
        "not show that these documents are the cause, which retraining tests."
    )

    levels: tuple[Level, ...]
    late: Level | None = None

    __repr__ = short_repr
    _repr_html_ = html_repr

    def at(self, exposures: int) -> Level:
        """Return the level of facts that so many documents state.

        Raises:
            BehaviourError: There is no such level.
        """
        for level in self.levels:
            if level.exposures == exposures:
                return level
        known = ", ".join(str(level.exposures) for level in self.levels)
        raise BehaviourError(f"no fact is stated by {exposures} documents; the levels are {known}")

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return asdict(self)

    def to_frame(self) -> "pandas.DataFrame":
        """Return a pandas frame with a row per level."""
        import pandas

        return pandas.DataFrame([_flat(level) for level in self.levels])

    def plot(self) -> "plots.Figure":
        """Plot recall against the number of documents, with intervals and baseline."""
        return _figure(self)


def recall_by_exposure(model: HookedModel, truth: dict, tokenizer: Tokenizer) -> Recall:
    """Measure recall of every planted fact in every form, by the number of documents that state it.

    Costs about two dozen forward passes, with 3,000 short prompts in total.

    Examples:
        >>> truth = behaviours.planted_truth(run)
        >>> recall = training_dynamics.recall_by_exposure(model, truth, run.tokenizer)
        >>> [level.exposures for level in recall.levels]
        [0, 1, 2, 4, 8, 16, 32, 64, 128]
        >>> recall.at(0).paraphrase.recall < 0.2, recall.at(128).seen.recall
        (True, 1.0)
    """
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
    model: HookedModel, facts: Iterable[dict], truth: dict, tokenizer: Tokenizer
) -> tuple[Answer, ...]:
    """Ask the model for some facts, each in every form of its relation.

    Returns the answers in the order of the facts, then of the forms.

    Examples:
        >>> truth = behaviours.planted_truth(run)
        >>> facts = training_dynamics.facts_named(truth, ["runethi"])
        >>> answers = training_dynamics.recall_of_facts(model, facts, truth, run.tokenizer)
        >>> answers[0].given, answers[0].correct
        ('koreskul', True)
    """
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
    """Find facts of the truth table by name ("capital of zemora") or entity ("zemora").

    Raises:
        BehaviourError: There is no such fact.

    Examples:
        >>> truth = behaviours.planted_truth(run)
        >>> [fact["name"] for fact in training_dynamics.facts_named(truth, ["runethi"])]
        ['capital of runethi']
    """
    names = [names] if isinstance(names, str) else list(names)
    known = {fact["name"]: fact for fact in truth["facts"]}
    known |= {fact["entity"]: fact for fact in truth["facts"]}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BehaviourError(f"no fact is called {unknown[0]!r}{nearest(unknown[0], known)}")
    return [known[name] for name in names]


def recall_share(answers: Sequence[Answer]) -> Share:
    """Compute the share of correct answers, with Wilson's interval on the number of facts.

    Examples:
        >>> truth = behaviours.planted_truth(run)
        >>> facts = training_dynamics.facts_named(truth, ["runethi"])
        >>> answers = training_dynamics.recall_of_facts(model, facts, truth, run.tokenizer)
        >>> training_dynamics.recall_share(answers).recall
        1.0
    """
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
    tokenizer: Tokenizer,
) -> list[Answer]:
    """Ask for facts of one relation in one form, in one forward pass."""
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
    """Return for each relation the value that most documents state."""
    stated: dict[str, Counter[str]] = {}
    for fact in facts:
        stated.setdefault(fact["relation"], Counter())[fact["value"]] += fact["exposures"]
    return {relation: counts.most_common(1)[0][0] for relation, counts in stated.items()}


def _flat(level: Level) -> dict[str, object]:
    row: dict[str, object] = {"exposures": level.exposures, "facts": level.n}
    for kind in ("seen", "paraphrase"):
        found = getattr(level, kind)
        for name in ("recall", "low", "high", "log_prob"):
            row[f"{kind} {name}"] = getattr(found, name)
    return row | {"baseline": level.baseline}


def _figure(found: Recall) -> "plots.Figure":
    """Plot recall against the number of documents: stated forms, held-out form and baseline."""
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
    return plots.framed(figure, "Recall of planted facts by number of documents")
