"""Write `golden/`, one small file or folder of every kind that is saved, for test_golden_files.py.

    OMP_NUM_THREADS=1 .venv/bin/python tests/make_golden_files.py

The models are those of conftest.py: one that has read 120 documents of random words, and one that
has learned twelve pairs by heart. `golden/expected.json` holds values of the objects in memory, not
of the files. Making them again by later code would prove nothing, so an existing folder is refused.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from test_golden_files import (
    GOLDEN,
    RESULTS,
    facts,
    ladder_ends,
    lineage_query,
    plain,
    run_facts,
)

from data_attribution import attribution, lexical, token_index, tracing
from data_attribution.counterfactuals import Retrainings, retraining
from data_attribution.gradients import build_gradient_store
from interp import (
    attribution_patching,
    causal_abstraction,
    circuits,
    lenses,
    metrics,
    models,
    patching,
    probing,
    steering,
    training_dynamics,
)
from interp.activations import document_windows, write_store
from interp.behaviours import Behaviour
from interp.circuits import mib_format
from interp.components import parse
from interp.heads import decompose_logits, detector_scores, repeated_tokens
from interp.probing import ProbeTask
from train import convert, ensembles, ladder, runs, storage, trainer
from train.data import Corpus, Document, TokenStore, build_store, open_store
from train.model import GPTConfig
from train.numerics import Numerics
from train.recipes import Recipe
from train.runs import Run


PAIRS = 12
HOW = Numerics("cpu", "fp32", 1)
TINY = Recipe(
    name="tiny",
    model=GPTConfig(n_layers=1, n_heads=2, d_model=16, n_ctx=16, d_vocab=1),
    batch_size=4,
    steps=24,
    lr=1e-2,
    min_lr=1e-3,
    warmup_steps=2,
    checkpoint_every=8,
    optimizer_every=16,
)
LOOKUP = replace(
    TINY,
    name="lookup",
    model=GPTConfig(n_layers=1, n_heads=2, d_model=32, n_ctx=16, d_vocab=1, init_std=0.1),
    steps=160,
    batch_size=8,
    warmup_steps=10,
    checkpoint_every=40,
    optimizer_every=40,
)
Said = dict[str, Any]


def main() -> None:
    """Make everything in a temporary folder, and put it in its place when it is whole."""
    if GOLDEN.exists():
        sys.exit(f"{GOLDEN} exists already; what it proves is that older code wrote it")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        golden, aside = Path(place) / "golden", Path(place) / "aside"
        (golden / "results").mkdir(parents=True)
        aside.mkdir()
        said = stores(golden) | run_of_random_words(golden) | learned_by_heart(golden, aside)
        said |= of_several_runs(golden)
        for lock in golden.rglob(".*lock"):
            lock.unlink()
        said["files"] = {
            path.relative_to(golden).as_posix(): storage.sha256_file(path)
            for path in sorted(golden.rglob("*"))
            if path.is_file()
        }
        storage.write_json(golden / "expected.json", said)
        shutil.copytree(golden, GOLDEN)


# --- token stores --------------------------------------------------------------------------------


def stores(golden: Path) -> Said:
    """A stream of words with index and inverted file; packed rows of byte pairs with a truth."""
    store = build_store(tiny_corpus(), out=golden / "store", held_out=0.1)
    packed = build_store(
        lookup_corpus(layout="packed", truth=lambda: {"pairs": PAIRS}, late=True),
        out=golden / "packed",
        tokenizer="bpe",
        vocab_size=262,
        row_length=16,
        held_out=0.1,
    )
    index, inverted = token_index.build(store), lexical.build_inverted_index(store)
    queries = ["w3", " ".join(store.text(0).split()[:2]), "d5"]
    return {
        "store": store_facts(store),
        "packed": store_facts(packed),
        "tokenizers": {
            "word": plain(store.tokenizer.encode("w3 w7 d5")),
            "bpe": plain(packed.tokenizer.encode("k3 is v3")),
        },
        "index": {
            "queries": queries,
            "counts": [plain(one.to_dict()) for one in index.counts(queries)],
            "hits": [list(hit) for hit in index.find("w3", limit=None, every=True)],
        },
        "postings": {
            "entries": inverted.n_entries,
            "frequency": plain(inverted.frequency(range(store.vocab_size))),
        },
    }


def store_facts(store: TokenStore) -> Said:
    """Which store it is, and three of its documents."""
    at = [0, 7, store.n_documents - 1]
    counts = [store.n_documents, store.n_tokens, store.train_tokens]
    return {
        "fingerprint": store.fingerprint,
        "tokenizer": store.tokenizer.sha256,
        "counts": [*counts, store.early_tokens, store.vocab_size, store.eot],
        "about": [store.layout, store.row_length, store.truth],
        "at": at,
        "documents": [plain(store.document(one)) for one in at],
        "texts": [store.text(one) for one in at],
    }


def tiny_corpus() -> Corpus:
    """120 documents of 1 to 40 of 50 words."""
    draw = np.random.default_rng(0)
    texts = [
        " ".join([*(f"w{draw.integers(50)}" for _ in range(draw.integers(1, 40))), f"d{row}"])
        for row in range(120)
    ]

    def read() -> Iterator[Document]:
        for row, text in enumerate(texts):
            yield Document(f"tiny@0/{row}", text, "tiny", "0", row)

    return Corpus("tiny", "tiny", "0", read, tokenizer="word")


def lookup_corpus(*, late: bool = False, **about: Any) -> Corpus:
    """240 documents, "k3 is v3" and its like; the second half late when asked."""
    order = np.random.default_rng(0).permutation(PAIRS * 20)

    def read() -> Iterator[Document]:
        for row, number in enumerate(order):
            text = f"k{number % PAIRS} is v{number % PAIRS}"
            yield Document(
                f"lookup@0/{row}", text, "lookup", "0", row, late=late and row >= len(order) // 2
            )

    return Corpus("lookup", "lookup", "0", read, tokenizer="word", **about)


# --- a run of random words, and what is kept of it ------------------------------------------------


def run_of_random_words(golden: Path) -> Said:
    """A watched run, one of nanoGPT's order, a stopped one, a retrained one, an import."""
    store = open_store(golden / "store")
    watch = trainer.store_tasks(store, TINY.model.n_ctx)
    run = trainer.train(TINY, store, out=golden / "run", numerics=HOW, watch=watch)
    log = run.watched
    assert log is not None
    short = replace(TINY, name="short", steps=1, checkpoint_every=1, sampler="nanogpt")
    nanogpt = trainer.train(short, store, out=golden / "nanogpt", numerics=HOW)
    late = [one for one in range(100) if len(run.steps_reading(one))]
    late = [one for one in late if run.steps_reading(one)[0] >= 16][:2]
    retrained = retraining.retrain(run, late, out=run.path / "counterfactuals")
    said = {
        "run": run_facts(run),
        "nanogpt": run_facts(nanogpt),
        "retrained": run_facts(retrained),
        "watched": {
            "looks": plain(log.looks),
            "watches": [one.name for one in log.watches],
            "steps": list(log.steps),
        },
    }
    said |= stopped(golden, store) | imported(golden, run)
    return said | kept_of(run, golden, late)


