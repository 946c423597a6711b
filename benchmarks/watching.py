"""What does it cost to watch a run grow, and does it change a bit?

    python benchmarks/watching.py --data data/planted

Trains PLANTED twice in a temporary folder, watched as `openbook train` watches and not watched.
Prints what each look cost in CPU time, the share of all looks in the time of training (the log's
own sum, asked to be below 2 %), the CPU time of both runs, and whether their weights are the same.
`--steps` makes it short; the schedule follows, and a run of few steps still has its first and its
last look.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import machine

from interp import training_dynamics
from train import numerics, progress, recipes, trainer
from train.data import build_store, open_corpus, open_store
from train.runs import MonitorLog, Run


MOST = 0.02


def main() -> int:
    """Train, look, print; 1 when looking costs too much or changes the weights."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data", type=Path, help="a planted store; default: a new one")
    parser.add_argument("--steps", type=int, default=recipes.PLANTED.steps)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    print(machine.described("torch"))
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data or Path(folder) / "store"
        if not (data / "store.json").exists():
            build_store(open_corpus("planted"), out=data)
        store = open_store(data)
        context = recipes.PLANTED.model.n_ctx
        watches = [
            *trainer.store_tasks(store, context),
            *training_dynamics.behaviour_tasks(store, context),
        ]
        how = numerics.choose(threads=arguments.threads)
        runs, seconds = {}, {}
        for name, watch in (("not watched", []), ("watched", watches)):
            begin = time.process_time()
            with progress.bar(name) as advance:
                runs[name] = trainer.train(
                    recipes.PLANTED, store, out=Path(folder) / name, numerics=how, watch=watch,
                    progress=advance, steps=arguments.steps,
                )  # fmt: skip
            seconds[name] = time.process_time() - begin
        return reported(runs["watched"].watched, watches, seconds, same(*runs.values()))


def same(one: Run, other: Run) -> bool:
    """Whether two runs have the same name, weights and ledger, `seconds` aside."""
    rows = zip(one.ledger, other.ledger, strict=True)
    return one.id == other.id and one.saved == other.saved and all(a.agrees(b) for a, b in rows)


def reported(log: MonitorLog | None, watches: list, seconds: dict[str, float], equal: bool) -> int:
    """Print what was measured and say whether it is within bounds."""
    assert log
    looks = [one.seconds for one in log.looks]
    share = log.looks[-1].share
    tokens = sum(one.tokens.numel() for one in watches)
    print(f"{len(looks)} looks at {tokens} tokens in {len(watches)} watches")
    print(
        f"a look: median {1000 * median(looks):.1f} ms, at most {1000 * max(looks):.1f} ms of CPU"
    )
    for name, spent in seconds.items():
        print(f"{name}: {spent:.1f} s of CPU")
    print(f"share of the looks in training: {100 * share:.2f} % (at most {100 * MOST:.0f} %)")
    print(f"weights, ledger and run id are the same: {equal}")
    return 0 if share < MOST and equal else 1


if __name__ == "__main__":
    sys.exit(main())
