"""The parts add up to the logit difference, in every layout, and name the part that was planted."""

from dataclasses import replace

import pytest
import torch

from interp.behaviours import Behaviour
from interp.errors import BehaviourError, EffectsError, ModelError
from interp.heads import Contributions, decompose_logits, direct_logit_attribution
from tests.worlds.behaviours import said_by
from tests.worlds.models import silenced
from train.model import GPT, GPTConfig, init_gpt


SHAPE = {"n_layers": 3, "n_heads": 4, "d_model": 16, "n_ctx": 8, "d_vocab": 11, "init_std": 0.4}
LLAMA = {"norm": "rmsnorm", "mlp": "swiglu", "position": "rope", "bias": False, "tie": False}
LAYOUTS = {
    "gpt2": GPTConfig(**SHAPE),
    "llama": GPTConfig(**SHAPE, **LLAMA),
    "llama, two heads to a value": GPTConfig(**SHAPE, **LLAMA, n_key_value_heads=2),
    "pythia": GPTConfig(**SHAPE, position="rope", parallel_residual=True, rotary_channels=2),
    "biases of queries, keys and values in a window": GPTConfig(
        **SHAPE, **LLAMA, qkv_bias=True, qk_norm=True, window=2
    ),
    "no norm": GPTConfig(**SHAPE, norm="none"),
    "sinusoids": GPTConfig(**SHAPE, position="sinusoidal"),
}


def trained_looking(layout: str) -> GPT:
    """Biases and gains that are not what they are at the start."""
    model = init_gpt(LAYOUTS[layout], 1)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return model


def does(model: GPT, n: int = 12) -> Behaviour:
    clean = torch.randint(model.cfg.d_vocab, (n, 5), generator=torch.Generator().manual_seed(0))
    corrupt = clean.clone()
    corrupt[:, 1] = (corrupt[:, 1] + 1) % model.cfg.d_vocab
    return said_by(model, clean, corrupt, name="said")


@pytest.mark.parametrize("over", direct_logit_attribution.OVER)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_parts_add_up_to_the_logit_difference(layout, over):
    model = trained_looking(layout)
    behaviour = does(model)
    found = decompose_logits(model, behaviour, over=over)
    score = behaviour.score(model(behaviour.clean)).mean().item()
    assert found.average.values.sum().item() == pytest.approx(score, abs=1e-4)
    assert found.score.values.item() == pytest.approx(score, abs=1e-5)
    assert found.gap < 1e-4
    positions = 5 if over == "sources" else 1
    assert sum("H" in name for name in found.names) == 3 * 4 * positions


def test_a_head_is_the_sum_of_the_positions_it_read():
    model = trained_looking("llama, two heads to a value")
    behaviour = does(model)
    whole = decompose_logits(model, behaviour)
    split = decompose_logits(model, behaviour, over="sources")
    for layer in range(3):
        for head in range(4):
            name = f"L{layer}H{head}"
            parts = sum(split[f"{name}<{pos}"] for pos in range(5))
            assert parts == pytest.approx(whole[name], abs=1e-5)


def test_a_part_is_what_the_logits_lose_without_it_when_the_scale_is_held():
    model = trained_looking("no norm")
    behaviour = does(model)
    found = decompose_logits(model, behaviour)
    intact = behaviour.score(model(behaviour.clean))
    # The last MLP is read by nothing but the unembedding, so ablating it is its direct effect.
    without = model.run_with_hooks(
        behaviour.clean,
        fwd_hooks=[("blocks.2.hook_mlp_out", lambda value, point: torch.zeros_like(value))],
    )
    lost = (intact - behaviour.score(without)).mean().item()
    assert found["L2.mlp"] == pytest.approx(lost, abs=1e-4)


def test_the_head_that_writes_the_answer_is_named_with_the_position_it_read():
    model = silenced(init_gpt(LAYOUTS["gpt2"], 1))
    with torch.no_grad():
        attention = model.blocks[1].attn
        attention.qkv.weight[:32].zero_()  # equal attention to every position
        # Values of head 2 are 4 numbers of the embedding, and it writes them back as they were.
        apart = model.embed.weight[3] - model.embed.weight[4]
        attention.out.weight[:, 2 * 4] = 20 * apart
        attention.qkv.weight[32 + 2 * 4] = apart
    clean = torch.tensor([[1, 3, 5, 6], [2, 3, 6, 7], [5, 3, 2, 9]])
    corrupt = clean.clone()
    corrupt[:, 1] = 4
    planted = Behaviour("three", clean, corrupt, torch.tensor([3] * 3), torch.tensor([4] * 3))
    found = decompose_logits(model, planted)
    assert found.top(1) == ["L1H2"]
    low, high = found.interval("L1H2") or (0, 0)
    assert 0 < low <= found["L1H2"] <= high
    assert decompose_logits(model, planted, over="sources").top(1) == ["L1H2<1"]


def test_a_model_that_was_never_trained_writes_nothing_in_the_mean():
    model = trained_looking("gpt2")
    found = decompose_logits(model, does(model), seed=3)
    untrained = init_gpt(model.cfg, 3)
    _, control, _ = direct_logit_attribution.split_logits(untrained, does(model), "parts")
    torch.testing.assert_close(
        found.control.values, torch.from_numpy(control).mean(1).float(), atol=1e-5, rtol=0
    )


def test_one_prompt_has_contributions_and_no_interval():
    model = trained_looking("gpt2")
    both = does(model)
    parts = ("clean", "corrupt", "answer", "foil")
    alone = replace(both, **{part: getattr(both, part)[[0, 0]] for part in parts})
    found = decompose_logits(model, alone)
    assert (found.n, found.interval("embed")) == (1, None)


def test_what_is_no_sum_is_refused():
    post = init_gpt(GPTConfig(**SHAPE, norm_placement="post"), 1)
    with pytest.raises(ModelError, match=r"after every part \(post-norm\)"):
        decompose_logits(post, does(post))
    model = trained_looking("gpt2")
    behaviour = does(model)
    with pytest.raises(BehaviourError, match="nothing is split over 'heads'"):
        decompose_logits(model, behaviour, over="heads")
    with pytest.raises(EffectsError, match="no part is called 'L9H0'"):
        decompose_logits(model, behaviour)["L9H0"]
    model.add_hook("blocks.1.hook_resid_post", lambda value, point: value + value.flip(-1))
    with pytest.raises(
        ModelError, match=r"a hook at blocks\.1\.hook_resid_post, which the weights"
    ):
        decompose_logits(model, does(model))


def test_contributions_come_back_as_they_were_written(tmp_path):
    model = trained_looking("gpt2")
    found = decompose_logits(model, does(model))
    found.save(tmp_path / "found.json")
    again = Contributions.load(tmp_path / "found.json")
    assert again.to_dict() == found.to_dict()
    assert repr(again) == repr(found)
    assert list(again.to_frame().part) == list(found.names)
    assert len(str(found.plot().to_json())) < 20_000
