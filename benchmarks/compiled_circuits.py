"""Components found in compiled programs, against the circuits that the compiler wrote down.

    python benchmarks/compiled_circuits.py tracr_129.tar.xz [--subset 12]

For every program and component (heads, at all positions; MLP outputs) three questions:

    zero, varied       is its removal noticed, on inputs of every length?
    zero, stored       the same on the program's 40 examples, all of one length
    exchange, stored   is its value on another example of that length noticed?

Noticed is an output that changes by more than 1e-4. No component outside the circuit may be found
(its weights are zero), varied inputs must show all of it, and whatever an exchange loses the tool
must warn of by name, having seen prompts and no circuit: else the exit code is 1. Minutes for all
129 programs; `--subset` takes that many, evenly.
"""

import argparse
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import compiled_programs
import machine
import torch
from compiled_programs import Program

from interp.errors import UninformativeWarning


QUESTIONS = ("zero, varied", "zero, stored", "exchange, stored")
Count = Counter[str | tuple[str, str]]  # a question and its outcome, or what was warned of


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("source", type=Path, help="The .tar.xz of compiled programs, or a folder.")
    parser.add_argument("--subset", type=int, default=0, help="So many programs; default: all.")
    parser.add_argument("--seed", type=int, default=0, help="Of the varied inputs.")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(machine.described("torch", "numpy"))
    start, programs = time.perf_counter(), list(compiled_programs.open_programs(asked.source))
    if asked.subset:
        programs = programs[:: -(-len(programs) // asked.subset)]
    total: Count = Counter()
    for program in programs:
        total += asked_of(program, asked.seed)
    print(f"{len(programs)} programs, {time.perf_counter() - start:.0f} s")
    return report(total)


def asked_of(program: Program, seed: int) -> Count:
    """Counts over one program, by question and by what was warned of."""
    found: Count = Counter()
    found.update(programs=1, examples=len(program.examples), wrong=program.mismatches())
    for question, batches in zip(
        QUESTIONS[:2], (program.varied_inputs(seed), [program.tokens]), strict=True
    ):
        changes = compiled_programs.needed_components(program, batches)
        hits = [place for place, change in changes.items() if change > compiled_programs.HIT]
        found.update({(question, kind): n for kind, n in program.counts(hits).items()})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UninformativeWarning)
        contrast = compiled_programs.program_contrast(
            program, program.tokens, program.tokens.roll(1, 0)
        )
    hits = [place for place in program.components if contrast[str(place)] == "shown"]
    found.update({(QUESTIONS[2], kind): n for kind, n in program.counts(hits).items()})
    lost, named = set(map(str, program.circuit)) - set(contrast.named("shown")), contrast.named
    found.update(lost=len(lost), warned_of=len(lost & set(contrast.uninformative)))
    found.update({verdict: len(lost & set(named(verdict))) for verdict in set(contrast.verdicts)})
    found.update(needless=len(set(contrast.uninformative) - lost))
    found.update(losing=bool(lost), warned=bool(lost and caught), alarmed=bool(caught and not lost))
    return found


def report(total: Count) -> int:
    """Print the table; 1 when something must hold and does not."""
    n = sum(total[QUESTIONS[0], kind] for kind in ("tp", "fp", "fn", "tn"))
    print(
        f"{total['wrong']} of {total['examples']} examples decoded otherwise than the program says"
    )
    print(f"\n{n} components{'tp':>13}{'fp':>6}{'fn':>6}{'tn':>6}")
    for question in QUESTIONS:
        row = "".join(f"{total[question, kind]:>6}" for kind in ("tp", "fp", "fn", "tn"))
        print(f"{question:<20}{row:>28}")
    print(
        f"\nlost by exchange: {total['lost']} in {total['losing']} programs; warned of by name: "
        f"{total['warned_of']} in {total['warned']}\n"
        f"  constant {total['constant']}, unread {total['unread']}, absorbed {total['absorbed']}\n"
        f"warned of without cause: {total['needless']} of {n - total['lost']} others, "
        f"{total['alarmed']} of {total['programs'] - total['losing']} programs"
    )
    outside = sum(total[question, "fp"] for question in QUESTIONS)
    unnamed = total["lost"] - total["warned_of"]
    failed = outside + total[QUESTIONS[0], "fn"] + unnamed + total["needless"] + total["wrong"]
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
