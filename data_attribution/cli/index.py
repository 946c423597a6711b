"""The commands `openbook index ...`: build an index of a token store, and search its text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_attribution.cli import formatting
from train.cli.options import CommandGroup, Json, Out, readable
from train.cli.output import emit
from train.progress import count


if TYPE_CHECKING:
    from data_attribution.token_index import TokenIndex
    from train.runs import Run

index = typer.Typer(
    cls=CommandGroup, help="Index the text of a token store, and search it.", no_args_is_help=True
)

StoreFolder = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the token store.")]
Query = Annotated[str, typer.Argument(metavar="QUERY", help="Text to look for.")]
Reader = Annotated[
    Path | None,
    typer.Option("--run", help="Folder of a run: also print the steps at which it read each hit."),
]
Seed = Annotated[
    int,
    typer.Option(min=0, help="Random seed of the sample when there are more hits than --limit."),
]

Shards = Annotated[
    int | None,
    typer.Option(
        min=1, help="Number of shards for the training text; default: as few as memory allows."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of sorting processes; default: one per core if the text is long enough.",
    ),
]
Memory = Annotated[
    float | None,
    typer.Option(
        min=0.001, help="Memory limit for sorting, in GB; default: 3/4 of the free memory."
    ),
]
Backend = Annotated[
    str | None,
    typer.Option(
        help="Sorter: pydivsufsort, libsais or numpy; default: the fastest that is installed."
    ),
]
Libsais = Annotated[
    Path | None,
    typer.Option(callback=readable, help="File of a libsais shared library to sort with."),
]


@index.command("build")
def index_build(
    path: StoreFolder,
    shards: Shards = None,
    shard_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of tokens per shard, instead of --shards."),
    ] = None,
    workers: Workers = None,
    memory: Memory = None,
    backend: Backend = None,
    libsais: Libsais = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
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
            shards=shards,
            shard_tokens=shard_tokens,
            workers=workers or token_index.worthwhile_workers(store.n_tokens),
            memory=_bytes(memory),
            backend=backend,
            libsais=libsais,
            progress=advance,
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
    emit(result, text, as_json=as_json, out=out)


@index.command("plan")
def index_plan(
    path: StoreFolder,
    shards: Shards = None,
    workers: Workers = None,
    memory: Memory = None,
    backend: Backend = None,
    libsais: Libsais = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Estimate what building an index of STORE takes: shards, seconds, memory and disk.

    Shards are cut as a build would cut them, and some tokens are sorted to measure this machine.
    """
    from dataclasses import asdict

    from data_attribution import token_index
    from train.data import open_store

    sorter = token_index.backend(backend, libsais)
    store = open_store(path)
    plan = token_index.plan_shards(
        store,
        sorter=sorter,
        shards=shards,
        workers=workers or token_index.worthwhile_workers(store.n_tokens),
        memory=_bytes(memory),
    )
    rate = token_index.measure_rate(store, sorter=sorter, libsais=libsais)
    found = token_index.estimate_shards(store, plan, measured=rate)
    emit(asdict(found), found.sentence(), as_json=as_json, out=out)


@index.command("cost")
def index_cost(
    tokens: Annotated[int, typer.Argument(min=1, help="Number of tokens to plan for.")],
    shards: Shards = None,
    workers: Workers = None,
    memory: Memory = None,
    backend: Backend = None,
    libsais: Libsais = None,
    vocabulary: Annotated[int, typer.Option(min=1, help="Vocabulary size to assume.")] = 50257,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Estimate what indexing TOKENS tokens would take, without a token store.

    Shards are assumed to be equally long, and the seconds are those of a server of 2025.
    """
    from dataclasses import asdict

    from data_attribution import token_index

    found = token_index.estimate_cost(
        tokens,
        shards=shards,
        workers=workers or token_index.worthwhile_workers(tokens),
        memory=_bytes(memory),
        sorter=token_index.backend(backend, libsais),
        vocab_size=vocabulary,
    )
    emit(asdict(found), found.sentence(), as_json=as_json, out=out)


@index.command("verify")
def index_verify(path: StoreFolder, as_json: Json = False, out: Out = None) -> None:
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
    emit(found, text, as_json=as_json, out=out)


@index.command("bm25")
def index_bm25(path: StoreFolder, as_json: Json = False, out: Out = None) -> None:
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
    emit(result, text, as_json=as_json, out=out)


@index.command("count")
def index_count(path: StoreFolder, query: Query, as_json: Json = False, out: Out = None) -> None:
    """Count how often QUERY occurs in the training text and in the held-out text."""
    from data_attribution import token_index
    from train.data import open_store

    found = token_index.open(open_store(path)).count(query)
    rows = [f"{one.count}\t{one.held_out} held out\t{one.text!r}" for one in found.spellings]
    emit(found.to_dict(), "\n".join(rows), as_json=as_json, out=out)


@index.command("find")
def index_find(
    path: StoreFolder,
    query: Query,
    reader: Reader = None,
    limit: Annotated[
        int,
        typer.Option(min=1, help="Maximum number of documents to show, sampled if there are more."),
    ] = 20,
    seed: Seed = 0,
    as_json: Json = False,
    out: Out = None,
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
    lines += map(formatting.hit_line, rows)
    emit({**hits.found.to_dict(), "hits": rows}, "\n".join(lines), as_json=as_json, out=out)


@index.command("spans")
def index_spans(
    path: StoreFolder,
    query: Query,
    reader: Reader = None,
    minimum: Annotated[int, typer.Option(min=1, help="Minimum length of a span, in tokens.")] = 3,
    limit: Annotated[
        int, typer.Option(min=1, help="Maximum number of documents to show per span.")
    ] = 3,
    seed: Seed = 0,
    as_json: Json = False,
    out: Out = None,
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
    emit({"spans": rows}, "\n".join(lines) or none, as_json=as_json, out=out)


def _opened(path: Path, reader: Path | None) -> "tuple[TokenIndex, Run | None]":
    from data_attribution import token_index
    from train import runs
    from train.data import open_store

    if reader is None:
        return token_index.open(open_store(path)), None
    read_by = runs.open(reader, store=path)
    return token_index.open(read_by.store), read_by


def _bytes(gigabytes: float | None) -> int | None:
    return None if gigabytes is None else int(gigabytes * 1e9)
