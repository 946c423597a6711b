"""How much memory opening a model takes, against the bytes of its weights (asked: 1.3 times).

Models of some 200 MB with random weights are written as a Hugging Face folder in fp32 and in bf16,
in one file and in four shards, as nanoGPT's checkpoint with its optimizer, and as the checkpoint of
a run. Each is opened in a process of its own. What is measured is the kernel's own high-water mark
of resident memory (VmHWM) less what was resident after the imports; its ratio to the weights in
fp32 is printed. Pages of mapped files count.

    python benchmarks/loading_memory.py [--megabytes 200]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import machine


ASKED = 1.3
MEGABYTE = 1 << 20
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux


def main() -> int:
    """Measure every way of opening a model; 1 when one takes more than is asked."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=200, help="of the weights in fp32")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(*options.one)))
        return 0
    print(machine.described("torch", "safetensors"), flush=True)
    missed = []
    with tempfile.TemporaryDirectory() as place:
        for name, path in written(Path(place), options.megabytes):
            found = in_a_process(name, path)
            ratio = found["peak"] / found["weights"]
            print(
                f"{name:32} weights {found['weights'] / MEGABYTE:6.1f} MB   peak "
                f"{found['peak'] / MEGABYTE:6.1f} MB   {ratio:5.2f} times   "
                f"{found['seconds']:5.2f} CPU s",
                flush=True,
            )
            if ratio > ASKED:
                missed.append(name)
    print(f"over {ASKED} times: {', '.join(missed) or 'none'}")
    return int(bool(missed))


def in_a_process(name: str, path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", name, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout)


def measured(name: str, path: str) -> dict[str, float]:
    """Open a model in this process, once; sizes in bytes."""
    import torch

    from train import convert, runs

    torch.set_num_threads(1)
    opened: dict[str, Callable] = {
        "nanogpt": lambda: convert.import_nanogpt(path).model,
        "run": lambda: runs.open(path).load(),
        "folder": lambda: convert.import_huggingface(path).model,
    }
    # What is imported on first use is no part of the model.
    small = Path(path).parent / "small"
    convert.import_huggingface(small).model(torch.zeros(1, 1, dtype=torch.long))
    CLEAR.write_text("5")  # resets the high-water mark, which a process has from its parent
    before, begin = resident("VmRSS"), resource.getrusage(resource.RUSAGE_SELF)
    model = opened[name.split()[0].strip(",")]()
    after = resource.getrusage(resource.RUSAGE_SELF)
    weights = sum(one.nbytes for one in model.state_dict().values())
    return {
        "weights": weights,
        "peak": resident("VmHWM") - before,
        "seconds": after.ru_utime + after.ru_stime - begin.ru_utime - begin.ru_stime,
    }


def resident(which: str) -> int:
    """VmRSS (now) or VmHWM (the most since it was reset), in bytes."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return int(lines[which].split()[0]) * 1024


def written(place: Path, megabytes: int):
    """Write the models, and yield the name and the path of each."""
    import torch
    from safetensors.torch import load_file, save_file

    from train import convert
    from train.model import GPT, GPTConfig, init_gpt

    def model(d_model: int, **choice) -> GPT:
        cfg = GPTConfig(n_layers=4, n_heads=8, d_model=d_model, n_ctx=1024, d_vocab=4096, **choice)
        return init_gpt(cfg, seed=0)

    def width(**choice) -> int:
        wide = (n for n in range(64, 1 << 14, 64) if size(n, **choice) >= megabytes * MEGABYTE)
        return next(wide)

    def size(d_model: int, **choice) -> int:
        cfg = GPTConfig(n_layers=4, n_heads=8, d_model=d_model, n_ctx=1024, d_vocab=4096, **choice)
        return 4 * cfg.n_params

    llama = {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "bias": False, "tie": False}
    convert.export_huggingface(model(64, **llama), None, place / "small")
    gpt2 = convert.export_huggingface(model(width()), None, place / "gpt2")
    yield "folder, GPT-2, fp32", gpt2
    convert.import_run(gpt2, out=place / "run")
    yield "run", place / "run"
    folder = convert.export_huggingface(model(width(**llama), **llama), None, place / "llama")
    yield "folder, Llama, fp32", folder
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    for number in range(4):
        part = {name: weights[name].clone() for name in names[number::4]}
        save_file(part, folder / f"part-{number}.safetensors")
    places = {name: f"part-{number % 4}.safetensors" for number, name in enumerate(names)}
    listing = folder / "model.safetensors.index.json"
    listing.write_text(json.dumps({"weight_map": places}))
    yield "folder, Llama, fp32, four shards", folder
    listing.unlink()
    save_file({name: one.bfloat16() for name, one in weights.items()}, folder / "model.safetensors")
    yield "folder, Llama, bf16", folder
    del weights
    nanogpt = model(width())
    save_nanogpt(nanogpt, load_file(gpt2 / "model.safetensors"), place / "ckpt.pt", torch)
    yield "nanogpt, with its optimizer", place / "ckpt.pt"


def save_nanogpt(model, weights, path: Path, torch) -> None:
    """Save the weights of GPT-2's folder as nanoGPT does, with matrices as [out, in]."""
    turned = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    theirs = {
        name: one.T.contiguous() if name.endswith(turned) else one for name, one in weights.items()
    }
    cfg = model.cfg
    args = {"n_layer": cfg.n_layers, "n_head": cfg.n_heads, "n_embd": cfg.d_model, "bias": True}
    args |= {"block_size": cfg.n_ctx, "vocab_size": cfg.d_vocab, "dropout": 0.0}
    moments = {name: {"exp_avg": one, "exp_avg_sq": one.clone()} for name, one in theirs.items()}
    torch.save({"model": theirs, "model_args": args, "optimizer": moments}, path)


if __name__ == "__main__":
    sys.exit(main())
