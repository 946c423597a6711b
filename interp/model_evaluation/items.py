"""Evaluation sets: items of a protocol, read from local files, on which a model is scored.

Nothing is downloaded. A file may be compressed (.gz, .zst, .xz, .bz2). A file of another kind is
refused with its first line that does not fit.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from interp.errors import EvaluationError
from interp.model_evaluation.score import Measure, Overlap, Score
from interp.results import provenance
from train import storage
from train.data import TokenStore
from train.errors import DamagedError
from train.model import GPT
from train.progress import Progress
from train.short_repr import short_repr


__all__ = ["EvaluationSet", "evaluate", "identified", "json_lines", "text_of"]


MOST_BYTES = 1 << 29  # of an unpacked file


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """The items of a protocol, and how a model is measured on them.

    Attributes:
        protocol: Name of the protocol.
        version: Version of the protocol, as in lm-evaluation-harness if it is from there.
        settings: The protocol in one line.
        keys: First 16 hex digits of the sha256 of each item.
        sha256: sha256 over the keys.
        texts: Text of each item that training may have seen.
        groups: Group of each item; empty if there are none.
        measure: Measures a model on all items.
        store: The token store that the items come from.
    """

    protocol: str
    version: str
    settings: str
    keys: tuple[str, ...]
    sha256: str
    texts: tuple[str, ...]
    groups: tuple[str, ...]
    measure: Callable[[GPT, Progress | None], tuple[Measure, ...]]
    store: TokenStore | None = None

    __repr__ = short_repr

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.keys)


def evaluate(
    model: GPT,
    items: EvaluationSet,
    *,
    name: str = "",
    overlap: Overlap | str = "not searched",
    progress: Progress | None = None,
) -> Score:
    """Score a model on an evaluation set; the same model and items give the same numbers.

    Args:
        model: From `interp.models.load`, on the device that it is to be evaluated on.
        items: From `load`.
        name: How the model is called in tables; default: the id of its run.
        overlap: What of the items the training text holds
            (`data_attribution.contamination.overlap`), or why that is not known.
        progress: Called with the number of rows done.

    Raises:
        EvaluationError: The model reads ahead, came without a tokenizer, or its context is too
            short for an item.
        TokenizerError: A word of the items is not in the model's vocabulary.

    Examples:
        >>> path = folder / "lambada.jsonl"
        >>> _ = path.write_text('{"text": "the capital of runethi is koreskul"}')
        >>> score = model_evaluation.evaluate(model, model_evaluation.load("lambada", str(path)))
        >>> score.n, score.protocol, [one.name for one in score.measures]
        (1, 'lambada', ['accuracy', 'perplexity per word'])
    """
    if not name:
        name = getattr(model.origin, "run_id", "") or "model"
    measures = items.measure(model, progress)
    if isinstance(overlap, Overlap) and len(overlap.longest) != items.n:
        raise EvaluationError(
            f"the overlap is of {len(overlap.longest)} items, and {items.n} are evaluated; search "
            "these"
        )
    return Score(
        model=name,
        protocol=items.protocol,
        version=items.version,
        settings=items.settings,
        items_sha256=items.sha256,
        keys=items.keys,
        groups=items.groups,
        measures=measures,
        overlap=overlap,
        provenance=provenance(model),
    )


def identified(contents: Sequence[object]) -> tuple[tuple[str, ...], str]:
    """Return a key for each item, from its content, and the sha256 over all keys.

    The second of two equal items gets another key than the first.

    Examples:
        >>> keys, digest = model_evaluation.identified(["a", "b", "a"])
        >>> len(set(keys)), len(digest)
        (3, 64)
    """
    seen: Counter[str] = Counter()
    keys = []
    for content in contents:
        text = json.dumps(content, ensure_ascii=False, sort_keys=True)
        keys.append(hashlib.sha256(f"{seen[text]} {text}".encode()).hexdigest()[:16])
        seen[text] += 1
    return tuple(keys), hashlib.sha256("".join(keys).encode()).hexdigest()


def text_of(path: Path) -> str:
    """Read a UTF-8 text file, which may be compressed; lines end with "\\n".

    A byte order mark is left out, and "\\r\\n" is read as "\\n".

    Raises:
        EvaluationError: There is no such file, it is not UTF-8, or it is larger than 512 MiB.

    Examples:
        >>> _ = (folder / "words.txt").write_text("a b")
        >>> model_evaluation.text_of(folder / "words.txt")
        'a b'
    """
    if not path.is_file():
        raise EvaluationError(f"there is no file {path}; give the path of an evaluation file")
    try:
        return storage.read_foreign_text(path, most_bytes=MOST_BYTES).replace("\r\n", "\n")
    except DamagedError as error:
        raise EvaluationError(str(error)) from None


def json_lines(
    text: str, name: str, fields: Sequence[str], *, limit: int | None = None
) -> list[dict[str, str]]:
    """Read objects with the given text fields, one per line, at most `limit`.

    Raises:
        EvaluationError: A line is no object with these fields as texts, or there is no line; or a
            text holds half of a surrogate pair.

    Examples:
        >>> model_evaluation.json_lines('{"text": "a b", "id": 1}', "made.jsonl", ["text"])
        [{'text': 'a b'}]
    """
    return list(_json_lines(text, name, fields, limit))


def _json_lines(
    text: str, name: str, fields: Sequence[str], limit: int | None
) -> Iterator[dict[str, str]]:
    wanted, n = " and ".join(map(repr, fields)), 0
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if limit is not None and n >= limit:
            return
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise EvaluationError(
                f"{name}: line {number} is {storage.damaged_json(line, error)}; an object with "
                f"{wanted} is expected per line"
            ) from None
        if not isinstance(row, dict) or not all(isinstance(row.get(one), str) for one in fields):
            holds = ", ".join(map(repr, list(row)[:6])) if isinstance(row, dict) else "no object"
            raise EvaluationError(
                f"{name}: line {number} has {holds or 'nothing'}; the texts {wanted} are expected"
            )
        for one in fields:
            try:
                row[one].encode()
            except UnicodeEncodeError as error:
                raise EvaluationError(
                    f"{name}: line {number} holds half of a surrogate pair in {one!r} (at letter "
                    f"{error.start}), which is no text; write the whole letter"
                ) from None
        n += 1
        yield {one: row[one] for one in fields}
    if not n:
        raise EvaluationError(f"{name} has no item; lines with {wanted} are expected")
