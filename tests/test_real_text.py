"""The whole path on text that nobody here wrote: the CIA World Factbook, from file to documents.

Built, trained, indexed and traced by the command, then questioned through Python. Laws, not
remembered numbers: what is said of a document is looked up in that document.
"""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from data_attribution import attribution, token_index
from interp import behaviours, models, patching
from tests.worlds.known import known
from train import runs, trainer


pytestmark = pytest.mark.slow
# A fifth of the recipe: copying has formed, and the run is trained in half a minute to two.
STEPS, PROMPTS = 300, 128
COMMAND = [sys.executable, "-c", "from data_attribution.cli.app import main; main()"]


def command(*arguments: object) -> None:
    ended = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@cache
def made(corpus: Path, folder: Path) -> Path:
    """The run, made once by the command as a reader of the README would make it."""
    store, out = folder / "factbook", folder / "run"
    chosen = ("--tokenizer", "bpe", "--vocab-size", 2048, "--held-out", 0.05)
    command("corpus", "build", corpus, *chosen, "--out", store)
    command("train", "text-small", store, "--out", out, "--steps", STEPS, "--threads", 1)
    command("index", "build", store)
    return out


@pytest.fixture
def run(shared_data, tmp_path_factory):
    corpus = shared_data / "corpora" / "factbook.jsonl.gz"
    return runs.open(made(corpus, tmp_path_factory.getbasetemp() / "real"))


@pytest.fixture
def copying(run):
    return behaviours.load("induction", run, n_prompts=PROMPTS)


def moved(model, behaviour) -> np.ndarray:
    """What the earlier occurrence adds to the score, prompt by prompt, in nats."""
    with torch.inference_mode():
        clean, corrupt = (
            behaviour.score(model(one)) for one in (behaviour.clean, behaviour.corrupt)
        )
    return (clean - corrupt).double().numpy()


def test_the_loss_on_held_out_documents_falls_from_that_of_a_guess(run):
    losses = [row.held_out for row in run.ledger if row.held_out is not None]
    losses.append(trainer.held_out_loss(run.load(), run.store, run.recipe, run.numerics))
    assert losses[0] == pytest.approx(np.log(2048), abs=0.3)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 4


def test_the_run_verifies_to_the_bit(run):
    found = trainer.verify(run, spans=1)
    assert (found.level, found.problems) == ("bit-exact", ())


def test_the_prompts_are_held_out_text_in_which_only_the_answer_was_replaced(run, copying):
    index = token_index.open(run.store)
    for clean, corrupt, answer, foil in zip(
        copying.clean, copying.corrupt, copying.answer, copying.foil, strict=True
    ):
        asked = torch.cat([clean[1:], answer[None]])
        assert any(hit.held_out for hit in index.find(asked.tolist(), limit=None))
        assert torch.equal(corrupt, torch.where(clean == answer, foil, clean))
        assert torch.equal(corrupt[-8:], clean[-8:])
        assert foil not in clean
        before = (clean[:-1] == clean[-1]).nonzero()[-1]
        assert clean[before + 1] == answer


def test_answer_and_foil_can_change_places_so_that_both_prompts_hold_the_same_tokens(run, tmp_path):
    text = (behaviours.PACKAGED / "induction.toml").read_text()
    (tmp_path / "order.toml").write_text(text.replace("exchange = false", "exchange = true"))
    order = behaviours.load(tmp_path / "order.toml", run, n_prompts=PROMPTS)
    assert torch.equal(order.clean.sort(dim=1).values, order.corrupt.sort(dim=1).values)
    assert not (order.clean == order.corrupt).all(dim=1).any()


def test_the_trained_model_copies_what_followed_before_and_the_untrained_does_not(run, copying):
    trained, untrained = run.load(), run.load(0)
    assert behaviours.check(trained, copying).interval[0] > 0.6
    assert abs(behaviours.measure(untrained, copying).score) < 0.3
    found = moved(trained, copying)
    assert found.mean() - 2 * found.std() / np.sqrt(len(found)) > 0.3
    assert abs(moved(untrained, copying).mean()) < 0.1


def test_the_heads_that_carry_it_are_named_with_intervals_and_their_layer_carries_most(
    run, copying
):
    model = models.load(run)
    heads, layers = patching.heads(model, copying), patching.attention(model, copying)
    (best,), (layer,) = heads.top(1), layers.top(1)
    assert layer == f"{best[:2]}.attn"
    low, high = known(heads.interval(best))
    assert 0.1 < low <= heads[best] <= high
    assert layers.interval(layer)[0] > 0.5
    assert heads.clean - heads.corrupt == pytest.approx(moved(model, copying).mean(), abs=1e-4)
    assert (heads.provenance.run_id, heads.provenance.knowledge) == (run.id, "full")


@pytest.fixture
def sentence(run) -> str:
    model = run.load()
    prompt = model.to_tokens("National color(s):")
    drawn = [model.generate(prompt, 32, temperature=0.7, seed=0) for _ in range(2)]
    assert torch.equal(*drawn)
    return model.to_string(drawn[0][0, 1:])


def test_a_generated_sentence_is_traced_to_documents_that_hold_it_and_steps_that_read_them(
    run, sentence
):
    sources = attribution.documents(run, sentence, methods="lexical", limit=8)
    assert len(sources) == 8
    for source in sources:
        # Bytes may begin inside a character; what is left of it prints as U+FFFD.
        span = source.span.strip("\ufffd")
        assert span in run.store.text(source.document)
        assert span.strip() in sentence
        assert source.document < run.store.manifest["counts"]["train_documents"]
        assert all(source.document in run.documents_read(step) for step in source.steps)
    first = sources.items[0]
    read = [step for step in range(STEPS) if first.document in run.documents_read(step)]
    assert tuple(read) == first.steps


def test_the_command_says_the_same_as_python(run, sentence, openbook):
    traced = openbook(
        "trace",
        "sentence",
        run.path,
        sentence,
        "--json",
        "--limit",
        8,
        "--method",
        "lexical",
    )
    found = attribution.documents(run, sentence, methods="lexical", limit=8)
    assert [one["id"] for one in json.loads(traced.out)["items"]] == list(found.ids)
    spans = openbook("index", "spans", run.store.path, sentence, "--run", run.path, "--json")
    for span in json.loads(spans.out)["spans"]:
        assert span["text"].strip() in sentence
        for hit in span["hits"]:
            assert span["text"] in run.store.text(hit["document"])
            assert all(hit["document"] in run.documents_read(step) for step in hit["steps"])
            assert not (hit["held_out"] and hit["steps"])
