"""Plain BM25, the baseline of attribution, and the candidates for methods that follow gradients.

`rank_by_bm25` gives every token of a prompt with its answer, or of a text, the same weight, counted
once however often it occurs there; a document gets the score of its best-fitting prompt.
`lexical.bm25`, in contrast, weighs a behaviour's tokens by what the behaviour is about, and matches
a text by its verbatim spans; the BM25 formula is the same and is given there. Nothing here was
tuned on any corpus.

`candidates` joins the two rankings: methods that follow gradients look at these documents and at no
others, unless the whole corpus is indexed. A document that shares no token with the target is lost
here.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from data_attribution.errors import QueryError
from data_attribution.lexical import bm25
from data_attribution.lexical.bm25 import Bag
from data_attribution.ranking import Ranking
from data_attribution.request import Request
from interp.behaviours import Behaviour
from train.data import TokenStore


__all__ = ["FORMULA", "bags_of_words", "candidates", "rank_by_bm25"]

FORMULA = f"bm25 k1={bm25.K1} b={bm25.B}"


def rank_by_bm25(request: Request, *, limit: int | None = None) -> Ranking:
    """Rank documents by plain BM25.

    Raises:
        EvidenceError: The query has no words.
        QueryError: The target holds no token to search for.

    Examples:
        >>> request = attribution.make_request(run, "the capital of runethi is")
        >>> ranking = lexical.rank_by_bm25(request)
        >>> bool(np.all(np.diff(ranking.scores) <= 0)), len(ranking.documents)
        (True, 13745)
    """
    bags = bags_of_words(request.index.store, request.words)
    ranking = bm25.rank_by_words(request.index, bags, request.progress, limit=limit)
    return replace(ranking, formula=FORMULA)


def candidates(request: Request, *, limit: int = 10_000) -> Int64[np.ndarray, " document"]:
    """Return train documents that lexical evidence or BM25 ranks, ascending.

    The best of both rankings are taken alternately until there are `limit`.

    Raises:
        EvidenceError: The query has no words.
        QueryError: The target holds no token to search for.

    Examples:
        >>> request = attribution.make_request(run, fact)
        >>> lexical.candidates(request, limit=4).tolist()
        [221, 2106, 28867, 28874]
    """
    rankings = bm25.rank_lexically(request, limit=limit), rank_by_bm25(request, limit=limit)
    first, second = (ranking.documents for ranking in rankings)
    # Alternate between the two rankings, best first, and skip documents that were already taken.
    ranks = np.concatenate([np.arange(len(first)), np.arange(len(second))])
    both = np.concatenate([first, second])[np.argsort(ranks, kind="stable")]
    _, places = np.unique(both, return_index=True)
    return np.sort(both[np.sort(places)[:limit]])


def bags_of_words(store: TokenStore, target: str | Behaviour) -> list[Bag]:
    """Return a bag of tokens of weight 1 for each distinct prompt, or one bag for a text.

    With byte-pair tokens the first word of a text is searched with and without a leading space.

    Raises:
        QueryError: The target holds no token to search for.

    Examples:
        >>> lexical.bags_of_words(store, "the capital of runethi")
        [{112: 1.0, 562: 1.0, 696: 1.0, 794: 1.0}]
    """
    if isinstance(target, Behaviour):
        rows = [
            np.array([*prompt, *target.weights_of("answer", row)])
            for row, prompt in enumerate(target.clean.tolist())
        ]
    else:
        spellings = [target]
        if store.tokenizer.kind != "word" and target.strip():
            spellings.append(target[1:] if target.startswith(" ") else " " + target)
        rows = [np.concatenate([store.tokenizer.encode(one) for one in spellings])]
    tokens = {tuple(sorted({*row.tolist()} - {store.eot})) for row in rows}
    if not all(tokens):
        name = target if isinstance(target, str) else target.name
        raise QueryError(f"{name!r} holds no token to look for; give a text or another behaviour")
    return [dict.fromkeys(row, 1.0) for row in sorted(tokens)]
