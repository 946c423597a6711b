"""The panel that says how much of a text chance would find in the training text."""

from collections.abc import Sequence

import numpy as np

from data_attribution.report import svg
from data_attribution.report.page import Panel, command, table
from data_attribution.report.svg import Line
from data_attribution.report.text import typed_text
from data_attribution.report.text_results import TextPage
from train.progress import count
from train.statistics import Estimate


__all__ = ["chance_panel"]

SENTENCE = 200  # letters of the text in a command
LENGTHS = 16  # rows of the table of lengths, spread over all of them


def chance_panel(found: TextPage) -> Panel:
    """Return the panel of the controls."""
    chance, at = found.chance, _shown_lengths(found)
    columns = [("this text", [f"{chance.text[k]:.0%}" for k in at])]
    columns += [(f"shuffled, n = {chance.n}", [_percent(chance.shuffled[k]) for k in at])]
    curves = [Line("this text", [chance.text[k] for k in at])]
    if chance.held_out:
        heading = f"held out, n = {chance.n_held_out}"
        columns += [(heading, [_percent(chance.held_out[k]) for k in at])]
        curves += [Line("held-out text", [chance.held_out[k].value for k in at])]
    curves += [Line("shuffled", [chance.shuffled[k].value for k in at], dashed=True)]
    lengths = [f"{chance.lengths[k]:,}" for k in at]
    figure = svg.lines(
        curves, lengths, across="length of a span, at least, in tokens", up="share of tokens"
    )
    rows = list(zip(lengths, *(values for _, values in columns), strict=True))
    numbers = table(("tokens, at least", *(name for name, _ in columns)), rows)
    share = found.at_minimum(chance.text)
    shuffled = found.at_minimum(chance.shuffled)
    return Panel(
        "chance",
        "Chance",
        f'<div class="pair"><div>{figure}</div><div>{numbers}</div></div>{_explained(found)}',
        question="How much would chance find there?",
        answer=f"{_percent(shuffled)} of shuffled text (n = {chance.n}), against {share:.0%} of "
        "this one"
        f"<small>{_beside_held_out(found)}</small>",
    )


def _shown_lengths(found: TextPage) -> list[int]:
    """Return the rows of the table: all lengths, or some from the first to the last of many."""
    n = len(found.chance.lengths)
    if n <= LENGTHS:
        return list(range(n))
    rows = np.geomspace(1, n, LENGTHS - 1).round().astype(int) - 1
    return sorted({*rows.tolist(), min(found.minimum, n) - 1})


def _explained(found: TextPage) -> str:
    chance = found.chance
    if found.minimum == chance.minimum:
        why = (
            f"Spans are shown from {count(found.minimum, 'token')} on: the shortest length at "
            f"which {chance.n_choosing} shuffled texts have on average at most 5 % of their tokens "
            f"in such spans. Reported are {chance.n} others, which did not choose that length and "
            "may have more."
        )
    else:
        why = (
            f"Spans are shown from {count(found.minimum, 'token')} on, as was asked; "
            f"{chance.n_choosing} other shuffled texts have on average at most 5 % of their tokens "
            f"in spans from {count(chance.minimum, 'token')} on."
        )
    if chance.held_out:
        held_out = (
            "Held-out texts are documents of the same corpus that the run never read: what this "
            "text shares with the training text beyond them is more than being of its kind. No "
            "two of them share a document."
        )
    else:
        held_out = (
            f"The corpus has {'too little' if found.has_held_out else 'no'} held-out text, so "
            "how much any text of this kind shares is unknown."
        )
    return (
        f"<p>{why} A shuffled text has the words of this one in random order. {held_out} Each "
        f"control has {count(chance.n_tokens, 'token')}; means and 95 % intervals over the n texts "
        "of its column; a single text, as this one, has no interval. Where all n have the same "
        "share, the interval is Wilson's bound on the part of texts that have another one."
        '</p><p class="limit">That a span stands in the training text does not prove that the '
        "model copied it from there: only training again without the documents shows what they "
        f"did.</p>{command(*_retraining(found))}"
    )


def _beside_held_out(found: TextPage) -> str:
    chance = found.chance
    if not chance.held_out:
        return "no held-out text of its kind to compare with"
    share = _percent(found.at_minimum(chance.held_out))
    n = f"n = {chance.n_held_out}{', no interval' * (chance.n_held_out < 2)}"
    return f"{share} of other text of its kind, which was held out ({n})"


def _retraining(found: TextPage) -> Sequence[str]:
    """Return the command that proves what taught the text; of a long one, its unlikeliest span."""
    text, spans = found.text, found.spans
    if len(text) > SENTENCE and spans:
        text = min(spans, key=lambda one: one.span.log_probability).span.text
    said = typed_text(" ".join(text.split())[:SENTENCE], "--prove 2")
    return (f"openbook trace sentence {found.place} {said}",)


def _percent(one: Estimate) -> str:
    ends = "" if one.low is None or one.high is None else f" [{one.low:.0%}, {one.high:.0%}]"
    return f"{one.value:.0%}{ends}"
