"""What a head writes of a token is read off its weights: planted copiers score one, others not.

The eigenvalues of the small product equal those of the whole map from tokens to logits, and name
moving equals running the model with everything else silent.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from interp.errors import BehaviourError, ModelError
from interp.heads import effective_embedding, name_moving, ov_copying
from train.model import GPT, GPTConfig, init_gpt


CFG = GPTConfig(n_layers=2, n_heads=2, d_model=32, n_ctx=8, d_vocab=40)
WORDS = list(range(1, 25))


def random_gpt(seed: int = 0, **changes) -> GPT:
    fields = {name: getattr(CFG, name) for name in ("n_layers", "n_heads", "d_model", "n_ctx")}
    return init_gpt(GPTConfig(**{**fields, "d_vocab": 40, **changes}), seed)


@pytest.fixture
def planted() -> GPT:
    """L1H0 writes what it reads, L1H1 the negative of it; layer 0 is as it was drawn.

    One hot embeddings of 16 tokens, so that a head of 16 carries them whole.
    """
    gpt = random_gpt()
    attn = gpt.blocks[1].attn
    with torch.no_grad():
        gpt.embed.weight.zero_()
        gpt.embed.weight[:16, :16] = torch.eye(16)
        attn.qkv.weight[-32:] = 0
        attn.out.weight.zero_()
        for head, sign in ((0, 1.0), (1, -1.0)):
            rows = slice(64 + 16 * head, 64 + 16 * (head + 1))
            attn.qkv.weight[rows, :16] = torch.eye(16)
            attn.out.weight[:16, 16 * head : 16 * (head + 1)] = sign * torch.eye(16)
    return gpt


def test_a_planted_copier_scores_one_and_its_negative_minus_one(planted):
    found = ov_copying(planted, range(16))
    assert found["L1H0"] == pytest.approx(1.0, abs=1e-3)
    assert found["L1H1"] == pytest.approx(-1.0, abs=1e-3)
    assert abs(found["L0H0"]) < 0.9
    assert "L1H0" in found.above_control
    low, high = found.interval("L1H0") or (0.0, 0.0)
    assert 0.99 < low <= high <= 1.0
    assert (found.n, found.drawn) == (16, "tokens")


def test_a_planted_name_mover_brings_every_token_to_the_top_and_the_negative_none(planted):
    found = name_moving(planted, range(16), top=1)
    assert found["L1H0"] == 1.0
    assert found["L1H1"] == 0.0
    negated = name_moving(planted, range(16), top=1, negative=True)
    assert (negated["L1H0"], negated["L1H1"]) == (0.0, 1.0)
    # Wilson's interval of 16 of 16.
    assert found.interval("L1H0") == pytest.approx((0.806, 1.0), abs=1e-3)


def test_a_head_that_writes_nothing_copies_nothing(planted):
    with torch.no_grad():
        planted.blocks[1].attn.out.weight.zero_()
    assert ov_copying(planted, range(16))["L1H0"] == 0.0
    assert name_moving(planted, range(16))["L1H0"] == 0.0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "tie": False, "bias": False},
        {"norm_placement": "post"},
        {"n_key_value_heads": 1},
    ],
)
def test_the_small_eigenvalues_are_those_of_the_map_from_tokens_to_logits(changes):
    gpt = random_gpt(init_std=0.5, **changes)
    found = ov_copying(gpt, WORDS)
    tokens = torch.tensor(WORDS)
    stream = effective_embedding(gpt, tokens)[1]
    block = gpt.blocks[1]
    read = block.ln1(stream) if block.pre else stream
    written = torch.einsum("td,hde,hef->htf", read, gpt.W_V[1], gpt.W_O[1])
    u = gpt.W_U[:, tokens]
    if block.pre:
        u = gpt.ln_final.weight[:, None] * u
        u = u - u.mean(0) if gpt.ln_final.centred else u
    logits = (written @ u).double()
    centred = logits - logits.mean(1, keepdim=True)
    centred = centred - centred.mean(2, keepdim=True)
    for head in range(2):
        eigenvalues = torch.linalg.eigvals(centred[head])
        expected = eigenvalues.real.sum() / eigenvalues.abs().sum()
        assert found[f"L1H{head}"] == pytest.approx(expected.item(), abs=1e-4)


def test_the_effective_embedding_is_the_first_block_without_attention_and_position():
    gpt = random_gpt(init_std=0.5)
    tokens = torch.tensor(WORDS)
    before, after = effective_embedding(gpt, tokens)
    block = gpt.blocks[0]
    torch.testing.assert_close(before, gpt.W_E[tokens])
    torch.testing.assert_close(after, before + block.mlp(block.ln2(before)))
    assert not any(point.hooked for point in gpt.hook_dict.values())


def test_name_moving_is_what_the_model_says_when_only_the_head_speaks():
    gpt = random_gpt(init_std=0.5)
    found = name_moving(gpt, WORDS, top=3)
    stream = effective_embedding(gpt, torch.tensor(WORDS))[1]
    only = "blocks.1.hook_resid_post"
    for head in range(2):
        right = []
        for token, here in zip(WORDS, stream, strict=True):
            # The token stands alone, so a head can attend to nothing else.
            written = {}

            def enter(value, point, here=here):
                return here.expand_as(value)

            def listen(value, point, written=written, head=head):
                written["head"] = value[:, :, head] @ gpt.W_O[1, head]

            def speak(value, point, written=written):
                return written["head"].reshape(value.shape)

            logits = gpt.run_with_hooks(
                torch.tensor([[token]]),
                fwd_hooks=[
                    ("blocks.1.hook_resid_pre", enter),
                    ("blocks.1.attn.hook_z", listen),
                    (only, speak),
                ],
            )
            right.append(token in logits[0, 0].topk(3).indices.tolist())
        assert found[f"L1H{head}"] == pytest.approx(sum(right) / len(right))


def test_untrained_heads_copy_nothing():
    above = []
    for seed in range(10):
        gpt = random_gpt(seed)
        for found in (
            ov_copying(gpt, WORDS, seed=100 + seed),
            name_moving(gpt, WORDS, seed=100 + seed),
        ):
            above.append(bool(found.above_control))
    assert sum(above) <= 1


def test_what_cannot_be_scored_is_refused():
    gpt = random_gpt()
    with pytest.raises(BehaviourError, match="2 different tokens are too few"):
        ov_copying(gpt, [1, 2, 1])
    with pytest.raises(BehaviourError, match="tokens 1 to 40 were asked of a vocabulary of 40"):
        name_moving(gpt, [1, 2, 40])
    with pytest.raises(BehaviourError, match="top=40 of a vocabulary of 40 says nothing"):
        name_moving(gpt, WORDS, top=40)

    class Foreign:
        cfg = SimpleNamespace(n_layers=1, n_heads=1, d_vocab=40)

        def __call__(self, tokens):
            raise NotImplementedError

        run_with_cache = run_with_hooks = __call__

    foreign: Any = Foreign()

    with pytest.raises(ModelError, match="this is a Foreign; it can be patched"):
        ov_copying(foreign, WORDS)
