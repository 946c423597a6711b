"""A matrix of foreign configurations against transformers: equal, refused by name, or wrong.

Every case is a random model that transformers saves, whose config.json and weights are then changed
as those of folders that people have. transformers opens the folder again, and openbook does. A case
is *equal* if the logits of both differ by less than 1e-5, *refused* if openbook ends with one line
of its own errors that names the key, the tensor or the file, and *wrong* otherwise. Cases marked +
must be equal. At least 80 are asked for, and none may be wrong.

    python benchmarks/foreign_configs.py [--all]

`--all` prints every case, and otherwise there is a line for every group of cases. B02 to B23 are
reports of faults of other tools in whose words the cases were found.
"""

import argparse
import json
import logging
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import machine


AT_LEAST, CLOSE = 80, 1e-5
WEIGHTS = "model.safetensors"
STAND_INS = {
    "a git-lfs pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
    "an HTML page": "<!DOCTYPE html><html><body>log in</body></html>",
    "nothing": "",
}
SIZES = {
    "gpt2": {"n_layer": 2, "n_head": 4, "n_embd": 24, "n_positions": 12, "vocab_size": 37},
    "llama": {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_size": 24,
        "vocab_size": 37,
        "intermediate_size": 40,
        "max_position_embeddings": 12,
    },
}
ROPE = {"rope_type": "default", "rope_theta": 500.0}


@dataclass(frozen=True)
class Case:
    """One folder.

    Attributes:
        group: The line of the table to which it belongs.
        family: The model type that transformers saves.
        choice: Arguments of its configuration.
        keys: Keys of config.json that are changed afterwards; None stands for null, and `...`
            removes one.
        weights: Change of the saved tensors.
        files: Change of the whole folder, after all others.
        equal: True if it must be equal.
        names: What the refusal must name; by default the first of `keys`.
    """

    group: str
    family: str
    choice: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    weights: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    files: Callable[[Path], object] | None = None
    equal: bool = False
    names: str = ""

    def __str__(self) -> str:
        return f"{self.family} {self.choice or ''} {self.keys or ''}"


def main() -> int:
    """Compare every case and print the table; 1 if one is wrong or there are too few."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--all", action="store_true", help="a line for every case")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print(machine.described("torch", "transformers"))
    table: dict[str, Counter[str]] = {}
    for case in cases():
        with tempfile.TemporaryDirectory() as folder:
            outcome, why = compared(case, Path(folder))
        table.setdefault(case.group, Counter())[outcome] += 1
        if options.all or outcome == "wrong":
            print(f"{outcome:8} {case.group:34} {case}   {why}", flush=True)
    return report(table)


def report(table: dict[str, Counter[str]]) -> int:
    """Print a line for every group and the sums; return 1 if they are not as asked."""
    for group, found in table.items():
        print(f"{group:44} equal {found['equal']:3}   refused {found['refused']:3}   "
              f"wrong {found['wrong']:3}")  # fmt: skip
    total = sum(table.values(), Counter())
    print(
        f"{total.total()} configurations (asked: at least {AT_LEAST}): {total['equal']} equal "
        f"within {CLOSE:.0e}, {total['refused']} refused by name, {total['wrong']} wrong"
    )
    return int(total["wrong"] > 0 or total.total() < AT_LEAST)


def compared(case: Case, folder: Path) -> tuple[str, str]:
    """Return whether a case is equal, refused or wrong, and the reason."""
    import torch

    from train import convert
    from train.errors import TrainError

    tokens = torch.randint(37, (2, 12), generator=torch.Generator().manual_seed(0))
    write(case, folder)
    with torch.no_grad():
        try:
            ours = convert.import_huggingface(folder).model(tokens)
        except TrainError as error:
            name = case.names or next(iter(case.keys), "")
            said = str(error).replace(f"{folder}/", "").replace(folder.name, "")
            named = name in said and "\n" not in said and not case.equal
            return ("refused" if named else "wrong"), said
        off = float((ours - theirs(folder, tokens)).abs().max())
    return ("equal" if off < CLOSE else "wrong"), f"largest difference {off:.1e}"


def write(case: Case, folder: Path) -> None:
    """Save a random model with transformers, and change its folder."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    sizes = {**SIZES.get(case.family, SIZES["llama"]), "initializer_range": 0.2, **case.choice}
    config = transformers.AutoConfig.for_model(case.family, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))  # biases and norms, too
    model.save_pretrained(folder)
    path = folder / "config.json"
    content = json.loads(path.read_text()) | case.keys
    path.write_text(json.dumps({key: one for key, one in content.items() if one is not ...}))
    if case.weights is not None:
        file = folder / WEIGHTS
        changed = case.weights(load_file(file))
        tensors = {name: one.contiguous().clone() for name, one in changed.items()}
        save_file(tensors, file, metadata={"format": "pt"})
    if case.files is not None:
        case.files(folder)


