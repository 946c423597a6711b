"""`python -m train` is the command `openbook`, so that torchrun can start it as a module."""

import sys
from importlib.metadata import entry_points


if __name__ == "__main__":
    # By its entry point: `train` imports nothing of the package that assembles the command.
    (openbook,) = entry_points(group="console_scripts", name="openbook")
    sys.exit(openbook.load()())
