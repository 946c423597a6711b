"""The commands `openbook corpus`, `openbook train` and `openbook run`.

They build token stores, train on them, and inspect and check the runs. Each command parses its
arguments, calls one library function and prints the result on stdout and progress on stderr.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, no_type_check

import typer

from train.errors import TrainError


corpus = typer.Typer(help="Build token stores from documents.", no_args_is_help=True)
run = typer.Typer(
    help="Show, verify, replay, import and export training runs.", no_args_is_help=True
)


def writable(path: Path | None) -> Path | None:
    """Raise a TrainError, before anything is computed, if no file can be written at `path`."""
    if path is None:
        return None
    if path.is_dir():
        raise TrainError(f"the result cannot be written to {path}: a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise TrainError(f"the result cannot be written to {path}: no folder {path.parent}")
    return path


def readable(path: Path | None) -> Path | None:
    """Raise a TrainError if `path` is not a file that an earlier command wrote."""
    if path is not None and not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise TrainError(f"a file was expected at {path}, and there is {found}")
    return path


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", callback=writable, help="Also write the result as JSON to this file."),
]
RunPath = Annotated[Path, typer.Argument(help="Folder of the run.")]
StorePath = Annotated[
    Path | None,
    typer.Option("--store", help="Folder of the token store, if it has moved since training."),
]


def answer(result: dict[str, Any], text: str, *, as_json: bool, out: Path | None) -> None:
    """Print a result as text or as JSON, and also write it as JSON to `out` if given."""
    if out:
        from train import storage

        storage.write_json(out, result)
    typer.echo(json.dumps(result, indent=1, ensure_ascii=False) if as_json else text)


@corpus.command("build")
def corpus_build(
    source: Annotated[
        str,
        typer.Argument(
            help="Corpus to read: planted, openwebtext, a file, a folder of text, or a saved "
            "Hugging Face dataset."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to create for the token store.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Tokenizer: gpt2, bpe (trained on the corpus) or word (one token per word); "
            "default: word for the planted corpus, otherwise gpt2."
        ),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(min=1, help="With --tokenizer bpe: size of the vocabulary; default: 4096."),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="Layout of the tokens: stream (one after the other) or packed (whole documents "
            "in rows of equal length); default: packed for the planted corpus, otherwise stream."
        ),
    ] = None,
    row_length: Annotated[
        int | None, typer.Option(min=2, help="With --layout packed: tokens per row; default: 64.")
    ] = None,
    held_out: Annotated[
        float, typer.Option(help="Share of documents to hold out of training, for evaluation.")
    ] = 0.0,
    data_files: Annotated[
        list[str] | None,
        typer.Option(
            help="With SOURCE openwebtext: local parquet files in its layout, read instead of the "
            "Hugging Face hub; may be repeated."
        ),
    ] = None,
    text_field: Annotated[
        str, typer.Option(help="Field of each record that holds the text.")
    ] = "text",
    limit: Annotated[int | None, typer.Option(help="Read at most this many documents.")] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            help="Revision of the corpus: for openwebtext on the hub, the one to read; for local "
            "files, a name to record instead of their sha256."
        ),
    ] = None,
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
    """Build a token store from SOURCE: tokens, document table, tokenizer and fingerprint."""
    if threads:
        # Size of the thread pool of `tokenizers`, which our threads wait for. It is read when
        # the pool is first used.
        os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    from train import progress
    from train.data import build_store, open_corpus

    documents = open_corpus(
        source,
        data_files=data_files,
        limit=limit,
        revision=revision,
        text_field=text_field,
        seed=seed,
        max_document_bytes=max_document_mb << 20,
    )
    with progress.bar("building") as advance:
        store = build_store(
            documents,
            out=out,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            layout=layout,
            row_length=row_length,
            held_out=held_out,
            seed=seed,
            threads=threads,
            progress=advance,
        )
    result = _describe(store)
    answer(result, _lines(result), as_json=as_json, out=None)


@corpus.command("show")
def corpus_show(
    store: Annotated[Path, typer.Argument(help="Folder of the token store.")],
    document: Annotated[
        int | None, typer.Option(help="Index of a document: print its text instead.")
    ] = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Show what a token store contains, or print one of its documents."""
    from dataclasses import asdict

    from train.data import open_store

    opened = open_store(store)
    if document is None:
        result = _describe(opened)
        answer(result, _lines(result), as_json=as_json, out=out)
        return
    result = {**asdict(opened.document(document)), "text": opened.text(document)}
    answer(result, result["text"], as_json=as_json, out=out)


