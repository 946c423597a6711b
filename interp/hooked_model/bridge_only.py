"""Calls of TransformerLens that the loaded model does not answer, and where they are answered.

A name that only the bridge has leads to an error that says so. Names that TransformerLens 4 gave up
lead to what takes their place.
"""

from interp.errors import BridgeOnlyError


__all__ = ["BRIDGE_ONLY", "INSTEAD", "refuse", "refuse_options"]
__all__ += ["refuse_switch"]

# Public attributes of `TransformerBridge` that are neither here nor in `torch.nn.Module`.
# fmt: off
BRIDGE_ONLY = frozenset((
    "adapter", "attn_head_labels", "block_hooks", "block_submodules", "blocks_with", "boot_native",
    "boot_tl_legacy", "boot_transformers", "cache_all", "cache_some", "check_hooks_to_add",
    "check_model_support", "clear_hook_registry", "close", "compatibility_mode",
    "composition_layer_indices", "context_level", "diffusion_generate", "enable_compatibility_mode",
    "encoder_output", "generate_stream", "get_hook_point", "get_params", "hf_generate",
    "hook_aliases", "init_weights", "layer_types", "list_hooks", "list_supported_models",
    "mod_dict", "mps", "n_params_total", "original_model", "OV_for_attn_layers",
    "predict_next_sentence", "prepare_multimodal_inputs", "process_weights", "processor",
    "QK_for_attn_layers", "real_components", "remove_all_hook_fns", "stack_params_for",
    "tl_named_parameters", "tl_parameters", "to_sentence_pair_tokens",
))
# fmt: on
UNPROCESSED = (
    "the weights are those of the checkpoint, and nothing is folded or centred; the bridge's "
    "`enable_compatibility_mode()` processes a copy"
)
# Names of TransformerLens 2 and 3 that the bridge does not have either.
INSTEAD = {
    "n_layers": "use model.cfg.n_layers",
    "n_heads": "use model.cfg.n_heads",
    "d_model": "use model.cfg.d_model",
    "fold_layer_norm": UNPROCESSED,
    "fold_value_biases": UNPROCESSED,
    "center_unembed": UNPROCESSED,
    "center_writing_weights": UNPROCESSED,
    "process_weights_": UNPROCESSED,
    "refactor_factored_attn_matrices": UNPROCESSED,
    "load_and_process_state_dict": f"use model.load_state_dict; {UNPROCESSED}",
    "sample_datapoint": "read documents with run.store.tokens or train.data.batches",
    "set_tokenizer": "set model.tokenizer, or load with models.load(tokenizer=FILE)",
}


def refuse(name: str) -> BridgeOnlyError | None:
    """Return the error for an attribute that only TransformerLens has; None for other names."""
    if name in INSTEAD:
        return BridgeOnlyError(f"a loaded model has no {name!r}: {INSTEAD[name]}")
    if name in BRIDGE_ONLY:
        return BridgeOnlyError(
            f"a loaded model has no {name!r}; use `models.transformer_lens(model).{name}`, the "
            "same weights as a TransformerLens model"
        )
    return None


def refuse_switch(call: str, *, on: bool) -> None:
    """Raise a BridgeOnlyError if hook points are switched on that are not here."""
    if on:
        raise BridgeOnlyError(
            f"{call}(True) gives every head an input of its own, and here one matrix computes all "
            f"queries, keys and values; use `models.transformer_lens(model).{call}(True)`, or hook "
            "hook_q, hook_k and hook_v"
        )


def refuse_options(call: str, options: dict[str, object]) -> None:
    """Raise a BridgeOnlyError if options of TransformerLens are set that are not computed here.

    Options that are None or False are as good as not set.
    """
    for name, value in options.items():
        if value is not None and value is not False:
            raise BridgeOnlyError(
                f"{call} of a loaded model has no option {name!r} (it was {value!r:.40}); use "
                f"`models.transformer_lens(model).{call}(..., {name}=...)`, the same weights as a "
                "TransformerLens model"
            )
