"""The readers of files, each with a good file, the kinds of bad ones, and the way it is opened.

`prepare` writes the good files of all readers into one folder; `run_case` puts a bad one in place
of one of them and opens it in a process with limits, by the function that outsiders call or by the
command.
"""

import contextlib
import io
import json
import lzma
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from random import Random

import torch

from data_attribution import attribution, gradients, lexical, token_index
from data_attribution.cli import app
from data_attribution.counterfactuals import Retrainings
from interp import activations, behaviours, circuits, model_evaluation, models, probing
from tests.test_golden_files import GOLDEN, RESULTS, ladder_ends, run_facts
from tests.worlds.evaluation_files import evaluation_files
from tests.worlds.hostile_files import BOMBS, CONTENTS, PLACES, adopt
from tests.worlds.limited_process import Outcome, call
from train import convert, ladder, recipes, runs, trainer
from train.data import load_tokenizer, open_corpus, open_store, tuning, verify_store
from train.data.tokenizers import train_bpe
from train.model import GPTConfig, init_gpt


__all__ = ["GOOD", "READERS", "Case", "Reader", "cases", "prepare", "run_case"]

GOOD = "as it is"
HEAVY = (
    "datasets", "gguf", "pandas", "pyarrow.compute", "pyarrow.parquet", "sklearn.linear_model",
    "torch._dynamo", "transformers",
)  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """A reader of one kind of file.

    Attributes:
        path: The file, relative to the folder of all good files.
        format: Key of `CONTENTS`.
        open: Opens it, given the folder of all files.
        bomb: Key of `BOMBS` if the file is compressed.
    """

    name: str
    path: str
    format: str
    open: Callable[[Path], object]
    bomb: str = ""


@dataclass(frozen=True)
class Case:
    """A bad file for a reader: a kind of `CONTENTS` or `PLACES`, or `bomb`, and a seed."""

    reader: Reader
    kind: str
    seed: int

    def __str__(self) -> str:
        return f"{self.reader.name}: {self.kind} ({self.seed})"


# --- readers -------------------------------------------------------------------------------------


def _corpus(path: Path) -> None:
    for _ in open_corpus(str(path)).read():
        pass


def _store(name: str) -> Callable[[Path], None]:
    def opened(root: Path) -> None:
        store = open_store(root / name)
        verify_store(store)
        _ = store.truth, store.document(0), store.text(0), store.tokenizer, store.starts

    return opened


def _run(name: str) -> Callable[[Path], None]:
    def opened(root: Path) -> None:
        run = runs.open(root / name)
        run_facts(run)
        _ = run.watched, run.numerics, run.teacher, run.base, run.tokenizer
        trainer.check_files(run)

    return opened


def _imported(root: Path) -> None:
    run = runs.open(root / "imported")
    run.load()
    trainer.check_files(run)


def _index(root: Path) -> None:
    store = open_store(root / "store")
    index = token_index.open(store)
    index.counts(["w1 w2", "w3"])
    index.find("w1", limit=3)
    token_index.verify(store)


def _bm25(root: Path) -> None:
    store = open_store(root / "store")
    inverted = lexical.open_inverted_index(store)
    inverted.frequency(range(store.vocab_size))
    lexical.verify_inverted_index(store)


def _activations(root: Path) -> None:
    store = activations.open_store(root / "activations")
    store.read(store.sites[0], 0, 2)
    store.rows(0, 2)
    activations.verify_store(store)


def _gradients(root: Path) -> None:
    run = runs.open(root / "run")
    stored = gradients.open_gradient_store(root / "run/gradients", run=run)
    stored.features(stored.documents[:3].tolist())
    gradients.verify_gradient_store(stored)


def _retraining(root: Path) -> None:
    said = json.loads((GOLDEN / "expected.json").read_text())["retrainings"]
    again = Retrainings(runs.open(root / "run"), said["mode"], said["first"], root / "retrainings")
    again.without(said["documents"])


