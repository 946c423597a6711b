"""Behaviours from TOML files, for any tokenizer.

A file holds templates of clean and corrupt prompts, pair by pair, with `{slots}` that are filled
from lists; a list entry is used only when it is one token, so that all prompts are equally long. Or
it holds `[repeat]`: random tokens, twice. See `interp/behaviour_files` for one of each.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.behaviours import Behaviour
from interp.errors import BehaviourError
from interp.planted_prompts import encoded, repeats, tokenizer_of
from train.errors import TokenizerError


__all__ = ["load"]

KEYS = {"clean", "corrupt", "answer", "foil", "slots", "lists"}


def load(path: Path, source: Any, *, n_prompts: int, seed: int) -> Behaviour:
    """The behaviour that a file describes, in the vocabulary of a run or model.

    Raises:
        BehaviourError: The file is missing, incomplete, or has too few single-token words.
    """
    tokenizer, content = tokenizer_of(source), _content(path)
    draw = np.random.Generator(np.random.Philox(key=seed))
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


def _from_templates(
    path: Path, content: dict[str, Any], tokenizer: Any, n_prompts: int, draw: np.random.Generator
) -> Behaviour:
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
        clean=encoded(clean, tokenizer),
        corrupt=encoded(corrupt, tokenizer),
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
