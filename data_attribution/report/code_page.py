"""The page of the demo on Python's sources, in one HTML file.

Its four panels are of one behaviour, the completion of known lines: prompts, heads, files and proof
are of the same lines. The copying of a name is another behaviour and has parts of its own below.
Every sentence that states a result is worded by its interval: an effect that chance explains is
called one.
"""

from html import escape
from pathlib import Path
from shlex import quote

from data_attribution.counterfactuals import Change
from data_attribution.demo import CodeDemo, Formation, HeadEffects, KnownLine, line_readings
from data_attribution.report import behaviour_page, page
from data_attribution.report.behaviour_results import BehaviourResults, gather
from data_attribution.report.copying_sections import (
    copying_section,
    effect_text,
    formation_section,
    guesses,
)
from data_attribution.report.demo_parts import loss_curve, run_facts, verification
from data_attribution.report.page import Panel, shell_path, shown
from train import storage
from train.progress import count


__all__ = [
    "code_html",
    "code_summary",
    "effect_sentence",
    "lines_section",
    "write_code_page",
]

NEXT = 3  # files that are listed behind the removed ones


def write_code_page(demo: CodeDemo, path: Path) -> Path:
    """Write the page; the file is written whole or not at all."""
    storage.write_text(path, code_html(demo))
    return path


def code_summary(demo: CodeDemo) -> str:
    """Return the page's results in seven lines, for the terminal."""
    formation, proof = demo.formation, demo.proof
    score = formation.trajectory.curve(formation.induction)[-1]
    between = (
        f", formed between steps {formation.window[0]:,} and {formation.window[1]:,}"
        if formation.window
        else f", no induction head (less than {Formation.LEAST})"
    )
    files = ", ".join(demo.file_of(document) for document in demo.removed.documents)
    holding = len({*demo.removed.documents} & {*demo.holders})
    return "\n".join(
        (
            f"run {demo.run.id}: {len(demo.run.ledger):,} steps, {demo.verification.level}",
            _in_a_line(demo.completing),
            f"first files by their words, {holding} of {count(len(demo.removed), 'file')} hold "
            f"them: {files}",
            f"without {count(len(proof.removed), 'file')}: "
            f"{effect_sentence(proof.changes[0], demo.completing.behaviour.case_name)}",
            "beside it, another behaviour:",
            _in_a_line(demo.copying),
            f"{formation.induction} {score.value:.2f}{between}",
        )
    )


def _in_a_line(found: HeadEffects) -> str:
    low, high = found.check.interval
    best = (
        f"; {(head := found.effects.top(1)[0])} alone restores "
        f"{effect_text(found.effects[head], found.effects.interval(head))}"
        if found.effects
        else "; heads were not patched"
    )
    return (
        f"{found.behaviour.name} right in {found.check.accuracy:.2f} [{low:.2f}, {high:.2f}] of "
        f"{_counted(found)}{best}"
    )


def _counted(found: HeadEffects) -> str:
    """Return the number of prompts and, if they count by groups, of groups."""
    behaviour, n = found.behaviour, found.check.n
    if not behaviour.groups:
        return f"{n}"
    return f"{count(behaviour.n_prompts, 'line')} in {count(n, behaviour.case_name)}"


def code_html(demo: CodeDemo) -> str:
    """Return the page as text."""
    story = _story(demo)
    details = [
        _run(demo),
        lines_section(demo),
        _proof(demo),
        copying_section(demo),
        formation_section(demo),
    ]
    return page.document(
        "How a model of Python's own sources completes a line",
        [*behaviour_page.panels(story), *details],
        behaviour_page.data(story),
        behaviour_page.provenance(story),
        lead=_head(demo),
    )


def _story(demo: CodeDemo) -> BehaviourResults:
    """Return the results of the panels, all of the known lines."""
    completing = demo.completing
    return gather(
        demo.run,
        completing.behaviour,
        # Some commands hold it inside a word, `heads:FILE`, where a shell reads no `~`.
        named=quote(str(demo.behaviour_file)),
        traced=_traced(demo),
        by_head=completing.effects,
        sources=demo.sources,
        proof=demo.proof.to_dict(),
    )


