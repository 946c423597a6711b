"""The panel of the proof: the behaviour before and after retraining without documents.

Without a retraining it names the commands that make one. It always says what would change the
answer.
"""

from collections.abc import Sequence
from shlex import quote

from data_attribution.counterfactuals import CONTROLS, Forgetting
from data_attribution.report import svg
from data_attribution.report.behaviour_results import BehaviourResults
from data_attribution.report.page import Panel, command, measured, shown, table
from data_attribution.report.ranking_command import command_of_ranking
from data_attribution.report.svg import Bar, Point
from interp.training_dynamics import Share
from train import storage
from train.progress import count, duration


__all__ = ["proof_panel"]

SETTINGS = {
    "full run": "before",
    "documents removed": "without them",
    "control removed": "without others",
}
NOT_RECORDED = " That these others were drawn at random is not recorded in their runs."


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
    first = found.sources.documents[:5]
    ranking = command_of_ranking(found)
    removed = f"sources.json --top {len(first)}" if ranking else " --without ".join(map(str, first))
    steps = [
        ranking,
        found.command("counterfactual", f"--without {removed}"),
        found.command("report", "--out page.html"),
    ]
    return (
        "<p>No retraining without these documents was found in the folder of this run. Words in "
        "common, and gradients too, do not show that a document taught anything. These commands "
        f"test the first {len(first)}: they train the model again without them and, as controls, "
        f"{CONTROLS} times without as many random ones, and write this page again. {_cost(found)}"
        "</p>" + command(*filter(None, steps)) + _limits(found)
    )


def _cost(found: BehaviourResults) -> str:
    """Return how long a retraining takes at most: as long as the training took."""
    seconds = sum(row.seconds for row in found.ledger)
    return (
        f"Each of the {CONTROLS + 1} trainings takes at most as long as that of this run, of which "
        f"the steps took {duration(seconds)}."
        if seconds
        else ""
    )


def _limits(found: BehaviourResults) -> str:
    cases = [
        "If the model still answered right without the documents, they would not be what taught "
        "it.",
        "If random documents had the same effect, it would be that of any removal.",
        "Another seed can put the same work into other heads: a head is found by its effect, not "
        "by its number.",
        f"There is one {found.behaviour.case_name}, so how far another wording would move the "
        "numbers is unknown."
        if found.check.n < 2
        else "Other prompts would give other numbers; the 95 % intervals say how far, for prompts "
        f"of this kind ({count(found.check.n, found.behaviour.case_name)} here).",
    ]
    items = "".join(f"<li>{shown(one)}</li>" for one in cases)
    return f"<h3>What would change this answer</h3><ul>{items}</ul>"


def _counterfactual(found: BehaviourResults, proof: storage.JsonObject) -> tuple[str, str]:
    """Return the body of a `Counterfactual` as plain values, and its answer."""
    rows = proof["rows"]
    effects = sorted(proof["effects"], key=lambda one: one["question"] != found.question)
    first, n, controls = effects[0], len(proof["removed"]), len(proof["control"])
    random = "random" if _drawn(proof) else "other"
    verdict, mark = _verdict(first)
    case = found.behaviour.case_name
    # Other questions may count prompts where this one counts groups of them.
    cases = "prompts" if case == "prompt" else "cases"
    over = cases if case == "prompt" else f"cases (prompts, or {case}s)"
    change = measured(
        first["effect"],
        first["low"],
        first["high"],
        n=first["n"],
        of=f"{case}s",
        unit=first["unit"],
        form="+.2f",
    )
    asked = [row for row in rows if row["behaviour"] == first["question"]]
    body = (
        f'<p class="claim"><b class="{mark}">{verdict}.</b> Trained again without '
        f"{count(n, 'document')}, everything else the same to the bit: the answer's "
        f"log-probability changes by {shown(change)}, beyond "
        f"{count(controls, 'removal')} of as many {random} documents. "
        f"{_among(found, proof['removed'])}{'' if _drawn(proof) else NOT_RECORDED}</p>"
        '<div class="pair"><div>'
        + (f"<h3>Before and after</h3>{_recalls(asked, random, case)}" if asked else "")
        + "</div><div><h3>What changed, and what stayed</h3>"
        + _changes(effects, random)
        + "</div></div>"
        + table(
            ("question", "full run", "without them", f"without {random} ones", "effect", "verdict"),
            [
                (
                    f"{one['question']}{'' if one['related'] else ' (should stay)'}",
                    f"{one['before']:.2f}",
                    f"{one['after']:.2f}",
                    ", ".join(f"{one['before'] + moved:.2f}" for moved in one["controls"]) or "–",
                    measured(
                        one["effect"], one["low"], one["high"], n=one["n"], of=cases,
                        unit=one["unit"], form="+.2f",
                    ),
                    _verdict(one)[0].lower(),
                )
                for one in effects
            ],
            caption=f"95 % intervals over {over} and controls; one initial seed",
        )
        + command(found.command("counterfactual", _without(found, proof)))
    )  # fmt: skip
    full = next((row["recall"] for row in asked if row["setting"] == "full run"), None)
    gone = next((row["recall"] for row in asked if row["setting"].startswith("without the")), None)
    bare = measured(first["effect"], first["low"], first["high"], form="+.2f")
    recall = "" if full is None or gone is None else f"; recall {full:.2f} → {gone:.2f}"
    answer = (
        f"{verdict}: {bare}<small>{shown(first['unit'])}, without {count(n, 'document')}, beyond "
        f"{count(controls, f'{random} removal')}{recall}</small>"
    )
    return body, answer


