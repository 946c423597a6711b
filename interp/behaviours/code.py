"""Behaviours in Python code, built from the held-out files of a token store.

    code-brackets  the kind of bracket that is open is closed
    code-copy      an identifier that occurred before goes on as it did then
    code-imports   an imported name goes on as in its import, the only place that says how
    code-indent    after a line that opens a block a line is indented more, else the same
    code-self      `self.` goes on with an attribute that followed a `self.` before

All prompts have 128 tokens: an end-of-text and the code before the answer; in `code-imports` the
import, and then the code before the answer. The prompts of `code-copy` and `code-imports` end in
the first token of a name, which answer and foil share. The corrupt prompt has another name at all
earlier places of the name, another opening bracket, or another last line, each of as many tokens,
so that the foil is right there as the answer is in the clean prompt. Replaced names come from the
same files and do not occur in the prompt.

A guess without a model is right in about half of the prompts (`behaviours.measure_baselines`),
because each behaviour takes equally many prompts of each of its kinds:

- names: the foil is more, or less, frequent than the answer in the training text; it follows the
  last token more, or less, often there; and, except in `code-imports`, the answer followed the last
  token where that token occurred last, or something else did. On the standard library of Python
  3.11.7 the bigram, the frequent token, and copying what followed most recently are right in .50.
- `code-brackets`: `)` or `]` is right, and the bracket opened last is of that kind, or not. Where
  it is, the bigram is wrong. Always `)`: .50; the kind opened last: .50; the bigram: .44.
- `code-indent`: the last line opens a block, or not, and is indented by 4, or by 8; the bigram
  takes 8. Always deeper: .50; always as before: .50; the bigram: .50.

In `code-brackets` what follows the bracket is the same in both prompts, so a guess that reads only
that has a clean-corrupt difference of 0, and so has one that reads only the last token in
`code-copy`, `code-imports` and `code-self`.

All prompts are from held-out files. The training text is read only to count tokens and bigrams.
Words and syntax are read by the modules `tokenize` and `ast` of the running Python.
"""

import ast
import re
import tokenize
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import cycle, islice, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64

from interp.behaviours.baselines import Followers, token_counts, token_followers
from interp.behaviours.behaviour import Behaviour
from interp.behaviours.encoding import store_of
from interp.behaviours.python_files import PythonFile, Word, held_out_files
from interp.errors import BehaviourError
from train.data import Tokenizer, TokenStore


__all__ = ["CODE_BEHAVIOURS", "load", "names"]

LENGTH = 128  # tokens of a prompt, end-of-text included
LONGEST_IMPORT = LENGTH // 2  # tokens of an import statement
CASE_BYTES = 512  # size of the parts of a file; a name has one prompt at most in each
FEWEST = 10  # prompts; with fewer, the interval of a mean is right for normal scores only
LOOKED_AT = 8  # held-out documents that are read to see whether a store is of code
NAME = re.compile(r"[A-Za-z](\w*[A-Za-z0-9])?", re.ASCII)
OTHER = {"(": "[", "[": "(", ")": "]", "]": ")"}
INDENTATIONS = (4, 8)
BLOCKS = {"for", "if", "try", "while", "with"}  # statements that are valid after any other


@dataclass(frozen=True)
class _Prompt:
    """A prompt pair without end-of-text.

    Attributes:
        kind: Kind of prompt; equally many of each are taken.
        case: Prompts of one case are alike; one of them is taken.
    """

    clean: list[int]
    corrupt: list[int]
    answer: int
    foil: int
    kind: tuple[bool | int | str, ...]
    case: Hashable


class _Form(NamedTuple):
    """An identifier with or without a space before it: two different rows of tokens."""

    name: str
    spaced: bool


