"""The demo on real text: a model of Python's own sources, from nothing to retraining.

corpus -> token store -> run -> induction head over training -> heads of a behaviour -> completions
that training files can explain -> their sources -> counterfactual. Every prompt is chosen by a rule
that is fixed here and reads token counts only, never an answer of the model. Results of an earlier
demo are opened instead of computed again, and an interrupted training or retraining is resumed.

Two kinds of completion are told apart. In `code-copy` a name goes on as it did earlier in the same
prompt, which needs no particular document. A *known line* (`known_lines`) is a line of a held-out
file that stands word for word in one to three training files, and whose second half does not stand
in the prompt: what is known of it was read there.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int64

from data_attribution import attribution, counterfactuals, queries, token_index
from data_attribution.attribution import Sources
from data_attribution.counterfactuals import CONTROLS, Counterfactual
from data_attribution.demo import stages
from data_attribution.demo.stages import DemoPlan, Stage
from data_attribution.errors import DemoError
from data_attribution.queries import Query
from data_attribution.token_index import TokenIndex
from interp import behaviours, patching, training_dynamics
from interp.behaviours import Baselines, Behaviour, Check
from interp.errors import CapabilityError, ContrastError
from interp.patching import Effects
from interp.training_dynamics import Analysis, Trajectory
from train import numerics, recipes, runs, trainer
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
    "KnownLine",
    "finished_formation",
    "formation_of",
    "formation_window",
    "known_lines",
    "largest_groups",
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
# measured beside them, and sources that are shown of each completion.
GROUPS, OTHERS, N_SOURCES = 4, 64, 5
LINES, OTHER_LINES = "known lines", "other known lines"


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
class KnownLine:
    """A line of a held-out file that training files hold word for word.

    Attributes:
        document: The held-out document.
        context: Tokens of the code before the line's second half; its end is the first half.
        half: Number of tokens of the first half.
        continuation: Tokens of the second half.
        holders: Training documents that hold the whole line.
        places: Positions of the line in the training text.
        LENGTHS: Fewest and most tokens of a known line, besides its indentation.
        SHOWN: Tokens of code that are shown before a line.
        MOST_HOLDERS: Most training documents that may hold a known line.
    """

    LENGTHS: ClassVar[tuple[int, int]] = (16, 64)
    SHOWN: ClassVar[int] = 96
    MOST_HOLDERS: ClassVar[int] = 3

    document: int
    context: tuple[int, ...]
    half: int
    continuation: tuple[int, ...]
    holders: tuple[int, ...]
    places: tuple[int, ...]

    __repr__ = short_repr

    @property
    def tokens(self) -> tuple[int, ...]:
        """Return the tokens of the line."""
        return (*self.context[len(self.context) - self.half :], *self.continuation)


@dataclass(frozen=True)
class Completion:
    """The first line of a group, its sources, and how the model goes on.

    Attributes:
        lines: The known lines of the group, which are held by the same training documents.
        generated: The most probable continuation, as long as the line's.
        right: Share of the continuation's tokens that are the most probable ones after the true
            tokens before them.
        sources: Documents by lexical evidence for the text of the first line; the first of them has
            the effect of its removal on the lines.
    """

    lines: tuple[KnownLine, ...]
    generated: tuple[int, ...]
    right: float
    sources: Sources

    __repr__ = short_repr

    @property
    def line(self) -> KnownLine:
        """Return the line that is completed."""
        return self.lines[0]

    @property
    def found(self) -> bool:
        """True if the first source holds the line."""
        return self.sources.documents[0] in self.line.holders


@dataclass(frozen=True)
class CodeDemo:
    """All results that the page of the demo on code shows.

    Attributes:
        completions: One for each of the largest groups of known lines, largest first.
        proof: Retraining without the first source of each completion, and its controls: changes of
            the known lines of all groups, of each group, of other known lines, and of `code-copy`.
    """

    run: Run
    verification: Verification
    formation: Formation
    copying: HeadEffects
    completions: tuple[Completion, ...]
    proof: Counterfactual

    __repr__ = short_repr

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
        DemoError: The folders hold another store or another run, or no line of a held-out file is
            known from training files.
        BehaviourError: The held-out files have too few prompts for `code-copy`.
    """
    run = _trained(data / CORPUS, _run_path(out, steps), stage, how, steps)
    with stage("verifying") as progress:
        verification = trainer.verify(run, progress=progress)
    with stage("indexing") as progress:
        stages.build_index(run, progress)
    with stage("scoring heads over training") as progress:
        formation = formation_of(run, progress)
    model = run.load(run.steps[-1])
    with stage("patching heads") as progress:
        copying = _head_effects(model, run, progress)
    read = {one for one in range(run.store.n_documents) if len(run.steps_learned(one))}
    lines = known_lines(token_index.open(run.store), read)
    groups = largest_groups(lines, GROUPS)
    if not groups:
        raise DemoError(
            f"no line of the held-out files of {run.store.path} stands in 1 to "
            f"{KnownLine.MOST_HOLDERS} files that {run.path} read; train for more steps, or "
            "build a store of more files"
        )
    completions = tuple(_completion(run, model, group) for group in groups)
    with stage("retraining without documents") as progress:
        proof = counterfactuals.without(
            run,
            [one.sources.top(1) for one in completions],
            _questions(run, completions),
            unrelated=_unrelated(run, lines, completions, copying.behaviour),
            seeds=controls,
            avoid=[one.sources for one in completions],
            progress=progress,
        )
    marked = tuple(
        replace(one, sources=counterfactuals.marked_sources(one.sources, proof, _name(run, one)))
        for one in completions
    )
    return CodeDemo(run, verification, formation, copying, marked, proof)


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


