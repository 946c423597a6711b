"""Released runs: trained runs that are shipped with openbook and can be verified.

    train/released/planted/
        released.json                  sealed: sha256 of every file below, corpus and store
        manifest.json, index.json      manifest and checkpoint index of the unpacked run
        ledger.jsonl.gz                the ledger
        states.json                    `state.json` of every checkpoint
        step-00002100.safetensors      the last weights, in fp32
        step-00000800.safetensors      earlier weights, in half precision
        *.json                         results measured on the machine that trained the run

`open` unpacks it into an ordinary run. Its manifest names the checkpoints that were rounded to half
precision (unpacked they are fp32 files again) and what was left out: optimizers after step 0, other
checkpoints and the monitor log. The weights of step 0 are not shipped but drawn again from the seed
of the recipe, and the token store is built again; both must have the digests in the manifest.
`verify` can therefore replay spans from the first step: bit for bit on the machine that trained the
run, within tolerance on others.
"""

import gzip
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse
from safetensors.torch import save as serialize

from train import runs, storage, trainer
from train.data import STORE_MANIFEST, build_store, open_corpus
from train.errors import DamagedError, TrainError, nearest
from train.model import init_gpt
from train.progress import Progress
from train.runs import Run
from train.storage import cache_folder


__all__ = ["RELEASED_RUNS", "cache_folder", "measured", "open", "write"]

RELEASED_RUNS = Path(__file__).parent
LISTING, LEDGER, STATES, INDEX = "released.json", "ledger.jsonl.gz", "states.json", "index.json"


