"""What was written to disk before the modules were moved still opens, and says what it said.

`make_golden_files.py` wrote one small file or folder of every kind, by the code of before the move,
and beside them `golden/expected.json` with values of the objects in memory. Each is opened here by
the public loader of today and compared with those values: exactly where they are names, digests or
counts, to 1e-6 where they are computed. Nothing is opened in place: a copy is.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, is_dataclass, replace
from html import unescape
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from IPython.core.formatters import HTMLFormatter

from data_attribution import attribution, gradients, lexical, queries, token_index
from data_attribution.attribution import Sources
from data_attribution.counterfactuals import Retrainings
from interp import activations, behaviours, circuits, lenses, models, probing, training_dynamics
from interp.attribution_patching import Agreement
from interp.attribution_patching.missed_effects import Bound
from interp.causal_abstraction.das import Alignment
from interp.causal_abstraction.interventions import Interchanges
from interp.circuits import Circuit
from interp.heads import Contributions, HeadScores
from interp.lenses import LensEvaluation, Readings
from interp.model_evaluation import Score
from interp.patching import Ablation, ContrastCheck, Effects, Trace
from interp.probing import Erasure, Probe
from interp.steering import SteeringEffects, SteeringVector
from interp.training_dynamics import Analysis, Trajectory
from tests import saved_outputs
from tests.test_repository import trespasses
from tests.train.test_html_panel import Read
from train import ensembles, ladder, runs, storage, trainer
from train.data import load_tokenizer, open_store, verify_store
from train.ensembles import EnsembleEvaluation
from train.model import GPTConfig
from train.recipes import Recipe


ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
OF_ORIGIN = ("provenance.run_id", "provenance.checkpoint_sha256", "provenance.behaviour_sha256")
# Of every result: how it is opened, and what of it was written down when it was made.
RESULTS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "ablation": (Ablation.load, ("names", "change", "per_prompt", "intact", *OF_ORIGIN)),
    "agreement": (Agreement.load, ("places", "estimated", "exact", "spearman", *OF_ORIGIN)),
    "alignment": (Alignment.load, ("place", "accuracy", "basis", "n_test", *OF_ORIGIN)),
    "behaviour": (behaviours.read, ("name", "clean", "answer", "candidates", "sha256")),
    "behaviour_of_several": (behaviours.read, ("name", "answers", "foils", "sha256")),
    "behaviour_of_groups": (behaviours.read, ("name", "groups", "cases", "sha256")),
    "bound": (Bound.load, ("places", "upper", "value", "together", "draws", *OF_ORIGIN)),
    "circuit": (Circuit.load, ("edges", "worth", "faithfulness", "checks.exact", *OF_ORIGIN)),
    "circuit.mib": (circuits.read_mib, ("graph", "worth", "kept", "nodes")),
    "contrast": (
        ContrastCheck.load,
        ("places", "verdicts", "moved", "output", "provenance.run_id"),
    ),
    "contributions": (Contributions.load, ("names", "average", "control", "gap", *OF_ORIGIN)),
    "ensemble": (
        EnsembleEvaluation.load,
        ("rows", "n_documents", "n_tokens", "n_train_tokens", "provenance"),
    ),
    "effects": (Effects.load, ("names", "values", "low", "also", "pos_labels", *OF_ORIGIN)),
    "erasure": (Erasure.load, ("place", "rank", "arms", "loss", "task_sha256")),
    "head_scores": (HeadScores.load, ("values", "low", "control", "n", "provenance.run_id")),
    "interchanges": (Interchanges.load, ("places", "accuracy", "shuffled", "n_pairs", *OF_ORIGIN)),
    "lens_evaluation": (LensEvaluation.load, ("kl", "gain", "n_tokens", "region", *OF_ORIGIN)),
    "probe": (Probe.load, ("cells", "classes", "baseline", "n", *OF_ORIGIN)),
    "probe_task": (probing.read_task, ("tokens", "labels", "types", "sha256")),
    "readings": (Readings.load, ("places", "measures", "control", *OF_ORIGIN)),
    "score": (Score.load, ("protocol", "keys", "measures", "overlap.longest", "provenance.run_id")),
    "sources": (Sources.load, ("query", "items", "provenance")),
    "steering_effects": (SteeringEffects.load, ("coefficients", "effect", "control", *OF_ORIGIN)),
    "steering_vector": (SteeringVector.load, ("place", "values", "prompts", "n_toward")),
    "trace": (Trace.load, ("residual", "mlps", "attention", "subject", "draws")),
    "trajectory": (Trajectory.load, ("points", "checkpoints", "readings", "run_id")),
    "tuned_lens": (lenses.load_tuned_lens, ("translators.weight", "control.bias", "fit")),
}
WITHOUT_PANEL = {"circuit.mib", "probe_task", "tuned_lens"}
SCHEMA = re.compile(r'"(openbook[./][\w.-]+/v?\d+)"')


def plain(value: Any) -> Any:
    """Texts, numbers and lists of them, as JSON has them."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return sorted(value) if isinstance(value, frozenset) else value


