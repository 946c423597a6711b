"""Safe reading of foreign files: none of their code is run, and their content is checked.

Any problem with a file is a `DamagedError` that begins with its path. Pickles can run code: those
that must be opened (nanoGPT's) are read by torch's restricted reader, all others are refused
without being read.
"""

import hashlib
import json
import pickle
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from train import storage
from train.errors import DamagedError


__all__ = ["WEIGHTS", "digest", "read_json", "read_restricted", "read_safetensors"]
__all__ += ["refuse_pickle", "weight_paths"]

WEIGHTS = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def weight_paths(folder: Path) -> list[Path]:
    """Return the weights files of a folder: model.safetensors, or the shards that an index lists.

    Raises:
        DamagedError: There is neither, only a pickle, or an index that is not JSON.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    listing = folder / f"{WEIGHTS}.index.json"
    if listing.is_file():
        return [folder / name for name in sorted(set(read_json(listing)["weight_map"].values()))]
    for path in sorted(folder.iterdir()):
        refuse_pickle(path)
    raise DamagedError(f"{folder / WEIGHTS}: the file is missing")


def refuse_pickle(path: Path) -> None:
    """Refuse a file that could run code, by its name and without reading it.

    Raises:
        DamagedError: The file is a pickle.
    """
    if path.suffix in PICKLES and path.is_file():
        raise DamagedError(
            f"{path}: a pickle, which can run code when it is opened; safetensors is accepted "
            f"({WEIGHTS} in a Hugging Face folder)"
        )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file by name.

    Raises:
        DamagedError: The file cannot be read as safetensors.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{path}: not readable as safetensors ({error})") from None


def read_json(path: Path) -> storage.JsonObject:
    """Read a JSON object.

    Raises:
        DamagedError: The file is missing, is not JSON, or does not hold an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedError(f"{path}: the file is missing") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DamagedError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(content, dict):
        raise DamagedError(f"{path}: not a JSON object")
    return content


def read_restricted(path: Path) -> object:
    """Read a pickle with torch's restricted reader, which accepts tensors and plain containers.

    Raises:
        DamagedError: The file is missing, or holds anything else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle versions, which are then refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DamagedError(f"{path}: the file is missing") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise DamagedError(
            f"{path}: torch's restricted reader refuses it ({reason}); safetensors is accepted, as "
            "a Hugging Face folder"
        ) from None


def digest(paths: list[Path]) -> str:
    """Return the sha256 of a file, or of the sha256s of several files in order."""
    digests = [storage.sha256_file(path) for path in paths]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
