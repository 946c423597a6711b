"""A probe task labels the tokens that it says, and refuses labels that nothing can be made of."""

import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from interp import probing
from interp.errors import ModelError, ProbeError
from interp.probing import ProbeTask, loading, tasks
from train.data import gpt2_tokenizer, train_words
from train.errors import DamagedError


@pytest.fixture(scope="module")
def source(planted_corpus, planted_words) -> SimpleNamespace:
    """A planted store without a disk, its documents in an order of their own."""
    texts = [document.text for document in planted_corpus.read()]
    rows = np.random.default_rng(0).permutation(len(texts))
    return SimpleNamespace(
        truth=planted_corpus.truth(),
        tokenizer=planted_words,
        eot=planted_words.eot,
        rows=rows,
        text=lambda index: texts[rows[index]],
    )


def words_of(task: ProbeTask, source) -> list[str]:
    ids = task.tokens[task.prompt_of, task.positions]
    return source.tokenizer.tokens(ids.tolist())


@pytest.mark.parametrize("name", loading.PLANTED)
def test_every_planted_task_has_classes_that_can_be_cross_validated(name, source):
    task = probing.load_task(name, source, n_cases=600)
    assert np.bincount(task.label_ids).min() >= 10
    assert 300 <= len(task.labels) <= 660
    assert task.n_types < len(task.labels)
    assert (task.tokens[:, 0] == source.eot).all()
    assert task.description
    assert task.sha256 == probing.load_task(name, source, n_cases=600).sha256
    assert task.sha256 != probing.load_task(name, source, n_cases=600, seed=1).sha256


@pytest.mark.parametrize("name", ["word-class", "position", "repeats"])
def test_the_labelled_token_is_the_word_that_is_its_type(name, source):
    task = probing.load_task(name, source, n_cases=300)
    assert words_of(task, source) == list(task.types)


def test_a_word_has_the_class_that_the_truth_table_lists_it_in(source):
    task = probing.load_task("word-class", source, n_cases=600)
    entities = {fact["entity"] for fact in source.truth["facts"]}
    for label, word in zip(task.labels, task.types, strict=True):
        assert (label == "entity") == (word in entities)
        assert (label == "name") == (word in source.truth["ioi"]["names"])


def test_a_position_is_counted_from_the_first_word(source):
    task = probing.load_task("position", source, n_cases=300)
    for label, pos in zip(task.labels, task.positions.tolist(), strict=True):
        low, high = map(int, label.split("-"))
        assert low <= pos - 1 <= high


def test_an_entity_is_labelled_by_its_relation_where_the_sentence_does_not_say_it(source):
    task = probing.load_task("relation", source)
    relation = {fact["entity"]: fact["relation"] for fact in source.truth["facts"]}
    assert words_of(task, source) == list(task.types)
    assert list(task.labels) == [relation[entity] for entity in task.types]
    said = set(source.tokenizer.decode(task.tokens.flatten().tolist()).split())
    values = {value for one in source.truth["relations"].values() for value in one["values"]}
    assert said & values == set()


def test_who_acts_is_named_twice_and_who_receives_once(source):
    acts = probing.load_task("subject-name", source, n_cases=600)
    receives = probing.load_task("indirect-name", source, n_cases=600)
    for task, times in ((acts, 2), (receives, 1)):
        for row, label in zip(task.prompt_of.tolist(), task.labels, strict=True):
            words = source.tokenizer.tokens(task.tokens[row].tolist())
            assert words.count(label) == times


def test_first_and_second_are_balanced_and_say_where_the_receiver_is(source):
    order = probing.load_task("indirect-order", source, n_cases=200)
    assert order.baseline == 0.5
    names = set(source.truth["ioi"]["names"])
    for row, label in zip(order.prompt_of.tolist(), order.labels, strict=True):
        words = source.tokenizer.tokens(order.tokens[row].tolist())
        said = [word for word in words if word in names]
        receiver = next(word for word in said if said.count(word) == 1)
        assert (label == "first") == (said[0] == receiver)


def test_a_task_read_elsewhere_keeps_its_labels(source):
    task = probing.load_task("indirect-order", source, n_cases=40)
    assert set(task.at(-2).positions.tolist()) == {task.tokens.shape[1] - 2}
    assert task.at(3).labels == task.labels
    words = probing.load_task("word-class", source, n_cases=300)
    with pytest.raises(ProbeError, match="labels several tokens of a prompt"):
        words.at(3)


# --- anybody's labels ----------------------------------------------------------------------------


def task(**changes) -> ProbeTask:
    given = {
        "name": "mine",
        "tokens": torch.tensor([[0, 1], [0, 2], [0, 1], [0, 2]]),
        "positions": torch.tensor([1, 1, 1, 1]),
        "labels": ("a", "b", "a", "b"),
        "types": ("one", "two", "one", "two"),
    }
    return ProbeTask(**given | changes)


def test_a_task_is_saved_and_read_back(tmp_path):
    task().save(tmp_path / "mine.json")
    again = probing.read_task(tmp_path / "mine.json")
    assert again.to_dict() == task().to_dict()
    assert again.sha256 == task().sha256


def test_a_changed_file_is_refused(tmp_path):
    path = tmp_path / "mine.json"
    task().save(path)
    path.write_text(path.read_text().replace('"one"', '"two"', 1))
    with pytest.raises(DamagedError, match="does not match its own digest"):
        probing.read_task(path)


