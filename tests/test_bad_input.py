"""Whatever is wrong with the input is one line with a number for the shell, and leaves nothing."""

import gzip
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_attribution.cli import app
from interp.behaviours import Behaviour
from tests.worlds import disks
from tests.worlds.commands import left, refused
from train import recipes, runs, storage
from train.data import Corpus, Document, build_store, token_store


pytestmark = pytest.mark.integration
# A time of writing inside would give the test another name in every process.
HALF_A_GZIP = gzip.compress(b'{"text": "a"}\n', mtime=0)[:-6]
EXECUTABLE = Path(sys.executable).with_name("openbook")


@pytest.fixture
def build(openbook, tmp_path):
    """`build(name, bytes)`: a file of these bytes, offered to `corpus build`."""

    def call(name: str, content: bytes, *options: object):
        source = tmp_path / name
        source.write_bytes(content)
        ended = openbook(
            "corpus", "build", source, "--out", tmp_path / "store", "--tokenizer", "word", *options
        )
        if ended.code:
            assert left(tmp_path) == [name]
        return ended

    return call


# --- corpora -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("none.jsonl", b"", 2, "holds no document with text in it: there are none"),
        ("empty.jsonl", b'{"text": ""}\n', 2, "holds no document with text in it: all 1 are empty"),
        ("latin.txt", "caf\xe9 au lait".encode("latin-1"), 3, "not UTF-8 (byte 0xe9 at offset 3)"),
        ("latin.jsonl", b'{"text": "caf\xe9"}\n', 3, "latin.jsonl: line 1 is not UTF-8"),
        ("other.jsonl", b'{"body": "a"}\n', 2, "choose one that holds text with --text-field"),
        ("list.jsonl", b"[1, 2]\n", 2, "line 1 holds a list"),
        ("half.jsonl.gz", HALF_A_GZIP, 3, "is cut off or changed"),
        ("table.csv", b"text\na\n", 2, "unknown file type '.csv'"),
        ("table.parquet", b"PAR1 and no more", 3, "not readable as parquet"),
    ],
)
def test_a_corpus_that_cannot_be_read(build, name, content, code, words):
    refused(build(name, content), code, words)


def test_a_single_document_of_100_mb(build):
    ended = build("large.txt", b"word " * (20 << 20))
    refused(ended, 2, "larger than 64 MiB", "--max-document-mb")


def test_an_empty_folder_and_no_folder(openbook, tmp_path):
    (tmp_path / "empty").mkdir()
    out = ("--out", tmp_path / "store")
    refused(openbook("corpus", "build", tmp_path / "empty", *out), 2, "no files of a known type")
    refused(openbook("corpus", "build", "openwebtxt", *out), 2, "did you mean 'openwebtext'?")
    assert left(tmp_path) == ["empty"]


def test_the_text_of_the_separator_is_text_like_any_other(openbook, tmp_path):
    source, store = tmp_path / "texts.jsonl", tmp_path / "store"
    source.write_text('{"text": "one <|endoftext|> two"}\n{"text": "three"}\n')
    ended = openbook("corpus", "build", source, "--out", store, "--tokenizer", "gpt2")
    assert (ended.code, ended.err) == (0, "")
    opened = token_store.open_store(store)
    assert opened.n_documents == 2
    assert opened.text(0) == "one <|endoftext|> two"
    assert int((opened.tokens == opened.eot).sum()) == 3  # in front, and behind each document


def test_a_store_is_not_written_over(build, openbook, tmp_path):
    assert build("texts.jsonl", b'{"text": "a b"}\n').code == 0
    before = left(tmp_path)
    again = openbook("corpus", "build", tmp_path / "texts.jsonl", "--out", tmp_path / "store")
    refused(again, 2, "exists already")
    assert left(tmp_path) == before


# --- stores that do not fit ----------------------------------------------------------------------


