"""The demo's HTML page: every claim with its figure, numbers and commands, in one file.

The four panels of a behaviour come first, then the details of every stage. It needs no network, is
well under two megabytes, and can be read without its script.
"""

from dataclasses import replace
from html import escape
from pathlib import Path
from shlex import quote

from data_attribution import attribution
from data_attribution.counterfactuals import STAYS
from data_attribution.demo import Demo
from data_attribution.report import behaviour_page, page, svg, text
from data_attribution.report.behaviour_results import BehaviourResults, gather
from data_attribution.report.copying_sections import formation_figure
from data_attribution.report.demo_parts import loss_curve, number, run_facts, share, verification
from data_attribution.report.page import Panel
from data_attribution.report.svg import Bar, Line
from interp import behaviours
from interp.heads import best_head
from train import storage
from train.progress import listed


__all__ = ["demo_html", "demo_summary", "real_text_section", "write_demo_page"]

MADE = (
    "openbook corpus build planted --out data/planted",
    "openbook train planted data/planted --out runs/planted",
)


def write_demo_page(demo: Demo, path: Path) -> Path:
    """Write the page; the file is written whole or not at all."""
    storage.write_text(path, demo_html(demo))
    return path


def demo_summary(demo: Demo) -> str:
    """Return the page's results in six lines, for the terminal."""
    found, rows = demo.forgetting, demo.run.ledger
    induction, score = best_head(demo.circuit.induction)
    head = demo.heads.top(1)[0]
    levels = [level for level in demo.recall.levels if level.exposures]
    shown = "  ".join(f"{one.exposures}: {number(one.seen.recall)}" for one in levels)
    fact, answer = demo.traced.fact, demo.traced.answers[0]
    states = sum(said == "states it" for said in demo.traced.truth)
    gone = found.of("documents removed", "removed").share
    control = found.of("control removed", "removed").share
    lines = [
        f"run {demo.run.id}: {len(rows):,} steps, {demo.verification.level}",
        f"recall by documents  {shown}",
        f"IOI right in {demo.check.accuracy:.2f} of {demo.check.n}, by {demo.check.score:.1f} "
        f"nats; {head} alone restores {demo.heads[head]:.2f}; {induction} is the induction head "
        f"({score:.2f})",
        f"{fact['name']}: {answer.given}; {states} of the {len(fact['documents'])} documents that "
        f"state it among the first {len(demo.traced.truth)} sources",
        f"without the documents of {len(found.facts)} facts their recall is "
        f"{number(gone.recall)} [{gone.low:.2f}, {gone.high:.2f}]; without those of others "
        f"{number(control.recall)} [{control.low:.2f}, {control.high:.2f}]",
    ]
    return "\n".join(lines)


def demo_html(demo: Demo) -> str:
    """Return the page as text."""
    story = _story(demo)
    parts = (_known, _recall, _circuit, _heads, _sources, proof_section, real_text_section)
    details = [part(demo) for part in parts]
    if demo.released:  # show the commands with the paths where it was unpacked
        run, data = (escape(page.shell_path(one)) for one in (demo.run.path, demo.run.store.path))
        details = [
            replace(
                one,
                body=one.body.replace("runs/planted", run).replace("data/planted", data),
            )
            for one in details
        ]
    return page.document(
        "openbook: one model, entirely known",
        [*behaviour_page.panels(story), *details],
        behaviour_page.data(story),
        behaviour_page.provenance(story),
        lead=_head(demo),
    )


def _story(demo: Demo) -> BehaviourResults:
    """Return the results of the panels: the relation of the traced fact, that fact first."""
    run, fact = demo.run, demo.traced
    behaviour = behaviours.load(fact.fact["relation"], run)
    asked = fact.behaviour.clean[0].tolist()
    rows = sorted(
        range(behaviour.n_prompts), key=lambda row: behaviour.clean[row].tolist() != asked
    )
    return gather(
        run,
        behaviour.of(rows),
        named=behaviour.name,
        traced=fact.behaviour.name,
        ranked_for=fact.behaviour,
        sources=attribution.documents(run, fact.behaviour, methods="lexical", limit=20),
        proof=demo.forgetting,
    )


def _head(demo: Demo) -> str:
    """Return the lead."""
    run = demo.run
    where = ""
    if demo.released:
        made = run.predicate["environment"]
        where = (
            "<p class=claim><b>This run was not trained here.</b> It comes with openbook, trained "
            f"on {escape(str(made['processor']))} with torch {escape(str(made['torch']))}; here it "
            "was unpacked, its files compared with their digests, its first steps replayed, and "
            "everything in parts 2 to 5 computed anew. Part 6 was measured where it was trained. "
            "<code>make demo</code> trains it here.</p>"
        )
    return (
        f"<p>A GPT of {run.config.n_params:,} parameters, trained on "
        f"{run.store.n_documents:,} documents of which every one is known; a behaviour of it, the "
        "heads that carry the behaviour, the documents of one fact, and nine facts gone when it is "
        "trained again without their documents.</p>" + where
    )


