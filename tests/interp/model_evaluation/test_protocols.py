"""Protocols reproduce lm-evaluation-harness, and refuse files of another kind.

`HARNESS` are results of lm-evaluation-harness 0.4.13 on the files of `tests/worlds` and on the same
drawn weights as a Hugging Face model, with its own task definitions and no network.
"""

import bz2
import gzip
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from interp import model_evaluation
from interp.errors import EvaluationError
from interp.model_evaluation import protocols
from tests.worlds.evaluation_files import GSM8K, LAMBADA, drawn_model, evaluation_files
from tests.worlds.tuning import tiny_examples
from train import trainer
from train.data import tuning
from train.errors import StoreError, TokenizerError


HARNESS = {
    ("lambada", "accuracy"): 0.3333333333333333,
    ("lambada", "perplexity per word"): 154791.56424871492,
    ("wikitext", "perplexity per word"): 269472.43816309137,
    ("wikitext", "bits per byte"): 4.0840908541723016,
    ("sst2", "accuracy"): 0.8,
    ("blimp", "accuracy"): 0.3333333333333333,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return evaluation_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def model():
    return drawn_model()


@pytest.mark.parametrize("protocol", ["lambada", "wikitext", "sst2", "blimp"])
def test_scores_are_those_of_the_harness(protocol, files, model):
    items = model_evaluation.load(protocol, files[protocol])
    measures = model_evaluation.evaluate(model, items).measures
    found = {(protocol, one.name): one.estimate.value for one in measures}
    expected = {key: value for key, value in HARNESS.items() if key[0] == protocol}
    assert found == pytest.approx(expected, rel=1e-6)


def test_every_protocol_says_its_version_n_and_settings(files):
    said = {name: model_evaluation.load(name, files[name]) for name in files}
    assert {name: (one.version, one.n) for name, one in said.items()} == {
        "lambada": ("1.0", 6),
        "wikitext": ("2.0", 2),
        "sst2": ("1.0", 5),
        "gsm8k": ("3.0", 2),
        "blimp": ("2.0", 6),
    }
    assert said["gsm8k"].settings.startswith("5-shot with seed 1234; greedy, at most 256 tokens")
    limited = model_evaluation.load("blimp", files["blimp"], limit=2)
    assert limited.groups == ("anaphor_number_agreement",) * 2 + ("wh_island",) * 2
    assert limited.keys == (*said["blimp"].keys[:2], *said["blimp"].keys[3:5])


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress)])
def test_a_compressed_file_has_the_items_of_a_plain_one(ending, pack, files, tmp_path):
    (tmp_path / f"file.{ending}").write_bytes(
        pack(model_evaluation.text_of(Path(files["lambada"])).encode())
    )
    one, other = (
        model_evaluation.load("lambada", str(path))
        for path in (files["lambada"], tmp_path / f"file.{ending}")
    )
    assert one.keys == other.keys


@pytest.mark.parametrize("protocol", ["lambada", "wikitext", "sst2"])
def test_a_file_of_windows_has_the_items_of_one_of_linux(protocol, files, tmp_path):
    """With a byte order mark and lines that end with a carriage return."""
    content = model_evaluation.text_of(Path(files[protocol])).encode()
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    one, other = (
        model_evaluation.load(protocol, str(path)) for path in (files[protocol], tmp_path / "file")
    )
    assert (one.keys, one.texts) == (other.keys, other.texts)


def test_examples_of_gsm8k_are_those_that_the_harness_draws(files, monkeypatch):
    prompts: list[str] = []

    def kept(model, texts, **options):
        prompts.extend(texts)
        return ["" for _ in texts]

    monkeypatch.setattr(protocols, "greedy_texts", kept)
    model_evaluation.evaluate(drawn_model(8), model_evaluation.load("gsm8k", files["gsm8k"]))
    shots = [[GSM8K[2 + k] for k in drawn] for drawn in HARNESS_EXAMPLES]
    for prompt, drawn, asked in zip(prompts, shots, GSM8K[:2], strict=True):
        before = [f"Question: {one['question']}\nAnswer: {one['answer']}\n\n" for one in drawn]
        assert prompt == "".join(before) + f"Question: {asked['question']}\nAnswer:"


# Numbers of the five training items before the first and the second question.
HARNESS_EXAMPLES = [[7, 1, 0, 9, 4], [0, 1, 8, 6, 2]]


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("3 + 5 = 8 apples.\n#### 8", True, True),
        ("so the answer is 8.", False, True),
        ("#### 8\n#### 9", True, False),
        ("#### $8", False, True),
        ("#### 8.0", False, False),
        ("#### 8.", True, True),
        ("#### -8", False, False),
        ("about 1,008 or 8", False, True),
        ("no number", False, False),
        ("", False, False),
    ],
)
def test_an_answer_of_gsm8k_is_read_strictly_and_flexibly(
    text, strict, flexible, files, monkeypatch
):
    """The first question asks for 3 + 5; verdicts are those of the harness on the same texts."""
    monkeypatch.setattr(protocols, "greedy_texts", lambda model, texts, **_: [text, ""])
    score = model_evaluation.evaluate(
        drawn_model(8), model_evaluation.load("gsm8k", files["gsm8k"])
    )
    found = [bool(score.measure(name).part[0]) for name in ("strict match", "flexible extract")]
    assert found == [strict, flexible]


