"""What a run forgets when the documents of planted facts are taken out of its training.

One retraining answers for several facts at once, because the planted facts share no entity. Three
groups are asked in every form of their relation: the facts whose documents went, the facts stated
equally often whose documents stayed, and the facts that were never stated at all. The claim holds
when the first group falls to the third and the second stays; the control run, which lost as many
matched random documents, none of which states a fact that is asked about, must leave all three
where they were. There is one control: how far another one would move the facts is not known, and
stands in no interval (`counterfactuals.without` takes several).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data_attribution import counterfactuals, removals
from data_attribution.counterfactuals import Progress
from data_attribution.errors import CounterfactualError
from interp import intervals, recalling
from interp.recalling import Answer, Share
from train.runs import Run


__all__ = ["Forgetting", "Group", "documents_of", "facts", "removable"]

STAYS = 0.9  # recall


@dataclass(frozen=True)
class Group:
    """Facts of one kind, asked of one model.

    Attributes:
        setting: `full run`, `documents removed`, or `random removed`.
        group: `removed`, `kept` (as many exposures, documents still there), or `never stated`.
        share: Recall with n facts and Wilson's interval, and mean log-probability.
        change: Mean difference in log-probability to the full run, in nats; `change_low` and
            `change_high` are its 95 % interval over facts, and None for a single fact.
    """

    setting: str
    group: str
    share: Share
    change: float
    change_low: float | None
    change_high: float | None


@dataclass(frozen=True)
class Forgetting:
    """A retraining without the documents of some facts, and its control.

    Attributes:
        facts: Names of the facts whose documents were taken out.
        removed: Those documents; `random`: as many matched others, taken out of the control run.
        avoided: How many documents could not be drawn for it: those that state a fact that is asked
            about, and copies of the removed ones.
        runs: Paths of the retrained run and of the control run.
        groups: A cell per setting and group; a group without a single fact has none.
    """

    parent: str
    facts: tuple[str, ...]
    removed: tuple[int, ...]
    random: tuple[int, ...]
    runs: tuple[str, str]
    groups: tuple[Group, ...]
    avoided: int

    def of(self, setting: str, group: str) -> Group:
        """One cell."""
        for one in self.groups:
            if (one.setting, one.group) == (setting, group):
                return one
        raise CounterfactualError(f"no group {group!r} under {setting!r} was measured")

    @property
    def fell(self) -> bool:
        """Whether the facts fell to the level of facts never stated.

        Wilson's intervals of the two recalls overlap (both are measured: 1 of 27 answers against 0
        of 90 is no difference), and their log-probability fell by more than under the control,
        interval below interval. A single fact shows neither.
        """
        gone = self.of("documents removed", "removed")
        never = self.of("documents removed", "never stated")
        random = self.of("random removed", "removed")
        if gone.change_high is None or random.change_low is None:
            return False
        return gone.share.low <= never.share.high and gone.change_high < random.change_low

    @property
    def stayed(self) -> bool:
        """Whether nothing else was forgotten.

        Facts whose documents stayed, and the chosen facts under the control, are recalled in at
        least 0.9.
        """
        kept = self.of("documents removed", "kept").share.recall or 0.0
        return min(kept, self.of("random removed", "removed").share.recall or 0.0) >= STAYS

    @property
    def holds(self) -> bool:
        """The claim: what was taken out is forgotten, and nothing else is."""
        return self.fell and self.stayed

    def to_frame(self) -> pd.DataFrame:
        """A row per setting and group."""
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

    def plot(self) -> Any:
        """Recall of each group of facts in each setting, with Wilson's intervals."""
        from interp import plots

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


def removable(run: Run, *, exposures: int = 16, n: int = 9) -> list[str]:
    """The first `n` facts stated `exposures` times, a third of each relation, by name."""
    truth = _truth(run)
    stated = [fact for fact in truth["facts"] if fact["exposures"] == exposures]
    by_relation = [
        [fact["name"] for fact in stated if fact["relation"] == relation]
        for relation in truth["relations"]
    ]
    turns = [name for turn in zip(*by_relation, strict=False) for name in turn]
    if len(turns) < n:
        raise CounterfactualError(
            f"only {len(turns)} facts, as many of each relation, are stated {exposures} times, "
            f"not {n}"
        )
    return turns[:n]