def stopped(golden: Path, store: TokenStore) -> Said:
    """A run that Ctrl-C ended behind a checkpoint, and how it would have gone on."""
    recipe = replace(TINY, name="stopped", steps=4, checkpoint_every=2, optimizer_every=4)

    def stop(what: str, done: int, total: int | None) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        trainer.train(recipe, store, out=golden / "stopped", numerics=HOW, progress=stop)
    ended = golden.parent / "unbroken"
    whole = trainer.train(recipe, store, out=ended, numerics=HOW)
    resumed = {
        "id": whole.id,
        "steps": whole.steps,
        "digests": [row.digest for row in whole.ledger],
        "losses": [row.loss for row in whole.ledger],
    }
    return {"stopped": run_facts(runs.open(golden / "stopped")), "resumed": resumed}


def imported(golden: Path, run: Run) -> Said:
    """A Hugging Face folder, and the run that is made of it."""
    convert.export_run(run, out=golden / "huggingface")
    found = convert.import_run(golden / "huggingface", out=golden / "imported")
    tokens = run.store.tokens[:8].astype(np.int64)[None]
    logits = run.load()(torch.from_numpy(tokens))[0, -1]
    about = {"id": found.id, "tokenizer": run.tokenizer.sha256 if run.tokenizer else ""}
    return {"imported": {**about, "tokens": tokens.tolist(), "logits": logits.tolist()}}


