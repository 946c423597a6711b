"""Typical calls of TransformerLens on a loaded model and on its bridge, and their values compared.

    python benchmarks/transformerlens_calls.py [RUN] [--all]

Each call is an expression of exercises and papers. It is evaluated with `model` as the model of
`models.load` and as that of `models.transformer_lens`; numbers and tensors must agree within 1e-5,
text exactly. Without RUN, the released planted run is used. `--all` prints every call.

Exit 1 when the loaded model answers fewer than 170 calls, or a value differs from the bridge's that
is not in `OTHER_VALUES`.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import einops
import machine
import numpy as np
import torch

from interp import models
from train import released, runs
from train.runs import Run


ASKED, CLOSE = 170, 1e-5
CALLS = {
    "text and tokens": """
        model.to_tokens(text)
        model.to_tokens(text, prepend_bos=False)
        model.to_tokens([text, other])
        model.to_tokens([short, text])
        model.to_tokens([short, text], padding_side="left")
        model.to_str_tokens(text)
        model.to_str_tokens(text, prepend_bos=False)
        model.to_str_tokens([short, text])
        model.to_str_tokens(tokens[0])
        model.to_str_tokens(tokens)
        model.to_single_token(word)
        model.to_single_str_token(5)
        model.to_string(tokens)
        model.to_string(tokens[0])
        model.to_string(tokens[0, 1:])
        model.to_string(5)
        model.to_string([1, 2])
        model.to_string([[1, 2], [3, 4]])
        model.get_token_position(word, text)
        model.get_token_position(word, tokens, mode="last")
        model.tokenizer(text)["input_ids"]
        model.tokenizer.bos_token_id
        model.tokenizer.eos_token_id
        model.tokenizer.pad_token_id
        model.tokenizer.bos_token
        model.tokenizer.vocab_size
        model.tokenizer.decode(tokens[0, 1:].tolist())
    """,
    "configuration": """
        model.cfg.n_layers
        model.cfg.n_heads
        model.cfg.d_model
        model.cfg.d_head
        model.cfg.d_mlp
        model.cfg.d_vocab
        model.cfg.d_vocab_out
        model.cfg.n_ctx
        model.cfg.act_fn
        model.cfg.normalization_type
        model.cfg.positional_embedding_type
        model.cfg.attention_dir
        model.cfg.gated_mlp
        model.cfg.attn_only
        model.cfg.eps
        model.cfg.device
        model.cfg.dtype
        model.cfg.model_name
        model.cfg.seed
        model.cfg.default_prepend_bos
        model.cfg.attn_scale
        model.cfg.use_attn_result
        model.cfg.use_split_qkv_input
        model.cfg.use_hook_mlp_in
    """,
    "passes": """
        model(tokens)
        model(text)
        model([text, other])
        model([short, text])
        model(tokens[0])
        model(tokens, return_type="logits")
        model(tokens, return_type="loss")
        model(tokens, return_type="both")
        model(tokens, return_type=None)
        model(tokens, return_type="loss", loss_per_token=True)
        model(text, prepend_bos=False)
        model(tokens, prepend_bos=False)
        model.loss_fn(model(tokens), tokens)
        model.loss_fn(model(tokens), tokens, per_token=True)
        model(tokens, stop_at_layer=1)
        model(tokens, stop_at_layer=-1)
        model(model(tokens, stop_at_layer=1), start_at_layer=1)
        model.input_to_embed(tokens)[0]
        model.generate(text, max_new_tokens=3, do_sample=False, verbose=False)
        model.generate(tokens, max_new_tokens=3, do_sample=False, verbose=False)
        model.generate(tokens, max_new_tokens=9, stop_at_eos=False, do_sample=False, verbose=False)
        drawn(model.generate(text, max_new_tokens=3, verbose=False))
        model.eval() is not None
        model.to("cpu") is not None
        sum(1 for _ in model.parameters()) > 0
    """,
    "caching": """
        model.run_with_cache(tokens)[0]
        model.run_with_cache(text)[1]
        model.run_with_cache(tokens)[1]
        model.run_with_cache(tokens, names_filter="blocks.0.attn.hook_z")[1]
        model.run_with_cache(tokens, names_filter=["blocks.0.attn.hook_z", "hook_embed"])[1]
        model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))[1]
        model.run_with_cache(tokens, names_filter=get_act_name("resid_post", 1))[1]
        model.run_with_cache(tokens, remove_batch_dim=True)[1]["z", 0]
        model.run_with_cache(tokens, return_type=None)[1]
        model.run_with_cache(tokens, return_type="loss")[0]
        model.run_with_cache(tokens, stop_at_layer=1)[1]
        model.run_with_cache(tokens, device="cpu")[1]
        model.run_with_cache(tokens, return_type="loss", incl_bwd=True)[1]["hook_embed_grad"]
        type(model.run_with_cache(tokens, return_cache_object=False)[1])
        cached(model.get_caching_hooks("blocks.0.attn.hook_z"), model)
        filled(model.add_caching_hooks("blocks.0.attn.hook_z"), model)
    """,
    "cached activations": """
        cache["hook_embed"]
        cache["embed"]
        cache["pos_embed"]
        cache["resid_pre", 0]
        cache["resid_mid", 0]
        cache["resid_post", -1]
        cache["attn_out", 1]
        cache["mlp_out", 1]
        cache["q", 0]
        cache["k", 0]
        cache["v", 0]
        cache["z", 0]
        cache["pattern", 0]
        cache["attn", 0]
        cache["pattern", 0, "attn"]
        cache["attn_scores", 0]
        cache["pre", 0]
        cache["post", 0]
        cache["mlp_post", 0]
        cache["post", 0, "mlp"]
        cache["scale", 0, "ln1"]
        cache["normalized", 0, "ln1"]
        cache["normalized", 1, "ln2"]
        cache["ln_final.hook_scale"]
        cache["normalized"]
        cache["blocks.1.hook_resid_pre"]
        cache["blocks.0.attn.hook_pattern"]
        cache["result", 1]
        cache["result", 1, "attn"]
        cache["normalized", -1, "ln_final"]
        cache["blocks.0.hook_mlp_in"]
        cache["blocks.0.hook_q_input"]
        cache["blocks.0.attn.hook_rot_q"]
        "blocks.0.attn.hook_z" in cache.cache_dict
        len(list(cache.keys())) > 0
        cache.model is model
        cache.to("cpu")["z", 0]
        model.run_with_cache(tokens)[1].remove_batch_dim()["z", 0]
    """,
    "decompositions": """
        cache.accumulated_resid(layer=-1, incl_mid=True, pos_slice=-1, return_labels=True)
        cache.accumulated_resid(apply_ln=True, return_labels=True)
        cache.decompose_resid(layer=-1, pos_slice=-1, return_labels=True)
        cache.decompose_resid(layer=1, mode="attn", apply_ln=True)
        cache.stack_head_results(layer=-1, pos_slice=-1, return_labels=True)
        cache.stack_head_results(incl_remainder=True, apply_ln=True)
        model.run_with_cache(tokens)[1].compute_head_results()
        cache.get_full_resid_decomposition(layer=-1)
        cache.get_full_resid_decomposition(expand_neurons=False, pos_slice=-1, return_labels=True)
        cache.apply_ln_to_stack(cache.decompose_resid(pos_slice=-1), layer=-1, pos_slice=-1)
        cache.logit_attrs(cache.decompose_resid(), tokens=word)
        cache.logit_attrs(cache.stack_head_results(), tokens=5, incorrect_tokens=6)
        cache.stack_activation("pattern")
        cache.get_neuron_results(0)
        cache.stack_neuron_results(1, pos_slice=-1)
        cache.toggle_autodiff(False)
    """,
    "weights": """
        model.W_E
        model.W_pos
        model.W_E_pos
        model.W_U
        model.b_U
        model.W_Q
        model.W_K
        model.W_V
        model.W_O
        model.b_Q
        model.b_K
        model.b_V
        model.b_O
        model.W_in
        model.b_in
        model.W_out
        model.b_out
        model.W_Q[0, 1].shape
        model.QK
        model.OV
        model.QK[0, 1].shape
        model.OV.AB.shape
        model.OV[0, 1].svd()[1]
        model.OV[0, 1].eigenvalues.real.sort().values
        model.blocks[0].attn.W_Q
        model.blocks[0].attn.W_O
        model.blocks[0].attn.b_O
        model.blocks[0].attn.b_Q
        model.blocks[0].mlp.W_in
        model.blocks[0].mlp.W_out
        model.blocks[0].mlp.b_in
        model.blocks[0].ln1.w
        model.blocks[0].ln1.b
        model.ln_final.w
        model.ln_final(cache["resid_post", -1])
        model.embed.W_E
        model.embed(tokens)
        model.pos_embed.W_pos
        model.unembed.W_U
        model.unembed(cache["ln_final.hook_normalized"])
        model.all_head_labels
        model.all_head_labels()
        model.tokens_to_residual_directions(word)
        model.tokens_to_residual_directions(tokens)
        model.all_composition_scores("Q").scores
        model.all_composition_scores("K").scores
        model.all_composition_scores("V").scores
        model.accumulated_bias(1)
        model.accumulated_bias(1, mlp_input=True)
    """,
    "hooks": """
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_z", zeroed)])
        model.run_with_hooks(tokens, fwd_hooks=[(get_act_name("z", 0), zeroed)])
        model.run_with_hooks(tokens, fwd_hooks=[(lambda name: name.endswith("hook_z"), zeroed)])
        model.run_with_hooks(tokens, return_type="loss", fwd_hooks=[("hook_embed", zeroed)])
        model.run_with_hooks(tokens, return_type=None, fwd_hooks=[("hook_embed", zeroed)])
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_pattern", keyword)])
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_z", partial(at_head, head=1))])
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_mlp_out", partial(at_pos, pos=2))])
        facts_of_hook(model)
        within_hooks(model)
        without_a_pass(model)
        gradients(model)
        permanent(model)
        at_the_point(model)
        model.add_hook("blocks.0.attn.hook_z", zeroed)
        added(model)
        model.reset_hooks(including_permanent=True)
        model.hook_dict["blocks.0.attn.hook_z"] is not None
        len(list(model.hook_points())) > 0
        model.check_hooks_to_add
        switched(model, "use_attn_result")
        switched(model, "use_hook_mlp_in")
        switched(model, "use_split_qkv_input")
        switched(model, "use_attn_in")
        model.n_layers
        model.process_weights_()
        model.fold_layer_norm
        model.refactor_factored_attn_matrices
        model.load_and_process_state_dict
        model.sample_datapoint()
        model.set_tokenizer
    """,
    "exercises": """
        induction_scores(model)
        logit_difference(model)
        logit_lens(model)
        ablated_loss(model)
        head_attributions(model)
        patching.get_act_patch_resid_pre(model, corrupt, clean_cache, metric)
        patching.get_act_patch_resid_mid(model, corrupt, clean_cache, metric)
        patching.get_act_patch_attn_out(model, corrupt, clean_cache, metric)
        patching.get_act_patch_mlp_out(model, corrupt, clean_cache, metric)
        patching.get_act_patch_attn_head_out_all_pos(model, corrupt, clean_cache, metric)
        patching.get_act_patch_attn_head_out_by_pos(model, corrupt, clean_cache, metric)
        patching.get_act_patch_attn_head_v_all_pos(model, corrupt, clean_cache, metric)
        patching.get_act_patch_attn_head_pattern_all_pos(model, corrupt, clean_cache, metric)
        patching.get_act_patch_block_every(model, corrupt, clean_cache, metric)
        patching.get_act_patch_attn_head_all_pos_every(model, corrupt, clean_cache, metric)
        detect_head(model, text, "previous_token_head")
        detect_head(model, text, "induction_head", exclude_bos=True)
        test_prompt(short, "of", model, print_details=False)
    """,
}
# Values that differ from the bridge's on purpose.
OTHER_VALUES = {
    "model.cfg.attn_scale": "sqrt(d_head); the bridge leaves the -1 of a configuration not set",
    "patching.get_act_patch_resid_mid(model, corrupt, clean_cache, metric)": (
        "the stream is patched; the bridge's hook_resid_mid is the input of the MLP's norm alone"
    ),
}


@dataclass(frozen=True)
class Answer:
    """What a model answered to a call: a value, or the error."""

    value: Any = None
    error: str = ""


@dataclass(frozen=True)
class Row:
    """A call, and the answers of the loaded model and of the bridge."""

    topic: str
    call: str
    native: Answer
    bridge: Answer

    @property
    def equal(self) -> bool | None:
        """Whether the values agree; None if one of the two does not answer."""
        if self.native.error or self.bridge.error:
            return None
        return same(self.native.value, self.bridge.value)


def main() -> int:
    """Print the counts and what is not answered; 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", nargs="?", help="folder of a run; without one, the released run")
    parser.add_argument("--all", action="store_true", help="print every call")
    options = parser.parse_args()
    print(machine.described("torch", "transformer_lens"))
    rows = compare(runs.open(options.run) if options.run else released.open("planted"))
    return report(rows, everything=options.all)


