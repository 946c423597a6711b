"""A token store of real text, made of what is installed on the machine at hand.

    python benchmarks/real_text.py --tokens 50000000 --out /tmp/real-text [--more FOLDER ...]

Manual pages, package documentation and sources (C headers, Perl, Python's standard library and
installed packages), in an order drawn from the hash of their paths so that any first part is a
mixture. Files are cut at line ends into documents of about 6,000 characters, near OpenWebText's
mean; a document that occurred before is left out. Byte pairs are trained on the text itself, 50,256
of them with end-of-text 50256, as GPT-2 has. Prints what it used; a machine with other packages
gives another text.

A machine with a few packages holds some 50 million tokens. `--more` names folders whose sources and
documentation are read too, such as other installations of Python: what several of them hold in
versions that differ a little is there in each of them, which makes repeats longer than those of a
corpus of the web.
"""

import argparse
import gzip
import hashlib
import sys
import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from train import progress
from train.data import Corpus, Document, TokenStore, build_store, open_store


__all__ = ["files", "store"]

PLACES = {
    "/usr/share/man": ("*.gz",),
    "/usr/share/doc": ("*.gz", "*.html", "*.md", "*.txt", "*.rst", "copyright", "README*"),
    "/usr/include": ("*.h",),
    "/usr/share/perl": ("*.pm", "*.pl", "*.pod"),
    sysconfig.get_path("stdlib"): ("*.py",),
    sysconfig.get_path("purelib"): ("*.py",),
}
MORE = ("*.py", "*.pyi", "*.h", "*.hpp", "*.c", "*.js", "*.md", "*.rst", "*.txt", "*.pm", "*.pl")
CHARACTERS, VOCABULARY, CHARACTERS_A_TOKEN = 6000, 50257, 4.0


def main() -> int:
    """Build the store and say what it holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=50_000_000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--more", type=Path, nargs="+", default=(), metavar="FOLDER")
    options = parser.parse_args()
    made = store(options.out, options.tokens, more=options.more)
    print(f"{options.out}: {made.n_tokens:,} tokens in {made.n_documents:,} documents")
    print(f"of {made.manifest['corpus']['source']}")
    return 0


def store(out: Path, tokens: int, *, more: Sequence[Path] = ()) -> TokenStore:
    """A store of at least `tokens` tokens at `out`; one that is there already is opened.

    Args:
        more: Folders to read beside the places that every machine has.

    Raises:
        SystemExit: The machine does not hold so much text, or the store is a smaller one.
    """
    if not out.exists():
        with progress.bar("making text") as advance:
            build_store(
                corpus(round(tokens * CHARACTERS_A_TOKEN), more),
                out=out,
                tokenizer="bpe",
                vocab_size=VOCABULARY,
                progress=advance,
            )
    made = open_store(out)
    if made.n_tokens < tokens:
        sys.exit(
            f"{out} holds {made.n_tokens:,} tokens of real text, {tokens:,} are asked for; "
            "make another with --more FOLDER"
        )
    return made


def corpus(characters: int, more: Sequence[Path] = ()) -> Corpus:
    """The first documents of this machine's text, until they hold so many characters."""
    places = "; ".join([*PLACES, *map(str, more)])
    return Corpus("real-text", places, "as installed", lambda: _documents(characters, more))


def files(more: Sequence[Path] = ()) -> list[Path]:
    """All files that are used, in the order of the hash of their paths."""
    found = {
        path
        for place, patterns in [*PLACES.items(), *((str(one.absolute()), MORE) for one in more)]
        for pattern in patterns
        for path in Path(place).rglob(pattern)
        if path.is_file() and not path.is_symlink()
    }
    return sorted(found, key=lambda path: hashlib.sha256(str(path).encode()).digest())


def _documents(characters: int, more: Sequence[Path]) -> Iterator[Document]:
    seen: set[bytes] = set()
    held = 0
    for path in files(more):
        for row, piece in enumerate(_pieces(_text(path))):
            digest = hashlib.sha256(piece.encode()).digest()
            if digest in seen:
                continue
            seen.add(digest)
            held += len(piece)
            yield Document(f"{path}#{row}", piece, "real-text", str(path), row)
        if held >= characters:
            break


def _text(path: Path) -> str:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return content.decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        return ""  # not text after all


def _pieces(text: str) -> Iterator[str]:
    """Stretches of about 6,000 characters that end at a line's end."""
    start = 0
    while start < len(text):
        stop = text.rfind("\n", start, start + CHARACTERS) + 1 or start + CHARACTERS
        if text[start:stop].strip():
            yield text[start:stop]
        start = stop


if __name__ == "__main__":
    sys.exit(main())
