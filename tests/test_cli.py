"""The commands say what the library says: exact words for people, the same as JSON and in files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer

from data_attribution.attribution import Sources
from data_attribution.cli.app import INTERRUPTED, app
from interp import behaviours, models, patching
from interp.heads import HeadScores
from interp.patching import Effects
from tests.worlds.stores import indexed_copy
from train import convert, runs, storage, trainer


pytestmark = pytest.mark.integration
EXECUTABLE = Path(sys.executable).with_name("openbook")


@pytest.fixture(scope="module")
def indexed(lookup_store, tmp_path_factory) -> Path:
    """A copy of the lookup store with an index."""
    return indexed_copy(lookup_store, tmp_path_factory.mktemp("indexed") / "lookup")


def leaves(command, name=()):
    found = getattr(command, "commands", None)
    if found is None:
        return [(" ".join(name), command)]
    return [leaf for key, one in found.items() for leaf in leaves(one, (*name, key))]


COMMANDS = dict(leaves(typer.main.get_command(app)))


def test_the_commands_are_those_of_the_design():
    assert set(COMMANDS) >= {
        "train", "patch", "paths", "behaviours", "recall", "detect", "counterfactual",
        "recipes list", "recipes show",
        "corpus build", "corpus show", "run show", "run verify", "run resume", "run documents",
        "run steps", "run replay", "run import", "run export", "index build", "index plan",
        "index count", "index find", "index spans", "trace components", "trace documents",
        "trace sentence", "trace head", "trace text", "lens logit", "lens fit", "lens tuned",
    }  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_in_json_writes_a_file_and_explains_itself(name):
    command = COMMANDS[name]
    options = {option for one in command.params for option in one.opts}
    assert "--out" in options
    assert "--json" in options or name in ("demo", "demo-code")
    assert command.help
    unexplained = [one.name for one in command.params if not getattr(one, "help", None)]
    assert unexplained == []
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    assert all(one.metavar and one.metavar.isupper() for one in arguments)


# --- corpus and run ------------------------------------------------------------------------------


def test_a_corpus_is_built_and_shown(openbook, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "a b"}\n{"text": "b c d"}\n{"text": ""}\n')
    store = tmp_path / "store"
    built = openbook(
        "corpus", "build", tmp_path / "texts.jsonl", "--out", store, "--tokenizer", "word"
    )
    assert (built.code, built.err) == (0, "")
    assert f"store        {store}\n" in built.out
    assert "'documents': 2," in built.out
    assert "'empty_dropped': 1," in built.out
    assert openbook("corpus", "show", store).out == built.out
    assert openbook("corpus", "show", store, "--document", 1).out == "b c d\n"
    shown = json.loads(openbook("corpus", "show", store, "--json").out)
    assert shown["counts"]["tokens"] == 8
    kept = tmp_path / "kept.json"
    openbook("corpus", "show", store, "--document", 0, "--out", kept)
    assert storage.read_sealed(kept)["text"] == "a b"


def test_bad_rows_are_left_out_with_a_count_and_files_with_a_reason(openbook, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("# The card\n")
    (tmp_path / "mine" / "a.jsonl").write_text('{"meta": {"text": "a b"}}\n{"meta": null}\n')
    built = openbook(
        "corpus", "build", tmp_path / "mine", "--out", tmp_path / "store", "--tokenizer", "word",
        "--text-field", "meta.text", "--skip-bad",
    )  # fmt: skip
    assert built.code == 0
    assert "1 file taken (1 jsonl); 1 left, a data card: README.md" in built.err
    assert f"1 bad row left out, listed in {tmp_path / 'store' / 'skipped.jsonl'}" in built.err
    assert "skipped_rows" in built.out


def test_a_run_is_trained_shown_and_verified(openbook, tiny_store, tmp_path):
    out = tmp_path / "run"
    options = ("--steps", 3, "--batch-size", 2, "--threads", 1, "--precision", "fp32")
    trained = openbook("train", "text-small", tiny_store.path, "--out", out, *options)
    assert (trained.code, trained.err) == (0, "")
    assert "steps        3 of 3\n" in trained.out
    assert openbook("run", "show", out).out == trained.out
    assert openbook("run", "resume", out).out == trained.out
    verified = openbook("run", "verify", out, "--spans", 1)
    assert (verified.code, verified.err) == (0, "")
    assert verified.out.startswith("bit-exact: ")
    assert verified.out.endswith(
        " files hold their digests, 1 span replayed, largest difference in loss 0 nats\n"
    )


def test_a_run_that_was_stopped_is_verified_as_unfinished(
    openbook, tiny_store, tiny_recipe, one_thread_numerics, tmp_path
):
    def stop(what: str, done: int, total: int | None) -> None:
        if done == 9:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        trainer.train(tiny_recipe, tiny_store, out=out, numerics=one_thread_numerics, progress=stop)
    verified = openbook("run", "verify", out, "--spans", 0)
    steps = tiny_recipe.steps
    assert (verified.code, verified.err) == (0, "")
    assert verified.out.endswith(
        f"; not finished: 9 of {steps} steps are done. Unless it is being trained now, go on with "
        f"`openbook run resume {out}`\n"
    )


def test_a_run_that_was_killed_before_its_first_row_is_not_damaged(
    openbook, tiny_run, tiny_store, monkeypatch, tmp_path
):
    def killed(*arguments):
        raise KeyboardInterrupt

    out = tmp_path / "run"
    monkeypatch.setattr(runs, "ledger_writer", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(tiny_run.recipe, tiny_store, out=out, numerics=tiny_run.numerics)
    monkeypatch.undo()
    assert sorted(path.name for path in out.iterdir()) == [".lock", "manifest.json"]
    verified = openbook("run", "verify", out)
    assert (verified.code, verified.err) == (0, "")
    assert verified.out.startswith("not begun: ")
    assert "; not finished: 0 of 24 steps are done. Unless it is being trained now" in verified.out
    assert openbook("run", "verify", out, "--require", "order-only").code == 1
    assert "steps        0 of 24\n" in openbook("run", "show", out).out
    assert openbook("run", "resume", out).code == 0
    assert runs.open(out).saved == tiny_run.saved


@pytest.mark.parametrize(
    ("command", "threads"), [(("corpus", "build"), "true"), (("corpus", "show"), "false")]
)
def test_only_a_build_lets_tokenizers_start_threads(openbook, monkeypatch, command, threads):
    names = ("TOKENIZERS_PARALLELISM", "CUBLAS_WORKSPACE_CONFIG", "RAYON_NUM_THREADS")
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is put back behind the test
        monkeypatch.delenv(name)
    options = ("--threads", 2, "--out", "nowhere") if threads == "true" else ()
    assert openbook(*command, "/nothing", *options).code == 2
    count = "2" if threads == "true" else None
    assert [os.environ.get(name) for name in names] == [threads, ":4096:8", count]


def test_verify_names_a_changed_file_and_exits_3(openbook, tiny_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(tiny_run.path, copy)
    path = copy / "checkpoints/step-00000008/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = openbook("run", "verify", copy, "--store", tiny_run.store.path)
    assert found.code == 3
    assert found.out == "damaged\n"
    assert found.err.startswith(f"error: {path}: sha256 ")
    assert found.err.count("\n") == 1


def test_a_run_whose_replay_reads_the_same_and_computes_otherwise_fails(
    openbook, tiny_run, tmp_path, monkeypatch
):
    """As on a machine that sums in another way: here by another rate in the same manifest."""
    copy = tmp_path / "run"
    shutil.copytree(tiny_run.path, copy)
    verify = ("run", "verify", copy, "--store", tiny_run.store.path)
    assert openbook(*verify, "--require", "bit-exact").code == 0
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["predicate"]["recipe"]["lr"] *= 3
    storage.write_json(copy / "manifest.json", storage.seal(manifest))
    found = openbook(*verify)
    assert found.code == 1
    assert found.out.startswith("order only: ")
    assert found.err == f"error: {copy} is order only; within-tolerance was required\n"
    assert openbook(*verify, "--require", "order-only").code == 0


def test_reads_agree_with_the_run_both_ways(openbook, tiny_run):
    path, expected = tiny_run.path, tiny_run.documents_read(5).tolist()
    assert json.loads(openbook("run", "documents", path, 5, "--json").out) == {
        "step": 5,
        "documents": expected,
    }
    lines = [f"{one}\t{tiny_run.store.document(one).id}\n" for one in expected]
    assert openbook("run", "documents", path, 5).out == "".join(lines)
    steps = openbook("run", "steps", path, expected[0]).out.split()
    assert [int(step) for step in steps] == tiny_run.steps_reading(expected[0]).tolist()


def test_a_replay_is_exact_and_one_without_documents_is_not(openbook, tiny_run):
    span = ("run", "replay", tiny_run.path, "--from", 9, "--to", 11)
    exact = openbook(*span)
    assert exact.out == "steps 9 to 11: bit-exact; the same windows were read: True\n"
    removed = tiny_run.documents_read(10)[0]
    found = openbook(*span, "--without", removed)
    assert found.code == 0
    assert found.out.startswith("steps 9 to 11: differs by ")


def test_an_interrupted_training_exits_130_says_how_to_go_on_and_goes_on(tiny_store, tmp_path):
    out = tmp_path / "run"
    command = [EXECUTABLE, "train", "text-small", tiny_store.path, "--out", out, "--batch-size"]
    command += ["2", "--threads", "1", "--precision", "fp32", "--steps"]
    process = subprocess.Popen([*command, "100000"], stderr=subprocess.PIPE, text=True)
    index = out / "checkpoints/index.json"
    give_up = time.monotonic() + 240
    while not index.exists() and time.monotonic() < give_up:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130
    assert err.strip() == INTERRUPTED
    assert list(tmp_path.rglob("*.partial")) == []
    assert not runs.open(out).finished
    assert runs.open(out).load().origin.step in runs.open(out).steps


# --- imports -------------------------------------------------------------------------------------


def nanogpt_checkpoint(path: Path) -> None:
    """What nanoGPT's train.py saves of a network of one layer with the vocabulary of 12."""
    draw, d, v = torch.Generator().manual_seed(0), 8, 12
    shapes = {
        "transformer.wte.weight": (v, d), "transformer.wpe.weight": (6, d),
        "transformer.h.0.ln_1.weight": (d,), "transformer.h.0.attn.c_attn.weight": (3 * d, d),
        "transformer.h.0.attn.c_proj.weight": (d, d), "transformer.h.0.ln_2.weight": (d,),
        "transformer.h.0.mlp.c_fc.weight": (4 * d, d),
        "transformer.h.0.mlp.c_proj.weight": (d, 4 * d), "transformer.ln_f.weight": (d,),
    }  # fmt: skip
    weights = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    args = {
        "n_layer": 1, "n_head": 2, "n_embd": d, "block_size": 6, "bias": False, "vocab_size": v
    }  # fmt: skip
    torch.save({"model": weights, "model_args": args, "iter_num": 40}, path)