def _drawn(proof: storage.JsonObject) -> bool:
    """Return whether the documents of all controls were drawn at random, as far as is recorded.

    Results without `choices` are of `openbook counterfactual`, which draws them. In a folder of
    retrained runs there can be some whose manifests do not say it.
    """
    choices = proof.get("choices")
    return choices is None or all(
        one is not None and one["kind"].startswith("matched") for one in choices[1:]
    )


def _without(found: BehaviourResults, proof: storage.JsonObject) -> str:
    """Return the options of the command that made a proof.

    With a ranking, no control holds a document that is listed; given by number, it may.
    """
    named = proof["named"]
    options = [f"--without {one}" for one in named]
    if proof.get("avoided") and {*found.sources.documents[: len(named)]} == {*named}:
        options = ["--without sources.json", f"--top {len(named)}"]
    if len(proof["control"]) != CONTROLS:
        options.append(f"--seeds {len(proof['control'])}")
    if proof.get("together", "near") != "near":
        options.append(f"--together {quote(proof['together'])}")
    if proof.get("mode", "blank") != "blank":
        options.append(f"--mode {quote(proof['mode'])}")
    return " ".join(options)


def _among(found: BehaviourResults, removed: Sequence[int]) -> str:
    """Return how many of the listed documents were removed, a document with its copies as one."""
    gone = {*removed}
    n = sum(not gone.isdisjoint(one.group) for one in found.sources)
    return (
        f"Of the {len(found.sources)} documents listed above, {n} were removed with their copies."
    )


def _verdict(effect: storage.JsonObject) -> tuple[str, str]:
    """Return in a word what an effect shows, and the class of that word."""
    if effect["within noise"] is None:
        return "Chance unknown", "soft"
    if not effect["related"]:
        return ("Stayed", "good") if effect["within noise"] else ("Moved too", "bad")
    if effect["within noise"]:
        return "Not shown", "bad"
    return ("Proved for this run", "good") if effect["effect"] < 0 else ("The other way", "bad")


def _recalls(rows: Sequence[storage.JsonObject], random: str, case: str) -> str:
    names = {"full run": "before", "without the documents": "without them"}
    made = [
        Bar(
            names.get(row["setting"], f"without {random} ones"),
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
                measured(
                    row["recall"], row["recall low"], row["recall high"], n=row["n"], of=f"{case}s"
                ),
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


def _changes(effects: Sequence[storage.JsonObject], random: str) -> str:
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
            across=f"change beyond {random} removals, {unit}",
        )
        for unit in dict.fromkeys(one["unit"] for one in effects)
    )