def test_texts_written_by_hand_get_an_end_of_text_and_may_count_from_their_end(source, tmp_path):
    path = tmp_path / "mine.json"
    texts = ["the old fox", "anna and the red hen", "the old fox", "anna and the red hen"]
    content = {"name": "mine", "texts": texts, "positions": [-1, -1, 2, 1]}
    content |= {"labels": ["fox", "hen", "fox", "hen"], "types": ["a", "b", "a", "b"]}
    path.write_text(json.dumps(content))
    found = probing.load_task(path, source)
    assert found.tokens.shape == (4, 6)
    assert words_of(found, source) == ["fox", "hen", "old", "anna"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("a", "b", "a")}, "has 3 labels and 4 positions, 4 types, 4 prompts"),
        ({"types": ("one", "two")}, "has 4 labels and 2 types"),
        ({"rows": torch.tensor([0, 1])}, "has 4 labels and 2 rows"),
        ({"labels": ("a",) * 4}, "has 4 cases of 1 class; two classes"),
        ({"positions": torch.tensor([1, 1, 1, 2])}, "1 of 4 cases lie outside its 4 prompts of 2"),
        ({"rows": torch.tensor([0, 1, 2, 4])}, "1 of 4 cases lie outside"),
        ({"types": tuple("wxyz")}, "none of 4 types repeats, so no control task"),
    ],
)
def test_labels_that_nothing_can_be_made_of_are_refused(changes, message):
    with pytest.raises(ProbeError, match=message):
        task(**changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "a probe task is a JSON object, not a list"),
        ("{", "not readable as JSON"),
        ('{"name": "x", "labels": [], "positions": []}', "a probe task without types"),
        ('{"name": "x", "labels": [], "positions": [], "types": []}', "without tokens or texts"),
        (
            '{"name": "x", "labels": ["a"], "positions": null, "types": ["t"], "tokens": [[1]]}',
            "a probe task without positions",
        ),
    ],
)
def test_a_file_that_holds_no_task_is_refused(tmp_path, content, message):
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(ProbeError, match=message):
        probing.read_task(path)


def test_null_stands_for_what_a_file_does_not_give(tmp_path):
    path = tmp_path / "mine.json"
    given = {"name": "x", "labels": [*"abab"], "positions": [0] * 4, "types": [*"ttuu"]}
    tokens = [[number] for number in range(4)]
    path.write_text(json.dumps({**given, "tokens": tokens, "rows": None, "texts": None}))
    assert probing.read_task(path).rows is None


def test_a_name_that_is_none_is_refused_with_the_nearest(source):
    with pytest.raises(ProbeError, match=r"no probe task 'relations'.*relation"):
        probing.load_task("relations", source)


def test_planted_labels_of_a_model_that_read_something_else_are_refused():
    words = train_words(["a b"])
    with pytest.raises(ModelError, match="without a truth table"):
        probing.load_task("relation", SimpleNamespace(tokenizer=words))


# --- tagged sentences ----------------------------------------------------------------------------


@pytest.fixture
def tagged(tmp_path):
    """Two sentences, forty times; one of them has a word that ends inside a token."""
    lines = [
        {"text": "I don't see.", "words": ["I", "do", "n't", "see", "."]},
        {"text": "You see him, Ann.", "words": ["You", "see", "him", ",", "Ann", "."]},
        {"text": "No match", "words": ["Other"]},
    ]
    tags = [
        ["PRON", "AUX", "PART", "VERB", "PUNCT"],
        ["PRON", "VERB", "PRON", "PUNCT", "PROPN", "PUNCT"],
        ["NOUN"],
    ]
    path = tmp_path / "tagged.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for line, upos in zip(lines * 20, tags * 20, strict=True):
            file.write(json.dumps({**line, "upos": upos}) + "\n")
    return path


def test_a_tag_is_read_at_the_token_that_ends_its_word(tagged):
    gpt2 = gpt2_tokenizer()
    found = probing.load_task(tagged, SimpleNamespace(tokenizer=gpt2), n_cases=200)
    ids = found.tokens[found.prompt_of, found.positions].tolist()
    said = {
        (gpt2.decode([token]).strip(), label)
        for token, label in zip(ids, found.labels, strict=True)
    }
    assert said == {
        ("I", "PRON"), ("You", "PRON"), ("him", "PRON"), ("see", "VERB"), (".", "PUNCT"),
        (",", "PUNCT"), ("Ann", "PROPN"), ("'t", "PART"),
    }  # fmt: skip
    assert (found.tokens[:, 0] == gpt2.eot).all()


def test_sentences_that_fit_no_token_are_refused(tmp_path):
    path = tmp_path / "none.jsonl"
    path.write_text(json.dumps({"text": "a", "words": ["b"], "upos": ["X"]}) + "\n")
    with pytest.raises(ProbeError, match="none of 1 sentences can be aligned"):
        tasks.part_of_speech(path, gpt2_tokenizer())


def test_real_sentences_have_the_universal_tags(shared_data):
    gpt2 = gpt2_tokenizer()
    path = shared_data / "eval" / "ud_ewt_pos.jsonl.gz"
    found = tasks.part_of_speech(path, gpt2, n_cases=2000)
    assert len(found.labels) > 1900
    assert {"NOUN", "VERB", "ADJ", "PUNCT", "PRON"} <= set(found.classes)
    ends = gpt2.tokens(found.tokens[found.prompt_of, found.positions].tolist())
    assert all(word.endswith(end.strip()) for word, end in zip(found.types, ends, strict=True))
