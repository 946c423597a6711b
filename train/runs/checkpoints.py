"""Checkpoints of a run: safetensors and JSON files, loaded only if their digests are right.

    checkpoints/index.json                            sealed list of checkpoints; written last
    checkpoints/step-00000400/model.safetensors
    checkpoints/step-00000400/optimizer.safetensors   only some steps, and the newest
    checkpoints/step-00000400/ema.safetensors         moving average of the weights, if kept
    checkpoints/step-00000400/state.json              step, tokens, loss on a fixed batch

A checkpoint is complete or absent, and the bytes that are hashed are the bytes that are loaded.
Steps are sorted as numbers, never as strings (mistral#182: `main` was step 90,000 for years). A
checkpoint's folder, its `state.json` and the index must agree on the step (Pythia#205: 86 of 154
branches held the final weights). Pickles are never read, because they can run code.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path

import torch
from safetensors.torch import save as serialize
from torch import Tensor, nn

from train import storage
from train.errors import DamagedError
from train.model import GPT, GPTConfig
from train.short_repr import short_repr


__all__ = [
    "CHECKPOINTS",
    "CHECKPOINT_INDEX",
    "EMA",
    "Checkpoint",
    "check_checkpoints",
    "drop_unlisted",
    "index",
    "load_weights",
    "misfit",
    "outside",
    "read_counters",
    "read_tensors",
    "write_checkpoint",
]

CHECKPOINTS = "checkpoints"
CHECKPOINT_INDEX = "index.json"
SHAPE = {"checkpoints?": [{"step": int, "files": {str: str}}]}
EMA = "ema.safetensors"
OPTIMIZER = "optimizer.safetensors"  # one that nothing lists is left by a killed process
MOST_STATE = 1 << 24  # bytes of a state.json
MOST_HASHED = 1 << 36  # bytes of a file that is no file of tensors
SPARE = 1 << 20  # parameters by which a configuration may exceed twice those of its file
LONGEST_MARK = 64  # bytes by which a pickle, or a file that stands in for another one, is known
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint as the index lists it: its step and the sha256 of each of its files."""

    step: int
    files: dict[str, str]

    __repr__ = short_repr

    @property
    def folder(self) -> str:
        """Folder of the checkpoint, relative to the run."""
        return f"{CHECKPOINTS}/step-{self.step:08d}"

    @property
    def resumable(self) -> bool:
        """True if the checkpoint has its optimizer."""
        return "optimizer.safetensors" in self.files


def index(run_path: Path) -> list[Checkpoint]:
    """Return the checkpoints that a run's index lists, by ascending step.

    Raises:
        DamagedError: The index is missing, differs from its seal, or is another file, or its steps
            do not ascend.
    """
    path = run_path / CHECKPOINTS / CHECKPOINT_INDEX
    content = storage.read_sealed(path)
    storage.check_shape(content, SHAPE, path)
    listed = content.get("checkpoints", [])
    saved = [Checkpoint(one["step"], one["files"]) for one in listed]
    steps = [one.step for one in saved]
    if steps != sorted(set(steps)) or any(step < 0 for step in steps):
        raise DamagedError(f"{path}: the steps {steps} are not ascending")
    for name in {name for one in saved for name in one.files}:
        storage.listed_file(path, name)  # refuses names of other folders
    for one in saved:
        if lacking := {"model.safetensors", "state.json"} - one.files.keys():
            raise DamagedError(f"{path}: step {one.step} lacks {min(lacking)}")
    return saved


def write_checkpoint(
    run_path: Path,
    step: int,
    *,
    model: dict[str, Tensor],
    optimizer: dict[str, Tensor] | None,
    state: dict[str, float | int],
    keep_optimizer_of: set[int],
    average: dict[str, Tensor] | None = None,
) -> Checkpoint:
    """Write a checkpoint, then the index; `average` is the moving average of the weights.

    Optimizers of other checkpoints are deleted unless their step is in `keep_optimizer_of`.
    """
    content = {
        "model.safetensors": serialize(model),
        "state.json": storage.canonical_json({**state, "step": step}).encode(),
    }
    if optimizer is not None:
        content["optimizer.safetensors"] = serialize(optimizer)
    if average is not None:
        content[EMA] = serialize(average)
    saved = Checkpoint(step, {name: sha256(data).hexdigest() for name, data in content.items()})
    place = run_path / saved.folder
    shutil.rmtree(place, ignore_errors=True)
    with storage.new_folder(place, locked=True) as temporary:
        for name, data in content.items():
            (temporary / name).write_bytes(data)
    listed = index(run_path) if (run_path / CHECKPOINTS / CHECKPOINT_INDEX).exists() else []
    kept = [one for one in listed if one.step != step]
    stale = [one for one in kept if one.resumable and one.step not in keep_optimizer_of]
    kept = [_without_optimizer(one) if one in stale else one for one in kept] + [saved]
    write_checkpoint_index(run_path, sorted(kept, key=lambda one: one.step))
    for one in stale:
        (run_path / one.folder / "optimizer.safetensors").unlink(missing_ok=True)
    return saved


