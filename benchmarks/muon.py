"""How long Muon's orthogonalisation takes, beside torch's.

    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/muon.py

torch.optim.Muon orthogonalises in bf16, which a processor without bf16 emulates; ours takes the
precision of the weights on a CPU. Eight matrices of 128 x 128, CPU time of one thread, the least of
four, in alternation. Nothing is asked where the processor has bf16; without the variable, this one
may have it.
"""

import sys
import time
from collections.abc import Callable

import machine
import torch
from torch.optim import _muon

from train.trainer import optimizer


REPEATS = 4


def main() -> int:
    """Print both times and their ratio."""
    torch.set_num_threads(1)
    print(f"{machine.described('torch')}, 1 thread")
    drawn = torch.randn(8, 128, 128, generator=torch.Generator().manual_seed(0))

    def theirs() -> None:
        for matrix in drawn:
            _muon._zeropower_via_newtonschulz(matrix, optimizer.NEWTON_SCHULZ, 5, 1e-7)

    times = [
        (seconds(theirs), seconds(lambda: optimizer.orthogonalised(drawn))) for _ in range(REPEATS)
    ]
    torchs, ours = (min(column) for column in zip(*times, strict=True))
    print(f"torch {torchs * 1e3:.1f} ms, ours {ours * 1e3:.1f} ms: {torchs / ours:.1f} times")
    return 0


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of one call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


if __name__ == "__main__":
    sys.exit(main())