def test_a_store_of_another_tokenizer_than_the_runs(
    openbook, tiny_run, lookup_store, lookup_behaviour, tmp_path
):
    other = ("--store", lookup_store.path)
    for command in (
        ("run", "documents", tiny_run.path, 0),
        ("patch", tiny_run.path, lookup_behaviour),
        ("index", "find", lookup_store.path, "k3", "--run", tiny_run.path),
    ):
        given = () if command[0] == "index" else other
        ended = openbook(*command, *given)
        refused(ended, 2, str(lookup_store.path), lookup_store.fingerprint[:12], "was trained on")
    fixed = openbook("train", "gpt2-124m", lookup_store.path, "--out", tmp_path / "run")
    refused(fixed, 2, "needs a vocabulary of 50257", "(word tokenizer)")
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("recipe", "options", "code", "words"),
    [
        ("text-small", "--set model.n_heads=3", 2, "d_model 128 is no multiple of 3 heads"),
        ("text-small", "--set model.preset=no", 2, "no architecture is called 'no'"),
        ("text-small", "--set model.causal=false", 2, "allow_reading_ahead=true"),
        ("text-small", "--set optimizer=muon --set muon_momentum=1.0", 2, "muon_momentum=1.0"),
        ("text-small", "--set late_batch=1", 2, "an order of 0 windows of 256 tokens"),
        ("text-small", "--set model.d_mlp=2000000000", 4, "out of memory: "),
        ("text-small", "--set model.d_mlp=4611686018427387", 2, "d_mlp is 4.61e+15; it is at most"),
        ("text-small", "--set model.n_layers=1000000000000", 2, "it is at most 10,000"),
        ("text-small", "--set model.d_model=268435456", 2, "larger than any memory"),
        ("text-small", "--seed 1" + "0" * 30, 2, "init_seed is a number of more than 64 bits"),
        ("text-small", "--steps 1" + "0" * 30, 2, "steps is a number of more than 64 bits"),
        ("text-small", "--threads 1000000", 2, "1000000 threads are asked for; choose from 1"),
        ("text-small", "--device cuda", 2, "this machine has no CUDA device"),
        ("gpt2-124m", "", 2, "needs a vocabulary of 50257"),
    ],
)
def test_a_training_that_is_refused_leaves_no_folder(
    openbook, tmp_path, store_with_late_words, recipe, options, code, words
):
    path, how = store_with_late_words.path, "--precision fp32 --threads 1"
    if "--device" not in options:
        how += " --device cpu"
    if "--threads" in options:
        how = how.replace("--threads 1", "")
    ended = openbook("train", recipe, path, "--out", tmp_path / "r", *how.split(), *options.split())
    refused(ended, code, words)
    assert not (tmp_path / "r").exists()


@pytest.fixture(scope="module")
def store_with_late_words(tmp_path_factory):
    """1,000 words and nine late ones: enough for a window of 256 tokens, but not for a late one."""
    lines = ["w0 w1 w2 w3 w4 w5 w6 w7 w8 w9"] * 100
    documents = [Document(f"l@0/{row}", text, "l", "0", row) for row, text in enumerate(lines)]
    documents.append(Document("l@0/100", "w0 w1 w2 w3 w4 w5 w6 w7 w8", "l", "0", 100, late=True))
    corpus = Corpus("late", "late", "0", lambda: iter(documents), tokenizer="word")
    return build_store(corpus, out=tmp_path_factory.mktemp("late") / "store")


def test_a_context_longer_than_the_store(openbook, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "a b c"}\n')
    store = tmp_path / "store"
    openbook("corpus", "build", tmp_path / "texts.jsonl", "--out", store, "--tokenizer", "word")
    ended = openbook("train", "text-small", store, "--out", tmp_path / "run")
    context = recipes.TEXT_SMALL.model.n_ctx
    words = f"a window of {context} tokens and one target does not fit the 5 training tokens"
    refused(ended, 2, words)
    assert not (tmp_path / "run").exists()


def test_a_behaviour_saved_for_another_vocabulary(openbook, tiny_run, tmp_path):
    path = tmp_path / "other.json"
    pair = torch.tensor([[0, 5000], [0, 5001]])
    answer = torch.tensor([1, 2])
    Behaviour("other", pair, pair.flip(0), answer, answer.flip(0)).save(path)
    for command in (("patch",), ("counterfactual", "--without", 3)):
        ended = openbook(command[0], tiny_run.path, path, *command[1:])
        refused(ended, 2, "holds token 5001, and the vocabulary of the model has 171")
    assert not (tiny_run.path / "counterfactuals").exists()


