"""The commands `openbook index ...`: build an index of a token store, and search its text."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_attribution.cli import formatting
from train.cli.options import CommandGroup, StoreFolder, option_groups
from train.cli.output import Output
from train.progress import count


if TYPE_CHECKING:
    from data_attribution.token_index import TokenIndex
    from train.runs import Run

index = typer.Typer(
    cls=CommandGroup, help="Index the text of a token store, and search it.", no_args_is_help=True
)

Query = Annotated[str, typer.Argument(metavar="QUERY", help="Text to look for.")]
Reader = Annotated[
    Path | None,
    typer.Option("--run", help="Folder of a run: also print the steps at which it read each hit."),
]
Seed = Annotated[
    int,
    typer.Option(min=0, help="Random seed of the sample when there are more hits than --limit."),
]


@dataclass(frozen=True, kw_only=True)
class SortOptions:
    """Options of how the text is cut into shards and sorted."""

    shards: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of shards for the training text; default: as few as memory allows."
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of sorting processes; default: one per core if the text is long enough.",
        ),
    ] = None
    memory: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="Memory limit for sorting, in GB; default: 3/4 of the free memory."
        ),
    ] = None

    def limits(self, n_tokens: int) -> dict[str, Any]:
        """Return shards, processes and bytes of memory for a text of `n_tokens`."""
        from data_attribution import token_index

        return {
            "shards": self.shards,
            "workers": self.workers or token_index.worthwhile_workers(n_tokens),
            "memory": None if self.memory is None else int(self.memory * 1e9),
        }


@index.command("build")
@option_groups
def index_build(path: StoreFolder, options: SortOptions, output: Output) -> None:
    """Build an index in STORE/index, in which any text can be found (a suffix array).

    A build that was stopped, in whichever way, continues after the shards that it had finished.
    """
    from data_attribution import token_index
    from train import progress
    from train.data import open_store

    store = open_store(path)
    with progress.bar("indexing") as advance:
        built = token_index.build(
            store,
            progress=advance,
            **options.limits(store.n_tokens),
        )
    result = {
        "store": str(path),
        "tokens": store.n_tokens,
        "parts": len(built.parts),
        "backend": built.backend,
    }
    shown = f" in {len(built.parts)} shards" if len(built.parts) > 1 else ""
    sorted_by = f"{count(store.n_tokens, 'token')} sorted by {built.backend}"
    text = f"{sorted_by}{shown}: {path / token_index.INDEX_FOLDER}"
    output.emit(result, text)


@index.command("plan")
@option_groups
def index_plan(path: StoreFolder, options: SortOptions, output: Output) -> None:
    """Estimate what building an index of STORE takes: shards, memory, disk and sorting time.

    Shards are cut as a build would cut them, and some tokens are sorted to measure this machine.
    """
    from dataclasses import asdict

    from data_attribution import token_index
    from train.data import open_store
    from train.progress import duration

    store = open_store(path)
    plan = token_index.plan_shards(store, **options.limits(store.n_tokens))
    found = token_index.estimate_shards(store, plan)
    seconds = token_index.sorting_seconds(plan, token_index.measure_rate(store))
    text = f"{found.sentence()}, sorted in about {duration(seconds)} on this machine"
    output.emit({**asdict(found), "seconds": seconds}, text)


@index.command("cost")
@option_groups
def index_cost(
    tokens: Annotated[
        int, typer.Argument(metavar="TOKENS", min=1, help="Number of tokens to plan for.")
    ],
    options: SortOptions,
    output: Output,
    vocabulary: Annotated[int, typer.Option(min=1, help="Vocabulary size to assume.")] = 50257,
) -> None:
    """Estimate the memory and disk for indexing TOKENS tokens, without a token store.

    Shards are assumed to be equally long.
    """
    from dataclasses import asdict

    from data_attribution import token_index

    found = token_index.estimate_cost(
        tokens,
        vocab_size=vocabulary,
        **options.limits(tokens),
    )
    output.emit(asdict(found), found.sentence())


@index.command("verify")
@option_groups
def index_verify(path: StoreFolder, output: Output) -> None:
    """Check every byte of the index of STORE, and of its BM25 index if there is one.

    The files are compared with the digests that were recorded when they were built.
    """
    from data_attribution import lexical, token_index
    from train import progress
    from train.data import open_store

    store = open_store(path)
    with progress.bar("verifying") as advance:
        token_index.verify(store, advance)
        bm25 = lexical.find_inverted_index(store) is not None
        if bm25:
            lexical.verify_inverted_index(store, advance)
    parts = len(token_index.open(store).parts)
    both = " and the BM25 index are" if bm25 else " is"
    text = f"the index of {count(store.n_tokens, 'token')} in {count(parts, 'shard')}{both} intact"
    found = {"store": str(path), "parts": parts, "bm25": bm25, "ok": True}
    output.emit(found, text)


@index.command("bm25")
@option_groups
def index_bm25(path: StoreFolder, output: Output) -> None:
    """Build a BM25 index in STORE/bm25: which documents contain which token, and how often."""
    from data_attribution import lexical
    from train import progress
    from train.data import open_store

    with progress.bar("counting") as advance:
        built = lexical.build_inverted_index(open_store(path), progress=advance)
    folder = path / lexical.INVERTED_FOLDER
    size = sum(one.stat().st_size for one in folder.iterdir())
    result = {
        "store": str(path),
        "entries": built.n_entries,
        "segments": len(built.segments),
        "bytes": size,
    }
    text = (
        f"{count(built.n_entries, 'pair')} of a token and a document that contains it, "
        f"{count(size, 'byte')}: {folder}"
    )
    output.emit(result, text)


@index.command("count")
@option_groups
def index_count(path: StoreFolder, query: Query, output: Output) -> None:
    """Count how often QUERY occurs in the training text and in the held-out text."""
    from data_attribution import token_index
    from train.data import open_store

    found = token_index.open(open_store(path)).count(query)
    rows = [f"{one.count}\t{one.held_out} held out\t{one.text!r}" for one in found.spellings]
    output.emit(found.to_dict(), "\n".join([*rows, *filter(None, [found.hint])]))


@index.command("find")
@option_groups
def index_find(
    path: StoreFolder,
    query: Query,
    output: Output,
    reader: Reader = None,
    limit: Annotated[
        int,
        typer.Option(min=1, help="Maximum number of documents to show, sampled if there are more."),
    ] = 20,
    seed: Seed = 0,
) -> None:
    """List documents of STORE that contain QUERY, and with --run the steps that read them."""
    opened, read_by = _opened(path, reader)
    hits = opened.find(query, limit=limit, seed=seed)
    rows = [formatting.hit_row(opened, hit, read_by) for hit in hits]
    held_out = hits.found.held_out
    apart = f" and {held_out} held out" if held_out else ""
    lines = [
        f"{count(hits.found.count, 'occurrence')}{apart}, {count(len(rows), 'document')} shown"
    ]
    lines += filter(None, [hits.found.hint])
    lines += map(formatting.hit_line, rows)
    output.emit({**hits.found.to_dict(), "hits": rows}, "\n".join(lines))


@index.command("spans")
@option_groups
def index_spans(
    path: StoreFolder,
    query: Query,
    output: Output,
    reader: Reader = None,
    minimum: Annotated[int, typer.Option(min=1, help="Minimum length of a span, in tokens.")] = 3,
    limit: Annotated[
        int, typer.Option(min=1, help="Maximum number of documents to show per span.")
    ] = 3,
    seed: Seed = 0,
) -> None:
    """List the longest spans of QUERY that occur in STORE, with documents that contain each."""
    opened, read_by = _opened(path, reader)
    rows = [
        {
            **formatting.span_row(span),
            "hits": [formatting.hit_row(opened, hit, read_by) for hit in hits],
        }
        for span in opened.maximal_spans(query, minimum=minimum)
        for hits in [opened.find(span.tokens, limit=limit, seed=seed)]
    ]
    lines = [
        line
        for row in rows
        for line in (
            f"stands {row['count']}x\t{row['surprise']:.1f} nats\t{row['text']!r}",
            *(f"    {formatting.hit_line(hit)}" for hit in row["hits"]),
        )
    ]
    none = f"no span of {count(minimum, 'token')} or more occurs in {path}"
    if not rows:
        none += _spans_of_other_forms(opened, query, minimum)
    output.emit({"spans": rows}, "\n".join(lines) or none)


def _spans_of_other_forms(opened: "TokenIndex", query: str, minimum: int) -> str:
    """Say which other form of a query has spans; empty if none has."""
    from data_attribution import token_index

    for name, text in token_index.other_forms(query).items():
        if spans := opened.maximal_spans(text, minimum=minimum):
            return f"; another form of the query has some: {name} has {count(len(spans), 'span')}"
    return ""


def _opened(path: Path, reader: Path | None) -> "tuple[TokenIndex, Run | None]":
    from data_attribution import token_index
    from train import runs
    from train.data import open_store

    if reader is None:
        return token_index.open(open_store(path)), None
    read_by = runs.open(reader, store=path)
    return token_index.open(read_by.store), read_by
