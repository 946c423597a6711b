"""Reading of foreign configurations: every key is understood, known to be harmless, or refused.

A key that is skipped may turn a model into another model without a word. So each family lists the
keys that are read, those that must have one value because any other changes the computation in a
way that the decoder does not have, and those that change no logits of a model in evaluation. A key
in none of these lists is refused by name, unless its value is null.

Sources: `configuration_utils.py`, `configuration_gpt2.py` and `configuration_llama.py` of
transformers 4.57 and 5.23, `gguf-py/gguf/constants.py` of llama.cpp, nanoGPT's `model.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from train import storage
from train.errors import DamagedError, RecipeError
from train.short_repr import short_repr


__all__ = ["ForeignConfig", "Keys"]

LARGEST = 1 << 40  # of a size; a larger one is a mistake, and memory for it an abort
# Keys of every Hugging Face configuration that change no logits of a model in evaluation.
HARMLESS = frozenset(
    (
        "architectures", "attn_implementation", "bad_words_ids", "begin_suppress_tokens",
        "bos_token_id", "chunk_size_feed_forward", "classifier_dropout", "cls_token_id",
        "decoder_start_token_id",
        "diversity_penalty", "do_sample", "dtype", "early_stopping",
        "encoder_no_repeat_ngram_size", "eos_token_id", "eos_token_ids",
        "exponential_decay_length_penalty",
        "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing",
        "id2label", "initializer_range", "keys_to_ignore_at_inference", "label2id",
        "length_penalty", "license", "loss_type", "mask_token_id", "max_length",
        "max_new_tokens", "min_length", "model_type", "name_or_path", "neftune_noise_alpha",
        "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels",
        "num_return_sequences", "output_attentions",
        "output_hidden_states", "output_scores", "pad_token_id", "prefix", "problem_type",
        "remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate",
        "sep_token_id", "suppress_tokens", "task_specific_params", "temperature",
        "tf_legacy_loss", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
        "transformers_version", "transformers.js_config", "typical_p", "unk_token_id",
        "unsloth_fixed",
        "unsloth_version", "use_bfloat16", "use_cache",
    )
)  # fmt: skip
# Values that every Hugging Face configuration may give, and what else is another computation.
ONLY = {
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "is_decoder": (False, True),  # both are causal in the classes of this module
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
}


@dataclass(frozen=True)
class Keys:
    """The keys of one family's configuration, by what is done with them.

    Attributes:
        read: Keys that the importer reads.
        only: Keys that must have one value, or one of a tuple of values, or be missing.
        harmless: Keys that change no logits of a model in evaluation.
        other_names: Other names of keys that are read.
    """

    read: frozenset[str]
    only: Mapping[str, object] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    other_names: Mapping[str, str] = field(default_factory=dict)

    __repr__ = short_repr


class ForeignConfig:
    """A configuration whose keys were all checked, with typed readers of its values.

    Args:
        content: The configuration.
        keys: What its keys mean.
        path: The file, for errors.

    Attributes:
        content: The keys that are read, without null ones, by the names of `keys.read`.
        nulls: The keys that are null.

    Raises:
        RecipeError: A key has a value that the decoder does not compute, or is unknown.
    """

    def __init__(self, content: storage.JsonObject, keys: Keys, path: Path) -> None:
        self.path, self.content = path, {}
        self.nulls = frozenset(key for key, value in content.items() if value is None)
        for key, value in content.items():
            name = keys.other_names.get(key, key)
            if key.startswith("_") or key in keys.harmless or value is None:
                continue
            if name in keys.read:
                if self.content.setdefault(name, value) != value:
                    other = next(k for k in content if keys.other_names.get(k, k) == name)
                    raise RecipeError(
                        f"{path}: {other} is {content[other]!r} and {key} is {value!r}, which are "
                        "names of one number"
                    )
            elif key in keys.only:
                self._must_be(key, value, keys.only[key])
            else:
                raise RecipeError(
                    f"{path}: the key {key!r} ({_shortened(value)}) is not known here and may "
                    "change what the model computes; if it does not, remove it from the file"
                )

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a positive whole number.

        Raises:
            DamagedError: It is missing and there is no default, or it is something else.
        """
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST:
            raise DamagedError(
                f"{self.path}: {key} is {_shortened(value)}, not a whole number from 1 to {LARGEST}"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number above 0.

        Raises:
            DamagedError: It is missing and there is no default, or it is something else.
        """
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
            raise DamagedError(f"{self.path}: {key} is {_shortened(value)}, not a number above 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false.

        Raises:
            DamagedError: It is something else.
        """
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise DamagedError(f"{self.path}: {key} is {_shortened(value)}, not true or false")
        return value

    def name(self, key: str, known: Mapping[str, str], default: str) -> str:
        """Return what a name stands for.

        Raises:
            RecipeError: The name is not known.
        """
        value = self._value(key, default)
        if not isinstance(value, str) or value not in known:
            raise RecipeError(
                f"{self.path}: {key} is {_shortened(value)}; known are {', '.join(known)}"
            )
        return known[value]

    def part(self, key: str, keys: Keys) -> "ForeignConfig":
        """Return a nested configuration; an empty one if it is missing.

        Raises:
            DamagedError: It is no object.
            RecipeError: One of its keys is unknown or has another value.
        """
        value = self.content.get(key) or {}
        if not isinstance(value, dict):
            raise DamagedError(f"{self.path}: {key} is {_shortened(value)}, not an object")
        return ForeignConfig(value, keys, Path(f"{self.path}: {key}"))

    def _value(self, key: str, default: object) -> object:
        value = self.content.get(key)
        if value is None:
            value = default
        if value is None:
            raise DamagedError(f"{self.path}: {key} is missing")
        return value

    def _must_be(self, key: str, value: object, allowed: object) -> None:
        values = allowed if isinstance(allowed, tuple) else (allowed,)
        if value is not None and not any(value == one for one in values):
            raise RecipeError(
                f"{self.path}: {key} is {_shortened(value)}, and only "
                f"{' or '.join(map(repr, values))} is computed here"
            )


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
