"""The configuration of the decoder: architecture and initialisation, in one frozen value.

It holds everything that `train.model` needs to build and initialise a network, so a recipe can name
an architecture, and a manifest can record one, without importing torch.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from train.errors import RecipeError, nearest
from train.short_repr import short_repr


__all__ = ["CHOICES", "LATER", "GPTConfig"]

# Beyond these, building a model takes for ever or its sizes overflow.
MOST = {"n_layers": 10_000, "aft_passes": 10_000}
MOST |= dict.fromkeys(
    ("n_heads", "n_key_value_heads", "d_model", "d_head", "d_mlp", "n_ctx", "d_vocab",
     "vocab_multiple", "n_sinks"), 1 << 31,
)  # fmt: skip
MOST_PARAMETERS = 1 << 48
CHOICES = {
    "position": ("learned", "sinusoidal", "rope", "none"),
    "norm": ("layernorm", "rmsnorm", "none"),
    "norm_placement": ("pre", "post"),
    "mlp": ("gelu", "gelu-tanh", "relu", "swiglu"),
    "position_init": ("normal", "sinusoids"),
    "attention": ("fused", "explicit", "retention", "retention-published"),
    "sinks": ("none", "learned", "logit"),
    "exclusive": ("none", "learned", "full"),
    "rope_scaling": ("none", "llama3"),
}
# Fields added after the first runs. A field at its default is not written, so that older recipes
# keep their text and older runs their id.
LATER = {
    "causal": True,
    "attention": "fused",
    "norm_gain": True,
    "embed_norm": False,
    "qk_norm": False,
    "sinks": "none",
    "n_sinks": 0,
    "exclusive": "none",
    "head_gate": False,
    "value_residual": False,
    "embed_mix": False,
    "unet": False,
    "loop_first": 0,
    "loop_layers": 0,
    "loop_passes": 1,
    "aft_passes": 0,
    "retention_chunk": 0,
    "mtp": False,
    "parallel_residual": False,
    "rotary_channels": 0,
    "rope_scaling": "none",
    "rope_factor": 8.0,
    "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0,
    "rope_original_ctx": 8192,
    "window": 0,
    "qkv_bias": False,
}
# Settings of scaled rotary positions; without scaling they stay at their default.
ROPE_NUMBERS = ("rope_factor", "rope_low_freq_factor", "rope_high_freq_factor")
# Channels of the input that a head's gate and the gate of a value residual read.
HEAD_GATE_WIDTH, VALUE_GATE_WIDTH = 12, 32


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
        attention: How attention is computed. `fused`: by torch's kernel where it is fast;
            `explicit`: always step by step; `retention`: with weights that are generated from the
            earlier chunks of the same row (`train.model.retention`); `retention-published`: from
            all positions of all rows, which reads the future, so `train.recipes` refuses it.
        norm_gain: Whether norms have a learned gain.
        embed_norm: Whether the embedding is normalised before the first layer.
        qk_norm: Whether queries and keys are normalised, each head by itself, before rotation.
        sinks: What attention can attend to beside the positions. `learned`: `n_sinks` learned
            vectors of each layer; `logit`: one learned score of each head, with a value of zero.
        exclusive: Whether the part of a head's output along its own value is removed; `full`
            removes all of it, `learned` a learned share of each head that starts at 0.
        head_gate: Whether every head is scaled by a gate that reads the layer's input.
        value_residual: Whether every second layer adds a gated map of the embedding to its values.
        embed_mix: Whether every layer begins with a learned mix of the stream and the embedding.
        unet: Whether the layers of the second half add the outputs of those of the first.
        loop_first: First layer of the loop: `loop_layers` layers that run `loop_passes` times.
            `n_layers` counts every pass, so the blocks of later passes share their weights with
            those of the first.
        aft_passes: Passes of attention-free attention before attention; with retention only.
        retention_chunk: Positions that share generated weights; with retention only.
        mtp: Whether the model is trained with an extra block that predicts the token after the next
            (`GPT.predict_ahead`). It is no part of the forward pass, and `Run.load` leaves it out.
        parallel_residual: Whether attention and MLP of a layer read the same stream, and their
            outputs are added together. There is then no stream between them (`hook_resid_mid`).
        rotary_channels: Channels of every head that are rotated, the first ones; 0: all of them.
        rope_scaling: How the frequencies of the rotation are changed for a longer context.
            `llama3`: slow ones are divided by `rope_factor`, fast ones stay. Slow are those that
            turn less than `rope_low_freq_factor` times in `rope_original_ctx` positions, fast those
            that turn more than `rope_high_freq_factor` times; between them the change is gradual.
        window: Positions that a query attends to, itself and those before it; 0: all of them.
        qkv_bias: Whether queries, keys and values have biases although `bias` is off.

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
    attention: str = "fused"
    norm_gain: bool = True
    embed_norm: bool = False
    qk_norm: bool = False
    sinks: str = "none"
    n_sinks: int = 0
    exclusive: str = "none"
    head_gate: bool = False
    value_residual: bool = False
    embed_mix: bool = False
    unet: bool = False
    loop_first: int = 0
    loop_layers: int = 0
    loop_passes: int = 1
    aft_passes: int = 0
    retention_chunk: int = 0
    mtp: bool = False
    parallel_residual: bool = False
    rotary_channels: int = 0
    rope_scaling: str = "none"
    rope_factor: float = 8.0
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_original_ctx: int = 8192
    window: int = 0
    qkv_bias: bool = False

    __repr__ = short_repr

    def __post_init__(self) -> None:
        for name in ("n_key_value_heads", "d_head", "d_mlp"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name} is {getattr(self, name)}; it must be at least 1, or 0")
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
        self._check_choices()
        self._check_sizes()
        self._check_parts()

    def _check_sizes(self) -> None:
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise RecipeError(f"{name} is {getattr(self, name):.3g}; it is at most {most:,}")
        if self.n_params > MOST_PARAMETERS:
            raise RecipeError(
                f"a model of {self.n_params:.3g} parameters is larger than any memory; choose "
                "smaller sizes"
            )
        for name in ("n_layers", "n_heads", "d_model", "n_ctx", "d_vocab", "vocab_multiple"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("norm_eps", "init_std", "position_init_scale", "rope_theta"):
            value, least = getattr(self, name), "above 0" if name == "rope_theta" else "at least 0"
            if not math.isfinite(value) or value < 0 or (value == 0 and name == "rope_theta"):
                raise RecipeError(f"{name} is {value}; it must be a finite number, {least}")
        if self.n_heads % self.n_key_value_heads:
            raise RecipeError(
                f"{self.n_heads} heads cannot share {self.n_key_value_heads} key-value heads "
                "evenly; choose a divisor"
            )
        self._check_rope()
        sinusoidal = self.position == "sinusoidal" or self.position_init == "sinusoids"
        if sinusoidal and self.d_model % 2:
            raise RecipeError(f"sinusoids come in pairs, and d_model is {self.d_model}")

    def _check_rope(self) -> None:
        rope = self.position == "rope"
        if not rope and (self.rotary_channels or self.rope_scaling != "none"):
            raise RecipeError(
                f"rotary_channels is {self.rotary_channels} and rope_scaling "
                f"{self.rope_scaling!r}; they belong to position=rope, not to {self.position!r}"
            )
        if not 0 <= self.rotary_channels <= self.d_head:
            raise RecipeError(
                f"rotary_channels is {self.rotary_channels} of heads of {self.d_head} channels"
            )
        if rope and self.rotary_dim % 2:
            name = "rotary_channels" if self.rotary_channels else "d_head"
            raise RecipeError(f"rope turns pairs, and {name} is {self.rotary_dim}; make it even")
        for name in (*ROPE_NUMBERS, "rope_original_ctx"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise RecipeError(f"{name} is {value}; it must be a finite number above 0")
            if self.rope_scaling == "none" and value != LATER[name]:
                raise RecipeError(
                    f"{name} is {value}, and rope_scaling is 'none'; name the scaling"
                )
        if self.rope_high_freq_factor <= self.rope_low_freq_factor:
            raise RecipeError(
                f"rope_high_freq_factor is {self.rope_high_freq_factor}; it must be above "
                f"rope_low_freq_factor, {self.rope_low_freq_factor}"
            )

    def _check_choices(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise RecipeError(f"no {name} is called {value!r}{nearest(value, allowed)}")

    def _check_parts(self) -> None:
        """Raise a RecipeError for parts whose settings contradict each other."""
        if (self.sinks == "learned") != (self.n_sinks > 0) or self.n_sinks < 0:
            raise RecipeError(
                f"n_sinks is {self.n_sinks} and sinks is {self.sinks!r}; learned sinks need at "
                "least 1, and other kinds have none"
            )
        self._check_loop()
        self._check_retention()
        if self.mtp and (self.n_ctx < 2 or self.retention or not self.causal):
            raise RecipeError(
                f"mtp predicts the token after the next, from attention={self.attention!r}, "
                f"causal={self.causal} and n_ctx {self.n_ctx}; it needs causal attention with "
                "weights of its own and 2 positions or more"
            )
        names = ("unet", "embed_mix", "embed_norm", "value_residual")
        mixes = [name for name in names if getattr(self, name)]
        if mixes and self.norm_placement != "pre":
            raise RecipeError(f"{mixes[0]} is defined for pre-norm layers; set norm_placement=pre")
        if self.unet and self.n_distinct_layers < 2:
            raise RecipeError("a U-Net needs at least 2 layers, and there is 1")
        if not self.causal and self.exclusive != "none":
            raise RecipeError("exclusive attention is defined for causal attention only")
        if self.parallel_residual and self.norm_placement != "pre":
            raise RecipeError(
                "parallel_residual is defined for pre-norm layers; set norm_placement=pre"
            )
        if self.window < 0 or (self.window and not self.causal):
            raise RecipeError(
                f"window is {self.window} and causal {self.causal}; a window has at least 1 "
                "position and belongs to causal attention, 0 stands for none"
            )

    def _check_loop(self) -> None:
        if self.loop_passes < 1 or self.loop_layers < 0 or self.loop_first < 0:
            raise RecipeError(
                f"a loop of {self.loop_layers} layers from {self.loop_first} on with "
                f"{self.loop_passes} passes is none; none of them can be negative, passes are 1 or "
                "more"
            )
        if (self.loop_layers > 0) != (self.loop_passes > 1):
            raise RecipeError(
                f"loop_layers is {self.loop_layers} and loop_passes {self.loop_passes}; a loop has "
                "at least 1 layer and 2 passes, no loop has 0 and 1"
            )
        end = self.loop_first + self.loop_layers * self.loop_passes
        if self.loop_layers and end > self.n_layers:
            raise RecipeError(
                f"loop_passes={self.loop_passes} of loop_layers={self.loop_layers} from "
                f"loop_first={self.loop_first} on need n_layers of {end} or more, not "
                f"{self.n_layers}; n_layers counts every pass"
            )

    def _check_retention(self) -> None:
        if not self.retention:
            if self.aft_passes or self.retention_chunk:
                raise RecipeError(
                    f"aft_passes is {self.aft_passes} and retention_chunk {self.retention_chunk}; "
                    f"they belong to attention=retention, not to {self.attention!r}"
                )
            return
        if self.aft_passes < 1 or not 1 <= self.retention_chunk < self.n_ctx:
            raise RecipeError(
                f"retention has aft_passes {self.aft_passes} and retention_chunk "
                f"{self.retention_chunk} in a context of {self.n_ctx}; with fewer than 1 pass, or "
                "a chunk as long as the context, the generated weights are never used"
            )
        allowed = {"norm": "rmsnorm", "norm_placement": "pre", "mlp": "swiglu", "bias": False}
        allowed |= {"sinks": "none", "exclusive": "none", "head_gate": False, "causal": True}
        allowed |= {"value_residual": False, "n_key_value_heads": self.n_heads, "loop_layers": 0}
        allowed |= {"parallel_residual": False, "window": 0, "qkv_bias": False}
        for name, value in allowed.items():
            if getattr(self, name) != value:
                raise RecipeError(
                    f"attention={self.attention!r} is built with {name}={value} only, and it is "
                    f"{getattr(self, name)}"
                )

    @property
    def rows(self) -> int:
        """Rows of the embedding matrix: `d_vocab` rounded up to a multiple of `vocab_multiple`."""
        return -(-self.d_vocab // self.vocab_multiple) * self.vocab_multiple

    @property
    def n_params(self) -> int:
        """Number of parameters, tied and looped ones once and without padding.

        Those of the extra block (`mtp`), which no forward pass uses, do not count. The number is
        124,439,808 for GPT-2 small.
        """
        d = self.d_model
        gain = d if self.norm_gain and self.norm != "none" else 0
        norm = gain + (d if self.norm == "layernorm" and self.bias else 0)
        final = norm if self.norm_placement == "pre" else 0
        tables = self.d_vocab * d * (1 if self.tie else 2)
        positions = self.n_ctx * d if self.position == "learned" else 0
        n_layers = self.n_distinct_layers
        layers = n_layers * (self._in_attention + self._in_mlp + 2 * norm)
        gates = min(VALUE_GATE_WIDTH, d)
        values = self.n_key_value_heads * (self.d_head * d + gates)
        layers += values * sum(self.adds_embedding_values(one) for one in range(n_layers))
        layers += 2 * n_layers if self.embed_mix else 0
        skips = n_layers // 2 if self.unet else 0
        first = norm if self.embed_norm else 0
        return tables + positions + first + layers + skips + final

    @property
    def _in_attention(self) -> int:
        """Number of parameters of one layer's attention."""
        d, wide = self.d_model, self.n_heads * self.d_head
        normed = 2 * self.d_head if self.qk_norm and self.norm_gain else 0
        if self.retention:
            # The static weights, the pair of maps of which the generated ones are made, and the
            # map that brings them into shape.
            return (5 * wide + d) * d + 2 * d * d + (5 * wide + d) * d + normed
        qkv = wide + 2 * self.n_key_value_heads * self.d_head
        parts = (
            d * (qkv + wide) + (d if self.bias else 0) + (qkv if self.biased_qkv else 0) + normed
        )
        parts += {"learned": self.n_sinks * d, "logit": self.n_heads}.get(self.sinks, 0)
        parts += self.n_heads if self.exclusive == "learned" else 0
        return parts + (self.n_heads * min(HEAD_GATE_WIDTH, d) if self.head_gate else 0)

    @property
    def _in_mlp(self) -> int:
        """Number of parameters of one layer's MLP."""
        n_matrices = 3 if self.gated_mlp else 2
        biases = (n_matrices - 1) * self.d_mlp + self.d_model if self.bias else 0
        return n_matrices * self.d_model * self.d_mlp + biases

    # Layers and blocks: block i of the forward pass is layer `layer_of(i)` in pass `pass_of(i)`.
    @property
    def n_distinct_layers(self) -> int:
        """Number of layers with weights of their own; `n_layers` counts every pass of a loop."""
        return self.n_layers - self.loop_layers * (self.loop_passes - 1)

    def layer_of(self, block: int) -> int:
        """Return the layer whose weights block `block` of the forward pass uses.

        Examples:
            >>> from train.model import GPTConfig
            >>> sizes = dict(n_heads=2, d_model=8, n_ctx=16, d_vocab=10)
            >>> cfg = GPTConfig(n_layers=6, **sizes, loop_first=1, loop_layers=2, loop_passes=2)
            >>> [cfg.layer_of(block) for block in range(6)]
            [0, 1, 2, 1, 2, 3]
        """
        later = block - self.loop_first
        if not self.loop_layers or later < self.loop_layers:
            return block
        if later >= self.loop_layers * self.loop_passes:
            return block - self.loop_layers * (self.loop_passes - 1)
        return self.loop_first + later % self.loop_layers

    def pass_of(self, block: int) -> int:
        """Return in which pass of its layer, counted from 0, block `block` runs."""
        later = block - self.loop_first
        inside = self.loop_layers and 0 <= later < self.loop_layers * self.loop_passes
        return later // self.loop_layers if inside else 0

    def skip_source(self, block: int) -> int | None:
        """Return the block whose output is added before `block` (U-Net), or None.

        Of L layers the first E = L // 2 are encoders. Layer i >= E adds the output of layer
        L - 1 - i, if that is an encoder: of its last pass before this block.

        Examples:
            >>> from train.model import GPTConfig
            >>> cfg = GPTConfig(n_layers=4, n_heads=2, d_model=8, n_ctx=16, d_vocab=10, unet=True)
            >>> [cfg.skip_source(block) for block in range(4)]
            [None, None, 1, 0]
        """
        n_layers = self.n_distinct_layers
        layer = self.layer_of(block)
        source = n_layers - 1 - layer
        if not self.unet or layer < n_layers // 2 or source >= n_layers // 2:
            return None
        return max(i for i in range(block) if self.layer_of(i) == source)

    def adds_embedding_values(self, layer: int) -> bool:
        """Return whether this layer has a value residual: every second one, the last included."""
        return self.value_residual and (self.n_distinct_layers - 1 - layer) % 2 == 0

    @property
    def retention(self) -> bool:
        """True if the weights of attention are generated from the input."""
        return self.attention.startswith("retention")

    @property
    def biased_qkv(self) -> bool:
        """True if queries, keys and values have biases."""
        return self.bias or self.qkv_bias

    @property
    def reads_embedding(self) -> bool:
        """True if layers above the first read the embedding again."""
        return self.value_residual or self.embed_mix

    @property
    def reads_ahead(self) -> bool:
        """True if a position can depend on later ones or on other rows."""
        return not self.causal or self.attention == "retention-published"

    @property
    def no_residual_sum(self) -> str:
        """Why the last residual stream is not the sum of what the parts write; "" if it is."""
        if self.norm_placement != "pre":
            return "its norms rescale the residual stream after every part (post-norm)"
        if self.retention:
            return "its attention weights are generated from the input (retention)"
        names = [name for name in ("unet", "embed_mix") if getattr(self, name)]
        if self.embed_norm:
            names.append("embed_norm")
        if names:
            return f"its layers rescale or repeat parts of the residual stream ({', '.join(names)})"
        return ""

    @property
    def added_parts(self) -> tuple[str, ...]:
        """Fields of parts that came later than GPT-2's and that are not at their default."""
        return tuple(name for name, value in LATER.items() if getattr(self, name) != value)

    @property
    def attention_parts(self) -> tuple[str, ...]:
        """Settings by which a head's output is not softmax(q k / sqrt(d_head)) v alone."""
        parts = [] if self.sinks == "none" else [f"sinks={self.sinks}"]
        parts += [] if self.exclusive == "none" else [f"exclusive={self.exclusive}"]
        parts += [self.attention] if self.retention else []
        names = ("qk_norm", "head_gate", "value_residual")
        return (*parts, *(name for name in names if getattr(self, name)))

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
    def rotary_dim(self) -> int:
        """Channels of every head that are rotated, if positions are rotary."""
        return self.rotary_channels or self.d_head

    @property
    def parallel_attn_mlp(self) -> bool:
        """True if attention and MLP of a layer read the same stream."""
        return self.parallel_residual

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
