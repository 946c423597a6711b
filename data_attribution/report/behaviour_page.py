"""The page of a behaviour: what the model does, by which heads, from which documents, and is it so.

Four panels tell one story. Choosing a prompt, a head or a document in one panel changes what the
others show: a head's attention and when it formed, a document's text, the steps that read it. All
numbers are text, so the page can be read without its script; every one has its n, its interval
where there is one, and the command that gives it again.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from data_attribution.attribution import GRADES, Source
from data_attribution.counterfactuals import Forgetting
from data_attribution.report import highlighting, page, svg, text
from data_attribution.report.behaviour_results import BehaviourResults, Example
from data_attribution.report.page import Panel, command, excerpt, measured, shown, strength, table
from data_attribution.report.svg import Bar, Line, Point
from data_attribution.report.timeline import Curve, Frame, Readings, timeline
from interp.patching import Effects
from interp.training_dynamics import Trajectory, TrajectoryPoint
from train import storage
from train.progress import count
from train.statistics import Estimate, wilson


__all__ = ["behaviour_html", "panels", "write_behaviour_page"]

DETAILED = 64  # heads with details; a page of 1,024 heads would be too long
LETTERS = 4_000  # of a document's text
PASSAGE = 280  # letters of a passage on a card
STRETCH = 4_096  # tokens of a document that are compared with the prompts
MEANS = {
    "none": "it has a rank, and nothing that was asked speaks for it",
    "lexical": "it shares words with what was asked, and no more",
    "gradient": "its loss pulls the weights the way the question does",
    "replay": "the exact derivative through training, by the document's weight",
    "counterfactual": "the model was trained again without it",
}


def write_behaviour_page(found: BehaviourResults, path: str | Path) -> Path:
    """Write the page; the file is written whole or not at all.

    Examples:
        >>> results = report.gather(run, fact, limit=3)
        >>> page = report.write_behaviour_page(results, folder / "page.html")
        >>> page.stat().st_size < 2_000_000
        True
    """
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
    return [_behaviour(found), _components(found), _documents(found), _proof(found)]


def data(found: BehaviourResults) -> dict[str, object]:
    """Return what the script of the page reads: the attention of each head on each prompt."""
    if any(one.attention is None for one in found.examples):
        return {}
    heads = _detailed(found)
    return {
        "attention": [
            {
                "tokens": list(one.clean),
                "heads": {name: _rows(one, name) for name in heads},
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


def _command(
    found: BehaviourResults, verb: str, tail: str = "", *, named: bool = True, traced: bool = False
) -> str:
    name = found.traced if traced else found.named
    parts = ["openbook", verb, str(found.run.path), name if named else "", tail]
    parts.append(found.options if named else "")
    return " ".join(part for part in parts if part)


# --- behaviour -----------------------------------------------------------------------------------


def _behaviour(found: BehaviourResults) -> Panel:
    check, first = found.check, found.examples[0]
    low, high = check.interval
    right = measured(check.accuracy, low, high, n=check.n)
    numbers = table(
        ("", "measured"),
        [
            (_what_is_right(found), right),
            (
                "its answer is the first of all words",
                measured(check.top1, *wilson(check.top1, check.n), n=check.n),
            ),
            (
                "answer against foil, logit difference",
                measured(*_ends(found.score), n=check.n, unit="nats"),
            ),
        ],
    )
    body = (
        f'<blockquote class="said">{shown(first.sentence)} '
        f'<b class="answer">{shown(first.best[0][0].strip())}</b></blockquote>'
        + _picks("prompt", [(f"prompt-{k}", one.sentence) for k, one in enumerate(found.examples)])
        + '<div class="pair"><div data-group="prompt">'
        + "".join(_prompt(k, one) for k, one in enumerate(found.examples))
        + f"</div><div>{numbers}{command(_command(found, 'behaviours'))}</div></div>"
    )
    said = f"“{shown(excerpt(first.sentence, 120))}” → {shown(first.best[0][0].strip())}"
    return Panel(
        "behaviour",
        "Behaviour",
        body,
        question="What does the model do?",
        answer=f"{said}<small>right in {shown(right)}</small>",
    )


def _ends(one: Estimate) -> tuple[float, float | None, float | None]:
    return one.value, one.low, one.high


def _what_is_right(found: BehaviourResults) -> str:
    if found.behaviour.candidates is None:
        return "right: the answer has a higher logit than its foil"
    return f"right: the answer is first of {len(found.behaviour.candidates)} candidates"


def _picks(group: str, links: Sequence[tuple[str, str]]) -> str:
    """Return links that choose one part of a group."""
    if len(links) < 2:
        return ""
    made = "".join(
        f'<li><a href="#{key}" data-pick="{group}">{shown(excerpt(said, 90))}</a></li>'
        for key, said in links
    )
    return f'<ul class="picks" aria-label="Choose a {group}">{made}</ul>'


def _prompt(number: int, one: Example) -> str:
    changed = [a != b for a, b in zip(one.clean, one.corrupt, strict=True)]
    rows = "".join(
        f"<tr><th scope=row>{shown(token.strip() or repr(token))}</th><td>{share:.3f}</td>"
        f"<td>{_bar(share)}</td></tr>"
        for token, share in one.best
    )
    return (
        f'<details id="prompt-{number}"{" open" * (number == 0)}>'
        f"<summary>prompt {number + 1}: {shown(excerpt(one.sentence, 90))}</summary>"
        f"<h4>What it reads, in tokens</h4>{_tokens(one.clean, changed)}"
        f"<h4>The same with other words, for comparison</h4>{_tokens(one.corrupt, changed)}"
        f'<p>Answer <b>{shown(one.answer.strip())}</b>, foil <b class="soft">'
        f"{shown(one.foil.strip())}</b>: logit difference "
        f"{measured(one.score, n=1, of='prompt', unit='nats')}.</p>"
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


# --- components ----------------------------------------------------------------------------------


def _components(found: BehaviourResults) -> Panel:
    if found.heads is None:
        return Panel(
            "components",
            "Components",
            f"<p>Heads were not patched: {shown(found.refusal)}.</p>"
            + command(_command(found, "patch", "--over heads")),
            question="Which heads carry it?",
            answer="not measured<small>the prompts do not tell right from wrong</small>",
        )
    heads = found.heads
    name, share = _best(heads)
    body = (
        "<p>The model reads the comparison prompt, and one part of it is given the value that it "
        "had on the real prompt. A cell is the share of the difference between answer and foil "
        f"that comes back: 0 is nothing, 1 is all of it. {heads.n_prompts} prompts; 95 % intervals "
        "over prompts.</p>"
        '<div class="pair"><div>'
        + _grid(found)
        + command(_command(found, "patch", "--over heads"), _command(found, "patch", "--over mlps"))
        + f'</div><div data-group="head">{_head_parts(found)}</div></div>'
    )
    return Panel(
        "components",
        "Components",
        body,
        question="Which heads carry it?",
        answer=f"{shown(name)} alone restores {share}"
        f"<small>of the answer's lead, n = {heads.n_prompts} prompts</small>",
    )


def _best(heads: Effects) -> tuple[str, str]:
    """Return the head with the largest effect, and the effect with an interval that is valid.

    The interval of the largest of many is too narrow, so the head is chosen on one half of the
    prompts and measured on the other half, if there are enough.
    """
    if heads.part is not None and heads.whole is not None and len(heads.whole) >= 4:
        ((name, share),) = heads.held_out(1).items()
        return name, measured(share.value, share.low, share.high)
    name = heads.top(1)[0]
    return name, measured(heads[name], *(heads.interval(name) or (None, None)))


def _detailed(found: BehaviourResults) -> list[str]:
    """Return the heads that have details, in the order of layers."""
    if found.heads is None:
        return []
    chosen = {*found.heads.top(DETAILED)}
    return [name for name in found.heads.names if name in chosen]


def _grid(found: BehaviourResults) -> str:
    """Return the table of layers by heads, and the MLP of each layer."""
    heads, detailed = found.heads, {*_detailed(found)}
    assert heads is not None
    n_layers, n_heads = heads.values.shape
    top = "".join(f"<th scope=col>head {head}</th>" for head in range(n_heads))
    largest = float(heads.values.nan_to_num().abs().max())
    if found.mlps is not None:
        top += "<th scope=col>MLP</th>"
        largest = max(largest, float(found.mlps.values.nan_to_num().abs().max()))
    rows = []
    for layer in range(n_layers):
        cells = "".join(
            _cell(heads, f"L{layer}H{head}", largest, f"L{layer}H{head}" in detailed)
            for head in range(n_heads)
        )
        if found.mlps is not None:
            cells += _cell(found.mlps, f"L{layer}.mlp", largest, True)
        rows.append(f"<tr><th scope=row>layer {layer}</th>{cells}</tr>")
    return (
        '<div class="wide"><table class="grid"><caption>Share that comes back, by layer and head'
        " (arrow keys move)</caption>"
        f"<thead><tr><td></td>{top}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(effects: Effects, name: str, largest: float, detailed: bool) -> str:
    value = effects[name]
    bounds = effects.interval(name)
    level = strength(abs(value) / largest) if largest else ""
    said = f"{value:.2f}" if value == value else "–"
    small = "" if bounds is None else f"<small>{bounds[0]:.2f} to {bounds[1]:.2f}</small>"
    shade = f"cell {'minus ' * (value < 0)}{level}".strip()
    label = f"{name}: {measured(value, *(bounds or (None, None)), n=effects.n_prompts)}"
    inside = f"{said}{small}"
    if detailed:
        key = _key(name)
        inside = (
            f'<a href="#{key}" data-pick="head" title="{shown(label)}" '
            f'aria-label="{shown(label)}">{inside}</a>'
        )
    return f'<td class="{shade}">{inside}</td>'


def _key(name: str) -> str:
    return "part-" + name.replace(".", "-")


def _head_parts(found: BehaviourResults) -> str:
    assert found.heads is not None
    first = _best(found.heads)[0]
    parts = [_head(found, name, opened=name == first) for name in _detailed(found)]
    if found.mlps is not None:
        parts += [_mlp(found, name) for name in found.mlps.names]
    return "".join(parts)


def _head(found: BehaviourResults, name: str, *, opened: bool) -> str:
    heads = found.heads
    assert heads is not None
    rows = [
        (
            "share that comes back",
            measured(heads[name], *(heads.interval(name) or (None, None)), n=heads.n_prompts),
        )
    ]
    for kind, scores in found.kinds.items():
        control = scores.highest_control
        untrained = "" if control is None else f"; untrained heads reach {control:.2f}"
        bounds = scores.interval(name) or (None, None)
        rows.append(
            (
                f"{kind} score",
                measured(scores[name], *bounds, n=scores.n, of="sequences") + untrained,
            )
        )
    return (
        f'<details id="{_key(name)}"{" open" * opened}><summary>{shown(name)}: '
        f"{heads[name]:.2f}</summary><h3>{shown(name)}</h3>{table(('', 'measured'), rows)}"
        f"{_attention(found, name)}{_formation(found, name)}"
        + command(_command(found, "detect", named=False))
        + "</details>"
    )


def _mlp(found: BehaviourResults, name: str) -> str:
    mlps = found.mlps
    assert mlps is not None
    bounds = mlps.interval(name) or (None, None)
    rows = [("share that comes back", measured(mlps[name], *bounds, n=mlps.n_prompts))]
    return (
        f'<details id="{_key(name)}"><summary>{shown(name)}: {mlps[name]:.2f}</summary>'
        f"<h3>{shown(name)}</h3>{table(('', 'measured'), rows)}"
        "<p>An MLP looks at one position at a time, so it has no attention to show.</p></details>"
    )


def _rows(one: Example, name: str) -> list[list[int]]:
    """Return a head's attention in hundredths, by query; of a query only the keys up to it."""
    layer, head = (int(part) for part in name.removeprefix("L").split("H"))
    assert one.attention is not None
    weights = (100 * one.attention[layer, head]).round().int().tolist()
    last = len(one.clean)
    return [row[: last - len(weights) + k + 1] for k, row in enumerate(weights)]


