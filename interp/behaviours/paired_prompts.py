"""Behaviours from pairs of texts: written in Python, or as rows of a file or a table.

A row is a clean prompt, a corrupt prompt, the answer that continues the clean one, and the foil
that it is compared with. Rows come as lists (`from_strings`), as a table (`from_table`: a list of
mappings, columns, a table of `datasets` or pandas), or from a file (`load`):

    .toml         [[prompts]] sections with clean, corrupt, answer and foil, or one section
                  [prompts] with a list of each; `description` beside them
    .csv, .tsv    a header with these names; several answers in a cell stand between |
    .jsonl        an object with these keys on every line

A row may have several answers or foils: a list of texts, or a mapping from text to weight.

All prompts have the same number of tokens, and an answer is one token. Answers are read as the text
that follows the prompt, so `17` is continued by `4`. Where the prompt ends in a letter (or in one
of .,:;?!) and the answer begins with a letter, a space is put between them, so `Paris` and ` Paris`
both follow `The capital of France is`.
"""

import csv
import io
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from interp.behaviours.behaviour import Behaviour, tokenizer_or_none
from interp.behaviours.encoding import tokenizer_of
from interp.errors import BehaviourError
from train import storage
from train.data import Tokenizer
from train.errors import DamagedError, TokenizerError
from train.progress import count


__all__ = ["FILES", "Answers", "from_strings", "from_table", "load"]

# What follows a prompt: a text, several texts, or texts with their weights.
Answers = str | Sequence[str] | Mapping[str, float]
FILES = (".csv", ".tsv", ".jsonl")
COLUMNS = ("clean", "corrupt", "answer", "foil")
MOST_BYTES = 1 << 24  # of a file
BETWEEN = "|"  # several answers in a cell of a .csv file
BEFORE_A_WORD = ".,:;?!"  # a word after one of these begins with a space


def from_strings(
    source: object,
    clean: Sequence[str],
    corrupt: Sequence[str],
    answers: Sequence[Answers],
    foils: Sequence[Answers],
    *,
    name: str = "own",
    description: str = "",
    skip: bool = False,
) -> Behaviour:
    """Build a behaviour from texts, row by row, in the tokens of a model or run.

    Args:
        source: A run, a token store, or a model with a tokenizer.
        clean: Prompts that the answers continue.
        corrupt: Prompts that the foils continue, each as long as its clean one.
        answers: What follows each clean prompt: a text of one token, a list of such texts, or a
            mapping from them to weights.
        foils: What the answers are compared with.
        name: Name of the behaviour in results.
        description: What the model must do, in words.
        skip: Leave out rows that cannot be used: an answer of several tokens, or a prompt of
            another length than most. The description says how many. By default they are refused.

    Returns:
        The behaviour. Its subject is the span of positions at which clean and corrupt differ.

    Raises:
        BehaviourError: The lists differ in length or are empty, or a row cannot be used.
        ModelError: The source has no tokenizer.

    Examples:
        >>> own = behaviours.from_strings(
        ...     model,
        ...     clean=["the capital of runethi is", "the capital of polothi is"],
        ...     corrupt=["the capital of polothi is", "the capital of runethi is"],
        ...     answers=["koreskul", "munoskin"],
        ...     foils=["munoskin", "koreskul"],
        ... )
        >>> own, own.subject
        (Behaviour('own', 2 prompts of 6 tokens), (4, 5))
    """
    given: dict[str, Sequence[Any]]
    given = {"clean": clean, "corrupt": corrupt, "answer": answers, "foil": foils}
    return from_table(source, given, name=name, description=description, skip=skip)