def theirs(folder: Path, tokens: Any) -> Any:
    """Return the logits that transformers computes with the folder in fp32."""
    import torch
    import transformers

    # Prefixes of wrappers are no matter of transformers.
    from safetensors.torch import load_file, save_file

    path = folder / WEIGHTS
    plain = {
        name.removeprefix("_orig_mod.").removeprefix("module."): one
        for name, one in load_file(path).items()
    }
    save_file(plain, path, metadata={"format": "pt"})
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()(tokens).logits


# --- the cases -----------------------------------------------------------------------------------


def cases() -> Iterator[Case]:
    """Yield all cases."""
    yield from gpt2_cases()
    yield from llama_cases()
    yield from fault_cases()
    yield from key_cases()


def gpt2_cases() -> Iterator[Case]:
    exact = ("gelu_new", "gelu", "relu", "gelu_pytorch_tanh", "gelu_fast")
    for name, tied in product(exact, (True, False)):
        choice = {"activation_function": name, "tie_word_embeddings": tied}
        yield Case("+ GPT-2, activations and ties", "gpt2", choice, equal=True)
    for choice in (
        {"n_inner": 52},
        {"layer_norm_epsilon": 1e-3},
        {"n_head": 1},
        {"reorder_and_upcast_attn": True},
        {"attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5},
    ):
        yield Case("+ GPT-2, other fields", "gpt2", choice, equal=True)
    for keys in (
        {"n_ctx": 12, "task_specific_params": {"text-generation": {"do_sample": True}}},  # gpt2
        {"_num_labels": 1, "id2label": {"0": "A"}, "label2id": {"A": 0}},  # distilgpt2
        {"n_special": 0, "predict_special_tokens": True},  # gpt2-medium
        {"output_past": True},  # gpt2-xl
        {"do_sample": True, "max_length": 100, "gradient_checkpointing": False},  # fine-tuned ones
        {"summary_type": "mean", "summary_use_proj": False, "summary_first_dropout": 0.3},
        {"pad_token_id": 3, "tokenizer_class": "BertTokenizer", "mask_token_id": 4},
        {"torch_dtype": "float16", "dtype": ...},
        {"torch_dtype": "bfloat16"},
        {"activation_function": ..., "layer_norm_epsilon": ..., "tie_word_embeddings": ...},
        {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
        {"n_layer": ..., "num_hidden_layers": 2},
    ):
        yield Case("+ GPT-2, keys of published files", "gpt2", keys=keys, equal=True)
    for choice in (
        {"scale_attn_by_inverse_layer_idx": True},  # the alias models of stanford-crfm
        {"scale_attn_weights": False},
        {"add_cross_attention": True},
        {"activation_function": "quick_gelu"},
        {"activation_function": "silu"},
        {"activation_function": "tanh"},
    ):
        yield Case("GPT-2, other computations", "gpt2", choice, names=next(iter(choice)))


def llama_cases() -> Iterator[Case]:
    for few, attention, mlp in product((4, 2, 1), (False, True), (False, True)):
        choice = {"num_key_value_heads": few, "attention_bias": attention, "mlp_bias": mlp}
        group = "+ B08 Llama, biases and key-value heads"
        yield Case(group, "llama", choice, equal=True)
    for choice in (
        {"head_dim": 8},  # not hidden_size / heads
        {"head_dim": 2},
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False},
        {"rms_norm_eps": 1e-3},
        {"rope_parameters": ROPE},
        {"hidden_act": "swish"},
        {"max_position_embeddings": 1 << 20},  # B27
        {"attention_dropout": 0.5},
    ):
        yield Case("+ Llama, other fields", "llama", choice, equal=True)
    both = {"rope_parameters": ROPE, "rope_theta": 300.0}
    for keys in (
        {"rope_parameters": ..., "rope_theta": 300.0, "rope_scaling": None},  # transformers 4
        {"rope_parameters": ..., "rope_theta": 500_000},
        {"rope_parameters": ...},
        {"rope_parameters": {"rope_theta": 300.0}},
        {"rope_parameters": ..., "rope_scaling": {"type": "default"}, "rope_theta": 300.0},
        {"pretraining_tp": 2, "max_sequence_length": 2048, "use_cache": False},  # Llama 2, Vicuna
        {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"a": 1}},
        {"unsloth_version": "2025.1", "unsloth_fixed": True, "_flash_attn_2_enabled": True},
        {"num_key_value_heads": None, "head_dim": None, "rope_scaling": None},
        {"num_key_value_heads": ..., "head_dim": ..., "hidden_act": ..., "rms_norm_eps": ...},
        {"torch_dtype": "bfloat16", "eos_token_id": [1, 2], "bos_token_id": 1},
        {"quantization_config": None, "sliding_window": None, "use_sliding_window": False},
        {"loss_type": "ForCausalLM", "neftune_noise_alpha": 5, "output_attentions": False},
    ):
        yield Case("+ Llama, keys of published files", "llama", keys=keys, equal=True)
    for keys in (
        both,
        {"rope_parameters": ..., "rope_scaling": {"rope_type": "default", "rope_theta": 500.0}},
        {"rope_parameters": ROPE, "rope_scaling": {"type": "default"}},
        {"rope_parameters": ROPE, "rope_scaling": {"type": "default", "rope_theta": 300.0}},
    ):
        yield Case("Llama, two bases of the rotation", "llama", keys=keys, names="rope")


