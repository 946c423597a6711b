"""The manifest of a run: inputs, recipe, numerics, environment, and the digests of its files.

The manifest is an in-toto statement (https://in-toto.io/Statement/v1): `subject` lists the files of
the run with their sha256, and `predicate` says how they were made. It is sealed
(`train.storage.atomic`) and written at the start of the run without subjects, at each resumption
with a further *segment* (first step, code and environment), and at the end with all subjects.

Knowledge levels are `full` (documents and order are known), `data-known` (the corpus is known, but
not the order; no code creates such runs yet) and `weights-only` (an import). Every result computed
from a run records its level.

A tuned run names its base: the id of the run that it began with, the step, and the sha256 of those
weights (`train.runs.tuning_base`).

A retrained run names its parent, the removed documents, and in `removal_choice` how these were
chosen (`train.data.RemovalChoice`); runs of before this was recorded lack that key.
"""

import json
import os
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import train
from train import recipes, storage
from train.data import DocumentRemoval, PublishedOrder, RemovalChoice, TokenStore
from train.errors import DamagedError
from train.numerics import Numerics, environment
from train.recipes import Recipe
from train.runs.tuning_base import Base


__all__ = [
    "MANIFEST",
    "begin_manifest",
    "code",
    "finish_manifest",
    "imported_manifest",
    "read_manifest",
    "released_manifest",
    "resumed_manifest",
]

MANIFEST, SCHEDULE = "manifest.json", "schedule.npy"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "openbook/run/v1"
SHAPE = {"subject": [{"name": str, "digest": {"sha256": str}}]}
ABOUT_ALL = {
    "knowledge": str,
    "run_id": str,
    "finished": bool,
    "code": {str: str},
    "environment": {str: (str, int)},
}
IDENTITY = {"run_id": str, "step": int}
IMPORTED = {"model": object, "origin": {"description": str, "layout?": str}}
SHAPES = {
    "full": {
        "recipe": object,
        "numerics": {
            "device": str,
            "precision": str,
            "threads": int,
            "matmul?": str,
            "compile?": bool,
            "world_size?": int,
            "kernels?": int,
        },
        "data": {"fingerprint": str, "store_sha256": str, "tokenizer_sha256": str},
        "store_path": str,
        "parent": (None, IDENTITY),
        "removed": (None, {"documents": [int], "mode": str}),
        "removal_choice?": {
            "kind": str,
            "named?": [int],
            "together?": str,
            "facts?": [str],
            "seed?": int,
            "rule?": int,
            "matched_to?": [int],
            "avoided?": [int],
        },
        "segments?": [{"first_step": int, "environment": {str: (str, int)}}],
        "base?": {**IDENTITY, "weights_sha256": str, "reference_sha256": (None, str)},
        "base_places?": {"run": str, "store?": str},
        "teacher?": IDENTITY,
        "teacher_path?": str,
    },
    "weights-only": IMPORTED,
    "data-known": {
        **IMPORTED,
        "order": {"batch": int, "sequences": int, "index_sha256": str},
        "order_path": str,
    },
}
KEYS = {
    "full": {"knowledge", "recipe", "numerics", "data", "order", "seeds", "code", "environment"},
    "weights-only": {"knowledge", "model", "origin", "code", "environment"},
    "data-known": {"knowledge", "model", "origin", "order", "order_path", "code", "environment"},
}


def begin_manifest(
    run_path: Path,
    recipe: Recipe,
    store: TokenStore,
    numerics: Numerics,
    *,
    parent: storage.JsonObject | None = None,
    removal: DocumentRemoval | None = None,
    choice: RemovalChoice | None = None,
    teacher: storage.JsonObject | None = None,
    teacher_path: Path | None = None,
    base: Base | None = None,
) -> storage.JsonObject:
    """Write the manifest of a run that is about to start; `run_path` must exist.

    Args:
        choice: How the documents of the removal were chosen; None: this is not recorded.
        teacher: Run id, step and weights digest of the run that teaches this one by distillation.
        teacher_path: Folder of that run.
    """
    asked = {
        "recipe": recipes.to_dict(recipe),
        "numerics": numerics.to_dict(),
        "data": {
            "fingerprint": store.fingerprint,
            "store_sha256": storage.sha256_file(store.path / "store.json"),
            "tokenizer_sha256": store.tokenizer.sha256,
        },
        "order": {
            "algorithm": "feistel-v1" if recipe.sampler == "tiles" else "nanogpt-recorded",
            "seed": recipe.order_seed,
            "context": store.window(recipe.model.n_ctx),
            "stride": store.window(recipe.model.n_ctx),
            "batch": recipe.batch_size,
        },
        "parent": parent,
        "removed": asdict(removal) if removal else None,
    }
    files = {"store_path": _relative(store.path, run_path)}
    if (run_path / SCHEDULE).exists():
        files["schedule_sha256"] = storage.sha256_file(run_path / SCHEDULE)
    if base:
        asked["base"] = base.identity
    if teacher and teacher_path:
        # Without a teacher nothing is added, so the ids of older runs stay what they were.
        asked["teacher"] = teacher
        files["teacher_path"] = _relative(teacher_path, run_path)
    predicate = {
        **asked,
        "schema": 1,
        "knowledge": "full",
        "run_id": sha256(storage.canonical_json(asked).encode()).hexdigest()[:12],
        "seeds": {"init": recipe.init_seed, "order": recipe.order_seed},
        **files,
        "code": code(),
        "environment": environment(),
        "segments": [_segment(parent["step"] if parent else 0)],
        "finished": False,
    }
    if choice:
        predicate["removal_choice"] = choice.to_dict()
    if base:
        places = {"run": base.path, "store": base.store_path}
        predicate["base_places"] = {
            name: _relative(path, run_path) for name, path in places.items() if path
        }
    return _write(run_path, predicate, {})


