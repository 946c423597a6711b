"""Text output of the commands: lines for hits, sources, spans and retrained runs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NotRequired, TypedDict

import typer

from data_attribution import report
from train.progress import count, duration


if TYPE_CHECKING:
    from data_attribution.attribution import LineageSources, Method, Source, Sources
    from data_attribution.counterfactuals import EffectSize
    from data_attribution.gradients import StoreSize
    from data_attribution.token_index import Hit, Span, TokenIndex
    from data_attribution.tracing import Exposure, Generation, TracedSpan
    from train import storage
    from train.runs import Run

__all__ = [
    "announce_cost",
    "announce_default",
    "counterfactual_lines",
    "effect_text",
    "exposure_lines",
    "exposure_row",
    "generation_lines",
    "hit_line",
    "hit_row",
    "sources_lines",
    "span_row",
    "stages_lines",
]


class HitRow(TypedDict):
    """A hit as plain values; `steps` read it, if a run is given."""

    document: int
    id: str
    offset: int
    held_out: bool
    text: str
    steps: NotRequired[list[int]]


class ExposureRow(TypedDict):
    """The readings of a target; `curve` has an entry per checkpoint."""

    target: str
    places: int
    documents: int
    held_out: int
    before: int
    readings: float
    sampled: bool
    curve: list[dict[str, float]]


LONG = 5.0  # seconds from which on the time that gradients take is announced


def announce_default(methods: "Sequence[Method]", reason: str) -> None:
    """Say on stderr which methods are used by default if they are not those of `fused`, and why."""
    if reason:
        from data_attribution import attribution

        used = attribution.spelled(methods)
        typer.echo(f"no method was named, so {used} is used: {reason}", err=True)


def announce_cost(cost: "StoreSize | None") -> None:
    """Say on stderr how long gradients will take if that is more than some seconds."""
    if cost is not None and cost.seconds > LONG:
        typer.echo(
            f"gradients of at most {count(cost.documents, 'document')}: about "
            f"{duration(cost.seconds)} ({count(cost.sampled, 'document')} timed)",
            err=True,
        )


def hit_row(opened: "TokenIndex", hit: "Hit", read_by: "Run | None") -> "HitRow":
    """Return a hit as plain values, with the steps that read it if a run is given."""
    row: HitRow = {
        "document": hit.document,
        "id": opened.store.document(hit.document).id,
        "offset": hit.offset,
        "held_out": hit.held_out,
        "text": opened.around(hit),
    }
    if read_by:
        row["steps"] = hit.steps(read_by).tolist()
    return row


def hit_line(row: "HitRow") -> str:
    """Return the line of a hit: its document and offset, when it was read, the text around it."""
    read = "held out" if row["held_out"] else None
    if "steps" in row and not read:
        read = report.steps_line(row["steps"])
    where = f"document {row['document']} offset {row['offset']}"
    return "\t".join([where, *([read] if read else []), " ".join(row["text"].split())])


def span_row(span: "Span") -> dict[str, object]:
    """Return a span as plain values."""
    return {
        "text": span.text,
        "start": span.start,
        "stop": span.stop,
        "count": span.count,
        "held_out": span.held_out,
        "surprise": -span.log_probability,
    }


def exposure_row(found: "Exposure", checkpoints: list[int]) -> "ExposureRow":
    """Return the readings before each checkpoint, as plain values."""
    shown = sorted({0, *(one for one in checkpoints if one <= found.before), found.before})
    return {
        "target": found.target,
        "places": found.places,
        "documents": len(set(found.documents.tolist())),
        "held_out": found.held_out,
        "before": found.before,
        "readings": found.readings,
        "sampled": found.sampled,
        "curve": [
            {"checkpoint": one, "readings": found.at(one), "spread evenly": found.even(one)}
            for one in shown
        ],
    }


def exposure_lines(row: "ExposureRow") -> str:
    """Return a summary of where a text occurs, and one line per checkpoint."""
    head = (
        f"{count(row['places'], 'place')} in {count(row['documents'], 'document')}, "
        f"{count(row['readings'], 'reading')} before checkpoint {row['before']:,}"
        + (f"; {count(row['held_out'], 'more place')} held out" if row["held_out"] else "")
        + ("; estimated from a sample of the places" if row["sampled"] else "")
    )
    table = [
        f"{one['checkpoint']:>10,}  {one['readings']:>8,.1f}  {one['spread evenly']:>13,.1f}"
        for one in row["curve"]
    ]
    return "\n".join([head, "checkpoint  readings  spread evenly", *table])


def sources_lines(sources: "Sources") -> str:
    """Return one line per ranked document, the evidence, and its limits."""
    from interp.metrics import LOGIT_DIFFERENCE

    about = sources.provenance
    lines = [
        f"{_scored(one):24}  {one.grade:14}  document {one.document}\t"
        f"{report.steps_line(one.steps)}\t"
        f"{' '.join(one.text.split())}" + _others(one) + _effect(one)
        for one in sources
    ]
    within = f" within {', '.join(about['within'])}" if about.get("within") else ""
    metric = about.get("metric") or LOGIT_DIFFERENCE
    by = "" if metric == LOGIT_DIFFERENCE else f", by its {metric}"
    head = f"{sources.method} evidence ({about['formula']}) for {sources.query!r}{by}{within}"
    end = (
        f"{len(lines)} of {count(about['candidates'], 'document')} with any evidence; "
        f"run {about['run']}, knowledge {about['knowledge']}"
    )
    effect = next((one.effect for one in sources if one.effect), None)
    if effect is not None:
        end += (
            "; effects are those of all documents removed together, on the prompts that ranked "
            f"them, {_beside(effect.controls)}"
        )
    scale = [f"scores: {sources.unit}"] if lines and sources.unit else []
    return "\n".join([head, *scale, *lines, *_notes(about), end])


def _notes(about: "storage.JsonObject") -> list[str]:
    """Return notes on what was left out or done otherwise than asked, and on the replayed steps."""
    gradient, replay = about.get("gradient") or {}, about.get("replay") or {}
    notes = []
    if about.get("left out"):
        notes.append(f"left out: {', '.join(about['left out'])} (the question has no words)")
    if "drawn of" in gradient:
        notes.append(
            f"gradients of {count(gradient['scored'], 'document')} of {gradient['drawn of']:,}, "
            "drawn at random (the question has no words); `openbook gradients build` collects all"
        )
    if "from checkpoint" in replay:
        first, last = replay["steps"]
        asked = f", {replay['asked for']:,} were asked for" if "asked for" in replay else ""
        notes.append(
            f"replay of steps {first:,} to {last:,}, from the checkpoint at "
            f"{replay['from checkpoint']:,}" + asked
        )
    return notes


def _scored(one: "Source") -> str:
    if one.low is None or one.high is None:
        return f"{one.score:8.3f}"
    return f"{one.score:8.3f} [{one.low:.3f}, {one.high:.3f}]"


def _others(one: "Source") -> str:
    copies = f"\tduplicates: {len(one.duplicates):,}" if one.duplicates else ""
    return copies + (f"\tnear duplicates: {len(one.near):,}" if one.near else "")


def effect_text(found: "EffectSize") -> str:
    """Return an effect in nats with its interval and the number of its controls."""
    bounds = "" if found.low is None else f" {report.interval(found.low, found.high)}"
    return f"{found.mean:+.3f}{bounds} nats beyond {count(found.seeds, 'control')}, n={found.n}"


def _effect(one: "Source") -> str:
    if one.effect is None:
        return ""
    found = one.effect
    bounds = "" if found.low is None else f" {report.interval(found.low, found.high)}"
    noise = "" if found.controls > 1 else f", {_noise(None, found.controls)}"
    alone = "it" if found.together == 1 else f"it and {count(found.together - 1, 'other')}"
    return f"\twithout {alone} {found.mean:+.3f}{bounds} {found.unit}{noise}"


def generation_lines(found: "Generation", minimum: int) -> str:
    """Return the lines of a text's spans, each with its documents and the steps that read them.

    Args:
        minimum: Length of the shortest span that was looked for, in tokens.
    """
    head = (
        f"{len(found.spans)} of {count(found.found, 'span')} of at least {count(minimum, 'token')} "
        f"kept, which hold {found.covered:.0%} of {count(found.n_tokens, 'token')}; "
        f"run {found.provenance['run']}"
    )
    lines = [head]
    for one in found.spans:
        span = one.span
        lines.append(
            f"{-span.log_probability:8.1f} nats  stands {_places(one)}, was "
            f"{report.read_line(one.readings, sampled=one.sampled)}\t{span.text!r}"
        )
        lines += [
            f"    document {held.document} offset {held.offset}\t{report.steps_line(held.steps)}\t"
            f"{' '.join(held.text.split())}"
            + (f"\tduplicates: {len(held.copies):,}" if held.copies else "")
            for held in one.documents
        ]
    return "\n".join(lines)


def _places(one: "TracedSpan") -> str:
    times = count(one.span.count, "time")
    return times if one.n_documents is None else f"{times} in {count(one.n_documents, 'document')}"


def counterfactual_lines(result: "storage.JsonObject") -> str:
    """Return one line per setting: recall with its interval, change in log-probability, n."""
    several = len({row["behaviour"] for row in result["rows"]}) > 1
    named = [
        f"{row['setting']}: {row['behaviour']}" if several else row["setting"]
        for row in result["rows"]
    ]
    width = max(map(len, named))
    head = f"{'':<{width}}  recall        95 %       change in log-probability, nats    n"
    rows = [
        f"{name:<{width}}  {row['recall']:6.3f}  "
        f"[{row['recall low']:.3f}, {row['recall high']:.3f}]  {row['change']:+8.3f} "
        f"{_change_interval(row)}  {row['n']:10}"
        for name, row in zip(named, result["rows"], strict=True)
    ]
    kept = "\n".join(f"kept: {path}" for path in result["runs"])
    effects = [_effect_line(row) for row in result["effects"]]
    removed = f"{len(result['removed'])} removed, {len(result['named'])} of them named"
    drawn = (
        f"{count(result['avoided'], 'further document')} (named in the sources, or copies of them) "
        "left out of the random controls"
    )
    control = [drawn] if result["control"] else []
    return "\n".join([head, *rows, *effects, removed, *control, kept])


def _change_interval(row: "storage.JsonObject") -> str:
    """Return the interval of a row's change; the full run is what all rows are compared with."""
    if row["setting"] == "full run":
        return "by definition"
    return report.interval(row["change low"], row["change high"])


