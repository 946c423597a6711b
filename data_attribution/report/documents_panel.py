"""The panel of documents: when they were read, and the text of each with what it shares.

The steps that read them stand under the loss, the behaviour and the chosen head, on one axis.
"""

from shlex import quote

import numpy as np
from jaxtyping import Integer

from data_attribution.attribution import GRADES, Source
from data_attribution.report import highlighting, svg, text
from data_attribution.report.behaviour_results import BehaviourResults
from data_attribution.report.components_panel import (
    best_head,
    detailed_heads,
    part_key,
    point_text,
)
from data_attribution.report.page import Panel, command, excerpt, measured, shown, strength, table
from data_attribution.report.ranking_command import command_of_ranking
from data_attribution.report.timeline import Curve, Frame, Readings, timeline
from interp.training_dynamics import Trajectory
from train.progress import count


__all__ = ["documents_panel"]

CARDS = 60  # documents that are shown; longer lists are for programs to read
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


def documents_panel(found: BehaviourResults) -> Panel:
    """Return the panel of ranked documents and of what was read when."""
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
    files = _files(found)
    body = (
        f"<p>{count(len(sources), 'document')} of {found.run.store.n_documents:,}, ranked for "
        f"<b>{shown(excerpt(sources.query, 120))}</b> by "
        f"{shown(sources.method)} evidence; {count(folded, 'copy', 'copies')} folded into them. "
        f"Grade of the evidence: {meaning}. {_scale(found)}</p>{_truth(found)}"
        f"<h3>When they were read</h3>{_timeline(found)}"
        '<div class="pair"><ol class="cards">'
        + "".join(_card(k, one, found) for k, one in enumerate(sources.top(CARDS), start=1))
        + '</ol><div data-group="document" class="sticky">'
        + "".join(
            _document(k, one, found, files.get(one.document, ""))
            for k, one in enumerate(sources.top(CARDS), start=1)
        )
        + "</div></div>"
        + (f"<p>{len(sources) - CARDS} more are not shown.</p>" if len(sources) > CARDS else "")
        + _command(command_of_ranking(found))
        + _with_gradients(found)
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
        f"<small>{_asked(found)}the first was {read}. Evidence: {shown(first.grade)}</small>",
    )


def _scale(found: BehaviourResults) -> str:
    """Return what a score is, and how many documents each method looked at."""
    about = found.sources.provenance
    formula = shown(excerpt(str(about.get("formula", "")), 120))
    if len(found.sources.items[0].evidence) < 2:
        return f"A score is on the scale of its method ({formula})."
    scored = about.get("gradient", {}).get("scored")
    looked = f" Gradients of {scored:,} documents were computed." if scored else ""
    return (
        f"A score is a sum ({formula}): words count from 0 to 1, gradients from -1/2 to 1/2. The "
        "grade is the strongest kind of evidence that speaks for a document, which need not be "
        f"what its place is owed to: each card has its rank by each method.{looked}"
    )


def _ranks(one: Source) -> str:
    """Return the rank of a document by each of several methods."""
    if len(one.evidence) < 2:
        return ""
    return "".join(f" · {shown(name)} rank {part.rank:,}" for name, part in one.evidence.items())


def _asked(found: BehaviourResults) -> str:
    """Return what documents were ranked for, if it is not the behaviour of the other panels."""
    if found.ranked_for is found.behaviour:
        return ""
    return f"ranked for {shown(found.ranked_for.name)} alone; "


def _truth(found: BehaviourResults) -> str:
    """Return how many of the listed documents state the fact, if the corpus is planted."""
    if not found.labels:
        return ""
    said = [_label(one, found) for one in found.sources]
    others = said.count("distractor"), said.count("neither")
    stating = sum(label == "states it" for label in found.labels.values())
    listed = sum(
        found.labels.get(one) == "states it" for item in found.sources for one in item.group
    )
    return (
        "<p>This corpus is planted, so what each document says is known: "
        f"{said.count('states it')} of these {len(said)} state what was asked (with their copies "
        f"{listed:,} of the {stating:,} that do), {others[0]} are distractors, which hold the same "
        f"words and do not state it, and {others[1]} are neither. No method of ranking reads these "
        "labels.</p>"
    )


def _label(one: Source, found: BehaviourResults) -> str:
    return found.labels.get(one.document, "neither")


def _with_gradients(found: BehaviourResults) -> str:
    """Return the commands that also ask the gradients, for a page that asked words only."""
    if found.traced or found.sources.method != "lexical":
        return ""
    return (
        "<p>Words in common are the quickest evidence and the weakest. These commands also ask how "
        "each document's loss pulls the weights, which takes longer, and write this page again.</p>"
        + command(
            found.command("trace documents", "--out sources.json"),
            found.command("report", "--sources sources.json --out page.html"),
        )
    )


def _command(ranking: str) -> str:
    if ranking:
        return command(ranking)
    return '<p class="small">The ranking does not say with which command it was made.</p>'


def _badge(grade: str) -> str:
    return f'<span class="grade {shown(grade)}">{shown(grade)}</span>'


