"""Front doors: a folder's `__init__` names what the folder offers, and loads each name on first
use.

So `openbook --help` does not wait for torch. The names stand in the `if TYPE_CHECKING:` block of
the `__init__` itself, where type checkers and readers find them; nothing is listed twice.
"""

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path


__all__ = ["names_on_first_use"]


def names_on_first_use(package: str, file: str) -> Callable[[str], object]:
    """Return a module's `__getattr__` (PEP 562) that imports a name when it is first asked for.

    Args:
        package: `__name__` of the folder's `__init__`.
        file: `__file__` of it, whose `from ... import ...` statements say where each name lives.
    """
    homes: dict[str, str] = {}
    for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(package):
            homes |= dict.fromkeys((name.name for name in node.names), node.module)

    def load(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return load
