"""The hooked model is the checkpoint, and TransformerLens sees the very same numbers."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from interp import models, patching
from interp.behaviours import Behaviour
from interp.errors import ModelError
from tests.worlds.models import shaken
from train import convert, runs, storage
from train.data import Tokenizer, train_bpe, train_words
from train.errors import DamagedError, TrainError
from train.model import GPT, GPTConfig, init_gpt


GPT2 = GPTConfig(n_layers=2, n_heads=4, d_model=24, n_ctx=12, d_vocab=37, init_std=0.2)
LLAMA = replace(
    GPT2, n_key_value_heads=2, d_mlp=40, position="rope", norm="rmsnorm", mlp="swiglu", bias=False,
    tie=False, norm_eps=1e-6,
)  # fmt: skip
LAYOUTS = {"gpt2": GPT2, "llama": LLAMA}


@pytest.fixture
def no_network(monkeypatch):
    """Any look-up or connection is a failure, and nothing says beforehand that there is no hub."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("asked the network")

    import huggingface_hub.constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train_words([" ".join(f"w{n:02}" for n in range(36))])


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(37, (3, 9), generator=torch.Generator().manual_seed(0))


def close(ours: torch.Tensor, theirs: torch.Tensor, name: str = "logits") -> None:
    torch.testing.assert_close(
        ours, theirs, rtol=1e-6, atol=1e-5, msg=lambda said: f"{name}: {said}"
    )


