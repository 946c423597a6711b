"""The demo on real text: a model of Python's own sources, from nothing to retraining.

corpus -> token store -> run -> lines that training files hold -> the heads that complete them ->
the files that hold them -> counterfactual. Beside it stand the copying of a name and the induction
head that does it. Every prompt is chosen by a rule that is fixed here and reads token counts only,
never an answer of the model. Results of an earlier demo are opened instead of computed again, and
an interrupted training or retraining is resumed.

Two kinds of completion are told apart. A *known line* (`demo.code_lines`) is a line of a
held-out file that stands word for word in one to three training files, and whose second half does
not stand in the prompt: what is known of it was read there. In the behaviour `known-lines` such a
line is completed. In `code-copy` a name goes on as it did earlier in the same prompt, which needs
no particular document.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from data_attribution import attribution, counterfactuals, queries, token_index
from data_attribution.attribution import Sources
from data_attribution.counterfactuals import CONTROLS, Counterfactual
from data_attribution.demo import stages
from data_attribution.demo.code_lines import (
    LINES,
    KnownLine,
    groups_of,
    holders_of,
    known_lines,
    largest_groups,
    line_behaviour,
    line_foils,
    line_readings,
)
from data_attribution.demo.stages import DemoPlan, Stage
from data_attribution.errors import DemoError
from data_attribution.queries import Query
from interp import behaviours, patching, training_dynamics
from interp.behaviours import Baselines, Behaviour, Check
from interp.errors import CapabilityError, ContrastError
from interp.patching import Effects
from interp.training_dynamics import Analysis, Trajectory
from train import numerics, recipes, runs, storage, trainer
from train.data import STORE_MANIFEST, TokenStore, build_store, open_corpus, open_store
from train.model import GPT
from train.numerics import Numerics
from train.progress import Progress
from train.recipes import Recipe
from train.runs import MonitorTask, Run
from train.short_repr import short_repr
from train.trainer import Verification


__all__ = [
    "CodeDemo",
    "Completion",
    "Formation",
    "HeadEffects",
    "finished_formation",
    "formation_of",
    "formation_window",
    "plan_code",
    "play_code",
]

CORPUS, COPYING = "stdlib", "code-copy"
# Time of everything except training, in units of training steps.
LOOKING = 150
# Random tokens of the induction score: sequences, and length of one of their two copies.
SEQUENCES, COPY_LENGTH = 16, 50
N_PROMPTS = 128
# Groups of known lines whose documents are removed together, lines of other groups that are
# measured beside them, and documents that are ranked for the lines.
GROUPS, OTHERS, N_SOURCES = 4, 64, 20
OTHER_LINES = "other known lines"
HALVES = "known-lines, whole second halves"
# Files in the folder of the run, with which every command of the page can be given.
BEHAVIOUR_FILE, TEXT_FILE = "known-lines.json", "known-lines.txt"


@dataclass(frozen=True)
class Formation:
    """The scores of heads over training, and what was read while the induction head formed.

    Attributes:
        trajectory: Induction and previous-token scores of every head during training, and the nats
            that the second copy saves.
        length: Number of random tokens of a sequence, which are said twice.
        induction, previous: Names of the scores that are highest at the last step.
        window: Steps between which the induction head formed (`formation_window`); None if its last
            score is below `LEAST`, or no two measurements enclose its rise.
        read: Documents read in the window, with the number of steps that read them, most first.
        LEAST: Least score of a head that counts as an induction head: five times what even
            attention gives.
    """

    LEAST: ClassVar[float] = 0.1

    trajectory: Trajectory
    length: int
    induction: str
    previous: str
    window: tuple[int, int] | None
    read: tuple[tuple[int, int], ...]

    __repr__ = short_repr


@dataclass(frozen=True)
class HeadEffects:
    """A behaviour on held-out code, guesses without a model, and the effect of every head.

    Attributes:
        effects: Exact effects with an untrained control; None if the model does not do the
            behaviour, or does not tell clean prompts from corrupt ones, so that shares of the
            difference mean nothing.
        refusal: The reason why there are none.
    """

    behaviour: Behaviour
    check: Check
    baselines: Baselines
    effects: Effects | None
    refusal: str = ""

    __repr__ = short_repr


@dataclass(frozen=True)
class Completion:
    """The first line of a group, and how the model goes on.

    Attributes:
        lines: The known lines of the group, which are held by the same training documents.
        generated: The most probable continuation, as long as the line's.
        right: Share of the continuation's tokens that are the most probable ones after the true
            tokens before them.
    """

    lines: tuple[KnownLine, ...]
    generated: tuple[int, ...]
    right: float

    __repr__ = short_repr

    @property
    def line(self) -> KnownLine:
        """Return the line that is completed."""
        return self.lines[0]


@dataclass(frozen=True)
class CodeDemo:
    """All results that the page of the demo on code shows.

    Attributes:
        completing: The behaviour `known-lines`: the known lines of the largest groups.
        completions: The first line of each of these groups, the largest first.
        sources: Documents by lexical evidence for the text of the lines; as many as hold them are
            removed, the first ones, and have the effect of that.
        proof: Retraining without these documents, and its controls: changes of `known-lines`, of
            the whole second halves of its lines, of those of each group, of other known lines, and
            of `code-copy`.
        formation, copying: The other behaviour: copying a name, and the head that does it.
    """

    run: Run
    verification: Verification
    completing: HeadEffects
    completions: tuple[Completion, ...]
    sources: Sources
    proof: Counterfactual
    formation: Formation
    copying: HeadEffects

    __repr__ = short_repr

    @property
    def lines(self) -> tuple[KnownLine, ...]:
        """Return the lines of `known-lines`, in the order of its prompts."""
        return tuple(line for one in self.completions for line in one.lines)

    @property
    def holders(self) -> tuple[int, ...]:
        """Return the training documents that hold the lines."""
        return holders_of(self.lines)

    @property
    def removed(self) -> Sources:
        """Return the sources that were removed: the first, as many as hold the lines."""
        return self.sources.top(len(self.holders))

    def file_of(self, document: int) -> str:
        """Return the name of a document's file, such as `json/decoder.py`."""
        return self.run.store.document(document).shard

    @property
    def behaviour_file(self) -> Path:
        """Return the path of the saved behaviour, as `--out` of a command and `load` have it."""
        return self.run.path / BEHAVIOUR_FILE

    @property
    def text_file(self) -> Path:
        """Return the path of the text for which documents are ranked: the lines."""
        return self.run.path / TEXT_FILE

    @property
    def failures(self) -> tuple[str, ...]:
        """Return the checked claims that do not hold; what the model learned is none of them."""
        if self.verification.ok and not self.verification.reaches("within tolerance"):
            return (f"replayed steps are {self.verification.level}, not within tolerance",)
        return ()