def test_a_document_table_that_was_overwritten(openbook, tiny_store, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(tiny_store.path, store)
    table = store / "documents.parquet"
    size = table.stat().st_size
    table.write_bytes(b"PAR1" + b"\0" * (size - 8) + b"PAR1")
    show = ("corpus", "show", store, "--document", 3)
    refused(openbook(*show), 3, f"{table}: its sha256 is not the one in store.json")
    manifest = storage.read_sealed(store / "store.json")
    manifest["files"][table.name] = storage.sha256_file(table)
    storage.write_json(store / "store.json", storage.seal(manifest))
    refused(openbook(*show), 3, f"{table}: not readable as")


# --- names, places and numbers -------------------------------------------------------------------


def test_unknown_names_are_answered_with_the_nearest(openbook, tiny_store, tiny_run, tmp_path):
    ended = openbook("train", "plantd", tiny_store.path, "--out", tmp_path / "run")
    refused(ended, 2, "no recipe is called 'plantd', did you mean 'planted'?")
    ended = openbook("patch", tiny_run.path, "inductoin")
    refused(ended, 2, "there is no behaviour 'inductoin', did you mean 'induction'")
    ended = openbook("trace", "sentence", tiny_run.path, "w1", "--method", "lexcal")
    refused(ended, 2, "'lexcal', did you mean 'lexical'?")
    ended = openbook(
        "train", "planted", tiny_store.path, "--out", tmp_path / "run", "--device", "x"
    )
    refused(ended, 2, "device is 'auto', 'cpu', 'cuda'")
    assert left(tmp_path) == []


def test_folders_of_another_kind(openbook, tiny_store, tiny_run, lookup_behaviour, tmp_path):
    run, store, nothing = tiny_run.path, tiny_store.path, tmp_path / "nothing"
    file = tmp_path / "file.txt"
    file.write_text("text")
    for code, words, command in (
        (2, f"there is no token store at {run}", ("corpus", "show", run)),
        (2, f"there is no token store at {run}", ("index", "build", run)),
        (2, f"there is no token store at {nothing}", ("index", "count", nothing, "w1")),
        (2, f"there is no token store at {run}", ("train", "planted", run, "--out", nothing)),
        (2, f"no run at {store}", ("run", "show", store)),
        (2, f"no run at {nothing}", ("run", "verify", nothing)),
        (2, "neither a run", ("patch", store, "ioi")),
        (2, "neither a run", ("detect", nothing)),
        (3, "a run is a folder", ("run", "show", file)),
        (2, "nothing to import at", ("run", "import", nothing, "--out", tmp_path / "run")),
        (3, "config.json: the file is missing", ("run", "import", store, "--out", nothing)),
        (2, "exists", ("run", "export", run, "--out", store)),
        (2, f"no run at {nothing}", ("run", "resume", nothing)),
    ):
        refused(openbook(*command), code, words)
    at = (tiny_run.path, lookup_behaviour)
    for words, options in (
        (f"to {tmp_path}: a folder", ("patch", *at, "--out", tmp_path)),
        ("no folder", ("patch", *at, "--out", nothing / "effects.json")),
        ("no folder", ("patch", *at, "--plot", nothing / "effects.html")),
        ("there is nothing", ("counterfactual", *at, "--without", nothing)),
        ("there is a folder", ("counterfactual", *at, "--without", tmp_path)),
        ("nearest is 8", ("patch", *at, "--step", 9)),
        ("cannot be replayed", ("run", "replay", tiny_run.path, "--from", 9, "--to", 99)),
    ):
        refused(openbook(*options), 2, words)
    assert left(tmp_path) == ["file.txt"]


def test_a_file_that_may_not_be_read_or_made(openbook, tmp_path, monkeypatch):
    source = tmp_path / "texts.jsonl"
    source.write_text('{"text": "a b"}\n')

    def deny(self, *_args, **_kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    # Whoever runs the tests may be allowed everything, so the system's refusal is acted.
    monkeypatch.setattr(Path, "open", deny)
    ended = openbook("corpus", "build", source, "--out", tmp_path / "store")
    refused(ended, 2, f"{source}: permission denied")
    monkeypatch.undo()
    assert left(tmp_path) == ["texts.jsonl"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["patch"],
        ["nothing"],
        ["patch", "run", "ioi", "--over", "haeds"],
        ["patch", "run", "ioi", "--over", "heads:2"],
        ["patch", "run", "ioi", "--over", "mlps:N"],
        ["patch", "run", "ioi", "--over", "mlps:0"],
        ["ablate", "run", "ioi", "--standin", "mean:3"],
        ["circuit", "run", "ioi", "--method", "eap:3"],
        ["counterfactual", "run", "ioi"],
        ["patch", "run", "ioi", "--prompts", "0"],
        ["train", "planted", "store", "--out", "run", "--steps", "-1"],
        ["run", "documents", "run", "one"],
        ["run", "steps", "run"],
        ["trace", "documents", "run"],
        ["trace", "text", "run"],
        ["index", "plan"],
    ],
)
def test_misuse_exits_2(openbook, arguments):
    ended = openbook(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "Usage: openbook" in ended.err


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (MemoryError("Unable to allocate 7.45 GiB"), 4, "out of memory: Unable to"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
         4, "you tried to allocate 9 bytes"),
        (OSError(28, "No space left on device", "/disk/file"), 4, "/disk/file: no space left"),
        (OSError(5, "Input/output error", "/disk/file"), 4, "/disk/file: input/output error"),
        (OSError(30, "Read-only file system", "/disk/file"), 4, "/disk/file: read-only file"),
        (MemoryError(), 4, "out of memory: no size is known"),
        (OverflowError("cannot fit 'int'"), 2, "too large to compute with (cannot fit 'int')"),
    ],
)  # fmt: skip
def test_memory_and_disk_that_end_are_exit_4(
    openbook, monkeypatch, tiny_store, raised, code, words
):
    def fail(*_args, **_kwargs):
        raise raised

    monkeypatch.setattr(token_store, "open_store", fail)
    refused(openbook("corpus", "show", tiny_store.path), code, words)