def _ladder(root: Path) -> None:
    start, end = ladder_ends()
    found = ladder.begin(start, end, open_store(root / "store"), out=root / "ladder", seeds=2)
    _ = found.trials


def _resumed(root: Path) -> None:
    trainer.resume(root / "stopped", store=root / "store")


def _examples(name: str, kind: str) -> Callable[[Path], object]:
    return lambda root: list(tuning.open_tuning_set(root / name, kind).read())


def _behaviour(name: str) -> Callable[[Path], object]:
    return lambda root: behaviours.load(root / name, open_store(root / "store"), n_prompts=4)


def _task(name: str) -> Callable[[Path], object]:
    return lambda root: probing.load_task(root / name, open_store(root / "packed"))


def _items(protocol: str, name: str) -> Callable[[Path], object]:
    def opened(root: Path) -> object:
        files = ",".join(str(root / one) for one in name.split(","))
        return model_evaluation.load(protocol, files)

    return opened


def _result(kind: str) -> Callable[[Path], object]:
    return lambda root: RESULTS[kind][0](root / "results" / f"{kind}.json")


def _huggingface(name: str) -> Callable[[Path], object]:
    return lambda root: convert.import_huggingface(root / name)


def _command(*arguments: str) -> Callable[[Path], None]:
    """The command, with `@` for the folder of all files; its stderr is one line or it is a bug."""

    def called(root: Path) -> None:
        sys.argv = ["openbook", *(one.replace("@", str(root)) for one in arguments)]
        out, err = io.StringIO(), io.StringIO()
        code: object = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                app.main()
            except SystemExit as end:
                code = end.code or 0
        # What was taken of a folder is said before anything is read.
        lines = [
            one
            for one in err.getvalue().splitlines()
            if not one.startswith("warning: ") and " files taken (" not in one
        ]
        if code == 0:
            return
        # A verification lists what is damaged, one line for each file, or prints it as its result.
        many = code == 3 and (lines or out.getvalue())
        held = code in (1, 2, 3, 4) and (many or len(lines) == 1)
        held = held and all(one.startswith("error: ") for one in lines)
        if not held or any(ord(one) < 32 for one in "".join(lines)):
            raise RuntimeError(f"exit {code}: {lines[-3:]}")
        raise _Refused(lines[0] if lines else "verification")

    return called


class _Refused(Exception):
    exit_code = 2