def fault_cases() -> Iterator[Case]:
    """Yield the cases of what was reported of other tools."""
    extra = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 8}  # fmt: skip
    for place, key, kind in product(
        ("rope_scaling", "rope_parameters"),
        ("type", "rope_type"),
        ("linear", "dynamic", "yarn", "llama3"),
    ):
        yield Case("B02 scaled rotations", "llama", keys={place: {key: kind, **extra}})
    tied = {"tie_word_embeddings": True}
    head, table = "lm_head.weight", {"gpt2": "transformer.wte.weight",
                                     "llama": "model.embed_tokens.weight"}  # fmt: skip
    base = {"gpt2": "transformer.", "llama": "model."}
    for family in ("gpt2", "llama"):
        name = table[family]
        yield Case("+ B07 one of two tied tensors", family, tied, equal=True,
                   weights=lambda w, name=name: {head: w[name]} | without(w, name))  # fmt: skip
        yield Case("+ B07 one of two tied tensors", family, tied, equal=True,
                   weights=lambda w, name=name: w | {head: w[name]})  # fmt: skip
        yield Case("B07 two tied tensors that differ", family, tied, names=head,
                   weights=lambda w, name=name: w | {head: w[name] + 1})  # fmt: skip
        prefix = base[family]
        yield Case("+ B23 saved without a head", family, tied, equal=True,
                   weights=lambda w, prefix=prefix: bare(w, prefix))  # fmt: skip
        yield Case("+ prefixes of wrappers", family, equal=True,
                   weights=lambda w: {f"module.{key}": one for key, one in w.items()})  # fmt: skip
        yield Case("weights that are not finite", family, names="NaN",
                   weights=lambda w, name=name: w | {name: w[name] * float("nan")})  # fmt: skip
        yield Case("weights that are integers", family, names="int8",
                   weights=lambda w, name=name: w | {name: w[name].char()})  # fmt: skip
        yield Case("+ weights in half precision", family, equal=True,
                   weights=lambda w: {name: one.half() for name, one in w.items()})  # fmt: skip
    for place, (name, text) in product(("config.json", WEIGHTS), STAND_INS.items()):
        yield Case(f"B10 {name} in place of a file", "gpt2", names=place,
                   files=lambda f, at=place, text=text: (f / at).write_text(text))  # fmt: skip
    for content in ({}, [], 3, {"weight_map": []}, {"weight_map": {"a": "../b.safetensors"}}):
        yield Case("B11 an index of another form", "llama", names="index.json",
                   files=lambda f, content=content: in_shards(f, listing=content))  # fmt: skip
    yield Case("B17 a copy with other values in a shard", "llama", names="another value",
               files=lambda f: in_shards(f, added=1.0))  # fmt: skip
    for name in ("gelu_python", "gelu_accurate", "gelu_python_tanh"):
        choice = {"activation_function": name}
        yield Case("+ B22 other names of activations", "gpt2", choice, equal=True)