def plan_code(*, out: Path, steps: int | None = None, controls: int = CONTROLS) -> DemoPlan:
    """Return what `play_code` has left to do, after timing a few training steps; takes seconds.

    The documents that are removed are first read soon after the start, so that a retraining takes
    nearly as many steps as the training.
    """
    recipe = _recipe(steps)
    return stages.plan_run(
        recipe,
        _run_path(out, steps),
        retrainings=1 + controls,
        retrained_steps=recipe.steps,
        looking=LOOKING,
        corpus="the standard library of this Python",
        removed="a few of its files and without others",
    )


def play_code(
    *,
    data: Path,
    out: Path,
    stage: Stage,
    how: Numerics | None = None,
    steps: int | None = None,
    controls: int = CONTROLS,
) -> CodeDemo:
    """Run every stage, or reopen its earlier result.

    Args:
        data: Folder of token stores; that of the standard library is `data/stdlib`.
        out: Folder of runs; the demo's is `out/stdlib`, with other steps `out/stdlib-STEPS`.
        stage: Function that opens a progress bar for a named stage (`train.progress.bar`).
        how: Numerics of a new training; default: chosen on this machine.
        steps: Number of training steps; default: that of the recipe.
        controls: Number of retrainings without as many matched random documents.

    Raises:
        DemoError: The folders hold another store or another run, or no two lines of held-out files
            that training files hold have first halves of as many tokens.
        BehaviourError: The held-out files have too few prompts for `code-copy`.
    """
    run = _trained(data / CORPUS, _run_path(out, steps), stage, how, steps)
    with stage("verifying") as progress:
        verification = trainer.verify(run, progress=progress)
    with stage("indexing") as progress:
        stages.build_index(run, progress)
    read = {one for one in range(run.store.n_documents) if len(run.steps_learned(one))}
    index = token_index.open(run.store)
    lines = known_lines(index, read)
    foils = line_foils(index, lines)
    # A trial of a few steps may have read none of the lines, only other parts of their files. It
    # shows them all, and its page says how often they were read.
    lines = [line for line in lines if line_readings(run, line)] or lines
    groups = largest_groups([line for line in lines if line in foils], GROUPS)
    if not groups:
        raise DemoError(
            f"none of {len(lines)} lines of held-out files of {run.store.path} that stand in 1 to "
            f"{KnownLine.MOST_HOLDERS} files that {run.path} read has another one with a first "
            "half of as many tokens; train for more steps, or build a store of more files"
        )
    shown = [line for group in groups for line in group]
    behaviour = line_behaviour(shown, foils, run.store)
    copied = behaviours.load(COPYING, run, n_prompts=N_PROMPTS)
    with stage("scoring heads over training") as progress:
        formation = formation_of(run, progress)
    model = run.load(run.steps[-1])
    with stage("patching heads") as progress:
        completing = _head_effects(model, run, behaviour, progress)
        copying = _head_effects(model, run, copied, progress)
    text = "\n".join(run.store.tokenizer.decode(line.tokens) for line in shown)
    with stage("ranking files") as progress:
        sources = attribution.documents(
            run, text, methods="lexical", limit=N_SOURCES, progress=progress
        )
    behaviour.save(run.path / BEHAVIOUR_FILE)
    storage.write_text(run.path / TEXT_FILE, text)
    top = len(holders_of(shown))
    with stage("retraining without documents") as progress:
        proof = counterfactuals.without(
            run,
            sources,
            [behaviour, *_questions(run, groups)],
            top=top,
            unrelated=[*_other_lines(run, lines, shown, sources.top(top)), copied],
            seeds=controls,
            progress=progress,
        )
    return CodeDemo(
        run=run,
        verification=verification,
        completing=completing,
        completions=tuple(_completion(run, model, group) for group in groups),
        sources=counterfactuals.marked_sources(sources, proof, LINES),
        proof=proof,
        formation=formation,
        copying=copying,
    )


