"""The loaded model is the checkpoint, run by the exact engine, with more ways to be called."""

import copy
from dataclasses import replace

import pytest
import torch

from interp import models
from interp.errors import ModelError
from interp.hooked_model import HookedConfig, HookedGPT
from interp.patching import engine
from tests.worlds.models import shaken
from train.data import train_words
from train.errors import TokenizerError
from train.model import GPT, GPTConfig, attachments, init_gpt


CFG = GPTConfig(n_layers=2, n_heads=2, d_model=16, n_ctx=8, d_vocab=11)
TEXT = "w1 w3 w5"


@pytest.fixture
def model() -> HookedGPT:
    plain = shaken(CFG)
    plain.tokenizer = train_words([" ".join(f"w{n}" for n in range(10))])
    return HookedGPT.of(plain)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.tensor([[0, 2, 4, 6]])


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """A cached pass computes attention and norms step by step, and rounds otherwise."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [{}, {"tie": False, "vocab_multiple": 8}, {"position": "rope", "norm": "rmsnorm"}],
    ids=["tied", "untied and padded", "rope"],
)
def test_a_loaded_model_computes_what_the_model_does_and_nothing_hangs_on_it(change, tokens):
    plain = shaken(replace(CFG, **change))
    hooked = HookedGPT.of(plain)
    assert torch.equal(hooked(tokens), plain(tokens))
    assert not attachments(hooked)
    assert engine.engine_runs(hooked)
    assert hooked.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(hooked.unembed.W_U, plain.W_U)
    assert hooked.unembed(hooked.ln_final(torch.ones(1, 2, 16))).shape == (1, 2, 11)
    assert torch.equal(hooked.embed.W_E, plain.W_E)


def test_an_override_of_a_loaded_model_is_still_seen(tokens):
    class Doubled(HookedGPT):
        def forward(self, input, **call):  # pyright: ignore[reportIncompatibleMethodOverride]
            return 2 * super().forward(input, **call)

    assert attachments(Doubled.of(shaken(CFG))) == ["the model is a Doubled"]
    assert not engine.engine_runs(Doubled.of(shaken(CFG)))
    hooked = HookedGPT.of(shaken(CFG))
    setattr(hooked, "forward", lambda tokens: tokens)  # noqa: B010
    assert attachments(hooked) == ["the model.forward was replaced"]


def test_every_way_of_loading_gives_a_hooked_model(tiny_run):
    for source in (tiny_run, tiny_run.path):
        model, _ = models.open(source)
        assert type(model) is HookedGPT
        assert model.cfg == tiny_run.config
        assert model.origin == tiny_run.load().origin


def test_the_configuration_equals_the_one_of_the_run_and_can_hold_switches(model):
    assert (model.cfg == CFG, model.cfg == CFG, hash(model.cfg) == hash(CFG)) == (True,) * 3
    assert model.cfg != replace(CFG, n_layers=3)
    assert model.cfg.to_dict() == CFG.to_dict()
    model.cfg.use_attn_result = True
    with pytest.raises(AttributeError, match="cannot assign to field"):
        model.cfg.n_layers = 3
    assert replace(model.cfg, n_layers=3) == replace(CFG, n_layers=3)
    assert not HookedConfig.of(model).use_attn_result
    assert init_gpt(model.cfg, seed=0).cfg == CFG
    assert (model.cfg.device, model.double().cfg.dtype) == ("cpu", torch.float64)
    assert copy.deepcopy(model).cfg.use_attn_result


@torch.no_grad()
def test_texts_of_different_lengths_are_padded_and_read_alike(model):
    both = model.to_tokens([TEXT, "w1"])
    assert both.tolist() == [[0, 2, 4, 6], [0, 2, 0, 0]]
    assert model.to_tokens([TEXT, "w1"], padding_side="left")[1].tolist() == [0, 0, 0, 2]
    close(model([TEXT, "w1"])[1, :2], model("w1")[0])
    assert model.to_tokens(" ".join(["w1"] * 20), truncate=True).shape == (1, 8)


def test_text_of_ids_rows_lists_and_arrays(model, tokens):
    assert model.to_string(tokens) == [f"<eot> {TEXT}"]
    assert model.to_string(tokens[0].numpy()) == f"<eot> {TEXT}"
    assert model.to_string([2, 4]) == "w1 w3"
    assert model.to_string(2) == "w1"
    assert model.to_string([[2, 4], [6, 2]]) == ["w1 w3", "w5 w1"]
    assert model.to_string(tokens, skip_special_tokens=True) == [TEXT]
    assert model.to_str_tokens([TEXT, "w1"], prepend_bos=False) == [["w1", "w3", "w5"], ["w1"]]
    with pytest.raises(TokenizerError, match="'w1 w3' is 2 tokens"):
        model.to_single_token("w1 w3")
    with pytest.raises(TokenizerError, match="occurs 0 times in 4 tokens"):
        model.get_token_position("w9", tokens)


def test_ids_given_to_the_wrong_call_are_refused(model, tokens):
    with pytest.raises(TokenizerError, match=r"reads one row of tokens, and these are \(2, 4\)"):
        model.to_str_tokens(tokens.repeat(2, 1))
    with pytest.raises(TokenizerError, match="to_str_tokens needs a tokenizer"):
        HookedGPT.of(shaken(CFG)).to_str_tokens(tokens)


@torch.no_grad()
@pytest.mark.parametrize("change", [{}, {"unet": True}, {"value_residual": True}], ids=str)
def test_a_pass_stops_and_starts_at_layers(change, tokens):
    model = HookedGPT.of(shaken(replace(CFG, n_layers=3, **change)))
    logits, (_, cache) = model(tokens), model.run_with_cache(tokens)
    for layer in (0, 1, 2, -1):
        stopped = model(tokens, stop_at_layer=layer)
        if not change:
            close(stopped, cache["resid_pre", layer])
        if layer == 0 or not change:
            assert torch.equal(model(stopped, start_at_layer=layer), logits)
        else:
            with pytest.raises(ModelError, match="start at layer 0"):
                model(stopped, start_at_layer=layer)
    assert torch.equal(model(tokens, stop_at_layer=3), logits)
    with pytest.raises(ModelError, match="no layers None to -9 in a model of 3 layers"):
        model(tokens, stop_at_layer=-9)


@torch.no_grad()
def test_a_cache_of_a_part_of_the_pass_holds_that_part(model, tokens):
    resid, cache = model.run_with_cache(tokens, stop_at_layer=1)
    assert {name.split(".")[1] for name in cache if name.startswith("blocks")} == {"0"}
    assert "hook_unembed" not in cache
    logits, cache = model.run_with_cache(resid, start_at_layer=1)
    assert {name.split(".")[1] for name in cache if name.startswith("blocks")} == {"1"}
    assert ("hook_embed" in cache, "hook_unembed" in cache) == (False, True)
    close(logits, model(tokens))


def test_a_loss_is_the_cross_entropy_of_the_next_tokens(model, tokens):
    logits, loss = model(tokens, return_type="both")
    expected = -logits.log_softmax(-1)[0, range(3), tokens[0, 1:]]
    torch.testing.assert_close(model(tokens, return_type="loss", loss_per_token=True)[0], expected)
    torch.testing.assert_close(loss, expected.mean())
    assert model(tokens, return_type=None) is None
    with pytest.raises(ModelError, match="no return_type 'losses'"):
        model(tokens, return_type="losses")
    with pytest.raises(ModelError, match="no tokens to compute a loss of"):
        model(model(tokens, stop_at_layer=1), start_at_layer=1, return_type="loss")


def test_gradients_are_cached_beside_the_activations(model, tokens):
    _, cache = model.run_with_cache(tokens, return_type="loss", incl_bwd=True)
    assert cache["blocks.0.attn.hook_z_grad"].shape == (1, 4, 2, 8)
    assert cache["hook_embed_grad"].abs().sum() > 0
    with pytest.raises(ModelError, match=r"runs backward on one number.*\[1, 4, 11\]"):
        model.run_with_cache(tokens, incl_bwd=True)


@torch.no_grad()
def test_what_each_head_writes_is_computed_when_it_is_asked_for(model, tokens):
    _, cache = model.run_with_cache(tokens)
    assert "blocks.0.attn.hook_result" not in cache
    total = cache["result", 0].sum(2) + model.b_O[0]
    close(total, cache["attn_out", 0])
    model.set_use_attn_result(True)
    _, kept = model.run_with_cache(tokens)
    close(kept.cache_dict["blocks.0.attn.hook_result"], cache["result", 0])
    with pytest.raises(ModelError, match="a cache of 2 rows has a batch axis"):
        model.run_with_cache(tokens.repeat(2, 1), remove_batch_dim=True)


def test_generation_takes_the_names_of_both(model, tokens):
    plain: GPT = model
    expected = GPT.generate(plain, tokens, 3)
    assert torch.equal(model.generate(tokens, 3), expected)
    more = {"stop_at_eos": False, "do_sample": False}
    assert torch.equal(model.generate(tokens, max_new_tokens=3, **more), expected)
    text = model.generate(TEXT, max_new_tokens=3, seed=1)
    assert text == model.generate(TEXT, max_new_tokens=3, seed=1)
    assert text.startswith(TEXT)
    assert model.generate([TEXT, TEXT], max_new_tokens=1)[0].startswith(TEXT)
    assert model.generate(TEXT, 2, return_type="tokens").shape == (1, 6)
    rows = tokens.repeat(20, 1)
    assert len(model.generate(rows, 3, do_sample=True).unique(dim=0)) > 1
    assert len(model.generate(rows, 3, temperature=1.0).unique(dim=0)) > 1
    assert len(model.generate(rows, 3, do_sample=False, temperature=1.0).unique(dim=0)) == 1


def test_generation_ends_when_every_row_has_ended(model, tokens):
    with torch.no_grad():
        model.embed.weight[0] = 100 * torch.ones(16)  # the separator is always the most probable
        model.ln_final.bias += 1
    ended = model.generate(tokens, max_new_tokens=4, do_sample=False)
    assert ended.tolist() == [[*tokens[0].tolist(), 0]]
    kept = model.generate(tokens, max_new_tokens=4, do_sample=False, stop_at_eos=False)
    assert kept.shape == (1, 8)
    assert model.generate(tokens, max_new_tokens=0, do_sample=False).shape == (1, 4)


def test_a_text_ends_where_the_model_ends_it(model, monkeypatch):
    def ends(self, tokens, n_new, **how):
        return torch.cat([tokens, torch.tensor([[7, 0, 5]]).expand(len(tokens), 3)], dim=1)

    monkeypatch.setattr(GPT, "generate", ends)
    longer = model.to_string(torch.tensor([*model.to_tokens(TEXT)[0, 1:], 7]))
    assert model.generate(TEXT, 3) == longer
    assert model.generate(TEXT, max_new_tokens=3) == longer
    assert model.generate([TEXT, TEXT], 3) == [longer, longer]
    assert model.generate(TEXT, 3, stop_at_eos=False) != longer
    assert model.generate(model.to_tokens(TEXT), 3)[0, -3:].tolist() == [7, 0, 5]


def test_texts_of_different_lengths_are_not_continued_behind_padding(model):
    with pytest.raises(ModelError, match="texts of 3 to 4 tokens are not continued together"):
        model.generate([TEXT, "w1 w3"], 2)