def _readers() -> Iterator[Reader]:
    for kind in RESULTS:
        if kind != "circuit.mib":
            yield Reader(f"result {kind}", f"results/{kind}.json", "sealed", _result(kind))
    yield Reader(
        "tuned lens weights", "results/tuned_lens.safetensors", "safetensors", _result("tuned_lens")
    )
    yield Reader("circuit MIB", "results/circuit.mib.json", "json", _result("circuit.mib"))
    yield Reader(
        "circuit MIB xz",
        "files/circuit.json.xz",
        "json.xz",
        lambda root: circuits.open_circuit(root / "files/circuit.json.xz"),
        "xz",
    )
    yield Reader(
        "circuit either",
        "results/circuit.json",
        "sealed",
        lambda root: circuits.open_circuit(root / "results/circuit.json"),
    )
    # Foreign models.
    for name, form in {
        "config.json": "json",
        "model.safetensors": "safetensors",
        "tokenizer.json": "json",
        "tokenizer_config.json": "json",
    }.items():
        yield Reader(
            f"hugging face {name}", f"huggingface/{name}", form, _huggingface("huggingface")
        )
    yield Reader(
        "model folder config.json",
        "huggingface/config.json",
        "json",
        lambda root: models.load(root / "huggingface"),
    )
    yield Reader(
        "shard index", "sharded/model.safetensors.index.json", "json", _huggingface("sharded")
    )
    yield Reader("shard", "sharded/one.safetensors", "safetensors", _huggingface("sharded"))
    yield Reader(
        "vocab.json", "pairs/vocab.json", "json", lambda root: load_tokenizer(root / "pairs")
    )
    yield Reader(
        "merges.txt", "pairs/merges.txt", "text", lambda root: load_tokenizer(root / "pairs")
    )
    for kind in ("store", "packed"):
        yield Reader(
            f"tokenizer.json of {kind}",
            f"{kind}/tokenizer.json",
            "json",
            lambda root, kind=kind: load_tokenizer(root / kind / "tokenizer.json"),
        )
    yield Reader(
        "nanoGPT checkpoint",
        "files/ckpt.pt",
        "torch",
        lambda root: convert.import_nanogpt(root / "files/ckpt.pt"),
    )
    yield Reader(
        "GGUF",
        "files/model.gguf",
        "gguf",
        lambda root: convert.import_run(root / "files/model.gguf", out=root / "out"),
    )
    # Corpora and examples.
    for name, form, bomb in (
        ("text.txt", "text", ""),
        ("text.txt.gz", "text.gz", "gz"),
        ("text.txt.xz", "text.xz", "xz"),
        ("text.txt.zst", "text.zst", "zst"),
        ("rows.jsonl", "lines", ""),
        ("rows.jsonl.gz", "lines.gz", "gz"),
        ("rows.jsonl.xz", "lines.xz", "xz"),
        ("rows.jsonl.zst", "lines.zst", "zst"),
        ("rows.parquet", "bytes", "parquet"),
    ):
        yield Reader(
            f"corpus {name}",
            f"files/{name}",
            form,
            lambda root, name=name: _corpus(root / "files" / name),
            bomb,
        )
    for name in ("state.json", "dataset_info.json"):
        yield Reader(
            f"saved dataset {name}", f"saved/{name}", "json", lambda root: _corpus(root / "saved")
        )
    yield Reader(
        "saved dataset arrow",
        "saved/data-00000-of-00001.arrow",
        "bytes",
        lambda root: _corpus(root / "saved"),
    )
    for kind, form, ending in (
        ("instructions", "lines", "jsonl"),
        ("preferences", "lines", "jsonl"),
        ("instructions", "json", "json"),
    ):
        name = f"files/{kind}.{ending}"
        yield Reader(f"{kind} {ending}", name, form, _examples(name, kind))
    # Files written by hand.
    for name in ("templates", "repeats"):
        yield Reader(
            f"behaviour {name}.toml", f"files/{name}.toml", "toml", _behaviour(f"files/{name}.toml")
        )
    yield Reader(
        "behaviour saved", "files/behaviour.json", "sealed", _behaviour("files/behaviour.json")
    )
    yield Reader("probe task texts", "files/task.json", "json", _task("files/task.json"))
    yield Reader(
        "probe task saved", "results/probe_task.json", "sealed", _task("results/probe_task.json")
    )
    yield Reader("tagged sentences", "files/tagged.jsonl", "lines", _task("files/tagged.jsonl"))
    yield Reader(
        "tagged sentences gz",
        "files/tagged.jsonl.gz",
        "lines.gz",
        _task("files/tagged.jsonl.gz"),
        "gz",
    )
    yield Reader(
        "recipe",
        "files/recipe.toml",
        "toml",
        lambda root: recipes.load(str(root / "files/recipe.toml")),
    )
    for protocol, name, form, bomb in (
        ("lambada", "files/lambada.jsonl", "lines", ""),
        ("wikitext", "files/wiki.txt.gz", "text.gz", "gz"),
        ("sst2", "files/sst2.tsv", "text", ""),
        ("gsm8k", "files/gsm8k.jsonl,files/train.jsonl", "lines", ""),
        ("blimp", "files/blimp.zip", "bytes", "zip"),
    ):
        yield Reader(f"items of {protocol}", name.split(",")[0], form, _items(protocol, name), bomb)
    # Stores and what is computed from them.
    for kind, names in {
        "store": ("store.json", "documents.parquet", "tokens.bin", "tokenizer.json"),
        "packed": ("store.json", "documents.parquet", "tokens.bin", "truth.json"),
    }.items():
        for name in names:
            form = {"json": "json", "parquet": "bytes", "bin": "bytes"}[name.rpartition(".")[2]]
            form = "sealed" if name == "store.json" else form
            yield Reader(f"{kind}: {name}", f"{kind}/{name}", form, _store(kind))
    for name in sorted(path.name for path in (GOLDEN / "store/index").iterdir()):
        form = "sealed" if name.endswith(".json") else "bytes"
        yield Reader(f"index: {name}", f"store/index/{name}", form, _index)
    for name in ("index.json", "counts.u8", "documents.u16", "offsets.u32"):
        form = "sealed" if name.endswith(".json") else "bytes"
        yield Reader(f"bm25: {name}", f"store/bm25/{name}", form, _bm25)
    for name in (
        "manifest.json",
        "shard-00000/shard.json",
        "shard-00000/rows.bin",
        "shard-00000/L0H1.bin",
    ):
        form = "sealed" if name.endswith(".json") else "bytes"
        yield Reader(f"activations: {name}", f"activations/{name}", form, _activations)
    # Runs and what is computed from them.
    last = "checkpoints/step-00000024"
    for name, form in {
        "manifest.json": "sealed",
        "ledger.jsonl": "chained",
        "watch.jsonl": "chained",
        "checkpoints/index.json": "sealed",
        f"{last}/state.json": "json",
        f"{last}/model.safetensors": "safetensors",
        f"{last}/optimizer.safetensors": "safetensors",
    }.items():
        yield Reader(f"run: {name}", f"run/{name}", form, _run("run"))
    for name in ("schedule.npy", "manifest.json"):
        yield Reader(
            f"nanoGPT run: {name}",
            f"nanogpt/{name}",
            "npy" if name.endswith(".npy") else "sealed",
            _run("nanogpt"),
        )
    for name, form in {
        "manifest.json": "sealed",
        "tokenizer.json": "json",
        "checkpoints/index.json": "sealed",
        "checkpoints/step-00000000/model.safetensors": "safetensors",
    }.items():
        yield Reader(f"imported run: {name}", f"imported/{name}", form, _imported)
    for name, form in {
        "manifest.json": "sealed",
        "ledger.jsonl": "chained",
        "checkpoints/step-00000002/state.json": "json",
        "checkpoints/step-00000002/optimizer.safetensors": "safetensors",
    }.items():
        yield Reader(f"resumed run: {name}", f"stopped/{name}", form, _resumed)
    for name in ("gradients.json", "documents.i64", "exponents.i8", "features.f16"):
        form = "sealed" if name.endswith(".json") else "bytes"
        yield Reader(f"gradients: {name}", f"run/gradients/{name}", form, _gradients)
    (kept,) = (GOLDEN / "retrainings").iterdir()
    yield Reader("retraining", f"retrainings/{kept.name}", "safetensors", _retraining)
    yield Reader("ladder", "ladder/ladder.json", "sealed", _ladder)
    yield from _commands()


