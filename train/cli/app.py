"""`openbook corpus`, `openbook train`, `openbook run`: make a known checkpoint and question it.

Each command parses, calls one library function and prints: the result on stdout, progress on
stderr.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, no_type_check

import typer

from train.errors import TrainError


corpus = typer.Typer(help="Build token stores from documents.", no_args_is_help=True)
run = typer.Typer(help="Look at a training run, check it, replay it.", no_args_is_help=True)


def writable(path: Path | None) -> Path | None:
    """Refuse, before anything is computed, a place where the result could not be written."""
    if path is None:
        return None
    if path.is_dir():
        raise TrainError(f"the result cannot be written to {path}: a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise TrainError(f"the result cannot be written to {path}: no folder {path.parent}")
    return path


def readable(path: Path | None) -> Path | None:
    """Refuse a result of an earlier command that is not there."""
    if path is not None and not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise TrainError(f"a file was expected at {path}, and there is {found}")
    return path


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", callback=writable, help="Also write the result as JSON here."),
]
RunPath = Annotated[Path, typer.Argument(help="Folder of the run.")]
StorePath = Annotated[
    Path | None, typer.Option("--store", help="Token store, when it has moved since training.")
]


def answer(result: dict[str, Any], text: str, *, as_json: bool, out: Path | None) -> None:
    """Print a result for a person or as JSON, and keep it where asked."""
    if out:
        from train import storage

        storage.write_json(out, result)
    typer.echo(json.dumps(result, indent=1, ensure_ascii=False) if as_json else text)


@corpus.command("build")
def corpus_build(
    source: Annotated[
        str, typer.Argument(help="planted | openwebtext | file | folder of text | saved dataset.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the token store.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="gpt2, bpe (trained on the corpus) or word.")
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(min=1, help="Vocabulary of a trained bpe.")
    ] = None,
    layout: Annotated[str | None, typer.Option(help="stream or packed.")] = None,
    row_length: Annotated[int | None, typer.Option(min=2, help="Tokens a packed row.")] = None,
    held_out: Annotated[float, typer.Option(help="Share of documents kept for evaluation.")] = 0.0,
    data_files: Annotated[
        list[str] | None, typer.Option(help="Local parquet files in OpenWebText's layout.")
    ] = None,
    text_field: Annotated[str, typer.Option(help="Field that holds the text.")] = "text",
    limit: Annotated[int | None, typer.Option(help="Read at most this many documents.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub dataset.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the planted corpus and of packing.")] = 0,
    max_document_mb: Annotated[int, typer.Option(min=1, help="Refuse larger documents.")] = 64,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores.")] = None,
    as_json: Json = False,
) -> None:
    """Turn SOURCE into a token store: tokens, document table, tokenizer, fingerprint."""
    if threads:
        # Of the tokenizers' own pool, which ours waits for; read when that is first used.
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
    document: Annotated[int | None, typer.Option(help="Print the text of this document.")] = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Say what a token store holds, or print one of its documents."""
    from dataclasses import asdict

    from train.data import open_store

    opened = open_store(store)
    if document is None:
        result = _describe(opened)
        answer(result, _lines(result), as_json=as_json, out=out)
        return
    result = {**asdict(opened.document(document)), "text": opened.text(document)}
    answer(result, result["text"], as_json=as_json, out=out)


