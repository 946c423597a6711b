"""Behaviours from TOML files, for any tokenizer.

There are four kinds; `ioi.toml` in this folder shows the first and `induction.toml` the last two:

- Templates of clean and corrupt prompts, pair by pair. Their `{slots}` are filled from lists. A
  list entry is used only if it is one token, so that all prompts are equally long. The lists are
  crossed: each slot is drawn independently of the others. An answer that no clean prompt shows
  would therefore be drawn without regard to its prompt, and is refused.
- `[[prompts]]`: rows of words that belong together (`interp.behaviours.paired_prompts`).
- `[repeat]`: random tokens, repeated.
- `[text]`: passages of the held-out text of a run. If the file has this section and the source has
  a token store, it is used instead of `[repeat]`.

A passage of `[text]` ends with a token that occurred in it before, and the answer is the token that
followed it then. The corrupt prompt has the foil wherever the clean prompt has the answer. As the
text is natural, part of the clean score comes from tokens the model would predict without looking
back; the difference between clean and corrupt does not contain that part. With `exchange = true`
the foil occurs in the clean prompt as often as the answer and the two change places. Both prompts
then hold the same tokens, so any difference is due to their order.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import TypedDict

import numpy as np
import torch
from jaxtyping import Int64, Integer

from interp.behaviours import paired_prompts
from interp.behaviours.baselines import Followers, token_followers
from interp.behaviours.behaviour import Behaviour
from interp.behaviours.encoding import encoded_prompts, tokenizer_of
from interp.behaviours.induction import repeats
from interp.errors import BehaviourError
from train import storage
from train.data import Tokenizer, TokenStore
from train.errors import DamagedError, TokenizerError, nearest, nearest_path


__all__ = ["load"]

# Number of passages tried before giving up.
TRIES = 1 << 17
MOST_BYTES, LONGEST = 1 << 24, 100_000  # of a file; of a passage in tokens
KEYS = {"clean", "corrupt", "answer", "foil", "slots", "lists"}


def load(path: Path, source: object, *, n_prompts: int, seed: int) -> Behaviour:
    """Build the behaviour that a file describes, in the vocabulary of a run or model.

    Raises:
        BehaviourError: The file is missing or incomplete, has too few single-token words, or no
            passage of the text fits.
    """
    content = _content(path)
    if "prompts" in content:
        return paired_prompts.load(path, source, n_prompts=n_prompts, seed=seed)
    tokenizer = tokenizer_of(source)
    draw = np.random.Generator(np.random.Philox(key=seed))
    store = getattr(source, "store", source)
    if "text" in content and isinstance(store, TokenStore):
        return _from_text(path, content, store, n_prompts, draw)
    if "repeat" in content:
        words = [token for token in range(tokenizer.vocab_size) if token != tokenizer.eot]
        return repeats(
            words,
            tokenizer.eot,
            n_prompts=n_prompts,
            draw=draw,
            name=path.stem,
            **content["repeat"],
        )
    missing = KEYS - set(content)
    if missing:
        raise BehaviourError(
            f"{path}: has no {' and no '.join(sorted(missing))}; rows of a clean and a corrupt "
            "prompt, an answer and a foil are [[prompts]]"
        )
    return _from_templates(path, content, tokenizer, n_prompts, draw)


def _content(path: Path) -> storage.JsonObject:
    """Read a file, and check the keys and the types of its values."""
    if not path.is_file():
        raise BehaviourError(f"{path}: there is no such file{nearest_path(path)}")
    try:
        content = storage.read_foreign_toml(path, most_bytes=MOST_BYTES)
    except DamagedError as error:
        raise BehaviourError(str(error)) from None
    _check_keys(path, content, {*TYPES, *SECTIONS, "prompts"})
    if "prompts" in content and content.keys() - {"prompts", "description"}:
        other = min(content.keys() - {"prompts", "description"})
        raise BehaviourError(
            f"{path}: [[prompts]] are whole prompts, and {other!r} belongs to templates; give one "
            "of the two"
        )
    for key, kind in TYPES.items():
        if key in content and not kind.holds(content[key]):
            raise BehaviourError(f"{path}: {key} must be {kind.said}, and is {content[key]!r:.80}")
    for section, keys in SECTIONS.items():
        _check_section(path, section, content.get(section), keys)
    return content


def _check_keys(path: Path, content: Mapping[str, object], known: Collection[str]) -> None:
    for key in content:
        if key not in known:
            raise BehaviourError(f"{path}: no key is called {key!r}{nearest(key, known)}")


def _check_section(path: Path, name: str, content: object, keys: "Mapping[str, _Kind]") -> None:
    if content is None:
        return
    if not isinstance(content, dict):
        raise BehaviourError(f"{path}: {name} must be a section, and is {content!r:.80}")
    _check_keys(path, content, keys)
    for key, kind in keys.items():
        if key in content or name == "text":
            value = content.get(key)
            if not kind.holds(value):
                raise BehaviourError(
                    f"{path}: {name}.{key} must be {kind.said}, and is {value!r:.80}"
                )


@dataclass(frozen=True)
class _Kind:
    """The kind of a value in a behaviour file: its name for errors, and a test of a value."""

    said: str
    holds: Callable[[object], bool]


def _texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _whole(value: object) -> bool:
    return type(value) is int and 0 < value <= LONGEST


TEXT = _Kind("a text", lambda value: isinstance(value, str))
TEXTS = _Kind("a list of texts with at least one", _texts)
WHOLE = _Kind(f"a whole number from 1 to {LONGEST}", _whole)
TYPES = {
    "description": TEXT,
    "clean": TEXTS,
    "corrupt": TEXTS,
    "answer": TEXT,
    "foil": TEXT,
    "slots": _Kind(
        "a section of texts",
        lambda value: isinstance(value, dict) and all(isinstance(v, str) for v in value.values()),
    ),
    "lists": _Kind(
        "a section of lists of texts",
        lambda value: isinstance(value, dict) and all(_texts(one) for one in value.values()),
    ),
}
SECTIONS = {
    "repeat": {"length": WHOLE, "answer_at": WHOLE},
    "text": {
        "length": WHOLE,
        "likely": _Kind(
            "a share from 0 to 1",
            lambda value: type(value) in (int, float) and 0 <= float(str(value)) <= 1,
        ),
        "same_end": WHOLE,
        "exchange": _Kind("true or false", lambda value: isinstance(value, bool)),
    },
}


def _check_templates(path: Path, content: storage.JsonObject) -> None:
    """Raise unless every template names slots, and every slot a list."""
    if len(content["clean"]) != len(content["corrupt"]):
        raise BehaviourError(
            f"{path}: {len(content['clean'])} clean and {len(content['corrupt'])} corrupt "
            "templates; they are pairs, so give as many of each"
        )
    for slot, name in content["slots"].items():
        if name not in content["lists"]:
            raise BehaviourError(
                f"{path}: the slot {slot} is filled from {name!r}, and no list is called that"
                f"{nearest(name, content['lists'])}"
            )
    known = ", ".join("{" + name + "}" for name in content["slots"])
    for template in (*content["clean"], *content["corrupt"], content["answer"], content["foil"]):
        try:
            fields = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
        except ValueError as error:
            raise BehaviourError(f"{path}: {template!r}: {error}") from None
        for name, width, conversion in fields:
            # A width or an attribute would be computed by Python, at any cost.
            if name not in content["slots"] or width or conversion:
                raise BehaviourError(
                    f"{path}: {template!r} cannot be filled in ({name!r}); its slots are {known}"
                )
    _refuse_unrelated_answer(path, content)


def _refuse_unrelated_answer(path: Path, content: storage.JsonObject) -> None:
    """Raise if the answer is drawn from a list and does not occur in the clean prompts.

    Slots are drawn independently, so that answer would have nothing to do with its prompt, such as
    "the capital of France is" with the answer "Tokyo".
    """
    shown = {name for template in content["clean"] for name in _slots_of(template)}
    unrelated = sorted(
        name
        for name in _slots_of(content["answer"])
        if name not in shown and len(content["lists"][content["slots"][name]]) > 1
    )
    if unrelated:
        listed = content["slots"][unrelated[0]]
        raise BehaviourError(
            f"{path}: the answer {{{unrelated[0]}}} is in no clean prompt, and lists are crossed: "
            f"it would be drawn from {listed} whatever the prompt says; write words that belong "
            "together as rows, [[prompts]] with clean, corrupt, answer and foil"
        )


def _slots_of(template: str) -> list[str]:
    return [part[1] for part in Formatter().parse(template) if part[1]]


def _crossed(content: storage.JsonObject) -> str:
    """Say that the lists of templates are crossed, if there are several."""
    used = list(dict.fromkeys(content["slots"].values()))
    if len(used) < 2:
        return ""
    return f"drawn independently of each other (crossed): {', '.join(used)}"


def _from_templates(
    path: Path,
    content: storage.JsonObject,
    tokenizer: Tokenizer,
    n_prompts: int,
    draw: np.random.Generator,
) -> Behaviour:
    _check_templates(path, content)
    words = {name: _single_tokens(entries, tokenizer) for name, entries in content["lists"].items()}
    _check_lists(path, content, words)
    clean, corrupt, answer, foil = [], [], [], []
    for turn in range(n_prompts):
        filled = _fill(content["slots"], words, draw)
        template = turn % len(content["clean"])
        clean.append(content["clean"][template].format(**filled))
        corrupt.append(content["corrupt"][template].format(**filled))
        answer.append(_token(content["answer"].format(**filled), tokenizer))
        foil.append(_token(content["foil"].format(**filled), tokenizer))
    return Behaviour(
        name=path.stem,
        clean=encoded_prompts(clean, tokenizer),
        corrupt=encoded_prompts(corrupt, tokenizer),
        answer=torch.tensor(answer),
        foil=torch.tensor(foil),
        description="; ".join(filter(None, [content.get("description"), _crossed(content)])),
    )


def _check_lists(path: Path, content: storage.JsonObject, words: dict[str, list[str]]) -> None:
    """Raise unless each list has more single-token words than slots that it fills."""
    for name, entries in content["lists"].items():
        needed = 1 + sum(filler == name for filler in content["slots"].values())
        if len(words[name]) < needed:
            raise BehaviourError(
                f"{path}: {len(words[name])} of {len(entries)} {name} are one token of this "
                f"vocabulary and {needed} are needed; add {name} that it holds"
            )


def _single_tokens(entries: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """Return the entries that are one token when preceded by a space."""
    return [entry for entry in entries if len(_encode(f" {entry}", tokenizer)) == 1]


def _encode(text: str, tokenizer: Tokenizer) -> Sequence[int]:
    """Return the tokens of a text, or an empty list if the vocabulary lacks a word of it."""
    try:
        return tokenizer.encode(text).tolist()
    except TokenizerError:
        return []


def _token(word: str, tokenizer: Tokenizer) -> int:
    tokens = _encode(f" {word}", tokenizer)
    if len(tokens) != 1:
        raise BehaviourError(f"{word!r} is {len(tokens)} tokens of this vocabulary, not one")
    return int(tokens[0])


def _fill(
    slots: dict[str, str], words: dict[str, list[str]], draw: np.random.Generator
) -> dict[str, str]:
    """Draw a word for each slot; slots that use the same list get different words."""
    left = {name: draw.permutation(entries).tolist() for name, entries in words.items()}
    return {slot: left[name].pop() for slot, name in slots.items()}


# --- passages of text ----------------------------------------------------------------------------


class _Passages(TypedDict):
    """The section `[text]`; `induction.toml` says what each entry does."""

    length: int
    likely: float
    same_end: int
    exchange: bool


def _from_text(
    path: Path,
    content: storage.JsonObject,
    store: TokenStore,
    n_prompts: int,
    draw: np.random.Generator,
) -> Behaviour:
    """Build a behaviour from passages in which a token is followed by the same token as before.

    Raises:
        BehaviourError: No passage fits.
    """
    asked: _Passages = content["text"]
    length, about = asked["length"], f"in text of {store.manifest['corpus']['name']}"
    text, followers = _text_to_ask(store, length), token_followers(store)
    places = draw.integers(max(len(text) - length, 1), size=TRIES)
    found: list[tuple[np.ndarray, int]] = []
    for start in dict.fromkeys(places.tolist()):
        stretch = text[start : start + length + 1].astype(np.int64)
        foil = _foil(stretch, followers, asked, store.eot) if len(stretch) > length else None
        if foil is not None:
            found.append((stretch, foil))
        if len(found) == n_prompts:
            break
    if not found:
        raise BehaviourError(
            f"{path}: in {store.path} no stretch of {length} tokens ends in a token that repeats "
            f"with what followed it; {len(text):,} tokens were there to look in"
        )
    stretches, foils = (torch.from_numpy(np.stack(one)) for one in zip(*found, strict=True))
    run, answers = stretches[:, :-1], stretches[:, -1]
    start = torch.full((len(run), 1), store.eot)
    return Behaviour(
        name=path.stem,
        clean=torch.cat([start, run], dim=1),
        corrupt=torch.cat([start, _exchanged(run, answers, foils)], dim=1),
        answer=answers,
        foil=foils,
        description=f"{content.get('description', '')}, {about}",
    )


def _text_to_ask(store: TokenStore, length: int) -> Integer[np.ndarray, " pos"]:
    """Return the held-out text, or the training text if too little was held out."""
    held_out = store.tokens[store.train_tokens :]
    return held_out if len(held_out) > length else store.tokens[: store.train_tokens]


def _foil(
    stretch: Int64[np.ndarray, " pos"], followers: Followers, asked: _Passages, eot: int
) -> int | None:
    """Choose the token to replace the answer of a passage with; None if the passage does not fit.

    The foil follows the same token about as often as the answer in the training text, but never in
    the passage. It must not occur in the passage at all or, with `exchange`, must occur as often as
    the answer.
    """
    prompt, (last, answer) = stretch[:-1], stretch[-2:].tolist()
    before = np.flatnonzero(prompt[:-1] == last)
    end = prompt[-asked["same_end"] :]
    if not len(before) or prompt[before[-1] + 1] != answer or answer in end or eot in stretch:
        return None
    tokens, counts = followers(last)
    often = counts[tokens == answer].sum()
    if often > asked["likely"] * counts.sum():
        return None
    wanted = (prompt == answer).sum() if asked["exchange"] else 0
    fits = (prompt[:, None] == tokens).sum(axis=0) == wanted
    fits &= ~np.isin(tokens, [eot, answer, *prompt[before + 1].tolist(), *end.tolist()])
    if not fits.any():
        return None
    # Counts are compared as logarithms. 0.5 is added because an answer from held-out text may never
    # follow this token in the training text.
    apart = np.abs(np.log(counts[fits]) - np.log(often + 0.5))
    return int(tokens[fits][apart.argmin()])


def _exchanged(run: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the prompts with the two tokens of each row exchanged."""
    one, other = one[:, None], other[:, None]
    return torch.where(run == one, other, torch.where(run == other, one, run))
