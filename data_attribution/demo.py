"""The whole sentence on the planted corpus: trained, verified, opened, traced, and proved.

corpus -> token store -> run -> hooked model -> behaviour -> heads -> documents -> counterfactual.
Every stage is a call that a notebook would make; what exists already from an earlier demo is opened
and not computed again, and a training that was stopped goes on. What an earlier demo made of other
texts or by another recipe is refused: the page would describe a model that this code does not make.
"""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from data_attribution import attributing, duplicates, forgetting, indexing
from data_attribution.errors import DemoError, IndexMismatch, IndexMissing
from data_attribution.forgetting import STAYS, Forgetting
from data_attribution.sources import Sources
from interp import behaviours, detecting, emerging, hooked, patching, recalling
from interp.behaviours import Behaviour, Check
from interp.detecting import Copying
from interp.effects import Effects
from interp.recalling import Answer, Recall
from train import corpora, loop, manifests, numerics, recipes, runs, token_store, watching
from train.numerics import Numerics
from train.progress import Progress
from train.recipes import Recipe
from train.runs import Run
from train.token_store import TokenStore
from train.verifying import Verification


__all__ = ["Circuit", "Demo", "Traced", "play", "refuse_other", "trained"]

Stage = Callable[[str], AbstractContextManager[Progress]]
EXPOSURES = 16
# What the page claims at least: recall of facts read as often as that, IOI accuracy, scores of the
# two heads of induction, nats saved on the second copy.
RECALL, ACCURACY, HEAD, SAVED = 0.95, 0.95, 0.6, 3.0
N_FORGOTTEN = 9


@dataclass(frozen=True)
class Circuit:
    """The two heads of induction, found by score, and what they do for the loss."""

    copying: Copying
    induction: Float[Tensor, "layer head"]
    previous_token: Float[Tensor, "layer head"]


@dataclass(frozen=True)
class Traced:
    """One fact, its lexical sources, and what the truth table says of each of them."""

    fact: dict
    behaviour: Behaviour
    answers: tuple[Answer, ...]
    sources: Sources
    truth: tuple[str, ...]


