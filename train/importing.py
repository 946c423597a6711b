"""Weights that somebody else trained, taken in as a run that says how little is known of it.

An import has one checkpoint, no ledger and no store. Its knowledge level is `weights-only`, and
that level stands in every result computed from it.
"""

from pathlib import Path

from train import checkpoints, durable, exchange, manifests, runs
from train.errors import TrainError
from train.exchange import Imported
from train.runs import Run


__all__ = ["export", "run_from"]


def run_from(source: str | Path, *, out: str | Path) -> Run:
    """Import a Hugging Face folder (GPT-2 or Llama layout) or a nanoGPT `ckpt.pt` as a run.

    Raises:
        TrainError: There is nothing at `source`, or `out` exists.
        DamagedError: The weights are a pickle that is no nanoGPT checkpoint, or damaged.
    """
    source, out = Path(source), Path(out)
    if not source.exists():
        raise TrainError(f"nothing to import at {source}; give a Hugging Face folder or a ckpt.pt")
    if out.exists():
        raise TrainError(f"{out} exists already; choose another folder")
    is_folder = source.is_dir()
    found = exchange.import_huggingface(source) if is_folder else exchange.import_nanogpt(source)
    with durable.folder(out) as place:
        _write(place, found, "Hugging Face folder" if is_folder else "nanoGPT checkpoint", source)
    return runs.open(out)


def export(run: Run, *, out: str | Path, step: int | None = None) -> Path:
    """Write a checkpoint of a run as a Hugging Face folder, its tokenizer included."""
    model = run.load(step)
    return exchange.export_huggingface(model, run.tokenizer, out)


def _write(place: Path, found: Imported, layout: str, source: Path) -> None:
    (place / checkpoints.FOLDER).mkdir()
    saved = checkpoints.write(
        place,
        0,
        model={name: one.contiguous() for name, one in found.model.state_dict().items()},
        optimizer=None,
        state={"tokens": 0},
        keep_optimizer_of=set(),
    )
    files = {f"{saved.folder}/{name}": sha for name, sha in saved.files.items()}
    if found.tokenizer is not None:
        found.tokenizer.save(place / "tokenizer.json")
        files["tokenizer.json"] = durable.sha256_file(place / "tokenizer.json")
    index = f"{checkpoints.FOLDER}/index.json"
    files[index] = durable.sha256_file(place / index)
    origin = {
        "layout": layout,
        "name": source.name,
        "sha256": found.sha256,
        "description": found.description,
    }
    manifests.imported(place, found.model.cfg.to_dict(), origin, files)