def _head(demo: CodeDemo) -> str:
    store, n, line = demo.run.store, len(demo.lines), demo.lines[0]
    decode = store.tokenizer.decode
    files = ", ".join(f"<code>{shown(demo.file_of(one))}</code>" for one in demo.holders)
    return (
        f"<p>A GPT of {demo.run.config.n_params:,} parameters, trained on "
        f"{store.manifest['counts']['train_documents']:,} files of the "
        f"{shown(store.manifest['corpus']['source'])}. Nothing here is planted: the text is real, "
        "and every file and every step that read it is known.</p>"
        f"<p>The task: <b>complete a line</b>, such as <code>{shown(_half(demo, line))}</code>"
        f"<mark><code>{shown(decode(line.continuation))}</code></mark> of "
        f"<code>{shown(demo.file_of(line.document))}</code>. The model reads the code up to the "
        "middle of the line, and the answer is the next token. "
        f"{'Each of' if n > 1 else ''} {count(n, 'such line')} stands in a file that was held out "
        "from training, and word for word in files that were read: "
        f"{files}. The second half does not stand in the prompt, so it cannot be copied from "
        "there.</p>"
        f"<p>All four panels are of {'these lines' if n > 1 else 'this line'}, and parts 1 to 3 "
        "below have the details. Parts 4 and 5 are of another behaviour, copying a name, whose "
        "answer stands in the prompt.</p>"
        f"<p class=limit>{_grouped(demo)}</p>"
    )


def _grouped(demo: CodeDemo) -> str:
    """Return how the lines are counted in intervals."""
    n = demo.completing.check.n
    return (
        "Lines that share a file, the held-out one or one that was read, say much the same. So "
        f"they are one prompt group: {count(len(demo.lines), 'line')} in {count(n, 'group')} are "
        f"{count(n, 'case')} of every interval here, which is wide if they are few. Shares of "
        "right answers and of patching are of all lines; logit differences and changes by "
        "retraining are means in which each group counts once."
    )


def _half(demo: CodeDemo, line: KnownLine) -> str:
    """Return the first half of a line, as text."""
    return demo.run.store.tokenizer.decode(line.tokens[: line.half]).lstrip()


def _run(demo: CodeDemo) -> Panel:
    run, rows, store = demo.run, demo.run.ledger, demo.run.store
    counts, recipe, model = store.manifest["counts"], demo.run.recipe, demo.run.config
    optimizer = f"muon {recipe.muon_lr:g} and adamw" if recipe.optimizer == "muon" else "adamw"
    data = [
        ("corpus", store.manifest["corpus"]["source"]),
        ("revision", store.manifest["corpus"]["revision"]),
        ("corpus fingerprint", store.fingerprint),
        (
            "files",
            f"{counts['train_documents']:,} read, "
            f"{store.n_documents - counts['train_documents']:,} held out",
        ),
        ("vocabulary", f"{store.vocab_size:,} byte pairs"),
        (
            "model",
            f"{model.n_layers} layers of {model.n_heads} heads, width {model.d_model}, context "
            f"{model.n_ctx}",
        ),
        ("recipe", f"{recipe.name}: {recipe.batch_size} windows a step, {optimizer} {recipe.lr:g}"),
    ]
    epochs = rows[-1].tokens / store.train_tokens
    return Panel(
        "run",
        "1. The run",
        verification(demo.verification)
        + page.table(("", ""), run_facts(run, data, epochs))
        + loss_curve(rows)
        + page.command(
            f"openbook corpus build stdlib --out {_store_path(demo)}",
            f"openbook run verify {_run_path(demo)}",
        ),
    )


