"""Parts of the demos' HTML pages: the frame, tables, numbers and commands.

A page needs no script and no network: it opens from disk on any machine.
"""

from collections.abc import Sequence
from html import escape

from data_attribution.report import svg
from train.progress import visible
from train.runs import LedgerRow, Run
from train.trainer import Verification


__all__ = ["commands", "html", "loss_curve", "number", "run_facts", "share", "table"]
__all__ += ["verification"]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
STYLE = """
body{font:16px/1.55 Georgia,serif;color:#222;max-width:780px;margin:40px auto;padding:0 20px}
h1{font-size:30px;margin-bottom:4px} h2{margin-top:44px;border-bottom:1px solid #ddd}
table{border-collapse:collapse;font:13px/1.4 Menlo,Consolas,monospace;margin:12px 0;width:100%}
td,th{text-align:left;padding:3px 10px 3px 0;border-bottom:1px solid #eee;vertical-align:top}
pre{background:#f6f5f1;padding:10px 14px;font-size:13px;overflow:auto}
svg{display:block;margin:12px 0;max-width:100%} svg text{font:11px Menlo,Consolas,monospace}
.claim{font-size:17px} .limit{color:#666;font-size:14px} .good{color:#2d6a4f} .bad{color:#b02a2a}
"""


def html(title: str, body: str, *, style: str = "", base: str = STYLE) -> str:
    """Return a whole page, in which texts of documents have no effect.

    `style` is added to the style of the page, `base`.

    The policy in its head lets a browser run no script and load nothing. Control characters, and
    those that turn the direction of a text, are shown as their codes.
    """
    return visible(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{base}{style}</style></head>"
        f"<body>{body}</body></html>\n"
    )


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
        [str(row.step) for row in shown],
        across="step",
        up="nats per token",
    )


def share(value: float | None, low: float | None, high: float | None) -> str:
    """Return a number with its interval, if there is one."""
    if value is None:
        return ""
    bounds = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    return f"{value:.2f}{bounds}"


def number(value: float | None) -> str:
    """Return a number with two digits; None is `nothing`."""
    return "nothing" if value is None else f"{value:.2f}"


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table; the cells are plain text."""
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def commands(*commands: str) -> str:
    """Return commands for the terminal as one block."""
    return f"<pre>{escape(chr(10).join(commands))}</pre>"
