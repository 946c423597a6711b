"""The evaluation protocols, by name, from local files.

The definitions are those of lm-evaluation-harness 0.4.13; each score carries their version. Names
in brackets are its tasks:

    lambada    [lambada_openai 1.0] {"text": ...} per line. The last word, split off at a space, is
               predicted: accuracy of all its tokens being the most probable ones, perplexity per
               word. Zero-shot, words in the original case.
    wikitext   [wikitext 2.0] a file of wikitext-2, raw or with <unk>. Pages are detokenised and cut
               into rolling windows; perplexity per word and bits per byte of the original text.
    sst2       [sst2 1.0] sentence, tab, 0 or 1. The likelier of " negative" and " positive".
    gsm8k      [gsm8k 3.0] {"question", "answer"} per line, test and train file. Five-shot, greedy;
               the number behind "####" (strict), or the last number (flexible).
    blimp      [blimp 2.0] zip of 67 files of pairs. The likelier sentence, each behind a space.
    heldout    the held-out documents of a token store: all of their tokens, in windows as in
               training.
"""

import io
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
from jaxtyping import Float64

from interp.errors import EvaluationError
from interp.model_evaluation import held_out
from interp.model_evaluation.items import EvaluationSet, identified, json_lines, text_of
from interp.model_evaluation.likelihood import (
    TokenRow,
    continuation_row,
    greedy_texts,
    rolling_rows,
    score_rows,
)
from interp.model_evaluation.score import Measure, Unit
from train import storage
from train.data import Tokenizer, TokenStore
from train.errors import nearest
from train.model import GPT
from train.progress import Progress


__all__ = ["FILES", "PROTOCOLS", "detokenised", "load"]

# What stands for the files of each protocol in `NAME=FILES`.
FILES = {
    "lambada": "FILE",
    "wikitext": "FILE",
    "sst2": "FILE",
    "gsm8k": "TEST,TRAIN",
    "blimp": "ZIP",
    "heldout": "STORE",
}
PROTOCOLS = tuple(FILES)
SHOTS, FEWSHOT_SEED, NEW_TOKENS = 5, 1234, 256  # of gsm8k
UNTIL = ("Question:", "</s>", "<|im_end|>")
STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
IGNORED_IN_ANSWERS = (r",", r"\$", r"(?s).*#### ", r"\.$")
MOST_UNPACKED = 1 << 28  # bytes of a paradigm of BLiMP


def load(
    name: str, files: str = "", *, store: TokenStore | None = None, limit: int | None = None
) -> EvaluationSet:
    """Read an evaluation set from its files.

    Args:
        name: One of `PROTOCOLS`.
        files: Path of the file; for `gsm8k` those of the test and the train file, with a comma
            between them; for `heldout` a token store, or nothing for `store`.
        store: Token store that `heldout` reads if no other one is given.
        limit: Largest number of items, the first ones (of each paradigm for `blimp`); default: all.

    Raises:
        EvaluationError: There is no such protocol, or a file is missing or of another kind.

    Examples:
        >>> path = folder / "lambada.jsonl"
        >>> _ = path.write_text('{"text": "the capital of runethi is koreskul"}')
        >>> items = model_evaluation.load("lambada", str(path))
        >>> items.n, items.version
        (1, '1.0')
        >>> [one.name for one in model_evaluation.evaluate(model, items).measures]
        ['accuracy', 'perplexity per word']
    """
    if name not in FILES:
        raise EvaluationError(f"there is no protocol {name!r}{nearest(name, FILES)}")
    if limit is not None and limit < 1:
        raise EvaluationError(f"{limit} items were asked for; give 1 or more, or none for all")
    if name == "heldout":
        return held_out.read(files, store, limit)
    if not files:
        raise EvaluationError(f"{name} needs a file: give {name}={FILES[name]}")
    return READERS[name](files, limit)


def detokenised(page: str) -> str:
    """Return a page of wikitext as running text, by the rules of lm-evaluation-harness.

    Examples:
        >>> model_evaluation.detokenised('He said , " 1 @,@ 000 men " .')
        'He said, "1,000 men" .'
    """
    for old, new in WIKITEXT_RULES:
        page = re.sub(old, new, page)
    return page