# Not type-checked at run time: typer passes a context of another class than the annotated one.
@no_type_check
def train_command(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Recipe: planted, text-small or gpt2-124m.")],
    store: Annotated[Path, typer.Argument(help="Folder of the token store.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to create for the run.")],
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of training steps, to which the learning rate schedule is fitted; "
            "default: the recipe's.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Random seed of the initial weights; default: the recipe's."),
    ] = None,
    order_seed: Annotated[
        int | None,
        typer.Option(min=0, help="Random seed of the data order; default: the recipe's."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Windows per step; default: the recipe's.")
    ] = None,
    micro_batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Windows per forward and backward pass, to save memory; default: the recipe's.",
        ),
    ] = None,
    eval_every: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Steps between measurements of the held-out loss; 0: never; default: the "
            "recipe's.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Device: auto, cpu, cuda, or one GPU such as cuda:0.")
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="Precision: fp32, bf16, or auto (bf16 on a GPU; on a CPU whichever is measured "
            "to be faster)."
        ),
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Number of CPU threads; default: all cores, at most 8."),
    ] = None,
    data_workers: Annotated[
        int, typer.Option(min=0, help="Threads that read batches ahead; 0: none.")
    ] = 0,
    watch: Annotated[
        bool,
        typer.Option(
            help="Measure induction, copying and behaviours during training (costs about 1 % of "
            "the time)."
        ),
    ] = True,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a stopped run from its last checkpoint.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train RECIPE on the token store STORE.

    A training that was stopped at any moment continues with --resume.
    """
    from train import numerics, progress, recipes, runs, trainer
    from train.data import open_store

    computed: dict[str, Any] = {"device": device, "precision": precision, "threads": threads}
    changes = {
        "steps": steps,
        "init_seed": seed,
        "order_seed": order_seed,
        "batch_size": batch_size,
        "micro_batch_size": micro_batch_size,
        "eval_every": eval_every,
    }
    with progress.bar("training") as advance:
        if resume:
            _refuse_other(runs.open(out, store=store), recipe, changes, computed)
            if not watch and runs.open(out).watched:
                raise TrainError(
                    f"{out} was started with --watch and resumes so; leave --no-watch out"
                )
            trained = trainer.resume(out, store=store, data_workers=data_workers, progress=advance)
        else:
            tokens = open_store(store)
            resolved = recipes.resolve(recipes.by_name(recipe), tokens, **changes)
            # `train` knows no behaviours: whoever registered this command passes functions that
            # make them in the context.
            known = [trainer.store_tasks, *(context.obj or [])] if watch else []
            watches = [one for of_store in known for one in of_store(tokens, resolved.model.n_ctx)]
            trained = trainer.train(
                resolved,
                tokens,
                out=out,
                numerics=numerics.choose(**computed),
                data_workers=data_workers,
                watch=watches,
                progress=advance,
            )
    result = _summary(trained)
    answer(result, _lines(result), as_json=as_json, out=None)


@run.command("show")
def run_show(
    path: RunPath, store: StorePath = None, as_json: Json = False, out: Out = None
) -> None:
    """Show what is known about a run."""
    from train import runs

    result = _summary(runs.open(path, store=store))
    answer(result, _lines(result), as_json=as_json, out=out)


@run.command("verify")
def run_verify(
    path: RunPath,
    spans: Annotated[
        int, typer.Option(min=0, help="Number of random spans of 10 steps to replay.")
    ] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for choosing the spans.")] = 0,
    require: Annotated[
        Literal["bit-exact", "within-tolerance", "order-only"] | None,
        typer.Option(
            help="Lowest level that passes (exit code 1 below it); default: within-tolerance if "
            "steps were replayed, otherwise none."
        ),
    ] = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Check every file of a run and of its token store, then replay random spans of its steps.

    Exit code 3: files are damaged. Exit code 1: the run is below the level of --require.
    """
    from dataclasses import asdict

    from train import progress, runs, trainer

    with progress.bar("verifying") as advance:
        found = trainer.verify(
            runs.open(path, store=store), spans=spans, seed=seed, progress=advance
        )
    result = {**asdict(found), "ok": found.ok}
    summary = (
        f"{found.level}: {found.files} files hold their digests, {len(found.spans)} spans "
        f"replayed, largest difference in loss {found.difference:.3g} nats"
    )
    answer(result, summary if found.ok else found.level, as_json=as_json, out=out)
    if not found.ok:
        for problem in found.problems:
            typer.echo(f"error: {problem}", err=True)
        raise typer.Exit(3)
    # An imported run has no steps to replay: it fails only if a level was required.
    least = require or ("within-tolerance" if found.spans else None)
    if least and not found.reaches(least):
        typer.echo(f"error: {path} is {found.level}; {least} was required", err=True)
        raise typer.Exit(1)


