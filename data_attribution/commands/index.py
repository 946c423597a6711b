"""`openbook index`: sort the text of STORE, and search in it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_attribution import printing
from train.cli import Json, Out, answer


if TYPE_CHECKING:
    from data_attribution.token_index import TokenIndex
    from train.runs import Run

index = typer.Typer(help="Search the text of a token store.", no_args_is_help=True)

StoreFolder = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the token store.")]
Query = Annotated[str, typer.Argument(metavar="QUERY", help="Text to look for.")]
Reader = Annotated[
    Path | None, typer.Option("--run", help="Also print the steps at which this run read each hit.")
]


@index.command("build")
def index_build(path: StoreFolder, as_json: Json = False, out: Out = None) -> None:
    """Sort every suffix of STORE, so that any text is found in it; kept in STORE/index."""
    from data_attribution import indexing
    from train import progress, token_store

    with progress.bar("indexing") as advance:
        built = indexing.build(token_store.open(path), progress=advance)
    result = {
        "store": str(path),
        "tokens": built.store.n_tokens,
        "parts": len(built.parts),
        "backend": built.backend,
    }
    text = f"{built.store.n_tokens:,} tokens sorted by {built.backend}: {path / indexing.FOLDER}"
    answer(result, text, as_json=as_json, out=out)


@index.command("bm25")
def index_bm25(path: StoreFolder, as_json: Json = False, out: Out = None) -> None:
    """Count which documents of STORE hold which token, for BM25; kept in STORE/bm25."""
    from data_attribution import postings
    from train import progress, token_store

    with progress.bar("counting") as advance:
        built = postings.build(token_store.open(path), progress=advance)
    folder = path / postings.FOLDER
    size = sum(one.stat().st_size for one in folder.iterdir())
    result = {
        "store": str(path),
        "entries": built.n_entries,
        "segments": len(built.segments),
        "bytes": size,
    }
    text = (
        f"{built.n_entries:,} pairs of a token and a document that holds it, {size:,} bytes: "
        f"{folder}"
    )
    answer(result, text, as_json=as_json, out=out)


@index.command("count")
def index_count(path: StoreFolder, query: Query, as_json: Json = False, out: Out = None) -> None:
    """Count QUERY in the text that is trained on, and in the text held out."""
    from dataclasses import asdict

    from data_attribution import indexing
    from train import token_store

    found = indexing.open(token_store.open(path)).count(query)
    result = {"count": found.count, "held_out": found.held_out, **asdict(found)}
    rows = [f"{one.count}\t{one.held_out} held out\t{one.text!r}" for one in found.spellings]
    answer(result, "\n".join(rows), as_json=as_json, out=out)


@index.command("find")
def index_find(
    path: StoreFolder,
    query: Query,
    reader: Reader = None,
    limit: Annotated[int, typer.Option(min=1, help="Documents; more are sampled.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample.")] = 0,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Find the documents of STORE that hold QUERY, and with --run the steps that read them."""
    opened, read_by = _opened(path, reader)
    hits = opened.find(query, limit=limit, seed=seed)
    rows = [printing.hit_row(opened, hit, read_by) for hit in hits]
    total = hits.found.count + hits.found.held_out
    lines = [f"{total} occurrences, {len(rows)} documents shown", *map(printing.hit_line, rows)]
    answer({"count": total, "hits": rows}, "\n".join(lines), as_json=as_json, out=out)


@index.command("spans")
def index_spans(
    path: StoreFolder,
    query: Query,
    reader: Reader = None,
    minimum: Annotated[int, typer.Option(min=1, help="Shortest span, in tokens.")] = 3,
    limit: Annotated[int, typer.Option(min=1, help="Documents of each span.")] = 3,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Cut QUERY into the longest stretches that stand in STORE, with the documents of each."""
    opened, read_by = _opened(path, reader)
    rows = [
        {
            **printing.span_row(span),
            "hits": [printing.hit_row(opened, hit, read_by) for hit in hits],
        }
        for span in opened.maximal_spans(query, minimum=minimum)
        for hits in [opened.find(span.tokens, limit=limit)]
    ]
    lines = [
        line
        for row in rows
        for line in (
            f"{row['count']}\t{row['surprise']:.1f} nats\t{row['text']!r}",
            *(f"    {printing.hit_line(hit)}" for hit in row["hits"]),
        )
    ]
    none = f"no stretch of {minimum} tokens or more stands in {path}"
    answer({"spans": rows}, "\n".join(lines) or none, as_json=as_json, out=out)


def _opened(path: Path, reader: Path | None) -> "tuple[TokenIndex, Run | None]":
    from data_attribution import indexing
    from train import runs, token_store

    if reader is None:
        return indexing.open(token_store.open(path)), None
    read_by = runs.open(reader, store=path)
    return indexing.open(read_by.store), read_by
