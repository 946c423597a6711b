"""The command `openbook lens`: logit lens, tuned lens and direct logit attribution."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.cli.options import PROMPTS, Named, Prompts, Seed, Source, Step
from interp.errors import InterpError
from interp.plots import drawable
from train.cli.options import Json, Out, StorePath, readable
from train.cli.output import answer
from train.storage import writable


if TYPE_CHECKING:
    from interp.heads import Contributions
    from interp.lenses import LensEvaluation, Readings, TunedLens


def lens_command(
    source: Source,
    behaviour: Named,
    kind: Annotated[
        Literal["logit", "tuned", "direct"],
        typer.Option(help="Method: logit lens, tuned lens, or direct logit attribution."),
    ] = "logit",
    positions: Annotated[
        Literal["last", "each"],
        typer.Option(
            help="Positions to read. With --kind direct, each splits every head's contribution by "
            "source position."
        ),
    ] = "last",
    step: Step = None,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    lens: Annotated[
        Path | None,
        typer.Option(
            callback=readable,
            help="With --kind tuned: file of a saved lens, used instead of fitting one.",
        ),
    ] = None,
    save_lens: Annotated[
        Path | None,
        typer.Option(
            callback=writable, help="With --kind tuned: save the lens to this .json file."
        ),
    ] = None,
    train_tokens: Annotated[
        bool,
        typer.Option(
            "--train-tokens",
            help="With --kind tuned: fit on tokens that the model was trained on (default: "
            "held-out tokens).",
        ),
    ] = False,
    fit_steps: Annotated[
        int, typer.Option(min=1, help="With --kind tuned: number of steps for fitting the lens.")
    ] = 250,
    plot: Annotated[
        Path | None,
        typer.Option(callback=drawable, help="Write a figure to this .html or .png file."),
    ] = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Read the answer to BEHAVIOUR from every layer of RUN, or find what wrote it.

    --kind direct splits the logit difference over the components that write it.
    """
    if kind != "tuned" and (lens or save_lens or train_tokens):
        raise InterpError(
            f"--lens, --save-lens and --train-tokens belong to --kind tuned, not to --kind {kind}"
        )
    from interp import behaviours, lenses, models
    from interp.heads import decompose_logits
    from train import progress

    model, words = models.open(source, step=step, store=store)
    prompted = behaviours.load(behaviour, words, n_prompts=prompts, seed=seed)
    at = None if positions == "each" else (-1,)
    result: dict[str, Any] = {}
    with progress.bar(kind) as advance:
        if kind == "direct":
            over = "sources" if positions == "each" else "parts"
            found = decompose_logits(model, prompted, over=over, seed=seed)
            text = _contributions(found)
        elif kind == "logit":
            found = lenses.logit(model, prompted, positions=at, seed=seed, progress=advance)
            text = _readings(found)
        else:
            behaviours.check(model, prompted)  # before fitting, which takes minutes
            tuned, faith = (
                (lenses.load_tuned_lens(lens), None)
                if lens
                else _fitted(model, words, train_tokens, fit_steps, seed, advance)
            )
            if save_lens:
                tuned.save(save_lens)
            found = lenses.tuned(model, prompted, tuned, positions=at, progress=advance)
            text = "\n".join([_readings(found), _fit(tuned), *([_bits(faith)] if faith else [])])
            result = {"evaluation": faith.to_dict()} if faith else {}
    if plot:
        from interp import plots

        plots.write(found.plot(), plot)
    if out:
        found.save(out)
    answer({**found.to_dict(), **result}, text, as_json=as_json, out=None)


def _fitted(
    model: Any, words: Any, trained: bool, steps: int, seed: int, advance: Any
) -> "tuple[TunedLens, LensEvaluation]":
    """Fit a lens, and measure how faithful it is on windows it was not fitted to."""
    from interp import lenses
    from train.runs import Run

    if not isinstance(words, Run):
        raise InterpError(
            "a tuned lens is fitted to the tokens of a run, and this model comes without a run; "
            "give a saved lens with --lens"
        )
    cut = lenses.training_tokens if trained else lenses.held_out_tokens
    windows = cut(words.store, model.cfg.n_ctx)
    lens = lenses.fit_tuned_lens(model, windows, steps=steps, seed=seed, progress=advance)
    return lens, lenses.evaluate_lens(model, lens, windows, progress=advance)


def _readings(found: "Readings") -> str:
    pos = found.positions[-1]
    head = f"{found.provenance.behaviour}: {found.kind} lens at position {pos}, n={found.n} prompts"
    lines = [f"{head}; control: never trained"]
    for measure, unit in found.units.items():
        lines.append(f"{measure} ({unit})")
        for depth, place in enumerate(found.places):
            own, control = (
                side[measure].at(depth, -1).show() for side in (found.measures, found.control)
            )
            lines.append(f"  {place:<16}  {own:<28}  control {control}")
    return "\n".join([*lines, _about(found.provenance)])


def _contributions(found: "Contributions", k: int = 12) -> str:
    lines = [
        f"{found.provenance.behaviour}: direct contributions to a logit difference of "
        f"{found.score.show()}, n={found.n} prompts; control: never trained",
        f"{len(found.names)} parts add up to it, to within {found.gap:.1g}",
    ]
    order = found.average.values.abs().argsort(descending=True, stable=True)[:k].tolist()
    for i in order:
        own, control = found.average.at(i).show(), found.control.at(i).show()
        lines.append(f"  {found.names[i]:<16}  {own:<28}  control {control}")
    left = len(found.names) - len(order)
    lines += [f"and {left} parts with smaller contributions"] if left > 0 else []
    return "\n".join([*lines, _about(found.provenance)])


def _fit(tuned: "TunedLens") -> str:
    fit = tuned.fit
    return (
        f"lens fitted on {fit.targets:,} {fit.region} tokens in {fit.windows} windows, "
        f"{fit.steps} steps, seed {fit.seed}"
    )


def _bits(found: "LensEvaluation") -> str:
    lines = [
        f"on {found.n_tokens:,} other {found.region} tokens, n={found.n} windows: bits per token "
        "from the model (control: lens fitted to the layers of an untrained model)"
    ]
    for layer in range(found.kl.values.shape[1]):
        logit, tuned, control = (found.kl.at(lens, layer).show() for lens in range(3))
        lines.append(f"  L{layer}  logit {logit:<24}  tuned {tuned:<24}  control {control}")
    return "\n".join(lines)


def _about(about: Any) -> str:
    return (
        f"run {about.run_id}, step {about.step}, checkpoint {about.checkpoint_sha256[:12]}, "
        f"knowledge {about.knowledge}"
    )
