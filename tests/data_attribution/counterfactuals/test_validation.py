"""What was shown by retraining is marked on the rows that were removed, and on no other."""

from dataclasses import replace

import numpy as np
import pytest

from data_attribution import counterfactuals
from data_attribution.attribution import Source, Sources
from data_attribution.counterfactuals import Change, Counterfactual
from data_attribution.errors import CounterfactualError, EvidenceError


ROWS = tuple(
    Source(k, f"made/{k}", "a", "a", 5.0 - k, "gradient", (1,), start=0, length=1) for k in range(4)
)
SOURCES = Sources("capital", "fused", ROWS, {"run": "0123"})


def change(name: str, fell: float, moved: float = 0.05) -> Change:
    before = np.linspace(-0.2, 0, 10)
    jitter = np.linspace(-0.1, 0.1, 10)
    controls = np.stack([before + moved + jitter, before - moved - jitter])
    after = before - fell + 0.001 * np.sin(np.arange(10))  # hardly the same on all prompts
    return Change(name, "nats", related=True, before=before, after=after, controls=controls)


def proof(*changes: Change, removed: tuple[int, ...] = (0, 2, 9)) -> Counterfactual:
    return Counterfactual(
        parent="0123",
        mode="blank",
        named=(0, 2),
        together="near",
        removed=removed,
        control=((5, 6, 7), (10, 11, 12)),
        runs=(),
        choices=(),
        before=(),
        after=(),
        controls=(),
        changes=changes,
        avoided=3,
    )


def test_rows_that_were_removed_carry_the_effect_and_the_highest_grade():
    found = counterfactuals.marked_sources(
        SOURCES, proof(change("other", 0.0), change("capital", 3.0))
    )
    assert [one.grade for one in found] == [
        "counterfactual", "gradient", "counterfactual", "gradient",
    ]  # fmt: skip
    effect = found.items[0].effect
    assert effect is not None
    assert (effect.question, effect.together, effect.controls) == ("capital", 3, 2)
    assert effect.mean == pytest.approx(-3.0, abs=1e-3)
    assert effect.low < -3 < effect.high < 0
    assert found.items[1].effect is None
    assert found.documents == SOURCES.documents


def test_an_effect_within_its_noise_is_shown_and_proves_nothing():
    found = counterfactuals.marked_sources(SOURCES, proof(change("capital", 0.05, moved=0.3)))
    assert {one.grade for one in found} == {"gradient"}
    assert found.items[0].effect is not None
    gained = counterfactuals.marked_sources(SOURCES, proof(change("capital", -3.0)))
    assert {one.grade for one in gained} == {"gradient"}


def test_one_control_measures_an_effect_and_grades_no_row():
    """Ten prompts fell by 3 nats each, and what chance does was seen once."""
    whole = change("capital", 3.0)
    for seen in (0, 1):
        alone = replace(whole, controls=whole.controls[:seen])
        found = counterfactuals.marked_sources(SOURCES, proof(alone))
        effect = found.items[0].effect
        assert effect is not None
        assert effect.high < -2
        assert effect.controls == seen
        assert {one.grade for one in found} == {"gradient"}


def test_a_proof_of_something_else_is_refused():
    whole = proof(change("capital", 3.0))
    with pytest.raises(EvidenceError, match="is of run 4567, the sources are of 0123"):
        counterfactuals.marked_sources(SOURCES, replace(whole, parent="4567"))
    with pytest.raises(EvidenceError, match="none of the 4 rows"):
        counterfactuals.marked_sources(SOURCES, replace(whole, removed=(8, 9)))
    with pytest.raises(CounterfactualError, match="was not asked"):
        counterfactuals.marked_sources(SOURCES, whole, "color")