def test_a_nanogpt_checkpoint_is_taken_in_and_says_weights_only(openbook, tmp_path):
    nanogpt_checkpoint(tmp_path / "ckpt.pt")
    taken = openbook("run", "import", tmp_path / "ckpt.pt", "--out", tmp_path / "run")
    assert (taken.code, taken.err) == (0, "")
    shown = openbook("run", "show", tmp_path / "run")
    assert "knowledge    weights-only\n" in shown.out
    assert "nanoGPT checkpoint ckpt.pt at step 40" in shown.out
    expected = convert.import_nanogpt(tmp_path / "ckpt.pt").model
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    assert torch.equal(models.load(tmp_path / "run")(tokens), expected(tokens))
    refused = openbook("run", "documents", tmp_path / "run", 0)
    assert refused.code == 2
    assert "knowledge is weights-only (imported from nanoGPT checkpoint)" in refused.err


def test_an_exported_run_comes_back_and_its_results_say_weights_only(
    openbook, lookup_run, lookup_behaviour, tmp_path
):
    done = openbook("run", "export", lookup_run.path, "--out", tmp_path / "hf")
    assert (done.out, done.err) == (f"written: {tmp_path / 'hf'}\n", "")
    openbook("run", "import", tmp_path / "hf", "--out", tmp_path / "run")
    ours = openbook("patch", lookup_run.path, lookup_behaviour)
    assert ours.out.endswith(f", knowledge full\n{Effects.meaning}\n")
    for source in (tmp_path / "hf", tmp_path / "run"):
        found = openbook("patch", source, lookup_behaviour)
        assert found.code == 0
        assert found.out.endswith(f", knowledge weights-only\n{Effects.meaning}\n")
        assert found.out.splitlines()[:-2] == ours.out.splitlines()[:-2]


