"""Probe tasks: labelled tokens of prompts.

A case is one token of one prompt with its label and its *type*. The type is what a probe could
memorise instead of reading the label: the word, the entity, or the pair of names. Control tasks
give each type a random label, so a task whose types never repeat is refused.

The tasks of a planted corpus, from its truth table:

    name             label                                                       type
    word-class       entity, value, name, place, object or nonce word            word
    position         position in a document of repeats, in bins of four          word
    repeats          kind of document, of three kinds made of the same words     word
    relation         relation of an entity, where the sentence does not say it   entity
    subject-name     name of who acts, at the end of the sentence                pair of names
    indirect-name    name of who receives the object, at the end                 pair of names
    indirect-order   whether that name came first or second                      pair of names

A .json file can hold labels of your own. A .jsonl file of tagged sentences (`words`, `upos`,
`text`) gives a part-of-speech task for a model of real text.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from interp.errors import ProbeError
from train import storage
from train.data import Tokenizer
from train.errors import DamagedError, TokenizerError
from train.short_repr import short_repr


__all__ = [
    "Case",
    "ProbeTask",
    "balanced",
    "of_cases",
    "part_of_speech",
    "read_task",
]

SCHEMA = "openbook.probe-task/1"
N_CASES = 1000
FEWEST = 10  # minimum number of cases of a class: two per fold
LONGEST = 63  # maximum number of tokens of a tagged sentence


@dataclass(frozen=True, eq=False)
class ProbeTask:
    """Labelled tokens of prompts.

    Attributes:
        name: Name of the task.
        tokens: Prompts; short ones are padded at the end, which a causal model does not see.
        positions: Position of each case in its prompt.
        labels: Label of each case.
        types: Type of each case: what a probe could memorise instead of the label.
        rows: Index of each case's prompt; None: the i-th case is in the i-th prompt.
        type_of: Word for what a type is, such as "word" or "entity".
        description: Meaning of the labels, in words.
    """

    name: str
    tokens: Int[Tensor, "prompt pos"]
    positions: Int[Tensor, " case"]
    labels: tuple[str, ...]
    types: tuple[str, ...]
    rows: Int[Tensor, " row"] | None = None
    type_of: str = "word"
    description: str = ""

    __repr__ = short_repr

    def __post_init__(self) -> None:
        asked, n = f"probe task {self.name!r}", len(self.labels)
        found = {"positions": len(self.positions), "types": len(self.types)}
        found["prompts" if self.rows is None else "rows"] = len(self.prompt_of)
        unequal = [f"{many} {what}" for what, many in found.items() if many != n]
        if unequal:
            raise ProbeError(f"{asked} has {n} labels and {', '.join(unequal)}; give one of each")
        if n == 0 or len(self.classes) < 2:
            raise ProbeError(
                f"{asked} has {n} cases of {len(self.classes)} class; two classes are the least"
            )
        inside = (self.positions >= 0) & (self.positions < self.tokens.shape[1])
        inside &= (self.prompt_of >= 0) & (self.prompt_of < len(self.tokens))
        if not bool(inside.all()):
            raise ProbeError(
                f"{asked}: {int((~inside).sum())} of {n} cases lie outside its {len(self.tokens)} "
                f"prompts of {self.tokens.shape[1]} positions"
            )
        if self.n_types == n:
            raise ProbeError(
                f"{asked}: none of {n} types repeats, so no control task can be made of them; name "
                "as type what could be learned by heart, such as the word"
            )

    @property
    def prompt_of(self) -> Int[Tensor, " row"]:
        """Index of each case's prompt."""
        return torch.arange(len(self.tokens)) if self.rows is None else self.rows

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Distinct labels in alphabetical order."""
        return tuple(sorted(set(self.labels)))

    @cached_property
    def label_ids(self) -> Int64[np.ndarray, " case"]:
        """Index of each case's label among the classes."""
        return np.unique(self.labels, return_inverse=True)[1].astype(np.int64)

    @cached_property
    def type_ids(self) -> Int64[np.ndarray, " case"]:
        """Index of each case's type."""
        return np.unique(self.types, return_inverse=True)[1].astype(np.int64)

    @property
    def n_types(self) -> int:
        """Number of distinct types."""
        return len(set(self.types))

    @property
    def baseline(self) -> float:
        """Share of the cases that have the commonest label."""
        return max(Counter(self.labels).values()) / len(self.labels)

    def at(self, pos: int) -> "ProbeTask":
        """Return the same labels, to be read at another position of their prompts.

        Raises:
            ProbeError: Several cases share a prompt, so a position does not identify a case, or the
                prompts have no such position.
        """
        if len(set(self.prompt_of.tolist())) < len(self.labels):
            raise ProbeError(
                f"probe task {self.name!r} labels several tokens of a prompt, so a position says "
                "not which label is meant; read it at the tokens themselves"
            )
        n_pos = self.tokens.shape[1]
        if not -n_pos <= pos < n_pos:
            raise ProbeError(f"position {pos} of prompts with positions 0 to {n_pos - 1}")
        return replace(self, positions=torch.full_like(self.positions, pos % n_pos))

    @property
    def sha256(self) -> str:
        """Digest of everything but the description."""
        asked = {key: value for key, value in self.to_dict().items() if key != "description"}
        return hashlib.sha256(storage.canonical_json(asked).encode()).hexdigest()

    def to_dict(self) -> dict[str, object]:
        """Return plain lists for JSON."""
        tensors = {"tokens": self.tokens, "positions": self.positions, "rows": self.prompt_of}
        return {
            "schema": SCHEMA,
            "name": self.name,
            **{name: tensor.tolist() for name, tensor in tensors.items()},
            "labels": list(self.labels),
            "types": list(self.types),
            "type_of": self.type_of,
            "description": self.description,
        }

    def save(self, path: str | Path) -> None:
        """Write sealed JSON that `load_task` and `read_task` accept."""
        storage.write_json(Path(path), storage.seal(self.to_dict()))