def lines_section(demo: CodeDemo) -> Panel:
    """Return part 2: the lines of the behaviour by the files that hold them."""
    decode = demo.run.store.tokenizer.decode
    rows = [
        (
            demo.file_of(one.line.document),
            len(one.lines),
            decode(one.line.tokens[: one.line.half]),
            decode(one.line.continuation),
            decode(one.generated),
            f"{one.right:.2f}",
            ", ".join(demo.file_of(document) for document in one.line.holders),
            line_readings(demo.run, one.line),
        )
        for one in demo.completions
    ]
    heads = (
        *("held-out file", "lines", "the first: shown", "goes on", "model", "right"),
        *("training files that hold it", "line read"),
    )
    least, most = KnownLine.LENGTHS
    return Panel(
        "known-lines",
        "2. The lines, and the files that hold them",
        f"<p class=claim>{_held(demo)}</p>"
        + _ranked(demo)
        + "<p>The first line of each group of lines that the same files hold:</p>"
        + page.table(heads, rows)
        + "<p class=limit>“right” is the share of the second half's tokens that the model ranks "
        "first, given those before; “line read” counts the steps that read the line in a training "
        "file, each once.</p>"
        f"<p><b>How the lines were chosen.</b> A line has {least} to {most} tokens. The prompt is "
        f"the {KnownLine.SHOWN} tokens of code before its second half. In most places where "
        "training files have the first half, they go on as the line does, and the second half does "
        f"not stand in the prompt: it cannot be copied from there. {_were_read(demo)}These are the "
        "largest groups of lines that the same files hold. The rule counts tokens, and no answer "
        "of the model enters it.</p>"
        "<p><b>What it is compared with.</b> In the comparison prompt the first half is that of "
        "another known line, equally long and held by other files, and the foil is the first token "
        "of that line's second half. Of these lines it is the one whose token follows the last "
        "token of the prompt most often, so that a guess from that token is hard. "
        f"{guesses(demo.completing)}</p>"
        + _untrained(demo.completing)
        + page.command(
            f"openbook index build {_store_path(demo)}",
            f"openbook patch {_run_path(demo)} {shell_path(demo.behaviour_file)} --over heads",
            f"openbook trace sentence {_run_path(demo)} {_traced(demo)} --method lexical",
        ),
    )


def _untrained(found: HeadEffects) -> str:
    """Return what the heads of the components panel restore in a model that was not trained."""
    if found.effects is None or found.effects.control is None:
        return ""
    largest = found.effects.control.abs().max().item()
    return (
        "<p><b>Control of the heads.</b> Patched in the same way, the heads of an untrained model "
        f"restore at most {largest:.2f} of the difference.</p>"
    )


def _ranked(demo: CodeDemo) -> str:
    """Return the table of the removed files and the next three, with what each of them holds."""
    removed = {*demo.removed.documents}
    rows = [
        (
            rank,
            demo.file_of(one.document),
            one.document,
            f"{one.score:,.0f}",
            sum(one.document in line.holders for line in demo.lines),
            f"{one.steps[0]:,}",
            len(one.steps),
            "yes" if one.document in removed else "no",
        )
        for rank, one in enumerate(demo.sources.top(len(removed) + NEXT), start=1)
    ]
    heads = ("rank", "file", "document", "score", "lines it holds", "first read at step")
    return page.table(
        (*heads, "steps that read it", "removed for the proof"),
        rows,
        caption=f"The removed files and the next {NEXT} at most, of the "
        f"{len(demo.sources)} ranked. Score: surprise of the shared stretches, in nats, divided by "
        "the number of files that hold them",
    )


def _held(demo: CodeDemo) -> str:
    """Return what the ranking has to do with the files that hold the lines."""
    holders, first = {*demo.holders}, demo.removed.documents
    found = ", ".join(
        f"{demo.file_of(document)}{'' if document in holders else ' (holds none)'}"
        for document in first
    )
    return escape(
        f"{count(len(demo.lines), 'line')} of held-out files stand word for word in "
        f"{count(len(holders), 'training file')}. Ranked by the words of the lines, "
        f"{len(holders & {*first})} of the first {len(first)} files are such: {found}."
    )


def _were_read(demo: CodeDemo) -> str:
    """Return the sentence on the part of the rule that holds unless no line was read."""
    read = any(line_readings(demo.run, line) for line in demo.lines)
    return "Lines that no step read in a training file are left out. " if read else ""