def _attention(found: BehaviourResults, name: str) -> str:
    """Return the attention from the last token of the first prompt; the script shows the others."""
    one = found.examples[0]
    if one.attention is None:
        return "<p>This model keeps no attention patterns.</p>"
    weights = _rows(one, name)[-1]
    tokens = "".join(
        f'<span class="token tint {strength(weight / 100)}">{shown(token)}<small>{weight}</small>'
        "</span>"
        for token, weight in zip(one.clean, weights, strict=True)
    )
    return (
        '<h4>Where it looks</h4><p class="small" data-about="attention">Attention from the last '
        "token of prompt 1, in hundredths.</p>"
        f'<p class="tokens" data-attention="{shown(name)}">{tokens}</p>'
    )


def _formation(found: BehaviourResults, name: str) -> str:
    """Return when a head got its scores: curves over checkpoints, with a table of the numbers."""
    numbers = [
        ("share that comes back", found.curves.get("heads"), name),
        ("induction score", found.curves.get("detectors"), f"induction {name}"),
        ("previous-token score", found.curves.get("detectors"), f"previous token {name}"),
    ]
    there = [
        (said, {one.step: one for one in curves.curve(number)})
        for said, curves, number in numbers
        if curves is not None and number in curves.names
    ]
    if not there:
        return ""
    steps = sorted({step for _, points in there for step in points})
    figure = svg.lines(
        [
            Line(said, [points[step].value if step in points else None for step in steps])
            for said, points in there
        ],
        [f"{step:,}" for step in steps],
        across="checkpoint (training step), not evenly spaced",
        up="score",
    )
    rows = [(f"{step:,}", *(_point(points.get(step)) for _, points in there)) for step in steps]
    refused = found.curves["heads"].refused if "heads" in found.curves else ()
    note = (
        f'<p class="limit">No share at {count(len(refused), "checkpoint")} (steps '
        f"{shown(', '.join(f'{step:,}' for step, _ in refused[:4]))}): the model does not do it "
        "there yet, or the prompts are too few to tell.</p>"
        if refused
        else ""
    )
    return (
        f'<h4>When it formed</h4><div class="wide">{figure}</div>{note}<details><summary>the '
        "numbers</summary>"
        + table(("step", *(said for said, _ in there)), rows)
        + "</details>"
        + command(
            _command(
                found, "emergence", f"'heads:{_bare(found)}' {found.options}".strip(), named=False
            )
        )
    )


