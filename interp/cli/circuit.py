"""`openbook circuit`: the edges that carry a behaviour, with what could have refuted them."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.cli.app import Named, Prompts, Seed, Source, Step
from interp.errors import InterpError
from interp.plots import drawable
from train.cli.app import Json, Out, StorePath, answer, readable, writable


if TYPE_CHECKING:
    from interp.circuits import Circuit

PROMPTS = 64


def circuit_command(
    source: Source,
    behaviour: Named,
    method: Annotated[
        Literal["eap-ig", "eap", "exact"], typer.Option(help="How every edge is scored.")
    ] = "eap-ig",
    edges: Annotated[
        int | None,
        typer.Option(min=1, help="Edges before pruning; default: what keeps 0.9 of the behaviour."),
    ] = None,
    selection: Annotated[
        Literal["greedy", "top"], typer.Option(help="From the logits up, or the strongest of all.")
    ] = "greedy",
    signed: Annotated[
        bool, typer.Option("--signed", help="Only edges that work for the behaviour.")
    ] = False,
    steps: Annotated[int, typer.Option(min=1, help="Of eap-ig.")] = 5,
    metric: Annotated[
        Literal["logit-difference", "log-probability", "probability"],
        typer.Option(help="What faithfulness is measured in."),
    ] = "logit-difference",
    held_out: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share of prompts that judge and do not choose.")
    ] = 0.5,
    judge: Annotated[
        Path | None,
        typer.Option(callback=readable, help="Find none: judge this circuit, ours or MIB's."),
    ] = None,
    step: Step = None,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    top: Annotated[int, typer.Option(min=1, help="Edges to print; --json prints all.")] = 20,
    mib: Annotated[
        Path | None,
        typer.Option(callback=writable, help="Also write MIB's circuit file here (.json, .xz)."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(callback=drawable, help="Write the figure here.")
    ] = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Find the edges of RUN that carry BEHAVIOUR, and check that they do."""
    if judge and (mib or plot or edges):
        raise InterpError("--judge finds nothing to keep: leave out --mib, --plot and --edges")
    from interp import behaviours, circuits, metrics, models, plots
    from train import progress

    model, words = models.open(source, step=step, store=store)
    prompted = behaviours.load(behaviour, words, n_prompts=prompts, seed=seed)
    if judge:
        result, text = _judged(model, prompted, judge, metrics.METRICS[metric])
        answer(result, text, as_json=as_json, out=out)
        return
    with progress.bar("circuit") as advance:
        found = circuits.find(
            model,
            prompted,
            method=method,
            n_edges=edges,
            selection=selection,
            signed=signed,
            steps=steps,
            metric=metrics.METRICS[metric],
            held_out=held_out,
            seed=seed,
            progress=advance,
        )
    if plot:
        plots.write(found.plot(), plot)
    if mib:
        circuits.write_mib(mib, found)
    if out:
        found.save(out)
    answer(found.to_dict(), _circuit(found, top), as_json=as_json, out=None)


def _judged(model: Any, behaviour: Any, path: Path, metric: Any) -> tuple[dict[str, Any], str]:
    """How much of a behaviour a circuit keeps that was found before."""
    from interp import circuits

    kept = circuits.open_circuit(path).kept
    share = circuits.check(model, behaviour, kept, metric=metric)
    result = {"circuit": str(path), "edges": int(kept.sum()), "faithfulness": asdict(share)}
    text = (
        f"{behaviour.name}: {int(kept.sum())} of {len(kept)} edges; faithfulness {share}\n"
        "on all prompts, those that chose the edges included when they were these"
    )
    return result, text


def _circuit(found: "Circuit", top: int) -> str:
    about = found.provenance
    judges = "others" if found.held_out else "the same"
    lines = [
        f"{about.behaviour}: {len(found.edges)} of {found.graph.n_edges} edges, "
        f"{len(found.nodes)} of {len(found.graph.nodes)} nodes; {found.method}, "
        f"{found.n_asked} edges by {found.selection} selection, then pruned",
        f"{found.metric} ({found.unit}): full model {found.full:.3f}, empty circuit "
        f"{found.empty:.3f}; chosen on {found.n_chose} prompts, judged on {judges}",
        *_checks(found),
        "",
        f"{'edge':<22}  {'worth':>9}  {'exact worth, 95 %':<40}  chosen again",
    ]
    for edge in found.edges[:top]:
        exact, again = "-", "-"
        if found.checks:
            again = f"{found.checks.again[found.graph.index(edge)].item():.2f}"
            exact = str(found.checks.exact.get(edge, "-"))
        lines.append(f"{edge:<22}  {found[edge]:9.4f}  {exact:<40}  {again}")
    left = len(found.edges) - top
    lines += [f"and {left} weaker edges"] if left > 0 else []
    lines += [f"note: {note}" for note in found.notes]
    return "\n".join([
        *lines,
        f"run {about.run_id}, step {about.step}, checkpoint {about.checkpoint_sha256[:12]}, "
        f"knowledge {about.knowledge}",
    ])  # fmt: skip


def _checks(found: "Circuit") -> list[str]:
    checks = found.checks
    rows: list[tuple[str, object, str]] = [("faithfulness", found.faithfulness, "1 does all of it")]
    if checks:
        rows += [
            ("random init", checks.random_init, "the same edges, never trained; 0"),
            ("random circuits", checks.random_circuits, "as large, shuffled; 0"),
            ("complement", checks.complement, "all other edges; 0"),
            ("completeness", checks.completeness, "gap when a node is taken out; 0"),
            ("minimality", checks.minimality, "share of edges that matter; 1"),
            ("stability", checks.stability or "one prompt, none", "Jaccard, prompts redrawn; 1"),
            ("rank agreement", checks.agreement or "too few edges", "estimated and exact worth; 1"),
            ("CPR", checks.cpr.area, "as MIB; higher is better"),
            ("CMD", checks.cmd.area, "as MIB; 0 is best"),
        ]
    return [f"{name:<15}  {found!s:<48}  {meaning}" for name, found, meaning in rows]
