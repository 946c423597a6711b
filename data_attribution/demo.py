"""The whole sentence on the planted corpus: trained, verified, opened, traced, and proved.

corpus -> token store -> run -> hooked model -> behaviour -> heads -> documents -> counterfactual.
Every stage is a call that a notebook would make; what exists already from an earlier demo is opened
and not computed again, and a training that was stopped goes on.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from data_attribution import attributing, forgetting, indexing
from data_attribution.forgetting import Forgetting
from data_attribution.sources import Sources
from interp import behaviours, detecting, hooked, patching, recalling
from interp.behaviours import Behaviour, Check
from interp.detecting import Copying
from interp.effects import Effects
from interp.recalling import Answer, Recall
from train import corpora, loop, numerics, recipes, token_store
from train.progress import Progress
from train.runs import Run
from train.verifying import Verification


__all__ = ["Circuit", "Demo", "Traced", "play"]

Stage = Callable[[str], AbstractContextManager[Progress]]
EXPOSURES = 16
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


def play(*, data: Path, out: Path, stage: Stage) -> Demo:
    """Run or reopen every stage.

    Args:
        data: Folder of token stores; the planted one is `data/planted`.
        out: Folder of runs; the demo's is `out/planted`.
        stage: Opens a progress bar for a named stage (`train.progress.bar`).
    """
    run = _trained(data / "planted", out / "planted", stage)
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


def _trained(store_path: Path, run_path: Path, stage: Stage) -> Run:
    if not (store_path / "store.json").exists():
        with stage("building the planted corpus") as progress:
            token_store.build(corpora.open("planted"), out=store_path, progress=progress)
    store = token_store.open(store_path)
    with stage("training") as progress:
        if (run_path / "manifest.json").exists():
            return loop.resume(run_path, store=store.path, progress=progress)
        return loop.run(
            recipes.PLANTED,
            store,
            out=run_path,
            numerics=numerics.choose(),
            progress=progress,
        )


def _indexed(run: Run, progress: Progress) -> None:
    if not (run.store.path / "index").exists():
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
    sources = attributing.documents(run, behaviour, limit=24)
    answers = recalling.of_facts(model, [fact], truth, run.store.tokenizer)
    labels = {row: "states it" for row in fact["documents"]}
    labels |= {row: "distractor" for row in fact["distractors"]}
    said = tuple(labels.get(int(run.store.rows[one]), "neither") for one in sources.documents)
    return Traced(fact, behaviour, answers, sources, said)