@dataclass(frozen=True)
class Demo:
    """Everything the page shows."""

    run: Run
    verification: Verification
    recall: Recall
    circuit: Circuit
    ioi: Behaviour
    check: Check
    heads: Effects
    traced: Traced
    forgetting: Forgetting

    @property
    def failures(self) -> tuple[str, ...]:
        """The claims of the page that do not hold, with the numbers; empty when all do."""
        often = [one.seen.recall or 0.0 for one in self.recall.levels if one.exposures >= EXPOSURES]
        _, induction = detecting.best(self.circuit.induction)
        _, previous = detecting.best(self.circuit.previous_token)
        claims = (
            (f"recall at {EXPOSURES} or more exposures", min(often, default=0.0), RECALL),
            ("IOI accuracy", self.check.accuracy, ACCURACY),
            ("score of the best induction head", induction, HEAD),
            ("score of the best previous-token head", previous, HEAD),
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


def play(*, data: Path, out: Path, stage: Stage) -> Demo:
    """Run or reopen every stage.

    Args:
        data: Folder of token stores; the planted one is `data/planted`.
        out: Folder of runs; the demo's is `out/planted`.
        stage: Opens a progress bar for a named stage (`train.progress.bar`).
    """
    run = trained(data / "planted", out / "planted", stage)
    with stage("verifying") as progress:
        verification = run.verify(progress=progress)
    with stage("indexing") as progress:
        _indexed(run, progress)
    with torch.inference_mode():
        model = hooked.load(run)
        truth = run.store.truth or {}
        recall = recalling.by_exposure(model, truth, run.store.tokenizer)
        circuit = _circuit(model, run)
    ioi = behaviours.load("ioi", run, n_prompts=300)
    with stage("patching heads") as progress:
        heads = patching.heads(model, ioi, progress=progress)
    names = forgetting.removable(run, exposures=EXPOSURES, n=N_FORGOTTEN)
    traced = _traced(run, model, names[0])
    with stage("retraining without documents") as progress:
        forgot = forgetting.facts(run, names, progress=progress)
    check = behaviours.measure(model, ioi)
    return Demo(run, verification, recall, circuit, ioi, check, heads, traced, forgot)


def trained(
    store_path: Path,
    run_path: Path,
    stage: Stage,
    *,
    how: Numerics | None = None,
    init_seed: int = 0,
    order_seed: int = 0,
) -> Run:
    """The planted run of two seeds, trained, gone on with or opened; the order seed packs too.

    Raises:
        DemoError: What lies there is another store or another run.
    """
    if not (store_path / token_store.MANIFEST).exists():
        planted = corpora.open("planted")
        with stage("building the planted corpus") as progress:
            token_store.build(planted, out=store_path, seed=order_seed, progress=progress)
    store = token_store.open(store_path)
    recipe = recipes.resolve(recipes.PLANTED, store, init_seed=init_seed, order_seed=order_seed)
    refuse_other(store, run_path, recipe)
    with stage("training") as progress:
        if (run_path / manifests.NAME).exists():
            return loop.resume(run_path, store=store.path, progress=progress)
        how = how or numerics.choose()
        context = recipe.model.n_ctx
        watch = [*watching.of_store(store, context), *emerging.watches(store, context)]
        return loop.run(recipe, store, out=run_path, numerics=how, watch=watch, progress=progress)


def refuse_other(store: TokenStore, run_path: Path, recipe: Recipe) -> None:
    """Refuse a store of other texts than today's planted corpus, or a run by another recipe.

    About two seconds: the corpus is drawn again, and every text and the truth table are compared.

    Raises:
        DemoError: The line says what differs and which folders to remove.
    """
    difference = _other_corpus(store, recipe.order_seed)
    if difference:
        raise DemoError(f"{store.path} {difference}; remove {store.path} and {run_path}")
    differences = _other_run(store, run_path, recipe)
    if differences:
        raise DemoError(f"{run_path} is another run: {'; '.join(differences)}; remove {run_path}")


def _other_corpus(store: TokenStore, seed: int) -> str:
    """How the store differs from today's planted corpus; empty when it does not."""
    planted = corpora.open("planted")
    today = Counter((one.row, one.sha256) for one in planted.read())
    held = Counter(zip(store.rows.tolist(), duplicates.sha256s(store), strict=True))
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


def _other_run(store: TokenStore, run_path: Path, recipe: Recipe) -> list[str]:
    """How the run differs from what the recipe makes of the store; empty without a run."""
    if not (run_path / manifests.NAME).exists():
        return []
    run = runs.open(run_path)
    found = _flat(run.predicate.get("recipe", {"model": {}}))
    asked = _flat(recipes.to_dict(recipe))
    differences = [
        f"{key} {found.get(key, 'missing')}, not {asked.get(key, 'known')}"
        for key in sorted(found.keys() | asked.keys())
        if found.get(key) != asked.get(key)
    ]
    if run.removal:
        differences.append(f"{len(run.removal.documents)} documents left out")
    if run.predicate["data"]["fingerprint"] != store.fingerprint:
        differences.append(f"trained on another store than {store.path}")
    return differences


def _flat(recipe: dict) -> dict:
    model = {f"model.{key}": value for key, value in recipe["model"].items()}
    return {**{key: value for key, value in recipe.items() if key != "model"}, **model}


def _indexed(run: Run, progress: Progress) -> None:
    try:
        indexing.open(run.store)
    except (IndexMissing, IndexMismatch):  # an earlier version's index is built again, too
        indexing.build(run.store, progress=progress)


def _circuit(model: hooked.GPT, run: Run) -> Circuit:
    tokens = detecting.repeated_tokens(run)
    return Circuit(
        copying=detecting.copying(model, tokens),
        induction=detecting.induction_heads(model, tokens),
        previous_token=detecting.previous_token_heads(model, tokens),
    )


def _traced(run: Run, model: hooked.GPT, name: str) -> Traced:
    truth = run.store.truth or {}
    (fact,) = recalling.facts_named(truth, [name])
    behaviour = behaviours.load(f"fact:{fact['entity']}", run)
    sources = attributing.documents(run, behaviour, method="lexical", fold=False, limit=24)
    answers = recalling.of_facts(model, [fact], truth, run.store.tokenizer)
    labels = {row: "states it" for row in fact["documents"]}
    labels |= {row: "distractor" for row in fact["distractors"]}
    said = tuple(labels.get(int(run.store.rows[one]), "neither") for one in sources.documents)
    return Traced(fact, behaviour, answers, sources, said)