def _forgetting(found: BehaviourResults, proof: Forgetting) -> tuple[str, str]:
    """Return the body of a removal of planted facts, and its answer."""
    before = proof.of("full run", "removed").share
    gone = proof.of("documents removed", "removed").share
    control = proof.of("control removed", "removed").share
    verdict, mark = _forgotten(proof)
    bars = [
        Bar(SETTINGS[one.setting], _group(one.group), one.share.recall, one.share.low,
            one.share.high)
        for one in proof.groups
        if one.setting in SETTINGS and one.share.recall is not None
    ]  # fmt: skip
    body = (
        f'<p class="claim"><b class="{mark}">{verdict}.</b> Trained again without the '
        f"{len(proof.removed)} documents that state {_facts(proof)}, everything else the "
        f"same to the bit: recall of {_these(proof)} goes from {shown(_recall(before))} to "
        f"{shown(_recall(gone))}.{_never(proof)} Without the {len(proof.control)} documents of "
        f"{_as_many(proof)}, stated equally often, it is {shown(_recall(control))}.</p>"
        f"<p>{_own(found, proof)} {_among(found, proof.removed)}{_kept(found, proof)}"
        f"{_how_measured(found, proof)}</p>"
        f'<div class="pair"><div class="wide">{svg.bars(bars, up="recall")}</div><div>'
        + table(
            ("training", "facts", "recall", "change in log-probability"),
            [
                (
                    SETTINGS.get(one.setting, one.setting),
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
            caption="95 % intervals over facts; one initial seed.",
        )
        + "</div></div>"
        + _each_fact(proof)
        + command(*_forget_commands(found, proof))
    )  # fmt: skip
    together = "" if len(proof.facts) == 1 else f"of {count(len(proof.facts), 'fact')} together, "
    own = next((one for one in proof.by_fact if one.fact == found.fact), None)
    alone = "" if own is None or not together else f"; this one {own.right} → {own.right_without}"
    answer = (
        f"{verdict}: recall {_digits(before)} → {_digits(gone)} "
        f"[{gone.low:.2f}, {gone.high:.2f}]<small>{together}without their {len(proof.removed)} "
        f"documents{alone and f'{alone} of {own.asked} wordings' if own else ''}; "
        f"{_digits(control)} without as many others</small>"
    )
    return body, answer


def _forgotten(proof: Forgetting) -> tuple[str, str]:
    """Return in a word what a removal of facts shows, and the class of that word."""
    if not any(one.group == "never stated" for one in proof.groups):
        return "Chance unknown", "soft"  # there is nothing to fall to
    return ("Proved for this run", "good") if proof.holds else ("Not shown", "bad")


def _facts(proof: Forgetting) -> str:
    n = len(proof.facts)
    return f"the fact “{shown(proof.facts[0])}”" if n == 1 else f"{n} facts"


def _these(proof: Forgetting) -> str:
    return "that fact" if len(proof.facts) == 1 else "those facts together"


def _as_many(proof: Forgetting) -> str:
    n = len(proof.control_facts)
    return "another fact" if n == 1 else f"{n} other facts"


def _never(proof: Forgetting) -> str:
    for one in proof.groups:
        if (one.setting, one.group) == ("documents removed", "never stated"):
            return f" Facts that were never stated stand at {shown(_recall(one.share))}."
    return ""


def _own(found: BehaviourResults, proof: Forgetting) -> str:
    """Return what became of the fact of this page, where several were removed together."""
    if len(proof.facts) == 1 or found.fact not in proof.facts:
        return ""
    stating = sum(label == "states it" for label in found.labels.values())
    among = f"“{shown(found.fact)}” is one of the {len(proof.facts)}, stated by {stating:,} of the "
    among += f"{len(proof.removed)} documents: "
    for one in proof.by_fact:
        if one.fact == found.fact:
            controls = ", ".join(map(str, one.right_controls))
            return (
                f"{among}answered right in <b>{one.right} of {one.asked}</b> wordings before, in "
                f"<b>{one.right_without}</b> without them, in {controls} without as many others "
                f"({shown(measured(one.change, unit='nats', form='+.2f'))} of log-probability; "
                "one fact has no interval)."
            )
    return (
        f"{among}what became of it alone was not kept in the file that came with this run. The "
        "last command below trains again here and measures it."
    )


def _kept(found: BehaviourResults, proof: Forgetting) -> str:
    """Return what became of the listed documents that stayed."""
    n = sum(found.removed.isdisjoint(one.group) for one in found.sources)
    if not n:
        return ""
    lost = any(one.fact == found.fact and one.right_without == 0 for one in proof.by_fact)
    return f" The other {n} were read again as before" + (
        ", and were not enough to keep the answer." if lost else "."
    )


def _how_measured(found: BehaviourResults, proof: Forgetting) -> str:
    """Return how often each fact is asked, and since when the trainings differ."""
    relations = (found.run.store.truth or {}).get("relations", {})
    asked = {len(one["forms"]) for one in relations.values()}
    wordings = (
        f" Each fact is asked in {count(next(iter(asked)), 'wording')}, and recall is the share of "
        "right answers."
        if len(asked) == 1
        else ""
    )
    return (
        f"{wordings} The first of the removed documents was read at step {proof.first_read:,}: "
        "until then all trainings are the same."
    )


def _each_fact(proof: Forgetting) -> str:
    """Return the table of the removed facts one by one, or their names."""
    if not proof.by_fact:
        return f'<p class="small">The facts: {shown(", ".join(proof.facts))}.</p>'
    rows = [
        (
            one.fact,
            f"{one.right} of {one.asked}",
            f"{one.right_without} of {one.asked}",
            ", ".join(map(str, one.right_controls)),
            f"{one.change:+.2f} nats",
        )
        for one in proof.by_fact
    ]
    return "<details><summary>each fact by itself</summary>" + table(
        ("fact", "wordings answered right before", "without them", "without others",
         "change in log-probability"),
        rows,
    ) + "</details>"  # fmt: skip


def _forget_commands(found: BehaviourResults, proof: Forgetting) -> list[str]:
    """Return the command of the proof, and that of the page's fact by itself if it is not told."""
    names = " ".join(quote(name) for name in proof.facts)
    commands = [found.command("forget", f"{names} --controls {len(proof.runs) - 1}", named=False)]
    if not proof.by_fact and len(proof.facts) > 1 and found.fact in proof.facts:
        commands.append(found.command("forget", quote(found.fact), named=False))
    return commands


def _group(group: str) -> str:
    return {"removed": "these facts", "control": "the others", "kept": "kept facts"}.get(
        group, group
    )


def _digits(share: Share) -> str:
    return "not measured" if share.recall is None else f"{share.recall:.2f}"


def _recall(share: Share) -> str:
    return measured(share.recall, share.low, share.high, n=share.n, of="facts")