def test_gsm8k_runs_from_prompt_to_score(files):
    score = model_evaluation.evaluate(
        drawn_model(262), model_evaluation.load("gsm8k", files["gsm8k"], limit=1)
    )
    assert [one.estimate.value for one in score.measures] == [0.0, 0.0]
    with pytest.raises(EvaluationError, match="256 tokens are generated behind a prompt"):
        model_evaluation.evaluate(drawn_model(256), model_evaluation.load("gsm8k", files["gsm8k"]))


# --- held-out loss -------------------------------------------------------------------------------


def test_the_held_out_loss_is_that_of_training_and_covers_the_whole_split(tiny_run):
    store, model = tiny_run.store, tiny_run.load()
    items = model_evaluation.load("heldout", store=store)
    score = model_evaluation.evaluate(model, items)
    loss = score.measure("loss per token")
    held_out = store.starts >= store.train_tokens
    assert score.n == held_out.sum() > 5
    assert loss.whole.tolist() == (store.lengths[held_out] + 1).tolist()
    # Written out: each target once, in windows of 16 from the end-of-text before the region.
    tokens = torch.from_numpy(store.tokens[store.train_tokens - 1 :].astype(np.int64))
    total = 0.0
    for start in range(0, len(tokens) - 1, 16):
        window = tokens[start : start + 17]
        with torch.no_grad():
            logits = model(window[None, :-1])[0]
        total += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
    assert loss.part.sum() == pytest.approx(total, rel=1e-5)
    # Training evaluates the same windows, of which it leaves out the last one, which is shorter.
    whole = (len(tokens) - 1) // 16
    shorter = total - sum_of_last(model, tokens, whole * 16)
    trained = trainer.held_out_loss(model, store, tiny_run.recipe, tiny_run.numerics)
    if tiny_run.recipe.eval_windows >= whole:
        assert trained == pytest.approx(shorter / (whole * 16), rel=1e-5)


def sum_of_last(model, tokens: torch.Tensor, start: int) -> float:
    if start >= len(tokens) - 1:
        return 0.0
    with torch.no_grad():
        logits = model(tokens[None, start:-1])[0]
    return torch.nn.functional.cross_entropy(logits, tokens[start + 1 :], reduction="sum").item()


def test_bits_per_byte_divide_by_the_bytes_of_the_texts(tiny_run):
    store, items = tiny_run.store, model_evaluation.load("heldout", store=tiny_run.store)
    score = model_evaluation.evaluate(tiny_run.load(), items)
    texts = [
        store.text(k) for k in range(store.n_documents) if store.starts[k] >= store.train_tokens
    ]
    nats = score.measure("loss per token").part.sum()
    bits = nats / math.log(2) / sum(len(text.encode()) for text in texts)
    assert score.measure("bits per byte").estimate.value == pytest.approx(bits)


def test_padding_of_a_packed_store_counts_for_no_document(make_store):
    texts = [" ".join(f"w{(k * j) % 7}" for j in range(1 + k % 9)) for k in range(60)]
    store = make_store(texts, held_out=0.4, layout="packed", row_length=16)
    model = drawn_of(store)
    measures = model_evaluation.evaluate(
        model, model_evaluation.load("heldout", store=store)
    ).measures
    held_out = store.starts >= store.train_tokens
    assert measures[1].whole.tolist() == (store.lengths[held_out] + 1).tolist()


def test_a_model_with_another_tokenizer_reads_the_same_documents(tiny_run):
    store = tiny_run.store
    items = model_evaluation.load("heldout", store=store)
    own, other = (
        model_evaluation.evaluate(one, items) for one in (tiny_run.load(), drawn_model(16))
    )
    assert own.keys == other.keys
    bits = model_evaluation.compare(other, own, "bits per byte")
    assert bits.verdict == "higher"
    with pytest.raises(EvaluationError, match="compare bits per byte"):
        model_evaluation.compare(other, own, "loss per token")


def drawn_of(store):
    from train.model import GPTConfig, init_gpt

    cfg = GPTConfig(n_layers=1, n_heads=2, d_model=16, n_ctx=16, d_vocab=store.vocab_size)
    model = init_gpt(cfg, 0).eval()
    model.tokenizer = store.tokenizer
    return model


# --- refusals ------------------------------------------------------------------------------------


def refused(name: str, path: object, match: str) -> None:
    with pytest.raises(EvaluationError, match=match) as error:
        model_evaluation.load(name, str(path))
    assert "\n" not in str(error.value)


