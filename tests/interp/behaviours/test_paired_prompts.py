"""Behaviours from texts of one's own: row by row, from Python, from files and from tables."""

import json
from typing import Any

import pandas as pd
import pytest
import torch

from interp import behaviours, metrics
from interp.behaviours import Behaviour
from interp.errors import BehaviourError
from train.data import train_bpe


CAPITALS = [("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Japan", "Tokyo")]
SIZE = 307
TEXT = "The capital of {} is {}. "


@pytest.fixture(scope="module")
def words():
    """A byte-pair vocabulary in which every word of these prompts is one token."""
    text = "".join(TEXT.format(*pair) for pair in CAPITALS)
    return type("Source", (), {"tokenizer": train_bpe([text * 4], vocab_size=SIZE)})()


def rows() -> list[dict[str, Any]]:
    """Each country with its capital, against the next country with its own."""
    found: list[dict[str, Any]] = []
    for (country, city), (other, foil) in zip(CAPITALS, CAPITALS[1:] + CAPITALS[:1], strict=True):
        clean, corrupt = (f"The capital of {one} is" for one in (country, other))
        found.append({"clean": clean, "corrupt": corrupt, "answer": f" {city}", "foil": f" {foil}"})
    return found


def written(behaviour: Behaviour, words) -> list[tuple[str, str, str, str]]:
    """The rows of a behaviour as texts, to be compared with what was given."""
    decode = words.tokenizer.decode
    parts = zip(behaviour.clean, behaviour.corrupt, behaviour.answer, behaviour.foil, strict=True)
    return [
        (decode(c[1:].tolist()), decode(k[1:].tolist()), decode([int(a)]), decode([int(f)]))
        for c, k, a, f in parts
    ]


def toml(table: list[dict[str, Any]]) -> str:
    lines = ["description = 'capitals'"]
    for row in table:
        lines += ["[[prompts]]", *(f"{key} = {json.dumps(value)}" for key, value in row.items())]
    return "\n".join(lines)


def toml_columns(table: list[dict[str, Any]]) -> str:
    columns = {key: [row[key] for row in table] for key in table[0]}
    return "\n".join(["[prompts]", *(f"{key} = {json.dumps(v)}" for key, v in columns.items())])


