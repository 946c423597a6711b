"""Training recipes: everything that determines a run, except the data and the machine.

A recipe is a frozen constant: one of the named recipes below, or read from a TOML file (`load`).
`resolve` fits it to a token store and fills in every default; the resolved recipe is written into
the manifest key by key (in Pythia#135 a missing key led to a different initialisation). With
`PLANTED` textbook circuits form in about a minute of CPU time; `TEXT_SMALL` is a small model for
any text; `CODE_SMALL` grows an induction head on real code in minutes; `GPT2_124M` is GPT-2 small
on OpenWebText.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cache
from math import inf
from os.path import realpath
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from train import storage
from train.data import TokenStore
from train.errors import DamagedError, RecipeError, StoreError, nearest
from train.model import PRESETS, GPTConfig, preset
from train.short_repr import short_repr


__all__ = [
    "CODE_MEDIUM",
    "CODE_SMALL",
    "GPT2_124M",
    "PLANTED",
    "PURPOSES",
    "TEXT_SMALL",
    "Recipe",
    "by_name",
    "from_dict",
    "load",
    "read",
    "resolve",
    "to_dict",
    "to_toml",
]


# Names that nanoGPT and Hugging Face give to fields, and ours.
ELSEWHERE = {
    "learning_rate": "lr",
    "min_learning_rate": "min_lr",
    "max_iters": "steps",
    "max_steps": "steps",
    "warmup_iters": "warmup_steps",
    "eval_interval": "eval_every",
    "save_steps": "checkpoint_every",
    "max_grad_norm": "grad_clip",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "seed": "init_seed",
    "n_layer": "model.n_layers",
    "num_hidden_layers": "model.n_layers",
    "n_head": "model.n_heads",
    "num_attention_heads": "model.n_heads",
    "n_embd": "model.d_model",
    "hidden_size": "model.d_model",
    "block_size": "model.n_ctx",
    "max_position_embeddings": "model.n_ctx",
    "vocab_size": "model.d_vocab",
}
# Fields added after the first runs, with the value that older runs used. A field with that value is
# not written, so that the digest of an older recipe stays the same.
LATER = {
    "late_batch": 0,
    "late_begin": 0,
    "allow_reading_ahead": False,
    "optimizer": "adamw",
    "muon_lr": 0.02,
    "muon_momentum": 0.95,
    "distill_weight": 0.0,
    "distill_temperature": 1.0,
    "ema_decay": 0.0,
    "weight_decay_end": 1.0,
    "weight_decay_hold": 0.4,
    "stochastic_depth": 0.0,
    "data_budget": 0,
    "mtp_weight": 0.0,
    "objective": "next-token",
    "dpo_beta": 0.1,
}
# Fields that one other field must switch on, with that field and the value at which it is off.
DEPENDENT = {
    "muon_lr": ("optimizer", "adamw"),
    "muon_momentum": ("optimizer", "adamw"),
    "distill_temperature": ("distill_weight", 0.0),
    "weight_decay_hold": ("weight_decay_end", 1.0),
}
# Kind of examples that the store of each objective holds.
EXAMPLES = {"next-token": None, "sft": "instructions", "dpo": "preferences"}


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run: model, batch size, number of steps, optimizer and seeds.

    Attributes:
        batch_size: Windows per step.
        micro_batch_size: Windows that pass through the model at once; None and 0 mean all of a
            step.
        vocabulary: `store`: the model takes the vocabulary size of the store; `fixed`: the two
            must be equal.
        checkpoint_every: Steps between checkpoints. Further checkpoints are written at step 0, at
            the powers of two below this value, and at the last step.
        optimizer_every: Steps between checkpoints that keep the optimizer permanently. The newest
            checkpoint always has its optimizer, so a killed run resumes from there.
        eval_every: Steps between measurements of the held-out loss (0: never). The measurement
            reads no random state.
        sampler: `tiles`: the invertible order of `train.data.data_order`; `nanogpt`: windows drawn
            with replacement, recorded beside the run.
        late_batch: Windows per batch that are drawn from the store's late documents, from step
            `late_begin` on. 0 reads late documents among all others from the first step.
        late_begin: First step that reads a late document.
        allow_reading_ahead: Train a model whose positions depend on later ones, to reproduce a
            published form that does.
        optimizer: `adamw`, or `muon` for the matrices of the blocks and AdamW for the rest
            (`train.trainer.Muon`).
        muon_lr: Muon's learning rate when AdamW's is `lr`; both follow the same schedule.
        muon_momentum: Share of Muon's momentum that a step keeps.
        distill_weight: Share of the loss that is the divergence from a teacher's probabilities
            (`train.trainer.distillation`); 0: none.
        distill_temperature: Temperature of both models' probabilities in that divergence.
        ema_decay: Share of the moving average of the weights (`train.trainer.weight_average`) that
            a step keeps; 0: no average is kept.
        weight_decay_end: Share of `weight_decay` at the last step (1: the same at every step). It
            is reached linearly, after the share `weight_decay_hold` of the steps.
        stochastic_depth: Probability that a step leaves out the last layer; that of earlier layers
            rises to it linearly from 0 (`train.trainer.stochastic_depth`).
        data_budget: Number of training tokens that may be read, from the begin of the store (0:
            all). More steps than they last for read them again, in a new order in every epoch.
        mtp_weight: Weight of the loss of the extra block (`model.mtp`) that predicts the token
            after the next; 0: it is not trained.
        objective: What a step minimises: the loss of the `next-token`; of the responses of
            instructions (`sft`); or of preferences against a reference (`dpo`, Rafailov et al.
            2023). The last two tune a trained run (`train.trainer.tune`).
        dpo_beta: Strength with which DPO holds the model at its reference.
    """

    name: str
    model: GPTConfig
    batch_size: int
    steps: int
    lr: float
    min_lr: float
    warmup_steps: int
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    lr_schedule: Literal["cosine", "cosine-throughout"] = "cosine"
    micro_batch_size: int | None = None
    vocabulary: Literal["store", "fixed"] = "store"
    checkpoint_every: int = 1000
    optimizer_every: int = 10_000
    eval_every: int = 0
    eval_windows: int = 64
    init_seed: int = 0
    order_seed: int = 0
    sampler: Literal["tiles", "nanogpt"] = "tiles"
    late_batch: int = 0
    late_begin: int = 0
    allow_reading_ahead: bool = False
    optimizer: Literal["adamw", "muon"] = "adamw"
    muon_lr: float = 0.02
    muon_momentum: float = 0.95
    distill_weight: float = 0.0
    distill_temperature: float = 1.0
    ema_decay: float = 0.0
    weight_decay_end: float = 1.0
    weight_decay_hold: float = 0.4
    stochastic_depth: float = 0.0
    data_budget: int = 0
    mtp_weight: float = 0.0
    objective: Literal["next-token", "sft", "dpo"] = "next-token"
    dpo_beta: float = 0.1

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise RecipeError(
                f"recipe {self.name!r} has {self.steps} steps of {self.batch_size} windows; "
                "both must be at least 1"
            )
        if not 0 <= self.late_batch < self.batch_size or self.late_begin < 0:
            raise RecipeError(
                f"recipe {self.name!r} has late_batch={self.late_batch} from step "
                f"{self.late_begin} on in batches of {self.batch_size}; late_batch must be from 0 "
                "to batch_size - 1, late_begin at least 0"
            )
        if self.late_batch and self.sampler != "tiles":
            raise RecipeError(
                f"recipe {self.name!r} has late_batch={self.late_batch} and sampler "
                f"{self.sampler!r}; only 'tiles' tells late documents from others"
            )
        parts = self.micro_batch_size not in (None, 0, self.batch_size)
        if self.model.attention == "retention-published" and parts:
            raise RecipeError(
                f"recipe {self.name!r} has micro_batch_size={self.micro_batch_size}, and in its "
                "model every row depends on the others of its batch; leave it out"
            )
        if self.model.reads_ahead and not self.allow_reading_ahead:
            part = "attention=retention-published" if self.model.causal else "causal=False"
            raise RecipeError(
                f"recipe {self.name!r} has {part}: a position that depends on later ones sees its "
                "own target, so the loss says nothing about predicting text; "
                "allow_reading_ahead=true trains it all the same"
            )
        self._check_ranges()
        self._check_muon()
        self._check_dependent()
        self._check_methods()
        self._check_objective()
        for key, allowed in (
            ("sampler", ("tiles", "nanogpt")),
            ("lr_schedule", ("cosine", "cosine-throughout")),
            ("vocabulary", ("store", "fixed")),
            ("optimizer", ("adamw", "muon")),
            ("objective", tuple(EXAMPLES)),
        ):
            if getattr(self, key) not in allowed:
                raise RecipeError(
                    f"recipe {self.name!r} has {key}={getattr(self, key)!r}; known are {allowed}"
                )

    def _check_ranges(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is int and not -(2**63) <= value < 2**63:
                raise RecipeError(
                    f"recipe {self.name!r}: {field.name} is a number of more than 64 bits; lower it"
                )
        # A warm-up longer than the training is allowed: it is what a short trial of a recipe has.
        for key, holds, bounds in (
            ("lr", 0 < self.lr < inf, "above 0"),
            ("min_lr", 0 <= self.min_lr <= self.lr, f"from 0 to lr={self.lr}"),
            ("warmup_steps", self.warmup_steps >= 0, "at least 0"),
            ("beta1", 0 <= self.beta1 < 1, "at least 0 and below 1"),
            ("beta2", 0 <= self.beta2 < 1, "at least 0 and below 1"),
            ("eps", 0 < self.eps < inf, "above 0"),
            ("weight_decay", 0 <= self.weight_decay < inf, "at least 0"),
            ("grad_clip", self.grad_clip > 0, "above 0"),
            ("micro_batch_size", (self.micro_batch_size or 0) >= 0, "at least 0 (0: all at once)"),
            ("checkpoint_every", self.checkpoint_every > 0, "at least 1"),
            ("optimizer_every", self.optimizer_every > 0, "at least 1"),
            ("eval_every", self.eval_every >= 0, "at least 0 (0: never)"),
            ("eval_windows", self.eval_windows > 0, "at least 1"),
            ("muon_lr", 0 < self.muon_lr < inf, "above 0"),
            ("muon_momentum", 0 <= self.muon_momentum < 1, "at least 0 and below 1"),
            ("distill_weight", 0 <= self.distill_weight <= 1, "from 0 to 1"),
            ("distill_temperature", 0 < self.distill_temperature < inf, "above 0"),
            ("weight_decay_end", 0 <= self.weight_decay_end < inf, "at least 0"),
            ("weight_decay_hold", 0 <= self.weight_decay_hold < 1, "at least 0 and below 1"),
            ("stochastic_depth", 0 <= self.stochastic_depth < 1, "at least 0 and below 1"),
            ("data_budget", self.data_budget >= 0, "at least 0 (0: the whole store)"),
            ("mtp_weight", 0 <= self.mtp_weight < inf, "at least 0"),
            ("ema_decay", 0 <= self.ema_decay < 1, "at least 0 (0: no average) and below 1"),
            ("dpo_beta", 0 < self.dpo_beta < inf, "above 0"),
        ):
            if not holds:
                raise RecipeError(
                    f"recipe {self.name!r} has {key}={getattr(self, key)!r}; it must be {bounds}"
                )

    def _check_muon(self) -> None:
        if self.optimizer == "muon" and self.model.retention:
            raise RecipeError(
                f"recipe {self.name!r} has optimizer='muon' and attention="
                f"{self.model.attention!r}; Muon is made for matrices that are not generated: use "
                "adamw"
            )

    def _check_methods(self) -> None:
        if self.stochastic_depth and self.model.retention:
            raise RecipeError(
                f"recipe {self.name!r} has stochastic_depth={self.stochastic_depth} and attention="
                f"{self.model.attention!r}, whose passes before attention are not left out; set it "
                "to 0"
            )
        if self.stochastic_depth and self.model.n_layers < 2:
            raise RecipeError(
                f"recipe {self.name!r} has stochastic_depth={self.stochastic_depth} and 1 layer, "
                "and the first layer is never left out; give it 2 layers or set it to 0"
            )
        if self.mtp_weight and not self.model.mtp:
            raise RecipeError(
                f"recipe {self.name!r} has mtp_weight={self.mtp_weight} and a model without the "
                "extra block that it trains; set model.mtp=true too"
            )

    def _check_dependent(self) -> None:
        for key, (switch, off) in DEPENDENT.items():
            if getattr(self, switch) == off and getattr(self, key) != LATER[key]:
                raise RecipeError(
                    f"recipe {self.name!r} has {key}={getattr(self, key)} and {switch}={off!r}, "
                    f"which does not use it; set {switch} too"
                )

    def _check_objective(self) -> None:
        if self.objective != "next-token" and self.sampler != "tiles":
            raise RecipeError(
                f"recipe {self.name!r} has objective={self.objective!r} and sampler="
                f"{self.sampler!r}; examples are read whole by sampler='tiles' alone"
            )
        if self.objective == "dpo" and self.methods:
            raise RecipeError(
                f"recipe {self.name!r} has objective='dpo' and {', '.join(self.methods)}, which "
                "change the loss of the next token; set them to 0"
            )
        if self.objective != "dpo" and self.dpo_beta != LATER["dpo_beta"]:
            raise RecipeError(
                f"recipe {self.name!r} has dpo_beta={self.dpo_beta} and objective="
                f"{self.objective!r}, which does not use it; set objective='dpo' too"
            )

    @property
    def methods(self) -> tuple[str, ...]:
        """Fields by which a step minimises something else than the loss of the next token."""
        names = ("distill_weight", "stochastic_depth", "mtp_weight")
        return tuple(name for name in names if getattr(self, name))

    @property
    def tokens_per_step(self) -> int:
        """Targets per step, padding included."""
        return self.batch_size * self.model.n_ctx

    def checkpoint_steps(self) -> list[int]:
        """Return the steps with a checkpoint, ascending.

        These are 0, the powers of two below `checkpoint_every`, the multiples of
        `checkpoint_every`, and the last step.
        """
        powers = {2**k for k in range(64) if 2**k < self.checkpoint_every}
        linear = set(range(0, self.steps + 1, self.checkpoint_every))
        return sorted(step for step in powers | linear | {self.steps} if step <= self.steps)

    def keeps_optimizer(self, step: int) -> bool:
        """Return whether the checkpoint at `step` keeps its optimizer permanently."""
        return step % self.optimizer_every == 0 or step == self.steps


# docs/results.md says which circuits it forms.
PLANTED = Recipe(
    name="planted",
    model=GPTConfig(
        n_layers=2,
        n_heads=4,
        d_model=128,
        n_ctx=64,
        d_vocab=976,
        mlp="gelu-tanh",
        init_std=0.05,
        # Positions start as sinusoids, more than twice as large as token embeddings. With a random
        # start no previous-token head forms, and copies are predicted as a bag of words. At 0.15
        # three heads each attended about half to the previous token; at 0.2 IOI was learned
        # hundreds of steps later.
        position_init="sinusoids",
        position_init_scale=0.175,
    ),
    batch_size=32,
    steps=2100,
    # With a higher rate (2.5e-3) copying and facts were learned later.
    lr=1.75e-3,
    min_lr=3.5e-4,
    warmup_steps=100,
    lr_schedule="cosine-throughout",
    checkpoint_every=100,
    optimizer_every=100,
    # After two thirds of the steps: retraining without late documents starts there.
    late_batch=1,
    late_begin=1450,
)

# The small architectures of the other designs, trained as the planted checkpoint is.
RETRO_NANO = replace(PLANTED, name="retro-nano", model=preset("retro-nano"))
STRAWBERRY_NANO = replace(PLANTED, name="strawberry-nano", model=preset("strawberry-nano"))
SLOWRUN_NANO = replace(PLANTED, name="slowrun-nano", model=preset("slowrun-nano"))
MODERN_NANO = replace(PLANTED, name="modern-nano", model=preset("modern-nano"))

# A small model for any text of a few megabytes: 3.07 million tokens, a few minutes on two cores.
# Positions are rotary: after 1.84 million tokens of the World Factbook, two layers had a held-out
# loss of 2.19 nats a token with them, and 2.41 with learned positions that start as sinusoids.
TEXT_SMALL = Recipe(
    name="text-small",
    model=GPTConfig(
        n_layers=3,
        n_heads=4,
        d_model=128,
        n_ctx=256,
        d_vocab=2048,
        mlp="gelu-tanh",
        init_std=0.05,
        position="rope",
        rope_theta=1000.0,
    ),
    batch_size=8,
    steps=1500,
    lr=3e-3,
    min_lr=3e-4,
    warmup_steps=100,
    checkpoint_every=250,
    optimizer_every=250,
    eval_every=250,
)

# An induction head on real code: the corpus `stdlib` with byte pairs of 512, so that most
# identifiers are several tokens. On random tokens of the whole vocabulary (16 sequences of 50, said
# twice) the best head of three seeds scores .59, .61 and .52 at the end (fp32 on AVX2), after a
# previous-token head of .99, .97 and .88 in an earlier layer, and the second copy is 2.3, 2.4 and
# 1.8 nats cheaper than the first (benchmarks/code_small.py). It forms between .8 and 2.5 million
# tokens.
# The rate is constant: 4 heads with a vocabulary of 1,024 scored .30 after 4.25 million tokens and,
# with a linear decay from 4.9 million on, .31 after 6.
# Score of the best head after 2.25 million tokens, one seed each:
#   4 heads of 32, rope_theta 1,000, vocabulary 1,024: .11
#   2 heads of 64, rope_theta 1,000, vocabulary 1,024: .31
#   2 heads of 64, rope_theta 1,000, vocabulary 512:   .31 (after 3.5 million .50 instead of .43)
#   2 heads of 64, rope_theta 10,000, vocabulary 512:  .49
# Rotary positions leave to content only the numbers of a head that turn little over the distance,
# and wide heads and a high theta have more of these. The unembedding is not tied because 30 % of
# the vocabulary are bytes that code lacks: tied, all of them would be pushed the same way.
CODE_SMALL = Recipe(
    name="code-small",
    model=GPTConfig(
        n_layers=4,
        n_heads=2,
        d_model=128,
        n_ctx=256,
        d_vocab=512,
        mlp="gelu-tanh",
        position="rope",
        tie=False,
    ),
    batch_size=16,
    # 6.6 million tokens: 11 minutes at the 9.8 thousand tokens a second of two AVX2 cores in fp32.
    steps=1600,
    lr=3e-3,
    min_lr=3e-3,
    warmup_steps=100,
    weight_decay=0.0,
    optimizer="muon",
    checkpoint_every=200,
    optimizer_every=400,
    eval_every=200,
)

# The same kind, larger and longer: 123 million tokens. It has not been trained yet, so sizes and
# steps are a guess.
CODE_MEDIUM = replace(
    CODE_SMALL,
    name="code-medium",
    model=replace(
        CODE_SMALL.model,
        n_layers=6,
        n_heads=4,
        n_key_value_heads=4,
        d_model=256,
        n_ctx=512,
        d_mlp=0,
    ),
    steps=15_000,
    warmup_steps=200,
    checkpoint_every=1000,
    optimizer_every=5000,
    eval_every=500,
)

# GPT-2 small. 52,453 steps of 524,288 targets are 27.5 billion tokens: 3.04 epochs of the 9.04
# billion tokens of OpenWebText. Step count and learning rate follow nanoGPT's 124M recipe.
GPT2_124M = Recipe(
    name="gpt2-124m",
    model=preset("gpt2"),
    batch_size=512,
    micro_batch_size=16,
    steps=52_453,
    lr=6e-4,
    min_lr=6e-5,
    warmup_steps=2000,
    vocabulary="fixed",
    checkpoint_every=1000,
    optimizer_every=10_000,
    eval_every=1000,
    eval_windows=512,
)

PRESET = "model.preset"
_ALL = (PLANTED, TEXT_SMALL, CODE_SMALL, CODE_MEDIUM, GPT2_124M)
_ALL += (RETRO_NANO, STRAWBERRY_NANO, SLOWRUN_NANO, MODERN_NANO)
_NAMED = {recipe.name: recipe for recipe in _ALL}
# What `openbook recipes list` says of each named recipe.
PURPOSES = {
    "planted": "induction, IOI and recall of facts on the planted corpus",
    "text-small": "a small model for any text of a few megabytes",
    "code-small": "an induction head on Python's own sources, in minutes",
    "code-medium": "a larger model of the same kind, in an hour or two; not measured",
    "gpt2-124m": "GPT-2 small on OpenWebText, on a GPU",
    "retro-nano": "post-norm, sinusoidal positions and ReLU, on the planted corpus",
    "strawberry-nano": "attention weights generated from the input, on the planted corpus",
    "slowrun-nano": "U-Net skips, value residuals, gates and a loop, on the planted corpus",
    "modern-nano": "rotary positions, RMSNorm, SwiGLU and sinks, on the planted corpus",
}


def by_name(name: str) -> Recipe:
    """Return the recipe that has this name on the command line.

    Examples:
        >>> recipe = recipes.by_name("planted")
        >>> recipe.steps, recipe.batch_size, recipe.model.n_layers
        (2100, 32, 2)
    """
    if name in _NAMED:
        return _NAMED[name]
    if name in PRESETS:
        raise RecipeError(
            f"no recipe is called {name!r}, which is an architecture; write a recipe file with "
            f'preset = "{name}" under [model]'
        )
    raise RecipeError(f"no recipe is called {name!r}{nearest(name, _NAMED)}")


def resolve(recipe: Recipe, store: TokenStore, **changes: Any) -> Recipe:
    """Return the recipe with `changes` to its fields, fitted to a store.

    The model takes the store's vocabulary size unless `vocabulary` is `fixed`. If the store has no
    late documents, `late_batch` becomes 0. Changes that are None are ignored.

    Raises:
        RecipeError: A change names no field, or its value contradicts the others.
        StoreError: The vocabulary sizes differ, the rows of a packed store are not as long as the
            context, or the store is shorter than one window.

    Examples:
        >>> recipe = recipes.resolve(recipes.by_name("planted"), store, steps=200)
        >>> recipe.steps, recipe.model.d_vocab
        (200, 976)
    """
    known = {one.name for one in fields(Recipe)}
    for key in changes:
        if key not in known:
            raise RecipeError(f"a recipe has no field {key!r}{nearest(key, known)}")
    recipe = replace(recipe, **{key: value for key, value in changes.items() if value is not None})
    if recipe.vocabulary == "store":
        recipe = replace(recipe, model=replace(recipe.model, d_vocab=store.vocab_size))
    if recipe.model.d_vocab != store.vocab_size:
        raise StoreError(
            f"recipe {recipe.name!r} needs a vocabulary of {recipe.model.d_vocab}, the store "
            f"{store.path} was built with {store.vocab_size} ({store.tokenizer.kind} tokenizer); "
            "rebuild it with the recipe's tokenizer"
        )
    wanted = EXAMPLES[recipe.objective]
    if store.tuning != wanted:
        raise StoreError(
            f"the store {store.path} holds {store.tuning or 'documents'}, and recipe "
            f"{recipe.name!r} with objective={recipe.objective!r} reads {wanted or 'documents'}; "
            "choose another store or objective"
        )
    if store.example_length and store.example_length > recipe.model.n_ctx:
        raise StoreError(
            f"the examples of {store.path} have {store.example_length} tokens, and the context of "
            f"the model has {recipe.model.n_ctx}; build it again for this model"
        )
    context = store.window(recipe.model.n_ctx)
    if store.layout == "packed" and store.row_length != context:
        raise StoreError(
            f"the store {store.path} is packed in rows of {store.row_length} tokens, recipe "
            f"{recipe.name!r} reads windows of {context}; rebuild it with --row-length {context}"
        )
    if store.train_tokens <= context:
        raise StoreError(
            f"a window of {context} tokens and one target does not fit the {store.train_tokens} "
            f"training tokens of {store.path}; choose a context below {store.train_tokens}"
        )
    if recipe.late_batch and store.early_tokens == store.train_tokens:
        recipe = replace(recipe, late_batch=0, late_begin=0)
    if recipe.data_budget:
        _check_budget(recipe, store)
    return recipe


def _check_budget(recipe: Recipe, store: TokenStore) -> None:
    context = recipe.model.n_ctx
    if not context < recipe.data_budget <= store.train_tokens:
        raise StoreError(
            f"recipe {recipe.name!r} has data_budget={recipe.data_budget}, windows of {context} "
            f"tokens and one target, and {store.train_tokens} training tokens in {store.path}; "
            f"choose a budget from {context + 1} to {store.train_tokens}, or 0 for all"
        )
    if recipe.late_batch:
        raise RecipeError(
            f"recipe {recipe.name!r} has late_batch={recipe.late_batch} and data_budget="
            f"{recipe.data_budget}, which ends before the late documents; set one of them to 0"
        )


def from_dict(content: Mapping[str, Any], path: object) -> Recipe:
    """Read a resolved recipe from a mapping.

    Every key must be present, except those that older runs did not write.

    Raises:
        DamagedError: A key is missing or unknown; the message names the key and `path`.

    Examples:
        >>> recipes.from_dict(recipes.to_dict(run.recipe), "here") == run.recipe
        True
    """
    if not isinstance(content, Mapping):
        raise DamagedError(f"{path}: the recipe is {content!r:.40}, and an object is expected")
    content = {**LATER, **content}
    model = content.get("model")
    expected = {one.name for one in fields(Recipe)}
    of_model = GPTConfig.keys(model if isinstance(model, Mapping) else {})
    for lacking, unknown in ((expected - set(content), set(content) - expected), of_model):
        for key in sorted(lacking):
            raise DamagedError(f"{path}: the recipe lacks the key {key!r}; it was changed")
        for key in sorted(unknown):
            raise DamagedError(f"{path}: the recipe has an unknown key {key!r}; it was changed")
    others = {key: value for key, value in content.items() if key != "model"}
    try:
        for key, value in others.items():
            _fitted(key, value, _types()[key], "")
        return Recipe(**others, model=model_from_dict(model, path))
    except RecipeError as error:
        raise DamagedError(f"{path}: {error}; it was changed") from None


def model_from_dict(content: object, path: object) -> GPTConfig:
    """Read an architecture from a mapping, as manifests hold it.

    Raises:
        DamagedError: A key is missing or unknown, or a value has another type or is impossible; the
            message begins with `path`.

    Examples:
        >>> recipes.model_from_dict(run.config.to_dict(), "here") == run.config
        True
    """
    try:
        if not isinstance(content, Mapping):
            raise RecipeError(f"model is {content!r:.60}; it must be a table")
        lacking, unknown = GPTConfig.keys(content)
        if odd := sorted({*lacking, *unknown}):
            raise RecipeError(f"the model lacks or has an unknown key {odd[0]!r}")
        for key, value in content.items():
            _fitted(key, value, _types()[f"model.{key}"], "")
        return GPTConfig(**content)
    except RecipeError as error:
        raise DamagedError(f"{path}: {error}; it was changed") from None


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as a dictionary, as it is written into a manifest.

    Examples:
        >>> recipes.to_dict(run.recipe)["steps"]
        2100
    """
    content = {**asdict(recipe), "model": recipe.model.to_dict()}
    return {key: value for key, value in content.items() if key not in LATER or value != LATER[key]}


# --- recipes as files ----------------------------------------------------------------------------

MOST_BYTES = 1 << 20  # of a recipe file
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def read(path: str | Path) -> Recipe:
    """Read a recipe from a TOML file.

    The top level holds fields of `Recipe`, and the table `[model]` fields of `GPTConfig`. `base`
    names another recipe, or another file relative to this one; its fields are the defaults. `name`
    is by default the name of the file without its ending.

    Raises:
        RecipeError: The file is missing or not TOML, a field is unknown, missing, of another type
            or impossible, or the bases lead back to the file.

    Examples:
        >>> path = folder / "wide.toml"
        >>> _ = path.write_text('base = "planted"\\nlr = 1e-3\\n[model]\\nd_model = 256')
        >>> recipe = recipes.read(path)
        >>> recipe.name, recipe.steps, recipe.lr, recipe.model.d_mlp
        ('wide', 2100, 0.001, 1024)
    """
    return _recipe(_fields_in(Path(path), ()))


def load(name_or_path: str | Path, settings: Mapping[str, Any] | None = None) -> Recipe:
    """Return a named recipe or read one from a file, with other values for some fields.

    Args:
        name_or_path: A name, or a path that ends in `.toml` or begins with a folder.
        settings: Values by field; those of the model are called `model.n_layers` and so on. Sizes
            that follow from others (`d_head`, `d_mlp`) follow from the new ones.

    Raises:
        RecipeError: There is no such recipe or field, or a value is of another type or impossible.

    Examples:
        >>> recipe = recipes.load("planted", {"model.n_heads": 8, "lr": 1e-3})
        >>> recipe.lr, recipe.model.n_heads, recipe.model.d_head
        (0.001, 8, 16)
    """
    if _is_path(name_or_path):
        content = _fields_in(Path(name_or_path), ())
    else:
        content = _fields_of(by_name(str(name_or_path)))
    return _recipe(content | _checked(settings or {}, ""))


def to_toml(recipe: Recipe) -> str:
    """Return the text of a file that `read` reads as an equal recipe.

    It has every field that is not None. Sizes of the model that follow from others are comments, so
    that they follow too when another size is edited.

    Examples:
        >>> path = folder / "copy.toml"
        >>> _ = path.write_text(recipes.to_toml(run.recipe))
        >>> recipes.read(path) == run.recipe
        True
    """
    n_tokens = recipe.steps * recipe.tokens_per_step
    lines = [f"# {recipe.model.n_params:,} parameters, {n_tokens:,} tokens of training"]
    for field in fields(Recipe):
        if field.name != "model" and getattr(recipe, field.name) is not None:
            lines.append(f"{field.name} = {_toml(getattr(recipe, field.name))}")
    lines += ["", "[model]"]
    for key, value in _chosen(recipe.model).items():
        line = f"{key} = {_toml(getattr(recipe.model, key))}"
        follows = value != getattr(recipe.model, key)
        lines.append(f"# {line}  # follows from other sizes" if follows else line)
    return "\n".join(lines) + "\n"


def _is_path(name_or_path: str | Path) -> bool:
    return Path(name_or_path).suffix == ".toml" or len(Path(name_or_path).parts) > 1


def _fields_of(recipe: Recipe) -> dict[str, Any]:
    """Return the fields that make the recipe; those of its model are called `model.NAME`."""
    content = {key: getattr(recipe, key) for key in _types() if not key.startswith("model.")}
    return content | {f"model.{key}": value for key, value in _chosen(recipe.model).items()}


def _chosen(model: GPTConfig) -> dict[str, Any]:
    """Return the fields that make the model; sizes that follow from others are at their default."""
    content = {field.name: getattr(model, field.name) for field in fields(GPTConfig)}
    for field in fields(GPTConfig):
        simpler = {**content, field.name: field.default}
        try:
            if field.default is not MISSING and GPTConfig(**simpler) == model:
                content = simpler
        except RecipeError:
            continue  # The default contradicts the other fields.
    return content


def _fields_in(path: Path, followed: tuple[Path, ...]) -> dict[str, Any]:
    """Return the fields in a file and in its bases; `followed` are the files that led to it."""
    chain = (*followed, path)
    if realpath(path) in map(realpath, followed):
        names = " -> ".join(str(other) for other in chain)
        raise RecipeError(f"{path}: its base leads back to it ({names}); remove one base")
    content = _parsed(path)
    base, model = content.pop("base", None), content.pop("model", {})
    if not isinstance(model, dict):
        raise RecipeError(f"{path}: model is {_toml(model)}; it must be a table, [model]")
    content |= {f"model.{key}": value for key, value in model.items()}
    inherited = {}
    if base is not None:
        base = _fitted("base", base, str, f"{path}: ")
        if _is_path(base):
            _refuse_missing(path.parent / base, f"{path}: its base ")
            inherited = _fields_in(path.parent / base, chain)
        else:
            try:
                inherited = _fields_of(by_name(base))
            except RecipeError as error:
                raise RecipeError(f"{path}: {error}") from None
    return {**inherited, "name": path.stem, **_checked(content, f"{path}: ")}


def _refuse_missing(path: Path, where: str) -> None:
    if not path.exists():
        known = {*_NAMED, *(other.name for other in path.parent.glob("*.toml"))}
        raise RecipeError(f"{where}{path}: there is no such file{nearest(path.name, known)}")


def _parsed(path: Path) -> dict[str, Any]:
    _refuse_missing(path, "")
    try:
        return storage.read_foreign_toml(path, most_bytes=MOST_BYTES)
    except DamagedError as error:
        raise RecipeError(str(error)) from None


@cache
def _types() -> dict[str, Any]:
    """Return the type of every field; those of the model are called `model.NAME`."""
    types = {key: type_ for key, type_ in get_type_hints(Recipe).items() if key != "model"}
    return types | {f"model.{key}": type_ for key, type_ in get_type_hints(GPTConfig).items()}


def _checked(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields with values of their types.

    `model.preset` names an architecture, whose fields the other ones replace.

    Raises:
        RecipeError: A field is unknown, or a value has another type. The message begins with
            `where`.
    """
    if PRESET in content:
        name = _fitted(PRESET, content[PRESET], str, where)
        try:
            whole = {f"model.{key}": value for key, value in _chosen(preset(name)).items()}
        except RecipeError as error:
            raise RecipeError(f"{where}{error}") from None
        content = whole | {key: value for key, value in content.items() if key != PRESET}
    for key in content:
        if key not in _types():
            name = key.rpartition(".")[2]
            same = [other for other in _types() if other.rpartition(".")[2] == name]
            if isinstance(content[key], dict):
                raise RecipeError(f"{where}a recipe has no table [{key}]; the only one is [model]")
            if name in ELSEWHERE:
                near = f", did you mean {ELSEWHERE[name]!r}?"
            else:
                near = nearest(name, same) if same else nearest(key, _types())
            raise RecipeError(f"{where}a recipe has no field {key!r}{near}")
    return {key: _fitted(key, value, _types()[key], where) for key, value in content.items()}


def _fitted(key: str, value: Any, annotation: Any, where: str) -> Any:
    """Return a value as a field of this type takes it: a whole number becomes a float for one."""
    kinds = get_args(annotation) if get_origin(annotation) is UnionType else (annotation,)
    for kind in kinds:
        if get_origin(kind) is Literal and type(value) is str:
            if value in get_args(kind):
                return value
            near = nearest(value, get_args(kind))
            raise RecipeError(f"{where}no {key} is called {value!r}{near}")
        if type(value) is kind or (kind is float and type(value) is int):
            # TOML has integers of 64 bits, but Python's reader takes longer ones.
            if type(value) is int and not -(2**63) <= value < 2**63:
                raise RecipeError(f"{where}{key} is a number of more than 64 bits; lower it")
            return float(value) if kind is float else value
    expected = " or ".join(KINDS.get(kind, "a string") for kind in kinds if kind is not type(None))
    raise RecipeError(f"{where}{key} is {_toml(value)}; it must be {expected}")


def _toml(value: Any) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, bool | str):
        # JSON's escapes are TOML's, and TOML wants DEL escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)


def _recipe(content: Mapping[str, Any]) -> Recipe:
    """Return the recipe with these fields.

    Raises:
        RecipeError: A field is missing or has an impossible value.
    """
    required = {field.name for field in fields(Recipe) if field.default is MISSING} - {"model"}
    required |= {f"model.{field.name}" for field in fields(GPTConfig) if field.default is MISSING}
    if lacking := [key for key in _types() if key in required - set(content)]:
        raise RecipeError(
            f"recipe {content['name']!r} lacks {', '.join(lacking)}; give them, or a base"
        )
    model = {key: value for key, value in content.items() if key.startswith("model.")}
    others = {key: value for key, value in content.items() if key not in model}
    try:
        cfg = GPTConfig(**{key.removeprefix("model."): value for key, value in model.items()})
    except RecipeError as error:
        raise RecipeError(f"recipe {content['name']!r}: {error}") from None
    return Recipe(**others, model=cfg)