# In order; the rules on contractions and on " N " are as odd there.
WIKITEXT_RULES = (
    (r"s '", "s'"),
    (r"/' [0-9]/", "/'[0-9]/"),
    (r" @-@ ", "-"),
    (r" @,@ ", ","),
    (r" @\.@ ", "."),
    *((rf" {re.escape(mark)} ", f"{mark} ") for mark in ":;.!?,"),
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"= = = =", "===="),
    (r"= = =", "==="),
    (r"= =", "=="),
    (r" ° ", "°"),
    (r" \n", "\n"),
    (r"\n ", "\n"),
    (r" N ", " 1 "),
    (r" 's", "'s"),
)


def _lambada(files: str, limit: int | None) -> EvaluationSet:
    rows = json_lines(text_of(Path(files)), files, ["text"], limit=limit)
    texts = tuple(row["text"] for row in rows)
    for number, text in enumerate(texts, 1):
        if " " not in text.strip():
            raise EvaluationError(
                f"{files}: item {number} is {text[:40]!r}; two words or more are expected"
            )
    parts = [text.rpartition(" ") for text in texts]

    def measure(model: GPT, progress: Progress | None) -> tuple[Measure, ...]:
        n_ctx, tokenizer = model.cfg.n_ctx, _tokenizer(model)
        pairs = [
            continuation_row(tokenizer, context, space + word, n_ctx)
            for context, space, word in parts
        ]
        scored = score_rows(model, pairs, progress=progress)
        right = np.array([float(one.highest.all()) for one in scored])
        nats = np.array([-one.log_probabilities.sum() for one in scored])
        return (
            _counted("accuracy", "share", right),
            _counted("perplexity per word", "perplexity", nats),
        )

    settings = "0-shot; last word of each text, all of its tokens greedy"
    return _set("lambada", "1.0", settings, texts, texts, measure)


def _wikitext(files: str, limit: int | None) -> EvaluationSet:
    pages: list[list[str]] = [[]]
    for line in text_of(Path(files)).split("\n"):
        heading = line.replace("= = =", "===").replace("= =", "==").strip()
        if heading.startswith("= ") and heading.endswith(" ="):
            pages.append([])
        pages[-1].append(line)
    # The last page is kept even if it is empty, as there; an empty one has no token to score.
    whole = ["\n".join(page) for page in pages]
    texts = tuple(page for page in whole if page.strip())[:limit]
    if len(pages) < 2 or not texts:
        raise EvaluationError(
            f"{files} has no heading such as ' = Robert Boulter = '; a file of wikitext is expected"
        )
    plain = tuple(detokenised(page) for page in texts)

    def measure(model: GPT, progress: Progress | None) -> tuple[Measure, ...]:
        nats = _rolling_nats(model, plain, progress)
        # Of the page before detokenisation, and with the empty words at its ends, as there.
        words = np.array([float(len(re.split(r"\s+", page))) for page in texts])
        n_bytes = np.array([float(len(page.encode())) for page in texts])
        return (
            Measure("bits per byte", "bits", nats, n_bytes),
            Measure("perplexity per word", "perplexity", nats, words),
        )

    settings = "pages detokenised; rolling windows of the context, the first behind end-of-text"
    return _set("wikitext", "2.0", settings, texts, plain, measure)


