"""Validation of sources: ranked documents, marked with the effect of retraining without them.

Retraining turns an estimate into a causal claim: if the behaviour disappears with the documents,
they caused it. The top K are removed together, so the claim is about the set; each row records the
size of that set.
"""

from dataclasses import replace

from data_attribution import queries
from data_attribution.attribution import GRADES, Effect, Source, Sources
from data_attribution.counterfactuals import retraining
from data_attribution.counterfactuals.retraining import Counterfactual
from data_attribution.errors import EvidenceError
from data_attribution.queries import Query
from interp.behaviours import Behaviour
from train.progress import Progress
from train.runs import Run


__all__ = ["marked_sources", "validate_sources"]


def validate_sources(
    run: Run,
    target: str | Behaviour | Query,
    sources: Sources,
    *,
    top: int,
    controls: int = retraining.CONTROLS,
    progress: Progress | None = None,
) -> tuple[Sources, Counterfactual]:
    """Retrain without the first sources and their copies, and mark them with the effect.

    Costs one training from the first step that read one of them, and one per control.

    Args:
        target: Target of the sources, or the query if gradients followed a query.
        top: Number of sources to remove.
        controls: Number of removals of as many matched random documents. With fewer than two the
            effect is measured and no source gets the grade; with 0 it is a plain difference to the
            full run.
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
    """Return the same sources; those that were removed have the effect.

    A source gets the grade `counterfactual` if the interval of the effect lies below 0, with two or
    more controls: the removal took from the target what removing random documents does not take.
    With fewer controls the effect of chance is unknown: the source has the effect and keeps its
    grade.

    Args:
        question: Name of the behaviour or query measured on the retrained run; default: that of the
            sources, else the first.

    Raises:
        EvidenceError: The counterfactual belongs to another run, or removed none of the sources.
        CounterfactualError: The behaviour or query was not measured.
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
