"""Examples for tuning: readers, planted sets, and the stores that are built from them."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.worlds.commands import left, refused
from tests.worlds.tuning import tiny_examples, tiny_tuning_store
from train.data import train_words, tuning, verify_store
from train.data.planted import planted_truth
from train.data.tuning import Example, TuningSet
from train.errors import CorpusError, DamagedError, StoreError, TokenizerError


# --- readers -------------------------------------------------------------------------------------


def written(path: Path, *rows: object) -> Path:
    """A file of JSON: a list for `.json`, lines for `.jsonl`."""
    text = json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows))
    path.write_text(text)
    return path


def test_instructions_get_the_template_of_alpaca(tmp_path):
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Greet.", "input": "", "output": "hello"},
    ]
    first, second = tuning.open_tuning_set(
        written(tmp_path / "a.json", *rows), "instructions"
    ).read()
    assert first.prompt.endswith("### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n")
    assert second.prompt.endswith("### Instruction:\nGreet.\n\n### Response:\n")
    assert (first.response, second.response, second.row) == ("3", "hello", 1)


@pytest.mark.parametrize("name", ["response", "completion"])
def test_prompts_with_responses_stay_as_they_are(tmp_path, name):
    path = written(tmp_path / "a.jsonl", {"prompt": "a {b}", name: " c"})
    (example,) = tuning.open_tuning_set(path, "instructions").read()
    assert (example.prompt, example.response, example.rejected) == ("a {b}", " c", None)


def test_preferences_are_read_in_three_forms(tmp_path):
    dialogue = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why?\n\nAssistant:"
    rows = [
        {"prompt": "p", "chosen": "c", "rejected": "r"},
        {"instruction": "Add.", "input": "1", "output": "o", "chosen": "c", "rejected": "r"},
        # The answers begin alike, and one goes on for another turn.
        {"chosen": f"{dialogue} So.", "rejected": f"{dialogue} So what?\n\nHuman: x"},
    ]
    plain, task, talk = tuning.open_tuning_set(
        written(tmp_path / "a.jsonl", *rows), "preferences"
    ).read()
    assert (plain.prompt, plain.response, plain.rejected) == ("p", "c", "r")
    assert "### Instruction:\nAdd." in task.prompt
    assert (talk.prompt, talk.response) == (dialogue, " So.")
    assert talk.rejected == " So what?\n\nHuman: x"


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("instructions", {"text": "x"}, "line 1 has the fields text; instructions have one of"),
        ("preferences", {"prompt": "x", "chosen": "y"}, "has the fields chosen, prompt; pref"),
        ("instructions", {"prompt": "x", "response": 3}, "line 1 has a int as 'response'"),
        ("preferences", {"chosen": "x", "rejected": "y"}, "share no turn 'Assistant:'"),
        ("instructions", ["x"], "holds a list; expected one object a line"),
    ],
)
def test_a_row_of_another_schema_is_named(tmp_path, kind, row, message):
    path = written(tmp_path / "a.jsonl", row)
    with pytest.raises(CorpusError, match=message):
        list(tuning.open_tuning_set(path, kind).read())


def test_files_that_hold_no_examples_are_refused(tmp_path):
    for name, text, error, message in (
        ("a.json", "{", CorpusError, "not readable as JSON"),
        ("a.json", '{"prompt": "x"}', CorpusError, "holds a dict; expected a list"),
        ("a.json", "[3]", CorpusError, "example 0 is a int"),
        ("a.jsonl", '{"prompt"', CorpusError, "line 1 is not readable as JSON"),
        ("a.txt", "text", CorpusError, r"read from \.json and \.jsonl"),
    ):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(error, match=message):
            list(tuning.open_tuning_set(path, "instructions").read())
    (tmp_path / "b.json").write_bytes(b'["\xff"]')
    with pytest.raises(DamagedError, match="not UTF-8"):
        list(tuning.open_tuning_set(tmp_path / "b.json", "instructions").read())
    with pytest.raises(CorpusError, match="there is a folder at"):
        tuning.open_tuning_set(tmp_path, "instructions")
    with pytest.raises(CorpusError, match="no examples of kind 'preference', did you mean"):
        tuning.open_tuning_set("planted", "preference")


def test_rows_that_are_no_examples_are_left_out_counted_and_listed(tmp_path, tiny_store):
    path = written(tmp_path / "a.jsonl", {"prompt": "w1", "response": "w2"}, {"text": "x"}, [])
    path.write_text(path.read_text() + '\n{"prompt": "\\ud800", "response": "w2"}\n{"pro\n')
    store = tuning.build_tuning_store(
        tuning.open_tuning_set(path, "instructions", skip_bad=True),
        out=tmp_path / "store",
        tokenizer=tiny_store.tokenizer,
        context=16,
    )
    assert (store.n_documents, store.manifest["counts"]["skipped_rows"]) == (1, 4)
    listed = [json.loads(line) for line in (store.path / "skipped.jsonl").read_text().splitlines()]
    assert [one["line"] for one in listed] == [2, 3, 4, 5]
    assert listed[0]["reason"].startswith("has the fields text; instructions have one of")
    assert listed[2]["reason"] == "is not UTF-8: half a surrogate pair at letter 0 of 'prompt'"
    verify_store(store)


def test_an_example_with_half_a_surrogate_pair_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "response": "\\ud800"}\n')
    with pytest.raises(DamagedError, match="line 1 is not UTF-8: half a surrogate pair at letter"):
        list(tuning.open_tuning_set(path, "instructions").read())


# --- stores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", tuning.KINDS)
def test_every_example_has_a_row_of_its_own(tiny_store, tmp_path, kind):
    store = tiny_tuning_store(kind, tiny_store.tokenizer, tmp_path / "store")
    verify_store(store)
    examples = {example.row: example for example in tiny_examples(kind).read()}
    assert store.n_documents == len(examples) == len(set(store.rows.tolist()))
    assert store.row_length == store.example_length * (2 if kind == "preferences" else 1)
    assert ((store.starts - 1) % store.row_length == 0).all()
    for document in range(store.n_documents):
        example = examples[store.document(document).row]
        answers = [example.response, *([example.rejected] if example.rejected else [])]
        parts = f" {store.tokenizer.eot_text} ".join(
            f"{example.prompt} {answer}" for answer in answers
        )
        assert store.text(document) == parts
        assert store.prompt_tokens[document] == len(example.prompt.split())


def test_a_changed_mask_is_another_store(tiny_store, tmp_path):
    examples = [Example(0, "w1 w2", "w3"), Example(0, "w1", "w2 w3")]
    stores = [
        tuning.build_tuning_store(
            TuningSet("mine", "instructions", "0", lambda one=one: iter([one])),
            out=tmp_path / str(number),
            tokenizer=tiny_store.tokenizer,
            context=16,
        )
        for number, one in enumerate(examples)
    ]
    assert np.array_equal(stores[0].tokens, stores[1].tokens)
    assert stores[0].fingerprint != stores[1].fingerprint


def test_held_out_prompts_keep_their_copies(tiny_store, tmp_path):
    rows = [Example(row, f"w{row % 10}", f"w{row % 7}") for row in range(40)]
    store = tuning.build_tuning_store(
        TuningSet("mine", "instructions", "0", lambda: iter(rows)),
        out=tmp_path / "store",
        tokenizer=tiny_store.tokenizer,
        context=16,
        held_out=0.3,
    )
    learned = store.manifest["counts"]["train_documents"]
    prompts = [store.text(document).split()[0] for document in range(store.n_documents)]
    assert 0 < learned < 40
    assert not {*prompts[:learned]} & {*prompts[learned:]}


EQUAL = {"prompt": "w1", "chosen": "w2 w3", "rejected": "w2  w3"}
EMPTY = {"prompt": "w1", "chosen": "w2", "rejected": " "}
LONG = {"prompt": "w1 " * 15, "chosen": "w2", "rejected": "w3"}
GOOD = {"prompt": "w1", "chosen": "w2", "rejected": "w3"}


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        (EQUAL, CorpusError, "line 2 has equal answers, so it prefers nothing; mend it"),
        (EMPTY, CorpusError, "line 2 has an empty rejected"),
        (LONG, StoreError, "line 2 has 16 tokens; a context of 16 holds at most 15"),
        ({**GOOD, "chosen": "x9"}, TokenizerError, "line 2: "),
    ],
)
def test_an_example_that_teaches_nothing_is_named_and_nothing_is_written(
    tiny_store, tmp_path, row, error, message
):
    path = written(tmp_path / "a.jsonl", GOOD, row)
    examples = tuning.open_tuning_set(path, "preferences")
    options = {"out": tmp_path / "store", "tokenizer": tiny_store.tokenizer, "context": 16}
    with pytest.raises(error, match=message):
        tuning.build_tuning_store(examples, **options)
    assert left(tmp_path) == ["a.jsonl"]


def test_dropped_examples_are_counted(tiny_store, tmp_path):
    path = written(tmp_path / "a.jsonl", GOOD, EQUAL, EMPTY, LONG, EQUAL)
    examples = tuning.open_tuning_set(path, "preferences")
    options = {"tokenizer": tiny_store.tokenizer, "context": 16, "drop": True}
    store = tuning.build_tuning_store(examples, out=tmp_path / "store", **options)
    assert store.n_documents == 1
    assert store.manifest["counts"]["dropped"] == {
        "an empty rejected": 1,
        "equal answers": 2,
        "too long": 1,
    }
    nothing = tuning.open_tuning_set(written(tmp_path / "b.jsonl", EQUAL), "preferences")
    with pytest.raises(CorpusError, match="no usable example: 1 equal answers"):
        tuning.build_tuning_store(nothing, out=tmp_path / "other", **options)


@pytest.mark.integration
def test_the_command_refuses_in_one_line(tiny_run, openbook, tmp_path):
    for row, code, words in (
        (EQUAL, 2, ("line 1 has equal answers",)),
        ({"text": "w1"}, 2, ("has the fields text",)),
    ):
        path = written(tmp_path / "a.jsonl", row)
        ended = openbook(
            "tune", "data", tiny_run.path, path, "--kind", "preferences",
            "--folder", tmp_path / "store",
        )  # fmt: skip
        refused(ended, code, *words)
        assert left(tmp_path) == ["a.jsonl"]
    written(tmp_path / "a.jsonl", GOOD)
    ended = openbook(
        "tune", "data", tiny_run.path, tmp_path / "a.jsonl", "--kind", "preferences",
        "--folder", tmp_path / "store",
    )  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    assert "preferences" in ended.out


def test_real_examples_can_be_read(shared_data):
    folder = shared_data / "tuning"
    counts = {}
    for name, kind in (
        ("instruction-data.json", "instructions"),
        ("instruction-data-with-preference.json", "preferences"),
        ("hh_harmless-base_test.jsonl.gz", "preferences"),
    ):
        examples = list(tuning.open_tuning_set(folder / name, kind).read())
        problems = Counter(filter(None, map(tuning.example_problem, examples)))
        counts[name] = (len(examples), dict(problems))
    assert counts["instruction-data.json"] == (1100, {})
    assert counts["instruction-data-with-preference.json"] == (
        1100,
        {"has equal answers, so it prefers nothing": 6},
    )
    assert counts["hh_harmless-base_test.jsonl.gz"][0] == 2312


# --- planted sets --------------------------------------------------------------------------------


def test_planted_sets_ask_for_what_their_truth_table_says():
    planted = {fact["name"]: fact for fact in planted_truth(0)["facts"]}
    sets = {kind: tuning.open_tuning_set("planted", kind) for kind in tuning.KINDS}
    assert sets["instructions"].truth == sets["preferences"].truth
    rows = {kind: list(one.read()) for kind, one in sets.items()}
    asked = Counter()
    for fact in sets["instructions"].truth["facts"]:
        source = planted[fact["name"]]
        assert (fact["value"], fact["entity"]) == (source["value"], source["entity"])
        assert fact["foil"] != fact["value"]
        assert (fact["part"] == "new") == (source["exposures"] == 0)
        for row in fact["rows"]:
            example = rows[fact["stage"]][row]
            assert fact["entity"] in example.prompt
            assert fact["relation"] in example.prompt
            assert example.response == f"the word is {fact['value']} ."
            expected = f"the word is {fact['foil']} ." if fact["stage"] == "preferences" else None
            assert example.rejected == expected
            asked[fact["stage"], row] += 1
        assert len(fact["rows"]) == {"new": 4, "known": 1, "test": 0}[fact["part"]]
    assert asked == Counter({(kind, row): 1 for kind in rows for row in range(len(rows[kind]))})
    # Another seed asks for other facts.
    other = tuning.planted_instructions(1)
    assert [one.prompt for one in other.read()] != [one.prompt for one in rows["instructions"]]


def test_planted_sets_use_the_words_of_the_corpus(planted_words):
    for kind in tuning.KINDS:
        for example in tuning.open_tuning_set("planted", kind).read():
            for text in filter(None, (example.prompt, example.response, example.rejected)):
                planted_words.encode(text)
    with pytest.raises(TokenizerError):
        train_words(["a b"]).encode("someone asked")