def compare(run: Run) -> list[Row]:
    """Evaluate every call on the loaded model and on its bridge."""
    sides = [names_for(models.load(run)), names_for(models.transformer_lens(run))]
    calls = [
        (topic, line.strip())
        for topic, lines in CALLS.items()
        for line in lines.strip().splitlines()
    ]
    return [Row(topic, call, *(answer(call, side) for side in sides)) for topic, call in calls]


def report(rows: Sequence[Row], *, everything: bool = False) -> int:
    """Print counts and rows; return the exit code."""
    native = [row for row in rows if not row.native.error]
    bridge = [row for row in rows if not row.bridge.error]
    both = [row for row in rows if row.equal is not None]
    unequal = [row for row in both if not row.equal]
    wrong = [row.call for row in unequal if row.call not in OTHER_VALUES]
    for row in rows:
        if everything or row.native.error or row.equal is False:
            said = row.native.error or {True: "equal", False: "other value", None: "yes"}[row.equal]
            said += f" ({OTHER_VALUES[row.call]})" if row.call in OTHER_VALUES else ""
            bridge_said = "no " if row.bridge.error else "yes"
            print(f"{row.topic:<18} {row.call:<88} bridge {bridge_said} {said}")
    n_equal = len(both) - len(unequal)
    print(f"{len(rows)} calls: the loaded model answers {len(native)}, the bridge {len(bridge)}")
    print(f"both answer {len(both)}: {n_equal} values within {CLOSE}, wrong: {wrong or 'none'}")
    return int(len(native) < ASKED or bool(wrong))