def _bare(found: BehaviourResults) -> str:
    return found.named.strip("'")


def _point(one: TrajectoryPoint | None) -> str:
    return "" if one is None else measured(one.value, one.low, one.high)


# --- documents -----------------------------------------------------------------------------------


def _documents(found: BehaviourResults) -> Panel:
    sources = found.sources
    if not len(sources):
        return Panel(
            "documents",
            "Documents",
            "<p>No document that the run read speaks for it.</p>",
            question="Which documents, read when?",
            answer="none found",
        )
    first = sources.items[0]
    grades = [one for one in reversed(GRADES) if any(item.grade == one for item in sources)]
    meaning = "; ".join(f"{_badge(one)} {shown(MEANS[one])}" for one in grades)
    folded = sum(len(one.group) - 1 for one in sources)
    body = (
        f"<p>{count(len(sources), 'document')} of {found.run.store.n_documents:,}, ranked for "
        f"<b>{shown(excerpt(sources.query, 120))}</b> by "
        f"{shown(sources.method)} evidence; {count(folded, 'copy', 'copies')} folded into them. "
        f"Grade of the evidence: {meaning}. A score is on the scale of its method "
        f"({shown(excerpt(str(sources.provenance.get('formula', '')), 120))}).</p>"
        f"<h3>When they were read</h3>{_timeline(found)}"
        '<div class="pair"><ol class="cards">'
        + "".join(_card(k, one, found) for k, one in enumerate(sources, start=1))
        + '</ol><div data-group="document" class="sticky">'
        + "".join(_document(k, one, found) for k, one in enumerate(sources, start=1))
        + "</div></div>"
        + command(
            _command(
                found,
                "trace documents",
                f"--method {sources.method} --out sources.json",
                traced=True,
            )
        )
    )
    read = text.steps_line(first.steps[:3])
    if len(first.steps) > 3:
        read += f" … {first.steps[-1]:,}"
    return Panel(
        "documents",
        "Documents",
        body,
        question="Which documents, read when?",
        answer=f"“{shown(excerpt(first.span.strip(), 90))}” and {len(sources) - 1} more"
        f"<small>the first was {read}; {shown(first.grade)} evidence</small>",
    )


