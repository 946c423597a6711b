"""Evidence from words: BM25, verbatim spans, and the inverted index that they read."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from data_attribution.lexical.bm25 import (
        K1,
        SHARED,
        B,
        prompt_bags,
        rank_by_spans,
        rank_by_words,
        rank_lexically,
    )
    from data_attribution.lexical.inverted_index import (
        INVERTED_FOLDER,
        InvertedIndex,
        build_inverted_index,
        find_inverted_index,
        open_inverted_index,
        verify_inverted_index,
    )
    from data_attribution.lexical.plain_bm25 import bags_of_words, candidates, rank_by_bm25

__all__ = [
    "INVERTED_FOLDER",
    "K1",
    "SHARED",
    "B",
    "InvertedIndex",
    "bags_of_words",
    "build_inverted_index",
    "candidates",
    "find_inverted_index",
    "open_inverted_index",
    "prompt_bags",
    "rank_by_bm25",
    "rank_by_spans",
    "rank_by_words",
    "rank_lexically",
    "verify_inverted_index",
]

__getattr__ = names_on_first_use(__name__, __file__)
