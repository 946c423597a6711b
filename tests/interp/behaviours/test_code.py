"""Behaviours of code ask about held-out files, and no guess without a model solves them."""

import json
import tokenize
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from interp import behaviours
from interp.behaviours import Behaviour
from interp.behaviours.code import CODE_BEHAVIOURS
from interp.behaviours.python_files import held_out_files
from interp.errors import BehaviourError
from train import storage
from train.data import TokenStore, build_store, open_corpus


NAMES = ("code-copy", "code-imports", "code-self")
each_behaviour = pytest.mark.parametrize("name", CODE_BEHAVIOURS)
each_name_behaviour = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def code_store(tmp_path_factory) -> TokenStore:
    """Sixty modules of the running standard library, half of them held out."""
    out = tmp_path_factory.mktemp("code") / "store"
    return build_store(open_corpus("stdlib", limit=60), out=out, held_out=0.5, threads=1)


@pytest.fixture(scope="module")
def loaded(code_store) -> dict[str, Behaviour]:
    return {name: behaviours.load(name, code_store, n_prompts=200) for name in CODE_BEHAVIOURS}


def texts(behaviour: Behaviour, store: TokenStore, prompts: str) -> list[str]:
    return [store.tokenizer.decode(row[1:]) for row in getattr(behaviour, prompts).tolist()]


def held_out_text(store: TokenStore) -> str:
    return store.tokenizer.decode(store.tokens[store.train_tokens :])


def differences(behaviour: Behaviour) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in behaviour.clean != behaviour.corrupt]


@each_behaviour
def test_prompts_are_held_out_code_up_to_the_answer(name, loaded, code_store):
    behaviour, text = loaded[name], held_out_text(code_store)
    assert behaviour.n_pos == 128
    assert behaviour.n_prompts == max(behaviour.distinct) + 1 >= 10
    assert set(behaviour.clean[:, 0].tolist()) == {code_store.eot}
    for prompt, answer in zip(
        texts(behaviour, code_store, "clean"), behaviour.answer.tolist(), strict=True
    ):
        imported, _, rest = prompt.partition("\n") if name == "code-imports" else ("", "", prompt)
        answered = rest + code_store.tokenizer.decode([answer])
        assert imported in text
        assert answered.removeprefix("\ufffd") in text


def test_the_store_and_the_seed_decide_the_prompts(loaded, code_store):
    for name in CODE_BEHAVIOURS:
        again = behaviours.load(name, code_store, n_prompts=200)
        other = behaviours.load(name, code_store, n_prompts=200, seed=1)
        assert again.sha256 == loaded[name].sha256 != other.sha256
    assert behaviours.load("code-copy", code_store, n_prompts=9).n_prompts == 9


@each_name_behaviour
def test_the_corrupt_prompt_says_nothing_of_the_answer_and_the_clean_one_nothing_of_the_foil(
    name, loaded
):
    behaviour = loaded[name]
    rows = (behaviour.clean, behaviour.corrupt, behaviour.answer, behaviour.foil)
    for clean, corrupt, answer, foil in zip(*(one.tolist() for one in rows), strict=True):
        assert clean[-1] == corrupt[-1]
        assert (clean[-1], answer) not in pairwise(corrupt)
        assert (clean[-1], foil) not in pairwise(clean)
        if name != "code-imports":  # whose import may have the name behind a space
            assert (clean[-1], answer) in pairwise(clean)
            assert (clean[-1], foil) in pairwise(corrupt)


def test_the_import_alone_is_replaced(loaded, code_store):
    clean, corrupt = (
        texts(loaded["code-imports"], code_store, one) for one in ("clean", "corrupt")
    )
    for (before, _, rest), (other, _, other_rest) in zip(
        (one.partition("\n") for one in clean),
        (one.partition("\n") for one in corrupt),
        strict=True,
    ):
        assert before.startswith(("import ", "from "))
        assert (before != other, rest) == (True, other_rest)


def test_one_bracket_is_exchanged(loaded, code_store):
    behaviour = loaded["code-brackets"]
    decode = code_store.tokenizer.decode
    asked = []
    for row, places in enumerate(differences(behaviour)):
        (place,) = places
        both = [
            decode(one[row, place : place + 1].tolist()).strip()
            for one in (behaviour.clean, behaviour.corrupt)
        ]
        answer, foil = (decode([int(one[row])])[0] for one in (behaviour.answer, behaviour.foil))
        assert (both, answer + foil) in [(["(", "["], ")]"), (["[", "("], "])")]
        asked.append(answer)
    assert abs(asked.count(")") - asked.count("]")) <= 2