def read_tensors(run_path: Path, saved: Checkpoint, name: str) -> dict[str, Tensor]:
    """Load one safetensors file of a checkpoint; the bytes that are loaded have its digest.

    Raises:
        DamagedError: The file is missing, is a pickle, differs from its digest, or is not
            safetensors.

    Examples:
        >>> tensors = runs.read_tensors(run.path, run.saved_at(600), "model.safetensors")
        >>> tuple(tensors["blocks.0.attn.qkv.weight"].shape)
        (384, 128)
    """
    with _tensor_file(run_path, saved, name) as file:
        found = {key: _empty(entry) for key, entry in file.entries.items()}
        _read_trusted(file, saved.files[name], found)
    return found


def load_model(config: GPTConfig, run_path: Path, saved: Checkpoint, name: str) -> GPT:
    """Return a model with the weights of a checkpoint, in evaluation mode.

    The sizes of the configuration are compared with the file first, so that it takes no memory for
    numbers that the file does not have.

    Raises:
        DamagedError: As for `load_weights`.
    """
    with _tensor_file(run_path, saved, name) as file:
        held = sum(prod(entry.shape) for entry in file.entries.values())
        if config.n_params > 2 * held + SPARE or config.n_distinct_layers > len(file.entries):
            raise DamagedError(
                f"{file.path}: {held:,} numbers in {len(file.entries)} tensors, and the "
                f"configuration has {config.n_params:,} in {config.n_distinct_layers} layers"
            )
        model = GPT(config).eval()
        _load(model, file, saved.files[name])
    return model


def load_weights(model: nn.Module, run_path: Path, saved: Checkpoint, name: str) -> None:
    """Load weights of a checkpoint into a model, with no copy of them in memory.

    Weights of multi-token prediction are left out if the model has none. If the file is refused,
    the weights of the model are undefined.

    Raises:
        DamagedError: As for `read_tensors`, or the model has other weights than the file.

    Examples:
        >>> from train.model import init_gpt
        >>> other = init_gpt(run.config, seed=1)
        >>> runs.load_weights(other, run.path, run.saved_at(2100), "model.safetensors")
        >>> torch.equal(other.embed.weight, model.embed.weight)
        True
    """
    with _tensor_file(run_path, saved, name) as file:
        _load(model, file, saved.files[name])


@torch.no_grad()
def _load(model: nn.Module, file: storage.TensorFile, expected: str) -> None:
    weights = model.state_dict()
    for key in sorted(file.entries.keys() ^ weights.keys()):
        if not (key.startswith("mtp.") and key in file.entries):
            owner = "file" if key in file.entries else "model"
            raise DamagedError(f"{file.path}: only the {owner} has {key}, not both")
    for key, value in weights.items():
        if value.shape != file.entries[key].shape:
            raise DamagedError(
                f"{file.path}: {key} has shape {file.entries[key].shape}, the model's "
                f"{tuple(value.shape)}"
            )
        if not file.entries[key].dtype.is_floating_point:
            kind = str(file.entries[key].dtype).removeprefix("torch.")
            raise DamagedError(f"{file.path}: {key} holds {kind}, and weights are floating-point")
    _read_trusted(file, expected, weights)


def read_counters(run_path: Path, saved: Checkpoint) -> dict[str, float | int]:
    """Read the `state.json` of a checkpoint.

    Raises:
        DamagedError: The file is missing or differs from its digest, or its step is not that of
            the folder.

    Examples:
        >>> runs.read_counters(run.path, run.saved_at(600))["step"]
        600
    """
    path = run_path / saved.folder / "state.json"
    content = storage.read_foreign_bytes(path)
    _check_digest(path, content, sha256(content).hexdigest(), saved.files["state.json"])
    state = storage.parse_json(content, path)
    storage.check_shape(state, {"step": int, "tokens?": int, "fixed_loss?": float}, path)
    if state["step"] != saved.step:
        raise DamagedError(
            f"{path}: says step {state['step']} and lies in the folder of step {saved.step}"
        )
    return state


def misfit(path: Path) -> str:
    """Return why a file cannot be the one that its name says, by its size and its begin, or "".

    Asked before a file is hashed: a terabyte takes an hour, and the digest would only say that the
    file is another one. Files of at most `MOST_STATE` bytes are not looked at.

    Examples:
        >>> storage.write_bytes(folder / "state.json", b" " * (1 << 24) + b"3")
        >>> runs.misfit(folder / "state.json").partition(": ")[2]
        '16,777,217 bytes, and at most 16,777,216 are read'
    """
    size = path.stat().st_size if path.is_file() else 0
    if size <= MOST_STATE:
        return ""
    if path.name == "state.json":
        return f"{path}: {size:,} bytes, and at most {MOST_STATE:,} are read"
    try:
        if path.suffix == ".safetensors":
            with storage.TensorFile(path):
                return ""
        with storage.open_foreign(path) as file:
            unwritten = not any(file.read(LONGEST_MARK))
    except DamagedError as error:
        return str(error)
    return f"{path}: begins with zero bytes; it was not written whole" if unwritten else ""