def answer(call: str, names: Mapping[str, Any]) -> Answer:
    """Evaluate a call, and undo what it left behind."""
    model = names["model"]
    try:
        return Answer(eval(call, dict(names)))  # the calls of this file
    except Exception as error:
        return Answer(error=f"{type(error).__name__}: {error}".partition("\n")[0][:240])
    finally:
        torch.set_grad_enabled(True)
        model.zero_grad()
        model.reset_hooks(including_permanent=True)
        for switch in ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "use_attn_in"):
            getattr(model, f"set_{switch}")(False)


def same(ours: Any, theirs: Any) -> bool:
    """Return whether two answers agree; objects that hold no numbers or text agree always."""
    if hasattr(theirs, "AB"):
        return same(ours.AB, theirs.AB)
    if isinstance(theirs, torch.Tensor | np.ndarray):
        ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
        return ours.shape == theirs.shape and torch.allclose(
            ours.double(), theirs.double(), rtol=CLOSE, atol=CLOSE
        )
    if hasattr(theirs, "cache_dict") or isinstance(theirs, Mapping):
        names = [name for name in theirs.keys() if name in ours]  # noqa: SIM118
        return bool(names) and all(same(ours[name], theirs[name]) for name in names)
    if is_dataclass(theirs) and not isinstance(theirs, type):
        return all(same(getattr(ours, f.name), getattr(theirs, f.name)) for f in fields(theirs))
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(theirs, float):
        return abs(ours - theirs) <= CLOSE
    if theirs is None or isinstance(theirs, str | int | torch.dtype | type):
        return ours == theirs
    return True