def _known(demo: Demo) -> Panel:
    run, made = demo.run, () if demo.released else MADE
    data = [("corpus fingerprint", run.store.fingerprint)]
    return Panel(
        "known",
        "1. A checkpoint that can be checked",
        verification(demo.verification)
        + page.table(("", ""), run_facts(run, data, _epochs(demo)))
        + loss_curve(run.ledger)
        + page.command(*made, "openbook run verify runs/planted"),
    )


def _recall(demo: Demo) -> Panel:
    levels = demo.recall.levels
    figure = svg.lines(
        [
            Line(
                "wordings it read",
                [level.seen.recall for level in levels],
                [level.seen.low for level in levels],
                [level.seen.high for level in levels],
            ),
            Line("wording held out", [level.paraphrase.recall for level in levels]),
            Line("always the commonest value", [level.baseline for level in levels], dashed=True),
        ],
        [str(level.exposures) for level in levels],
        across="documents that state the fact",
        up="recall",
    )
    rows = [
        (
            f"{level.exposures}{', late' if level is demo.recall.late else ''}",
            level.n,
            share(level.seen.recall, level.seen.low, level.seen.high),
            share(level.paraphrase.recall, level.paraphrase.low, level.paraphrase.high),
            f"{level.baseline:.2f}",
        )
        for level in (*levels, *([demo.recall.late] if demo.recall.late else []))
    ]
    return Panel(
        "recall",
        "2. It knows what it has read often enough",
        "<p class=claim>Each fact stands in a planted number of documents. Recall grows with that "
        "number, for the wordings it read and for one it never read.</p>"
        + figure
        + page.table(("documents", "facts", "wordings read", "held out", "baseline"), rows)
        + "<p class=limit>Argmax among the 24 values of the relation; 95 % Wilson intervals over "
        "facts; one corpus, one seed: <code>benchmarks/planted_acceptance.py</code> repeats it "
        "over seeds.</p>" + page.command("openbook recall runs/planted"),
    )


def _circuit(demo: Demo) -> Panel:
    circuit = demo.circuit
    induction, induction_score = best_head(circuit.induction)
    previous, previous_score = best_head(circuit.previous_token)
    copying = circuit.copying
    rows = [
        ("best induction head", induction, f"{induction_score:.2f} mean attention"),
        ("best previous-token head", previous, f"{previous_score:.2f} mean attention"),
        ("loss on the first copy", "", f"{copying.first:.2f} nats a token"),
        ("loss on the second copy", "", f"{copying.second:.2f} nats a token"),
    ]
    return Panel(
        "circuits",
        "3. Circuits grew in it",
        f"<p class=claim>On {copying.material}, {previous} looks one token "
        f"back and {induction} looks behind the previous occurrence: together they copy what was "
        f"never in the corpus, {copying.gap:.1f} nats cheaper the second time.</p>"
        + page.table(("", "head", "score"), rows)
        + "<p class=limit>Heads are found by score, never by number; which they are depends on "
        "the seed.</p>" + page.command("openbook detect runs/planted"),
    )


def _heads(demo: Demo) -> Panel:
    effects, check = demo.heads, demo.check
    values = effects.values.tolist()
    figure = svg.heat_map(
        values,
        [f"layer {layer}" for layer in range(len(values))],
        [f"head {head}" for head in range(len(values[0]))],
    )
    rows = [
        (name, share(effects[name], *(effects.interval(name) or (None, None))))
        for name in effects.top(5)
    ]
    low, high = check.interval
    return Panel(
        "heads",
        "4. Which heads carry a behaviour",
        f"<p class=claim>Who receives the object? On {check.n} prompts with names it never "
        f"saw together, the model is right in {check.accuracy:.2f} [{low:.2f}, {high:.2f}], by "
        f"{check.score:.1f} nats, and the name comes first of all words in {check.top1:.2f}. "
        "Below: the share of that difference which comes back when one head of the corrupted run "
        "is given its clean value.</p>"
        + figure
        + page.table(("head", "share, 95 % over prompts"), rows)
        + f"<p class=limit>Clean {effects.clean:.2f}, corrupt {effects.corrupt:.2f} nats; "
        f"{effects.n_prompts} prompts; {escape(effects.direction)}; checkpoint "
        f"{effects.provenance.checkpoint_sha256[:12]}, knowledge "
        f"{escape(effects.provenance.knowledge)}.</p>"
        + page.command("openbook patch runs/planted ioi --over heads --prompts 300"),
    )