@dataclass(frozen=True)
class _Code:
    """The held-out files of a store, and what their identifiers are as tokens.

    Attributes:
        ids: Tokens of each form of each identifier of the files.
        alike: Names by (spaced, first token, number of tokens) of a form.
    """

    files: list[PythonFile]
    tokenizer: Tokenizer
    followers: Followers
    counts: Int64[np.ndarray, " vocab"]
    ids: dict[_Form, list[int]]
    alike: dict[tuple[bool, int, int], list[str]]

    def form(self, file: PythonFile, word: Word) -> _Form | None:
        """Return the form of an identifier at its place; None if its tokens hold other text."""
        span = file.span(word)
        if span is None:
            return None
        form = _Form(word.text, file.starts[span[0]] < word.start)
        return form if self.ids.get(form) == file.tokens[slice(*span)].tolist() else None


# --- names ---------------------------------------------------------------------------------------


def _copies(code: _Code) -> Iterator[_Prompt]:
    """Find names whose first two tokens stood in the prompt before."""
    for number, file in enumerate(code.files):
        places: dict[str, list[Word]] = defaultdict(list)
        for word in file.words:
            if not word.is_identifier:
                continue
            earlier = places[word.text]
            earlier.append(word)
            form = code.form(file, word)
            if form is None or len(code.ids[form]) < 2:
                continue
            window = _window(code, file, word, earlier[:-1], shown=1)
            if window and form in [one for _, one in window[1]]:
                names = code.alike[form.spaced, code.ids[form][0], len(code.ids[form])]
                yield from _name_pairs(code, *window, form, names, _case(number, word), shown=1)


def _attributes(code: _Code) -> Iterator[_Prompt]:
    """Find `self.x` where `self.x` stood in the prompt before."""
    own = [list(_own_attributes(file)) for file in code.files]
    attributes = {word.text for words in own for word in words}
    names = sorted(name for name in attributes if _Form(name, spaced=False) in code.ids)
    for number, file in enumerate(code.files):
        places: dict[str, list[Word]] = defaultdict(list)
        of_self = {word.start for word in own[number]}
        for word in file.words:
            if not word.is_identifier:
                continue
            earlier = places[word.text]
            earlier.append(word)
            form = code.form(file, word)
            if form is None or word.start not in of_self:
                continue
            window = _window(code, file, word, earlier[:-1], shown=0)
            inside = earlier[:-1][-len(window[1]) :] if window and window[1] else []
            if window and any(one.start in of_self for one in inside):
                yield from _name_pairs(code, *window, form, names, _case(number, word), shown=0)


def _own_attributes(file: PythonFile) -> Iterator[Word]:
    """Return the words x of all `self.x`."""
    for before, dot, word in zip(*(file.words[at:] for at in range(3)), strict=False):
        if (before.text, dot.text) == ("self", ".") and word.is_identifier:
            yield word


def _imports(code: _Code) -> Iterator[_Prompt]:
    """Find uses of imported names, and put the import before the code."""
    for number, file in enumerate(code.files):
        for statement in file.tree.body:
            if not isinstance(statement, ast.Import | ast.ImportFrom):
                continue
            start = file.byte(statement.lineno, statement.col_offset)
            end = file.byte(statement.end_lineno or 0, statement.end_col_offset or 0)
            first, last = file.token_at(start), file.token_at(end)
            if first is None or last is None or last - first > LONGEST_IMPORT:
                continue
            line = [*file.tokens[first:last].tolist(), *code.tokenizer.encode("\n").tolist()]
            bound = {one.name for one in statement.names if one.asname is None}
            for word in file.words:
                form = code.form(file, word) if start <= word.start < end else None
                if form is None or word.text not in bound:
                    continue
                spots = [((file.span(word) or (first, first))[0] - first, form)]
                for use, used, before in _uses(code, file, word, LENGTH - 1 - len(line)):
                    names = code.alike[used.spaced, code.ids[used][0], len(code.ids[used])]
                    prompt, case = [*line, *before], _case(number, use)
                    for pair in _name_pairs(code, prompt, spots, used, names, case, shown=1):
                        yield replace(pair, kind=pair.kind[:2])