# --- behaviours and patching ---------------------------------------------------------------------


def test_patch_prints_the_top_places_and_keeps_the_effects(
    openbook, lookup_run, lookup_behaviour, tmp_path
):
    kept, figure = tmp_path / "effects.json", tmp_path / "effects.html"
    command = ("patch", lookup_run.path, lookup_behaviour, "--over", "residual")
    found = openbook(*command, "--out", kept, "--plot", figure, "--top", 1)
    behaviour = behaviours.read(lookup_behaviour)
    expected = patching.residual(models.load(lookup_run), behaviour)
    sha256 = lookup_run.saved[-1].files["model.safetensors"]
    bounds = (*expected.clean_interval, *expected.corrupt_interval)
    assert found.out == (
        "lookup: resid_pre, denoising, share of the clean-corrupt logit difference\n"
        f"baselines: clean {expected.clean:.3f} [{bounds[0]:.3f}, {bounds[1]:.3f}], "
        f"corrupt {expected.corrupt:.3f} [{bounds[2]:.3f}, {bounds[3]:.3f}] "
        "(logit difference in nats of log-odds, 12 prompts; all intervals are 95 % over prompts)\n"
        "L0.resid_pre@1      1.000  the same on all 12 prompts\n"
        "chosen on one half of the prompts, measured on the other 6: L0.resid_pre@1 1.000 "
        "[no interval]\n"
        "and 2 places with smaller effects\n"
        "2 of 3 places hold the same values on clean and corrupt prompts: an effect of 0 there "
        "says nothing\n"
        f"run {lookup_run.id}, step 160, checkpoint {sha256[:12]}, knowledge full\n"
        f"{Effects.meaning}\n"
    )
    assert (found.code, found.err) == (0, "")
    assert Effects.load(kept).to_dict() == expected.to_dict()
    printed = json.loads(openbook(*command, "--json").out)
    assert printed == {**expected.to_dict(), "meaning": Effects.meaning}
    assert "L0" in figure.read_text()


