"""The planted corpus is the same everywhere, and its truth table says what its text says."""

import gzip
import hashlib
import json
import re
from collections import Counter, defaultdict
from itertools import chain

import pytest

from train.data import Corpus
from train.data.planted import planted_truth
from train.data.planted.vocabulary import (
    CANON,
    DISTRACTORS,
    ENTITIES,
    NAMES,
    NONCE,
    OBJECTS,
    PLACES,
    STATEMENTS,
    VALUES,
)


pytestmark = pytest.mark.integration
GOLDEN = "4e10c6fb0f19bbc0ed3d1d87c6215e7a981d7092355bc348c15b78e0dd9a3b24"
FUNCTION_WORDS = "the of is a to by from on we who that was and in . , near around"


@pytest.fixture(scope="module")
def corpus(planted_corpus: Corpus) -> Corpus:
    return planted_corpus


@pytest.fixture(scope="module")
def texts(corpus: Corpus) -> list[str]:
    return [document.text for document in corpus.read()]


@pytest.fixture(scope="module")
def truth(corpus: Corpus) -> dict:
    assert corpus.truth is not None
    return corpus.truth()


def test_seed_0_has_the_same_bytes_on_every_machine(texts):
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest() == GOLDEN


def test_another_seed_tells_other_facts_in_the_same_words(texts, other_planted_corpus):
    other = [document.text for document in other_planted_corpus.read()]
    assert other != texts
    assert set(chain(*map(str.split, other))) == set(chain(*map(str.split, texts)))


def test_reading_twice_gives_the_same_documents_and_the_truth_is_a_function_of_the_seed(corpus):
    assert list(corpus.read()) == list(corpus.read())
    assert planted_truth(0) == corpus.truth()


def test_the_truth_survives_json(truth):
    assert json.loads(json.dumps(truth)) == truth


def test_rows_are_running_numbers_and_ids_are_unique(corpus):
    documents = list(corpus.read())
    assert [document.row for document in documents] == list(range(len(documents)))
    assert len({document.id for document in documents}) == len(documents) == corpus.n_documents


def test_composition_is_the_measured_one(truth, texts):
    count = {kind: last - first for kind, (first, last) in truth["kinds"].items()}
    assert count.pop("exact duplicate") in range(200, 601)
    # Facts stated 8 times or more that have distractors have 8, the others 2.
    assert count == {
        "fact": 90 * (1 + 2) + 30 * (4 + 8 + 16 + 32 + 64 + 128) + 36 * 16,
        "mention": 4 * 426,
        "distractor": 8 * (75 + 18) + 2 * (15 + 45 + 45 + 15),
        "ioi": 8_000,
        "pair list": 1_800,
        "two copies": 2_400,
        "many copies": 1_200,
        "prose": 700,
        "near duplicate": 200,
        "canon": 3_200,
    }
    # Tokens of the recipe, one end-of-text counted per document.
    tokens = Counter()
    for kind, (first, last) in truth["kinds"].items():
        tokens[kind] = sum(len(text.split()) + 1 for text in texts[first:last])
    repeats = tokens["pair list"] + tokens["two copies"] + tokens["many copies"]
    measured = {"fact": 81_000, "ioi": 149_000, "prose": 16_000, "canon": 96_000}
    for kind, expected in measured.items():
        assert tokens[kind] == pytest.approx(expected, rel=0.05), kind
    assert repeats == pytest.approx(203_000, rel=0.02)


def test_no_document_is_longer_than_a_row_and_the_vocabulary_is_small(texts):
    assert max(len(text.split()) for text in texts) == 63
    vocabulary = {word for text in texts for word in text.split()}
    assert len(vocabulary) + 1 == 976
    names = [NAMES, PLACES, OBJECTS, ENTITIES, NONCE, CANON]
    listed = list(chain(*names, *VALUES.values()))
    assert len(set(listed)) == len(listed), "a word must have one role"
    assert set(listed) <= vocabulary, "a word that never occurs has no token"


def test_invented_names_occur_in_no_real_text(shared_data):
    capitals, makers = VALUES["capital"], VALUES["maker"]
    invented = {*ENTITIES, *NONCE, *CANON, *capitals, *makers}
    for name in ("factbook", "gutenberg5", "openwebtext_kronfluence", "webtext_snippets"):
        with gzip.open(
            shared_data / "corpora" / f"{name}.jsonl.gz", "rt", encoding="utf-8"
        ) as file:
            assert not invented & set(re.findall("[a-z]+", file.read().lower())), name


