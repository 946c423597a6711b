"""What every test may ask for: reference data, runs that are trained in a second, the command.

`tiny_run` has read 120 documents of random words; `lookup_run` has learned twelve pairs by heart,
so that it does something that can be patched, traced and unlearned.
"""

import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from tests import shape_checks
from tests.worlds.commands import Ended


shape_checks.install()  # before the first import of a package
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("openbook", deadline=None)
hypothesis.settings.load_profile("openbook")
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
# A test that asks for one of these trains a model or reads what lies beside the checkout.
NO_UNIT = {"tiny_run", "lookup_run", "lookup_behaviour", "shared_data"}
SLOW_TIMEOUT = 1500


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say of which kind every test is, and put the files with slow tests first.

    Several processes then work on the long files from the beginning, and none of them is left
    alone with one at the end. Within a file the order stays.
    """
    slow_files = set()
    for item in items:
        if item.get_closest_marker("slow"):
            slow_files.add(item.path)
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))
        elif NO_UNIT & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.integration)
    items.sort(key=lambda item: item.path not in slow_files)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real corpora, which lies beside the checkout and is never part of it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no reference data at {SHARED_DATA.parent.name}/{SHARED_DATA.name}")
    return SHARED_DATA


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> Iterator[None]:
    """A shell that starts pytest with `&` has Ctrl-C ignored, by the commands of tests too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tests share the machine: more threads than cores makes them many times slower."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def killed() -> str:
    """The text of `killed.py`, to stand in front of code that kills what it does."""
    return (Path(__file__).parent / "killed.py").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def planted_corpus():
    """The planted corpus of content seed 0, drawn once: the shape checker makes that 6 seconds."""
    from train.data import planted

    return planted.planted_corpus(0)


@pytest.fixture(scope="session")
def other_planted_corpus():
    """The planted corpus of content seed 1, on which nothing was chosen."""
    from train.data import planted

    return planted.planted_corpus(1)


@pytest.fixture(scope="session")
def planted_words(planted_corpus):
    """The tokenizer of the planted corpus."""
    from train.data import train_words

    return train_words([document.text for document in planted_corpus.read()])


@pytest.fixture(scope="session")
def released_run(tmp_path_factory):
    """The planted run that comes with openbook, unpacked: a trained model without training."""
    from train import released

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBOOK_CACHE", str(tmp_path_factory.mktemp("released")))
        return released.open("planted")


@pytest.fixture
def make_store(tmp_path) -> Callable[..., object]:
    """`make_store(texts, **options of build_store)`; each call makes another store."""
    from tests.worlds.stores import store_of

    made = iter(range(1000))
    return lambda texts, **options: store_of(tmp_path / f"store{next(made)}", texts, **options)


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory):
    """120 documents of 1 to 40 of 50 words, stream layout, a tenth held out."""
    from train.data import Corpus, Document, build_store

    draw = np.random.default_rng(0)

    def read():
        for row in range(120):
            words = draw_rows[row]
            yield Document(f"tiny@0/{row}", " ".join(words), "tiny", "0", row)

    draw_rows = [
        [f"w{draw.integers(50)}" for _ in range(draw.integers(1, 40))] + [f"d{row}"]
        for row in range(120)
    ]
    corpus = Corpus(name="tiny", source="tiny", revision="0", read=read, tokenizer="word")
    return build_store(corpus, out=tmp_path_factory.mktemp("data") / "tiny", held_out=0.1)


@pytest.fixture(scope="session")
def tiny_recipe():
    """One layer of 16, 24 steps, a checkpoint every 8."""
    from train.model import GPTConfig
    from train.recipes import Recipe

    return Recipe(
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


@pytest.fixture(scope="session")
def one_thread_numerics():
    """fp32 on one thread: what the tests train with."""
    from train.numerics import Numerics

    return Numerics("cpu", "fp32", 1)


@pytest.fixture(scope="session")
def tiny_run(tiny_store, tiny_recipe, one_thread_numerics, tmp_path_factory):
    """The recipe trained on the store."""
    from train import trainer

    out: Path = tmp_path_factory.mktemp("runs") / "tiny"
    return trainer.train(tiny_recipe, tiny_store, out=out, numerics=one_thread_numerics)


@pytest.fixture(scope="session")
def muon_run(tiny_store, tiny_recipe, one_thread_numerics, tmp_path_factory):
    """The recipe with Muon, trained on the store."""
    from train import trainer

    recipe = replace(tiny_recipe, optimizer="muon")
    out: Path = tmp_path_factory.mktemp("runs") / "muon"
    return trainer.train(recipe, tiny_store, out=out, numerics=one_thread_numerics)


PAIRS = 12


@pytest.fixture(scope="session")
def lookup_store(tmp_path_factory):
    """240 documents, "k3 is v3" and its like: each of twelve pairs twenty times."""
    from train.data import Corpus, Document, build_store

    order = np.random.default_rng(0).permutation(PAIRS * 20)

    def read():
        for row, number in enumerate(order):
            pair = int(number) % PAIRS
            yield Document(f"lookup@0/{row}", f"k{pair} is v{pair}", "lookup", "0", row)

    corpus = Corpus(name="lookup", source="lookup", revision="0", read=read, tokenizer="word")
    return build_store(corpus, out=tmp_path_factory.mktemp("data") / "lookup")


@pytest.fixture(scope="session")
def lookup_run(lookup_store, tiny_recipe, one_thread_numerics, tmp_path_factory):
    """A run that has learned the twelve pairs."""
    from train import trainer
    from train.model import GPTConfig

    recipe = replace(
        tiny_recipe,
        name="lookup",
        model=GPTConfig(n_layers=1, n_heads=2, d_model=32, n_ctx=16, d_vocab=1, init_std=0.1),
        steps=160,
        batch_size=8,
        warmup_steps=10,
        checkpoint_every=40,
        optimizer_every=40,
    )
    out: Path = tmp_path_factory.mktemp("runs") / "lookup"
    return trainer.train(recipe, lookup_store, out=out, numerics=one_thread_numerics)


@pytest.fixture(scope="session")
def lookup_behaviour(lookup_store, tmp_path_factory) -> Path:
    """Which value a key has, as a file."""
    import torch

    from interp.behaviours import Behaviour

    ids = {
        letter: [int(lookup_store.tokenizer.encode(f"{letter}{pair}")[0]) for pair in range(PAIRS)]
        for letter in "kv"
    }
    between = int(lookup_store.tokenizer.encode("is")[0])
    clean = torch.tensor([[lookup_store.eot, key, between] for key in ids["k"]])
    values = torch.tensor(ids["v"])
    path: Path = tmp_path_factory.mktemp("behaviours") / "lookup.json"
    Behaviour(
        name="lookup",
        clean=clean,
        corrupt=clean.roll(1, dims=0),
        answer=values,
        foil=values.roll(1),
        candidates=tuple(ids["v"]),
    ).save(path)
    return path


@pytest.fixture
def openbook(capsys, monkeypatch) -> Callable[..., Ended]:
    """`openbook("run", "show", path)`: the command in this process, as the executable runs it.

    On a slow machine a command takes longer than the ten seconds after which progress is logged,
    so no line of progress is ever due.
    """
    from data_attribution.cli.app import main
    from train import progress

    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", math.inf)

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["openbook", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
        return Ended(int(code or 0), *capsys.readouterr())

    return call
