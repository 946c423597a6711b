"""Whether one flipped bit in any file of a run, a store or a cache can change an answer silently.

    python benchmarks/bit_flips.py                       2,400 flips, a minute
    python benchmarks/bit_flips.py --flips 20000 --seed 1

A small store, its two indexes, a watched run with an average of its weights, a run with nanoGPT's
order, an imported run, gradients, activations and sealed results are made in a temporary folder.
Each trial flips one bit of one file as an ordinary write does (the time of modification is set),
opens what the file belongs to as users do, and asks for everything that can be read from it. The
trial ends in one of four ways:

    refused     a typed error of one line
    unchanged   the answer is that of the whole file (the flipped bit is not read)
    silent      another answer, and no error
    traceback   an error of another type, or of several lines

Kinds of files take turns, so each has the same number of flips. Left out are HTML pages, which
nothing reads. Exit 1 when a trial is silent or ends in a traceback.
"""

import argparse
import hashlib
import json
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import machine
import numpy as np
import torch

from data_attribution import attribution, gradients, lexical, token_index
from data_attribution.errors import AttributionError
from interp import activations, behaviours, lenses
from interp.errors import InterpError
from interp.patching import Effects
from interp.patching import heads as patched_heads
from train import convert, runs, trainer
from train.data import Corpus, Document, build_store, document_sha256s, open_store
from train.errors import TrainError
from train.model import GPTConfig
from train.numerics import Numerics
from train.recipes import Recipe


TYPED = (TrainError, InterpError, AttributionError)
OUTCOMES = ("refused", "unchanged", "silent", "traceback")
PAIRS, WITHIN, SITES = 12, ("L0H1", "L0.mlp"), ["L0.mlp", "L0.resid_post"]
NUMERICS = Numerics("cpu", "fp32", 1)


@dataclass(frozen=True)
class World:
    """The files that are flipped, each with its kind and the question that reads it."""

    folder: Path
    files: dict[Path, tuple[str, Callable[[], str]]]

    @property
    def kinds(self) -> dict[str, list[Path]]:
        """The files of each kind."""
        found: dict[str, list[Path]] = {}
        for path, (kind, _) in self.files.items():
            found.setdefault(kind, []).append(path)
        return found


# --- the world -----------------------------------------------------------------------------------


def build_world(folder: Path) -> World:
    """Make every kind of file in a folder, and say which question reads it."""
    store = folder / "store"
    draw = np.random.default_rng(0)
    texts = [f"k{number % PAIRS} is v{number % PAIRS}" for number in draw.permutation(PAIRS * 20)]
    texts += [" ".join(f"w{word}" for word in draw.integers(40, size=20)) for _ in range(60)]
    texts += [" ".join(["w0"] * 300)] * 2  # counts above what one byte holds
    documents = [Document(f"made/{row}", one, "made", "0", row) for row, one in enumerate(texts)]
    corpus = Corpus(
        "made", "made", "0", lambda: iter(documents), tokenizer="word", truth=lambda: {"is": PAIRS}
    )
    opened = build_store(corpus, out=store, held_out=0.1)
    token_index.build(opened, shards=2)
    lexical.build_inverted_index(opened)
    recipe = Recipe(
        name="flips",
        model=GPTConfig(n_layers=1, n_heads=2, d_model=32, n_ctx=16, d_vocab=1, init_std=0.1),
        batch_size=8, steps=160, lr=1e-2, min_lr=1e-3, warmup_steps=10, checkpoint_every=80,
        optimizer_every=80, ema_decay=0.9,
    )  # fmt: skip
    watch = trainer.store_tasks(opened, 16)
    run = trainer.train(recipe, opened, out=folder / "run", numerics=NUMERICS, watch=watch)
    drawn = replace(recipe, name="drawn", steps=4, sampler="nanogpt", ema_decay=0.0)
    trainer.train(drawn, opened, out=folder / "drawn", numerics=NUMERICS)
    convert.import_run(convert.export_run(run, out=folder / "hf"), out=folder / "imported")
    options = {"within": WITHIN, "rank": 4, "metric": "plain", "log_odds": None}
    gradients.build_gradient_store(run, out=folder / "gradients", **options)
    model = run.load()
    windows = activations.document_windows(opened, context=16, documents=range(150))
    activations.write_store(
        model, windows, sites=SITES, out=folder / "activations", shard_bytes=60_000
    )
    _write_results(run, folder / "results")
    return World(folder, dict(_files(folder)))


