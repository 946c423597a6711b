"""Tokens of prompts: the tokenizer of a run, store or model, and texts of equal length."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import BehaviourError, ModelError
from train.data import Tokenizer, parse_tokenizer
from train.errors import TrainError


__all__ = ["before", "encoded_prompts", "store_of", "token_ids", "tokenizer_of"]


def tokenizer_of(source: object) -> Tokenizer:
    """Return the tokenizer of a run, a token store or a model.

    Raises:
        ModelError: It has no tokenizer, or one of transformers that openbook does not know.

    Examples:
        >>> behaviours.tokenizer_of(run) == store.tokenizer
        True
    """
    tokenizer = getattr(store_of(source), "tokenizer", None)
    if hasattr(tokenizer, "backend_tokenizer"):  # of transformers, as a TransformerLens model has
        return _ours(tokenizer)
    if tokenizer is None:
        why = getattr(source, "no_tokenizer", "")
        raise ModelError(
            f"a {type(source).__name__} without a tokenizer cannot state a behaviour"
            + (f" ({why})" if why else "")
            + "; give the run, a model from models.load, or models.load(tokenizer=FILE) "
            "(--tokenizer FILE)"
        )
    return tokenizer


def _ours(tokenizer: Any) -> Tokenizer:
    """Return a fast tokenizer of transformers as openbook reads its file."""
    try:
        return parse_tokenizer(tokenizer.backend_tokenizer.to_str())
    except TrainError as error:
        raise ModelError(
            f"the tokenizer of this model is {error}; state the behaviour in token ids: "
            "behaviours.Behaviour(name, clean, corrupt, answer, foil)"
        ) from None


def store_of(source: object) -> object:
    """Return the token store of a run, or `source` itself if it is no run.

    Raises:
        ModelError: The run was imported, so it has no token store; its model can be used instead.
    """
    if getattr(source, "knowledge", "full") != "full":
        raise ModelError(
            "an imported run has no token store to state a behaviour in; give the model from "
            "models.load instead of the run"
        )
    return getattr(source, "store", source)


def encoded_prompts(texts: Iterable[str], tokenizer: Tokenizer) -> Int[Tensor, "prompt pos"]:
    """Encode texts of equal length, each behind one end-of-text token.

    Raises:
        BehaviourError: The texts have different lengths.

    Examples:
        >>> tokens = behaviours.encoded_prompts(["the capital", "a clerk"], run.tokenizer)
        >>> model.to_string(tokens[0]), tuple(tokens.shape)
        ('<eot> the capital', (2, 3))
    """
    rows = [[tokenizer.eot, *tokenizer.encode(text).tolist()] for text in texts]
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise BehaviourError(
            f"the prompts have {lengths[0]} to {lengths[-1]} tokens; positions can be compared "
            "only when all are equally long"
        )
    return torch.tensor(rows)


def token_ids(words: Iterable[str], tokenizer: Tokenizer) -> list[int]:
    """Return the token of each word; a planted word is one token."""
    return [int(tokenizer.encode(word)[0]) for word in words]


def before(form: str, slot: str) -> str:
    """Return the part of a sentence form that stands before a slot."""
    return form.partition(slot)[0].rstrip()
