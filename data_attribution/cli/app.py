"""The `openbook` command: the one place where the three packages meet.

Commands of a noun live in `commands/` of their package; here they are put together, and `main`
turns what we refuse into one line and an exit code:

    0 done    1 ran, and a checked claim failed    2 usage    3 damaged or untrusted input
    4 out of memory or disk    130 interrupted, the same command goes on
"""

import errno
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_attribution.cli.attribution import attribution
from data_attribution.cli.counterfactual import counterfactual_command, forget_command
from data_attribution.cli.index import index
from data_attribution.cli.trace import trace
from data_attribution.errors import AttributionError
from interp.cli.ablate import ablate_command
from interp.cli.app import behaviours_command, detect_command, recall_command
from interp.cli.cache import cache_command
from interp.cli.circuit import circuit_command
from interp.cli.emergence import emergence_command
from interp.cli.estimate import estimate_command
from interp.cli.lens import lens_command
from interp.cli.patch import patch_command
from interp.cli.probe import probe_command
from interp.errors import InterpError, InterpWarning
from train.cli.app import corpus, run, train_command
from train.errors import TrainError


if TYPE_CHECKING:
    from train.data import TokenStore
    from train.runs import MonitorTask

FULL = (errno.ENOSPC, errno.EDQUOT)

app = typer.Typer(
    help="Mechanistic interpretability and data attribution on a fully known GPT-2 checkpoint.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def watched_behaviours(store: "TokenStore", context: int) -> "list[MonitorTask]":
    """The behaviours of a store that a run on it looks at while it trains."""
    from interp import training_dynamics

    return training_dynamics.behaviour_tasks(store, context)


def demo_command(
    out: Annotated[Path, typer.Option("--out", help="The page.")] = Path("openbook-demo.html"),
    data: Annotated[Path, typer.Option(help="Folder of token stores.")] = Path("data"),
    runs_folder: Annotated[Path, typer.Option("--runs", help="Folder of runs.")] = Path("runs"),
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Train nothing: open the run that comes with openbook."),
    ] = False,
) -> None:
    """Play the whole sentence on the planted corpus and write one HTML page.

    Says first how long it will take here; --quick takes some ten seconds. What an earlier demo has
    finished is opened again; what was stopped goes on. Ends with 3 when the run is not what it
    says, and with 1 when a claim of the page does not hold.
    """
    from data_attribution import demo, report
    from train import progress

    if quick:
        played = demo.play_released(out=runs_folder, stage=progress.bar)
    else:
        plan = demo.plan(out=runs_folder)
        typer.echo(plan, err=True)
        played = demo.play(data=data, out=runs_folder, stage=progress.bar, how=plan.how)
    report.write_demo_page(played, out)
    typer.echo(report.demo_summary(played))
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
app.add_typer(trace, name="trace")
app.add_typer(attribution, name="attribution")
app.command("counterfactual")(counterfactual_command)
app.command("forget")(forget_command)


INTERRUPTED = (
    "interrupted; train and cache go on with --resume, builds and retrainings when asked again"
)


def main() -> None:
    """Run the command. What we refuse is one line on stderr; what we did not foresee is a bug."""
    # No command of ours tells a hub that was not asked for.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # A few prompts need no threads; `corpus build` may learn byte pairs from 100 MB, on --threads.
    builds = sys.argv[1:3] == ["corpus", "build"]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if builds else "false")
    # Read by cuBLAS at its first use: without it a GPU does not add up in the same order twice.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Threads that wait for another give their core away soon: two trainings side by side take half
    # the time then, and one alone up to 9 % longer. Read by GNU's OpenMP when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    warnings.showwarning = _warn
    try:
        app()
    except SystemExit as end:
        if end.code == 130:
            typer.echo(INTERRUPTED, err=True)
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
