"""A model is filled one piece at a time: nothing but the model and a piece lies in memory.

Counted are the bytes that torch has allocated and not freed, which is the same on every machine;
`benchmarks/loading_memory.py` measures what the operating system says.
"""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch.profiler import ProfilerActivity, profile

from tests.worlds.models import shaken
from train import convert, runs, storage
from train.convert import foreign_weights
from train.errors import DamagedError, RecipeError
from train.model import GPT, GPTConfig
from train.storage import tensor_file


GPT2 = GPTConfig(n_layers=3, n_heads=4, d_model=64, n_ctx=32, d_vocab=400, init_std=0.2)
LLAMA = replace(
    GPT2, n_key_value_heads=2, position="rope", norm="rmsnorm", mlp="swiglu", bias=False, tie=False
)
PIECE = 1 << 12  # small, so that tensors of the test's models have several pieces


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(tensor_file, "PIECE", PIECE)
    monkeypatch.setattr(foreign_weights, "MAPPED", PIECE)


def weight_bytes(model: GPT) -> int:
    return sum(one.nbytes for one in model.state_dict().values())


def most_alive(work: Callable) -> int:
    """The most bytes that torch held at once while `work` ran, above what it held before.

    A mapped file is not counted: its pages are read when they are used.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        kept = work()
    events = sorted(record.events() or [], key=lambda event: event.time_range.start)
    changes = [(event.name, event.self_cpu_memory_usage) for event in events]
    # What no operation of torch allocates is mapped.
    mapped = {change for name, change in changes if name == "[memory]" and change > 0}
    alive = most = 0
    for _, change in changes:
        alive += 0 if abs(change) in mapped else change
        most = max(most, alive)
    assert kept is not None
    return most


def check_memory(work: Callable, model: GPT) -> None:
    whole = weight_bytes(model)
    # Tables of the rotation, and what is computed of a piece.
    assert whole <= most_alive(work) < whole + 12 * PIECE + 2 * 32 * 64 * 4
    assert max(one.nbytes for one in model.state_dict().values()) > 12 * PIECE


@pytest.mark.parametrize("cfg", [GPT2, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_is_read_piece_by_piece(cfg, dtype, shards, tmp_path):
    model = shaken(cfg)
    out = convert.export_huggingface(model, None, tmp_path / "out")
    weights = {name: one.to(dtype) for name, one in load_file(out / "model.safetensors").items()}
    in_shards(out, weights, shards)
    check_memory(lambda: convert.import_huggingface(out), model)
    found = convert.import_huggingface(out).model.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(found[name], value.to(dtype).float()), name


def in_shards(folder: Path, weights: dict, shards: int) -> None:
    """Write the weights as some files with an index."""
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    places = {name: f"part-{number % shards}.safetensors" for number, name in enumerate(names)}
    for number in range(shards):
        part = {name: weights[name] for name in names[number::shards]}
        save_file(part, folder / f"part-{number}.safetensors")
    storage.write_json(folder / "model.safetensors.index.json", {"weight_map": places})


def test_a_checkpoint_of_a_run_is_read_piece_by_piece(tmp_path):
    model = shaken(GPT2)
    run = convert.import_run(
        convert.export_huggingface(model, None, tmp_path / "out"), out=tmp_path / "run"
    )
    check_memory(run.load, model)
    for name, value in model.state_dict().items():
        assert torch.equal(run.load().state_dict()[name], value), name


def nanogpt(path: Path, **options) -> GPT:
    """Save a model as nanoGPT does."""
    model = shaken(GPT2)
    cfg, weights = model.cfg, model.state_dict()
    names = {"embed": "wte", "pos_embed": "wpe", "ln_final": "ln_f"}
    parts = {"ln1": "ln_1", "attn.qkv": "attn.c_attn", "attn.out": "attn.c_proj"}
    parts |= {"ln2": "ln_2", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
    theirs = {}
    for name, value in weights.items():
        stem, kind = name.rsplit(".", 1)
        for ours, other in (names | parts).items():
            if stem == ours or stem.endswith(f".{ours}"):
                layer = stem.removesuffix(ours).removeprefix("blocks.")
                theirs[f"transformer.{'h.' if layer else ''}{layer}{other}.{kind}"] = value
    args = {"n_layer": cfg.n_layers, "n_head": cfg.n_heads, "n_embd": cfg.d_model, "bias": True}
    args |= {"block_size": cfg.n_ctx, "vocab_size": cfg.d_vocab, "dropout": 0.0}
    optimizer = {name: torch.zeros(2, *value.shape) for name, value in theirs.items()}
    content = {"model": theirs, "model_args": args, "optimizer": optimizer}
    torch.save(content, path, **options)
    return model


def test_a_nanogpt_checkpoint_is_mapped_and_its_optimizer_never_read(tmp_path):
    model = nanogpt(tmp_path / "ckpt.pt")
    check_memory(lambda: convert.import_nanogpt(tmp_path / "ckpt.pt", mlp="gelu-tanh"), model)
    found = convert.import_nanogpt(tmp_path / "ckpt.pt").model.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(found[name], value), name


def test_a_mapped_file_is_unmapped_from_time_to_time(tmp_path, monkeypatch):
    from train.convert import safe_loading

    model = nanogpt(tmp_path / "ckpt.pt")
    reads, read = [], safe_loading.read_restricted
    monkeypatch.setattr(safe_loading, "read_restricted", lambda path: reads.append(0) or read(path))
    convert.import_nanogpt(tmp_path / "ckpt.pt")
    assert len(reads) > weight_bytes(model) / PIECE / 2


def test_a_checkpoint_of_torchs_older_form_is_read_twice_and_no_more(tmp_path, monkeypatch):
    from train.convert import safe_loading

    model = nanogpt(tmp_path / "ckpt.pt", _use_new_zipfile_serialization=False)
    reads, read = [], safe_loading.read_restricted
    monkeypatch.setattr(safe_loading, "read_restricted", lambda path: reads.append(0) or read(path))
    found = convert.import_nanogpt(tmp_path / "ckpt.pt").model
    assert torch.equal(found.embed.weight, model.embed.weight)
    assert len(reads) == 2


# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite_are_counted_in_every_layout(value, tmp_path):
    for cfg, name in (
        (GPT2, "transformer.h.1.mlp.c_fc.weight"),
        (LLAMA, "model.layers.1.self_attn.k_proj.weight"),
    ):
        out = convert.export_huggingface(shaken(cfg), None, tmp_path / name)
        weights = load_file(out / "model.safetensors")
        weights[name][-1, -3:] = value
        save_file(weights, out / "model.safetensors")
        counts = rf"{name} holds NaN or infinite numbers \(3 of {weights[name].numel():,}\)"
        with pytest.raises(DamagedError, match=counts):
            convert.import_huggingface(out)
    nanogpt(tmp_path / "ckpt.pt")
    saved = torch.load(tmp_path / "ckpt.pt")
    saved["model"]["transformer.wpe.weight"][0, 0] = value
    torch.save(saved, tmp_path / "ckpt.pt")
    with pytest.raises(DamagedError, match=r"ckpt\.pt: transformer\.wpe.*\(1 of 2,048\)"):
        convert.import_nanogpt(tmp_path / "ckpt.pt")


def test_a_number_that_is_infinite_in_fp32_is_refused(tmp_path):
    out = convert.export_huggingface(shaken(GPT2), None, tmp_path / "out")
    weights = {name: one.double() for name, one in load_file(out / "model.safetensors").items()}
    weights["transformer.wpe.weight"][3, 3] = 1e300
    save_file(weights, out / "model.safetensors")
    with pytest.raises(DamagedError, match=r"wpe\.weight holds .*\(1 of 2,048\)"):
        convert.import_huggingface(out)


def test_large_numbers_whose_sum_is_infinite_are_read(tmp_path):
    model = shaken(GPT2)
    with torch.no_grad():
        model.pos_embed.weight.fill_(3e38)
    out = convert.export_huggingface(model, None, tmp_path / "out")
    assert torch.equal(convert.import_huggingface(out).model.W_pos, model.W_pos)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_what_is_no_floating_point_is_refused_by_name_in_every_layout(dtype, tmp_path):
    for cfg, name in ((GPT2, "transformer.wpe.weight"), (LLAMA, "model.norm.weight")):
        out = convert.export_huggingface(shaken(cfg), None, tmp_path / name)
        weights = load_file(out / "model.safetensors")
        weights[name] = weights[name].to(dtype)
        save_file(weights, out / "model.safetensors")
        kind = str(dtype).removeprefix("torch.")
        with pytest.raises(DamagedError, match=f"{name} holds {kind}"):
            convert.import_huggingface(out)
    nanogpt(tmp_path / "ckpt.pt")
    saved = torch.load(tmp_path / "ckpt.pt")
    saved["model"]["transformer.wpe.weight"] = saved["model"]["transformer.wpe.weight"].to(dtype)
    torch.save(saved, tmp_path / "ckpt.pt")
    with pytest.raises(DamagedError, match=f"wpe.weight holds {kind}"):
        convert.import_nanogpt(tmp_path / "ckpt.pt")


def test_a_sparse_tensor_of_a_pickle_is_refused(tmp_path):
    nanogpt(tmp_path / "ckpt.pt")
    saved = torch.load(tmp_path / "ckpt.pt")
    saved["model"]["transformer.wpe.weight"] = saved["model"]["transformer.wpe.weight"].to_sparse()
    torch.save(saved, tmp_path / "ckpt.pt")
    with pytest.raises(DamagedError, match=r"wpe\.weight is a torch\.sparse_coo tensor"):
        convert.import_nanogpt(tmp_path / "ckpt.pt")


def test_a_tensor_of_another_rank_is_refused(tmp_path):
    for shape in ((), (2048,), (32, 8, 8)):
        out = convert.export_huggingface(shaken(GPT2), None, tmp_path / f"out{len(shape)}")
        weights = load_file(out / "model.safetensors")
        weights["transformer.wpe.weight"] = torch.ones(shape)
        save_file(weights, out / "model.safetensors")
        with pytest.raises(DamagedError, match=r"pos_embed\.weight has shape"):
            convert.import_huggingface(out)


# --- files ---------------------------------------------------------------------------------------


def test_pieces_are_the_tensor_whatever_its_axes(tmp_path):
    draw = torch.Generator().manual_seed(0)
    for shape in ((), (0,), (0, 3), (5,), (7000,), (3, 5000), (50, 7, 11), (1, 1)):
        value = torch.randn(shape, generator=draw)
        save_file({"a": value, "b": value.half(), "n": value > 0}, tmp_path / "x.safetensors")
        with storage.TensorFile(tmp_path / "x.safetensors") as file:
            for name, whole in load_file(tmp_path / "x.safetensors").items():
                pieces = [piece.clone() for _, piece in file.pieces(name)]
                found = torch.cat(pieces) if pieces else torch.empty(shape, dtype=whole.dtype)
                assert torch.equal(found.reshape(shape), whole)


def test_a_file_is_written_as_the_library_writes_it(tmp_path):
    draw = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=draw)
        for name, shape in (("b.weight", (3, 4)), ("a", ()), ("ä", (2,)), ("none", (0, 5)))
    }
    shapes = {name: tuple(one.shape) for name, one in tensors.items()}
    path = tmp_path / "x.safetensors"
    storage.write_tensors(path, shapes, tensors.__getitem__, {"format": "pt"})
    assert path.read_bytes() == save(tensors, metadata={"format": "pt"})
    with pytest.raises(DamagedError, match=r"a has shape \(\), not \(9,\)"):
        storage.write_tensors(path, {"a": (9,)}, tensors.__getitem__, {})


def test_a_type_that_torch_does_not_have_is_named(tmp_path):
    save_file({"a": torch.ones(2, dtype=torch.float8_e4m3fnuz)}, tmp_path / "x.safetensors")
    with pytest.raises(DamagedError, match=r"x\.safetensors: a holds F8_E4M3FNUZ"):
        storage.TensorFile(tmp_path / "x.safetensors")


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(9000)}, path)
    with storage.TensorFile(path) as file:
        path.write_bytes(path.read_bytes()[:20_000])
        with pytest.raises(DamagedError, match="ends within a"):
            list(file.pieces("a"))


def test_a_tensor_without_axes_is_one_row(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.tensor(2.0)}, path)
    with foreign_weights.safetensors_weights([path]) as weights:
        for place in (torch.zeros(()), torch.zeros(1)):
            weights["a"].copy_to(place)
            assert place.item() == 2
        assert weights["a"].equals(torch.tensor(2.0))


def imported(tmp_path: Path) -> runs.Run:
    out = convert.export_huggingface(shaken(GPT2), None, tmp_path / "out")
    return convert.import_run(out, out=tmp_path / "run")


@pytest.mark.parametrize("place", [9, -1])
def test_no_model_is_returned_of_changed_bytes(place, tmp_path):
    run = imported(tmp_path)
    path = run.path / run.saved[0].folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"sha256 .*nothing was loaded"):
        run.load()
    with pytest.raises(DamagedError, match=r"sha256 .*nothing was loaded"):
        runs.read_tensors(run.path, run.saved[0], "model.safetensors")


def test_files_are_read_whatever_the_default_device_is(tmp_path):
    run, wanted = imported(tmp_path), shaken(GPT2).state_dict()
    with torch.device("meta"):
        found = runs.read_tensors(run.path, run.saved[0], "model.safetensors")
        elsewhere = convert.import_huggingface(tmp_path / "out").model
        runs.load_weights(elsewhere, run.path, run.saved[0], "model.safetensors")
    assert {value.device.type for value in elsewhere.state_dict().values()} == {"meta"}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_a_checkpoint_that_is_another_file_is_named_without_reading_it_whole(tmp_path):
    run = imported(tmp_path)
    path = run.path / run.saved[0].folder / "model.safetensors"
    for content, said in (
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
        (b"PK\x03\x04" + bytes(1 << 23), "this is a pickle"),
        (bytes(1 << 23), "sha256 .*nothing was loaded"),
    ):
        path.write_bytes(content)
        tracemalloc.start()
        with pytest.raises(DamagedError, match=said):
            run.load()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 1 << 22


def test_a_checkpoint_of_another_model_is_refused_in_one_line(tmp_path):
    run = imported(tmp_path)
    for changed, said in (
        ({"n_layers": 2}, "only the file has blocks.2"),
        ({"n_layers": 4}, "only the model has blocks.3"),
        ({"d_mlp": 32}, r"has shape \(256, 64\), the model's \(32, 64\)"),
    ):
        other = GPT(replace(run.config, **changed))
        with pytest.raises(DamagedError, match=said) as refusal:
            runs.load_weights(other, run.path, run.saved[0], "model.safetensors")
        assert "\n" not in str(refusal.value)


# --- GGUF ----------------------------------------------------------------------------------------


def test_a_gguf_is_converted_one_tensor_at_a_time(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the optional package gguf is not installed")
    from tests.train.convert.test_gguf import llama, written

    path = written(tmp_path / "q.gguf", llama(), ffn_up=gguf.GGMLQuantizationType.Q8_0)
    whole = weight_bytes(llama())
    most = most_alive(lambda: convert.gguf_to_huggingface(path, tmp_path / "out"))
    assert most < whole / 3
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > whole


@pytest.mark.parametrize(
    ("name", "numbers", "error", "said"),
    [
        ("blk.1.ffn_up", [torch.nan, torch.inf], DamagedError, r"holds NaN .*\(2 of 2,048\)"),
        ("blk.0.attn_norm", [torch.nan], DamagedError, r"holds NaN .*\(1 of 32\)"),
        ("blk.0.attn_norm", torch.int32, RecipeError, "holds I32, which is not turned into"),
        ("output_norm", torch.int8, RecipeError, "holds I8, which is not turned into"),
    ],
)
def test_a_gguf_with_other_than_finite_numbers_is_refused(name, numbers, error, said, tmp_path):
    pytest.importorskip("gguf", reason="the optional package gguf is not installed")
    from tests.train.convert.test_gguf import llama, written

    def change(writer):
        one = writer.tensors[0][f"{name}.weight"]
        if isinstance(numbers, list):
            one.tensor = one.tensor.copy()
            one.tensor.reshape(-1)[: len(numbers)] = numbers
        else:
            from gguf import GGMLQuantizationType as Kind

            whole = torch.ones(one.tensor.shape, dtype=numbers).numpy()
            one.tensor, one.nbytes = whole, whole.nbytes
            one.dtype = {torch.int32: Kind.I32, torch.int8: Kind.I8}[numbers]

    path = written(tmp_path / "odd.gguf", llama(), change)
    with pytest.raises(error, match=rf"odd\.gguf: {name}\.weight {said}"):
        convert.gguf_to_huggingface(path, tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["odd.gguf"]


def test_a_gguf_whose_heads_do_not_divide_its_rows_is_refused(tmp_path):
    pytest.importorskip("gguf", reason="the optional package gguf is not installed")
    from tests.train.convert.test_gguf import llama, written

    def change(writer):
        key = "llama.attention.head_count"
        old = writer.kv_data[0][key]
        writer.kv_data[0][key] = type(old)(5, old.type)

    path = written(tmp_path / "odd.gguf", llama(), change)
    with pytest.raises(DamagedError, match=r"odd\.gguf: blk\.0\.attn_q.* has shape .* 5 heads"):
        convert.gguf_to_huggingface(path, tmp_path / "out")
