"""A ladder changes every part in which two architectures differ, and says what cannot be alone."""

from dataclasses import replace
from itertools import pairwise

import pytest

from train import ladder
from train.errors import RecipeError
from train.ladder import equal_size, factors_between, flops_per_token, part_way, rungs_between
from train.model import PRESETS, GPTConfig, preset


SMALL = [name for name in PRESETS if name.endswith("-nano")]
PAIRS = [(start, end) for start in SMALL for end in SMALL if start != end]
TINY = GPTConfig(n_layers=1, n_heads=2, d_model=16, n_ctx=16, d_vocab=10)


def test_the_factors_from_retro_to_modern_are_its_parts():
    factors = factors_between(preset("retro-nano"), preset("modern-nano"))
    changes = {factor.name: factor.change for factor in factors}
    assert [*changes] == [
        "position", "norm", "norm placement", "MLP", "bias", "attention", "sinks"
    ]  # fmt: skip
    assert changes["MLP"] == "mlp relu -> swiglu"
    assert changes["sinks"] == "sinks none -> learned, n_sinks 0 -> 4"


def test_every_factor_has_a_rung_alone_and_one_after_the_others():
    start = preset("retro-nano")
    factors = factors_between(start, preset("modern-nano"))
    rungs = rungs_between(start, factors)
    names = [factor.name for factor in factors]
    assert [rung.changed[0] for rung in rungs if rung.kind == "alone"] == names
    assert all(rung.base == () for rung in rungs if rung.kind == "alone")
    climbing = [rung for rung in rungs if rung.kind == "cumulative"]
    assert [rung.factors for rung in climbing] == [tuple(names[: n + 1]) for n in range(7)]
    assert all(late.base == early.factors for early, late in pairwise(climbing))
    assert [rung.reason for rung in rungs if rung.reason] == []


@pytest.mark.parametrize(("start", "end"), PAIRS)
def test_no_factor_is_left_out_and_the_last_rung_is_the_end(start, end):
    before, after = preset(start), preset(end)
    factors = factors_between(before, after)
    rungs = rungs_between(before, factors)
    by_name = {factor.name: factor for factor in factors}
    for kind in ("alone", "cumulative"):
        changed = [name for rung in rungs if rung.kind == kind for name in rung.changed]
        assert set(changed) == set(by_name)
    for rung in rungs:
        part_way(before, [by_name[name] for name in rung.factors])
        part_way(before, [by_name[name] for name in rung.base])
    last = part_way(before, [by_name[name] for name in rungs[-1].factors])
    assert replace(last, d_mlp=after.d_mlp) == after


def test_a_part_that_needs_another_is_compared_with_it_and_says_why():
    start, end = preset("retro-nano"), preset("slowrun-nano")
    rungs = rungs_between(start, factors_between(start, end))
    (skips,) = [one for one in rungs if one.kind == "alone" and one.changed == ("U-Net skips",)]
    assert skips.base == ("norm placement",)
    assert skips.factors == ("norm placement", "U-Net skips")
    assert skips.reason == "unet is defined for pre-norm layers; set norm_placement=pre"


def test_a_factor_whose_turn_comes_too_early_waits_for_what_it_needs():
    start, end = preset("gpt2-nano"), preset("slowrun-nano")
    climbing = [
        one for one in rungs_between(start, factors_between(start, end)) if one.kind == "cumulative"
    ]
    names = [rung.changed for rung in climbing]
    assert names.index(("loop",)) == names.index(("depth",)) + 1
    assert climbing[names.index(("loop",))].reason.startswith(
        "comes after what it needs: loop_passes=3"
    )


def test_factors_that_need_each_other_are_one_rung():
    start = replace(TINY, norm_placement="post")
    end = replace(TINY, n_layers=2, unet=True)  # a U-Net needs pre-norm, and two layers
    rungs = rungs_between(start, factors_between(start, end))
    (skips,) = [one for one in rungs if one.kind == "alone" and "U-Net skips" in one.changed]
    assert skips.base == ("norm placement", "depth")
    assert len(skips.factors) == 3


@pytest.mark.parametrize("equal", ["parameters", "compute"])
def test_members_have_the_size_of_the_start(equal):
    start = preset("retro-nano")
    size = {"parameters": lambda cfg: cfg.n_params, "compute": flops_per_token}[equal]
    factors = factors_between(start, preset("modern-nano"))
    for rung in rungs_between(start, factors):
        cfg = part_way(start, [one for one in factors if one.name in rung.factors])
        assert size(equal_size(cfg, start, equal)) == pytest.approx(size(start), rel=0.005)
    assert equal_size(start, start, equal) == start


def test_a_member_that_is_too_large_with_the_smallest_mlp_is_refused():
    with pytest.raises(RecipeError, match="equal parameters are impossible: 4,348 with"):
        equal_size(replace(TINY, n_layers=3), TINY, "parameters")


@pytest.mark.parametrize(("mlp", "matrices"), [("relu", 2), ("swiglu", 3)])
def test_flops_are_those_of_the_products_of_matrices(mlp, matrices):
    cfg = replace(TINY, mlp=mlp, n_layers=2)
    layer = 4 * 16 * 16 + matrices * 16 * 64 + 2 * 16 * 16  # projections, MLP, q k and a v
    assert flops_per_token(cfg) == 3 * 2 * (2 * layer + 16 * 10)


def test_a_loop_counts_every_pass():
    looped = replace(TINY, n_layers=3, loop_layers=1, loop_passes=3)
    assert flops_per_token(looped) == flops_per_token(replace(TINY, n_layers=3))


def test_a_change_is_the_mean_of_differences_with_students_interval():
    # Differences -0.2, -0.1, -0.3: mean -0.2, standard deviation 0.1, t(2) 4.30265.
    change = ladder.paired_change([2.0, 2.1, 2.5], [2.2, 2.2, 2.8])
    half = 4.30265 * 0.1 / 3**0.5
    assert change.value == pytest.approx(-0.2)
    assert (change.low, change.high) == pytest.approx((-0.2 - half, -0.2 + half), rel=1e-5)
    assert change.n == 3
    # Two seeds: t(1) is 12.7062.
    change = ladder.paired_change([1.0, 2.0], [1.5, 2.7])
    assert change.high == pytest.approx(-0.6 + 12.7062 * 0.1, rel=1e-5)
    assert str(ladder.paired_change([1.0], [1.5])) == "-0.500 [one seed]"


def test_a_claim_stands_beside_its_own_change_only():
    modern = factors_between(preset("retro-nano"), preset("modern-nano"))
    claims = {one.name: ladder.published_claims([one]) for one in modern}
    assert claims["position"] == "-0.8 perplexity (retro LLM)"
    assert claims["MLP"].startswith("-1.2 perplexity, +15 % latency (retro LLM); -0.014 nats (Nano")
    assert {name for name, claim in claims.items() if claim} == {"position", "MLP"}
    back = factors_between(preset("modern-nano"), preset("retro-nano"))
    assert ladder.published_claims(back) == ""
    slowrun = factors_between(preset("gpt2-nano"), preset("slowrun-nano"))
    claims = {one.name: ladder.published_claims([one]) for one in slowrun}
    assert {name for name, claim in claims.items() if "nats" in claim} == {
        "MLP", "exclusive attention", "head gates", "value residual", "U-Net skips", "loop"
    }  # fmt: skip
