"""The `openbook` command: the one place where the three packages meet.

`openbook trace` and `counterfactual` live here, and `main`, which turns what we refuse
into one line and an exit code:

    0 done    1 ran, and a checked claim failed    2 usage    3 damaged or untrusted input
    4 out of memory or disk    130 interrupted, the same command goes on
"""

import errno
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from data_attribution import printing
from data_attribution.commands.index import index
from data_attribution.errors import AttributionError, EvidenceError
from interp.cli import Named, Prompts, Seed, behaviours_command, detect_command, recall_command
from interp.commands.ablate import ablate_command
from interp.commands.cache import cache_command
from interp.commands.circuit import circuit_command
from interp.commands.emergence import emergence_command
from interp.commands.estimate import estimate_command
from interp.commands.lens import lens_command
from interp.commands.patch import patch_command
from interp.commands.probe import probe_command
from interp.commands.trace import trace_components_command
from interp.errors import InterpError, InterpWarning
from train.cli import Json, Out, RunPath, StorePath, answer, corpus, readable, run, train_command
from train.errors import TrainError


if TYPE_CHECKING:
    from train.token_store import TokenStore
    from train.watching import Watch

FULL = (errno.ENOSPC, errno.EDQUOT)
PROMPTS = 64

app = typer.Typer(
    help="Mechanistic interpretability and data attribution on a fully known GPT-2 checkpoint.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
trace = typer.Typer(help="Trace what a model does to its causes.", no_args_is_help=True)


@trace.command("documents")
def trace_documents(
    path: RunPath,
    behaviour: Annotated[
        str | None, typer.Argument(metavar="[BEHAVIOUR]", help="Or a text, with --text.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Trace this text instead.")] = None,
    method: Annotated[str, typer.Option(help="Kind of evidence.")] = "lexical",
    limit: Annotated[int, typer.Option(min=1, help="Documents.")] = 20,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Rank the documents that RUN read by the evidence that they taught BEHAVIOUR or a text."""
    if (behaviour is None) == (text is None):
        raise EvidenceError("give either a BEHAVIOUR or --text TEXT")
    from dataclasses import asdict

    from data_attribution import attributing
    from interp import behaviours
    from train import progress, runs

    opened = runs.open(path, store=store)
    target = text
    if target is None:
        target = behaviours.load(str(behaviour), opened, n_prompts=prompts, seed=seed)
    with progress.bar("tracing") as advance:
        sources = attributing.documents(
            opened,
            target,
            method=method,
            limit=limit,
            progress=advance,
        )
    if out:
        sources.save(out)
    answer(asdict(sources), printing.sources_lines(sources), as_json=as_json, out=None)


def counterfactual_command(
    path: RunPath,
    behaviour: Named,
    without: Annotated[
        Path | None,
        typer.Option(callback=readable, help="Sources of `openbook trace documents --out`."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many of them, best first.")] = 50,
    document: Annotated[
        list[int] | None, typer.Option(help="Leave out this document; may be repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=0, help="Random controls; 0: none.")] = 1,
    mode: Annotated[
        Literal["blank", "loss"], typer.Option(help="loss: stays as context.")
    ] = "blank",
    runs_folder: Annotated[
        Path | None, typer.Option("--runs", help="For the retrained runs; default: inside RUN.")
    ] = None,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Train RUN again without documents, and without as many matched random ones."""
    from data_attribution import counterfactuals
    from data_attribution.sources import Sources
    from interp import behaviours
    from train import progress, runs

    opened = runs.open(path, store=store)
    sources = Sources.load(without) if without else None
    removed = [*(document or []), *(sources.top(top).documents if sources else ())]
    asked = behaviours.load(behaviour, opened, n_prompts=prompts, seed=seed)
    with progress.bar("retraining") as advance:
        found = counterfactuals.without(
            opened,
            removed,
            asked,
            avoid=sources.documents if sources else (),
            out=runs_folder,
            control="matched-random" if seeds else "none",
            seeds=seeds,
            mode=mode,
            progress=advance,
        )
    result = found.to_dict()
    answer(result, printing.counterfactual_lines(result), as_json=as_json, out=out)


def forget_command(
    path: RunPath,
    facts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FACT]...", help="'capital of E', or E; default: nine facts."),
    ] = None,
    exposures: Annotated[int, typer.Option(min=1, help="Of the facts chosen by default.")] = 16,
    seed: Seed = 0,
    runs_folder: Annotated[
        Path | None, typer.Option("--runs", help="For the retrained runs; default: inside RUN.")
    ] = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Train a planted RUN again without every document of some facts, and ask it for them."""
    from dataclasses import asdict

    from data_attribution import forgetting
    from train import progress, runs

    opened = runs.open(path, store=store)
    names = facts or forgetting.removable(opened, exposures=exposures)
    with progress.bar("retraining") as advance:
        found = forgetting.facts(opened, names, out=runs_folder, seed=seed, progress=advance)
    answer(asdict(found), found.to_frame().to_string(index=False), as_json=as_json, out=out)


def watched_behaviours(store: "TokenStore", context: int) -> "list[Watch]":
    """The behaviours of a store that a run on it looks at while it trains."""
    from interp import emerging

    return emerging.watches(store, context)


def demo_command(
    out: Annotated[Path, typer.Option("--out", help="The page.")] = Path("openbook-demo.html"),
    data: Annotated[Path, typer.Option(help="Folder of token stores.")] = Path("data"),
    runs_folder: Annotated[Path, typer.Option("--runs", help="Folder of runs.")] = Path("runs"),
) -> None:
    """Play the whole sentence on the planted corpus and write one HTML page; about 4 minutes.

    What an earlier demo has finished is opened again; what was stopped goes on. Ends with 3 when
    the run is not what it says, and with 1 when a claim of the page does not hold.
    """
    from data_attribution import demo, page
    from train import progress

    played = demo.play(data=data, out=runs_folder, stage=progress.bar)
    page.write(played, out)
    typer.echo(page.summary(played))
    typer.echo(f"the whole of it: {out}")
    if not played.verification.ok:
        typer.echo(f"verification: {played.verification.level}", err=True)
    for failure in played.failures:
        typer.echo(f"does not hold: {failure}", err=True)
    if not played.verification.ok or played.failures:
        raise typer.Exit(1 if played.verification.ok else 3)


app.command("demo")(demo_command)
app.add_typer(corpus, name="corpus")
# Behaviours are made in `interp`, which `train` does not know: its command is handed their maker.
app.command("train", context_settings={"obj": [watched_behaviours]})(train_command)
app.add_typer(run, name="run")
app.command("behaviours")(behaviours_command)
app.command("patch")(patch_command)
app.command("estimate")(estimate_command)
app.command("ablate")(ablate_command)
app.command("lens")(lens_command)
app.command("probe")(probe_command)
app.command("circuit")(circuit_command)
app.command("emergence")(emergence_command)
app.command("cache")(cache_command)
app.command("recall")(recall_command)
app.command("detect")(detect_command)
app.add_typer(index, name="index")
trace.command("components")(trace_components_command)
app.add_typer(trace, name="trace")
app.command("counterfactual")(counterfactual_command)
app.command("forget")(forget_command)


def main() -> None:
    """Run the command. What we refuse is one line on stderr; what we did not foresee is a bug."""
    # No command of ours tells a hub that was not asked for.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # A few prompts need no threads; `corpus build` may learn byte pairs from 100 MB, on --threads.
    builds = sys.argv[1:3] == ["corpus", "build"]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if builds else "false")
    # Read by cuBLAS at its first use: without it a GPU does not add up in the same order twice.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    warnings.showwarning = _warn
    try:
        app()
    except SystemExit as end:
        if end.code == 130:
            typer.echo("interrupted; train goes on with --resume, demo by itself", err=True)
        raise
    except (TrainError, InterpError, AttributionError) as error:
        _refuse(error, error.exit_code)
    except OSError as error:
        # Files that are not there, not ours to read, or folders: the system's own words, one line.
        place = f"{error.filename}: " if error.filename else ""
        reason = (error.strerror or str(error)).lower()
        _refuse(f"{place}{reason}", 4 if error.errno in (*FULL, errno.ENOMEM) else 2)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        _refuse(f"the memory does not hold it: {error or 'no size is known'}", 4)


def _warn(message: Warning | str, category: type[Warning], *where: object) -> None:
    """A warning of ours as one line; what libraries warn of is for those who write code."""
    if issubclass(category, InterpWarning):
        typer.echo(f"warning: {message}", err=True)


def _refuse(reason: object, code: int) -> None:
    typer.echo(f"error: {' '.join(str(reason).split())}", err=True)
    sys.exit(code)


def _out_of_memory(error: BaseException) -> bool:
    # torch says so by a RuntimeError on a CPU and by a class of its own on a GPU, and must not be
    # imported here.
    named = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError) or named or "can't allocate memory" in str(error)