def test_another_last_line_of_the_same_indentation_is_put_in(loaded, code_store):
    behaviour = loaded["code-indent"]
    kinds = []
    for row, (clean, corrupt) in enumerate(
        zip(*(texts(behaviour, code_store, one) for one in ("clean", "corrupt")), strict=True)
    ):
        lines = [one.rpartition("\n") for one in (clean, corrupt)]
        last = [line for _, _, line in lines]
        indented = [len(line) - len(line.lstrip(" ")) for line in last]
        answer, foil = (
            len(code_store.tokenizer.decode([int(one[row])]))
            for one in (behaviour.answer, behaviour.foil)
        )
        opens = last[0].endswith(":")
        assert lines[0][0] == lines[1][0]
        assert indented[0] == indented[1]
        assert last[1].endswith(":") != opens
        assert (answer, foil) == (indented[0] + 4 * opens, indented[0] + 4 * (not opens))
        kinds.append((opens, indented[0]))
    counts = [kinds.count(kind) for kind in sorted(set(kinds))]
    assert (len(counts), max(counts) - min(counts) <= 1) == (4, True)


@each_behaviour
def test_a_guess_without_a_model_is_right_in_about_half(name, loaded, code_store):
    guesses = behaviours.measure_baselines(loaded[name], code_store)
    slack = 4 / guesses.n  # each kind may have one prompt more than another
    assert guesses.n == loaded[name].n_prompts
    assert guesses.frequent == pytest.approx(0.5, abs=slack)
    if name == "code-brackets":
        assert guesses.bigram <= 0.5 + slack
    else:
        assert guesses.bigram == pytest.approx(0.5, abs=slack)
    if name in ("code-copy", "code-self"):
        assert guesses.recent == pytest.approx(0.5, abs=slack)


def test_the_bracket_opened_last_is_no_help(loaded, code_store):
    """Brackets inside strings are counted here as well, which moves the share by a few prompts."""
    behaviour, right = loaded["code-brackets"], []
    for row, text in enumerate(texts(behaviour, code_store, "clean")):
        opened_last = text[max(text.rfind("("), text.rfind("["))]
        answer = code_store.tokenizer.decode([int(behaviour.answer[row])])
        right.append(opened_last == {")": "(", "]": "["}[answer[0]])
    assert np.mean(right) == pytest.approx(0.5, abs=0.1)


def test_words_lie_where_the_tokens_say_it(tmp_path):
    code = "\f# caf\u00e9\nname = 'caf\u00e9' + name_of(f'{name}')\nif_ = 1\n"
    lines = [json.dumps({"text": one}) for one in (code, *(f"{n} cats" for n in range(30)))]
    storage.write_text(tmp_path / "code.jsonl", "\n".join(lines))
    corpus = open_corpus(tmp_path / "code.jsonl")
    store = build_store(corpus, out=tmp_path / "store", tokenizer="gpt2", held_out=0.9)
    file = next(one for one in held_out_files(store) if b"caf" in one.text)
    words = [word for word in file.words if word.kind == tokenize.NAME]
    assert [word.text for word in words] == ["name", "name_of", "if_"]  # none of the f-string
    for word in words:
        assert file.text[word.start : word.end].decode() == word.text
        span = file.span(word)
        assert span is not None
        assert store.tokenizer.decode(file.tokens[slice(*span)]).strip() == word.text


# What is refused


def prose(folder: Path, n_documents: int, held_out: float) -> TokenStore:
    lines = [json.dumps({"text": f"the {n} cats sat on {n} mats"}) for n in range(n_documents)]
    storage.write_text(folder / "prose.jsonl", "\n".join(lines))
    corpus = open_corpus(folder / "prose.jsonl")
    return build_store(corpus, out=folder / "store", tokenizer="gpt2", held_out=held_out)


@pytest.mark.parametrize("held_out", [0.0, 0.5])
def test_a_store_without_held_out_code_is_refused_in_one_line(tmp_path, held_out):
    store = prose(tmp_path, 40, held_out)
    assert behaviours.names(store) == ["induction", "ioi"]
    message = (
        r"code-copy: 0 balanced prompts of 128 tokens are in the 0 held-out Python files of .*"
    )
    with pytest.raises(BehaviourError, match=message + "and 10 are needed; build a store") as error:
        behaviours.load("code-copy", store)
    assert "\n" not in str(error.value)


def test_a_model_without_a_store_is_refused(code_store):
    assert behaviours.names(code_store)[:2] == ["code-brackets", "code-copy"]
    assert behaviours.names(code_store.tokenizer) == ["induction", "ioi"]
    with pytest.raises(
        BehaviourError, match="held-out files of a token store, and a Tokenizer has"
    ):
        behaviours.load("code-self", code_store.tokenizer)