def _sst2(files: str, limit: int | None) -> EvaluationSet:
    rows = []
    for number, line in enumerate(text_of(Path(files)).split("\n"), 1):
        sentence, tab, label = line.rstrip("\r").rpartition("\t")
        if not line or (number == 1 and line.strip() == "sentence\tlabel"):
            continue
        if not tab or label not in ("0", "1") or not sentence.strip() or "\t" in sentence:
            raise EvaluationError(
                f"{files}: line {number} is {line[:40]!r}; a sentence, a tab and 0 or 1 are "
                "expected"
            )
        rows.append((sentence, int(label)))
    rows = rows[:limit]
    if not rows:
        raise EvaluationError(f"{files} has no item; a sentence, a tab and 0 or 1 are expected")
    sentences = tuple(sentence for sentence, _ in rows)
    labels = np.array([label for _, label in rows])

    def measure(model: GPT, progress: Progress | None) -> tuple[Measure, ...]:
        contexts = [
            f"{sentence}\nQuestion: Is this sentence positive or negative?\nAnswer:"
            for sentence in sentences
        ]
        pairs = [(one, word) for one in contexts for word in (" negative", " positive")]
        nats = _pair_nats(model, pairs, progress).reshape(-1, 2)
        return (_counted("accuracy", "share", nats.argmin(axis=1) == labels),)

    settings = "0-shot; the likelier of ' negative' and ' positive'"
    return _set("sst2", "1.0", settings, rows, sentences, measure)


def _gsm8k(files: str, limit: int | None) -> EvaluationSet:
    test_file, comma, train_file = files.partition(",")
    if not comma:
        raise EvaluationError(
            f"gsm8k takes its five examples from a train file; give gsm8k={files},TRAIN"
        )
    fields = ["question", "answer"]
    rows = json_lines(text_of(Path(test_file)), test_file, fields, limit=limit)
    train = json_lines(text_of(Path(train_file)), train_file, fields)
    for file, content in ((test_file, rows), (train_file, train)):
        for number, row in enumerate(content, 1):
            if "#### " not in row["answer"]:
                raise EvaluationError(
                    f"{file}: the answer of item {number} ends {row['answer'][-30:]!r}; "
                    "'#### ' and a number are expected"
                )
    if len(train) < SHOTS:
        raise EvaluationError(f"{train_file} has {len(train)} items; {SHOTS} examples are needed")
    draw, prompts = Random(FEWSHOT_SEED), []
    for row in rows:
        shots = [*draw.sample(train, SHOTS), row]
        texts = [f"Question: {one['question']}\nAnswer:" for one in shots]
        answers = [f" {one['answer']}\n\n" for one in shots[:-1]]
        prompts.append("".join(a + b for a, b in zip(texts, [*answers, ""], strict=True)))
    gold = [_answer(row["answer"]) for row in rows]

    def measure(model: GPT, progress: Progress | None) -> tuple[Measure, ...]:
        _tokenizer(model)
        texts = greedy_texts(model, prompts, until=UNTIL, n_new=NEW_TOKENS, progress=progress)
        strict = [(STRICT.findall(text) or ["[invalid]"])[0] for text in texts]
        found = [(FLEXIBLE.findall(text) or [("[invalid]",)])[-1] for text in texts]
        flexible = [next(one for one in groups if one) for groups in found]
        return tuple(
            _counted(
                name,
                "share",
                np.array([_answer(one.strip()) == g for one, g in zip(answers, gold, strict=True)]),
            )
            for name, answers in (("strict match", strict), ("flexible extract", flexible))
        )

    settings = (
        f"{SHOTS}-shot with seed {FEWSHOT_SEED}; greedy, at most {NEW_TOKENS} tokens, until "
        f"{UNTIL[0]!r}"
    )
    questions = tuple(row["question"] for row in rows)
    contents = list(zip(prompts, gold, strict=True))
    return _set("gsm8k", "3.0", settings, contents, questions, measure)


def _blimp(files: str, limit: int | None) -> EvaluationSet:
    groups, pairs = [], []
    for name, text in _blimp_files(Path(files)):
        rows = json_lines(text, f"{files}:{name}", ["sentence_good", "sentence_bad"], limit=limit)
        groups += [Path(name).stem] * len(rows)
        pairs += [(row["sentence_good"], row["sentence_bad"]) for row in rows]
    sizes = Counter(groups)
    if len(set(sizes.values())) > 1:
        raise EvaluationError(
            f"{files}: paradigms have {min(sizes.values())} to {max(sizes.values())} pairs, and "
            "BLiMP averages over paradigms of one size; give equally many, or a limit"
        )

    def measure(model: GPT, progress: Progress | None) -> tuple[Measure, ...]:
        sentences = [("", f" {one}") for pair in pairs for one in pair]
        nats = _pair_nats(model, sentences, progress).reshape(-1, 2)
        return (_counted("accuracy", "share", nats.argmin(axis=1) == 0),)

    settings = "the likelier of two sentences, each behind end-of-text and a space"
    good = tuple(one for one, _ in pairs)
    contents = list(zip(groups, pairs, strict=True))
    return _set("blimp", "2.0", settings, contents, good, measure, groups)


