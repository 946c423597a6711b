"""When do induction and IOI form in four architectures, and what do SFT and DPO change in them?

    python benchmarks/circuit_formation.py --out runs/formation [--processes 2]

Trains retro-nano, gpt2-nano, modern-nano and slowrun-nano on the planted corpus with 3 seeds each
(initial weights and data order), tunes every run on the planted instructions (SFT) and then on the
planted preferences (DPO) as `tuning_stages.py` does, and, as a control, tunes every run in as many
steps of SFT on documents of its own corpus. Measures at every checkpoint

- the loss that is saved on the second copy of random words, and each head's attention to the word
  after the first occurrence (induction), on 64 sequences;
- the accuracy of IOI on 300 prompts, and each head's patching effect on 64.

Prints the tables of docs/circuit-formation.md and draws its figure (`--figure`). Intervals over
seeds are Student's, paired by seed. Runs that are there are not trained again, stopped ones
continue, and measurements are kept in the runs. One thread a process; 4 to 15 minutes of one core
for each of the 12 runs. `--save` writes the numbers, from which the documentation's tests print the
tables again. `--verify` also verifies every run, and fails if one is not bit-exact. Nothing is
asked of the other numbers.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import machine
import numpy as np
import torch
import tuning_stages

from data_attribution.report import svg
from interp import training_dynamics
from interp.training_dynamics import Analysis, Trajectory
from train import ladder, numerics, progress, recipes, runs, trainer
from train.data import TokenStore, build_store, open_corpus, open_store, tuning
from train.ladder import Change
from train.numerics import Numerics
from train.runs import Run


NAMES = ("retro-nano", "gpt2-nano", "modern-nano", "slowrun-nano")
SEEDS = (0, 1, 2)
STAGES = ("pretraining", "SFT", "DPO", "control")
CONTROL_DOCUMENTS = 120  # as many as there are planted instructions
SEQUENCES, PROMPTS, PATCHED = 64, 300, 64
DIGITS = 4  # of saved numbers
ABLE = 0.75  # accuracy of IOI from which a run counts as doing it
DECIDES = 0.1  # share of the logit difference that a head restores
GAP, INDUCTION, IOI = "copying gap", "induction", "ioi accuracy"
SIZE = 640, 260  # of a plot of the figure, in pixels


@dataclass(frozen=True)
class Stages:
    """A pretrained run, and the runs that continue it."""

    pretraining: Run
    SFT: Run
    DPO: Run
    control: Run


@dataclass(frozen=True)
class Formation:
    """What the checkpoints of one pretrained run show, and what tuning leaves of it.

    Attributes:
        loss: Mean loss of the last 100 steps, in nats a token.
        steps: The steps of its checkpoints.
        gap: Loss saved on the second copy of random words at each of them, in nats a token.
        ioi: Accuracy of IOI at each of them.
        attention: Induction attention of each head at each of them.
        effects: Patching effect of each head on IOI at the checkpoints that can do it, by step.
        stages: Numbers at the last step of each of `STAGES`, by name.
        facts: Share of the facts that SFT, or DPO, alone taught, after pretraining, SFT and DPO.
    """

    name: str
    seed: int
    run_id: str
    loss: float
    steps: list[int]
    gap: list[float]
    ioi: list[float]
    attention: dict[str, list[float]]
    effects: dict[str, dict[str, float]]
    stages: dict[str, dict[str, float]]
    facts: dict[str, list[float]]

    @property
    def copying(self) -> tuple[int, int] | None:
        """Checkpoints between which the copying gap passed half of its last value for good."""
        below = [i for i, one in enumerate(self.gap) if one < self.gap[-1] / 2]
        if self.gap[-1] <= 0 or not below:
            return None  # it does not copy at the end
        return self.steps[below[-1]], self.steps[below[-1] + 1]

    @property
    def able(self) -> int | None:
        """First checkpoint from which the accuracy of IOI stays at `ABLE` or above."""
        below = [i for i, one in enumerate(self.ioi) if one < ABLE]
        following = [*self.steps, None]
        return following[below[-1] + 1 if below else 0]

    def leader(self, step: int) -> tuple[str, float]:
        """Return the head with the most induction attention at a checkpoint, and its attention."""
        number = self.steps.index(step)
        best = max(self.attention, key=lambda head: self.attention[head][number])
        return best, self.attention[best][number]

    def deciders(self, step: int | None) -> dict[str, float]:
        """Return the heads that decide IOI at a checkpoint, with their effects, largest first."""
        effects = self.effects.get(str(step), {})
        chosen = [(head, value) for head, value in effects.items() if value > DECIDES]
        return dict(sorted(chosen, key=lambda one: -one[1]))


def saved(path: Path) -> dict[str, list[Formation]]:
    """Return the formations in a file that `--save` wrote, by architecture."""
    rows = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return by_name([Formation(**row) for row in rows])


def by_name(formed: Iterable[Formation]) -> dict[str, list[Formation]]:
    """Return formations by architecture and, within one, by seed."""
    order = sorted(formed, key=lambda one: (NAMES.index(one.name), one.seed))
    return {
        name: [one for one in order if one.name == name]
        for name in NAMES
        if any(one.name == name for one in order)
    }


# --- training ------------------------------------------------------------------------------------


def stages_of(out: Path, name: str, seed: int, how: Numerics) -> Stages:
    """Train what is missing of one architecture and seed, and return its runs."""
    store = open_store(out / "store")
    place = out / f"{name}-{seed}"
    if (place / runs.MANIFEST).exists():
        run = trainer.resume(place, store=store.path)
    else:
        recipe = recipes.by_name("planted" if name == "gpt2-nano" else name)
        recipe = replace(recipe, init_seed=seed, order_seed=seed)
        run = trainer.train(recipe, store, out=place, numerics=how)
    tuned = tuning_stages.lineage(out / f"{name}-{seed}-tuned", run)
    return Stages(run, tuned.lineage()[1], tuned, control(out / f"{name}-{seed}-control", run))


def control(out: Path, run: Run) -> Run:
    """Return the run tuned on documents of its own corpus, at the rate and steps of SFT."""
    if (out / "run" / runs.MANIFEST).exists():
        return trainer.resume(out / "run")
    store = control_store(out, run)
    how = Numerics("cpu", "fp32", 1)
    return trainer.tune(run, store, "sft", out=out / "run", numerics=how, **tuning_stages.SFT)


def control_store(out: Path, run: Run) -> TokenStore:
    """Return a store of training documents drawn at random, whose first word is the prompt."""
    if (out / "store").exists():
        return open_store(out / "store")
    store = run.store
    fitting = np.flatnonzero(store.lengths < run.config.n_ctx // 2)
    drawn = np.random.default_rng(0).choice(fitting, CONTROL_DOCUMENTS, replace=False)
    words = [store.text(int(document)).split(" ", 1) for document in np.sort(drawn)]
    out.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"prompt": first, "response": rest}) for first, rest in words]
    (out / "documents.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    examples = tuning.open_tuning_set(out / "documents.jsonl", "instructions")
    return tuning.build_tuning_store(
        examples, out=out / "store", tokenizer=run.known_tokenizer(), context=run.config.n_ctx
    )


# --- measuring -----------------------------------------------------------------------------------


def measured(out: Path, name: str, seed: int, how: Numerics) -> Formation:
    """Train what is missing, and measure every checkpoint."""
    torch.set_num_threads(1)
    found = stages_of(out, name, seed, how)
    run = found.pretraining
    analyses = [
        training_dynamics.analysis("detectors", run, n_prompts=SEQUENCES),
        training_dynamics.analysis("score:ioi", run, n_prompts=PROMPTS),
        training_dynamics.analysis("heads:ioi", run, n_prompts=PATCHED),
    ]
    detectors, ioi, heads = (training_dynamics.over_training(run, one) for one in analyses)
    attention = {
        head.removeprefix(f"{INDUCTION} "): values(detectors, head)
        for head in detectors.names
        if head.startswith(f"{INDUCTION} ")
    }
    effects: dict[str, dict[str, float]] = {}
    for point in heads.points:
        effects.setdefault(str(point.step), {})[point.name] = round(point.value, DIGITS)
    best = max(attention, key=lambda head: attention[head][-1])
    return Formation(
        name=name,
        seed=seed,
        run_id=run.id,
        loss=round(float(np.mean([row.loss for row in run.ledger][-100:])), DIGITS),
        steps=run.steps,
        gap=values(detectors, GAP),
        ioi=values(ioi, IOI),
        attention=attention,
        effects=effects,
        stages={
            stage: after_stage(
                getattr(found, stage), analyses, best, effects.get(str(run.steps[-1]))
            )
            for stage in STAGES
        },
        facts=facts_of_stages(found.DPO),
    )


def values(found: Trajectory, name: str) -> list[float]:
    """Return a number at every checkpoint."""
    return [round(one.value, DIGITS) for one in found.curve(name)]


def after_stage(
    run: Run, analyses: Sequence[Analysis], best: str, before: dict[str, float] | None
) -> dict[str, float]:
    """Return numbers at the last step of a stage.

    Args:
        best: The head that led in induction attention after pretraining.
        before: Effects of all heads on IOI after pretraining; None if it does not do IOI.
    """
    detectors, ioi, heads = (
        training_dynamics.over_training(run, one, steps=[run.steps[-1]]) for one in analyses
    )
    numbers = {
        "copying gap, nats": values(detectors, GAP)[0],
        "attention of the induction head": values(detectors, f"{INDUCTION} {best}")[0],
        "IOI accuracy": values(ioi, IOI)[0],
        "IOI logit difference, nats": values(ioi, "ioi logit difference")[0],
    }
    if heads.points and before is not None:
        first = max(before, key=lambda head: before[head])
        both = [(before[head], values(heads, head)[0]) for head in before]
        correlation = float(np.corrcoef(np.array(both).T)[0, 1])
        numbers["IOI effect of the first head"] = values(heads, first)[0]
        numbers["correlation of all heads' effects"] = round(correlation, DIGITS)
    return numbers


def facts_of_stages(tuned: Run) -> dict[str, list[float]]:
    """Return how many facts that a stage alone taught are answered after each stage."""
    models = [run.load() for run in tuned.lineage()]
    return {
        stage: [tuning_stages.answered(model, tuned, kind, "new")[0] for model in models]
        for stage, kind in (("SFT", "instructions"), ("DPO", "preferences"))
    }


# --- report --------------------------------------------------------------------------------------


def formation_table(found: Mapping[str, Sequence[Formation]]) -> str:
    """Return the table of what forms when; a cell has one value per seed, in the order of seeds."""
    rows: dict[str, list[str]] = {}
    for formed in found.values():
        for one in formed:
            for row, value in formation_row(one).items():
                rows.setdefault(row, []).append(value)
    lines = [f"| | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for row, every in rows.items():
        cells = iter(every)
        joined = ["; ".join(next(cells) for _ in formed) for formed in found.values()]
        lines.append(f"| {row} | {' | '.join(joined)} |")
    return "\n".join(lines)


def formation_row(one: Formation) -> dict[str, str]:
    """Return the numbers of one run, by the name of the table's row."""
    last = one.steps[-1]
    formed = one.copying
    return {
        "loss, last 100 steps, nats a token": f"{one.loss:.2f}",
        "copying gap at the end, nats": f"{one.gap[-1]:.2f}",
        "copying forms between steps": "{}-{}".format(*formed) if formed else "never",
        "induction head at the end, attention": headed(one.leader(last)),
        "induction head when copying forms": headed(one.leader(formed[1])) if formed else "none",
        "IOI accuracy at the end": share(one.ioi[-1]),
        f"IOI at {share(ABLE)} or more from step": str(one.able or "never"),
        "heads that decide IOI at the end": listed(one.deciders(last)),
        "heads that decide when it is first done": listed(one.deciders(one.able)),
    }


