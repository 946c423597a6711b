"""The proof: train again without the documents, and again without as many random ones.

Every estimate of which documents taught a behaviour is settled here. The retrained run shares
initial weights, order, shapes, positions, steps and divisors with its parent to the bit; only the
removed documents are blanked (`train.loop.branch`). The control removes as many documents that no
given source names and that copy none of the removed, matched one by one for length and for the step
at which they were first read, so that what any removal of that size does is subtracted by eye and
by number.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int64, Shaped

from data_attribution import duplicates
from data_attribution.errors import CounterfactualError
from data_attribution.sources import Sources
from interp import intervals
from interp.behaviours import Behaviour
from train import loop, runs
from train.batches import Removal
from train.runs import Run


__all__ = [
    "Counterfactual",
    "Score",
    "checked",
    "kept_out",
    "matched_random",
    "retrain",
    "without",
]

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Score:
    """How one model does one behaviour, by distinct clean prompt.

    A single fact is one prompt, beside however many corrupt ones it stands: it counts once.

    Attributes:
        recall: Whether the answer is first among the candidates (or in the vocabulary), 0 or 1.
        log_prob: Log-probability of the answer among the candidates, per prompt, in nats.
        logit_difference: Answer minus foil at the last position, per prompt (mean over its foils).
    """

    behaviour: str
    recall: Float[np.ndarray, " prompt"]
    log_prob: Float[np.ndarray, " prompt"]
    logit_difference: Float[np.ndarray, " prompt"]


@dataclass(frozen=True)
class Counterfactual:
    """What removing documents did, beside what removing random ones did.

    Attributes:
        removed: Documents left out; `control`: the matched random documents of each control run.
        runs: Paths of the retrained run and of the control runs.
        before, after: Scores per behaviour of the full and of the retrained run; `controls`: of
            each control run.
        avoided: How many documents, beside the removed, no control was allowed to hold.
    """

    parent: str
    mode: str
    removed: tuple[int, ...]
    control: tuple[tuple[int, ...], ...]
    runs: tuple[str, ...]
    before: tuple[Score, ...]
    after: tuple[Score, ...]
    controls: tuple[tuple[Score, ...], ...]
    avoided: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: what was removed, where the runs lie, and the table."""
        return {
            "parent": self.parent,
            "mode": self.mode,
            "removed": list(self.removed),
            "control": [list(one) for one in self.control],
            "avoided": self.avoided,
            "runs": list(self.runs),
            "rows": self._rows(),
        }

    def to_frame(self) -> pd.DataFrame:
        """A row per behaviour and run: recall and change in log-probability, with intervals."""
        return pd.DataFrame(self._rows())

    def _rows(self) -> list[dict[str, float | int | str | None]]:
        settings = [("full run", self.before), ("without the documents", self.after)]
        several = len(self.control) > 1
        for seed, (documents, scores) in enumerate(zip(self.control, self.controls, strict=True)):
            name = f"without {len(documents)} matched random"
            settings.append((f"{name}, seed {seed}" if several else name, scores))
        return [
            _row(setting, score, base)
            for setting, scores in settings
            for score, base in zip(scores, self.before, strict=True)
        ]

    def plot(self) -> Any:
        """Change in the answer's log-probability, per behaviour and retrained run."""
        from interp import plots

        return plots.grouped_bars(
            self.to_frame().query("setting != 'full run'"),
            across="behaviour",
            by="setting",
            value="change",
            low="change low",
            high="change high",
            title=f"Change after retraining without {len(self.removed)} documents",
            unit="log-probability of the answer, nats",
        )


def without(
    run: Run,
    documents: Sources | Sequence[int],
    behaviour: Behaviour | Sequence[Behaviour],
    *,
    top: int | None = None,
    out: str | Path | None = None,
    control: Literal["matched-random", "none"] = "matched-random",
    seeds: int = 1,
    mode: str = "blank",
    avoid: Sequence[int] = (),
    progress: Progress | None = None,
) -> Counterfactual:
    """Retrain without documents, and `seeds` times without as many matched random ones.

    No control holds a document that has the text of a removed one, nor one that the given Sources
    name: what evidence points at is no random document, though it was not removed.

    Args:
        run: The run that read them.
        documents: Sources, or indices in the document table.
        top: Of Sources, how many to remove, best first; default: all.
        behaviour: What to score; several behaviours show whether only the right one moved.
        out: Where the retrained runs are kept; default: `counterfactuals/` inside the run.
            A retrained run that is there already is opened, not computed again.
        avoid: More documents that no control may hold.

    Raises:
        CounterfactualError: No documents, or one that the run never read.
    """
    behaviours = [behaviour] if isinstance(behaviour, Behaviour) else list(behaviour)
    named = documents.documents if isinstance(documents, Sources) else tuple(documents)
    removed = checked(run, named[:top])
    avoided = kept_out(run, removed, {*named, *avoid})
    place = Path(out) if out else run.path / "counterfactuals"
    retrained = retrain(run, removed, out=place, mode=mode, progress=progress)
    drawn = [
        matched_random(run, removed, seed=seed, avoid=avoided)
        for seed in range(seeds if control == "matched-random" else 0)
    ]
    others = [retrain(run, one, out=place, mode=mode, progress=progress) for one in drawn]
    return Counterfactual(
        parent=run.id,
        mode=mode,
        removed=removed,
        control=tuple(drawn),
        runs=tuple(str(one.path) for one in (retrained, *others)),
        before=_scores(run, behaviours),
        after=_scores(retrained, behaviours),
        controls=tuple(_scores(one, behaviours) for one in others),
        avoided=len(avoided),
    )


