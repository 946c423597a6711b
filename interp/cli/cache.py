"""The commands `openbook cache ...`: write activations of documents or prompts to disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from interp.cli.options import BehaviourOptions, ModelOptions
from interp.errors import InterpError
from train.cli.options import CommandGroup, Json, option_groups
from train.cli.output import Output, emit, without_blocks
from train.progress import count


if TYPE_CHECKING:
    from torch import Tensor

    from interp.activations import ActivationStore, Windows
    from interp.components import HookedModel
    from train.data import TokenStore

cache = typer.Typer(
    cls=CommandGroup,
    help="Write the activations of a model at some sites to disk, for every token that it reads.",
    no_args_is_help=True,
)

Documents = Annotated[
    int | None,
    typer.Option(min=1, help="Number of documents, from the store's first; default: all."),
]


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Options of what is stored, how, and where."""

    out: Annotated[Path, typer.Option("--out", help="Folder to create for the activation store.")]
    sites: Annotated[
        list[str],
        typer.Option(
            help="Sites to store: a hook point, a component (L3.resid_post, L1H0), or a pattern "
            "such as 'L*.mlp' or 'blocks.*.hook_z'; may be repeated or separated by commas."
        ),
    ]
    dtype: Annotated[
        Literal["bf16", "fp16", "fp32"], typer.Option(help="Number format on disk.")
    ] = "bf16"
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Windows per forward pass; default: about 4096 tokens."),
    ] = None
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a store whose writing was stopped.")
    ] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the size on disk and write nothing.")
    ] = False
    as_json: Json = False

    def write(self, model: "HookedModel", windows: "Windows | Tensor") -> None:
        """Write the store and print what was written, or only plan it."""
        from interp import activations
        from train import progress

        sites = [name for names in self.sites for name in names.split(",") if name]
        plan = activations.plan_store(
            model, windows, sites=sites, dtype=self.dtype, batch=self.batch
        )
        if self.dry_run:
            emit(plan.content, str(plan), as_json=self.as_json)
            return
        typer.echo(f"to be written to {self.out}: {plan}", err=True)
        with progress.bar("caching") as advance:
            written = activations.write_planned_store(
                model, plan, out=self.out, resume=self.resume, progress=advance
            )
        emit(written.manifest, _said(written), as_json=self.as_json)


@cache.command("documents")
@option_groups
def cache_documents(
    source: ModelOptions,
    options: CacheOptions,
    documents: Documents = None,
    overlap: Annotated[
        int,
        typer.Option(
            min=0,
            help="Tokens that each further window of a long document repeats as context.",
        ),
    ] = 0,
) -> None:
    """Write the activations of RUN on documents, each alone after an end-of-text token."""
    from interp import activations

    model, words = source.open()
    windows = activations.document_windows(
        _token_store(words, source.store),
        context=model.cfg.n_ctx,
        documents=None if documents is None else range(documents),
        overlap=overlap,
    )
    options.write(model, windows)


@cache.command("windows")
@option_groups
def cache_windows(source: ModelOptions, options: CacheOptions, documents: Documents = None) -> None:
    """Write the activations of RUN on the windows of documents that training reads."""
    from interp import activations

    model, words = source.open()
    windows = activations.training_windows(
        _token_store(words, source.store),
        context=model.cfg.n_ctx,
        documents=None if documents is None else range(documents),
    )
    options.write(model, windows)


@cache.command("prompts")
@option_groups
def cache_prompts(source: BehaviourOptions, options: CacheOptions) -> None:
    """Write the activations of RUN on the clean prompts of BEHAVIOUR."""
    model, prompted = source.load()
    options.write(model, prompted.clean)


@cache.command("verify")
@option_groups
def cache_verify(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of the activation store.")
    ],
    output: Output,
) -> None:
    """Check every byte of an activation store against the digests of when it was written."""
    from interp import activations
    from train import progress

    stored = activations.open_store(folder)
    with progress.bar("verifying") as advance:
        activations.verify_store(stored, advance)
    result = {
        "path": str(folder),
        "rows": len(stored),
        "verified": True,
        "by_block": stored.by_block,
    }
    text = f"all files match their digests: {folder}{without_blocks(stored.by_block)}"
    output.emit(result, text)


def _token_store(words: object, store: Path | None) -> "TokenStore":
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