def _write_results(run: runs.Run, folder: Path) -> None:
    folder.mkdir()
    model, encode = run.load(), run.store.tokenizer.encode
    ids = {letter: [int(encode(f"{letter}{one}")[0]) for one in range(PAIRS)] for letter in "kv"}
    (word,) = encode("is").tolist()
    clean = torch.tensor([[run.store.eot, key, word] for key in ids["k"]])
    answers = torch.tensor(ids["v"])
    behaviour = behaviours.Behaviour(
        "which value", clean=clean, corrupt=clean.roll(1, 0), answer=answers, foil=answers.roll(1)
    )
    behaviour.save(folder / "behaviour.json")
    patched_heads(model, behaviour).save(folder / "effects.json")
    attribution.documents(run, behaviour, methods="lexical", limit=20).save(folder / "sources.json")
    lens = lenses.fit_tuned_lens(model, lenses.held_out_tokens(run.store, 16), steps=2)
    lens.save(folder / "lens.json")


def _files(folder: Path) -> Iterator[tuple[Path, tuple[str, Callable[[], str]]]]:
    """Yield every file with its kind and question; `drawn` gives its schedule alone."""
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        place, *inner = path.relative_to(folder).parts
        if path.name.startswith(".") or place == "hf":
            continue
        if place == "drawn" and path.name != runs.SCHEDULE:
            continue
        nested = place == "store" and len(inner) > 1
        area = inner[0] if nested else place
        ask = {
            "store": ask_store, "index": ask_index, "bm25": ask_inverted_index, "run": ask_run,
            "drawn": ask_order, "imported": ask_import, "gradients": ask_gradients,
            "activations": ask_activations, "results": ask_result,
        }[area]  # fmt: skip
        name = re.sub(r"^shard-\d+", "shard", path.name)
        yield path, (f"{area}/{name}", lambda ask=ask, path=path: ask(folder, path))


# --- the questions -------------------------------------------------------------------------------


def digest(*parts: object) -> str:
    """Return a digest of arrays, tensors and what `repr` shows whole, however they are nested."""
    whole = hashlib.sha256()
    _add(whole, parts)
    return whole.hexdigest()