def _uses(
    code: _Code, file: PythonFile, imported: Word, length: int
) -> Iterator[tuple[Word, _Form, list[int]]]:
    """Yield uses of an imported name, and the code up to the first token of each.

    Only uses without another in that code are taken.
    """
    latest = imported.end
    for word in file.words:
        if word.start < latest or word.text != imported.text or not word.is_identifier:
            continue
        span, form = file.span(word), code.form(file, word)
        if span and form and len(code.ids[form]) > 1:
            first = span[0] + 1 - length
            if first >= 0 and latest <= file.starts[first]:
                yield word, form, file.tokens[first : span[0] + 1].tolist()
        latest = word.end


def _window(
    code: _Code, file: PythonFile, word: Word, earlier: Sequence[Word], *, shown: int
) -> tuple[list[int], list[tuple[int, _Form]]] | None:
    """Return the prompt that shows `shown` tokens of a word, and the word's places before that.

    None if the file begins too late, or if tokens at one of the places hold other text.
    """
    span = file.span(word)
    first = -1 if span is None else span[0] + shown + 1 - LENGTH
    if span is None or first < 0:
        return None
    spots = []
    for one in earlier:
        if one.end > file.starts[first]:
            place, form = file.span(one), code.form(file, one)
            if place is None or form is None or place[0] < first:
                return None
            spots.append((place[0] - first, form))
    return file.tokens[first : span[0] + shown].tolist(), spots


def _name_pairs(
    code: _Code,
    prompt: list[int],
    spots: Sequence[tuple[int, _Form]],
    form: _Form,
    names: Sequence[str],
    case: Hashable,
    *,
    shown: int,
) -> Iterator[_Prompt]:
    """Return pairs with another name at the spots: the closest in counts for each kind of foil.

    The other name has as many tokens in each form of the spots.
    """
    ids = code.ids
    answer = ids[form][shown]
    tokens, counts = code.followers(prompt[-1])
    often = dict(zip(tokens.tolist(), counts.tolist(), strict=True))
    closest: dict[tuple[bool, bool], tuple[float, str]] = {}
    for name in names:
        foil = ids[_Form(name, form.spaced)][shown]
        if all(len(ids[old]) == len(ids[_Form(name, old.spaced)]) for _, old in spots):
            more = often.get(foil, 0) - often.get(answer, 0)
            more_alone = int(code.counts[foil] - code.counts[answer])
            if more and more_alone:
                kind = more > 0, more_alone > 0
                apart = np.log((often.get(foil, 0) + 0.5) / (often.get(answer, 0) + 0.5))
                closest[kind] = min(closest.get(kind, (np.inf, "")), (abs(float(apart)), name))
    for kind, (_, name) in closest.items():
        other = _Form(name, form.spaced)
        corrupt = list(prompt)
        for at, old in spots:
            corrupt[at : at + len(ids[old])] = ids[_Form(name, old.spaced)]
        if not _shows_name(corrupt, form, shown, ids) and not _shows_name(
            prompt, other, shown, ids
        ):
            recent = _follower_of_last(prompt) == answer
            yield _Prompt(prompt, corrupt, answer, ids[other][shown], (*kind, recent), case)


def _shows_name(prompt: list[int], form: _Form, shown: int, ids: dict[_Form, list[int]]) -> bool:
    """Return whether a prompt has a name's first two tokens, or its answer after the last token."""
    both = (ids[_Form(form.name, spaced)] for spaced in (False, True))
    pairs = {(prompt[-1], ids[form][shown]), *(tuple(one[:2]) for one in both)}
    return any(pair in pairs for pair in pairwise(prompt))


def _case(file: int, word: Word) -> Hashable:
    """Return what prompts have in common that are for one name, in one part of a file."""
    return file, word.text, word.start // CASE_BYTES


