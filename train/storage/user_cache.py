"""The user's cache folder, for files that can be made again."""

import os
import tempfile
from pathlib import Path


__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """Return the folder for files that can be made again.

    It is $OPENBOOK_CACHE, else `openbook` in $XDG_CACHE_HOME or ~/.cache, else (if that cannot be
    written) a folder among the temporary files of the system.

    Examples:
        >>> storage.cache_folder() == released.cache_folder()
        True
    """
    named = os.environ.get("OPENBOOK_CACHE")
    if named:
        return Path(named)
    try:
        place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openbook"
        place.mkdir(parents=True, exist_ok=True)
        if os.access(place, os.W_OK):
            return place
    except (OSError, RuntimeError):
        pass
    return Path(tempfile.gettempdir()) / f"openbook-{os.getuid()}"
