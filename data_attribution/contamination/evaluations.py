"""Several models on several evaluation sets, in one table.

Every row has n, an interval, the overlap of the items with the model's training text and the score
without the overlapping items. Every model but the first is compared with the first one, on the same
items; a difference inside its interval is not called one. The training text of a tuned run is that
of its whole lineage.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from data_attribution import token_index
from data_attribution.contamination.ngrams import N_TOKENS, overlap
from data_attribution.errors import IndexMissing, QueryError
from interp import model_evaluation, models
from interp.errors import EvaluationError, InterruptedWarning
from interp.model_evaluation import Difference, EvaluationSet, Overlap, Score
from train import runs, storage
from train.data import TokenStore
from train.errors import TokenizerError, TrainError
from train.html_panel import html_repr
from train.model import GPT
from train.progress import Progress
from train.runs import MANIFEST, Run
from train.short_repr import short_repr


if TYPE_CHECKING:
    import pandas

    from train.statistics import Estimate

__all__ = ["Evaluations", "evaluate_models"]

SCHEMA = 1
Source = Run | str | Path


@dataclass(frozen=True)
class Evaluations:
    """Scores of models, and their differences from the first model.

    Attributes:
        scores: One score per model and evaluation set, set by set.
        differences: One per score of another model and measure.
        not_compared: Reason why two scores could not be compared, by model, protocol and measure.
    """

    meaning: ClassVar[str] = (
        "A table of evaluations shows what models score and which items they had read; it "
        "does not show how they would score without having read them."
    )

    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]
    not_compared: dict[tuple[str, str, str], str]

    __repr__ = short_repr
    _repr_html_ = html_repr

    def difference(self, model: str, protocol: str, measure: str) -> Difference | None:
        """Return how far a model is from the first one; None for the first one."""
        for one in self.differences:
            if (one.model, one.protocol, one.measure) == (model, protocol, measure):
                return one
        return None

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON, without the numbers of single items."""
        return {
            "kind": "evaluations",
            "schema": SCHEMA,
            "rows": [
                {
                    **row,
                    "settings": score.settings,
                    "items_sha256": score.items_sha256,
                    "checkpoint_sha256": score.provenance.checkpoint_sha256,
                    "step": score.provenance.step,
                    "knowledge": score.provenance.knowledge,
                }
                for score in self.scores
                for row in score.rows()
            ],
            "groups": [
                {
                    "model": score.model,
                    "protocol": score.protocol,
                    "group": group,
                    "value": measure.estimate.value,
                    "low": measure.estimate.low,
                    "high": measure.estimate.high,
                    "n": measure.n,
                }
                for score in self.scores
                if score.groups
                for group, measure in score.by_group(score.measures[0].name).items()
            ],
            "differences": [one.to_dict() for one in self.differences],
            "not_compared": [
                {"model": model, "protocol": protocol, "measure": measure, "reason": reason}
                for (model, protocol, measure), reason in self.not_compared.items()
            ],
        }

    def save(self, path: str | Path) -> None:
        """Write sealed JSON; the file is written whole or not at all."""
        storage.write_json(Path(path), storage.seal(self.to_dict()))

    def to_frame(self) -> "pandas.DataFrame":
        """Return a pandas frame with one row per model, protocol and measure."""
        import pandas

        return pandas.DataFrame([row for score in self.scores for row in score.rows()])

    def lines(self) -> str:
        """Return the table as text: a block per protocol and measure, a line per model."""
        blocks = []
        head = ("", "score [95 %]", "n", "overlap", "without overlap", "difference [95 %]")
        for protocol in dict.fromkeys(score.protocol for score in self.scores):
            scores = [score for score in self.scores if score.protocol == protocol]
            for measure in scores[0].measures:
                title = f"{protocol} {scores[0].version}: {measure.name}"
                rows = [(title, *head[1:])]
                rows += [self._cells(score, measure.name) for score in scores]
                blocks.append(_aligned(rows))
            for settings in dict.fromkeys(score.settings for score in scores):
                blocks[-1] += f"\n  {settings}"
        if self.differences or self.not_compared:
            first = self.scores[0].model
            blocks.append(
                f"Differences are from {first}, item by item; of a perplexity the ratio. Intervals "
                "are about items, not about seeds of training."
            )
        return "\n\n".join(blocks)

    def _cells(self, score: Score, name: str) -> tuple[str, ...]:
        estimate, clean = score.measure(name).estimate, score.without_overlap(name)
        held, without = "unknown", ""
        if isinstance(score.overlap, Overlap) and clean is not None:
            share = score.overlap.share.value
            held = f"{int(score.overlap.flagged.sum())} ({share:.1%} >= {score.overlap.n} tokens)"
            without = f"{_shown(clean.estimate)} ({clean.n:,})" if clean.n else "no item"
        compared = ""
        if difference := self.difference(score.model, score.protocol, name):
            compared = f"{_shown(difference.estimate)} {difference.verdict}"
        elif (score.model, score.protocol, name) in self.not_compared:
            compared = "not comparable"
        n = f"{score.n:,}"
        return (f"  {score.model}", _shown(estimate), n, held, without, compared)