@pytest.mark.parametrize(
    ("options", "places"),
    [
        (("--over", "heads"), 2),
        (("--over", "mlps"), 1),
        (("--over", "attention", "--positions", "each"), 3),
        (("--over", "heads", "--direction", "noising", "--step", 80), 2),
    ],
)
def test_patch_over_other_places(openbook, lookup_run, lookup_behaviour, options, places):
    found = openbook("patch", lookup_run.path, lookup_behaviour, *options, "--json")
    assert found.code == 0
    assert len(json.loads(found.out)["places"]) == places


def test_a_model_that_does_not_do_the_behaviour_is_a_failed_claim(
    openbook, lookup_run, lookup_behaviour
):
    found = openbook("patch", lookup_run.path, lookup_behaviour, "--step", 0)
    assert (found.code, found.out) == (1, "")
    assert found.err.startswith("error: the model does not do 'lookup': accuracy 0.")
    assert found.err.count("\n") == 1


def test_a_behaviour_is_shown_with_its_check_and_its_prompts(
    openbook, lookup_run, lookup_behaviour
):
    found = openbook("behaviours", lookup_run.path, lookup_behaviour)
    lines = found.out.splitlines()
    assert lines[0].split() == ["behaviour", "accuracy", "95", "%", "top-1", "95", "%", "logit",
                                "difference,", "nats", "n"]  # fmt: skip
    assert lines[1].split()[1:4] == ["1.000", "[0.758,", "1.000]"]
    assert lines[3:5] == ["clean    <eot> k0 is -> v0", "corrupt  <eot> k11 is -> v11"]
    assert lines[-1] == "and 8 more"


