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
from data_attribution.report import behaviour_page, page, svg
from data_attribution.report.behaviour_results import BehaviourResults, gather
from data_attribution.report.demo_parts import loss_curve, run_facts, share, verification
from data_attribution.report.page import Panel, shown
from data_attribution.report.svg import Line
from interp.training_dynamics import TrajectoryPoint
from train import storage
from train.progress import count


__all__ = [
    "code_html",
    "code_summary",
    "copying_section",
    "effect_sentence",
    "formation_figure",
    "formation_section",
    "lines_section",
    "write_code_page",
]

FILES = 20  # files that are listed of those read in a window
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
    files = ", ".join(_file(demo, document) for document in demo.removed.documents)
    holding = len({*demo.removed.documents} & {*demo.holders})
    return "\n".join(
        (
            f"run {demo.run.id}: {len(demo.run.ledger):,} steps, {demo.verification.level}",
            _in_a_line(demo.completing),
            f"first files by their words, {holding} of {count(len(demo.removed), 'file')} hold "
            f"them: {files}",
            f"without {count(len(proof.removed), 'file')}: {effect_sentence(proof.changes[0])}",
            "beside it, another behaviour:",
            _in_a_line(demo.copying),
            f"{formation.induction} {score.value:.2f}{between}",
        )
    )


def _in_a_line(found: HeadEffects) -> str:
    low, high = found.check.interval
    best = (
        f"; {(head := found.effects.top(1)[0])} alone restores "
        f"{_effect(found.effects[head], found.effects.interval(head))}"
        if found.effects
        else "; heads were not patched"
    )
    return (
        f"{found.behaviour.name} right in {found.check.accuracy:.2f} [{low:.2f}, {high:.2f}] of "
        f"{found.check.n}{best}"
    )


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
        named=quote(str(demo.behaviour_file)),
        traced=_traced(demo),
        by_head=completing.effects,
        sources=demo.sources,
        proof=demo.proof.to_dict(),
    )