def _badge(grade: str) -> str:
    return f'<span class="grade {shown(grade)}">{shown(grade)}</span>'


def _scored(one: Source) -> str:
    return measured(one.score, one.low, one.high, form=".3g")


def _card(rank: int, one: Source, found: BehaviourResults) -> str:
    copies = len(one.group) - 1
    also = f" + {count(copies, 'copy', 'copies')}" if copies else ""
    exposure = found.exposures[rank - 1]
    text_shown = highlighting.within(excerpt(one.text, PASSAGE, around=one.span), one.span)
    read = f"{exposure.readings:.3g} readings" if len(exposure.steps) else "never read"
    return (
        f'<li><a class="card {shown(one.grade)}" href="#document-{one.document}" '
        f'data-pick="document"><span class="passage">{text_shown}</span>'
        f"<small>{_badge(one.grade)} score {_scored(one)}{also} · {read}</small></a></li>"
    )


def _document(rank: int, one: Source, found: BehaviourResults) -> str:
    exposure = found.exposures[rank - 1]
    whole = excerpt(found.run.store.text(one.document), LETTERS, around=one.span.strip())
    curve = svg.spark(
        exposure.curve(101)[1].tolist(), said=f"readings until step {exposure.before:,}"
    )
    kinds = (("exact", one.duplicates), ("near", one.near))
    copies = "".join(
        f"<li>{len(rows)} {kind}: {shown(', '.join(map(str, rows[:12])))}"
        f"{' …' if len(rows) > 12 else ''}</li>"
        for kind, rows in kinds
        if rows
    )
    methods = [
        (name, part.rank, measured(part.score, part.low, part.high, form=".3g"))
        for name, part in one.evidence.items()
    ]
    return (
        f'<details id="document-{one.document}"{" open" * (rank == 1)}><summary>{rank}. document '
        f"{one.document}</summary><h3>{rank}. document {one.document} {_badge(one.grade)}</h3>"
        f'<div class="text">{highlighting.within(whole, one.span)}</div>'
        f'<p class="small">id <code>{shown(excerpt(one.id, 200))}</code></p>'
        f"{_shared(one, found)}"
        f"<h4>When it was read</h4><p>{exposure.readings:.3g} readings with its copies{curve}"
        f"<br>{shown(text.steps_line(one.steps))}</p>"
        + (f"<h4>Copies folded into it</h4><ul>{copies}</ul>" if copies else "")
        + (f"<h4>Evidence</h4>{table(('method', 'rank', 'score'), methods)}" if methods else "")
        + _effect(one)
        + command(_command(found, "run steps", str(one.document), named=False))
        + "</details>"
    )