def read_task(path: str | Path, tokenizer: Tokenizer | None = None) -> ProbeTask:
    """Read a task from a JSON file that `save` wrote or that was written by hand.

    A file written by hand may have `texts`, one per case, instead of `tokens` and `rows`. Each text
    gets an end-of-text token in front, and a negative position counts from the end of its text.

    Raises:
        DamagedError: The file is sealed and does not match its seal.
        ProbeError: The file is no JSON object, lacks a field, or has texts that cannot be encoded.

    Examples:
        >>> task = probing.load_task("word-class", run, n_cases=200)
        >>> task.save(folder / "task.json")
        >>> probing.read_task(folder / "task.json").labels == task.labels
        True
    """
    path = Path(path)
    content = {key: value for key, value in _read_json(path).items() if value is not None}
    missing = {"name", "positions", "labels", "types"} - content.keys()
    if missing or not {"tokens", "texts"} & content.keys():
        lacking = ", ".join(sorted(missing)) or "tokens or texts"
        raise ProbeError(f"{path}: a probe task without {lacking}")
    _check_lists(path, content)
    positions, tokens = content["positions"], content.get("tokens")
    if tokens is None:
        if tokenizer is None:
            raise ProbeError(f"{path}: texts need the tokenizer of a model, and there is none")
        prompts = _encoded(path, content["texts"], tokenizer)
        positions = [
            at if at >= 0 else len(prompt) + at
            for at, prompt in zip(positions, prompts, strict=False)
        ]
        tokens = padded(prompts, tokenizer.eot)
    return ProbeTask(
        name=content["name"],
        tokens=torch.as_tensor(tokens),
        positions=torch.tensor(positions),
        labels=tuple(map(str, content["labels"])),
        types=tuple(map(str, content["types"])),
        rows=torch.tensor(content["rows"]) if "rows" in content else None,
        type_of=content.get("type_of", "type"),
        description=content.get("description", ""),
    )


