"""Parts of the demos' pages: the run, its verification, its loss, and how numbers are written."""

from collections.abc import Sequence
from html import escape

from data_attribution.report import svg
from data_attribution.report.page import measured
from train.runs import LedgerRow, Run
from train.trainer import Verification


__all__ = ["loss_curve", "number", "run_facts", "share", "verification"]


def verification(found: Verification) -> str:
    """Return the sentence on the level of a verification and on what was checked."""
    mark = "good" if found.reaches("within tolerance") else "bad"
    spans = ", ".join(f"{first} to {last}" for first, last in found.spans)
    return (
        f'<p class=claim>Verification: <b class="{mark}">{escape(found.level)}</b>. {found.files} '
        f"files hold their digests; steps {spans} were replayed and differ from the ledger by "
        f"{found.difference:.3g} nats.</p>"
    )


def run_facts(run: Run, data: Sequence[tuple[str, str]], epochs: float) -> list[tuple[str, str]]:
    """Return the rows that say which run it is, what it read (`data`) and how it was trained."""
    rows = run.ledger
    return [
        ("run", run.id),
        ("knowledge", run.knowledge),
        *data,
        ("weights (sha256)", run.saved_at(None).files["model.safetensors"]),
        ("steps, tokens read", f"{len(rows):,}, {rows[-1].tokens:,}"),
        ("epochs", f"{epochs:.2f}"),
        ("training time", f"{sum(row.seconds for row in rows):.0f} s of steps"),
        ("seeds", f"init {run.recipe.init_seed}, order {run.recipe.order_seed}"),
        ("numerics", f"{run.numerics.precision}, {run.numerics.threads} threads"),
    ]


def loss_curve(ledger: Sequence[LedgerRow]) -> str:
    """Return the figure of the training loss, thinned to at most 400 steps."""
    shown = ledger[:: max(1, len(ledger) // 200)]
    return svg.lines(
        [svg.Line("training loss", [row.loss for row in shown])],
        [f"{row.step:,}" for row in shown],
        across="step",
        up="nats per token",
    )


def share(value: float | None, low: float | None, high: float | None) -> str:
    """Return a number with its interval, if there is one; of None, an empty cell."""
    return "" if value is None else measured(value, low, high)


def number(value: float | None) -> str:
    """Return a number with two digits; None is `nothing`."""
    return "nothing" if value is None else measured(value)
