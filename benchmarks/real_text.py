"""A token store of real text, made of what is installed on the machine at hand.

    python benchmarks/real_text.py --tokens 50000000 --out /tmp/real-text

Manual pages, package documentation and sources (C headers, Perl, Python's standard library and
installed packages), in an order drawn from the hash of their paths so that any first part is a
mixture. Files are cut at line ends into documents of about 6,000 characters, near OpenWebText's
mean; a document that occurred before is left out. Byte pairs are trained on the text itself, 50,256
of them with end-of-text 50256, as GPT-2 has. Prints what it used; a machine with other packages
gives another text.
"""

import argparse
import gzip
import hashlib
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path

from train import progress, token_store
from train.corpora import Corpus, Document
from train.token_store import TokenStore


__all__ = ["files", "store"]

PLACES = {
    "/usr/share/man": ("*.gz",),
    "/usr/share/doc": ("*.gz", "*.html", "*.md", "*.txt", "*.rst", "copyright", "README*"),
    "/usr/include": ("*.h",),
    "/usr/share/perl": ("*.pm", "*.pl", "*.pod"),
    sysconfig.get_path("stdlib"): ("*.py",),
    sysconfig.get_path("purelib"): ("*.py",),
}
CHARACTERS, VOCABULARY, CHARACTERS_A_TOKEN = 6000, 50257, 4.0


def main() -> int:
    """Build the store and say what it holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=50_000_000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    made = store(options.out, options.tokens)
    print(f"{options.out}: {made.n_tokens:,} tokens in {made.n_documents:,} documents")
    print(f"of {made.manifest['corpus']['source']}")
    return 0


def store(out: Path, tokens: int) -> TokenStore:
    """A store of at least `tokens` tokens at `out`; one that is there already is opened.

    Raises:
        SystemExit: The machine does not hold so much text, or the store is a smaller one.
    """
    if not out.exists():
        with progress.bar("making text") as advance:
            token_store.build(
                corpus(round(tokens * CHARACTERS_A_TOKEN)),
                out=out,
                tokenizer="bpe",
                vocab_size=VOCABULARY,
                progress=advance,
            )
    made = token_store.open(out)
    if made.n_tokens < tokens:
        sys.exit(f"{out} holds {made.n_tokens:,} tokens of real text, {tokens:,} are asked for")
    return made


def corpus(characters: int) -> Corpus:
    """The first documents of this machine's text, until they hold so many characters."""
    return Corpus("real-text", "; ".join(PLACES), "as installed", lambda: _documents(characters))


def files() -> list[Path]:
    """All files that are used, in the order of the hash of their paths."""
    found = {
        path
        for place, patterns in PLACES.items()
        for pattern in patterns
        for path in Path(place).rglob(pattern)
        if path.is_file() and not path.is_symlink()
    }
    return sorted(found, key=lambda path: hashlib.sha256(str(path).encode()).digest())


def _documents(characters: int) -> Iterator[Document]:
    seen: set[bytes] = set()
    held = 0
    for path in files():
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