def names_for(model: Any) -> dict[str, Any]:
    """Return the names that calls use, for one of the two models."""
    from transformer_lens import head_detector, patching
    from transformer_lens.utilities.components_utils import get_act_name
    from transformer_lens.utilities.exploratory_utils import test_prompt

    tokens = planted_prompt(model)
    corrupt = tokens.clone()
    corrupt[0, 2:4] = tokens[0, [3, 2]]
    text = model.to_string(tokens[0, 1:])
    word = model.to_string(tokens[0, -2:-1])
    answer_id, foil_id = tokens[0, 1].item(), tokens[0, 2].item()
    with torch.no_grad():
        cache, clean_cache = (model.run_with_cache(tokens)[1] for _ in range(2))
    return {
        **{"model": model, "tokens": tokens, "corrupt": corrupt, "text": text, "word": word},
        **{"short": model.to_string(tokens[0, 1:3]), "other": model.to_string(corrupt[0, 1:])},
        **{"cache": cache, "clean_cache": clean_cache, "patching": patching, "partial": partial},
        "metric": lambda logits: logits[0, -1, answer_id] - logits[0, -1, foil_id],
        "get_act_name": get_act_name,
        "detect_head": head_detector.detect_head,
        "test_prompt": test_prompt,
        **{function.__name__: function for function in HELPERS},
    }