def kept_of(run: Run, golden: Path, documents: list[int]) -> Said:
    """Gradients, activations, rows over training, weights without documents, a traced text."""
    gradients = build_gradient_store(run, within=("L0H1", "L0.mlp"), rank=4)
    some = [7, 3, 90]
    sites = ("L0.resid_post", "L0H1")
    source = document_windows(run.store, context=16, documents=range(8))
    activations = write_store(
        run.load(), source, sites=sites, out=golden / "activations", shard_bytes=8000
    )
    asked = training_dynamics.analysis("detectors", run, n_prompts=8)
    trajectory = training_dynamics.over_training(run, asked)
    again = Retrainings(run, "loss", 16, golden / "retrainings")
    traced = tracing.trace_text(run, run.store.text(3) + " w1 w2 w3")
    traced.save(golden / "results" / "generation.json")
    said = {
        "gradients": {
            "n": len(gradients.documents),
            "blocks": plain(gradients.blocks),
            "documents": some,
            "values": plain(gradients.features(some).values),
        },
        "activations": {
            "about": [activations.sites, len(activations), str(activations.dtype)],
            "rows": plain(activations.rows(3, 6)),
            "values": activations.read("L0.resid_post", 3, 6).tolist(),
        },
        "emergence": {
            "analysis": asked.name,
            "parameters": dict(asked.parameters),
            "points": plain(trajectory.points),
        },
        "retrainings": {
            "mode": "loss",
            "first": 16,
            "documents": documents,
            "norm": again.without(documents).embed.weight.norm().item(),
        },
        "generation": {
            name: plain(traced.to_dict()[name])
            for name in ("text", "n_tokens", "covered", "spans", "provenance")
        },
    }
    return said | saved(golden, {"trajectory": trajectory.reading(run, documents)})


def of_several_runs(golden: Path) -> Said:
    """An ensemble of two checkpoints, a lineage of one stage, and a ladder before its trainings."""
    with chdir(golden.parent):  # the rows of an ensemble name the folders of its runs
        run = runs.open(Path("golden") / "run")
        evaluation = ensembles.evaluate(ensembles.ensemble_of([(run, 8), run]))
        (stages,) = attribution.across_stages(run, [lineage_query(run)], limit=3)
    stages.save(golden / "results" / "lineage.json")
    start, end = ladder_ends()
    begun = ladder.begin(
        start, end, open_store(golden / "store"), out=golden / "ladder", seeds=2, numerics=HOW
    )
    shutil.copy(begun.path / "ladder.json", golden / "results" / "ladder.json")
    shutil.rmtree(begun.path)
    said = {"lineage": plain(stages.to_dict()), "ladder": [one.name for one in begun.trials]}
    return said | saved(golden, {"ensemble": evaluation})


# --- results -------------------------------------------------------------------------------------


def saved(golden: Path, results: dict[str, Any]) -> Said:
    """Save results by their kinds, and say what will be asked of them."""
    for kind, result in results.items():
        result.save(golden / "results" / f"{kind}.json")
    return {kind: facts(result, RESULTS[kind][1]) for kind, result in results.items()}


def learned_by_heart(golden: Path, aside: Path) -> Said:
    """One result of every class, of the run that has learned twelve pairs by heart."""
    store = build_store(lookup_corpus(), out=aside / "store")
    token_index.build(store)
    run = trainer.train(LOOKUP, store, out=aside / "run", numerics=HOW)
    behaviour = lookup_behaviour(store)
    circuit = circuits.find(models.load(run), behaviour, n_edges=6)
    circuits.write_mib(golden / "results" / "circuit.mib.json", circuit)
    said = {"circuit.mib": facts(mib_format.EdgeFile.of(circuit), RESULTS["circuit.mib"][1])}
    results = {
        "behaviour": behaviour,
        "behaviour_of_several": of_several(behaviour),
        "behaviour_of_groups": of_groups(behaviour),
        "circuit": circuit,
        "sources": attribution.documents(run, behaviour, limit=5),
        **of_patching(run, behaviour),
        **of_lenses(run, behaviour),
        **of_labels(run, behaviour),
    }
    return said | saved(golden, results)