def _sources(demo: Demo) -> Panel:
    traced = demo.traced
    fact, answer = traced.fact, traced.answers[0]
    rows = [
        (f"{one.score:.2f}", said, one.text, listed(one.steps))
        for one, said in zip(traced.sources.items, traced.truth, strict=True)
    ]
    stated = sum(said == "states it" for said in traced.truth)
    return Panel(
        "fact",
        "5. Which documents hold the words of one fact",
        f"<p class=claim>Asked for the {escape(fact['name'])}, the model answers "
        f"“{escape(answer.given)}”. Its lexical sources, {stated} of the "
        f"{len(fact['documents'])} that state it among the first {len(rows)}, each with the exact "
        "steps at which it was read.</p>"
        + page.table(("score", "truth", "text", "read at steps"), rows)
        + "<p class=limit>Lexical evidence says that the words were there, not that the document "
        "taught anything: a distractor names both and states nothing. The truth column is known "
        "because the corpus is planted.</p>"
        + page.command(
            "openbook index build data/planted",
            f"openbook trace documents runs/planted fact:{fact['entity']} --method lexical",
            f"openbook run steps runs/planted {traced.sources.documents[0]}",
        ),
    )


def proof_section(demo: Demo) -> Panel:
    found = demo.forgetting
    rows = [
        (
            one.setting,
            one.group,
            one.share.n,
            share(one.share.recall, one.share.low, one.share.high),
            f"{one.change:+.3f} {text.interval(one.change_low, one.change_high, 'fact')}",
        )
        for one in found.groups
    ]
    figure = svg.bars(
        [
            Bar(
                one.setting,
                f"facts {one.group}",
                one.share.recall,
                one.share.low,
                one.share.high,
            )
            for one in found.groups
            if one.share.recall is not None
        ],
        up="recall",
    )
    gone = found.of("documents removed", "removed").share
    fell = "falls" if found.fell else "does not fall to the level of facts never stated: it goes"
    never = found.of("documents removed", "never stated").share
    control = found.of("control removed", "removed").share
    stays = "stays at" if (control.recall or 0.0) >= STAYS else "does not stay: it is"
    return Panel(
        "forgetting",
        "6. The proof",
        f"<p class=claim>Trained again without the {len(found.removed)} documents that state "
        f"{len(found.facts)} facts, everything else the same to the bit: recall of those "
        f"facts {fell} to {number(gone.recall)}, where facts that were never stated stand at "
        f"{number(never.recall)}. Without the {len(found.control)} documents that state as "
        f"many other facts, equally often, it {stays} {number(control.recall)}.</p>"
        + figure
        + page.table(("training", "facts", "n", "recall", "change in log-prob"), rows)
        + "<p class=limit>Removed documents are blanked: order, shapes, positions, steps and "
        f"divisors stay. {_late(demo)} Intervals: Wilson over facts; Student over facts. One "
        "initial seed, one control.</p>"
        + page.command(
            f"openbook forget runs/planted {' '.join(quote(name) for name in found.facts)} "
            f"--controls {len(found.runs) - 1}"
        ),
    )


def real_text_section(demo: Demo) -> Panel:
    """Return part 7: the induction head on Python's own sources, or how to train that run."""
    title = "7. On real text"
    if demo.real_text is None:
        return Panel(
            "real-text",
            title,
            "<p>The corpus above is made up. <code>openbook demo-code</code> does the same "
            "with the sources of this Python's standard library, and this page then shows when an "
            "induction head formed there.</p>" + page.command("openbook demo-code"),
        )
    return Panel(
        "real-text",
        title,
        "<p>The corpus above is made up. This is a run on the sources of Python's standard "
        "library, in which nothing is planted.</p>"
        + formation_figure(demo.real_text)
        + page.command("openbook demo-code"),
    )


def _late(demo: Demo) -> str:
    """Return a sentence on why the two retrainings are short."""
    found, run = demo.forgetting, demo.run
    steps = run.recipe.steps
    if not run.recipe.late_batch:
        return f"The first of them was read at step {found.first_read:,} of {steps:,}."
    return (
        f"These facts are <i>late</i> ones: their documents are read from step "
        f"{run.recipe.late_begin:,} of {steps:,} on (the first of the removed at step "
        f"{found.first_read:,}), so both trainings begin at the checkpoint before it, not at the "
        "first step. <code>benchmarks/forgetting.py</code> removes facts that are read throughout "
        "training."
    )


def _epochs(demo: Demo) -> float:
    """Return the number of passes over the documents that are not late."""
    run, recipe = demo.run, demo.run.recipe
    windows = (run.store.early_tokens - 1) // recipe.model.n_ctx
    late = (recipe.steps - recipe.late_begin) * recipe.late_batch
    return (recipe.steps * recipe.batch_size - late) / windows