def facts(result: object, names: tuple[str, ...]) -> dict[str, Any]:
    """Some attributes of an object, as plain values."""
    return {name: plain(attrgetter(name)(result)) for name in names}


def same(found: Any, said: Any) -> bool:
    """Whether all that was said is there and equal, floats to 1e-6."""
    if isinstance(said, dict):
        return all(one in found and same(found[one], said[one]) for one in said)
    if isinstance(said, list):
        return len(found) == len(said) and all(map(same, found, said))
    if isinstance(said, float):
        return found == pytest.approx(said, rel=1e-6, abs=1e-9)
    return found == said


@pytest.fixture(scope="module")
def golden(tmp_path_factory) -> Path:
    """A copy, at a place where none of it was made."""
    return Path(shutil.copytree(GOLDEN, tmp_path_factory.mktemp("moved") / "golden"))


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What was written down when the files were made."""
    return json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))


# --- the files themselves ------------------------------------------------------------------------


def test_the_golden_files_are_those_that_were_made(expected):
    there = {
        path.relative_to(GOLDEN).as_posix(): storage.sha256_file(path)
        for path in GOLDEN.rglob("*")
        if path.is_file() and path.name != "expected.json"
    }
    assert there == expected["files"]


def test_the_golden_files_are_small_and_name_no_place_of_a_machine():
    files = [path for path in GOLDEN.rglob("*") if path.is_file()]
    assert len(files) < 130
    assert sum(path.stat().st_size for path in files) < 1_500_000
    texts = {path.name: path.read_bytes().decode("latin-1") for path in files}
    assert {name: said for name, text in texts.items() if (said := trespasses(text))} == {}


def test_every_schema_string_of_the_code_is_in_a_golden_file():
    packages = [path.parent for path in ROOT.glob("*/__init__.py")]
    modules = [path for package in packages for path in package.rglob("*.py")]
    said = {found for path in modules for found in SCHEMA.findall(path.read_text("utf-8"))}
    written = [path for path in GOLDEN.rglob("*.json*") if path.name != "expected.json"]
    held = b"".join(path.read_bytes() for path in written)
    assert len(said) > 20
    assert {one for one in said if f'"{one}"'.encode() not in held} == set()


# --- results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RESULTS)
def test_a_result_of_before_the_move_opens_with_its_values(golden, expected, kind):
    read, names = RESULTS[kind]
    found = facts(read(golden / "results" / f"{kind}.json"), names)
    assert found.keys() == expected[kind].keys()
    assert [name for name in names if not same(found[name], expected[kind][name])] == []


@pytest.mark.parametrize("kind", sorted(RESULTS.keys() - {"circuit.mib"}))
def test_a_result_of_before_the_move_is_written_again_byte_for_byte(golden, tmp_path, kind):
    path = golden / "results" / f"{kind}.json"
    RESULTS[kind][0](path).save(tmp_path / path.name)
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", sorted(RESULTS.keys() - WITHOUT_PANEL))
def test_a_notebook_shows_a_result_of_before_the_move(golden, kind):
    result = RESULTS[kind][0](golden / "results" / f"{kind}.json")
    html = HTMLFormatter()(result)
    assert html is not None
    assert f"<b>{type(result).__name__}</b>" in html
    assert len(html.encode()) < 50_000
    said = unescape(html.replace("<code>", "`").replace("</code>", "`"))
    assert type(result).meaning in said
    whole, on_github = Read(html), Read(saved_outputs.as_github(html))
    assert (on_github.text, on_github.cells) == (whole.text, whole.cells)
    assert not on_github.attributes


def test_a_mib_circuit_of_before_the_move_is_written_again_byte_for_byte(golden, tmp_path):
    path = golden / "results" / "circuit.mib.json"
    circuits.write_mib(tmp_path / path.name, circuits.read_mib(path))
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    of_circuit = circuits.open_circuit(golden / "results" / "circuit.json")
    assert of_circuit.kept.equal(circuits.read_mib(path).kept)


def test_a_traced_text_of_before_the_move_has_its_seal_and_its_spans(golden, expected):
    """It has no loader; other programs read the file."""
    found = storage.read_sealed(golden / "results" / "generation.json")
    assert (found["kind"], found["schema"]) == ("generation", 1)
    assert same({name: found[name] for name in expected["generation"]}, expected["generation"])


# --- several runs --------------------------------------------------------------------------------


def lineage_query(run: runs.Run) -> queries.Query:
    """What is asked of the golden run: the log-probability of three words."""
    return queries.query_of_text("w1 w2 w3", run.known_tokenizer(), n_ctx=16)


def ladder_ends() -> tuple[Recipe, Recipe]:
    """The recipes of the golden ladder, which differ in MLP and norm."""
    model = GPTConfig(n_layers=1, n_heads=2, d_model=16, n_ctx=16, d_vocab=1)
    start = Recipe(
        name="first", model=model, batch_size=4, steps=6, lr=1e-2, min_lr=1e-3, warmup_steps=2,
        checkpoint_every=3, optimizer_every=3,
    )  # fmt: skip
    return start, replace(
        start, name="last", model=replace(model, mlp="swiglu", norm="rmsnorm", d_mlp=0)
    )


@pytest.mark.integration
def test_the_losses_of_a_golden_ensemble_are_computed_again(golden):
    run = runs.open(golden / "run")
    said = EnsembleEvaluation.load(golden / "results" / "ensemble.json")
    found = ensembles.evaluate(ensembles.ensemble_of([(run, 8), run]))
    assert [row.weight for row in found.rows] == [row.weight for row in said.rows]
    for row, expected in zip(found.rows, said.rows, strict=True):
        assert asdict(row.loss) == pytest.approx(asdict(expected.loss), abs=1e-4)
        if row.difference.low is None:  # the ensemble minus itself: earlier versions said [0, 0]
            assert (row.difference.value, expected.difference.value) == (0, 0)
            continue
        assert asdict(row.difference) == pytest.approx(asdict(expected.difference), abs=1e-4)
    assert found.provenance == said.provenance


@pytest.mark.integration
def test_the_stages_of_a_golden_lineage_are_computed_again(golden, expected):
    """The file has no loader; other programs read it."""
    said = storage.read_sealed(golden / "results" / "lineage.json")
    assert same(said, expected["lineage"])
    run = runs.open(golden / "run")
    (found,) = attribution.across_stages(run, [lineage_query(run)], limit=3)
    ours = found.to_dict()
    assert ours["stages"][0]["change"] == pytest.approx(said["stages"][0]["change"], abs=1e-4)
    assert [one["document"] for one in ours["items"]] == [one["document"] for one in said["items"]]
    scores = [[one["score"] for one in items] for items in (ours["items"], said["items"])]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_a_ladder_of_an_older_version_is_joined_and_not_begun_anew(golden, expected, tmp_path):
    (tmp_path / "ladder").mkdir()
    path = tmp_path / "ladder" / "ladder.json"
    shutil.copy(golden / "results" / "ladder.json", path)
    before = path.read_bytes()
    start, end = ladder_ends()
    joined = ladder.begin(start, end, open_store(golden / "store"), out=path.parent, seeds=2)
    assert path.read_bytes() == before
    assert [one.name for one in joined.trials] == expected["ladder"]
    assert joined.numerics.threads == 1


# --- token stores and what is computed from them -------------------------------------------------


@pytest.mark.parametrize("kind", ["store", "packed"])
def test_a_token_store_of_before_the_move_opens(golden, expected, kind):
    said, store = expected[kind], open_store(golden / kind)
    verify_store(store)
    assert store.fingerprint == said["fingerprint"]
    assert store.tokenizer.sha256 == said["tokenizer"]
    assert [store.n_documents, store.n_tokens, store.train_tokens] == said["counts"][:3]
    assert [store.early_tokens, store.vocab_size, store.eot] == said["counts"][3:]
    assert (store.layout, store.row_length, store.truth) == tuple(said["about"])
    # The number of its prompt's tokens came later, and is 0 outside tuning stores.
    known = [document | {"prompt_tokens": 0} for document in said["documents"]]
    assert [plain(store.document(one)) for one in said["at"]] == known
    assert [store.text(one) for one in said["at"]] == said["texts"]


def test_a_tokenizer_of_before_the_move_opens(golden, expected):
    words = load_tokenizer(golden / "store" / "tokenizer.json")
    pairs = load_tokenizer(golden / "packed" / "tokenizer.json")
    assert (words.kind, pairs.kind) == ("word", "bpe")
    said = expected["tokenizers"]
    assert words.encode("w3 w7 d5").tolist() == said["word"]
    assert pairs.encode("k3 is v3").tolist() == said["bpe"]
    assert pairs.decode(said["bpe"]) == "k3 is v3"


def test_a_token_index_of_before_the_move_opens(golden, expected):
    said, store = expected["index"], open_store(golden / "store")
    token_index.verify(store)
    index = token_index.open(store)
    assert [plain(one.to_dict()) for one in index.counts(said["queries"])] == said["counts"]
    hits = index.find(said["queries"][0], limit=None, every=True)
    assert [list(hit) for hit in hits] == said["hits"]


def test_an_inverted_file_of_before_the_move_opens(golden, expected):
    said, store = expected["postings"], open_store(golden / "store")
    lexical.verify_inverted_index(store)
    inverted = lexical.open_inverted_index(store)
    assert inverted.n_entries == said["entries"]
    assert inverted.frequency(range(store.vocab_size)).tolist() == said["frequency"]


# --- runs and what is computed from them ---------------------------------------------------------


def run_facts(run: runs.Run) -> dict[str, Any]:
    """Which run it is, what it did and what it has learned."""
    return {
        "id": run.id,
        "knowledge": run.knowledge,
        "finished": run.finished,
        "steps": run.steps,
        "weights": [one.files["model.safetensors"] for one in run.saved],
        "ledger": [plain(one) for one in run.ledger],
        "recipe": plain(run.recipe),
        "removal": plain(run.removal),
        "read": plain(run.documents_read(run.steps_done - 1)),
        "norm": run.load().embed.weight.norm().item(),
    }


RUNS = {
    "run": "run",
    "nanogpt": "nanogpt",
    "stopped": "stopped",
    "retrained": "run/counterfactuals/*",
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_of_before_the_move_opens_and_finds_its_store(golden, expected, kind):
    (path,) = golden.glob(RUNS[kind])
    found = run_facts(runs.open(path))
    assert [name for name in found if not same(found[name], expected[kind][name])] == []
    assert found.keys() == expected[kind].keys()


@pytest.mark.integration
def test_a_run_of_before_the_move_is_verified_with_what_was_trained_from_it(golden):
    for kind in ("run", "nanogpt"):
        found = trainer.verify(runs.open(golden / kind), spans=1)
        assert found.problems == ()
        assert found.reaches("within tolerance")


@pytest.mark.integration
def test_a_run_stopped_before_the_move_goes_on_as_one_that_was_not(golden, expected, tmp_path):
    shutil.copytree(golden / "stopped", tmp_path / "stopped")
    ended = trainer.resume(tmp_path / "stopped", store=golden / "store")
    said = expected["resumed"]
    assert (ended.id, ended.finished, ended.steps) == (said["id"], True, said["steps"])
    assert [row.digest for row in ended.ledger] == said["digests"]
    # Another machine rounds otherwise.
    assert [row.loss for row in ended.ledger] == pytest.approx(said["losses"], abs=1e-3)


def test_the_log_of_a_watched_run_of_before_the_move_opens(golden, expected):
    log = runs.open(golden / "run").watched
    assert log is not None
    assert same(plain(log.looks), expected["watched"]["looks"])
    assert [one.name for one in log.watches] == expected["watched"]["watches"]
    assert list(log.steps) == expected["watched"]["steps"]


def test_rows_over_training_of_before_the_move_are_found_and_nothing_is_computed(golden, expected):
    """The file is found by the digest of name and parameters, a row by the weights' digest."""

    def measure(model: object, step: int) -> dict[str, float]:
        raise AssertionError(f"step {step} is computed again")

    said, run = expected["emergence"], runs.open(golden / "run")
    found = training_dynamics.over_training(
        run, Analysis(said["analysis"], measure, said["parameters"])
    )
    assert same(plain(found.points), said["points"])
    assert found.steps == run.steps