def in_shards(folder: Path, *, listing: object = None, added: float = 0.0) -> None:
    """Divide the weights among two files, of which the second repeats a tensor of the first."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(weights)
    places = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(names)}
    for number in range(2):
        part = {name: weights[name] for name in names[number::2]}
        part |= {names[0]: weights[names[0]] + added * number}
        save_file(part, folder / f"part-{number}.safetensors", metadata={"format": "pt"})
    content = {"weight_map": places} if listing is None else listing
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(content))


def without(weights: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: one for key, one in weights.items() if key != name}


def bare(weights: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): one for name, one in weights.items()}


def key_cases() -> Iterator[Case]:
    """Yield keys of other families and of variants, each in a file of a known family."""
    for keys in (
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"auto_map": {"AutoModelForCausalLM": "modeling_other.Other"}},
        {"sliding_window": 4},  # Mistral
        {"use_sliding_window": True},  # Qwen2
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"attn_logit_softcapping": 50.0},  # Gemma 2
        {"final_logit_softcapping": 30.0},
        {"query_pre_attn_scalar": 256},
        {"hidden_activation": "gelu_pytorch_tanh"},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"hidden_act": "relu2"},  # Nemotron
        {"attention_multiplier": 0.1},  # Granite
        {"embedding_multiplier": 12.0},
        {"residual_multiplier": 0.2},
        {"logits_scaling": 8.0},
        {"logit_scale": 0.0625},  # Cohere
        {"use_qk_norm": True},
        {"no_rope_layers": [0, 1]},  # SmolLM3
        {"no_rope_layer_interval": 4},
        {"attn_temperature_tuning": True},  # Llama 4
        {"num_local_experts": 8},
        {"clip_qkv": 8.0},  # OLMo
        {"partial_rotary_factor": 0.5},  # Phi
        {"rotary_pct": 0.25},
        {"rope_interleaved": True},
        {"scale_emb": 12},  # MiniCPM
        {"scale_depth": 1.4},
        {"layer_sharing": True},  # MobileLLM
        {"weight_bits": 1},  # BitNet
        {"is_encoder_decoder": True},
        {"pruned_heads": {"0": [1]}},
        {"chunk_attention_size": 4},
        {"qk_layernorm": True},
        {"alibi": True},
    ):
        yield Case("keys of other families in a Llama", "llama", keys=keys)
    for keys in (
        {"position_embedding_type": "alibi"},
        {"mup_width_scale": 2.0},  # Cerebras' BTLM
        {"multi_query": True},  # GPTBigCode
        {"rotary_dim": 4},  # GPT-J
        {"attention_types": [[["global", "local"], 1]]},  # GPT-Neo
        {"hidden_size": 48},
        {"n_inner": 50},
        {"n_positions": 6},
    ):
        names = {"n_inner": "mlp", "n_positions": "pos_embed", "hidden_size": "hidden_size"}
        key = next(iter(keys))
        yield Case("keys of other families in a GPT-2", "gpt2", keys=keys,
                   names=names.get(key, key))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