def _check_lists(path: Path, content: storage.JsonObject) -> None:
    """Raise unless the parts of a task are lists of one length and of the right values."""

    def whole(value: object) -> bool:
        return type(value) is int and abs(value) < 1 << 31

    def whole_rows(value: object) -> bool:
        return isinstance(value, list) and all(map(whole, value))

    kinds: dict[str, tuple[str, Callable[[object], bool]]] = {
        "positions": ("whole numbers", whole),
        "labels": ("texts or numbers", lambda one: isinstance(one, str | int | float)),
        "types": ("texts or numbers", lambda one: isinstance(one, str | int | float)),
        "rows": ("whole numbers", whole),
        "texts": ("texts", lambda one: isinstance(one, str)),
        "tokens": ("lists of whole numbers", whole_rows),
    }
    for key, (said, holds) in kinds.items():
        value = content.get(key, [])
        if not (isinstance(value, list) and all(map(holds, value))):
            raise ProbeError(f"{path}: {key} must be a list of {said}")
    if len({len(row) for row in content.get("tokens") or ()}) > 1:
        raise ProbeError(f"{path}: the rows of tokens have different lengths; pad them")
    n = len(content["labels"])
    for key in ("positions", "types"):
        if len(content[key]) != n:
            raise ProbeError(f"{path}: {len(content[key])} {key} for {n} labels")
    for key in ("texts", "tokens", "labels"):
        if content.get(key) == []:
            raise ProbeError(f"{path}: {key} is an empty list; give at least one case")
    if content.get("tokens") is None and len(content["texts"]) != n:
        raise ProbeError(f"{path}: {len(content['texts'])} texts for {n} labels")


def _read_json(path: Path) -> storage.JsonObject:
    try:
        content = storage.read_foreign_json(path)
    except DamagedError as error:
        raise ProbeError(str(error)) from None
    if not isinstance(content, dict):
        raise ProbeError(f"{path}: a probe task is a JSON object, not a {type(content).__name__}")
    return storage.read_sealed(path) if "digest" in content else content


def _encoded(path: Path, texts: Iterable[str], tokenizer: Tokenizer) -> list[list[int]]:
    try:
        return [[tokenizer.eot, *tokenizer.encode(text).tolist()] for text in texts]
    except TokenizerError as error:
        raise ProbeError(f"{path}: {error}") from None


# --- cases into a task ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Labelled token, before small classes are left out."""

    prompt: tuple[int, ...]
    pos: int
    label: str
    type: str

    __repr__ = short_repr