# Unchecked, because typer hands in a context of another class than the one it has us name.
@no_type_check
def train_command(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="planted, text-small or gpt2-124m.")],
    store: Annotated[Path, typer.Argument(help="Folder of the token store.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Steps; the schedule follows.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the initial weights.")] = None,
    order_seed: Annotated[int | None, typer.Option(min=0, help="Seed of the data order.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Windows a step.")] = None,
    micro_batch_size: Annotated[int | None, typer.Option(min=1, help="Windows a pass.")] = None,
    eval_every: Annotated[
        int | None, typer.Option(min=0, help="Steps between held-out losses.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto (measured here), fp32 or bf16.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Default: all cores, at most 8.")
    ] = None,
    data_workers: Annotated[int, typer.Option(min=0, help="Threads reading ahead.")] = 0,
    watch: Annotated[bool, typer.Option(help="Log what grows, for 1 % of the time.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    as_json: Json = False,
) -> None:
    """Train RECIPE on the token store STORE; stopped at any moment, it resumes with --resume."""
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
                raise TrainError(f"--resume goes on watching {out}; leave --no-watch out")
            trained = trainer.resume(out, store=store, data_workers=data_workers, progress=advance)
        else:
            tokens = open_store(store)
            resolved = recipes.resolve(recipes.by_name(recipe), tokens, **changes)
            # Behaviours come from whoever registered this command and knows some.
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
    """Say what is known about a run."""
    from train import runs

    result = _summary(runs.open(path, store=store))
    answer(result, _lines(result), as_json=as_json, out=out)


@run.command("verify")
def run_verify(
    path: RunPath,
    spans: Annotated[int, typer.Option(min=0, help="Random spans to replay.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Which spans.")] = 0,
    require: Annotated[
        Literal["bit-exact", "within-tolerance", "order-only"] | None,
        typer.Option(help="Exit 1 below this; default: within-tolerance, where steps are known."),
    ] = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Check every file of a run and of its store, then replay random spans of it."""
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
    # An import knows no steps that could be replayed: only who asks for a level misses it.
    least = require or ("within-tolerance" if found.spans else None)
    if least and not found.reaches(least):
        typer.echo(f"error: {path} is {found.level}; {least} was required", err=True)
        raise typer.Exit(1)


@run.command("reads")
def run_reads(
    path: RunPath,
    step: Annotated[int | None, typer.Option(help="Which documents did it read?")] = None,
    document: Annotated[
        int | None, typer.Option(help="At which steps was this document read?")
    ] = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Answer which documents a step read (--step), or which steps read a document (--document)."""
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
    first: Annotated[int, typer.Option("--from", help="First step.")],
    last: Annotated[int, typer.Option("--to", help="Last step, included.")],
    without: Annotated[
        list[int] | None, typer.Option(help="Leave this document out; may be repeated.")
    ] = None,
    mode: Annotated[
        Literal["blank", "loss"], typer.Option(help="loss: stays as context.")
    ] = "blank",
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Run steps again from the nearest checkpoint and compare them with the ledger."""
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
    source: Annotated[Path, typer.Argument(help="Hugging Face folder, nanoGPT ckpt.pt or .gguf.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")],
    as_json: Json = False,
) -> None:
    """Take in weights that somebody else trained; knowledge level: weights-only."""
    from train import convert

    result = _summary(convert.import_run(source, out=out))
    answer(result, _lines(result), as_json=as_json, out=None)


@run.command("export")
def run_export(
    path: RunPath,
    out: Annotated[Path, typer.Option("--out", help="Folder of the Hugging Face checkpoint.")],
    step: Annotated[int | None, typer.Option(help="Checkpoint; default: the last.")] = None,
    store: StorePath = None,
    as_json: Json = False,
) -> None:
    """Write a checkpoint as a Hugging Face folder, tokenizer included."""
    from train import convert, runs

    written = convert.export_run(runs.open(path, store=store), out=out, step=step)
    answer({"out": str(written)}, f"written: {written}", as_json=as_json, out=None)


def _refuse_other(
    opened: Any, recipe: str, changes: dict[str, Any], computed: dict[str, Any]
) -> None:
    """Refuse to go on with a run as if it were another one; what was not asked is not compared."""
    known = opened.predicate
    pairs = {"recipe": (recipe, opened.recipe.name)}
    pairs |= {key: (asked, known["recipe"][key]) for key, asked in changes.items()}
    pairs |= {key: (asked, known["numerics"][key]) for key, asked in computed.items()}
    for key, (asked, found) in pairs.items():
        if asked not in (None, "auto", found):
            raise TrainError(
                f"--resume goes on with {opened.path}, whose {key} is {found}, not {asked}; leave "
                "it out, or train another run in another folder"
            )


def _summary(opened: Any) -> dict[str, Any]:
    """What is known about a run, in the order a reader asks."""
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
    """What a token store holds, in the order a reader asks."""
    content = json.loads((store.path / "store.json").read_text(encoding="utf-8"))
    keys = ("corpus", "counts", "layout", "row_length", "tokenizer", "fingerprint")
    return {"store": str(store.path), **{key: content[key] for key in keys}}