def planted_prompt(model: Any) -> torch.Tensor:
    """Return one prompt of six different tokens, the separator in front."""
    tokens = torch.arange(7, 13)[None] * (model.cfg.d_vocab // 13)
    tokens[0, 0] = model.tokenizer.bos_token_id
    return tokens


# --- what stands for several lines of an exercise -------------------------------------------------


def zeroed(value: torch.Tensor, hook: Any) -> torch.Tensor:
    """Replace a value by zeros."""
    return torch.zeros_like(value)


def keyword(value: torch.Tensor, *, hook: Any) -> torch.Tensor:
    """Halve a value; the point is a keyword."""
    return value / 2


def at_head(value: torch.Tensor, hook: Any, head: int) -> torch.Tensor:
    """Set a head to zero."""
    value = value.clone()
    value[:, :, head] = 0
    return value


def at_pos(value: torch.Tensor, pos: int, hook: Any) -> torch.Tensor:
    """Set a position to zero; the point comes after another parameter."""
    value = value.clone()
    value[:, pos] = 0
    return value


def drawn(text: str) -> bool:
    """Return whether a text was drawn, which differs from draw to draw."""
    return isinstance(text, str) and len(text) > 0


def cached(hooks: tuple, model: Any) -> torch.Tensor:
    """Fill the dictionary of caching hooks."""
    found, forward, backward = hooks
    with model.hooks(fwd_hooks=forward, bwd_hooks=backward):
        model(planted_prompt(model))
    return next(iter(found.values()))


def filled(found: dict, model: Any) -> torch.Tensor:
    """Fill the dictionary of caching hooks that were added."""
    model(planted_prompt(model))
    return next(iter(found.values()))


def facts_of_hook(model: Any) -> list:
    """Return what a hook reads off its point."""
    found = []

    def look(value: torch.Tensor, hook: Any) -> None:
        hook.ctx["shape"] = tuple(value.shape)
        found.extend([hook.layer(), hook.ctx["shape"], hook.name.split(".")[:3]])

    model.run_with_hooks(planted_prompt(model), fwd_hooks=[("blocks.1.attn.hook_z", look)])
    return found


def within_hooks(model: Any) -> torch.Tensor:
    """Run the model inside a block of hooks."""
    with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", zeroed)]) as hooked:
        return hooked(planted_prompt(model))


def without_a_pass(model: Any) -> bool:
    """Set hooks for a block in which the model does not run."""
    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_z", zeroed)]):
        return True


def gradients(model: Any) -> torch.Tensor:
    """Return the gradient of a logit with respect to the output of the heads."""
    found = []
    point = "blocks.0.attn.hook_z"
    with model.hooks(bwd_hooks=[(point, lambda gradient, hook: found.append(gradient))]):
        model(planted_prompt(model))[0, -1, 5].backward()
    return found[0]


def permanent(model: Any) -> list:
    """Return logits with a permanent hook, after a reset, and after a full reset."""
    tokens = planted_prompt(model)
    model.add_hook("blocks.0.attn.hook_z", zeroed, is_permanent=True)
    model.reset_hooks()
    kept = model(tokens)
    model.reset_hooks(including_permanent=True)
    return [kept, model(tokens)]


def at_the_point(model: Any) -> torch.Tensor:
    """Add a hook at the object that is the hook point."""
    model.blocks[0].attn.hook_z.add_hook(zeroed)
    return model(planted_prompt(model))


def added(model: Any) -> torch.Tensor:
    """Add a hook by a predicate on names."""
    model.add_hook(lambda name: name.endswith("hook_mlp_out"), zeroed)
    return model(planted_prompt(model))


def switched(model: Any, switch: str) -> list:
    """Turn a switch on, and return it with the activation that it gives."""
    name = {
        "use_attn_result": "blocks.0.attn.hook_result",
        "use_hook_mlp_in": "blocks.0.hook_mlp_in",
        "use_split_qkv_input": "blocks.0.hook_q_input",
        "use_attn_in": "blocks.0.hook_attn_in",
    }[switch]
    getattr(model, f"set_{switch}")(True)
    _, cache = model.run_with_cache(planted_prompt(model))
    return [getattr(model.cfg, switch), cache[name]]


def induction_scores(model: Any) -> torch.Tensor:
    """Return each head's attention to the token after the last occurrence, on repeated tokens."""
    n = 10
    generator = torch.Generator().manual_seed(0)
    half = torch.randint(1, model.cfg.d_vocab, (4, n), generator=generator)
    start = torch.full((4, 1), model.tokenizer.bos_token_id)
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)

    def keep(pattern: torch.Tensor, hook: Any) -> None:
        stripe = pattern.diagonal(dim1=-2, dim2=-1, offset=1 - n)
        scores[hook.layer()] = einops.reduce(stripe, "batch head pos -> head", "mean")

    model.run_with_hooks(
        torch.cat([start, half, half], dim=1),
        return_type=None,
        fwd_hooks=[(lambda name: name.endswith("pattern"), keep)],
    )
    return scores


