"""The command `openbook cache`: writes activations of documents or prompts to disk."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.cli.options import Prompts, Seed, Source, Step
from interp.errors import InterpError
from train.cli.options import Json, StorePath
from train.cli.output import answer


if TYPE_CHECKING:
    from interp.activations import ActivationStore, Windows

PROMPTS = 64


def cache_command(
    source: Source,
    out: Annotated[Path, typer.Option("--out", help="Folder to create for the activation store.")],
    sites: Annotated[
        list[str],
        typer.Option(
            help="Sites to store: a hook point, a component (L3.resid_post, L1H0), or a pattern "
            "such as 'L*.mlp' or 'blocks.*.hook_z'; may be repeated or separated by commas."
        ),
    ],
    documents: Annotated[
        int | None,
        typer.Option(min=1, help="Number of documents, from the store's first; default: all."),
    ] = None,
    reading: Annotated[
        Literal["documents", "trained"],
        typer.Option(
            help="How to cut the tokens. documents: each document alone, after an end-of-text. "
            "trained: the windows that training reads."
        ),
    ] = "documents",
    overlap: Annotated[
        int,
        typer.Option(
            min=0,
            help="With --reading documents: tokens that each further window of a long document "
            "repeats as context.",
        ),
    ] = 0,
    behaviour: Annotated[
        str | None,
        typer.Option(help="Behaviour whose clean prompts are read instead of documents."),
    ] = None,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    dtype: Annotated[
        Literal["bf16", "fp16", "fp32"], typer.Option(help="Number format on disk.")
    ] = "bf16",
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Windows per forward pass; default: about 4096 tokens."),
    ] = None,
    step: Step = None,
    store: StorePath = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a store whose writing was stopped.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the size on disk and write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the activations of RUN at some sites, for every token of documents or prompts."""
    from interp import activations, behaviours, models
    from train import progress

    model, words = models.open(source, step=step, store=store)
    if behaviour is not None:
        loaded = behaviours.load(behaviour, words, n_prompts=prompts, seed=seed)
        read: Any = loaded.clean
    else:
        read = _windows(words, store, model.cfg.n_ctx, reading, documents, overlap)
    names = [name for one in sites for name in one.split(",") if name]
    planned = activations.plan_store(model, read, sites=names, dtype=dtype, batch=batch)
    if dry_run:
        answer(planned.content, str(planned), as_json=as_json, out=None)
        return
    typer.echo(f"to be written to {out}: {planned}", err=True)
    with progress.bar("caching") as advance:
        written = activations.plan_for_writing(
            model, planned, out=out, resume=resume, progress=advance
        )
    answer(written.manifest, _said(written), as_json=as_json, out=None)


def _windows(
    words: Any, store: Path | None, context: int, reading: str, documents: int | None, overlap: int
) -> "Windows":
    from interp import activations
    from train.data import open_store
    from train.runs import Run

    if overlap and reading == "trained":
        raise InterpError(
            "--overlap belongs to --reading documents; trained windows repeat nothing"
        )
    if not isinstance(words, Run) and store is None:
        raise InterpError(
            "the model comes without a token store; give one with --store, or prompts with "
            "--behaviour"
        )
    opened = words.store if isinstance(words, Run) else open_store(store or "")
    chosen = None if documents is None else range(documents)
    if reading == "trained":
        return activations.training_windows(opened, context=context, documents=chosen)
    return activations.document_windows(opened, context=context, documents=chosen, overlap=overlap)


def _said(written: "ActivationStore") -> str:
    about = written.manifest
    sites = ", ".join(f"{name} {list(written.shape(name))}" for name in written.sites)
    return (
        f"{len(written):,} rows, {about['dtype']}, {written.n_bytes:,} bytes: {written.path}\n"
        f"sites: {sites}\n"
        f"read as {about['source']['kind']}, context {about['source']['context']}\n"
        f"run {about['model']['run_id']}, step {about['model']['step']}, "
        f"checkpoint {about['model']['checkpoint_sha256'][:12]}, "
        f"knowledge {about['model']['knowledge']}"
    )