@run.command("reads")
def run_reads(
    path: RunPath,
    step: Annotated[
        int | None, typer.Option(help="List the documents that this step read.")
    ] = None,
    document: Annotated[
        int | None, typer.Option(help="List the steps that read the document with this index.")
    ] = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """List the documents that a step read, or the steps that read a document."""
    from train import runs

    opened = runs.open(path, store=store)
    if (step is None) == (document is None):
        raise TrainError("give either --step N or --document N")
    if step is not None:
        found = [int(one) for one in opened.documents_read(step)]
        result: dict[str, Any] = {"step": step, "documents": found}
        text = "\n".join(f"{one}\t{opened.store.document(one).id}" for one in found)
    else:
        found = [int(one) for one in opened.steps_reading(document or 0)]
        result = {"document": document, "steps": found}
        text = "\n".join(str(one) for one in found)
    answer(result, text, as_json=as_json, out=out)


@run.command("replay")
def run_replay(
    path: RunPath,
    first: Annotated[int, typer.Option("--from", help="First step to replay.")],
    last: Annotated[int, typer.Option("--to", help="Last step to replay (included).")],
    without: Annotated[
        list[int] | None,
        typer.Option(help="Index of a document to remove; may be repeated."),
    ] = None,
    mode: Annotated[
        Literal["blank", "loss"],
        typer.Option(
            help="How to remove documents. blank: replace their tokens by end-of-text. loss: keep "
            "them as context but do not train on them."
        ),
    ] = "blank",
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Run steps again from the nearest checkpoint and compare them with the ledger.

    Exit code 1: nothing was removed, and the replay is not bit-exact.
    """
    from dataclasses import asdict

    from train import progress, runs, trainer
    from train.data import DocumentRemoval

    removal = DocumentRemoval(tuple(sorted(set(without))), mode) if without else None
    with progress.bar("replaying") as advance:
        found = trainer.replay(
            runs.open(path, store=store), first, last, removal=removal, progress=advance
        )
    result = {
        "exact": found.exact,
        "same_order": found.same_order,
        "difference": found.difference,
        "removed": asdict(removal) if removal else None,
        "rows": [asdict(row) for row in found.rows],
    }
    says = "bit-exact" if found.exact else f"differs by {found.difference:.3g} nats at most"
    text = f"steps {first} to {last}: {says}; the same windows were read: {found.same_order}"
    answer(result, text, as_json=as_json, out=out)
    if removal is None and not found.exact:
        raise typer.Exit(1)


@run.command("import")
def run_import(
    source: Annotated[
        Path, typer.Argument(help="Hugging Face folder, nanoGPT ckpt.pt or .gguf file.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to create for the run.")],
    as_json: Json = False,
) -> None:
    """Import weights that were trained elsewhere, as a run of knowledge level weights-only."""
    from train import convert

    result = _summary(convert.import_run(source, out=out))
    answer(result, _lines(result), as_json=as_json, out=None)


@run.command("export")
def run_export(
    path: RunPath,
    out: Annotated[
        Path, typer.Option("--out", help="Folder to create for the Hugging Face checkpoint.")
    ],
    step: Annotated[
        int | None, typer.Option(help="Step of the checkpoint to export; default: the last.")
    ] = None,
    store: StorePath = None,
    as_json: Json = False,
) -> None:
    """Export a checkpoint and its tokenizer as a Hugging Face folder."""
    from train import convert, runs

    written = convert.export_run(runs.open(path, store=store), out=out, step=step)
    answer({"out": str(written)}, f"written: {written}", as_json=as_json, out=None)


def _refuse_other(
    opened: Any, recipe: str, changes: dict[str, Any], computed: dict[str, Any]
) -> None:
    """Raise a TrainError if an option given with --resume differs from the run it would resume.

    Options that were not given are not compared.
    """
    known = opened.predicate
    pairs = {"recipe": (recipe, opened.recipe.name)}
    pairs |= {key: (asked, known["recipe"][key]) for key, asked in changes.items()}
    pairs |= {key: (asked, known["numerics"][key]) for key, asked in computed.items()}
    for key, (asked, found) in pairs.items():
        if asked not in (None, "auto", found):
            raise TrainError(
                f"--resume continues {opened.path}, whose {key} is {found}, not {asked}; leave "
                "the option out, or train a new run in another folder"
            )


def _summary(opened: Any) -> dict[str, Any]:
    """Return what is known about a run, in the order of printing."""
    shown: dict[str, Any] = {
        "run": str(opened.path),
        "id": opened.id,
        "knowledge": opened.knowledge,
        "finished": opened.finished,
        "checkpoints": opened.steps,
    }
    if opened.knowledge == "weights-only":
        return {**shown, "origin": opened.predicate["origin"]}
    rows, saved, seen = opened.ledger, opened.saved, opened.watched
    return {
        **shown,
        "recipe": opened.recipe.name,
        "steps": f"{len(rows)} of {opened.recipe.steps}",
        "watched": seen.summary if seen else None,
        "loss": rows[-1].loss if rows else None,
        "tokens": rows[-1].tokens if rows else 0,
        "store": opened.predicate["data"]["fingerprint"],
        "weights": saved[-1].files["model.safetensors"] if saved else None,
        "numerics": opened.predicate["numerics"],
        "seeds": opened.predicate["seeds"],
        "parent": opened.predicate.get("parent"),
    }


def _lines(result: dict[str, Any]) -> str:
    width = max(len(key) for key in result)
    return "\n".join(f"{key:<{width}}  {value}" for key, value in result.items())


def _describe(store: Any) -> dict[str, Any]:
    """Return what a token store contains, in the order of printing."""
    content = json.loads((store.path / "store.json").read_text(encoding="utf-8"))
    keys = ("corpus", "counts", "layout", "row_length", "tokenizer", "fingerprint")
    return {"store": str(store.path), **{key: content[key] for key in keys}}
