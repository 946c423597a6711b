"""The overlap of items with training text, and tables of several models."""

import json
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from data_attribution import contamination, token_index
from data_attribution.errors import QueryError
from data_attribution.token_index import query_tokens
from interp import model_evaluation
from interp.errors import EvaluationError, InterruptedWarning
from tests.worlds.stores import store_of
from train import trainer
from train.data import gpt2_tokenizer, tuning
from train.data.tuning import Example, TuningSet
from train.errors import DamagedError, TrainError
from train.runs import Run


pytestmark = pytest.mark.integration
READ = ["a b c d e f g h", "b c d x y z", "h g f e d c b a"]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    store = store_of(tmp_path_factory.mktemp("store") / "made", READ)
    return token_index.build(store)


def longest_by_hand(text: str) -> int:
    """Longest run of words of a text that stands in one document, by trying all of them."""
    words = text.split()
    inside = [f" {document} " for document in READ]
    runs = [
        stop - start
        for start in range(len(words))
        for stop in range(start + 1, len(words) + 1)
        if any(f" {' '.join(words[start:stop])} " in document for document in inside)
    ]
    return max(runs, default=0)


def test_the_longest_shared_run_is_that_of_trying_all_of_them(index):
    draw = np.random.default_rng(0)
    words = ["a", "b", "c", "d", "e", "f", "g", "h", "x", "y", "z"]
    texts = [" ".join(draw.choice(words, size=draw.integers(1, 14))) for _ in range(60)]
    texts += ["c d e f g", "a b c d x y z", "h a"]
    found = contamination.overlap(texts, index, n=4)
    assert found.longest.tolist() == [longest_by_hand(text) for text in texts]
    assert found.lengths.tolist() == [len(text.split()) for text in texts]
    assert found.flagged.tolist()[-3:] == [True, True, False]
    # A match does not cross the end of a document: "h" ends one and "b" begins the next.
    assert contamination.overlap(["g h b c"], index, n=4).longest.tolist() == [2]


def test_an_item_shorter_than_the_ngram_overlaps_if_all_of_it_occurs(index):
    found = contamination.overlap(["c d e", "c d a", ""], index, n=13)
    assert found.flagged.tolist() == [True, False, False]
    with pytest.raises(QueryError, match="an overlap of 0 tokens was asked for"):
        contamination.overlap(["a"], index, n=0)


def test_an_item_copied_into_the_middle_of_a_sentence_overlaps_whole(tmp_path):
    """Behind a space its first word has fewer tokens: " quotas" has one, and "quotas" two."""
    store = store_of(tmp_path / "bpe", ["they met quotas for folders"], tokenizer=gpt2_tokenizer())
    index = token_index.build(store)
    found = contamination.overlap(["quotas for folders", "folders", "folders met"], index)
    assert [len(store.tokenizer.encode(text)) for text in ("folders", " folders")] == [2, 1]
    assert found.flagged.tolist() == [True, True, False]


def test_held_out_documents_are_not_training_text(make_store):
    texts = [f"only{k} here{k} and{k} there{k}" for k in range(40)]
    store = make_store(texts, held_out=0.5)
    index = token_index.build(store)
    items = model_evaluation.load("heldout", store=store)
    assert not contamination.overlap(items.texts, index, n=3).flagged.any()
    read = [store.text(k) for k in range(store.n_documents) if store.starts[k] < store.train_tokens]
    assert contamination.overlap(read, index, n=3).flagged.all()


@pytest.fixture(scope="module")
def facts(tmp_path_factory, lookup_run):
    """Twelve learned pairs and twelve wrong ones as texts of lambada, and the run's index."""
    token_index.build(lookup_run.store)
    path = tmp_path_factory.mktemp("items") / "facts.jsonl"
    pairs = [(k, k) for k in range(12)] + [(k, (k + 1) % 12) for k in range(12)]
    rows = [json.dumps({"text": f"k{key} is v{value}"}) for key, value in pairs]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def test_a_table_tells_models_apart_item_by_item_and_says_what_was_read(lookup_run, facts):
    first = f"{lookup_run.path}@0"
    table = contamination.evaluate_models([first, lookup_run], [f"lambada={facts}"])
    untrained, trained = table.scores
    assert [score.model for score in table.scores] == [f"{lookup_run.path.name}@0", "lookup"]
    assert (untrained.provenance.step, trained.provenance.step) == (0, 160)
    # Each learned pair is a whole training document, and no wrong one is.
    assert isinstance(trained.overlap, model_evaluation.Overlap)
    assert trained.overlap.flagged.tolist() == [True] * 12 + [False] * 12
    row: Any = trained.rows()[0]
    assert (row["n"], row["n_without_overlap"]) == (24, 12)
    assert row["value"] >= 0.4 > row["value_without_overlap"]["value"]
    difference = table.difference("lookup", "lambada", "accuracy")
    assert difference.verdict == "higher"
    assert table.difference(untrained.model, "lambada", "accuracy") is None
    text = table.lines()
    assert "12 (50.0% >= 13 tokens)" in text
    assert " higher" in text
    content: Any = table.to_dict()
    assert [one["measure"] for one in content["differences"]] == ["accuracy", "perplexity per word"]
    assert content["differences"][0]["verdict"] == "higher"
    assert [one["overlap"]["value"] for one in content["rows"]] == [0.5] * 4