@torch.no_grad()
@pytest.mark.parametrize("cfg", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_transformer_lens_gives_our_logits_and_activations(cfg, tokens, words, no_network):
    model = shaken(cfg)
    model.tokenizer = words
    bridge = models.transformer_lens(model)
    theirs_out, theirs = bridge.run_with_cache(tokens)
    ours_out, ours = model.run_with_cache(tokens, names_filter=lambda _: True)
    close(ours_out, theirs_out)
    shared = [name for name in theirs.keys() if name in ours]  # noqa: SIM118
    for name in shared:
        close(ours[name], theirs[name], name)
    for layer in range(2):
        named = {f"blocks.{layer}.hook_resid_{place}" for place in ("pre", "mid", "post")}
        named |= {f"blocks.{layer}.attn.hook_{one}" for one in ("q", "k", "v", "z", "pattern")}
        assert named | {f"blocks.{layer}.mlp.hook_post"} <= set(shared)


@pytest.mark.parametrize("cfg", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_the_tokenizer_goes_along_and_means_the_same(cfg, words, no_network):
    model = shaken(cfg)
    model.tokenizer = words
    bridge = models.transformer_lens(model)
    text = "w03 w17 w00"
    assert len(bridge.tokenizer) == words.vocab_size
    assert torch.equal(bridge.to_tokens(text), model.to_tokens(text))
    bare = bridge.to_tokens(text, prepend_bos=False)
    assert torch.equal(bare, model.to_tokens(text, prepend_bos=False))


def test_byte_pairs_go_along_too(no_network):
    model = init_gpt(replace(GPT2, d_vocab=300), seed=0)
    model.tokenizer = train_bpe(["the cat sat on the mat, the hat, the bat"] * 9, 262)
    bridge = models.transformer_lens(model)
    for text in ("the cat", " the cat sat", "naïve"):
        assert torch.equal(bridge.to_tokens(text), model.to_tokens(text)), text


def test_a_bridge_without_a_tokenizer_has_none_rather_than_one_of_a_single_token(no_network):
    bridge = models.transformer_lens(shaken(GPT2))
    assert bridge.tokenizer is None
    with pytest.raises(AssertionError, match="without a tokenizer"):
        bridge.to_tokens("w03")


def test_an_architecture_without_a_counterpart_is_refused():
    for change in ({"position": "sinusoidal"}, {"norm_placement": "post"}):
        with pytest.raises(ModelError, match="TransformerLens cannot hold this model"):
            models.transformer_lens(init_gpt(replace(GPT2, **change), seed=0))


@torch.no_grad()
def test_a_run_is_loaded_at_the_step_asked_for(tiny_run, no_network):
    tokens = torch.arange(12).reshape(1, 12)
    early, last = models.load(tiny_run, step=8), models.load(tiny_run.path)
    assert (early.origin.step, last.origin.step) == (8, 24)
    assert not torch.allclose(early(tokens), last(tokens))
    close(early(tokens), models.transformer_lens(tiny_run, step=8)(tokens))
    close(last(tokens), models.transformer_lens(tiny_run.path)(tokens))
    assert last.origin.knowledge == "full"
    assert last.tokenizer.sha256 == tiny_run.store.tokenizer.sha256
    assert not last.training


def test_a_behaviour_is_worded_by_the_run_or_by_a_model_that_has_none(tiny_run, tmp_path):
    assert isinstance(models.open(tiny_run)[1], runs.Run)
    folder = convert.export_huggingface(shaken(GPT2), None, tmp_path / "hf")
    model, words = models.open(folder)
    assert words is model


@torch.no_grad()
@pytest.mark.parametrize("cfg", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_hugging_face_folder_says_weights_only_wherever_it_is_shown(cfg, words, tokens, tmp_path):
    model = shaken(cfg)
    convert.export_huggingface(model, words, tmp_path / "hf")
    loaded = models.load(tmp_path / "hf")
    close(loaded(tokens), model(tokens))
    assert loaded.origin.run_id == "hf"
    assert loaded.origin.knowledge == "weights-only"
    imported = convert.import_run(tmp_path / "hf", out=tmp_path / "run")
    for source in (loaded, models.load(imported), models.load(tmp_path / "run")):
        behaviour = answered_by(source)
        about = patching.heads(source, behaviour).provenance
        assert about.knowledge == "weights-only"
        assert about.checkpoint_sha256 == source.origin.checkpoint_sha256


def test_another_tokenizer_is_taken_for_a_model_whose_own_is_not_read(words, openbook, tmp_path):
    hf, behaviour, given = tmp_path / "hf", tmp_path / "own.jsonl", tmp_path / "words.json"
    convert.export_huggingface(shaken(GPT2), None, hf)
    (hf / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    storage.write_text(given, words.json)
    behaviour.write_text('{"clean": "w03", "corrupt": "w04", "answer": " w05", "foil": " w06"}\n')
    convert.import_run(hf, out=tmp_path / "run")
    for source in (hf, tmp_path / "run"):
        ended = openbook("behaviours", source, behaviour)
        assert ended.code == 2
        assert "tokenizer.json: " in ended.err
        assert "(--tokenizer FILE)" in ended.err
        assert (
            openbook("behaviours", source, behaviour, "--tokenizer", tmp_path / "words.json").code
            < 2
        )
        loaded = models.load(source, tokenizer=tmp_path / "words.json")
        assert loaded.to_tokens("w03 w04").tolist() == [[0, 4, 5]]
    larger = train_words([" ".join(f"w{n:02}" for n in range(40))])
    storage.write_text(tmp_path / "larger.json", larger.json)
    with pytest.raises(ModelError, match=r"the tokenizer has 41 tokens, the model 37"):
        models.load(hf, tokenizer=tmp_path / "larger.json")


def answered_by(model: GPT) -> Behaviour:
    """Two prompts and whatever this model puts first after each."""
    clean = torch.tensor([[0, 3, 4], [0, 9, 4]])
    answer = model(clean)[:, -1].argmax(dim=1)
    spread = (model(clean)[0, -1] - model(clean)[1, -1]).abs()
    if answer[0] == answer[1]:  # then ask for the tokens on which the prompts differ most
        gain = model(clean)[0, -1] - model(clean)[1, -1]
        answer = torch.stack([gain.argmax(), gain.argmin()])
    assert spread.max() > 0
    return Behaviour("pair", clean, clean.flip(0), answer, answer.flip(0))


def test_what_is_no_model_is_refused(tiny_run, tmp_path):
    with pytest.raises(TrainError, match="neither a run"):
        models.load(tmp_path)
    with pytest.raises(TrainError, match="neither a run"):
        models.load(tmp_path / "nothing")
    with pytest.raises(TrainError, match="no checkpoint at step 7; nearest is 8"):
        models.load(tiny_run, step=7)
    convert.export_huggingface(shaken(GPT2), None, tmp_path / "hf")
    with pytest.raises(TrainError, match="has no steps, and 3 was asked"):
        models.load(tmp_path / "hf", step=3)


def test_a_pickle_is_refused_unread(tmp_path):
    path: Path = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(DamagedError, match=r"model\.pt: a pickle, which can run code"):
        models.load(path)
