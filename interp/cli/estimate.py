"""The command `openbook estimate`: estimates patching effects from gradients, with their error."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from interp.cli.options import MEMORY, BehaviourOptions, Direction, Memory, PlotOutput, Rows
from interp.cli.patch import effects_text
from train.cli.options import option_groups
from train.progress import count


if TYPE_CHECKING:
    from interp.attribution_patching import Agreement

Over = Literal[
    "heads", "residual", "mlps", "attention", "neurons", "queries", "keys", "values"
]  # fmt: skip


@option_groups
def estimate_command(
    source: BehaviourOptions,
    output: PlotOutput,
    method: Annotated[
        Literal["attribution", "atp-star"],
        typer.Option(
            help="Attribution patching to first order (attribution), or with the two corrections "
            "of AtP* (atp-star)."
        ),
    ] = "attribution",
    over: Annotated[
        Over, typer.Option(help="Components whose patching effects are estimated.")
    ] = "heads",
    verify: Annotated[
        int,
        typer.Option(
            min=2,
            help="Number of components with the largest estimates to patch exactly; as many "
            "random others are patched as a control.",
        ),
    ] = 20,
    direction: Direction = "denoising",
    memory: Memory = MEMORY,
    top: Rows = 10,
) -> None:
    """Estimate which components of RUN carry BEHAVIOUR, and check the largest estimates exactly."""
    from interp import attribution_patching
    from train import progress

    model, prompted = source.load()
    estimator = (
        attribution_patching.atp_star if method == "atp-star" else attribution_patching.attribution
    )
    estimate = estimator(model, prompted, over=over, direction=direction, seed=source.seed)
    with progress.bar("verifying") as advance:
        agreement = attribution_patching.verify(
            model,
            prompted,
            estimate,
            top=verify,
            seed=source.seed,
            memory=memory << 20,
            progress=advance,
        )
    output.draw(agreement)
    shown = {"estimate": estimate.to_dict(), "agreement": agreement.to_dict()}
    text = f"{effects_text(estimate, top)}\n{_text(agreement)}"
    output.emit(estimate, text, shown=shown)


def _text(found: "Agreement") -> str:
    ranks = "-" if found.spearman is None else f"{found.spearman:.3f}"
    if found.interval:
        ranks += " [{:.3f}, {:.3f}]".format(*found.interval)
    rows = zip(found.places, found.estimated, found.exact, strict=True)
    lines = ["verified          estimate    exact  (shares of the same difference)"]
    lines += [f"{name:<16}  {estimated:8.3f}  {exact:7.3f}" for name, estimated, exact in rows]
    lines += [
        f"verified exactly: {found.n} of {count(found.n_places, 'place')} on "
        f"{count(found.n_prompts, 'prompt')}, "
        f"rank correlation {ranks}, largest error {found.largest_error:.3f}"
    ]
    if found.control is not None:
        lines.append(
            f"largest exact effect among {count(found.control_n, 'other')} drawn at random: "
            f"{found.control:.3f} ({found.control_place})"
        )
    return "\n".join(lines)
