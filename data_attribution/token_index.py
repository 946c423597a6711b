"""Questions to the sorted text of a token store: how often, where, what next, which spans.

Documents stand between end-of-text tokens and no query may hold one, so a match lies inside a
single document. Queries are matched as tokens: with byte pairs, " word" and "word" are different
tokens, so a text is tried both with and without a leading space and each spelling is reported; a
query that ends inside a word does not find the whole word (compare liujc1998/infini-gram#10).

The text is sorted in *parts*, stretches of tokens.bin cut at a document boundary: one for the train
region, one for the held-out region, so that what was never read is never counted as read. A corpus
too large for one sort would be cut into more of them; every answer already joins parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int64, Integer

from data_attribution.errors import QueryError
from data_attribution.matches import Count, Hit, Hits, NextToken, Span, Spelling
from data_attribution.parts import Part
from train.token_store import TokenStore


__all__ = ["Part", "Query", "TokenIndex"]

CHUNK = 1 << 20

Query = str | Sequence[int] | Integer[np.ndarray, " pos"]


@dataclass(frozen=True, eq=False)
class TokenIndex:
    """The sorted text of a token store. Open one with `open(store)`."""

    store: TokenStore
    backend: str
    parts: tuple[Part, ...]

    def count(self, query: Query) -> Count:
        """How often a text or a row of token ids stands in the corpus; exact at any frequency.

        Raises:
            QueryError: The query is empty, holds end-of-text, or ids outside the vocabulary.
        """
        texts, patterns = self._spellings(query)
        spellings = zip(texts, patterns, *self._counts(patterns), strict=True)
        return Count(
            texts[0],
            tuple(Spelling(t, tuple(ids.tolist()), int(n), int(h)) for t, ids, n, h in spellings),
        )

    def find(
        self, query: Query, *, limit: int | None = 100, seed: int = 0, every: bool = False
    ) -> Hits:
        """Where a query stands, held-out places included and marked.

        When there are more than `limit`, one is drawn from each of equally long stretches of the
        sorted occurrences: the sample is spread over what follows the query, and is the same for
        the same seed.

        Args:
            every: Several occurrences in one document may be returned; otherwise the first drawn.
        """
        if limit is not None and limit < 1:
            raise QueryError(f"a limit of {limit} hits was asked for; give 1 or more, or none")
        found = self.count(query)
        patterns = [np.array(one.tokens, np.int64) for one in found.spellings]
        ranges = [
            (part, int(low), int(high), len(pattern))
            for part in self.parts
            for pattern, low, high in zip(patterns, *part.search(patterns), strict=True)
        ]
        total = sum(high - low for _, low, high, _ in ranges)
        drawn = min(total, limit or total)
        while True:
            positions, lengths = _places(ranges, _strata(total, drawn, seed))
            documents = self.store.document_at(positions)
            keep = np.arange(drawn)
            if not every:
                keep = np.sort(np.unique(documents, return_index=True)[1])
            if len(keep) >= (limit or total) or drawn == total:
                break
            # Several of the drawn lie in one document: draw more finely.
            drawn = min(total, drawn * 8)
        keep = keep[_strata(len(keep), min(len(keep), limit or total), seed)]
        return Hits(found, self._hits(positions[keep], lengths[keep], documents[keep]))

    def next_tokens(self, query: Query) -> list[NextToken]:
        """What follows the query in the train region, commonest first, over all its spellings."""
        _, patterns = self._spellings(query)
        counts = np.zeros(self.store.vocab_size, np.int64)
        for pattern, positions in zip(patterns, self.occurrences(patterns), strict=True):
            for first in range(0, len(positions), CHUNK):
                # There is a next token: every document is followed by end-of-text.
                following = self.store.tokens[positions[first : first + CHUNK] + len(pattern)]
                counts += np.bincount(following, minlength=self.store.vocab_size)
        seen = np.flatnonzero(counts)
        seen = seen[np.argsort(-counts[seen], kind="stable")]
        texts = self.store.tokenizer.tokens(seen)
        return [
            NextToken(int(one), text, int(counts[one]))
            for one, text in zip(seen, texts, strict=True)
        ]

    def maximal_spans(self, text: Query, *, minimum: int = 1) -> list[Span]:
        """The longest stretches of a text that stand in the train region, in order of the text.

        From each token on the longest match is found; those inside another are dropped. The text
        is taken with or without a leading space, whichever starts with more matched letters.

        Args:
            minimum: Shortest span kept, in tokens.
        """
        lengths, ids = max(
            ((self._longest(pattern), pattern) for pattern in self._spellings(text, every=True)[1]),
            key=lambda one: len(self._text(one[1][: one[0][0]]).strip()),
        )
        stops = np.arange(len(ids)) + lengths
        starts = np.flatnonzero((np.diff(stops, prepend=-1) > 0) & (lengths >= max(minimum, 1)))
        return self._spans(ids, starts, stops[starts])

    def occurrences(self, patterns: Sequence[np.ndarray]) -> list[Int64[np.ndarray, " hit"]]:
        """All positions of each row of token ids in the train region, ascending."""
        found: list[list[np.ndarray]] = [[] for _ in patterns]
        for part in self.parts:
            if not part.held_out:
                for hits, low, high in zip(found, *part.search(patterns), strict=True):
                    hits.append(part.positions(slice(low, high)))
        return [np.sort(np.concatenate(hits)) for hits in found]

    def around(self, hit: Hit, *, n: int = 12) -> str:
        """The text of an occurrence with at most `n` tokens of its document on either side."""
        start = int(self.store.starts[hit.document])
        stop = start + int(self.store.lengths[hit.document])
        first, last = max(start, hit.position - n), min(stop, hit.position + hit.length + n)
        return self._text(np.asarray(self.store.tokens[first:last]))

    @cached_property
    def log_probabilities(self) -> Float64[np.ndarray, " vocab"]:
        """Unigram log probability of each token in the train region, end-of-text left out."""
        counts = sum(np.diff(part.buckets) for part in self.parts if not part.held_out)
        counts = np.asarray(counts, np.float64)
        counts[self.store.eot] = 0
        with np.errstate(divide="ignore"):
            return np.log(counts) - np.log(max(counts.sum(), 1))

    def _counts(
        self, patterns: Sequence[np.ndarray]
    ) -> tuple[Int64[np.ndarray, " pattern"], Int64[np.ndarray, " pattern"]]:
        """Occurrences in the train region and in the held-out region."""
        counts = {held_out: np.zeros(len(patterns), np.int64) for held_out in (False, True)}
        for part in self.parts:
            low, high = part.search(patterns)
            counts[part.held_out] += high - low
        return counts[False], counts[True]

    def _longest(self, ids: Int64[np.ndarray, " pos"]) -> Int64[np.ndarray, " pos"]:
        lengths = np.zeros(len(ids), np.int64)
        for part in self.parts:
            if not part.held_out:
                starts, stops = np.arange(len(ids)), np.full(len(ids), len(ids))
                lengths = np.maximum(lengths, part.longest(ids, starts, stops))
        return lengths

    def _spans(
        self,
        ids: Int64[np.ndarray, " pos"],
        starts: Int64[np.ndarray, " span"],
        stops: Int64[np.ndarray, " span"],
    ) -> list[Span]:
        patterns = [ids[start:stop] for start, stop in zip(starts, stops, strict=True)]
        counts, held_out = self._counts(patterns)
        return [
            Span(
                start=int(starts[k]),
                stop=int(stops[k]),
                text=self._text(pattern),
                tokens=tuple(pattern.tolist()),
                count=int(counts[k]),
                held_out=int(held_out[k]),
                log_probability=float(self.log_probabilities[pattern].sum()),
            )
            for k, pattern in enumerate(patterns)
        ]

    def _hits(
        self,
        positions: Int64[np.ndarray, " hit"],
        lengths: Int64[np.ndarray, " hit"],
        documents: Int64[np.ndarray, " hit"],
    ) -> tuple[Hit, ...]:
        offsets = positions - self.store.starts[documents]
        held_out = positions >= self.store.train_tokens
        columns = (one.tolist() for one in (positions, lengths, documents, offsets, held_out))
        return tuple(Hit(*row) for row in zip(*columns, strict=True))

    def _text(self, ids: np.ndarray) -> str:
        return self.store.tokenizer.decode(ids)

    def _spellings(
        self, query: Query, *, every: bool = False
    ) -> tuple[list[str], list[Int64[np.ndarray, " pos"]]]:
        """The texts and token ids to look for, the query as it was given first.

        A spelling that ends with another's tokens only stands where that one does, and is left out
        of a count unless `every` is asked for.
        """
        if not isinstance(query, str):
            ids = self._checked(np.asarray(query, np.int64))
            return [self._text(ids)], [ids]
        texts = [query]
        if self.store.tokenizer.kind != "word" and query.strip():
            texts.append(query[1:] if query.startswith(" ") else " " + query)
        patterns = [self._checked(self.store.tokenizer.encode(text)) for text in texts]
        kept = [
            k
            for k, one in enumerate(patterns)
            if every or not any(_ends_with(one, other) for other in patterns if other is not one)
        ]
        return [texts[k] for k in kept], [patterns[k] for k in kept]

    def _checked(self, ids: np.ndarray) -> Int64[np.ndarray, " pos"]:
        store, ids = self.store, ids.astype(np.int64)
        if ids.ndim != 1 or not ids.size:
            raise QueryError("the query is empty; give a text or token ids to look for")
        outside = ids[(ids < 0) | (ids >= store.vocab_size)]
        if outside.size:
            raise QueryError(
                f"the query holds token id {outside[0]}, the vocabulary ends at "
                f"{store.vocab_size - 1}; encode it with the store's own tokenizer"
            )
        if (ids == store.eot).any():
            raise QueryError(
                f"the query holds end-of-text (token id {store.eot}), and no match crosses the "
                "end of a document; ask for the pieces one by one"
            )
        return ids


def _places(
    ranges: Sequence[tuple[Part, int, int, int]], drawn: Int64[np.ndarray, " hit"]
) -> tuple[Int64[np.ndarray, " hit"], Int64[np.ndarray, " hit"]]:
    """Positions, ascending, and lengths of the drawn ones of (part, low, high, length) joined."""
    edges = np.cumsum([0] + [high - low for _, low, high, _ in ranges])
    positions, lengths = [], []
    for (part, low, _, length), first, last in zip(ranges, edges[:-1], edges[1:], strict=True):
        inside = drawn[(drawn >= first) & (drawn < last)]
        positions.append(part.positions(inside - first + low))
        lengths.append(np.full(len(inside), length))
    joined = np.concatenate(positions)
    order = np.argsort(joined, kind="stable")
    return joined[order], np.concatenate(lengths)[order]


def _strata(total: int, count: int, seed: int) -> Int64[np.ndarray, " drawn"]:
    """One of each of `count` equal stretches of range(total), ascending; all when they are one."""
    edges = np.arange(count + 1) * total // max(count, 1)
    draw = np.random.Generator(np.random.Philox(seed)).random(count)
    return edges[:-1] + (draw * np.diff(edges)).astype(np.int64)


def _ends_with(longer: np.ndarray, shorter: np.ndarray) -> bool:
    return len(longer) > len(shorter) and np.array_equal(longer[-len(shorter) :], shorter)