def check_checkpoints(run_path: Path, listed: list[Checkpoint]) -> list[str]:
    """Check the digests of the listed checkpoints' files; return one line per problem.

    Examples:
        >>> runs.check_checkpoints(run.path, run.saved)
        []
    """
    owners = {digest: one for one in listed for digest in one.files.values()}
    problems = []
    for one in listed:
        for name, expected in one.files.items():
            path = run_path / one.folder / name
            if problem := outside(run_path, f"{one.folder}/{name}"):
                problems.append(problem)
                continue
            if not path.is_file():
                problems.append(f"{path}: the file is missing")
                continue
            if problem := misfit(path):
                problems.append(problem)
                continue
            found = storage.sha256_file(path)
            if found != expected:
                owner = owners.get(found)
                whose = f"; it is the file of step {owner.step}" if owner else ""
                problems.append(
                    f"{path}: sha256 {found[:12]}..., the index says {expected[:12]}...{whose}"
                )
        if (run_path / one.folder).is_dir():
            problems += [
                f"{path}: the index does not list this file"
                for path in sorted((run_path / one.folder).iterdir())
                if path.suffix == ".safetensors" and path.name not in (*one.files, OPTIMIZER)
                if not path.name.startswith(".")
            ]
    return problems


def outside(run_path: Path, name: str) -> str:
    """Return what is wrong with the name of a run's file if it leads out of the run, or "".

    Examples:
        >>> runs.outside(run.path, "ledger.jsonl")
        ''
        >>> runs.outside(run.path, "../other/ledger.jsonl").endswith("leads out of the run")
        True
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return f"{run_path}: the name {name!r} leads out of the run"
    return ""


def drop_unlisted(run_path: Path) -> None:
    """Remove checkpoints and files that a killed process wrote but did not add to the index."""
    listed = {(run_path / one.folder).name: one for one in index(run_path)}
    for place in (run_path / CHECKPOINTS).iterdir():
        if place.is_dir() and place.name not in listed:
            shutil.rmtree(place)
        elif place.is_dir():
            for file in place.iterdir():
                # Only what this module writes: a user may have put other files there.
                if file.name == OPTIMIZER and file.name not in listed[place.name].files:
                    file.unlink()


def _check_digest(path: Path, begin: bytes, found: str, expected: str) -> None:
    if not path.is_file():
        raise DamagedError(f"{path}: the file is missing")
    # A safetensors file begins with the length of its header, in eight bytes, which can be those of
    # a pickle (640 is 0x0280). The header follows, and begins with a brace.
    if begin.startswith(PICKLES) and begin[8:9] != b"{":
        raise DamagedError(
            f"{path}: this is a pickle, which can run code when it is opened; only safetensors "
            "is loaded"
        )
    if found != expected:
        raise DamagedError(
            f"{path}: sha256 {found[:12]}..., the index says {expected[:12]}...; nothing was loaded"
        )


def _tensor_file(run_path: Path, saved: Checkpoint, name: str) -> storage.TensorFile:
    """Open a file of tensors; of one that is none, the digest is checked first."""
    path = run_path / saved.folder / name
    try:
        return storage.TensorFile(path)
    except DamagedError as error:
        with storage.open_foreign(path) as file:
            begin = file.read(LONGEST_MARK)
        if not storage.stand_in(begin) and path.stat().st_size <= MOST_HASHED:
            _check_digest(path, begin, storage.sha256_file(path), saved.files[name])
        raise error from None


def _read_trusted(file: storage.TensorFile, expected: str, into: Mapping[str, Tensor]) -> None:
    """Read the tensors of a file into others, and check the digest of the bytes that were read.

    Tensors that are not in `into` are hashed only.
    """
    digest = sha256(file.header)
    for name, entry in file.entries.items():
        ours = into.get(name)
        fits = ours is not None and ours.dtype == entry.dtype and ours.is_contiguous()
        place = ours if ours is not None and fits and ours.is_cpu else _empty(entry)
        for piece in file.bytes_into(place, name):
            digest.update(piece)
        if ours is not None and ours is not place:
            ours.copy_(place)
    _check_digest(file.path, file.header, digest.hexdigest(), expected)


def _empty(entry: storage.TensorEntry) -> Tensor:
    # The process may have another default device, into which no file can be read.
    return torch.empty(entry.shape, dtype=entry.dtype, device="cpu")


def _without_optimizer(saved: Checkpoint) -> Checkpoint:
    files = {name: sha for name, sha in saved.files.items() if name != "optimizer.safetensors"}
    return Checkpoint(saved.step, files)


def write_checkpoint_index(run_path: Path, saved: list[Checkpoint]) -> None:
    listed = [{"step": one.step, "files": one.files} for one in saved]
    storage.write_json(
        run_path / CHECKPOINTS / CHECKPOINT_INDEX,
        storage.seal({"schema": 1, "checkpoints": listed}),
    )