def _follower_of_last(prompt: list[int]) -> int | None:
    """Return what followed the last token where it occurred last; None if it did not."""
    at = next((at for at in range(len(prompt) - 2, -1, -1) if prompt[at] == prompt[-1]), None)
    return None if at is None else prompt[at + 1]


# --- brackets ------------------------------------------------------------------------------------


def _brackets(code: _Code) -> Iterator[_Prompt]:
    """Find closing brackets that are the beginning of a token."""
    tokens = {piece: token for token, piece in enumerate(code.tokenizer.pieces)}
    for number, file in enumerate(code.files):
        opened: list[int] = []
        for at, word in enumerate(file.words):
            if word.kind != tokenize.OP or word.text not in "()[]{}":
                continue
            if word.text in "([{":
                opened.append(at)
                continue
            opening = opened.pop()
            inside = file.words[opening:at]
            if word.text != "}" and _exchangeable(file.words, opening, inside):
                prompt = _closing(code, file, inside[0], word, tokens)
                last = next(one.text for one in reversed(inside) if one.text in ("(", "[", "{"))
                if prompt is None or last == "{":
                    continue
                opened_last = last == inside[0].text
                if not opened_last or _bigram(code, *prompt) is False:
                    kind = (word.text, opened_last)
                    yield _Prompt(*prompt, kind=kind, case=(number, inside[0].start))


def _exchangeable(words: Sequence[Word], opening: int, inside: Sequence[Word]) -> bool:
    """Return whether code stays valid with the other kind of bracket around `inside`."""
    before = words[max(opening - 2, 0) : opening]
    if {"def", "class", "import", "del", "except"} & {word.text for word in before}:
        return False
    refused = {"=", ":", ":=", "*", "**", "lambda"}
    if before and (before[-1].is_identifier or before[-1].text in (")", "]")):
        refused.add("for")  # a generator is an argument of a call, and no index
    depth = 0
    for word in inside[1:]:
        depth += word.text in ("(", "[", "{")
        depth -= word.text in (")", "]", "}")
        if depth == 0 and word.text in refused:
            return False
    return len(inside) > 1


def _closing(
    code: _Code, file: PythonFile, opening: Word, closing: Word, tokens: dict[bytes, int]
) -> tuple[list[int], list[int], int, int] | None:
    """Return a prompt pair, answer and foil that end before a closing bracket."""
    end, at = file.token_at(closing.start), file.span(opening)
    if end is None or at is None or at[1] - at[0] != 1 or end - at[1] < 2:
        return None
    first = end + 1 - LENGTH
    if first < 0 or at[0] < first:
        return None
    pieces = [code.tokenizer.pieces[int(file.tokens[one])] for one in (at[0], end)]
    old = (opening.text.encode(), closing.text.encode())
    new = (OTHER[opening.text].encode(), OTHER[closing.text].encode())
    others = [tokens.get(p.replace(a, b, 1)) for p, a, b in zip(pieces, old, new, strict=True)]
    if others[0] is None or others[1] is None:
        return None
    prompt = file.tokens[first:end].tolist()
    corrupt = list(prompt)
    corrupt[at[0] - first] = others[0]
    return prompt, corrupt, int(file.tokens[end]), others[1]


def _bigram(
    code: _Code, prompt: list[int], corrupt: list[int], answer: int, foil: int
) -> bool | None:
    """Return whether the bigram guesses the answer; None if it does not choose."""
    tokens, counts = code.followers(prompt[-1])
    more = int(counts[tokens == answer].sum() - counts[tokens == foil].sum())
    return more > 0 if more else None


