"""A behaviour file with a mistake ends in one line that names the file and the key."""

import pytest

from interp import behaviours
from interp.errors import BehaviourError


GOOD = {
    "description": '"a cat"',
    "clean": '["the {a}"]',
    "corrupt": '["the {b}"]',
    "answer": '"{a}"',
    "foil": '"{b}"',
    "slots": '{a = "names", b = "names"}',
    "lists": '{names = ["runethi", "koreskul", "clerk", "capital"]}',
}
PASSAGES = "{length = 8, likely = 0.2, same_end = 2, exchange = false}"
MISTAKES = [
    ({"cleann": '["a"]'}, "no key is called 'cleann', did you mean 'clean'"),
    ({"clean": '"the {a}"'}, "clean must be a list of texts"),
    ({"clean": "[]"}, "clean must be a list of texts with at least one"),
    ({"clean": "[3]"}, "clean must be a list of texts"),
    ({"clean": '["the {a}", "a {a}"]'}, "2 clean and 1 corrupt templates"),
    ({"answer": "5"}, "answer must be a text, and is 5"),
    ({"answer": '"{c}"'}, r"'\{c\}' cannot be filled in \('c'\); its slots are \{a\}, \{b\}"),
    ({"clean": '["the {a.x}"]'}, r"cannot be filled in \('a.x'\)"),
    ({"clean": '["the {a[0]}"]'}, r"cannot be filled in"),
    ({"clean": '["the {}"]'}, r"cannot be filled in \(''\)"),
    ({"clean": '["the {a:>999999999999}"]'}, "cannot be filled in"),
    ({"clean": '["the {a!r}"]'}, "cannot be filled in"),
    ({"clean": '["the {a"]'}, "expected '}'"),
    ({"slots": '{a = "nmaes", b = "names"}'}, "slot a is filled from 'nmaes'.*mean 'names'"),
    ({"slots": "3"}, "slots must be a section of texts"),
    ({"slots": "{a = 3}"}, "slots must be a section of texts"),
    ({"lists": "{names = []}"}, "lists must be a section of lists of texts"),
    ({"lists": '{names = "runethi"}'}, "lists must be a section of lists of texts"),
    ({"lists": "[]"}, "lists must be a section of lists of texts"),
    ({"repeat": "3"}, "repeat must be a section"),
    ({"repeat": '{length = "8"}'}, "repeat.length must be a whole number"),
    ({"repeat": "{length = 10000000000}"}, "repeat.length must be a whole number"),
    ({"repeat": "{lenght = 8}"}, "no key is called 'lenght', did you mean 'length'"),
    ({"text": "{length = 8}"}, "text.likely must be a share"),
    ({"text": PASSAGES.replace("0.2", '"often"')}, "text.likely must be a share"),
    ({"text": PASSAGES.replace("false", "0")}, "text.exchange must be true or false"),
]  # fmt: skip


def written(folder, **changed):
    path = folder / "mine.toml"
    lines = [f"{key} = {value}" for key, value in (GOOD | changed).items() if value]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_the_file_without_a_mistake_is_read(store, tmp_path):
    assert behaviours.load(written(tmp_path), store, n_prompts=3).name == "mine"


@pytest.mark.parametrize(("changed", "said"), MISTAKES, ids=str)
def test_a_mistake_in_a_behaviour_file_is_named(changed, said, store, tmp_path):
    path = written(tmp_path, **changed)
    with pytest.raises(BehaviourError, match=rf"mine\.toml: .*{said}") as refusal:
        behaviours.load(path, store, n_prompts=3)
    assert "\n" not in str(refusal.value)


def test_a_byte_order_mark_is_no_part_of_the_file(store, tmp_path):
    path = written(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert behaviours.load(path, store, n_prompts=3).name == "mine"