def open(
    name: str = "planted",
    *,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> Run:
    """Open a run that is shipped with openbook, and check every digest.

    The first call unpacks the run and builds its token store, which takes a few seconds.

    Args:
        folder: Folder for the run and its store, as `run` and `store`; default: a folder in
            `cache_folder()`.

    Raises:
        TrainError: No run of that name is shipped with openbook, or `folder` has another run.
        DamagedError: A shipped or unpacked file is missing, or differs from its digest.
        StoreError: The token store in `folder` is not the one that the run was trained on.

    Examples:
        >>> run = released.open("planted")
        >>> run.id, run.knowledge, run.steps
        ('f932c8200363', 'full', [0, 600, 800, 1000, 2100])
    """
    source = RELEASED_RUNS / name
    listing = _checked(source, name)
    place = Path(folder) if folder else cache_folder() / f"{name}-{listing['run_id']}"
    run_path, store_path = place / "run", place / "store"
    if not (store_path / STORE_MANIFEST).exists():
        with _made_at(store_path) as made:
            corpus = open_corpus(listing["corpus"]["name"], seed=listing["corpus"]["seed"])
            build_store(corpus, out=made, seed=listing["store"]["seed"], progress=progress)
    if not (run_path / runs.MANIFEST).exists():
        with _made_at(run_path) as made:
            _unpack(source, made)
    run = runs.open(run_path, store=store_path)
    if run.id != listing["run_id"] or not run.predicate.get("released"):
        raise TrainError(
            f"{run_path} holds run {run.id}, not the released run {listing['run_id']}; choose "
            "another folder, or remove it"
        )
    problems, _ = trainer.check_files(run)
    if problems:
        raise DamagedError(f"{problems[0]}; remove {place}, and it is unpacked and built again")
    return run


def measured(name: str, what: str) -> dict[str, Any]:
    """Return a shipped result, measured on the machine that trained the run, as plain values.

    Raises:
        TrainError: There is no such run or result.
        DamagedError: A file differs from its digest.

    Examples:
        >>> measured = released.measured("planted", "forgetting")
        >>> sorted(measured)
        ['control', 'control_facts', 'facts', 'first_read', 'groups', 'parent', 'removed', 'runs']
    """
    source = RELEASED_RUNS / name
    listing = _checked(source, name)
    if f"{what}.json" not in listing["files"]:
        raise TrainError(f"no result {what!r} comes with the released run {name!r}")
    return json.loads((source / f"{what}.json").read_text(encoding="utf-8"))


def write(
    run: Run,
    out: str | Path,
    *,
    halves: Sequence[int],
    corpus_seed: int,
    results: dict[str, dict[str, Any]],
) -> Path:
    """Pack a finished run into a new folder for shipping.

    Args:
        halves: Steps whose weights are kept in half precision; the last weights stay in fp32.
        corpus_seed: Content seed of the planted corpus from which its store was built.
        results: Results measured on the run, by name.
    """
    out = Path(out)
    with storage.new_folder(out) as folder:
        whole = folder / "whole"
        _compact(run, whole, halves)
        compact = runs.open(whole, store=run.store.path)
        last = compact.steps[-1]
        for saved in compact.saved[1:]:
            weights = (whole / saved.folder / "model.safetensors").read_bytes()
            if saved.step != last:
                weights = serialize({key: one.half() for key, one in parse(weights).items()})
            (folder / f"step-{saved.step:08d}.safetensors").write_bytes(weights)
        told = {str(one.step): _state(whole, one) for one in compact.saved}
        (folder / STATES).write_text(storage.canonical_json(told), encoding="utf-8")
        shutil.copy(whole / runs.MANIFEST, folder / runs.MANIFEST)
        shutil.copy(whole / runs.CHECKPOINTS / runs.CHECKPOINT_INDEX, folder / INDEX)
        rows = (whole / runs.LEDGER).read_bytes()
        (folder / LEDGER).write_bytes(gzip.compress(rows, 9, mtime=0))
        for name, content in results.items():
            (folder / f"{name}.json").write_text(storage.canonical_json(content), encoding="utf-8")
        shutil.rmtree(whole)
        files = {
            path.name: {"sha256": storage.sha256_file(path), "bytes": path.stat().st_size}
            for path in sorted(folder.iterdir())
        }
        listing = {
            "schema": 1,
            "run_id": run.id,
            "corpus": {"name": "planted", "seed": corpus_seed},
            "store": {"seed": run.store.manifest["seed"], "fingerprint": run.store.fingerprint},
            "half_precision": sorted(halves),
            "files": files,
        }
        storage.write_json(folder / LISTING, storage.seal(listing))
    return out


def _state(run_path: Path, saved: runs.Checkpoint) -> str:
    return (run_path / saved.folder / "state.json").read_text(encoding="utf-8")


def _compact(run: Run, out: Path, halves: Sequence[int]) -> None:
    """Write a copy of the run with few checkpoints; the manifest names the rounded ones."""
    out.mkdir()
    last = run.steps[-1]
    shutil.copy(run.path / runs.LEDGER, out / runs.LEDGER)
    for step in sorted({0, *halves, last}):
        loaded = run.load(step)
        if step in halves:
            loaded.load_state_dict(
                {name: one.half().float() for name, one in loaded.state_dict().items()}
            )
        first = trainer.initial_state(run.recipe, run.numerics) if step == 0 else None
        runs.write_checkpoint(
            out,
            step,
            model=loaded.state_dict(),
            optimizer=trainer.optimizer_state(first.model, first.optimizer) if first else None,
            state={
                "tokens": runs.read_counters(run.path, run.saved_at(step))["tokens"],
                "fixed_loss": trainer.fixed_loss(loaded, run.store, run.order, run.numerics),
            },
            keep_optimizer_of={0},
        )
    told = {
        "half_precision": sorted(halves),
        "left_out": "optimizers behind step 0, other checkpoints, and what was watched",
    }
    files = {
        path.relative_to(out).as_posix(): storage.sha256_file(path)
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }
    runs.released_manifest(out, run.predicate, told, files)


def _checked(source: Path, name: str) -> dict[str, Any]:
    """Return the listing of a released run, after checking every shipped file against it."""
    if not (source / LISTING).is_file():
        known = sorted(path.parent.name for path in RELEASED_RUNS.glob(f"*/{LISTING}"))
        raise TrainError(f"no run {name!r} comes with openbook{nearest(name, known)}")
    listing = storage.read_sealed(source / LISTING)
    for file, about in listing["files"].items():
        path = source / file
        if not path.is_file():
            raise DamagedError(f"{path}: the file is missing; install openbook again")
        found = storage.sha256_file(path)
        if found != about["sha256"]:
            raise DamagedError(
                f"{path}: sha256 {found[:12]}..., {LISTING} says {about['sha256'][:12]}...; "
                "install openbook again"
            )
    return listing


def _unpack(source: Path, out: Path) -> None:
    """Write the run folder that `manifest.json` describes, and check every file against it."""
    out.mkdir()
    manifest = json.loads((source / runs.MANIFEST).read_text(encoding="utf-8"))
    told = json.loads((source / STATES).read_text(encoding="utf-8"))
    contents = {runs.LEDGER: gzip.decompress((source / LEDGER).read_bytes())}
    contents[f"{runs.CHECKPOINTS}/{runs.CHECKPOINT_INDEX}"] = (source / INDEX).read_bytes()
    recipe = runs.Run(out, manifest).recipe
    for step, state in told.items():
        folder = runs.Checkpoint(int(step), {}).folder
        contents[f"{folder}/state.json"] = state.encode()
        if step == "0":
            first = init_gpt(recipe.model, recipe.init_seed).state_dict()
            contents[f"{folder}/model.safetensors"] = serialize(first)
            contents[f"{folder}/optimizer.safetensors"] = serialize({})
        else:
            weights = parse((source / f"step-{int(step):08d}.safetensors").read_bytes())
            contents[f"{folder}/model.safetensors"] = serialize(
                {name: one.float() for name, one in weights.items()}
            )
    for subject in manifest["subject"]:
        name, expected = subject["name"], subject["digest"]["sha256"]
        found = sha256(contents[name]).hexdigest()
        if found != expected:
            raise DamagedError(
                f"{name} of the released run comes out as {found[:12]}..., its manifest says "
                f"{expected[:12]}...; torch {torch.__version__} may draw other initial weights "
                f"than {manifest['predicate']['environment']['torch']}"
            )
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_bytes(path, contents[name])
    storage.write_bytes(out / runs.MANIFEST, (source / runs.MANIFEST).read_bytes())


@contextmanager
def _made_at(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary folder that is renamed to `path` when the block ends.

    Several processes may do this at the same time; the folder of the first to finish is kept.
    """
    with storage.scratch_folder(path) as temporary:
        made = temporary / "made"
        yield made
        try:
            made.rename(path)
        except OSError:
            if not path.is_dir():
                raise
        storage.sync_folder(path.parent)
