"""The commands `openbook lens ...` and `openbook decompose`: read the answer from every layer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from interp.cli.options import BehaviourOptions, PlotOutput, Step, provenance_line
from interp.errors import InterpError
from train.cli.options import (
    CommandGroup,
    Json,
    RunOptions,
    option_groups,
    result_file,
    result_of,
)
from train.cli.output import emit
from train.progress import count


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
@option_groups
def lens_logit(source: BehaviourOptions, output: PlotOutput, positions: Positions = "last") -> None:
    """Read the answer to BEHAVIOUR from every layer of RUN with the model's own unembedding."""
    from interp import lenses
    from train import progress

    model, prompted = source.load()
    with progress.bar("logit lens") as advance:
        found = lenses.logit(
            model, prompted, positions=_positions(positions), seed=source.seed, progress=advance
        )
    output.draw(found)
    output.emit(found, _readings(found))


@lens.command("fit")
@option_groups
def lens_fit(
    source: RunOptions,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            callback=result_file,
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
    as_json: Json = False,
) -> None:
    """Fit a tuned lens to the layers of RUN, and measure how faithful it is on other tokens."""
    from dataclasses import asdict

    from interp import lenses, models
    from train import progress
    from train.runs import Run

    if out.suffix != ".json":
        raise InterpError(f"{out}: a lens is written to a .json file; end the name in .json")
    model, words = models.open(source.path, step=step, store=source.store)
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
@option_groups
def lens_tuned(
    source: BehaviourOptions,
    output: PlotOutput,
    fitted: Annotated[
        Path,
        typer.Argument(
            metavar="LENS",
            callback=result_of("lens fit"),
            help="File of `openbook lens fit --out`.",
        ),
    ],
    positions: Positions = "last",
) -> None:
    """Read the answer to BEHAVIOUR from every layer of RUN with a tuned lens."""
    from interp import lenses
    from train import progress

    model, prompted = source.load()
    tuned = lenses.load_tuned_lens(fitted)
    with progress.bar("tuned lens") as advance:
        found = lenses.tuned(
            model, prompted, tuned, positions=_positions(positions), progress=advance
        )
    output.draw(found)
    output.emit(found, f"{_readings(found)}\n{_fit(tuned)}")


@option_groups
def decompose_command(
    source: BehaviourOptions,
    output: PlotOutput,
    over: Annotated[
        Literal["parts", "sources"],
        typer.Option(
            help="Parts of the sum. parts: components. sources: every head's contribution is also "
            "split by source position."
        ),
    ] = "parts",
) -> None:
    """Split RUN's logit difference on BEHAVIOUR over the components that write it.

    The method is called direct logit attribution.
    """
    from interp.heads import decompose_logits

    model, prompted = source.load()
    found = decompose_logits(model, prompted, over=over, seed=source.seed)
    output.draw(found)
    output.emit(found, _contributions(found))


OF_95 = "intervals are 95 % over prompts"


def _positions(word: str) -> tuple[int] | None:
    return None if word == "each" else (-1,)


def _readings(found: "Readings") -> str:
    pos = found.positions[-1]
    head = f"{found.provenance.behaviour}: {found.kind} lens at position {pos}"
    lines = [f"{head}, n={count(found.n, 'prompt')}; control: never trained; {OF_95}"]
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
        f"{found.score.show()} nats, n={count(found.n, 'prompt')}; control: never trained; {OF_95}",
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