def evaluate_models(
    sources: Sequence[Source],
    sets: Sequence[str],
    *,
    stages: bool = False,
    limit: int | None = None,
    n: int = N_TOKENS,
    device: str = "cpu",
    store: str | Path | None = None,
    results: str | Path | None = None,
    progress: Progress | None = None,
) -> Evaluations:
    """Score models on evaluation sets, and compare each with the first one.

    Scores with the same model, items and overlap are read from `results` if it holds them. After
    Ctrl-C the scores that are finished are returned with an `InterruptedWarning`; if there are
    none, KeyboardInterrupt is raised.

    Args:
        sources: Runs, folders of runs or Hugging Face folders. `RUN@STEP` is a checkpoint.
        sets: `heldout`, or NAME=FILES with a name of `model_evaluation.PROTOCOLS` and its files;
            each name once.
        stages: Score every run of the lineage of a tuned run, the first one first, each at the step
            that the next one began with. Runs that several sources have in common are scored once.
        limit: Largest number of items of each set, the first ones; default: all.
        n: Length of the overlap with the training text from which on an item counts as overlapping.
        store: Folder of the token store of the runs, if it was moved after training.
        results: Folder that keeps each finished score.

    Raises:
        EvaluationError: A set or a model is not fit for the request, as in `load` and `evaluate` of
            `interp.model_evaluation`.
        TrainError: There is no model at a source.

    Examples:
        >>> path = folder / "lambada.jsonl"
        >>> _ = path.write_text('{"text": "the capital of runethi is koreskul"}\\n' * 20)
        >>> table = contamination.evaluate_models([run], [f"lambada={path}"], n=3)
        >>> score = table.scores[0]
        >>> score.n, score.overlap.n, score.overlap.share.value
        (20, 3, 1.0)
    """
    if not sources or not sets:
        raise EvaluationError(
            f"{len(sources)} models and {len(sets)} evaluation sets were given; give one of each"
        )
    read = _read(sets, limit)
    places = [_place(source, store) for source in sources]
    if stages:
        places = _lineages(places)
    names = _names(places)
    if None in read.values():  # refused here and not after hours
        for source, _ in places:
            own = source.store if isinstance(source, Run) else None
            model_evaluation.load("heldout", store=own, limit=1)
    scores: list[Score] = []
    try:
        for name, (source, step) in zip(names, places, strict=True):
            model, known = models.open(source, step=step, device=device, store=store)
            run = known if isinstance(known, Run) else None  # None: unknown training text
            for items in read.values():
                if items is None:  # the held-out documents of each run's own store
                    own = None if run is None else run.store
                    items = model_evaluation.load("heldout", store=own, limit=limit)
                note = _titled(progress, f"{name} on {items.protocol}")
                scores.append(_score(model, run, items, name, n, results, note))
    except KeyboardInterrupt:
        if not scores:
            raise
        total = len(names) * len(sets)
        warnings.warn(
            f"interrupted: {len(scores)} of {total} scores are finished, and only they are shown",
            InterruptedWarning,
            stacklevel=2,
        )
    return _compared(scores)


def _lineages(
    places: Sequence[tuple[Source, int | None]],
) -> list[tuple[Source, int | None]]:
    """Put the bases of every tuned run before it, each run and step once."""
    found: dict[tuple[Path, int | None], tuple[Source, int | None]] = {}
    for source, step in places:
        bases = _bases(source) if isinstance(source, Run) else ()
        for stage, at in (*bases, (source, step)):
            place = stage.path if isinstance(stage, Run) else Path(stage)
            last = isinstance(stage, Run) and at == stage.steps[-1]
            found.setdefault((place.resolve(), None if last else at), (stage, at))
    return list(found.values())


def _bases(run: Run) -> Iterator[tuple[Run, int | None]]:
    """Yield the runs that a run was tuned from, at the steps that were handed on."""
    for stage, following in pairwise(run.lineage() if run.knowledge == "full" else []):
        step = following.base.step if following.base else None
        yield stage, None if step == stage.steps[-1] else step


def _names(places: Sequence[tuple[Source, int | None]]) -> list[str]:
    """Return the last part of each path, or the whole path if two models share the last part."""
    paths = []
    for source, step in places:
        path = str(source.path) if isinstance(source, Run) else str(source).rstrip("/")
        paths.append(path if step is None else f"{path}@{step}")
    if len(set(paths)) < len(paths):
        twice = next(one for one in paths if paths.count(one) > 1)
        raise EvaluationError(f"{twice} was given twice; name each model once")
    short = [path.rpartition("/")[2] for path in paths]
    return short if len(set(short)) == len(short) else paths


