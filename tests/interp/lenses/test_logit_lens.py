"""A lens reads the model at the last depth, and finds the layer where an answer is planted."""

import json
from dataclasses import replace

import pytest
import torch

from interp import lenses
from interp.behaviours import Behaviour
from interp.errors import BehaviourError, CapabilityError, EffectsError
from interp.lenses import Readings, logit_lens
from tests.worlds.behaviours import said_by
from train.errors import DamagedError
from train.model import GPT, GPTConfig, init_gpt


SHAPE = {"n_layers": 3, "n_heads": 2, "d_model": 16, "n_ctx": 8, "d_vocab": 11, "init_std": 0.4}
LAYOUTS = {
    "gpt2": GPTConfig(**SHAPE),
    "llama": GPTConfig(
        **SHAPE, norm="rmsnorm", mlp="swiglu", position="rope", bias=False, tie=False
    ),
    "post-norm": GPTConfig(**SHAPE, norm_placement="post", position="sinusoidal"),
    "pythia": GPTConfig(**SHAPE, position="rope", parallel_residual=True, tie=False),
    "no norm": GPTConfig(**SHAPE, norm="none"),
}


def does(model: GPT, n: int = 12) -> Behaviour:
    """What the model says of random prompts: its first choice against its last."""
    clean = torch.randint(model.cfg.d_vocab, (n, 5), generator=torch.Generator().manual_seed(0))
    corrupt = clean.clone()
    corrupt[:, 1] = (corrupt[:, 1] + 1) % model.cfg.d_vocab
    return said_by(model, clean, corrupt, name="said")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_last_depth_is_the_model(layout):
    model = init_gpt(LAYOUTS[layout], 1)
    behaviour = does(model)
    read = lenses.logit(model, behaviour, positions=None)
    logits = model(behaviour.clean).detach().double()
    rows = torch.arange(behaviour.n_prompts)
    log_chance = logits.log_softmax(-1)[rows, :, behaviour.answer].mean(0)
    last = read.measures["log_probability"].values[-1]
    torch.testing.assert_close(last, log_chance.float(), atol=1e-5, rtol=0)
    score = behaviour.score(logits).mean().item()
    assert read.at("L2.resid_post", "logit_difference").values.item() == pytest.approx(score)
    assert read.measures["kl"].values[-1].abs().max() < 1e-6
    assert read.at("L2.resid_post", "top1").values.item() == 1.0
    assert read.at("L2.resid_post", "rank").values.item() == 0.0


def test_every_depth_is_the_model_cut_there():
    model = init_gpt(LAYOUTS["gpt2"], 1)
    behaviour = does(model)
    read = lenses.logit(model, behaviour, positions=None)
    for layer in range(3):
        shorter = init_gpt(replace(model.cfg, n_layers=max(layer, 1)), 1)
        own, other = shorter.state_dict(), model.state_dict()
        shorter.load_state_dict({name: other[name] for name in own})
        if layer == 0:
            with torch.no_grad():
                for part in (shorter.blocks[0].attn.out, shorter.blocks[0].mlp.down):
                    part.weight.zero_()
        logits = shorter(behaviour.clean).detach().log_softmax(-1)
        chance = logits[torch.arange(12), :, behaviour.answer].mean(0)
        found = read.measures["log_probability"].values[layer]
        torch.testing.assert_close(found, chance, atol=1e-5, rtol=0)


def test_an_answer_that_layer_1_writes_is_read_after_layer_1_and_not_before():
    model = init_gpt(LAYOUTS["no norm"], 1)
    with torch.no_grad():
        for block in model.blocks:
            for part in (block.attn.out, block.mlp.down):
                part.weight.zero_()
        # Whatever came in, the MLP of layer 1 writes the direction of token 7.
        model.blocks[1].mlp.down.bias.copy_(50 * model.embed.weight[7])
    clean = torch.tensor([[1, 2, 3], [2, 3, 4], [4, 5, 6]])
    planted = Behaviour("seven", clean, clean + 1, torch.tensor([7] * 3), torch.tensor([8] * 3))
    rank = lenses.logit(model, planted).measures["rank"].values[:, 0]
    assert (rank[:2] > 0).all()
    assert rank[2:].tolist() == [0, 0]


