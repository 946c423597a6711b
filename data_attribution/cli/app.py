"""The `openbook` command, assembled from the `cli` folders of the three packages.

`main` turns every error that is raised on purpose into one line on stderr and an exit code:

    0    done
    1    ran, but a checked claim failed
    2    usage error
    3    damaged or untrusted input
    4    out of memory or disk
    75   the processes of a training cannot reach each other
    130  interrupted; the same command continues

A process of a training that signal n ended gives 128 + n (`train.cli.ranks`).
"""

import errno
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_attribution.cli.attribution import attribution
from data_attribution.cli.counterfactual import CONTROLS, counterfactual_command, forget_command
from data_attribution.cli.evaluate import evaluate_command
from data_attribution.cli.examples import add_examples
from data_attribution.cli.exposure import exposure
from data_attribution.cli.gradients import gradient_commands
from data_attribution.cli.index import index
from data_attribution.cli.report import report_command
from data_attribution.cli.trace import trace
from data_attribution.errors import AttributionError, AttributionWarning
from interp.cli.ablate import ablate_command
from interp.cli.behaviours import behaviours_command
from interp.cli.cache import cache
from interp.cli.circuit import circuit_command, faithfulness_command
from interp.cli.emergence import emergence_command
from interp.cli.estimate import estimate_command
from interp.cli.generate import GenerateCommand, generate_command
from interp.cli.heads import detect_command
from interp.cli.ladder import ladder_command
from interp.cli.lens import decompose_command, lens
from interp.cli.patch import patch_command, paths_command
from interp.cli.probe import erase_command, probe_command
from interp.cli.recall import recall_command
from interp.errors import InterpError, InterpWarning
from train.cli.chain import chain_command
from train.cli.corpus import corpus
from train.cli.ensemble import ensemble_command
from train.cli.options import CommandGroup, page_file
from train.cli.recipes import recipe_commands
from train.cli.run import run
from train.cli.train import train_command
from train.cli.tune import tune
from train.errors import TrainError, is_out_of_memory
from train.progress import visible


if TYPE_CHECKING:
    from train.data import TokenStore
    from train.runs import MonitorTask
    from train.trainer import Verification

# Errors of the system that are those of the machine: exit code 4.
ENVIRONMENT = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOMEM)

app = typer.Typer(
    cls=CommandGroup,
    help="Find out what happens inside a language model, and which training documents taught it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: importing rich takes more than half of the time of --help
    context_settings={"help_option_names": ["-h", "--help"]},  # of every command
)


def _print_version(asked: bool) -> bool:
    if asked:
        from importlib.metadata import version

        typer.echo(f"openbook {version('openbook')}")
        raise typer.Exit(0)
    return asked


@app.callback()
def openbook_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Find out what happens inside a language model, and which training documents taught it."""


def watched_behaviours(store: "TokenStore", context: int) -> "list[MonitorTask]":
    """Return the behaviours of a token store that training measures as it goes (`--watch`)."""
    from interp import training_dynamics

    return training_dynamics.behaviour_tasks(store, context)


DATA = Annotated[Path, typer.Option("--data", help="Folder for the token stores.")]
RUNS = Annotated[Path, typer.Option("--runs", help="Folder for the runs.")]


def demo_command(
    out: Annotated[
        Path, typer.Option("--out", callback=page_file, help="HTML file to write.")
    ] = Path("openbook-demo.html"),
    data: DATA = Path("data"),
    runs_folder: RUNS = Path("runs"),
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Train nothing: use the run that comes with openbook (about 10 s)."
        ),
    ] = False,
) -> None:
    """Run the whole pipeline on the planted corpus and write one HTML page.

    Prints first how long it will take on this machine. Results of an earlier demo are reused, and
    a stopped one continues. Exit code 3: the run failed verification. Exit code 1: a claim of the
    page does not hold.
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
    _end_demo(report.demo_summary(played), out, played.verification, played.failures)


def demo_code_command(
    out: Annotated[
        Path, typer.Option("--out", callback=page_file, help="HTML file to write.")
    ] = Path("openbook-demo-code.html"),
    data: DATA = Path("data"),
    runs_folder: RUNS = Path("runs"),
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Number of training steps, for a short trial. Default: all."),
    ] = None,
    controls: Annotated[
        int, typer.Option(min=1, help="Number of retrainings without as many random files.")
    ] = CONTROLS,
) -> None:
    """Run the whole pipeline on the sources of this Python and write one HTML page.

    Trains on the standard library and takes one behaviour from its prompts to a proof: lines that
    the model completes, the heads that do it, the files that hold the lines, and the model trained
    again without them. Beside it, measures how names are copied and when the head that does it
    formed. Prints first how long it will take on this machine. Results of an earlier demo are
    reused, and a stopped one continues. Exit code 3: the run failed verification. Exit code 1:
    replayed steps differ from the ledger by more than the tolerance.
    """
    from data_attribution import demo, report
    from train import progress

    plan = demo.plan_code(out=runs_folder, steps=steps, controls=controls)
    typer.echo(plan, err=True)
    played = demo.play_code(
        data=data,
        out=runs_folder,
        stage=progress.bar,
        how=plan.how,
        steps=steps,
        controls=controls,
    )
    report.write_code_page(played, out)
    _end_demo(report.code_summary(played), out, played.verification, played.failures)


