"""Patch engine: exact patched forward passes, many at a time, that share the unpatched run."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from interp.patching.engine.base_run import (
        BaseRun,
        activations,
        fast_fp32,
        fast_product,
        product_for,
    )
    from interp.patching.engine.memory import MEMORY, ROWS
    from interp.patching.engine.patched_scores import Patched, averaged, spread
    from interp.patching.engine.paths import Path, arriving, hooks_read, patch_of
    from interp.patching.engine.scheduler import (
        DerivedSource,
        Source,
        engine_runs,
        refuse_unknown,
        scores,
        source_of,
        unpatched,
    )

__all__ = [
    "MEMORY",
    "ROWS",
    "BaseRun",
    "DerivedSource",
    "Patched",
    "Path",
    "Source",
    "activations",
    "arriving",
    "averaged",
    "engine_runs",
    "fast_fp32",
    "fast_product",
    "hooks_read",
    "patch_of",
    "product_for",
    "refuse_unknown",
    "scores",
    "source_of",
    "spread",
    "unpatched",
]

__getattr__ = names_on_first_use(__name__, __file__)
