"""Import of foreign weights as a run, and export of a run's checkpoint.

An imported run has no ledger and no token store. Its knowledge level is `weights-only`, which every
result computed from it records. With the index files of a published order it is `data-known`: then
the run knows which token sequences each step read (`Run.published_order`), and it may have the
checkpoints of several steps.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from train import runs, storage
from train.convert import gguf, huggingface
from train.convert.huggingface import Imported
from train.data import PublishedOrder, open_published_order
from train.errors import TrainError
from train.runs import Run


__all__ = ["export_run", "import_run"]


def import_run(
    source: str | Path | Mapping[int, str | Path],
    *,
    out: str | Path,
    order: str | Path | None = None,
    batch: int = 1024,
) -> Run:
    """Import a Hugging Face folder, a nanoGPT `ckpt.pt` or a GGUF file as a run.

    Args:
        source: The folder or file, or several by the step at which they were saved.
        order: Index (`.idx`) of the token sequences in the order in which they were read, as Pythia
            publishes it. The data may lie beside it, whole or in part.
        batch: Sequences of a step of that order.

    Raises:
        TrainError: There is nothing at `source`, or `out` exists; or a step is not in the order.
        DamagedError: The weights are damaged, or a pickle that is not a nanoGPT checkpoint.
        RecipeError: The decoder does not have the architecture.

    Examples:
        >>> path = convert.export_run(run, out=folder / "gpt2")
        >>> imported = convert.import_run(path, out=folder / "imported")
        >>> imported.knowledge, imported.steps
        ('weights-only', [0])
    """
    sources = source if isinstance(source, Mapping) else {0: source}
    places, out = {step: Path(sources[step]) for step in sorted(sources)}, Path(out)
    for path in places.values():
        if not path.exists():
            raise TrainError(
                f"nothing to import at {path}; give a Hugging Face folder, a ckpt.pt or a .gguf"
            )
    if out.exists():
        raise TrainError(f"{out} exists already; choose another folder")
    known = None if order is None else open_published_order(order, batch=batch)
    last = max(places, default=-1)
    if min(places, default=-1) < 0 or (known is not None and last > known.n_steps):
        raise TrainError(
            f"checkpoints of steps {', '.join(map(str, places)) or 'none'}; give at least one, of "
            f"steps from 0{f' to {known.n_steps}' if known else ''}"
        )
    with storage.new_folder(out) as place:
        _write(place, places, out, known)
    return runs.open(out)


def _read(path: Path, out: Path) -> tuple[str, Imported]:
    """Return the name of a layout, and the model in it."""
    if path.is_dir():
        return "Hugging Face folder", huggingface.import_huggingface(path)
    if path.suffix == ".gguf":
        return "GGUF", _from_gguf(path, out)
    return "nanoGPT checkpoint", huggingface.import_nanogpt(path)


def _from_gguf(source: Path, out: Path) -> Imported:
    """Import a GGUF file by way of a temporary Hugging Face folder beside the run."""
    with storage.scratch_folder(out) as place:
        folder = gguf.gguf_to_huggingface(source, place / source.stem)
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


def _write(
    place: Path, sources: Mapping[int, Path], out: Path, order: PublishedOrder | None
) -> None:
    (place / runs.CHECKPOINTS).mkdir()
    files, digests = {}, []
    cfg = tokenizer = layout = description = None
    for step, path in sources.items():
        layout, found = _read(path, out)
        if cfg is not None and found.model.cfg != cfg:
            raise TrainError(f"{path}: not the architecture of the checkpoints before it")
        cfg, tokenizer, description = found.model.cfg, found.tokenizer, found.description
        digests.append(found.sha256)
        saved = runs.write_checkpoint(
            place,
            step,
            model={name: one.contiguous() for name, one in found.model.state_dict().items()},
            optimizer=None,
            state={"tokens": 0 if order is None else step * order.batch * cfg.n_ctx},
            keep_optimizer_of=set(),
        )
        files |= {f"{saved.folder}/{name}": sha for name, sha in saved.files.items()}
        del found  # two models may not fit into memory
    assert cfg is not None
    if tokenizer is not None:
        tokenizer.save(place / "tokenizer.json")
        files["tokenizer.json"] = storage.sha256_file(place / "tokenizer.json")
    index = f"{runs.CHECKPOINTS}/index.json"
    files[index] = storage.sha256_file(place / index)
    joined = hashlib.sha256("".join(digests).encode()).hexdigest()
    origin = {
        "layout": str(layout),
        "name": ", ".join(path.name for path in sources.values()),
        "sha256": digests[0] if len(digests) == 1 else joined,
        "description": str(description),
    }
    runs.imported_manifest(place, cfg.to_dict(), origin, files, order=order)