def _commands() -> Iterator[Reader]:
    run, store, shard = "@/run", "@/store", "sharded/model.safetensors.index.json"
    for path, form, arguments in (
        ("huggingface/config.json", "json", ("run", "import", "@/huggingface", "--out", "@/out")),
        (shard, "json", ("run", "import", "@/sharded", "--out", "@/out")),
        ("files/ckpt.pt", "torch", ("run", "import", "@/files/ckpt.pt", "--out", "@/out")),
        ("files/model.gguf", "gguf", ("run", "import", "@/files/model.gguf", "--out", "@/out")),
        ("run/manifest.json", "sealed", ("run", "show", run)),
        ("run/manifest.json", "sealed", ("run", "verify", run, "--spans", "0")),
        ("run/ledger.jsonl", "chained", ("run", "verify", run, "--spans", "0")),
        ("run/checkpoints/index.json", "sealed", ("run", "export", run, "--out", "@/out")),
        ("run/watch.jsonl", "chained", ("run", "show", run)),
        ("store/store.json", "sealed", ("corpus", "show", store)),
        ("store/documents.parquet", "bytes", ("corpus", "show", store, "--document", "3")),
        ("store/index/index.json", "sealed", ("index", "count", store, "w1 w2")),
        (
            "files/rows.jsonl",
            "lines",
            ("corpus", "build", "@/files/rows.jsonl", "--out", "@/out", "--tokenizer", "word"),
        ),
        (
            "files/rows.parquet",
            "bytes",
            ("corpus", "build", "@/files/rows.parquet", "--out", "@/out", "--tokenizer", "word"),
        ),
        ("files/templates.toml", "toml", ("behaviours", run, "@/files/templates.toml")),
        ("files/task.json", "json", ("probe", run, "@/files/task.json")),
        (
            "results/circuit.json",
            "sealed",
            ("faithfulness", run, "@/files/templates.toml", "@/results/circuit.json"),
        ),
        (
            "results/circuit.mib.json",
            "json",
            ("faithfulness", run, "@/files/templates.toml", "@/results/circuit.mib.json"),
        ),
        (
            "files/sources.json",
            "sealed",
            (
                "counterfactual",
                run,
                "@/files/templates.toml",
                "--without",
                "@/files/sources.json",
                "--seeds",
                "0",
            ),
        ),
        (
            "files/recipe.toml",
            "toml",
            ("train", "@/files/recipe.toml", store, "--out", "@/out", "--threads", "1"),
        ),
        ("files/recipe.toml", "toml", ("recipes", "show", "@/files/recipe.toml")),
        ("files/words.jsonl", "lines", ("evaluate", run, "--on", "lambada=@/files/words.jsonl")),
        ("stopped/manifest.json", "sealed", ("run", "resume", "@/stopped")),
        ("files/words.txt", "text", ("trace", "text", run, "@/files/words.txt")),
    ):
        name = " ".join(one for one in arguments if "@" not in one and not one.startswith("-"))
        yield Reader(f"openbook {name} ({Path(path).name})", path, form, _command(*arguments))


