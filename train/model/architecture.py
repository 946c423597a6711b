"""The configuration of the decoder: architecture and initialisation, in one frozen value.

It holds everything that `train.model` needs to build and initialise a network, so a recipe can name
an architecture, and a manifest can record one, without importing torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from train.errors import RecipeError, nearest
from train.short_repr import short_repr


__all__ = ["CHOICES", "LATER", "GPTConfig"]

CHOICES = {
    "position": ("learned", "sinusoidal", "rope", "none"),
    "norm": ("layernorm", "rmsnorm", "none"),
    "norm_placement": ("pre", "post"),
    "mlp": ("gelu", "gelu-tanh", "relu", "swiglu"),
    "position_init": ("normal", "sinusoids"),
}
# Fields added after the first runs. A field at its default is not written, so that older recipes
# keep their text and older runs their id.
LATER = {"causal": True}


@dataclass(frozen=True)
class GPTConfig:
    """The architecture of the decoder and its initialisation. Sizes given as 0 are filled in.

    Attributes:
        position: Kind of positional embedding; see `CHOICES` for the values of this and of `norm`,
            `norm_placement`, `mlp` and `position_init`.
        tie: Whether the unembedding is the token embedding.
        vocab_multiple: Rounds up the rows of the embedding matrix, for speed. Neither the logits
            nor the parameter count include the padding.
        init_std: Standard deviation of the initial matrices and tables.
        position_init_scale: Standard deviation of normal initial positions, or amplitude of
            sinusoids.
        causal: False lets every position attend to all others, as compiled programs may.
            `train.recipes` refuses to train such a network, because it would see its targets.

    Raises:
        RecipeError: A size or a choice is not possible.

    Examples:
        >>> from train.model import GPTConfig
        >>> cfg = GPTConfig(n_layers=2, n_heads=2, d_model=8, n_ctx=16, d_vocab=10)
        >>> cfg.n_params, cfg.d_head, cfg.d_mlp
        (1968, 4, 32)
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

    __repr__ = short_repr

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
        """Rows of the embedding matrix: `d_vocab` rounded up to a multiple of `vocab_multiple`."""
        return -(-self.d_vocab // self.vocab_multiple) * self.vocab_multiple

    @property
    def n_params(self) -> int:
        """Number of parameters, tied ones once and without padding: 124,439,808 for GPT-2 small."""
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
        """Return the fields for a manifest, without those in `LATER` that are at their default."""
        content = asdict(self)
        return {key: value for key, value in content.items() if LATER.get(key, ...) != value}

    @classmethod
    def keys(cls, content: Mapping[str, Any]) -> tuple[set[str], set[str]]:
        """Return the fields that `content` lacks and its keys that are not fields."""
        known = {field.name for field in fields(cls)}
        return known - set(content) - set(LATER), set(content) - known

    # Properties with the names and values of TransformerLens' configurations.
    @property
    def gated_mlp(self) -> bool:
        """True if the MLP has a gate."""
        return self.mlp == "swiglu"

    @property
    def act_fn(self) -> str:
        """Name of the activation in TransformerLens and in Hugging Face."""
        return {"gelu-tanh": "gelu_new", "swiglu": "silu"}.get(self.mlp, self.mlp)

    @property
    def normalization_type(self) -> str | None:
        """Kind of normalisation: "LN", "RMS" or None."""
        return {"layernorm": "LN", "rmsnorm": "RMS"}.get(self.norm)

    @property
    def attention_dir(self) -> str:
        """Kind of attention mask: "causal" or "bidirectional"."""
        return "causal" if self.causal else "bidirectional"

    @property
    def positional_embedding_type(self) -> str:
        """Kind of positional embedding: "standard", "rotary", "sinusoidal" or "none"."""
        return {"learned": "standard", "rope": "rotary"}.get(self.position, self.position)

    @property
    def eps(self) -> float:
        """Constant that normalisation adds to the variance."""
        return self.norm_eps

    @property
    def d_vocab_out(self) -> int:
        """Width of the logits."""
        return self.d_vocab

    @property
    def device(self) -> None:
        """None, because a configuration is on no device; see `GPT.device`."""
        return None