def _card(rank: int, one: Source, found: BehaviourResults) -> str:
    copies = len(one.group) - 1
    also = f" + {count(copies, 'copy', 'copies')}" if copies else ""
    exposure = found.exposures[rank - 1]
    text_shown = highlighting.within(excerpt(one.text, PASSAGE, around=one.span), one.span)
    scored = measured(one.score, one.low, one.high, form=".3g")
    read = count(exposure.readings, "reading") if len(exposure.steps) else "never read"
    label = f" · {_label(one, found)}" if found.labels else ""
    said = f"score {scored}{_ranks(one)}{also} · {read}{label}"
    return (
        f'<li><a class="card {shown(one.grade)}" href="#document-{one.document}" '
        f'data-pick="document"><span class="passage">{text_shown}</span>'
        f"<small>{_badge(one.grade)} {said}</small></a></li>"
    )


def _document(rank: int, one: Source, found: BehaviourResults, from_file: str) -> str:
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
    file = f"<code>{shown(excerpt(from_file, 100))}</code> " if from_file else ""
    return (
        f'<details id="document-{one.document}"{" open" * (rank == 1)}><summary>{rank}. document '
        f"{one.document}</summary><h3>{rank}. document {one.document} {file}"
        f"{_badge(one.grade)}</h3>"
        f'<div class="text">{highlighting.within(whole, one.span)}</div>'
        f'<p class="small">id <code>{shown(excerpt(one.id, 200))}</code></p>'
        f"{_shared(one, found)}"
        f"<h4>When it was read</h4><p>{count(exposure.readings, 'reading')}"
        f"{' with its copies' * (len(one.group) > 1)}{_partly(exposure.readings)}{curve}"
        f"<br>{'This one was ' * (len(one.group) > 1)}{shown(text.steps_line(one.steps))}</p>"
        + (f"<h4>Copies folded into it</h4><ul>{copies}</ul>" if copies else "")
        + (f"<h4>Evidence</h4>{table(('method', 'rank', 'score'), methods)}" if methods else "")
        + _effect(one)
        + command(found.command("run steps", str(one.document), named=False))
        + "</details>"
    )


def _files(found: BehaviourResults) -> dict[int, str]:
    """Return the file of the corpus that each listed document is from; empty if it is one file."""
    listed = found.sources.top(CARDS)
    files = {one.document: found.run.store.document(one.document).shard for one in listed}
    return files if len({*files.values()}) > 1 else {}


def _partly(readings: float) -> str:
    """Return why a number of readings is no whole number."""
    if readings == int(readings):
        return ""
    return ", where a step that reads a part of a document counts as that part"


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
    store, behaviour = found.run.store, found.ranked_for
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
        name = f"{found.ranked_for.name} logit difference"
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
            for one, exposure in zip(found.sources.top(CARDS), found.exposures, strict=False)
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
    first = best_head(found.heads)[0]
    made = [
        Curve(_points(curves, name), part_key(name), "c3", f"share of {name}")
        for name in detailed_heads(found)
        if name in curves.names
    ]
    return [part_key(first)], made


def _read_until(found: BehaviourResults, before: int, step: int) -> str:
    """Return how often documents were read before, and while, the behaviour came."""
    kinds = {"these documents": [*range(len(found.sources))]}
    if found.labels:
        kinds["those that state it"] = [
            k for k, one in enumerate(found.sources) if _label(one, found) == "states it"
        ]
    said = []
    for kind, chosen in kinds.items():
        steps = np.concatenate([np.zeros(0, int), *(found.exposures[k].steps for k in chosen)])
        early, late = int((steps < before).sum()), int((steps < step).sum())
        said.append(
            f"of the {count(len(steps), 'reading')} of {kind} {early:,} happened before and "
            f"{late - early:,} between these checkpoints"
            + (f", {len(steps) - late:,} after" if late < len(steps) else "")
        )
    return f"{'; '.join(said)}.".replace("of", "Of", 1)


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
        (f"{step:,}", *(point_text(by_step[step].get(name)) for name in names))
        for step in scores.steps
    ]
    n, case = max((one.n or 0 for one in scores.points), default=0), found.ranked_for.case_name
    said = ""
    name = f"{found.ranked_for.name} logit difference"
    if name in names and len(scores.curve(name)) > 1:
        curve = scores.curve(name)
        if curve[0].value != curve[-1].value:
            onset = scores.onset(name)
            said = (
                f"<p>{shown(found.ranked_for.name)} went through half of its rise between steps "
                f"{onset.before:,} and {onset.step:,} (n = {count(n, case)}). "
                f"{_read_until(found, onset.before, onset.step)}</p>"
            )
    name = found.bare_name if found.ranked_for is found.behaviour else found.ranked_for.name
    tail = f"{quote(f'score:{name}')} {found.options}".strip()
    caption = f"n = {count(n, case)}; 95 % intervals over {case}s"
    return (
        f"{said}<details><summary>the numbers of the figure</summary>"
        + table(("step", *names), rows, caption=caption)
        + command(found.command("emergence", tail, named=False))
        + "</details>"
    )
