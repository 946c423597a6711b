"""The commands `openbook corpus build` and `openbook corpus show`."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from train.cli.options import CommandGroup, Json, StoreFolder, option_groups
from train.cli.output import Output, emit, lines
from train.progress import count, visible


if TYPE_CHECKING:
    from train.data import TokenStore


corpus = typer.Typer(
    cls=CommandGroup, help="Build token stores from documents.", no_args_is_help=True
)


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """Options of how a corpus is read, named as in `train.data.open_corpus`."""

    data_files: Annotated[
        list[str] | None,
        typer.Option(
            help="Local parquet files to read as CORPUS openwebtext instead of the Hugging Face "
            "hub; may be repeated."
        ),
    ] = None
    text_field: Annotated[
        str,
        typer.Option(
            help="Field of each record that holds the text; meta.text is text inside meta."
        ),
    ] = "text"
    limit: Annotated[int | None, typer.Option(help="Read at most this many documents.")] = None
    revision: Annotated[
        str | None,
        typer.Option(
            help="Revision of the corpus: for openwebtext on the hub, the one to read; for stdlib, "
            "the Python version or recorded revision that is needed; for local files, a name to "
            "record instead of their sha256."
        ),
    ] = None
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad",
            help="Leave out rows without text, or that are not JSON, not UTF-8 or too large, count "
            "them, and list them with their reasons in skipped.jsonl of the store; without it the "
            "first one is an error.",
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """Options of how a token store is built, named as in `train.data.build_store`."""

    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Tokenizer: gpt2, bpe (trained on the corpus) or word (one token per word); "
            "default: word for the planted corpus, bpe for stdlib, otherwise gpt2."
        ),
    ] = None
    vocab_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Size of the vocabulary of --tokenizer bpe; default: 512 for stdlib, otherwise "
            "4096.",
        ),
    ] = None
    layout: Annotated[
        str | None,
        typer.Option(
            help="Layout of the tokens: stream (one after the other) or packed (whole documents "
            "in rows of equal length); default: packed for the planted corpus, otherwise stream."
        ),
    ] = None
    row_length: Annotated[
        int | None, typer.Option(min=2, help="With --layout packed: tokens per row; default: 64.")
    ] = None
    held_out: Annotated[
        float | None,
        typer.Option(
            help="Share of documents to hold out of training, for evaluation; default: 0.1 for "
            "stdlib, otherwise 0."
        ),
    ] = None


@corpus.command("build")
@option_groups
def corpus_build(
    source: Annotated[
        str,
        typer.Argument(
            metavar="CORPUS",
            help="Corpus to read: planted, stdlib (the sources of Python's standard library), "
            "openwebtext, a file, a folder of text, a saved Hugging Face dataset, or - for "
            "standard input (lines of JSON if it begins with {, otherwise one text).",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to create for the token store.")],
    store_options: StoreOptions,
    reading: ReadingOptions,
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed of the planted corpus and of packing.")
    ] = 0,
    max_document_mb: Annotated[
        int, typer.Option(min=1, help="Refuse documents larger than this many MB.")
    ] = 64,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Number of CPU threads; default: all cores.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Build a token store from CORPUS: tokens, document table, tokenizer and fingerprint."""
    if threads:
        # Size of the thread pool of `tokenizers`, which our threads wait for. It is read when
        # the pool is first used.
        os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    from train import progress
    from train.data import build_store, open_corpus

    documents = open_corpus(
        source,
        seed=seed,
        max_document_bytes=max_document_mb << 20,
        **asdict(reading),
    )
    if documents.files is not None:
        typer.echo(visible(str(documents.files)), err=True)
    with progress.bar("building") as advance:
        store = build_store(
            documents,
            out=out,
            seed=seed,
            threads=threads,
            progress=advance,
            **asdict(store_options),
        )
    result = _describe(store)
    if skipped := store.manifest["counts"].get("skipped_rows"):
        listed = store.path / "skipped.jsonl"
        typer.echo(f"{count(skipped, 'bad row')} left out, listed in {listed}", err=True)
    emit(result, lines(result), as_json=as_json)


@corpus.command("show")
@option_groups
def corpus_show(
    store: StoreFolder,
    output: Output,
    document: Annotated[
        int | None, typer.Option(help="Index of a document: print its text instead.")
    ] = None,
) -> None:
    """Show what a token store contains, or print one of its documents."""
    from train.data import open_store

    opened = open_store(store)
    if document is None:
        result = _describe(opened)
        output.emit(result, lines(result))
        return
    result = {**asdict(opened.document(document)), "text": opened.text(document)}
    output.emit(result, result["text"])


def _describe(store: "TokenStore") -> dict[str, object]:
    """Return what a token store contains, in the order of printing."""
    keys = ("corpus", "counts", "layout", "row_length", "tokenizer", "fingerprint")
    return {"store": str(store.path), **{key: store.manifest[key] for key in keys}}