@pytest.mark.parametrize("again", [False, True])
def test_control_c_ends_without_a_traceback_and_a_second_one_too(
    openbook, monkeypatch, tiny_store, again
):
    set_to = []
    monkeypatch.setattr(signal, "signal", lambda *given: set_to.append(given))

    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(token_store, "open_store", interrupted)
    if again:  # while the line that says so is written
        monkeypatch.setattr(app.typer, "echo", interrupted)
    ended = openbook("corpus", "show", tiny_store.path)
    assert (ended.code, ended.out) == (130, "")
    assert "Traceback" not in ended.err
    assert (app.INTERRUPTED in ended.err) is not again
    assert (signal.SIGINT, signal.SIG_DFL) in set_to


def test_an_error_that_nobody_foresaw_is_shown_whole(openbook, monkeypatch, tiny_store):
    def fail(*_args, **_kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(token_store, "open_store", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        openbook("corpus", "show", tiny_store.path)


# --- training that goes wrong --------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(
    openbook, tiny_store, tiny_recipe, tmp_path
):
    wild = tmp_path / "wild.toml"
    wild.write_text(recipes.to_toml(replace(tiny_recipe, lr=1e25, min_lr=1e25, warmup_steps=3)))
    out, options = tmp_path / "run", ("--threads", 1, "--precision", "fp32")
    ended = openbook("train", wild, tiny_store.path, "--out", out, *options)
    refused(ended, 1, "is not a number; the first bad tensor is the ", "last good checkpoint")
    run = runs.open(out)
    stopped = len(run.ledger)
    assert (
        f"the model after {stopped} steps is" in ended.err or f"of step {stopped} is" in ended.err
    )
    assert run.steps == [step for step in (0, 1, 2, 4, 8) if step < stopped]
    state = runs.read_counters(out, run.saved_at(None))
    assert math.isfinite(state["fixed_loss"])
    assert all(parameter.isfinite().all() for parameter in run.load().parameters())
    assert [name for name in left(tmp_path) if "partial" in name] == []
    again = openbook("run", "resume", out)
    assert (again.code, again.err) == (1, ended.err)


def test_a_run_stopped_before_its_first_checkpoint_is_not_called_damaged(
    openbook, tiny_run, tmp_path
):
    run = tmp_path / "run"
    run.mkdir()
    started = {**tiny_run.manifest, "subject": []}
    started["predicate"] = {**started["predicate"], "finished": False}
    storage.write_json(run / "manifest.json", storage.seal(started))
    (run / "ledger.jsonl").write_text("")
    shown = openbook("run", "show", run, "--store", tiny_run.store.path)
    assert shown.code == 0
    assert "steps        0 of 24\n" in shown.out
    ended = openbook("patch", run, "induction", "--store", tiny_run.store.path)
    refused(ended, 2, "has no checkpoint yet")


# --- pickles -------------------------------------------------------------------------------------


class Bomb:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_never_opened(openbook, tiny_run, tmp_path):
    ran = tmp_path / "ran"
    bomb = pickle.dumps(Bomb(ran))
    hugging, run = tmp_path / "hf", tmp_path / "run"
    hugging.mkdir()
    (hugging / "config.json").write_text('{"model_type": "gpt2"}')
    (hugging / "pytorch_model.bin").write_bytes(bomb)
    (tmp_path / "ckpt.pt").write_bytes(bomb)
    torch.save({"model": Bomb(ran)}, tmp_path / "zipped.pt")
    shutil.copytree(tiny_run.path, run)
    (run / "checkpoints/step-00000024/model.safetensors").write_bytes(bomb)
    before = left(tmp_path)
    out = ("--out", tmp_path / "imported")
    for command, words in (
        (("run", "import", hugging, *out), "pytorch_model.bin: a pickle, which can run code"),
        (("run", "import", tmp_path / "ckpt.pt", *out), "ckpt.pt: torch's restricted reader"),
        (("run", "import", tmp_path / "zipped.pt", *out), "zipped.pt: torch's restricted reader"),
        (("patch", hugging, "ioi"), "pytorch_model.bin: a pickle"),
        (("patch", tmp_path / "ckpt.pt", "ioi"), "ckpt.pt: a pickle"),
        (("patch", run, "ioi", "--store", tiny_run.store.path), "this is a pickle"),
        (("run", "export", run, *out, "--store", tiny_run.store.path), "this is a pickle"),
    ):
        refused(openbook(*command), 3, words)
    assert not ran.exists()
    assert left(tmp_path) == before


# --- a disk that is full -------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path) -> Iterator:
    """`small_disk(kib)`: an empty disk of that size."""
    with ExitStack() as mounted:
        count = iter(range(100))
        yield lambda kib: mounted.enter_context(
            disks.small_disk(tmp_path / f"disk{next(count)}", f"{kib}k")
        )


@pytest.mark.parametrize("kib", [32, 512])
def test_a_disk_that_fills_while_a_corpus_is_built(openbook, small_disk, tmp_path, kib):
    source, disk = tmp_path / "texts.jsonl", small_disk(kib)
    rows = (f'{{"text": "{"w x y z " * 40}{row}"}}\n' for row in range(4000))
    source.write_text("".join(rows))
    ended = openbook("corpus", "build", source, "--out", disk / "store", "--tokenizer", "word")
    refused(ended, 4, "the disk is full while writing", "MiB left")
    assert left(disk) == []


def test_a_disk_that_fills_while_a_model_is_trained(openbook, tiny_store, small_disk):
    """Wherever it fills: before the first checkpoint, between two, inside the ledger."""
    options = ("--steps", 40, "--batch-size", 2, "--threads", 1, "--precision", "fp32")
    resumable = 0
    for kib in (8, 2000, 12000, 20000):
        out = small_disk(kib) / "run"
        ended = openbook("train", "text-small", tiny_store.path, "--out", out, *options)
        refused(ended, 4, "the disk is full while writing", "MiB left")
        assert [name for name in left(out.parent) if "partial" in name] == []
        if (out / "checkpoints/index.json").exists():
            run = runs.open(out)
            assert run.load().origin.step == run.steps[-1] == run.saved[-1].step
            resumable += 1
    assert resumable >= 2


def test_a_training_on_a_full_disk_goes_on_when_there_is_room(openbook, tiny_store, small_disk):
    options = ("--steps", 4, "--batch-size", 2, "--threads", 1, "--precision", "fp32")
    disk = small_disk(12000)
    ended = openbook("train", "text-small", tiny_store.path, "--out", disk / "run", *options)
    refused(ended, 4, "the disk is full")
    subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
    again = openbook("run", "resume", disk / "run")
    assert (again.code, again.err) == (0, "")
    assert runs.open(disk / "run").finished


def test_the_executable_ends_like_the_function(tmp_path):
    command = [EXECUTABLE, "run", "show", str(tmp_path / "nothing")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == (
        f"error: no run at {tmp_path / 'nothing'}: no manifest.json there; `openbook train` makes "
        f"one; {tmp_path} exists and holds nothing\n"
    )


def test_control_characters_never_reach_the_terminal(openbook, tmp_path):
    ended = openbook(
        "corpus", "build", tmp_path / "no\x1b[31m\x07\u202esuch", "--out", tmp_path / "s"
    )
    refused(ended, 2, r"no\x1b[31m\x07U+202Esuch")
    assert not set("\x1b\x07\u202e") & set(ended.err + ended.out)