def headed(found: tuple[str, float]) -> str:
    """Return a head and its attention."""
    return f"{found[0]} {share(found[1])}"


def share(value: float) -> str:
    """Return a share with two digits and no leading zero."""
    return f"{value:.2f}".removeprefix("0")


def listed(heads: dict[str, float]) -> str:
    """Return heads with their effects."""
    return " + ".join(f"{name} {share(value)}" for name, value in heads.items()) or "none"


def stages_table(found: Mapping[str, Sequence[Formation]]) -> str:
    """Return the table of what each stage changes, mean over seeds with Student's interval."""
    lines = [
        f"| | {' | '.join((STAGES[0], *(f'change by {stage}' for stage in STAGES[1:])))} |",
        "|---" * (len(STAGES) + 1) + "|",
    ]
    for name, formed in found.items():
        numbers = list(dict.fromkeys(key for one in formed for key in one.stages[STAGES[0]]))
        for number in numbers:
            cells = []
            for stage in STAGES:
                # DPO continues SFT; its change is the change against SFT.
                before = "SFT" if stage == "DPO" else STAGES[0]
                both = [
                    (one.stages[stage][number], one.stages[before][number])
                    for one in formed
                    if number in one.stages[stage] and number in one.stages[before]
                ]
                cells.append(cell(both, first=stage == STAGES[0]))
            lines.append(f"| {name}: {number} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(both: list[tuple[float, float]], *, first: bool) -> str:
    """Return a mean, or a change with its interval, and the number of seeds if some are missing."""
    if not both:
        return "not done"
    after, before = zip(*both, strict=True)
    seeds = "" if len(both) == len(SEEDS) else f" ({progress.count(len(both), 'seed')})"
    if first:
        return f"{np.mean(after):.2f}{seeds}"
    return f"{shown(ladder.paired_change(after, before))}{seeds}"


def shown(change: Change) -> str:
    """Return a change with two digits, bold if its interval leaves out 0."""
    if change.low is None or change.high is None:
        return f"{change.value:+.2f}"
    text = f"{change.value:+.2f} [{change.low:+.2f}, {change.high:+.2f}]"
    return f"**{text}**" if change.low > 0 or change.high < 0 else text


def facts_table(found: Mapping[str, Sequence[Formation]]) -> str:
    """Return the table of facts that one stage alone taught, mean over seeds."""
    lines = ["| facts taught by one stage alone, answered after | pretraining | SFT | DPO |"]
    lines.append("|---" * 4 + "|")
    for name, formed in found.items():
        for stage in ("SFT", "DPO"):
            cells = [
                seeded(ladder.paired_change(every, [0.0] * len(every)))
                for every in zip(*(one.facts[stage] for one in formed), strict=True)
            ]
            lines.append(f"| {name}, taught by {stage} | {' | '.join(cells)} |")
    return "\n".join(lines)


def seeded(mean: Change) -> str:
    """Return a mean over seeds with half the width of its interval."""
    return share(mean.value) + ("" if mean.high is None else f" ± {share(mean.high - mean.value)}")


def figure(found: Mapping[str, Sequence[Formation]]) -> str:
    """Draw copying and IOI over training: mean of the seeds, shaded from lowest to highest."""
    parts = []
    for row, (number, up) in enumerate((("gap", "copying gap, nats"), ("ioi", "IOI accuracy"))):
        curves, labels = [], []
        for name, formed in found.items():
            # Checkpoints of the first steps lie close together, and the axis has equal steps.
            places = [i for i, step in enumerate(formed[0].steps) if step % 100 == 0]
            every = np.array([getattr(one, number) for one in formed])[:, places]
            labels = [str(formed[0].steps[i]) for i in places]
            low, high = every.min(axis=0).tolist(), every.max(axis=0).tolist()
            curves.append(svg.Line(name, every.mean(axis=0).tolist(), low, high))
        drawn = svg.lines(curves, labels, across="training step", up=up)
        parts.append(drawn.replace("<svg ", f'<svg y="{row * SIZE[1]}" height="{SIZE[1]}" ', 1))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE[0]} {2 * SIZE[1]}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="11">\n'
        "<title>Copying and IOI over training, in four architectures</title>\n"
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def report(found: Mapping[str, Sequence[Formation]]) -> str:
    """Return the three tables of docs/circuit-formation.md."""
    return "\n\n".join((formation_table(found), stages_table(found), facts_table(found)))