def lookup_behaviour(store: TokenStore) -> Behaviour:
    """Which value a key has."""
    ids = {
        letter: [int(store.tokenizer.encode(f"{letter}{pair}")[0]) for pair in range(PAIRS)]
        for letter in "kv"
    }
    between = int(store.tokenizer.encode("is")[0])
    clean = torch.tensor([[store.eot, key, between] for key in ids["k"]])
    values = torch.tensor(ids["v"])
    return Behaviour(
        name="lookup",
        clean=clean,
        corrupt=clean.roll(1, dims=0),
        answer=values,
        foil=values.roll(1),
        subject=(1, 2),
        candidates=tuple(ids["v"]),
        description="which value a key has",
        tokenizer=store.tokenizer.sha256,
    )


def of_several(behaviour: Behaviour) -> Behaviour:
    """The same with two answers of each prompt, weighted: its own value, and the one after next."""
    several = zip(behaviour.answer.tolist(), behaviour.answer.roll(2).tolist(), strict=True)
    return replace(behaviour, answers=tuple({own: 2.0, other: 0.5} for own, other in several))


def of_groups(behaviour: Behaviour) -> Behaviour:
    """The same with every two prompts in a group."""
    return replace(behaviour, groups=tuple(row // 2 for row in range(behaviour.n_prompts)))


def of_patching(run: Run, behaviour: Behaviour) -> dict[str, Any]:
    """Patches, estimates of them, ablations, steering and interchanges."""
    model = models.load(run)
    both = [metrics.logit_difference(behaviour), metrics.probability(behaviour)]
    estimate = attribution_patching.attribution(model, behaviour, positions="each")
    places = [parse(one) for one in ("L0H0", "L0H1", "L0.mlp")]
    half = PAIRS // 2
    vector = steering.difference(
        model, behaviour.clean[:half], behaviour.clean[half:], place="L0.resid_post"
    )
    one, other = (
        causal_abstraction.crossed(part, n_pairs=20)
        for part in causal_abstraction.halves(behaviour)
    )
    return {
        "effects": patching.heads(model, behaviour, positions="each", metric=both),
        "agreement": attribution_patching.verify(model, behaviour, estimate),
        "bound": attribution_patching.missed(model, behaviour, estimate, draws=400),
        "ablation": patching.ablate(model, behaviour, standin="resample", draws=2),
        "trace": patching.causal_trace(model, behaviour, damage="noised", draws=2),
        "contrast": patching.informative(model, behaviour.clean, behaviour.corrupt, places),
        "steering_vector": vector,
        "steering_effects": steering.curve(model, vector, behaviour, n_random=2),
        "interchanges": causal_abstraction.interchange(
            model, causal_abstraction.crossed(behaviour, n_pairs=20), ["L0H0", "L0.mlp@1"]
        ),
        "alignment": causal_abstraction.align(
            model, one, other, place="L0.resid_post@2", rank=2, steps=3
        ),
        "head_scores": detector_scores(model, repeated_tokens(run, n=4, length=6), "induction"),
    }


def of_lenses(run: Run, behaviour: Behaviour) -> dict[str, Any]:
    """A tuned lens, how well it reads, and what the logit lens reads."""
    model = models.load(run)
    windows = lenses.training_tokens(run.store, run.config.n_ctx)
    lens = lenses.fit_tuned_lens(model, windows, steps=3)
    return {
        "tuned_lens": lens,
        "lens_evaluation": lenses.evaluate_lens(model, lens, windows),
        "readings": lenses.logit(model, behaviour),
        "contributions": decompose_logits(model, behaviour),
    }


def of_labels(run: Run, behaviour: Behaviour) -> dict[str, Any]:
    """A task of labelled tokens, a probe for it, and what the behaviour is without the label."""
    model, times = models.load(run), 5
    names = [f"k{pair}" for pair in range(PAIRS)] * times
    task = ProbeTask(
        name="small key",
        tokens=behaviour.clean.repeat(times, 1),
        positions=torch.full((PAIRS * times,), 2),
        labels=tuple(str(int(name[1:]) < PAIRS // 2) for name in names),
        types=tuple(names),
        description="whether the key is one of the first six",
    )
    return {
        "probe_task": task,
        "probe": probing.linear(model, task, controls=2),
        "erasure": probing.erasure_effect(model, behaviour, task, layer=0, placebos=2),
    }


if __name__ == "__main__":
    main()
