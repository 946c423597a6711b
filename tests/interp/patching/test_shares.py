"""An effect is the share of a difference: 0 at one end, 1 at the other, in both directions.

Everything a sweep shows is derived from scores per patch and prompt; here it is derived again by
hand, for any metric, for prompts that occur more than once, and for places that nothing varies.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp import components, metrics, patching
from interp.behaviours import Behaviour
from interp.errors import (
    BehaviourError,
    CapabilityError,
    ContrastError,
    EffectsError,
    UninformativeWarning,
)
from interp.patching import PairedRuns, paired_runs
from interp.patching.engine import reference
from tests.worlds.behaviours import said_by
from train import statistics
from train.model import GPT, GPTConfig, init_gpt


CFG = GPTConfig(n_layers=2, n_heads=2, d_model=16, n_ctx=8, d_vocab=30, init_std=0.3)


@pytest.fixture(scope="module")
def model() -> GPT:
    return init_gpt(CFG, seed=0).eval()


@pytest.fixture(scope="module")
def behaviour(model) -> Behaviour:
    """Prompts that differ from position 2 on; the answers are what the model says of them."""
    draw = torch.Generator().manual_seed(0)
    clean, corrupt = (torch.randint(30, (7, 6), generator=draw) for _ in range(2))
    corrupt[:, :2] = clean[:, :2]
    return said_by(model, clean, corrupt)


@pytest.mark.parametrize("direction", paired_runs.DIRECTIONS)
@pytest.mark.parametrize("name", metrics.METRICS)
def test_shares_are_scores_between_the_two_ends(model, behaviour, direction, name):
    metric = metrics.named(name, behaviour)
    found = patching.mlps(model, behaviour, metric=metric, direction=direction)
    clean, corrupt = (
        metric.of_logits(model(tokens)).mean().item()
        for tokens in (behaviour.clean, behaviour.corrupt)
    )
    here, there = behaviour.corrupt, behaviour.clean
    start, goal = corrupt, clean
    if direction == "noising":
        here, there, start, goal = there, here, goal, start
    patches = [[place] for place in map(components.parse, found.names)]
    hooks = [place.hook for (place,) in patches]
    _, source = model.run_with_cache(there, names_filter=hooks)
    source = {name: source[name].detach() for name in hooks}
    by_hand = (
        reference.reference_scores(model, here, patches, source, [metric]).scores[0].mean(dim=1)
    )
    torch.testing.assert_close(
        found.values.double(), (by_hand - start) / (goal - start), rtol=0, atol=1e-5
    )
    assert (found.clean, found.corrupt) == (
        pytest.approx(clean, abs=1e-5),
        pytest.approx(corrupt, abs=1e-5),
    )
    assert found.metric == metric.name
    assert metric.name in found.unit


def test_everything_restored_is_1_and_nothing_is_0(model, behaviour):
    everything = patching.residual(model, behaviour, positions=[range(6)])
    torch.testing.assert_close(everything.values, torch.ones(2, 1), rtol=0, atol=1e-5)
    nothing = patching.residual(model, behaviour, positions=[0, 1])
    assert nothing.values.abs().max() == 0


def test_several_metrics_in_one_pass_are_each_what_it_is_alone(model, behaviour):
    every = [make(behaviour) for make in metrics.METRICS.values()]
    together = patching.heads(model, behaviour, metric=every)
    for metric in every:
        alone = patching.heads(model, behaviour, metric=metric)
        torch.testing.assert_close(together.of(metric.name).values, alone.values)
        torch.testing.assert_close(together.of(metric.name).low, alone.low)
    with pytest.raises(EffectsError, match=r"no metric 'probabilty' was measured.*'probability'"):
        together.of("probabilty")


def test_the_same_metric_twice_or_none_at_all_is_refused(model, behaviour):
    same = [metrics.probability(behaviour)] * 2
    for given in ([], same):
        with pytest.raises(BehaviourError, match=f"{len(given)} metrics were given"):
            patching.heads(model, behaviour, metric=given)


def test_a_prompt_that_occurs_twice_is_counted_once_in_the_interval(model, behaviour):
    tensors = ("clean", "corrupt", "answer", "foil")
    doubled = replace(
        behaviour, **{name: getattr(behaviour, name).repeat_interleave(2, 0) for name in tensors}
    )
    once, twice = patching.heads(model, behaviour), patching.heads(model, doubled)
    assert (once.n_prompts, twice.n_prompts) == (7, 7)
    torch.testing.assert_close(once.values, twice.values)
    torch.testing.assert_close(once.low, twice.low)
    torch.testing.assert_close(once.high, twice.high)


def test_prompts_of_a_group_are_summed_in_the_interval_and_the_share_stays(model, behaviour):
    groups = (0, 1, 2, 3, 4, 5, 5)
    apart = patching.heads(model, behaviour)
    grouped = patching.heads(model, replace(behaviour, groups=groups))
    assert (apart.n_prompts, grouped.n_prompts) == (7, 6)
    torch.testing.assert_close(grouped.values, apart.values)
    member = np.equal.outer(groups, range(6)).astype(float)
    assert apart.part is not None
    assert apart.whole is not None
    part, whole = (one.double().numpy() @ member for one in (apart.part, apart.whole))
    ends = statistics.ratio_interval(part, whole)
    assert ends is not None
    assert grouped.low is not None
    assert grouped.high is not None
    assert apart.low is not None
    low, high = ends
    np.testing.assert_allclose(grouped.low, low, rtol=1e-4)
    np.testing.assert_allclose(grouped.high, high, rtol=1e-4)
    assert not np.allclose(grouped.low, apart.low)


def test_the_contrast_knows_how_much_the_prompts_share(model, behaviour):
    runs = PairedRuns.of(model, behaviour)
    assert runs.shared == 2
    assert torch.equal(runs.receiver, behaviour.corrupt)
    assert torch.equal(runs.donor, behaviour.clean)
    noised = PairedRuns.of(model, behaviour, direction="noising")
    np.testing.assert_allclose(noised.start, runs.goal)
    np.testing.assert_allclose(noised.goal, runs.start)


def test_a_metric_that_scores_both_alike_is_refused_by_its_name(model, behaviour):
    before = metrics.custom("too early", lambda x: x[:, 0, 3], unit="nats", positions=(1,))
    with pytest.raises(ContrastError, match=r"on clean and .* on corrupt prompts \(too early\)"):
        patching.heads(model, behaviour, metric=before)


def test_what_the_model_cannot_do_is_refused_whatever_the_metric(model, behaviour):
    backwards = replace(behaviour, answer=behaviour.foil, foil=behaviour.answer)
    with pytest.raises(CapabilityError, match=r"accuracy 0\.00"):
        patching.heads(model, backwards, metric=metrics.probability(backwards))


def test_places_that_the_contrast_does_not_vary_are_counted_and_warned_of(model, behaviour):
    # Only the last token differs: nothing that an earlier position computes does.
    late = behaviour.clean.clone()
    late[:, -1] = (late[:, -1] + 1) % 30
    behaviour = replace(behaviour, corrupt=late)
    with pytest.warns(UninformativeWarning, match=r"2 of 3 places"):
        found = patching.together(model, behaviour, [["L0H0@1"], ["L1.mlp@4"], ["L1.mlp@5"]])
    assert found.values[:2].tolist() == [0, 0]
    assert any("2 of 3 places" in note for note in found.notes)
