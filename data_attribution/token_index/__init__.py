"""The token index: a suffix array over the token store, to count, find and trace text spans."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from data_attribution.token_index.builder import INDEX_FOLDER, build, open, verify
    from data_attribution.token_index.cost import (
        PROCESS,
        Rate,
        estimate_cost,
        measure_rate,
        memory_of,
    )
    from data_attribution.token_index.index import TokenIndex
    from data_attribution.token_index.query_tokens import TokenQuery, other_forms
    from data_attribution.token_index.results import Hit, Span
    from data_attribution.token_index.sharding import (
        estimate_shards,
        plan_shards,
        sorting_seconds,
        worthwhile_workers,
    )

__all__ = [
    "INDEX_FOLDER",
    "PROCESS",
    "Hit",
    "Rate",
    "Span",
    "TokenIndex",
    "TokenQuery",
    "build",
    "estimate_cost",
    "estimate_shards",
    "measure_rate",
    "memory_of",
    "open",
    "other_forms",
    "plan_shards",
    "sorting_seconds",
    "verify",
    "worthwhile_workers",
]

__getattr__ = names_on_first_use(__name__, __file__)
