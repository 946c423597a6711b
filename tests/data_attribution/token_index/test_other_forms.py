"""A query that does not occur says whether another form of it does."""

import unicodedata

import pytest

from data_attribution import token_index
from tests.worlds.stores import store_of
from train.errors import TokenizerError


CAFE, LINES = "a café noir", "first line\r\nsecond line"
NFD = unicodedata.normalize("NFD", CAFE)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Byte pairs of texts in NFC, with lines that end with CRLF."""
    out = tmp_path_factory.mktemp("forms") / "store"
    texts = [CAFE, f"twice {CAFE}", LINES, "plain"]
    return token_index.build(store_of(out, texts, tokenizer="bpe", vocab_size=260))


def test_a_query_in_another_normal_form_names_the_one_that_occurs(index):
    found = index.count(NFD)
    assert (found.count, found.held_out) == (0, 0)
    assert [(one.name, one.count) for one in found.other_forms] == [("NFC", 2)]
    assert found.hint == "another form of the query occurs: NFC has 2 occurrences and 0 held out"
    assert str(found).endswith(found.hint)
    assert found.to_dict()["other_forms"] == [{"name": "NFC", "count": 2, "held_out": 0}]


def test_a_query_with_other_ends_of_lines_names_those_that_occur(index):
    (form,) = index.count("line\nsecond").other_forms
    assert (form.name, form.count) == ("CRLF", 1)


def test_both_are_found_together(tmp_path):
    store = store_of(tmp_path / "store", [f"{CAFE}\r\nend"], tokenizer="bpe", vocab_size=260)
    (form,) = token_index.build(store).count(f"{NFD}\nend").other_forms
    assert form.name == "NFC with CRLF"


@pytest.mark.parametrize("query", [CAFE, "absent", "noir\n", "né", [1, 2, 3]])
def test_a_query_that_occurs_or_has_no_form_that_does_says_nothing(index, query):
    found = index.count(query)
    assert (found.other_forms, found.hint) == ((), "")
    assert "other_forms" not in found.to_dict()


def test_every_way_to_ask_says_the_same(index):
    forms = index.count(NFD).other_forms
    assert index.counts([CAFE, NFD])[1].other_forms == forms
    assert index.find(NFD).found.other_forms == forms
    assert index.finds([NFD])[0].found.other_forms == forms


def test_a_word_that_only_another_form_has_is_named_in_the_error(tmp_path):
    words = token_index.build(store_of(tmp_path / "store", [CAFE]))
    with pytest.raises(TokenizerError, match="another form of the query occurs: NFC has 1 occur"):
        words.count(unicodedata.normalize("NFD", "café"))


def test_the_commands_say_it(index, openbook):
    counted = openbook("index", "count", index.store.path, NFD)
    assert counted.out.endswith(f"{index.count(NFD).hint}\n")
    assert index.count(NFD).hint in openbook("index", "find", index.store.path, NFD).out
    spans = openbook("index", "spans", index.store.path, "e\u0301", "--minimum", 2).out
    assert "another form of the query has some: NFC has 1 span" in spans
