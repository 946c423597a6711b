"""The decoder-only transformer: the same module is trained and interpreted.

Every architectural choice is a value in `GPTConfig`; attention, MLP and norms are in
`train.model.attention` and `train.model.layers`. GPT-2 is the default (Radford et al. 2019), Llama
is another set of values (Touvron et al. 2023), and the original post-norm decoder a third (Vaswani
et al. 2017).

Post-norm means `x = ln1(x + attn(x))`, `x = ln2(x + mlp(x))` and no final norm; `hook_resid_mid` is
then the value after `ln1`. Fixed sinusoids are scaled by `position_init_scale`, where the original
multiplies the token embedding by sqrt(d_model) instead.

With a parallel residual (GPT-NeoX) a layer is `x = x + attn(ln1(x)) + mlp(ln2(x))`. Nothing lies
between attention and MLP, so there is no `hook_resid_mid`, as in TransformerLens.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from train.errors import DamagedError, RecipeError, TokenizerError, TrainError
from train.model.architecture import GPTConfig
from train.model.attention import Attention
from train.model.hooks import HookedModule, HookPoint
from train.model.layers import MLP, Linear, Norm, PositionTable, TokenTable
from train.model.positional import rotary_of, sinusoids
from train.model.retention import AttentionFree, Retention, RetentionAttention, swap_weights
from train.model.shared_weights import share_weights
from train.model.skips import StreamMix
from train.model.transformer_lens_names import StackedWeights, lens_names, loop_names


__all__ = ["GPT", "Block", "GPTConfig", "init_gpt"]

START_AT_ZERO = ("head_gate.weight", "value_gate.weight")


class Block(nn.Module):
    """One layer: attention, then MLP, each read from and added to the residual stream.

    With retention, passes of attention-free attention come first, and `hook_resid_pre` is the
    stream before them.

    Args:
        index: Number of the block in the forward pass; with loops, several blocks are passes of one
            layer (`GPTConfig.layer_of`).
    """

    def __init__(self, cfg: GPTConfig, index: int) -> None:
        super().__init__()
        self.pre = cfg.norm_placement == "pre"
        self.parallel = cfg.parallel_residual
        self.entry = None
        if cfg.embed_mix or cfg.skip_source(index) is not None:
            self.entry = StreamMix(skip=cfg.skip_source(index) is not None, mix=cfg.embed_mix)
        self.hook_resid_pre = HookPoint()
        self.ln1 = _norm(cfg)
        if cfg.retention:
            self.retention = Retention(cfg)
            self.aft = nn.ModuleList(AttentionFree(cfg) for _ in range(cfg.aft_passes))
            self.attn = cast("Attention", RetentionAttention(cfg))
        else:
            adds = cfg.adds_embedding_values(cfg.layer_of(index))
            self.attn = Attention(cfg, embedding_values=adds)
        self.hook_attn_out = HookPoint()
        if not self.parallel:
            self.hook_resid_mid = HookPoint()
        self.ln2 = _norm(cfg)
        self.mlp = MLP(cfg.mlp, cfg.d_model, cfg.d_mlp, bias=cfg.bias)
        self.hook_mlp_out = HookPoint()
        self.hook_resid_post = HookPoint()
        # Factor of what the layer adds; only training with stochastic depth sets it.
        self.scale: Tensor | None = None

    def forward(
        self,
        resid: Float[Tensor, "batch pos d_model"],
        rotation: tuple[Tensor, Tensor] | None = None,
        x0: Float[Tensor, "batch pos d_model"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the residual stream after this layer.

        Args:
            resid: The stream that the layer reads: what `GPT.enter` returns.
            x0: The embedding that entered the first layer; value residuals read it.
        """
        resid = self.hook_resid_pre(resid)
        if not self.pre:
            attended = self._scaled(self.hook_attn_out(self.attn(resid, rotation)))
            resid = self.hook_resid_mid(self.ln1(resid + attended))
            added = self._scaled(self.hook_mlp_out(self.mlp(resid)))
            return self.hook_resid_post(self.ln2(resid + added))
        if self.parallel:
            attended = self._scaled(self.hook_attn_out(self.attn(self.ln1(resid), rotation, x0)))
            added = self._scaled(self.hook_mlp_out(self.mlp(self.ln2(resid))))
            return self.hook_resid_post(resid + attended + added)
        if isinstance(self.attn, RetentionAttention):
            weights, other = self.retention(resid)
            for one in self.aft:
                resid = resid + one(resid, weights)
                weights, other = swap_weights(weights, other)
            attended = self.attn(self.ln1(resid), weights, rotation)
        else:
            attended = self.attn(self.ln1(resid), rotation, x0)
        resid = self.hook_resid_mid(resid + self._scaled(self.hook_attn_out(attended)))
        added = self._scaled(self.hook_mlp_out(self.mlp(self.ln2(resid))))
        return self.hook_resid_post(resid + added)

    def _scaled(
        self, added: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        return added if self.scale is None else added * self.scale


class ExtraBlock(nn.Module):
    """The block of multi-token prediction, which predicts the token after the next.

    At position t it reads the last residual stream h_t and the embedding e_(t+1) of the next token,
    both normalised to a root mean square of 1, and its output goes through the model's own final
    norm and unembedding (DeepSeek-AI 2024, https://arxiv.org/abs/2412.19437):

        block(W [rms(h_t); rms(e_(t+1))])
    """

    def __init__(self, cfg: GPTConfig) -> None:
        super().__init__()
        # Skips, value residuals and loops belong to the stack of layers.
        alone = dict.fromkeys(("unet", "embed_mix", "value_residual", "mtp"), False)
        loop = {"loop_first": 0, "loop_layers": 0, "loop_passes": 1}
        self.join = Linear(2 * cfg.d_model, cfg.d_model, bias=False)
        self.block = Block(replace(cfg, n_layers=1, **alone, **loop), 0)

    def forward(
        self,
        resid: Float[Tensor, "batch pos d_model"],
        following: Float[Tensor, "batch pos d_model"],
        rotation: tuple[Tensor, Tensor] | None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the stream to unembed, given the last stream and the next tokens' embedding."""
        sides = [functional.rms_norm(one, one.shape[-1:]) for one in (resid, following)]
        return self.block(self.join(torch.cat(sides, dim=-1)), rotation)


def _norm(cfg: GPTConfig) -> Norm:
    return Norm(cfg.norm, cfg.d_model, eps=cfg.norm_eps, bias=cfg.bias, gain=cfg.norm_gain)


class GPT(StackedWeights, HookedModule):
    """A decoder-only transformer that maps tokens to logits.

    All matrices and tables are zero until `init_gpt` or a loader sets them. The code that loads a
    model also sets `tokenizer` and `origin` (where the weights came from).

    Examples:
        >>> tokens = model.to_tokens("the capital of runethi is")
        >>> model.to_string(model(tokens)[0, -1].argmax().view(1))
        'koreskul'
        >>> logits, cache = model.run_with_cache(tokens, names_filter=["blocks.0.attn.hook_z"])
        >>> tuple(logits.shape), tuple(cache["blocks.0.attn.hook_z"].shape)
        ((1, 6, 976), (1, 6, 4, 32))
    """

    def __init__(self, cfg: GPTConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.tokenizer: Any = None
        self.no_tokenizer = "it came without one"  # why `tokenizer` is None
        self.origin: Any = None
        self.embed = TokenTable(cfg.rows, cfg.d_model, cfg.d_vocab)
        self.hook_embed = HookPoint()
        if cfg.position == "learned":
            self.pos_embed = PositionTable(cfg.n_ctx, cfg.d_model)
        if cfg.position == "sinusoidal":
            table = cfg.position_init_scale * sinusoids(cfg.n_ctx, cfg.d_model, base=10_000.0)
            self.register_buffer("position_table", table, persistent=False)
        if cfg.position in ("learned", "sinusoidal"):
            self.hook_pos_embed = HookPoint()
        if cfg.position == "rope":
            self.rotary = rotary_of(cfg)
        if cfg.embed_norm:
            self.ln_embed = _norm(cfg)
        # A ModuleList does not declare the type of its items.
        layers = nn.ModuleList(Block(cfg, index) for index in range(cfg.n_layers))
        self.blocks = cast("Sequence[Block]", layers)
        share_weights(self, cfg)
        if cfg.norm_placement == "pre":
            self.ln_final = _norm(cfg)
        if not cfg.tie:
            self.unembed = Linear(cfg.d_model, cfg.rows, bias=False)
        self.hook_unembed = HookPoint()  # the logits
        self.name_hook_points(lens_names(cfg))
        if cfg.loop_layers:
            self.name_hook_points({**lens_names(cfg), **loop_names(cfg, self.hook_dict)})
        if cfg.mtp:
            # After the hook points have their names: no forward pass reaches those of this block.
            self.mtp = ExtraBlock(cfg)

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Return the logits of the next token at every position.

        Raises:
            TrainError: There are more positions than the context has.
        """
        return self.to_logits(self.run_blocks(self.embed_tokens(tokens)))

    def run_blocks(
        self, x0: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the last residual stream, given the one that enters layer 0."""
        rotation = self.rotation(x0.shape[1])
        needed = {self.cfg.skip_source(index) for index in range(self.cfg.n_layers)}
        outputs: dict[int, Tensor] = {}
        resid = x0
        for index, block in enumerate(self.blocks):
            resid = block(self.enter(index, resid, x0, outputs), rotation, x0)
            if index in needed:
                outputs[index] = resid
        return resid

    def enter(
        self,
        index: int,
        resid: Float[Tensor, "*batch pos d_model"],
        x0: Float[Tensor, "*prompts pos d_model"],
        outputs: Mapping[int, Tensor],
    ) -> Float[Tensor, "*batch pos d_model"]:
        """Return the stream that block `index` reads: `resid` with U-Net skip and embedding mix.

        Args:
            resid: Output of the block before.
            x0: The stream that entered layer 0.
            outputs: Outputs of the earlier blocks that a later one adds, by block.
        """
        entry = self.blocks[index].entry
        if entry is None:
            return resid
        source = self.cfg.skip_source(index)
        return entry(resid, x0, None if source is None else outputs[source])

    def embed_tokens(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        added: Float[Tensor, "batch pos d_model"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the stream that enters layer 0: embedding plus position, maybe normalised.

        `added` is added to the embedding, as noise.

        Raises:
            TrainError: There are more positions than the context has.
        """
        n_pos = tokens.shape[1]
        if n_pos > self.cfg.n_ctx:
            raise TrainError(
                f"{n_pos} positions do not fit a context of {self.cfg.n_ctx}; cut them"
            )
        resid = self.hook_embed(self.embed(tokens))
        if self.cfg.position in ("learned", "sinusoidal"):
            resid = resid + self.hook_pos_embed(self.W_pos[:n_pos].expand_as(resid))
        resid = resid if added is None else resid + added
        return self.ln_embed(resid) if self.cfg.embed_norm else resid

    def rotation(self, n_pos: int) -> tuple[Tensor, Tensor] | None:
        """Return the cosines and sines with which blocks rotate queries and keys.

        The result is None if the model has no rotary positions.
        """
        return self.rotary(n_pos) if self.cfg.position == "rope" else None

    def to_logits(
        self, resid: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Normalise (pre-norm models only) and unembed the output of the last layer."""
        if self.cfg.norm_placement == "pre":
            resid = self.ln_final(resid)
        logits = functional.linear(resid, (self.embed if self.cfg.tie else self.unembed).weight)
        if self.cfg.rows > self.cfg.d_vocab:
            logits = logits[..., : self.cfg.d_vocab]
        return self.hook_unembed(logits)

    def predict_ahead(
        self, resid: Float[Tensor, "batch pos d_model"], tokens: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch earlier d_vocab"]:
        """Return the logits of the token after the next, at every position but the last.

        Args:
            resid: The last residual stream (`run_blocks`).
            tokens: The tokens that the model has read.
        """
        rotation = self.rotation(tokens.shape[1] - 1)
        return self.to_logits(self.mtp(resid[:, :-1], self.embed(tokens[:, 1:]), rotation))

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.embed.weight.device

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Token embedding, without padding rows."""
        return self.embed.W_E

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Unembedding matrix, without padding columns."""
        weight = (self.embed if self.cfg.tie else self.unembed).weight
        return weight[: self.cfg.d_vocab].T

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """Unembedding bias: always zeros, because the decoder has none."""
        return self.embed.weight.new_zeros(self.cfg.d_vocab)

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """Vector that is added at each position, learned or fixed.

        Raises:
            RecipeError: The model adds no positional embedding.
        """
        if self.cfg.position == "learned":
            return self.pos_embed.weight
        if self.cfg.position == "sinusoidal":
            return self.get_buffer("position_table")
        raise RecipeError(f"position={self.cfg.position!r} adds nothing to the embedding: no W_pos")

    def to_tokens(
        self, text: str | list[str], *, prepend_bos: bool = True
    ) -> Int[Tensor, "batch pos"]:
        """Return the token ids of one text, or of several texts with equal numbers of tokens.

        Args:
            prepend_bos: Put an end-of-text in front. In a token store one precedes every document;
                training windows that begin inside a document have none.

        Raises:
            TokenizerError: The model has no tokenizer, or the texts differ in length.
        """
        tokenizer = self.need_tokenizer("to_tokens")
        texts = [text] if isinstance(text, str) else text
        rows = [[int(token) for token in tokenizer.encode(one)] for one in texts]
        lengths = sorted({len(row) for row in rows})
        if len(lengths) != 1:
            raise TokenizerError(f"{len(rows)} texts have lengths {lengths}; they must be equal")
        start = [tokenizer.eot] if prepend_bos else []
        return torch.tensor([start + row for row in rows], dtype=torch.long, device=self.device)

    def to_string(self, tokens: Int[Tensor, "*batch pos"]) -> str | list:
        """Return the text of one row of tokens, or a list of texts for several rows.

        Raises:
            TokenizerError: The model has no tokenizer.
        """
        if tokens.ndim > 1:
            return [self.to_string(row) for row in tokens]
        return self.need_tokenizer("to_string").decode(tokens.tolist())

    def need_tokenizer(self, asked_by: str) -> Any:
        """Return the tokenizer; raise a TokenizerError that says why there is none."""
        if self.tokenizer is None:
            raise TokenizerError(
                f"{asked_by} needs a tokenizer, and this model has none ({self.no_tokenizer}); "
                "models.load(tokenizer=FILE), or --tokenizer FILE, gives it one"
            )
        return self.tokenizer

    @overload
    def generate(
        self, tokens: str, n_new: int, *, temperature: float = 0.0, seed: int = 0
    ) -> str: ...

    @overload
    def generate(
        self,
        tokens: Int[Tensor, "batch pos"],
        n_new: int,
        *,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Int[Tensor, "batch longer"]: ...

    @torch.no_grad()
    def generate(
        self,
        tokens: Int[Tensor, "batch pos"] | str,
        n_new: int,
        *,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Int[Tensor, "batch longer"] | str:
        """Return `tokens` followed by `n_new` generated tokens, or a text continued as a text.

        At temperature 0 each is the most probable token, else it is sampled with `seed`. The whole
        context is recomputed for every token; if it is full, its first tokens are dropped. A text
        is read behind an end of text, and ends where the model ends it.

        Raises:
            TokenizerError: A text was given, and the model has no tokenizer.
        """
        if isinstance(tokens, str):
            tokenizer = self.need_tokenizer("generate")
            whole = self.generate(
                self.to_tokens(tokens), n_new, temperature=temperature, seed=seed
            )[0].tolist()
            new = len(whole) - n_new
            ends = [at for at in range(new, len(whole)) if whole[at] == tokenizer.eot]
            return tokenizer.decode(whole[1 : ends[0] if ends else None])
        generator = torch.Generator(self.device).manual_seed(seed)
        for _ in range(n_new):
            last = self(tokens[:, -self.cfg.n_ctx :])[:, -1].float()
            if temperature > 0:
                chances = (last / temperature).softmax(-1)
                drawn = torch.multinomial(chances, 1, generator=generator)
            else:
                drawn = last.argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, drawn], dim=1)
        return tokens


def gpt_with_weights(cfg: GPTConfig, weights: Mapping[str, Tensor], place: object) -> GPT:
    """Return a model with these weights, in evaluation mode.

    Names and shapes are compared first, so that a configuration takes no memory for sizes that the
    weights do not have.

    Args:
        place: The file that the weights are from; messages begin with it.

    Raises:
        DamagedError: A weight is missing, has no place in the model, or has another shape or no
            floating-point type.

    Examples:
        >>> from train.model import GPTConfig, gpt_with_weights, init_gpt
        >>> cfg = GPTConfig(n_layers=2, n_heads=2, d_model=8, n_ctx=16, d_vocab=10)
        >>> weights = init_gpt(cfg, seed=0).state_dict()
        >>> gpt_with_weights(cfg, weights, "here").cfg == cfg
        True
    """
    if cfg.n_distinct_layers > len(weights):
        raise DamagedError(
            f"{place}: {len(weights)} tensors, and {cfg.n_distinct_layers} layers have more"
        )
    with torch.device("meta"):
        expected = {name: value.shape for name, value in GPT(cfg).state_dict().items()}
    if odd := expected.keys() ^ weights.keys():
        where = "missing" if min(odd) in expected else "no weight of this architecture"
        raise DamagedError(f"{place}: {min(odd)} is {where} ({len(odd)} names differ)")
    for name, value in weights.items():
        if value.shape != expected[name] or not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise DamagedError(
                f"{place}: {name} holds {kind} of shape {tuple(value.shape)}, and floating-point "
                f"numbers of shape {tuple(expected[name])} belong there"
            )
    model = GPT(cfg)
    model.load_state_dict(weights)
    return model.eval()


@torch.no_grad()
def init_gpt(cfg: GPTConfig, seed: int) -> GPT:
    """Return a model with initial weights, which are the same bytes on every machine.

    Each parameter is drawn from its own generator, keyed by seed and name, so adding a layer or
    padding the vocabulary does not change the other draws. Matrices and tables are normal with
    standard deviation `init_std`; the output projections are smaller by sqrt(2 n_layers), as in
    GPT-2. The weights of gates are 0.

    Examples:
        >>> from train.model import GPTConfig, init_gpt
        >>> cfg = GPTConfig(n_layers=2, n_heads=2, d_model=8, n_ctx=16, d_vocab=10)
        >>> init_gpt(cfg, seed=0)(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 10])
    """
    model = GPT(cfg)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and not name.endswith(START_AT_ZERO):
            rows = cfg.d_vocab if name in ("embed.weight", "unembed.weight") else len(parameter)
            parameter[:rows] = _first(cfg, name, (rows, parameter.shape[1]), seed)
    return model


def _first(cfg: GPTConfig, name: str, shape: tuple[int, int], seed: int) -> Tensor:
    std = cfg.init_std
    if name == "pos_embed.weight":
        std = cfg.position_init_scale
        if cfg.position_init == "sinusoids":
            return std * sinusoids(cfg.n_ctx, cfg.d_model, base=float(cfg.n_ctx))
    if name.endswith(("attn.out.weight", "retention.out.weight", "mlp.down.weight")):
        std = std / (2 * cfg.n_layers) ** 0.5
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little") >> 1
    generator = torch.Generator().manual_seed(key)
    # Drawn in fp64, then rounded: torch's fp32 normals have a separate AVX2 kernel, whose results
    # can differ in the last bit.
    return (std * torch.randn(shape, generator=generator, dtype=torch.float64)).float()