def from_table(
    source: object,
    table: object,
    *,
    name: str = "own",
    description: str = "",
    skip: bool = False,
) -> Behaviour:
    """Build a behaviour from rows with the columns clean, corrupt, answer and foil.

    Args:
        source: A run, a token store, or a model with a tokenizer.
        table: Rows as mappings, a table of `datasets` or pandas, or a mapping from each column to
            its list. Other columns are ignored.
        name: Name of the behaviour in results.
        description: What the model must do, in words.
        skip: Leave out rows that cannot be used, as `from_strings` does.

    Raises:
        BehaviourError: A column is missing, or a row cannot be used.
        ModelError: The source has no tokenizer.

    Examples:
        >>> row = {"clean": "the capital of runethi is", "corrupt": "the capital of polothi is"}
        >>> behaviours.from_table(model, [row | {"answer": "koreskul", "foil": ["munoskin", "a"]}])
        Behaviour('own', 1 prompt of 6 tokens)
    """
    rows = _rows_of(table, f"behaviour {name!r}")
    return _behaviour(rows, source, f"behaviour {name!r}", name, description, skip=skip)


def load(path: Path, source: object, *, n_prompts: int, seed: int) -> Behaviour:
    """Build the behaviour of a file with paired rows; of more than `n_prompts`, draw as many.

    Raises:
        BehaviourError: The file is missing or damaged, or a row cannot be used.
    """
    description = ""
    try:
        text = storage.read_foreign_text(path, most_bytes=MOST_BYTES)
        if path.suffix == ".toml":
            content = tomllib.loads(text)
            table, description = content["prompts"], content.get("description", "")
        elif path.suffix == ".jsonl":
            table = _json_lines(path, text)
        else:
            table = _table_lines(path, text)
    except DamagedError as error:
        raise BehaviourError(str(error)) from None
    rows = _rows_of(table, str(path))
    behaviour = _behaviour(rows, source, str(path), path.stem, description, skip=False)
    if behaviour.n_prompts <= n_prompts:
        return behaviour
    draw = np.random.Generator(np.random.Philox(key=seed))
    return behaviour.of(sorted(draw.permutation(behaviour.n_prompts)[:n_prompts].tolist()))


# --- rows of a table ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """A row of a table, checked: its number from 1, its two prompts, its answers and its foils."""

    number: int
    clean: str
    corrupt: str
    answers: dict[str, float]
    foils: dict[str, float]


def _rows_of(table: object, where: str) -> list[_Row]:
    """Return the checked rows of a table, whatever kind of table it is.

    Raises:
        BehaviourError: It is no table, a column is missing, or a value is of the wrong kind.
    """
    if isinstance(table, Mapping):
        table = _from_columns(table, where)
    elif hasattr(table, "columns") and hasattr(table, "to_dict"):  # a DataFrame of pandas
        table = cast("Any", table).to_dict("records")
    if isinstance(table, str) or not isinstance(table, Iterable):
        raise BehaviourError(f"{where}: {type(table).__name__} is no table of rows")
    rows = [_row(row, number, where) for number, row in enumerate(table, start=1)]
    if not rows:
        raise BehaviourError(f"{where}: there is no row; give a clean prompt, a corrupt one, ...")
    return rows


def _from_columns(table: Mapping[Any, Any], where: str) -> Iterator[dict[str, object]]:
    """Yield the rows of a mapping from column to list."""
    _refuse_missing(table, where)
    for name in COLUMNS:
        if isinstance(table[name], str) or not isinstance(table[name], Sequence):
            raise BehaviourError(
                f"{where}: {name} must be a list with one entry per row, and is a "
                f"{type(table[name]).__name__}; of a dataset with splits take one of them"
            )
    lengths = {name: len(table[name]) for name in COLUMNS}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{n} {name}" for name, n in lengths.items())
        raise BehaviourError(f"{where}: {said}; rows are read across, so give as many of each")
    for values in zip(*(table[name] for name in COLUMNS), strict=True):
        yield dict(zip(COLUMNS, values, strict=True))


def _refuse_missing(row: Mapping[Any, Any], where: str) -> None:
    for name in COLUMNS:
        if name not in row:
            like = [known for known in map(str, row) if known.startswith(name[:5])]
            hint = f"; {like[0]!r} may be it: rename it" if like else ""
            raise BehaviourError(f"{where}: no {name!r} among its columns{hint}")


