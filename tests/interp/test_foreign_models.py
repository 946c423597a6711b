"""A model of TransformerLens goes through the sweeps by whole passes, or is refused by name.

The bridge holds the same weights as the native model, so every number is compared with the native
one's, which the engine computes.
"""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from interp import (
    activations,
    attribution_patching,
    behaviours,
    causal_abstraction,
    circuits,
    heads,
    lenses,
    models,
    patching,
    probing,
    steering,
)
from interp.behaviours import Behaviour
from interp.errors import ModelError
from tests.worlds.models import shaken
from train.data import train_bpe, train_words
from train.model import GPT, GPTConfig


GPT2 = GPTConfig(n_layers=2, n_heads=4, d_model=24, n_ctx=16, d_vocab=37, init_std=0.2)
LLAMA = replace(
    GPT2, n_key_value_heads=2, d_mlp=40, position="rope", norm="rmsnorm", mlp="swiglu", bias=False,
    tie=False, norm_eps=1e-6,
)  # fmt: skip


@pytest.fixture(scope="module", params=[GPT2, LLAMA], ids=["gpt2", "llama"])
def both(request) -> tuple[GPT, Any, Behaviour]:
    """A native model, the bridge of the same weights, and a behaviour that the model does."""
    model = shaken(request.param)
    model.tokenizer = train_words([" ".join(f"w{n:02}" for n in range(36))])
    clean = torch.randint(1, 37, (12, 7), generator=torch.Generator().manual_seed(0))
    corrupt = clean.clone()
    corrupt[:, 2] = corrupt[:, 2] % 36 + 1
    with torch.no_grad():
        on_clean, on_corrupt = model(clean)[:, -1], model(corrupt)[:, -1]
    answer = on_clean.argmax(1)
    apart = (on_corrupt - on_clean).scatter(1, answer[:, None], float("-inf"))
    behaviour = Behaviour("own", clean, corrupt, answer, apart.argmax(1), subject=(2, 3))
    return model, models.transformer_lens(model), behaviour


def pairs_of(behaviour: Behaviour) -> causal_abstraction.Pairs:
    return causal_abstraction.swaps(behaviour)


def task_of(behaviour: Behaviour) -> probing.ProbeTask:
    twice = replace(behaviour, subject=(0, 7)).of([*range(12)] * 2)
    return probing.task_of_behaviour(twice, "ab" * 12)


RUNS: dict[str, Callable[[Any, Behaviour], Any]] = {
    "heads": lambda model, one: patching.heads(model, one).values,
    "heads by position": lambda m, one: patching.heads(m, one, positions="each").values,
    "noising": lambda model, one: patching.heads(model, one, direction="noising").values,
    "residual": lambda model, one: patching.residual(model, one).values,
    "resid_post": lambda model, one: patching.residual(model, one, site="resid_post").values,
    "attention": lambda model, one: patching.attention(model, one).values,
    "mlps": lambda model, one: patching.mlps(model, one).values,
    "queries": lambda model, one: patching.queries(model, one).values,
    "keys": lambda model, one: patching.keys(model, one).values,
    "values": lambda model, one: patching.values(model, one).values,
    "patterns": lambda model, one: patching.patterns(model, one).values,
    "neurons": lambda model, one: patching.neurons(model, one, layers=[1]).values,
    "together": lambda m, one: patching.together(m, one, [["L0H1", "L1.mlp"]]).values,
    "trace": lambda model, one: patching.causal_trace(model, one).mlps.values,
    "ablation": lambda model, one: torch.tensor(patching.ablate(model, one).change),
    "attribution": lambda m, one: attribution_patching.attribution(m, one).values,
    "AtP*": lambda model, one: attribution_patching.atp_star(model, one).values,
    "behaviour": lambda m, one: torch.tensor(behaviours.measure(m, one).score),
    "probe": lambda model, one: torch.tensor(
        [cell.accuracy.value for cell in probing.linear(model, task_of(one), folds=2).cells]
    ),
    "interchange": lambda model, one: torch.as_tensor(
        causal_abstraction.interchange(model, pairs_of(one), ["L0H1", "L1.mlp"]).accuracy.values
    ),
    "previous token": lambda m, one: heads.previous_token_heads(m, one.clean),
    "steering": lambda model, one: steering.difference(
        model, one.clean, one.corrupt, place="L0.resid_post"
    ).values,
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_bridge_gives_the_numbers_of_the_native_model(name, both):
    model, bridge, behaviour = both
    ours, theirs = (torch.as_tensor(RUNS[name](one, behaviour)) for one in (model, bridge))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5, equal_nan=True)


