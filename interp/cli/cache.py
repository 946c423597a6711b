"""The commands `openbook cache ...`: write activations of documents or prompts to disk."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.cli.options import PROMPTS, Named, Prompts, Seed, Source, Step
from interp.errors import InterpError
from train.cli.options import CommandGroup, Json, StorePath
from train.cli.output import emit
from train.progress import count


if TYPE_CHECKING:
    from interp.activations import ActivationStore
    from train.data import TokenStore

cache = typer.Typer(
    cls=CommandGroup,
    help="Write the activations of a model at some sites to disk, for every token that it reads.",
    no_args_is_help=True,
)

OutFolder = Annotated[
    Path, typer.Option("--out", help="Folder to create for the activation store.")
]
Sites = Annotated[
    list[str],
    typer.Option(
        help="Sites to store: a hook point, a component (L3.resid_post, L1H0), or a pattern such "
        "as 'L*.mlp' or 'blocks.*.hook_z'; may be repeated or separated by commas."
    ),
]
Documents = Annotated[
    int | None,
    typer.Option(min=1, help="Number of documents, from the store's first; default: all."),
]
Dtype = Annotated[Literal["bf16", "fp16", "fp32"], typer.Option(help="Number format on disk.")]
Batch = Annotated[
    int | None, typer.Option(min=1, help="Windows per forward pass; default: about 4096 tokens.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue a store whose writing was stopped.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the size on disk and write nothing.")
]


@cache.command("documents")
def cache_documents(
    source: Source,
    out: OutFolder,
    sites: Sites,
    documents: Documents = None,
    overlap: Annotated[
        int,
        typer.Option(
            min=0,
            help="Tokens that each further window of a long document repeats as context.",
        ),
    ] = 0,
    dtype: Dtype = "bf16",
    batch: Batch = None,
    step: Step = None,
    store: StorePath = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write the activations of RUN on documents, each alone after an end-of-text token."""
    from interp import activations, models

    model, words = models.open(source, step=step, store=store)
    windows = activations.document_windows(
        _token_store(words, store),
        context=model.cfg.n_ctx,
        documents=None if documents is None else range(documents),
        overlap=overlap,
    )
    plan = activations.plan_store(model, windows, sites=_names(sites), dtype=dtype, batch=batch)
    _write(model, plan, out, resume, dry_run, as_json)


@cache.command("windows")
def cache_windows(
    source: Source,
    out: OutFolder,
    sites: Sites,
    documents: Documents = None,
    dtype: Dtype = "bf16",
    batch: Batch = None,
    step: Step = None,
    store: StorePath = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write the activations of RUN on the windows of documents that training reads."""
    from interp import activations, models

    model, words = models.open(source, step=step, store=store)
    windows = activations.training_windows(
        _token_store(words, store),
        context=model.cfg.n_ctx,
        documents=None if documents is None else range(documents),
    )
    plan = activations.plan_store(model, windows, sites=_names(sites), dtype=dtype, batch=batch)
    _write(model, plan, out, resume, dry_run, as_json)


@cache.command("prompts")
def cache_prompts(
    source: Source,
    behaviour: Named,
    out: OutFolder,
    sites: Sites,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    dtype: Dtype = "bf16",
    batch: Batch = None,
    step: Step = None,
    store: StorePath = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write the activations of RUN on the clean prompts of BEHAVIOUR."""
    from interp import activations, behaviours, models

    model, words = models.open(source, step=step, store=store)
    clean = behaviours.load(behaviour, words, n_prompts=prompts, seed=seed).clean
    plan = activations.plan_store(model, clean, sites=_names(sites), dtype=dtype, batch=batch)
    _write(model, plan, out, resume, dry_run, as_json)


def _names(sites: list[str]) -> list[str]:
    return [name for names in sites for name in names.split(",") if name]


def _token_store(words: Any, store: Path | None) -> "TokenStore":
    """Return the token store of a run, or the one given with --store beside an imported model."""
    from train.data import open_store
    from train.runs import Run

    if isinstance(words, Run):
        return words.store
    if store is None:
        raise InterpError(
            "the model comes without a token store; give one with --store, or prompts with "
            "`openbook cache prompts`"
        )
    return open_store(store)


def _write(model: Any, plan: Any, out: Path, resume: bool, dry_run: bool, as_json: bool) -> None:
    """Write the store of a plan and print what was written, or print the plan."""
    from interp import activations
    from train import progress

    if dry_run:
        emit(plan.content, str(plan), as_json=as_json)
        return
    typer.echo(f"to be written to {out}: {plan}", err=True)
    with progress.bar("caching") as advance:
        written = activations.write_planned_store(
            model, plan, out=out, resume=resume, progress=advance
        )
    emit(written.manifest, _said(written), as_json=as_json)


def _said(written: "ActivationStore") -> str:
    about = written.manifest
    sites = ", ".join(f"{name} {list(written.shape(name))}" for name in written.sites)
    return (
        f"{count(len(written), 'row')}, {about['dtype']}, {count(written.n_bytes, 'byte')}: "
        f"{written.path}\n"
        f"sites: {sites}\n"
        f"read as {about['source']['kind']}, context {about['source']['context']}\n"
        f"run {about['model']['run_id']}, step {about['model']['step']}, "
        f"checkpoint {about['model']['checkpoint_sha256'][:12]}, "
        f"knowledge {about['model']['knowledge']}"
    )
