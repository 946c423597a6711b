"""Front doors: packages whose `__init__` imports each public name on first use.

`openbook --help` therefore does not wait for torch. The imports are written in the
`if TYPE_CHECKING:` block of the `__init__`, where type checkers and readers find them;
`names_on_first_use` reads where each name lives from that block.
"""

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path


__all__ = ["names_on_first_use"]


def names_on_first_use(package: str, file: str) -> Callable[[str], object]:
    """Return a `__getattr__` for a package (PEP 562) that imports a name on first use.

    Args:
        package: `__name__` of the package's `__init__`.
        file: `__file__` of the same `__init__`; its `from ... import ...` statements say in which
            module each name lives.
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
