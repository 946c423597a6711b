"""Interchange finds the place, and the subspace of it, where a variable was planted."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from interp import causal_abstraction
from interp.behaviours import Behaviour
from interp.causal_abstraction import Pairs, das, interventions
from interp.causal_abstraction.das import Alignment
from interp.causal_abstraction.interventions import Interchanges
from interp.errors import BehaviourError, CapabilityError, ModelError, UninformativeWarning
from train.model import GPT, GPTConfig, init_gpt


N_VALUES, D_MODEL = 6, 24
VOCAB = 2 * N_VALUES  # a value, and the word for it
config = partial(GPTConfig, n_layers=2, n_heads=2, d_model=D_MODEL, n_ctx=4, d_vocab=VOCAB)


@pytest.fixture(scope="module")
def sayer() -> GPT:
    """Says the word for the token at position 1, which head 0 of layer 0 brings to the end.

    The token lies in directions 0 to 5 of the embedding and noise in the others; the head copies
    all of it, and only 0 to 5 are unembedded as words.
    """
    model = init_gpt(config(norm="none", position="none", tie=False, bias=False), 0)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        embed = model.embed.weight
        embed[:N_VALUES, :N_VALUES] = 3 * torch.eye(N_VALUES)
        embed[:, 8:20] = torch.randn(VOCAB, 12, generator=draw)
        attention = model.blocks[0].attn
        # Values of head 0 are directions 0 to 11, written back 10 times as large at 0 to 11.
        attention.qkv.weight[2 * D_MODEL : 2 * D_MODEL + 12, :12] = torch.eye(12)
        attention.out.weight[:12, :12] = 10 * torch.eye(12)
        model.unembed.weight[N_VALUES:, :N_VALUES] = torch.eye(N_VALUES)
    return model


def says(rows: int = 30, first: int = 6) -> Behaviour:
    """Prompts `noise value noise`, of which the answer is the word for the value."""
    draw = torch.Generator().manual_seed(first)
    value = torch.arange(rows) % N_VALUES
    noise = torch.randint(N_VALUES, VOCAB, (rows, 2), generator=draw)
    clean = torch.stack([noise[:, 0], value, noise[:, 1]], dim=1)
    other = (value + 1) % N_VALUES
    corrupt = clean.clone()
    corrupt[:, 1] = other
    words = tuple(range(N_VALUES, VOCAB))
    return Behaviour("say", clean, corrupt, value + N_VALUES, other + N_VALUES, candidates=words)


def test_the_variable_is_where_it_was_planted_and_moves_when_it_moves(sayer):
    places = ["L0.resid_pre@1", "L0.resid_pre@2", "L1.resid_pre@2", "L1.resid_pre@1", "L0H0@2"]
    found = interventions.interchange(sayer, causal_abstraction.crossed(says()), places)
    assert found.accuracy.values.tolist() == [1.0, 0.0, 1.0, 0.0, 1.0]
    assert found.unpatched.values.item() == 0.0
    assert found.shuffled.values.max() < 0.05
    assert found.capability.values.item() == 1.0
    assert set(found.top(3)) == {"L0.resid_pre@1", "L1.resid_pre@2", "L0H0@2"}
    assert found.n == len(causal_abstraction.crossed(says()).base.unique(dim=0))
    assert found.accuracy.low is not None
    assert found.accuracy.low[0] < 1.0


def test_interchange_equals_a_plain_loop_with_hooks():
    model = init_gpt(config(d_vocab=30, init_std=0.4), 1)
    clean = torch.randint(30, (20, 4), generator=torch.Generator().manual_seed(0))
    answer = model(clean)[:, -1].argmax(-1)
    said = Behaviour("said", clean, (clean + 1) % 30, answer, (answer + 1) % 30)
    pairs = causal_abstraction.crossed(said, n_pairs=40)
    found = interventions.interchange(model, pairs, ["L1.resid_pre@3", "L0.mlp", "L1H1"])
    for place, hook, index in (
        ("L1.resid_pre@3", "blocks.1.hook_resid_pre", (slice(None), 3)),
        ("L0.mlp", "blocks.0.hook_mlp_out", (slice(None),)),
        ("L1H1", "blocks.1.attn.hook_z", (slice(None), slice(None), 1)),
    ):
        _, cache = model.run_with_cache(pairs.source, names_filter=[hook])

        def put(value, point, hook=hook, index=index, cache=cache):
            value = value.clone()
            value[index] = cache[hook][index]
            return value

        logits = model.run_with_hooks(pairs.base, fwd_hooks=[(hook, put)])[:, -1]
        row = torch.arange(len(pairs))
        right = logits[row, pairs.expected] > logits[row, pairs.original]
        assert found[place] == pytest.approx(right.float().mean().item())


def test_swaps_go_both_ways(sayer):
    behaviour = says()
    pairs = causal_abstraction.swaps(behaviour)
    assert len(pairs) == 2 * behaviour.n_prompts
    found = interventions.interchange(sayer, pairs, ["L0.resid_pre@1", "L0.resid_pre@2"][:1])
    assert found["L0.resid_pre@1"] == 1.0


def test_a_place_that_holds_the_same_in_both_is_warned_about(sayer):
    with pytest.warns(UninformativeWarning, match="hold the same at 1 of 2 places, L0.resid_pre@0"):
        interventions.interchange(
            sayer, causal_abstraction.swaps(says()), ["L0.resid_pre@0", "L0.resid_pre@1"]
        )


@pytest.fixture(scope="module")
def aligned(sayer) -> Alignment:
    one, other = causal_abstraction.halves(says(60))
    return causal_abstraction.align(
        sayer,
        causal_abstraction.crossed(one),
        causal_abstraction.crossed(other),
        place="L0.resid_pre@1",
        rank=N_VALUES - 1,
        steps=40,
        lr=0.1,
    )


def test_the_subspace_that_holds_the_variable_is_learned_and_the_placebos_are_not(aligned, sayer):
    share = {arm: one.values.item() for arm, one in aligned.accuracy.items()}
    assert share["learned"] > 0.95
    assert share["whole"] == 1.0
    assert share["unpatched"] == 0.0
    assert share["random"] < 0.5
    chance = aligned.accuracy["random"]
    assert f"random rotation (chance) {chance.show(2)}, shuffled" in repr(aligned)
    assert chance.low.item() < share["random"] < chance.high.item()
    # It still gains by taking the base's answer away, so it is no stranger to the variable.
    assert share["shuffled"] < share["learned"] - 0.2
    assert aligned.accuracy["learned"].low is not None
    # Six values differ in five directions, of which a random subspace holds 5 / 24.
    apart = sayer.embed.weight[1:N_VALUES, :N_VALUES] - sayer.embed.weight[:1, :N_VALUES]
    wanted = torch.linalg.qr(apart.T.detach())[0]
    overlap = (aligned.basis[:N_VALUES].T @ wanted).square().sum() / (N_VALUES - 1)
    assert overlap > 2 * 5 / 24


def test_the_basis_is_orthonormal_and_the_search_leaves_nothing_behind(aligned, sayer):
    rank = aligned.rank
    torch.testing.assert_close(aligned.basis.T @ aligned.basis, torch.eye(rank), atol=1e-5, rtol=0)
    assert all(parameter.grad is None for parameter in sayer.parameters())
    assert all(parameter.requires_grad for parameter in sayer.parameters())
    assert not any(point.hooked for point in sayer.hook_dict.values())


def test_the_same_seed_learns_the_same_subspace_and_touches_no_other_randomness(sayer):
    one, other = (causal_abstraction.crossed(half) for half in causal_abstraction.halves(says()))
    state = torch.get_rng_state()
    first, again = (
        causal_abstraction.align(sayer, one, other, place="L0H0@2", rank=2, steps=3, seed=4)
        for _ in range(2)
    )
    assert torch.equal(first.basis, again.basis)
    assert torch.equal(state, torch.get_rng_state())


def test_the_whole_width_is_the_whole_place(sayer):
    other = causal_abstraction.crossed(causal_abstraction.halves(says())[1])
    site = das.AlignmentSite(sayer, interventions.components.parse("L0.resid_pre@1"), other)
    full = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(0)))[0]
    assert torch.equal(site.wins(full), site.wins(None))
    assert torch.equal(site.wins(torch.zeros(24, 1)), interventions.wins(sayer, other))


def test_halves_share_no_prompt():
    one, other = causal_abstraction.halves(says(), seed=3)
    assert one.n_prompts + other.n_prompts == 30
    rows = {tuple(row) for row in one.clean.tolist()}
    assert not rows & {tuple(row) for row in other.clean.tolist()}


def test_what_cannot_be_tested_is_refused_in_one_line(sayer):
    behaviour, untrained = says(), init_gpt(config(), 0)
    pairs = causal_abstraction.crossed(behaviour)
    with pytest.raises(ModelError, match=r"L2.mlp is layer 2 of a model that has 2"):
        interventions.interchange(sayer, pairs, ["L2.mlp"])
    with pytest.raises(ModelError, match=r"position 7 of a model that has 3"):
        interventions.interchange(sayer, pairs, ["L1.mlp@7"])
    with pytest.raises(BehaviourError, match="no place was given"):
        interventions.interchange(sayer, pairs, [])
    with pytest.raises(CapabilityError, match=r"answers 0.\d\d \[.*\] of the prompts of 'say'"):
        interventions.interchange(untrained, pairs, ["L0.mlp"])
    parts = ("clean", "corrupt", "answer", "foil")
    with pytest.raises(BehaviourError, match="one prompt, which cannot be halved"):
        causal_abstraction.halves(
            replace(behaviour, **{p: getattr(behaviour, p)[:1] for p in parts})
        )
    with pytest.raises(BehaviourError, match=r"all 30 answers of 'say' are the same"):
        causal_abstraction.crossed(
            replace(behaviour, answer=torch.full((30,), 6), foil=torch.full((30,), 7))
        )
    for change, said in (
        ({"source": pairs.source[:, :2]}, "make them equally many and equally long"),
        ({"original": pairs.expected}, "the expected answer is that of the base"),
        ({"expected": pairs.expected[:3]}, "answers of each kind"),
        ({"candidates": (6,)}, "an answer that is no candidate"),
    ):
        with pytest.raises(BehaviourError, match=said):
            replace(pairs, **change)


def test_a_search_that_could_not_fail_is_refused(sayer):
    one, other = (causal_abstraction.crossed(half) for half in causal_abstraction.halves(says()))
    with pytest.raises(BehaviourError, match="test pairs of 'say' are training pairs"):
        causal_abstraction.align(sayer, one, one, place="L0.resid_pre@1", rank=2)
    for rank in (0, 24):
        with pytest.raises(BehaviourError, match="give a rank from 1 to 23"):
            causal_abstraction.align(sayer, one, other, place="L0.resid_pre@1", rank=rank)
    with pytest.raises(BehaviourError, match="holds no vector with directions"):
        causal_abstraction.align(sayer, one, other, place="L0N3", rank=1)
    apart = torch.nonzero(other.expected[: len(one)] != one.original[: len(other)])[:, 0]
    answers = other.expected[apart]
    again = replace(one.of(apart), source=other.source[apart], expected=answers, of_source=answers)
    with pytest.warns(UninformativeWarning, match="have a base prompt that was learned from"):
        causal_abstraction.align(sayer, one, again, place="L0H0@2", rank=2, steps=2)


def test_results_come_back_as_they_were_written(sayer, aligned, tmp_path):
    found = interventions.interchange(
        sayer, causal_abstraction.crossed(says()), ["L0.resid_pre@1", "L0H0"]
    )
    for result, kind in ((found, Interchanges), (aligned, Alignment)):
        result.save(tmp_path / "result.json")
        again = kind.load(tmp_path / "result.json")
        assert again.to_dict() == result.to_dict()
        assert repr(again) == repr(result)
        assert len(again.to_frame()) in (2, 5)
        assert len(str(again.plot().to_json())) < 20_000


def test_pairs_can_be_built_by_hand(sayer):
    clean = torch.tensor([[6, 0, 7], [6, 1, 8]])
    pairs = Pairs(
        "by hand",
        base=clean,
        source=clean.flip(0),
        expected=torch.tensor([7, 6]),
        original=torch.tensor([6, 7]),
        of_source=torch.tensor([7, 6]),
    )
    assert interventions.interchange(sayer, pairs, ["L0.resid_pre@1"])["L0.resid_pre@1"] == 1.0
