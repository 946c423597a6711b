"""The commands `openbook trace ...`: trace a behaviour, head or text to where it comes from."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from data_attribution.cli import formatting
from data_attribution.cli.counterfactual import CONTROLS
from data_attribution.errors import EvidenceError
from interp.cli.options import PROMPTS, Named, Prompts, Seed
from interp.cli.trace import trace_components_command
from train.cli.options import CommandGroup, Json, Out, RunPath, StorePath, readable
from train.cli.output import emit
from train.storage import writable


if TYPE_CHECKING:
    from collections.abc import Sequence

    from data_attribution.attribution import Method, Sources
    from data_attribution.queries import Query
    from data_attribution.tracing import Generation
    from interp.behaviours import Behaviour
    from interp.patching import Effects
    from train.runs import Run

trace = typer.Typer(
    cls=CommandGroup,
    help="Trace what a model does to components, documents and training steps.",
    no_args_is_help=True,
)
trace.command("components")(trace_components_command)

LARGEST = 64 << 20  # bytes: the largest file of `trace text`
HOLDERS = 3  # documents per span of a sentence on the HTML page

MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="Evidence to rank by: lexical, bm25, gradient, replay or fused (default); join "
        "several with +, e.g. lexical+replay.",
    ),
]
Within = Annotated[
    list[str] | None,
    typer.Option(
        help="With gradient evidence: component whose gradients count, e.g. L1H0 or L0.mlp (may be "
        "repeated), or a file of `openbook patch --out`; default: all components."
    ),
]
Kind = Annotated[
    str | None,
    typer.Option(
        help="Compare gradients by adam (default), adam-cosine, cosine, dot or curvature; used by "
        "gradient evidence only."
    ),
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
Window = Annotated[
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
Limit = Annotated[int, typer.Option(min=1, help="Maximum number of documents to list.")]
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
Page = Annotated[
    Path | None, typer.Option(callback=writable, help="Also write an HTML page to this file.")
]


@dataclass(frozen=True)
class RankingOptions:
    """Options of the commands that rank documents, as given: None is the method's default."""

    method: str | None
    within: list[str] | None
    kind: str | None
    rank: int | None
    damping: float | None
    window: int | None
    scratch: Path | None
    limit: int
    prove: int | None
    controls: int | None
    seed: int

    def __post_init__(self) -> None:
        if self.controls is not None and self.prove is None:
            raise EvidenceError("--controls cannot be used without --prove; leave it out")


@trace.command("documents")
def trace_documents(
    path: RunPath,
    behaviour: Named,
    metric: Annotated[
        Literal["logit-difference", "log-probability", "probability"] | None,
        typer.Option(help="Metric that gradients follow; default: logit-difference."),
    ] = None,
    method: MethodName = None,
    within: Within = None,
    kind: Kind = None,
    rank: Rank = None,
    damping: Damping = None,
    window: Window = None,
    scratch: Scratch = None,
    limit: Limit = 20,
    prove: Proven = None,
    controls: Controls = None,
    page: Page = None,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Rank the documents that RUN read by the evidence that they taught it BEHAVIOUR."""
    options = RankingOptions(
        method, within, kind, rank, damping, window, scratch, limit, prove, controls, seed
    )
    from data_attribution import queries
    from interp import behaviours
    from train import runs

    opened = runs.open(path, store=store)
    target = behaviours.load(behaviour, opened, n_prompts=prompts, seed=seed)
    goal = queries.query_of_behaviour(target, metric) if metric else target
    sources, page_parts = _ranked(opened, target, options, metric=metric, goal=goal)
    _emit(sources, page, page_parts, as_json, out)


@trace.command("sentence")
def trace_sentence(
    path: RunPath,
    text: Annotated[str, typer.Argument(help="Text to trace as a whole.")],
    method: MethodName = None,
    within: Within = None,
    kind: Kind = None,
    rank: Rank = None,
    damping: Damping = None,
    window: Window = None,
    scratch: Scratch = None,
    limit: Limit = 20,
    prove: Proven = None,
    controls: Controls = None,
    page: Page = None,
    seed: Seed = 0,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Rank the documents that RUN read by the evidence that they taught it TEXT as a whole.

    `openbook trace text` traces a long text span by span instead.
    """
    options = RankingOptions(
        method, within, kind, rank, damping, window, scratch, limit, prove, controls, seed
    )
    from train import runs

    opened = runs.open(path, store=store)
    sources, page_parts = _ranked(opened, text, options, goal=text)
    if page:
        page_parts["spans"] = _spans(opened, text, seed)
    _emit(sources, page, page_parts, as_json, out)


@trace.command("head")
def trace_head(
    path: RunPath,
    score: Annotated[
        str,
        typer.Argument(
            metavar="SCORE",
            help="Score of a head that gradients follow: prefix-matching:L1H0, previous-token:L0H1 "
            "or direct-effect:L1H0 (on BEHAVIOUR).",
        ),
    ],
    behaviour: Annotated[
        str | None,
        typer.Argument(
            metavar="[BEHAVIOUR]",
            help="Behaviour on which a direct effect is measured, and for whose words lexical "
            "evidence looks.",
        ),
    ] = None,
    method: MethodName = None,
    within: Within = None,
    kind: Kind = None,
    rank: Rank = None,
    damping: Damping = None,
    window: Window = None,
    scratch: Scratch = None,
    limit: Limit = 20,
    prove: Proven = None,
    controls: Controls = None,
    page: Page = None,
    prompts: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"With BEHAVIOUR: maximum number of prompts to use; default: {PROMPTS}."
        ),
    ] = None,
    seed: Seed = 0,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Rank the documents that RUN read by the evidence that they taught a head what it does."""
    options = RankingOptions(
        method, within, kind, rank, damping, window, scratch, limit, prove, controls, seed
    )
    if prompts is not None and behaviour is None:
        raise EvidenceError("--prompts cannot be used without BEHAVIOUR; leave it out")
    from data_attribution import component_queries
    from interp import behaviours
    from train import runs

    opened = runs.open(path, store=store)
    target = None
    if behaviour is not None:
        target = behaviours.load(behaviour, opened, n_prompts=prompts or PROMPTS, seed=seed)
    query = component_queries.named(score, opened, target, seed=seed)
    sources, page_parts = _ranked(opened, target, options, query=query, goal=query)
    _emit(sources, page, page_parts, as_json, out)


@trace.command("text")
def trace_text_command(
    path: RunPath,
    text: Annotated[str, typer.Argument(help="Text to trace, or a file of it.")],
    limit: Annotated[
        int, typer.Option(min=1, help="Maximum number of documents to list per span.")
    ] = 20,
    page: Page = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed of the sample of documents of each span.")
    ] = 0,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Trace TEXT, such as what RUN generated, span by span to documents that contain each span.

    The spans are the longest that occur in the training text, and least expected by chance.
    """
    from data_attribution import tracing
    from train import progress, runs

    opened = runs.open(path, store=store)
    with progress.bar("tracing") as advance:
        spans = tracing.trace_text(opened, _read(text), limit=limit, seed=seed, progress=advance)
    emit(spans, formatting.generation_lines(spans), as_json=as_json, out=out)
    if page:
        from data_attribution import report

        report.write_sources_page(spans, page, run=opened)