def resumed_manifest(run_path: Path, manifest: storage.JsonObject, step: int) -> storage.JsonObject:
    """Write the manifest of a stopped run with a new segment that begins at `step`.

    Segments that began at `step` or later are dropped, because their steps are done again. The run
    id stays the same: it is a digest of the inputs, not of code and environment.
    """
    predicate = manifest["predicate"]
    kept = [one for one in predicate.get("segments", []) if one["first_step"] < step]
    return _write(run_path, {**predicate, "segments": [*kept, _segment(step)]}, {})


def finish_manifest(
    run_path: Path, manifest: storage.JsonObject, files: dict[str, str]
) -> storage.JsonObject:
    """Write the manifest of a finished run, with the sha256 of every file."""
    return _write(run_path, {**manifest["predicate"], "finished": True}, files)


def released_manifest(
    run_path: Path, predicate: storage.JsonObject, told: storage.JsonObject, files: dict[str, str]
) -> storage.JsonObject:
    """Write the manifest of a released run, which has fewer files than the original run.

    `told` says what was rounded and left out. The run id stays the same, because the inputs are the
    same. The token store is expected in the folder `store` next to the run.
    """
    return _write(run_path, {**predicate, "released": told, "store_path": "../store"}, files)


def imported_manifest(
    run_path: Path,
    model: storage.JsonObject,
    origin: dict[str, str],
    files: dict[str, str],
    *,
    order: PublishedOrder | None = None,
) -> storage.JsonObject:
    """Write the manifest of imported weights, with knowledge level `weights-only`.

    With the published order of its tokens the level is `data-known`.
    """
    asked: list[object] = [model, origin, files]
    known: dict[str, object] = {}
    if order is not None:
        about = {
            "algorithm": "published-sequences",
            "batch": order.batch,
            "sequences": order.n_sequences,
            "index_sha256": storage.sha256_file(order.path),
        }
        asked, known = [*asked, about], {"order": about}
        known["order_path"] = _relative(order.path, run_path)
    predicate = {
        "schema": 1,
        "knowledge": "data-known" if known else "weights-only",
        "run_id": sha256(storage.canonical_json(asked).encode()).hexdigest()[:12],
        **known,
        "model": model,
        "origin": origin,
        "code": code(),
        "environment": environment(),
        "finished": True,
    }
    return _write(run_path, predicate, files)


def read_manifest(run_path: Path) -> storage.JsonObject:
    """Read a manifest, and check its seal and that no key is missing.

    Raises:
        DamagedError: A key is missing, the file differs from its seal, or it is not a manifest.
    """
    path = run_path / MANIFEST
    _refuse_missing_keys(path)
    manifest = storage.read_sealed(path)
    if manifest.get("_type") != STATEMENT or manifest.get("predicateType") != PREDICATE:
        raise DamagedError(f"{path}: not the manifest of an openbook run")
    storage.check_shape(manifest, {**SHAPE, "predicate": ABOUT_ALL}, path)
    about = manifest["predicate"]
    if about["knowledge"] not in SHAPES:
        raise DamagedError(f"{path}: no knowledge is called {about['knowledge']!r:.40}")
    storage.check_shape(about, SHAPES[about["knowledge"]], path)
    return manifest


def code() -> dict[str, str]:
    """Return the version of openbook and the sha256 over the sources of the package `train`."""
    folder = Path(train.__file__).parent
    digest = sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return {"version": version("openbook"), "train_sha256": digest.hexdigest()}


def located(run_path: Path, relative: str) -> Path:
    """Return the folder that a manifest names relative to its run.

    The path is followed from where the run really is and, if nothing is there, from the name under
    which it was opened: one of the two holds if a folder above it is a symbolic link.
    """
    physical = (run_path.resolve() / relative).resolve()
    logical = Path(os.path.normpath(run_path.absolute() / relative))
    return physical if physical.exists() or not logical.exists() else logical


def _relative(path: Path, run_path: Path) -> str:
    return os.path.relpath(path.resolve(), run_path.resolve())


def _segment(first_step: int) -> storage.JsonObject:
    return {"first_step": first_step, "code": code(), "environment": environment()}


def _refuse_missing_keys(path: Path) -> None:
    # Before the seal is checked, because "lacks the key 'beta2'" says more than "was changed".
    content = storage.read_foreign_json(path)
    predicate = content.get("predicate") if isinstance(content, dict) else None
    if not isinstance(predicate, dict):
        return
    knowledge = predicate.get("knowledge")
    if not isinstance(knowledge, str) or knowledge not in KEYS:
        return
    wanted = KEYS[knowledge]
    for key in sorted(wanted - set(predicate)):
        raise DamagedError(f"{path}: the manifest lacks the key {key!r}; it was changed")
    if knowledge == "full":
        recipes.from_dict(predicate["recipe"], path)


def _write(
    run_path: Path, predicate: storage.JsonObject, files: dict[str, str]
) -> storage.JsonObject:
    subject = [{"name": name, "digest": {"sha256": sha}} for name, sha in sorted(files.items())]
    manifest = {
        "_type": STATEMENT,
        "predicateType": PREDICATE,
        "subject": subject,
        "predicate": predicate,
    }
    # Converted to JSON and back, so that the returned value equals what `read_manifest` returns.
    sealed = json.loads(storage.canonical_json(storage.seal(json.loads(json.dumps(manifest)))))
    storage.write_json(run_path / MANIFEST, sealed)
    return sealed