def damaged_zips(folder):
    """A zip file whose compressed bytes, and one whose table of contents, are damaged."""
    path = folder / "whole.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("one.jsonl", "\n".join(json.dumps({"sentence_good": f"{k * k}"})
                                                for k in range(300)))  # fmt: skip
    content = path.read_bytes()
    packed, table = bytearray(content), bytearray(content)
    packed[60:64] = b"\xff" * 4
    table[-6:-2] = b"\xff\xff\xff\x7f"  # where the table of contents begins
    return [("decompressing", bytes(packed)), ("negative seek", bytes(table))]


def test_a_file_of_another_kind_is_refused_in_one_line(tmp_path, files):
    other = tmp_path / "other"
    refused("lambada", other, "there is no file")
    for text, match in (
        ("", "has no item; lines with 'text' are expected"),
        ("[1, 2]", "line 1 has no object; the texts 'text' are expected"),
        ('{"prompt": "a b"}', "line 1 has 'prompt'; the texts 'text' are expected"),
        ('{"text": 3}', "line 1 has 'text'"),
        ('{"text": "a b"}\n{"text', "line 2 is not readable as JSON"),
        ('{"text": "word"}', "item 1 is 'word'; two words or more are expected"),
        (r'{"text": "a \ud83d b"}', "line 1 holds half of a surrogate pair in 'text' .at letter 2"),
    ):
        other.write_text(text)
        refused("lambada", other, match)
    other.write_bytes(b"\xff\xfe")
    refused("lambada", other, "not UTF-8")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"x" * 999)[:20])
    refused("lambada", tmp_path / "cut.gz", "the compressed file is cut off or changed")
    (tmp_path / "plain.gz").write_text("text")
    refused("wikitext", tmp_path / "plain.gz", "the compressed file is cut off or changed")
    refused("wikitext", files["lambada"], "has no heading such as")
    refused("sst2", files["lambada"], "line 1 is .*; a sentence, a tab and 0 or 1 are expected")
    refused("gsm8k", files["lambada"], "give gsm8k=.*,TRAIN")
    refused("gsm8k", f"{files['lambada']},{files['lambada']}", "'question' and 'answer' are")
    other.write_text(json.dumps({"question": "a", "answer": "8"}))
    refused("gsm8k", f"{other},{other}", "answer of item 1 ends '8'; '#### ' and a number")
    other.write_text(json.dumps(GSM8K[0]))
    refused("gsm8k", f"{other},{other}", "has 1 items; 5 examples are needed")
    refused("blimp", files["lambada"], "is no zip file of BLiMP")
    for name, content in damaged_zips(tmp_path):
        other.write_bytes(content)
        refused("blimp", other, f"is no zip file of BLiMP: .*{name}")
    with zipfile.ZipFile(tmp_path / "uneven.zip", "w") as archive:
        pair = json.dumps({"sentence_good": "a", "sentence_bad": "b"})
        archive.writestr("one.jsonl", pair)
        archive.writestr("two.jsonl", f"{pair}\n{pair}")
    refused("blimp", tmp_path / "uneven.zip", "paradigms have 1 to 2 pairs")
    refused("lambda", files["lambada"], "no protocol 'lambda', did you mean 'lambada'")
    refused("sst2", "", "sst2 needs a file: give sst2=FILE")


def test_a_store_that_holds_nothing_out_has_no_held_out_loss(make_store, tmp_path):
    with pytest.raises(EvaluationError, match="holds out none of its 2 documents"):
        model_evaluation.load("heldout", store=make_store(["a b", "b c"]))
    with pytest.raises(EvaluationError, match="heldout needs a token store"):
        model_evaluation.load("heldout")
    with pytest.raises(StoreError, match="there is no token store at"):
        model_evaluation.load("heldout", str(tmp_path))


@pytest.mark.parametrize("kind", ["instructions", "preferences"])
def test_a_tuning_store_has_no_held_out_text(kind, tiny_run, tmp_path):
    """Its prompts carry no loss, and both responses of a preference are in one row."""
    store = tuning.build_tuning_store(
        tiny_examples(kind), out=tmp_path / kind, tokenizer=tiny_run.tokenizer, context=16,
        held_out=0.4,
    )  # fmt: skip
    with pytest.raises(EvaluationError, match=f"holds {kind} for tuning.*give heldout=STORE"):
        model_evaluation.load("heldout", store=store)


def test_a_vocabulary_of_words_cannot_read_other_texts(tiny_run, files):
    with pytest.raises(TokenizerError):
        model_evaluation.evaluate(
            tiny_run.load(), model_evaluation.load("lambada", files["lambada"])
        )
    model = drawn_model(8)
    model.tokenizer = None
    with pytest.raises(EvaluationError, match="came without a tokenizer"):
        model_evaluation.evaluate(model, model_evaluation.load("lambada", files["lambada"]))


def test_items_have_keys_that_say_what_they_are(files):
    keys = model_evaluation.load("lambada", files["lambada"]).keys
    assert len(set(keys)) == len(LAMBADA)
    again, digest = model_evaluation.identified([one["text"] for one in LAMBADA])
    assert keys == again
    assert model_evaluation.identified(["a", "a"])[1] != model_evaluation.identified(["a", "b"])[1]
    assert len(digest) == 64
