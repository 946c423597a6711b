"""Named training recipes: everything that determines a run, except the data and the machine.

A recipe is a frozen constant. `resolve` fits it to a token store and fills in every default; the
resolved recipe is written into the manifest key by key (in Pythia#135 a missing key led to a
different initialisation). With `PLANTED` textbook circuits form in about a minute of CPU time;
`TEXT_SMALL` is a small model for any text; `CODE_SMALL` grows an induction head on real code in
minutes; `GPT2_124M` is GPT-2 small on OpenWebText.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from train.data import TokenStore
from train.errors import DamagedError, RecipeError, StoreError, nearest
from train.model import GPTConfig


__all__ = [
    "CODE_MEDIUM",
    "CODE_SMALL",
    "GPT2_124M",
    "PLANTED",
    "TEXT_SMALL",
    "Recipe",
    "by_name",
    "from_dict",
    "resolve",
    "to_dict",
]


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run: model, batch size, number of steps, optimizer and seeds.

    Attributes:
        batch_size: Windows per step.
        micro_batch_size: Windows that pass through the model at once; None means all of a step.
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
        optimizer: `adamw`, or `muon` for the matrices of the blocks and AdamW for the rest
            (`train.trainer.Muon`).
        muon_lr: Muon's learning rate when AdamW's is `lr`; both follow the same schedule.
        muon_momentum: Share of Muon's momentum that a step keeps.
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
    optimizer: Literal["adamw", "muon"] = "adamw"
    muon_lr: float = 0.02
    muon_momentum: float = 0.95

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise RecipeError(
                f"recipe {self.name!r} has {self.steps} steps of {self.batch_size} windows; "
                "both must be at least 1"
            )
        if not 0 <= self.late_batch < self.batch_size or self.late_begin < 0:
            raise RecipeError(
                f"recipe {self.name!r} has late_batch={self.late_batch} from step "
                f"{self.late_begin} on in batches of {self.batch_size}; it must be at least 0 and "
                "below the batch, from step 0 or later"
            )
        if self.late_batch and self.sampler != "tiles":
            raise RecipeError(
                f"recipe {self.name!r} has late_batch={self.late_batch} and sampler "
                f"{self.sampler!r}; only 'tiles' tells late documents from others"
            )
        if not self.model.causal:
            raise RecipeError(
                f"recipe {self.name!r} has causal=False: a position that attends to the next one "
                "sees its own target; only compiled and imported models may"
            )
        for key, allowed in (
            ("sampler", ("tiles", "nanogpt")),
            ("lr_schedule", ("cosine", "cosine-throughout")),
            ("vocabulary", ("store", "fixed")),
            ("optimizer", ("adamw", "muon")),
        ):
            if getattr(self, key) not in allowed:
                raise RecipeError(
                    f"recipe {self.name!r} has {key}={getattr(self, key)!r}; known are {allowed}"
                )

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


# For the circuits it forms see "What is known about the planted checkpoint" in the README.
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
# twice) the best head scored .16 after 1.5 million tokens, .49 after 2.25 and .62 after 3.25 (steps
# 366, 549 and 793; bf16), after a previous-token head of .98 in an earlier layer, and the second
# copy was 1.8 nats cheaper than the first. Another seed in fp32 on AVX2 scored .31 after 2 million
# tokens, .46 after 2.5 and .44 after 2.75. No run went further than that yet.
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
CODE_MEDIUM = Recipe(
    name="code-medium",
    model=GPTConfig(
        n_layers=6,
        n_heads=4,
        d_model=256,
        n_ctx=512,
        d_vocab=512,
        mlp="gelu-tanh",
        position="rope",
        tie=False,
    ),
    batch_size=16,
    steps=15_000,
    lr=3e-3,
    min_lr=3e-3,
    warmup_steps=200,
    weight_decay=0.0,
    optimizer="muon",
    checkpoint_every=1000,
    optimizer_every=5000,
    eval_every=500,
)

# GPT-2 small. 52,453 steps of 524,288 targets are 27.5 billion tokens: 3.04 epochs of the 9.04
# billion tokens of OpenWebText. Step count and learning rate follow nanoGPT's 124M recipe.
GPT2_124M = Recipe(
    name="gpt2-124m",
    model=GPTConfig(
        n_layers=12,
        n_heads=12,
        d_model=768,
        n_ctx=1024,
        d_vocab=50257,
        mlp="gelu-tanh",
        vocab_multiple=64,
    ),
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

# Fields added after the first runs, with the value that older runs used. A field with that value is
# not written, so that the digest of an older recipe stays the same.
LATER = {
    "late_batch": 0,
    "late_begin": 0,
    "optimizer": "adamw",
    "muon_lr": 0.02,
    "muon_momentum": 0.95,
}

_NAMED = {
    recipe.name: recipe for recipe in (PLANTED, TEXT_SMALL, CODE_SMALL, CODE_MEDIUM, GPT2_124M)
}


def by_name(name: str) -> Recipe:
    """Return the recipe that has this name on the command line.

    Examples:
        >>> recipe = recipes.by_name("planted")
        >>> recipe.steps, recipe.batch_size, recipe.model.n_layers
        (2100, 32, 2)
    """
    try:
        return _NAMED[name]
    except KeyError:
        raise RecipeError(f"no recipe is called {name!r}{nearest(name, _NAMED)}") from None


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
    context = recipe.model.n_ctx
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
    return recipe


def from_dict(content: Mapping[str, Any], path: object) -> Recipe:
    """Read a resolved recipe from a mapping.

    Every key must be present, except those that older runs did not write.

    Raises:
        DamagedError: A key is missing or unknown; the message names the key and `path`.

    Examples:
        >>> recipes.from_dict(recipes.to_dict(run.recipe), "here") == run.recipe
        True
    """
    content = {**LATER, **content}
    model = content.get("model")
    expected = {one.name for one in fields(Recipe)}
    of_model = GPTConfig.keys(model if isinstance(model, Mapping) else {})
    for lacking, unknown in ((expected - set(content), set(content) - expected), of_model):
        for key in sorted(lacking):
            raise DamagedError(f"{path}: the recipe lacks the key {key!r}; it was changed")
        for key in sorted(unknown):
            raise DamagedError(f"{path}: the recipe has an unknown key {key!r}; it was changed")
    return Recipe(**{**content, "model": GPTConfig(**content["model"])})


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as a dictionary, as it is written into a manifest.

    Examples:
        >>> recipes.to_dict(run.recipe)["steps"]
        2100
    """
    content = {**asdict(recipe), "model": recipe.model.to_dict()}
    return {key: value for key, value in content.items() if key not in LATER or value != LATER[key]}