def test_a_model_that_was_never_trained_is_read_beside_it():
    model = init_gpt(LAYOUTS["gpt2"], 1)
    read = lenses.logit(model, does(model), seed=5)
    control = logit_lens.read(init_gpt(model.cfg, 5), init_gpt(model.cfg, 5), does(model), (4,))
    torch.testing.assert_close(read.control["kl"].values, control["kl"].values)
    top1 = read.control["top1"]
    assert top1.low is not None
    assert top1.values[-1, 0] < 0.5


def test_every_mean_has_an_interval_and_one_prompt_has_none():
    model = init_gpt(LAYOUTS["gpt2"], 1)
    behaviour = does(model)
    read = lenses.logit(model, behaviour)
    for one in read.measures.values():
        assert one.n == 12
        # The last depth is the output itself: its KL is 0 on every prompt, without an interval.
        there = ~one.low.isnan()
        assert there.any()
        assert (one.low <= one.values)[there].all()
        assert (one.values <= one.high)[there].all()
    parts = ("clean", "corrupt", "answer", "foil")
    twice = replace(behaviour, **{part: getattr(behaviour, part)[[0, 0]] for part in parts})
    alone = lenses.logit(model, twice)
    assert (alone.n, alone.measures["rank"].low) == (1, None)


def test_what_is_not_there_is_refused_in_one_line():
    model = init_gpt(LAYOUTS["gpt2"], 1)
    behaviour = does(model)
    with pytest.raises(BehaviourError, match="position 5 was asked, and the prompts of 'said' ha"):
        lenses.logit(model, behaviour, positions=(5,))
    with pytest.raises(BehaviourError, match="position none was asked"):
        lenses.logit(model, behaviour, positions=())
    read = lenses.logit(model, behaviour)
    with pytest.raises(EffectsError, match=r"no 'L9.resid_pre' was read"):
        read.at("L9.resid_pre", "kl")
    with pytest.raises(EffectsError, match="position 2 was not read; these were:"):
        read.at("L1.resid_pre", "kl", 2)
    with pytest.raises(EffectsError, match="no 'logit_diff' was read"):
        read.plot("logit_diff")
    against = replace(behaviour, answer=behaviour.foil, foil=behaviour.answer)
    with pytest.raises(CapabilityError, match="does not do 'said'"):
        lenses.logit(model, against)


def test_readings_come_back_as_they_were_written(tmp_path):
    model = init_gpt(LAYOUTS["gpt2"], 1)
    read = lenses.logit(model, does(model), positions=(0, -1))
    read.save(tmp_path / "read.json")
    again = Readings.load(tmp_path / "read.json")
    assert again.to_dict() == read.to_dict()
    assert repr(again) == repr(read)
    frame = again.to_frame()
    assert len(frame) == 5 * 4 * 2
    assert list(frame.columns[:4]) == ["measure", "place", "pos", "value"]
    content = json.loads((tmp_path / "read.json").read_text())
    content["n"] = 99
    (tmp_path / "read.json").write_text(json.dumps(content))
    with pytest.raises(DamagedError):
        Readings.load(tmp_path / "read.json")


def test_figures_are_small():
    model = init_gpt(LAYOUTS["gpt2"], 1)
    for positions in ((-1,), None):
        figure = lenses.logit(model, does(model), positions=positions).plot("kl")
        assert len(str(figure.to_json())) < 20_000


def test_reading_leaves_no_hook_and_no_gradient_behind():
    model = init_gpt(LAYOUTS["gpt2"], 1)

    def stop(what: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lenses.logit(model, does(model), progress=stop)
    assert not any(point.hooked for point in model.hook_dict.values())
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
