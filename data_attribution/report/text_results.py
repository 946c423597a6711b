"""A text traced for its page: its spans in the training text, and what chance makes of controls."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from data_attribution import token_index, tracing
from data_attribution.report.page import shell_path
from data_attribution.report.text import read_line
from data_attribution.report.text_parts import TextPart, sentences, trace_parts
from data_attribution.token_index import TokenIndex
from data_attribution.tracing import Generation, SpansByChance, TracedSpan
from train.progress import Progress, count
from train.runs import ReadableRun, Run
from train.short_repr import short_repr


__all__ = ["TextPage", "trace_for_page"]

SPANS = 200  # spans with details, the least likely by chance; a page of more would be too long
HOLDERS = 4  # documents per span, unless others are asked for
T = TypeVar("T")


@dataclass(frozen=True)
class TextPage:
    """The contents of the page of a text.

    Attributes:
        run: Run that read the training text.
        text: The text, without an end of text in front.
        traced: Its spans of at least `minimum` tokens, of which there may be none.
        chance: How much of the text and of control texts stands in spans of each length.
        minimum: Length of the shortest span that is shown, in tokens.
        whole: The text as a whole.
        sentences: Its sentences, each as a whole.
        prompt: Begin of the text that was given to the model; "" if nothing was generated.
        origin: Further rows of the footer.
    """

    run: ReadableRun
    text: str
    traced: Generation
    chance: SpansByChance
    minimum: int
    whole: TextPart
    sentences: tuple[TextPart, ...]
    prompt: str = ""
    origin: tuple[tuple[str, str], ...] = ()

    __repr__ = short_repr

    @property
    def spans(self) -> tuple[TracedSpan, ...]:
        """Return the spans that are shown."""
        return self.traced.spans

    @property
    def n_found(self) -> int:
        """Return the number of spans of the text that are long enough, shown or not."""
        return self.traced.found

    @property
    def n_tokens(self) -> int:
        """Return the length of the text in tokens."""
        return self.traced.n_tokens

    @property
    def has_held_out(self) -> bool:
        """Return whether the corpus has text that the run never reads."""
        return self.run.store.train_tokens < self.run.store.n_tokens

    @property
    def n_sentences_read(self) -> int:
        """Return how many of the sentences the run read as a whole."""
        return sum(one.readings > 0 for one in self.sentences)

    @property
    def read_as_a_whole(self) -> str:
        """Return how often the text, and how many of its sentences, were read, as plain text."""
        whole, n = self.whole, len(self.sentences)
        if whole.readings:
            said = f"As a whole, the text was {read_line(whole.readings, sampled=whole.sampled)}."
        elif whole.places:
            said = (
                f"As a whole, the text stands in {count(whole.places, 'place')} of the training "
                "text, but this run has not read it."
            )
        else:
            said = (
                "As a whole, the text does not stand in the training text and was never read; its "
                f"longest span has {whole.longest:,} of its {count(whole.n_tokens, 'token')}."
            )
        read = f" {self.n_sentences_read:,} of its {n:,} sentences were read as a whole."
        return said + read * (n > 1)

    def at_minimum(self, column: Sequence[T]) -> T:
        """Return the entry of a column of `chance` for the shortest spans that are shown."""
        return column[min(self.minimum, len(self.chance.lengths)) - 1]

    @property
    def place(self) -> str:
        """Return the run as a command of openbook names it."""
        return shell_path(self.run.path) if isinstance(self.run, Run) else self.run.id


def trace_for_page(
    run: ReadableRun,
    text: str,
    *,
    minimum: int | None = None,
    limit: int = HOLDERS,
    prompt: str = "",
    origin: Sequence[tuple[str, str]] = (),
    index: TokenIndex | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> TextPage:
    """Trace every span of a text that is longer than chance makes, and its controls.

    Args:
        minimum: Shortest span in tokens; default: `SpansByChance.minimum`.
        limit: Largest number of documents per span; the page shows the first four.
        prompt: Begin of the text that was given to the model.
        origin: Rows of the footer, such as the seed of the generation.
        seed: Seed of the controls and of the sample of documents of each span.

    Raises:
        QueryError: The text is empty, or longer than a million tokens.
        IndexMissing: The run's token store has no index.

    Examples:
        >>> found = report.trace_for_page(run, "the capital of runethi is koreskul .")
        >>> found.minimum, [one.span.text for one in found.traced.spans]
        (3, ['the capital of', 'is koreskul .'])
        >>> found.read_as_a_whole.split("; ")[1]
        'its longest span has 3 of its 7 tokens.'
    """
    index = index or token_index.open(run.store)
    text = run.store.tokenizer.without_eot(text)
    chance = tracing.spans_by_chance(index, text, seed=seed)
    shortest = minimum or chance.minimum
    traced = tracing.trace_text(
        run, text, keep=SPANS, minimum=shortest, limit=limit, required=False, index=index,
        seed=seed, progress=progress,
    )  # fmt: skip
    whole, *parts = trace_parts(run, [text, *sentences(text)], index)
    prompt = run.store.tokenizer.without_eot(prompt)
    return TextPage(run, text, traced, chance, shortest, whole, tuple(parts), prompt, tuple(origin))
