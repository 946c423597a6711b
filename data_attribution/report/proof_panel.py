"""The panel of the proof: the behaviour before and after retraining without documents.

Without a retraining it names the commands that make one. It always says what would change the
answer.
"""

from collections.abc import Sequence

from data_attribution.counterfactuals import CONTROLS, Forgetting
from data_attribution.report import svg
from data_attribution.report.behaviour_results import BehaviourResults
from data_attribution.report.page import Panel, command, measured, shown, table
from data_attribution.report.svg import Bar, Point
from interp.training_dynamics import Share
from train import storage
from train.progress import count


__all__ = ["proof_panel"]


def proof_panel(found: BehaviourResults) -> Panel:
    """Return the panel of what retraining showed, or of the commands that would show it."""
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
            *filter(None, [found.ranking_command]),
            found.command("counterfactual", f"--without sources.json --top {top}"),
            found.command("report", "--out page.html"),
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
        f"Other prompts move every number within its interval ({count(found.check.n, 'prompt')} "
        f"here{', which have none' if found.check.n < 2 else ''}).",
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
        f"{count(controls, 'removal')} of as many random documents. "
        f"{_among(found, proof['removed'])}</p>"
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
        + command(found.command("counterfactual", _without(proof)))
    )  # fmt: skip
    full = next((row["recall"] for row in asked if row["setting"] == "full run"), None)
    gone = next((row["recall"] for row in asked if row["setting"].startswith("without the")), None)
    said = (
        f"recall {full:.2f} → {gone:.2f} without {count(n, 'document')}"
        if full is not None and gone is not None
        else f"{first['effect']:+.2f} {shown(first['unit'])} without {count(n, 'document')}"
    )
    return body, f"{verdict}: {said}<small>beyond {count(controls, 'random removal')}</small>"


def _without(proof: storage.JsonObject) -> str:
    """Return the options of the command that made a proof."""
    options = [f"--without {one}" for one in proof["named"]]
    if len(proof["control"]) != CONTROLS:
        options.append(f"--seeds {len(proof['control'])}")
    if proof.get("mode", "blank") != "blank":
        options.append(f"--mode {proof['mode']}")
    return " ".join(options)


def _among(found: BehaviourResults, removed: Sequence[int]) -> str:
    """Return how many of the listed documents, copies folded, were removed."""
    gone = {*removed}
    n = sum(not gone.isdisjoint(one.group) for one in found.sources)
    return f"Of the {len(found.sources)} documents listed above, {n} were removed."


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
        f"it is {shown(_recall(control))}. {_among(found, proof.removed)}</p>"
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
            found.command("forget", " ".join(f"'{name}'" for name in proof.facts), named=False)
        )
    )  # fmt: skip
    answer = (
        f"{verdict}: recall {before.recall or 0:.2f} → {gone.recall or 0:.2f} "
        f"[{gone.low:.2f}, {gone.high:.2f}]<small>of {count(len(proof.facts), 'fact')} together, "
        f"without their {len(proof.removed)} documents; {control.recall or 0:.2f} without as many "
        "others</small>"
    )
    return body, answer


def _group(group: str) -> str:
    return {"removed": "these facts", "control": "the others", "kept": "kept facts"}.get(
        group, group
    )


def _recall(share: Share) -> str:
    return measured(share.recall, share.low, share.high, n=share.n, of="facts")