def _head(demo: CodeDemo) -> str:
    store, n, line = demo.run.store, len(demo.lines), demo.lines[0]
    decode = store.tokenizer.decode
    files = ", ".join(f"<code>{shown(_file(demo, one))}</code>" for one in demo.holders)
    return (
        f"<p>A GPT of {demo.run.config.n_params:,} parameters, trained on "
        f"{store.manifest['counts']['train_documents']:,} files of the "
        f"{shown(store.manifest['corpus']['source'])}. Nothing here is planted: the text is real, "
        "and every file and every step that read it is known.</p>"
        f"<p>The task: <b>complete a line</b>, such as <code>{shown(_half(demo, line))}</code>"
        f"<mark><code>{shown(decode(line.continuation))}</code></mark> of "
        f"<code>{shown(_file(demo, line.document))}</code>. The model reads the code up to the "
        "middle of the line, and the answer is the next token. "
        f"{'Each of' if n > 1 else ''} {count(n, 'such line')} stands in a file that was held out "
        "from training, and word for word in files that were read: "
        f"{files}. The second half does not stand in the prompt, so it cannot be copied from "
        "there.</p>"
        f"<p>All four panels are of {'these lines' if n > 1 else 'this line'}, and parts 1 to 3 "
        "below have the details. Parts 4 and 5 are of another behaviour, copying a name, whose "
        "answer stands in the prompt.</p>"
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


def formation_section(demo: CodeDemo) -> Panel:
    """Return part 5: the scores of heads over training, and what was read as one formed."""
    return Panel(
        "formation",
        "5. When the head that copies formed",
        formation_figure(demo.formation)
        + _read(demo)
        + page.command(f"openbook emergence {_run_path(demo)} detectors"),
    )


def formation_figure(formation: Formation) -> str:
    """Return what is said of an induction head's formation, with its figure and numbers."""
    trajectory = formation.trajectory
    names = (formation.induction, formation.previous)
    curves = [trajectory.curve(name) for name in names]
    figure = svg.lines(
        [
            Line(
                name,
                [one.value for one in curve],
                [_low(one) for one in curve],
                [_high(one) for one in curve],
            )
            for name, curve in zip(names, curves, strict=True)
        ],
        [str(one.step) for one in curves[0]],
        across="step, not evenly spaced",
        up="mean attention",
    )
    rows = [
        (name, _point(curve[0]), _point(curve[-1]), curve[-1].n)
        for name, curve in zip(
            (*names, "copying gap"), (*curves, trajectory.curve("copying gap")), strict=True
        )
    ]
    last = curves[0][-1]
    return (
        f"<p class=claim>{_formed(formation)}</p>"
        + figure
        + page.table(("", "untrained", "last step", "n"), rows)
        + "<p class=limit>Scores are on random tokens of the whole vocabulary, "
        f"{last.n} sequences of {formation.length} tokens said twice: attention to the token after "
        "the previous occurrence, and attention to the previous token. The copying gap is in "
        "nats a token. Intervals: 95 % over sequences. Heads are chosen by their score "
        "at the last step.</p>"
    )


def _formed(formation: Formation) -> str:
    last = formation.trajectory.curve(formation.induction)[-1]
    head = formation.induction.removeprefix("induction ")
    if last.value < Formation.LEAST:
        return (
            f"No induction head formed in {last.step:,} steps: the best head, {head}, scores "
            f"{_point(last)}, and {Formation.LEAST} is the least that is called one here."
        )
    if formation.window is None:
        return (
            f"{head} scores {_point(last)}, but was never measured below a third of that, so "
            "the time at which it formed is not known."
        )
    first, end = formation.window
    return (
        f"{head} is the induction head, with a score of {_point(last)}. It rose from below a third "
        f"to above two thirds of that between steps {first:,} and {end:,}."
    )


def _read(demo: CodeDemo) -> str:
    formation, store = demo.formation, demo.run.store
    if formation.window is None:
        return ""
    rows = [
        (_file(demo, document), readings, f"{store.lengths[document]:,}")
        for document, readings in formation.read[:FILES]
    ]
    n_read, n_files = len(formation.read), store.manifest["counts"]["train_documents"]
    return (
        f"<p>In these steps {n_read:,} of the {n_files:,} files were read. The "
        f"{min(FILES, n_read)} that most steps read:</p>"
        + page.table(("file", "steps that read it", "tokens"), rows)
        + "<p class=limit>Windows are drawn evenly, so long files are read in more steps. What was "
        "read while the head formed is known exactly; that these files formed it is not shown."
        "</p>"
    )


def copying_section(demo: CodeDemo) -> Panel:
    """Return part 4: the behaviour, guesses without a model, and the effect of every head."""
    copying = demo.copying
    check, behaviour = copying.check, copying.behaviour
    decode = demo.run.store.tokenizer.decode
    low, high = check.interval
    answer, foil = (decode(one[:1].tolist()) for one in (behaviour.answer, behaviour.foil))
    return Panel(
        "copying",
        "4. Another behaviour: copying a name",
        "<p>This part and the next are not of the lines above. Here the answer stands in the "
        "prompt, so no single file has to have taught it.</p>"
        f"<p class=claim>A name of held-out code goes on as it did earlier in the prompt: on "
        f"{check.n} prompts the model prefers the right token to the wrong one in "
        f"{check.accuracy:.2f} [{low:.2f}, {high:.2f}], and ranks it first of all tokens in "
        f"{check.top1:.2f}. {_guesses(copying)}</p>"
        "<p>The end of the first prompt:</p>"
        f"<div class=text>{shown(page.ending(decode(behaviour.clean[0].tolist()), 400))}</div>"
        f"<p class=small>right: {escape(repr(answer))}; wrong: {escape(repr(foil))}</p>"
        + _heads(copying)
        + page.command(f"openbook patch {_run_path(demo)} code-copy --over heads --prompts 128"),
    )


def _guesses(found: HeadEffects) -> str:
    """Return a sentence on how often guesses without a model are right."""
    guesses = found.baselines
    return (
        "Without a model, the more frequent follower of the last token is right in "
        f"{guesses.bigram:.2f}, the more frequent token in {guesses.frequent:.2f}, and what "
        f"followed most recently in {guesses.recent:.2f}."
    )


def _heads(found: HeadEffects) -> str:
    effects = found.effects
    if effects is None:
        return (
            "<p class=claim>Heads were not patched, because their shares would mean nothing: "
            f"{escape(found.refusal)}.</p>"
        )
    values = effects.values.tolist()
    assert effects.control is not None  # `play_code` measures one.
    untrained = dict(zip(effects.names, effects.control.flatten().tolist(), strict=True))
    rows = [
        (name, _effect(effects[name], effects.interval(name)), f"{untrained[name]:.2f}")
        for name in effects.top(len(effects.names))
    ]
    without = (
        ""
        if effects.low is not None
        else " The model hardly tells clean prompts from corrupt ones, so shares have no interval."
    )
    return (
        "<p>The share of the clean-corrupt difference that comes back when one head of the "
        "corrupted run is given its clean value:</p>"
        + svg.heat_map(
            values,
            [f"layer {layer}" for layer in range(len(values))],
            [f"head {head}" for head in range(len(values[0]))],
        )
        + page.table(("head", "share, 95 % over prompts", "untrained model"), rows)
        + f"<p class=limit>Exact patching of {effects.n_prompts} prompts: clean "
        f"{effects.clean:.2f}, corrupt {effects.corrupt:.2f} nats of logit difference.{without}</p>"
    )


def lines_section(demo: CodeDemo) -> Panel:
    """Return part 2: the lines of the behaviour by the files that hold them."""
    decode = demo.run.store.tokenizer.decode
    rows = [
        (
            _file(demo, one.line.document),
            len(one.lines),
            decode(one.line.tokens[: one.line.half]),
            decode(one.line.continuation),
            decode(one.generated),
            f"{one.right:.2f}",
            ", ".join(_file(demo, document) for document in one.line.holders),
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
        "file.</p>"
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
        f"{_guesses(demo.completing)}</p>"
        + _untrained(demo.completing)
        + page.command(
            f"openbook index build {_store_path(demo)}",
            f"openbook patch {_run_path(demo)} {quote(str(demo.behaviour_file))} --over heads",
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
            _file(demo, one.document),
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
        caption="Score: surprise of the shared stretches, in nats, divided by the number of files "
        "that hold them",
    )


def _held(demo: CodeDemo) -> str:
    """Return what the ranking has to do with the files that hold the lines."""
    holders, first = {*demo.holders}, demo.removed.documents
    found = ", ".join(
        f"{_file(demo, document)}{'' if document in holders else ' (holds none)'}"
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
    copying = changes[demo.copying.behaviour.name]
    others = [one for one in proof.changes if not one.related and one is not copying]
    removed = ", ".join(_file(demo, document) for document in proof.removed)
    rows = [
        (name, documents)
        for name, documents in [
            ("removed", removed),
            *(
                (f"control {number}", ", ".join(_file(demo, one) for one in control))
                for number, control in enumerate(proof.control, start=1)
            ),
        ]
    ]
    claims = [
        f"The first token of the second half of {len(first.before)} known lines: "
        f"{effect_sentence(first)}",
        f"Their whole second halves: {effect_sentence(halves)}",
        *(
            f"Those of {len(one.before)} lines that other files hold: {effect_sentence(one)}"
            for one in others
        ),
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
            f"openbook counterfactual {_run_path(demo)} {quote(str(demo.behaviour_file))} "
            f"--without sources.json --top {len(demo.removed)} --seeds {len(proof.control)}",
        ),
    )


def _first_read(demo: CodeDemo) -> int:
    return min(int(demo.run.steps_learned(one)[0]) for one in demo.proof.removed)


def effect_sentence(change: Change) -> str:
    """Return an effect with n and interval, and what it shows in plain words."""
    effect = change.effect
    if effect.low is None or effect.high is None:
        return f"{effect.mean:+.3f} {change.unit} on {count(effect.n, 'prompt')}, no interval."
    number = (
        f"{effect.mean:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}] {change.unit} on "
        f"{count(effect.n, 'prompt')}"
    )
    if effect.seeds < 2:
        over = "holds 0" if effect.low <= 0 <= effect.high else "does not hold 0"
        return (
            f"{number}. The interval is over prompts and {over}; how far chance alone moves the "
            f"number is unknown with {count(effect.seeds, 'control')}."
        )
    if effect.within_noise:
        return f"{number}. The interval holds 0: no effect was shown."
    worse = "less" if effect.mean < 0 else "more"
    return f"{number}. The interval does not hold 0: without these files it is {worse} probable."


def _run_path(demo: CodeDemo) -> str:
    return quote(str(demo.run.path))


def _store_path(demo: CodeDemo) -> str:
    return quote(str(demo.run.store.path))


def _traced(demo: CodeDemo) -> str:
    """Return the text for which files are ranked, as a shell reads it."""
    return f'"$(cat {quote(str(demo.text_file))})"'


def _file(demo: CodeDemo, document: int) -> str:
    return demo.run.store.document(document).shard


def _low(one: TrajectoryPoint) -> float:
    return one.value if one.low is None else one.low


def _high(one: TrajectoryPoint) -> float:
    return one.value if one.high is None else one.high


def _point(one: TrajectoryPoint) -> str:
    return share(one.value, one.low, one.high)


def _effect(value: float, interval: tuple[float, float] | None) -> str:
    return share(value, *(interval or (None, None)))