READERS: Sequence[Reader] = tuple(_readers())


# --- good files ----------------------------------------------------------------------------------

TEMPLATES = """description = "a word after two others"
clean = ["{A} then {B} and", "{B} then {A} and"]
corrupt = ["{B} then {A} and", "{A} then {B} and"]
answer = "{A}"
foil = "{B}"
slots = {A = "word", B = "word"}
[lists]
word = ["w1", "w2", "w3", "w4", "w5"]
"""
REPEATS = "[repeat]\nlength = 4\nanswer_at = 2\n"
ROWS = [{"text": f"w{row} w{row + 1} w2", "title": f"t{row}", "url": "u"} for row in range(20)]


def prepare(root: Path) -> Path:
    """Write the good files of all readers into a folder, and return it."""
    for name in HEAVY:  # once here, and not in every copy of this process
        with contextlib.suppress(ImportError):
            import_module(name)
    shutil.copytree(GOLDEN, root)
    files = root / "files"
    files.mkdir()
    evaluation_files(files)
    _write_corpora(root, files)
    _write_models(root, files)
    for name, text in {"templates": TEMPLATES, "repeats": REPEATS}.items():
        (files / f"{name}.toml").write_text(text.replace("then", "w7").replace("and", "w8"))
    (files / "recipe.toml").write_text(recipes.to_toml(ladder_ends()[0]))
    mib = (root / "results/circuit.mib.json").read_bytes()
    (files / "circuit.json.xz").write_bytes(lzma.compress(mib))
    task = {"name": "mine", "texts": [f"w{row} w{row + 1}" for row in range(30)],
            "positions": [-1, 1, 2] * 10, "labels": ["a", "b", "c"] * 10,
            "types": [f"x{row % 10}" for row in range(30)]}  # fmt: skip
    (files / "task.json").write_text(json.dumps(task))
    tagged = [{"text": "k1 is v1", "words": ["k1", "is", "v1"], "upos": ["A", "B", "A"]}] * 20
    _lines(files / "tagged.jsonl", tagged, gz=True)
    _lines(files / "instructions.jsonl", [{"instruction": "a", "output": "b", "input": "c"}] * 3)
    _lines(files / "preferences.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3)
    (files / "instructions.json").write_text(json.dumps([{"prompt": "a", "response": "b"}] * 3))
    (files / "words.txt").write_text("w1 w2 w3 w4 w5 w6")
    _lines(files / "words.jsonl", [{"text": "w1 w2 w3"}, {"text": "w4 w5"}])
    # By a copy of this process: one in which pyarrow has worked cannot be copied safely.
    written = call(lambda: _write_results(root, files), memory=8 << 30, seconds=250)
    assert written.kind == "opens", written
    (root / "ladder").mkdir()
    shutil.copy(root / "results/ladder.json", root / "ladder/ladder.json")
    return root


def _lines(path: Path, rows: list[dict], gz: bool = False) -> None:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(content)
    if gz:
        _compressed(path, content, (".gz",))


def _compressed(path: Path, content: bytes, endings: Sequence[str]) -> None:
    import gzip

    import zstandard

    pack = {
        ".gz": lambda data: gzip.compress(data, mtime=0),
        ".xz": lzma.compress,
        ".zst": zstandard.ZstdCompressor().compress,
    }
    for ending in endings:
        path.with_name(path.name + ending).write_bytes(pack[ending](content))


def _write_results(root: Path, files: Path) -> None:
    run = runs.open(root / "run")
    behaviours.load(files / "templates.toml", run, n_prompts=4).save(files / "behaviour.json")
    attribution.documents(run, "w1 w2 w3", methods="lexical", limit=3).save(files / "sources.json")


def _write_corpora(root: Path, files: Path) -> None:
    script = (
        "import sys, json, datasets, pyarrow, pyarrow.parquet as pq; "
        "rows = json.loads(sys.argv[1]); "
        "pq.write_table(pyarrow.Table.from_pylist(rows), sys.argv[2]); "
        "datasets.Dataset.from_list(rows).save_to_disk(sys.argv[3])"
    )
    import subprocess

    command = [sys.executable, "-c", script, json.dumps(ROWS), str(files / "rows.parquet")]
    subprocess.run([*command, str(root / "saved")], check=True, capture_output=True)
    _lines(files / "rows.jsonl", ROWS)
    for name in ("rows.jsonl", "text.txt"):
        if name == "text.txt":
            (files / name).write_text("\n".join(row["text"] for row in ROWS))
        _compressed(files / name, (files / name).read_bytes(), (".gz", ".xz", ".zst"))


def _write_models(root: Path, files: Path) -> None:
    from safetensors.torch import load_file, save_file

    (root / "sharded").mkdir()
    weights = load_file(root / "huggingface/model.safetensors")
    names = sorted(weights)
    places = {name: "one.safetensors" if name < names[4] else "two.safetensors" for name in names}
    for shard in set(places.values()):
        part = {name: weights[name] for name in names if places[name] == shard}
        save_file(part, root / "sharded" / shard)
    listing = {"metadata": {"total_size": 1}, "weight_map": places}
    (root / "sharded/model.safetensors.index.json").write_text(json.dumps(listing))
    shutil.copy(root / "huggingface/config.json", root / "sharded/config.json")
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "vocab_size": 60}
    cfg = GPTConfig(n_layers=1, n_heads=2, d_model=16, n_ctx=16, d_vocab=60, mlp="gelu")
    torch.save(_nanogpt(cfg, sizes), files / "ckpt.pt")
    with contextlib.suppress(ImportError):
        from tests.train.convert import test_gguf

        test_gguf.written(files / "model.gguf", test_gguf.llama())
    (root / "pairs").mkdir()
    content = json.loads(train_bpe(["the cat sat on the mat"] * 9, 262).json)["model"]
    (root / "pairs/vocab.json").write_text(json.dumps(content["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in content["merges"])
    (root / "pairs/merges.txt").write_text(f"#version: 0.2\n{merges}\n")


def _nanogpt(cfg: GPTConfig, sizes: dict[str, int]) -> dict[str, object]:
    from train.convert import layouts

    places = layouts.gpt2_places(cfg, turned=False)
    weights = layouts.to_theirs(cfg, places, init_gpt(cfg, 0).state_dict())
    return {"model": weights, "model_args": {**sizes, "bias": True, "dropout": 0.0}, "iter_num": 3}


# --- cases ---------------------------------------------------------------------------------------


def cases(seed: int, per_reader: int, readers: Sequence[Reader] = READERS) -> list[Case]:
    """Draw bad files for every reader: its bomb, then kind after kind, and then these again."""
    found = []
    for reader in readers:
        draw = Random(f"{seed} {reader.name}")
        kinds = [*CONTENTS[reader.format], *PLACES]
        if reader.format.startswith("lines") or reader.path.endswith(".parquet"):
            kinds.remove("1 TB of nothing")  # corpora may be that large; it takes long to hash
        draw.shuffle(kinds)
        kinds = ["bomb"] * bool(reader.bomb) + kinds
        found += [Case(reader, kinds[turn % len(kinds)], seed + turn) for turn in range(per_reader)]
    return found


def run_case(case: Case, good: Path, bombs: Path) -> Outcome:
    """Put the bad file of a case into a copy of the good ones, and open it.

    The process works in the folder where the payloads of pickles make the folder `ran`.
    """
    with tempfile.TemporaryDirectory(dir=good.parent) as place:
        root = Path(place) / "root"
        _copied(good, root, case.reader.path)
        path = root / case.reader.path
        _put(case, path, bombs)
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 30:
            top = root / Path(case.reader.path).parts[0]
            adopt(top, path, (good / case.reader.path).read_bytes())
        os.chdir(place)
        outcome = call(lambda: case.reader.open(root))
        os.chdir(good.parent)
        if (Path(place) / "ran").exists():
            return Outcome("code run", outcome.said)
    return outcome


def _copied(good: Path, root: Path, name: str) -> None:
    """Copy the part of the good files that has the file `name`, and link the others."""
    root.mkdir()
    top = Path(name).parts[0]
    for one in good.iterdir():
        if one.name == top:
            shutil.copytree(one, root / top)
        else:
            (root / one.name).symlink_to(one)


def _put(case: Case, path: Path, bombs: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    draw = Random(f"{case.seed} {case.reader.name} {case.kind}")
    if case.kind == "bomb":
        bomb = bombs / case.reader.bomb
        if not bomb.exists():
            _bomb(case.reader.bomb, bomb)
        path.symlink_to(bomb)
        path.unlink()
        shutil.copy(bomb, path)
    elif case.kind == GOOD:
        path.write_bytes(content)
    elif case.kind in PLACES:
        PLACES[case.kind](path)
    else:
        path.write_bytes(CONTENTS[case.reader.format][case.kind](content, draw))


def _bomb(kind: str, path: Path) -> None:
    """Write a bomb, by a copy of this process: it takes memory, and pyarrow starts threads."""
    child = os.fork()
    if not child:
        path.write_bytes(BOMBS[kind]())
        os._exit(0)
    os.waitpid(child, 0)
