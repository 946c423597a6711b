"""What is commonly asked of every checkpoint, by name.

    induction         attention of each head behind the previous occurrence, on repeated tokens
    previous-token    attention of each head to the token before
    copying           what repetition saves, in nats a token
    detectors         these three, for the price of one
    in-context        loss late in a window minus loss early in it
    score:BEHAVIOUR   logit difference of answer and foil, and accuracy
    heads:BEHAVIOUR   what each head carries of it (`interp.patching.heads`)

All but the last are what the trainer logs as it goes (`train.trainer.monitoring`), on more prompts.
"""

from typing import Any

from interp import behaviours, patching
from interp.behaviours import Behaviour
from interp.errors import CapabilityError, EffectsError, InterpError
from interp.training_dynamics.checkpoint_analysis import Analysis
from train import trainer
from train.errors import TrainError, nearest
from train.model import GPT
from train.runs import MonitorScore, MonitorTask, Run


__all__ = ["NAMES", "analysis", "behaviour_tasks", "heads_analysis", "score_analysis"]

# How the names begin that `watching.measure` gives the scores of each.
WATCHED = {
    "induction": "induction",
    "previous-token": "previous token",
    "copying": "copying gap",
    "detectors": "",
    "in-context": "in-context",
}
NAMES = (*WATCHED, "score:BEHAVIOUR", "heads:BEHAVIOUR")
WATCHED_PROMPTS = 16


def analysis(name: str, run: Run, *, n_prompts: int = 64, seed: int = 0) -> Analysis:
    """The analysis of a name, in the words of a run.

    Raises:
        EffectsError: No analysis has the name, or it cannot be asked of this run.
        BehaviourError: No behaviour has it.
    """
    kind, _, behaviour = name.partition(":")
    if behaviour and kind in ("score", "heads"):
        asked = behaviours.load(behaviour, run, n_prompts=n_prompts, seed=seed)
        return score_analysis(asked) if kind == "score" else heads_analysis(asked, seed=seed)
    if name not in WATCHED:
        raise EffectsError(f"no analysis is called {name!r}{nearest(name, NAMES)}")
    watch, parameters = _watch(name, run, n_prompts, seed)
    return Analysis(name, _scores([watch], WATCHED[name]), parameters)


def score_analysis(behaviour: Behaviour) -> Analysis:
    """Logit difference and accuracy of a behaviour."""
    asked = {"behaviour": behaviour.name, "behaviour_sha256": behaviour.sha256}
    return Analysis(f"score:{behaviour.name}", _scores([_asked(behaviour)]), asked)


def heads_analysis(
    behaviour: Behaviour, *, direction: str = "denoising", seed: int = 0
) -> Analysis:
    """What each head carries, at the checkpoints that do the behaviour better than chance.

    A share of a difference that may be zero is no number, so a checkpoint is asked only where the
    interval of its accuracy lies above one half.
    """

    def measure(model: GPT, step: int) -> Any:
        check = behaviours.measure(model, behaviour)
        if check.interval[0] <= 0.5:
            raise CapabilityError(
                f"the model does not do {behaviour.name!r} at step {step}: accuracy "
                f"{check.accuracy:.2f} [{check.interval[0]:.2f}, {check.interval[1]:.2f}] on "
                f"{check.n} prompts"
            )
        return patching.heads(model, behaviour, direction=direction)

    asked = {"behaviour": behaviour.name, "behaviour_sha256": behaviour.sha256}
    return Analysis(
        f"heads:{behaviour.name}", measure, {**asked, "direction": direction, "seed": seed}
    )


def behaviour_tasks(store: Any, context: int) -> list[MonitorTask]:
    """The behaviours that a model of this context can be watched for as it trains on a store.

    Those whose prompts its tokenizer can word and its context can hold, 16 prompts each.
    """
    found = []
    for name in behaviours.names(store):
        # Single facts and templates are called whole:part, and are many.
        if ":" in name:
            continue
        try:
            behaviour = behaviours.load(name, store, n_prompts=WATCHED_PROMPTS)
        except (InterpError, TrainError):
            continue
        if behaviour.n_pos <= context:
            found.append(_asked(behaviour))
    return found


def _asked(behaviour: Behaviour) -> MonitorTask:
    return MonitorTask(
        behaviour.name,
        "answers",
        behaviour.clean,
        behaviour.answer,
        behaviour.foil,
        candidates=behaviour.candidates,
    )


def _watch(name: str, run: Run, n: int, seed: int) -> tuple[MonitorTask, dict[str, Any]]:
    """The prompts of a detector, and what decides them."""
    if run.knowledge == "weights-only":
        raise EffectsError(
            f"{name} is asked in the words of a token store, and an import has none; give "
            "emergence.over_training your own Analysis"
        )
    context = run.config.n_ctx
    if name == "in-context":
        return trainer.context_task(run.store, context, n=n), {"n": n, "context": context}
    words = trainer.monitor_words(run.store)
    length = min(trainer.COPY_LENGTH, (context - 1) // 2, len(words))
    drawn = trainer.copying_task(words, run.store.eot, n=n, length=length, seed=seed)
    return drawn, {"n": n, "length": length, "seed": seed}


def _scores(asked: list[MonitorTask], prefix: str = "") -> Any:
    """A measure: the scores whose names begin with the prefix."""

    def measure(model: GPT, step: int) -> dict[str, MonitorScore]:
        found = trainer.measure_tasks(model, asked)
        return {name: one for name, one in found.items() if name.startswith(prefix)}

    return measure