def _ranked(
    opened: "Run",
    target: "str | Behaviour | None",
    options: RankingOptions,
    *,
    goal: "str | Behaviour | Query",
    query: "Query | None" = None,
    metric: str | None = None,
) -> "tuple[Sources, dict[str, Any]]":
    """Return the ranked documents, and what their page shows beside them.

    With --prove, the effect of retraining without the first of them is measured on `goal`.
    """
    from data_attribution import attribution, counterfactuals
    from train import progress

    name = options.method or attribution.FUSED
    chosen = attribution.choose_methods(name, opened, words=target is not None)
    with progress.bar("tracing") as advance:
        sources = attribution.documents(
            opened,
            target,
            query=query,
            metric=metric,
            methods=_with_options(chosen, options) or name,
            limit=options.limit,
            seed=options.seed,
            progress=advance,
        )
    proof = None
    if options.prove:
        with progress.bar("retraining") as advance:
            controls = CONTROLS if options.controls is None else options.controls
            sources, proof = counterfactuals.validate_sources(
                opened, goal, sources, top=options.prove, controls=controls, progress=advance
            )
    return sources, {"run": opened, "counterfactual": proof}


def _emit(
    sources: "Sources",
    page: Path | None,
    page_parts: dict[str, Any],
    as_json: bool,
    out: Path | None,
) -> None:
    # The result is saved first: the page may fail, and retraining for --prove may have taken hours.
    emit(sources, formatting.sources_lines(sources), as_json=as_json, out=out)
    if page:
        from data_attribution import report

        report.write_sources_page(sources, page, **page_parts)


def _with_options(methods: "Sequence[Method]", options: RankingOptions) -> "list[Method]":
    """Return the methods with the given options, or an empty list if no option was given.

    Raises:
        EvidenceError: An option was given that none of the methods reads.
    """
    given = {
        "gradient": _given(
            kind=options.kind,
            rank=options.rank,
            damping=options.damping,
            within=_components(options.within),
        ),
        "replay": _given(window=options.window, scratch=options.scratch),
    }
    names = [one.name for one in methods]
    for name, fields in given.items():
        if fields and name not in names:
            said = " and ".join(f"--{one}" for one in fields)
            raise EvidenceError(
                f"{said} cannot be used with {'+'.join(names)} evidence; use --method {name}, or "
                f"fuse it with others: --method lexical+{name}"
            )
    if not any(given.values()):
        return []
    if "window" in given["replay"]:
        given["replay"]["steps"] = given["replay"].pop("window")
    # Methods are dataclasses: an option that is not given keeps its default.
    return [replace(one, **given.get(one.name, {})) for one in methods]  # type: ignore[type-var]


def _given(**options: object) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


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


def _spans(opened: "Run", text: str, seed: int) -> "Generation | None":
    """Return the spans of a text for its page; None if no span occurs."""
    from data_attribution import tracing

    try:
        return tracing.trace_text(opened, text, limit=HOLDERS, seed=seed)
    except EvidenceError:
        return None
