"""The n-gram overlap of evaluation items with the text that a run was trained on.

An item overlaps if it shares n tokens in a row with a training document, or all of its tokens if it
has fewer. 13 is the length that GPT-3's authors (Brown et al. 2020, appendix C) and
lm-evaluation-harness use; they count words. The token index counts all train documents of the
store, so a run that stopped early is charged with text that it did not read. Held-out documents are
not counted.

An overlap of exact tokens misses paraphrases and other spellings, and finds common phrases too.
"""

from collections.abc import Sequence

import numpy as np

from data_attribution.errors import QueryError
from data_attribution.token_index import TokenIndex
from interp.model_evaluation import Overlap
from train.progress import Progress


__all__ = ["N_TOKENS", "overlap"]

N_TOKENS = 13
AT_ONCE = 64  # texts between two reports of progress


def overlap(
    texts: Sequence[str],
    index: TokenIndex,
    *,
    n: int = N_TOKENS,
    progress: Progress | None = None,
) -> Overlap:
    """Return the longest run of tokens of each text that occurs in the train region.

    Args:
        n: Length of the shared n-gram from which on an item counts as overlapping.

    Raises:
        QueryError: `n` is below 1, or the store has no train region.
        TokenizerError: A word is not in the vocabulary of the store.

    Examples:
        >>> held = contamination.overlap(["the capital of runethi is", "of of"], index, n=3)
        >>> held.longest.tolist(), held.lengths.tolist(), held.flagged.tolist()
        ([3, 1], [5, 2], [True, False])
    """
    if n < 1:
        raise QueryError(f"an overlap of {n} tokens was asked for; give 1 or more")
    longest, lengths = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.int64)
    for number, text in enumerate(texts):
        lengths[number] = len(index.store.tokenizer.encode(text))
        if lengths[number]:
            spans = index.maximal_spans(text)
            longest[number] = max((span.stop - span.start for span in spans), default=0)
            # Inside a sentence the first word stands behind a space, often as fewer tokens.
            if len(spans) == 1 and spans[0].text.strip() == text.strip():
                lengths[number] = longest[number]
        if progress and (number + 1) % AT_ONCE == 0:
            progress("overlap", number + 1, len(texts))
    return Overlap(n, longest, lengths, index.store.fingerprint)
