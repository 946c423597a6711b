"""The commands `openbook circuit` and `openbook faithfulness`: find a circuit, or judge one."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from interp.cli.options import BehaviourOptions, MetricName, PlotOutput, Rows, provenance_line
from train.cli.options import choice, number, option_groups, result_of
from train.cli.output import Output
from train.progress import count
from train.storage import writable


if TYPE_CHECKING:
    from interp.circuits import AblationTest, Circuit


INTEGRATION_STEPS = 5
ALIKE = "refused: full and empty alike"


@option_groups
def circuit_command(
    source: BehaviourOptions,
    output: PlotOutput,
    method: Annotated[
        str,
        choice(
            "eap-ig",
            "eap-ig:N",
            "eap",
            "exact",
            help="How to score edges: edge attribution patching with gradients integrated in "
            f"{INTEGRATION_STEPS} steps (eap-ig), in N steps, or without integration (eap), or "
            "exact patching (one pass per edge).",
        ),
    ] = "eap-ig",
    edges: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of edges before pruning; default: as many as keep 0.9 of the behaviour.",
        ),
    ] = None,
    selection: Annotated[
        Literal["greedy", "top"],
        typer.Option(
            help="How to select edges. greedy: grow the circuit from the logits. top: take the "
            "highest scores."
        ),
    ] = "greedy",
    signed: Annotated[
        bool,
        typer.Option(
            "--signed",
            help="Rank edges by signed score, so that edges against the behaviour come last.",
        ),
    ] = False,
    metric: MetricName = "logit-difference",
    held_out: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.9,
            help="Share of prompts kept for judging the circuit and not used for choosing it.",
        ),
    ] = 0.5,
    top: Rows = 20,
    mib: Annotated[
        Path | None,
        typer.Option(
            callback=writable, help="Also write a circuit file in MIB's format (.json or .xz)."
        ),
    ] = None,
) -> None:
    """Find the edges of RUN that carry BEHAVIOUR, and test that they do."""
    from interp import circuits
    from train import progress

    model, prompted = source.load()
    with progress.bar("circuit") as advance:
        found = circuits.find(
            model,
            prompted,
            method=method.partition(":")[0],
            n_edges=edges,
            selection=selection,
            signed=signed,
            steps=number(method, INTEGRATION_STEPS),
            metric=metric,
            held_out=held_out,
            seed=source.seed,
            progress=advance,
        )
    output.draw(found)
    if mib:
        circuits.write_mib(mib, found)
    output.emit(found, _circuit(found, top))


@option_groups
def faithfulness_command(
    source: BehaviourOptions,
    output: Output,
    circuit: Annotated[
        Path,
        typer.Argument(
            metavar="CIRCUIT",
            callback=result_of("circuit"),
            help="File of a circuit: of `openbook circuit --out`, or in MIB's format.",
        ),
    ],
    metric: MetricName = "logit-difference",
) -> None:
    """Measure how much of BEHAVIOUR the edges of CIRCUIT keep in RUN when all others are ablated.

    Ablated edges carry their values on the corrupt prompts, the mean over prompts, and their values
    on other prompts, in turn. All prompts are used, including any that chose the edges.
    """
    from interp import circuits

    model, prompted = source.load()
    kept = circuits.open_circuit(circuit).kept
    tests = circuits.check(model, prompted, kept, metric=metric, seed=source.seed)
    result = {
        "circuit": str(circuit),
        "edges": int(kept.sum()),
        "faithfulness": tests[0].faithfulness and asdict(tests[0].faithfulness),
        "ablations": [asdict(test) for test in tests],
    }
    lines = [
        f"{prompted.name}: {int(kept.sum())} of {count(len(kept), 'edge')}; faithfulness "
        f"{tests[0].faithfulness or ALIKE}",
        *_tests([tests]),
        "measured on all prompts, which may include those that chose the edges",
    ]
    output.emit(result, "\n".join(lines), meaning=circuits.Circuit.meaning)


def _tests(circuits: "Iterable[tuple[AblationTest, ...]]") -> list[str]:
    """Return a table of circuits under each ablation; nothing without tests."""
    rows = [test for tests in circuits for test in tests]
    if not rows:
        return []
    head = (
        f"{'edges':>6}  {'ablated by':<10}  {'faithfulness':<38}  {'answer above foil':>17}  "
        f"{'first choice':>12}  full model"
    )
    return [head] + [
        f"{one.n_edges:>6}  {one.standin:<10}  {one.faithfulness or ALIKE!s:<38}  "
        f"{one.above_foil.value:>17.2f}  {one.top1.value:>12.2f}  {one.model_top1.value:>10.2f}"
        for one in rows
    ]


def _circuit(found: "Circuit", top: int) -> str:
    about = found.provenance
    judges = "others" if found.held_out else "the same"
    lines = [
        f"{about.behaviour}: {len(found.edges)} of {count(found.graph.n_edges, 'edge')}, "
        f"{len(found.nodes)} of {count(len(found.graph.nodes), 'node')}; {found.method}, "
        f"{count(found.n_asked, 'edge')} by {found.selection} selection, then pruned",
        f"{found.metric} ({found.unit}): full model {found.full:.3f}, empty circuit "
        f"{found.empty:.3f}; chosen on {count(found.n_chose, 'prompt')}, judged on {judges}",
        *_checks(found),
        "",
        *_tests(found.checks.sizes if found.checks else [found.ablations]),
        "",
        f"{'edge':<22}  {'worth':>9}  {'exact worth on choosing prompts, 95 %':<40}  chosen again",
    ]
    for edge in found.edges[:top]:
        exact, again = "-", "-"
        if found.checks:
            again = f"{found.checks.again[found.graph.index(edge)].item():.2f}"
            exact = str(found.checks.exact.get(edge, "-"))
        lines.append(f"{edge:<22}  {found[edge]:9.4f}  {exact:<40}  {again}")
    left = len(found.edges) - top
    lines += [f"and {count(left, 'weaker edge')}"] if left > 0 else []
    lines += [f"note: {note}" for note in found.notes]
    return "\n".join([*lines, provenance_line(about)])


def _checks(found: "Circuit") -> list[str]:
    checks = found.checks
    rows: list[tuple[str, object, str]] = [
        ("faithfulness", found.faithfulness, "share of the behaviour kept (ideal: 1)")
    ]
    if checks:
        rows += [
            (
                "random init",
                checks.random_init,
                "the same edges in untrained models, as a share of the trained difference",
            ),
            (
                "own scale",
                checks.own_scale or "refused: they do not tell clean from corrupt",
                "the same, as a share of the untrained models' own difference",
            ),
            (
                "random circuits",
                checks.random_circuits,
                "as large, as many edges from the input, shuffled scores (ideal: 0)",
            ),
            ("complement", checks.complement, "all other edges (ideal: 0)"),
            ("completeness", checks.completeness, "gap when a node is removed (ideal: 0)"),
            ("minimality", checks.minimality, "share of edges that matter (ideal: 1)"),
            (
                "stability",
                checks.stability or "one prompt, none",
                "Jaccard index, prompts redrawn (ideal: 1)",
            ),
            (
                "rank agreement",
                checks.agreement or "too few edges",
                "estimated and exact worth (ideal: 1)",
            ),
            ("CPR", checks.cpr.area, "as defined by MIB; higher is better"),
            ("CMD", checks.cmd.area, "as defined by MIB (ideal: 0)"),
        ]
    return [f"{name:<15}  {found!s:<48}  {meaning}" for name, found, meaning in rows]
