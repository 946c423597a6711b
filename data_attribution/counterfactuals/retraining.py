"""Retraining without documents, and without as many random ones as a control.

Retraining tests every estimate of which documents taught a behaviour. The retrained run shares
initial weights, data order, shapes, positions, steps and divisors with its parent to the bit; only
the removed documents are blanked (`train.trainer.retrain_without`). Copies of a document are
removed with it, because what it taught would otherwise stay. The control removes as many documents
that are in none of the given sources and are not copies of a removed one, matched one by one by
length and by the step at which they were first read. So the effect of any removal of that size can
be subtracted (`effect_size`). Bit-identity holds on the machine and with the threads that trained
the parent; on another machine, the retrained run and its controls share the same rounding, but a
plain difference to the parent includes it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from data_attribution import queries
from data_attribution.attribution import Sources
from data_attribution.counterfactuals import document_sets, effect_size
from data_attribution.counterfactuals.effect_size import Change, EffectSize
from data_attribution.counterfactuals.retrained_runs import (
    removal_mode,
    removed_documents,
    retrained_from,
)
from data_attribution.errors import CounterfactualError
from data_attribution.queries import Query
from interp import plots
from interp.behaviours import Behaviour, refuse_several
from train import runs, trainer
from train.data import DocumentRemoval, RemovalChoice, Together
from train.errors import nearest
from train.html_panel import html_repr
from train.model import GPT
from train.progress import Progress, count
from train.runs import Run
from train.short_repr import short_repr
from train.statistics import mean_interval, wilson


__all__ = ["CONTROLS", "Counterfactual", "Measured", "Score", "compare", "retrain", "without"]

CONTROLS = 2  # the fewest from which the effect of chance is known

Measured = Behaviour | Query
Answers = Float[np.ndarray, "_"]  # by prompt; queries have any number of prompts


@dataclass(frozen=True)
class Score:
    """The performance of one model on one behaviour, by case: a distinct clean prompt, or a group.

    A single fact is one prompt, however many corrupt prompts it has: it counts once. So does a
    group of prompts (`Behaviour.cases`), with the mean over its prompts.

    Attributes:
        recall: Whether the answer is first among the candidates (or in the vocabulary), 0 or 1; for
            a prompt with several answers, the share of them.
        log_prob: Log-probability of the answer among the candidates, per prompt, in nats (mean over
            its answers).
        logit_difference: Answer minus foil at the last position, per prompt (mean over its foils).
    """

    behaviour: str
    recall: Float[np.ndarray, " prompt"]
    log_prob: Float[np.ndarray, " prompt"]
    logit_difference: Float[np.ndarray, " prompt"]

    __repr__ = short_repr


@dataclass(frozen=True)
class Counterfactual:
    """The effect of removing documents, compared with removing random ones.

    Attributes:
        named: Documents that were given.
        together: Which of their copies were removed with them.
        removed: Documents that were removed.
        control: Matched random documents of each control run.
        runs: Paths of the retrained run and of the control runs.
        choices: How the removed documents of each of these runs were chosen; None: unknown, because
            the run was trained by a version that did not record it.
        before, after: Scores per behaviour of the full and of the retrained run.
        controls: Scores per behaviour of each control run.
        changes: Changes per behaviour and query, prompt by prompt, in the given order; a behaviour
            by its answer's log-probability.
        avoided: Number of documents, besides the removed ones, that no control was allowed to hold.
    """

    meaning: ClassVar[str] = (
        "A counterfactual shows what this run would have scored without these documents "
        "together, next to its random controls if it has some; it does not show what each of "
        "them did, nor what another seed would do."
    )

    parent: str
    mode: str
    named: tuple[int, ...]
    together: Together
    removed: tuple[int, ...]
    control: tuple[tuple[int, ...], ...]
    runs: tuple[str, ...]
    choices: tuple[RemovalChoice | None, ...]
    before: tuple[Score, ...]
    after: tuple[Score, ...]
    controls: tuple[tuple[Score, ...], ...]
    changes: tuple[Change, ...]
    avoided: int

    __repr__ = short_repr
    _repr_html_ = html_repr

    def __str__(self) -> str:
        removed = f"{count(len(self.removed), 'document')} removed"
        effects = ", ".join(f"{one.name} {one.effect.mean:+.3f}" for one in self.changes[:3])
        controls = count(len(self.control), "control run")
        return f"{removed} from {self.parent}, {controls}; effect beyond them: {effects}"

    def effect(self, name: str | None = None) -> EffectSize:
        """Return the effect of the documents on a behaviour or query, beyond that of random ones.

        The default is the first one measured.

        Raises:
            CounterfactualError: It was not measured.
        """
        asked = [one.name for one in self.changes]
        if name is not None and name not in asked:
            raise CounterfactualError(
                f"{name!r} was not asked of the retrained run{nearest(name, asked)}"
            )
        return self.changes[asked.index(name) if name is not None else 0].effect

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for JSON: the removed documents, the runs' paths, and the table."""
        return {
            "parent": self.parent,
            "mode": self.mode,
            "named": list(self.named),
            "together": self.together,
            "removed": list(self.removed),
            "control": [list(one) for one in self.control],
            "avoided": self.avoided,
            "runs": list(self.runs),
            "choices": [one.to_dict() if one else None for one in self.choices],
            "rows": self._rows(),
            "effects": [one.row() for one in self.changes],
        }

    def to_frame(self) -> pd.DataFrame:
        """Return one row per behaviour and run: recall, change in log-probability, intervals."""
        return pd.DataFrame(self._rows())

    def _rows(self) -> list[dict[str, float | int | str | None]]:
        settings = [("full run", self.before), ("without the documents", self.after)]
        several = len(self.control) > 1
        drawn = zip(self.control, self.controls, strict=True)
        for number, (documents, scores) in enumerate(drawn, start=1):
            name = f"without {len(documents)} matched random"
            settings.append((f"{name}, control {number}" if several else name, scores))
        return [
            _row(setting, score, base)
            for setting, scores in settings
            for score, base in zip(scores, self.before, strict=True)
        ]

    def plot(self) -> "plots.Figure":
        """Plot the change in the answer's log-probability, per behaviour and retrained run."""
        return plots.grouped_bars(
            self.to_frame().query("setting != 'full run'"),
            across="behaviour",
            by="setting",
            value="change",
            low="change low",
            high="change high",
            title=f"Change after retraining without {count(len(self.removed), 'document')}",
            unit="log-probability of the answer, nats",
        )