def test_every_answer_stays_with_its_prompt_however_the_rows_are_given(words, tmp_path):
    table = rows()
    expected = [tuple(row[key] for key in ("clean", "corrupt", "answer", "foil")) for row in table]
    columns = {key: [row[key] for row in table] for key in table[0]}
    datasets = pytest.importorskip("datasets")
    of_datasets = datasets.Dataset.from_list([row | {"id": 1} for row in table])
    found = [
        behaviours.from_strings(words, *columns.values()),
        behaviours.from_table(words, table),
        behaviours.from_table(words, columns),
        behaviours.from_table(words, pd.DataFrame(table)),
        behaviours.from_table(words, of_datasets),
    ]
    files = {
        "rows.toml": toml(table),
        "columns.toml": toml_columns(table),
        "rows.csv": pd.DataFrame(table).assign(id=7).to_csv(index=False),
        "rows.tsv": pd.DataFrame(table).to_csv(index=False, sep="\t"),
        "rows.jsonl": "\n".join(json.dumps(row) for row in table) + "\n\n",
        # A line ends at a line feed only: JSON may hold the separators of Unicode as they are.
        "noted.jsonl": "\r\n".join(
            json.dumps(row | {"note": "one\u2028two\x85"}, ensure_ascii=False) for row in table
        ),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        found.append(behaviours.load(tmp_path / name, words))
    for one in found:
        assert written(one, words) == expected
        assert one.subject == (4, 5)
        assert one.tokenizer == words.tokenizer.sha256
    assert len({one.clean.numpy().tobytes() for one in found}) == 1
    assert found[5].description == "capitals"


def test_a_word_gets_its_space_and_a_digit_does_not(words):
    def answer(prompt: str, text: str) -> str:
        other = prompt.replace("France", "Italy").replace("8", "9")
        own = behaviours.from_strings(words, [prompt], [other], [text], [" Rome"])
        return words.tokenizer.decode(own.answer.tolist())

    assert answer("The capital of France is", "Paris") == " Paris"
    assert answer("The capital of France is", " Paris") == " Paris"
    assert answer("The capital of France is ", "Paris") == " Paris"
    assert answer("The capital of France is.", "The") == " The"
    assert answer("The capital of 8 is 1", "4") == "4"
    assert answer("The capital of France is '", "P") == "P"


def test_several_answers_are_a_sum_and_weights_count():
    logits = torch.tensor([[[1.0, 2.0, 3.0, 0.0, 5.0]]])
    own = Behaviour(
        "later years",
        clean=torch.tensor([[1, 2]]),
        corrupt=torch.tensor([[1, 3]]),
        answer=torch.tensor([1]),
        foil=torch.tensor([0]),
        answers=({1: 3.0, 2: 1.0},),
        foils=({0: 1.0, 3: 1.0},),
    )
    p = logits[0, 0].softmax(-1)
    by_hand = {
        "logit-difference": (3 * 2 + 1 * 3) / 4 - (1 + 0) / 2,
        "probability": float(p[1] + p[2] / 3),  # of the heaviest in full, and so at most 1
        "log-probability": float((p[1] + p[2] / 3).log()),
        "probability-difference": float(p[1] + p[2] / 3 - p[0] - p[3]),
    }
    for name, expected in by_hand.items():
        metric = metrics.named(name, own)
        assert metric.of_logits(logits).item() == pytest.approx(expected, abs=1e-6), name
    assert own.score(logits).item() == pytest.approx(by_hand["logit-difference"])
    assert own.correct(logits).tolist() == [True]
    # Token 4 has the highest logit of all, and 2, an answer, the highest of the first four.
    assert own.is_highest(logits[:, -1]).tolist() == [False]
    assert own.is_highest(logits[:, -1], [0, 1, 2, 3]).tolist() == [True]


def test_several_answers_are_saved_selected_and_part_of_the_digest(words, tmp_path):
    table = rows()
    table[1]["answer"] = [" Rome", " Tokyo"]
    table[2]["answer"] = {" Madrid": 2.0, " Paris": 0.5}
    own = behaviours.from_table(words, table)
    own.save(tmp_path / "own.json")
    again = behaviours.read(tmp_path / "own.json")
    assert again.answers == own.answers
    assert again.sha256 == own.sha256 != behaviours.from_table(words, rows()).sha256
    assert json.loads((tmp_path / "own.json").read_text())["schema"] == "openbook.behaviour/2"
    paris, madrid = (int(words.tokenizer.encode(text)[0]) for text in (" Paris", " Madrid"))
    assert own.of([2]).answers == ({madrid: 2.0, paris: 0.5},)
    assert own.of(torch.tensor([False, False, True, False])).answer.tolist() == [madrid]
    with pytest.raises(BehaviourError, match=r"reads one answer and one foil.*'own' has several"):
        behaviours.refuse_several(own, "this")


MISTAKES = [
    ({"answer": " Paris Rome"}, r"row 1: ' Paris Rome' is 2 tokens .*\(' Paris', ' Rome'\)"),
    ({"answer": " Rome"}, r"row 1: ' Rome' is both an answer and a foil"),
    ({"corrupt": "The capital of Italy is not"}, "row 1: its clean prompt has 6 tokens and its"),
    ({"corrupt": "The capital of France is"}, "row 1: its two prompts are equal"),
    ({"clean": ""}, "row 1: clean must be a text, and is ''"),
    ({"clean": 3}, "row 1: clean must be a text, and is 3"),
    ({"answer": ""}, "row 1: answer must be a text, different texts"),
    ({"answer": []}, "row 1: answer must be a text"),
    ({"answer": [" Paris", " Paris"]}, "row 1: answer must be a text, different texts"),
    ({"answer": {" Paris": 0}}, "row 1: answer must be a text"),
    ({"answer": {" Paris": float("nan")}}, "row 1: answer must be a text"),
    ({"foil": None}, "row 1: foil must be a text"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "said"), MISTAKES, ids=str)
def test_a_row_that_cannot_be_used_is_refused_with_its_number_and_reason(changed, said, words):
    table = rows()
    table[0] |= changed
    with pytest.raises(BehaviourError, match=said) as refusal:
        behaviours.from_table(words, table)
    assert "\n" not in str(refusal.value)


def test_a_prompt_of_another_length_is_refused_and_can_be_left_out(words):
    table = rows()
    table[3]["clean"] = table[3]["corrupt"] = "The capital of The capital is"
    table[3]["corrupt"] = "The capital of The Spain is"
    with pytest.raises(BehaviourError, match=r"1 of 4 rows .*row 4: its prompts have 7 tokens.* 6"):
        behaviours.from_table(words, table)
    own = behaviours.from_table(words, table, description="capitals", skip=True)
    assert own.n_prompts == 3
    assert own.description == "capitals; 1 of 4 rows left out"


TABLES = [
    ([], "there is no row"),
    ({"clean": [], "corrupt": [], "answer": [], "foil": []}, "there is no row"),
    ([{"clean": "a", "corrupted": "b", "answer": "c", "foil": "d"}], "no 'corrupt' .*'corrupted'"),
    ({"clean": ["a"], "corrupt": ["b", "c"], "answer": ["d"], "foil": ["e"]}, "1 clean, 2 corrupt"),
    ({"clean": "a", "corrupt": ["b"], "answer": ["d"], "foil": ["e"]}, "clean must be a list"),
    (["a", "b"], "row 1 is a str"),
    ("rows.csv", "str is no table"),
    (7, "int is no table"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "said"), TABLES, ids=str)
def test_what_is_no_table_of_rows_is_refused(table, said, words):
    with pytest.raises(BehaviourError, match=said):
        behaviours.from_table(words, table)


FILES = [
    ("a.csv", "clean,corrupt,answer,foil\na,b,c\n", "row 1 has more or fewer cells"),
    ("a.csv", "clean,corrupt,answer,foil\na,b,c,d,e\n", "row 1 has more or fewer cells"),
    ("a.csv", 'clean,corrupt,answer,foil\n"a,b\n', r"a\.csv: row 1: unexpected end of data"),
    ("a.csv", "", r"a\.csv: there is no row"),
    ("a.csv", "clean,corrupt,answer\na,b,c\n", r"a\.csv: row 1: no 'foil' among its columns"),
    ("a.jsonl", '{"clean": "a"\n', r"a\.jsonl: line 1: not readable as JSON"),
    ("a.jsonl", "[1]\n", r"a\.jsonl: row 1 is a list"),
    ("a.toml", "prompts = 3\n", r"a\.toml: int is no table"),
    ("a.toml", "answer = 'a'\n[[prompts]]\nclean = 'a'\n", r"'answer' belongs to templates"),
    ("a.toml", "clean = ['a']\n", r"has no answer .*\[\[prompts\]\]"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "said"), FILES, ids=str)
def test_a_file_with_a_mistake_ends_in_one_line(name, text, said, words, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(BehaviourError, match=said) as refusal:
        behaviours.load(tmp_path / name, words)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_missing_or_no_text_is_refused(words, tmp_path):
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    for name, said in (("gone.csv", "the file is missing"), ("bytes.csv", "not UTF-8")):
        with pytest.raises(BehaviourError, match=rf"{name}: {said}"):
            behaviours.load(tmp_path / name, words)


def test_of_many_rows_some_are_drawn_and_the_seed_decides_which(words, tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows()))
    some = [behaviours.load(path, words, n_prompts=2, seed=seed) for seed in range(6)]
    assert {one.n_prompts for one in some} == {2}
    assert len({one.sha256 for one in some}) > 1
    assert set(written(some[0], words)) <= set(written(behaviours.load(path, words), words))


CROSSED = """
clean = ["The capital of {country} is"]
corrupt = ["The capital of {other} is"]
answer = "{city}"
foil = "{second}"
slots = {country = "countries", other = "countries", city = "cities", second = "cities"}
lists = {countries = ["France", "Italy", "Spain"], cities = ["Paris", "Rome", "Madrid"]}
"""


def test_an_answer_drawn_without_regard_to_its_prompt_is_refused(words, tmp_path):
    path = tmp_path / "capitals.toml"
    path.write_text(CROSSED)
    with pytest.raises(BehaviourError, match=r"answer \{city\} is in no clean prompt.*\[\[prompts"):
        behaviours.load(path, words)


def test_templates_say_that_their_lists_are_crossed(words, tmp_path):
    path = tmp_path / "copied.toml"
    both = CROSSED.replace('{country} is"', '{country} is {city}. {country} is"')
    path.write_text(both.replace('{other} is"', '{other} is {second}. {other} is"'))
    said = behaviours.load(path, words).description
    assert said.endswith("drawn independently of each other (crossed): countries, cities")