def test_gradients_of_before_the_move_open(golden, expected):
    said, run = expected["gradients"], runs.open(golden / "run")
    stored = gradients.open_gradient_store(golden / "run" / gradients.GRADIENT_FOLDER, run=run)
    gradients.verify_gradient_store(stored)
    assert len(stored.documents) == said["n"]
    assert [list(one) for one in stored.blocks] == said["blocks"]
    assert same(stored.features(said["documents"]).values.tolist(), said["values"])


def test_an_activation_store_of_before_the_move_opens(golden, expected):
    said, store = expected["activations"], activations.open_store(golden / "activations")
    activations.verify_store(store)
    assert (store.sites, len(store), str(store.dtype)) == tuple(said["about"])
    assert [list(one) for one in store.rows(3, 6).tolist()] == said["rows"]
    assert same(store.read(said["about"][0][0], 3, 6).tolist(), said["values"])


def test_weights_kept_of_a_retraining_of_before_the_move_are_found(golden, expected):
    """The file is found by the digest of what was asked for; nothing is trained."""

    def progress(what: str, done: int, total: int | None) -> None:
        raise AssertionError("it is trained again")

    said, run = expected["retrainings"], runs.open(golden / "run")
    again = Retrainings(run, said["mode"], said["first"], golden / "retrainings")
    model = again.without(said["documents"], progress)
    assert model.embed.weight.norm().item() == pytest.approx(said["norm"], rel=1e-6)
    assert len(list((golden / "retrainings").iterdir())) == 1


def test_an_import_of_before_the_move_opens(golden, expected):
    said, run = expected["imported"], runs.open(golden / "imported")
    assert (run.id, run.knowledge) == (said["id"], "weights-only")
    assert trainer.verify(run).problems == ()
    assert run.tokenizer is not None
    assert run.tokenizer.sha256 == said["tokenizer"]
    logits = run.load()(torch.tensor(said["tokens"]))[0, -1]
    torch.testing.assert_close(logits, torch.tensor(said["logits"]), atol=1e-5, rtol=0)


def test_a_hugging_face_folder_of_before_the_move_opens(golden, expected):
    said, model = expected["imported"], models.load(golden / "huggingface")
    logits = model(torch.tensor(said["tokens"]))[0, -1]
    torch.testing.assert_close(logits, torch.tensor(said["logits"]), atol=1e-5, rtol=0)