SMALL = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8}
# Families that openbook does not compute itself, by the name of their configuration.
OTHERS: dict[str, dict[str, Any]] = {
    "GemmaConfig": {**GROUPED, "head_dim": 8}, "Gemma2Config": GEMMA, "Gemma3TextConfig": GEMMA,
    "Olmo2Config": GROUPED, "PhiConfig": SMALL, "Phi3Config": GROUPED,
    "MixtralConfig": {**GROUPED, "num_local_experts": 4}, "StableLmConfig": GROUPED,
    "CohereConfig": GROUPED, "FalconConfig": {**SMALL, "ffn_hidden_size": 64},
    "GPTJConfig": {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4},
    "BloomConfig": {"vocab_size": 64, "hidden_size": 32, "n_layer": 3, "n_head": 4},
}  # fmt: skip
PLACES = {
    "heads": ("L1H1", "blocks.1.attn.hook_z"),
    "mlps": ("L1.mlp", "blocks.1.hook_mlp_out"),
    "attention": ("L1.attn", "blocks.1.hook_attn_out"),
    "residual": ("L1.resid_pre@4", "blocks.1.hook_resid_pre"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_families_go_through_the_sweeps_as_bridges(kind):
    """Logits of transformers, and effects of passes that are hooked by hand."""
    import transformers
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    torch.manual_seed(0)
    config = getattr(transformers, kind)(**OTHERS[kind])
    hub = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in hub.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        clean, corrupt = (torch.randint(1, 64, (4, 10)) for _ in range(2))
        logits = hub(clean).logits
        bridge = build_bridge_from_module(hub, type(hub).__name__, hf_config=config, tokenizer=None)
        torch.testing.assert_close(bridge(clean), logits, rtol=0, atol=1e-5)
        last = logits[:, -1]
        behaviour = Behaviour("random", clean, corrupt, last.argmax(1), last.argmin(1))
        _, cache = bridge.run_with_cache(clean)
        ends = [behaviour.score(bridge(tokens)).mean() for tokens in (corrupt, clean)]
        for sweep, (place, hook) in PLACES.items():
            index = {"L1H1": (..., 1, slice(None)), "L1.resid_pre@4": (slice(None), 4)}
            at, value = index.get(place, ...), cache[hook]

            def put(old: torch.Tensor, hook: Any, at: Any = at, value: Any = value):
                new = old.clone()
                new[at] = value[at]
                return new

            score = behaviour.score(bridge.run_with_hooks(corrupt, fwd_hooks=[(hook, put)])).mean()
            expected = ((score - ends[0]) / (ends[1] - ends[0])).item()
            found = getattr(patching, sweep)(bridge, behaviour)[place]
            assert found == pytest.approx(expected, abs=1e-5), sweep
            assert found != 0, sweep


def test_activations_of_a_bridge_are_those_of_the_native_model(both, tmp_path):
    model, bridge, behaviour = both
    stores = [
        activations.write_store(one, behaviour.clean, sites=["L0H1", "L1.mlp"], out=tmp_path / name)
        for name, one in (("native", model), ("bridge", bridge))
    ]
    for site in ("L0H1", "L1.mlp"):
        ours, theirs = (store.read(site).float() for store in stores)
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-2)


REFUSED: dict[str, Callable[[Any, Behaviour], Any]] = {
    "the logit lens": lambda model, one: lenses.logit(model, one),
    "direct logit attribution": lambda model, one: heads.decompose_logits(model, one),
    "a score of what a head writes": lambda model, one: heads.ov_copying(model, [1, 2, 3]),
    "the effective embedding": lambda m, one: heads.effective_embedding(m, torch.tensor([1, 2])),
    "path patching": lambda model, one: patching.senders(model, one),
    "a trace with noise": lambda m, one: patching.causal_trace(m, one, damage="noised"),
    "a circuit": lambda model, one: circuits.find(model, one, n_edges=3),
    "the graph of a circuit": lambda model, one: circuits.graph_of(model),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_reads_weights_refuses_a_bridge_by_its_name(what, both):
    _, bridge, behaviour = both
    with pytest.raises(ModelError, match=rf"{what}.* reads .*TransformerBridge; it can be patched"):
        REFUSED[what](bridge, behaviour)


def test_a_patch_that_would_not_reach_the_stream_is_refused(both):
    """In a bridge hook_resid_mid feeds the MLP only: patched there, effects were wrong by .8."""
    model, bridge, behaviour = both
    assert patching.residual(model, behaviour, site="resid_mid").values.shape == (2, 7)
    with pytest.raises(ModelError, match=r"resid_mid@. cannot be replaced in a TransformerBridge"):
        patching.residual(bridge, behaviour, site="resid_mid")
    with pytest.raises(ModelError, match="cannot be replaced in a TransformerBridge"):
        probing.erasure_effect(bridge, behaviour, task_of(behaviour), layer=0, site="resid_mid")


def test_a_bridge_states_behaviours_in_its_own_tokens():
    for tokenizer, prompt, answer in (
        (train_words(["the capital of a b is c d"]), "the capital of {} is", "c"),
        (train_bpe(["the capital of a b is c d"] * 4, 270), "the capital of {} is", " c"),
    ):
        model = shaken(replace(GPT2, d_vocab=tokenizer.vocab_size, n_ctx=32))
        model.tokenizer = tokenizer
        bridge = models.transformer_lens(model)
        rows = ([prompt.format("a")], [prompt.format("b")], [answer], [answer.replace("c", "d")])
        ours, theirs = (behaviours.from_strings(one, *rows) for one in (model, bridge))
        assert ours.sha256 == theirs.sha256
        assert ours.tokenizer == tokenizer.sha256


def test_a_tokenizer_that_is_not_known_is_named():
    from tokenizers import Tokenizer as Engine
    from tokenizers.models import Unigram
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Engine(Unigram([("a", 0.0)], 0)))
    other = SimpleNamespace(tokenizer=tokenizer)
    with pytest.raises(ModelError, match=r"a Unigram tokenizer .*in token ids"):
        behaviours.tokenizer_of(other)
