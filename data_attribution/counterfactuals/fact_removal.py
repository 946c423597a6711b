"""Removal of planted facts: what a run forgets when their documents are taken out of training.

One retraining answers for several facts at once, because the planted facts share no entity. The
control removes all documents of as many other facts, stated equally often and in the same part of
training. Four groups are queried in every form of their relation: the facts whose documents were
removed, those of the control, the other facts stated equally often, and the facts that were never
stated. The claim holds if the first group falls to the level of the last and the third stays, and
if no control moves the first. With one control it is not known how far another one would move the
facts; with several, `Forgetting.beyond_controls` is the change beyond theirs, and its interval
includes how much they differ.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float

from data_attribution.counterfactuals import retraining
from data_attribution.counterfactuals.effect_size import Change, EffectSize
from data_attribution.errors import CounterfactualError
from interp import plots, training_dynamics
from interp.training_dynamics import Answer, Share
from train import storage, trainer
from train.data import RemovalChoice
from train.html_panel import html_repr
from train.progress import Progress, count
from train.runs import Run
from train.short_repr import short_repr
from train.statistics import mean_interval


__all__ = ["FactChange", "Forgetting", "Group", "documents_of", "forget_facts", "removable_facts"]

TRIES = 50  # draws for every control, of which some may be equal
STAYS = 0.9  # least recall of facts that count as not forgotten


@dataclass(frozen=True)
class Group:
    """Facts of one kind, measured on one model.

    Attributes:
        setting: `full run`, `documents removed`, or `control removed`.
        group: `removed`, `control` (removed in the control run instead), `kept` (stated equally
            often, removed in neither), or `never stated`.
        share: Recall with n facts and Wilson's interval, and mean log-probability.
        change: Mean difference in log-probability to the full run, in nats.
        change_low, change_high: Its 95 % interval over facts; None for a single fact.
    """

    setting: str
    group: str
    share: Share
    change: float
    change_low: float | None
    change_high: float | None


@dataclass(frozen=True)
class FactChange:
    """One fact whose documents were removed, before and after.

    Attributes:
        fact: Its name.
        asked: Number of wordings in which it is asked.
        right: In how many of them the full run answers right.
        right_without: The same without the documents.
        right_controls: The same under each control.
        change: Difference of its mean log-probability over the wordings to the full run, in nats.
        change_controls: The same under each control.
    """

    fact: str
    asked: int
    right: int
    right_without: int
    right_controls: tuple[int, ...]
    change: float
    change_controls: tuple[float, ...]

    @staticmethod
    def from_dict(content: storage.JsonObject) -> "FactChange":
        """Read back what `dataclasses.asdict` wrote, from JSON."""
        lists = {key: tuple(one) for key, one in content.items() if isinstance(one, list)}
        return FactChange(**{**content, **lists})


@dataclass(frozen=True)
class Forgetting:
    """A retraining without the documents of some facts, and its control.

    Attributes:
        facts: Names of the facts whose documents were removed.
        removed: Those documents.
        control_facts, control: The facts and documents removed in the first control run instead.
        first_read: First step that read one of the removed documents.
        runs: Paths of the retrained run and of the control runs.
        groups: One entry per setting and group; a group without any fact has none. The settings of
            further controls are `control 2 removed` and so on, with the removed facts alone.
        beyond_controls: Change in log-probability of the removed facts beyond that under the
            controls, in nats; None in files of earlier versions.
        by_fact: Each removed fact by itself; empty in files of earlier versions.

    Examples:
        >>> measured = released.measured("planted", "forgetting")
        >>> forgetting = counterfactuals.Forgetting.from_dict(measured)
        >>> forgetting.fell, forgetting.stayed, forgetting.holds
        (True, True, True)
        >>> forgetting.to_frame().columns.tolist()[:4]
        ['setting', 'facts', 'n', 'recall']
    """

    meaning: ClassVar[str] = (
        "A forgetting shows what this run no longer answers when all documents of some facts "
        "are removed, beyond its controls; it does not show which of the documents taught "
        "them."
    )

    parent: str
    facts: tuple[str, ...]
    removed: tuple[int, ...]
    control_facts: tuple[str, ...]
    control: tuple[int, ...]
    first_read: int
    runs: tuple[str, ...]
    groups: tuple[Group, ...]
    beyond_controls: EffectSize | None = None
    by_fact: tuple[FactChange, ...] = ()

    __repr__ = short_repr
    _repr_html_ = html_repr

    def __str__(self) -> str:
        recalls = ", ".join(
            f"{one.setting} {one.share.recall:.3f}"
            for one in self.groups
            if one.group == "removed" and one.share.recall is not None
        )
        removed = f"{count(len(self.facts), 'fact')} in {count(len(self.removed), 'document')}"
        return f"{removed}; their recall: {recalls}"

    @staticmethod
    def from_dict(content: storage.JsonObject) -> "Forgetting":
        """Read back what `dataclasses.asdict` wrote, from JSON."""
        groups = tuple(
            Group(**{**one, "share": Share(**one["share"])}) for one in content["groups"]
        )
        lists = {key: tuple(one) for key, one in content.items() if isinstance(one, list)}
        beyond = content.get("beyond_controls")
        facts = tuple(FactChange.from_dict(one) for one in content.get("by_fact", ()))
        built = {
            "groups": groups,
            "beyond_controls": None if beyond is None else EffectSize(**beyond),
            "by_fact": facts,
        }
        return Forgetting(**{**content, **lists, **built})

    def of(self, setting: str, group: str) -> Group:
        """Return the group of facts in one setting.

        Raises:
            CounterfactualError: It was not measured.
        """
        for one in self.groups:
            if (one.setting, one.group) == (setting, group):
                return one
        raise CounterfactualError(f"no group {group!r} under {setting!r} was measured")

    @property
    def fell(self) -> bool:
        """Return whether the facts fell to the level of facts never stated.

        This requires that Wilson's intervals of the two recalls overlap (both are measured: 1 of 27
        answers against 0 of 90 is no difference), and that the interval of their change in
        log-probability lies below the intervals under all controls. A single fact shows neither.
        """
        gone = self.of("documents removed", "removed")
        never = self.of("documents removed", "never stated")
        lows = [one.change_low for one in self._controls]
        known = [low for low in lows if low is not None]
        if gone.change_high is None or len(known) < len(lows):
            return False
        return gone.share.low <= never.share.high and gone.change_high < min(known)

    @property
    def stayed(self) -> bool:
        """Return whether nothing else was forgotten.

        This requires a recall of at least 0.9 for the facts of the control and the kept facts in
        the run without the chosen facts' documents, and for the chosen facts in every control run.
        """
        there = [self.of("documents removed", "control"), *self._controls]
        there += [
            one for one in self.groups if (one.setting, one.group) == ("documents removed", "kept")
        ]
        return min(one.share.recall or 0.0 for one in there) >= STAYS

    @property
    def _controls(self) -> list[Group]:
        """Return the removed facts as each control run knows them."""
        return [
            one
            for one in self.groups
            if one.group == "removed" and one.setting.startswith("control")
        ]

    @property
    def holds(self) -> bool:
        """Return whether the claim holds: the removed facts are forgotten, and no others are."""
        return self.fell and self.stayed

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row per setting and group."""
        return pd.DataFrame(
            [
                {
                    "setting": one.setting,
                    "facts": one.group,
                    "n": one.share.n,
                    "recall": one.share.recall,
                    "low": one.share.low,
                    "high": one.share.high,
                    "log-prob": one.share.log_prob,
                    "change": one.change,
                    "change low": one.change_low,
                    "change high": one.change_high,
                }
                for one in self.groups
            ]
        )

    def plot(self) -> "plots.Figure":
        """Plot the recall of each group of facts in each setting, with Wilson's intervals."""
        return plots.grouped_bars(
            self.to_frame(),
            across="facts",
            by="setting",
            value="recall",
            low="low",
            high="high",
            title=f"Recall after retraining without the documents of {len(self.facts)} facts",
            unit="share recalled",
        )