# --- command -------------------------------------------------------------------------------------


def main() -> int:
    """Train, measure, print and draw; 1 if a tuned run is not bit-exact."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for stores and runs")
    parser.add_argument("--names", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--verify", action="store_true", help="verify every run")
    parser.add_argument("--save", type=Path, help="JSON file of the numbers")
    parser.add_argument("--figure", type=Path, help="SVG file of the figure")
    arguments = parser.parse_args()
    how = numerics.choose(threads=1, precision=arguments.precision)
    measured_on = f"{machine.described('torch')}, {how}"
    print(measured_on, flush=True)
    if not (arguments.out / "store").exists():
        with progress.bar("store") as advance:
            build_store(open_corpus("planted"), out=arguments.out / "store", progress=advance)
    asked = [(name, seed) for seed in arguments.seeds for name in arguments.names]
    done = []
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        for ended in as_completed(
            [pool.submit(measured, arguments.out, *one, how) for one in asked]
        ):
            one = ended.result()
            print(f"{one.name}, seed {one.seed}: run {one.run_id}", flush=True)
            done.append(one)
    found = by_name(done)
    if arguments.save:
        rows = [asdict(one) for formed in found.values() for one in formed]
        content = {"measured_on": measured_on, "runs": rows}
        arguments.save.write_text(f"{json.dumps(content)}\n", encoding="utf-8")
    print(f"\n{report(found)}")
    if arguments.figure:
        arguments.figure.write_text(figure(found), encoding="utf-8")
    return verified(arguments.out, asked, how) if arguments.verify else 0


def verified(out: Path, asked: Sequence[tuple[str, int]], how: Numerics) -> int:
    """Verify every run; 1 if one is not bit-exact."""
    failed = 0
    for name, seed in asked:
        stages = stages_of(out, name, seed, how)
        for run in (*stages.DPO.lineage(), stages.control):
            level = trainer.verify(run).level
            failed += level != "bit-exact"
            print(f"{name}, seed {seed}, {run.recipe.name}: {level}", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