def _effect_line(row: "storage.JsonObject") -> str:
    """Return the line of one effect: the change of a score, and what it is compared with."""
    kind = "" if row["related"] else "unrelated "
    held = "no interval: one prompt, and fewer than two controls"
    if row["low"] is not None:
        held = report.interval(row["low"], row["high"])
    return (
        f"{kind}{row['question']}: {row['effect']:+.3f} {row['unit']}, {_beside(row['seeds'])}, "
        f"{held}, {_noise(row['within noise'], row['seeds'])}"
    )


def _beside(controls: int) -> str:
    """Name the comparison of an effect."""
    if not controls:
        return "compared with the full run: no random documents were removed"
    return f"beyond {count(controls, 'removal')} of random documents"


def _noise(within: bool | None, controls: int) -> str:
    """Say whether random removals change as much; unknown with fewer than two controls."""
    if within is None:
        return f"noise unknown: {'one control' if controls == 1 else 'no control'}"
    return "within its noise" if within else "beyond its noise"


def stages_lines(found: "LineageSources") -> str:
    """Return the change of a query by each stage, and the documents of all stages by cosine."""
    rows = [f"{found.query}, {found.unit}"]
    for stage in found.stages:
        change = "unknown" if stage.change is None else f"{stage.change:+.2f}"
        interval = "" if stage.low is None else f" [{stage.low:+.2f}, {stage.high:+.2f}]"
        least = stage.change if stage.low is None else stage.low
        mark = "  taught it" if stage is found.taught_by and least and least > 0 else ""
        documents = count(stage.documents, "document")
        rows.append(f"stage {stage.number}  {stage.recipe}  {change}{interval}  {documents}{mark}")
    for item in found.items:
        text = " ".join(item.text.split())
        rows.append(f"{item.score:+.3f}  stage {item.stage} document {item.document}\t{text}")
    return "\n".join(rows)
