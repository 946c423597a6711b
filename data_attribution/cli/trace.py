"""The commands `openbook trace ...`: trace a behaviour, head or text to where it comes from."""

import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_attribution.cli import formatting
from data_attribution.cli.counterfactual import CONTROLS
from data_attribution.errors import EvidenceError
from interp.cli.options import PROMPTS, Named, Prompts, Seed
from interp.cli.trace import trace_components_command
from train.cli.options import (
    WRITERS,
    CommandGroup,
    RunOptions,
    option_groups,
    page_file,
    result_of,
)
from train.cli.output import Output


if TYPE_CHECKING:
    from data_attribution.attribution import Sources
    from data_attribution.queries import Query
    from data_attribution.tracing import Generation
    from interp.behaviours import Behaviour
    from train.runs import Run

trace = typer.Typer(
    cls=CommandGroup,
    help="Trace what a model does to components, documents and training steps.",
    no_args_is_help=True,
)
trace.command("components")(trace_components_command)

LARGEST = 64 << 20  # bytes: the largest file of `trace text`
HOLDERS = 3  # documents per span of a sentence on the HTML page


def known_method(name: str | None) -> str | None:
    """Return the name of methods; raise an error, before torch is imported, if there is none."""
    if name is not None:
        from data_attribution import attribution

        attribution.refuse_unknown_method(name)
        for file in re.findall(r"within=([^,+]+\.json)", name):
            result_of(*WRITERS["openbook.effects"])(Path(file))
    return name


Page = Annotated[
    Path | None, typer.Option(callback=page_file, help="Also write an HTML page to this file.")
]

PageOfText = Annotated[
    Path | None,
    typer.Option(
        callback=page_file,
        help="Also write an HTML page to this file: TEXT, every span coloured by how often RUN "
        "read it, its documents and steps, and what chance does.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class RankingOptions:
    """Options of the commands that rank documents."""

    method: Annotated[
        str | None,
        typer.Option(
            callback=known_method,
            help="Evidence to rank by: lexical, bm25, gradient, replay or fused; join several with "
            "+, e.g. lexical+replay; default: fused, whose gradients are of kind curvature if RUN "
            "keeps no state of its optimizer. Options stand behind the name, as in "
            "gradient:kind=cosine,rank=8. Options of gradient: kind (adam, adam-cosine, cosine, "
            "dot or curvature), rank of the random projections (32), damping of curvature (0.1), "
            "within (component whose gradients count, e.g. L0.mlp; may be repeated, or a file of "
            "`openbook patch --out`). Options of replay: steps (number of last training steps to "
            "go back through; one epoch, at most 1000), scratch (folder for training states).",
        ),
    ] = None
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of documents to list.")] = 20
    prove: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Check the ranking: number of top documents to remove (with their copies) and "
            "retrain without; 1 if only --controls is given.",
        ),
    ] = None
    controls: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Check the ranking: number of controls that remove random documents; "
            f"{CONTROLS} if only --prove is given.",
        ),
    ] = None
    page: Page = None
    seed: Seed = 0


@trace.command("documents")
@option_groups
def trace_documents(
    source: RunOptions,
    options: RankingOptions,
    output: Output,
    behaviour: Named,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Number that gradients follow: logit-difference (default), log-probability, "
            "probability or probability-difference of BEHAVIOUR, or the score of a head: "
            "direct-effect:L1H0 (on BEHAVIOUR), prefix-matching:L1H0 or previous-token:L0H1."
        ),
    ] = None,
    prompts: Prompts = PROMPTS,
) -> None:
    """Rank the documents that RUN read by the evidence that they taught it BEHAVIOUR."""
    from interp import behaviours

    behaviours.refuse_unknown_name(behaviour, source.path, source.store)
    from data_attribution import component_queries, queries

    opened = source.open()
    target = behaviours.load(behaviour, opened, n_prompts=prompts, seed=options.seed)
    if metric and ":" in metric:
        query = component_queries.named(metric, opened, target, seed=options.seed)
        sources, page_parts = _ranked(opened, target, options, query=query, goal=query)
    else:
        goal = queries.query_of_behaviour(target, metric) if metric else target
        sources, page_parts = _ranked(opened, target, options, metric=metric, goal=goal)
    _emit(sources, options.page, page_parts, output)


