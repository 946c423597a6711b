"""The commands `openbook trace ...`: trace a behaviour or text to components and documents."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from data_attribution.cli import formatting
from data_attribution.cli.counterfactual import CONTROLS
from data_attribution.errors import EvidenceError
from interp.cli.options import Seed
from interp.cli.patch import PROMPTS
from interp.cli.trace import trace_components_command
from train.cli.options import Json, Out, RunPath, StorePath, readable
from train.cli.output import answer
from train.storage import writable


if TYPE_CHECKING:
    from collections.abc import Sequence

    from data_attribution.attribution import Method
    from data_attribution.queries import Query
    from data_attribution.tracing import Generation
    from interp.behaviours import Behaviour
    from interp.metrics import Metric
    from interp.patching import Effects
    from train.runs import Run

trace = typer.Typer(
    help="Trace what a model does to components, documents and training steps.",
    no_args_is_help=True,
)
trace.command("components")(trace_components_command)

METHOD = (
    "Evidence to rank by: lexical, bm25, gradient, replay or fused (default); join several with "
    "+, e.g. lexical+replay."
)
QUESTION = (
    "Score of a head that gradients follow instead of the logit difference, e.g. "
    "prefix-matching:L1H0, previous-token:L0H1 or direct-effect:L1H0 (on BEHAVIOUR)."
)
KIND = (
    "With gradient evidence: comparison of gradients, one of adam (default), adam-cosine, cosine, "
    "dot or curvature."
)
LARGEST = 64 << 20  # bytes: the largest file of --from-text
HOLDERS = 3  # documents per span of --text on the HTML page

FromText = Annotated[
    str | None,
    typer.Option(help="Text, or file of a text, to trace span by span instead of BEHAVIOUR."),
]
Within = Annotated[
    list[str] | None,
    typer.Option(
        help="With gradient evidence: component whose gradients count, e.g. L1H0 or L0.mlp (may be "
        "repeated), or a file of `openbook patch --out`; default: all components."
    ),
]
MetricName = Annotated[
    Literal["logit-difference", "log-probability", "probability"] | None,
    typer.Option(help="With BEHAVIOUR: metric to follow; default: logit-difference."),
]
Rank = Annotated[
    int | None,
    typer.Option(
        min=1, help="With gradient evidence: rank of the random projections; default: 32."
    ),
]
Damping = Annotated[
    float | None,
    typer.Option(
        help="With --kind curvature: damping, as a share of the mean eigenvalue; default: 0.1."
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="With replay evidence: number of last training steps to go back through; default: one "
        "epoch, at most 1000.",
    ),
]
Scratch = Annotated[
    Path | None,
    typer.Option(
        help="With replay evidence: folder for temporary training states; default: the system's "
        "folder for temporary files."
    ),
]
Proven = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Check the ranking: number of top documents to remove (with their copies) and retrain "
        "without.",
    ),
]
Controls = Annotated[
    int | None,
    typer.Option(
        min=0,
        help=f"With --prove: number of controls that remove random documents; default: {CONTROLS}.",
    ),
]
AtMost = Annotated[
    int | None,
    typer.Option(min=1, help=f"With BEHAVIOUR: maximum number of prompts; default: {PROMPTS}."),
]
Page = Annotated[
    Path | None, typer.Option(callback=writable, help="Also write an HTML page to this file.")
]


# Fields of methods whose option on the command line has another name.
FIELD_OPTIONS = {"steps": "window"}


@trace.command("documents")
def trace_documents(
    path: RunPath,
    behaviour: Annotated[
        str | None,
        typer.Argument(
            metavar="[BEHAVIOUR]",
            help="Behaviour to trace: a name from `openbook behaviours RUN`, or a .toml or .json "
            "file. --text traces a text instead.",
        ),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Text to trace as a whole instead of BEHAVIOUR.")
    ] = None,
    from_text: FromText = None,
    question: Annotated[str | None, typer.Option(help=QUESTION)] = None,
    method: Annotated[str | None, typer.Option(help=METHOD)] = None,
    within: Within = None,
    metric: MetricName = None,
    kind: Annotated[str | None, typer.Option(help=KIND)] = None,
    rank: Rank = None,
    damping: Damping = None,
    window: Steps = None,
    scratch: Scratch = None,
    limit: Annotated[
        int,
        typer.Option(
            min=1, help="Maximum number of documents to list (with --from-text: per span)."
        ),
    ] = 20,
    prove: Proven = None,
    controls: Controls = None,
    page: Page = None,
    prompts: AtMost = None,
    seed: Seed = 0,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Rank the documents that RUN read by the evidence that they taught it BEHAVIOUR or a text.

    --question follows the score of one head instead; it can also be given without BEHAVIOUR.
    """
    given: dict[str, object] = {
        **{"question": question, "method": method, "within": within, "kind": kind, "rank": rank},
        **{
            "damping": damping,
            "window": window,
            "scratch": scratch,
            "prove": prove,
            "controls": controls,
        },
        **{"metric": metric, "prompts": prompts},
    }
    _refuse_idle(behaviour, text, from_text, given)
    from data_attribution import attribution, counterfactuals
    from train import progress, runs

    opened = runs.open(path, store=store)
    if from_text is not None:
        _trace_spans(opened, _read(from_text), limit, seed, page, as_json, out)
        return
    target = _target(opened, behaviour, text, prompts or PROMPTS, seed)
    asked = _question(opened, question, target, seed)
    name = method or attribution.FUSED
    methods = _with_options(
        attribution.choose_methods(name, opened, words=target is not None),
        gradient={
            "kind": kind,
            "rank": rank,
            "damping": damping,
            "within": _components(within),
        },
        replay={"steps": window, "scratch": scratch},
    )
    with progress.bar("tracing") as advance:
        sources = attribution.documents(
            opened,
            target,
            query=asked,
            metric=_metric(metric, target),
            methods=methods or name,
            limit=limit,
            seed=seed,
            progress=advance,
        )
    proof, goal = None, _goal(target, asked, metric)
    if prove and goal is not None:
        with progress.bar("retraining") as advance:
            drawn = CONTROLS if controls is None else controls
            sources, proof = counterfactuals.validate_sources(
                opened, goal, sources, top=prove, controls=drawn, progress=advance
            )
    if out:
        sources.save(out)
    if page:
        from data_attribution import report

        spans = _spans(opened, text, seed)
        report.write_sources_page(sources, page, run=opened, spans=spans, counterfactual=proof)
    answer(sources.to_dict(), formatting.sources_lines(sources), as_json=as_json, out=None)