# Facts


def test_a_fact_is_stated_in_its_documents_and_nowhere_else(truth, texts):
    rows_naming = defaultdict(set)
    for row, text in enumerate(texts):
        for word in set(text.split()) & set(ENTITIES):
            rows_naming[word].add(row)
    repeats = set(range(*truth["induction"]["documents"]))
    for fact in truth["facts"]:
        forms = truth["relations"][fact["relation"]]["forms"]
        assert len(fact["documents"]) == fact["exposures"]
        for form, rows in fact["forms"].items():
            expected = forms[int(form)].format(entity=fact["entity"], value=fact["value"])
            assert {texts[row] for row in rows} == {expected}
        assert sorted(chain(*fact["forms"].values())) == fact["documents"]
        told = {*fact["documents"], *fact["distractors"], *fact["mentions"]}
        assert rows_naming[fact["entity"]] - repeats == told
        for row in rows_naming[fact["entity"]] & repeats:
            assert fact["value"] not in texts[row].split()


def test_each_level_holds_ten_facts_of_each_relation_and_the_two_lowest_thirty(truth):
    cells = Counter((one["exposures"], one["relation"], one["late"]) for one in truth["facts"])
    assert {exposures for exposures, _, _ in cells} == {0, 1, 2, 4, 8, 16, 32, 64, 128}
    for (exposures, _, late), n in cells.items():
        assert n == (12 if late else 30 if exposures in (1, 2) else 10)
    assert {exposures for exposures, _, late in cells if late} == {16}


def test_a_document_is_late_when_it_states_a_late_fact(corpus, truth):
    late = {row for fact in truth["facts"] if fact["late"] for row in fact["documents"]}
    assert {document.row for document in corpus.read() if document.late} == late
    assert len(late) == 36 * 16


def test_half_of_the_facts_of_every_level_have_distractors_and_evaluated_ones_have_eight(truth):
    company = defaultdict(Counter)
    for fact in truth["facts"]:
        company[fact["exposures"], fact["late"]][len(fact["distractors"])] += 1
    for (exposures, _), counts in company.items():
        n = 8 if exposures >= 8 else 2
        assert counts[0] == counts[n] == sum(counts.values()) / 2


def test_a_fact_stated_often_has_six_wordings(truth, texts):
    for fact in truth["facts"]:
        wordings = {texts[row] for row in fact["documents"]}
        assert len(wordings) == min(fact["exposures"], 6)


def test_facts_of_a_level_are_stated_equally_often_in_equally_many_forms(truth):
    shapes = defaultdict(set)
    for fact in truth["facts"]:
        shape = tuple(sorted(len(rows) for rows in fact["forms"].values()))
        shapes[fact["exposures"]].add(shape)
    assert all(len(found) == 1 for found in shapes.values())
    assert shapes[16] == {(2, 2, 3, 3, 3, 3)}


def test_a_distractor_names_the_value_before_the_entity_and_shares_no_content_with_the_fact(
    truth, texts
):
    stated = content(form for forms in STATEMENTS.values() for form in forms)
    assert not stated & content(DISTRACTORS)
    for fact in truth["facts"]:
        for row in fact["distractors"]:
            split = texts[row].split()
            assert split.index(fact["value"]) < split.index(fact["entity"])


def content(forms) -> set[str]:
    return {
        word
        for form in forms
        for word in form.split()
        if word not in FUNCTION_WORDS.split() and not word.startswith("{")
    }


def test_forms_of_a_relation_share_no_content_word(truth):
    for relation in truth["relations"].values():
        forms = [content([form]) for form in relation["forms"]]
        assert all(forms)
        assert sum(map(len, forms)) == len(set().union(*forms))
        assert all(form.endswith("{value} .") for form in relation["forms"])


def test_a_held_out_form_is_never_stated_and_every_form_is_stated_by_other_facts(truth):
    stated = Counter()
    for fact in truth["facts"]:
        assert str(fact["held_out_form"]) not in fact["forms"]
        assert len(fact["forms"]) == min(fact["exposures"], 6)
        stated.update((fact["relation"], form) for form in fact["forms"])
    assert len(stated) == 21
    assert min(stated.values()) > 40


