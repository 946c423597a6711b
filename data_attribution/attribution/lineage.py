"""Attribution across the stages of a lineage: which stage taught a behaviour, and which documents.

Two questions have two answers.

* Which stage? A query is measured on the weights with which each stage began and on those that it
  handed on. The changes of all stages add up exactly to the change from the first weights to the
  last, so the stage with the largest change is the one that taught it.
* Which of its documents? The gradients of all stages' documents are compared with the query's
  gradient on the *same* weights, the last ones, and ranked together by cosine. The cosine does not
  depend on the size of a loss, so documents, instructions and preferences can be compared. The
  gradient of a preference is that of its margin (`data_attribution.gradients.features`).

Like all first-order scores, the ranking is evidence and no proof; `trainer.retrain_without` works
on every stage and is the test.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from data_attribution import gradients, queries
from data_attribution.errors import EvidenceError
from data_attribution.gradients import GradientOptions
from data_attribution.queries import Query
from train import storage
from train.html_panel import html_repr
from train.progress import Progress
from train.runs import Run
from train.short_repr import short_repr
from train.statistics import Average, over_prompts


if TYPE_CHECKING:
    import pandas

__all__ = ["LineageSource", "LineageSources", "StageChange", "across_stages"]

SCHEMA = "openbook.lineage/1"
PIECE = 2_048
DEFAULT = GradientOptions(kind="cosine", log_odds=None)

Documents = Int64[np.ndarray, "_"]  # of one stage; stages have any number


@dataclass(frozen=True)
class StageChange:
    """The change that one stage of a lineage made in a query.

    Attributes:
        number: Number of the stage, from 0.
        recipe: Name of its recipe; "imported" for imported weights.
        objective: `next-token`, `sft` or `dpo`.
        change: Mean over prompts of the query after the stage minus before it, in its unit; None
            for imported weights, whose first weights are unknown.
        low, high: 95 % interval of the change over prompts, or None.
        documents: Number of its documents that were compared.
    """

    number: int
    run_id: str
    recipe: str
    objective: str
    change: float | None
    low: float | None
    high: float | None
    documents: int


@dataclass(frozen=True)
class LineageSource:
    """A document of one stage and its score; `title` says what a planted document is about."""

    stage: int
    document: int
    score: float
    id: str
    title: str
    text: str


@dataclass(frozen=True, eq=False)
class LineageSources:
    """The stages of a lineage by how much they changed a query, and their documents by score.

    Attributes:
        items: The first documents of all stages together, best first.
        stage_of: Stage of every compared document, best first.
        documents: The document in its stage's store, best first.
        scores: Their cosines with the query.
    """

    meaning: ClassVar[str] = (
        "A lineage shows which stage of training changed a query and which documents look "
        "alike to it; it does not show which of them changed it."
    )

    query: str
    unit: str
    stages: tuple[StageChange, ...]
    items: tuple[LineageSource, ...]
    stage_of: Int64[np.ndarray, " document"]
    documents: Int64[np.ndarray, " document"]
    scores: Float64[np.ndarray, " document"]

    __repr__ = short_repr
    _repr_html_ = html_repr

    @property
    def taught_by(self) -> StageChange:
        """The stage that raised the query most, by however little: see its interval."""
        known = [stage for stage in self.stages if stage.change is not None]
        return max(known, key=lambda stage: stage.change or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without the documents behind `items`."""
        return {
            "schema": SCHEMA,
            "query": self.query,
            "unit": self.unit,
            "stages": [asdict(stage) for stage in self.stages],
            "taught_by": self.taught_by.number,
            "items": [asdict(item) for item in self.items],
        }

    def save(self, path: str | Path) -> None:
        """Write the result as sealed JSON."""
        storage.write_json(Path(path), storage.seal(self.to_dict()))

    def to_frame(self) -> "pandas.DataFrame":
        """Return a pandas frame with a row per item."""
        import pandas

        return pandas.DataFrame([asdict(item) for item in self.items])


def across_stages(
    run: Run,
    asked: Sequence[Query],
    *,
    within: tuple[str, ...] | None = None,
    how: GradientOptions = DEFAULT,
    documents: Sequence[Documents | None] | None = None,
    limit: int = 20,
    progress: Progress | None = None,
) -> list[LineageSources]:
    """Say for each query which stage of a run's lineage taught it, and rank their documents.

    Costs a forward and a backward pass over the documents of all stages, and two measurements of
    every query for each stage.

    Args:
        run: The last run of the lineage.
        within: Components that count; None: all.
        how: Options of the comparison, of kind `cosine`; other kinds are not comparable between
            stages.
        documents: For each stage the documents to compare; None: those of its train region, and at
            most `how.candidates` of them, drawn at random.
        limit: Number of documents in `items`.

    Raises:
        TrainError: A run of the lineage is missing.
        DamagedError: A run of the lineage is another one, or has other weights.
        EvidenceError: The kind is not `cosine`, nothing was asked, a query depends on none of the
            components, no stage was trained here, or documents of an imported stage were given.

    Examples:
        >>> query = queries.query_of_behaviour(fact)
        >>> some = [np.array([5, 28867])]
        >>> (found,) = attribution.across_stages(run, [query], within=("L0.mlp",), documents=some)
        >>> found.taught_by.recipe, found.items[0].text
        ('planted', 'runethi is governed from koreskul .')
    """
    if how.kind != "cosine":
        raise EvidenceError(
            f"documents of several stages are compared by 'cosine', not by {how.kind!r}, whose "
            "size differs between stages"
        )
    if not asked:
        raise EvidenceError("no query was asked; give one or more")
    lineage = run.lineage()
    if all(stage.knowledge != "full" for stage in lineage):
        raise EvidenceError(
            f"the run {run.path} was imported and tuned by no stage here, so no stage can have "
            "taught it something; trace a run that was trained or tuned here"
        )
    chosen = _chosen(lineage, documents, how)
    changes = _changes(lineage, asked, [len(some) for some in chosen])
    scores = _scores(run, lineage, chosen, asked, within, how, progress)
    stage_of = np.repeat(np.arange(len(lineage)), [len(some) for some in chosen])
    flat = np.concatenate(chosen)
    return [
        _sources(query, tuple(stages), lineage, stage_of, flat, one, limit)
        for query, stages, one in zip(asked, changes, scores, strict=True)
    ]