@trace.command("stages")
@option_groups
def trace_stages(
    source: RunOptions,
    output: Output,
    behaviour: Named,
    candidates: Annotated[
        int,
        typer.Option(
            min=1, help="Largest number of documents compared for each stage, drawn at random."
        ),
    ] = 10_000,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the random projections.")] = 32,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of documents to list.")] = 20,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
) -> None:
    """Say which stage of a tuned RUN taught it BEHAVIOUR, and rank the documents of all stages.

    Stages are the runs that RUN was tuned from, one after another, and RUN. BEHAVIOUR is one of the
    last stage that has one of that name. A stage is marked as having taught it if its change is the
    largest and the interval of its change lies above 0.
    """
    from data_attribution import attribution, gradients, queries
    from interp import behaviours
    from train import progress

    opened = source.open()
    trained = [stage for stage in opened.lineage() if stage.knowledge == "full"]
    named = [stage for stage in trained if behaviour in behaviours.names(stage)]
    known = [opened, *trained[:1], *named][-1]  # the first stage has facts without a listed name
    target = behaviours.load(behaviour, known, n_prompts=prompts, seed=seed)
    how = gradients.GradientOptions(
        kind="cosine", log_odds=None, rank=rank, seed=seed, candidates=candidates
    )
    with progress.bar("comparing") as advance:
        (found,) = attribution.across_stages(
            opened,
            [queries.query_of_behaviour(target)],
            how=how,
            limit=limit,
            progress=advance,
        )
    output.emit(found.to_dict(), formatting.stages_lines(found), meaning=found.meaning)


@trace.command("sentence")
@option_groups
def trace_sentence(
    source: RunOptions,
    options: RankingOptions,
    output: Output,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Text to trace as a whole.")],
) -> None:
    """Rank the documents that RUN read by the evidence that they taught it TEXT as a whole.

    `openbook trace text` traces a long text span by span instead.
    """
    opened = source.open()
    sources, page_parts = _ranked(opened, text, options, goal=text)
    if options.page:
        page_parts["spans"] = _spans(opened, text, options.seed)
    _emit(sources, options.page, page_parts, output)


@trace.command("head")
@option_groups
def trace_head(
    source: RunOptions,
    options: RankingOptions,
    output: Output,
    score: Annotated[
        str,
        typer.Argument(
            metavar="SCORE",
            help="Score of a head that gradients follow: prefix-matching:L1H0 or "
            "previous-token:L0H1.",
        ),
    ],
) -> None:
    """Rank the documents that RUN read by the evidence that they taught a head what it does.

    `openbook trace documents --metric direct-effect:L1H0` follows what a head does for a behaviour.
    """
    from data_attribution import component_queries

    opened = source.open()
    query = component_queries.named(score, opened, seed=options.seed)
    sources, page_parts = _ranked(opened, None, options, query=query, goal=query)
    _emit(sources, options.page, page_parts, output)


