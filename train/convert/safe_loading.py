"""Safe reading of foreign files: none of their code is run, and their content is checked.

Any problem with a file is a `DamagedError` that begins with its path. Pickles can run code: those
that must be opened (nanoGPT's) are read by torch's restricted reader, all others are refused
without being read.
"""

import hashlib
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from train import storage
from train.errors import DamagedError, is_out_of_memory


__all__ = ["NOT_READ", "WEIGHTS", "digest", "read_json", "read_restricted", "refuse_hollow"]
__all__ += ["refuse_pickle", "weight_paths"]

WEIGHTS = "model.safetensors"
NOT_READ = "tokenizer-not-read.txt"  # why a folder that we wrote has no tokenizer
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
        return [folder / name for name in _shards(listing)]
    for path in sorted(folder.iterdir()):
        refuse_pickle(path)
    raise DamagedError(f"{folder / WEIGHTS}: the file is missing")


def _shards(listing: Path) -> list[str]:
    """Return the names of the shards that an index lists, each of which is inside its folder."""
    places = read_json(listing).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise DamagedError(f"{listing}: weight_map is missing, empty or no object")
    names = list(places.values())
    odd = [one for one in names if not isinstance(one, str) or Path(one).name != one]
    if odd:
        raise DamagedError(
            f"{listing}: weight_map names {odd[0]!r}, which is no file of its folder"
        )
    return sorted(set(names))


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


def read_json(path: Path) -> storage.JsonObject:
    """Read a JSON object.

    Raises:
        DamagedError: The file is missing, is not JSON, or does not hold an object.
    """
    content = storage.read_foreign_json(path)
    if not isinstance(content, dict):
        raise DamagedError(f"{path}: not a JSON object")
    return content


def read_restricted(path: Path) -> object:
    """Read a pickle with torch's restricted reader, which accepts tensors and plain containers.

    The numbers of tensors are mapped from the file where its form allows that, and read when they
    are used.

    Raises:
        DamagedError: The file is missing, or holds anything else.
    """
    storage.open_foreign(path).close()  # refuses what is no regular file
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle versions, which are then refused anyway
            mapped = zipfile.is_zipfile(path)  # torch's older form is another one
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # damage makes it raise errors of nearly every class
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split()).partition(". ")[0][:200]
        raise DamagedError(
            f"{path}: torch's restricted reader refuses it ({reason}); safetensors is accepted, as "
            "a Hugging Face folder"
        ) from None


def refuse_hollow(value: Tensor, place: str) -> None:
    """Refuse a tensor without a number in memory for each of its places.

    A file of a few bytes can hold one that says it has 10^12 numbers.

    Raises:
        DamagedError: It is sparse, quantized or expanded, or has no data; the message begins with
            `place`.
    """
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
        kind = "quantized" if value.is_quantized else value.layout
        raise DamagedError(f"{place} is a {kind} tensor on {value.device}, not dense")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise DamagedError(f"{place} is a tensor without all of its numbers")


def digest(paths: list[Path]) -> str:
    """Return the sha256 of a file, or of the sha256s of several files in order."""
    digests = [storage.sha256_file(path) for path in paths]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
