"""The base of a tuned run: the checkpoint that its training began with.

The manifest holds the base's run id, step and sha256 of the weights, and for a DPO run the sha256
of the reference log-probabilities. All of them are part of the id of the tuned run. Where the base
lies is not: a base that has moved is the same base.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from train import storage
from train.errors import DamagedError


__all__ = ["REFERENCE", "Base", "read_reference", "reference_bytes"]

# The reference's log-probability of both responses of every pair, in the order of the store.
REFERENCE = "reference.npy"


@dataclass(frozen=True)
class Base:
    """The checkpoint that a tuned run began with.

    Attributes:
        path: Folder of the base run.
        store_path: Folder of its token store; None for imported weights.
        weights_sha256: Digest of its weights at `step`.
        reference_sha256: Digest of `reference.npy` of a DPO run, else None.
    """

    path: Path
    store_path: Path | None
    run_id: str
    step: int
    weights_sha256: str
    reference_sha256: str | None = None

    @property
    def identity(self) -> dict[str, str | int | None]:
        """What the manifest says about the base, without its place."""
        return {
            "run_id": self.run_id,
            "step": self.step,
            "weights_sha256": self.weights_sha256,
            "reference_sha256": self.reference_sha256,
        }


def reference_bytes(log_probs: Float32[np.ndarray, "pair 2"]) -> bytes:
    """Return the content of the file `reference.npy`."""
    content = io.BytesIO()
    np.save(content, log_probs)
    return content.getvalue()


def read_reference(run_path: Path, base: Base) -> Float32[np.ndarray, "pair 2"]:
    """Read the reference log-probabilities of a DPO run, in nats, after checking their digest.

    Raises:
        DamagedError: The file is missing or differs from its digest.
    """
    path = run_path / REFERENCE
    storage.check_digest(
        path, str(base.reference_sha256), "the manifest", "tune the run again from its base"
    )
    try:
        return np.load(path)
    except ValueError as error:
        raise DamagedError(f"{path}: not an array of numpy ({error})") from None
