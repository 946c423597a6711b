"""The ladder between two architectures: one factor at a time, cumulatively, at equal size."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from train.ladder.factors import Factor, Rung, factors_between, part_way, rungs_between
    from train.ladder.plan import Cost, Ladder, Member, Trial, begin, cost
    from train.ladder.published import published_claims
    from train.ladder.sizes import Equal, equal_size, flops_per_token
    from train.ladder.table import (
        Change,
        LadderTable,
        TableRow,
        paired_change,
        save_table,
        tabulate,
    )
    from train.ladder.training import Measurement, climb, measurements

__all__ = [
    "Change",
    "Cost",
    "Equal",
    "Factor",
    "Ladder",
    "LadderTable",
    "Measurement",
    "Member",
    "Rung",
    "TableRow",
    "Trial",
    "begin",
    "climb",
    "cost",
    "equal_size",
    "factors_between",
    "flops_per_token",
    "measurements",
    "paired_change",
    "part_way",
    "published_claims",
    "rungs_between",
    "save_table",
    "tabulate",
]

__getattr__ = names_on_first_use(__name__, __file__)
