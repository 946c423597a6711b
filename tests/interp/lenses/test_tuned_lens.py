"""A tuned lens learns the translation that was planted, on tokens it is not tested on."""

import errno
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from interp import lenses
from interp.behaviours import Behaviour
from interp.errors import EffectsError, ModelError
from interp.lenses import LensEvaluation, evaluation, tuned_lens
from interp.lenses.tokens import LensTokens
from tests.worlds.behaviours import said_by
from train import storage
from train.errors import DamagedError
from train.model import GPT, GPTConfig, init_gpt


VOCAB = 24


def rotated() -> GPT:
    """Layer 0 writes the stream in another basis, and layer 1 turns it back: x, then -x, then x.

    A logit lens reads the opposite after layer 0; an affine map (times -1) reads all of it.
    """
    cfg = GPTConfig(
        n_layers=2, n_heads=2, d_model=16, n_ctx=8, d_vocab=VOCAB, norm="none", position="none",
        mlp="relu", init_std=0.5,
    )  # fmt: skip
    model = init_gpt(cfg, 0)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.out.weight.zero_()
            eye = torch.eye(16)
            # relu(x) - relu(-x) = x, so this MLP writes -2x.
            block.mlp.up.weight[:16], block.mlp.up.weight[16:32] = eye, -eye
            block.mlp.up.weight[32:] = 0
            block.mlp.down.weight.zero_()
            block.mlp.down.weight[:, :16], block.mlp.down.weight[:, 16:32] = -2 * eye, 2 * eye
    return model


def words(n: int = 120, context: int = 8) -> LensTokens:
    tokens = torch.randint(VOCAB, (n, context), generator=torch.Generator().manual_seed(1))
    return LensTokens(tokens, tokens.roll(-1, dims=1), "held-out", "f" * 64, n_fit=n - 11)


@pytest.fixture(scope="module")
def fitted():
    model = rotated()
    return model, tuned_lens.fit_tuned_lens(model, words(), steps=300, lr=0.05, seed=3)


def test_the_planted_translation_is_learned_and_tested_on_unseen_windows(fitted):
    model, lens = fitted
    found = lenses.evaluate_lens(model, lens, words())
    logit, tuned, control = found.kl.values
    assert logit[1] > 5  # after layer 0 everything is read upside down
    assert tuned[1] < 0.1
    assert found.gain.low is not None
    assert found.gain.low[1] > 0
    assert found.bias.values[1, 1] < found.bias.values[0, 1]
    # Entering layer 0 the stream is the last one already: nothing to learn, and nothing unlearned.
    assert logit[0] == pytest.approx(0, abs=1e-6)
    assert tuned[0] < 0.05
    assert (found.n, found.n_tokens, found.region) == (10, 80, "held-out")
    # The tokens alone are enough here, so a translator of an untrained model learns them too: the
    # control says that this lens found nothing that a lookup of the token could not say.
    assert control[1] < logit[1]


def test_a_lens_without_steps_taken_is_the_logit_lens():
    model = rotated()
    zeros = tuned_lens.zero_weights(model, 2)
    identity = tuned_lens.Translators(zeros["weight"].detach(), zeros["bias"].detach())
    stream = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(identity(0, stream), stream)
    assert torch.equal(identity(2, stream), stream)


