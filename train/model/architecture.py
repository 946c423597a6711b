"""The choices of the decoder, as data.

One frozen value says everything that `train.model` needs to build and start a network, so a recipe
can name an architecture, and a manifest record one, without importing torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from train.errors import RecipeError, nearest


__all__ = ["CHOICES", "LATER", "GPTConfig"]

CHOICES = {
    "position": ("learned", "sinusoidal", "rope", "none"),
    "norm": ("layernorm", "rmsnorm", "none"),
    "norm_placement": ("pre", "post"),
    "mlp": ("gelu", "gelu-tanh", "relu", "swiglu"),
    "position_init": ("normal", "sinusoids"),
}
# Fields that came after the first runs. At its default such a field is not written, so a recipe
# reads, and its run is named, as it was before there was the choice.
LATER = {"causal": True}


@dataclass(frozen=True)
class GPTConfig:
    """The whole architecture and its initialisation. Sizes given as 0 are filled in.

    `vocab_multiple` pads the embedding inside, for speed; no logit and no count ever shows it.
    `position_init_scale` is the deviation of a normal start, or the amplitude of sinusoids.
    `causal` off lets every position attend to all, as compiled programs may; `train.recipes`
    refuses to train such a network, because it would see its targets.
    """

    n_layers: int
    n_heads: int
    d_model: int
    n_ctx: int
    d_vocab: int
    n_key_value_heads: int = 0  # 0: n_heads
    d_head: int = 0  # 0: d_model // n_heads
    d_mlp: int = 0  # 0: 4 * d_model
    position: str = "learned"
    rope_theta: float = 10_000.0
    norm: str = "layernorm"
    norm_placement: str = "pre"
    norm_eps: float = 1e-5
    mlp: str = "gelu-tanh"
    bias: bool = True
    tie: bool = True
    vocab_multiple: int = 1
    init_std: float = 0.02
    position_init: str = "normal"
    position_init_scale: float = 0.02
    causal: bool = True

    def __post_init__(self) -> None:
        if not self.d_head and self.n_heads > 0 and self.d_model % self.n_heads:
            raise RecipeError(
                f"d_model {self.d_model} is no multiple of {self.n_heads} heads; give d_head"
            )
        filled = {
            "n_key_value_heads": self.n_heads,
            "d_head": self.d_model // max(self.n_heads, 1),
            "d_mlp": 4 * self.d_model,
        }
        for name, value in filled.items():
            object.__setattr__(self, name, getattr(self, name) or value)
        self._check_sizes()
        self._check_choices()

    def _check_sizes(self) -> None:
        for name in ("n_layers", "n_heads", "d_model", "n_ctx", "d_vocab", "vocab_multiple"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.n_heads % self.n_key_value_heads:
            raise RecipeError(
                f"{self.n_heads} heads cannot share {self.n_key_value_heads} key-value heads "
                "evenly; choose a divisor"
            )
        if self.position == "rope" and self.d_head % 2:
            raise RecipeError(f"rope turns pairs, and d_head is {self.d_head}; make it even")
        sinusoidal = self.position == "sinusoidal" or self.position_init == "sinusoids"
        if sinusoidal and self.d_model % 2:
            raise RecipeError(f"sinusoids come in pairs, and d_model is {self.d_model}")

    def _check_choices(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise RecipeError(f"no {name} is called {value!r}{nearest(value, allowed)}")

    @property
    def rows(self) -> int:
        """Rows of the embedding inside: `d_vocab` rounded up to `vocab_multiple`."""
        return -(-self.d_vocab // self.vocab_multiple) * self.vocab_multiple

    @property
    def n_params(self) -> int:
        """Parameters, tied ones once, padding not counted: 124,439,808 for GPT-2 small."""
        d, attended = self.d_model, self.n_heads * self.d_head
        qkv = attended + 2 * self.n_key_value_heads * self.d_head
        n_matrices = 3 if self.gated_mlp else 2
        matrices = d * (qkv + attended + n_matrices * self.d_mlp)
        biases = (qkv + d + (n_matrices - 1) * self.d_mlp + d) if self.bias else 0
        norm = {"none": 0, "layernorm": 2 * d if self.bias else d}.get(self.norm, d)
        final = norm if self.norm_placement == "pre" else 0
        tables = self.d_vocab * d * (1 if self.tie else 2)
        positions = self.n_ctx * d if self.position == "learned" else 0
        return tables + positions + self.n_layers * (matrices + biases + 2 * norm) + final

    def to_dict(self) -> dict[str, Any]:
        """Every field, for a manifest; a later one only where it is not at its default."""
        content = asdict(self)
        return {key: value for key, value in content.items() if LATER.get(key, ...) != value}

    @classmethod
    def keys(cls, content: Mapping[str, Any]) -> tuple[set[str], set[str]]:
        """Fields that `content` lacks, and keys of it that are no fields."""
        known = {field.name for field in fields(cls)}
        return known - set(content) - set(LATER), set(content) - known

    # What TransformerLens' configurations are asked for, under its names and values.
    @property
    def gated_mlp(self) -> bool:
        """Whether the MLP has a gate."""
        return self.mlp == "swiglu"

    @property
    def act_fn(self) -> str:
        """TransformerLens' (and Hugging Face's) name of the activation."""
        return {"gelu-tanh": "gelu_new", "swiglu": "silu"}.get(self.mlp, self.mlp)

    @property
    def normalization_type(self) -> str | None:
        """ "LN", "RMS" or None."""
        return {"layernorm": "LN", "rmsnorm": "RMS"}.get(self.norm)

    @property
    def attention_dir(self) -> str:
        """ "causal" or "bidirectional"."""
        return "causal" if self.causal else "bidirectional"

    @property
    def positional_embedding_type(self) -> str:
        """ "standard", "rotary", "sinusoidal" or "none"."""
        return {"learned": "standard", "rope": "rotary"}.get(self.position, self.position)

    @property
    def eps(self) -> float:
        """Added to the variance."""
        return self.norm_eps

    @property
    def d_vocab_out(self) -> int:
        """Width of the logits."""
        return self.d_vocab

    @property
    def device(self) -> None:
        """None, torch's default: a configuration lives nowhere; ask the model for its device."""
        return None