# --- indentation ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """A statement of one physical line, followed by a line of code.

    Attributes:
        first: First token of the line, with the space before it.
        last: First token after the line.
        indented: Number of spaces before it.
        opens: True if the line opens a block.
    """

    file: int
    first: int
    last: int
    indented: int
    opens: bool


def _indents(code: _Code) -> Iterator[_Prompt]:
    """Find ends of lines, and other lines that can stand in their place."""
    lines = [one for number, file in enumerate(code.files) for one in _lines(number, file)]
    pool: dict[tuple[int, bool, int], list[_Line]] = defaultdict(list)
    for line in lines:
        pool[line.last - line.first, line.opens, line.indented].append(line)
    for number, line in enumerate(lines):
        same, deeper = (
            code.tokenizer.encode("\n" + " " * (line.indented + more - 1)).tolist()
            for more in (0, 4)
        )
        right, wrong = (deeper, same) if line.opens else (same, deeper)
        shared = next(
            (i for i, (a, b) in enumerate(zip(same, deeper, strict=False)) if a != b), None
        )
        others = pool[line.last - line.first, not line.opens, line.indented]
        file = code.files[line.file]
        if shared is None or not others:
            continue
        first = line.last + shared + 1 - LENGTH
        if first < 0 or file.tokens[line.last : line.last + len(right)].tolist() != right:
            continue
        prompt = file.tokens[first : line.last + shared].tolist()
        other = others[number % len(others)]
        corrupt = list(prompt)
        corrupt[line.first - first : line.last - first] = (
            code.files[other.file].tokens[other.first : other.last].tolist()
        )
        pair = prompt, corrupt, right[shared], wrong[shared]
        # Only where 8 spaces are more frequent after the last token: see the module's docstring.
        if _bigram(code, *pair) is (line.indented == (4 if line.opens else 8)):
            yield _Prompt(*pair, kind=(line.opens, line.indented), case=number)


def _lines(number: int, file: PythonFile) -> Iterator[_Line]:
    """Find the statements of one line that open a block, or that say nothing of the next line."""
    statement: list[Word] = []
    for at, word in enumerate(file.words):
        of_code = statement or word.kind != tokenize.COMMENT
        if word.kind in (tokenize.INDENT, tokenize.DEDENT, tokenize.NL) or not of_code:
            continue
        if word.kind != tokenize.NEWLINE:
            statement.append(word)
            continue
        head, tail, statement = statement[0], statement[-1], []
        begin = file.text.rfind(b"\n", 0, head.start) + 1
        before, after = file.text[begin : head.start], file.words[at + 1]
        first, last = file.token_at(head.start - 1), file.token_at(word.start)
        opens = head.text in BLOCKS and after.kind == tokenize.INDENT
        plain = head.is_identifier and after.kind in (tokenize.NAME, tokenize.OP)
        if (
            len(before) in INDENTATIONS
            and not before.strip(b" ")
            and b"\n" not in file.text[head.start : word.start]
            and tail.kind != tokenize.COMMENT
            and (opens or plain)
            and None not in (first, last)
        ):
            yield _Line(number, first or 0, last or 0, len(before), opens)


# --- loading -------------------------------------------------------------------------------------


class _Finder(NamedTuple):
    """A behaviour in words, the function that finds its prompts, and their number of kinds."""

    description: str
    prompts: Callable[[_Code], Iterator[_Prompt]]
    n_kinds: int


_FINDERS = {
    "code-brackets": _Finder("the kind of bracket that is open is closed", _brackets, 4),
    "code-copy": _Finder("an identifier that occurred before goes on as it did then", _copies, 8),
    "code-imports": _Finder("an imported name goes on as in its import", _imports, 4),
    "code-indent": _Finder("a line is indented more after one that opens a block", _indents, 4),
    "code-self": _Finder("`self.` goes on with an attribute that it had before", _attributes, 8),
}
CODE_BEHAVIOURS = tuple(_FINDERS)


def load(name: str, source: Any, *, n_prompts: int, seed: int) -> Behaviour:
    """Build a behaviour of `CODE_BEHAVIOURS` from the held-out files of a run or token store.

    Raises:
        BehaviourError: There is no store, or its held-out Python files have too few prompts.
    """
    store = store_of(source)
    if not isinstance(store, TokenStore):
        raise BehaviourError(
            f"{name} is built from the held-out files of a token store, and a "
            f"{type(source).__name__} has none; give the run"
        )
    finder, code = _FINDERS[name], _read(store, store.fingerprint)
    prompts = list(finder.prompts(code))
    draw = np.random.Generator(np.random.Philox(key=seed))
    drawn = [prompts[one] for one in draw.permutation(len(prompts))]
    chosen = _balanced(drawn, n_prompts, finder.n_kinds)
    if len(chosen) < min(n_prompts, FEWEST):
        raise BehaviourError(
            f"{name}: {len(chosen)} balanced prompts of {LENGTH} tokens are in the "
            f"{len(code.files)} held-out Python files of {store.path}, and "
            f"{min(n_prompts, FEWEST)} are needed; build a store of Python code with a larger "
            "--held-out"
        )
    start = torch.full((len(chosen), 1), store.eot)
    return Behaviour(
        name=name,
        clean=torch.cat([start, torch.tensor([prompt.clean for prompt in chosen])], dim=1),
        corrupt=torch.cat([start, torch.tensor([prompt.corrupt for prompt in chosen])], dim=1),
        answer=torch.tensor([prompt.answer for prompt in chosen]),
        foil=torch.tensor([prompt.foil for prompt in chosen]),
        description=f"{finder.description}; {len(chosen)} prompts from {len(code.files)} held-out "
        f"files of {store.manifest['corpus']['name']}",
    )


def names(source: Any) -> list[str]:
    """List the behaviours, if a source has a token store whose held-out documents are Python."""
    store = getattr(source, "store", source)
    if not isinstance(store, TokenStore):
        return []
    files = held_out_files(store, limit=LOOKED_AT)
    return list(CODE_BEHAVIOURS) if any(len(file.tokens) >= LENGTH for file in files) else []


@lru_cache(maxsize=1)  # the five behaviours are often loaded one after the other
def _read(store: TokenStore, fingerprint: str) -> _Code:
    files = list(held_out_files(store))
    found = {word.text for file in files for word in file.words if word.is_identifier}
    known = sorted(name for name in found if NAME.fullmatch(name))
    forms = [_Form(name, spaced) for name in known for spaced in (False, True)]
    texts = [" " * form.spaced + form.name for form in forms]
    rows = store.tokenizer.encode_batch(texts) if texts else []
    ids = {form: row.tolist() for form, row in zip(forms, rows, strict=True)}
    alike: dict[tuple[bool, int, int], list[str]] = defaultdict(list)
    for form, row in ids.items():
        alike[form.spaced, row[0], len(row)].append(form.name)
    return _Code(files, store.tokenizer, token_followers(store), token_counts(store), ids, alike)


def _balanced(drawn: Sequence[_Prompt], n_prompts: int, n_kinds: int) -> list[_Prompt]:
    """Take equally many prompts of each kind, to a difference of one, and one of each case."""
    by_kind: dict[Hashable, list[_Prompt]] = defaultdict(list)
    for prompt in drawn:
        by_kind[prompt.kind].append(prompt)
    if len(by_kind) < n_kinds:
        return []
    # Rare kinds take their prompts first, because kinds share cases.
    rare_first = sorted(by_kind, key=lambda kind: (len(by_kind[kind]), str(kind)))
    left = {kind: iter(by_kind[kind]) for kind in rare_first}
    chosen: list[_Prompt] = []
    taken: set[Hashable] = set()
    for kind in islice(cycle(rare_first), n_prompts):
        prompt = next((p for p in left[kind] if taken.isdisjoint((p.case, tuple(p.clean)))), None)
        if prompt is None:
            break
        taken |= {prompt.case, tuple(prompt.clean)}
        chosen.append(prompt)
    return chosen