def _blimp_files(path: Path) -> list[tuple[str, str]]:
    """Return name and text of every paradigm in a zip file, by name."""
    if not path.is_file():
        raise EvaluationError(f"there is no file {path}; give the zip file of BLiMP")
    try:
        with zipfile.ZipFile(io.BytesIO(storage.read_foreign_bytes(path))) as archive:
            members = sorted(
                (one for one in archive.infolist() if one.filename.endswith(".jsonl")
                 and not one.filename.startswith("__MACOSX")),
                key=lambda one: one.filename,
            )  # fmt: skip
            for one in members:
                if one.file_size > MOST_UNPACKED:
                    raise EvaluationError(
                        f"{path}:{one.filename} has {one.file_size >> 20} MB unpacked, more than "
                        f"the limit of {MOST_UNPACKED >> 20}"
                    )
            texts = [(one.filename, archive.read(one).decode("utf-8-sig")) for one in members]
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, ValueError, RuntimeError,
            EOFError) as error:  # fmt: skip
        raise EvaluationError(f"{path} is no zip file of BLiMP: {error}") from None
    if not texts:
        raise EvaluationError(f"{path} holds no .jsonl file; the zip file of BLiMP is expected")
    return texts


READERS: dict[str, Callable[[str, int | None], EvaluationSet]] = {
    "lambada": _lambada,
    "wikitext": _wikitext,
    "sst2": _sst2,
    "gsm8k": _gsm8k,
    "blimp": _blimp,
}


def _set(
    protocol: str,
    version: str,
    settings: str,
    contents: Sequence[object],
    texts: tuple[str, ...],
    measure: Callable[[GPT, Progress | None], tuple[Measure, ...]],
    groups: Sequence[str] = (),
) -> EvaluationSet:
    keys, sha256 = identified(contents)
    return EvaluationSet(protocol, version, settings, keys, sha256, texts, tuple(groups), measure)


def _tokenizer(model: GPT) -> Tokenizer:
    if model.tokenizer is None:
        raise EvaluationError("texts cannot be encoded: this model came without a tokenizer")
    return model.tokenizer


def _counted(name: str, unit: Unit, values: np.ndarray) -> Measure:
    return Measure(name, unit, values.astype(np.float64), np.ones(len(values)))


def _pair_nats(
    model: GPT, pairs: Sequence[tuple[str, str]], progress: Progress | None
) -> Float64[np.ndarray, " pair"]:
    """Return the negative log-probability of each continuation behind its context."""
    tokenizer, n_ctx = _tokenizer(model), model.cfg.n_ctx
    rows = [continuation_row(tokenizer, *pair, n_ctx) for pair in pairs]
    return np.array(
        [-one.log_probabilities.sum() for one in score_rows(model, rows, progress=progress)]
    )


def _rolling_nats(
    model: GPT, texts: Sequence[str], progress: Progress | None
) -> Float64[np.ndarray, " text"]:
    """Return the negative log-probability of each text."""
    tokenizer = _tokenizer(model)
    rows: list[TokenRow] = []
    owners: list[int] = []
    for number, text in enumerate(texts):
        windows = rolling_rows(tokenizer, text, model.cfg.n_ctx)
        rows += windows
        owners += [number] * len(windows)
    nats = np.zeros(len(texts))
    for owner, one in zip(owners, score_rows(model, rows, progress=progress), strict=True):
        nats[owner] -= one.log_probabilities.sum()
    return nats


def _answer(text: str) -> str:
    """Return an answer as it is compared: without what stands before it, commas and dollars."""
    for pattern in IGNORED_IN_ANSWERS:
        text = re.sub(pattern, "", text)
    return text.lower()