def _read(sets: Sequence[str], limit: int | None) -> dict[str, EvaluationSet | None]:
    """Return the sets by protocol, before a model is evaluated; None: each run's held-out part."""
    read: dict[str, EvaluationSet | None] = {}
    for wanted in sets:
        name, _, files = wanted.partition("=")
        if name in read:
            raise EvaluationError(
                f"{name} was given twice, and a table has each protocol once; evaluate {wanted} by "
                "a command of its own"
            )
        own = name == "heldout" and not files
        read[name] = None if own else model_evaluation.load(name, files, limit=limit)
    return read


def _place(source: Source, store: str | Path | None) -> tuple[Source, int | None]:
    """Return a model's place and step, before any model is evaluated; refuse a missing run."""
    step = None
    if not isinstance(source, Run):
        path, at, number = str(source).rpartition("@")
        if at and number.isdecimal() and not Path(source).exists():
            source, step = path, int(number)
        if (Path(source) / MANIFEST).is_file():
            source = runs.open(source, store=store)
    if isinstance(source, Run):
        source.saved_at(step)
    elif step is not None or not (Path(source) / "config.json").is_file():
        models.open(source, step=step)  # says what is missing
    return source, step


def _score(
    model: GPT,
    run: Run | None,
    items: EvaluationSet,
    name: str,
    n: int,
    results: str | Path | None,
    progress: Progress | None,
) -> Score:
    file = None if results is None else _result_file(Path(results), model, items, run, n)
    if file is not None and file.is_file():
        return replace(Score.load(file), model=name)
    held = _overlap(run, items, n, progress)
    score = model_evaluation.evaluate(model, items, name=name, overlap=held, progress=progress)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        score.save(file)
    return score


def _result_file(
    folder: Path, model: GPT, items: EvaluationSet, run: Run | None, n: int
) -> Path | None:
    """Return the file of a score, named by all that it depends on; None for unknown weights."""
    if not getattr(model.origin, "checkpoint_sha256", ""):
        return None
    index: object = ""
    if run is not None:
        stores = _stores(run)
        searched = ["unknown" if isinstance(one, str) else _searched(one) for one in stores]
        index = searched[0] if len(searched) == 1 else tuple(searched)
    tokenizer = None if model.tokenizer is None else model.tokenizer.sha256
    parts = (
        # Equal weights may be of two runs, such as those of step 0, or read other tokens.
        *(vars(model.origin), model.cfg.to_dict(), tokenizer, str(model.device)),
        *(items.protocol, items.version, items.settings, items.sha256),
        *(index, n),
    )
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    return folder / f"{items.protocol}-{digest}.json"


def _searched(store: TokenStore) -> tuple[str, bool]:
    """Return the fingerprint of a token store, and whether it has an index."""
    return store.fingerprint, (store.path / token_index.INDEX_FOLDER).is_dir()


def _stores(run: Run) -> list[TokenStore | str]:
    """Return the token stores of a run's lineage, the own one last; for bases why one is missing.

    Raises:
        StoreError: The run's own store is missing or another one.
    """
    own = run.store
    try:
        return [*(stage.store for stage in run.lineage()[:-1]), own]
    except TrainError as error:
        return [f"the training text of the run that it was tuned from is not known: {error}", own]


def _overlap(
    run: Run | None, items: EvaluationSet, n: int, progress: Progress | None
) -> Overlap | str:
    """Return the longest overlap of each item with the texts of any stage, or why it is unknown."""
    if run is None:
        return "the training text of this model is not known"
    held: list[Overlap] = []
    for store in _stores(run):
        if isinstance(store, str):
            return store
        try:
            held.append(overlap(items.texts, token_index.open(store), n=n, progress=progress))
        except IndexMissing:
            return f"no token index; build one with `openbook index build {store.path}`"
        except TokenizerError as error:
            return f"the items cannot be encoded: {error}"
        except QueryError as error:
            return f"the items cannot be searched: {error}"
    longest = np.max([one.longest for one in held], axis=0)
    return Overlap(n, longest, held[0].lengths, "+".join(one.store for one in held))


def _titled(progress: Progress | None, title: str) -> Progress | None:
    if progress is None:
        return None
    told: Callable[[str, int, int | None], None] = progress
    return lambda what, done, total: told(f"{title}, {what}", done, total)


def _compared(scores: Sequence[Score]) -> Evaluations:
    """Compare each score with that of the first model on the same set."""
    first: dict[str, Score] = {}
    differences: list[Difference] = []
    reasons: dict[tuple[str, str, str], str] = {}
    order = list(dict.fromkeys(score.protocol for score in scores))
    for score in scores:
        baseline = first.setdefault(score.protocol, score)
        if baseline is score:
            continue
        for measure in score.measures:
            try:
                differences.append(model_evaluation.compare(score, baseline, measure.name))
            except EvaluationError as error:
                reasons[score.model, score.protocol, measure.name] = str(error)
    by_set = sorted(scores, key=lambda score: order.index(score.protocol))
    return Evaluations(tuple(by_set), tuple(differences), reasons)


def _shown(estimate: "Estimate") -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4g} [too few]"
    return f"{estimate.value:.4g} [{estimate.low:.4g}, {estimate.high:.4g}]"


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