def _read_how_often(demo: CodeDemo) -> str:
    """Return in how many steps the lines were read, and what may move the result."""
    readings = sorted(line_readings(demo.run, line) for line in demo.lines)
    if not readings[-1]:
        return "No step read one of them; only other parts of their files were read."
    middle = readings[(len(readings) - 1) // 2]
    return (
        f"Each of the {count(len(readings), 'line')} was read in {readings[0]} to "
        f"{count(readings[-1], 'step')} of {demo.run.steps[-1]:,}, half of them in at most "
        f"{middle}. More controls (<code>--controls</code>) narrow the interval; more steps, or "
        "other files, may move the number."
    )


def _proof(demo: CodeDemo) -> Panel:
    proof = demo.proof
    changes = {one.name: one for one in proof.changes}
    first, halves, *_ = proof.changes
    case = demo.completing.behaviour.case_name
    copying = changes[demo.copying.behaviour.name]
    others = [one for one in proof.changes if not one.related and one is not copying]
    removed = ", ".join(demo.file_of(document) for document in proof.removed)
    rows = [
        (name, documents)
        for name, documents in [
            ("removed", removed),
            *(
                (f"control {number}", ", ".join(demo.file_of(one) for one in control))
                for number, control in enumerate(proof.control, start=1)
            ),
        ]
    ]
    claims = [
        f"The first token of the second half of {count(len(demo.lines), 'known line')}: "
        f"{effect_sentence(first, case)}",
        f"Their whole second halves: {effect_sentence(halves, case)}",
        *(f"Those of lines that other files hold: {effect_sentence(one, case)}" for one in others),
        f"Copying a name from the prompt, which should depend on no single file: "
        f"{effect_sentence(copying)}",
    ]
    return Panel(
        "retrained",
        "3. The proof in detail",
        "<p class=claim>Trained again without the first-ranked files of part 2 "
        f"({count(len(proof.removed), 'file')}, copies included), everything else the same to the "
        "bit, from the last checkpoint that kept its optimizer before one of them was read (step 0 "
        "if none did). The numbers are changes of log-probability, beyond those of trainings "
        "without as many random files of like length "
        f"({count(len(proof.control), 'control')}).</p>"
        + "".join(f"<p class=claim>{claim}</p>" for claim in claims)
        + page.table(("", "files"), rows)
        + "<p class=limit>Removed files are blanked: order, shapes, positions, steps and divisors "
        f"stay. The first removed file was read at step {_first_read(demo):,} of "
        f"{demo.run.steps[-1]:,}. One initial seed.</p>"
        f"<p><b>How often the lines were read.</b> {_read_how_often(demo)}</p>"
        + page.command(
            f"openbook trace sentence {_run_path(demo)} {_traced(demo)} --method lexical --out "
            "sources.json",
            f"openbook counterfactual {_run_path(demo)} {shell_path(demo.behaviour_file)} "
            f"--without sources.json --top {len(demo.removed)} --seeds {len(proof.control)}",
        ),
    )


def _first_read(demo: CodeDemo) -> int:
    return min(int(demo.run.steps_learned(one)[0]) for one in demo.proof.removed)


def effect_sentence(change: Change, case: str = "prompt") -> str:
    """Return an effect with n and interval, and what it shows in plain words.

    `case` is what n counts (`Behaviour.case_name`).
    """
    effect = change.effect
    if effect.low is None or effect.high is None:
        return f"{effect.mean:+.3f} {change.unit} on {count(effect.n, case)}, no interval."
    number = (
        f"{effect.mean:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}] {change.unit} on "
        f"{count(effect.n, case)}"
    )
    if effect.seeds < 2:
        over = "holds 0" if effect.low <= 0 <= effect.high else "does not hold 0"
        return (
            f"{number}. The interval is over {case}s and {over}; how far chance alone moves the "
            f"number is unknown with {count(effect.seeds, 'control')}."
        )
    if effect.within_noise:
        return f"{number}. The interval holds 0: no effect was shown."
    worse = "less" if effect.mean < 0 else "more"
    return f"{number}. The interval does not hold 0: without these files it is {worse} probable."


def _run_path(demo: CodeDemo) -> str:
    return shell_path(demo.run.path)


def _store_path(demo: CodeDemo) -> str:
    return shell_path(demo.run.store.path)


def _traced(demo: CodeDemo) -> str:
    """Return the text for which files are ranked, as a shell reads it."""
    return f'"$(cat {shell_path(demo.text_file)})"'