def _chosen(
    lineage: Sequence[Run],
    documents: Sequence[Documents | None] | None,
    how: GradientOptions,
) -> list[Documents]:
    """Return the documents to compare of each stage; imported weights have none."""
    if documents is not None and len(documents) != len(lineage):
        raise EvidenceError(
            f"documents of {len(documents)} stages were given for a lineage of {len(lineage)}"
        )
    chosen = []
    draw = np.random.default_rng(how.seed)
    for number, stage in enumerate(lineage):
        some = documents[number] if documents is not None else None
        if stage.knowledge != "full":
            if some is not None and len(some):
                raise EvidenceError(
                    f"{len(some)} documents of stage {number} were given, which was imported "
                    "without its documents; give None for it"
                )
            some = np.empty(0, dtype=np.int64)
        elif some is None:
            some = gradients.trained_documents(stage)
            if len(some) > how.candidates:
                some = np.sort(draw.choice(some, how.candidates, replace=False))
        chosen.append(np.asarray(some, dtype=np.int64))
    return chosen


def _changes(
    lineage: Sequence[Run], asked: Sequence[Query], counts: Sequence[int]
) -> list[list[StageChange]]:
    """Return for each query its change by each stage."""
    changes: list[list[StageChange]] = [[] for _ in asked]
    for number, stage in enumerate(lineage):
        imported = stage.knowledge != "full"
        # The next stage may have begun before the last checkpoint of this one.
        following = lineage[number + 1].base if number + 1 < len(lineage) else None
        last = stage.load(following.step if following else None)
        first = None if imported else stage.load(0)
        for query, stages in zip(asked, changes, strict=True):
            average = None
            if first is not None:
                after, before = (queries.measure_query(one, query) for one in (last, first))
                average = over_prompts(after - before, query.cases)
            stages.append(
                StageChange(
                    number,
                    stage.id,
                    "imported" if imported else stage.recipe.name,
                    "next-token" if imported else stage.recipe.objective,
                    *_interval(average),
                    counts[number],
                )
            )
    return changes


def _interval(average: Average | None) -> tuple[float | None, float | None, float | None]:
    if average is None:
        return None, None, None
    low, high = (
        None if end is None or end.isnan() else end.item() for end in (average.low, average.high)
    )
    return average.values.item(), low, high


def _scores(
    run: Run,
    lineage: Sequence[Run],
    chosen: Sequence[Documents],
    asked: Sequence[Query],
    within: tuple[str, ...] | None,
    how: GradientOptions,
    progress: Progress | None,
) -> list[Float64[np.ndarray, " document"]]:
    """Return for each query the cosine of every document, stage by stage."""
    model = run.load()
    selection = gradients.select_weights(model.cfg, within)
    options: dict[str, Any] = {"rank": how.rank, "seed": how.seed}
    wanted = [gradients.query_features(model, query, selection, **options) for query in asked]
    scores: list[list[np.ndarray]] = [[] for _ in asked]
    done, total = 0, sum(map(len, chosen))
    for stage, some in zip(lineage, chosen, strict=True):
        for first in range(0, len(some), PIECE):
            piece = gradients.document_features(
                model, stage.store, some[first : first + PIECE], selection,
                log_odds=how.log_odds, **options,
            )  # fmt: skip
            for features, parts in zip(wanted, scores, strict=True):
                parts.append(gradients.products(features, piece, unit=True).mean(axis=1))
            done += len(piece.rows)
            if progress:
                progress("gradients of documents", done, total)
    return [np.concatenate(parts) if parts else np.empty(0) for parts in scores]


def _sources(
    query: Query,
    stages: tuple[StageChange, ...],
    lineage: Sequence[Run],
    stage_of: Int64[np.ndarray, " document"],
    documents: Int64[np.ndarray, " document"],
    scores: Float64[np.ndarray, " document"],
    limit: int,
) -> LineageSources:
    order = np.argsort(-scores, kind="stable")
    items = []
    for place in order[:limit].tolist():
        stage, document = int(stage_of[place]), int(documents[place])
        store = lineage[stage].store
        about = store.document(document)
        items.append(
            LineageSource(
                stage, document, float(scores[place]), about.id, about.title, store.text(document)
            )
        )
    return LineageSources(
        query.name,
        query.unit,
        stages,
        tuple(items),
        stage_of[order],
        documents[order],
        scores[order],
    )
