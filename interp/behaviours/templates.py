"""Behaviours from TOML files, for any tokenizer.

A file holds templates of clean and corrupt prompts, pair by pair, with `{slots}` that are filled
from lists; a list entry is used only when it is one token, so that all prompts are equally long. Or
it holds `[repeat]`, random tokens twice, and perhaps `[text]`, stretches of the text of a run that
are taken instead where there is one. See `interp/behaviour_files` for one of each.

In a stretch of text the last token has occurred before, and what followed it then follows it now.
The corrupt prompt has a foil wherever the clean one has that answer. The text is the model's own
language, so the clean score also holds what it expects without looking back; the distance between
clean and corrupt does not. With `exchange` the foil stands in the clean prompt as often and the two
change places: both prompts hold the same tokens, so what moves is owed to their order.
"""

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from interp.behaviours.behaviour import Behaviour
from interp.behaviours.planted import encoded_prompts, repeats, tokenizer_of
from interp.errors import BehaviourError
from train.data import TokenStore
from train.errors import TokenizerError


__all__ = ["load"]

# Stretches looked at before giving up, and training tokens counted: 4 million say well enough what
# is likely, at 0.4 s and 70 MB.
TRIES, COUNTED = 1 << 17, 1 << 22
KEYS = {"clean", "corrupt", "answer", "foil", "slots", "lists"}


def load(path: Path, source: Any, *, n_prompts: int, seed: int) -> Behaviour:
    """The behaviour that a file describes, in the vocabulary of a run or model.

    Raises:
        BehaviourError: The file is missing, incomplete, or has too few single-token words.
    """
    tokenizer, content = tokenizer_of(source), _content(path)
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
        raise BehaviourError(f"{path}: has no {' and no '.join(sorted(missing))}")
    return _from_templates(path, content, tokenizer, n_prompts, draw)


def _content(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BehaviourError(f"{path}: there is no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BehaviourError(f"{path}: not readable as TOML ({error})") from None


def _worded(path: Path, template: str, filled: dict[str, str]) -> str:
    try:
        return template.format(**filled)
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join("{" + name + "}" for name in filled)
        raise BehaviourError(
            f"{path}: {template!r} cannot be filled in ({error}); its slots are {known}"
        ) from None


def _from_templates(
    path: Path, content: dict[str, Any], tokenizer: Any, n_prompts: int, draw: np.random.Generator
) -> Behaviour:
    words = {name: _single_tokens(entries, tokenizer) for name, entries in content["lists"].items()}
    _check_lists(path, content, words)
    clean, corrupt, answer, foil = [], [], [], []
    for turn in range(n_prompts):
        filled = _fill(content["slots"], words, draw)
        template = turn % len(content["clean"])
        clean.append(_worded(path, content["clean"][template], filled))
        corrupt.append(_worded(path, content["corrupt"][template], filled))
        answer.append(_token(_worded(path, content["answer"], filled), tokenizer))
        foil.append(_token(_worded(path, content["foil"], filled), tokenizer))
    return Behaviour(
        name=path.stem,
        clean=encoded_prompts(clean, tokenizer),
        corrupt=encoded_prompts(corrupt, tokenizer),
        answer=torch.tensor(answer),
        foil=torch.tensor(foil),
        description=content.get("description", ""),
    )


def _check_lists(path: Path, content: dict[str, Any], words: dict[str, list[str]]) -> None:
    """Each list must have one word for every slot it fills, and one more to choose from."""
    for name, entries in content["lists"].items():
        needed = 1 + sum(filler == name for filler in content["slots"].values())
        if len(words[name]) < needed:
            raise BehaviourError(
                f"{path}: {len(words[name])} of {len(entries)} {name} are one token of this "
                f"vocabulary and {needed} are needed; add {name} that it holds"
            )


def _single_tokens(entries: Sequence[str], tokenizer: Any) -> list[str]:
    """The entries that are one token with a space in front of them."""
    return [entry for entry in entries if len(_encode(f" {entry}", tokenizer)) == 1]


def _encode(text: str, tokenizer: Any) -> Sequence[int]:
    """Tokens of a text; none when the vocabulary lacks a word."""
    try:
        return tokenizer.encode(text).tolist()
    except TokenizerError:
        return []


def _token(word: str, tokenizer: Any) -> int:
    tokens = _encode(f" {word}", tokenizer)
    if len(tokens) != 1:
        raise BehaviourError(f"{word!r} is {len(tokens)} tokens of this vocabulary, not one")
    return int(tokens[0])


def _fill(
    slots: dict[str, str], words: dict[str, list[str]], draw: np.random.Generator
) -> dict[str, str]:
    """A word for each slot; slots of one list get different words."""
    left = {name: draw.permutation(entries).tolist() for name, entries in words.items()}
    return {slot: left[name].pop() for slot, name in slots.items()}


# --- stretches of text ---------------------------------------------------------------------------

# Ids of what follows a token in the training text, and how often each does.
Followers = Callable[[int], tuple[Int64[np.ndarray, " follower"], Int64[np.ndarray, " follower"]]]


def _from_text(
    path: Path,
    content: dict[str, Any],
    store: TokenStore,
    n_prompts: int,
    draw: np.random.Generator,
) -> Behaviour:
    """Stretches of held-out text where a token is followed by what followed it before."""
    asked = content["text"]
    length, about = asked["length"], f"in text of {store.manifest['corpus']['name']}"
    text, followers = _text_to_ask(store, length), _followers(store)
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


def _text_to_ask(store: TokenStore, length: int) -> Any:
    """The held-out text; the training text when nothing was held out."""
    held_out = store.tokens[store.train_tokens :]
    return held_out if len(held_out) > length else store.tokens[: store.train_tokens]


def _followers(store: TokenStore) -> Followers:
    tokens = np.asarray(store.tokens[: min(store.train_tokens, COUNTED)], np.int64)
    order = np.argsort(tokens[:-1], kind="stable")
    edges = np.searchsorted(tokens[:-1][order], np.arange(store.vocab_size + 1))

    def of(token: int) -> tuple[np.ndarray, np.ndarray]:
        return np.unique(tokens[order[edges[token] : edges[token + 1]] + 1], return_counts=True)

    return of


def _foil(
    stretch: Int64[np.ndarray, " pos"], followers: Followers, asked: dict[str, Any], eot: int
) -> int | None:
    """What to exchange the last token of a stretch with; None when the stretch does not fit.

    A foil follows the same token about as often in the training text, and does not in the stretch:
    it is new there or, for an exchange, is there as often as the answer.
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
    # In logarithms, half a count added: an answer that is new in the held-out text has none.
    apart = np.abs(np.log(counts[fits]) - np.log(often + 0.5))
    return int(tokens[fits][apart.argmin()])


def _exchanged(run: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The prompts with two tokens in each other's place, row by row."""
    one, other = one[:, None], other[:, None]
    return torch.where(run == one, other, torch.where(run == other, one, run))
