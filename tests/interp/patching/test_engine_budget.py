"""A sweep stays under the memory it is given, says what it counted, and refuses what cannot fit."""

import weakref
from dataclasses import replace

import pytest
import torch

from interp import metrics, patching
from interp.behaviours import Behaviour
from interp.components import Component
from interp.errors import BudgetError, CapabilityError
from interp.patching import Effects, engine
from tests.worlds.behaviours import said_by
from train.model import GPT, GPTConfig, init_gpt


pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::interp.errors.UninformativeWarning"),
]
SMALL = GPTConfig(n_layers=3, n_heads=4, d_model=32, n_ctx=32, d_vocab=40, init_std=0.2)
SHAPES = {
    "small": SMALL,
    "wide": GPTConfig(n_layers=2, n_heads=6, d_model=96, n_ctx=32, d_vocab=40, init_std=0.2),
    "llama": replace(
        SMALL, n_key_value_heads=1, position="rope", norm="rmsnorm", mlp="swiglu", bias=False,
        tie=False, d_mlp=200,
    ),
}  # fmt: skip
SWEEPS = {
    "residual": patching.residual,
    "heads": patching.heads,
    "patterns": patching.patterns,
    "keys": patching.keys,
}


def asked(cfg: GPTConfig, n_prompts: int, n_pos: int) -> tuple[GPT, Behaviour]:
    model, draw = init_gpt(cfg, seed=0).eval(), torch.Generator().manual_seed(0)
    clean, corrupt = (torch.randint(40, (n_prompts, n_pos), generator=draw) for _ in range(2))
    return model, said_by(model, clean, corrupt)


def least_allowed(sweep, model: GPT, behaviour: Behaviour) -> tuple[int, Effects]:
    """The smallest power of two that is not refused, and what it gives."""
    for power in range(12, 32):
        try:
            return 1 << power, sweep(model, behaviour, memory=1 << power)
        except BudgetError:
            continue
    raise AssertionError("nothing up to 2 GB was enough")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sweep", SWEEPS)
def test_what_was_held_is_under_the_budget_and_the_numbers_do_not_depend_on_it(shape, sweep):
    model, behaviour = asked(SHAPES[shape], n_prompts=6, n_pos=12)
    plenty = SWEEPS[sweep](model, behaviour)
    least, scarce = least_allowed(SWEEPS[sweep], model, behaviour)
    assert 0 < scarce.peak_bytes <= least
    assert scarce.peak_bytes < plenty.peak_bytes <= 2 << 30
    torch.testing.assert_close(scarce.values, plenty.values, rtol=0, atol=1e-5)


def test_a_budget_below_one_patch_of_one_prompt_is_refused_with_both_numbers():
    model, behaviour = asked(SMALL, n_prompts=6, n_pos=12)
    with pytest.raises(BudgetError, match=r"takes [.\d]+ MB and 0.0 MB are allowed") as refusal:
        patching.heads(model, behaviour, memory=1000)
    assert refusal.value.exit_code == 4


def test_a_budget_is_refused_before_a_behaviour_is_not():
    # Both are wrong; what costs nothing to find out is said first, or at least nothing is computed.
    model, behaviour = asked(SMALL, n_prompts=6, n_pos=12)
    backwards = replace(behaviour, answer=behaviour.foil, foil=behaviour.answer)
    with pytest.raises((BudgetError, CapabilityError)):
        patching.heads(model, backwards, memory=1000)


def test_more_prompts_than_fit_are_taken_in_turns():
    held = []
    for n_prompts in (4, 16, 64):
        model, behaviour = asked(SMALL, n_prompts, n_pos=12)
        held.append(patching.residual(model, behaviour, memory=1 << 20).peak_bytes)
    assert held[0] <= held[1] <= 1 << 20
    assert held[2] <= 1 << 20, "16 times the prompts in the same memory"


def test_nothing_of_a_slab_is_in_memory_when_the_next_one_begins():
    model, behaviour = asked(SMALL, n_prompts=6, n_pos=12)
    patches = [[Component("head", layer, head=head)] for layer in range(3) for head in range(4)]
    least, _ = least_allowed(patching.heads, model, behaviour)
    donated = engine.source_of(model, behaviour.clean, patches)
    earlier: list[weakref.ref] = []
    alive = []

    def source(slab: slice) -> dict[str, torch.Tensor]:
        alive.append(sum(one() is not None for one in earlier))
        values = donated(slab)
        earlier.extend(map(weakref.ref, values.values()))
        return values

    metric = metrics.logit_difference(behaviour)
    engine.scores(model, behaviour.corrupt, patches, source, [metric], memory=least)
    assert len(alive) > 1
    assert set(alive) == {0}