def test_the_loss_and_its_slope_are_those_of_a_plain_loop():
    model, windows = rotated(), words()
    inputs, counted = windows.batch(range(6), torch.device("cpu"))
    streams = tuned_lens.streams(model, inputs, counted)
    own = tuned_lens.zero_weights(model, 2)
    found = tuned_lens.backpropagate_kl(model, streams, streams[-1], own)
    layer = torch.nn.Linear(16, 16)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    target = model(inputs).flatten(0, 1).detach()
    reading = model.to_logits((streams[1] + layer(streams[1]))[None])[0]
    loss = torch.nn.functional.kl_div(
        reading.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    loss.backward()
    assert found[1] == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(own["weight"].grad[1], layer.weight.grad.T, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(own["bias"].grad[1], layer.bias.grad, atol=1e-5, rtol=1e-4)


def test_pieces_of_any_size_give_the_same_slope():
    model, windows = rotated(), words()
    inputs, counted = windows.batch(range(6), torch.device("cpu"))
    streams = tuned_lens.streams(model, inputs, counted)
    slopes = []
    for logits_at_once in (1 << 24, 7 * VOCAB):
        own = tuned_lens.zero_weights(model, 2)
        tuned_lens.backpropagate_kl(model, streams, streams[-1], own, logits_at_once=logits_at_once)
        slopes.append(own["weight"].grad)
    torch.testing.assert_close(*slopes)


def test_the_same_seed_gives_the_same_bytes_and_touches_no_other_randomness(tmp_path):
    model, state = rotated(), torch.get_rng_state()
    for name in ("one", "two"):
        tuned_lens.fit_tuned_lens(model, words(), steps=5, seed=1).save(tmp_path / f"{name}.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    other = tuned_lens.fit_tuned_lens(model, words(), steps=5, seed=2)
    assert not torch.equal(
        other.translators.weight,
        tuned_lens.load_tuned_lens(tmp_path / "one.json").translators.weight,
    )
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_lens_comes_back_as_it_was_written_and_a_changed_one_is_refused(tmp_path, fitted):
    model, lens = fitted
    path = tmp_path / "lens.json"
    with pytest.raises(EffectsError, match=r"a lens is written to a \.json file"):
        lens.save(path.with_suffix(".safetensors"))
    lens.save(path)
    again = tuned_lens.load_tuned_lens(path)
    assert again.fit == lens.fit
    assert torch.equal(again.control.weight, lens.control.weight)
    behaviour = last_token(model)
    read = tuned_lens.tuned(model, behaviour, again)
    torch.testing.assert_close(
        read.measures["kl"].values,
        tuned_lens.tuned(model, behaviour, lens).measures["kl"].values,
    )
    (weights,) = tmp_path.glob("lens.*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(EffectsError, match=r"bytes whose sha256 is not the one in lens\.json"):
        tuned_lens.load_tuned_lens(path)
    weights.unlink()
    with pytest.raises(EffectsError, match="0 bytes whose sha256"):
        tuned_lens.load_tuned_lens(path)
    changed = json.loads(path.read_text())
    changed["fit"]["steps"] = 1
    path.write_text(json.dumps(changed))
    with pytest.raises(DamagedError):
        tuned_lens.load_tuned_lens(path)


def test_an_older_lens_is_read_until_the_new_one_is_whole(tmp_path, fitted, monkeypatch):
    model, lens = fitted
    path = tmp_path / "lens.json"
    lens.save(path)
    other = tuned_lens.fit_tuned_lens(model, words(), steps=5, seed=2)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_json", fail)
        with pytest.raises(OSError, match="Input/output"):
            other.save(path)
    read = tuned_lens.load_tuned_lens(path)
    assert torch.equal(read.translators.weight, lens.translators.weight)
    other.save(path)
    read = tuned_lens.load_tuned_lens(path)
    assert torch.equal(read.translators.weight, other.translators.weight)
    assert len(list(tmp_path.iterdir())) == 2


def last_token(model: GPT) -> Behaviour:
    clean = torch.arange(18).reshape(6, 3)
    return said_by(model, clean, clean + 1, name="last")


def test_behaviours_are_read_through_the_lens_and_its_control(fitted):
    model, lens = fitted
    behaviour = last_token(model)
    tuned = tuned_lens.tuned(model, behaviour, lens)
    logit = lenses.logit(model, behaviour)
    assert tuned.kind == "tuned"
    assert logit.at("L1.resid_pre", "top1").values.item() < 0.5
    assert tuned.at("L1.resid_pre", "top1").values.item() > 0.5
    assert tuned.at("L1.resid_pre", "kl").values < logit.at("L1.resid_pre", "kl").values / 5
    torch.testing.assert_close(tuned.measures["kl"].values[-1], logit.measures["kl"].values[-1])
    assert tuned.control["kl"].values.shape == (3, 1)


def test_an_evaluation_comes_back_as_it_was_written(tmp_path, fitted):
    model, lens = fitted
    found = lenses.evaluate_lens(model, lens, words())
    found.save(tmp_path / "found.json")
    again = LensEvaluation.load(tmp_path / "found.json")
    assert again.to_dict() == found.to_dict()
    assert repr(again) == repr(found)
    assert list(again.to_frame().lens) == ["logit"] * 2 + ["tuned"] * 2 + ["control"] * 2
    assert len(str(found.plot().to_json())) < 20_000


def test_the_model_s_own_bits_are_its_loss(fitted):
    model, lens = fitted
    windows = words()
    rows = list(windows.to_test)
    found = lenses.evaluate_lens(model, lens, windows)
    loss = torch.nn.functional.cross_entropy(
        model(windows.tokens[rows]).detach().flatten(0, 1), windows.next_tokens[rows].flatten()
    )
    assert found.model_bits.values.item() == pytest.approx(loss.item() / np.log(2), rel=1e-5)
    # Entering layer 0 the stream is already what leaves the model, so the logit lens pays the same.
    assert found.cross_entropy.values[0, 0].item() == pytest.approx(
        found.model_bits.values.item(), rel=1e-5
    )


def test_two_noisy_means_of_the_same_chances_have_no_bias():
    tally = evaluation.LensTally(rotated(), 64)
    draw = torch.Generator().manual_seed(0)
    chances = torch.rand(VOCAB, generator=draw) + 0.1
    tally.model_mean[:] = chances + 0.3 * torch.randn(64, VOCAB, generator=draw)
    for lens, layer in np.ndindex(3, 2):
        tally.means[lens, layer] = chances + 0.3 * torch.randn(64, VOCAB, generator=draw)
    found = tally.bias()
    plain = (tally.model_mean.sum(0), tally.means[0, 0].sum(0))
    p, q = (one / one.sum() for one in plain)
    assert found.low is not None
    # The plain number sees a bias; corrected, it is within its interval of none in most of six.
    assert (p * (p / q).log2()).sum() > 0.001
    assert (found.low <= 0).float().mean() > 0.5
    assert found.values.abs().mean() < (p * (p / q).log2()).sum()


def test_a_lens_of_other_weights_or_windows_is_refused(fitted):
    model, lens = fitted
    deeper = init_gpt(replace(model.cfg, n_layers=3), 0)
    with pytest.raises(ModelError, match=r"translates \(2, 16\) layers and dimensions, the model"):
        tuned_lens.tuned(deeper, last_token(model), lens)
    stranger = replace(lens, fit=replace(lens.fit, checkpoint_sha256="a" * 64))
    with pytest.raises(ModelError, match="fitted to checkpoint aaaaaaaaaaaa, this is unknown"):
        lenses.evaluate_lens(model, stranger, words())
    with pytest.raises(ModelError, match="give the windows it was fitted with"):
        lenses.evaluate_lens(model, lens, replace(words(), n_fit=5))
    with pytest.raises(ModelError, match="0 steps on windows of 8 tokens"):
        tuned_lens.fit_tuned_lens(model, words(), steps=0)
    with pytest.raises(ModelError, match="windows of its own store"):
        tuned_lens.fit_tuned_lens(init_gpt(replace(model.cfg, d_vocab=4), 0), words())


def test_the_held_out_region_is_cut_and_fitting_never_sees_the_test(tiny_store, tiny_run):
    windows = lenses.held_out_tokens(tiny_store, 16)
    train, seen = tiny_store.train_tokens, windows.tokens.flatten().tolist()
    assert seen == tiny_store.tokens[train - 1 : train - 1 + len(seen)].tolist()
    assert windows.n_fit < windows.to_test.start
    assert len(windows.to_test) >= 2
    lens = tuned_lens.fit_tuned_lens(tiny_run.load(), windows, steps=3)
    assert lens.fit.region == "held-out"
    assert lens.fit.checkpoint_sha256 == tiny_run.load().origin.checkpoint_sha256
    assert lenses.evaluate_lens(tiny_run.load(), lens, windows).n == len(windows.to_test)


def test_a_store_that_holds_nothing_out_is_refused_unless_one_says_so(lookup_store):
    with pytest.raises(ModelError, match=r"holds out 0 of .* say --train-tokens"):
        lenses.held_out_tokens(lookup_store, 16)
    windows = lenses.training_tokens(lookup_store, 16, limit=10)
    assert (windows.region, len(windows.tokens)) == ("training", 10)
    with pytest.raises(ModelError, match="training tokens, 0 windows of 4000"):
        lenses.training_tokens(lookup_store, 4000)


def test_an_interrupt_leaves_nothing_behind():
    model = rotated()

    def stop(what: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned_lens.fit_tuned_lens(model, words(), steps=5, progress=stop)
    assert not any(point.hooked for point in model.hook_dict.values())
    assert torch.is_grad_enabled()
    assert all(parameter.requires_grad for parameter in model.parameters())
