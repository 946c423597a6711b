"""Parts 4 and 5 of the page on Python's sources: copying a name, and when its head formed."""

from html import escape

from data_attribution.demo import CodeDemo, Formation, HeadEffects
from data_attribution.report import page, svg
from data_attribution.report.demo_parts import share
from data_attribution.report.page import Panel, shown
from data_attribution.report.svg import Line
from interp.training_dynamics import TrajectoryPoint


__all__ = ["copying_section", "effect_text", "formation_figure", "formation_section", "guesses"]

FILES = 20  # files that are listed of those read in a window


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
        f"{check.top1:.2f}. {guesses(copying)}</p>"
        "<p>The end of the first prompt:</p>"
        f"<div class=text>{shown(page.ending(decode(behaviour.clean[0].tolist()), 400))}</div>"
        f"<p class=small>right: {escape(repr(answer))}; wrong: {escape(repr(foil))}</p>"
        + _heads(copying)
        + page.command(
            f"openbook patch {page.shell_path(demo.run.path)} code-copy --over heads --prompts 128"
        ),
    )


def guesses(found: HeadEffects) -> str:
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
        (name, effect_text(effects[name], effects.interval(name)), f"{untrained[name]:.2f}")
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


def formation_section(demo: CodeDemo) -> Panel:
    """Return part 5: the scores of heads over training, and what was read as one formed."""
    return Panel(
        "formation",
        "5. When the head that copies formed",
        formation_figure(demo.formation)
        + _read(demo)
        + page.command(f"openbook emergence {page.shell_path(demo.run.path)} detectors"),
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
        (demo.file_of(document), readings, f"{store.lengths[document]:,}")
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


def _low(one: TrajectoryPoint) -> float:
    return one.value if one.low is None else one.low


def _high(one: TrajectoryPoint) -> float:
    return one.value if one.high is None else one.high


def _point(one: TrajectoryPoint) -> str:
    return share(one.value, one.low, one.high)


def effect_text(value: float, interval: tuple[float, float] | None) -> str:
    return share(value, *(interval or (None, None)))