def test_nothing_is_evaluated_before_every_model_and_set_is_there(lookup_run, facts, tmp_path):
    def worked(*_):
        raise AssertionError("a model was evaluated")

    (tmp_path / "empty").mkdir()
    run, good = lookup_run.path, f"lambada={facts}"
    for models, sets, error, match in (
        ([run, f"{run}@41"], [good], TrainError, "no checkpoint at step 41; nearest is 40"),
        ([run, f"{run}x"], [good], TrainError, "neither a run .* nor a Hugging Face model"),
        ([run, tmp_path / "empty"], [good], TrainError, "neither a run .* nor a Hugging Face"),
        ([run], [good, "sst2=nowhere"], EvaluationError, "there is no file nowhere"),
        ([run], [good, "heldout"], EvaluationError, "holds out none of its 240 documents"),
        ([run], [good, good], EvaluationError, "lambada was given twice.*a command of its own"),
    ):
        with pytest.raises(error, match=match):
            contamination.evaluate_models(models, sets, progress=worked)


def test_models_are_called_by_the_last_part_of_their_path(lookup_run, facts):
    models = [f"{lookup_run.path}/", f"{lookup_run.path}/@40"]
    table = contamination.evaluate_models(models, [f"lambada={facts}"], limit=2)
    assert [score.model for score in table.scores] == ["lookup", "lookup@40"]


def test_a_kept_score_is_not_that_of_another_run_with_equal_weights(
    tiny_run, tiny_recipe, tiny_store, one_thread_numerics, tmp_path
):
    """Two runs of one seed begin with the same weights, and each row names its own run."""
    longer = replace(tiny_recipe, steps=25)
    other = trainer.train(longer, tiny_store, out=tmp_path / "b", numerics=one_thread_numerics)
    assert other.saved_at(0).files == tiny_run.saved_at(0).files
    table = contamination.evaluate_models(
        [f"{tiny_run.path}@0", f"{other.path}@0"], ["heldout"], results=tmp_path / "scores"
    )
    assert [score.provenance.run_id for score in table.scores] == [tiny_run.id, other.id]


def test_items_that_cannot_be_searched_are_evaluated_all_the_same(lookup_run, facts, monkeypatch):
    monkeypatch.setattr(query_tokens, "LONGEST", 2)
    (score,) = contamination.evaluate_models([lookup_run], [f"lambada={facts}"]).scores
    assert str(score.overlap).startswith("the items cannot be searched: the query has 3 tokens")


def test_finished_scores_are_kept_and_read_again(lookup_run, facts, tmp_path, monkeypatch):
    models, sets = [lookup_run, f"{lookup_run.path}@40"], [f"lambada={facts}"]
    whole = contamination.evaluate_models(models, sets, results=tmp_path / "scores")
    assert len(list((tmp_path / "scores").iterdir())) == 2

    def never(*_, **__):
        raise AssertionError("a finished score was computed again")

    with monkeypatch.context() as patch:
        patch.setattr(model_evaluation, "evaluate", never)
        again = contamination.evaluate_models(models, sets, results=tmp_path / "scores")
    assert again.to_dict() == whole.to_dict()
    # Fewer items, or another length of the overlap, are another score.
    contamination.evaluate_models(models, sets, n=2, results=tmp_path / "scores")
    contamination.evaluate_models(models, sets, limit=3, results=tmp_path / "scores")
    assert len(list((tmp_path / "scores").iterdir())) == 6


