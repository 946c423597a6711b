"""The folder of the project, below which its notebooks keep their stores and runs."""

from pathlib import Path


__all__ = ["project_root"]

CONTENT = ("pyproject.toml", "train", "interp", "data_attribution", "notebooks")


def project_root(start: str | Path = ".") -> Path:
    """Return the checkout of this project that a folder lies in, wherever a notebook is started.

    Outside of a checkout it is the one that this package is imported from, and without one (the
    package is installed as a wheel) the folder itself.

    Examples:
        >>> from pathlib import Path
        >>> (storage.project_root() / "notebooks").is_dir()
        True
        >>> storage.project_root("notebooks") == storage.project_root()
        True
    """
    begin = Path(start).absolute()
    for folder in (begin, *begin.parents, *Path(__file__).parents):
        if all((folder / name).exists() for name in CONTENT):
            return folder
    return begin
