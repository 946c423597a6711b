"""The page of a behaviour: what the model does, by which heads, from which documents, and is it so.

Four panels tell one story. Choosing a prompt, a head or a document in one panel changes what the
others show: a head's attention and when it formed, a document's text, the steps that read it. All
numbers are text, so the page can be read without its script; every one has its n, its interval
where there is one, and the command that gives it again.
"""

from collections.abc import Sequence
from pathlib import Path

from data_attribution.report import page
from data_attribution.report.behaviour_results import BehaviourResults, Example
from data_attribution.report.components_panel import (
    attention_rows,
    components_panel,
    detailed_heads,
)
from data_attribution.report.documents_panel import documents_panel
from data_attribution.report.page import Panel, command, ending, measured, shown, table
from data_attribution.report.proof_panel import proof_panel
from train import storage
from train.statistics import Estimate, wilson


__all__ = ["behaviour_html", "data", "panels", "provenance", "write_behaviour_page"]


def write_behaviour_page(found: BehaviourResults, path: str | Path) -> Path:
    """Write the page; the file is written whole or not at all."""
    storage.write_text(Path(path), behaviour_html(found))
    return Path(path)


def behaviour_html(found: BehaviourResults) -> str:
    """Return the page as text."""
    what = found.behaviour.description
    lead = (
        f"<p>A model of {found.run.config.n_params:,} parameters, of which every training document "
        "and every step is known. "
        + (f"The task: {shown(what)}. " if what else "")
        + "Below is how well it does that, by which parts, what it had read, and what happens "
        "without having read it.</p>"
    )
    return page.document(
        f"{found.behaviour.name}: its heads, its documents, and the proof",
        panels(found),
        data(found),
        provenance(found),
        lead=lead,
    )


def panels(found: BehaviourResults) -> list[Panel]:
    """Return the four panels."""
    return [
        _behaviour(found),
        components_panel(found),
        documents_panel(found),
        proof_panel(found),
    ]


def data(found: BehaviourResults) -> dict[str, object]:
    """Return what the script of the page reads: the attention of each head on each prompt."""
    if any(one.attention is None for one in found.examples):
        return {}
    heads = detailed_heads(found)
    return {
        "attention": [
            {
                "tokens": list(one.clean),
                "heads": {name: attention_rows(one, name) for name in heads},
            }
            for one in found.examples
        ]
    }


def provenance(found: BehaviourResults) -> list[tuple[str, str]]:
    """Return the rows of the footer."""
    run, saved = found.run, found.run.saved_at(None)
    versions = found.heads.provenance.versions if found.heads else {}
    return [
        ("run", run.id),
        ("knowledge", run.knowledge),
        ("checkpoint", f"step {saved.step:,}, sha256 {saved.files['model.safetensors']}"),
        ("corpus", f"{run.store.n_documents:,} documents, fingerprint {run.store.fingerprint}"),
        ("behaviour", f"{found.behaviour.name}, sha256 {found.behaviour.sha256}"),
        ("ranking", f"{found.sources.method}: {found.sources.provenance.get('formula', '')}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]


def _behaviour(found: BehaviourResults) -> Panel:
    check, first = found.check, found.examples[0]
    low, high = check.interval
    of = f"{found.behaviour.case_name}s"
    right = measured(check.accuracy, low, high, n=check.n, of=of)
    numbers = table(
        ("", "measured"),
        [
            (_what_is_right(found), right),
            (
                "its answer is the first of all words",
                measured(check.top1, *wilson(check.top1, check.n), n=check.n, of=of),
            ),
            (
                "answer against foil (the wrong answer beside it), logit difference"
                f"{_over_foils(found)}",
                measured(*_ends(found.score), n=check.n, of=of, unit="nats"),
            ),
        ],
    )
    body = (
        f'<blockquote class="said">{shown(first.sentence)} '
        f'<b class="answer">{shown(first.best[0][0].strip())}</b></blockquote>'
        + _picks("prompt", [(f"prompt-{k}", one.sentence) for k, one in enumerate(found.examples)])
        + '<div class="pair"><div data-group="prompt" data-paper>'
        + "".join(_prompt(k, one, _over_foils(found)) for k, one in enumerate(found.examples))
        + f"</div><div>{numbers}{command(found.command('behaviours'))}</div></div>"
    )
    said = f"“{shown(ending(first.sentence, 120))}” → {shown(first.best[0][0].strip())}"
    said += f" (right: {shown(first.answer.strip())})" * (first.best[0][0] != first.answer)
    return Panel(
        "behaviour",
        "Behaviour",
        body,
        question="What does the model do?",
        answer=f"{said}<small>right in {shown(right)}</small>",
    )


def _ends(one: Estimate) -> tuple[float, float | None, float | None]:
    return one.value, one.low, one.high


def _over_foils(found: BehaviourResults) -> str:
    """Return over how many foils a prompt's number is a mean, if there are several."""
    several, n = found.behaviour.n_prompts, max(found.behaviour.distinct) + 1
    if several == n:
        return ""
    return f", mean over {several // n if several % n == 0 else f'{several / n:.1f}'} foils"


def _what_is_right(found: BehaviourResults) -> str:
    if found.behaviour.candidates is None:
        return "right: the answer has a higher logit than its foil"
    return f"right: the answer is first of {len(found.behaviour.candidates)} candidates"


def _picks(group: str, links: Sequence[tuple[str, str]]) -> str:
    """Return links that choose one part of a group."""
    if len(links) < 2:
        return ""
    made = "".join(
        f'<li><a href="#{key}" data-pick="{group}">{shown(ending(said, 90))}</a></li>'
        for key, said in links
    )
    return f'<ul class="picks" aria-label="Choose a {group}">{made}</ul>'


def _prompt(number: int, one: Example, over_foils: str) -> str:
    changed = [a != b for a, b in zip(one.clean, one.corrupt, strict=True)]
    rows = "".join(
        f"<tr><th scope=row>{shown(token.strip() or repr(token))}</th><td>{share:.3f}</td>"
        f"<td>{_bar(share)}</td></tr>"
        for token, share in one.best
    )
    return (
        f'<details id="prompt-{number}"{" open" * (number == 0)}>'
        f"<summary>prompt {number + 1}: {shown(ending(one.sentence, 90))}</summary>"
        f"<h4>What it reads, in tokens</h4>{_tokens(one.clean, changed)}"
        f"<h4>The same with other words, for comparison</h4>{_tokens(one.corrupt, changed)}"
        f'<p>Answer <b>{shown(one.answer.strip())}</b>, foil <b class="soft">'
        f"{shown(one.foil.strip())}</b>: logit difference "
        f"{measured(one.score, n=1, of='prompt', unit='nats')}"
        f"{', for this foil alone' if over_foils else ''}.</p>"
        "<h4>How it goes on</h4><table><thead><tr><th scope=col>word</th><th scope=col>"
        f"probability</th><th></th></tr></thead><tbody>{rows}</tbody></table></details>"
    )


def _bar(share: float) -> str:
    return (
        '<svg class="share" viewBox="0 0 120 10" width="120" aria-hidden="true">'
        f'<rect width="{120 * share:.1f}" height="10" rx="2" class="c0" fill="#0b62b0"/></svg>'
    )


def _tokens(tokens: Sequence[str], marked: Sequence[bool]) -> str:
    made = "".join(
        f'<span class="token{" changed" * there}">{shown(token)}</span>'
        for token, there in zip(tokens, marked, strict=True)
    )
    return f'<p class="tokens">{made}</p>'
