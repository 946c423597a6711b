"""Ranked documents, marked by what training again without them showed.

An estimate becomes a cause where the behaviour went with the document. Documents are removed
together, so what is shown is shown of all of them: a row says with how many others it went.
"""

from collections.abc import Callable
from dataclasses import replace

from data_attribution import queries
from data_attribution.attribution import GRADES, Effect, Source, Sources
from data_attribution.counterfactuals import retraining
from data_attribution.counterfactuals.retraining import Counterfactual
from data_attribution.errors import EvidenceError
from data_attribution.queries import Query
from interp.behaviours import Behaviour
from train.runs import Run


__all__ = ["marked_sources", "validate_sources"]

Progress = Callable[[str, int, int | None], None]


def validate_sources(
    run: Run,
    target: str | Behaviour | Query,
    sources: Sources,
    *,
    top: int,
    controls: int = 2,
    progress: Progress | None = None,
) -> tuple[Sources, Counterfactual]:
    """Train again without the first rows and their copies, and mark them.

    Costs a training from the first step that read one of them, and one a control.

    Args:
        target: What the sources are of; where gradients followed a question, that.
        top: Rows.
        controls: Removals of as many matched random documents. With fewer than two the effect is
            measured and no row gets the grade; with 0 it is a plain difference to the full run.
    """
    n_ctx, tokenizer = run.order.context, run.store.tokenizer
    as_text = isinstance(target, str)
    asked = queries.query_of_text(target, tokenizer, n_ctx=n_ctx) if as_text else target
    proof = retraining.without(
        run,
        sources,
        asked,
        top=top,
        control="matched-random" if controls else "none",
        seeds=controls,
        progress=progress,
    )
    return marked_sources(sources, proof), proof


def marked_sources(sources: Sources, proof: Counterfactual, question: str | None = None) -> Sources:
    """The same rows; those that were removed carry the effect.

    A row has the grade `counterfactual` when the interval of the effect lies below 0, over two or
    more controls: the target lost by the removal what it does not lose by that of random documents.
    With fewer nobody has seen how much chance moves it: the row carries the effect and keeps its
    grade.

    Args:
        question: Of what the retrained run was asked; default: what the sources are of, else the
            first.

    Raises:
        EvidenceError: The proof is of another run, or removed none of the rows.
        CounterfactualError: The question was not asked.
    """
    run = sources.provenance.get("run")
    if proof.parent != run:
        raise EvidenceError(f"the proof is of run {proof.parent}, the sources are of {run}")
    removed = {*proof.removed}
    if not removed & {*sources.documents}:
        raise EvidenceError(
            f"none of the {len(sources)} rows is among the {len(removed)} documents that were "
            "removed; hand in what was retrained without these sources"
        )
    asked = [one.name for one in proof.changes]
    name = question or (sources.query if sources.query in asked else asked[0])
    found = proof.effect(name)
    unit = next(one.unit for one in proof.changes if one.name == name)
    effect = Effect(name, unit, found.mean, found.low, found.high, len(removed), found.seeds)
    shown = found.within_noise is False and found.mean < 0
    items = tuple(
        _marked(one, effect, shown) if one.document in removed else one for one in sources
    )
    return replace(sources, items=items)


def _marked(one: Source, effect: Effect, shown: bool) -> Source:
    return replace(one, effect=effect, grade=GRADES[-1] if shown else one.grade)