def removable_facts(
    run: Run, *, exposures: int = 16, n: int = 9, late: bool | None = None
) -> list[str]:
    """Return the names of the first `n` facts stated `exposures` times, a third per relation.

    Args:
        late: Whether to take facts that are read late in training, whose removal takes a third of
            the time, or those read throughout; default: late ones if there are any.

    Raises:
        CounterfactualError: There are fewer facts, or no truth table.

    Examples:
        >>> counterfactuals.removable_facts(run, n=3)
        ['capital of runethi', 'maker of damuzhu', 'trade of memeska']
    """
    truth = _truth(run)
    stated = [fact for fact in truth["facts"] if fact["exposures"] == exposures]
    if late is None:
        late = any(fact.get("late", False) for fact in stated)
    by_relation = [
        [
            fact["name"]
            for fact in stated
            if fact["relation"] == relation and fact.get("late", False) == late
        ]
        for relation in truth["relations"]
    ]
    turns = [name for turn in zip(*by_relation, strict=False) for name in turn]
    if len(turns) < n:
        raise CounterfactualError(
            f"only {len(turns)} facts, as many of each relation, are stated {exposures} times, "
            f"not {n}"
        )
    return turns[:n]


def forget_facts(
    run: Run,
    names: Sequence[str],
    *,
    out: str | Path | None = None,
    controls: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> Forgetting:
    """Retrain without the documents of the named facts, and without those of as many others.

    Costs one training and another for each control, each from the last checkpoint that keeps its
    optimizer before the first removed document was read.

    Args:
        controls: Number of controls, of which each trains once more. With two or more, the interval
            of `beyond_controls` includes how much they differ.
        seed: Random seed for drawing the facts of the control: as many of each relation as are
            named, among those that are stated equally often and in the same part of training.

    Raises:
        CounterfactualError: The run has no truth table, no fact was named, the facts are not stated
            equally often, or there are too few others like them for a control.
        BehaviourError: There is no such fact.
    """
    truth = _truth(run)
    # A fact named both by its name and by its entity counts once.
    chosen = list(
        {one["name"]: one for one in training_dynamics.facts_named(truth, names)}.values()
    )
    if not chosen:
        raise CounterfactualError("no facts to forget were named; nothing would change")
    kinds = {(fact["exposures"], fact.get("late", False)) for fact in chosen}
    if len(kinds) != 1 or not all(exposures for exposures, _ in kinds):
        told = sorted({exposures for exposures, _ in kinds})
        raise CounterfactualError(
            f"the facts to forget are stated {told} times"
            f"{', some late and some throughout training' if len(told) < len(kinds) else ''}; name "
            "facts that are stated equally often, at least once and in the same part of training, "
            "so that the kept ones are their like"
        )
    if controls < 1:
        raise CounterfactualError(f"{controls} controls show no effect of chance; take at least 1")
    others = [fact for fact in _like(truth, chosen[0]) if fact not in chosen]
    seeds, drawn = _draw_controls(others, chosen, controls, seed)
    control = drawn[0]
    asked = {
        "removed": chosen,
        "control": control,
        "kept": [fact for fact in others if fact not in control],
        "never stated": [fact for fact in truth["facts"] if fact["exposures"] == 0],
    }
    gone, *gone_instead = (documents_of(run, facts) for facts in (chosen, *drawn))
    choices = [
        RemovalChoice("facts", facts=_names(chosen)),
        *(
            RemovalChoice("matched-facts", facts=_names(facts), seed=seed, matched_to=gone)
            for seed, facts in zip(seeds, drawn, strict=True)
        ),
    ]
    place = Path(out) if out else run.path / "counterfactuals"
    retrained, *instead = retraining.retrain_each(
        run, [gone, *gone_instead], choices, out=place, progress=progress
    )
    settings = {"full run": run, "documents removed": retrained, "control removed": instead[0]}
    further = {f"control {n} removed": one for n, one in enumerate(instead[1:], start=2)}
    step = run.steps[-1]
    answers = _answers(settings, step, {name: some for name, some in asked.items() if some}, truth)
    answers |= _answers(further, step, {"removed": chosen}, truth)
    before, after, *without_others = (
        _per_fact(answers[setting, "removed"]) for setting in (*settings, *further)
    )
    return Forgetting(
        parent=run.id,
        facts=_names(chosen),
        removed=gone,
        control_facts=_names(control),
        control=gone_instead[0],
        first_read=trainer.first_step_reading(run, gone),
        runs=tuple(str(one.path) for one in (retrained, *instead)),
        groups=tuple(
            _group(setting, group, some, answers["full run", group])
            for (setting, group), some in answers.items()
        ),
        beyond_controls=Change(
            "removed facts",
            "nats",
            True,
            _log_probs(before),
            _log_probs(after),
            np.stack([_log_probs(one) for one in without_others]),
        ).effect,
        by_fact=tuple(
            _fact_change(*some) for some in zip(before, after, *without_others, strict=True)
        ),
    )


def documents_of(run: Run, chosen: Sequence[dict]) -> tuple[int, ...]:
    """Return the indices of every document that states one of the facts and was read.

    Documents behind the last full window, or not reached by the run, taught nothing and stay.

    Examples:
        >>> facts = training_dynamics.facts_named(behaviours.planted_truth(run), ["runethi"])
        >>> documents = counterfactuals.documents_of(run, facts)
        >>> len(documents), documents[:3]
        (16, (28417, 28427, 28430))
    """
    return tuple(one for one in _stating(run, chosen) if len(run.steps_learned(one)))


def _stating(run: Run, facts: Sequence[dict]) -> list[int]:
    """Return every document that states one of the facts, read or not."""
    rows = [row for fact in facts for row in fact["documents"]]
    return np.flatnonzero(np.isin(run.store.rows, rows)).tolist()


def _names(facts: Sequence[dict]) -> tuple[str, ...]:
    return tuple(fact["name"] for fact in facts)


def _like(truth: dict, fact: dict) -> list[dict]:
    """Return the facts that are stated as often as `fact`, and in the same part of training."""
    return [
        one
        for one in truth["facts"]
        if one["exposures"] == fact["exposures"]
        and one.get("late", False) == fact.get("late", False)
    ]


def draw_control(others: list[dict], chosen: list[dict], seed: int) -> list[dict]:
    """Draw as many other facts of each relation, by seed."""
    draw = np.random.default_rng(seed)
    drawn = []
    for relation, n in sorted(Counter(fact["relation"] for fact in chosen).items()):
        there = [fact for fact in others if fact["relation"] == relation]
        if len(there) < n:
            raise CounterfactualError(
                f"{n} facts of relation {relation!r} are to be forgotten, and the control needs as "
                f"many others that are stated equally often; there are {len(there)}: name fewer"
            )
        drawn += [there[one] for one in sorted(draw.permutation(len(there))[:n])]
    return drawn


def _draw_controls(
    others: list[dict], chosen: list[dict], n: int, seed: int
) -> tuple[list[int], list[list[dict]]]:
    """Draw n different controls, from `seed` on; return the seed of each, and its facts."""
    seeds: list[int] = []
    drawn: list[list[dict]] = []
    for number in range(TRIES * n):
        facts = draw_control(others, chosen, seed + number)
        if facts not in drawn:
            seeds.append(seed + number)
            drawn.append(facts)
        if len(drawn) == n:
            return seeds, drawn
    raise CounterfactualError(
        f"{n} different controls were asked for, and {len(others)} other facts stated equally "
        f"often give {len(drawn)}; ask for fewer, or name fewer facts"
    )


def _answers(
    settings: dict[str, Run], step: int, asked: dict[str, list[dict]], truth: dict
) -> dict[tuple[str, str], tuple[Answer, ...]]:
    """Return the answers to each group of facts in each setting, at one step."""
    found = {}
    for setting, run in settings.items():
        model, tokenizer = run.load(step), run.store.tokenizer
        for group, facts in asked.items():
            found[setting, group] = training_dynamics.recall_of_facts(
                model, facts, truth, tokenizer
            )
    return found


def _group(setting: str, group: str, answers: Sequence[Answer], before: Sequence[Answer]) -> Group:
    change = _log_probs(_per_fact(answers)) - _log_probs(_per_fact(before))
    low, high = mean_interval(change) or (None, None)
    share = training_dynamics.recall_share(answers)
    return Group(setting, group, share, float(change.mean()), low, high)


def _per_fact(answers: Sequence[Answer]) -> list[list[Answer]]:
    """Return the answers of each fact together, in order of first mention."""
    found: dict[str, list[Answer]] = {}
    for answer in answers:
        found.setdefault(answer.fact, []).append(answer)
    return list(found.values())


def _log_probs(facts: Sequence[Sequence[Answer]]) -> Float[np.ndarray, " fact"]:
    """Return each fact's mean log-probability over its wordings."""
    return np.array([np.mean([answer.log_prob for answer in answers]) for answers in facts])


def _fact_change(
    before: Sequence[Answer], after: Sequence[Answer], *controls: Sequence[Answer]
) -> FactChange:
    full, gone, *others = _log_probs([before, after, *controls]).tolist()
    right, right_without, *right_controls = (
        sum(answer.correct for answer in answers) for answers in (before, after, *controls)
    )
    return FactChange(
        fact=before[0].fact,
        asked=len(before),
        right=right,
        right_without=right_without,
        right_controls=tuple(right_controls),
        change=gone - full,
        change_controls=tuple(one - full for one in others),
    )


def _truth(run: Run) -> dict:
    if not run.store.truth:
        raise CounterfactualError(
            f"the run {run.path} has no truth table; only a planted corpus knows its facts"
        )
    return run.store.truth
