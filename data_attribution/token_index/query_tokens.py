"""The rows of token ids that a query stands for.

With byte-pair tokens, " word" and "word" are different tokens, so a text is searched both with and
without a leading space (users of other indexes trip over this: liujc1998/infini-gram#10). A row of
token ids is searched as it is.
"""

import unicodedata
from collections.abc import Sequence
from operator import index

import numpy as np
from jaxtyping import Integer

from data_attribution.errors import QueryError
from train.data import TokenStore


__all__ = ["LONGEST", "TokenQuery", "other_forms", "spelled"]

# Largest number of tokens in a query; a longer text is better searched in pieces.
LONGEST = 1_000_000

NORMAL_FORMS = ("NFC", "NFD", "NFKC", "NFKD")

TokenQuery = str | Sequence[int] | Integer[np.ndarray, " pos"]


def spelled(store: TokenStore, query: TokenQuery, *, every: bool = False) -> list[list[int]]:
    """Return the rows of token ids that a query stands for, the query as given first.

    A spelling that ends with the tokens of another one occurs only where that one does, and is left
    out unless `every` is set.

    Raises:
        QueryError: The query is empty, too long, holds end-of-text, or ids outside the vocabulary.
    """
    if not isinstance(query, str):
        row = query.tolist() if isinstance(query, np.ndarray) else [index(one) for one in query]
        return [_checked(store, row)]
    texts = [query]
    if store.tokenizer.kind != "word" and query.strip():
        texts.append(query[1:] if query.startswith(" ") else " " + query)
    rows = [_checked(store, store.tokenizer.encode(text).tolist()) for text in texts]
    if every:
        return rows
    return [row for row in rows if not any(_ends_with(row, one) for one in rows if one is not row)]


def other_forms(text: str) -> dict[str, str]:
    """Return the other forms of a text by name: Unicode normal forms, and other ends of lines.

    A text of ASCII in one line has none.

    Examples:
        >>> token_index.other_forms("a\\u0301")
        {'NFC': 'á'}
        >>> token_index.other_forms("one\\ntwo")
        {'CRLF': 'one\\r\\ntwo', 'CR': 'one\\rtwo'}
    """
    if text.isascii() and "\n" not in text and "\r" not in text:
        return {}
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    ends = {"LF": lines, "CRLF": lines.replace("\n", "\r\n"), "CR": lines.replace("\n", "\r")}
    names = {text: ""}
    for form in ("", *NORMAL_FORMS):
        for end, ended in {"": text, **ends}.items():
            other = unicodedata.normalize(form, ended) if form else ended
            names.setdefault(other, " with ".join(filter(None, [form, end])))
    return {name: other for other, name in names.items() if name}


def _checked(store: TokenStore, row: list[int]) -> list[int]:
    if not row:
        raise QueryError("the query is empty; give a text or token ids to look for")
    if len(row) > LONGEST:
        raise QueryError(
            f"the query has {len(row):,} tokens, and at most {LONGEST:,} are looked for at a time; "
            "ask for pieces of it"
        )
    if min(row) < 0 or max(row) >= store.vocab_size:
        outside = next(one for one in row if not 0 <= one < store.vocab_size)
        raise QueryError(
            f"the query holds token id {outside}, the vocabulary ends at {store.vocab_size - 1}; "
            "encode it with the store's own tokenizer"
        )
    if store.eot in row:
        raise QueryError(
            f"the query holds end-of-text (token id {store.eot}), and no match crosses the "
            "end of a document; ask for the pieces one by one"
        )
    return row


def _ends_with(longer: list[int], shorter: list[int]) -> bool:
    return len(longer) > len(shorter) and longer[-len(shorter) :] == shorter