@trace.command("exposure")
def trace_exposure(
    path: RunPath,
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="Text to count, verbatim.")
    ] = None,
    document: Annotated[
        list[int] | None,
        typer.Option(help="Index of a document to count instead of TEXT; may be repeated."),
    ] = None,
    before: Annotated[
        int | None,
        typer.Option(
            min=0, help="Step of the checkpoint up to which to count; default: the last checkpoint."
        ),
    ] = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Count how often RUN had read TEXT, or some documents, before each checkpoint."""
    if (text is None) == (not document):
        raise EvidenceError("give either a TEXT or --document N")
    from data_attribution import tracing
    from train import runs

    opened = runs.open(path, store=store)
    if text is None:
        found = tracing.exposure_of_documents(opened, document or (), before=before)
    else:
        found = tracing.exposure_of_text(opened, text, before=before)
    result = formatting.exposure_row(found, opened.steps)
    answer(result, formatting.exposure_lines(result), as_json=as_json, out=out)


def _refuse_idle(
    behaviour: str | None, text: str | None, from_text: str | None, given: dict[str, object]
) -> None:
    """Raise an EvidenceError unless there is one target, or if an option has no effect with it."""
    targets = sum(one is not None for one in (behaviour, text, from_text))
    if targets > 1 or not (targets or given["question"]):
        raise EvidenceError(
            "give one of BEHAVIOUR, --text TEXT and --from-text FILE, or --question alone"
        )
    idle = {
        "with --from-text, which looks for spans": given if from_text is not None else (),
        "without BEHAVIOUR": ("metric", "prompts") if behaviour is None else (),
        "without --prove": ("controls",) if given["prove"] is None else (),
    }
    for reason, names in idle.items():
        said = [f"--{one}" for one in names if given[one] not in (None, [])]
        if said:
            raise EvidenceError(f"{' and '.join(said)} cannot be used {reason}; leave it out")


def _target(
    opened: "Run", behaviour: str | None, text: str | None, prompts: int, seed: int
) -> "str | Behaviour | None":
    from interp import behaviours

    if behaviour is None:
        return text
    return behaviours.load(behaviour, opened, n_prompts=prompts, seed=seed)


def _question(
    opened: "Run", name: str | None, target: "str | Behaviour | None", seed: int
) -> "Query | None":
    from data_attribution import component_queries

    if name is None:
        return None
    behaviour = None if isinstance(target, str) else target
    return component_queries.named(name, opened, behaviour, seed=seed)


def _metric(name: str | None, target: "str | Behaviour | None") -> "Metric | None":
    from interp import metrics

    if name is None or target is None or isinstance(target, str):
        return None
    return metrics.named(name, target)


def _goal(
    target: "str | Behaviour | None", asked: "Query | None", metric: str | None
) -> "str | Behaviour | Query | None":
    """Return what --prove measures: the query or metric that gradients followed, or the target."""
    from data_attribution import queries

    followed = _metric(metric, target)
    if asked is not None or followed is None or target is None or isinstance(target, str):
        return target if asked is None else asked
    return queries.query_of_behaviour(target, followed)


def _with_options(
    methods: "Sequence[Method]", gradient: dict[str, object], replay: dict[str, object]
) -> "list[Method]":
    """Return the methods with the given options, or an empty list if no option was given.

    Raises:
        EvidenceError: An option was given that none of the methods reads.
    """
    options = {"gradient": _given(gradient), "replay": _given(replay)}
    names = [one.name for one in methods]
    for name, given in options.items():
        if given and name not in names:
            said = " and ".join(f"--{FIELD_OPTIONS.get(one, one)}" for one in given)
            raise EvidenceError(
                f"{said} cannot be used with {'+'.join(names)} evidence; use --method {name}, or "
                f"fuse it with others: --method lexical+{name}"
            )
    if not any(options.values()):
        return []
    # Methods are dataclasses: an option that is not given keeps its default.
    return [replace(one, **options.get(one.name, {})) for one in methods]  # type: ignore[type-var]


def _given(options: dict[str, object]) -> dict[str, Any]:
    return {name: one for name, one in options.items() if one is not None}


def _components(within: list[str] | None) -> "Effects | list[str] | None":
    """Return the names unchanged, or the effects in a file."""
    if not within or not within[0].endswith(".json"):
        return within or None
    if len(within) > 1:
        raise EvidenceError(
            f"--within has both {within[0]} and {within[1]}; give one file, or only names"
        )
    from interp.patching import Effects

    readable(Path(within[0]))
    return Effects.load(within[0])


def _read(given: str) -> str:
    """Return the text of the file of that name if there is one, otherwise the string itself."""
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
            f"{path} has {path.stat().st_size >> 20} MB, more than the limit of {LARGEST >> 20} "
            "MB; trace its parts"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise EvidenceError(f"{path} is not UTF-8 text (at byte {error.start})") from None


def _spans(opened: "Run", text: str | None, seed: int) -> "Generation | None":
    """Return the spans of a text for its page; None without a text, or if no span occurs."""
    from data_attribution import tracing

    try:
        return tracing.trace_text(opened, text, limit=HOLDERS, seed=seed) if text else None
    except EvidenceError:
        return None


def _trace_spans(
    opened: "Run",
    text: str,
    limit: int,
    seed: int,
    page: Path | None,
    as_json: bool,
    out: Path | None,
) -> None:
    from data_attribution import tracing
    from train import progress

    with progress.bar("tracing") as advance:
        spans = tracing.trace_text(opened, text, limit=limit, seed=seed, progress=advance)
    if out:
        spans.save(out)
    if page:
        from data_attribution import report

        report.write_sources_page(spans, page, run=opened)
    answer(spans.to_dict(), formatting.generation_lines(spans), as_json=as_json, out=None)
