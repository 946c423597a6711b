"""What ensembles, chains, weight decay and looping are worth on a small budget of real text.

    python benchmarks/data_efficiency.py --out runs/data-efficiency [--seeds 0 1 2]

The text is the first 400,000 tokens of Python's standard library, its files in the order of their
hashes; a tenth of all files is held out. Every method reads the same tokens and spends the same
number of floating-point operations as a single model that reads them 12 times:

- ensemble: 4 members of 3 epochs each, probabilities averaged with equal weights;
- chain: 4 members, each but the first taught by the one before; a teacher's forward pass counts as
  a third of a step, so each member has fewer steps. Its last member is a row of its own;
- weight decay: the single model with 1.6 instead of 0.1;
- looping: two of four layers run twice, so there are fewer steps.

Losses are those of one half of the held-out files. The other half chooses the checkpoint at which
the single model would best have been stopped, which is the second thing every method is compared
with: a single model that is trained for too long is no fair rival. Differences are paired by seed,
and their 95 % intervals are over seeds (`train.statistics.mean_interval`: Student's t, and wider on
the side to which the seeds are skewed). The last column looks the mean loss up on the
curve of single models that read 1, 2, 4 and 8 times as many tokens once: how many times as many
tokens such a model needs.

Trainings that are there are not repeated, and one that was stopped continues. Prints its cost
first, and then the table for the documentation. `--steps-share 0.02` tries it in some
minutes, most of which score held-out text.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import machine
import numpy as np

from train import ensembles, numerics, progress, runs, trainer
from train.data import Corpus, Document, TokenStore, build_store, open_corpus, open_store
from train.ensembles import BaselineCurve, HeldOutScores, Member, train_chain
from train.errors import TrainError
from train.model import GPTConfig
from train.numerics import Numerics
from train.recipes import CODE_SMALL, Recipe
from train.runs import Run
from train.statistics import Estimate, mean_interval


TOKENS, EPOCHS, MEMBERS, HELD_OUT = 400_000, 12, 4, 0.1
EPOCHS_BETWEEN = 2  # checkpoints at which the single model may stop
BASELINES = (1, 2, 4, 8)  # times TOKENS, each read once
STRONG_DECAY, DISTILL = 1.6, 0.5
SEEDS_APART = 100  # members of one seed have neighbouring seeds

SINGLE, STOPPED, ENSEMBLE = "single model", "single model, stopped early", "ensemble of 4"
CHAIN, LAST = "chain of 4", "chain, last member alone"
DECAY, LOOP = "weight decay 1.6", "looping"


@dataclass(frozen=True)
class Plan:
    """The recipes of one seed, all of equal compute.

    Attributes:
        single: Recipe of the single model.
        member: Recipe of a member of the ensemble.
        taught: Recipe of a member of the chain.
    """

    single: Recipe
    member: Recipe
    taught: Recipe
    decay: Recipe
    loop: Recipe


def main() -> int:
    """Train what is missing, measure, and print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for stores and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--steps-share", type=float, default=1.0, help="of all steps, for a trial")
    arguments = parser.parse_args()
    how = numerics.choose(threads=arguments.threads, precision=arguments.precision)
    print(f"{machine.described('torch')}, {how}")
    whole = store_of_all(arguments.out / "stores" / "all")
    stores = {times: first_part(whole, times, arguments.out / "stores") for times in BASELINES}
    plans = {seed: plan(stores[1], seed, arguments.steps_share) for seed in arguments.seeds}
    print(cost(stores, plans[arguments.seeds[0]], len(plans), arguments.steps_share))
    curve = baseline(stores, arguments.out, how, arguments.steps_share)
    losses = [
        measured(one, stores[1], arguments.out / f"seed-{seed}", how) for seed, one in plans.items()
    ]
    print(table(losses, curve, stores[1].train_tokens))
    return 0


# --- text ----------------------------------------------------------------------------------------


def store_of_all(out: Path) -> TokenStore:
    """Return a store of the whole library, its files in the order of their hashes."""
    if not out.exists():
        corpus = open_corpus("stdlib")

        def read() -> Iterator[Document]:
            yield from sorted(corpus.read(), key=lambda document: document.sha256)

        build_store(replace(corpus, read=read), out=out, held_out=HELD_OUT)
    return open_store(out)