def logit_difference(model: Any) -> torch.Tensor:
    """Return the logit of the last token but one minus that of the first, at the end."""
    logits = model(planted_prompt(model))
    first, last = planted_prompt(model)[0, [1, -2]]
    return logits[0, -1, last] - logits[0, -1, first]


def logit_lens(model: Any) -> torch.Tensor:
    """Return the logits that every layer's stream gives."""
    _, cache = model.run_with_cache(planted_prompt(model))
    stack, _ = cache.accumulated_resid(layer=-1, apply_ln=True, pos_slice=-1, return_labels=True)
    return stack @ model.W_U


def ablated_loss(model: Any) -> torch.Tensor:
    """Return the loss with each head of layer 0 set to zero."""
    losses = [
        model.run_with_hooks(
            planted_prompt(model),
            return_type="loss",
            fwd_hooks=[("blocks.0.attn.hook_z", partial(at_head, head=head))],
        )
        for head in range(model.cfg.n_heads)
    ]
    return torch.stack(losses)


def head_attributions(model: Any) -> torch.Tensor:
    """Return what each head adds to the logit of a token, at the end."""
    _, cache = model.run_with_cache(planted_prompt(model))
    stack = cache.stack_head_results(layer=-1, pos_slice=-1)
    return cache.apply_ln_to_stack(stack, layer=-1, pos_slice=-1) @ model.W_U[:, 5]


HELPERS: tuple[Callable, ...] = (
    zeroed, keyword, at_head, at_pos, drawn, cached, filled, facts_of_hook, within_hooks,
    without_a_pass, gradients, permanent, at_the_point, added, switched, induction_scores,
    logit_difference, logit_lens, ablated_loss, head_attributions,
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
