"""The token index: counts, occurrences, next tokens and maximal spans of a query in the corpus.

Documents stand between end-of-text tokens and no query may hold one, so a match lies inside a
single document. Queries are matched as tokens, in each spelling that a text may have
(`query_tokens`); a query that ends inside a word does not find the whole word.

The text is sorted in *parts*, stretches of tokens.bin cut at document boundaries: the train region
in one or more, the held-out region in others, so that text that was never read is never counted as
read. Every answer joins the parts.

A single query is answered without numpy until there are occurrences to list: a count takes
microseconds (`benchmarks/token_index.py`). Many queries are better answered together: `counts`,
`finds`, `longest_suffix_each`, `next_tokens_each`, `maximal_spans_each`.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int64

from data_attribution.errors import QueryError
from data_attribution.token_index import hit_sampling, maximal_spans
from data_attribution.token_index.hit_sampling import Range
from data_attribution.token_index.index_part import Part
from data_attribution.token_index.query_tokens import TokenQuery, other_forms, spelled
from data_attribution.token_index.results import (
    Count,
    Hit,
    Hits,
    NextToken,
    NextTokens,
    OtherForm,
    Span,
    Spelling,
    Suffix,
)
from train.data import TokenStore
from train.errors import TokenizerError
from train.short_repr import short_repr


__all__ = ["Part", "TokenIndex", "TokenQuery"]


@dataclass(frozen=True, eq=False)
class TokenIndex:
    """The sorted text of a token store. Open one with `token_index.open(store)`.

    Examples:
        >>> index.count("of runethi").count, index.count("of runethi").held_out
        (6, 0)
        >>> hit = index.find("of runethi")[0]
        >>> hit.document, hit.offset, index.around(hit)
        (8865, 7, 'an atlas lists koreskul some pages ahead of runethi .')
        >>> [(token.text, token.count) for token in index.next_tokens("governed from")][:2]
        [('tarevrul', 53), ('koroldin', 41)]
        >>> [span.text for span in index.maximal_spans("the capital of runethi is")]
        ['the capital of', 'of runethi', 'runethi is']
    """

    store: TokenStore
    backend: str
    parts: tuple[Part, ...]

    __repr__ = short_repr

    def count(self, query: TokenQuery) -> Count:
        """Count the occurrences of a text or a row of token ids; exact at any frequency.

        If a text does not occur, the result names its other forms that do (`other_forms`).

        Raises:
            QueryError: The query is empty, holds end-of-text or ids outside the vocabulary, or is
                longer than a million tokens.
        """
        return self._found(query)[0]

    def counts(self, queries: Sequence[TokenQuery]) -> tuple[Count, ...]:
        """Count many queries, searched together.

        Raises:
            QueryError: As in `count`, for the first invalid query.
        """
        rows = [spelled(self.store, query) for query in queries]
        return tuple(
            self._with_other_forms(Count(found, query if isinstance(query, str) else None))
            for query, found in zip(queries, self._spellings(rows), strict=True)
        )

    def find(
        self, query: TokenQuery, *, limit: int | None = 100, seed: int = 0, every: bool = False
    ) -> Hits:
        """Find the occurrences of a query, with held-out occurrences included and marked.

        If there are more than `limit`, one is drawn from each of equally long stretches of the
        sorted occurrences (`hit_sampling`): the sample is spread over what follows the query, and
        is the same for the same seed.

        Args:
            limit: Largest number of occurrences; None: all.
            every: Whether several occurrences in one document may be returned; otherwise only the
                first one drawn.

        Raises:
            QueryError: As in `count`; or the limit is not above 0, or the seed is below 0.
        """
        _drawable(limit, seed)
        return self._hits(*self._found(query), limit, seed, every)

    def finds(
        self,
        queries: Sequence[TokenQuery],
        *,
        limit: int | None = 100,
        seed: int = 0,
        every: bool = False,
    ) -> tuple[Hits, ...]:
        """Find the occurrences of many queries, searched together.

        Raises:
            QueryError: As in `find`, for the first invalid query.
        """
        _drawable(limit, seed)
        rows = [spelled(self.store, query) for query in queries]
        each = iter(self._ranges_each([row for several in rows for row in several]))
        found = []
        for query, several in zip(queries, rows, strict=True):
            count, everywhere = self._joined(query, [(row, next(each)) for row in several])
            found.append(self._hits(count, everywhere, limit, seed, every))
        return tuple(found)

    def longest_suffix(self, query: TokenQuery, *, minimum: int = 1) -> Suffix:
        """Return the longest end of a query that occurs `minimum` times in the train region.

        It may occur more often. All spellings of a text are shortened to the same number of tokens,
        and counted together.

        Raises:
            QueryError: As in `count`; or the minimum is below 0.
        """
        return self.longest_suffix_each([query], minimum=minimum)[0]

    def longest_suffix_each(
        self, queries: Sequence[TokenQuery], *, minimum: int = 1
    ) -> tuple[Suffix, ...]:
        """Return the `longest_suffix` of many queries, bisected together.

        Raises:
            QueryError: As in `longest_suffix`, for the first invalid query.
        """
        _at_least(0, minimum)
        rows = [spelled(self.store, query) for query in queries]
        longest = [max(map(len, several)) for several in rows]
        low, high = [0] * len(rows), list(longest)  # the last `low` tokens occur often enough
        while left := [k for k in range(len(rows)) if low[k] < high[k]]:
            middles = [(low[k] + high[k] + 1) >> 1 for k in left]
            ends = [_ends(rows[k], middle) for k, middle in zip(left, middles, strict=True)]
            for k, middle, found in zip(left, middles, self._spellings(ends), strict=True):
                often = sum(one.count for one in found) >= minimum
                low[k], high[k] = (middle, high[k]) if often else (low[k], middle - 1)
        found = self._spellings([_ends(*one) for one in zip(rows, low, strict=True)])
        whole = [query if isinstance(query, str) else None for query in queries]
        return tuple(
            Suffix(n - kept, Count(one, (asked if kept == n else None) if kept else ""))
            for asked, n, kept, one in zip(whole, longest, low, found, strict=True)
        )

    def next_tokens(self, query: TokenQuery, *, minimum: int = 1) -> NextTokens:
        """Return the tokens that follow a query in the train region, commonest first.

        They are counted over all spellings of the query. If the query occurs less often than
        `minimum`, the tokens that follow its `longest_suffix` are returned instead, as the result
        says. With a minimum of 0 there is no such backing off (as in infini-gram, Liu et al. 2024,
        https://arxiv.org/abs/2401.17377).

        Raises:
            QueryError: As in `longest_suffix`.
        """
        return self.next_tokens_each([query], minimum=minimum)[0]

    def next_tokens_each(
        self, queries: Sequence[TokenQuery], *, minimum: int = 1
    ) -> tuple[NextTokens, ...]:
        """Return the `next_tokens` of many queries, searched together.

        Raises:
            QueryError: As in `longest_suffix`, for the first invalid query.
        """
        suffixes = self.longest_suffix_each(queries, minimum=minimum)
        rows = [one.tokens for suffix in suffixes for one in suffix.found.spellings]
        each = iter(self._ranges_each(rows))
        return tuple(
            self._next(suffix, [one for _ in suffix.found.spellings for one in next(each)])
            for suffix in suffixes
        )

    def maximal_spans(
        self, text: TokenQuery, *, minimum: int = 1, share: float | None = None
    ) -> list[Span]:
        """Return the maximal spans of a text that occur in the train region, in order of the text.

        From each token on the longest match is searched; matches inside another one are dropped.
        The text is taken with or without a leading space, whichever starts with more matched
        letters.

        Args:
            minimum: Shortest span kept, in tokens.
            share: Keep only ceil(share x tokens) spans, the least probable ones by their unigram
                log-probability; OLMoTrace uses 0.05 (Liu et al. 2025).

        Raises:
            QueryError: As in `count`; or the minimum is below 1, or the share is not above 0.
        """
        return self.maximal_spans_each([text], minimum=minimum, share=share)[0]

    def maximal_spans_each(
        self, texts: Sequence[TokenQuery], *, minimum: int = 1, share: float | None = None
    ) -> list[list[Span]]:
        """Return the `maximal_spans` of many texts.

        Raises:
            QueryError: As in `maximal_spans`, for the first invalid text; or the store has no train
                region.
        """
        _at_least(1, minimum)
        if not self._read_parts:
            raise QueryError(
                f"all {self.store.n_tokens:,} tokens of {self.store.path} are held out, so no span "
                "can have been read; give a store with a train region"
            )
        if share is not None and not share > 0:
            raise QueryError(f"a share of {share:g} spans a token was asked for; give more than 0")
        rows = [self._spelled_best(text) for text in texts]
        kept = math.inf if share is None else share
        return [_least_probable(self._spans(row, minimum), kept * len(row)) for row in rows]

    def occurrences(self, patterns: Sequence[np.ndarray]) -> list[Int64[np.ndarray, " hit"]]:
        """Return all positions of each row of token ids in the train region, ascending."""
        found: list[list[np.ndarray]] = [[np.empty(0, np.int64)] for _ in patterns]
        for part in self.parts:
            if not part.held_out:
                for hits, low, high in zip(found, *part.search(patterns), strict=True):
                    hits.append(part.positions(slice(low, high)))
        return [np.sort(np.concatenate(hits)) for hits in found]

    def places(
        self, row: Sequence[int], *, most: int = 1 << 22
    ) -> Iterator[Int64[np.ndarray, " hit"]]:
        """Yield the positions of a row of token ids in the train region, at most `most` at a time.

        They are in no order; `occurrences` sorts them, but holds them all in memory.
        """
        for part in self.parts:
            low, high = (0, 0) if part.held_out else part.find(row)
            for first in range(low, high, most):
                yield part.positions(slice(first, min(first + most, high)))

    def copies(self, document: int) -> Int64[np.ndarray, " document"]:
        """Return the other documents of the train region with the same tokens, ascending."""
        store = self.store
        start, length = int(store.starts[document]), int(store.lengths[document])
        (positions,) = self.occurrences([np.asarray(store.tokens[start : start + length])])
        holders = store.document_at(positions)
        return np.setdiff1d(holders[store.lengths[holders] == length], document)

    def around(self, hit: Hit, *, n: int = 12) -> str:
        """Return the text of an occurrence with up to `n` tokens of its document on each side."""
        start = int(self.store.starts[hit.document])
        stop = start + int(self.store.lengths[hit.document])
        first, last = max(start, hit.position - n), min(stop, hit.position + hit.length + n)
        return self._text(np.asarray(self.store.tokens[first:last]))

    @cached_property
    def log_probabilities(self) -> Float64[np.ndarray, " vocab"]:
        """Return the unigram log-probability of each token in the train region.

        End-of-text is left out.
        """
        counts = sum(np.diff(part.buckets) for part in self.parts if not part.held_out)
        counts = np.asarray(counts, np.float64)
        counts[self.store.eot] = 0
        with np.errstate(divide="ignore"):
            return np.log(counts) - np.log(max(counts.sum(), 1))

    def _found(self, query: TokenQuery) -> tuple[Count, list[Range]]:
        """Return how often a query occurs, and at which ranks of which parts."""
        try:
            rows = spelled(self.store, query)
        except TokenizerError as error:
            # A word-level store cannot encode a word in another form than its own.
            forms = self._with_other_forms(Count((), query if isinstance(query, str) else None))
            raise TokenizerError("; ".join(filter(None, [str(error), forms.hint]))) from None
        return self._joined(query, [(row, self._ranges(row)) for row in rows])

    def _with_other_forms(self, found: Count) -> Count:
        """Return a count with the other forms of its query that occur, if the query does not."""
        if found.asked is None or not (forms := other_forms(found.asked)):
            return found
        if found.count or found.held_out:
            return found
        occurring = []
        for name, text in forms.items():
            with suppress(TokenizerError, QueryError):
                ranges = [one for row in spelled(self.store, text) for one in self._ranges(row)]
                if ranges:
                    occurring.append(OtherForm(name, *self._regions(ranges)))
        return replace(found, other_forms=tuple(occurring))

    def _joined(
        self, query: TokenQuery, found: Sequence[tuple[Sequence[int], list[Range]]]
    ) -> tuple[Count, list[Range]]:
        """Return the same for rows whose ranks are known."""
        spellings, everywhere = [], []
        for row, ranges in found:
            spellings.append(Spelling(tuple(row), *self._regions(ranges), self._text))
            everywhere += ranges
        count = Count(tuple(spellings), query if isinstance(query, str) else None)
        return self._with_other_forms(count), everywhere

    def _hits(
        self, found: Count, ranges: list[Range], limit: int | None, seed: int, every: bool
    ) -> Hits:
        starts = self.store.starts
        if every:
            positions, lengths = hit_sampling.of(ranges, limit, seed)
            documents = starts.searchsorted(positions, side="right") - 1
        else:
            (positions, lengths), documents = hit_sampling.documents(ranges, starts, limit, seed)
        offsets = positions - starts[documents]
        return Hits(
            found, positions, lengths, documents, offsets, positions >= self.store.train_tokens
        )

    def _next(self, suffix: Suffix, ranges: list[Range]) -> NextTokens:
        counts = np.zeros(self.store.vocab_size, np.int64)
        if not suffix.found.spellings:
            counts += sum(np.diff(part.buckets) for part in self._read_parts)
        for part, low, high, depth in ranges:
            if not part.held_out:
                counts += part.following(low, high, depth)
        seen = np.flatnonzero(counts)
        seen = seen[np.argsort(-counts[seen], kind="stable")]
        rows = zip(
            seen.tolist(), self.store.tokenizer.tokens(seen), counts[seen].tolist(), strict=True
        )
        return NextTokens(suffix, tuple(NextToken(*row) for row in rows))

    def _ranges(self, row: Sequence[int]) -> list[Range]:
        found = []
        for part in self.parts:
            low, high = part.find(row)
            if low < high:
                found.append((part, low, high, len(row)))
        return found

    def _ranges_each(self, rows: Sequence[Sequence[int]]) -> list[list[Range]]:
        """Return the ranges of many rows, searched together."""
        found: list[list[Range]] = [[] for _ in rows]
        patterns = [np.array(row, np.int64) for row in rows]
        for part in self.parts:
            lows, highs = part.search(patterns)
            for k in np.flatnonzero(lows < highs).tolist():
                found[k].append((part, int(lows[k]), int(highs[k]), len(rows[k])))
        return found

    def _spellings(self, rows: Sequence[Sequence[Sequence[int]]]) -> list[tuple[Spelling, ...]]:
        """Return how often each row of each query occurs, counted together."""
        patterns = [np.array(row, np.int64) for several in rows for row in several]
        read, held_out = (one.tolist() for one in self._counts(patterns))
        each = iter(zip(read, held_out, strict=True))
        return [
            tuple(Spelling(tuple(row), *next(each), self._text) for row in several)
            for several in rows
        ]

    @staticmethod
    def _regions(ranges: Sequence[Range]) -> tuple[int, int]:
        """Return the numbers of occurrences in the train region and in the held-out region."""
        read = held_out = 0
        for part, low, high, _ in ranges:
            if part.held_out:
                held_out += high - low
            else:
                read += high - low
        return read, held_out

    def _held_out(self, row: Sequence[int]) -> int:
        """Return the number of occurrences of a row in the held-out region."""
        ranks = [part.find(row) for part in self.parts if part.held_out]
        return sum(high - low for low, high in ranks)

    def _counts(
        self, patterns: Sequence[np.ndarray]
    ) -> tuple[Int64[np.ndarray, " pattern"], Int64[np.ndarray, " pattern"]]:
        """Return the occurrences of many rows in the train region and in the held-out region."""
        counts = {held_out: np.zeros(len(patterns), np.int64) for held_out in (False, True)}
        for part in self.parts:
            low, high = part.search(patterns)
            counts[part.held_out] += high - low
        return counts[False], counts[True]

    def _spelled_best(self, text: TokenQuery) -> list[int]:
        """Return the spelling of a text whose first match has most letters."""

        def matched(row: list[int]) -> int:
            longest = max(part.longest(row, 0, len(row))[0] for part in self._read_parts)
            return len(self._text(row[:longest]).strip())

        rows = spelled(self.store, text, every=True)
        return rows[0] if len(rows) == 1 else max(rows, key=matched)

    def _spans(self, row: list[int], minimum: int) -> list[Span]:
        probable = self.log_probabilities[row]
        # A token that occurs nowhere is in no span, but its infinity would be in every later sum.
        sums = np.append(0, np.cumsum(np.where(np.isfinite(probable), probable, 0))).tolist()
        found, decode = [], self.store.tokenizer.decode
        for start, stop, count in maximal_spans.maximal(self._read_parts, row):
            if stop - start >= minimum:
                tokens, surprise = tuple(row[start:stop]), sums[stop] - sums[start]
                text, held_out = decode(tokens), self._held_out(tokens)
                found.append(Span(start, stop, text, tokens, count, held_out, surprise))
        return found

    @cached_property
    def _read_parts(self) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if not part.held_out)

    def _text(self, ids: Sequence[int] | np.ndarray) -> str:
        return self.store.tokenizer.decode(ids)


def _ends(rows: Sequence[list[int]], n: int) -> list[tuple[int, ...]]:
    """Return the distinct last `n` tokens of each row; none if `n` is 0."""
    return list(dict.fromkeys(tuple(row[-n:]) for row in rows)) if n else []


def _drawable(limit: int | None, seed: int) -> None:
    if limit is not None and limit < 1:
        raise QueryError(f"a limit of {limit} hits was asked for; give 1 or more, or none")
    if seed < 0:
        raise QueryError(f"hits were to be drawn with seed {seed}; give 0 or more")


def _at_least(least: int, minimum: int) -> None:
    if minimum < least:
        raise QueryError(f"a minimum of {minimum} was asked for; give {least} or more")


def _least_probable(found: list[Span], most: float) -> list[Span]:
    if len(found) <= most:
        return found
    kept = sorted(found, key=lambda span: span.log_probability)[: math.ceil(most)]
    return sorted(kept, key=lambda span: span.start)