def test_the_behaviours_of_a_model_are_listed(openbook, tmp_path):
    from train.data import train_bpe
    from train.model import GPTConfig, init_gpt

    model = init_gpt(GPTConfig(n_layers=1, n_heads=1, d_model=8, n_ctx=64, d_vocab=300), seed=0)
    words = train_bpe(["the cat sat on the mat, the hat, the bat"] * 9, 262)
    convert.export_huggingface(model, words, tmp_path / "hf")
    found = openbook("behaviours", tmp_path / "hf", "induction", "--json")
    assert json.loads(found.out)["n"] == 64
    listed = openbook("behaviours", tmp_path / "hf")
    assert "\ninduction     " in listed.out
    assert "\nioi: " in listed.out  # and why it cannot be worded: no name is one token
    scored = openbook("detect", tmp_path / "hf", "--sequences", 2)
    assert scored.out.startswith("head     induction  previous token  (mean attention")
    assert scored.out.endswith(f"knowledge weights-only\n{HeadScores.meaning}\n")
    refused = openbook("recall", tmp_path / "hf")
    assert refused.code == 2
    assert "only a run that was trained on the planted corpus knows its facts" in refused.err


# --- index, sources, counterfactual --------------------------------------------------------------


def test_the_index_counts_finds_and_cuts(openbook, lookup_run, indexed):
    store = lookup_run.store
    assert openbook("index", "count", indexed, "k3 is").out == "20\t0 held out\t'k3 is'\n"
    found = openbook("index", "find", indexed, "k3 is", "--run", lookup_run.path, "--limit", 2)
    lines = found.out.splitlines()
    assert lines[0] == "20 occurrences, 2 documents shown"
    hits = json.loads(
        openbook("index", "find", indexed, "is v3", "--run", lookup_run.path, "--json").out
    )["hits"]
    assert len(hits) == 20
    for hit in hits:
        start = int(store.starts[hit["document"]]) + hit["offset"]
        assert hit["steps"] == lookup_run.steps_reading_tokens(start, start + 2).tolist()
        assert (hit["text"], hit["offset"]) == ("k3 is v3", 1)
    spans = openbook("index", "spans", indexed, "k1 is v1 k2 is v3", "--minimum", 2, "--limit", 1)
    cut = [line.split("\t")[2] for line in spans.out.splitlines() if not line.startswith(" ")]
    assert cut == ["'k1 is v1'", "'k2 is'", "'is v3'"]
    none = openbook("index", "spans", indexed, "k1 k2")
    assert none.out == f"no span of 3 tokens or more occurs in {indexed}\n"


def test_the_index_is_built_once_asked_for(openbook, lookup_store, tmp_path):
    path = tmp_path / "store"
    # Another test may have indexed the store of the session.
    shutil.copytree(lookup_store.path, path, ignore=shutil.ignore_patterns("index"))
    missing = openbook("index", "count", path, "k3")
    assert missing.code == 2
    assert missing.err == (
        f"error: the store {path} has no index yet; build it with `openbook index build {path}`\n"
    )
    built = openbook("index", "build", path)
    assert (built.code, built.err) == (0, "")
    assert built.out.startswith("961 tokens sorted by ")
    assert openbook("index", "count", path, "k3").out == "20\t0 held out\t'k3'\n"