def test_ctrl_c_shows_what_is_finished_and_the_rest_continues(
    lookup_run, facts, tmp_path, monkeypatch
):
    models, sets = [lookup_run, f"{lookup_run.path}@40"], [f"lambada={facts}"]
    real, calls = model_evaluation.evaluate, []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(model_evaluation, "evaluate", interrupted)
        with pytest.warns(InterruptedWarning, match="1 of 2 scores are finished"):
            part = contamination.evaluate_models(models, sets, results=tmp_path)
        assert [score.model for score in part.scores] == ["lookup"]
        calls.append(())
        calls[:] = calls[:1]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(KeyboardInterrupt):  # nothing was finished
                contamination.evaluate_models(models[1:], sets)
    assert len(contamination.evaluate_models(models, sets, results=tmp_path).scores) == 2


def test_what_cannot_be_compared_or_searched_is_said_in_the_row(lookup_run, tiny_run):
    table = contamination.evaluate_models(
        [tiny_run, f"{tiny_run.path}@8"], [f"heldout={tiny_run.store.path}"]
    )
    assert isinstance(table.scores[0].overlap, str)
    assert table.scores[0].overlap.startswith("no token index; build one with `openbook index")
    assert "unknown" in table.lines()
    with pytest.raises(EvaluationError, match="holds out none of its 240 documents"):
        contamination.evaluate_models([lookup_run], ["heldout"])
    with pytest.raises(EvaluationError, match="was given twice"):
        contamination.evaluate_models([tiny_run, tiny_run], ["heldout"])
    with pytest.raises(EvaluationError, match="0 models and 1 evaluation sets were given"):
        contamination.evaluate_models([], ["heldout"])


# --- lineages ------------------------------------------------------------------------------------

SHORT: dict[str, Any] = {"steps": 2, "batch_size": 2, "checkpoint_every": 2, "optimizer_every": 2}


@pytest.fixture(scope="module")
def tuned(lookup_run, tmp_path_factory):
    """Step 40 of the run tuned on instructions, and that on preferences; all stores indexed."""
    folder, run, step = tmp_path_factory.mktemp("tuned"), lookup_run, 40
    token_index.build(lookup_run.store)
    for objective, kind, shift in (("sft", "instructions", 1), ("dpo", "preferences", 2)):
        rejected = {} if kind == "instructions" else {"rejected": "v11"}
        rows = [Example(k, f"k{k} is", f"v{k + shift}", **rejected) for k in range(8)]
        examples = TuningSet("made", kind, "0", lambda rows=rows: iter(rows))
        store = tuning.build_tuning_store(
            examples, out=folder / kind, tokenizer=run.tokenizer, context=16
        )
        token_index.build(store)
        run = trainer.tune(run, store, objective, out=folder / objective, step=step, **SHORT)
        step = None
    return run


@pytest.fixture
def answers(tmp_path):
    """Four texts: one of pretraining, one of each tuning set, and one of nothing."""
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"k0 is v{k}"}) for k in range(4)))
    return f"lambada={path}"


def test_every_stage_of_a_lineage_is_a_row_with_the_text_read_so_far(tuned, lookup_run, answers):
    table = contamination.evaluate_models([tuned], [answers], stages=True)
    assert [score.model for score in table.scores] == ["lookup@40", "sft", "dpo"]
    assert [score.provenance.step for score in table.scores] == [40, 2, 2]
    overlaps = [score.overlap for score in table.scores]
    assert [one.flagged.tolist() for one in overlaps if not isinstance(one, str)] == [
        [True, False, False, False],
        [True, True, False, False],
        [True, True, True, False],
    ]
    assert {one.baseline for one in table.differences} == {"lookup@40"}
    # A run that several models have in common is one row, whatever its path is written as.
    sources = [f"{lookup_run.path}@40", tuned.open_base(), tuned.path, lookup_run]
    table = contamination.evaluate_models(sources, [answers], stages=True)
    assert [score.model for score in table.scores] == ["lookup@40", "sft", "dpo", "lookup"]


def test_a_tuned_run_alone_has_read_the_text_of_all_stages(tuned, answers, monkeypatch, tmp_path):
    (score,) = contamination.evaluate_models([tuned], [answers], results=tmp_path).scores
    assert isinstance(score.overlap, model_evaluation.Overlap)
    assert score.overlap.flagged.tolist() == [True, True, True, False]

    def gone(run):
        raise DamagedError("no run is there")

    monkeypatch.setattr(Run, "lineage", gone)
    (score,) = contamination.evaluate_models([tuned], [answers], results=tmp_path).scores
    assert score.overlap == (
        "the training text of the run that it was tuned from is not known: no run is there"
    )
