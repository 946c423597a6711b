"""A trained run on disk: manifest, checkpoints, ledger and monitor log."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from train.runs.checkpoints import (
        CHECKPOINT_INDEX,
        CHECKPOINTS,
        EMA,
        Checkpoint,
        check_checkpoints,
        drop_unlisted,
        load_weights,
        misfit,
        outside,
        read_counters,
        read_tensors,
        write_checkpoint,
    )
    from train.runs.ledger import (
        LEDGER,
        LedgerRow,
        ledger_writer,
        read_ledger,
        write_ledger,
    )
    from train.runs.manifest import (
        MANIFEST,
        begin_manifest,
        finish_manifest,
        imported_manifest,
        released_manifest,
        resumed_manifest,
    )
    from train.runs.monitor_log import (
        MONITOR_LOG,
        MonitorLog,
        MonitorScore,
        MonitorTask,
        begin_monitor_log,
        parse_log,
        read_monitor_log,
        six_digits,
    )
    from train.runs.readable_run import ReadableRun
    from train.runs.run import SCHEDULE, Origin, Run, open, order_of, record_schedule
    from train.runs.tuning_base import REFERENCE, Base, read_reference, reference_bytes

__all__ = [
    "CHECKPOINTS",
    "CHECKPOINT_INDEX",
    "EMA",
    "LEDGER",
    "MANIFEST",
    "MONITOR_LOG",
    "REFERENCE",
    "SCHEDULE",
    "Base",
    "Checkpoint",
    "LedgerRow",
    "MonitorLog",
    "MonitorScore",
    "MonitorTask",
    "Origin",
    "ReadableRun",
    "Run",
    "begin_manifest",
    "begin_monitor_log",
    "check_checkpoints",
    "drop_unlisted",
    "finish_manifest",
    "imported_manifest",
    "ledger_writer",
    "load_weights",
    "misfit",
    "open",
    "order_of",
    "outside",
    "parse_log",
    "read_counters",
    "read_ledger",
    "read_monitor_log",
    "read_reference",
    "read_tensors",
    "record_schedule",
    "reference_bytes",
    "released_manifest",
    "resumed_manifest",
    "six_digits",
    "write_checkpoint",
    "write_ledger",
]

__getattr__ = names_on_first_use(__name__, __file__)