# --- the run -------------------------------------------------------------------------------------


def _recipe(steps: int | None) -> Recipe:
    recipe = recipes.CODE_SMALL
    return recipe if steps is None else replace(recipe, steps=steps)


def _run_path(out: Path, steps: int | None) -> Path:
    return out / (CORPUS if steps is None else f"{CORPUS}-{steps}")


def _trained(
    store_path: Path, run_path: Path, stage: Stage, how: Numerics | None, steps: int | None
) -> Run:
    """Return the run: train, resume or open it.

    Raises:
        DemoError: The folders hold another store or another run.
    """
    corpus = open_corpus(CORPUS)
    if not (store_path / STORE_MANIFEST).exists():
        with stage("building the corpus of Python's sources") as progress:
            build_store(corpus, out=store_path, progress=progress)
    store = open_store(store_path)
    known = store.manifest["corpus"]["revision"]
    if known != corpus.revision:
        raise DemoError(
            f"{store_path} holds the sources of Python {_short(known)}, and this is "
            f"{_short(corpus.revision)}; remove {store_path} and {run_path}, or run openbook with "
            "that Python"
        )
    recipe = recipes.resolve(_recipe(steps), store)
    if differences := stages.run_differences(store, run_path, recipe):
        raise DemoError(f"{run_path} is another run: {'; '.join(differences)}; remove {run_path}")
    with stage("training") as progress:
        if (run_path / runs.MANIFEST).exists():
            return trainer.resume(run_path, store=store.path, progress=progress)
        return trainer.train(
            recipe,
            store,
            out=run_path,
            numerics=how or numerics.choose(),
            watch=[_copying_task(store, recipe.model.n_ctx)],
            progress=progress,
        )


def _short(revision: str | None) -> str:
    version, _, digest = (revision or "unknown").partition(" ")
    return f"{version} (digest {digest[:12]})"


# --- heads ---------------------------------------------------------------------------------------