def without(
    run: Run,
    documents: Sources | Sequence[int | Sources],
    behaviour: Measured | Sequence[Measured],
    *,
    top: int | None = None,
    together: Together = "near",
    unrelated: Sequence[Measured] = (),
    out: str | Path | None = None,
    control: Literal["matched-random", "none"] = "matched-random",
    seeds: int = CONTROLS,
    mode: str = "blank",
    avoid: Sources | Sequence[int | Sources] = (),
    progress: Progress | None = None,
) -> Counterfactual:
    """Retrain without documents, and `seeds` times without as many matched random ones.

    Costs one training from the first step that read one of the documents, and one per control. No
    control holds a copy of a removed document, exact or near. If Sources are given, no control
    holds a document of any of their rows, or a copy of one, folded or not: a document with evidence
    is not a random document, even if it was not removed.

    Args:
        run: Run that read the documents.
        documents: Sources, or indices in the document table, or a list of both.
        behaviour: Behaviours to measure, or queries (a component's score, a probe).
        top: Number of documents to remove, from the first; default: all.
        together: Which copies of the documents to remove as well, if they were read.
        unrelated: Further behaviours or queries, which the documents should not affect.
        out: Folder for the retrained runs; default: `counterfactuals/` inside the run. A retrained
            run that already exists is opened, not computed again.
        seeds: Number of control runs, each without other documents. The effect of chance is known
            from two on; with one, no effect is called within or beyond its noise.
        avoid: Further documents that no control may hold.

    Raises:
        CounterfactualError: There are no documents, or one that the run never read; Sources belong
            to another token store; there are too few documents for so many different controls;
            nothing is measured, or two things have the same name; a number of documents or of
            controls is below 1.
    """
    related = [behaviour] if isinstance(behaviour, Behaviour | Query) else list(behaviour)
    _refuse_unclear([*related, *unrelated], top, seeds if control == "matched-random" else None)
    groups = _groups(run, documents)
    named = document_sets.checked_documents(run, [group[0] for group in groups[:top]])
    removed = document_sets.with_copies(run, named, together)
    pointed_at = {one for group in (*groups, *_groups(run, avoid)) for one in group}
    avoided = document_sets.kept_out(run, removed, pointed_at)
    # Controls are drawn before anything is trained, so that a missing control is reported at once.
    drawn = document_sets.matched_random_sets(
        run, removed, seeds if control == "matched-random" else 0, avoid=avoided
    )
    choices = (
        RemovalChoice("named", named=named, together=together),
        *(
            RemovalChoice(
                "matched-random",
                seed=seed,
                rule=document_sets.RULE,
                matched_to=removed,
                avoided=tuple(sorted(avoided)),
            )
            for seed in drawn
        ),
    )
    place = Path(out) if out else run.path / "counterfactuals"
    retrained, *others = retrain_each(
        run, [removed, *drawn.values()], choices, out=place, mode=mode, progress=progress
    )
    counterfactual = compare(run, retrained, others, related, unrelated=unrelated)
    # A retrained run that was there before may have been trained for another reason.
    return replace(
        counterfactual, named=named, together=together, avoided=len(avoided), choices=choices
    )


