"""Readers of tuning examples: a prompt with its response, or with a chosen and a rejected one.

    kind          fields of a row                               prompt
    instructions  instruction, output and perhaps input         Alpaca's template
    instructions  prompt, response (or completion)              as it is
    preferences   instruction, chosen, rejected, perhaps input  Alpaca's template
    preferences   prompt, chosen, rejected                      as it is
    preferences   chosen, rejected: whole dialogues             up to the last shared "Assistant:"

Files are lines of JSON (`.jsonl`, also compressed) or one JSON list (`.json`). The dialogues are
those of Anthropic's helpful-harmless data (Bai et al. 2022), which have the turns `Human:` and
`Assistant:`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from train import storage
from train.data import readers
from train.data.readers import BadRow, Shard, SkippedRow
from train.data.tuning.examples import KINDS, Example, TuningSet
from train.data.tuning.planted_sets import planted_instructions, planted_preferences
from train.errors import CorpusError, DamagedError, nearest


__all__ = ["open_tuning_set"]

MAX_FILE_BYTES = 1 << 30
# https://github.com/tatsu-lab/stanford_alpaca, train.py
TASK = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
TASK_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
TURN = "\n\nAssistant:"
# Fields that make a row one of a kind, most specific first.
SCHEMAS = {
    "instructions": (("instruction", "output"), ("prompt", "response"), ("prompt", "completion")),
    "preferences": (
        ("instruction", "chosen", "rejected"),
        ("prompt", "chosen", "rejected"),
        ("chosen", "rejected"),
    ),
}


def open_tuning_set(
    source: str | Path, kind: str, *, seed: int = 0, skip_bad: bool = False
) -> TuningSet:
    """Open examples by name or path.

    Args:
        source: `planted`, or a file of JSON; this module's first lines list the fields of its rows.
        kind: `instructions` or `preferences`.
        seed: Content seed of the planted corpus that a planted set is about.
        skip_bad: Leave out rows that are no examples (other fields, no text, no JSON, no UTF-8);
            `TuningSet.rows` yields them, and `build_tuning_store` writes them down. By default the
            first one is an error.

    Raises:
        CorpusError: There is no such kind or file, it is empty, or a row has other fields.
        DamagedError: The file is cut off or not UTF-8.

    Examples:
        >>> storage.write_text(folder / "pairs.jsonl", '{"prompt": "a", "response": "b"}')
        >>> examples = tuning.open_tuning_set(folder / "pairs.jsonl", "instructions")
        >>> [(example.prompt, example.response) for example in examples.read()]
        [('a', 'b')]
    """
    if kind not in KINDS:
        raise CorpusError(f"there are no examples of kind {kind!r}{nearest(kind, KINDS)}")
    if str(source) == "planted":
        if skip_bad:
            raise CorpusError("skip_bad was given for planted examples, which have no bad rows")
        planted = planted_instructions if kind == "instructions" else planted_preferences
        return planted(seed)
    path = Path(source)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise CorpusError(
            f"examples are a file of JSON or the name 'planted'; there is {found} at {path}"
        )
    listed = path.suffix.lower() == ".json"
    if listed and path.stat().st_size > MAX_FILE_BYTES:
        raise CorpusError(
            f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB; write it as .jsonl, which is read "
            "line by line"
        )
    shard = Shard("0", path, "list" if listed else readers.kind_of(path))
    if shard.kind not in ("list", "jsonl"):
        raise CorpusError(f"{path}: examples are read from .json and .jsonl files; convert it")

    def place(row: int) -> str:
        return f"{path}: example {row}" if listed else shard.place(row)

    def either() -> Iterator[tuple[int, Example | BadRow]]:
        rows = _json_list(path) if listed else readers.read(shard, "prompt", MAX_FILE_BYTES)
        for row, fields in rows:
            yield row, fields if isinstance(fields, BadRow) else _example(row, fields, kind)

    def read() -> Iterator[Example]:
        for row, example in either():
            if isinstance(example, Example):
                yield example
            elif not skip_bad:
                raise example.at(place(row))

    def rows() -> Iterator[Example | SkippedRow]:
        for row, example in either():
            if isinstance(example, Example):
                yield example
            else:
                yield SkippedRow.of(path.name, shard.kind, row, example.reason)

    name = path.name.split(".")[0] or path.name
    readers.refuse_unwritten(path)
    revision = storage.sha256_file(path)
    return TuningSet(name, kind, revision, read, place, rows=rows if skip_bad else None)


def _json_list(path: Path) -> Iterator[readers.Row]:
    text = storage.read_foreign_text(path, most_bytes=MAX_FILE_BYTES)
    try:
        rows = storage.parse_json(text, path)
    except DamagedError as error:
        raise CorpusError(f"{error}; expected a list of objects") from None
    if not isinstance(rows, list):
        raise CorpusError(f"{path} holds a {type(rows).__name__}; expected a list of objects")
    for row, fields in enumerate(rows):
        wrong = BadRow(f"is a {type(fields).__name__}; expected an object")
        yield row, fields if isinstance(fields, dict) else wrong


def _example(row: int, fields: Mapping[str, object], kind: str) -> Example | BadRow:
    schema = next((one for one in SCHEMAS[kind] if all(name in fields for name in one)), None)
    if schema is None:
        known = "; ".join(", ".join(one) for one in SCHEMAS[kind])
        names = ", ".join(sorted(fields)) or "none"
        return BadRow(f"has the fields {names}; {kind} have one of: {known}")
    for name in (*schema, "input"):
        value = fields.get(name, "")
        if not isinstance(value, str):
            return BadRow(f"has a {type(value).__name__} as {name!r}; it must be a text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            where = f"at letter {error.start} of {name!r}"
            return BadRow(f"is not UTF-8: half a surrogate pair {where}", DamagedError)
    texts = {name: str(value) for name, value in fields.items() if isinstance(value, str)}
    if "instruction" in schema:
        template = TASK_WITH_INPUT if texts.get("input", "").strip() else TASK
        prompt = template.format(**texts)
    elif "prompt" in schema:
        prompt = texts["prompt"]
    else:
        return _of_dialogues(row, texts["chosen"], texts["rejected"])
    if kind == "instructions":
        return Example(row, prompt, texts[schema[-1]])
    return Example(row, prompt, texts["chosen"], texts["rejected"])


def _of_dialogues(row: int, chosen: str, rejected: str) -> Example | BadRow:
    """Split two dialogues behind the last `Assistant:` that both share."""
    letters = enumerate(zip(chosen, rejected, strict=False))
    shared = next((place for place, (a, b) in letters if a != b), min(len(chosen), len(rejected)))
    cut = chosen[:shared].rfind(TURN)
    if cut < 0:
        return BadRow(
            f"has no prompt, and its two dialogues share no turn {TURN.strip()!r}; add the field "
            "'prompt'"
        )
    cut += len(TURN)
    return Example(row, chosen[:cut], chosen[cut:], rejected[cut:])