def _effect(one: Source) -> str:
    if one.effect is None:
        return ""
    effect = one.effect
    low_high = (effect.low, effect.high)
    return (
        f"<h4>Without it</h4><p>Trained again without {count(effect.together, 'document')}: "
        f"{shown(effect.question)} changes by "
        f"{measured(effect.mean, *low_high, unit=effect.unit, form='+.3g')}, beyond "
        f"{count(effect.controls, 'random removal')}.</p>"
    )


def _shared(one: Source, found: BehaviourResults) -> str:
    """Return the prompt that the document has most in common with, its common tokens marked."""
    store, behaviour = found.run.store, found.behaviour
    begin = int(store.starts[one.document])
    length = int(store.lengths[one.document])
    first = max(min(one.start - STRETCH // 2, length - STRETCH), 0)
    held = store.tokens[begin + first : begin + min(first + STRETCH, length)]
    rows = np.concatenate([behaviour.clean.numpy(), behaviour.answer[:, None].numpy()], axis=1)
    stretches = [_common(row, held) for row in rows[:256]]
    best = max(range(len(stretches)), key=lambda k: (max(stretches[k]), sum(stretches[k])))
    lengths = stretches[best]
    words = store.tokenizer.tokens(rows[best].tolist())
    made = "".join(
        f'<span class="token heat {strength(size / max(lengths)) if size else ""}">'
        f"{shown(word)}</span>"
        for word, size in zip(words, lengths, strict=True)
    )
    answer = "holds" if lengths[-1] else "does not hold"
    return (
        "<h4>What it shares with a prompt and its answer</h4>"
        f'<p class="tokens">{made}</p><p class="small">{sum(map(bool, lengths))} of '
        f"{len(lengths)} tokens, at most {max(lengths)} in a row; it {answer} the answer.</p>"
    )


def _common(
    prompt: Integer[np.ndarray, " pos"], document: Integer[np.ndarray, " token"]
) -> list[int]:
    """Return for each token of a prompt the longest stretch around it that a document holds."""
    held, sizes = document.astype(np.uint32).tobytes(), [0] * len(prompt)
    for start in range(len(prompt)):
        for stop in range(start + 1, len(prompt) + 1):
            if not _holds(held, prompt[start:stop].astype(np.uint32).tobytes()):
                break
            for place in range(start, stop):
                sizes[place] = max(sizes[place], stop - start)
    return sizes


def _holds(tokens: bytes, some: bytes) -> bool:
    """Return whether tokens of four bytes hold a stretch, at the bounds of tokens."""
    at = tokens.find(some)
    while at >= 0 and at % 4:
        at = tokens.find(some, at + 1)
    return at >= 0


def _timeline(found: BehaviourResults) -> str:
    """Return loss, behaviour and head over training, and when the documents were read."""
    ledger = found.ledger
    last = len(ledger)
    frames = [
        Frame(
            "training loss",
            "nats a token",
            [Curve([(row.step, row.loss, None, None) for row in ledger], name="training loss")],
        )
    ]
    scores = found.curves.get("score")
    if scores is not None:
        name = f"{found.behaviour.name} logit difference"
        frames.append(
            Frame(
                "answer over foil",
                "nats",
                [Curve(_points(scores, name), colour="c1", name="logit difference")],
            )
        )
    chosen, curves = _head_curves(found)
    if curves:
        frames.append(Frame("chosen head", "share", curves))
    first = found.sources.items[0]
    readings = [
        Readings(
            "all of these",
            [step for one in found.exposures for step in one.steps.tolist()],
            colour="faded",
        ),
        *(
            Readings(
                f"document {one.document}", exposure.steps.tolist(), f"document-{one.document}"
            )
            for one, exposure in zip(found.sources, found.exposures, strict=True)
        ),
    ]
    said = (
        f"Training loss and the behaviour over {last:,} steps, and the steps at which the listed "
        "documents were read"
    )
    keys = [*chosen, f"document-{first.document}"]
    return timeline(frames, readings, last, chosen=keys, said=said) + _emergence(found)


def _points(curves: Trajectory, name: str) -> list[tuple[int, float, float | None, float | None]]:
    if name not in curves.names:
        return []
    return [(one.step, one.value, one.low, one.high) for one in curves.curve(name)]


def _head_curves(found: BehaviourResults) -> tuple[list[str], list[Curve]]:
    """Return the key of the head that is chosen at first, and the curves of all heads."""
    curves = found.curves.get("heads")
    if curves is None or not curves.points or found.heads is None:
        return [], []
    first = _best(found.heads)[0]
    made = [
        Curve(_points(curves, name), _key(name), "c3", f"share of {name}")
        for name in _detailed(found)
        if name in curves.names
    ]
    return [_key(first)], made


def _emergence(found: BehaviourResults) -> str:
    """Return the numbers of the figure, and between which checkpoints the behaviour came."""
    scores = found.curves.get("score")
    if scores is None or not scores.points:
        return ""
    names = scores.names
    by_step = {
        step: {one.name: one for one in scores.points if one.step == step} for step in scores.steps
    }
    rows = [
        (f"{step:,}", *(_point(by_step[step].get(name)) for name in names)) for step in scores.steps
    ]
    n = max((one.n or 0 for one in scores.points), default=0)
    said = ""
    name = f"{found.behaviour.name} logit difference"
    if name in names and len(scores.curve(name)) > 1:
        curve = scores.curve(name)
        if curve[0].value != curve[-1].value:
            onset = scores.onset(name)
            read = sum(step < onset.step for one in found.exposures for step in one.steps.tolist())
            total = sum(len(one.steps) for one in found.exposures)
            said = (
                f"<p>The behaviour went through half of its rise between steps {onset.before:,} "
                f"and {onset.step:,} (n = {n} prompts). By then {read:,} of {total:,} readings of "
                "these documents had happened.</p>"
            )
    tail = f"'score:{_bare(found)}' {found.options}".strip()
    return (
        f"{said}<details><summary>the numbers of the figure</summary>"
        + table(("step", *names), rows, caption=f"n = {n} prompts; 95 % intervals over prompts")
        + command(_command(found, "emergence", tail, named=False))
        + "</details>"
    )


# --- proof ---------------------------------------------------------------------------------------


def _proof(found: BehaviourResults) -> Panel:
    question = "Is it proved?"
    if found.proof is None:
        return Panel(
            "proof",
            "Proof",
            _unproved(found),
            question=question,
            answer="not yet<small>evidence is no cause: nothing was trained again without "
            "them</small>",
        )
    if isinstance(found.proof, Forgetting):
        body, answer = _forgetting(found, found.proof)
    else:
        body, answer = _counterfactual(found, found.proof)
    return Panel("proof", "Proof", body + _limits(found), question=question, answer=answer)


def _unproved(found: BehaviourResults) -> str:
    top = min(5, len(found.sources))
    return (
        "<p>Nothing was trained again without these documents, or not in the folder of this run. "
        "Words in common, and gradients too, do not show that a document taught anything. These "
        "commands do: they train the model again without the first documents and, as a control, "
        "without as many random ones, and write this page again.</p>"
        + command(
            _command(
                found,
                "trace documents",
                f"--method {found.sources.method} --out sources.json",
                traced=True,
            ),
            _command(found, "counterfactual", f"--without sources.json --top {top}"),
            _command(found, "report", "--out page.html"),
        )
        + _limits(found)
    )


def _limits(found: BehaviourResults) -> str:
    cases = [
        "If the model still answered right without the documents, they would not be what taught "
        "it.",
        "If random documents had the same effect, it would be that of any removal.",
        "Another seed can put the same work into other heads: a head is found by its effect, not "
        "by its number.",
        "Other prompts move every number within its interval (here "
        f"{count(found.check.n, 'prompt')}).",
    ]
    items = "".join(f"<li>{shown(one)}</li>" for one in cases)
    return f"<h3>What would change this answer</h3><ul>{items}</ul>"


def _counterfactual(found: BehaviourResults, proof: storage.JsonObject) -> tuple[str, str]:
    """Return the body of a `Counterfactual` as plain values, and its answer."""
    rows = proof["rows"]
    effects = sorted(proof["effects"], key=lambda one: one["question"] != found.question)
    first, n, controls = effects[0], len(proof["removed"]), len(proof["control"])
    verdict, mark = _verdict(first)
    change = measured(
        first["effect"],
        first["low"],
        first["high"],
        n=first["n"],
        unit=first["unit"],
        form="+.2f",
    )
    asked = [row for row in rows if row["behaviour"] == first["question"]]
    body = (
        f'<p class="claim"><b class="{mark}">{verdict}.</b> Trained again without '
        f"{count(n, 'document')}, everything else the same to the bit: the answer's "
        f"log-probability changes by {shown(change)}, beyond "
        f"{count(controls, 'removal')} of as many random documents.</p>"
        '<div class="pair"><div>'
        + (f"<h3>Before and after</h3>{_recalls(asked)}" if asked else "")
        + "</div><div><h3>What changed, and what stayed</h3>"
        + _changes(effects)
        + "</div></div>"
        + table(
            ("question", "full run", "without them", "without random ones", "effect", "verdict"),
            [
                (
                    f"{one['question']}{'' if one['related'] else ' (should stay)'}",
                    f"{one['before']:.2f}",
                    f"{one['after']:.2f}",
                    ", ".join(f"{one['before'] + moved:.2f}" for moved in one["controls"]) or "–",
                    measured(
                        one["effect"], one["low"], one["high"], n=one["n"], unit=one["unit"],
                        form="+.2f",
                    ),
                    _verdict(one)[0].lower(),
                )
                for one in effects
            ],
            caption="95 % intervals over prompts and controls; one initial seed",
        )
        + command(
            _command(
                found,
                "counterfactual",
                " ".join(f"--without {one}" for one in proof["named"][:6])
                + (" ..." if len(proof["named"]) > 6 else ""),
            )
        )
    )  # fmt: skip
    full = next((row["recall"] for row in asked if row["setting"] == "full run"), None)
    gone = next((row["recall"] for row in asked if row["setting"].startswith("without the")), None)
    said = (
        f"recall {full:.2f} → {gone:.2f} without {count(n, 'document')}"
        if full is not None and gone is not None
        else f"{first['effect']:+.2f} {shown(first['unit'])} without {count(n, 'document')}"
    )
    return body, f"{verdict}: {said}<small>beyond {count(controls, 'random removal')}</small>"


def _verdict(effect: storage.JsonObject) -> tuple[str, str]:
    """Return in a word what an effect shows, and the class of that word."""
    if effect["within noise"] is None:
        return "Chance unknown", "soft"
    if not effect["related"]:
        return ("Stayed", "good") if effect["within noise"] else ("Moved too", "bad")
    if effect["within noise"]:
        return "Not shown", "bad"
    return ("Proved for this run", "good") if effect["effect"] < 0 else ("The other way", "bad")


def _recalls(rows: Sequence[storage.JsonObject]) -> str:
    names = {"full run": "before", "without the documents": "without them"}
    made = [
        Bar(
            names.get(row["setting"], "without random ones"),
            "recall",
            row["recall"],
            row["recall low"],
            row["recall high"],
        )
        for row in rows[:4]
    ]
    return svg.bars(_numbered(made), up="recall") + table(
        ("training", "recall", "log-probability of the answer"),
        [
            (
                row["setting"],
                measured(row["recall"], row["recall low"], row["recall high"], n=row["n"]),
                f"{row['log-prob']:.2f} nats",
            )
            for row in rows
        ],
    )


def _numbered(rows: Sequence[Bar]) -> list[Bar]:
    """Return bars whose groups have different names."""
    found: list[Bar] = []
    for one in rows:
        again = sum(other.group.startswith(one.group) for other in found)
        group = f"{one.group} {again + 1}" if again else one.group
        found.append(Bar(group, one.name, one.value, one.low, one.high))
    return found


def _changes(effects: Sequence[storage.JsonObject]) -> str:
    return "".join(
        svg.points(
            [
                Point(
                    one["question"],
                    one["effect"],
                    one["low"],
                    one["high"],
                    faded=not one["related"],
                )
                for one in effects
                if one["unit"] == unit
            ],
            across=f"change beyond random removals, {unit}",
        )
        for unit in dict.fromkeys(one["unit"] for one in effects)
    )


def _forgetting(found: BehaviourResults, proof: Forgetting) -> tuple[str, str]:
    """Return the body of a removal of planted facts, and its answer."""
    before = proof.of("full run", "removed").share
    gone = proof.of("documents removed", "removed").share
    control = proof.of("control removed", "removed").share
    never = proof.of("documents removed", "never stated").share
    verdict, mark = ("Proved for this run", "good") if proof.holds else ("Not shown", "bad")
    settings = {
        "full run": "before",
        "documents removed": "without them",
        "control removed": "without others",
    }
    bars = [
        Bar(
            settings[one.setting],
            _group(one.group),
            one.share.recall or 0.0,
            one.share.low,
            one.share.high,
        )
        for one in proof.groups
        if one.setting in settings
    ]
    body = (
        f'<p class="claim"><b class="{mark}">{verdict}.</b> Trained again without the '
        f"{len(proof.removed)} documents that state {len(proof.facts)} facts, everything else the "
        f"same to the bit: recall of those facts goes from {shown(_recall(before))} to "
        f"{shown(_recall(gone))}. Facts that were never stated stand at {shown(_recall(never))}. "
        f"Without the {len(proof.control)} documents of as many other facts, stated equally often, "
        f"it is {shown(_recall(control))}.</p>"
        f'<div class="pair"><div class="wide">{svg.bars(bars, up="recall")}</div><div>'
        + table(
            ("training", "facts", "recall", "change in log-probability"),
            [
                (
                    settings.get(one.setting, one.setting),
                    _group(one.group),
                    _recall(one.share),
                    "–"
                    if one.setting == "full run"
                    else measured(
                        one.change, one.change_low, one.change_high, n=one.share.n, of="facts",
                        unit="nats", form="+.2f",
                    ),
                )
                for one in proof.groups
            ],
            caption=f"The facts: {', '.join(proof.facts)}. 95 % intervals over facts; one initial "
            "seed.",
        )
        + "</div></div>"
        + command(
            _command(found, "forget", " ".join(f"'{name}'" for name in proof.facts), named=False)
        )
    )  # fmt: skip
    answer = (
        f"{verdict}: recall {before.recall or 0:.2f} → {gone.recall or 0:.2f}"
        f"<small>without {len(proof.removed)} documents; {control.recall or 0:.2f} without as many "
        "others</small>"
    )
    return body, answer


def _group(group: str) -> str:
    return {"removed": "these facts", "control": "the others", "kept": "kept facts"}.get(
        group, group
    )


def _recall(share) -> str:
    return measured(share.recall, share.low, share.high, n=share.n, of="facts")