def retrain(
    run: Run,
    documents: Sequence[int],
    *,
    out: Path,
    mode: str = "blank",
    progress: Progress | None = None,
) -> Run:
    """The run without these documents; opened when it was computed before, resumed when stopped."""
    removed = checked(run, documents)
    name = sha256(f"{run.id} {mode} {removed}".encode()).hexdigest()[:12]
    path = out / name
    if (path / "manifest.json").exists():
        return loop.resume(path, store=run.store.path, progress=progress)
    return loop.branch(run, path, Removal(removed, mode), progress=progress)


def kept_out(run: Run, removed: Collection[int], avoid: Collection[int]) -> frozenset[int]:
    """What no control may hold beside the removed documents: their copies, and `avoid`."""
    return frozenset(duplicates.copies(run.store, removed) | {*avoid}) - {*removed}


def matched_random(
    run: Run, documents: Sequence[int], *, seed: int, avoid: Collection[int] = ()
) -> tuple[int, ...]:
    """As many other documents, each of the length and of the first step of one of `documents`.

    None of them is in `avoid`: give it `kept_out`, or copies of `documents` may be drawn. Each
    partner is drawn among the documents that were read and are of nearest length; of 16 drawn,
    the one first read at the nearest step is taken.

    Raises:
        CounterfactualError: The run read too few other documents, or not all of `documents`.
    """
    removed, lengths = checked(run, documents), run.store.lengths
    taken, draw = {*removed, *avoid}, np.random.default_rng(seed)
    chosen: list[int] = []
    for document in removed:
        own = int(run.steps_reading(document)[0])
        firsts = _near_length(run, lengths, int(lengths[document]), taken, draw)
        nearest = min(firsts, key=lambda one: abs(firsts[one] - own))
        chosen.append(nearest)
        taken.add(nearest)
    return tuple(sorted(chosen))


def checked(run: Run, documents: Sequence[int], *, first: int = 0) -> tuple[int, ...]:
    """The documents, ascending and once each, when every one was read at `first` or later.

    Raises:
        CounterfactualError: No documents, unknown ones, or one that was never read.
    """
    removed = tuple(sorted({int(one) for one in documents}))
    if not removed:
        raise CounterfactualError("no documents to remove were given; nothing would change")
    if not 0 <= removed[0] <= removed[-1] < run.store.n_documents:
        raise CounterfactualError(
            f"documents {removed[0]} to {removed[-1]} are not all among the "
            f"{run.store.n_documents} of the store"
        )
    never = [one for one in removed if not (run.steps_reading(one) >= first).any()]
    if never:
        span = f"from step {first} on of " if first else "in "
        raise CounterfactualError(
            f"{len(never)} of the {len(removed)} documents were never read {span}"
            f"{run.recipe.steps} steps (first: document {never[0]}); leave them out of the list"
        )
    return removed


def _near_length(
    run: Run,
    lengths: Int64[np.ndarray, " document"],
    length: int,
    taken: set[int],
    draw: np.random.Generator,
) -> dict[int, int]:
    """Up to 16 documents that the run read, of nearest length, and the first step of each."""
    for spread in (0, 1, 2, 4, 8, 1 << 40):
        alike = draw.permutation(np.flatnonzero(np.abs(lengths - length) <= spread))
        read = ((int(one), run.steps_reading(int(one))) for one in alike if one not in taken)
        found = dict(islice(((one, int(steps[0])) for one, steps in read if len(steps)), 16))
        if found:
            return found
    raise CounterfactualError(
        f"a control needs documents beside the {len(taken)} removed or avoided ones, and the run "
        f"read no other of the {len(lengths)} in the store"
    )


@torch.inference_mode()
def _scores(run: Run, behaviours: Sequence[Behaviour]) -> tuple[Score, ...]:
    model = runs.open(run.path, store=run.store.path).load()
    return tuple(_score(behaviour, model(behaviour.clean)) for behaviour in behaviours)


def _score(behaviour: Behaviour, logits: torch.Tensor) -> Score:
    last, row = logits[:, -1], torch.arange(len(logits))
    allowed = list(behaviour.candidates) if behaviour.candidates else list(range(last.shape[1]))
    among = last[:, allowed].log_softmax(-1)
    place = {token: index for index, token in enumerate(allowed)}
    answers = torch.tensor([place[int(token)] for token in behaviour.answer])
    asked = torch.cat([behaviour.clean, behaviour.answer[:, None]], dim=1)
    prompts = asked.unique(dim=0, return_inverse=True)[1].numpy()
    return Score(
        behaviour=behaviour.name,
        recall=_by_prompt(among.argmax(-1) == answers, prompts),
        log_prob=_by_prompt(among[row, answers], prompts),
        logit_difference=_by_prompt(behaviour.score(logits), prompts),
    )


def _by_prompt(
    values: Shaped[torch.Tensor, " row"], prompts: Int64[np.ndarray, " row"]
) -> Float[np.ndarray, " prompt"]:
    """Mean over the rows of each distinct prompt."""
    return np.bincount(prompts, weights=values.double().numpy()) / np.bincount(prompts)


def _row(setting: str, score: Score, base: Score) -> dict[str, float | int | str | None]:
    """One row; one prompt gives the change no interval."""
    n = len(score.recall)
    low, high = intervals.wilson(float(score.recall.mean()), n)
    change = score.log_prob - base.log_prob
    change_low, change_high = intervals.mean_interval(change) or (None, None)
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
