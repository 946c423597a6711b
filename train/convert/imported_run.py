"""Import of foreign weights as a run, and export of a run's checkpoint.

An imported run has one checkpoint, no ledger and no token store. Its knowledge level is
`weights-only`, which every result computed from it records.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

from train import runs, storage
from train.convert import gguf, huggingface
from train.convert.huggingface import Imported
from train.errors import TrainError
from train.runs import Run


__all__ = ["export_run", "import_run"]


def import_run(source: str | Path, *, out: str | Path) -> Run:
    """Import a Hugging Face folder, a nanoGPT `ckpt.pt` or a GGUF file as a run.

    Raises:
        TrainError: There is nothing at `source`, or `out` exists.
        DamagedError: The weights are damaged, or a pickle that is not a nanoGPT checkpoint.
        RecipeError: The decoder does not have the architecture.

    Examples:
        >>> path = convert.export_run(run, out=folder / "gpt2")
        >>> imported = convert.import_run(path, out=folder / "imported")
        >>> imported.knowledge, imported.steps
        ('weights-only', [0])
    """
    source, out = Path(source), Path(out)
    if not source.exists():
        raise TrainError(
            f"nothing to import at {source}; give a Hugging Face folder, a ckpt.pt or a .gguf"
        )
    if out.exists():
        raise TrainError(f"{out} exists already; choose another folder")
    if source.is_dir():
        layout, found = "Hugging Face folder", huggingface.import_huggingface(source)
    elif source.suffix == ".gguf":
        layout, found = "GGUF", _from_gguf(source, out)
    else:
        layout, found = "nanoGPT checkpoint", huggingface.import_nanogpt(source)
    with storage.new_folder(out) as place:
        _write(place, found, layout, source)
    return runs.open(out)


def _from_gguf(source: Path, out: Path) -> Imported:
    """Import a GGUF file by way of a temporary Hugging Face folder beside the run."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as place:
        folder = gguf.gguf_to_huggingface(source, Path(place) / source.stem)
        found = huggingface.import_huggingface(folder)
    return replace(found, sha256=storage.sha256_file(source))


def export_run(run: Run, *, out: str | Path, step: int | None = None) -> Path:
    """Write a checkpoint of a run (None: the last one) as a Hugging Face folder with tokenizer.

    Examples:
        >>> path = convert.export_run(run, out=folder / "gpt2")
        >>> sorted(file.name for file in path.iterdir())
        ['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json']
    """
    model = run.load(step)
    return huggingface.export_huggingface(model, run.tokenizer, out)


def _write(place: Path, found: Imported, layout: str, source: Path) -> None:
    (place / runs.CHECKPOINTS).mkdir()
    saved = runs.write_checkpoint(
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
        files["tokenizer.json"] = storage.sha256_file(place / "tokenizer.json")
    index = f"{runs.CHECKPOINTS}/index.json"
    files[index] = storage.sha256_file(place / index)
    origin = {
        "layout": layout,
        "name": source.name,
        "sha256": found.sha256,
        "description": found.description,
    }
    runs.imported_manifest(place, found.model.cfg.to_dict(), origin, files)
