"""The commands `openbook lens ...` and `openbook decompose`: read the answer from every layer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from interp.cli.options import (
    PROMPTS,
    Named,
    Plot,
    Prompts,
    Seed,
    Source,
    Step,
    provenance_line,
)
from interp.errors import InterpError
from train.cli.options import CommandGroup, Json, Out, RunPath, StorePath, readable
from train.cli.output import emit
from train.progress import count
from train.storage import writable


if TYPE_CHECKING:
    from interp.heads import Contributions
    from interp.lenses import LensEvaluation, Readings, TunedLens

lens = typer.Typer(
    cls=CommandGroup,
    help="Read the answer to a behaviour from every layer of a model.",
    no_args_is_help=True,
)

Positions = Annotated[Literal["last", "each"], typer.Option(help="Positions to read.")]


@lens.command("logit")
def lens_logit(
    source: Source,
    behaviour: Named,
    positions: Positions = "last",
    step: Step = None,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    plot: Plot = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Read the answer to BEHAVIOUR from every layer of RUN with the model's own unembedding."""
    from interp import behaviours, lenses, models
    from train import progress

    model, words = models.open(source, step=step, store=store)
    prompted = behaviours.load(behaviour, words, n_prompts=prompts, seed=seed)
    with progress.bar("logit lens") as advance:
        found = lenses.logit(
            model, prompted, positions=_positions(positions), seed=seed, progress=advance
        )
    _emit(found, _readings(found), plot, as_json, out)


@lens.command("fit")
def lens_fit(
    path: RunPath,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            callback=writable,
            help="File to write the lens to (.json); its weights are written beside it.",
        ),
    ],
    train_tokens: Annotated[
        bool,
        typer.Option(
            "--train-tokens",
            help="Fit on tokens that the model was trained on (default: held-out tokens).",
        ),
    ] = False,
    fit_steps: Annotated[
        int, typer.Option("--fit-steps", min=1, help="Number of steps for fitting the lens.")
    ] = 250,
    step: Step = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the fit.")] = 0,
    store: StorePath = None,
    as_json: Json = False,
) -> None:
    """Fit a tuned lens to the layers of RUN, and measure how faithful it is on other tokens."""
    from dataclasses import asdict

    from interp import lenses, models
    from train import progress
    from train.runs import Run

    if out.suffix != ".json":
        raise InterpError(f"{out}: a lens is written to a .json file; end the name in .json")
    model, words = models.open(path, step=step, store=store)
    if not isinstance(words, Run):
        raise InterpError(
            "a tuned lens is fitted to the tokens of a run, and this model comes without a run; "
            "fit it to a run with `openbook lens fit RUN`"
        )
    cut = lenses.training_tokens if train_tokens else lenses.held_out_tokens
    windows = cut(words.store, model.cfg.n_ctx)
    with progress.bar("fitting") as advance:
        tuned = lenses.fit_tuned_lens(model, windows, steps=fit_steps, seed=seed, progress=advance)
        faith = lenses.evaluate_lens(model, tuned, windows, progress=advance)
    tuned.save(out)
    result = {"lens": str(out), "fit": asdict(tuned.fit), "evaluation": faith.to_dict()}
    emit(result, f"{_fit(tuned)}\n{_bits(faith)}", as_json=as_json)


@lens.command("tuned")
def lens_tuned(
    source: Source,
    behaviour: Named,
    fitted: Annotated[
        Path,
        typer.Argument(
            metavar="LENS", callback=readable, help="File of `openbook lens fit --out`."
        ),
    ],
    positions: Positions = "last",
    step: Step = None,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    plot: Plot = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Read the answer to BEHAVIOUR from every layer of RUN with a tuned lens."""
    from interp import behaviours, lenses, models
    from train import progress

    model, words = models.open(source, step=step, store=store)
    prompted = behaviours.load(behaviour, words, n_prompts=prompts, seed=seed)
    tuned = lenses.load_tuned_lens(fitted)
    with progress.bar("tuned lens") as advance:
        found = lenses.tuned(
            model, prompted, tuned, positions=_positions(positions), progress=advance
        )
    _emit(found, f"{_readings(found)}\n{_fit(tuned)}", plot, as_json, out)


def decompose_command(
    source: Source,
    behaviour: Named,
    over: Annotated[
        Literal["parts", "sources"],
        typer.Option(
            help="Parts of the sum. parts: components. sources: every head's contribution is also "
            "split by source position."
        ),
    ] = "parts",
    step: Step = None,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    plot: Plot = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Split RUN's logit difference on BEHAVIOUR over the components that write it.

    The method is called direct logit attribution.
    """
    from interp import behaviours, models
    from interp.heads import decompose_logits

    model, words = models.open(source, step=step, store=store)
    prompted = behaviours.load(behaviour, words, n_prompts=prompts, seed=seed)
    found = decompose_logits(model, prompted, over=over, seed=seed)
    _emit(found, _contributions(found), plot, as_json, out)


def _positions(word: str) -> tuple[int] | None:
    return None if word == "each" else (-1,)


def _emit(
    found: "Readings | Contributions", text: str, plot: Path | None, as_json: bool, out: Path | None
) -> None:
    if plot:
        from interp import plots

        plots.write(found.plot(), plot)
    emit(found, text, as_json=as_json, out=out)


def _readings(found: "Readings") -> str:
    pos = found.positions[-1]
    head = f"{found.provenance.behaviour}: {found.kind} lens at position {pos}"
    lines = [f"{head}, n={count(found.n, 'prompt')}; control: never trained"]
    for measure, unit in found.units.items():
        lines.append(f"{measure} ({unit})")
        for depth, place in enumerate(found.places):
            own, control = (
                side[measure].at(depth, -1).show() for side in (found.measures, found.control)
            )
            lines.append(f"  {place:<16}  {own:<28}  control {control}")
    return "\n".join([*lines, provenance_line(found.provenance)])


def _contributions(found: "Contributions", k: int = 12) -> str:
    lines = [
        f"{found.provenance.behaviour}: direct contributions to a logit difference of "
        f"{found.score.show()}, n={count(found.n, 'prompt')}; control: never trained",
        f"{count(len(found.names), 'part')} add up to it, to within {found.gap:.1g}",
    ]
    order = found.average.values.abs().argsort(descending=True, stable=True)[:k].tolist()
    for i in order:
        own, control = found.average.at(i).show(), found.control.at(i).show()
        lines.append(f"  {found.names[i]:<16}  {own:<28}  control {control}")
    left = len(found.names) - len(order)
    lines += [f"and {count(left, 'part')} with smaller contributions"] if left > 0 else []
    return "\n".join([*lines, provenance_line(found.provenance)])


def _fit(tuned: "TunedLens") -> str:
    fit = tuned.fit
    return (
        f"lens fitted on {count(fit.targets, f'{fit.region} token')} in "
        f"{count(fit.windows, 'window')}, {count(fit.steps, 'step')}, seed {fit.seed}"
    )


def _bits(found: "LensEvaluation") -> str:
    lines = [
        f"on {count(found.n_tokens, f'other {found.region} token')}, "
        f"n={count(found.n, 'window')}: bits per token "
        "from the model (control: lens fitted to the layers of an untrained model)"
    ]
    for layer in range(found.kl.values.shape[1]):
        logit, tuned, control = (found.kl.at(lens, layer).show() for lens in range(3))
        lines.append(f"  L{layer}  logit {logit:<24}  tuned {tuned:<24}  control {control}")
    return "\n".join(lines)
