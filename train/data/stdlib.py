"""The standard library of the running Python as a corpus: real code that every machine has.

Every document is one module. Its id holds the version and the file, for example
`stdlib@3.11.7/json/decoder.py`, and its address is that file in CPython's repository. The text is
under Python's licence (PSF-2.0); nothing of it comes with openbook.

Machines with the same sources of one version must agree, so files that builds of one version change
or leave out are no documents. These were found by comparing CPython 3.11.7 with an installation
that pyenv built (the rest is equal) and in the patches that conda-forge and python-build-standalone
(the builds of uv) apply:

- `_sysconfigdata*`, `config-*`, `sitecustomize`: written by the build or for the machine;
- `ctypes`, `distutils`, `platform`, `ssl`, `sysconfig`: patched by conda-forge or for uv;
- `ensurepip`, `idlelib`, `lib2to3`, `tkinter`, `turtledemo`, `venv`: own packages of distributions;
- `msilib`, `__phello__`: installed on some systems only.

Debian and Ubuntu patch more files and repair security faults without changing the version. Their
own Python therefore has another revision than python.org's of the same version.

Also left out are tests, and what programs wrote: the tables in `encodings`, the prose in
`pydoc_data`. What is left of 3.11.7 are 372 documents of 7.6 MB.
"""

import hashlib
import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from train.data.documents import Corpus, Document
from train.errors import CorpusError, DamagedError


__all__ = ["stdlib_corpus"]

LICENSE = "PSF-2.0"
# A vocabulary so small that most identifiers are several tokens. Once an identifier has begun, its
# earlier occurrence says how it goes on, which is what an induction head learns from.
VOCABULARY = 512
# With a tenth of the files held out, `interp.behaviours.code` finds 50 to 200 prompts of each kind.
HELD_OUT = 0.1
ADDRESS = "https://github.com/python/cpython/blob/v{version}/Lib/{file}"
# Folders and modules at the top of the library that are left out, and folders at any depth.
LEFT_OUT = {
    *("__phello__", "ctypes", "distutils", "encodings", "ensurepip", "idlelib", "lib2to3"),
    *("msilib", "platform", "pydoc_data", "sitecustomize", "ssl", "sysconfig", "tkinter"),
    *("turtledemo", "usercustomize", "venv"),
}
LEFT_OUT_PREFIXES = ("_sysconfigdata", "_distutils_system_mod", "config-")
LEFT_OUT_FOLDERS = {
    *("__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"),
}


def stdlib_corpus(
    revision: str | None = None, *, folder: Path | None = None, version: str | None = None
) -> Corpus:
    """Open the standard library of the running Python, or another folder of one version.

    All files are read once, for the revision: the version and the sha256 over the names and sha256s
    of all documents.

    Args:
        revision: Revision, or version alone, that the library must have.
        folder: Folder of the library; default: that of the running Python.
        version: Version of Python that the folder belongs to; default: the running one.

    Raises:
        CorpusError: The folder holds no sources, or its revision is another one.
        DamagedError: A file cannot be decoded.
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    version = version or platform.python_version()
    needed, _, needed_digest = (revision or version).partition(" ")
    if needed != version:
        raise CorpusError(
            f"the standard library of Python {needed} is needed, and this is Python {version}; run "
            f"openbook with Python {needed}, or build a new store"
        )
    files = sorted(_files(folder), key=lambda file: file.relative_to(folder).as_posix())
    if not files:
        raise CorpusError(f"{folder} holds no sources of Python's standard library")
    lines, n_bytes = [], 0
    for document in _documents(folder, files, version):
        lines.append(f"{document.shard} {document.sha256}")
        n_bytes += len(document.text.encode())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    if needed_digest not in ("", digest):
        raise CorpusError(
            f"the standard library of Python {version} with digest {needed_digest[:12]}... is "
            f"needed, and {folder} has {digest[:12]}...: one of them is patched; run openbook with "
            "the Python that the store was built with, or build a new store"
        )
    return Corpus(
        name="stdlib",
        source=f"standard library of Python {version} ({LICENSE})",
        revision=f"{version} {digest}",
        read=lambda: _documents(folder, files, version),
        n_documents=len(files),
        n_bytes=n_bytes,
        tokenizer="bpe",
        vocab_size=VOCABULARY,
        held_out=HELD_OUT,
    )


def _files(folder: Path, *, top: bool = True) -> Iterator[Path]:
    for path in folder.iterdir():
        name = path.stem
        if top and (name in LEFT_OUT or name.startswith(LEFT_OUT_PREFIXES)):
            continue
        if path.is_dir():
            if path.name not in LEFT_OUT_FOLDERS and not path.is_symlink():
                yield from _files(path, top=False)
        elif path.suffix == ".py":
            yield path


def _documents(folder: Path, files: list[Path], version: str) -> Iterator[Document]:
    for row, path in enumerate(files):
        file = path.relative_to(folder).as_posix()
        yield Document(
            id=f"stdlib@{version}/{file}",
            text=_text(path),
            source="stdlib",
            shard=file,
            row=row,
            title=file.removesuffix(".py").removesuffix("/__init__").replace("/", "."),
            url=ADDRESS.format(version=version, file=file),
        )


def _text(path: Path) -> str:
    """Return the text of a module, decoded as it declares (PEP 263), with line ends `\\n`."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DamagedError(f"{path} cannot be decoded ({reason}); install Python again") from None