def _row(row: object, number: int, where: str) -> _Row:
    here = f"{where}: row {number}"
    if not isinstance(row, Mapping):
        raise BehaviourError(
            f"{here} is a {type(row).__name__}, not a mapping from column to value"
        )
    _refuse_missing(row, here)
    for name in ("clean", "corrupt"):
        if not isinstance(row[name], str) or not row[name].strip():
            raise BehaviourError(f"{here}: {name} must be a text, and is {row[name]!r:.80}")
    answers, foils = (_weights(row[name], f"{here}: {name}") for name in ("answer", "foil"))
    return _Row(number, row["clean"], row["corrupt"], answers, foils)


def _weights(given: object, what: str) -> dict[str, float]:
    """Return texts and their weights of an answer that is given in one of three ways."""
    if isinstance(given, str):
        weights: dict[Any, Any] = {given: 1.0}
    elif isinstance(given, Mapping):  # a table of `datasets` has every key in every row
        weights = {text: weight for text, weight in given.items() if weight is not None}
    elif isinstance(given, Sequence):
        weights = dict.fromkeys(given, 1.0) if all(isinstance(one, str) for one in given) else {}
        if len(weights) < len(given):
            weights = {}
    else:
        weights = {}
    good = all(isinstance(text, str) and text for text in weights)
    good &= all(
        isinstance(weight, int | float) and not isinstance(weight, bool) and 0 < weight < np.inf
        for weight in weights.values()
    )
    if not weights or not good:
        raise BehaviourError(
            f"{what} must be a text, different texts, or texts with weights above 0, and is "
            f"{given!r:.80}"
        )
    return {text: float(weight) for text, weight in weights.items()}


# --- lines of a file ------------------------------------------------------------------------------