@trace.command("text")
@option_groups
def trace_text_command(
    source: RunOptions,
    output: Output,
    text: Annotated[
        str,
        typer.Argument(metavar="TEXT", help="Text to trace, a file of it, or - for stdin."),
    ],
    limit: Annotated[
        int, typer.Option(min=1, help="Maximum number of documents to list per span.")
    ] = 20,
    generate: Annotated[
        int,
        typer.Option(
            min=0, help="Number of tokens that RUN adds to TEXT, its prompt, before it is traced."
        ),
    ] = 0,
    temperature: Annotated[
        float,
        typer.Option(min=0.0, help="Temperature of --generate; 0 takes the most probable token."),
    ] = 0.0,
    minimum: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Length of the shortest span, in tokens; default: 1, and with --page the "
            "shortest length that shuffled text seldom has.",
        ),
    ] = None,
    page: PageOfText = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            help="Random seed of --generate, of the sample of documents of each span, and of the "
            "page's controls.",
        ),
    ] = 0,
) -> None:
    """Trace TEXT, such as what RUN generated, span by span to documents that contain each span.

    The spans are the longest that occur in the training text, and least expected by chance. With
    --page they are those of the page, and it is also said whether TEXT was read as a whole.
    """
    from data_attribution import report, tracing
    from train import progress

    opened = source.open()
    prompt = whole = _read(text)
    if generate:
        from interp import models

        whole = models.load(opened).generate(prompt, generate, temperature=temperature, seed=seed)
    if not page:
        with progress.bar("tracing") as advance:
            spans = tracing.trace_text(
                opened, whole, minimum=minimum or 1, limit=limit, seed=seed, progress=advance
            )
        output.emit(spans, formatting.generation_lines(spans, minimum or 1))
        return
    drawn = (("generation", f"{generate} tokens, temperature {temperature:g}, seed {seed}"),)
    with progress.bar("tracing") as advance:
        found = report.trace_for_page(
            opened,
            whole,
            minimum=minimum,
            limit=limit,
            prompt=prompt if generate else "",
            origin=drawn if generate else (),
            seed=seed,
            progress=advance,
        )
    output.emit(
        found.traced,
        f"{formatting.generation_lines(found.traced, found.minimum)}\n{found.read_as_a_whole}",
        shown={
            **found.traced.to_dict(),
            "whole": asdict(found.whole),
            "sentences": [asdict(one) for one in found.sentences],
            "page": str(page),
        },
    )
    report.write_text_page(found, page)
    if not output.as_json:
        typer.echo(f"page: {page}")


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

    With --prove or --controls, the effect of retraining without the first of them is measured on
    `goal`.
    """
    from data_attribution import attribution, counterfactuals
    from train import progress

    _announce(opened, options.method, words=target is not None)
    with progress.bar("tracing") as advance:
        sources = attribution.documents(
            opened,
            target,
            query=query,
            metric=metric,
            methods=options.method,
            limit=options.limit,
            seed=options.seed,
            progress=advance,
        )
    proof = None
    if options.prove is not None or options.controls is not None:
        controls = CONTROLS if options.controls is None else options.controls
        with progress.bar("retraining") as advance:
            sources, proof = counterfactuals.validate_sources(
                opened, goal, sources, top=options.prove or 1, controls=controls, progress=advance
            )
    return sources, {"run": opened, "counterfactual": proof}


def _announce(opened: "Run", name: str | None, *, words: bool) -> None:
    """Say on stderr which evidence is used if none is named, and how long gradients will take."""
    from data_attribution import attribution, gradients

    methods = attribution.choose_methods(name, opened, words=words)
    if name is None:
        formatting.announce_default(*attribution.default_methods(opened, words=words))
    for method in methods:
        if isinstance(method, attribution.Gradient):
            cost = gradients.ranking_cost(opened, within=method.components, how=method.options)
            formatting.announce_cost(cost)


def _emit(
    sources: "Sources", page: Path | None, page_parts: dict[str, Any], output: Output
) -> None:
    # The result is saved first: the page may fail, and retraining for --prove may have taken hours.
    output.emit(sources, formatting.sources_lines(sources))
    if page:
        from data_attribution import report

        report.write_sources_page(sources, page, **page_parts)


def _read(given: str) -> str:
    """Return the text of the file of that name if there is one, otherwise the string itself.

    "-" stands for standard input.
    """
    if given == "-":
        return _decoded(sys.stdin.buffer.read(LARGEST + 1), "standard input")
    try:
        path = Path(given)
        is_file = path.is_file()
    except OSError:  # too long for a name
        return given
    if not is_file:
        if given and not any(map(str.isspace, given)) and ("/" in given or path.suffix):
            raise EvidenceError(f"there is no file {given}; give one, or a text in quotes")
        return given
    with path.open("rb") as file:
        return _decoded(file.read(LARGEST + 1), str(path))


def _decoded(content: bytes, name: str) -> str:
    """Return the text of a file, with line feeds alone at the ends of its lines."""
    if len(content) > LARGEST:
        raise EvidenceError(
            f"{name} has more than the limit of {LARGEST >> 20} MB; trace its parts"
        )
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise EvidenceError(f"{name} is not UTF-8 text (at byte {error.start})") from None


def _spans(opened: "Run", text: str, seed: int) -> "Generation | None":
    """Return the spans of a text for its page; None if no span occurs."""
    from data_attribution import tracing

    try:
        return tracing.trace_text(opened, text, limit=HOLDERS, seed=seed)
    except EvidenceError:
        return None
