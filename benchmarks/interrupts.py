"""What stays behind when a computation is interrupted between any two instructions, as by Ctrl-C.

    python benchmarks/interrupts.py --n 2000

The work of `tests/interp/test_interrupts.py`, stopped by a timer at a random moment. Hooks, modes,
weights' gradients, random states and thread counts are compared with what they were. Python itself
may drop an interrupt or let one fall into the few instructions that switch a mode of torch, so what
is asked is a rate and no zero: at most one leak in 500, by the upper end of Wilson's interval.
"""

import argparse
import importlib.util
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import machine

from interp.patching import engine
from train.statistics import wilson


TESTS = Path(__file__).parents[1] / "tests" / "interp" / "test_interrupts.py"
MOST = 1 / 500


def main() -> int:
    """Interrupt, compare, count; 1 when more stays behind than is asked."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--n", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(machine.described("torch"))
    engine.ROWS["cpu"] = 24  # So that a sweep of a tiny model is not over in one pass.
    return report(interrupted(given.n, given.seed))


def report(ends: Counter) -> int:
    """Print how the interrupts ended; 1 when too many left something behind."""
    n, leaks = sum(ends.values()), ends["leaked"]
    low, high = wilson(leaks / n, n)
    print(", ".join(f"{name} {count:,}" for name, count in sorted(ends.items())))
    print(f"{leaks} of {n:,} left something behind [{low:.5f}, {high:.5f}], asked: {MOST} at most")
    return int(high > MOST)


def interrupted(n: int, seed: int) -> Counter:
    """How so many interrupts ended, each at a random moment of a random work."""
    tests = _tests()
    model = tests.small_model()
    behaviour = tests.random_behaviour(model)
    lasts = {}
    for name, work in tests.WORK.items():
        begin = time.process_time()
        tests.ended(lambda work=work: work(model, behaviour))
        lasts[name] = time.process_time() - begin
    draw, before, ends = random.Random(seed), tests.state(model), Counter()
    for _ in range(n):
        name = draw.choice(list(tests.WORK))
        after = 1e-5 + 0.9 * draw.random() * lasts[name]
        end, _ = tests.ended(
            lambda name=name, after=after: stopped_by_alarm(
                lambda: tests.WORK[name](model, behaviour), after
            )
        )
        if not tests.unchanged(model, before):
            print(
                f"left behind by {name!r} after {after:.6f} s: {differences(tests, model, before)}"
            )
            before, end = tests.state(model), "leaked"
        ends[end] += 1
    return ends


def differences(tests: ModuleType, model: Any, before: dict[str, Any]) -> list[str]:
    """Names of what is not as it was."""
    after = tests.state(model)
    return [name for name in after if after[name] != before[name]]


def stopped_by_alarm(work: Callable[[], Any], seconds: float) -> Any:
    """The work, interrupted after so many seconds of the processor."""
    with alarm(seconds) as armed:
        result = work()
        armed[0] = False
    return result


@contextmanager
def alarm(seconds: float) -> Iterator[list[bool]]:
    """Interrupt this thread after the block has used so many seconds of the processor."""
    armed = [True]

    def ring(number: int, frame: Any) -> None:
        if not armed[0]:
            return
        # torch's own switches of grad mode are written in Python too: an interrupt in the few
        # microseconds that one takes leaves it half turned, and there is nothing that we could do.
        if frame and "torch/autograd/grad_mode" in frame.f_code.co_filename:
            signal.setitimer(signal.ITIMER_PROF, 1e-4)
            return
        armed[0] = False
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGPROF, ring)
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        yield armed
    finally:
        armed[0] = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _tests() -> ModuleType:
    spec = importlib.util.spec_from_file_location(TESTS.stem, TESTS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
