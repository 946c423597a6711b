"""The command `openbook ablate`: what a model loses without some components."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli.options import (
    MEMORY,
    BehaviourOptions,
    Memory,
    MetricName,
    PlotOutput,
    Rows,
    provenance_line,
)
from interp.errors import InterpError
from train.cli.options import WRITERS, choice, number, option_groups, result_of
from train.progress import count


if TYPE_CHECKING:
    from interp.components import Component
    from interp.patching import Ablation

LARGEST, DRAWS = 5, 10
REUSED = (
    "these prompts also chose the components in {}: the intervals do not account for the choice; "
    "draw others with --seed"
)


def _effects(path: Path | None) -> Path | None:
    """Raise an error if `path` is not a file; for a component's name, say which option takes it."""
    if path is not None and not path.exists() and "." not in path.name:
        raise InterpError(f"there is no file {path}; to name a component use --component {path}")
    return result_of(*WRITERS["openbook.effects"])(path)


@option_groups
def ablate_command(
    source: BehaviourOptions,
    output: PlotOutput,
    components: Annotated[
        Path | None,
        typer.Option(
            callback=_effects, help="File of `openbook patch --out`: ablate its largest effects."
        ),
    ] = None,
    take: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Ablate only the first N components; default: the 5 largest effects of a file, "
            "otherwise all.",
        ),
    ] = None,
    component: Annotated[
        list[str] | None,
        typer.Option(
            help="Component to ablate, e.g. L0H2 or L1.mlp@3, a0.h2 as in a circuit, or a hook "
            "point (blocks.0.attn.hook_z: all heads of layer 0); may be repeated."
        ),
    ] = None,
    together: Annotated[
        bool,
        typer.Option("--together", help="Ablate the components all at once, not one at a time."),
    ] = False,
    standin: Annotated[
        str,
        choice(
            "zero",
            "mean",
            "resample",
            "resample:N",
            "corrupt",
            help="What replaces a component's output: zeros, its mean over prompts, its value on "
            f"other prompts (resample, drawn {DRAWS} times, or N times), or its value on the "
            "corrupt prompt.",
        ),
    ] = "mean",
    metric: MetricName = "logit-difference",
    memory: Memory = MEMORY,
    top: Rows = 10,
) -> None:
    """Ablate components of RUN, and measure how much of BEHAVIOUR is lost.

    By default every head and every MLP is ablated, one at a time.
    """
    from interp import patching
    from train import progress

    model, prompted = source.load()
    named = list(component or [])
    reused = False
    if components:
        effects = patching.Effects.load(components)
        named += effects.top(take or LARGEST)
        reused = effects.provenance.behaviour_sha256 == prompted.sha256
    named = [_heads_of_layer(one, model.cfg.n_heads) for one in named]
    named = (named or patching.every_component(model))[:take]
    with progress.bar("ablating") as advance:
        found = patching.ablate(
            model,
            prompted,
            [_flat(named)] if together else named,
            standin=standin.partition(":")[0],
            draws=number(standin, DRAWS),
            metric=metric,
            memory=memory << 20,
            seed=source.seed,
            progress=advance,
        )
    if reused:
        found = replace(found, notes=(*found.notes, REUSED.format(components)))
    output.draw(found)
    output.emit(found, _text(found, top))
    if found.unfinished:
        raise typer.Exit(130)


def _heads_of_layer(name: str, n_heads: int) -> str | list[str]:
    """Return all heads of a layer, together, for their hook point; any other name unchanged."""
    found = re.fullmatch(r"blocks\.(\d+)\.attn\.hook_z", name)
    return [f"L{found[1]}H{head}" for head in range(n_heads)] if found else name


def _flat(sets: "Sequence[Component | str | list[str]]") -> "list[Component | str]":
    """Return the components of all sets in one list."""
    return [part for one in sets for part in (one if isinstance(one, list) else [one])]


def _share(share: float, n: int) -> str:
    """Return a share of n prompts with its 95 % interval."""
    from train.statistics import wilson

    low, high = wilson(share, n)
    return f"{share:.2f} [{low:.2f}, {high:.2f}]"


def _chosen(found: "Ablation") -> list[str]:
    """Return the largest loss as measured on prompts that did not choose it."""
    if found.n_prompts < 4:
        return []
    half = found.n_prompts - found.n_prompts // 2
    return [
        f"chosen on one half of the prompts, measured on the other {half}: {name} {estimate}"
        for name, estimate in found.held_out(1, seed=found.provenance.seed).items()
    ]


def _text(found: "Ablation", top: int) -> str:
    lines = [
        f"{found.provenance.behaviour}: {found.standin} ablation, change of the {found.metric} in "
        f"{found.unit}, {count(found.n_prompts, 'prompt')}",
        f"intact: {found.intact:.3f} {found.unit}, positive on "
        f"{_share(found.intact_accuracy, found.n_prompts)} of the prompts; intervals are 95 % "
        "over prompts",
    ]
    for name in found.top(top):
        bounds = found.interval(name)
        shown = "[{:.3f}, {:.3f}]".format(*bounds) if bounds else "no interval"
        kept = float(found.accuracy[found.names.index(name)])
        lines.append(
            f"{name:<16}  {found[name]:8.3f}  {shown}  positive on {_share(kept, found.n_prompts)}"
        )
    if len(found.names) > 1:
        lines.append(
            f"intervals hold for sets named beforehand, not for the largest of {len(found.names)}"
        )
        lines += _chosen(found)
    left = len(found.names) - top
    lines += [f"and {left} with smaller losses"] if left > 0 else []
    return "\n".join([*lines, *found.notes, provenance_line(found.provenance)])
