"""`openbook trace`: from what a model does to its components, and to the documents behind it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from data_attribution import printing
from data_attribution.errors import EvidenceError
from interp.cli import Prompts, Seed
from interp.commands.patch import PROMPTS
from interp.commands.trace import trace_components_command
from train.cli import Json, Out, RunPath, StorePath, answer, readable, writable


if TYPE_CHECKING:
    from interp.behaviours import Behaviour
    from interp.effects import Effects
    from interp.metrics import Metric
    from train.runs import Run

trace = typer.Typer(help="Trace what a model does to its causes.", no_args_is_help=True)
trace.command("components")(trace_components_command)

METHOD = "lexical, bm25, gradient, replay, fused; or several: lexical+replay."
LARGEST = 64 << 20  # bytes of a text in a file
MetricName = Annotated[
    Literal["logit-difference", "log-probability", "probability"] | None,
    typer.Option(help="What is asked of BEHAVIOUR; default: logit-difference."),
]


@trace.command("documents")
def trace_documents(
    path: RunPath,
    behaviour: Annotated[
        str | None, typer.Argument(metavar="[BEHAVIOUR]", help="Or a text, with --text.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Trace this text as a whole instead.")] = None,
    from_text: Annotated[
        str | None, typer.Option(help="Trace a text span by span: the text, or a file of it.")
    ] = None,
    method: Annotated[str, typer.Option(help=METHOD)] = "fused",
    within: Annotated[
        list[str] | None,
        typer.Option(help="Gradients through L1H0, L0.mlp, ... alone, or a file of effects."),
    ] = None,
    metric: MetricName = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows; of --from-text, a span.")] = 20,
    prove: Annotated[
        int | None, typer.Option(min=1, help="Train again without the first so many rows.")
    ] = None,
    controls: Annotated[int, typer.Option(min=0, help="Of --prove: random removals.")] = 2,
    page: Annotated[
        Path | None, typer.Option(callback=writable, help="Write an HTML page of it.")
    ] = None,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Rank the documents that RUN read by the evidence that they taught BEHAVIOUR or a text."""
    if sum(one is not None for one in (behaviour, text, from_text)) != 1:
        raise EvidenceError("give one of BEHAVIOUR, --text TEXT and --from-text FILE")
    from data_attribution import attributing, proving
    from train import progress, runs

    opened = runs.open(path, store=store)
    if from_text is not None:
        if within or metric or prove or method != "fused":
            raise EvidenceError("--from-text looks for spans: leave out what belongs to --method")
        _trace_spans(opened, _read(from_text), limit, seed, page, as_json, out)
        return
    target = _target(opened, behaviour, text, prompts, seed)
    with progress.bar("tracing") as advance:
        sources = attributing.documents(
            opened,
            target,
            within=_components(within),
            metric=_metric(metric, target),
            method=method,
            limit=limit,
            seed=seed,
            progress=advance,
        )
    proof = None
    if prove:
        with progress.bar("retraining") as advance:
            sources, proof = proving.proved(
                opened, target, sources, top=prove, controls=controls, progress=advance
            )
    if out:
        sources.save(out)
    if page:
        from data_attribution.pages import source_pages

        source_pages.write(sources, page, run=opened, counterfactual=proof)
    answer(sources.to_dict(), printing.sources_lines(sources), as_json=as_json, out=None)


@trace.command("exposure")
def trace_exposure(
    path: RunPath,
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="Verbatim.")] = None,
    document: Annotated[
        list[int] | None, typer.Option(help="This document instead; may be repeated.")
    ] = None,
    before: Annotated[
        int | None, typer.Option(min=0, help="Checkpoint; default: the last one.")
    ] = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Count how often RUN had read TEXT, or documents, before each checkpoint."""
    if (text is None) == (not document):
        raise EvidenceError("give either a TEXT or --document N")
    from data_attribution import exposures
    from train import runs

    opened = runs.open(path, store=store)
    if text is None:
        found = exposures.of_documents(opened, document or (), before=before)
    else:
        found = exposures.of(opened, text, before=before)
    result = printing.exposure_row(found, opened.steps)
    answer(result, printing.exposure_lines(result), as_json=as_json, out=out)


def _target(
    opened: "Run", behaviour: str | None, text: str | None, prompts: int, seed: int
) -> "str | Behaviour":
    from interp import behaviours

    if text is not None:
        return text
    return behaviours.load(str(behaviour), opened, n_prompts=prompts, seed=seed)


def _metric(name: str | None, target: "str | Behaviour") -> "Metric | None":
    from interp import metrics

    if name is None:
        return None
    if isinstance(target, str):
        raise EvidenceError("--metric belongs to a BEHAVIOUR; a text has its log-probability")
    return metrics.named(name, target)


def _components(within: list[str] | None) -> "Effects | list[str] | None":
    """Names as they stand, or the effects in a file."""
    if not within or not within[0].endswith(".json"):
        return within or None
    if len(within) > 1:
        raise EvidenceError(f"{within[0]} was given to --within beside {within[1]}; give one file")
    from interp.effects import Effects

    readable(Path(within[0]))
    return Effects.load(within[0])


def _read(given: str) -> str:
    """The text of a file where there is one of that name, else what was given."""
    try:
        path = Path(given)
        is_file = path.is_file()
    except OSError:  # too long for a name
        return given
    if not is_file:
        if given and not any(map(str.isspace, given)) and ("/" in given or path.suffix):
            raise EvidenceError(f"there is no file {given}; give one, or a text in quotes")
        return given
    if path.stat().st_size > LARGEST:
        raise EvidenceError(
            f"{path} has {path.stat().st_size >> 20} MB, and a text of {LARGEST >> 20} MB is the "
            "longest that is traced; trace its parts"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise EvidenceError(f"{path} is no UTF-8 text: byte {error.start}") from None


def _trace_spans(
    opened: "Run",
    text: str,
    limit: int,
    seed: int,
    page: Path | None,
    as_json: bool,
    out: Path | None,
) -> None:
    from data_attribution import generations
    from train import progress

    with progress.bar("tracing") as advance:
        spans = generations.of_text(opened, text, limit=limit, seed=seed, progress=advance)
    if out:
        spans.save(out)
    if page:
        from data_attribution.pages import source_pages

        source_pages.write(spans, page, run=opened)
    answer(spans.to_dict(), printing.generation_lines(spans), as_json=as_json, out=None)