def _head_effects(model: GPT, run: Run, progress: Progress) -> HeadEffects:
    behaviour = behaviours.load(COPYING, run, n_prompts=N_PROMPTS)
    check = behaviours.measure(model, behaviour)
    baselines = behaviours.measure_baselines(behaviour, run.store)
    try:
        effects = patching.heads(model, behaviour, progress=progress)
    except (CapabilityError, ContrastError) as error:
        return HeadEffects(behaviour, check, baselines, None, str(error))
    effects = patching.untrained_control(model, behaviour, effects, progress=progress)
    return HeadEffects(behaviour, check, baselines, effects)


# --- completions ---------------------------------------------------------------------------------


def known_lines(index: TokenIndex, read: Collection[int]) -> list[KnownLine]:
    """Find the lines of held-out files that one to three training files hold word for word.

    A line has 16 to 64 tokens besides its indentation. In most of the places where the training
    text has its first half, it goes on as the line does; and its second half does not stand in the
    96 tokens of code before the line, nor in its first half. Equal lines are taken once. The model
    is not asked.

    Args:
        read: Documents that were read; a line that another one holds too is left out.
    """
    store, found = index.store, []
    candidates, documents = _candidates(store), frozenset(read)
    everywhere = index.occurrences([store.tokens[start:stop] for start, stop in candidates])
    kept = []
    for (start, stop), places in zip(candidates, everywhere, strict=True):
        holders = tuple(np.unique(store.document_at(places)).tolist()) if len(places) else ()
        if 1 <= len(holders) <= KnownLine.MOST_HOLDERS and documents.issuperset(holders):
            kept.append((start, stop, holders, tuple(places.tolist())))
    halves = index.occurrences([store.tokens[a : (a + b) // 2] for a, b, *_ in kept])
    for (start, stop, holders, places), half in zip(kept, halves, strict=True):
        document = int(store.document_at(start))
        middle, first = (
            (start + stop) // 2,
            max(int(store.starts[document]), start - KnownLine.SHOWN),
        )
        context, continuation = store.tokens[first:middle], store.tokens[middle:stop]
        if 2 * len(places) > len(half) and _bytes(store, continuation) not in _bytes(
            store, context
        ):
            found.append(
                KnownLine(
                    document,
                    tuple(context.tolist()),
                    middle - start,
                    tuple(continuation.tolist()),
                    holders,
                    places,
                )
            )
    return list({one.tokens: one for one in reversed(found)}.values())[::-1]


def _candidates(store: TokenStore) -> list[tuple[int, int]]:
    """Return the half-open spans of tokens of the lines of held-out files, without indentation.

    The tokenizer joins a newline and the indentation after it; a line begins after that token.
    """
    newline = np.array([b"\n" in piece for piece in store.tokenizer.pieces])
    least, most = KnownLine.LENGTHS
    found = []
    for document in range(
        int(np.searchsorted(store.starts, store.train_tokens)), len(store.starts)
    ):
        start = int(store.starts[document])
        tokens = np.asarray(store.tokens[start : start + int(store.lengths[document])])
        ends = start + np.flatnonzero(newline[tokens])
        found += [(a + 1, b) for a, b in pairwise(ends.tolist()) if least <= b - a - 1 <= most]
    return found


def _bytes(store: TokenStore, tokens: Int64[np.ndarray, " pos"] | np.ndarray) -> bytes:
    return b"".join(store.tokenizer.pieces[one] for one in tokens.tolist())


def largest_groups(lines: Sequence[KnownLine], n: int) -> list[tuple[KnownLine, ...]]:
    """Return the n largest groups of lines that the same training files hold, largest first.

    No two groups share a file; of equally large groups the one whose line comes first is taken.
    """
    groups: dict[tuple[int, ...], list[KnownLine]] = defaultdict(list)
    for line in lines:
        groups[line.holders].append(line)
    taken: set[int] = set()
    chosen = []
    for holders, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        if taken.isdisjoint(holders) and len(chosen) < n:
            taken.update(holders)
            chosen.append(tuple(group))
    return chosen


@torch.no_grad()
def _completion(run: Run, model: GPT, lines: tuple[KnownLine, ...]) -> Completion:
    line, eot = lines[0], run.store.eot
    prompt = torch.tensor([[eot, *line.context]], device=model.device)
    generated = model.generate(prompt, len(line.continuation))[0, prompt.shape[1] :]
    whole = torch.tensor([[eot, *line.context, *line.continuation]], device=model.device)
    likely = model(whole[:, :-1])[0, len(line.context) :].argmax(-1)
    right = (likely == whole[0, prompt.shape[1] :]).double().mean().item()
    text = run.store.tokenizer.decode(line.tokens)
    sources = attribution.documents(run, text, methods="lexical", limit=N_SOURCES)
    return Completion(lines, tuple(generated.tolist()), right, sources)


def _questions(run: Run, completions: Sequence[Completion]) -> list[Query]:
    """Return the queries of the known lines: of all groups, and of each."""
    together = [line for one in completions for line in one.lines]
    each = [_query(run, one.lines, _name(run, one)) for one in completions]
    return [_query(run, together, LINES), *each]


def _name(run: Run, completion: Completion) -> str:
    """Return the name of the query of a group of lines."""
    return f"lines of {run.store.document(completion.line.holders[0]).title}"


def _unrelated(
    run: Run, lines: Sequence[KnownLine], completions: Sequence[Completion], copying: Behaviour
) -> list[Query | Behaviour]:
    """Return what should not change: lines that other documents hold, and copying."""
    removed = {one for completion in completions for one in completion.line.holders}
    removed |= {completion.sources.documents[0] for completion in completions}
    others = [line for line in lines if removed.isdisjoint(line.holders)]
    draw = np.random.default_rng(0).permutation(len(others))[:OTHERS]
    kept = [others[one] for one in sorted(draw.tolist())]
    return [*([_query(run, kept, OTHER_LINES)] if kept else []), copying]


def _query(run: Run, lines: Sequence[KnownLine], name: str) -> Query:
    pairs = [(one.context, one.continuation) for one in lines]
    return queries.query_of_continuations(pairs, run.store.eot, name=name)