def facts(
    run: Run,
    names: Sequence[str],
    *,
    out: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Forgetting:
    """Retrain without the documents that state the named facts, and without matched random ones.

    Costs two trainings, each from the last checkpoint before the first of the documents was read.

    Raises:
        CounterfactualError: The run has no truth table, no fact was named, or the facts are not
            equally often stated.
        BehaviourError: No such fact.
    """
    truth = _truth(run)
    # By name and by entity it is one fact.
    chosen = list({one["name"]: one for one in recalling.facts_named(truth, names)}.values())
    if not chosen:
        raise CounterfactualError("no facts to forget were named; nothing would change")
    exposures = {fact["exposures"] for fact in chosen}
    if len(exposures) != 1 or not all(exposures):
        raise CounterfactualError(
            f"the facts to forget are stated {sorted(exposures)} times; name facts that are stated "
            "equally often, and at least once, so that the kept ones are their like"
        )
    asked = _asked(truth, chosen)
    removed = documents_of(run, chosen)
    others = [fact for facts in asked.values() for fact in facts]
    avoided = removals.kept_out(run, removed, _stating(run, others))
    random = removals.matched_random(run, removed, seed=seed, avoid=avoided)
    place = Path(out) if out else run.path / "counterfactuals"
    retrained, control = counterfactuals.retrain_each(
        run, [removed, random], out=place, progress=progress
    )
    settings = {"full run": run, "documents removed": retrained, "random removed": control}
    return Forgetting(
        parent=run.id,
        facts=tuple(fact["name"] for fact in chosen),
        removed=removed,
        random=random,
        runs=(str(retrained.path), str(control.path)),
        groups=_groups(settings, asked, truth),
        avoided=len(avoided),
    )


def documents_of(run: Run, chosen: Sequence[dict]) -> tuple[int, ...]:
    """Indices in the document table of every document that states one of the facts and was read.

    What lies behind the last full window, or was not reached, taught nothing and stays.
    """
    return tuple(one for one in _stating(run, chosen) if len(removals.reading(run, one)))


def _stating(run: Run, facts: Sequence[dict]) -> list[int]:
    """Every document that states one of the facts, read or not."""
    rows = [row for fact in facts for row in fact["documents"]]
    return np.flatnonzero(np.isin(run.store.rows, rows)).tolist()


def _asked(truth: dict, chosen: list[dict]) -> dict[str, list[dict]]:
    """Facts by group, for the chosen ones; a group without a fact is left out."""
    gone, level = {fact["name"] for fact in chosen}, chosen[0]["exposures"]
    groups = {
        "removed": chosen,
        "kept": [f for f in truth["facts"] if f["exposures"] == level and f["name"] not in gone],
        "never stated": [f for f in truth["facts"] if f["exposures"] == 0],
    }
    return {name: facts for name, facts in groups.items() if facts}


def _groups(
    settings: dict[str, Run], asked: dict[str, list[dict]], truth: dict
) -> tuple[Group, ...]:
    groups, base = [], {}
    last = settings["full run"].steps[-1]
    for setting, run in settings.items():
        model, tokenizer = run.load(last), run.store.tokenizer
        for group, facts in asked.items():
            answers = recalling.of_facts(model, facts, truth, tokenizer)
            log_probs = _by_fact(answers)
            base.setdefault(group, log_probs)
            change = log_probs - base[group]
            low, high = intervals.mean_interval(change) or (None, None)
            groups.append(
                Group(
                    setting,
                    group,
                    recalling.share(answers),
                    float(change.mean()),
                    low,
                    high,
                )
            )
    return tuple(groups)


def _by_fact(answers: Sequence[Answer]) -> np.ndarray:
    """Mean log-probability per fact over the forms it was asked in, in order of first mention."""
    sums: dict[str, list[float]] = {}
    for answer in answers:
        sums.setdefault(answer.fact, []).append(answer.log_prob)
    return np.array([np.mean(values) for values in sums.values()])


def _truth(run: Run) -> dict:
    if not run.store.truth:
        raise CounterfactualError(
            f"the run {run.path} has no truth table; only a planted corpus knows its facts"
        )
    return run.store.truth
