"""Compiled programs: transformers whose circuits are known exactly."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from interp.ground_truth.compiled_programs import (
        HIT,
        Program,
        needed_components,
        open_programs,
        program_contrast,
        read_program,
    )

__all__ = [
    "HIT",
    "Program",
    "needed_components",
    "open_programs",
    "program_contrast",
    "read_program",
]

__getattr__ = names_on_first_use(__name__, __file__)