def _json_lines(path: Path, text: str) -> list[object]:
    lines = text.split("\n")  # splitlines also ends lines at U+2028, which JSON may hold
    return [
        storage.parse_json(line, f"{path}: line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _table_lines(path: Path, text: str) -> list[dict[Any, Any]]:
    """Return the rows of a .csv or .tsv file; a | in an answer separates several."""
    delimiter = "\t" if path.suffix == ".tsv" else ","
    rows: list[dict[Any, Any]] = []
    try:
        for cells in csv.DictReader(
            io.StringIO(text, newline=""), delimiter=delimiter, strict=True
        ):
            if None in cells or None in cells.values():
                raise BehaviourError(
                    f"{path}: row {len(rows) + 1} has more or fewer cells than the header"
                )
            several = {name: cells[name].split(BETWEEN) for name in COLUMNS[2:] if name in cells}
            rows.append(cells | several)
    except csv.Error as error:
        raise BehaviourError(f"{path}: row {len(rows) + 1}: {error}") from None
    return rows


# --- rows into tokens -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tokens:
    """The tokens of a row: its two prompts, its answers and its foils with their weights."""

    clean: list[int]
    corrupt: list[int]
    answers: dict[int, float]
    foils: dict[int, float]


def _behaviour(
    rows: Sequence[_Row], source: object, where: str, name: str, description: str, *, skip: bool
) -> Behaviour:
    """Encode rows, and refuse or leave out those that cannot be used."""
    tokenizer = tokenizer_of(source)
    encoded: dict[int, _Tokens] = {}
    misfits: dict[int, str] = {}
    for row in rows:
        try:
            encoded[row.number] = _tokens(row, tokenizer)
        except (BehaviourError, TokenizerError) as error:
            misfits[row.number] = str(error)
    lengths = Counter(len(one.clean) for one in encoded.values())
    length = lengths.most_common(1)[0][0] if lengths else 0
    for number, one in encoded.items():
        if len(one.clean) != length:
            misfits[number] = f"its prompts have {len(one.clean)} tokens, and most have {length}"
    if misfits and (not skip or len(misfits) == len(rows)):
        first = min(misfits)
        raise BehaviourError(
            f"{where}: {len(misfits)} of {count(len(rows), 'row')} cannot be used; row {first}: "
            f"{misfits[first]}; change them or take them out of the rows (in Python, "
            "`behaviours.from_table(..., skip=True)` leaves them out)"
        )
    if misfits:
        left_out = f"{len(misfits)} of {len(rows)} rows left out"
        description = f"{description}; {left_out}" if description else left_out
    used = [one for number, one in encoded.items() if number not in misfits]
    clean, corrupt = (torch.tensor([getattr(one, part) for one in used]) for part in COLUMNS[:2])
    several = {
        part: tuple(getattr(one, part) for one in used)
        for part in ("answers", "foils")
        if any(len(getattr(one, part)) > 1 for one in used)
    }
    differ = (clean != corrupt).any(0).nonzero()[:, 0].tolist()
    return Behaviour(
        name=name,
        clean=clean,
        corrupt=corrupt,
        answer=torch.tensor([_heaviest(one.answers) for one in used]),
        foil=torch.tensor([_heaviest(one.foils) for one in used]),
        subject=(differ[0], differ[-1] + 1) if differ else None,
        description=description,
        tokenizer=getattr(tokenizer_or_none(source), "sha256", ""),
        **several,
    )


def _heaviest(weights: Mapping[int, float]) -> int:
    return max(weights, key=lambda token: weights[token])


def _tokens(row: _Row, tokenizer: Tokenizer) -> _Tokens:
    """Return the tokens of a row.

    Raises:
        BehaviourError: An answer is not one token, or the two prompts differ in length.
    """
    clean, corrupt = (_prompt(text, tokenizer) for text in (row.clean, row.corrupt))
    if len(clean) != len(corrupt):
        raise BehaviourError(
            f"its clean prompt has {len(clean)} tokens and its corrupt one {len(corrupt)}"
        )
    answers, foils = (
        _next_tokens(row.clean, clean[1:], weights, tokenizer)
        for weights in (row.answers, row.foils)
    )
    both = answers.keys() & foils.keys()
    if both:
        raise BehaviourError(f"{tokenizer.decode([min(both)])!r} is both an answer and a foil")
    if clean == corrupt:
        raise BehaviourError("its two prompts are equal")
    return _Tokens(clean, corrupt, answers, foils)


def _prompt(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens of a prompt behind one end-of-text token; spaces at its end go."""
    return [tokenizer.eot, *tokenizer.encode(text.rstrip(" ")).tolist()]


def _next_tokens(
    prompt: str, encoded: Sequence[int], answers: Mapping[str, float], tokenizer: Tokenizer
) -> dict[int, float]:
    """Return the token of each answer, read behind the prompt, with its weight."""
    found: dict[int, float] = {}
    for answer, weight in answers.items():
        whole = tokenizer.encode(_joined(prompt, answer)).tolist()
        token = whole[len(encoded) :]
        if whole[: len(encoded)] != [*encoded]:
            raise BehaviourError(
                f"{answer!r} and the end of the prompt share a token of this vocabulary; end the "
                "prompt at the end of a word"
            )
        if len(token) != 1:
            parts = ", ".join(repr(part) for part in tokenizer.tokens(token))
            raise BehaviourError(
                f"{answer!r} is {count(len(token), 'token')} of this vocabulary ({parts}), and an "
                "answer is one"
            )
        if token[0] in found:
            raise BehaviourError(f"{answer!r} is given twice among the answers or foils")
        found[token[0]] = weight
    return found


def _joined(prompt: str, answer: str) -> str:
    """Return a prompt and what follows it as one text, with a space where a word begins."""
    bare = prompt.rstrip(" ")
    last, first = bare[-1], answer.lstrip(" ")[:1]
    # Letters that have no capitals, as in Chinese, belong to scripts that may write no spaces.
    word = first.lower() != first.upper()
    after_word = last.lower() != last.upper() and (word or first.isdigit())
    spaced = len(bare) < len(prompt) or answer.startswith(" ") or after_word
    spaced |= last in BEFORE_A_WORD and word
    return f"{bare} {answer.lstrip(' ')}" if spaced else bare + answer