def compare(
    run: Run,
    retrained: Run,
    controls: Sequence[Run],
    behaviour: Measured | Sequence[Measured],
    *,
    unrelated: Sequence[Measured] = (),
) -> Counterfactual:
    """Measure behaviours or queries on a run, on one retrained without documents, and on controls.

    Trains nothing. What was named, which copies were removed with it, and what no control could
    hold is what the manifests of the runs record. If they do not, `named` is all that was removed.

    Raises:
        CounterfactualError: A run was not retrained from `run`, or to its last checkpoint; two of
            the runs lack the same documents; nothing is measured, or two things have the same name.
    """
    related = [behaviour] if isinstance(behaviour, Behaviour | Query) else list(behaviour)
    asked, last = [*related, *unrelated], run.steps[-1]
    _refuse_unclear(asked, None, None)
    for one in (retrained, *controls):
        _refuse_other(one, run)
    removed, *drawn = (removed_documents(one, run) for one in (retrained, *controls))
    _refuse_twice([removed, *drawn], (retrained, *controls))
    answers = [_answers(one.load(last), asked) for one in (run, retrained, *controls)]
    before, after, *others = (
        tuple(one for one in row if isinstance(one, Score)) for row in answers
    )
    choices = tuple(one.removal_choice for one in (retrained, *controls))
    choice, avoided = choices[0], [len(one.avoided) for one in choices[1:] if one]
    return Counterfactual(
        parent=run.id,
        mode=removal_mode(retrained),
        named=choice.named if choice and choice.named else removed,
        together=(choice and choice.together) or "none",
        removed=removed,
        control=tuple(drawn),
        runs=tuple(str(one.path) for one in (retrained, *controls)),
        choices=choices,
        before=before,
        after=after,
        controls=tuple(others),
        changes=tuple(_changes(asked, len(related), answers)),
        avoided=max(avoided, default=0),
    )


def _refuse_other(again: Run, run: Run) -> None:
    """Raise if a run was not retrained from `run`, or not to its last checkpoint."""
    if not retrained_from(run, again):
        raise CounterfactualError(
            f"{again.path} was not retrained from run {run.id} without documents"
        )
    if run.steps[-1] not in again.steps:
        raise CounterfactualError(
            f"{again.path} was retrained to step {max(again.steps, default=0)}, and run {run.id} "
            f"ends at step {run.steps[-1]}; go on with `openbook run resume {again.path}`"
        )


def _refuse_twice(removed: Sequence[tuple[int, ...]], retrained: Sequence[Run]) -> None:
    """Raise if two of the retrained runs lack the same documents: they are one retraining."""
    for number, documents in enumerate(removed):
        first = removed.index(documents)
        if first != number:
            raise CounterfactualError(
                f"{retrained[first].path} and {retrained[number].path} lack the same "
                f"{count(len(documents), 'document')}, and one retraining counts once; leave one "
                "of them out"
            )


def _groups(run: Run, given: Sources | Sequence[int | Sources]) -> list[tuple[int, ...]]:
    """Return the documents one by one; for Sources, each with the copies folded into it."""
    if not isinstance(given, Sources):
        return [
            group
            for one in given
            for group in (_groups(run, one) if isinstance(one, Sources) else [(int(one),)])
        ]
    store = given.provenance.get("store", run.store.fingerprint)
    if store != run.store.fingerprint:
        raise CounterfactualError(
            f"the sources are documents of token store {store[:12]}, and the run was trained on "
            f"{run.store.fingerprint[:12]}; trace them in the run that is trained again"
        )
    return list(given.groups)


def _refuse_unclear(asked: Sequence[Measured], top: int | None, seeds: int | None) -> None:
    names = [one.name for one in asked]
    twice = sorted({one for one in names if names.count(one) > 1})
    if not names or twice:
        what = f"{twice[0]!r} is asked twice" if twice else "nothing is asked of the retrained run"
        raise CounterfactualError(f"{what}; give behaviours or questions, each by its own name")
    if top is not None and top < 1:
        raise CounterfactualError(f"the first {top} documents are none; remove 1 or more")
    if seeds is not None and seeds < 1:
        raise CounterfactualError(
            f"{seeds} matched random controls are none; ask for 2, or for control='none'"
        )


