"""What a notebook shows of the objects that a reader meets first has their own numbers.

Jupyter's formatter makes the HTML, as it does for a value at the end of a cell.
"""

import pytest
from IPython.core.formatters import HTMLFormatter

from data_attribution import attribution, token_index, tracing
from interp import behaviours, models, patching
from tests.train.test_html_panel import Read
from train.html_panel import interval
from train.progress import listed


@pytest.fixture(scope="module")
def index(released_run):
    return token_index.build(released_run.store)


@pytest.fixture(scope="module")
def model(released_run):
    return models.load(released_run)


def shown(value: object) -> Read:
    html = HTMLFormatter()(value)
    assert html is not None
    assert len(html.encode()) < 10_000
    return Read(html)


def rows(found: Read, width: int, *, after: int = 0) -> list[list[str]]:
    cells = found.cells[after:]
    return [cells[at : at + width] for at in range(0, len(cells), width)]


def test_a_run_shows_how_much_is_known_and_how_it_was_trained(released_run):
    found = shown(released_run)
    assert "knowledge full" in found.text
    assert f"steps {released_run.recipe.steps}" in found.text
    assert released_run.id in found.text
    assert "does not show that its files are intact" in found.text


def test_a_check_and_effects_show_their_intervals_and_the_missing_control(released_run, model):
    ioi = behaviours.load("ioi", released_run)
    assert "n 64 tokens 15" in shown(ioi).text
    check = behaviours.check(model, ioi)
    accuracy = interval(check.accuracy, *check.interval)
    assert f"accuracy {accuracy}" in shown(check).text
    effects = patching.heads(model, ioi)
    found = shown(effects)
    assert "control none" in found.text
    layers, heads = effects.values.shape
    grid = rows(found, heads + 1)[: layers + 1]
    assert grid[-1][0] == ""
    assert grid[layers - 1] == ["L0", *(f"{value:.2f}" for value in effects.values[0].tolist())]
    table = rows(found, 4, after=(layers + 1) * (heads + 1))
    assert table[0] == ["layer", "head", "place", "effect"]
    for row, name in zip(table[1:], effects.top(8), strict=False):
        assert row[2:] == [name, interval(effects[name], *(effects.interval(name) or ()))]


def test_exposure_and_counts_show_those_of_the_index(released_run, index):
    exposure = tracing.exposure_of_text(released_run, "the capital of", index=index)
    found = shown(exposure)
    last = rows(found, 3)[-1]
    assert last == [str(exposure.before), *(
        f"{value:.4g}" for value in (exposure.readings, exposure.even(exposure.before))
    )]  # fmt: skip
    counted = index.count("the capital of")
    assert f"occurrences {counted.count}" in shown(counted).text
    following = index.next_tokens("the capital of")
    (first,) = rows(shown(following), 3)[1:2]
    assert first[:2] == [repr(following[0].text), str(following[0].count)]
    hits = index.find("the capital of", limit=20)
    assert rows(shown(hits), 5)[1] == [str(part) for part in hits[0]]
    assert "and 10 more rows" in shown(hits).text


def test_sources_show_what_was_tried_and_when_a_document_was_read(released_run, index):
    fact = behaviours.load("fact:runethi", released_run)
    sources = attribution.documents(released_run, fact, methods="lexical", limit=3)
    found = shown(sources)
    assert "retrained without none of them" in found.text
    assert rows(found, 7)[1][3] == sources.items[0].span
    steps = sources.items[0].steps
    begin = f"{listed(steps[:3])} and {len(steps) - 3} more"
    assert rows(found, 7)[1][4] == begin