def test_an_empty_text_is_refused_as_what_it_is(openbook, lookup_run, indexed):
    ended = openbook(
        "trace", "sentence", lookup_run.path, "", "--store", indexed
    )  # fmt: skip
    assert ended.code == 2
    assert "the text is empty" in ended.err
    assert "None" not in ended.err


def test_documents_are_traced_and_their_removal_undoes_the_behaviour(
    openbook, lookup_run, lookup_behaviour, indexed, tmp_path
):
    run = ("--store", indexed)
    kept = tmp_path / "sources.json"
    traced = openbook(
        "trace", "sentence", lookup_run.path, "k3 is v3", *run, "--out", kept,
        "--method", "lexical",
    )  # fmt: skip
    sources = Sources.load(kept)
    holders = [row for row in range(240) if lookup_run.store.text(row) == "k3 is v3"]
    # Copies stand in one row.
    assert [sorted(group) for group in sources.groups] == [holders]
    assert traced.out.splitlines()[0] == "lexical evidence (maximal spans) for 'k3 is v3'"
    assert traced.out.splitlines()[1].startswith("scores: nats of surprise of the shared spans")
    assert traced.out.splitlines()[-1] == Sources.meaning
    assert len(traced.out.splitlines()) == 5
    by_name = openbook(
        "trace", "documents", lookup_run.path, lookup_behaviour, *run, "--limit", 3, "--json"
    )
    assert len(json.loads(by_name.out)["items"]) == 3
    proof = openbook(
        "counterfactual", lookup_run.path, lookup_behaviour, *run, "--without", kept, "--top", 50,
        "--runs", tmp_path / "without", "--json",
    )  # fmt: skip
    result = json.loads(proof.out)
    assert result["removed"] == holders
    assert len(result["control"]) == 2
    assert not {one for control in result["control"] for one in control} & {*holders}
    full, without, *controls = result["rows"]
    # Each control takes out all documents of another pair, and forgets that one.
    assert [row["recall"] for row in (full, without, *controls)] == pytest.approx(
        [1.0, *[11 / 12] * 3]
    )
    again = openbook(
        "counterfactual", lookup_run.path, lookup_behaviour, *run, "--without", kept, "--top", 50,
        "--runs", tmp_path / "without",
    )  # fmt: skip
    lines = again.out.splitlines()
    rows = [line.split() for line in lines[1:3]]
    assert rows[0][:5] == ["full", "run", "1.000", "[0.758,", "1.000]"]
    assert rows[1][:4] == ["without", "the", "documents", "0.917"]
    assert lines[-4:-1] == [f"kept: {path}" for path in result["runs"]]


def test_single_documents_are_removed_without_a_control(
    openbook, lookup_run, lookup_behaviour, tmp_path
):
    found = openbook(
        "counterfactual", lookup_run.path, lookup_behaviour, "--without", 3, "--without", 5,
        "--seeds", 0, "--runs", tmp_path, "--mode", "loss", "--together", "none", "--json",
    )  # fmt: skip
    result = json.loads(found.out)
    assert (result["removed"], result["control"], result["mode"]) == ([3, 5], [], "loss")
    assert [row["setting"] for row in result["rows"]] == ["full run", "without the documents"]


@pytest.mark.parametrize(
    ("words", "position", "completed"),
    [
        ("openbook pat", 1, ["patch", "paths"]),
        ("openbook trace sent", 2, ["sentence"]),
        ("openbook patch --ove", 2, ["--over"]),
    ],
)
def test_a_shell_completes_commands_and_options(words, position, completed):
    asked = {
        "_OPENBOOK_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(position),
    }
    done = subprocess.run(
        [EXECUTABLE], capture_output=True, text=True, check=True, env={**os.environ, **asked}
    )
    assert [one for one in done.stdout.split() if one != "pat"] == completed