def _copying_task(store: TokenStore, context: int) -> MonitorTask:
    """Return the task of random tokens that are said twice."""
    words = trainer.monitor_words(store)
    length = min(COPY_LENGTH, (context - 1) // 2, len(words))
    return trainer.copying_task(words, store.eot, n=SEQUENCES, length=length)


def finished_formation(out: Path) -> Formation | None:
    """Return the formation that the finished run under `out` logged; None if there is none."""
    path = _run_path(out, None)
    if not (path / runs.MANIFEST).exists():
        return None
    run = runs.open(path)
    logged = run.watched.watches if run.finished and run.watched is not None else ()
    return formation_of(run) if any(one.reads == "copies" for one in logged) else None


def formation_of(run: Run, progress: Progress | None = None) -> Formation:
    """Read the scores that were logged during training, or measure them at the checkpoints."""
    if run.watched is not None:
        task = next(one for one in run.watched.watches if one.reads == "copies")
        trajectory = training_dynamics.logged(run)
    else:
        task = _copying_task(run.store, run.config.n_ctx)
        parameters = {"n": SEQUENCES, "length": COPY_LENGTH, "seed": 0}
        detectors = Analysis(
            "detectors", lambda model, _: trainer.measure_tasks(model, [task]), parameters
        )
        trajectory = training_dynamics.over_training(run, detectors, progress=progress)
    length = (task.tokens.shape[1] - 1) // 2
    induction, previous = (_best(trajectory, kind) for kind in ("induction", "previous token"))
    curve = trajectory.curve(induction)
    window = formation_window([one.step for one in curve], [one.value for one in curve])
    read = () if window is None else training_dynamics.read_between(run, *window).values.tolist()
    return Formation(trajectory, length, induction, previous, window, tuple(map(tuple, read)))


def _best(trajectory: Trajectory, kind: str) -> str:
    """Return the name of the head's score of a kind that is highest at the end."""
    names = [name for name in trajectory.names if name.startswith(f"{kind} L")]
    return max(names, key=lambda name: trajectory.curve(name)[-1].value)


def formation_window(
    steps: Sequence[int], scores: Sequence[float], *, least: float = Formation.LEAST
) -> tuple[int, int] | None:
    """Return the steps between which a score rose.

    They are the last one with a score below a third of the final score, and the first one after it
    with a score above two thirds. None if the final score is below `least`, or no score is below a
    third.

    Examples:
        >>> from data_attribution.demo.code_demo import formation_window
        >>> formation_window([0, 100, 200, 300, 400], [0.0, 0.05, 0.15, 0.25, 0.3])
        (100, 300)
    """
    low = [place for place, score in enumerate(scores) if score < scores[-1] / 3]
    if scores[-1] < least or not low:
        return None
    high = next(k for k in range(low[-1], len(scores)) if scores[k] > scores[-1] * 2 / 3)
    return steps[low[-1]], steps[high]


def _head_effects(model: GPT, run: Run, behaviour: Behaviour, progress: Progress) -> HeadEffects:
    check = behaviours.measure(model, behaviour)
    baselines = behaviours.measure_baselines(behaviour, run.store)
    try:
        effects = patching.heads(model, behaviour, progress=progress)
    except (CapabilityError, ContrastError) as error:
        return HeadEffects(behaviour, check, baselines, None, str(error))
    effects = patching.untrained_control(model, behaviour, effects, progress=progress)
    return HeadEffects(behaviour, check, baselines, effects)


# --- completions ---------------------------------------------------------------------------------


@torch.no_grad()
def _completion(run: Run, model: GPT, lines: tuple[KnownLine, ...]) -> Completion:
    line, eot = lines[0], run.store.eot
    prompt = torch.tensor([[eot, *line.context]], device=model.device)
    generated = model.generate(prompt, len(line.continuation))[0, prompt.shape[1] :]
    whole = torch.tensor([[eot, *line.context, *line.continuation]], device=model.device)
    likely = model(whole[:, :-1])[0, len(line.context) :].argmax(-1)
    right = (likely == whole[0, prompt.shape[1] :]).double().mean().item()
    return Completion(lines, tuple(generated.tolist()), right)


def _questions(run: Run, groups: Sequence[tuple[KnownLine, ...]]) -> list[Query]:
    """Return the queries of whole second halves: of all groups, and of each."""
    together = [line for group in groups for line in group]
    names = [f"lines in {run.store.document(group[0].holders[0]).shard}" for group in groups]
    each = [_query(run, group, name) for group, name in zip(groups, names, strict=True)]
    return [_query(run, together, HALVES), *each]


def _other_lines(
    run: Run, lines: Sequence[KnownLine], shown: Sequence[KnownLine], removed: Sources
) -> list[Query]:
    """Return what should not change: lines that no removed document and no shown line's holds."""
    gone = {*holders_of(shown), *(one for group in removed.groups for one in group)}
    others = [line for line in lines if gone.isdisjoint(line.holders)]
    draw = np.random.default_rng(0).permutation(len(others))[:OTHERS]
    kept = [others[one] for one in sorted(draw.tolist())]
    return [_query(run, kept, OTHER_LINES)] if kept else []


def _query(run: Run, lines: Sequence[KnownLine], name: str) -> Query:
    pairs, groups = [(one.context, one.continuation) for one in lines], groups_of(lines)
    return queries.query_of_continuations(pairs, run.store.eot, name=name, groups=groups)
