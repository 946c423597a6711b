"""Standard analyses of checkpoints, by name.

    induction         attention of each head to the token after the previous occurrence of the
                      current token, on repeated random tokens
    previous-token    attention of each head to the previous token
    copying           loss saved on the second copy of repeated tokens, in nats per token
    detectors         these three together, at the cost of one
    in-context        loss late in a window minus loss early in it
    score:BEHAVIOUR   logit difference of answer and foil, and accuracy
    heads:BEHAVIOUR   effect of patching each head (`interp.patching.heads`)

All but the last are also what the trainer can log during training (`train.trainer.monitoring`);
here they use more prompts.
"""

from collections.abc import Callable
from dataclasses import replace

from interp import behaviours, patching
from interp.behaviours import Behaviour
from interp.errors import CapabilityError, EffectsError, InterpError
from interp.training_dynamics.analysis_names import WATCHED, refuse_unknown_analysis
from interp.training_dynamics.checkpoint_analysis import Analysis
from train import trainer
from train.errors import TrainError
from train.model import GPT
from train.progress import count
from train.runs import MonitorScore, MonitorTask, Run


__all__ = ["analysis", "behaviour_tasks", "heads_analysis", "score_analysis"]

WATCHED_PROMPTS = 16
FEW = 4  # prompts; of fewer no 95 % interval of an accuracy lies above one half
FEW_GROUPS = 10  # of fewer, the interval lies above one half only if nearly all prompts are right


def analysis(name: str, run: Run, *, n_prompts: int = 64, seed: int = 0) -> Analysis:
    """Build a standard analysis by name, in the tokens of a run.

    Args:
        name: One of `analysis_names.NAMES`, with BEHAVIOUR replaced by the name of a behaviour.
        run: A run.
        n_prompts: Number of prompts or windows.
        seed: Random seed for sampling prompts.

    Raises:
        EffectsError: There is no such analysis, or it needs a token store and the run has none.
        BehaviourError: There is no such behaviour.

    Examples:
        >>> training_dynamics.analysis("score:ioi", run).name
        'score:ioi'
    """
    refuse_unknown_analysis(name)
    kind, _, behaviour = name.partition(":")
    if behaviour:
        asked = behaviours.load(behaviour, run, n_prompts=n_prompts, seed=seed)
        return score_analysis(asked) if kind == "score" else heads_analysis(asked, seed=seed)
    watch, parameters = _watch(name, run, n_prompts, seed)
    return Analysis(name, _scores([watch], WATCHED[name]), parameters)


def score_analysis(behaviour: Behaviour) -> Analysis:
    """Build the analysis of the logit difference and accuracy of a behaviour.

    Examples:
        >>> training_dynamics.score_analysis(ioi).measure(model, 2100)["ioi accuracy"]
        MonitorScore(value=1.0, error=0.0, n=64)
    """
    asked = {"behaviour": behaviour.name, "behaviour_sha256": behaviour.sha256}
    measure, n = _scores([_asked(behaviour)]), max(behaviour.cases) + 1

    def of_cases(model: GPT, step: int) -> dict[str, MonitorScore]:
        # A task knows prompts and no groups of them: a mean is as sure as one of so many cases.
        return {
            name: replace(one, error=_error(one, n), n=n)
            for name, one in measure(model, step).items()
        }

    return Analysis(f"score:{behaviour.name}", of_cases if behaviour.groups else measure, asked)


def _error(score: MonitorScore, n: int) -> float | None:
    """Return the standard error of a mean of n cases."""
    return None if n < 2 or score.error is None else score.error * (score.n / n) ** 0.5


def heads_analysis(
    behaviour: Behaviour, *, direction: str = "denoising", seed: int = 0
) -> Analysis:
    """Build the analysis of the effect of patching each head on a behaviour.

    An effect is a share of the clean-corrupt difference, which is undefined if that difference may
    be zero. Checkpoints are therefore analysed only if the 95 % interval of their accuracy lies
    above one half; at the others the analysis raises a CapabilityError, which `over_training`
    records. Of fewer than four prompts no interval can lie above one half, and of fewer than
    ten groups it hardly can: then the accuracy itself must, and the effects say that they have few
    prompts or no interval.

    Examples:
        >>> training_dynamics.heads_analysis(ioi).measure(model, 2100).top(1)
        [L0H1 0.907]
    """

    few = max(behaviour.cases) + 1 < (FEW_GROUPS if behaviour.groups else FEW)

    def measure(model: GPT, step: int) -> patching.Effects:
        check = behaviours.measure(model, behaviour)
        least = check.accuracy if few else check.interval[0]
        if least <= 0.5:
            raise CapabilityError(
                f"the model does not do {behaviour.name!r} at step {step}: accuracy "
                f"{check.accuracy:.2f} [{check.interval[0]:.2f}, {check.interval[1]:.2f}] on "
                f"{count(check.n, 'prompt')}"
            )
        return patching.heads(model, behaviour, direction=direction)

    asked = {"behaviour": behaviour.name, "behaviour_sha256": behaviour.sha256}
    if few:
        asked["refused_by"] = "accuracy"  # rows of versions that refused by the interval are others
    return Analysis(
        f"heads:{behaviour.name}", measure, {**asked, "direction": direction, "seed": seed}
    )


def behaviour_tasks(store: object, context: int) -> list[MonitorTask]:
    """Return the behaviours that can be measured while a model trains on a token store.

    These are the behaviours whose prompts fit the tokenizer of the store and the context of the
    model, with 16 prompts each.

    Examples:
        >>> [task.name for task in training_dynamics.behaviour_tasks(store, 64)][:3]
        ['ioi', 'induction', 'capital']
    """
    found = []
    for name in behaviours.names(store):
        # Skip single facts and single IOI templates, such as fact:zemora: there are too many.
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


def _watch(name: str, run: Run, n: int, seed: int) -> tuple[MonitorTask, dict[str, int]]:
    """Build the prompts of a detector; return them with the parameters that determine them.

    Raises:
        EffectsError: The run was imported, so it has no token store.
    """
    if run.knowledge != "full":
        raise EffectsError(
            f"{name} is asked in the words of a token store, and an import has none; give "
            "training_dynamics.over_training your own Analysis"
        )
    context = run.config.n_ctx
    if name == "in-context":
        return trainer.context_task(run.store, context, n=n), {"n": n, "context": context}
    words = trainer.monitor_words(run.store)
    length = min(trainer.COPY_LENGTH, (context - 1) // 2, len(words))
    drawn = trainer.copying_task(words, run.store.eot, n=n, length=length, seed=seed)
    return drawn, {"n": n, "length": length, "seed": seed}


def _scores(
    asked: list[MonitorTask], prefix: str = ""
) -> Callable[[GPT, int], dict[str, MonitorScore]]:
    """Return a function that measures the scores whose names begin with the prefix."""

    def measure(model: GPT, step: int) -> dict[str, MonitorScore]:
        found = trainer.measure_tasks(model, asked)
        return {name: one for name, one in found.items() if name.startswith(prefix)}

    return measure
