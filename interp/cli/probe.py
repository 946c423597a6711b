"""The commands `openbook probe` and `openbook erase`: linear probes, and erasure of a label."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from interp.cli.options import ModelOptions, Named, PlotOutput, provenance_line
from interp.errors import ProbeError
from train.cli.options import option_groups
from train.errors import nearest_path
from train.progress import count


if TYPE_CHECKING:
    from interp.probing import Erasure, Probe
    from train.statistics import Estimate

CASES = 1000


def _task_file(name: str) -> str:
    """Raise a ProbeError, before torch is imported, if a task's file is missing."""
    if Path(name).suffix in (".json", ".jsonl") and not Path(name).exists():
        raise ProbeError(f"{name}: there is no such file{nearest_path(name)}")
    return name


Task = Annotated[
    str,
    typer.Argument(
        metavar="TASK",
        callback=_task_file,
        help="Label to probe: word-class, position, repeats, relation, subject-name, "
        "indirect-name or indirect-order (planted runs only), a .json file of labelled tokens, or "
        "a .jsonl file of tagged sentences.",
    ),
]
Site = Annotated[str, typer.Option(help="Site whose activations are read, e.g. resid_post or mlp.")]
At = Annotated[int | None, typer.Option(help="One position at which to read the label.")]
Cases = Annotated[int, typer.Option(min=2, help="Maximum number of labelled tokens.")]


@option_groups
def probe_command(
    source: ModelOptions,
    output: PlotOutput,
    task: Task,
    site: Site = "resid_post",
    layers: Annotated[
        str | None, typer.Option(help="Layers to read, e.g. 0,3-5; default: all.")
    ] = None,
    positions: Annotated[
        str | None,
        typer.Option(
            help="Positions to read, e.g. 4,9,-1, or each; default: the labelled token's."
        ),
    ] = None,
    at: At = None,
    cases: Cases = CASES,
    folds: Annotated[int, typer.Option(min=2, help="Number of cross-validation folds.")] = 5,
    controls: Annotated[int, typer.Option(min=1, help="Number of control tasks to draw.")] = 5,
    fit: Annotated[
        Literal["logistic", "ridge"],
        typer.Option(help="Probe to fit. ridge is faster but gives no code length."),
    ] = "logistic",
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed for cases, folds and controls.")
    ] = 0,
) -> None:
    """Read TASK from the activations of RUN with linear probes."""
    from interp import probing
    from train import progress

    model, words = source.open()
    labelled = probing.load_task(task, words, n_cases=cases, seed=seed)
    labelled = labelled if at is None else labelled.at(at)
    with progress.bar(labelled.name) as advance:
        found = probing.linear(
            model,
            labelled,
            site=site,
            layers=_numbers("--layers", layers, model.cfg.n_layers),
            positions=_numbers("--positions", positions, labelled.tokens.shape[1]),
            folds=folds,
            controls=controls,
            fit=fit,
            seed=seed,
            progress=advance,
        )
    output.draw(found)
    output.emit(found, _probe(found))


@option_groups
def erase_command(
    source: ModelOptions,
    output: PlotOutput,
    task: Task,
    behaviour: Named,
    layer: Annotated[int, typer.Option(min=0, help="Layer at which to erase the label.")],
    site: Site = "resid_post",
    positions: Annotated[
        str | None,
        typer.Option(
            help="Positions of BEHAVIOUR's prompts at which to erase, e.g. 4,9,-1, or each; "
            "default: the position where the label is read."
        ),
    ] = None,
    at: At = None,
    cases: Cases = CASES,
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed for cases, prompts and controls.")
    ] = 0,
) -> None:
    """Erase TASK from the activations of RUN at one layer, and measure BEHAVIOUR without it.

    The erasure is LEACE: after it no linear probe reads the label.
    """
    from interp import behaviours, probing
    from train import progress

    behaviours.refuse_unknown_name(behaviour, source.path, source.store)
    model, words = source.open()
    labelled = probing.load_task(task, words, n_cases=cases, seed=seed)
    labelled = labelled if at is None else labelled.at(at)
    with progress.bar(labelled.name) as advance:
        found = probing.erasure_effect(
            model,
            behaviours.load(behaviour, words, seed=seed),
            labelled,
            layer=layer,
            site=site,
            positions="all" if positions == "each" else _numbers("--positions", positions, 0),
            seed=seed,
            progress=advance,
        )
    output.draw(found)
    output.emit(found, _erasure(found))


def _numbers(option: str, text: str | None, n: int) -> list[int] | None:
    """Return the numbers of a text such as "0,3-5", all `n` for "each", and None for None."""
    if text is None:
        return None
    if text == "each" and n:
        return list(range(n))
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-") if not part.startswith("-") else (part, "", "")
        try:
            found += range(int(first), int(last) + 1) if dash else [int(first)]
        except ValueError:
            raise ProbeError(f"{option} {text!r} is no list of numbers; write 0,3-5") from None
    return found


def _probe(found: "Probe") -> str:
    head = (
        f"{found.task}: {found.site}, {count(found.n, 'case')}, {count(found.n_types, 'type')} "
        f"({found.type_of}), "
        f"{len(found.classes)} classes, commonest {found.baseline:.3f}, {found.folds} folds; "
        "intervals are 95 %"
    )
    width = max(len(cell.place) for cell in found.cells)
    columns = ("accuracy", "unseen", "control", "selectivity", "untrained", "untrained_unseen")
    titles = "  ".join(f"{name.replace('_', ' '):<22}" for name in (*columns, "compression"))
    rows = [
        f"{cell.place:<{width}}  "
        + "  ".join(f"{_shown(getattr(cell, name)):<22}" for name in columns)
        + f"  {_shown(cell.compression)}"
        + _bits(cell.bits, cell.bits_published)
        for cell in found.cells
    ]
    return "\n".join(
        [head, f"{'':<{width}}  {titles}", *rows, *found.notes, provenance_line(found.provenance)]
    )


def _bits(mixed: float | None, published: float | None) -> str:
    without = "" if published is None else f" ({published:.0f} without mixing)"
    return "" if mixed is None else f"  {mixed:.0f} bits{without}"


def _erasure(found: "Erasure") -> str:
    at = "all positions" if found.positions is None else f"positions {list(found.positions)}"
    head = (
        f"{found.behaviour} without {found.task} at {found.place}, {at}: rank {found.rank}, "
        f"{count(found.n_cases, 'case')}, {count(found.n_prompts, 'prompt')}, "
        f"{count(found.placebos, 'placebo')}; intervals are 95 %"
    )
    titles = f"{'':<8}  {'logit difference, nats':<24}  {'accuracy':<22}  probe (commonest "
    titles += f"{found.baseline:.3f})  variance removed"
    rows = [
        f"{arm.name:<8}  {_shown(arm.score):<24}  {_shown(arm.accuracy):<22}  "
        f"{_shown(arm.probe):<23}  {arm.removed:.3f}"
        for arm in found.arms
    ]
    losses = [f"lost beyond the placebo of shuffled labels: {_shown(found.loss)} nats"]
    if found.loss_matched:
        losses.append(f"lost beyond directions of equal variance: {found.loss_matched} nats")
    return "\n".join(
        [head, titles, *rows, *losses, *found.notes, provenance_line(found.provenance)]
    )


def _shown(found: "Estimate | None") -> str:
    return "-" if found is None else str(found)
