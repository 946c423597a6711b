"""The extra block predicts the token after the next, and the model without it is unchanged."""

from dataclasses import replace

import pytest
import torch

from tests.worlds.stops import check_done_again, check_resumed
from train import recipes, runs, trainer
from train.data import IGNORED, Batch, read_batch
from train.errors import RecipeError
from train.model import GPT, GPTConfig, init_gpt, preset


KINDS = {
    "gpt2": GPTConfig(n_layers=2, n_heads=2, d_model=16, n_ctx=8, d_vocab=11),
    "rope": GPTConfig(
        n_layers=2, n_heads=2, d_model=16, n_ctx=8, d_vocab=11, position="rope", norm="rmsnorm",
        mlp="swiglu", bias=False, tie=False, vocab_multiple=4,
    ),
    "post": GPTConfig(
        n_layers=2, n_heads=2, d_model=16, n_ctx=8, d_vocab=11, norm_placement="post",
        position="sinusoidal", mlp="relu",
    ),
    "slowrun": replace(preset("slowrun-nano"), d_vocab=11),
}  # fmt: skip


@pytest.fixture(scope="module", params=["adamw", "muon"])
def run(request, tiny_recipe, tiny_store, one_thread_numerics, tmp_path_factory):
    recipe = replace(
        tiny_recipe, model=replace(tiny_recipe.model, mtp=True), mtp_weight=0.3,
        optimizer=request.param, ema_decay=0.5,
    )  # fmt: skip
    return trainer.train(
        recipe, tiny_store, out=tmp_path_factory.mktemp("mtp") / "r", numerics=one_thread_numerics
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_the_same_with_and_without_the_block(kind):
    cfg = KINDS[kind]
    plain, model = init_gpt(cfg, 0), init_gpt(replace(cfg, mtp=True), 0)
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
    assert torch.equal(plain(tokens), model(tokens))
    assert plain.hook_dict.keys() == model.hook_dict.keys()
    assert model.cfg.n_params == plain.cfg.n_params
    added = model.state_dict().keys() - plain.state_dict().keys()
    assert added
    assert all(name.startswith("mtp.") for name in added)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_two_ahead_reads_up_to_the_next_token_and_no_further(kind):
    model = init_gpt(replace(KINDS[kind], mtp=True, init_std=0.5), 0)
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])

    def ahead(tokens):
        return model.predict_ahead(model.run_blocks(model.embed_tokens(tokens)), tokens)

    before, changed = ahead(tokens), tokens.clone()
    assert before.shape == (1, 5, 11)
    changed[0, 3] = 9
    after = ahead(changed)
    # Position t reads tokens up to t + 1.
    assert torch.equal(before[0, :2], after[0, :2])
    assert not torch.allclose(before[0, 2], after[0, 2])


def test_the_loss_adds_the_token_after_the_next_and_counts_no_padding():
    cfg = replace(KINDS["gpt2"], mtp=True)
    recipe = recipes.Recipe(
        name="r", model=cfg, batch_size=1, steps=1, lr=1e-3, min_lr=0.0, warmup_steps=0,
        mtp_weight=0.3,
    )  # fmt: skip
    model = init_gpt(replace(cfg, init_std=0.5), 0)
    inputs = torch.tensor([[1, 2, 3, 4]])
    targets = torch.tensor([[2, 3, 4, IGNORED]])
    batch = replace(FAKE, inputs=inputs, targets=targets)
    found = trainer.TrainingMethods(recipe)(model, batch)
    resid = model.run_blocks(model.embed_tokens(inputs))
    first = torch.log_softmax(model.to_logits(resid), -1)[0]
    second = torch.log_softmax(model.predict_ahead(resid, inputs), -1)[0]
    nexts = first[0, 2] + first[1, 3] + first[2, 4]
    torch.testing.assert_close(found, -(nexts + 0.3 * (second[0, 3] + second[1, 4])) / 3)


FAKE = Batch(
    step=0, inputs=torch.zeros(1, 4, dtype=torch.int64), targets=torch.zeros(1, 4).long(),
    starts=torch.zeros(1, dtype=torch.int64), divisor=3, digest="",
)  # fmt: skip


@pytest.mark.integration
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weight_0_is_the_plain_run_to_the_bit(optimizer, tiny_run, muon_run, tiny_store, tmp_path):
    plain = {"adamw": tiny_run, "muon": muon_run}[optimizer]
    recipe = replace(plain.recipe, model=replace(plain.recipe.model, mtp=True))
    run = trainer.train(recipe, tiny_store, out=tmp_path / "r", numerics=plain.numerics)
    assert all(a.agrees(b) for a, b in zip(run.ledger, plain.ledger, strict=True))
    for step in plain.steps:
        ours, expected = run.load(step).state_dict(), plain.load(step).state_dict()
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert trainer.verify(run).level == "bit-exact"


@pytest.mark.integration
def test_the_block_learns_and_changes_what_the_model_learns(run, tiny_run):
    batch = read_batch(run.store, run.order, 0)
    losses = []
    for step in (0, 24):
        model = GPT(run.recipe.model)
        tensors = runs.read_tensors(run.path, run.saved_at(step), "model.safetensors")
        model.load_state_dict(tensors)
        ahead = model.predict_ahead(
            model.run_blocks(model.embed_tokens(batch.inputs)), batch.inputs
        )
        losses.append(trainer.next_token_loss(ahead, batch.targets[:, 1:], batch.divisor).item())
    assert losses[1] < losses[0] - 0.3
    assert not torch.equal(run.load().W_E, tiny_run.load().W_E)


@pytest.mark.integration
def test_a_loaded_run_has_no_extra_block(run, tiny_run):
    for weights in ("trained", "ema"):
        assert run.load(weights=weights).cfg == run.config == tiny_run.config


@pytest.mark.integration
@pytest.mark.parametrize("stop", [9, 23])
def test_a_run_that_stops_anywhere_resumes_to_the_same_bits(run, tmp_path, stop):
    check_resumed(run, tmp_path / "r", stop)


@pytest.mark.integration
def test_replay_verification_and_retraining_are_exact(run, tmp_path):
    check_done_again(run, tmp_path / "c")


def test_a_weight_without_the_block_and_a_block_without_room_are_refused(tiny_recipe):
    with pytest.raises(RecipeError, match=r"mtp_weight=0\.3 and a model without"):
        replace(tiny_recipe, mtp_weight=0.3)
    for cfg in (replace(KINDS["gpt2"], n_ctx=1), preset("strawberry-nano")):
        with pytest.raises(RecipeError, match="mtp predicts the token after the next"):
            replace(cfg, mtp=True)