def first_part(whole: TokenStore, times: int, folder: Path) -> TokenStore:
    """Return a store of the first files of training, with the same tokenizer and held-out files."""
    out = folder / f"times-{times}"
    if not out.exists():
        n_train = int(np.searchsorted(whole.starts, whole.train_tokens))
        ends = (whole.starts + whole.lengths)[:n_train]
        kept = [*range(int(np.searchsorted(ends, times * TOKENS)))]
        kept += range(n_train, whole.n_documents)
        corpus = Corpus(
            name="stdlib",
            source=whole.manifest["corpus"]["source"],
            revision=f"{whole.manifest['corpus']['revision']}, {times} x {TOKENS} tokens",
            read=lambda: documents(whole, kept),
        )
        build_store(corpus, out=out, tokenizer=whole.tokenizer, held_out=HELD_OUT)
    return open_store(out)


def documents(store: TokenStore, indices: list[int]) -> Iterator[Document]:
    """Yield documents of a store."""
    for index in indices:
        row = store.document(index)
        yield Document(row.id, store.text(index), row.source, row.shard, row.row)


# --- recipes -------------------------------------------------------------------------------------


def recipe(name: str, model: GPTConfig, steps: float, *, seed: int = 0) -> Recipe:
    """Return an AdamW recipe for a number of steps."""
    whole = max(round(steps), 1)
    return replace(
        CODE_SMALL,
        name=name,
        model=model,
        steps=whole,
        optimizer="adamw",
        lr=3e-3,
        min_lr=3e-4,
        warmup_steps=min(50, whole // 10),
        weight_decay=0.1,
        init_seed=SEEDS_APART * seed,
        order_seed=SEEDS_APART * seed,
        checkpoint_every=max(EPOCHS_BETWEEN * whole // EPOCHS, 1),
        optimizer_every=whole,
        eval_every=0,
    )


def steps_of(store: TokenStore, epochs: float) -> float:
    """Return the steps in which a recipe reads the training tokens so many times."""
    return epochs * store.train_tokens / CODE_SMALL.tokens_per_step


def plan(store: TokenStore, seed: int, share: float) -> Plan:
    """Return the recipes of one seed."""
    model = replace(CODE_SMALL.model, d_vocab=store.vocab_size)
    looped = replace(model, n_layers=6, loop_first=1, loop_layers=2, loop_passes=2)
    steps = share * steps_of(store, EPOCHS)
    single = recipe("single", model, steps, seed=seed)
    # Each member but the first pays for a forward pass of its teacher: 2 of 6 operations.
    of_chain = steps / (MEMBERS + (MEMBERS - 1) / 3)
    return Plan(
        single=single,
        member=recipe("member", model, steps / MEMBERS, seed=seed),
        taught=replace(recipe("taught", model, of_chain, seed=seed), distill_weight=DISTILL),
        decay=replace(single, name="decay", weight_decay=STRONG_DECAY),
        loop=recipe("loop", looped, steps * operations(model) / operations(looped), seed=seed),
    )


def operations(cfg: GPTConfig) -> int:
    """Return the floating-point operations of a training step per token: 6 N + 12 L d T.

    N counts the weights of a looped layer once for every pass, and not the table of embeddings,
    which is only looked up; its own attention is counted as if it saw the whole context.
    """
    passes = replace(cfg, loop_first=0, loop_layers=0, loop_passes=1)
    looked_up = 0 if cfg.tie else cfg.d_vocab * cfg.d_model
    return 6 * (passes.n_params - looked_up) + 12 * cfg.n_layers * cfg.d_model * cfg.n_ctx


def cost(stores: dict[int, TokenStore], one: Plan, n_seeds: int, share: float) -> str:
    """Say what will be computed, before it is."""
    each = one.single.steps * one.single.tokens_per_step * operations(one.single.model)
    tokens = sum(share * store.train_tokens for store in stores.values())
    total = 5 * n_seeds * each + tokens * operations(one.single.model)
    return (
        f"{stores[1].train_tokens:,} training tokens; {n_seeds} seeds x 5 methods of {each:.3g} "
        f"operations and {len(stores)} baselines: {total:.3g} in all, "
        f"{total / 2e11 / 60:.0f} minutes at 200 billion a second"
    )


# --- trainings -----------------------------------------------------------------------------------


def trained(settings: Recipe, store: TokenStore, out: Path, how: Numerics) -> Run:
    """Return a run that is there, is finished now, or is trained now."""
    with progress.bar(f"{out.parent.name}/{out.name}") as advance:
        if (out / runs.MANIFEST).exists():
            return trainer.resume(out, store=store.path, progress=advance)
        return trainer.train(settings, store, out=out, numerics=how, progress=advance)


def chain_of(settings: Recipe, store: TokenStore, out: Path, how: Numerics) -> list[Run]:
    """Return the members of a chain, or of an ensemble if the recipe distils nothing."""
    with progress.bar(f"{out.parent.name}/{out.name}") as advance:
        return train_chain(
            settings, store, out=out, members=MEMBERS, numerics=how, progress=advance
        )


def baseline(
    stores: dict[int, TokenStore], out: Path, how: Numerics, share: float
) -> BaselineCurve | None:
    """Return the losses of single models that read more tokens, each token once; None: no curve."""
    tokens, losses = [], []
    for times, store in stores.items():
        model = replace(CODE_SMALL.model, d_vocab=store.vocab_size)
        settings = recipe("baseline", model, share * steps_of(store, 1))
        run = trained(settings, store, out / "baselines" / f"times-{times}", how)
        reported = ensembles.held_out_scores([Member(run, run.steps[-1])]).half(1)
        tokens.append(store.train_tokens)
        losses.append(loss(reported, reported.values[0]))
    try:
        return BaselineCurve(tuple(tokens), tuple(losses))
    except TrainError as error:
        print(error)
        return None


def measured(one: Plan, store: TokenStore, out: Path, how: Numerics) -> dict[str, float]:
    """Train the methods of a seed, and return the loss of each on the reported half."""
    single = trained(one.single, store, out / "single", how)
    ensemble = chain_of(one.member, store, out / "ensemble", how)
    chain = chain_of(one.taught, store, out / "chain", how)
    alone = [trained(one.decay, store, out / "decay", how)]
    alone += [trained(one.loop, store, out / "loop", how)]
    every = one.single.checkpoint_every
    early = [Member(single, step) for step in single.steps if step and step % every == 0]
    early += [] if one.single.steps % every == 0 else [Member(single, one.single.steps)]
    last = [Member(run, run.steps[-1]) for run in (*ensemble, *chain, *alone)]
    scores = ensembles.held_out_scores([*early, *last])
    reported, equal = scores.half(1), np.full(MEMBERS, 1 / MEMBERS)
    best = int(scores.half(0).values[: len(early)].mean(axis=1).argmax())
    rows = iter(np.split(reported.values[len(early) :], [MEMBERS, 2 * MEMBERS]))
    of_ensemble, of_chain, of_others = rows
    values = {
        SINGLE: reported.values[len(early) - 1],
        STOPPED: reported.values[best],
        ENSEMBLE: replace(reported, values=of_ensemble).mixture(equal),
        CHAIN: replace(reported, values=of_chain).mixture(equal),
        LAST: of_chain[-1],
        DECAY: of_others[0],
        LOOP: of_others[1],
    }
    return {name: loss(reported, row) for name, row in values.items()}


def loss(scores: HeldOutScores, values: np.ndarray) -> float:
    """Return the loss in nats per token."""
    return float(scores.losses(values).sum() / scores.tokens.sum())


# --- report --------------------------------------------------------------------------------------


def over_seeds(values: np.ndarray) -> Estimate:
    """Return the mean over seeds with its interval."""
    return Estimate(float(values.mean()), *(mean_interval(values) or (None, None)))


def table(losses: list[dict[str, float]], curve: BaselineCurve | None, tokens: int) -> str:
    """Return the table for the documentation."""
    lines = [
        f"| method | loss, {len(losses)} seeds | minus the single model | "
        "minus the one stopped early | tokens of a single pass |",
        "|---|---|---|---|---|",
    ]
    by_name = {name: np.array([one[name] for one in losses]) for name in losses[0]}
    for name, values in by_name.items():
        cells = [name, shown(over_seeds(values))]
        for rival in (SINGLE, STOPPED):
            cells.append("" if name == rival else compared(values - by_name[rival]))
        cells.append(equivalent(float(values.mean()), curve, tokens))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def compared(differences: np.ndarray) -> str:
    """Return a difference with its interval and what may be said of it."""
    difference = over_seeds(differences)
    return f"{shown(difference)}: {ensembles.verdict(difference)}"


def equivalent(value: float, curve: BaselineCurve | None, tokens: int) -> str:
    """Say how many times as many tokens a model that reads each once needs for a loss."""
    if curve is None:
        return "no curve"
    if value < curve.losses[-1]:
        return f"over {curve.tokens[-1] / tokens:.1f} x"
    if value > curve.losses[0]:
        return f"under {curve.tokens[0] / tokens:.1f} x"
    return f"{curve.tokens_for(value) / tokens:.1f} x"


def shown(estimate: Estimate) -> str:
    """Return an estimate with three digits; with one seed it has no interval."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f} (one seed)"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