def _end_demo(
    summary: str, out: Path, verification: "Verification", failures: tuple[str, ...]
) -> None:
    """Print the results of a demo, and exit by its verification and failed claims."""
    typer.echo(summary)
    typer.echo(f"page: {out}")
    if not verification.ok:
        typer.echo(f"verification: {verification.level}", err=True)
    for failure in failures:
        typer.echo(f"does not hold: {failure}", err=True)
    if not verification.ok or failures:
        raise typer.Exit(1 if verification.ok else 3)


app.command("demo")(demo_command)
app.command("demo-code")(demo_code_command)
app.add_typer(corpus, name="corpus")
# `train` must not import `interp`, which makes behaviours, so its command is given the function.
app.command("train", context_settings={"obj": [watched_behaviours]})(train_command)
app.add_typer(recipe_commands, name="recipes")
app.command("ladder")(ladder_command)
app.add_typer(run, name="run")
app.command("chain")(chain_command)
app.command("ensemble")(ensemble_command)
app.add_typer(tune, name="tune")
app.command("generate", cls=GenerateCommand)(generate_command)
app.command("behaviours")(behaviours_command)
app.command("patch")(patch_command)
app.command("paths")(paths_command)
app.command("estimate")(estimate_command)
app.command("ablate")(ablate_command)
app.add_typer(lens, name="lens")
app.command("decompose")(decompose_command)
app.command("probe")(probe_command)
app.command("erase")(erase_command)
app.command("circuit")(circuit_command)
app.command("faithfulness")(faithfulness_command)
app.command("emergence")(emergence_command)
app.add_typer(cache, name="cache")
app.command("recall")(recall_command)
app.command("evaluate")(evaluate_command)
app.command("detect")(detect_command)
app.add_typer(index, name="index")
app.add_typer(trace, name="trace")
app.command("report")(report_command)
app.add_typer(exposure, name="exposure")
app.add_typer(gradient_commands, name="gradients")
app.add_typer(attribution, name="attribution")
app.command("counterfactual")(counterfactual_command)
app.command("forget")(forget_command)
add_examples(app)


INTERRUPTED = (
    "interrupted; a training continues with `openbook run resume`, cache with --resume, builds, "
    "ladders and retrainings when run again"
)


def main() -> None:
    """Run the command line.

    An error of the three packages, of the system, or of memory is printed as one line on stderr.
    Any other exception is a bug and keeps its traceback.
    """
    # No command sends telemetry to the Hugging Face hub.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # A few prompts need no threads; `corpus build` may learn byte pairs from 100 MB, on --threads.
    builds = sys.argv[1:3] == ["corpus", "build"]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if builds else "false")
    # cuBLAS reads this at its first use. Without it, sums on a GPU change their order between runs.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # GNU's OpenMP reads this when torch is imported: waiting threads soon yield their core. Two
    # trainings side by side then take half the time, and one alone up to 9 % longer.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    warnings.showwarning = _warn
    try:
        _run()
    except KeyboardInterrupt:  # another one, while the first ended the command
        sys.exit(130)


def _run() -> None:
    """Run the command, and turn errors that are raised on purpose into a line and an exit code."""
    try:
        app()
    except (SystemExit, KeyboardInterrupt) as end:
        if isinstance(end, SystemExit) and end.code != 130:
            raise
        # From here on a further Ctrl-C ends the process at once, and not by a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        typer.echo(INTERRUPTED, err=True)
        sys.exit(130)
    except (TrainError, InterpError, AttributionError) as error:
        _refuse(error, error.exit_code)
    except OSError as error:
        # A file that is missing, unreadable or a folder: print the system's reason in one line.
        place = f"{error.filename}: " if error.filename else ""
        reason = (error.strerror or str(error)).lower()
        _refuse(f"{place}{reason}", 4 if error.errno in ENVIRONMENT else 2)
    except OverflowError as error:
        _refuse(f"a number is too large to compute with ({error}); choose a smaller one", 2)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _refuse(f"out of memory: {str(error) or 'no size is known'}", 4)


def _warn(message: Warning | str, category: type[Warning], *where: object) -> None:
    """Print a warning of openbook as one line, and drop warnings of other libraries."""
    if issubclass(category, InterpWarning | AttributionWarning):
        typer.echo(f"warning: {visible(str(message))}", err=True)


def _refuse(reason: object, code: int) -> None:
    typer.echo(f"error: {visible(' '.join(str(reason).split()))}", err=True)
    sys.exit(code)