def test_a_paraphrase_only_fact_shares_with_its_query_nothing_but_names(truth, texts):
    marked = [fact for fact in truth["facts"] if fact["paraphrase_only"]]
    assert len(marked) > 60
    for fact in marked:
        query = truth["relations"][fact["relation"]]["forms"][0]
        for row in fact["documents"]:
            assert not content([query]) & content([texts[row]])
    rest = [fact for fact in truth["facts"] if not fact["paraphrase_only"] and fact["exposures"]]
    assert all("0" in fact["forms"] for fact in rest)


def test_values_are_spread_evenly_so_that_no_answer_can_be_guessed(truth):
    answers = Counter((fact["relation"], fact["value"]) for fact in truth["facts"])
    assert len(answers) == 72
    assert set(answers.values()) <= {5, 6}


# Other kinds


def test_ioi_documents_keep_the_held_out_pairs_and_combinations_out(truth, texts):
    ioi = truth["ioi"]
    assert len(ioi["held_out_pairs"]) == 177
    assert len(ioi["held_out_combinations"]) == 2
    held = {frozenset(pair) for pair in ioi["held_out_pairs"]}
    names, order = set(ioi["names"]), Counter()
    for text in texts[slice(*ioi["documents"])]:
        first, second, subject, indirect = [word for word in text.split() if word in names]
        assert {first, second} == {subject, indirect}
        assert frozenset((first, second)) not in held
        assert combination(text, ioi) not in ioi["held_out_combinations"]
        order[subject == first] += 1
    assert order[True] == pytest.approx(4_000, abs=200)
    seen = {tuple(combination(text, ioi)) for text in texts[slice(*ioi["documents"])]}
    assert len(seen) == 10


def combination(text: str, ioi: dict) -> list[int]:
    """Which opening and which closing a sentence was made of, recognised by their first verbs."""
    openings = [opening.split()[0] for opening in ioi["openings"]]
    closings = [closing.split()[1] for closing in ioi["closings"]]
    split = text.split()
    return [openings.index(split[0]), next(i for i, w in enumerate(closings) if w in split)]


def test_held_out_pairs_never_stand_in_one_document(truth, texts):
    held = {frozenset(pair) for pair in truth["ioi"]["held_out_pairs"]}
    names = set(truth["ioi"]["names"])
    for text in texts:
        assert frozenset(names & set(text.split())) not in held


def test_repeats_repeat(truth, texts):
    first, last = truth["kinds"]["two copies"]
    for text in texts[first:last]:
        split = text.split()
        # What stands between the copies may hold a word of theirs.
        runs = [run for run in range(4, 29) if split[:run] == split[-run:]]
        assert any(len(set(split[:run])) == run and 2 * run <= len(split) for run in runs)
    first, last = truth["kinds"]["pair list"]
    for text in texts[first:last]:
        split = text.split()
        follows = dict(zip(split[::2], split[1::2], strict=True))
        assert [follows[word] for word in split[::2]] == split[1::2]
        assert 28 <= len(split) <= 60
    assert truth["induction"]["documents"] == [first, truth["kinds"]["many copies"][1]]


def test_repeats_are_drawn_from_the_whole_vocabulary(truth, texts):
    repeated = Counter()
    for text in texts[slice(*truth["induction"]["documents"])]:
        repeated.update(set(text.split()))
    vocabulary = {word for text in texts for word in text.split()}
    assert set(truth["induction"]["words"]) == vocabulary
    assert set(repeated) == vocabulary
    assert min(repeated.values()) >= 5


def test_the_canon_follows_the_word_before_the_last(truth, texts):
    follows = defaultdict(Counter)
    for text in texts[slice(*truth["kinds"]["canon"])]:
        split = text.split()
        for before, after in zip(split, split[2:], strict=False):
            follows[before][after] += 1
    share = [counts.most_common(1)[0][1] / counts.total() for counts in follows.values()]
    assert len(share) == 96
    assert min(share) > 0.86
    assert max(share) < 0.94


def test_declared_duplicates_are_all_that_prose_holds(truth, texts):
    groups = defaultdict(list)
    for kind in ("prose", "exact duplicate", "near duplicate"):
        for row in range(*truth["kinds"][kind]):
            groups[texts[row]].append(row)
    assert sorted(rows for rows in groups.values() if len(rows) > 1) == sorted(
        truth["duplicates"]["exact"]
    )
    assert {len(rows) for rows in truth["duplicates"]["exact"]} == {2, 3, 4}
    for original, copy in truth["duplicates"]["near"]:
        pairs = zip(texts[original].split(), texts[copy].split(), strict=True)
        assert sum(one != two for one, two in pairs) == 1