def balanced(cases: list[Case], n_cases: int, draw: np.random.Generator) -> list[Case]:
    """Draw about `n_cases` cases, the same number of each class where there are enough.

    The number per class is n_cases // classes, but at least `FEWEST`.
    """
    by_label: dict[str, list[Case]] = {}
    for i in draw.permutation(len(cases)):
        by_label.setdefault(cases[i].label, []).append(cases[i])
    share = max(FEWEST, n_cases // max(1, len(by_label)))
    return [case for label in sorted(by_label) for case in by_label[label][:share]]


def of_cases(
    name: str, cases: Sequence[Case], fill: int, type_of: str, description: str
) -> ProbeTask:
    """Build a task from cases, leaving out classes with fewer than `FEWEST` of them.

    Raises:
        ProbeError: No class has enough cases.
    """
    many = Counter(case.label for case in cases)
    kept = [case for case in cases if many[case.label] >= FEWEST]
    prompts = {
        prompt: row for row, prompt in enumerate(dict.fromkeys(case.prompt for case in kept))
    }
    if not kept:
        raise ProbeError(
            f"probe task {name!r}: no class has {FEWEST} of its {len(cases)} cases; ask for more"
        )
    left_out = sum(n < FEWEST for n in many.values())
    note = f"; {left_out} classes of fewer than {FEWEST} cases left out" if left_out else ""
    return ProbeTask(
        name=name,
        tokens=padded(list(prompts), fill),
        positions=torch.tensor([case.pos for case in kept]),
        labels=tuple(case.label for case in kept),
        types=tuple(case.type for case in kept),
        rows=torch.tensor([prompts[case.prompt] for case in kept]),
        type_of=type_of,
        description=description + note,
    )


def padded(prompts: Sequence[Sequence[int]], fill: int) -> Int[Tensor, "prompt pos"]:
    longest = max(map(len, prompts))
    return torch.tensor([[*prompt, *[fill] * (longest - len(prompt))] for prompt in prompts])


# --- tagged sentences ----------------------------------------------------------------------------


def part_of_speech(
    path: str | Path, tokenizer: Tokenizer, *, n_cases: int = N_CASES, seed: int = 0
) -> ProbeTask:
    """Build a task whose labels are universal parts of speech, at the last token of each word.

    Each line of the file is a JSON object for one sentence: its `text`, its `words` and one tag of
    `upos` for each word. Words that share a token with another word ("do" in "don't") are left out,
    and so are sentences of more than 63 tokens or whose words or tokens do not match the text.

    Raises:
        ProbeError: No line can be used.
    """
    path = Path(path)
    draw = np.random.Generator(np.random.Philox(key=seed))
    try:
        sentences = [
            _sentence(storage.parse_json(line, f"{path}: line {number}"), path, number)
            for number, line in enumerate(storage.read_foreign_text(path).split("\n"), 1)
            if line.strip()
        ]
    except DamagedError as error:
        raise ProbeError(str(error)) from None
    cases: list[Case] = []
    for i in draw.permutation(len(sentences)):
        if len(cases) >= n_cases:
            break
        cases += _tagged(sentences[i], tokenizer)
    if not cases:
        raise ProbeError(f"{path}: none of {len(sentences)} sentences can be aligned with tokens")
    found = of_cases(
        path.name, cases[:n_cases], tokenizer.eot, "word", "part of speech of the word"
    )
    return replace(found, name="part-of-speech")


class _Sentence(TypedDict):
    """One line of a file of tagged sentences; `upos` has one tag for each of the words."""

    text: str
    words: list[str]
    upos: list[str]


def _sentence(content: Any, path: Path, number: int) -> _Sentence:
    """Return a tagged sentence whose parts have the right types.

    Raises:
        ProbeError: One has not, or there are not as many tags as words.
    """

    def texts(value: object) -> bool:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)

    fits = isinstance(content, dict) and isinstance(content.get("text"), str)
    fits = fits and texts(content.get("words")) and texts(content.get("upos"))
    if not fits or len(content["words"]) != len(content["upos"]):
        raise ProbeError(
            f"{path}: line {number} is no tagged sentence; it needs a text, and as many words as "
            "upos tags"
        )
    return {"text": content["text"], "words": content["words"], "upos": content["upos"]}


def _tagged(sentence: _Sentence, tokenizer: Tokenizer) -> list[Case]:
    """Return one case for every word that ends where a token ends."""
    ids = tokenizer.encode(sentence["text"]).tolist()
    pieces = tokenizer.tokens(ids)
    if "".join(pieces) != sentence["text"] or not 0 < len(ids) <= LONGEST:
        return []
    ends = {int(end): pos for pos, end in enumerate(np.cumsum([len(one) for one in pieces]))}
    prompt, cases, at = (tokenizer.eot, *ids), [], 0
    for word, tag in zip(sentence["words"], sentence["upos"], strict=True):
        start = sentence["text"].find(word, at)
        if start < 0:
            return []
        at = start + len(word)
        # A token may end with this word but begin inside the word before, as `."` does: such words
        # are left out.
        if at in ends and len(pieces[ends[at]].lstrip()) <= len(word):
            cases.append(Case(prompt, 1 + ends[at], tag, word))
    return cases