def retrain_each(
    run: Run,
    several: Sequence[Sequence[int]],
    choices: Sequence[RemovalChoice],
    *,
    out: Path,
    mode: str = "blank",
    progress: Progress | None = None,
) -> list[Run]:
    """Retrain without each of several lists of documents, each with how it was chosen.

    Progress says which one it is.
    """
    retrained = []
    for one, choice in zip(several, choices, strict=True):
        number = f"{len(retrained) + 1} of {len(several)}"

        def numbered(what: str, done: int, total: int | None, number: str = number) -> None:
            if progress is not None:
                progress(f"{number}, {what}", done, total)

        retrained.append(retrain(run, one, choice, out=out, mode=mode, progress=numbered))
    return retrained


def retrain(
    run: Run,
    documents: Sequence[int],
    choice: RemovalChoice | None = None,
    *,
    out: Path,
    mode: str = "blank",
    progress: Progress | None = None,
) -> Run:
    """Return the run without these documents, trained to the original run's last checkpoint.

    It is opened if it was computed before, and resumed if it was stopped; its manifest then keeps
    the choice that it has.
    """
    removed = document_sets.checked_documents(run, documents)
    name = sha256(f"{run.id} {mode} {removed}".encode()).hexdigest()[:12]
    path = out / name
    if (path / "manifest.json").exists():
        again, last = runs.open(path, store=run.store.path), run.steps[-1]
        # A run that was stopped behind its last checkpoint has still to be declared finished.
        if again.finished or (last in again.steps and last < again.recipe.steps):
            return again
        return trainer.resume(path, store=run.store.path, last=last, progress=progress)
    removal = DocumentRemoval(removed, mode)
    return trainer.retrain_without(run, path, removal, choice=choice, progress=progress)


def _answers(model: GPT, asked: Sequence[Measured]) -> list[Score | Answers]:
    """Return a score for each behaviour, and for each query one number per distinct prompt."""
    return [
        _score(one, model)
        if isinstance(one, Behaviour)
        else effect_size.by_prompt(queries.measure_query(model, one), one.cases)
        for one in asked
    ]


def _changes(
    asked: Sequence[Measured],
    n_related: int,
    answers: Sequence[Sequence[Score | Answers]],
) -> Iterator[Change]:
    for number, one in enumerate(asked):
        row = [answer[number] for answer in answers]
        before, after, *controls = (x.log_prob if isinstance(x, Score) else x for x in row)
        unit = "nats of log-probability" if isinstance(one, Behaviour) else one.unit
        drawn = np.array(controls).reshape(len(controls), len(before))
        yield Change(one.name, unit, number < n_related, before, after, drawn)


@torch.inference_mode()
def _score(behaviour: Behaviour, model: GPT) -> Score:
    refuse_several(behaviour, "recall after retraining")
    # Some prompts at a time, and only the last position: the logits of a whole behaviour with a
    # large vocabulary would take gigabytes.
    logits = torch.cat([model(some)[:, -1:] for some in behaviour.clean.split(queries.ROWS)])
    last, row = logits[:, -1], torch.arange(len(logits))
    right = trainer.is_highest(last, behaviour.answer, behaviour.candidates)
    allowed = list(behaviour.candidates or range(last.shape[1]))
    place = {token: index for index, token in enumerate(allowed)}
    answers = [place[token] for token in behaviour.answer.tolist()]
    log_probs = last[:, allowed].log_softmax(-1)[row, answers]
    prompts = np.array(behaviour.cases)
    recall, log_prob, difference = (
        effect_size.by_prompt(values.double().numpy(), prompts)
        for values in (right, log_probs, behaviour.score(logits))
    )
    return Score(behaviour.name, recall, log_prob, difference)


def _row(setting: str, score: Score, base: Score) -> dict[str, float | int | str | None]:
    """Return one row of the table; with one prompt the change has no interval."""
    n = len(score.recall)
    low, high = wilson(float(score.recall.mean()), n)
    change = score.log_prob - base.log_prob
    change_low, change_high = mean_interval(change) or (None, None)
    return {
        "setting": setting,
        "behaviour": score.behaviour,
        "n": n,
        "recall": float(score.recall.mean()),
        "recall low": low,
        "recall high": high,
        "log-prob": float(score.log_prob.mean()),
        "change": float(change.mean()),
        "change low": change_low,
        "change high": change_high,
        "logit difference": float(score.logit_difference.mean()),
    }