def _add(whole: "hashlib._Hash", part: object) -> None:
    if isinstance(part, dict):
        part = sorted(part.items())
    if isinstance(part, list | tuple):
        for one in part:
            _add(whole, one)
    elif isinstance(part, torch.Tensor):
        whole.update(part.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(part, np.ndarray):
        whole.update(np.ascontiguousarray(part).tobytes())
    else:
        whole.update(repr(part).encode())


def ask_store(folder: Path, _: Path) -> str:
    """Read every token, every column of the table, texts and the truth table."""
    store = open_store(folder / "store")
    documents = [store.document(index) for index in range(0, store.n_documents, 7)]
    return digest(
        store.tokens, store.starts, store.lengths, store.rows, list(document_sha256s(store)),
        [vars(one) for one in documents], [store.text(one.index) for one in documents],
        store.truth, store.index_of("made/7"), store.manifest,
    )  # fmt: skip


def ask_index(folder: Path, _: Path) -> str:
    """Find, count and continue every word of the vocabulary."""
    index = token_index.open(open_store(folder / "store"))
    words = [*(f"k{pair} is" for pair in range(PAIRS)), *(f"w{word}" for word in range(40))]
    return digest(
        [(one.count, one.held_out) for one in index.counts(words)],
        [(hit.document, hit.offset) for word in words for hit in index.find(word, every=True)],
        [(one.text, one.count) for word in words[:PAIRS] for one in index.next_tokens(word)],
        [np.sort(np.concatenate(list(index.places(row)))) for row in ([1], [2], [3])],
        index.maximal_spans("k3 is v3 w4"),
        [part.suffixes for part in index.parts],
    )


def ask_inverted_index(folder: Path, _: Path) -> str:
    """Read the documents of every token."""
    inverted = lexical.open_inverted_index(open_store(folder / "store"))
    tokens = range(inverted.store.vocab_size)
    held = [(one.edges, one.documents, one.counts) for one in inverted.held(tokens)]
    return digest(inverted.frequency(tokens), *(part for several in held for part in several))


def ask_run(folder: Path, _: Path) -> str:
    """Read manifest, ledger, log, weights, averages and optimizers, and what was read when."""
    run = runs.open(folder / "run")
    states = [run.load(step, weights=kind) for step in run.steps for kind in ("trained", "ema")]
    resumable = [one.step for one in run.saved if one.resumable]
    optimizers = [trainer.load_state(run, step, run.numerics) for step in resumable]
    return digest(
        run.manifest, run.ledger, run.watched.looks if run.watched else None, run.steps,
        *(tensor for model in states for tensor in model.state_dict().values()),
        [trainer.optimizer_state(one.model, one.optimizer) for one in optimizers],
        [runs.read_counters(run.path, one) for one in run.saved],
        run.documents_read(3), run.steps_reading(5), run.store.tokenizer.sha256,
    )  # fmt: skip


def ask_order(folder: Path, _: Path) -> str:
    """Read which windows were drawn."""
    order = runs.open(folder / "drawn").order
    return digest(*(order.starts(step) for step in range(4)))


def ask_import(folder: Path, _: Path) -> str:
    """Read weights and tokenizer of the imported run."""
    run = runs.open(folder / "imported")
    words = run.known_tokenizer().encode("k3 is v3")
    return digest(run.manifest, words, *run.load().state_dict().values())


def ask_gradients(folder: Path, _: Path) -> str:
    """Read every gradient."""
    run = runs.open(folder / "run")
    stored = gradients.open_gradient_store(folder / "gradients", run=run)
    return digest(stored.documents, *(piece.values for piece in stored.pieces()))


def ask_activations(folder: Path, _: Path) -> str:
    """Read every row and every value."""
    stored = activations.open_store(folder / "activations", store=open_store(folder / "store"))
    places = stored.find(range(100), [0] * 100)
    return digest(stored.rows(), places, *(stored.read(site) for site in stored.sites))


def ask_result(_: Path, path: Path) -> str:
    """Read a sealed result."""
    if path.name == "behaviour.json":
        found = behaviours.read(path)
        return digest(found.clean, found.corrupt, found.answer, found.foil, found.description)
    if path.name.startswith("lens."):
        lens = lenses.load_tuned_lens(path.with_name("lens.json"))
        sides = (lens.translators, lens.control)
        return digest(*(part for one in sides for part in (one.weight, one.bias)), lens.fit)
    kind = {"effects.json": Effects, "sources.json": attribution.Sources}[path.name]
    return digest(json.dumps(kind.load(path).to_dict(), default=repr))


# --- the trials ----------------------------------------------------------------------------------


def flip_bits(
    world: World, n_flips: int, seed: int, report: Callable[[str], None] = print
) -> dict[str, Counter[str]]:
    """Flip one bit after another, and count by kind of file how the questions end."""
    draw = np.random.default_rng(seed)
    kinds, found = world.kinds, {kind: Counter() for kind in world.kinds}
    sound = {path: ask() for path, (_, ask) in world.files.items()}
    for number in range(n_flips):
        kind = list(kinds)[number % len(kinds)]
        path = kinds[kind][draw.integers(len(kinds[kind]))]
        whole = path.read_bytes()
        bit = int(draw.integers(max(len(whole), 1) * 8))
        if not whole:
            continue  # an empty file has no bits
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            outcome, said = _outcome(world.files[path][1], sound[path])
        finally:
            path.write_bytes(whole)
        found[kind][outcome] += 1
        if outcome in OUTCOMES[2:]:
            report(f"{outcome}: bit {bit} of {path.relative_to(world.folder)}: {said}")
    return found


def _outcome(ask: Callable[[], str], sound: str) -> tuple[str, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a warning is no refusal, and must not be needed
            answer = ask()
    except TYPED as error:
        lines = str(error).splitlines()
        return ("refused" if len(lines) == 1 else "traceback"), f"{type(error).__name__}: {lines}"
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"
    return ("unchanged", "") if answer == sound else ("silent", "another answer")


def main(arguments: list[str] | None = None) -> int:
    """Flip bits and print how the questions end; return the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--flips", type=int, default=2400, help="number of flips")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        world = build_world(Path(folder))
        begin = time.perf_counter()
        found = flip_bits(world, options.flips, options.seed)
        seconds = time.perf_counter() - begin
    print(machine.described("torch", "numpy", "xxhash"))
    print(f"{'file':<44}{'flips':>7}" + "".join(f"{name:>11}" for name in OUTCOMES))
    total: Counter[str] = sum(found.values(), Counter())
    for kind, counts in [*found.items(), ("all", total)]:
        row = "".join(f"{counts[name]:>11}" for name in OUTCOMES)
        print(f"{kind:<44}{counts.total():>7}{row}")
    print(f"{seconds / max(total.total(), 1):.3f} s a flip")
    return 1 if total["silent"] or total["traceback"] else 0


if __name__ == "__main__":
    sys.exit(main())
