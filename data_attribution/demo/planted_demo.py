"""The demo: the whole pipeline on the planted corpus, from training to retraining.

corpus -> token store -> run -> hooked model -> behaviour -> heads -> documents -> counterfactual.
Every stage is a call that a notebook would make. Results of an earlier demo are opened instead of
computed again, and an interrupted training is resumed. Files that an earlier demo made from other
texts or with another recipe are refused, because the page would then describe a model that this
code does not make.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from data_attribution import attribution, counterfactuals, evaluation
from data_attribution.attribution import Sources
from data_attribution.counterfactuals import STAYS, Forgetting
from data_attribution.demo import stages
from data_attribution.demo.code_demo import Formation, finished_formation
from data_attribution.demo.stages import DemoPlan, Stage
from data_attribution.errors import DemoError
from interp import behaviours, models, patching, training_dynamics
from interp.behaviours import Behaviour, Check
from interp.heads import (
    Copying,
    best_head,
    copying_loss,
    induction_heads,
    previous_token_heads,
    repeated_tokens,
)
from interp.patching import Effects
from interp.training_dynamics import Answer, Recall
from train import numerics, recipes, released, runs, trainer
from train.data import (
    STORE_MANIFEST,
    TokenStore,
    build_store,
    document_sha256s,
    open_corpus,
    open_store,
)
from train.model import GPT
from train.numerics import Numerics
from train.recipes import Recipe
from train.runs import Run
from train.short_repr import short_repr
from train.trainer import Verification


__all__ = [
    "Circuit",
    "Demo",
    "TracedFact",
    "plan",
    "play",
    "play_released",
    "refuse_other",
    "trained",
]

EXPOSURES = 16
# Lower bounds of the page's claims: recall of facts in at least EXPOSURES documents, IOI
# accuracy, score of the best induction head, score of the best previous-token head, and nats saved
# on the second copy.
RECALL, ACCURACY, INDUCTION, PREVIOUS, SAVED = 0.95, 0.95, 0.75, 0.5, 3.0
N_FORGOTTEN = 9
# Time of everything except training, in units of training steps.
LOOKING = 250


@dataclass(frozen=True)
class Circuit:
    """Induction and previous-token scores of every head, and the loss that copying saves."""

    copying: Copying
    induction: Float[Tensor, "layer head"]
    previous_token: Float[Tensor, "layer head"]

    __repr__ = short_repr


@dataclass(frozen=True)
class TracedFact:
    """One fact, its lexical sources, and the label of each source in the truth table."""

    fact: dict
    behaviour: Behaviour
    answers: tuple[Answer, ...]
    sources: Sources
    truth: tuple[str, ...]

    __repr__ = short_repr


@dataclass(frozen=True)
class Demo:
    """All results that the page shows.

    Attributes:
        real_text: How an induction head formed on Python's sources, if `openbook demo-code` has
            trained its run in the same folder.
    """

    run: Run
    verification: Verification
    recall: Recall
    circuit: Circuit
    ioi: Behaviour
    check: Check
    heads: Effects
    traced: TracedFact
    forgetting: Forgetting
    real_text: Formation | None

    __repr__ = short_repr

    @property
    def released(self) -> bool:
        """Tell whether the run came with openbook and was not trained here."""
        return bool(self.run.predicate.get("released"))

    @property
    def failures(self) -> tuple[str, ...]:
        """Return the claims of the page that do not hold, with their numbers; empty if all hold."""
        levels = [*self.recall.levels, *([self.recall.late] if self.recall.late else [])]
        often = [one.seen.recall or 0.0 for one in levels if one.exposures >= EXPOSURES]
        _, induction = best_head(self.circuit.induction)
        _, previous = best_head(self.circuit.previous_token)
        claims = (
            (f"recall of facts in {EXPOSURES} or more documents", min(often, default=0.0), RECALL),
            ("IOI accuracy", self.check.accuracy, ACCURACY),
            ("score of the best induction head", induction, INDUCTION),
            ("score of the best previous-token head", previous, PREVIOUS),
            ("nats saved on the second copy", self.circuit.copying.gap, SAVED),
        )
        failed = [
            f"{name} is {value:.2f}, and at least {asked:g} is claimed"
            for name, value, asked in claims
            if not value >= asked
        ]
        if self.verification.ok and not self.verification.reaches("within tolerance"):
            failed.append(f"replayed steps are {self.verification.level}, not within tolerance")
        if not self.forgetting.fell:
            failed.append("the facts without their documents do not fall to those never stated")
        if not self.forgetting.stayed:
            failed.append(f"recall of facts that keep their documents falls below {STAYS}")
        return tuple(failed)


def plan(*, out: Path) -> DemoPlan:
    """Return what `play` has left to do, after timing a few training steps; takes a few seconds."""
    recipe = recipes.PLANTED
    return stages.plan_run(
        recipe,
        out / "planted",
        retrainings=2,
        retrained_steps=recipe.steps - recipe.late_begin,
        looking=LOOKING,
        corpus="the planted corpus",
        removed="the documents of some facts and of others",
    )


def play(*, data: Path, out: Path, stage: Stage, how: Numerics | None = None) -> Demo:
    """Run every stage, or reopen its earlier result.

    Args:
        data: Folder of token stores; the planted one is `data/planted`.
        out: Folder of runs; the demo's is `out/planted`.
        stage: Function that opens a progress bar for a named stage (`train.progress.bar`).
        how: Numerics of a new training; default: chosen on this machine.
    """
    run = trained(data / "planted", out / "planted", stage, how=how)
    with stage("verifying") as progress:
        verification = trainer.verify(run, progress=progress)
    looked = _looked_at(run, stage)
    names = counterfactuals.removable_facts(run, exposures=EXPOSURES, n=N_FORGOTTEN)
    with stage("retraining without documents") as progress:
        # One control instead of three: each is a training that everyone who tries the demo pays.
        forgot = counterfactuals.forget_facts(run, names, controls=1, progress=progress)
    real_text = finished_formation(out)
    return Demo(run, verification, forgetting=forgot, real_text=real_text, **looked)


def play_released(*, out: Path, stage: Stage) -> Demo:
    """Show the run that ships with openbook, with the retraining results that ship with it.

    Nothing is trained: the results of the retrained runs are read from the released files.

    Args:
        out: Folder of runs; the released run is unpacked at `out/released`.
        stage: Function that opens a progress bar for a named stage.
    """
    with stage("unpacking the released run") as progress:
        run = released.open("planted", folder=out / "released", progress=progress)
    with stage("verifying") as progress:
        verification = trainer.verify(run, spans=1, progress=progress)
    looked = _looked_at(run, stage)
    forgot = Forgetting.from_dict(released.measured("planted", "forgetting"))
    real_text = finished_formation(out)
    return Demo(run, verification, forgetting=forgot, real_text=real_text, **looked)


def _looked_at(run: Run, stage: Stage) -> dict[str, Any]:
    """Measure everything that needs no retraining."""
    with stage("indexing") as progress:
        stages.build_index(run, progress)
    with torch.inference_mode():
        model = models.load(run)
        truth = run.store.truth or {}
        recall = training_dynamics.recall_by_exposure(model, truth, run.store.tokenizer)
        circuit = _circuit(model, run)
    ioi = behaviours.load("ioi", run, n_prompts=300)
    with stage("patching heads") as progress:
        heads = patching.heads(model, ioi, progress=progress)
    names = counterfactuals.removable_facts(run, exposures=EXPOSURES, n=N_FORGOTTEN)
    return {
        "recall": recall,
        "circuit": circuit,
        "ioi": ioi,
        "check": behaviours.measure(model, ioi),
        "heads": heads,
        "traced": _traced(run, model, names[0]),
    }


def trained(
    store_path: Path,
    run_path: Path,
    stage: Stage,
    *,
    how: Numerics | None = None,
    init_seed: int = 0,
    order_seed: int = 0,
    content_seed: int = 0,
) -> Run:
    """Return the planted run for three seeds: train, resume or open it.

    The order seed also determines how the corpus is packed into the token store.

    Raises:
        DemoError: The folders hold another store or another run.
    """
    if not (store_path / STORE_MANIFEST).exists():
        planted = open_corpus("planted", seed=content_seed)
        with stage("building the planted corpus") as progress:
            build_store(planted, out=store_path, seed=order_seed, progress=progress)
    store = open_store(store_path)
    recipe = recipes.resolve(recipes.PLANTED, store, init_seed=init_seed, order_seed=order_seed)
    refuse_other(store, run_path, recipe, content_seed)
    with stage("training") as progress:
        if (run_path / runs.MANIFEST).exists():
            return trainer.resume(run_path, store=store.path, progress=progress)
        how = how or numerics.choose()
        context = recipe.model.n_ctx
        watch = [
            *trainer.store_tasks(store, context),
            *training_dynamics.behaviour_tasks(store, context),
        ]
        return trainer.train(
            recipe, store, out=run_path, numerics=how, watch=watch, progress=progress
        )


def refuse_other(store: TokenStore, run_path: Path, recipe: Recipe, content_seed: int = 0) -> None:
    """Refuse a store that is not today's planted corpus, or a run trained with another recipe.

    Takes about two seconds: the corpus is drawn again, and every text and the truth table are
    compared.

    Raises:
        DemoError: The message says what differs and which folders to remove.
    """
    difference = _other_corpus(store, recipe.order_seed, content_seed)
    if difference:
        raise DemoError(f"{store.path} {difference}; remove {store.path} and {run_path}")
    differences = stages.run_differences(store, run_path, recipe)
    if differences:
        raise DemoError(f"{run_path} is another run: {'; '.join(differences)}; remove {run_path}")


def _other_corpus(store: TokenStore, seed: int, content_seed: int) -> str:
    """Return how the store differs from today's planted corpus; empty if it does not."""
    planted = open_corpus("planted", seed=content_seed)
    today = Counter((one.row, one.sha256) for one in planted.read())
    held = Counter(zip(store.rows.tolist(), document_sha256s(store), strict=True))
    if held != today:
        return (
            f"holds {held.total():,} documents of another corpus, {(held & today).total():,} of "
            f"them among the {today.total():,} of today's planted corpus"
        )
    if planted.truth and store.truth != json.loads(json.dumps(planted.truth())):
        return "holds the texts of today's planted corpus with another truth table"
    if store.manifest["seed"] != seed:
        return f"was packed by seed {store.manifest['seed']}, not {seed}"
    return ""


def _circuit(model: GPT, run: Run) -> Circuit:
    tokens = repeated_tokens(run)
    return Circuit(
        copying=copying_loss(model, tokens),
        induction=induction_heads(model, tokens),
        previous_token=previous_token_heads(model, tokens),
    )


def _traced(run: Run, model: GPT, name: str) -> TracedFact:
    truth = run.store.truth or {}
    (fact,) = training_dynamics.facts_named(truth, [name])
    behaviour = behaviours.load(f"fact:{fact['entity']}", run)
    sources = attribution.documents(run, behaviour, methods="lexical", fold=False, limit=24)
    answers = training_dynamics.recall_of_facts(model, [fact], truth, run.store.tokenizer)
    labels = evaluation.planted_labels(run, behaviour.name)
    said = tuple(labels.get(one, "neither") for one in sources.documents)
    return TracedFact(fact, behaviour, answers, sources, said)
